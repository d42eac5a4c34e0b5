"""The network as one process has it: who is called, who is answered, and what becomes of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import pytest
from sim.loop import SimLoop
from sim.node import CLUSTER
from sim.peers import SimPeers
from sim.plan import MS, Plan, S
from sim.world import World

from kvorum.errors import PeerError, StorageCorruptError
from kvorum.identity import Identity
from kvorum.kv.features import HIGHEST_LEVEL
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.messages import HeartbeatResponse, Message, NodeId, PeerMark
from kvorum.transport import Greeting, Hello, SnapshotChunk

T = TypeVar("T")


class Peer:
    """A process that only listens and calls: the test's own :class:`~kvorum.transport.interface.NodeHandler`."""

    def __init__(self, net: Net, name: str, cluster_id: str = CLUSTER) -> None:
        self.identity = Identity(name, "1", cluster_id)
        self.start_id = ""
        self.heard: list[str] = []
        self.node = net.world.add_node(self.identity.node_id)
        self.url = self.node.url
        self.peers = self.start()

    def start(self) -> SimPeers:
        """Start a process."""
        if self.node.is_up:
            self.node.crash("the test takes its place")
        self.node.is_off = False
        self.node.loop = loop = SimLoop(self.node.world.clock, on_error=self.node.world.clock.abort)
        self.peers = SimPeers(self.node, loop)
        loop.create_task(self.peers.start(self))
        self.node.world.clock.run_until(self.node.world.clock.now)
        return self.peers

    def kill(self) -> None:
        """End it."""
        self.node.crash("killed")

    def lose_power(self) -> None:
        """Let the machine end without a word."""
        self.node.crash("loses its power", is_off=True)

    # --- The handler ------------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        name, incarnation, cluster_id = self.identity.name, self.identity.incarnation, self.identity.cluster_id
        return Hello(name, incarnation, cluster_id, (), "", self.url, "")

    async def join(self, greeting: Greeting) -> None:
        await asyncio.sleep(0.01)
        self.identity = Identity(self.identity.name, self.identity.incarnation, greeting.cluster_id)
        self.heard.append(f"joins {greeting.cluster_id}")

    def on_messages(self, sender: NodeId, messages: tuple[Message, ...]) -> None:
        self.heard += [f"{sender} says {m.round}" for m in messages if isinstance(m, HeartbeatResponse)]

    def on_connected(self, greeting: Greeting) -> None:
        self.heard.append(f"{greeting.sender} calls")
        self.peers.add_stranger(greeting.sender, greeting.peer_url)

    def on_disconnected(self, sender: NodeId) -> None:
        self.heard.append(f"{sender} hung up")
        self.peers.remove_stranger(sender)

    def on_broken(self, recipient: NodeId) -> None:
        self.heard.append(f"lost {recipient}")

    def on_marks(self, node: NodeId, marks: tuple[PeerMark, ...], address: str) -> None:
        pass

    def marks_of(self, node: NodeId) -> tuple[PeerMark, ...]:
        return ()

    def is_member(self, node: str) -> bool:
        return True

    async def snapshot_chunk(
        self, last_index: int, offset_bytes: int, size_bytes: int, at_least: int | None
    ) -> SnapshotChunk:
        if last_index != 5:
            raise StorageCorruptError("there is no such snapshot")
        await asyncio.sleep(0.1)
        return SnapshotChunk(b"0123456789"[offset_bytes:][:4], 5, 10, "hash")

    def state_hash_at(self, index: int) -> StateDigest | None:
        return StateDigest(1, 77) if index == 5 else None

    def suspect_state(self, index: int) -> None:
        self.heard.append(f"suspects {index}")


class Net:
    """Peers without nodes."""

    def __init__(self) -> None:
        self.world = World(Plan(seed=3, voters=1, latency_us=1 * MS, jitter_us=1))
        self.a, self.b = Peer(self, "a"), Peer(self, "b")

    def wait(self, us: int = 500 * MS) -> None:
        """Let time pass."""
        self.world.clock.run_until(self.world.clock.now + us)

    def connect(self, us: int = 500 * MS) -> None:
        """Let a call b."""
        self.a.peers.set_members({"b@1": self.b.url})
        self.wait(us)

    def say(self, number: int) -> None:
        """Let a say something to b."""
        self.a.peers.send([HeartbeatResponse(term=0, sender="a@1", recipient="b@1", round=number)])

    def ask(self, request: Callable[[], Awaitable[T]], us: int = 500 * MS) -> asyncio.Task[T]:
        """Let a ask something, and give it some time."""

        async def main() -> T:
            return await request()

        assert self.a.node.loop is not None
        task: asyncio.Task[T] = self.a.node.loop.create_task(main())
        self.wait(us)
        return task

    def links(self) -> list[tuple[NodeId, NodeId]]:
        """Both directions between a and b."""
        return [("a@1", "b@1"), ("b@1", "a@1")]


@pytest.fixture
def net() -> Net:
    return Net()


