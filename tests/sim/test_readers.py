"""The readers of the simulator, and the invariants that judge ranges, notice what is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from sim import range_invariants, watchers
from sim.invariants import Broken
from sim.node import SimNode
from sim.plan import Plan, S, draw_plan
from sim.run import simulate
from sim.watchers import Event
from sim.world import World

from kvorum.kv import scan
from kvorum.kv.ranges import RangeQuery
from kvorum.kv.records import Record
from kvorum.kv.scan import Scan
from kvorum.kv.store import Store
from kvorum.kv.versions import Pin, Versions
from kvorum.node.node import Node
from kvorum.service import scans
from kvorum.service.requests import CommonPrefix

MOST_SEEDS = 80
A = Record(b"a", b"1", 2, 2, 1)
B1 = Record(b"b/1", b"2", 3, 3, 1)
B2 = Record(b"b/2", b"3", 4, 5, 2)
ALL = RangeQuery()


@pytest.fixture(scope="module")
def world() -> World:
    """Return a world of three keys, of which one was put twice."""
    world = World(Plan(seed=1, duration_us=1 * S), None)
    truth = world.facts.truth
    truth._early = {1: {}}
    truth.events = [
        Event(2, b"a", b"1", 1, 2, None),
        Event(3, b"b/1", b"2", 1, 3, None),
        Event(4, b"b/2", b"0", 1, 4, None),
        Event(5, b"b/2", b"3", 2, 4, b"0"),
        Event(6, b"a", None, 0, 0, b"1"),
    ]
    truth.revision, truth.floor = 6, 1
    return world


def node_of(world: World) -> SimNode:
    """Return some node."""
    return next(iter(world.nodes.values()))


def is_the_state(world: World, query: RangeQuery, revision: int, *items: Record | CommonPrefix, done: int = 0) -> None:
    """Judge an answer that says that it is complete."""
    range_invariants.a_range_is_the_state_at_its_revision(
        world.facts, node_of(world), query, revision, done, items, is_complete=True
    )


LIES: dict[str, Callable[[World], None]] = {
    "a_range_is_the_state_at_its_revision": lambda w: is_the_state(w, ALL, 5, A, B2),
    "a_count_is_that_of_its_revision": lambda w: range_invariants.a_count_is_that_of_its_revision(
        w.facts, node_of(w), ALL, 6, 3
    ),
    "a_page_is_within_its_limit": lambda w: range_invariants.a_page_is_within_its_limit(
        node_of(w), RangeQuery(limit=1), [A, B1]
    ),
    "a_range_is_at_the_revision_that_was_asked_for": lambda w: (
        range_invariants.a_range_is_at_the_revision_that_was_asked_for(node_of(w), 4, 5)
    ),
    "a_linearizable_range_has_all_that_was_acknowledged": lambda w: (
        range_invariants.a_linearizable_range_has_all_that_was_acknowledged(node_of(w), 6, 5)
    ),
}


def test_there_is_a_lie_for_every_invariant() -> None:
    functions = inspect.getmembers(range_invariants, inspect.isfunction)
    public = {name for name, each in functions if each.__module__ == range_invariants.__name__ and name[0] != "_"}
    assert public - {"expected_items"} == set(LIES)


@pytest.mark.parametrize("name", LIES)
def test_an_invariant_notices_the_lie_that_is_told_to_it(name: str, world: World) -> None:
    with pytest.raises(Broken) as broken:
        LIES[name](world)
    assert broken.value.check == name


@pytest.mark.parametrize(
    ("query", "revision", "items"),
    [
        (ALL, 5, (A, B1, Record(b"b/2", b"0", 4, 5, 2))),
        (ALL, 5, (A, B1, B1, B2)),
        (ALL, 5, (B1, A, B2)),
        (ALL, 6, (A, B1, B2)),
        (RangeQuery(reverse=True), 5, (A, B1, B2)),
        (RangeQuery(sort="mod", reverse=True), 5, (A, B1, B2)),
        (RangeQuery(keys_only=True), 5, (A, B1, B2)),
        (RangeQuery(min_mod_revision=3), 5, (A, B1, B2)),
        (RangeQuery(count_only=True), 5, (A,)),
        (RangeQuery(delimiter=b"/"), 5, (A, CommonPrefix(b"b/", 1))),
        (RangeQuery(delimiter=b"/"), 5, (A, B1, B2)),
    ],
)
def test_no_range_that_is_not_the_state_passes(
    query: RangeQuery, revision: int, items: tuple[Record | CommonPrefix, ...], world: World
) -> None:
    with pytest.raises(Broken):
        is_the_state(world, query, revision, *items)


def test_the_truth_is_no_violation(world: World) -> None:
    is_the_state(world, ALL, 5, A, B1, B2)
    is_the_state(world, ALL, 6, B1, B2)
    is_the_state(world, ALL, 5, B2, done=2)
    is_the_state(world, RangeQuery(reverse=True), 5, B2, B1, A)
    is_the_state(world, RangeQuery(sort="mod", reverse=True), 5, B2, B1, A)
    is_the_state(world, RangeQuery(keys_only=True, min_mod_revision=5), 5, Record(b"b/2", b"", 4, 5, 2))
    is_the_state(world, RangeQuery(delimiter=b"/"), 5, A, CommonPrefix(b"b/", 2))
    is_the_state(world, RangeQuery(count_only=True), 5)
    range_invariants.a_count_is_that_of_its_revision(world.facts, node_of(world), ALL, 6, 2)
    range_invariants.a_page_is_within_its_limit(node_of(world), RangeQuery(limit=2), [A, B1])
    range_invariants.a_range_is_at_the_revision_that_was_asked_for(node_of(world), 0, 5)
    range_invariants.a_linearizable_range_has_all_that_was_acknowledged(node_of(world), 5, 5)


def test_a_damaged_value_is_not_the_fault_of_the_range(world: World) -> None:
    is_the_state(world, ALL, 5, Record(b"a", b"########", 2, 2, 1), B1, B2)


def test_a_revision_before_the_history_is_judged_if_it_was_seen() -> None:
    truth = watchers.Truth()
    truth._early = {3: {b"a": Event(3, b"a", b"1", 1, 3, None)}, 5: {}}
    assert truth.state(3) == {b"a": Event(3, b"a", b"1", 1, 3, None)}
    assert truth.state(4) is None


def pins_nothing(patch: pytest.MonkeyPatch) -> None:
    """What a reader still needs is reclaimed."""

    def pin(self: Store, revision: int = 0, bytes_max: int | None = None) -> Pin:
        self.check_revision(revision)
        return Pin(revision or self.revision, None, bytes_max, lambda pin: None)

    patch.setattr(Store, "pin", pin)


def forgets_the_dead(patch: pytest.MonkeyPatch) -> None:
    """A key that was deleted after the revision is not found at it."""

    def next_keys(self: Scan, versions: Versions, latest: int, wanted: int) -> list[bytes]:
        read = versions.keys_before if self._is_descending else versions.keys_from
        return read(self._low, self._high, wanted, has_dead=False)

    patch.setattr(Scan, "_next_keys", next_keys)


def counts_what_is_there_now(patch: pytest.MonkeyPatch) -> None:
    """The count of a range in the past is that of the present."""
    patch.setattr(scan._Changes, "count", lambda self, versions, start, end: versions.live.count(start, end))


def reads_without_asking(patch: pytest.MonkeyPatch) -> None:
    """A linearizable range is what the node happens to have."""

    async def read_barrier(self: Node, timeout_ms: int) -> None:
        pass

    patch.setattr(Node, "read_barrier", read_barrier)


def repeats_the_last_key(patch: pytest.MonkeyPatch) -> None:
    """A slice begins with the last key of the one before."""

    def passed(self: Scan, key: bytes) -> None:
        if self._is_descending:
            self._high = key
        elif self._low == key:
            self._low = key + b"\0"
        else:
            self._low = key

    patch.setattr(Scan, "_pass", passed)


def goes_on_with_the_latest_revision(patch: pytest.MonkeyPatch) -> None:
    """The second slice of a range is at the revision that the store has by then."""
    true = scans.RangeScan._slice

    def slice_(self: scans.RangeScan) -> list[scans.RangeItem]:
        self._scan.revision = self._store.revision
        return true(self)

    patch.setattr(scans.RangeScan, "_slice", slice_)


STATE = {"a_range_is_the_state_at_its_revision"}
COUNT = {"a_count_is_that_of_its_revision"}
BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[str]]] = {
    "pins nothing": (pins_nothing, STATE | COUNT),
    "forgets the dead": (forgets_the_dead, STATE | COUNT),
    "counts what is there now": (counts_what_is_there_now, STATE | COUNT),
    "reads without asking": (reads_without_asking, {"a_linearizable_range_has_all_that_was_acknowledged"}),
    "repeats the last key": (repeats_the_last_key, STATE),
    "goes on with the latest revision": (goes_on_with_the_latest_revision, STATE | COUNT),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_range_is_found_by_the_seeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking, expected = BROKEN[name]
    breaking(monkeypatch)
    for seed in range(MOST_SEEDS):
        plan = draw_plan(seed)
        if not plan.readers:
            continue
        violation = simulate(plan).violation
        if violation is not None and violation.check in expected:
            return
    pytest.fail(f"{MOST_SEEDS} seeds found nothing")
