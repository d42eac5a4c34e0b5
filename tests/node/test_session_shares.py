"""One address cannot take the room that the sessions of all clients need."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from raft.harness import leader

from kvorum.errors import SessionError
from kvorum.kv.commands import BatchCommand, EndSession, Put, RaiseFeatureLevel, encode_batch
from kvorum.kv.store import Store
from kvorum.node import session_shares
from kvorum.node.log_time import LogTime
from kvorum.node.proposals import Proposals
from kvorum.node.session_shares import PENDING_MAX_S, SessionShares
from kvorum.node.state import State
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member
from kvorum.telemetry.counters import Counters

ROOM, FREELY, SHARE = 40, 30, 10


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a table of 40 be full."""
    monkeypatch.setattr("kvorum.kv.sessions.SESSIONS_MAX", ROOM)
    for name, value in (("SESSIONS_MAX", ROOM), ("SHARED_FREELY", FREELY), ("SHARE_MAX", SHARE)):
        monkeypatch.setattr(session_shares, name, value)
    yield


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def boottime(self) -> float:
        raise AssertionError

    def wall_ms(self) -> int:
        raise AssertionError


class Leading:
    """The account of a leader, and the sessions of its state."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.state = State(Store())
        self.shares = SessionShares(self.state, self.clock)

    def applies(self, client_id: str, time_ms: int = 7) -> None:
        """The session is opened in the state."""
        store = self.state.store
        data = encode_batch(time_ms, [Put(b"a", b"1", client_id=client_id, sequence=1)])
        store.apply(Entry(store.applied_index + 1, 1, EntryKind.COMMAND, data))

    def applied(self, *commands: BatchCommand) -> None:
        """These commands are applied as one entry."""
        store = self.state.store
        store.apply(Entry(store.applied_index + 1, 1, EntryKind.COMMAND, encode_batch(7, commands)))

    def raise_to_level_3(self) -> None:
        store = self.state.store
        members = encode_configuration(Configuration((Member("n1", True),)))
        store.apply(Entry(store.applied_index + 1, 1, EntryKind.CONFIGURATION, members))
        for level in (2, 3):
            self.applied(RaiseFeatureLevel(level, {"n1": level}, "c"))

    def opens(self, address: str, client_id: str) -> None:
        self.shares.admit(address, client_id)
        self.applies(client_id)

    def opens_many(self, address: str, count: int) -> int:
        """Return how many sessions could be opened."""
        for number in range(count):
            try:
                self.opens(address, f"{address}-{number}")
            except SessionError:
                return number
        return count


def test_one_address_leaves_a_quarter_of_the_room_to_others() -> None:
    it = Leading()
    assert it.opens_many("10.0.0.1", ROOM) == FREELY
    with pytest.raises(SessionError) as caught:
        it.opens("10.0.0.1", "more")
    assert caught.value.code == "sessions_full"
    assert not it.state.store.has_session("more")

    assert it.opens_many("10.0.0.2", ROOM) == SHARE
    assert it.state.store.session_count == ROOM


def test_a_retry_of_the_write_that_opened_a_session_is_let_through() -> None:
    """It was opened through the leader before, or from another address."""
    it = Leading()
    it.applies("earlier")
    it.opens_many("10.0.0.1", ROOM)
    with pytest.raises(SessionError):
        it.shares.admit("10.0.0.1", "more")
    it.shares.admit("10.0.0.1", "10.0.0.1-3")
    it.shares.admit("10.0.0.1", "earlier")


def test_a_session_that_asked_again_before_it_was_opened_counts_once() -> None:
    it = Leading()
    it.opens_many("10.0.0.9", FREELY)
    for _ in range(SHARE + 5):
        it.shares.admit("10.0.0.1", "slow")
    it.shares.admit("10.0.0.1", "another")


def test_sessions_that_are_asked_for_at_once_count_before_they_are_opened() -> None:
    it = Leading()
    it.opens_many("10.0.0.9", FREELY)
    for number in range(SHARE):
        it.shares.admit("10.0.0.1", f"c{number}")
    with pytest.raises(SessionError):
        it.shares.admit("10.0.0.1", "more")

    it.clock.now_s += PENDING_MAX_S + 1
    it.shares.admit("10.0.0.1", "more")


def test_a_session_that_gave_way_counts_no_more() -> None:
    it = Leading()
    it.opens_many("10.0.0.1", FREELY)
    it.opens_many("10.0.0.2", SHARE)
    for number in range(FREELY):  # An hour later others take the place of the sessions of the first address.
        it.applies(f"late-{number}", time_ms=4_000_000)
    it.clock.now_s += PENDING_MAX_S + 1
    it.shares.admit("10.0.0.1", "again")


def test_a_session_that_was_ended_counts_no_more_at_once() -> None:
    it = Leading()
    it.opens_many("10.0.0.9", FREELY)
    assert it.opens_many("10.0.0.1", ROOM) == SHARE
    it.raise_to_level_3()
    it.applied(EndSession("10.0.0.1-3"))
    it.opens("10.0.0.1", "another")
    with pytest.raises(SessionError):
        it.opens("10.0.0.1", "more")


def test_the_account_is_bounded() -> None:
    it = Leading()
    for number in range(10 * ROOM):
        it.shares.admit(f"10.0.1.{number}", f"c{number}")
    assert len(it.shares._opened) == len(it.shares._of_address) == ROOM


def test_only_what_opens_a_session_is_counted_and_refused() -> None:
    async def scenario() -> None:
        it = Leading()
        it.opens_many("10.0.0.1", FREELY)
        server = leader("1", term=2, matched="bc")
        writes = Proposals(
            server.raft, it.state, Counters(), 100, 1 << 20, it.clock,
            LogTime(server.raft, it.state, it.clock, 25), it.shares, cast(Any, SimpleNamespace(check=lambda _: None)),
        )  # fmt: skip
        with pytest.raises(SessionError):
            writes.submit(Put(b"a", b"1", client_id="more", sequence=1), 60.0, "10.0.0.1")
        assert not writes.queue
        writes.submit(Put(b"a", b"1"), 60.0, "10.0.0.1")
        writes.submit(Put(b"a", b"1", client_id="10.0.0.1-0", sequence=2), 60.0, "10.0.0.1")
        writes.submit(Put(b"a", b"1", client_id="more", sequence=1), 60.0, "10.0.0.2")
        assert writes.pending == 3

    asyncio.run(scenario())
