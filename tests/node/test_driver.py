"""The driver alone: its disk answers when it is told to, and its peers are messages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import TypeVar, cast

import msgspec
import pytest
from node.local_cluster import Put
from waiting import until

from kvorum.config import Config
from kvorum.errors import NotServingError, OutcomeUnknownError, PeerError, SnapshotFailedError, StorageCorruptError
from kvorum.identity import Identity
from kvorum.kv.commands import PutResult, Result, decode_batch, encode_batch
from kvorum.kv.records import Record
from kvorum.kv.state_hash import Mismatch
from kvorum.kv.store import Store
from kvorum.node import Node, Ports, Supervisor, fetch, snapshots
from kvorum.node.compose import compose, raft_config
from kvorum.node.driver import APPLY_S, Driver
from kvorum.node.ports import Peers
from kvorum.node.runtime import LoopTasks, LoopThreads, SystemClock
from kvorum.node.snapshots import load_store
from kvorum.raft import AddLearner, Role
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Member,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    Snapshot,
    TimeoutNow,
)
from kvorum.storage.interface import Loaded, SnapshotFile, SnapshotInfo
from kvorum.storage.memory import Compaction, MemoryReceiver, MemoryStorage, MemoryWriter
from kvorum.telemetry.counters import Counters
from kvorum.transport.interface import Greeting, Hello, SnapshotChunk

M = TypeVar("M", bound=Message)
ANSWER = HeartbeatResponse(term=1, sender="b@1", recipient="a@1", round=1)
MEMBERS = Configuration((Member("a@1", True), Member("b@1", True)))


class NoPeers:
    """Messages go nowhere."""

    def send(self, messages: Iterable[Message]) -> None:
        pass

    def set_members(self, urls: Mapping[str, str]) -> None:
        pass

    def set_alternatives(self, node: str, urls: Sequence[str]) -> None:
        pass

    async def close(self) -> None:
        pass


class Source(NoPeers):
    """Gives a snapshot when it is told to."""

    def __init__(self) -> None:
        self.wanted: list[int] = []
        self._arrived = asyncio.Event()

    def arrive(self) -> None:
        """What is wanted comes."""
        self._arrived.set()

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.wanted.append(last_index)
        await self._arrived.wait()
        self._arrived.clear()
        store = Store()
        store.applied_index, store.applied_term = last_index, 1
        files = MemoryStorage().snapshots
        cut, writer = store.begin_snapshot(), files.create(Snapshot(last_index, 1, MEMBERS))
        while (piece := cut.next_chunk()) is not None:
            writer.write(piece)
        cut.close()
        info = writer.commit()
        return SnapshotChunk(files.chunk(last_index, 0, 1 << 20), last_index, info.size_bytes, info.sha256)


def offer(last_index: int, term: int) -> InstallSnapshot:
    return InstallSnapshot(term=term, sender="b@1", recipient="a@1", snapshot=Snapshot(last_index, 1, MEMBERS))


def follows(last_index: int, *, first_index: int = 1, sender: str = "b@1", term: int = 1) -> AppendEntries:
    """What a leader sends: these entries, all of its term and committed."""
    entries = tuple(Entry(index, term, EntryKind.NOOP, b"") for index in range(first_index, last_index + 1))
    return AppendEntries(
        term,
        sender,
        "a@1",
        prev_log_index=first_index - 1,
        prev_log_term=1 if first_index > 1 else 0,
        entries=entries,
        leader_commit=last_index,
    )


class Loading:
    """Stands in for ``load_store``: what is loaded to be served waits until it may go on."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = threading.Event()
        self.loop = asyncio.get_running_loop()

    def __call__(self, files: SnapshotFile, snapshot: Snapshot, *, keeps_records: bool = True) -> Store:
        if keeps_records:
            self.loop.call_soon_threadsafe(self.begun.set)
            self.go_on.wait(20)
        return load_store(files, snapshot, keeps_records=keeps_records)


