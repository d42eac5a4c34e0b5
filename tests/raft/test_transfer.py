"""Leadership transfer: thesis 3.10."""

from __future__ import annotations

import pytest
from raft.harness import (
    ELECTION,
    HEARTBEAT,
    NOTHING,
    Cluster,
    Server,
    append,
    appended,
    command,
    follower,
    heard,
    heartbeat,
    leader,
    log,
    noop,
    request_vote,
    saves,
    timeout_now,
    vote,
)

from kvorum.errors import NotLeaderError, OverloadedError, TransferFailedError
from kvorum.raft import Role
from kvorum.raft.messages import Ready


def test_a_target_that_is_caught_up_is_told_to_campaign_at_once() -> None:
    """3.10, step 3: "The prior leader sends a TimeoutNow request to the target server"."""
    server = leader("1", term=2, matched="bc")
    assert server.raft.transfer_leadership("c") == "c"
    assert server.ready() == Ready(messages=(timeout_now("a", "c", 2),))
    assert server.raft.is_transferring
    assert server.raft.status().transfer_target == "c"


def test_a_target_that_is_behind_is_brought_up_to_date_first() -> None:
    """3.10, step 2: "fully updates the target server's log to match its own log"."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x", b"y"])
    server.drain()
    server.raft.transfer_leadership("c")
    assert server.ready() == NOTHING
    assert timeout_now("a", "c", 2) not in server.drain(appended("c", "a", 2, 3))
    assert server.raft.is_transferring
    ready = server.take(appended("c", "a", 2, 4))
    assert timeout_now("a", "c", 2) in ready.messages


def test_writes_are_held_while_the_leadership_moves() -> None:
    """3.10, step 1: "The prior leader stops accepting new client requests". B9."""
    server = leader("1", term=2, matched="bc")
    server.raft.transfer_leadership("b")
    with pytest.raises(OverloadedError):
        server.raft.propose([b"x"])
    assert server.terms() == "12"


def test_the_most_caught_up_voter_is_chosen() -> None:
    """The one that needs the least; never a learner, never one that is silent."""
    server = leader("1", term=2, voters="abcd", learners="e", matched="bcde")
    server.raft.propose([b"x", b"y"])
    server.drain()
    server.drain(appended("e", "a", 2, 4), appended("b", "a", 2, 3))
    for _ in range(ELECTION):
        server.raft.tick()
        server.drain(heard("c", "a", 2), heard("d", "a", 2))
    server.drain(appended("d", "a", 2, 3))
    assert server.raft.transfer_leadership() == "d"


def test_the_candidate_is_the_most_caught_up_of_the_eligible_voters() -> None:
    server = leader("1", term=2, voters="abc", matched="bc")
    server.raft.propose([b"x"])
    server.drain()
    server.drain(appended("b", "a", 2, 3))
    assert server.raft.transfer_candidate(lambda _: True) == "b"
    assert server.raft.transfer_candidate(lambda node: node != "b") == "c"
    assert server.raft.transfer_candidate(lambda _: False) is None
    assert follower("1").raft.transfer_candidate(lambda _: True) is None


@pytest.mark.parametrize("target", ["a", "d", "x"])
def test_only_another_voter_can_be_the_target(target: str) -> None:
    """Not this server itself, not a learner, not a stranger."""
    server = leader("1", term=2, matched="bcd", learners="d")
    with pytest.raises(TransferFailedError):
        server.raft.transfer_leadership(target)
    assert not server.raft.is_transferring


def test_without_another_live_voter_there_is_no_transfer() -> None:
    server = follower("1", voters="a", learners="d")
    server.tick(ELECTION)
    server.drain()
    with pytest.raises(TransferFailedError):
        server.raft.transfer_leadership()


def test_a_target_that_does_not_answer_is_refused_and_holds_up_no_write() -> None:
    """Else every write would wait an election timeout for a server that is down. B9."""
    server = leader("1", term=2, matched="bc")
    for _ in range(ELECTION):
        server.raft.tick()
        server.drain(heard("b", "a", 2))
    with pytest.raises(TransferFailedError):
        server.raft.transfer_leadership("c")
    assert not server.raft.is_transferring
    assert server.raft.propose([b"x"]) == (3, 2)


def test_only_a_leader_hands_over() -> None:
    with pytest.raises(NotLeaderError):
        follower("1", leader="b").raft.transfer_leadership("c")


def test_the_target_campaigns_at_once_and_without_a_pre_vote() -> None:
    """3.10, step 3: "as if the target server's election timer had fired"; 4.2.3: it says so, because of the lease."""
    server = follower("1", leader="b")
    asks = tuple(request_vote("a", node, 2, (1, 1), transfer=True) for node in "bc")
    assert server.take(timeout_now("b", "a", 1)) == Ready(save=saves(2, "a"), messages_after_save=asks)
    assert server.role() is Role.CANDIDATE


def test_the_old_leader_votes_for_the_target() -> None:
    """3.10: "once the target server ... becomes leader"; the prior leader's own lease does not hold it up."""
    server = leader("1", term=2, matched="bc")
    server.raft.transfer_leadership("b")
    server.drain()
    ready = server.take(request_vote("b", "a", 3, (2, 2), transfer=True))
    assert ready == Ready(save=saves(3, "b"), messages_after_save=(vote("a", "b", 3),))
    assert (server.role(), server.raft.is_transferring) == (Role.FOLLOWER, False)


