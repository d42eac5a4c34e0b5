"""Watches, as the service begins them."""

from __future__ import annotations

import asyncio

import pytest
from fronts.fake_node import FakeNode
from service.test_history import node_of
from service.test_service import execute

from kvorum.errors import (
    CallerError,
    FeatureUnavailableError,
    InvalidRequestError,
    NoLeaderError,
    NotServingError,
    RevisionCompactedError,
    TooManyWatchersError,
)
from kvorum.kv.commands import Put
from kvorum.kv.store import Store
from kvorum.kv.watch import EventBatch, Interest
from kvorum.node.watches import Watches
from kvorum.service.requests import Compact, Watch


class Seen:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.is_full = False
        self.revisions: list[int] = []
        self.error: CallerError | None = None

    def take(self, batch: EventBatch) -> None:
        self.revisions += [record.mod_revision for record, _ in batch.events]

    def end(self, error: CallerError) -> None:
        self.error = error


def test_a_watch_begins_after_what_was_acknowledged_before_it() -> None:
    node = node_of(b"1", b"2")
    barriers = node.barriers
    start = execute(node, Watch(b"k", None))
    assert (start.revision, start.first, node.barriers) == (3, 4, barriers + 1)
    assert execute(node, Watch(b"k", None, from_revision=2)).first == 2
    assert execute(node, Watch(b"k", None, from_revision=9)).first == 9


def test_a_watch_needs_a_quorum_to_begin_so_that_it_does_not_hang_at_a_node_that_is_cut_off() -> None:
    node = node_of(b"1")
    node.error = NoLeaderError("nobody leads")
    for request in (Watch(b"k", None), Watch(b"k", None, from_revision=2)):
        with pytest.raises(NoLeaderError):
            execute(node, request)


def test_a_watch_below_the_floor_is_refused_with_the_floor() -> None:
    node = node_of(b"1", b"2", b"3")
    execute(node, Compact(3))
    with pytest.raises(RevisionCompactedError) as refused:
        execute(node, Watch(b"k", None, from_revision=2))
    assert refused.value.facts == {"revision": 4, "floor": 3}
    assert execute(node, Watch(b"k", None, from_revision=3)).first == 3


def test_below_its_feature_level_a_watch_is_refused_with_the_level() -> None:
    with pytest.raises(FeatureUnavailableError, match="level 4"):
        execute(FakeNode(), Watch(b"k", None))


@pytest.mark.parametrize(
    "request_",
    [
        Watch(b"k", b"k"),
        Watch(b"k", b"a"),
        Watch(b"k", None, puts=False, deletes=False),
        Watch(b"k", None, from_revision=-1),
        Watch(b"k", None, from_revision=2**63),
        Watch(b"k" * 1025, None),
        Watch(b"", b"k" * 1026),
        Watch(b"k", None, timeout_ms=0),
    ],
)
def test_a_watch_that_makes_no_sense_is_refused_before_anything_is_asked(request_: Watch) -> None:
    node = node_of(b"1")
    barriers = node.barriers
    with pytest.raises(InvalidRequestError):
        execute(node, request_)
    assert node.barriers == barriers


# --- The watches of a node --------------------------------------------------------------------------------------------

ALL = Interest(b"", None)


class Scene:
    """The watches of a node, whose turns are taken by hand."""

    def __init__(self, *values: bytes, watchers_max: int = 100) -> None:
        self.node = node_of(*values)
        self.turns = 0
        self.has_leader = True
        self.watches = Watches(
            self.node.config, self.node.state, self._schedule, self.node.counters, lambda: self.has_leader, watchers_max
        )

    def _schedule(self) -> None:
        self.turns += 1

    def put(self) -> None:
        asyncio.run(self._put())

    async def _put(self) -> None:
        await self.node.propose(Put(b"k", b"v"), 1000)

    def advance(self) -> None:
        while self.watches.advance():
            pass


def test_more_watchers_than_a_node_may_have_are_refused() -> None:
    scene = Scene(b"1", watchers_max=2)
    watches = [scene.watches.open(ALL, Seen(), 2) for _ in range(2)]
    with pytest.raises(TooManyWatchersError, match="limit 2"):
        scene.watches.open(ALL, Seen(), 2)
    watches[0].close()
    watches[0].close()
    scene.watches.open(ALL, Seen(), 2)
    assert scene.node.counters.watch_ends == {"closed": 1}


def test_watchers_and_what_they_get_are_counted() -> None:
    scene = Scene(b"1", b"2")
    quick, slow = Seen(), Seen()
    slow.is_full = True
    scene.watches.open(ALL, quick, 2)
    watch = scene.watches.open(ALL, slow, 4)
    scene.advance()
    scene.put()
    scene.advance()
    counters = scene.node.counters
    assert (counters.watchers, counters.watchers_behind, counters.watch_events) == (2, 1, 3)
    slow.is_full = False
    turns = scene.turns
    watch.has_room()
    assert scene.turns == turns + 1
    scene.advance()
    assert (counters.watchers_behind, counters.watch_events) == (0, 4)
    assert watch.progress() == 4


def test_a_turn_without_news_costs_nothing() -> None:
    scene = Scene(b"1")
    scene.watches.open(ALL, Seen(), 2)
    scene.advance()
    calls: list[object] = []

    def turn(store: Store) -> bool:
        calls.append(store)
        return False

    scene.watches.hub.turn = turn  # type: ignore[method-assign]
    assert not scene.watches.advance()
    assert calls == []
    scene.put()
    scene.watches.advance()
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["is_wrong", "is_given_up"])
def test_a_state_that_is_not_to_be_read_ends_the_watches_and_delivers_nothing(kind: str) -> None:
    scene = Scene(b"1")
    seen = Seen()
    scene.watches.open(ALL, seen, 2)
    setattr(scene.node.state, kind, True)
    assert not scene.watches.advance()
    assert isinstance(seen.error, NotServingError)
    assert seen.revisions == []
    assert scene.node.counters.watch_ends == {"not_serving": 1}


def test_a_node_without_a_leader_ends_its_watches_after_a_while_and_not_in_a_failover() -> None:
    scene = Scene(b"1")
    config, seen = scene.node.config, Seen()
    scene.watches.open(ALL, seen, 2)
    ticks = 3 * config.election_timeout_ms // config.tick_ms
    scene.has_leader = False
    for _ in range(ticks - 1):
        scene.watches.tick()
    scene.has_leader = True
    scene.watches.tick()
    scene.has_leader = False
    for _ in range(ticks - 1):
        scene.watches.tick()
    assert seen.error is None
    scene.watches.tick()
    assert isinstance(seen.error, NoLeaderError)
    assert scene.node.counters.watch_ends == {"no_leader": 1}


def test_nothing_of_a_state_is_kept_without_watchers() -> None:
    scene = Scene(b"1")
    scene.watches.open(ALL, Seen(), 2).close()
    scene.advance()
    assert scene.watches._seen[0] is None
    assert scene.watches.hub._store is None
