"""Section 5.3: log replication; Figure 2, AppendEntries; Figure 7; flow control (thesis 10.2.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    commands,
    configuration,
    follower,
    heard,
    heartbeat,
    leader,
    log,
    noop,
    pre_vote,
    refused,
    saves,
    vote,
)

from kvorum.errors import CommitsLostError, NotLeaderError, OverloadedError
from kvorum.raft import RaftConfig, Role
from kvorum.raft.messages import Entry, EntryKind, Message, Ready, Snapshot
from kvorum.raft.progress import ReplicationState

# --- The leader's side: proposals -----------------------------------------------------------------------------------


def entry(index: int, term: int, data: bytes) -> Entry:
    return Entry(index, term, EntryKind.COMMAND, data)


def test_a_proposal_is_appended_and_sent_in_parallel_with_its_own_save() -> None:
    """5.3: "appends the command to its log as a new entry, then issues AppendEntries RPCs in parallel to each".

    Thesis 10.2.1: the leader writes to its disk while the followers do.
    """
    server = leader("1", term=2, matched="bc")
    assert server.raft.propose([b"x", b"y"]) == (3, 2)
    new = (entry(3, 2, b"x"), entry(4, 2, b"y"))
    assert server.ready() == Ready(
        save=saves(2, "a", new),
        messages=(append("a", "b", 2, (2, 2), new, 2), append("a", "c", 2, (2, 2), new, 2)),
    )


@pytest.mark.parametrize("make", [lambda: follower("1", leader="b"), follower], ids=["follower", "alone"])
def test_only_a_leader_takes_proposals(make: Callable[[], Server]) -> None:
    """5.3, section 8: others redirect to the leader that they know of; nothing is appended."""
    server = make()
    with pytest.raises(NotLeaderError) as error:
        server.raft.propose([b"x"])
    assert error.value.leader == server.raft.leader
    assert server.ready() == NOTHING


def test_a_leader_never_overwrites_its_log() -> None:
    """Figure 3, Leader Append-Only; 5.3: "a leader never overwrites or deletes entries in its log"."""
    server = leader("112", term=4)
    assert server.terms() == "1124"
    server.drain(*(refused(node, "a", 4, 3, (1, 1)) for node in "bc"))
    server.drain(*(appended(node, "a", 4, 2) for node in "bc"))
    assert server.terms() == "1124"


def test_entries_that_wait_for_a_quorum_are_bounded() -> None:
    """Every queue is bounded: further proposals are refused, and taken again when a quorum answered."""
    server = small_leader(uncommitted_bytes_max=100)
    server.raft.propose([b"x" * 101])
    with pytest.raises(OverloadedError):
        server.raft.propose([b"y"])
    server.drain()
    server.drain(appended("b", "a", 2, 3))
    assert server.raft.propose([b"y"]) == (4, 2)


def test_what_an_earlier_leader_left_does_not_count_against_the_bound() -> None:
    """The old entries commit together with the no-op, and must not be taken off what is counted of our own."""
    config = RaftConfig("a", ELECTION, HEARTBEAT, uncommitted_bytes_max=1000)
    server = Server(log("1" * 50), term=1, config=config)
    server.tick(ELECTION)
    server.drain(pre_vote("b", "a", 2))
    server.drain(vote("b", "a", 2))
    server.raft.propose([b"x" * 1000])
    server.drain(appended("b", "a", 2, 51))
    assert server.raft.log.commit_index == 51
    with pytest.raises(OverloadedError):
        server.raft.propose([b"y"])
    server.drain(appended("b", "a", 2, 52))
    assert server.raft.propose([b"y"]) == (53, 2)


def small_leader(**limits: int) -> Server:
    """A leader of term 2 with other limits; b and c hold its log "12", which is committed."""
    server = Server(log("1"), term=1, config=RaftConfig("a", ELECTION, HEARTBEAT, **limits))
    cluster = Cluster([server, Server(log("1"), id="b", term=1), Server(log("1"), id="c", term=1)])
    cluster.elect("a")
    assert server.terms() == "12"
    return server


# --- The follower's side: Figure 2, AppendEntries, receiver implementation ------------------------------------------


def test_entries_that_follow_are_appended_and_answered_when_saved() -> None:
    """Figure 2, 4: "Append any new entries not already in the log".

    Figure 2, persistent state: "Updated on stable storage before responding to RPCs". B3.
    """
    server = follower("1", term=2, leader="b")
    new = commands(2, "12")
    assert server.take(append("b", "a", 2, (1, 1), new)) == Ready(
        save=saves(2, None, new), messages_after_save=(appended("a", "b", 2, 3),)
    )


def test_a_gap_is_refused() -> None:
    """Figure 2, 2: "Reply false if log doesn't contain an entry at prevLogIndex whose term matches prevLogTerm"."""
    server = follower("11", term=1, leader="b")
    refusal = refused("a", "b", 1, 5, hint=(2, 1))
    assert server.take(append("b", "a", 1, (5, 1), [command(6, 1)])) == Ready(messages=(refusal,))
    assert server.terms() == "11"


def test_an_entry_before_of_another_term_is_refused() -> None:
    """Figure 2, 2, the other half: index there, term different."""
    server = follower("1122", term=3, leader="b")
    refusal = refused("a", "b", 3, 4, hint=(4, 2))
    assert server.take(append("b", "a", 3, (4, 3), [command(5, 3)])) == Ready(messages=(refusal,))
    assert server.terms() == "1122"


def test_a_refusal_names_the_last_entry_of_no_later_term() -> None:
    """5.3: "the follower can include the term of the conflicting entry and the first index it stores for that term".

    The same in one number: nothing of a term above prev_log_term can match at or before prev_log_index.
    """
    server = follower("1114444", term=5, leader="b")
    refusal = refused("a", "b", 5, 7, hint=(3, 1))
    assert server.take(append("b", "a", 5, (7, 3), [command(8, 5)])) == Ready(messages=(refusal,))


def test_a_conflicting_entry_is_deleted_with_all_that_follow_it() -> None:
    """Figure 2, 3: "If an existing entry conflicts with a new one ... delete [it] and all that follow it".

    It is gone from the disk too.
    """
    server = follower("11222", term=3, leader="b")
    new = commands(3, "3")
    assert server.take(append("b", "a", 3, (2, 1), new)) == Ready(
        save=saves(3, None, new), messages_after_save=(appended("a", "b", 3, 3),)
    )
    assert server.terms() == "113"
    server.save()
    server.crash()
    assert server.terms() == "113"


def test_entries_before_the_conflict_are_kept() -> None:
    """Figure 2, 3 and 4: only from the first entry that differs."""
    server = follower("11222", term=3, leader="b")
    ready = server.take(append("b", "a", 3, (1, 1), commands(2, "123")))
    assert ready.save == saves(3, None, commands(4, "3"))
    assert server.terms() == "1123"


def test_entries_that_are_there_already_change_nothing() -> None:
    """5.5: "If [it] includes log entries already present in its log, it ignores those entries in the new request".

    B14: a late message does not truncate what was acknowledged since.
    """
    server = follower("11222", term=2, leader="b")
    late = append("b", "a", 2, (1, 1), commands(2, "12"))
    assert server.take(late) == Ready(messages=(appended("a", "b", 2, 3),))
    assert server.terms() == "11222"


def test_an_empty_probe_does_not_truncate() -> None:
    """B14: entries behind prev_log_index that were not mentioned may be the leader's own."""
    server = follower("11222", term=2, leader="b")
    assert server.take(append("b", "a", 2, (2, 1))) == Ready(messages=(appended("a", "b", 2, 2),))
    assert server.terms() == "11222"