def test_a_state_is_given_up_before_the_one_that_was_fetched_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at once were too much for the memory of a node that held a little more than half of it."""

    async def scenario() -> None:
        monkeypatch.setattr(fetch, "load_store", loading := Loading())
        storage, source = MemoryStorage(), Source()
        node = a_node(storage, source)
        old = node.parts.state.store
        old.versions.records[b"k"] = Record(b"k", b"v", 1, 1, 1)
        driver = node.parts.driver
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted", lambda: source.wanted == [10])
        source.arrive()
        await loading.begun.wait()
        assert (len(old), len(node.parts.state.store)) == (0, 0)
        with pytest.raises(NotServingError, match="installing a snapshot"):
            node.check_serves()
        with pytest.raises(SnapshotFailedError, match="being installed"):
            node.parts.snapshots.begin()
        node.parts.sweeps.step(10)
        assert node.parts.state.hashes.at(node.parts.state.store.applied_index) is None
        # Nothing is applied to a state that is not there, and it cannot lead.
        driver.on_messages("b@1", (follows(12),))
        while storage.pending:
            storage.complete()
            await asyncio.sleep(0)
        assert node.raft.log.commit_index == 12
        driver.on_messages("b@1", (TimeoutNow(1, "b@1", "a@1"),))
        assert node.raft.role is Role.FOLLOWER
        loading.go_on.set()
        await until("what was loaded is served, and what follows it is applied", lambda: node.store.applied_index == 12)
        assert node.parts.state.store.applied_index == 12
        node.check_serves()
        assert not node.ports.supervisor.has_failed
        await node.close()

    asyncio.run(scenario())


def test_a_read_that_was_released_before_the_state_was_given_up_does_not_find_it_empty() -> None:
    async def scenario() -> None:
        node = a_node(MemoryStorage(), NoPeers())
        barrier = asyncio.create_task(node.read_barrier(5000))
        await until("it waits", lambda: node.parts.reads.queue)
        node.parts.reads.queue[0].set_result(None)
        node.parts.state.give_up()
        with pytest.raises(NotServingError, match="installing a snapshot"):
            await barrier
        await node.close()

    asyncio.run(scenario())


def test_a_fetched_state_that_is_of_no_use_takes_no_other_with_it() -> None:
    """One snapshot is being saved; another, which the log has passed meanwhile, arrives and is thrown away."""

    async def scenario() -> None:
        storage, source = MemoryStorage(), Source()
        node = a_node(storage, source)
        driver = node.parts.driver
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("the first is wanted", lambda: source.wanted == [10])
        source.arrive()
        await until("it is adopted", lambda: node.raft.snapshot is not None)
        assert storage.pending, "nothing of it is durable yet"
        driver.on_messages("b@1", (offer(20, term=1),))
        await until("the second is wanted", lambda: source.wanted == [10, 20])
        driver.on_messages("b@1", (follows(30, first_index=11),))
        source.arrive()
        await until("it is given up", lambda: node.parts.fetcher._fetch is None)
        assert node.counters.snapshots["install", "ok"] == 1
        while storage.pending:
            storage.complete()
            await asyncio.sleep(0)
        assert not node.ports.supervisor.has_failed
        assert node.store.applied_index == 30
        await node.close()

    asyncio.run(scenario())


class SilentPeers(NoPeers):
    """They are asked, and never answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.asked.append(node)
        await asyncio.Event().wait()
        raise AssertionError


def test_the_snapshot_of_a_leader_that_is_gone_is_not_waited_for() -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), SilentPeers()
        node = a_node(storage, peers)
        driver = node.parts.driver
        message = offer(20, term=1)
        driver.on_messages("b@1", (message,))
        await until("its leader is asked", lambda: peers.asked == ["b@1"])
        driver.on_messages("b@1", (message,))
        await asyncio.sleep(0)
        assert peers.asked == ["b@1"], "the same one is not fetched twice"

        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        driver.on_messages("c@1", (newer,))
        await asyncio.sleep(0)
        assert peers.asked == ["b@1"], "one is fetched at a time, and what the former leader has would still help"
        driver.on_messages("c@1", (newer,))
        driver.on_messages("c@1", (newer,))
        await until("the new leader is asked", lambda: peers.asked == ["b@1", "c@1"])
        await node.close()

    asyncio.run(scenario())


class SlowPeers(NoPeers):
    """They give a byte whenever they are told to, of a file of 100."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.give = asyncio.Event()

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.asked.append(node)
        await self.give.wait()
        self.give.clear()
        return SnapshotChunk(b"x", last_index, 100, "0" * 64)


def test_a_former_leader_that_still_gives_its_snapshot_is_not_given_up() -> None:
    """It covers committed entries only: what has arrived of it is not thrown away for the new leader's."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), SlowPeers()
        node = a_node(storage, peers)
        driver = node.parts.driver
        message = offer(20, term=1)
        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        driver.on_messages("b@1", (message,))
        for count in range(1, 6):
            await until("the next piece is asked for", lambda count=count: len(peers.asked) == count)  # type: ignore[misc]
            driver.on_messages("c@1", (newer,))
            peers.give.set()
        assert set(peers.asked) == {"b@1"}
        await node.close()

    asyncio.run(scenario())


def test_a_fetched_state_that_contradicts_its_own_sum_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(files: SnapshotFile, snapshot: Snapshot, *, keeps_records: bool = True) -> Store:
        store = load_store(files, snapshot, keeps_records=keeps_records)
        if len(source.wanted) == 1:
            store.mismatch = Mismatch(snapshot.last_index, 1, 2)
        return store

    monkeypatch.setattr(fetch, "load_store", load)
    source = Source()

    async def scenario() -> None:
        storage = MemoryStorage()
        node = a_node(storage, source)
        node.parts.driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted", lambda: source.wanted == [10])
        source.arrive()
        await until("it is wanted again", lambda: source.wanted == [10, 10])
        assert node.counters.snapshots["install", "failed"] == 1
        assert node.raft.snapshot is None
        assert not storage.snapshots.files
        source.arrive()
        await until("the right one is adopted", lambda: node.raft.snapshot)
        await node.close()

    asyncio.run(scenario())


