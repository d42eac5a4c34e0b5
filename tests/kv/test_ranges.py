"""Ranges against a naive model: every revision is a dict, and a range sorts and filters all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given, settings

from kvorum.errors import InvalidRequestError, RevisionCompactedError, TooLargeError
from kvorum.kv.commands import BatchCommand, Compact, Delete, Put, RaiseFeatureLevel, encode_batch
from kvorum.kv.cursors import CURSOR_CHARS_MAX, decode_cursor, encode_cursor
from kvorum.kv.features import HIGHEST_LEVEL
from kvorum.kv.limits import INTEGER_MAX, KEY_BYTES_MAX
from kvorum.kv.operations import NO_END, ONE_KEY, prefix_end
from kvorum.kv.ranges import CommonPrefix, RangeQuery, check_range
from kvorum.kv.records import Record
from kvorum.kv.scan import ITEM_BYTES, PAGE_BYTES_MAX, PAGE_KEYS, SORTED_KEYS_MAX, Item, Scan
from kvorum.kv.store import Store
from kvorum.kv.versions import Versions
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member

MEMBER = "n1@1"
KEYS = [b"\0", b"a", b"a/", b"a/b", b"a/b/c", b"a/c", b"a//", b"b", b"b/x", b"c", b"\xff", b"\xff/\xff", b"\xff\xff/"]
BOUNDS = [*KEYS, b"", b"a/\0", b"a0", b"zz", b"\xff\xff\xff"]


@dataclass
class World:
    """A store at the highest level, and what every key was at every revision."""

    store: Store = field(default_factory=Store)
    past: dict[int, dict[bytes, Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._apply(EntryKind.CONFIGURATION, encode_configuration(Configuration((Member(MEMBER, True),))))
        for level in range(2, HIGHEST_LEVEL + 1):
            self.apply(RaiseFeatureLevel(level, {MEMBER: level}, "c" * 32))
        self.past = {self.store.revision: {}}

    def _apply(self, kind: EntryKind, data: bytes) -> None:
        self.store.apply(Entry(self.store.applied_index + 1, 1, kind, data))

    def apply(self, command: BatchCommand) -> None:
        before = self.store.revision
        now = dict(self.past.get(before, {}))
        self._apply(EntryKind.COMMAND, encode_batch(0, [command]))
        revision = self.store.revision
        match command:
            case Put(key, value):
                old = now.get(key)
                create = revision if old is None else old.create_revision
                now[key] = Record(key, value, create, revision, 1 if old is None else old.version + 1)
            case Delete(key):
                now.pop(key, None)
        self.past[revision] = now

    def put(self, *keys: bytes, value: bytes = b"v") -> None:
        for key in keys:
            self.apply(Put(key, value))

    def delete(self, *keys: bytes) -> None:
        for key in keys:
            self.apply(Delete(key))


def expected(world: World, query: RangeQuery, revision: int) -> tuple[int, list[Item]]:
    """Return the count and everything that a query finds, by looking at everything."""
    end = query.start + b"\0" if query.end == ONE_KEY else query.end
    state = world.past[revision]
    keys = sorted(key for key in state if key >= query.start and (query.end == NO_END or key < end))
    records = [state[key] for key in keys]
    items: list[Item] = []
    if query.delimiter:
        for record in records:
            place = record.key.find(query.delimiter, len(query.start))
            if place < 0:
                items.append(record)
                continue
            prefix = record.key[: place + len(query.delimiter)]
            if not any(isinstance(item, CommonPrefix) and item.prefix == prefix for item in items):
                items.append(CommonPrefix(prefix, sum(key.startswith(prefix) for key in keys)))
        # A key that is not below a level comes after what is below it, if it has it as its beginning.
        items.sort(key=lambda item: item.prefix if isinstance(item, CommonPrefix) else item.key)
    else:
        lows, highs = (
            (query.min_mod_revision, query.min_create_revision),
            (
                query.max_mod_revision or INTEGER_MAX,
                query.max_create_revision or INTEGER_MAX,
            ),
        )
        items += [
            record
            for record in records
            if lows[0] <= record.mod_revision <= highs[0] and lows[1] <= record.create_revision <= highs[1]
        ]
    by = {"key": lambda r: r.key, "create": lambda r: r.create_revision, "mod": lambda r: r.mod_revision}
    by |= {"version": lambda r: r.version, "value": lambda r: r.value}
    if query.delimiter:
        items = items[::-1] if query.reverse else items
    else:
        items.sort(key=by[query.sort], reverse=query.reverse)
    if query.keys_only:
        items = [msgspec.structs.replace(i, value=b"") if isinstance(i, Record) else i for i in items]
    return len(keys), [] if query.count_only else items


def finish(scan: Scan, store: Store | Counted, steps: int = 512, between: Any = lambda: None) -> list[Item]:
    """Read in slices of this size, with something between them."""
    found: list[Item] = []
    while not scan.is_done:
        found += scan.step(store if isinstance(store, Counted) else store.versions, store.revision, steps)
        between()
    return found


def shown(item: Item) -> tuple[object, ...]:
    if isinstance(item, CommonPrefix):
        return item.prefix, item.count
    return item.key, item.value, item.create_revision, item.mod_revision, item.version


_keys = st.sampled_from(KEYS)
_commands = st.one_of(
    st.builds(Put, _keys, st.sampled_from([b"", b"x", b"y"])),
    st.builds(Put, _keys, st.binary(max_size=2)),
    st.builds(Delete, _keys),
)


@st.composite
def queries(draw: st.DrawFn, revision_max: int) -> RangeQuery:
    """Return a query that can be meant."""
    options: dict[str, Any] = {"reverse": draw(st.booleans()), "limit": draw(st.sampled_from([0, 0, 1, 2, 3, 5]))}
    options["keys_only"] = draw(st.booleans())
    kind = draw(st.sampled_from(["plain", "plain", "level", "one"]))
    if kind == "level":
        prefix = draw(st.sampled_from([b"", b"a", b"a/", b"b/", b"\xff"]))
        return RangeQuery(prefix, prefix_end(prefix), delimiter=draw(st.sampled_from([b"/", b"//", b"b"])), **options)
    if kind == "one":
        start, end = draw(_keys), ONE_KEY
    else:
        start, end = draw(st.sampled_from(BOUNDS)), draw(st.sampled_from([NO_END, NO_END, *filter(None, BOUNDS)]))
    revisions = st.one_of(st.just(0), st.integers(0, revision_max))
    for kind in ("mod", "create"):
        low, high = draw(revisions), draw(revisions)
        options[f"min_{kind}_revision"] = min(low, high) if high else low
        options[f"max_{kind}_revision"] = high and max(low, high)
    return RangeQuery(
        start,
        end,
        sort=draw(st.sampled_from(["key", "key", "create", "mod", "version", "value"])),
        count_only=draw(st.sampled_from([False, False, False, True])),
        **options,
    )


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_range_in_pages_and_slices_is_what_the_model_finds_at_its_revision(data: st.DataObject) -> None:
    world = World()
    first = world.store.revision
    for command in data.draw(st.lists(_commands, max_size=25)):
        world.apply(command)
    revision = data.draw(st.integers(first, world.store.revision))
    query = data.draw(queries(world.store.revision))
    check_range(query)
    later = iter(data.draw(st.lists(_commands, max_size=20)))

    def write() -> None:
        if (command := next(later, None)) is not None:
            world.apply(command)

    count, items = expected(world, query, revision)
    steps = data.draw(st.sampled_from([1, 2, 3, 7, 512]))
    whole = data.draw(st.booleans())
    found: list[Item] = []
    cursor = None
    while True:
        scan = Scan(query, revision, cursor, is_whole=whole)
        pin = world.store.pin(revision)
        page = finish(scan, world.store, steps, write)
        pin.release()
        found += page
        assert scan.count == count
        assert len(page) <= (query.limit or INTEGER_MAX)
        if not scan.more:
            break
        assert page
        cursor = decode_cursor(encode_cursor(scan.cursor()), msgspec.structs.replace(query, limit=7))
        write()
    assert list(map(shown, found)) == list(map(shown, items))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_compaction_stops_the_next_page_and_not_the_one_that_is_being_read(data: st.DataObject) -> None:
    world = World()
    for command in data.draw(st.lists(_commands, min_size=3, max_size=25)):
        world.apply(command)
    revision = world.store.revision
    query = data.draw(queries(revision))
    count, items = expected(world, query, revision)
    changes = iter(data.draw(st.lists(_commands, min_size=1, max_size=10)))

    def forget() -> None:
        if (command := next(changes, None)) is not None:
            world.apply(command)
            world.apply(Compact(world.store.revision))
        world.store.reclaim(1000)

    scan = Scan(query, revision, is_whole=True)
    pin = world.store.pin(revision)
    forget()
    found = finish(scan, world.store, data.draw(st.sampled_from([1, 3, 512])), forget)
    assert scan.count == count
    assert list(map(shown, found)) == list(map(shown, items[: query.limit or None]))
    if scan.more and world.store.floor > revision:
        with pytest.raises(RevisionCompactedError):
            world.store.pin(scan.cursor().revision)
    pin.release()


# What a slice may do.


class Counted(Versions):
    """Counts what is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at = 0
        self.revision = 0

    def fill(self, *keys: bytes, value: bytes = b"v") -> Counted:
        for key in keys:
            self.revision += 1
            self.put(key, value, self.revision, self.records.get(key))
        return self

    def at(self, key: bytes, revision: int) -> Record | None:
        self.looked_at += 1
        return super().at(key, revision)

    def each_at(self, keys: Sequence[bytes], revision: int, latest: int) -> Iterator[Record | None]:
        for record in super().each_at(keys, revision, latest):
            self.looked_at += revision == latest  # otherwise at() counts it
            yield record

    def events(self, position: int, limit: int) -> list[Record]:
        found = super().events(position, limit)
        self.looked_at += len(found)
        return found