def test_an_answer_claims_only_what_the_message_proved() -> None:
    """B13: the tail behind the leader's entries may be another leader's: it must not count."""
    server = follower("1122", term=3, leader="b")
    assert server.take(append("b", "a", 3, (1, 1), [command(2, 1)])) == Ready(messages=(appended("a", "b", 3, 2),))


def test_an_answer_waits_for_the_save_that_holds_its_entries() -> None:
    """B3, B16: the same message again, while its entries are being saved, is not answered earlier."""
    server = follower("1", term=1, leader="b")
    message = append("b", "a", 1, (1, 1), [command(2, 1)])
    server.take(message)
    assert server.take(message) == NOTHING
    assert server.save() == (appended("a", "b", 1, 2),)
    assert server.ready() == Ready(messages=(appended("a", "b", 1, 2),))


def test_a_log_that_differs_below_the_commit_index_is_refused() -> None:
    """Figure 3, Leader Completeness and State Machine Safety: what is committed is in the log of every later leader."""
    for message in (
        append("b", "a", 3, (2, 2), [command(3, 3)]),
        append("b", "a", 3, (1, 1), [command(2, 3)]),
        append("b", "a", 3, (1, 1), [command(2, 3), command(3, 3), command(4, 3)]),
        append("b", "a", 3, (2, 3), [command(3, 3), command(4, 3)]),
    ):
        server = follower("111", term=2, leader="c", commit=3)
        with pytest.raises(CommitsLostError):
            server.take(message)
        assert server.terms() == "111"