def test_a_fetched_state_that_cannot_be_loaded_after_all_ends_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passed the verification, which keeps no records; the node takes its own state back, and asks again."""

    def load(files: SnapshotFile, snapshot: Snapshot, *, keeps_records: bool = True) -> Store:
        if keeps_records and len(source.wanted) == 1:
            raise StorageCorruptError("a key stands in it twice")
        return load_store(files, snapshot, keeps_records=keeps_records)

    monkeypatch.setattr(fetch, "load_store", load)
    source = Source()

    async def scenario() -> None:
        storage = MemoryStorage()
        node = a_node(storage, source)
        driver = node.parts.driver
        driver.on_messages("b@1", (follows(5),))
        await complete(storage)
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted", lambda: source.wanted == [10])
        source.arrive()
        await until("it is given up", lambda: node.parts.fetcher._fetch is None)
        await complete(storage)
        await until("its state is back", lambda: not node.parts.state.is_given_up)
        await until("its state is that of its log", lambda: node.store.applied_index == 5)
        assert node.counters.snapshots["install", "failed"] == 1
        assert (node.raft.snapshot, storage.snapshots.files) == (None, {})
        assert not node.ports.supervisor.has_failed
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted again", lambda: source.wanted == [10, 10])
        source.arrive()
        await until("it is adopted", lambda: node.raft.snapshot)
        await node.close()

    asyncio.run(scenario())


class Forgetful(Source):
    """Has another snapshot by the time that it is asked."""

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.wanted.append(last_index)
        await self._arrived.wait()
        self._arrived.clear()
        raise PeerError(f"there is no snapshot at {last_index}")


def test_a_fetch_that_the_log_has_passed_is_not_tried_again() -> None:
    """It went on for minutes, and what the leader offered meanwhile, which was needed, was not fetched."""

    async def scenario() -> None:
        storage, source = MemoryStorage(), Forgetful()
        node = a_node(storage, source)
        driver = node.parts.driver
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted", lambda: source.wanted == [10])
        driver.on_messages("b@1", (follows(12),))
        await until("the log has passed it", lambda: node.raft.log.commit_index == 12)
        source.arrive()

        def another_is_wanted() -> bool:
            driver.on_messages("b@1", (offer(20, term=1),))
            return len(source.wanted) > 1

        await until("another is wanted", another_is_wanted)
        assert source.wanted == [10, 20]
        await node.close()

    asyncio.run(scenario())


CONTRADICTION = follows(5, first_index=4, sender="c@1", term=3)
"""Other entries than those that are committed."""


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_node_that_takes_no_part_any_more_keeps_its_log_and_its_state_although_a_snapshot_arrives(
    is_given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says "this disk still has them: do not delete it"; before, the fetch under way replaced the log on it."""

    async def scenario() -> None:
        monkeypatch.setattr(fetch, "load_store", loading := Loading())
        storage, source = MemoryStorage(), Source()
        node = a_node(storage, source)
        driver = node.parts.driver
        driver.on_messages("b@1", (follows(5),))
        await complete(storage)
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted", lambda: source.wanted == [10])
        if is_given_up:
            source.arrive()
            await loading.begun.wait()
            assert node.parts.state.is_given_up
        driver.on_messages("c@1", (CONTRADICTION,))
        assert "do not delete it" in (node.distrusted or "")
        loading.go_on.set()
        source.arrive()
        for _ in range(20):
            await complete(storage)
        await until("its state is that of its log", lambda: node.store.applied_index == 5)
        assert (node.raft.log.first_index, node.raft.log.last_index, node.raft.snapshot) == (1, 5, None)
        assert not node.parts.state.is_given_up
        assert not node.ports.supervisor.has_failed
        await node.close()

    asyncio.run(scenario())


def test_no_fetch_begins_once_a_node_takes_no_part() -> None:
    async def scenario() -> None:
        storage, source = MemoryStorage(), Source()
        node = a_node(storage, source)
        driver = node.parts.driver
        driver.on_messages("b@1", (follows(5),))
        await complete(storage)
        driver.on_messages("b@1", (offer(10, term=3), follows(5, first_index=4, term=3)))
        await complete(storage)
        assert node.distrusted
        assert source.wanted == []
        await node.close()

    asyncio.run(scenario())


