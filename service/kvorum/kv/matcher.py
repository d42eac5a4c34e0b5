"""Which groups of watchers an event is for: a dict for single keys, and a map of segments for ranges.

The ranges cut the order of all keys into segments. For each segment the map holds the groups whose range covers it, so
that one bisection finds all of them, however many ranges there are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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


class Matcher(Generic[T]):
    """Finds what covers a key. Members are told apart by identity."""

    __slots__ = ("_bounds", "_cover", "_keys")

    def __init__(self) -> None:
        self._keys: dict[bytes, tuple[T, ...]] = {}
        """The members of one key."""
        self._bounds = [b""]
        """Where each segment begins; it ends where the next one begins."""
        self._cover: list[tuple[T, ...]] = [()]
        """The members that cover each segment, in the order in which they were added."""

    @property
    def segments(self) -> int:
        """How many segments there are: 1 without members."""
        return len(self._bounds)

    def add(self, member: T) -> None:
        """Add what is not there yet. Its range has at least one key."""
        if _is_one_key(member):
            self._keys[member.start] = (*self._keys.get(member.start, ()), member)
            return
        first = self._split(member.start)
        last = len(self._bounds) if member.end is None else self._split(member.end)
        for number in range(first, last):
            self._cover[number] += (member,)

    def remove(self, member: T) -> None:
        """Remove what is there."""
        if _is_one_key(member):
            left = tuple(other for other in self._keys[member.start] if other is not member)
            if left:
                self._keys[member.start] = left
            else:
                del self._keys[member.start]
            return
        first = bisect_left(self._bounds, member.start)
        last = len(self._bounds) if member.end is None else bisect_left(self._bounds, member.end)
        for number in range(first, last):
            self._cover[number] = tuple(other for other in self._cover[number] if other is not member)
        for number in (last, first):
            if 0 < number < len(self._bounds) and self._cover[number] == self._cover[number - 1]:
                del self._bounds[number]
                del self._cover[number]

    def find(self, key: bytes) -> tuple[T, ...]:
        """Return the members that cover a key."""
        found = self._cover[bisect_right(self._bounds, key) - 1]
        return found + self._keys[key] if key in self._keys else found

    def _split(self, key: bytes) -> int:
        """Return the number of the segment that begins at a key; make one if there is none."""
        number = bisect_left(self._bounds, key)
        if number == len(self._bounds) or self._bounds[number] != key:
            self._bounds.insert(number, key)
            self._cover.insert(number, self._cover[number - 1])
        return number


def _is_one_key(member: Ranged) -> bool:
    return member.end == member.start + b"\0"