def test_entries_older_than_the_snapshot_are_taken_as_equal() -> None:
    """B14: prev already compacted is no conflict: what is compacted was committed."""
    server = Server(commands(6, "22"), term=2, snapshot=Snapshot(5, 2, configuration()))
    assert server.take(append("b", "a", 2, (2, 1), commands(3, "222"))) == Ready(messages=(appended("a", "b", 2, 5),))
    new = commands(8, "2")
    ready = server.take(append("b", "a", 2, (3, 2), (*commands(4, "2222"), *new)))
    assert ready == Ready(save=saves(2, None, new), messages_after_save=(appended("a", "b", 2, 8),))
    assert server.terms() == "222"


def test_a_follower_that_has_committed_more_says_so() -> None:
    """What is committed matches, whatever was sent (Leader Completeness): the leader need not probe for it. B14."""
    server = follower("11222", leader="b", commit=4)
    assert server.take(append("b", "a", 2, (1, 1), commands(2, "1"))) == Ready(messages=(appended("a", "b", 2, 4),))


def test_a_follower_learns_what_is_committed_and_applies_it() -> None:
    """Figure 2, 5: "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit, index of last new entry)"."""
    server = follower("111", leader="b")
    assert server.take(append("b", "a", 1, (3, 1), (), commit=2)) == Ready(
        messages=(appended("a", "b", 1, 3),), committed=log("11")
    )


def test_commit_is_limited_to_what_is_known_to_match() -> None:
    """Figure 2, 5: "index of last new entry", not of the log's last: B11. The tail may conflict."""
    server = follower("1122", term=3, leader="b")
    ready = server.take(append("b", "a", 3, (1, 1), [command(2, 1)], commit=4))
    assert ready == Ready(messages=(appended("a", "b", 3, 2),), committed=log("11"))
    assert server.raft.log.commit_index == 2


def test_the_commit_index_never_goes_back() -> None:
    """Figure 2, commitIndex: "increases monotonically": B12. A late or reordered message carries an older one."""
    server = follower("111", leader="b", commit=3)
    server.drain(append("b", "a", 1, (3, 1), (), commit=1), heartbeat("b", "a", 1, commit=0))
    assert server.raft.log.commit_index == 3


def test_a_heartbeat_commits_at_once() -> None:
    """An idle follower learns what is committed without entries; the leader says only what it knows to be here."""
    server = follower("111", leader="b")
    assert server.take(heartbeat("b", "a", 1, commit=3, round=4)) == Ready(
        messages=(heard("a", "b", 1, 4),), committed=log("111")
    )


