"""What a leader knows of a follower."""

from __future__ import annotations

import pytest

from kvorum.errors import ConfigError
from kvorum.raft import RaftConfig
from kvorum.raft.progress import Progress, ReplicationState


def replicating() -> Progress:
    progress = Progress(5)
    progress.matched(4)
    progress.become_replicate()
    return progress


def test_a_follower_begins_as_unknown() -> None:
    """Figure 2: nextIndex from the leader's log, matchIndex 0."""
    progress = Progress(5)
    assert (progress.next_index, progress.match_index, progress.state) == (5, 0, ReplicationState.PROBE)


def test_what_is_sent_moves_next_index_and_fills_the_window() -> None:
    progress = replicating()
    progress.sent(6, 100)
    progress.sent(7, 50)
    assert (progress.next_index, progress.match_index) == (8, 4)
    assert progress.is_window_full(2, 1000) and progress.is_window_full(10, 150)
    assert not progress.is_window_full(3, 151)


def test_an_answer_covers_everything_up_to_it() -> None:
    progress = replicating()
    for last in (5, 6, 7):
        progress.sent(last, 100)
    assert progress.matched(6) is True
    assert progress.has_inflight() and not progress.is_window_full(2, 101)
    assert progress.matched(7) is True
    assert not progress.has_inflight() and not progress.is_window_full(1, 1)


def test_match_index_never_goes_back() -> None:
    """Figure 2, matchIndex: "increases monotonically". B12."""
    progress = replicating()
    assert progress.matched(3) is False and progress.matched(4) is False
    assert (progress.match_index, progress.next_index) == (4, 5)


def test_an_answer_beyond_what_was_sent_moves_next_index() -> None:
    """A follower that knows more is committed than was sent to it."""
    progress = replicating()
    progress.matched(9)
    assert (progress.match_index, progress.next_index) == (9, 10)


@pytest.mark.parametrize("state", ["probe", "replicate", "snapshot"])
def test_a_new_state_begins_with_an_empty_window(state: str) -> None:
    progress = replicating()
    progress.sent(9, 100)
    progress.probe_sent = True
    progress.ticks_since_offered = 3
    match state:
        case "probe":
            progress.become_probe()
        case "replicate":
            progress.become_replicate()
        case _:
            progress.become_snapshot()
    assert progress.state == state
    assert not progress.has_inflight() and not progress.probe_sent and progress.ticks_since_offered == 0
    if state != "snapshot":
        assert progress.next_index == 5


@pytest.mark.parametrize(("election", "heartbeat"), [(2, 2), (1, 2), (10, 0)])
def test_timeouts_that_could_not_work_are_refused(election: int, heartbeat: int) -> None:
    """5.6: "broadcastTime << electionTimeout"."""
    with pytest.raises(ConfigError):
        RaftConfig("a", election, heartbeat)
    assert RaftConfig("a", 3, 2).election_timeout_ticks == 3


def test_a_window_into_which_nothing_fits_is_refused() -> None:
    """Nothing would ever be replicated, and nobody would say why."""
    for limits in ({"inflight_messages_max": 0}, {"inflight_bytes_max": 0}):
        with pytest.raises(ConfigError):
            RaftConfig("a", **limits)
