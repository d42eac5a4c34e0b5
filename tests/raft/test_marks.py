"""What servers remember of each other's disks, and what a record's commit index protects (docs/decisions/0012)."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from raft.harness import (
    ELECTION,
    HEARTBEAT,
    Server,
    append,
    appended,
    candidate,
    command,
    commands,
    configuration,
    follower,
    heartbeat,
    install,
    installed,
    leader,
    log,
    pre_vote,
    vote,
)

from kvorum.errors import CommitsLostError, DiskSetBackError
from kvorum.raft import Raft, RaftConfig, Role
from kvorum.raft.marks import STARTS_MAX, PeerMarks
from kvorum.raft.messages import HISTORY_TERMS_MAX, AppendEntries, HardState, Heartbeat, PeerMark, Snapshot
from kvorum.raft.state import QUIET_SAVE_BYTES


def heard_from(server: Server) -> Server:
    """Know by which start of their processes the others speak; what they said before is not remembered."""
    for node in "bcx":
        server.raft.marks.started(node, "1")
    return server


def marks_of(server: Server, node: str) -> tuple[PeerMark, ...]:
    return server.raft.marks.of(node)


# --- What is remembered ---------------------------------------------------------------------------------------------


def test_a_leader_remembers_what_its_followers_acknowledged() -> None:
    server = heard_from(leader("11", term=2))
    server.take(appended("b", "a", 2, 2))
    assert marks_of(server, "b") == (PeerMark("b", "1", 2, None, 2, 1),)
    server.take(appended("b", "a", 2, 3))
    assert marks_of(server, "b") == (PeerMark("b", "1", 2, None, 3, 2),)
    server.take(appended("b", "a", 2, 2))
    assert marks_of(server, "b") == (PeerMark("b", "1", 2, None, 3, 2),)


def test_an_acknowledgement_of_what_was_never_sent_is_not_remembered() -> None:
    server = heard_from(leader("11", term=2))
    server.take(appended("b", "a", 2, 99))
    assert all(mark.index == 0 for mark in marks_of(server, "b"))


def test_a_candidate_remembers_a_vote_and_no_pre_vote_or_refusal() -> None:
    server = heard_from(candidate("1", term=2))
    server.drain(vote("b", "a", 2, granted=False), pre_vote("b", "a", 2), pre_vote("b", "a", 3))
    assert marks_of(server, "b") == ()
    server.drain(vote("c", "a", 2))
    assert marks_of(server, "c") == (PeerMark("c", "1", 2, "a"),)
    server.drain(vote("x", "a", 2))
    assert marks_of(server, "x") == (), "a stranger's name takes no memory"


def test_a_vote_that_comes_after_the_election_is_remembered_too() -> None:
    server = heard_from(leader("1", term=2, voters="abc"))
    server.drain(vote("c", "a", 2))
    assert marks_of(server, "c")[-1].vote == "a"


def test_a_follower_remembers_what_its_leader_saved_as_far_as_both_logs_are_equal() -> None:
    server = heard_from(follower("1", term=2, leader="b"))
    entries = commands(2, "22")
    message = append("b", "a", 2, (1, 1), entries)
    server.drain(_saying(message, saved_index=2))
    assert marks_of(server, "b") == (PeerMark("b", "1", 2, "b", 2, 2),)
    server.drain(_saying(append("b", "a", 2, (3, 2), [command(4, 2)]), saved_index=99))
    assert marks_of(server, "b") == (PeerMark("b", "1", 2, "b", 4, 2),)


def test_an_idle_leader_says_in_its_heartbeats_what_it_saved() -> None:
    server = leader("1", term=2, voters="abc", matched="bc")
    server.raft.tick()
    server.raft.tick()
    ready = server.raft.ready()
    assert ready is not None
    beats = [message for message in ready.messages if isinstance(message, Heartbeat)]
    assert {beat.saved_index for beat in beats} == {server.raft.log.saved_index} != {0}

    other = heard_from(follower("12", term=2, leader="b"))
    other.drain(_saying(heartbeat("b", "a", 2, commit=1), saved_index=2))
    assert marks_of(other, "b") == (PeerMark("b", "1", 2, "b", 1, 1),), "beyond the commit index logs may differ"


def test_appends_say_what_the_leader_saved() -> None:
    server = leader("1", term=2, voters="abc", matched="bc")
    server.raft.propose([b"x"])
    ready = server.raft.ready()
    assert ready is not None
    saved = {message.saved_index for message in ready.messages if isinstance(message, AppendEntries)}
    assert saved == {server.raft.log.saved_index}


def test_a_follower_that_took_a_snapshot_is_remembered_to_hold_it() -> None:
    server = heard_from(leader("1222", term=3))
    server.take(installed("b", "a", 3, 3))
    assert marks_of(server, "b")[-1].index == 3


# --- How it is kept -------------------------------------------------------------------------------------------------


def test_of_each_server_the_highest_term_counts_with_its_vote_and_last_entry() -> None:
    marks = PeerMarks()
    marks.started("b", "1")
    marks.note("b", 3, "a")
    marks.note("b", 3, None, 7, 2)
    marks.note("b", 3, None, 5, 2)
    marks.note("b", 2, "c", 9, 2)
    assert marks.of("b") == (PeerMark("b", "1", 3, "a", 7, 2),)
    marks.note("b", 4, None, 1, 1)
    assert marks.of("b") == (PeerMark("b", "1", 4, None, 1, 1),)


def test_an_entry_whose_term_is_compacted_away_is_not_remembered() -> None:
    marks = PeerMarks()
    marks.started("b", "1")
    marks.note("b", 3, None, 7, None)
    assert marks.of("b") == (PeerMark("b", "1", 3),)


def test_what_is_said_by_nobody_knows_which_process_is_not_remembered() -> None:
    """Who is called, and does not call, answers without a greeting. It may be the process that is told of it later."""
    marks = PeerMarks()
    marks.note("b", 3, "a", 7, 3)
    marks.started("b", "")
    marks.note("b", 3, "a", 7, 3)
    assert marks.of("b") == ()
    marks.started("b", "1")
    marks.note("b", 3, None, 7, 3)
    marks.ended("b")
    marks.note("b", 3, None, 8, 3)
    assert marks.of("b") == (PeerMark("b", "1", 3, None, 7, 3),)


def test_what_a_process_said_is_kept_apart_from_what_those_before_it_said() -> None:
    """Whoever starts compares its disk at its start with what the processes before it said."""
    marks = PeerMarks()
    marks.started("b", "1a")
    marks.note("b", 3, None, 7, 3)
    marks.started("b", "1a")
    marks.note("b", 3, None, 8, 3)
    assert marks.of("b") == (PeerMark("b", "1a", 3, None, 8, 3),)
    marks.started("b", "2b")
    assert marks.of("b") == (PeerMark("b", "1a", 3, None, 8, 3),)
    marks.note("b", 3, None, 9, 3)
    assert marks.of("b") == (PeerMark("b", "1a", 3, None, 8, 3), PeerMark("b", "2b", 3, None, 9, 3))
    marks.started("b", "3c")
    assert [mark.index for mark in marks.of("b")] == [9], "of all that have ended the most counts"
    marks.note("b", 3, "a", 4, 3)
    marks.started("b", "4d")
    assert [(mark.vote, mark.index) for mark in marks.of("b")] == [("a", 9)]
    marks.note("b", 2, None, 99, 2)
    marks.started("b", "5e")
    assert [(mark.term, mark.index) for mark in marks.of("b")] == [(3, 9)]


def test_marks_survive_a_restart_with_the_process_that_they_are_of() -> None:
    marks = PeerMarks()
    for start, index in (("1a", 5), ("2b", 7)):
        marks.started("b", start)
        marks.note("b", 3, None, index, 3)
    again = PeerMarks((*marks.past.values(), *marks.present.values()))
    again.started("b", "2b")
    again.note("b", 3, None, 8, 3)
    assert [(mark.start, mark.index) for mark in again.of("b")] == [("1a", 5), ("2b", 8)]


def test_whoever_is_not_a_member_any_more_is_forgotten() -> None:
    marks = PeerMarks()
    for start in ("1", "2"):
        for node in "bc":
            marks.started(node, start)
            marks.note(node, 3, "a")
    marks.keep({"a", "b"})
    assert (len(marks.of("b")), len(marks.of("c"))) == (2, 0)


def test_the_starts_of_strangers_take_bounded_memory() -> None:
    marks = PeerMarks()
    for number in range(10 * STARTS_MAX):
        marks.started(f"n{number}", "1")
    assert len(marks._starts) == STARTS_MAX


# --- What is saved --------------------------------------------------------------------------------------------------


def test_marks_and_the_commit_index_ride_on_saves_and_cause_none() -> None:
    server = heard_from(leader("1", term=2, voters="abc", matched="bc"))
    index, _ = server.raft.propose([b"x"])
    ready = server.raft.ready()
    assert ready is not None and ready.save is not None
    server.raft.saved(ready.save.number)
    server.raft.step(appended("b", "a", 2, index))
    while (ready := server.raft.ready()) is not None:
        assert ready.save is None
    server.raft.propose([b"y"])
    ready = server.raft.ready()
    assert ready is not None and ready.save is not None
    assert ready.save.commit_index == index
    assert {mark.node: mark.index for mark in ready.save.marks}["b"] == index


def quiet(quiet_save_ticks: int) -> Server:
    """A follower of three that is told every tick, by a leader whose disk holds the same, that entry 2 is committed."""
    config = RaftConfig("a", ELECTION, HEARTBEAT, quiet_save_ticks=quiet_save_ticks)
    server = heard_from(Server(log("11"), term=1, config=config))
    server.drain(heartbeat("b", "a", 1, commit=1))
    return server


def test_what_no_save_says_is_saved_after_a_quiet_time_and_once() -> None:
    """The last write before it was known to be committed to this process only."""
    server = quiet(5)
    for _ in range(4):
        assert server.tick().save is None
        server.drain(heartbeat("b", "a", 1, commit=2))
    server.raft.tick()
    ready = server.raft.ready()
    assert ready is not None and ready.save is not None
    assert (ready.save.commit_index, ready.save.entries) == (2, ())
    assert {mark.node: mark.index for mark in ready.save.marks} == {mark.node: mark.index for mark in known(server)}
    server.raft.saved(ready.save.number)
    for _ in range(20):
        server.drain(heartbeat("b", "a", 1, commit=2))
        assert server.tick().save is None, "nothing is new"


def known(server: Server) -> tuple[PeerMark, ...]:
    return tuple(mark for node in "bcx" for mark in marks_of(server, node))


@pytest.mark.parametrize("ticks", [0, 9])
def test_nothing_is_saved_before_the_quiet_time_is_over(ticks: int) -> None:
    server = quiet(ticks)
    for _ in range(8):
        server.drain(heartbeat("b", "a", 1, commit=2))
        assert server.tick().save is None


@pytest.mark.parametrize(("free_bytes", "is_saved"), [(QUIET_SAVE_BYTES - 1, False), (QUIET_SAVE_BYTES, True)])
def test_a_disk_that_is_nearly_full_is_left_alone(free_bytes: int, is_saved: bool) -> None:
    server = quiet(1)
    server.raft.set_free_bytes(free_bytes)
    assert (server.tick().save is not None) == is_saved


def test_a_server_that_stops_knows_which_save_says_the_last_of_it() -> None:
    server = quiet(0)
    said = server.raft.remember()
    assert (said, server.raft.saved_number) == (1, 0)
    ready = server.raft.ready()
    assert ready is not None and ready.save is not None and ready.save.number == said
    assert server.raft.saved_number == 0, "it is in flight"
    server.raft.saved(ready.save.number)
    assert server.raft.saved_number == server.raft.remember() == 1
    assert server.raft.ready() is None


def started_again(terms: str, *, commit: int, term: int = 2, snapshot: Snapshot | None = None) -> Raft:
    entries = [entry for entry in log(terms) if snapshot is None or entry.index > snapshot.last_index]
    return Raft(
        RaftConfig("a"),
        Random(1),
        hard_state=HardState(term),
        snapshot=snapshot,
        entries=entries,
        commit_index=commit,
    )


def test_what_was_known_to_be_committed_is_applied_after_a_start_without_a_leader() -> None:
    raft = started_again("1112", commit=3)
    ready = raft.ready()
    assert ready is not None
    assert [entry.index for entry in ready.committed] == [1, 2, 3]


def test_no_more_is_committed_after_a_start_than_the_log_holds() -> None:
    """A record says what is committed before all of it is on the disk."""
    assert started_again("111", commit=9).log.commit_index == 3
    base = Snapshot(2, 1, configuration())
    assert started_again("111", commit=1, snapshot=base).log.commit_index == 2


@pytest.mark.parametrize(
    "message",
    [
        append("b", "a", 5, (2, 1), [command(3, 5)]),
        append("b", "a", 5, (3, 3), [command(4, 5)]),
        append("b", "a", 5, (0, 0), [command(1, 1), command(2, 1), command(3, 5)]),
        install("b", "a", 5, Snapshot(3, 3, configuration())),
    ],
    ids=["an entry", "the entry before", "an entry behind others", "a snapshot"],
)
def test_what_was_committed_before_a_restart_is_not_replaced(message: AppendEntries) -> None:
    raft = started_again("1112", commit=3)
    with pytest.raises(CommitsLostError):
        raft.step(message)
    assert raft.log.term(3) == 1


HISTORY = ((1, 1), (3, 2), (9, 5))
"""Terms of another log: entry 3 is of term 2 there."""


@pytest.mark.parametrize(
    ("terms", "is_refused"),
    [(HISTORY, True), (((1, 1), (4, 2), (9, 5)), False), (((4, 2), (9, 5)), False), ((), False)],
)
def test_a_snapshot_that_follows_from_another_log_than_what_is_committed_here_is_not_taken(
    terms: tuple[tuple[int, int], ...], is_refused: bool
) -> None:
    """Its end lies behind this log's: before, it replaced the only log that still held acknowledged writes."""
    raft = started_again("1112", commit=3)
    offer = install("b", "a", 5, Snapshot(9, 5, configuration(), terms))
    if is_refused:
        with pytest.raises(CommitsLostError, match="follows from an entry 3 of term 2, yet one of term 1 is committed"):
            raft.step(offer)
    else:
        raft.step(offer)
    ready = raft.ready()
    assert (ready is None or ready.fetch is None) == is_refused