def test_committed_entries_are_applied_only_when_saved_here() -> None:
    """B16: divergence: what was applied is always in the node's own log after a crash."""
    server = follower("1", leader="b")
    ready = server.take(append("b", "a", 1, (1, 1), commands(2, "1"), commit=2))
    assert ready.committed == log("1")
    server.save()
    assert server.ready() == Ready(committed=commands(2, "1"))


def test_committed_entries_are_handed_over_once_and_in_order() -> None:
    """Figure 2, lastApplied: "increment lastApplied, apply log[lastApplied]"."""
    server = follower("11111", leader="b", commit=2)
    assert server.take(heartbeat("b", "a", 1, commit=4)).committed == commands(3, "11")
    assert server.take(heartbeat("b", "a", 1, commit=5)).committed == commands(5, "1")
    assert server.take(heartbeat("b", "a", 1, commit=5)).committed == ()


def test_a_ready_hands_over_a_bounded_number_of_bytes() -> None:
    """Applying must not stop the loop for long; the rest comes with the next Ready, and each says if one follows."""
    server = Server(log("11111"), term=1, config=RaftConfig("a", ELECTION, HEARTBEAT, committed_bytes_max=60))
    server.raft.step(heartbeat("b", "a", 1, commit=5))
    handed_over = [(len(ready.committed), ready.has_more) for ready in iter(server.raft.ready, None)]
    assert handed_over == [(1, True), (2, True), (2, False)]


# --- Figure 7: every kind of follower is brought in line ------------------------------------------------------------

FIGURE_7 = {
    "a": "111445566",
    "b": "1114",
    "c": "11144556666",
    "d": "111445566677",
    "e": "1114444",
    "f": "11122233333",
}


@pytest.mark.parametrize("terms", FIGURE_7.values(), ids=FIGURE_7.keys())
def test_the_leader_of_figure_7_repairs_every_follower(terms: str) -> None:
    """5.3: "the leader handles inconsistencies by forcing the followers' logs to duplicate its own"."""
    cluster = Cluster(
        [
            Server(log("1114455666", "lfo"), id="l", term=7),
            Server(log(terms, "lfo"), id="f", term=7),
            Server(log("1114455666", "lfo"), id="o", term=7),
        ]
    )
    cluster.elect("l")
    assert cluster["f"].terms() == cluster["l"].terms() == "11144556668"
    assert cluster["f"].log() == cluster["l"].log()
    assert cluster.applied["f"] == cluster.applied["l"] == list(cluster["l"].log())
    cluster["f"].crash()
    assert cluster["f"].terms() == "11144556668"


@pytest.mark.parametrize(("terms", "probes"), [("1114", 2), ("1114444", 2), ("11122233333", 2), ("1", 2)])
def test_the_way_back_skips_a_whole_term_with_each_refusal(terms: str, probes: int) -> None:
    """5.3: "one AppendEntries RPC will be required for each term with conflicting entries"."""
    cluster = Cluster(
        [Server(log("1114455666", "lf"), id="l", term=7), Server(log(terms, "lf"), id="f", term=7)],
    )
    cluster.is_cut = lambda message: isinstance(message, type(append("l", "f", 1, (0, 0))))
    cluster.elect("l")
    cluster.cut()
    cluster.seen.clear()
    cluster.tick(2 * HEARTBEAT + 1)
    sent = [message for message in cluster.seen if isinstance(message, type(append("l", "f", 1, (0, 0))))]
    assert cluster["f"].terms() == "11144556668"
    assert len([message for message in sent if message.entries]) == probes


# --- The leader's side: next_index, match_index ---------------------------------------------------------------------


def test_the_first_probe_follows_the_last_entry() -> None:
    """Figure 2, nextIndex: "initialized to leader last log index + 1"; matchIndex: "initialized to 0"."""
    server = leader("112", term=3)
    progress = server.raft.status().progress["b"]
    assert (progress.next_index, progress.match_index, progress.state) == (4, 0, ReplicationState.PROBE)