def test_a_member_is_called_and_hears_what_is_said(net: Net) -> None:
    net.say(1)
    net.connect()
    net.say(2)
    net.wait()

    assert net.b.heard == ["a@1 calls", "a@1 says 2"]
    assert net.a.peers.is_connected("b@1")
    assert net.b.peers.is_calling("a@1")


def test_whoever_calls_is_answered_and_forgotten_when_it_hangs_up(net: Net) -> None:
    net.connect()
    assert net.b.peers.url_of("a@1") == net.a.url
    net.b.peers.send([HeartbeatResponse(term=0, sender="b@1", recipient="a@1", round=7)])
    net.wait()
    assert net.a.heard == ["b@1 says 7"], "it is answered on its own stream, and not called"
    net.a.kill()
    net.wait(5 * S)

    assert net.b.heard == ["a@1 calls", "a@1 hung up"]
    assert net.b.peers.url_of("a@1") is None


def test_a_node_without_a_cluster_joins_before_it_hears_anything(net: Net) -> None:
    net.b.identity = Identity("b", "1", "")
    net.connect(5 * MS)
    net.say(1)
    net.wait()
    net.say(2)
    net.wait()

    assert net.b.heard == ["joins sim", "a@1 calls", "a@1 says 2"]


def test_a_node_of_another_cluster_or_incarnation_is_not_spoken_to(net: Net) -> None:
    net.b.identity = Identity("b", "1", "another")
    net.connect()
    net.a.peers.set_members({"b@2": net.b.url})
    net.wait()
    net.say(1)
    net.wait()

    assert net.b.heard == []
    assert net.world.counts["calls refused"] > 2


def test_a_peer_that_dies_is_lost_and_called_again_when_it_is_back(net: Net) -> None:
    net.connect()
    net.b.node.crash("killed")
    net.wait(5 * S)
    net.b.start()
    net.wait(2 * S)
    net.say(1)
    net.wait()

    assert net.a.heard == ["lost b@1"]
    assert net.b.heard == ["a@1 calls", "a@1 calls", "a@1 says 1"]


def test_a_machine_whose_process_does_not_listen_refuses_a_dial_at_once(net: Net) -> None:
    net.b.kill()
    net.connect(40 * MS)
    net.b.start()
    net.wait(300 * MS)

    assert net.b.heard == ["a@1 calls"]
    assert net.world.counts["dials that hung"] == 0


def test_a_dial_hangs_where_nothing_answers_and_ends_after_its_time_out(net: Net) -> None:
    net.b.lose_power()
    net.connect(1900 * MS)
    assert net.world.counts["dials that hung"] == 0
    net.wait(200 * MS)
    assert net.world.counts["dials that hung"] == 1
    net.b.start()
    net.wait(1 * S)

    assert net.b.heard == ["a@1 calls"]


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_dial_is_heard_a_second_later_by_a_machine_that_came_in_time(net: Net, is_cut: bool) -> None:
    if is_cut:
        net.world.network.cut(net.links())
    else:
        net.b.lose_power()
    net.connect(900 * MS)
    if is_cut:
        net.world.network.mend(net.links())
    else:
        net.b.start()
    net.wait(90 * MS)
    assert net.b.heard == []
    net.wait(20 * MS)

    assert net.b.heard == ["a@1 calls"]
    assert net.world.counts["dials that hung"] == 0


def test_a_dial_to_a_paused_process_ends_and_is_not_taken_later(net: Net) -> None:
    net.b.node.pause(net.world.clock.now + 2050 * MS)
    net.connect(2040 * MS)
    assert net.world.counts["dials that hung"] == 1
    assert net.b.heard == []
    net.wait(3 * S)

    assert net.b.heard == ["a@1 calls"]


def test_whoever_is_called_dials_on_for_half_a_second_where_nothing_answers_and_then_elsewhere(net: Net) -> None:
    net.b.peers.set_members({"a@1": "http://nowhere:9001"})
    net.b.peers.set_alternatives("a@1", [net.a.url])
    net.wait(100 * MS)
    net.connect(450 * MS)
    assert net.b.heard == ["a@1 calls"]
    assert not net.b.peers.is_connected("a@1"), "nobody is connected because it was called"
    net.wait(100 * MS)

    assert net.b.peers.is_connected("a@1")


def test_whoever_is_called_waits_for_no_other_dial(net: Net) -> None:
    net.a.kill()
    net.b.peers.set_members({"a@1": net.a.url})
    net.wait(10 * S)
    net.a.start()
    net.connect(10 * MS)

    assert net.b.peers.is_connected("a@1")


def test_a_stream_to_a_machine_without_power_stays_half_open_until_its_ping(net: Net) -> None:
    net.connect()
    net.b.lose_power()
    net.say(1)
    net.wait(12 * S)
    assert net.a.peers.is_connected("b@1")
    net.wait(6 * S)

    assert net.a.heard == ["lost b@1"]
    assert not net.a.peers.is_connected("b@1")