def test_a_target_with_a_shorter_log_is_not_elected() -> None:
    """5.4.1 holds for it as for any other: nothing committed is lost. B9."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    server.drain()
    ready = server.take(request_vote("b", "a", 3, (2, 2), transfer=True))
    assert ready == Ready(save=saves(3, None), messages_after_save=(vote("a", "b", 3, granted=False),))


def test_a_transfer_that_takes_an_election_timeout_is_given_up() -> None:
    """3.10: "If leadership transfer does not complete after about an election timeout, the prior leader aborts"."""
    server = leader("1", term=2, matched="bc")
    server.raft.transfer_leadership("b")
    for tick in range(ELECTION):
        assert server.raft.is_transferring, tick
        server.raft.tick()
        server.drain(heard("b", "a", 2), heard("c", "a", 2))
    assert not server.raft.is_transferring
    assert server.raft.propose([b"x"]) == (3, 2)


def test_a_second_target_replaces_the_first() -> None:
    """And has a whole election timeout of its own."""
    server = leader("1", term=2, matched="bc")
    server.raft.transfer_leadership("b")
    for _ in range(ELECTION - 1):
        server.raft.tick()
        server.drain(heard("b", "a", 2), heard("c", "a", 2))
    server.raft.transfer_leadership("c")
    assert timeout_now("a", "c", 2) in server.ready().messages
    server.raft.tick()
    assert server.raft.status().transfer_target == "c"


def test_a_late_timeout_now_of_an_old_term_is_ignored() -> None:
    """B9: the transfer of a leader that is gone."""
    server = follower("1", term=3, leader="b")
    assert server.take(timeout_now("c", "a", 2)) == NOTHING
    assert server.role() is Role.FOLLOWER


def test_a_timeout_now_of_a_higher_term_is_obeyed_in_a_term_above_it() -> None:
    """5.1 and 3.10: the sender led that term."""
    server = follower("1", term=1)
    ready = server.take(timeout_now("b", "a", 4))
    assert ready.save == saves(5, "a")


def test_a_leader_ignores_timeout_now() -> None:
    server = leader("1", term=2, matched="bc")
    assert server.take(timeout_now("b", "a", 2)) == NOTHING
    assert server.role() is Role.LEADER


def test_a_transfer_moves_the_leadership_and_loses_no_write() -> None:
    """3.10 end to end, with a write in flight."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster["a"].raft.propose([b"x"])
    cluster["a"].raft.transfer_leadership("c")
    cluster.run()
    assert [cluster[node].role() for node in "abc"] == [Role.FOLLOWER, Role.FOLLOWER, Role.LEADER]
    assert cluster["c"].terms() == "1223"
    cluster.tick(2 * HEARTBEAT)
    assert cluster.applied["a"] == cluster.applied["b"] == cluster.applied["c"]
    assert len(cluster.applied["c"]) == 4


def test_reads_are_refused_when_the_leadership_has_moved() -> None:
    """6.4: they are asked again, of the new leader."""
    server = leader("1", term=2, matched="bc")
    server.raft.transfer_leadership("b")
    server.raft.read_index(7)
    server.ready()
    assert server.take(request_vote("b", "a", 3, (2, 2), transfer=True)).reads_refused == (7,)


def test_a_follower_keeps_its_log_when_the_leadership_moves() -> None:
    """5.3: the new leader's entries follow the old one's."""
    server = follower("1", leader="b")
    server.drain(append("b", "a", 1, (1, 1), [command(2, 1)]))
    server.drain(heartbeat("c", "a", 2))
    server.drain(append("c", "a", 2, (2, 1), [noop(3, 2)]))
    assert server.terms() == "112"
