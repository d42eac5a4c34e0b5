"""Figure 2, persistent state; what may leave before a save and what may not (bugs B1 to B3, B13, B16)."""

from __future__ import annotations

import pytest
from raft.harness import (
    ELECTION,
    HEARTBEAT,
    NOTHING,
    Server,
    append,
    appended,
    candidate,
    command,
    commands,
    follower,
    heard,
    heartbeat,
    leader,
    log,
    noop,
    pre_candidate,
    pre_vote,
    request_pre_vote,
    request_vote,
    saves,
    vote,
)

from kvorum.errors import InvariantViolatedError
from kvorum.raft import Role
from kvorum.raft.messages import Entry, HardState, Ready


def test_a_vote_is_durable_before_it_is_sent() -> None:
    """Figure 2, votedFor: "Updated on stable storage before responding to RPCs". B1, B3; the seed's own bug."""
    server = follower("1")
    ready = server.take(request_vote("b", "a", 2, (1, 1)))
    assert ready == Ready(save=saves(2, "b"), messages_after_save=(vote("a", "b", 2),))
    assert server.save() == (vote("a", "b", 2),)
    assert server.disk_hard_state == HardState(2, "b")


def test_a_vote_survives_a_restart() -> None:
    """B1: "at most one candidate in a given term", whatever crashes."""
    server = follower("1")
    server.drain(request_vote("b", "a", 2, (1, 1)))
    server.crash()
    assert server.take(request_vote("c", "a", 2, (9, 1))) == Ready(messages=(vote("a", "c", 2, granted=False),))


def test_a_vote_that_was_not_saved_was_never_sent() -> None:
    """B1, B3, the other side: after a crash in the save another may be voted for."""
    server = follower("1")
    server.take(request_vote("b", "a", 2, (1, 1)))
    server.crash()
    assert server.take(request_vote("c", "a", 2, (1, 1))).messages_after_save == (vote("a", "c", 2),)


def test_a_term_and_its_vote_are_one_save() -> None:
    """B2: between two writes, a crash would leave the new term with the old vote."""
    server = follower("1", term=5, voted_for="c")
    assert server.take(request_vote("b", "a", 6, (1, 1))).save == saves(6, "b")
    assert server.drain() == (vote("a", "b", 6),)


def test_a_new_term_has_no_vote_yet() -> None:
    """Figure 2, votedFor: "candidateId that received vote in current term (or null if none)"."""
    server = follower("1", term=5, voted_for="c")
    assert server.take(heartbeat("b", "a", 6)).save == saves(6, None)


def test_a_refusal_that_carries_a_new_term_waits_for_its_save() -> None:
    """B3: a refusal reveals the term too; forgotten, the server would vote in a term that it had left."""
    server = follower("12")
    ready = server.take(request_vote("b", "a", 3, (1, 1)))
    assert ready == Ready(save=saves(3, None), messages_after_save=(vote("a", "b", 3, granted=False),))


def test_a_candidates_requests_wait_for_its_own_vote() -> None:
    """B1: it might otherwise be elected, crash, and vote for another in the same term."""
    server = pre_candidate("1")
    ready = server.take(pre_vote("b", "a", 2))
    assert ready.save == saves(2, "a")
    assert ready.messages == ()
    assert ready.messages_after_save == (request_vote("a", "b", 2, (1, 1)), request_vote("a", "c", 2, (1, 1)))


def test_a_pre_vote_waits_for_nothing() -> None:
    """Thesis 9.6: it reveals nothing that must be remembered."""
    server = follower("1", term=1)
    assert server.take(request_pre_vote("b", "a", 2, (1, 1))).messages == (pre_vote("a", "b", 2),)


def test_a_leaders_append_entries_do_not_wait_for_its_disk() -> None:
    """Thesis 10.2.1; and heartbeats and the answers to them never wait for entries."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    assert len(server.ready().messages) == 2
    assert server.tick(HEARTBEAT).messages == (heartbeat("a", "b", 2, 2), heartbeat("a", "c", 2, 2))
    other = follower("1", leader="b")
    other.take(append("b", "a", 1, (1, 1), [command(2, 1)]))
    assert other.take(heartbeat("b", "a", 1, round=3)) == Ready(messages=(heard("a", "b", 1, 3),))


def test_one_save_is_in_flight_and_the_next_takes_all_that_came_meanwhile() -> None:
    """Group commit: one fsync for everything that was asked while the disk was busy."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    first = server.ready()
    assert first.save is not None
    server.raft.propose([b"y"])
    server.raft.propose([b"z"])
    assert server.ready().save is None
    server.save()
    second = server.ready()
    assert second.save is not None
    assert [entry.data for entry in second.save.entries] == [b"y", b"z"]


def test_a_message_held_for_a_save_leaves_with_a_later_one() -> None:
    """A vote given while an older save is in flight is not in that save."""
    server = follower("1", leader="b")
    server.take(append("b", "a", 1, (1, 1), [command(2, 1)]))
    server.raft.step(request_vote("c", "a", 2, (2, 1), transfer=True))
    assert server.ready() == NOTHING
    assert server.save() == (appended("a", "b", 1, 2),)
    assert server.ready() == Ready(save=saves(2, "c"), messages_after_save=(vote("a", "c", 2),))