def test_a_snapshot_that_contradicts_what_was_committed_while_it_was_loaded_ends_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its entries came from another leader meanwhile, in another term."""

    async def scenario() -> None:
        monkeypatch.setattr(fetch, "load_store", loading := Loading())
        storage, source = MemoryStorage(), Source()
        node = a_node(storage, source)
        driver = node.parts.driver
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted", lambda: source.wanted == [10])
        source.arrive()
        await loading.begun.wait()
        driver.on_messages("c@1", (follows(12, sender="c@1", term=3),))
        await complete(storage)
        loading.go_on.set()
        await until("it is found", lambda: node.distrusted)
        await until("its state is that of its log", lambda: node.store.applied_index == 12)
        assert not node.ports.supervisor.has_failed
        await node.close()

    asyncio.run(scenario())


def test_a_snapshot_whose_entries_came_meanwhile_is_given_up_though_they_are_not_known_to_be_committed() -> None:
    """The node may lead by the time it has arrived, and a leader cannot do without its state: it ended."""

    async def scenario() -> None:
        storage, source = MemoryStorage(), Source()
        node = a_node(storage, source)
        driver = node.parts.driver
        driver.on_messages("b@1", (offer(10, term=1),))
        await until("it is wanted", lambda: source.wanted == [10])
        driver.on_messages("b@1", (msgspec.structs.replace(follows(12), leader_commit=1),))
        await complete(storage)
        source.arrive()
        await until("the fetch has ended", lambda: node.parts.fetcher._fetch is None)
        assert not node.parts.state.is_given_up
        assert (node.raft.snapshot, node.raft.log.commit_index) == (None, 1)
        await node.close()

    asyncio.run(scenario())


class HeldReceivers(MemoryStorage):
    """A disk that takes its time over each snapshot that has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.verifying = threading.Event()
        self.go_on = threading.Event()
        receive = self.snapshots.receive

        def held(snapshot: Snapshot, sha256: str = "") -> MemoryReceiver:
            receiver = receive(snapshot, sha256)
            commit = receiver.commit

            def slow(sha256: str) -> SnapshotInfo:
                self.verifying.set()
                assert self.go_on.wait(60)
                return commit(sha256)

            receiver.commit = slow  # type: ignore[method-assign]
            return receiver

        self.snapshots.receive = held  # type: ignore[method-assign]


def test_a_file_that_has_arrived_is_not_given_up_while_it_is_verified() -> None:
    """Another fetch would remove it under the thread that renames it, and the node would take that for a bad disk."""

    async def scenario() -> None:
        storage, source = HeldReceivers(), Source()
        node = a_node(storage, source)
        driver = node.parts.driver
        message = offer(20, term=1)
        newer = msgspec.structs.replace(message, term=2, sender="c@1", snapshot=Snapshot(30, 1, MEMBERS))
        driver.on_messages("b@1", (message,))
        await until("the first is wanted", lambda: source.wanted == [20])
        source.arrive()
        await until("it is verified", storage.verifying.is_set)
        for _ in range(4):
            driver.on_messages("c@1", (newer,))
            await asyncio.sleep(0)
        wanted = list(source.wanted)
        storage.go_on.set()
        await until("it is adopted", lambda: node.raft.snapshot)
        assert node.raft.snapshot == message.snapshot
        assert wanted == [20]
        assert not node.ports.supervisor.has_failed
        await node.close()

    asyncio.run(scenario())


class RefusingPeers(SilentPeers):
    """They are asked, and have nothing."""

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        self.asked.append(node)
        raise PeerError("no such snapshot")


def test_a_fetch_that_a_former_leader_fails_is_given_up_at_once() -> None:
    """The present leader offers its own: nothing is gained by asking the former one again and again."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), RefusingPeers()
        node = a_node(storage, peers)
        driver = node.parts.driver
        message = offer(20, term=1)
        driver.on_messages("b@1", (message,))
        newer = msgspec.structs.replace(message, term=2, sender="c@1")
        await until("its leader is asked", lambda: peers.asked == ["b@1"])
        driver.on_messages("c@1", (newer,))
        await until("it is asked once more", lambda: peers.asked == ["b@1", "b@1"])
        driver.on_messages("c@1", (newer,))
        await until("the next offer is taken", lambda: peers.asked[2:3] == ["c@1"])
        await node.close()

    asyncio.run(scenario())


def test_a_disk_is_given_as_long_as_the_configuration_says() -> None:
    async def scenario() -> None:
        storage = MemoryStorage()
        node = a_node(storage, NoPeers(), save_timeout_ms=2000)
        driver = node.parts.driver
        node.raft.bootstrap(Configuration((Member("a@1", True),)))
        node.parts.turns.schedule()
        await asyncio.sleep(0)
        assert storage.pending, "a save is in flight"
        for _ in range(79):
            driver.tick()
        assert not node.raft.is_disk_stalled, "after 1975 ms of 2000"
        driver.tick()
        assert node.raft.is_disk_stalled
        await node.close()

    asyncio.run(scenario())


class Recorder(NoPeers):
    """Keeps what is sent, and whom streams are kept to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.members: set[str] = set()

    def send(self, messages: Iterable[Message]) -> None:
        self.sent += messages

    def set_members(self, urls: Mapping[str, str]) -> None:
        self.members = set(urls)

    def add_stranger(self, node: str, url: str) -> None:
        pass

    def take(self, kind: type[M]) -> list[M]:
        """Return the messages of this kind that were sent since the last call, and forget all others."""
        sent, self.sent = self.sent, []
        return [message for message in sent if isinstance(message, kind)]


def configuration_entry(index: int, *members: str) -> Entry:
    configuration = Configuration(tuple(Member(member, True) for member in members))
    return Entry(index, 1, EntryKind.CONFIGURATION, encode_configuration(configuration))


def first_entries(leader_commit: int = 0) -> AppendEntries:
    """What the leader ``b@1`` sends to a node that has nothing: the configuration, and an entry of its own."""
    entries = (configuration_entry(1, "a@1", "b@1"), Entry(2, 1, EntryKind.NOOP, b""))
    return AppendEntries(
        1, "b@1", "a@1", prev_log_index=0, prev_log_term=0, entries=entries, leader_commit=leader_commit
    )


