"""What a call raises.

::

    ClientError
    +-- InvalidArgument    the caller's mistake, found before anything was sent
    +-- Refused            the cluster said no; certainly not done
    |   +-- CompareFailed  the key is at another revision than ``prev_revision``
    +-- Unavailable        nobody answered, or nobody leads, until the deadline; certainly not done
    +-- OutcomeUnknown     it may be done, now or later
    +-- Damaged            a backup that is none, or not all of one
"""

from __future__ import annotations


class ClientError(Exception):
    """The root of the tree."""


class InvalidArgument(ClientError, ValueError):
    """The caller's mistake: nothing was sent."""


class Refused(ClientError):
    """The cluster refused the request; nothing was done.

    Args:
        status: the HTTP status.
        code: the stable, machine-readable reason.
        detail: one readable sentence.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class CompareFailed(Refused):
    """The key is at another revision than ``prev_revision``; nothing was done.

    Args:
        detail: one readable sentence.
        mod_revision: where the key is; 0: it does not exist.
        revision: the cluster's revision then.
    """

    def __init__(self, detail: str, mod_revision: int, revision: int) -> None:
        super().__init__(409, "compare_failed", detail)
        self.mod_revision = mod_revision
        self.revision = revision


class Unavailable(ClientError):
    """No node answered, or none leads, until the deadline; nothing was done."""


class OutcomeUnknown(ClientError):
    """The request may be done, or may still be done later. Read before you write again."""


class Damaged(ClientError):
    """A file is no backup, or not all of one."""
