"""What a range asks for: which keys, at which revision, in which order, and how much of it.

The keys of a range are those from ``start`` on and before ``end``. As in etcd, an ``end`` of one zero byte
(``NO_END``) stands for no bound, and an empty one (``ONE_KEY``) for the one key ``start``. A range whose end is
not above its start has no keys.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kvorum.errors import InvalidRequestError, TooLargeError
from kvorum.kv.limits import INTEGER_MAX, KEY_BYTES_MAX
from kvorum.kv.operations import NO_END, ONE_KEY, bound, prefix_end
from kvorum.kv.records import Record

BOUND_BYTES_MAX = KEY_BYTES_MAX + 1
"""Of ``start``, ``end`` and ``delimiter``: the first bound above the longest key has one byte more than it."""

SortBy = Literal["key", "create", "mod", "version", "value"]
"""What the records are ordered by."""


class RangeQuery(msgspec.Struct, frozen=True):
    """A range, and what is wanted of it. :func:`check_range` says what makes sense."""

    start: bytes = b""
    end: bytes = NO_END
    revision: int = 0
    """Read at this revision of the cluster; 0: at the latest one."""
    limit: int = 0
    """At most so many records and common prefixes; 0: no limit."""
    sort: SortBy = "key"
    """Records that are equal in this are in the order of their keys, also if ``reverse``."""
    reverse: bool = False
    """Descending."""
    keys_only: bool = False
    """Leave the values out."""
    count_only: bool = False
    """Answer with the count alone."""
    min_mod_revision: int = 0
    """Leave out records that were last changed before this revision. The count has them all the same."""
    max_mod_revision: int = 0
    """Leave out those that were changed after it; 0: none."""
    min_create_revision: int = 0
    max_create_revision: int = 0
    delimiter: bytes = b""
    """One level of a tree: of all keys in which the delimiter follows somewhere after ``start``, answer with the part
    up to it and their number only. The range must be that of a prefix."""

    @property
    def bound(self) -> bytes | None:
        """The first key behind the range; None: there is none."""
        return bound(self.start, self.end)

    @property
    def has_filter(self) -> bool:
        """Whether records are left out because of their revisions."""
        return bool(
            self.min_mod_revision or self.max_mod_revision or self.min_create_revision or self.max_create_revision
        )

    def admits(self, record: Record) -> bool:
        """Tell whether the revisions of a record are within those that are wanted."""
        return self.min_mod_revision <= record.mod_revision <= (
            self.max_mod_revision or INTEGER_MAX
        ) and self.min_create_revision <= record.create_revision <= (self.max_create_revision or INTEGER_MAX)


class CommonPrefix(msgspec.Struct, frozen=True):
    """What keys below one level of a tree have in common, up to the delimiter and with it; and how many there are."""

    prefix: bytes
    count: int


def check_range(query: RangeQuery) -> None:
    """Refuse a range that cannot be meant.

    Raises:
        TooLargeError: a bound is longer than any key.
        InvalidRequestError: a number below 0, or parts that contradict each other.
    """
    if not query.start and query.end == ONE_KEY:
        raise InvalidRequestError("the key is empty")
    for name in ("start", "end", "delimiter"):
        size_bytes = len(getattr(query, name))
        if size_bytes > BOUND_BYTES_MAX:
            raise TooLargeError(f"the {name} of the range has {size_bytes} bytes", BOUND_BYTES_MAX)
    for name in ("revision", "limit"):
        _check_number(query, name)
    for kind in ("mod", "create"):
        lowest, highest = (_check_number(query, f"{which}_{kind}_revision") for which in ("min", "max"))
        if highest and lowest > highest:
            raise InvalidRequestError(f"min_{kind}_revision {lowest} is above max_{kind}_revision {highest}")
    if query.delimiter:
        _check_level(query)


def _check_number(query: RangeQuery, name: str) -> int:
    number: int = getattr(query, name)
    if not 0 <= number <= INTEGER_MAX:
        raise InvalidRequestError(f"{name} must be a whole number from 0 to {INTEGER_MAX:,}")
    return number


def _check_level(query: RangeQuery) -> None:
    if query.end != prefix_end(query.start):
        raise InvalidRequestError("a delimiter needs the range of a prefix, or of all keys")
    if query.sort != "key":
        raise InvalidRequestError(
            f"a delimiter lists keys in their order: it cannot be combined with sort={query.sort}"
        )
    if query.has_filter or query.count_only:
        raise InvalidRequestError("a delimiter cannot be combined with count_only, or with bounds of the revisions")