async def complete(storage: MemoryStorage) -> None:
    """Let everything become durable that is to be saved."""
    await asyncio.sleep(0)
    while storage.pending:
        storage.complete()
        await asyncio.sleep(0)


async def follower(storage: MemoryStorage, peers: Recorder, seed: int = 1) -> Node:
    """A node that follows ``b@1`` in term 1, and has applied all that is committed."""
    node = a_node(storage, peers, seed=seed)
    node.parts.driver.on_messages("b@1", (first_entries(leader_commit=2),))
    await complete(storage)
    assert node.store.applied_index == 2
    return node


async def leader(storage: MemoryStorage, peers: Recorder) -> Node:
    """A node that was elected by ``b@1`` in term 2, and has committed an entry of its term."""
    node = await follower(storage, peers)
    driver = node.parts.driver
    for _ in range(1000):
        if node.raft.role is Role.LEADER:
            break
        driver.tick()
        await complete(storage)
        for asked in peers.take(RequestVote):
            granted = RequestVoteResponse(asked.term, "b@1", "a@1", vote_granted=True, pre_vote=asked.pre_vote)
            driver.on_messages("b@1", (granted,))
            await complete(storage)
    await b_answers(node, storage, peers)
    assert node.raft.can_change_membership
    return node


async def b_answers(node: Node, storage: MemoryStorage, peers: Recorder) -> None:
    """Let ``b@1`` take what it was sent, until it is sent no more."""
    while sent := peers.take(AppendEntries):
        last = max(message.prev_log_index + len(message.entries) for message in sent)
        answer = AppendEntriesResponse(sent[-1].term, "b@1", "a@1", success=True, index=last)
        node.parts.driver.on_messages("b@1", (answer,))
        await complete(storage)


def test_writes_that_arrive_in_the_turn_in_which_a_save_ends_share_an_entry() -> None:
    """The end of a save proposed what had arrived by then, and the rest of the turn got an entry of its own."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await leader(storage, peers)
        first = asyncio.create_task(node.propose(Put(b"a", b"1"), 5000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert storage.pending
        [one] = peers.take(AppendEntries)
        assert len(one.entries) == 1
        node.parts.proposals.submit(Put(b"b", b"1"), 5.0)
        node.parts.turns.schedule()
        storage.complete()
        node.parts.proposals.submit(Put(b"c", b"1"), 5.0)
        await asyncio.sleep(0)
        entries = [entry for message in peers.take(AppendEntries) for entry in message.entries]
        assert [len(decode_batch(entry.data).commands) for entry in entries] == [2]
        first.cancel()
        await node.close()

    asyncio.run(scenario())


def test_an_answer_leaves_when_what_it_reveals_is_durable() -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = a_node(storage, peers)
        node.parts.driver.on_messages("b@1", (first_entries(),))
        await asyncio.sleep(0)
        assert storage.pending
        assert not peers.take(AppendEntriesResponse), "the entries may still be lost"
        storage.complete()
        assert [(answer.success, answer.index) for answer in peers.take(AppendEntriesResponse)] == [(True, 2)]

        node.parts.driver.on_messages(
            "c@1", (RequestVote(2, "c@1", "a@1", last_log_index=9, last_log_term=1, leadership_transfer=True),)
        )
        await asyncio.sleep(0)
        assert storage.pending
        assert not peers.take(RequestVoteResponse), "the vote may still be forgotten"
        storage.complete()
        assert [(answer.term, answer.vote_granted) for answer in peers.take(RequestVoteResponse)] == [(2, True)]
        await node.close()

    asyncio.run(scenario())


def test_what_waits_for_an_entry_that_a_snapshot_replaced_is_told_at_once() -> None:
    """A leader lost its leadership, and what it had proposed is covered by the snapshot of the next one."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await leader(storage, peers)
        writing = asyncio.create_task(node.propose(Put(b"a", b"1"), 60_000))
        await complete(storage)
        learner = msgspec.structs.replace(node.hello(), name="c", empty=True)

        async def hello(url: str, timeout_s: float = 2.0) -> Hello:
            return learner

        peers.hello = hello  # type: ignore[attr-defined]
        changing = asyncio.create_task(node.change_membership(AddLearner(Member("c@1", False)), 60_000))
        await complete(storage)
        last = node.raft.log.last_index
        source = Source()
        peers.snapshot_chunk = source.snapshot_chunk  # type: ignore[attr-defined]
        node.parts.driver.on_messages("b@1", (offer(last + 5, term=node.raft.current_term + 1),))
        await complete(storage)
        await until("it is wanted", lambda: source.wanted)
        source.arrive()
        await until("it is adopted", lambda: node.raft.snapshot)
        await complete(storage)
        assert node.store.applied_index == last + 5
        with pytest.raises(OutcomeUnknownError, match="a snapshot replaced the entry of this write"):
            await asyncio.wait_for(writing, 10)
        with pytest.raises(OutcomeUnknownError, match="a snapshot replaced the entry of this change"):
            await asyncio.wait_for(changing, 10)
        await node.close()

    asyncio.run(scenario())


