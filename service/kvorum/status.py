"""What a node says of itself: to ``/v1/cluster``, to the probes, to the metrics and to the command line."""

from __future__ import annotations

from typing import NamedTuple

from kvorum_wire import ForeignPeer, MemberStatus, NodeStatus

__all__ = ["Check", "ForeignPeer", "MemberStatus", "NodeStatus"]


class Check(NamedTuple):
    """One line of ``/livez`` or ``/readyz``."""

    name: str
    """A short word that ``?exclude=`` may name."""
    ok: bool
    detail: str = ""
    """One readable sentence when it is not ok."""