def counted_slices(versions: Counted, query: RangeQuery, steps: int, revision: int = 0) -> list[tuple[int, int]]:
    """Read a range and return for each slice how much it looked at, and how much it found."""
    scan = Scan(query, revision or versions.revision, is_whole=True)
    slices = []
    while not scan.is_done:
        before = versions.looked_at
        slices.append((len(scan.step(versions, versions.revision, steps)), versions.looked_at - before))
    return [(looked_at, found) for found, looked_at in slices]


def numbered(count: int, prefix: bytes = b"") -> list[bytes]:
    return [prefix + b"%07d" % number for number in range(count)]


@pytest.mark.parametrize(
    "query",
    [
        RangeQuery(),
        RangeQuery(reverse=True),
        RangeQuery(count_only=True),
        RangeQuery(min_mod_revision=9000),
        RangeQuery(sort="value"),
        RangeQuery(delimiter=b"/"),
        RangeQuery(delimiter=b"/", reverse=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("has_history", [False, True])
def test_a_slice_looks_at_a_bounded_number_of_keys_and_events(query: RangeQuery, has_history: bool) -> None:
    versions = Counted().fill(*numbered(3000))
    revision = versions.revision
    pin = versions.pin(revision)
    if has_history:
        versions.fill(*numbered(2000), *numbered(1000, b"later"))
        for key in numbered(1500):
            versions.revision += 1
            versions.delete(versions.records[key], versions.revision)
    slices = counted_slices(versions, query, 256, revision)
    # Four events take no longer than a key.
    assert max(looked_at for looked_at, _ in slices) <= 4 * 256
    assert max(found for _, found in slices) <= 256
    assert sum(found for _, found in slices) == (0 if query.count_only or query.min_mod_revision else 3000)
    pin.release()


def test_a_slice_ends_when_it_has_found_many_bytes() -> None:
    versions = Counted().fill(*numbered(100), value=bytes(64 * 1024))
    assert max(found for _, found in counted_slices(versions, RangeQuery(), 512)) <= 8


@pytest.mark.parametrize("reverse", [False, True])
def test_a_range_with_a_limit_looks_at_one_key_more_than_it_returns(reverse: bool) -> None:
    versions = Counted().fill(*numbered(3000))
    slices = counted_slices(versions, RangeQuery(b"0001000", limit=100, reverse=reverse), 512)
    assert slices == [(101, 100)]


def test_a_sorted_range_goes_on_when_its_count_has_taken_a_whole_slice() -> None:
    """It ended with an IndexError, which a client saw as a 500."""
    for steps in range(1, 9):
        world = World()
        world.put(b"a", b"b", b"c")
        revision = world.store.revision
        world.put(*(b"d%d" % number for number in range(20)))
        scan = Scan(RangeQuery(revision=revision, sort="version"), revision, is_whole=True)
        found: list[Item] = []
        while not scan.is_done:
            found += scan.step(world.store.versions, world.store.revision, steps)
        assert found == [world.past[revision][key] for key in (b"a", b"b", b"c")], steps


def test_a_count_at_the_latest_revision_looks_at_no_key() -> None:
    versions = Counted().fill(*numbered(5000))
    scan = Scan(RangeQuery(b"0001000", b"0003000", count_only=True), versions.revision, is_whole=True)
    assert scan.step(versions, versions.revision, 1) == [] and scan.is_done
    assert scan.count == 2000 and versions.looked_at == 0


def test_a_count_in_the_past_looks_at_the_events_since_or_at_the_keys_whichever_are_fewer() -> None:
    versions = Counted().fill(*numbered(5000))
    revision = versions.revision
    pin = versions.pin(revision)
    versions.fill(b"new", b"0000007", b"newer")
    scan = Scan(RangeQuery(count_only=True), revision, is_whole=True)
    finish(scan, versions)
    assert scan.count == 5000 and versions.looked_at == 3
    few = Scan(RangeQuery(b"0000007", ONE_KEY, count_only=True), revision, is_whole=True)
    finish(few, versions)
    assert few.count == 1 and versions.looked_at == 4
    pin.release()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_common_prefix_is_skipped_and_not_visited_also_while_others_write(reverse: bool) -> None:
    versions = Counted().fill(b"a", *numbered(2000, b"b/"), *numbered(3000, b"c/"), b"d")
    revision = versions.revision
    pin = versions.pin(revision)
    scan = Scan(RangeQuery(delimiter=b"/", reverse=reverse), revision, is_whole=True)
    found: list[Item] = []
    number = 0
    while not scan.is_done:
        found += scan.step(versions, versions.revision, 1)
        number += 1
        assert number < 50
        versions.fill(b"b/new%d" % number, b"c/0000001", b"c0/new%d" % number)
    names = [(item.prefix, item.count) if isinstance(item, CommonPrefix) else item.key for item in found]
    assert names == (
        [b"a", (b"b/", 2000), (b"c/", 3000), b"d"] if not reverse else [b"d", (b"c/", 3000), (b"b/", 2000), b"a"]
    )
    assert versions.looked_at < 100
    pin.release()


def test_a_scan_goes_on_with_the_store_of_a_snapshot() -> None:
    """It counts anew, since the events of another store have other positions, and goes on where it was."""
    first, second = Counted().fill(*numbered(50)), Counted().fill(*numbered(50))
    revision = first.revision
    for versions in (first, second):
        versions.pin(revision)
    first.fill(*numbered(20, b"new"))
    second.fill(*numbered(20), *numbered(15, b"other"))
    scan = Scan(RangeQuery(), revision, is_whole=True)
    found = scan.step(first, first.revision, 3)
    assert scan.count is None and found == []
    while not scan.is_done:
        found += scan.step(second, second.revision, 10)
    assert scan.count == 50
    assert [item.key for item in found if isinstance(item, Record)] == numbered(50)


# Pages.


def page_of(versions: Counted, query: RangeQuery) -> tuple[Scan, list[Item]]:
    scan = Scan(query, versions.revision, is_whole=False)
    return scan, finish(scan, versions)


def test_a_page_ends_after_1000_keys_unless_the_query_has_a_limit() -> None:
    versions = Counted().fill(*numbered(PAGE_KEYS + 2))
    scan, found = page_of(versions, RangeQuery())
    assert len(found) == PAGE_KEYS == 1000 and scan.more and scan.count == PAGE_KEYS + 2
    scan, found = page_of(versions, RangeQuery(limit=PAGE_KEYS + 1))
    assert len(found) == PAGE_KEYS + 1 and scan.more
    scan, found = page_of(versions, RangeQuery(limit=PAGE_KEYS + 2))
    assert len(found) == PAGE_KEYS + 2 and not scan.more


@pytest.mark.parametrize("sort", ["key", "mod"])
def test_a_page_ends_at_a_mebibyte_and_has_one_record_at_least(sort: Any) -> None:
    half = PAGE_BYTES_MAX // 2 - ITEM_BYTES - 7
    versions = Counted().fill(*numbered(3), value=bytes(half))
    scan, found = page_of(versions, RangeQuery(sort=sort))
    assert len(found) == 2 and scan.more
    versions = Counted().fill(*numbered(3), value=bytes(half + 1))
    assert len(page_of(versions, RangeQuery(sort=sort))[1]) == 1
    versions = Counted().fill(*numbered(3), value=bytes(PAGE_BYTES_MAX))
    scan, found = page_of(versions, RangeQuery(sort=sort))
    assert len(found) == 1 and scan.more
    scan, found = page_of(versions, RangeQuery(sort=sort, keys_only=True))
    assert [item.value for item in found if isinstance(item, Record)] == [b"", b"", b""]


def test_a_whole_range_has_no_pages() -> None:
    versions = Counted().fill(*numbered(PAGE_KEYS + 1), value=bytes(2000))
    scan = Scan(RangeQuery(), versions.revision, is_whole=True)
    assert len(finish(scan, versions)) == PAGE_KEYS + 1 and not scan.more


def test_a_sorted_range_may_have_ten_thousand_keys() -> None:
    versions = Counted().fill(*numbered(SORTED_KEYS_MAX))
    found = page_of(versions, RangeQuery(sort="mod", reverse=True, limit=2))[1]
    assert [item.key for item in found if isinstance(item, Record)] == [b"0009999", b"0009998"]
    versions.fill(b"one more")
    with pytest.raises(TooLargeError, match=r"has 10,001 keys.*smaller range.*limit 10000"):
        page_of(versions, RangeQuery(sort="mod", limit=2))
    assert len(page_of(versions, RangeQuery(limit=2))[1]) == 2


def test_keys_that_came_and_went_do_not_refuse_the_next_page_of_a_sorted_range() -> None:
    versions = Counted().fill(*numbered(SORTED_KEYS_MAX - 1000))
    versions.pin(versions.revision)
    revision = versions.revision
    first = Scan(RangeQuery(sort="mod", limit=5), revision, is_whole=False)
    finish(first, versions)
    others = [b"z" + key for key in numbered(2000)]
    versions.fill(*others)
    for key in others:
        versions.revision += 1
        versions.delete(versions.records[key], versions.revision)
    second = Scan(RangeQuery(sort="mod", limit=5), revision, first.cursor(), is_whole=False)
    assert [item.key for item in finish(second, versions) if isinstance(item, Record)] == numbered(10)[5:]


def test_a_page_that_has_not_passed_a_key_is_no_page() -> None:
    versions = Counted().fill(b"a/1", b"b/1", *numbered(10))
    versions.pin(versions.revision)
    revision = versions.revision
    query = RangeQuery(delimiter=b"/", limit=1)
    first = Scan(query, revision, is_whole=False)
    finish(first, versions)
    for _ in range(1000):
        versions.fill(b"y")
    second = Scan(query, revision, first.cursor(), is_whole=False)
    assert second.step(versions, versions.revision, 1) == []  # It follows the events.
    assert not second.is_done and not second.may_stop


def test_a_page_that_runs_out_of_time_is_a_shorter_page() -> None:
    versions = Counted().fill(*numbered(10))
    for query in (RangeQuery(), RangeQuery(reverse=True)):
        scan = Scan(query, versions.revision, is_whole=False)
        assert not scan.may_stop
        first = scan.step(versions, versions.revision, 3)
        assert scan.may_stop
        scan.stop()
        rest = Scan(query, versions.revision, scan.cursor(), is_whole=False)
        keys = [item.key for item in first + finish(rest, versions) if isinstance(item, Record)]
        assert sorted(keys) == numbered(10) and len(first) == 3


@pytest.mark.parametrize("query", [RangeQuery(count_only=True), RangeQuery(sort="mod")])
def test_what_is_known_at_the_end_only_can_not_stop_before(query: RangeQuery) -> None:
    versions = Counted().fill(*numbered(10))
    scan = Scan(query, versions.revision, is_whole=False)
    scan.step(versions, versions.revision, 1)
    assert query.count_only or not scan.is_done
    assert not scan.may_stop


# What can be asked.


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (RangeQuery(b"", ONE_KEY), "the key is empty"),
        (RangeQuery(b"k" * (KEY_BYTES_MAX + 2)), "the start of the range has 1026 bytes"),
        (RangeQuery(end=b"k" * (KEY_BYTES_MAX + 2)), "the end of the range has 1026 bytes"),
        (RangeQuery(delimiter=b"k" * (KEY_BYTES_MAX + 2)), "the delimiter of the range has 1026 bytes"),
        (RangeQuery(revision=-1), "revision must be"),
        (RangeQuery(limit=-1), "limit must be"),
        (RangeQuery(limit=INTEGER_MAX + 1), "limit must be"),
        (RangeQuery(min_mod_revision=-1), "min_mod_revision must be"),
        (RangeQuery(max_create_revision=INTEGER_MAX + 1), "max_create_revision must be"),
        (RangeQuery(min_mod_revision=3, max_mod_revision=2), "min_mod_revision 3 is above max_mod_revision 2"),
        (RangeQuery(min_create_revision=3, max_create_revision=2), "min_create_revision 3 is above"),
        (RangeQuery(b"a", b"c", delimiter=b"/"), "needs the range of a prefix"),
        (RangeQuery(b"a", ONE_KEY, delimiter=b"/"), "needs the range of a prefix"),
        (RangeQuery(delimiter=b"/", sort="mod"), "sort=mod"),
        (RangeQuery(delimiter=b"/", count_only=True), "count_only"),
        (RangeQuery(delimiter=b"/", min_mod_revision=1), "bounds of the revisions"),
    ],
)
def test_what_can_not_be_meant_is_refused(query: RangeQuery, reason: str) -> None:
    with pytest.raises((InvalidRequestError, TooLargeError), match=reason):
        check_range(query)


def test_the_largest_query_can_be_meant() -> None:
    longest = b"k" * (KEY_BYTES_MAX + 1)
    check_range(RangeQuery(longest, longest, INTEGER_MAX, INTEGER_MAX, "value", True, True, False, 1, 1, 1, 1))
    check_range(RangeQuery(b"a", b"b", delimiter=longest))


# Cursors.

QUERY = RangeQuery(b"a", b"b")
CURSOR = encode_cursor(Scan(QUERY, 7, is_whole=False).cursor())


def test_a_cursor_is_of_the_characters_of_a_url_and_says_where_to_go_on() -> None:
    cursor = decode_cursor(CURSOR, QUERY)
    assert (cursor.revision, cursor.count, cursor.position) == (7, 0, b"a")
    assert set(CURSOR) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    "other",
    [
        RangeQuery(b"a", b"c"),
        RangeQuery(b"a", b"b", reverse=True),
        RangeQuery(b"a", b"b", keys_only=True),
        RangeQuery(b"a", b"b", revision=7),
        RangeQuery(b"a", b"b", sort="mod"),
    ],
)
def test_a_cursor_of_another_query_is_refused(other: RangeQuery) -> None:
    with pytest.raises(InvalidRequestError, match="belongs to another range"):
        decode_cursor(CURSOR, other)
    decode_cursor(CURSOR, msgspec.structs.replace(QUERY, limit=9))