def test_streams_follow_the_configuration_once_something_of_the_cluster_is_durable() -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = a_node(storage, peers)
        node.parts.driver.on_messages("b@1", (first_entries(),))
        await asyncio.sleep(0)
        assert not peers.members, "killed now, the node would have forgotten the cluster"
        await complete(storage)
        assert peers.members == {"b@1"}
        third = configuration_entry(3, "a@1", "b@1", "c@1")
        node.parts.driver.on_messages(
            "b@1",
            (AppendEntries(1, "b@1", "a@1", prev_log_index=2, prev_log_term=1, entries=(third,), leader_commit=2),),
        )
        await asyncio.sleep(0)
        assert peers.members == {"b@1", "c@1"}, "a configuration is in force from its append on"
        await complete(storage)
        await node.close()

    asyncio.run(scenario())


def test_a_member_is_called_until_its_removal_is_committed() -> None:
    """A removal that only this node had kept it from telling the leader, whom it removes, where it was now."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await follower(storage, peers)
        driver = node.parts.driver
        three, two = configuration_entry(3, "a@1", "b@1", "c@1"), configuration_entry(4, "a@1", "b@1")
        driver.on_messages(
            "b@1",
            (AppendEntries(1, "b@1", "a@1", prev_log_index=2, prev_log_term=1, entries=(three, two), leader_commit=3),),
        )
        await complete(storage)
        assert peers.members == {"b@1", "c@1"}
        assert node.raft.configuration.get("c@1") is None
        driver.on_messages(
            "b@1", (AppendEntries(1, "b@1", "a@1", prev_log_index=4, prev_log_term=1, entries=(), leader_commit=4),)
        )
        await complete(storage)
        assert peers.members == {"b@1"}
        await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_first_save_of_a_vote", [False, True])
def test_no_call_makes_a_node_dial_before_something_of_the_cluster_is_durable(is_first_save_of_a_vote: bool) -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = a_node(storage, peers)
        driver, requests = node.parts.driver, node.parts.peer_requests
        if is_first_save_of_a_vote:
            vote = RequestVote(1, "b@1", "a@1", last_log_index=2, last_log_term=1, leadership_transfer=True)
            driver.on_messages("b@1", (vote,))
            await asyncio.sleep(0)
        driver.on_messages("b@1", (first_entries(),))
        await asyncio.sleep(0)
        if is_first_save_of_a_vote:
            storage.complete()
        requests.on_connected(Greeting("c" * 32, "b@1", "http://b:1", start="7"))
        driver.tick()
        await asyncio.sleep(0)
        assert storage.pending
        assert not peers.members, "killed now, the node would have forgotten the cluster"
        await complete(storage)
        assert peers.members == {"b@1"}
        await node.close()

    asyncio.run(scenario())


def test_a_read_that_the_former_leader_was_asked_is_asked_of_the_next_one_in_the_same_turn() -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await follower(storage, peers)
        driver = node.parts.driver
        reading = asyncio.create_task(node.read_barrier(60_000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [asked.recipient for asked in peers.take(ReadIndex)] == ["b@1"]
        driver.on_messages("c@1", (Heartbeat(2, "c@1", "a@1", commit_index=2, round=1),))
        await asyncio.sleep(0)
        storage.complete()
        await asyncio.sleep(0)
        (asked,) = peers.take(ReadIndex)
        assert asked.recipient == "c@1"
        assert not reading.done()
        driver.on_messages("c@1", (ReadIndexResponse(2, "c@1", "a@1", context=asked.context, index=2),))
        await asyncio.wait_for(reading, 10)
        await node.close()

    asyncio.run(scenario())


def test_the_answer_to_a_read_does_not_release_one_that_was_asked_later() -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await follower(storage, peers)
        driver = node.parts.driver
        reading, contexts = [], []
        for _ in range(2):
            reading.append(asyncio.create_task(node.read_barrier(60_000)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            (asked,) = peers.take(ReadIndex)
            contexts.append(asked.context)
        for number, context in enumerate(contexts):
            driver.on_messages("b@1", (ReadIndexResponse(1, "b@1", "a@1", context=context, index=2),))
            await asyncio.wait_for(reading[number], 10)
            assert [task.done() for task in reading] == [True, number == 1]
        await node.close()

    asyncio.run(scenario())


def test_the_answer_to_a_read_of_the_run_before_releases_nothing() -> None:
    """A node was restarted, and what the leader answered to the process before arrives late."""

    async def scenario() -> None:
        before = Recorder()
        node = await follower(MemoryStorage(), before)
        node.parts.driver.tick()
        await asyncio.sleep(0)
        (old,) = before.take(ReadIndex)
        await node.close()

        storage, peers = MemoryStorage(), Recorder()
        node = await follower(storage, peers, seed=2)
        reading = asyncio.create_task(node.read_barrier(60_000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (new,) = peers.take(ReadIndex)
        driver = node.parts.driver
        driver.on_messages("b@1", (ReadIndexResponse(1, "b@1", "a@1", context=old.context, index=2),))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reading.done()
        driver.on_messages("b@1", (ReadIndexResponse(1, "b@1", "a@1", context=new.context, index=2),))
        await asyncio.wait_for(reading, 10)
        await node.close()

    asyncio.run(scenario())


class Reluctant(Source):
    """Refuses a snapshot twice, and then gives it."""

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        if len(self.wanted) < 2:
            self.wanted.append(last_index)
            raise PeerError("the connection broke")
        self.arrive()
        return await super().snapshot_chunk(node, last_index, offset_bytes, at_least)


def test_a_fetch_that_fails_is_tried_again_without_another_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE_S", 0.001)

    async def scenario() -> None:
        storage, source = MemoryStorage(), Reluctant()
        node = a_node(storage, source)
        node.parts.driver.on_messages("b@1", (offer(20, term=1),))
        await until("it is adopted", lambda: storage.pending and node.raft.snapshot)
        await complete(storage)
        assert source.wanted == [20, 20, 20]
        assert node.store.applied_index == 20
        assert node.counters.snapshots["install", "failed"] == 2
        await node.close()

    asyncio.run(scenario())


def test_the_log_goes_on_from_the_older_of_the_snapshots_that_are_kept() -> None:
    """If the newest is damaged, the older one and the log after it still give the whole state."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await leader_alone(storage, peers)
        taken = []
        for number in range(2):
            for key in range(10):
                writing = asyncio.create_task(node.propose(Put(b"%d" % key, b"%d" % number), 60_000))
                await asyncio.sleep(0)
                await complete(storage)
                assert isinstance(await writing, PutResult)
            await node.parts.snapshots.begin()
            taken.append(node.store.applied_index)
        (compaction,) = (each for each in storage.pending if isinstance(each, Compaction))
        storage.complete()
        assert [info.snapshot.last_index for info in storage.snapshots.kept()] == taken[::-1]
        assert compaction.first_index <= taken[0] + 1
        newest = storage.snapshots.files[taken[1]]
        storage.snapshots.files[taken[1]] = newest[:-1] + bytes([newest[-1] ^ 1])
        loaded = storage.load()
        assert loaded.snapshot is not None
        assert loaded.snapshot.last_index == taken[0]
        assert loaded.entries[-1].index == taken[1]
        await node.close()

    asyncio.run(scenario())