def test_a_refusal_decrements_next_index_and_retries() -> None:
    """5.3: "After a rejection, the leader decrements nextIndex and retries the AppendEntries RPC"."""
    server = leader("1112", term=3)
    assert server.take(refused("b", "a", 3, 4, hint=(3, 1))) == Ready(
        messages=(append("a", "b", 3, (3, 1), (*commands(4, "2"), noop(5, 3))),)
    )


def test_a_refusal_without_a_hint_still_goes_back() -> None:
    """5.3: "Eventually nextIndex will reach a point where the leader and follower logs match"."""
    server = leader("1112", term=3)
    ready = server.take(refused("b", "a", 3, 4, hint=(9, 9)))
    assert ready.messages == (append("a", "b", 3, (3, 1), (*commands(4, "2"), noop(5, 3))),)
    ready = server.take(refused("b", "a", 3, 3, hint=(0, 0)))
    assert ready.messages == (append("a", "b", 3, (0, 0), server.log()),)


def test_the_answer_to_an_older_probe_is_ignored() -> None:
    """B18: a refusal that comes twice, or late, triggers no second probe."""
    server = leader("1112", term=3)
    server.take(refused("b", "a", 3, 4, hint=(3, 1)))
    assert server.take(refused("b", "a", 3, 4, hint=(3, 1)), refused("b", "a", 3, 1)) == NOTHING


def test_a_late_refusal_does_not_take_back_what_matched() -> None:
    """B12: match_index "increases monotonically"."""
    server = leader("1112", term=3, matched="b")
    assert server.take(refused("b", "a", 3, 4, hint=(0, 0))) == NOTHING
    progress = server.raft.status().progress["b"]
    assert (progress.match_index, progress.next_index) == (5, 6)


def test_a_late_acknowledgement_does_not_lower_match_index() -> None:
    """B12, as above."""
    server = leader("1112", term=3, matched="b")
    assert server.take(appended("b", "a", 3, 2)) == NOTHING
    assert server.raft.status().progress["b"].match_index == 5


def test_an_acknowledgement_beyond_the_leaders_log_does_not_count() -> None:
    """Garbage from a peer: it must not commit what nobody holds."""
    server = leader("1", term=2)
    assert server.take(appended("b", "a", 2, 9)) == NOTHING
    assert server.raft.status().progress["b"].match_index == 0


def test_an_answer_of_a_stranger_is_ignored() -> None:
    """A member that was removed answers late."""
    server = leader("1", term=2)
    assert server.take(appended("x", "a", 2, 2), refused("x", "a", 2, 1), heard("x", "a", 2, 9)) == NOTHING


# --- Flow control ---------------------------------------------------------------------------------------------------


def test_one_probe_at_a_time() -> None:
    """Until the logs are known to match, entries would be sent in vain (thesis 10.2.1)."""
    server = leader("1", term=2)
    server.raft.propose([b"x"])
    assert server.ready().messages == ()


def test_a_follower_that_matches_is_sent_ahead_of_its_answers() -> None:
    """Thesis 10.2.1, pipelining: "the leader need not wait for a response"."""
    server = leader("1", term=2, matched="bc")
    for index, data in ((3, b"x"), (4, b"y")):
        server.raft.propose([data])
        sent = tuple(append("a", node, 2, (index - 1, 2), [entry(index, 2, data)], 2) for node in "bc")
        assert server.ready().messages == sent
        server.save()


def test_one_append_entries_carries_a_bounded_number_of_bytes() -> None:
    """Bounded frames; one entry is always sent, however large."""
    server = small_leader(append_bytes_max=100)
    server.raft.propose([b"x" * 30, b"y" * 30, b"z" * 500])
    new = (entry(3, 2, b"x" * 30), entry(4, 2, b"y" * 30), entry(5, 2, b"z" * 500))
    assert [message for message in server.ready().messages if message.recipient == "b"] == [
        append("a", "b", 2, (2, 2), new[:1], 2),
        append("a", "b", 2, (3, 2), new[1:2], 2),
        append("a", "b", 2, (4, 2), new[2:], 2),
    ]