def test_an_acknowledged_entry_that_is_replaced_before_its_save_is_never_counted_as_saved() -> None:
    """B13, B16: the save in flight holds the old entries; what replaced them needs its own."""
    server = follower("1", leader="b")
    server.take(append("b", "a", 1, (1, 1), commands(2, "111")))
    new = commands(2, "22")
    server.raft.step(append("c", "a", 2, (1, 1), new, commit=3))
    assert server.ready().committed == log("1")
    server.save()
    assert server.raft.log.saved_index == 1
    assert server.ready() == Ready(save=saves(2, None, new), messages_after_save=(appended("a", "c", 2, 3),))
    server.save()
    assert server.ready() == Ready(committed=new)
    server.crash()
    assert server.terms() == "122"


def test_an_answer_of_an_older_term_that_still_waits_for_a_save_never_leaves() -> None:
    """B3, B13: it would leave after a save in which a newer leader has replaced what it acknowledges (seed 1025)."""
    server = follower("1", leader="b")
    server.take(append("b", "a", 1, (1, 1), commands(2, "1")))
    assert server.take(append("b", "a", 1, (2, 1), commands(3, "1"))) == NOTHING
    new = commands(2, "2")
    assert server.take(append("c", "a", 2, (1, 1), new)) == NOTHING
    assert server.save() == (appended("a", "b", 1, 2),)
    assert server.ready() == Ready(save=saves(2, None, new), messages_after_save=(appended("a", "c", 2, 2),))
    assert server.save() == (appended("a", "c", 2, 2),)


def test_a_save_is_acknowledged_once_and_by_its_number() -> None:
    """A driver that mixes up its saves would let messages go too early."""
    server = follower("1")
    server.raft.step(heartbeat("b", "a", 2))
    ready = server.raft.ready()
    assert ready is not None and ready.save is not None
    assert (ready.save.number, ready.save.hard_state, ready.save.entries) == (1, HardState(2, None), ())
    for number in (0, 2):
        with pytest.raises(InvariantViolatedError):
            server.raft.saved(number)
    server.raft.saved(1)
    with pytest.raises(InvariantViolatedError):
        server.raft.saved(1)
    server.raft.step(heartbeat("b", "a", 3))
    ready = server.raft.ready()
    assert ready is not None and ready.save is not None
    assert (ready.save.number, ready.save.hard_state, ready.save.entries) == (2, HardState(3, None), ())


def test_everything_is_handed_over_exactly_once() -> None:
    """The contract of Ready."""
    server = follower("111", leader="b")
    assert server.take(heartbeat("b", "a", 1, commit=3)) != NOTHING
    assert server.ready() == NOTHING
    assert server.raft.ready() is None


def test_a_restart_loses_nothing_that_was_saved() -> None:
    """Figure 2: currentTerm, votedFor, log[] are persistent; commitIndex and lastApplied are not."""
    server = leader("12", term=3, matched="b")
    assert server.raft.log.commit_index == 3
    server.crash()
    assert (server.raft.current_term, server.raft.status().voted_for, server.terms()) == (3, "a", "123")
    assert (server.role(), server.raft.log.commit_index, server.raft.log.applied_index) == (Role.FOLLOWER, 0, 0)


def test_a_leader_that_restarts_does_not_lead_its_term_again() -> None:
    """B1: it might append another entry at an index and term that it has used, and not saved."""
    server = leader("1", term=2)
    server.raft.propose([b"x"])
    server.ready()
    server.crash()
    assert server.take(vote("b", "a", 2), vote("c", "a", 2)) == NOTHING
    server.drain(request_pre_vote("b", "a", 3, (9, 9)))
    server.tick(ELECTION)
    server.drain(pre_vote("b", "a", 3))
    assert server.raft.current_term == 3


def test_a_gap_in_the_durable_log_is_an_invariant_violation() -> None:
    """B34: the storage must never hand over such a log; a server that starts with one would repair nothing."""
    with pytest.raises(InvariantViolatedError):
        Server((log("111")[0], log("111")[2]), term=1)


def test_a_log_that_is_ahead_of_its_term_is_an_invariant_violation() -> None:
    """B34: the term was lost, and with it a vote."""
    with pytest.raises(InvariantViolatedError):
        Server(log("1123"), term=2)
    with pytest.raises(InvariantViolatedError):
        Server(log("1121"), term=2)


def test_a_configuration_that_does_not_decode_is_an_invariant_violation() -> None:
    """It passed every checksum, so it was written so."""
    for data in (b"", b"\xc1", b"\x91\x91\x94\xa1\xff\xc3\xa0\xa0"):
        entry = Entry(1, 1, log("1")[0].kind, data)
        with pytest.raises(InvariantViolatedError):
            Server([entry], term=1)


def test_a_single_servers_first_message_waits_for_its_vote() -> None:
    """B3: a cluster of one with a learner leads at once, before its own vote is durable."""
    server = follower("1", voters="a", learners="d")
    ready = server.tick(ELECTION)
    assert ready == Ready(
        save=saves(2, "a", [noop(2, 2)]),
        messages_after_save=(heartbeat("a", "d", 2), append("a", "d", 2, (1, 1), [noop(2, 2)])),
    )


def test_a_vote_that_arrives_before_the_candidates_own_is_durable_cannot_elect() -> None:
    """B1: no honest voter can answer a request that has not left; a late answer of another term is ignored."""
    server = candidate("1", term=2)
    assert server.disk_hard_state == HardState(2, "a")