def test_a_snapshot_is_of_what_is_applied_and_not_of_what_is_committed() -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await follower(storage, peers)
        node.parts.driver.on_messages("b@1", (follows(5, first_index=3),))
        await asyncio.sleep(0)
        assert (node.raft.log.commit_index, node.store.applied_index) == (5, 2), "the entries are not saved yet"
        await node.parts.snapshots.begin()
        (kept,) = storage.snapshots.kept()
        assert kept.snapshot.last_index == 2
        assert load_store(storage.snapshots, kept.snapshot).applied_index == 2
        await complete(storage)
        await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("retry_s", [3600.0, 0.0])
def test_a_snapshot_that_found_no_room_is_tried_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, retry_s: float
) -> None:
    """Not with every entry: each try writes as much as there is room for, beside a log that needs it."""
    monkeypatch.setattr(snapshots, "RETRY_S", retry_s)

    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await leader_alone(storage, peers, snapshot_entries=5)
        tries = []

        def no_room(snapshot: Snapshot) -> MemoryWriter:
            tries.append(snapshot.last_index)
            raise SnapshotFailedError("no space left on device")

        storage.snapshots.create = no_room  # type: ignore[method-assign]
        for _ in range(12):
            writing = asyncio.create_task(node.propose(Put(b"a", b"1"), 60_000))
            await asyncio.sleep(0)
            await complete(storage)
            assert isinstance(await writing, PutResult)
            await node.parts.snapshots.ended()
        assert len(tries) == 1 if retry_s else len(tries) > 1
        assert not node.ports.supervisor.has_failed
        await node.close()

    asyncio.run(scenario())


async def leader_alone(storage: MemoryStorage, peers: Recorder, **settings: int) -> Node:
    """The leader of a cluster of one, which keeps no more of the log than it must."""
    node = a_node(storage, peers, log_retain_entries=0, **settings)
    node.raft.bootstrap(Configuration((Member("a@1", True),)))
    node.parts.turns.schedule()
    await complete(storage)
    for _ in range(1000):
        if node.raft.can_change_membership:
            return node
        node.parts.driver.tick()
        await complete(storage)
    raise AssertionError("it was not elected")


@pytest.mark.parametrize("election_timeout_ms", [500, 2000])
def test_a_follower_campaigns_when_the_configured_time_without_a_leader_is_over(election_timeout_ms: int) -> None:
    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = a_node(storage, peers, election_timeout_ms=election_timeout_ms)
        driver = node.parts.driver
        driver.on_messages("b@1", (first_entries(leader_commit=2),))
        await complete(storage)
        peers.take(RequestVote)
        ticks = election_timeout_ms // node.config.tick_ms
        for _ in range(ticks - 1):
            driver.tick()
            await complete(storage)
        assert not peers.take(RequestVote)
        for _ in range(ticks + 1):
            driver.tick()
            await complete(storage)
        assert peers.take(RequestVote)
        await node.close()

    asyncio.run(scenario())


