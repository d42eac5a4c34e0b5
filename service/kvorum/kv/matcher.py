"""Which groups of watchers an event is for: a dict for single keys, and a map of segments for ranges.

The ranges cut the order of all keys into segments, and all keys of a segment have the same members. What covers a
segment is looked up when an event needs it, and kept until a range comes or goes there: then an event costs one
bisection. What is kept is bounded, because nested ranges cover each other: all of it would be quadratic.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Generic, Protocol, TypeVar


class Ranged(Protocol):
    """What is found by the keys of its range, which is one key (``end`` is ``start`` and a zero byte) or more."""

    @property
    def start(self) -> bytes:
        """The first key."""

    @property
    def end(self) -> bytes | None:
        """The first key behind the range, above ``start``; None: the range has no end."""


T = TypeVar("T", bound=Ranged)


KEPT_MAX = 1_000_000
"""Members of all covers that are kept together: 8 MB."""
CHUNK = 64


class Matcher(Generic[T]):
    """Finds what covers a key. Members are told apart by identity.

    Args:
        kept_max: how many members the covers that are kept may have together.

    Attributes:
        lookups: how often a cover was looked up because it was not kept.
    """

    __slots__ = ("_bounds", "_cover", "_kept", "_kept_max", "_keys", "_numbers", "_ranges", "_uses", "lookups")

    def __init__(self, kept_max: int = KEPT_MAX) -> None:
        self.lookups = 0
        self._kept_max = kept_max
        self._keys: dict[bytes, tuple[T, ...]] = {}
        """The members of one key."""
        self._ranges: _Ranges[T] = _Ranges()
        """The other ones."""
        self._numbers = 0
        self._bounds = [b""]
        """Where each segment begins; it ends where the next one begins."""
        self._uses: dict[bytes, int] = {}
        """How often each bound is the start or the end of a member."""
        self._cover: list[tuple[T, ...] | None] = [None]
        """The members that cover each segment, in the order in which they were added; None: not looked up yet."""
        self._kept = 0
        """How many members were found by lookups since all covers were dropped."""

    @property
    def segments(self) -> int:
        """How many segments there are: 1 without members."""
        return len(self._bounds)

    def add(self, member: T) -> None:
        """Add what is not there yet. Its range has at least one key."""
        if _is_one_key(member):
            self._keys[member.start] = (*self._keys.get(member.start, ()), member)
            return
        self._numbers += 1
        self._ranges.add(member, self._numbers)
        self._use(member.start)
        if member.end is not None:
            self._use(member.end)
        self._forget(member)

    def remove(self, member: T) -> None:
        """Remove what is there."""
        if _is_one_key(member):
            left = tuple(other for other in self._keys[member.start] if other is not member)
            if left:
                self._keys[member.start] = left
            else:
                del self._keys[member.start]
            return
        self._ranges.remove(member)
        self._forget(member)
        self._disuse(member.start)
        if member.end is not None:
            self._disuse(member.end)

    def find(self, key: bytes) -> tuple[T, ...]:
        """Return the members that cover a key."""
        number = bisect_right(self._bounds, key) - 1
        found = self._cover[number]
        if found is None:
            found = self._look_up(number, key)
        return found + self._keys[key] if key in self._keys else found

    def _look_up(self, number: int, key: bytes) -> tuple[T, ...]:
        found = self._ranges.find(key)
        self.lookups += 1
        self._kept += len(found)
        if self._kept > self._kept_max:
            self._cover = [None] * len(self._bounds)
            self._kept = len(found)
        self._cover[number] = found
        return found

    def _forget(self, member: T) -> None:
        """Look up anew what covers the range of a member."""
        first = bisect_left(self._bounds, member.start)
        last = len(self._bounds) if member.end is None else bisect_left(self._bounds, member.end)
        self._cover[first:last] = [None] * (last - first)

    def _use(self, key: bytes) -> None:
        """Let a segment begin at a key."""
        uses = self._uses[key] = self._uses.get(key, 0) + 1
        number = bisect_left(self._bounds, key)
        if uses == 1 and key:
            self._bounds.insert(number, key)
            self._cover.insert(number, self._cover[number - 1])

    def _disuse(self, key: bytes) -> None:
        """Let no segment begin at a key, if no other member does; on both sides of it the members are the same then."""
        self._uses[key] -= 1
        if self._uses[key]:
            return
        del self._uses[key]
        if key:
            number = bisect_left(self._bounds, key)
            del self._bounds[number]
            del self._cover[number]


class _Ranges(Generic[T]):
    """Ranges by their start, in chunks; of each chunk it is known how far its ranges reach."""

    __slots__ = ("_chunks", "_numbers", "_reaches")

    def __init__(self) -> None:
        self._chunks: list[list[tuple[bytes, int, T]]] = []
        """Ascending; none is empty."""
        self._reaches: list[bytes | None] = []
        """The highest end in each chunk; None: there is no end."""
        self._numbers: dict[int, int] = {}
        """Identity of a member -> its number."""

    def add(self, member: T, number: int) -> None:
        """Add a member; numbers ascend."""
        self._numbers[id(member)] = number
        entry = (member.start, number, member)
        if not self._chunks:
            self._chunks, self._reaches = [[entry]], [member.end]
            return
        place = self._place(entry[:2])
        chunk = self._chunks[place]
        insort(chunk, entry, key=_order)
        if len(chunk) > 2 * CHUNK:
            self._chunks[place : place + 1] = [chunk[:CHUNK], chunk[CHUNK:]]
            self._reaches[place : place + 1] = [_reach(chunk[:CHUNK]), _reach(chunk[CHUNK:])]
        else:
            self._reaches[place] = _further(self._reaches[place], member.end)

    def remove(self, member: T) -> None:
        """Remove a member."""
        order = (member.start, self._numbers.pop(id(member)))
        place = self._place(order)
        chunk = self._chunks[place]
        del chunk[bisect_left(chunk, order, key=_order)]
        if chunk:
            self._reaches[place] = _reach(chunk)
        else:
            del self._chunks[place]
            del self._reaches[place]

    def find(self, key: bytes) -> tuple[T, ...]:
        """Return the members that cover a key, in the order of their numbers."""
        found: list[tuple[int, T]] = []
        for chunk, reach in zip(self._chunks, self._reaches, strict=True):
            if chunk[0][0] > key:
                break
            if reach is not None and reach <= key:
                continue
            for start, number, member in chunk:
                if start > key:
                    break
                if member.end is None or key < member.end:
                    found.append((number, member))
        found.sort(key=_number)
        return tuple([member for _, member in found])

    def _place(self, order: tuple[bytes, int]) -> int:
        """Return the number of the chunk that has an entry, or is to have it."""
        return max(bisect_right(self._chunks, order, key=_first) - 1, 0)


def _order(entry: tuple[bytes, int, object]) -> tuple[bytes, int]:
    return entry[:2]


def _first(chunk: list[tuple[bytes, int, T]]) -> tuple[bytes, int]:
    return chunk[0][:2]


def _number(entry: tuple[int, object]) -> int:
    return entry[0]


def _further(one: bytes | None, other: bytes | None) -> bytes | None:
    return None if one is None or other is None else max(one, other)


def _reach(chunk: list[tuple[bytes, int, T]]) -> bytes | None:
    reach: bytes | None = b""
    for _, _, member in chunk:
        reach = _further(reach, member.end)
    return reach


def _is_one_key(member: Ranged) -> bool:
    return member.end == member.start + b"\0"