@pytest.mark.parametrize("limits", [{"inflight_messages_max": 2}, {"inflight_bytes_max": 50}])
def test_unanswered_messages_are_bounded_and_answers_open_the_window(limits: dict[str, int]) -> None:
    """A slow follower is not drowned; the answer to one message lets one more go."""
    server = small_leader(**limits)
    for data in (b"x", b"y", b"z"):
        server.raft.propose([data])
        server.drain()
    assert server.raft.status().progress["b"].next_index == 5
    ready = server.take(appended("b", "a", 2, 3))
    assert append("a", "b", 2, (4, 2), [entry(5, 2, b"z")], 3) in ready.messages


def test_a_lost_append_is_found_by_the_refusal_of_the_next() -> None:
    """5.3: "the leader retries AppendEntries RPCs indefinitely"."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    server.drain()  # Lost on the way to b.
    server.raft.propose([b"y"])
    server.drain()
    new = (entry(3, 2, b"x"), entry(4, 2, b"y"))
    assert server.take(refused("b", "a", 2, 3, hint=(2, 2))) == Ready(messages=(append("a", "b", 2, (2, 2), new, 2),))


def test_a_lost_tail_is_offered_again() -> None:
    """B15: when nothing follows, no refusal comes; the answer to a heartbeat makes the leader ask."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    server.drain()
    server.drain(appended("c", "a", 2, 3))
    server.tick(HEARTBEAT)
    ready = server.take(heard("b", "a", 2))
    assert ready.messages == (append("a", "b", 2, (3, 2), (), 3),)
    ready = server.take(refused("b", "a", 2, 3, hint=(2, 2)))
    assert ready.messages == (append("a", "b", 2, (2, 2), [entry(3, 2, b"x")], 3),)


def test_a_lost_probe_is_sent_again() -> None:
    """B15: a new leader's first AppendEntries was lost."""
    server = leader("1", term=2)
    server.tick(HEARTBEAT)
    assert server.take(heard("b", "a", 2)) == Ready(messages=(append("a", "b", 2, (1, 1), [noop(2, 2)]),))


def test_a_full_window_whose_answers_were_lost_opens_again() -> None:
    """B15: nothing more may be sent and nothing will be answered, but for the question."""
    server = small_leader(inflight_messages_max=1)
    server.raft.propose([b"x"])
    server.drain()
    server.raft.propose([b"y"])
    server.drain()
    server.tick(HEARTBEAT)
    assert server.take(heard("b", "a", 2)).messages == (append("a", "b", 2, (3, 2), (), 2),)
    ready = server.take(appended("b", "a", 2, 3))
    assert append("a", "b", 2, (3, 2), [entry(4, 2, b"y")], 3) in ready.messages


def test_heartbeat_answers_do_not_multiply_appends() -> None:
    """B18: read rounds bring many answers a tick; what was sent within a heartbeat's time is not sent again."""
    server = leader("1", term=2)  # b and c are probed, with entries that may be large.
    assert server.take(*[heard("b", "a", 2)] * 5) == NOTHING
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    server.drain()
    assert server.take(*[heard("b", "a", 2)] * 5) == NOTHING
    server.tick(HEARTBEAT)
    assert server.take(*[heard("b", "a", 2)] * 5) == Ready(messages=(append("a", "b", 2, (3, 2), (), 2),))


def test_one_answer_triggers_at_most_one_append_to_its_sender() -> None:
    """B18: with a full window, an answer lets go exactly what it made room for."""
    server = small_leader(inflight_messages_max=1)
    for data in (b"x", b"y", b"z"):
        server.raft.propose([data])
        server.drain()
    messages = server.take(appended("b", "a", 2, 3)).messages
    assert [type(message).__name__ for message in messages if message.recipient == "b"] == ["AppendEntries"]


def test_an_idle_follower_is_told_at_once_what_is_committed() -> None:
    """5.3: "once a follower learns that a log entry is committed, it applies": not a heartbeat later."""
    server = leader("1", term=2, acked="bc")
    assert server.take(appended("b", "a", 2, 2)).messages == (heartbeat("a", "b", 2, 2),)
    assert server.take(appended("c", "a", 2, 2)).messages == (heartbeat("a", "c", 2, 2),)