@given(st.integers(0, len(CURSOR) - 1), st.sampled_from("AQgw-_ =é\0\udcff"))
def test_a_damaged_cursor_is_refused(place: int, char: str) -> None:
    damaged = CURSOR[:place] + char + CURSOR[place + 1 :]
    if damaged != CURSOR:
        with pytest.raises(InvalidRequestError, match="damaged"):
            decode_cursor(damaged, QUERY)


@given(st.text(max_size=80))
@example("A" * (CURSOR_CHARS_MAX + 1))
@example(CURSOR[:-1])
@example(CURSOR + "A")
@example(CURSOR + "=")
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="damaged"):
        decode_cursor(text, QUERY)


def test_a_cursor_of_another_version_and_one_without_a_position_of_its_query_are_refused() -> None:
    cursor = decode_cursor(CURSOR, QUERY)
    with pytest.raises(InvalidRequestError, match="another version of Kvorum"):
        decode_cursor(encode_cursor(msgspec.structs.replace(cursor, format=2)), QUERY)
    with pytest.raises(InvalidRequestError, match="damaged"):
        decode_cursor(encode_cursor(msgspec.structs.replace(cursor, position=3)), QUERY)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_cursor_never_leads_out_of_its_range(reverse: bool) -> None:
    query = RangeQuery(b"b", b"d", reverse=reverse)
    versions = Counted().fill(b"a", b"b", b"c", b"d", b"e")
    cursor = msgspec.structs.replace(Scan(query, 5, is_whole=False).cursor(), position=b"e" if reverse else b"a")
    found = finish(Scan(query, 5, cursor, is_whole=False), versions)
    assert [item.key for item in found if isinstance(item, Record)] == ([b"c", b"b"] if reverse else [b"b", b"c"])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_next_page_begins_with_the_key_that_did_not_fit(reverse: bool) -> None:
    versions = Counted().fill(*numbered(5))
    query = RangeQuery(reverse=reverse, limit=2)
    scan, found = page_of(versions, query)
    while scan.more:
        scan = Scan(query, versions.revision, scan.cursor(), is_whole=False)
        found += finish(scan, versions)
    keys = [item.key for item in found if isinstance(item, Record)]
    assert keys == sorted(numbered(5), reverse=reverse)
