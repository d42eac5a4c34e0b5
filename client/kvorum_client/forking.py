"""What a fork leaves to the child.

The child of a fork has a copy of every client, but none of the threads, and it shares the sockets and the epoll object
with its parent. If both used the sessions, two different writes would have the same number, and the second one would be
answered with the result of the first. So a forked client begins anew: with sessions and connections of its own.

What the child inherited must not even be closed: that would take the parent's sockets out of the epoll object that both
share. It is kept for the life of the child.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Something that has to know about forks."""

    def after_fork(self) -> None:
        """Begin anew; this is the child, and its only thread."""


_objects: weakref.WeakSet[Forked] = weakref.WeakSet()


def watch(forked: Forked) -> None:
    """Call ``forked.after_fork`` in every child."""
    _objects.add(forked)


def keep_for_ever(inherited: object) -> None:
    """Keep an object from being finalized, even when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _after_fork() -> None:
    for forked in list(_objects):
        forked.after_fork()


os.register_at_fork(after_in_child=_after_fork)
