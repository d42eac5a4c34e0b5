"""The hub of watches: every event once and in order, whoever is slow, and whatever state takes the place of another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.errors import CallerError, InvalidRequestError, NotServingError, RevisionCompactedError
from kvorum.kv import watch
from kvorum.kv.matcher import Matcher
from kvorum.kv.records import Record
from kvorum.kv.store import Store
from kvorum.kv.watch import Event, EventBatch, Hub, Interest, Watcher

ALL = Interest(b"", None)


class History:
    """A store whose versions are written directly, several events a revision if need be."""

    def __init__(self) -> None:
        self.store = Store()
        self.store.revision = 1
        self.store.versions.set_floor(1)
        self.events: list[Event] = []
        """All that ever happened, with what each replaced."""

    def write(self, *changes: tuple[bytes, bytes | None]) -> int:
        """Change distinct keys in one revision (None: delete) and return it; deletes of nothing do nothing."""
        store, versions = self.store, self.store.versions
        changes = tuple(each for each in changes if each[1] is not None or each[0] in versions.records)
        if not changes:
            return store.revision
        store.revision += 1
        for key, value in changes:
            old = versions.records.get(key)
            if value is not None:
                new = versions.put(key, value, store.revision, old)
            else:
                assert old is not None
                versions.delete(old, store.revision)
                new = Record(key, b"", 0, store.revision, 0)
            self.events.append((new, old))
        return store.revision

    def put(self, key: bytes = b"k", value: bytes = b"v") -> int:
        """Put one key."""
        return self.write((key, value))

    def compact(self, revision: int, budget: int = 1 << 20) -> None:
        """Move the floor, and let memory follow."""
        if revision > self.store.floor:
            self.store.versions.set_floor(revision)
        self.store.versions.reclaim(budget)

    def copy(self, revision: int) -> Store:
        """Return another store that holds the same history up to a revision, as a snapshot of then restores it."""
        other = Store()
        other.revision = 1
        other.versions.set_floor(1)
        for record, _ in self.events:
            if record.mod_revision > revision:
                break
            other.revision = record.mod_revision
            old = other.versions.records.get(record.key)
            if record.version:
                other.versions.put(record.key, record.value, record.mod_revision, old)
            else:
                assert old is not None
                other.versions.delete(old, record.mod_revision)
        if self.store.floor > 1:
            other.versions.set_floor(self.store.floor)
            other.versions.reclaim(1 << 20)
        return other


class Seen:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.is_full = False
        self.events: list[Event] = []
        self.batches: list[EventBatch] = []
        self.error: CallerError | None = None

    def take(self, batch: EventBatch) -> None:
        assert not self.is_full
        assert self.error is None
        assert batch.events
        self.batches.append(batch)
        self.events += batch.events

    def end(self, error: CallerError) -> None:
        assert self.error is None
        self.error = error

    @property
    def revisions(self) -> list[int]:
        return [record.mod_revision for record, _ in self.events]


def drain(hub: Hub, store: Store) -> int:
    """Take turns until there is nothing more to do; return how many."""
    turns = 1
    while hub.turn(store):
        turns += 1
        assert turns < 10_000, "the hub never ends"
    return turns


def wanted(history: History, interest: Interest, first: int) -> list[Event]:
    """Return what a watcher must see: a scan of everything."""
    return [
        (record, old if interest.prev_value else None)
        for record, old in history.events
        if record.mod_revision >= first
        and interest.start <= record.key
        and (interest.end is None or record.key < interest.end)
        and (interest.puts if record.version else interest.deletes)
    ]


def small_slices(monkeypatch: pytest.MonkeyPatch, events: int = 2, deliveries: int = 2000) -> None:
    monkeypatch.setattr(watch, "SLICE_EVENTS", events)
    monkeypatch.setattr(watch, "DELIVERIES", deliveries)


# --- The matcher ------------------------------------------------------------------------------------------------------

KEYS = st.binary(max_size=2).map(lambda data: bytes(byte % 4 for byte in data))
RANGES = st.tuples(KEYS, st.one_of(st.none(), KEYS)).filter(lambda each: each[1] is None or each[0] < each[1])


class Span:
    def __init__(self, start: bytes, end: bytes | None) -> None:
        self.start, self.end = start, end

    @property
    def is_one_key(self) -> bool:
        return self.end == self.start + b"\0"

    def covers(self, key: bytes) -> bool:
        return self.start <= key and (self.end is None or key < self.end)


@given(
    st.lists(RANGES, max_size=12),
    st.lists(KEYS, max_size=12),
    st.randoms(use_true_random=False),
    st.sampled_from([0, 5, 1000]),
)
def test_the_matcher_finds_what_a_linear_scan_finds(ranges, keys, random, kept_max) -> None:  # type: ignore[no-untyped-def]
    matcher: Matcher[Span] = Matcher(kept_max)
    spans = [Span(start, end) for start, end in ranges] + [Span(key, key + b"\0") for key in keys]
    random.shuffle(spans)
    for number, span in enumerate(spans):
        matcher.add(span)
        for key in keys:
            assert list(matcher.find(key)) == sorted(
                (each for each in spans[: number + 1] if each.covers(key)), key=lambda each: (each.is_one_key,)
            )
    while True:
        for key in [*keys, b"", b"\0", b"\3\3\3"]:
            found = matcher.find(key)
            assert len(found) == len({id(each) for each in found})
            assert {id(each) for each in found} == {id(each) for each in spans if each.covers(key)}
        if not spans:
            break
        matcher.remove(spans.pop(random.randrange(len(spans))))
    assert matcher.segments == 1


def nested_spans(count: int) -> list[Span]:
    return [Span(b"%06d" % (count - each), b"%06d" % (count + each + 1)) for each in range(count)]


def test_many_nested_ranges_are_found_added_and_removed() -> None:
    matcher: Matcher[Span] = Matcher()
    spans = nested_spans(1000)
    for each in spans:
        matcher.add(each)
    assert matcher.segments == 2001
    assert matcher.find(b"000700") == tuple(spans[300:])
    for each in spans[::2]:
        matcher.remove(each)
    assert matcher.find(b"000700") == tuple(spans[301::2])
    assert matcher.find(b"001001") == tuple(spans[1::2])
    for each in spans[1::2]:
        matcher.remove(each)
    assert (matcher.segments, matcher.find(b"000700")) == (1, ())


def test_what_the_matcher_keeps_of_nested_ranges_is_bounded_and_one_lookup_serves_many_events() -> None:
    matcher: Matcher[Span] = Matcher(kept_max=5_000)
    for each in nested_spans(1000):
        matcher.add(each)
    assert matcher.lookups == 0  # To add a range copies nothing of the others.

    for number in range(2000):
        matcher.find(b"%06d" % number)
        assert sum(len(cover or ()) for cover in matcher._cover) <= 5_000
    lookups = matcher.lookups
    for _ in range(9):
        matcher.find(b"001999")
    assert matcher.lookups == lookups


# --- One watcher ------------------------------------------------------------------------------------------------------


def test_a_watcher_sees_every_later_event_once_in_order() -> None:
    history, hub, seen = History(), Hub(), Seen()
    history.put(b"a")
    hub.add(history.store, ALL, seen, history.store.revision + 1)
    assert not hub.turn(history.store)
    assert seen.events == []
    history.write((b"b", b"1"), (b"a", None), (b"c", b"2"))
    history.put(b"a")
    drain(hub, history.store)
    assert seen.events == wanted(history, ALL, 3)
    assert [record.key for record, _ in seen.events] == [b"b", b"a", b"c", b"a"]
    drain(hub, history.store)
    assert len(seen.events) == 4
    assert hub.delivered == 4


def test_a_watcher_of_the_past_catches_up_and_is_in_step_then() -> None:
    history, hub, seen = History(), Hub(), Seen()
    for number in range(5):
        history.put(value=b"%d" % number)
    watcher = hub.add(history.store, ALL, seen, 3)
    assert hub.behind == 1
    assert hub.progress(watcher) is None
    drain(hub, history.store)
    assert seen.revisions == [3, 4, 5, 6]
    assert hub.behind == 0
    assert hub.progress(watcher) == 6
    history.put()
    drain(hub, history.store)
    assert seen.revisions == [3, 4, 5, 6, 7]


def test_filters_and_ranges_leave_out_the_rest() -> None:
    history, hub = History(), Hub()
    interests = [
        Interest(b"a", b"b"),
        Interest(b"a", b"a\0"),
        Interest(b"a", None, deletes=False),
        Interest(b"", None, puts=False),
        Interest(b"a", b"b", prev_value=True),
    ]
    sinks = [Seen() for _ in interests]
    for interest, sink in zip(interests, sinks, strict=True):
        hub.add(history.store, interest, sink, 2)
    history.write((b"a", b"1"), (b"b", b"2"), (b"aa", b"3"))
    history.write((b"b", None), (b"a", b"4"))
    history.write((b"a", None))
    drain(hub, history.store)
    for interest, sink in zip(interests, sinks, strict=True):
        assert sink.events == wanted(history, interest, 2)


def test_a_previous_value_is_the_one_that_the_event_replaced_also_after_a_compaction() -> None:
    history, hub, seen = History(), Hub(), Seen()
    for value in (b"1", b"2", b"3", b"4"):
        history.put(value=value)
    history.write((b"k", None))
    history.put(value=b"5")
    history.compact(4)
    interest = Interest(b"k", b"k\0", prev_value=True)
    hub.add(history.store, interest, seen, 4)
    drain(hub, history.store)
    assert [old.value if old else None for _, old in seen.events] == [b"2", b"3", b"4", None]


def test_a_revision_of_the_future_is_awaited_in_silence() -> None:
    history, hub, seen = History(), Hub(), Seen()
    watcher = hub.add(history.store, ALL, seen, 4)
    for _ in range(2):
        history.put()
        drain(hub, history.store)
        assert hub.progress(watcher) in (None, 3)
    assert seen.events == []
    assert hub.progress(watcher) == 3, "its revision is the next one: it is in step"
    history.put()
    drain(hub, history.store)
    assert seen.revisions == [4]


def test_progress_is_never_ahead_of_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    small_slices(monkeypatch)
    history, hub, seen = History(), Hub(), Seen()
    watcher = hub.add(history.store, ALL, seen, 2)
    for _ in range(7):
        history.put()
    more = True
    while more:
        more = hub.turn(history.store)
        progress = hub.progress(watcher)
        assert progress is not None
        assert seen.revisions == list(range(2, progress + 1))
    assert hub.progress(watcher) == 8


def test_a_revision_is_never_split(monkeypatch: pytest.MonkeyPatch) -> None:
    small_slices(monkeypatch)
    history, hub = History(), Hub()
    new, old = Seen(), Seen()
    hub.add(history.store, ALL, new, 2)
    for number in range(4):
        history.write(*((b"%d" % key, b"%d" % number) for key in range(5)))
    hub.add(history.store, ALL, old, 2)
    drain(hub, history.store)
    for seen in (new, old):
        assert seen.events == wanted(history, ALL, 2)
        ends = [batch.events[-1][0].mod_revision for batch in seen.batches]
        assert len(ends) == len(set(ends)) == 4


def test_a_slice_is_bounded_in_bytes_previous_values_included(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SLICE_BYTES", 1000)
    history, hub, seen = History(), Hub(), Seen()
    history.put(value=b"x" * 2000)
    for _ in range(3):
        history.put(value=b"y")
        history.put(value=b"x" * 2000)
    hub.add(history.store, Interest(b"", None, prev_value=True), seen, 3)
    drain(hub, history.store)
    assert [len(batch.events) for batch in seen.batches] == [1] * 6


def test_what_all_watchers_together_get_in_a_turn_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "DELIVERED_BYTES", 10_000)
    history, hub = History(), Hub()
    sinks = [Seen() for _ in range(10)]
    for sink in sinks:
        hub.add(history.store, ALL, sink, 2)
    for _ in range(3):
        history.put(value=b"x" * 1000)
    assert hub.turn(history.store)
    assert [sink.revisions for sink in sinks] == [[2]] * 10
    drain(hub, history.store)
    assert [sink.revisions for sink in sinks] == [[2, 3, 4]] * 10


# --- Many watchers ----------------------------------------------------------------------------------------------------


def test_what_a_group_gets_is_encoded_once() -> None:
    history, hub = History(), Hub()
    sinks = [Seen() for _ in range(3)]
    for sink in sinks:
        hub.add(history.store, ALL, sink, 2)
    calls: list[list[Event]] = []

    def encode(events: list[Event]) -> bytes:
        calls.append(events)
        return b"x"

    history.put()
    drain(hub, history.store)
    assert [sink.batches[0].encoded(encode) for sink in sinks] == [b"x"] * 3
    assert len(calls) == 1


def test_a_full_watcher_holds_up_nobody_and_loses_nothing() -> None:
    history, hub, slow, quick = History(), Hub(), Seen(), Seen()
    watcher = hub.add(history.store, ALL, slow, 2)
    hub.add(history.store, ALL, quick, 2)
    slow.is_full = True
    for _ in range(3):
        history.put()
        assert drain(hub, history.store) == 1
    assert quick.revisions == [2, 3, 4]
    assert slow.revisions == []
    assert hub.behind == 1
    assert hub.progress(watcher) is None
    slow.is_full = False
    hub.has_room(watcher)
    drain(hub, history.store)
    assert slow.revisions == [2, 3, 4]
    assert hub.behind == 0


def test_more_watchers_than_a_slice_serves_are_served_in_later_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    small_slices(monkeypatch, deliveries=3)
    history, hub = History(), Hub()
    sinks = [Seen() for _ in range(10)]
    for sink in sinks:
        hub.add(history.store, ALL, sink, 2)
    history.put()
    assert hub.turn(history.store)
    assert 3 <= sum(len(sink.events) for sink in sinks) <= 6
    drain(hub, history.store)
    assert [sink.revisions for sink in sinks] == [[2]] * 10


def test_those_behind_share_a_scan_and_each_gets_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    small_slices(monkeypatch, events=10)
    history, hub = History(), Hub()
    for _ in range(100):
        history.put()
    sinks = [Seen() for _ in range(50)]
    for number, sink in enumerate(sinks):
        hub.add(history.store, ALL, sink, 2 + number % 3)
    assert drain(hub, history.store) < 40
    for number, sink in enumerate(sinks):
        assert sink.revisions == list(range(2 + number % 3, 102))


def test_one_far_behind_does_not_starve_another(monkeypatch: pytest.MonkeyPatch) -> None:
    small_slices(monkeypatch, events=10)
    history, hub, far, near = History(), Hub(), Seen(), Seen()
    for _ in range(100):
        history.put()
    hub.add(history.store, Interest(b"k", b"k\0"), near, 95)
    hub.add(history.store, ALL, far, 2)
    hub.turn(history.store)
    hub.turn(history.store)
    assert near.revisions == list(range(95, 102))
    drain(hub, history.store)
    assert far.revisions == list(range(2, 102))


# --- The floor --------------------------------------------------------------------------------------------------------


def test_a_watch_begins_at_the_floor_and_not_below() -> None:
    history, hub, seen = History(), Hub(), Seen()
    for _ in range(5):
        history.put()
    history.compact(4)
    with pytest.raises(RevisionCompactedError) as refused:
        hub.add(history.store, ALL, seen, 3)
    assert refused.value.facts == {"revision": 6, "floor": 4}
    hub.add(history.store, ALL, seen, 4)
    drain(hub, history.store)
    assert seen.revisions == [4, 5, 6]


@pytest.mark.parametrize("floor", [3, 4])
def test_the_floor_ends_a_watcher_that_is_behind_it_and_says_so(floor: int) -> None:
    history, hub, slow, quick = History(), Hub(), Seen(), Seen()
    watcher = hub.add(history.store, ALL, slow, 2)
    hub.add(history.store, ALL, quick, 2)
    slow.is_full = True
    for _ in range(4):
        history.put()
    drain(hub, history.store)
    history.compact(floor)
    drain(hub, history.store)
    assert isinstance(slow.error, RevisionCompactedError)
    assert slow.error.facts == {"revision": 5, "floor": floor}
    assert hub.size == 1
    hub.has_room(watcher)
    hub.remove(watcher)
    assert hub.size == 1
    assert quick.error is None
    assert quick.revisions == [2, 3, 4, 5]


def test_the_floor_does_not_end_who_is_in_step() -> None:
    history, hub, seen = History(), Hub(), Seen()
    hub.add(history.store, Interest(b"", None, prev_value=True), seen, 2)
    for value in (b"1", b"2", b"3"):
        history.put(value=value)
    history.compact(4)
    drain(hub, history.store)
    assert seen.revisions == [2, 3, 4]
    assert [old.value if old else None for _, old in seen.events] == [None, b"1", b"2"]
    history.compact(4)
    assert history.store.versions.events(0, 10) == history.store.versions.events(history.store.versions.position(4), 10)


def test_those_in_step_who_hold_back_too_much_are_told_and_count_as_behind_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_slices(monkeypatch, events=1)
    monkeypatch.setattr(watch, "PINNED_BYTES_MAX", 20_000)
    history, hub, seen, other = History(), Hub(), Seen(), Seen()
    hub.add(history.store, ALL, seen, 2)
    for _ in range(10):
        history.put(value=b"x" * 1000)
    hub.turn(history.store)
    assert (seen.revisions, hub.behind) == ([2], 1)
    history.compact(11)
    hub.turn(history.store)
    assert (seen.revisions, seen.error) == ([2, 3], None)

    for _ in range(30):
        history.put(value=b"x" * 1000)
    history.compact(41)
    hub.add(history.store, ALL, other, 41)
    drain(hub, history.store)
    assert seen.revisions == [2, 3]
    assert isinstance(seen.error, RevisionCompactedError)
    assert seen.error.facts == {"revision": 41, "floor": 41}
    assert (other.revisions, other.error, hub.behind) == ([41], None, 0)
    assert history.store.versions.floor == 41


def test_who_falls_behind_below_the_floor_is_told() -> None:
    history, hub, seen = History(), Hub(), Seen()
    hub.add(history.store, ALL, seen, 2)
    seen.is_full = True
    for _ in range(3):
        history.put()
    history.compact(4)
    drain(hub, history.store)
    assert isinstance(seen.error, RevisionCompactedError)


def test_who_falls_behind_a_floor_of_an_earlier_turn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    small_slices(monkeypatch)
    history, hub, seen = History(), Hub(), Seen()
    hub.add(history.store, ALL, seen, 2)
    for _ in range(9):
        history.put()
    history.compact(8)
    assert hub.turn(history.store)
    seen.is_full = True
    hub.turn(history.store)
    assert seen.revisions == [2, 3]
    assert isinstance(seen.error, RevisionCompactedError)
    assert seen.error.facts == {"revision": 10, "floor": 8}


def test_a_future_watcher_whose_revision_came_and_was_compacted_is_told() -> None:
    history, hub, seen = History(), Hub(), Seen()
    hub.add(history.store, ALL, seen, 3)
    for _ in range(4):
        history.put()
    history.compact(5)
    drain(hub, history.store)
    assert isinstance(seen.error, RevisionCompactedError)


def test_nothing_is_pinned_for_those_who_are_behind_or_gone() -> None:
    history, hub, seen = History(), Hub(), Seen()
    watcher = hub.add(history.store, ALL, seen, 2)
    assert history.store.versions._pins
    hub.remove(watcher)
    hub.turn(history.store)
    assert not history.store.versions._pins
    seen.is_full = True
    hub.add(history.store, ALL, seen, 1)
    hub.turn(history.store)
    assert not history.store.versions._pins


# --- Another state ----------------------------------------------------------------------------------------------------


def test_a_cursor_goes_on_in_another_state() -> None:
    history, hub, slow, quick = History(), Hub(), Seen(), Seen()
    watcher = hub.add(history.store, ALL, slow, 2)
    hub.add(history.store, ALL, quick, 2)
    for _ in range(3):
        history.put()
    slow.is_full = True
    drain(hub, history.store)
    for _ in range(3):
        history.put()
    other = history.copy(7)
    drain(hub, other)
    slow.is_full = False
    hub.has_room(watcher)
    drain(hub, other)
    assert quick.revisions == slow.revisions == [2, 3, 4, 5, 6, 7]
    assert not history.store.versions._pins


def test_a_state_that_is_not_as_far_repeats_nothing() -> None:
    history, hub, seen, late = History(), Hub(), Seen(), Seen()
    watcher = hub.add(history.store, ALL, seen, 2)
    for _ in range(4):
        history.put()
    drain(hub, history.store)
    drain(hub, history.copy(3))
    assert hub.progress(watcher) in (None, 5)
    hub.add(history.copy(3), ALL, late, 4)
    drain(hub, history.copy(4))
    drain(hub, history.copy(5))
    history.put()
    drain(hub, history.copy(6))
    assert seen.revisions == [2, 3, 4, 5, 6]
    assert late.revisions == [4, 5, 6]


def test_who_is_in_step_and_below_the_floor_of_another_state_is_told() -> None:
    history, hub, seen = History(), Hub(), Seen()
    hub.add(history.store, ALL, seen, 2)
    drain(hub, history.store)
    for _ in range(4):
        history.put()
    lagging = history.copy(5)
    lagging.versions.set_floor(4)
    lagging.versions.reclaim(1 << 20)
    drain(hub, lagging)
    assert isinstance(seen.error, RevisionCompactedError)
    assert seen.events == []


def test_all_are_told_when_the_node_ends() -> None:
    history, hub = History(), Hub()
    sinks = [Seen() for _ in range(4)]
    for sink, first in zip(sinks, (2, 2, 1, 9), strict=True):
        hub.add(history.store, ALL, sink, first)
    assert hub.end_all(NotServingError("over")) == 4
    assert [str(sink.error) for sink in sinks] == ["over"] * 4
    assert (hub.size, hub.behind) == (0, 0)
    assert not history.store.versions._pins
    assert not hub.turn(history.store)


def test_watchers_that_leave_before_their_future_comes_are_forgotten() -> None:
    history, hub = History(), Hub()
    for _ in range(100):
        watcher = hub.add(history.store, ALL, Seen(), 50)
        hub.remove(watcher)
        hub.remove(watcher)
    assert hub.size == 0
    assert len(hub._future) < 40


@pytest.mark.parametrize(("start", "end", "kinds"), [(b"b", b"b", {}), (b"b", b"a", {}), (b"", None, {"puts": False})])
def test_a_watch_that_would_see_nothing_is_refused(start: bytes, end: bytes | None, kinds: dict[str, bool]) -> None:
    interest = Interest(start, end, deletes=not kinds, **kinds)
    with pytest.raises(InvalidRequestError):
        interest.check()
    Interest(b"a", b"a\0", deletes=False).check()


# --- Against a naive model --------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"aa", b"ab", b"b", b"c"])
CHANGES = st.dictionaries(NAMES, st.one_of(st.none(), st.just(b"1"), st.just(b"22")), min_size=1, max_size=4)
INTERESTS = st.builds(
    Interest,
    start=st.sampled_from([b"", b"a", b"aa", b"b"]),
    end=st.sampled_from([None, b"b\0", b"c"]),
    prev_value=st.booleans(),
    puts=st.just(True),
    deletes=st.booleans(),
)
STEPS = st.one_of(
    st.tuples(st.just("write"), CHANGES),
    st.tuples(st.just("write"), CHANGES),
    st.tuples(st.just("watch"), st.tuples(INTERESTS, st.integers(-6, 3))),
    st.tuples(st.just("watch one"), st.tuples(NAMES, st.integers(-6, 3))),
    st.tuples(st.just("turn"), st.none()),
    st.tuples(st.just("compact"), st.integers(0, 5)),
    st.tuples(st.just("fill"), st.integers(0, 9)),
    st.tuples(st.just("room"), st.integers(0, 9)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("other"), st.integers(0, 3)),
)


class Model:
    """Watchers of a history, each held against a scan of everything that happened."""

    def __init__(self) -> None:
        self.history, self.hub = History(), Hub()
        self.store = self.history.store
        self.watchers: list[tuple[Watcher, Interest, int, Seen]] = []

    def step(self, kind: str, argument: object) -> None:
        act: Callable[..., None] = getattr(self, "_" + kind.replace(" ", "_"))
        act(argument)
        for watcher, interest, first, seen in self.watchers:
            all_of_it = wanted(self.history, interest, first)
            assert seen.events == all_of_it[: len(seen.events)], (interest, first)
            for batch, after in zip(seen.batches, seen.batches[1:], strict=False):
                assert batch.events[-1][0].mod_revision < after.events[0][0].mod_revision, "a revision was split"
            progress = self.hub.progress(watcher)
            if progress is not None:
                assert [each for each in all_of_it if each[0].mod_revision <= progress] == seen.events

    def _write(self, changes: dict[bytes, bytes | None]) -> None:
        if self.store is self.history.store:
            self.history.write(*changes.items())

    def _watch(self, argument: tuple[Interest, int]) -> None:
        interest, offset = argument
        first = max(self.store.revision + 1 + offset, 1)
        seen = Seen()
        if first < self.store.floor:
            with pytest.raises(RevisionCompactedError):
                self.hub.add(self.store, interest, seen, first)
            return
        self.watchers.append((self.hub.add(self.store, interest, seen, first), interest, first, seen))

    def _watch_one(self, argument: tuple[bytes, int]) -> None:
        self._watch((Interest(argument[0], argument[0] + b"\0"), argument[1]))

    def _turn(self, _: None) -> None:
        self.hub.turn(self.store)

    def _compact(self, back: int) -> None:
        if self.store is self.history.store:
            self.history.compact(max(self.store.revision - back, 1), budget=3 * back)

    def _fill(self, number: int) -> None:
        if self.watchers:
            self.watchers[number % len(self.watchers)][3].is_full = True

    def _room(self, number: int) -> None:
        if self.watchers:
            watcher, _, _, seen = self.watchers[number % len(self.watchers)]
            seen.is_full = False
            self.hub.has_room(watcher)

    def _leave(self, number: int) -> None:
        if self.watchers:
            self.hub.remove(self.watchers.pop(number % len(self.watchers))[0])

    def _other(self, back: int) -> None:
        """Another state, not as far, takes the place of this one; then one that is as far."""
        revision = self.history.store.revision - back
        if revision >= self.history.store.floor:
            self.store = self.history.copy(revision)
            self.hub.turn(self.store)
            self.store = self.history.store

    def finish(self) -> None:
        """Let everybody catch up: nothing is missing, or the floor ended it."""
        for watcher, _, _, seen in self.watchers:
            seen.is_full = False
            self.hub.has_room(watcher)
        drain(self.hub, self.store)
        for _, interest, first, seen in self.watchers:
            missing = wanted(self.history, interest, first)[len(seen.events) :]
            if seen.error is None:
                assert missing == []
            else:
                assert isinstance(seen.error, RevisionCompactedError)
                # The floor may have moved on since.
                assert first <= seen.error.revision < seen.error.floor <= self.store.floor
                assert all(record.mod_revision >= seen.error.revision for record, _ in missing)
                assert all(record.mod_revision < seen.error.revision for record, _ in seen.events)
        assert self.hub.size == sum(seen.error is None for *_, seen in self.watchers)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_every_watcher_sees_what_a_scan_of_everything_shows(
    steps: list[tuple[str, object]], events: int, deliveries: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_slices(patch, events, deliveries)
        model = Model()
        for kind, argument in steps:
            model.step(kind, argument)
        model.finish()


def test_the_model_splits_no_revision_of_its_own() -> None:
    history = History()
    history.write((b"a", b"1"), (b"b", b"2"))
    assert [len(list(events)) for _, events in groupby(history.events, key=lambda each: each[0].mod_revision)] == [2]
