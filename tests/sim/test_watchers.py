"""Every validator of the watchers can fail, and the simulator notices a bug of each kind in the product."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import msgspec
import pytest
from sim import watchers
from sim.invariants import Broken
from sim.plan import Fault, Plan, S
from sim.run import simulate
from sim.watchers import VALIDATORS, Event, Received, Truth, Wanted

from kvorum.kv.store import Store
from kvorum.kv.versions import Versions
from kvorum.kv.watch import Event as HubEvent
from kvorum.kv.watch import EventBatch, Hub, Watcher

WANTED = Wanted(b"a", b"c", True, True, True)
A2 = Event(2, b"a", b"1", 1, 2, None)
B3 = Event(3, b"b", b"2", 1, 3, None)
A3 = Event(3, b"a", b"3", 2, 2, b"1")
A4 = Event(4, b"a", None, 0, 0, b"3")
Z5 = Event(5, b"z", b"4", 1, 5, None)
A6 = Event(6, b"a", b"5", 1, 6, None)
EVENTS = (A2, B3, A3, A4, Z5, A6)


def world() -> tuple[Received, Truth]:
    """Return a watcher that has begun at revision 2, and what it is to see."""
    truth = Truth()
    truth.events, truth.revision, truth.floor = list(EVENTS), 6, 1
    return Received(WANTED, 2), truth


def test_what_is_true_passes() -> None:
    received, truth = world()
    received.take(truth, [A2])
    received.take(truth, [B3, A3, A4])
    received.told(truth, 5)
    received.resumed(6)
    received.take(truth, [A6])
    received.told(truth, 6)
    received.lost(9)
    assert received.first == 9


LIES: dict[str, tuple[list[Event], list[Event]]] = {
    "filtered": ([A2, B3, A3, A4], [Z5]),
    "ordered": ([A2], [A4, B3]),
    "unique": ([A2], [A2]),
    "atomic": ([A2], [B3]),
    "resumable": ([], [B3, A3]),
    "is_create": ([A2, B3, A3, A4], [A6._replace(version=2)]),
    "prev_kv": ([A2], [B3, A3._replace(previous=b"0")]),
    "reliable": ([A2], [A4]),
}
"""The validator -> what was received before, and the lie."""


@pytest.mark.parametrize("check", VALIDATORS, ids=lambda check: check.__name__)
def test_every_validator_notices_its_lie(check: Callable[..., None]) -> None:
    before, lie = LIES[check.__name__]
    received, truth = world()
    if before:
        received.take(truth, before)
    with pytest.raises(Broken, match=f"watch_{'filter' if check is watchers.filtered else check.__name__}"):
        check(received, truth, lie)


def test_a_bookmark_that_is_ahead_or_goes_back_is_noticed() -> None:
    received, truth = world()
    received.take(truth, [A2])
    with pytest.raises(Broken, match="watch_bookmarkable"):
        received.told(truth, 3)
    received.take(truth, [B3, A3, A4])
    received.told(truth, 5)
    with pytest.raises(Broken, match="watch_bookmarkable"):
        received.told(truth, 4)


def test_a_watch_that_begins_before_what_was_acknowledged_is_noticed() -> None:
    watchers.a_watch_begins_after_what_was_acknowledged(3, 3)
    with pytest.raises(Broken):
        watchers.a_watch_begins_after_what_was_acknowledged(3, 2)


def test_every_validator_of_this_module_is_used() -> None:
    names = {check.__name__ for check in VALIDATORS} | {"bookmarkable"}
    functions = inspect.getmembers(watchers, inspect.isfunction)
    signatures = {name: list(inspect.signature(check).parameters) for name, check in functions}
    taking = {name for name, parameters in signatures.items() if parameters[:2] == ["received", "truth"]}
    assert taking - {"_true"} == names
    assert LIES.keys() == names - {"bookmarkable"}


# --- Bugs of the product ----------------------------------------------------------------------------------------------

PLAN = Plan(
    seed=5,
    finalize_after_s=0,
    clients=4,
    operations=80,
    read_per_mille=50,
    delete_per_mille=200,
    compare_per_mille=0,
    watchers=6,
    snapshot_every=6,
    faults=tuple(Fault(at_us=number * S, kind="crash", target=number % 3, duration_us=S) for number in range(2, 11, 2)),
)


def test_watchers_see_everything_while_nodes_crash() -> None:
    verdict = simulate(PLAN)
    assert verdict.violation is None, verdict.violation
    for what in ("events watched", "bookmarks", "slow watchers", "watches resumed"):
        assert verdict.counts[what] > 5, what


def repeats(patch: pytest.MonkeyPatch) -> None:
    """What is behind begins a revision too early."""
    true = Hub.add

    def add(self: Hub, store: Store, interest, sink, first: int) -> Watcher:  # type: ignore[no-untyped-def]
        return true(self, store, interest, sink, max(first - 1, store.floor))

    patch.setattr(Hub, "add", add)


def skips(patch: pytest.MonkeyPatch) -> None:
    """A watcher that was full goes on after what it missed."""
    true = Hub.has_room

    def has_room(self: Hub, watcher: Watcher) -> None:
        if watcher.place is self._full:
            watcher.cursor += 1
        true(self, watcher)

    patch.setattr(Hub, "has_room", has_room)


def hurries(patch: pytest.MonkeyPatch) -> None:
    """Progress is the store's revision, whatever was delivered."""
    patch.setattr(Hub, "progress", lambda self, watcher: self._next + 2)


def mistakes(patch: pytest.MonkeyPatch) -> None:
    """The previous value is the latest."""
    patch.setattr(Versions, "previous", lambda self, event: self.records.get(event.key) if event.version > 1 else None)


def doubles(patch: pytest.MonkeyPatch) -> None:
    """The last event of a batch comes twice."""

    def __init__(self: EventBatch, events: list[HubEvent]) -> None:
        self.events, self._encoded = [*events, events[-1]], {}

    patch.setattr(EventBatch, "__init__", __init__)


BUGS: dict[Callable[[pytest.MonkeyPatch], None], set[str]] = {
    repeats: {"watch_unique", "watch_resumable", "watch_reliable", "watch_ordered"},
    skips: {"watch_reliable", "watch_resumable", "watch_bookmarkable", "every_watcher_has_seen_all"},
    hurries: {"watch_bookmarkable"},
    mistakes: {"watch_prev_kv"},
    doubles: {"watch_unique", "watch_atomic"},
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_of_the_product_is_noticed(bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    found = set()
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        for seed in range(1, 9):
            verdict = simulate(msgspec.structs.replace(PLAN, seed=seed))
            if verdict.violation is not None:
                found.add(verdict.violation.check)
                break
    assert found
    assert found <= BUGS[bug]
