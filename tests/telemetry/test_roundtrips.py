"""Round trips are measured from heartbeat to answer, and never against another heartbeat."""

from __future__ import annotations

import pytest

from kvorum.node.roundtrips import OUTSTANDING_MAX, RoundTrips
from kvorum.raft.messages import Heartbeat, HeartbeatResponse
from kvorum.telemetry.counters import Counters

PEER = "n2@0123456789abcdef"


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def boottime(self) -> float:
        raise AssertionError

    def wall_ms(self) -> int:
        raise AssertionError


@pytest.fixture
def clock() -> Clock:
    return Clock()


def heartbeat(number: int, recipient: str = PEER) -> Heartbeat:
    return Heartbeat(term=1, sender="n1@0", recipient=recipient, commit_index=0, round=number)


def answer(number: int, sender: str = PEER) -> HeartbeatResponse:
    return HeartbeatResponse(term=1, sender=sender, recipient="n1@0", round=number)


def measured(counters: Counters) -> list[object]:
    histogram = counters.peer_rtt["n2"]
    return [histogram.count, pytest.approx(histogram.sum)]


def test_an_answer_ends_the_oldest_heartbeat_of_its_round(clock: Clock) -> None:
    counters = Counters()
    counters.keep_peers(["n2", "n3"])
    trips = RoundTrips(counters, clock)
    trips.sent((heartbeat(7),))
    clock.now += 0.1
    trips.sent((heartbeat(7),))
    clock.now += 0.2
    trips.answered(answer(7))
    assert measured(counters) == [1, 0.3]
    clock.now += 0.1
    trips.answered(answer(7))
    assert measured(counters) == [2, 0.6]


def test_heartbeats_of_earlier_rounds_are_given_up(clock: Clock) -> None:
    counters = Counters()
    counters.keep_peers(["n2", "n3"])
    trips = RoundTrips(counters, clock)
    trips.sent((heartbeat(7),))
    clock.now += 5
    trips.sent((heartbeat(8),))
    clock.now += 0.25
    trips.answered(answer(8))
    assert measured(counters) == [1, 0.25]


def test_an_answer_to_nothing_is_not_counted(clock: Clock) -> None:
    counters = Counters()
    counters.keep_peers(["n2", "n3"])
    trips = RoundTrips(counters, clock)
    trips.answered(answer(7))
    trips.sent((heartbeat(8),))
    trips.answered(answer(7))
    trips.answered(answer(9))
    assert counters.peer_rtt["n2"].count == 0


def test_a_broken_stream_takes_its_heartbeats_with_it(clock: Clock) -> None:
    counters = Counters()
    counters.keep_peers(["n2", "n3"])
    trips = RoundTrips(counters, clock)
    trips.sent((heartbeat(7),))
    trips.forget(PEER)
    clock.now += 9
    trips.answered(answer(7))
    assert counters.peer_rtt["n2"].count == 0


def test_a_dropped_message_leaves_no_answer_to_be_matched_wrongly(clock: Clock) -> None:
    counters = Counters()
    counters.keep_peers(["n2", "n3"])
    trips = RoundTrips(counters, clock)
    trips.sent((heartbeat(7),))
    counters.messages_dropped["n2"] += 1
    clock.now += 9
    trips.sent((heartbeat(7),))
    trips.answered(answer(7))
    assert counters.peer_rtt["n2"].count == 0
    clock.now += 1
    trips.sent((heartbeat(7),))
    clock.now += 0.5
    trips.answered(answer(7))
    assert measured(counters) == [1, 0.5]


def test_peers_are_told_apart(clock: Clock) -> None:
    counters = Counters()
    counters.keep_peers(["n2", "n3"])
    trips = RoundTrips(counters, clock)
    trips.sent((heartbeat(7), heartbeat(7, "n3@0")))
    clock.now += 0.5
    trips.answered(answer(7, "n3@0"))
    assert counters.peer_rtt["n3"].count == 1
    assert counters.peer_rtt["n2"].count == 0


def test_what_is_remembered_is_bounded(clock: Clock) -> None:
    trips = RoundTrips(Counters(), Clock())
    for _ in range(10_000):
        trips.sent((heartbeat(7),))
    assert len(trips._outstanding[PEER]) == OUTSTANDING_MAX