def test_a_heartbeat_never_speaks_of_entries_that_the_follower_may_not_hold() -> None:
    """B11: commit is limited to the recipient's match_index."""
    server = leader("1", term=2, matched="b")
    assert server.tick(HEARTBEAT).messages == (heartbeat("a", "b", 2, 2), heartbeat("a", "c", 2, 0))


def test_a_follower_that_fell_behind_a_compacted_log_with_a_full_window_is_probed() -> None:
    """B15: neither entries (the window is full) nor the question (its prev is compacted) could be sent: for ever."""
    server = small_leader(inflight_messages_max=1)
    for data in (b"x", b"y", b"z"):
        server.raft.propose([data])
        server.drain(appended("c", "a", 2, server.raft.log.last_index))
        server.drain(appended("c", "a", 2, server.raft.log.last_index))
    snapshot = server.raft.snapshot_at(5)
    assert server.raft.compact(snapshot, retain=0) == 6
    server.tick(HEARTBEAT)
    assert [type(message).__name__ for message in server.take(heard("b", "a", 2)).messages] == ["InstallSnapshot"]


def test_a_follower_whose_window_opens_behind_a_compacted_log_is_offered_one_snapshot() -> None:
    """B18: and the loop that fills the window ends."""
    server = small_leader(inflight_messages_max=1)
    for data in (b"x", b"y", b"z"):
        server.raft.propose([data])
        server.drain()
        server.drain(appended("c", "a", 2, server.raft.log.last_index))
    server.raft.compact(server.raft.snapshot_at(5), retain=0)
    ready = server.take(appended("b", "a", 2, 3))
    assert [type(message).__name__ for message in ready.messages if message.recipient == "b"] == [
        "InstallSnapshot",
        "Heartbeat",
    ]


# --- A whole cluster ------------------------------------------------------------------------------------------------


@dataclass
class Lossy:
    """Drops every n-th message."""

    every: int
    count: int = 0

    def __call__(self, message: Message) -> bool:
        self.count += 1
        return self.count % self.every == 0


@pytest.mark.parametrize("every", [2, 3, 5, 7])
def test_followers_converge_whatever_is_lost(every: int) -> None:
    """5.3: all logs become equal once messages arrive again; nothing that was applied differs."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster.is_cut = Lossy(every)
    for number in range(30):
        if cluster["a"].role() is Role.LEADER:
            cluster["a"].raft.propose([b"%d" % number])
        cluster.run()
    cluster.cut()
    cluster.tick(6 * ELECTION)
    logs = [cluster[node].log() for node in "abc"]
    assert logs[0] == logs[1] == logs[2] and len(logs[0]) >= 32
    assert cluster.applied["a"] == cluster.applied["b"] == cluster.applied["c"] == list(logs[0])


def test_a_follower_that_was_away_catches_up() -> None:
    """The seed's own bug: without log matching, one that missed one entry never catches up."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster.cut("c")
    for number in range(200):
        cluster["a"].raft.propose([b"%d" % number])
        cluster.run()
    assert cluster["c"].terms() == "12"
    cluster.cut()
    cluster.tick(2 * ELECTION)
    assert cluster["c"].log() == cluster["a"].log()
    assert len(cluster.applied["c"]) == 202


def test_a_restarted_leader_follows_and_is_repaired() -> None:
    """5.3, crashes: entries that the old leader alone had are replaced by the new leader's."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster.cut("a")
    cluster["a"].raft.propose([b"lost"])
    cluster.run()
    assert cluster["a"].terms() == "122"
    cluster["a"].crash()
    cluster["c"].raft.peer_unreachable("a")
    cluster.elect("b")
    cluster.cut()
    cluster.tick(HEARTBEAT)
    assert cluster["a"].terms() == cluster["b"].terms() == "123"
    assert not any(item.data == b"lost" for item in cluster.applied["a"])