def test_a_snapshot_tells_the_terms_of_all_that_it_replaces() -> None:
    server = Server(log("1122233"), term=3)
    server.drain(heartbeat("b", "a", 3, commit=7))
    first = server.raft.snapshot_at(4)
    assert first.terms == ((1, 1), (3, 2))
    server.raft.compact(first, 1)
    assert server.raft.log.base_index == 3
    second = server.raft.snapshot_at(7)
    assert second.terms == ((1, 1), (3, 2), (6, 3))
    again = started_again("1122233", commit=7, term=3, snapshot=first)
    again.ready()
    assert again.snapshot_at(7).terms == second.terms
    assert [second.term_at(index) for index in range(9)] == [None, 1, 1, 2, 2, 2, 3, 3, None]
    older = Snapshot(4, 2, configuration())
    again = started_again("1122233", commit=7, term=3, snapshot=older)
    again.ready()
    assert again.snapshot_at(7).terms == ((4, 2), (6, 3)), "taken by a version that does not tell"


def test_a_snapshot_tells_a_bounded_number_of_terms() -> None:
    entries = [command(index, index) for index in range(1, HISTORY_TERMS_MAX + 10)]
    server = Server(entries, term=len(entries))
    server.drain(heartbeat("b", "a", len(entries), commit=len(entries)))
    terms = server.raft.snapshot_at(len(entries)).terms
    assert (len(terms), terms[-1]) == (HISTORY_TERMS_MAX, (len(entries), len(entries)))
    assert Snapshot(9, 5, configuration(), ((4, 2),)).term_at(3) is None


