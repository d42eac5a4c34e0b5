"""Whether a node may take part, by what peers remember of its disk: the decisions one by one (K4)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from node.local_cluster import TIMEOUT_MS, LocalCluster, Put
from node.local_cluster import running as cluster_of
from raft.harness import append, commands, configuration, log
from waiting import until

from kvorum.commands.recover import plan
from kvorum.config import Config, parse_peers
from kvorum.errors import CommitsLostError, DiskSetBackError, NotServingError
from kvorum.identity import Identity, name_of
from kvorum.kv.state_hash import StateDigest
from kvorum.kv.store import Store
from kvorum.node import Node as ProductNode
from kvorum.node import Ports, Supervisor
from kvorum.node import compose as compose_module
from kvorum.node.compose import compose, raft_config
from kvorum.node.ports import Peers
from kvorum.node.runtime import LoopTasks, LoopThreads, SystemClock
from kvorum.node.set_back import ADVISE_S, DiskAtStart, Participation
from kvorum.raft import Raft, RaftConfig, Role
from kvorum.raft.log import OnDisk
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import (
    TERM_JUMP_MAX,
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    Member,
    Message,
    PeerMark,
    RequestVote,
    RequestVoteResponse,
    Save,
    Snapshot,
)
from kvorum.storage.interface import Loaded
from kvorum.storage.memory import MemoryStorage
from kvorum.telemetry.counters import Counters
from kvorum.transport import Greeting, Hello, SnapshotChunk
from kvorum.transport.link import Link

LOADED = Loaded(Identity("a", "1", "c"), hard_state=HardState(4, "b"), entries=log("1224"))
"""A disk in term 4 with a vote for b, and four entries."""
EMPTY = Loaded()
TICK_MS = 50


def mark(term: int, vote: str | None = None, index: int = 0, index_term: int = 0, start: str = "1") -> PeerMark:
    return PeerMark("a", start, term, vote, index, index_term)


@pytest.mark.parametrize(
    ("remembered", "found"),
    [
        (mark(5), "it was once in term 5, and is in term 4"),
        (mark(4, "c"), "it once held a vote for c in term 4, and holds one for b"),
        (mark(4, None, 5, 4), "it once held entry 5 of term 4, and its log of 4 entries does not"),
        (mark(4, "b", 4, 3), "it once held entry 4 of term 3"),
        (mark(4, "b", 4, 4), None),
        (mark(4, None, 3, 2), None),
        (mark(3, "c", 99, 3), None),
        (mark(4), None),
    ],
    ids=[
        "a later term", "another vote", "a later entry", "another entry", "all of it", "less of it", "an earlier term",
        "the term only",
    ],
)  # fmt: skip
def test_a_disk_is_old_if_it_lacks_what_it_once_held_in_its_term_or_a_later_one(
    remembered: PeerMark, found: str | None
) -> None:
    lacks = DiskAtStart(LOADED).what_it_lacks(remembered)
    assert lacks == found if found is None else found in (lacks or "")


def test_a_vote_that_is_missing_tells_as_one_for_somebody_else_does() -> None:
    lacks = DiskAtStart(Loaded(hard_state=HardState(4))).what_it_lacks(mark(4, "c"))
    assert lacks == "it once held a vote for c in term 4, and holds one for nobody"


@pytest.mark.parametrize(("index", "term", "is_here"), [(2, 1, True), (5, 2, True), (5, 1, False), (7, 4, True)])
def test_what_a_snapshot_covers_or_is_only_on_disk_is_not_missing(index: int, term: int, is_here: bool) -> None:
    """The log on disk: a snapshot at 3, entries 4 to 6 that are not loaded, and 7."""
    loaded = Loaded(
        hard_state=HardState(4),
        snapshot=Snapshot(3, 1, configuration()),
        on_disk=OnDisk(((4, 1), (5, 2)), 6),
        entries=commands(7, "4"),
    )
    assert (DiskAtStart(loaded).what_it_lacks(mark(4, None, index, term)) is None) is is_here


class Hellos:
    """Peers that answer hellos; nothing else of them is called."""

    def __init__(self) -> None:
        self.leader = ""
        self.is_serving = True
        self.term = 0
        self.cluster_id = "c"
        self.node_ids: dict[str, str] = {}
        """Who answers at an address, if it is not the one who is expected there."""
        self.asked: list[str] = []
        self.connected: set[str] = set()

    def is_connected(self, node: str) -> bool:
        return node in self.connected

    def url_of(self, node: str) -> str:
        return node

    async def hello(self, url: str, timeout_s: float = 2.0) -> Hello:
        self.asked.append(url)
        is_leader = url == self.leader
        hello = SimpleNamespace(
            node_id=self.node_ids.get(url, url),
            cluster_id=self.cluster_id,
            is_leader=is_leader,
            term=self.term,
            is_serving=is_leader and self.is_serving,
        )
        return cast(Hello, hello)


class Tasks:
    """Spawns on the running loop; a sleep ends when the test says so."""

    def __init__(self) -> None:
        self.naps = asyncio.Semaphore(0)
        self.slept = 0

    def spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        return asyncio.create_task(coroutine, name=name)

    async def sleep(self, delay_s: float) -> None:
        assert delay_s == ADVISE_S
        self.slept += 1
        await self.naps.acquire()

    def has_slept(self, times: int) -> bool:
        return self.slept >= times


class Node:
    """A participation and what is around it."""

    def __init__(self, loaded: Loaded = LOADED, expected: Sequence[str] = ()) -> None:
        self.raft = Raft(RaftConfig("a"), Random(1), hard_state=loaded.hard_state, entries=loaded.entries)
        self.hellos = Hellos()
        self.tasks = Tasks()
        self.stopped: list[str] = []
        peers: Peers = self.hellos  # type: ignore[assignment]
        tasks: Any = self.tasks
        self.participation = Participation(self.raft, loaded, "5", peers, tasks, self.stopped.append, TICK_MS, expected)

    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.participation.tick()


def running(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_a_node_takes_part_once_every_member_has_called() -> None:
    node = Node()
    assert not node.participation.is_active
    node.participation.heard("b", [])
    assert not node.participation.is_active
    node.participation.heard("c", [mark(4, "b", 4, 4)])
    assert node.participation.is_active
    assert node.participation.why_not is None


def test_a_member_that_does_not_call_is_waited_for_two_election_timeouts() -> None:
    node = Node()
    node.participation.heard("b", [])
    node.tick(2 * node.raft.config.election_timeout_ticks - 1)
    assert not node.participation.is_active
    node.tick(1)
    assert node.participation.is_active


def test_a_member_that_accepts_our_call_is_waited_for_longer_and_not_for_ever() -> None:
    """It is there: it may be dialling an address that is out of date, or its version says what it remembers later."""
    node = Node()
    node.participation.heard("b", [])
    node.hellos.connected = {"b", "c"}
    node.tick(6000 // TICK_MS - 1)
    assert not node.participation.is_active
    node.tick(1)
    assert node.participation.is_active


def test_only_those_that_are_connected_and_unheard_are_waited_for_longer() -> None:
    node = Node()
    node.participation.heard("b", [])
    node.hellos.connected = {"b"}
    node.tick(2 * node.raft.config.election_timeout_ticks)
    assert node.participation.is_active


def test_a_node_without_members_or_alone_waits_for_nobody() -> None:
    assert Node(EMPTY).participation.is_active
    assert Node(Loaded(hard_state=HardState(1), entries=log("1", voters="a"))).participation.is_active


def test_a_stranger_is_neither_waited_for_nor_believed() -> None:
    node = Node(expected=["d"])
    node.participation.heard("x@1", [mark(9)])
    assert (node.participation.is_active, node.participation.is_distrusted) == (False, False)


@pytest.mark.parametrize("caller", ["b@2", "d@1"], ids=["who replaced a member", "who is named by the options"])
def test_who_became_a_member_after_the_copy_is_believed_by_its_name(caller: str) -> None:
    """A volume was replaced since the copy was taken. Its new member alone remembered the rest, and was ignored."""

    async def scenario() -> None:
        node = Node(expected=["d"])
        node.participation.heard(caller, [])
        node.participation.heard("c", [])
        assert not node.participation.is_active, "the member of that name is another disk, and may remember something"
        node.participation.heard(caller, [mark(5)])
        assert node.participation.is_distrusted
        await node.participation.close()

    running(scenario())


@pytest.mark.parametrize(("term", "is_believed"), [(4 + TERM_JUMP_MAX, True), (5 + TERM_JUMP_MAX, False)])
def test_a_term_that_no_disk_of_this_cluster_can_have_seen_accuses_nobody(
    term: int, is_believed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One header with an impossible term took a node out until it was restarted."""

    async def scenario() -> None:
        node = Node()
        node.participation.heard("b", [mark(term)], "10.0.0.7")
        assert node.participation.is_distrusted is is_believed
        [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert line.startswith("b at 10.0.0.7 ")
        assert str(term) in line
        node.participation.heard("c", [mark(5)])
        assert node.participation.is_distrusted
        await node.participation.close()

    running(scenario())


def test_a_node_that_knows_no_members_believes_whoever_is_about_to_lead_it() -> None:
    """A copy from before the first entry lacks everything."""

    async def scenario() -> None:
        node = Node(EMPTY)
        node.participation.heard("b", [mark(2, None, 4, 2)])
        assert not node.participation.is_active
        assert node.participation.is_distrusted
        await node.participation.close()

    running(scenario())


def test_a_node_that_has_come_to_know_members_believes_them_only() -> None:
    """A stranger's one call took every node of a new cluster out of it, for good."""

    async def scenario() -> None:
        node = Node(EMPTY)
        node.raft.step(append("b", "a", 1, (0, 0), log("1"), commit=1))
        node.participation.heard("x", [mark(9)])
        assert node.participation.is_active
        node.participation.heard("c", [mark(9)])
        assert node.participation.is_distrusted
        await node.participation.close()

    running(scenario())


@pytest.mark.parametrize("who", ["another node", "a node of another cluster"])
def test_a_leader_of_another_cluster_at_a_members_address_is_no_reason_to_empty_the_disk(who: str) -> None:
    async def scenario() -> None:
        node = Node()
        node.hellos.leader = "b"
        if who == "another node":
            node.hellos.node_ids["b"] = "b@2"
        else:
            node.hellos.cluster_id = "d"
        node.participation.heard("c", [mark(5)])
        for times in (1, 2):
            await until("it has asked", partial(node.tasks.has_slept, times))
            assert "keep every disk" in (node.participation.why_not or "")
            node.tick(2 * node.raft.config.election_timeout_ticks + 1)
            node.tasks.naps.release()
        await node.participation.close()

    running(scenario())


def test_what_a_peer_remembers_of_the_present_process_accuses_nobody() -> None:
    """It may be of what was acknowledged since the start."""
    node = Node()
    node.participation.heard("b", [mark(4, "b", 99, 4, start="5")])
    assert not node.participation.is_distrusted


@pytest.mark.parametrize("has_begun", [False, True], ids=["before it takes part", "a member that calls late"])
def test_a_node_whose_disk_was_set_back_stands_down_and_waits_for_nobody_any_more(has_begun: bool) -> None:
    async def scenario() -> None:
        node = Node()
        if has_begun:
            node.tick(1000)
        for _ in range(2):
            node.participation.heard("c", [mark(1), mark(5)])
        node.participation.heard("b", [])
        node.tick(1000)
        assert not node.participation.is_active
        assert node.participation.is_distrusted
        [reason] = node.stopped
        assert (
            reason
            == "this disk was set back to an older state: c remembers that it was once in term 5, and is in term 4"
        )
        for _ in range(1000):
            node.raft.tick()
        assert node.raft.role is Role.FOLLOWER
        await node.participation.close()

    running(scenario())


def test_the_advice_is_an_empty_disk_only_while_a_leader_has_a_quorum_without_this_node() -> None:
    """The first leader may have led with this node, and may not know yet that it does so no more."""
    elected_again = 3

    async def scenario() -> None:
        node = Node()
        participation, hellos, tasks = node.participation, node.hellos, node.tasks
        hellos.leader, hellos.term = "b", 2
        node.tick(1000)
        participation.heard("c", [mark(5)])
        assert "keep every disk" in (participation.why_not or "")
        assert "No leader" not in (participation.why_not or "")
        await until("it has asked", partial(tasks.has_slept, 1))
        advice: list[str] = []
        for leader, is_serving, term in (
            ("b", True, 2), ("", True, 2), ("b", False, 2), ("b", True, 2), ("b", True, elected_again),
            ("b", True, elected_again), ("c", True, elected_again), ("c", True, elected_again), ("", True, 0),
        ):  # fmt: skip
            hellos.leader, hellos.is_serving, hellos.term = leader, is_serving, term
            expected = tasks.slept + 1
            tasks.naps.release()
            await until("it has asked again", partial(tasks.has_slept, expected))
            advice.append(participation.why_not or "")
            node.tick(2 * node.raft.config.election_timeout_ticks + 1)
        empty = ["give this node an empty disk" in text for text in advice]
        assert empty == [False, False, False, False, False, True, False, True, False]
        assert ["keep every disk" in text for text in advice] == [not each for each in empty]
        # Only where it found none, it says so: the others' tables name the leader.
        assert ["No leader" in text for text in advice] == [each in {1, 2, 8} for each in range(len(advice))]
        assert set(hellos.asked) == {"b", "c"}
        await participation.close()

    running(scenario())


def test_a_leader_that_is_asked_twice_in_a_short_time_is_no_reason_to_empty_the_disk(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        node = Node()
        node.hellos.leader = "b"
        node.participation.heard("c", [mark(5)])
        for times in range(1, 4):
            await until("it has asked", partial(node.tasks.has_slept, times))
            assert "keep every disk" in (node.participation.why_not or "")
            if times < 3:
                node.tick(node.raft.config.election_timeout_ticks)
                node.tasks.naps.release()
        node.tick(1)
        node.tasks.naps.release()
        await until("it has asked", partial(node.tasks.has_slept, 4))
        assert "give this node an empty disk" in (node.participation.why_not or "")
        await node.participation.close()

    running(scenario())
    critical = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert ["keep every disk" in line for line in critical] == [True, False]


def test_a_leader_that_shows_that_this_disk_was_set_back_is_taken_at_its_word() -> None:
    async def scenario() -> None:
        node = Node()
        node.participation.contradicted(DiskSetBackError("b says so"))
        assert "this disk was set back" in (node.participation.why_not or "")
        assert node.participation._task is not None
        await node.participation.close()

    running(scenario())


def test_a_disk_that_alone_holds_what_is_committed_is_never_to_be_deleted() -> None:
    node = Node()
    node.participation.contradicted(CommitsLostError("b has another entry"))
    node.participation.contradicted(DiskSetBackError("b says so"))
    assert "do not delete it" in (node.participation.why_not or "")
    assert "set back" not in (node.participation.why_not or "").replace("a-volume-was-set-back", "")
    assert not node.participation.is_active


class Wire:
    """Keeps what is sent; nobody has another address than its id."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, messages: Iterable[Message]) -> None:
        self.sent += messages

    def set_members(self, urls: Mapping[str, str]) -> None:
        pass

    def set_alternatives(self, node: str, urls: Sequence[str]) -> None:
        pass

    def add_stranger(self, node: str, url: str) -> None:
        pass

    def remove_stranger(self, node: str) -> None:
        pass

    def url_of(self, node: str) -> None:
        return None

    def is_connected(self, node: str) -> bool:
        return False

    async def close(self) -> None:
        pass


MEMBERS = Configuration(tuple(Member(f"{name}@1", True) for name in "abc"))
FIRST = Entry(1, 1, EntryKind.CONFIGURATION, encode_configuration(MEMBERS))


def greeting(name: str, *marks: PeerMark, start: str = "") -> Greeting:
    return Greeting("c", f"{name}@1", "", start=start, marks=marks)


def a_member(wire: Wire | None = None, peers: str = "") -> tuple[ProductNode, MemoryStorage, Wire]:
    """A node of three that has just started in term 1 with the first entry."""
    storage, wire, supervisor = MemoryStorage(), wire or Wire(), Supervisor()
    identity = Identity("a", "1", "c")
    storage.write_identity(identity)
    ports = Ports(
        supervisor=supervisor,
        clock=SystemClock(),
        tasks=LoopTasks(supervisor),
        threads=LoopThreads(),
        storage=storage,
        peers=cast("Peers", wire),
        random=Random(1),
        counters=Counters(),
        memory_bytes=1 << 30,
    )
    storage.save(Save(1, HardState(1), (FIRST,)), lambda: None)
    storage.complete()
    return (
        compose(Config(name="a", peers=parse_peers(peers) if peers else ()), identity, storage.load(), Store(), ports),
        storage,
        wire,
    )


def test_the_options_of_a_node_name_whom_it_believes() -> None:
    async def scenario() -> None:
        node, _, _ = a_member(peers="a=a:1,z=z:1")
        node.parts.peer_requests.on_connected(greeting("x", PeerMark("a@1", "0", 9)))
        assert not node.distrusted
        node.parts.peer_requests.on_connected(greeting("z", PeerMark("a@1", "0", 9)))
        assert node.distrusted
        await node.close()

    running(scenario())


ASKS = RequestVote(term=2, sender="b@1", recipient="a@1", last_log_index=1, last_log_term=1, leadership_transfer=True)
APPENDS = AppendEntries(
    term=2, sender="b@1", recipient="a@1", prev_log_index=1, prev_log_term=1,
    entries=(Entry(2, 2, EntryKind.NOOP, b""),),
    leader_commit=1,
)  # fmt: skip


def test_nothing_is_answered_before_every_member_was_heard() -> None:
    async def scenario() -> None:
        node, storage, wire = a_member()
        driver, requests = node.parts.driver, node.parts.peer_requests
        requests.on_connected(greeting("b"))
        driver.on_messages("b@1", (ASKS,))
        driver.tick()
        driver.take_turn()
        assert (storage.pending, wire.sent, node.raft.current_term) == ((), [], 1)
        requests.on_connected(greeting("c"))
        driver.on_messages("b@1", (ASKS,))
        driver.take_turn()
        storage.complete()
        [answer] = wire.sent
        assert isinstance(answer, RequestVoteResponse)
        assert answer.vote_granted
        await node.close()

    running(scenario())


def test_consensus_stands_still_until_then_but_for_two_election_timeouts() -> None:
    async def scenario() -> None:
        node, _, wire = a_member()
        timeout = node.raft.config.election_timeout_ticks
        for _ in range(2 * timeout):
            node.parts.driver.tick()
            node.parts.driver.take_turn()
        assert (node.raft.role, wire.sent) == (Role.FOLLOWER, [])
        for _ in range(2 * timeout):
            node.parts.driver.tick()
            node.parts.driver.take_turn()
        assert node.raft.role is Role.PRE_CANDIDATE
        assert wire.sent
        await node.close()

    running(scenario())


@pytest.mark.parametrize("has_term", [True, False], ids=["an answer that waits for a save", "a message at once"])
def test_a_node_that_learns_late_that_its_disk_was_set_back_says_nothing_more(has_term: bool) -> None:
    async def scenario() -> None:
        node, storage, wire = a_member()
        driver, requests = node.parts.driver, node.parts.peer_requests
        requests.on_connected(greeting("b"))
        for _ in range(2 * node.raft.config.election_timeout_ticks):
            driver.tick()
        driver.on_messages("b@1", (ASKS,))
        driver.take_turn()
        if has_term:
            assert storage.pending
        else:
            storage.complete()
            wire.sent.clear()
            node.raft.step(Heartbeat(2, "b@1", "a@1", commit_index=1, round=1))
        requests.on_connected(greeting("c", PeerMark("a@1", "0", 9)))
        driver.take_turn()
        while storage.pending:
            storage.complete()
        for _ in range(100):
            driver.tick()
            driver.take_turn()
        driver.on_messages("b@1", (APPENDS,))
        assert wire.sent == []
        assert node.status().distrusted == node.distrusted != None  # noqa: E711
        assert {check.name for check in node.readiness() if not check.ok} >= {"disk"}
        with pytest.raises(NotServingError, match="set back"):
            await node.read_barrier(1000)
        with pytest.raises(NotServingError, match="set back"):
            await node.propose(Put(b"k", b"v"), 1000)
        # What it has applied is served on; in one of the cases it is nothing.
        node.store.applied_index = max(node.store.applied_index, 1)
        node.check_serves()
        await node.close()

    running(scenario())


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (Heartbeat(2, "b@1", "a@1", commit_index=7, round=0), "keep every disk"),
        (
            AppendEntries(
                term=2, sender="b@1", recipient="a@1", prev_log_index=0, prev_log_term=0,
                entries=(Entry(1, 2, EntryKind.NOOP, b""),), leader_commit=0,
            ),
            "do not delete it",
        ),
    ],
    ids=["more than is here", "another than is committed"],
)  # fmt: skip
def test_what_contradicts_the_disk_ends_no_process(message: Message, advice: str) -> None:
    async def scenario() -> None:
        node, _, wire = a_member()
        driver, requests = node.parts.driver, node.parts.peer_requests
        node.raft.log.commit_to(1)
        for name in "bc":
            requests.on_connected(greeting(name))
        driver.on_messages("b@1", (message,))
        driver.take_turn()
        assert not node.ports.supervisor.has_failed
        assert not node.parts.turns.is_over
        assert advice in (node.distrusted or "")
        assert wire.sent == []
        await node.close()

    running(scenario())


def test_what_a_peer_acknowledged_is_said_when_it_is_called_and_survives_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster_of(tmp_path, size=3) as cluster:
            leader = await cluster.settled()
            follower, other = cluster.others(leader)
            await leader.propose(Put(b"a", b"v"), TIMEOUT_MS)
            leader = await cluster.settled()
            follower, other = cluster.others(leader)
            index = leader.raft.log.last_index
            # What the last save does not carry is known to the process only.
            await leader.propose(Put(b"b", b"v"), TIMEOUT_MS)
            name, names = leader.identity.name, [node.identity.name for node in (follower, other)]
            await cluster.stop(*cluster.names)
            await cluster.start(name)
            marks = cluster.nodes[name].parts.peer_requests.marks_of(follower.raft.id)
            assert max(mark.index for mark in marks) >= index
            assert not cluster.nodes[name].parts.participation.is_active
            await cluster.start(*names)
            await cluster.settled()
            assert [node.distrusted for node in cluster.nodes.values()] == [None] * 3

    running(scenario())


def test_a_disk_that_was_set_back_is_noticed_although_no_peer_can_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod came back at another address: those that remember still dialled the old one when it voted."""

    async def scenario() -> None:
        async with cluster_of(tmp_path, size=3) as cluster:
            leader = await cluster.settled()
            name, lagging = (node.identity.name for node in cluster.others(leader))
            await cluster.stop(name)
            await asyncio.to_thread(shutil.copytree, tmp_path / name, tmp_path / "copy")
            await cluster.start(name)
            await cluster.settled()
            await cluster.stop(lagging)
            await cluster.put(b"a", b"v")
            await cluster.stop(name)
            await asyncio.to_thread(shutil.rmtree, tmp_path / name)
            await asyncio.to_thread(shutil.copytree, tmp_path / "copy", tmp_path / name)
            run_stream = Link._run_stream

            async def dial(link: Link) -> None:
                if name_of(link.node) == name:
                    await asyncio.Event().wait()
                await run_stream(link)

            monkeypatch.setattr(Link, "_run_stream", dial)
            await cluster.start(lagging, name)
            participation = cluster.nodes[name].parts.participation
            await until("it decides", lambda: participation.is_active or participation.is_distrusted)
            assert "remembers that it once held entry" in (participation.why_not or "")

    running(scenario())


class Source(Wire):
    """Gives the snapshot of a state that is at entry 1 of another term."""

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        store, files = Store(), MemoryStorage().snapshots
        store.applied_index, store.applied_term = 1, 7
        cut, writer = store.begin_snapshot(), files.create(Snapshot(1, 7, MEMBERS))
        while (piece := cut.next_chunk()) is not None:
            writer.write(piece)
        cut.close()
        info = writer.commit()
        return SnapshotChunk(files.chunk(1, 0, 1 << 20), 1, info.size_bytes, info.sha256)

    async def state_hash(self, node: str, index: int) -> StateDigest:
        return StateDigest(1, 7, None)


def test_a_state_that_follows_from_other_entries_is_not_replaced_by_theirs(caplog: pytest.LogCaptureFixture) -> None:
    """Its state differed from the majority's, so a node rebuilt it, and what only it still had was gone from memory."""

    async def scenario() -> None:
        node, _, _ = a_member(Source())
        node.raft.log.commit_to(1)
        node.parts.driver.take_turn()
        assert node.store.applied_index == 1
        kept = node.store
        node.parts.integrity.investigate(1)
        await until("it knows why", lambda: node.distrusted)
        assert "do not delete it" in (node.distrusted or "")
        await until("it is no quarantine", lambda: node.quarantined is None)
        assert node.store is kept
        assert not node.parts.state.is_wrong
        for _ in range(1000):
            node.raft.tick()
        assert node.raft.role is Role.FOLLOWER
        node.parts.integrity.investigate(1)
        assert node.parts.integrity._task is not None
        assert node.parts.integrity._task.done(), "nothing is investigated any more"
        await node.close()

    running(scenario())
    assert "leaves quarantine: its state is that of its own log" in caplog.text


def test_a_state_that_memory_has_changed_stays_in_quarantine_when_its_node_takes_no_part_any_more() -> None:
    """A sweep has found that memory does not hold what was applied: it is not the state of the node's own log."""

    async def scenario() -> None:
        node, _, _ = a_member(Source())
        node.raft.log.commit_to(1)
        node.parts.driver.take_turn()
        node.parts.state.suspect(7)
        node.parts.integrity.investigate(1)
        await until("it knows why", lambda: node.distrusted)
        task = node.parts.integrity._task
        assert task is not None
        await until("the investigation is over", task.done)
        assert node.quarantined
        assert node.parts.state.is_wrong
        await node.close()

    running(scenario())


def test_a_recovered_cluster_remembers_nothing_of_the_old_one() -> None:
    loaded = Loaded(
        Identity("a", "1", "c"), HardState(1), entries=(FIRST,), marks=(mark(1, "a", 1, 1),), commit_index=1
    )
    _, save = plan(loaded, "data")
    assert (save.marks, save.commit_index) == ((), 0)


def test_what_a_peer_says_is_attributed_to_a_process_only_while_its_stream_is_open() -> None:
    async def scenario() -> None:
        node, _, _ = a_member()
        requests, marks = node.parts.peer_requests, node.raft.marks
        requests.on_connected(greeting("b", start="7"))
        marks.note("b@1", 1, "a@1")
        requests.on_disconnected("b@1")
        marks.note("b@1", 2, "a@1")
        assert requests.marks_of("b@1") == (PeerMark("b@1", "7", 1, "a@1"),)
        await node.close()

    running(scenario())


def test_what_a_node_holds_by_now_does_not_accuse_it_whatever_process_is_said_to_have_held_it() -> None:
    """A call in its name came between, so the leader took what this process acknowledged for that of an earlier one."""

    async def scenario() -> None:
        node, storage, _ = a_member()
        participation = node.parts.participation
        for peer in ("b@1", "c@1"):
            participation.heard(peer, ())
        node.parts.driver.on_messages("b@1", (APPENDS,))
        await asyncio.sleep(0)
        storage.complete()
        assert (node.raft.current_term, node.raft.log.last_index) == (2, 2)
        participation.heard("b@1", [PeerMark("a@1", "another", 2, None, 2, 2)])
        assert node.distrusted is None
        participation.heard("b@1", [PeerMark("a@1", "another", 2, None, 3, 2)])
        assert "once held entry 3" in (node.distrusted or "") or "once in term 2" in (node.distrusted or "")
        await node.close()

    running(scenario())


@pytest.mark.parametrize(
    ("mark", "is_accused"),
    [
        (PeerMark("a@1", "another", 2, "c@1", 2, 2), True),
        (PeerMark("a@1", "another", 3, None, 2, 2), True),
        (PeerMark("a@1", "another", 2, None, 2, 1), True),
    ],
    ids=["another vote in this term", "a later term", "another entry"],
)
def test_what_a_node_does_not_hold_by_now_accuses_it(mark: PeerMark, is_accused: bool) -> None:
    async def scenario() -> None:
        node, storage, _ = a_member()
        for peer in ("b@1", "c@1"):
            node.parts.participation.heard(peer, ())
        node.parts.driver.on_messages("b@1", (APPENDS,))
        await asyncio.sleep(0)
        storage.complete()
        node.parts.participation.heard("b@1", [mark])
        assert (node.distrusted is not None) == is_accused
        await node.close()

    running(scenario())


def test_nodes_save_what_they_remember_after_a_second_of_quiet() -> None:
    config = Config(name="a")
    assert raft_config(config, "a@1").quiet_save_ticks * config.tick_ms == 1000


def test_nodes_campaign_for_terms_that_are_drawn() -> None:
    """A term number that a disk forgot is hardly drawn again, so what is written in it passes for nothing else."""
    assert raft_config(Config(name="a"), "a@1").term_step_max >= 1000


@pytest.mark.parametrize("writes", [2, 4, 8], ids=["fewer writes", "as many writes", "more writes"])
def test_two_histories_in_one_term_are_noticed_and_nothing_is_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, writes: int
) -> None:
    """A term number that a disk forgot was drawn again: entries of both histories have the same index and term."""
    monkeypatch.setattr(compose_module, "TERM_STEP_MAX", 1)

    async def lead(cluster: LocalCluster, leader: str, follower: str) -> ProductNode:
        """Have this node elected in the next term, and nobody else."""
        await cluster.start(follower)
        cluster.nodes[follower].raft.set_unfit(True)
        await cluster.start(leader)
        return await until(
            "it leads", lambda: node if (node := cluster.nodes[leader]).raft.can_change_membership else None
        )

    async def scenario() -> None:
        # A campaign that is repeated, on a busy machine, would be for another term.
        async with cluster_of(tmp_path, size=3, election_timeout_ms=3000) as cluster:
            holder = (await cluster.settled()).identity.name
            old, lagging = (node.identity.name for node in cluster.others(cluster.nodes[holder]))
            await cluster.put(b"before", b"v")
            await cluster.converge()
            # The leader may append once more while nodes stop: the two that are to lead have all that the third has.
            await cluster.stop(old, lagging, holder)
            await asyncio.to_thread(shutil.copytree, tmp_path / old, tmp_path / "copy")

            leader = await lead(cluster, holder, old)
            term = leader.raft.current_term
            for number in range(4):
                await leader.propose(Put(b"k%d" % number, b"v"), TIMEOUT_MS)
            await cluster.stop(old, holder)
            await asyncio.to_thread(shutil.rmtree, tmp_path / old)
            await asyncio.to_thread(shutil.copytree, tmp_path / "copy", tmp_path / old)
            leader = await lead(cluster, lagging, old)
            assert leader.raft.current_term == term, "the test shows nothing"
            for number in range(writes):
                await leader.propose(Put(b"other%d" % number, b"v"), TIMEOUT_MS)

            await cluster.start(holder)
            node = cluster.nodes[holder]
            await until("it is found", lambda: node.distrusted)
            assert "do not delete it" in (node.distrusted or "")
            assert all(node.store.get(b"k%d" % number) for number in range(3))

    running(scenario())
    assert "enters quarantine" not in caplog.text