def test_a_stream_of_a_machine_without_power_is_taken_for_open_until_it_was_silent_for_long(net: Net) -> None:
    net.connect()
    net.a.lose_power()
    net.wait(9 * S)
    assert net.b.peers.is_calling("a@1")
    net.wait(5 * S)

    assert net.b.heard == ["a@1 calls", "a@1 hung up"]


def test_a_half_open_stream_carries_nothing_and_breaks_when_the_machine_is_there_again(net: Net) -> None:
    net.connect()
    net.b.lose_power()
    net.wait(3 * S)
    net.b.start()
    assert net.a.peers.is_connected("b@1")
    net.say(1)
    net.wait(10 * MS)
    assert net.a.heard == ["lost b@1"]
    net.wait()
    net.say(2)
    net.wait()

    assert net.b.heard == ["a@1 calls", "a@1 calls", "a@1 says 2"]


def test_a_stream_to_another_start_of_a_process_is_aborted_when_that_calls(net: Net) -> None:
    net.a.start_id = "1"
    net.b.peers.set_members({"a@1": net.a.url})
    net.connect()
    net.a.lose_power()
    net.wait(100 * MS)
    net.a.start_id = "2"
    net.a.start()
    net.connect(10 * MS)

    assert net.b.heard == ["a@1 calls", "a@1 calls", "lost a@1"]
    assert net.world.counts["streams aborted"] == 1
    assert net.b.peers.is_connected("a@1")


def test_what_a_cut_link_closes_is_known_when_it_is_mended(net: Net) -> None:
    net.connect()
    net.world.network.cut(net.links())
    net.b.kill()
    net.wait(5 * S)
    assert net.a.heard == []
    net.world.network.mend(net.links())
    net.wait(3 * S)

    assert net.a.heard == ["lost b@1"]


@pytest.mark.parametrize(("paused_s", "heard"), [(4, []), (20, ["lost b@1"])])
def test_a_paused_process_keeps_its_streams_for_as_long_as_a_ping_waits(
    net: Net, paused_s: int, heard: list[str]
) -> None:
    net.connect()
    net.b.node.pause(net.world.clock.now + paused_s * S)
    net.wait(25 * S)

    assert net.a.heard == heard
    assert net.a.peers.is_connected("b@1")


def test_a_peer_that_stops_reading_reads_everything_later(net: Net) -> None:
    net.connect()
    net.world.network.hold("b@1", net.world.clock.now + 300 * MS)
    for number in range(3):
        net.say(number)
    net.wait(200 * MS)
    assert net.b.heard == ["a@1 calls"]
    net.wait(200 * MS)

    assert net.b.heard == ["a@1 calls", "a@1 says 0", "a@1 says 1", "a@1 says 2"]


def test_a_paused_peer_answers_when_it_goes_on(net: Net) -> None:
    net.b.node.pause(net.world.clock.now + 300 * MS)
    task = net.ask(lambda: net.a.peers.hello(net.b.url), 200 * MS)
    assert not task.done()
    net.wait(200 * MS)

    assert task.result().node_id == "b@1"


def test_requests_are_answered(net: Net) -> None:
    net.connect()

    announced = msgspec.structs.replace(net.b.hello(), levels=(1, HIGHEST_LEVEL), version=f"level {HIGHEST_LEVEL}")
    assert net.ask(lambda: net.a.peers.hello(net.b.url)).result() == announced
    assert net.ask(lambda: net.a.peers.state_hash("b@1", 5)).result() == StateDigest(1, 77)
    assert net.ask(lambda: net.a.peers.state_hash("b@1", 6)).result() is None
    assert net.ask(lambda: net.a.peers.snapshot_chunk("b@1", 5, 4)).result().data == b"4567"
    net.ask(lambda: net.a.peers.suspect("b@1", 5)).result()
    assert net.b.heard[-1] == "suspects 5"


def test_a_request_fails_where_nobody_can_answer(net: Net) -> None:
    net.connect()
    unknown = net.ask(lambda: net.a.peers.suspect("z@1", 5), 5 * S)
    refused = net.ask(lambda: net.a.peers.snapshot_chunk("b@1", 6, 0), 5 * S)
    dead = net.ask(lambda: net.a.peers.snapshot_chunk("b@1", 5, 0), 50 * MS)
    net.b.kill()
    net.wait(5 * S)
    nobody = net.ask(lambda: net.a.peers.hello(net.b.url), 5 * S)

    for task in (unknown, refused, dead, nobody):
        with pytest.raises(PeerError):
            task.result()


def test_a_request_through_a_partition_fails(net: Net) -> None:
    net.connect()
    net.world.network.cut(net.links())
    task = net.ask(lambda: net.a.peers.hello(net.b.url), 5 * S)

    with pytest.raises(PeerError):
        task.result()


def test_a_fetch_can_be_cut_behind_every_other_piece(net: Net) -> None:
    net.connect()
    net.a.node.cut_fetches_until = net.world.clock.now + 60 * S
    pieces = [net.ask(lambda: net.a.peers.snapshot_chunk("b@1", 5, 0), 5 * S) for _ in range(4)]

    assert [task.exception() is None for task in pieces] == [False, True, False, True]