def test_what_is_not_known_to_be_committed_is_replaced() -> None:
    raft = started_again("1112", commit=3)
    raft.step(append("b", "a", 5, (3, 1), [command(4, 5)]))
    assert raft.log.term(4) == 5


def test_a_leader_that_knows_more_of_this_server_than_it_holds_shows_a_disk_that_was_set_back() -> None:
    """It was told that entry 4 is committed, could not believe it, and its process ended: at each start again."""
    server = follower("11", term=2, leader="b")
    with pytest.raises(DiskSetBackError, match="acknowledged entry 4 in term 2, and the log ends at 2"):
        server.raft.step(heartbeat("b", "a", 2, commit=4))


@pytest.mark.parametrize("role", [Role.LEADER, Role.CANDIDATE, Role.FOLLOWER])
def test_a_server_that_stands_down_follows_nobody_and_campaigns_no_more(role: Role) -> None:
    servers = {Role.LEADER: leader("1", term=2), Role.CANDIDATE: candidate("1", term=2), Role.FOLLOWER: follower("1")}
    server = servers[role]
    assert server.raft.role is role
    server.raft.stand_down()
    assert (server.raft.role, server.raft.leader) == (Role.FOLLOWER, None)
    for _ in range(50):
        server.raft.tick()
    assert server.raft.role is Role.FOLLOWER


def _saying(message: AppendEntries | Heartbeat, *, saved_index: int) -> AppendEntries | Heartbeat:
    return msgspec.structs.replace(message, saved_index=saved_index)
