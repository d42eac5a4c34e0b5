"""Which writes of the members were applied: a member that does not lead hands writes to the leader, now and then twice.

Each start of a member's process is an *origin*: it draws a nonce, opens it by a command in the log, and numbers what it
hands over from 1 on. The state remembers of each member the nonce that is open and which of its last
:data:`ORIGIN_WINDOW` numbers were applied. A number is applied once. One below the window is taken for applied: its
origin never has two numbers outstanding that are further apart.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated

import msgspec

from kvorum.kv.limits import INTEGER_MAX, ORIGIN_WINDOW
from kvorum.raft.messages import NodeId

_FULL = (1 << ORIGIN_WINDOW) - 1
_WINDOW_BYTES = ORIGIN_WINDOW // 8
Positive = Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)]

APPLIED = "applied"
AHEAD = "ahead"
UNKNOWN = "unknown"
IN_USE = "in_use"
REPLACED = "replaced"
NO_MEMBER = "no_member"


class OriginRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An origin as a snapshot holds it."""

    member: NodeId
    nonce: Positive
    highest: Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
    applied: Annotated[bytes, msgspec.Meta(min_length=_WINDOW_BYTES, max_length=_WINDOW_BYTES)]
    """A bit for each number of the window, big-endian: the lowest one is that of ``highest``."""

    def is_possible(self) -> bool:
        """Tell whether an origin can be so: ``highest`` was applied, and nothing below 1."""
        applied = int.from_bytes(self.applied)
        return bool(applied & 1) == (self.highest > 0) and (
            self.highest >= ORIGIN_WINDOW or applied >> self.highest == 0
        )


class Origin:
    """One start of a member's process, and which of its numbers were applied.

    Attributes:
        member: the member.
        nonce: what it drew.
        highest: the highest number that was applied; 0: none was.
    """

    __slots__ = ("_applied", "highest", "member", "nonce")

    def __init__(self, member: NodeId, nonce: int, highest: int = 0, applied: int = 0) -> None:
        self.member = member
        self.nonce = nonce
        self.highest = highest
        self._applied = applied

    def is_applied(self, number: int) -> bool:
        """Tell whether a number was applied; one below the window is taken for it."""
        below = self.highest - number
        return below >= ORIGIN_WINDOW or (below >= 0 and bool(self._applied >> below & 1))

    def take(self, number: int) -> str | None:
        """Note that a number is applied now; or return why it must not be: ``applied``, ``ahead``."""
        ahead = number - self.highest
        if ahead > ORIGIN_WINDOW:
            return AHEAD
        if self.is_applied(number):
            return APPLIED
        if ahead > 0:
            self.highest = number
            self._applied = (self._applied << ahead | 1) & _FULL
        else:
            self._applied |= 1 << -ahead
        return None

    def row(self) -> OriginRow:
        """Return the origin as it is now."""
        return OriginRow(self.member, self.nonce, self.highest, self._applied.to_bytes(_WINDOW_BYTES))


class Origins:
    """The open origin of each member that ever handed something over."""

    __slots__ = ("_by_nonce", "_of_member")

    def __init__(self) -> None:
        self._of_member: dict[NodeId, Origin] = {}
        self._by_nonce: dict[int, Origin] = {}

    def __len__(self) -> int:
        return len(self._of_member)

    def nonce_of(self, member: NodeId) -> int:
        """Return the nonce that this member has open; 0: none."""
        origin = self._of_member.get(member)
        return 0 if origin is None else origin.nonce

    def find(self, nonce: int) -> Origin | None:
        """Return the origin that is open under this nonce."""
        return self._by_nonce.get(nonce)

    def open(self, member: NodeId, nonce: int, replaces: int, members: Container[NodeId]) -> str | None:
        """Open a nonce of a member in the place of another one; or return why not.

        Returns:
            None: it is open now. ``no_member``: the member is none. ``in_use``: the nonce is open already.
            ``replaced``: ``replaces`` is not, or not any more, the one that this member has open (0: none).
        """
        if member not in members:
            return NO_MEMBER
        if nonce in self._by_nonce:
            return IN_USE
        if replaces != self.nonce_of(member):
            return REPLACED
        self._forget(member)
        self._add(Origin(member, nonce))
        return None

    def keep(self, members: Container[NodeId]) -> None:
        """Forget those that are no members."""
        for member in [each for each in self._of_member if each not in members]:
            self._forget(member)

    def rows(self) -> tuple[OriginRow, ...]:
        """Return all of them as they are now, in the order in which they were opened."""
        return tuple(origin.row() for origin in self._of_member.values())

    def restore(self, row: OriginRow) -> bool:
        """Add an origin from a snapshot; return whether it can be one."""
        is_known = row.member in self._of_member or row.nonce in self._by_nonce
        if is_known or not row.is_possible():
            return False
        self._add(Origin(row.member, row.nonce, row.highest, int.from_bytes(row.applied)))
        return True

    def _add(self, origin: Origin) -> None:
        self._of_member[origin.member] = origin
        self._by_nonce[origin.nonce] = origin

    def _forget(self, member: NodeId) -> None:
        origin = self._of_member.pop(member, None)
        if origin is not None:
            del self._by_nonce[origin.nonce]