def test_the_times_of_consensus_are_those_of_the_configuration() -> None:
    config = Config(name="a", tick_ms=10, election_timeout_ms=700, heartbeat_ms=50, save_timeout_ms=1234)
    ticks = raft_config(config, "a@1")
    assert (ticks.election_timeout_ticks, ticks.heartbeat_timeout_ticks, ticks.save_timeout_ticks) == (70, 5, 124)


@pytest.mark.parametrize(
    ("method", "call_back"),
    [
        ("tick", lambda driver: driver.tick()),
        (
            "step",
            lambda driver: driver.on_messages(
                "b@1", (HeartbeatResponse(term=1, sender="b@1", recipient="a@1", round=1),)
            ),
        ),
        ("peer_unreachable", lambda driver: driver.peer_unreachable("b@1")),
    ],
)
def test_a_bug_of_consensus_in_any_callback_ends_the_node(
    method: str, call_back: Callable[[Driver], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        node = a_node(MemoryStorage(), NoPeers())
        monkeypatch.setattr(node.raft, method, fail)
        call_back(node.parts.driver)
        assert node.ports.supervisor.has_failed
        await node.close()

    asyncio.run(scenario())


def test_entries_that_take_long_leave_turns_to_others_and_the_reads_that_wait_for_them_wait() -> None:
    """An entry of 7 bytes may expire a lease with 10,000 keys: a follower that catches up is handed many."""

    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await follower(storage, peers)
        driver = node.parts.driver
        driver.apply_s = 0.0  # Every entry takes too long.
        early, late = (asyncio.create_task(node.read_barrier(60_000)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked = peers.take(ReadIndex)
        late_one = asyncio.create_task(node.read_barrier(60_000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        later = peers.take(ReadIndex)
        driver.on_messages("b@1", (follows(7, first_index=3),))
        for request, index in ((asked[0], 4), (later[0], 7)):
            answer = ReadIndexResponse(1, "b@1", "a@1", context=request.context, index=index)
            driver.on_messages("b@1", (answer,))
        await asyncio.sleep(0)
        storage.complete()
        seen = [(node.store.applied_index, early.done(), late_one.done())]
        while storage.pending or node.store.applied_index < 7:
            await asyncio.sleep(0)
            assert node.store.applied_index == node.raft.log.applied_index
            if storage.pending:
                storage.complete()
            seen.append((node.store.applied_index, early.done(), late_one.done()))
        assert [index for index, _, _ in seen if index] == sorted({index for index, _, _ in seen})
        await asyncio.wait_for(asyncio.gather(early, late, late_one), 10)
        assert all(index >= 4 for index, is_early, _ in seen if is_early)
        assert all(index >= 7 for index, _, is_late in seen if is_late)
        assert any(is_early and index < 7 for index, is_early, _ in seen)
        await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("entries_a_ready", "applied"), [(1, [2, 4, 6, 7]), (2, [2, 5, 7])])
def test_the_readies_of_a_turn_share_the_time_of_applying(
    entries_a_ready: int, applied: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has 1 MiB at most; here it takes just less than the whole time."""
    value_bytes = (1 << 20) // entries_a_ready - 100
    entry_s = (APPLY_S - 0.001) / entries_a_ready

    async def scenario() -> None:
        storage, peers = MemoryStorage(), Recorder()
        node = await follower(storage, peers)
        driver, clock, apply = node.parts.driver, SteppedClock(), Store.apply

        def apply_slowly(store: Store, entry: Entry) -> list[Result]:
            clock.now_s += entry_s
            return apply(store, entry)

        monkeypatch.setattr(driver, "_clock", clock)
        monkeypatch.setattr(Store, "apply", apply_slowly)
        put = encode_batch(1000, [Put(b"k", b"v" * value_bytes)])
        entries = tuple(Entry(index, 1, EntryKind.COMMAND, put) for index in range(3, 8))
        appended = AppendEntries(1, "b@1", "a@1", prev_log_index=2, prev_log_term=1, entries=entries, leader_commit=7)
        driver.on_messages("b@1", (appended,))
        await asyncio.sleep(0)
        seen = [node.store.applied_index]
        while node.store.applied_index < 7:
            if storage.pending:
                storage.complete()
            await asyncio.sleep(0)
            seen.append(node.store.applied_index)
        assert sorted(set(seen)) == applied
        await node.close()

    asyncio.run(scenario())


class SteppedClock(SystemClock):
    """Its seconds pass when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.monotonic = lambda: self.now_s


def a_node(storage: MemoryStorage, peers: NoPeers, *, seed: int = 1, **settings: int) -> Node:
    identity = Identity("a", "1", "c")
    storage.write_identity(identity)
    supervisor = Supervisor()
    ports = Ports(
        supervisor=supervisor,
        clock=SystemClock(),
        tasks=LoopTasks(supervisor),
        threads=LoopThreads(),
        storage=storage,
        peers=cast(Peers, peers),
        random=Random(seed),
        counters=Counters(),
        memory_bytes=1 << 30,
    )
    config = Config(name="a", **settings)  # type: ignore[arg-type]
    return compose(config, identity, Loaded(identity), Store(), ports)
