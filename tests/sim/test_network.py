"""The simulated network does to messages what its plan says, and the nemesis cuts the links that a fault names."""

from __future__ import annotations

from itertools import pairwise

from sim.clock import Clock
from sim.nemesis import Nemesis
from sim.network import Network
from sim.plan import MS, Fault, Plan, S
from sim.world import World

from kvorum.raft.messages import HeartbeatResponse, Message

COUNT = 2_000


def arrivals(plan: Plan) -> list[int]:
    """Send numbered messages a millisecond apart; return the numbers in the order in which they arrive."""
    clock, arrived = Clock(), list[Message]()
    network = Network(plan, clock, arrived.extend)
    for number in range(COUNT):
        message = HeartbeatResponse(term=1, sender="a", recipient="b", round=number)
        clock.after(number * 1000, network.send, (message,))
    clock.run_until(60 * S)
    return [message.round for message in arrived if isinstance(message, HeartbeatResponse)]


def test_a_network_without_faults_delivers_each_message_once_in_order() -> None:
    assert arrivals(Plan(seed=1, latency_us=500, jitter_us=1)) == list(range(COUNT))


def test_messages_are_dropped_at_the_rate_of_the_plan() -> None:
    assert 0.80 * COUNT < len(arrivals(Plan(seed=1, jitter_us=1, drop_per_mille=150))) < 0.90 * COUNT


def test_messages_are_doubled_at_the_rate_of_the_plan() -> None:
    numbers = arrivals(Plan(seed=1, jitter_us=1, duplicate_per_mille=100))

    assert set(numbers) == set(range(COUNT))
    assert 1.05 * COUNT < len(numbers) < 1.15 * COUNT


def test_messages_overtake_each_other() -> None:
    numbers = arrivals(Plan(seed=1, latency_us=500, jitter_us=10_000))

    assert sorted(numbers) == list(range(COUNT))
    assert sum(later < earlier for earlier, later in pairwise(numbers)) > COUNT // 4


def test_a_frame_arrives_as_a_whole_but_for_what_is_lost_or_late() -> None:
    frame = tuple(HeartbeatResponse(term=1, sender="a", recipient="b", round=number) for number in range(COUNT))
    for plan, whole in ((Plan(seed=1), COUNT), (Plan(seed=1, drop_per_mille=500, slow_per_mille=100, slow_us=S), 900)):
        clock, arrived = Clock(), list[tuple[Message, ...]]()
        network = Network(plan, clock, arrived.append)
        network.send(frame)
        clock.run_until(60 * S)

        assert abs(max(len(each) for each in arrived) - whole) < 100
        assert len(arrived) == 1 or {len(each) for each in arrived[1:]} == {1}


def test_a_slow_message_comes_seconds_later() -> None:
    numbers = arrivals(Plan(seed=1, jitter_us=1, slow_per_mille=30, slow_us=3 * S))

    assert sorted(numbers) == list(range(COUNT))
    assert max(place - number for place, number in enumerate(numbers)) > 0
    assert max(abs(place - number) for place, number in enumerate(numbers)) > 500


def cut(kind: str, argument: int = 0) -> set[tuple[str, str]]:
    """Return the directions of links that a fault at n3 of five nodes cuts."""
    world = World(Plan(seed=1, voters=5, faults=(Fault(100 * MS, kind, target=2, duration_us=S, argument=argument),)))
    Nemesis(world)
    world.clock.run_until(100 * MS)
    links = {(a, b) for a in world.nodes for b in world.nodes if world.network.is_cut(a, b)}
    world.clock.run_until(2 * S)
    assert not any(world.network.is_cut(a, b) for a in world.nodes for b in world.nodes), "it ends by itself"
    world.close()
    return {(a[:2], b[:2]) for a, b in links}


def test_an_isolated_node_neither_hears_nor_is_heard() -> None:
    others = ("n1", "n2", "n4", "n5")
    assert cut("isolate") == {("n3", other) for other in others} | {(other, "n3") for other in others}


def test_a_one_way_partition_makes_a_node_deaf_or_mute() -> None:
    others = ("n1", "n2", "n4", "n5")
    assert cut("one_way", argument=0) == {(other, "n3") for other in others}
    assert cut("one_way", argument=1) == {("n3", other) for other in others}


def test_a_bridge_is_the_only_way_between_two_halves() -> None:
    halves = [(a, b) for a in ("n1", "n2") for b in ("n4", "n5")]
    assert cut("bridge") == {*halves, *((b, a) for a, b in halves)}


def test_a_split_makes_two_sides() -> None:
    side, other = ("n1", "n2"), ("n3", "n4", "n5")
    assert cut("split", argument=0b00011) == {(a, b) for a in side for b in other} | {
        (b, a) for a in side for b in other
    }


def test_a_cut_is_remembered_when_it_is_mended() -> None:
    network = World(Plan(seed=1)).network
    network.cut([("n1", "n2"), ("n1", "n2")])
    network.mend([("n1", "n2")])
    assert network.was_cut("n2", 5)
    network.mend([("n1", "n2")])

    assert network.was_cut("n2", 0)
    assert not network.was_cut("n2", 5)
    assert not network.was_cut("n3", 0)
