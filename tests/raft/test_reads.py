"""Linearizable reads without writing to the log: section 8, thesis 6.4 (ReadIndex)."""

from __future__ import annotations

import msgspec
import pytest
from raft.harness import (
    ELECTION,
    HEARTBEAT,
    NOTHING,
    Cluster,
    Server,
    answer_read,
    append,
    appended,
    ask_read,
    candidate,
    command,
    follower,
    heard,
    heartbeat,
    leader,
    log,
    noop,
    pre_vote,
    request_pre_vote,
    request_vote,
)

from kvorum.errors import InvariantViolatedError, NoLeaderError
from kvorum.raft import Role
from kvorum.raft.messages import Message, Read, Ready
from kvorum.raft.reads import ReadRounds, WaitingRead


def rounds(number: int, commit: int = 2) -> tuple[Message, ...]:
    return tuple(heartbeat("a", node, 2, commit, number) for node in "bc")


def test_a_leader_proves_that_it_leads_before_it_answers_a_read() -> None:
    """6.4, step 3: "issues a new round of heartbeats and waits for their acknowledgments". B20."""
    server = leader("1", term=2, matched="bc")
    server.raft.read_index(7)
    assert server.ready() == Ready(messages=rounds(1))
    assert server.take(heard("b", "a", 2, 1)) == Ready(reads=(Read(7, 2),))


def test_a_read_that_can_wait_begins_with_the_next_regular_heartbeats() -> None:
    """It costs no round of its own, and is proved by one that began after it arrived all the same."""
    server = leader("1", term=2, matched="bc")
    server.raft.read_index(7, can_wait=True)
    assert server.ready() == Ready()
    assert server.take(msgspec.structs.replace(ask_read("b", "a", 2, 8), can_wait=True)) == Ready()
    server.raft.tick()
    assert server.ready() == Ready()
    server.raft.tick()
    assert server.ready() == Ready(messages=rounds(1))

    ready = server.take(heard("c", "a", 2, 1))
    assert ready == Ready(reads=(Read(7, 2),), messages=(answer_read("a", "b", 2, 8, 2),))


def test_a_read_that_cannot_wait_takes_those_that_can_with_it() -> None:
    server = leader("1", term=2, matched="bc")
    server.raft.read_index(7, can_wait=True)
    server.raft.read_index(8)
    assert server.ready() == Ready(messages=rounds(1))
    assert server.take(heard("b", "a", 2, 1)).reads == (Read(7, 2), Read(8, 2))


def test_a_follower_passes_on_that_its_read_can_wait_and_asks_again_only_after_a_heartbeat_more() -> None:
    server = follower("1", leader="b")
    server.raft.read_index(7, can_wait=True)
    term = server.raft.current_term
    asked = ask_read("a", "b", term, 7)
    assert server.ready() == Ready(messages=(msgspec.structs.replace(asked, can_wait=True),))
    for _ in range(2 * HEARTBEAT - 1):
        server.raft.tick()
        assert server.ready() == Ready()
    server.raft.tick()
    assert server.ready() == Ready(messages=(asked,))


def test_a_leader_alone_needs_no_round() -> None:
    """A cluster of one is its own majority."""
    server = follower("1", voters="a")
    server.tick(ELECTION)
    server.drain()
    server.raft.read_index(7)
    assert server.ready() == Ready(reads=(Read(7, 2),))


def test_the_read_index_is_the_commit_index_when_the_read_arrived() -> None:
    """6.4, step 2: "saves its current commit index in a local variable readIndex"; later commits do not delay it."""
    server = leader("1", term=2, matched="bc")
    server.raft.read_index(7)
    server.ready()
    server.raft.propose([b"x"])
    server.ready()
    ready = server.take(heard("b", "a", 2, 1))
    assert ready.reads == (Read(7, 2),)


def test_a_new_leader_waits_for_an_entry_of_its_term() -> None:
    """6.4, step 1: "If the leader has not yet marked an entry from its current term committed, it waits". B19."""
    server = leader("1", term=2)
    server.raft.read_index(7)
    assert server.take(heard("b", "a", 2, 0), heard("c", "a", 2, 0)) == NOTHING
    ready = server.take(appended("b", "a", 2, 2))
    assert ready == Ready(
        messages=(heartbeat("a", "b", 2, 2, 1), heartbeat("a", "c", 2, 0, 1)), committed=(*log("1"), noop(2, 2))
    )
    assert server.take(heard("c", "a", 2, 1)).reads == (Read(7, 2),)


def test_an_answer_to_an_earlier_round_releases_nothing() -> None:
    """B21: it may have been given before the read arrived, and another leader elected since."""
    server = leader("1", term=2, matched="bc")
    server.tick(HEARTBEAT)
    server.raft.read_index(7)
    server.ready()
    assert server.take(heard("b", "a", 2, 0), heard("c", "a", 2, 0)) == NOTHING
    server.raft.read_index(8)
    assert server.take(heard("b", "a", 2, 1)) == Ready(messages=rounds(2), reads=(Read(7, 2),))
    assert server.take(heard("b", "a", 2, 1), heard("c", "a", 2, 1)) == NOTHING
    assert server.take(heard("c", "a", 2, 2)) == Ready(reads=(Read(8, 2),))


def test_an_answer_to_a_round_that_was_never_asked_proves_nothing() -> None:
    """Garbage from a peer does not release the reads of the future."""
    server = leader("1", term=2, matched="bc")
    server.drain(heard("b", "a", 2, 99))
    server.raft.read_index(7)
    assert server.ready() == Ready(messages=rounds(1))


def test_answers_about_the_log_prove_nothing() -> None:
    """B20: only the answer to a round that began after the read arrived does."""
    server = leader("1", term=2, matched="bc")
    server.raft.read_index(7)
    server.ready()
    assert server.take(appended("b", "a", 2, 2), appended("c", "a", 2, 2)) == NOTHING


def test_one_answer_of_two_is_no_majority_of_five() -> None:
    """6.4: "from a majority of the cluster"; the same server twice counts once."""
    server = leader("1", term=2, voters="abcde", matched="bc")
    server.raft.read_index(7)
    server.ready()
    assert server.take(heard("b", "a", 2, 1), heard("b", "a", 2, 1)) == NOTHING
    assert server.take(heard("c", "a", 2, 1)).reads == (Read(7, 2),)


def test_learners_do_not_confirm_reads() -> None:
    """Thesis 4.2.1: they elect nobody either, so they prove nothing."""
    server = leader("1", term=2, matched="bc", learners="de")
    server.raft.read_index(7)
    server.ready()
    assert server.take(heard("d", "a", 2, 1), heard("e", "a", 2, 1)) == NOTHING


def test_one_round_serves_all_reads_that_wait() -> None:
    """6.4: "a single round of heartbeats for any number of read-only queries"."""
    server = leader("1", term=2, matched="bc")
    for context in (7, 8, 9):
        server.raft.read_index(context)
    assert server.ready() == Ready(messages=rounds(1))
    assert server.take(heard("b", "a", 2, 1)).reads == (Read(7, 2), Read(8, 2), Read(9, 2))


def test_reads_that_arrive_while_a_round_is_unanswered_share_the_next_round() -> None:
    """Bounded: one round is out, whatever the number of reads. It cannot serve them: it began before they arrived."""
    server = leader("1", term=2, matched="bc")
    server.raft.read_index(7)
    server.ready()
    for context in (8, 9, 10):
        server.raft.read_index(context)
        assert server.ready() == NOTHING
    assert server.take(heard("b", "a", 2, 1)) == Ready(messages=rounds(2), reads=(Read(7, 2),))
    assert server.take(heard("b", "a", 2, 2)).reads == (Read(8, 2), Read(9, 2), Read(10, 2))


def test_a_lost_round_is_asked_again_with_the_next_heartbeat() -> None:
    """Every heartbeat carries the latest round."""
    server = leader("1", term=2, matched="bc")
    server.raft.read_index(7)
    server.ready()
    assert server.tick(HEARTBEAT) == Ready(messages=rounds(1))
    assert server.take(heard("c", "a", 2, 1)).reads == (Read(7, 2),)


def test_a_leader_that_steps_down_refuses_its_reads() -> None:
    """6.4: whoever asks again asks the next leader: no answer would be a hang, an answer a stale read."""
    server = leader("1", term=2, matched="bc")
    server.raft.read_index(7)
    server.ready()
    server.raft.read_index(8)
    assert server.take(heartbeat("b", "a", 3)).reads_refused == (8, 7)
    assert server.take(heard("b", "a", 2, 1), heard("c", "a", 2, 1)).reads == ()


def test_a_deposed_leader_serves_no_read() -> None:
    """The seed's own: "Get served stale by any node". A leader that was cut off never confirms its round."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster.cut("a")
    for node in "bc":
        cluster[node].raft.peer_unreachable("a")
    cluster.elect("b")
    cluster["b"].raft.propose([b"new"])
    cluster.run()
    cluster["a"].raft.read_index(7)
    assert cluster["a"].role() is Role.LEADER
    seen = [cluster["a"].tick() for _ in range(ELECTION)]
    assert all(ready.reads == () for ready in seen)
    assert seen[-1].reads_refused == (7,)


# --- Through a follower -------------------------------------------------------------------------------------------


def test_a_follower_asks_the_leader_for_the_read_index() -> None:
    """6.4: "the follower ... would simply issue a request to the leader asking for a current readIndex"."""
    server = follower("1", leader="b", commit=1)
    server.raft.read_index(7)
    assert server.ready() == Ready(messages=(ask_read("a", "b", 1, 7),))
    assert server.take(answer_read("b", "a", 1, 7, 1)) == Ready(reads=(Read(7, 1),))


def test_a_leader_answers_a_follower_after_a_round() -> None:
    """6.4: steps 1 to 3 on the leader, step 4 on the follower."""
    server = leader("1", term=2, matched="bc")
    assert server.take(ask_read("c", "a", 2, 7)) == Ready(messages=rounds(1))
    assert server.take(heard("b", "a", 2, 1)) == Ready(messages=(answer_read("a", "c", 2, 7, 2),))


def test_a_follower_releases_a_read_when_it_has_applied_the_index() -> None:
    """6.4, step 4: "waits for its state machine to advance at least as far as the readIndex"."""
    server = follower("1", leader="b", commit=1)
    server.raft.read_index(7)
    server.ready()
    assert server.take(answer_read("b", "a", 1, 7, 2)) == NOTHING
    new = command(2, 1)
    assert server.take(append("b", "a", 1, (1, 1), [new], commit=2)).reads == ()
    server.save()
    assert server.ready() == Ready(committed=(new,), reads=(Read(7, 2),))


def test_a_released_read_is_released_once() -> None:
    """A second answer, e.g. to the question that was repeated, finds nothing."""
    server = follower("1", leader="b", commit=1)
    server.raft.read_index(7)
    server.drain()
    server.drain(answer_read("b", "a", 1, 7, 1))
    assert server.take(answer_read("b", "a", 1, 7, 1)) == NOTHING


def test_a_second_answer_releases_no_read_that_was_asked_for_since() -> None:
    """Stale reads: the leader proved that it leads before they were asked for (B21)."""
    server = follower("1", leader="b", commit=1)
    server.raft.read_index(7)
    server.drain()
    server.drain(answer_read("b", "a", 1, 7, 1))
    server.raft.read_index(8)
    server.ready()
    assert server.take(answer_read("b", "a", 1, 7, 1)) == NOTHING
    assert server.take(answer_read("b", "a", 1, 8, 1)) == Ready(reads=(Read(8, 1),))


def test_a_follower_asks_again_until_it_is_answered() -> None:
    """The question or the answer may be lost."""
    server = follower("1", leader="b", commit=1)
    server.raft.read_index(7)
    server.ready()
    assert server.tick(HEARTBEAT) == Ready(messages=(ask_read("a", "b", 1, 7),))
    server.raft.abandon_read(7)
    assert server.tick(HEARTBEAT) == NOTHING
    assert server.take(answer_read("b", "a", 1, 7, 1)) == NOTHING


def test_a_follower_repeats_its_latest_question_only() -> None:
    """B18: a leader that cannot answer yet must not be asked once for each read that waits, again and again."""
    server = follower("1", leader="b", commit=1)
    for context in range(1000):
        server.raft.read_index(context)
    server.ready()
    assert server.tick(HEARTBEAT) == Ready(messages=(ask_read("a", "b", 1, 999),))
    assert server.tick(HEARTBEAT - 1) == NOTHING
    assert server.tick() == Ready(messages=(ask_read("a", "b", 1, 999),))


def test_an_answer_answers_every_earlier_question_and_no_later_one() -> None:
    """6.4: its round began after they were asked. Of the later ones it proves nothing (B21)."""
    server = follower("1", leader="b", commit=1)
    for context in (7, 8, 9):
        server.raft.read_index(context)
    server.raft.abandon_read(7)
    server.ready()
    assert server.take(answer_read("b", "a", 1, 8, 1)) == Ready(reads=(Read(8, 1),))
    server.raft.read_index(5)
    server.ready()
    assert server.take(answer_read("b", "a", 1, 9, 1)) == Ready(reads=(Read(9, 1),))
    assert server.take(answer_read("b", "a", 1, 5, 1)) == Ready(reads=(Read(5, 1),))
    for context in (10, 11):
        server.raft.read_index(context)
    server.ready()
    assert server.take(answer_read("b", "a", 1, 11, 1)) == Ready(reads=(Read(10, 1), Read(11, 1)))


def test_a_leader_that_cannot_answer_yet_keeps_one_question_of_each_server() -> None:
    """Bounded: until an entry of its term is committed, reads may come for minutes."""
    server = leader("1", term=2)
    for context in range(1000):
        assert server.take(ask_read("b", "a", 2, context), ask_read("c", "a", 2, context // 2)) == NOTHING
    server.drain(appended("b", "a", 2, 2))
    answers = (answer_read("a", "b", 2, 999, 2), answer_read("a", "c", 2, 499, 2))
    assert server.take(heard("b", "a", 2, 1)) == Ready(messages=answers)


def test_a_leader_forgets_a_read_that_was_given_up() -> None:
    """Bounded: what its own callers no longer wait for does not wait, either."""
    server = leader("1", term=2)
    server.raft.read_index(7)
    server.raft.read_index(8)
    server.raft.abandon_read(7)
    server.drain(appended("b", "a", 2, 2))
    assert server.take(heard("b", "a", 2, 1)) == Ready(reads=(Read(8, 2),))


def test_a_follower_that_is_refused_a_read_knows_that_nobody_leads() -> None:
    """Else it would ask the same server again at once, as fast as the network goes, until its timeout."""
    server = follower("1", leader="b", commit=1)
    server.tick(ELECTION // 2)
    server.raft.read_index(7)
    server.raft.read_index(8)
    server.ready()
    assert server.take(answer_read("b", "a", 1, 7, 0)) == Ready(reads_refused=(7, 8))
    assert server.raft.leader is None
    with pytest.raises(NoLeaderError):
        server.raft.read_index(9)
    # No lease protects a leader that is gone, and the election is not put off.
    assert server.take(request_pre_vote("c", "a", 2, (1, 1))).messages == (pre_vote("a", "c", 2),)
    assert server.tick(ELECTION - ELECTION // 2 - 1) == NOTHING
    server.tick()
    assert server.role() is Role.PRE_CANDIDATE


def test_a_follower_without_a_leader_says_so() -> None:
    """Nobody to ask: the caller tries again."""
    for server in (follower("1"), candidate("1", term=2)):
        with pytest.raises(NoLeaderError):
            server.raft.read_index(7)


def test_a_follower_whose_leader_changes_refuses_what_it_had_asked() -> None:
    """The old leader may never answer, and its answers no longer count."""
    server = follower("1", leader="b", commit=1)
    server.raft.read_index(7)
    server.drain()
    assert server.take(heartbeat("c", "a", 2)).reads_refused == (7,)
    server.drain()
    assert server.take(answer_read("b", "a", 1, 7, 1)) == NOTHING


def test_an_answer_from_another_than_the_leader_does_not_count() -> None:
    """Only the leader of this term can know."""
    server = follower("1", leader="b", commit=1)
    server.raft.read_index(7)
    server.ready()
    assert server.take(answer_read("c", "a", 1, 7, 1)) == NOTHING
    assert server.take(answer_read("b", "a", 1, 7, 1)).reads == (Read(7, 1),)


def test_one_that_does_not_lead_refuses_at_once() -> None:
    """The follower need not wait for its timeout to ask another."""
    server = follower("1", leader="b")
    assert server.take(ask_read("c", "a", 1, 7)) == Ready(messages=(answer_read("a", "c", 1, 7, 0),))
    server = follower("1", leader="b", commit=1)
    server.raft.read_index(7)
    server.ready()
    assert server.take(answer_read("b", "a", 1, 7, 0)) == Ready(reads_refused=(7,))


def test_a_read_that_was_passed_survives_a_change_of_leader() -> None:
    """Its index was proven; it only waits to be applied."""
    server = follower("11", leader="b", commit=1)
    server.raft.read_index(7)
    server.ready()
    server.drain(answer_read("b", "a", 1, 7, 2))
    server.drain(request_vote("c", "a", 2, (2, 1), transfer=True))
    assert server.take(heartbeat("c", "a", 2, commit=2)) == Ready(
        messages=(heard("a", "c", 2),), committed=(command(2, 1),), reads=(Read(7, 2),)
    )


@pytest.mark.parametrize("node", "abc")
def test_a_read_after_a_write_sees_it_on_every_server(node: str) -> None:
    """Section 8, linearizability: what was acknowledged before the read began is applied before it is served."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    index, _ = cluster["a"].raft.propose([b"x"])
    cluster.run()
    assert cluster.applied["a"][-1].index == index
    cluster[node].raft.read_index(7)
    released: list[Read] = []
    for _ in range(10):
        for name, server in cluster.servers.items():
            ready = server.ready()
            cluster.applied[name] += ready.committed
            released += ready.reads
            cluster._deliver(ready.messages)
    assert [(read.context, read.index >= index) for read in released] == [(7, True)]
    assert cluster.applied[node][-1].index >= index


# --- ReadRounds -----------------------------------------------------------------------------------------------------


def test_a_round_takes_all_that_wait_and_only_those() -> None:
    rounds = ReadRounds()
    assert not rounds.can_start()
    rounds.add(WaitingRead("a", 1))
    assert rounds.can_start()
    rounds.start(5)
    rounds.add_latest(WaitingRead("b", 1))
    rounds.add_latest(WaitingRead("b", 2))
    assert not rounds.can_start()
    assert rounds.confirmed(0) == []
    assert rounds.confirmed(1) == [(WaitingRead("a", 1), 5)]
    assert rounds.confirmed(1) == []
    assert rounds.can_start()
    rounds.start(6)
    assert rounds.confirmed(1) == []
    assert rounds.confirmed(2) == [(WaitingRead("b", 2), 6)]
    assert not rounds.can_start()


def test_draining_gives_up_every_read_once() -> None:
    rounds = ReadRounds()
    rounds.add(WaitingRead("a", 1))
    rounds.start(5)
    rounds.add(WaitingRead("a", 2))
    assert sorted(read.context for read in rounds.drain()) == [1, 2]
    assert rounds.drain() == []
    assert rounds.confirmed(9) == []


def test_what_is_given_back_is_handed_over_again_with_the_reads_that_wait_for_it() -> None:
    server = Server(log("1111"), term=1)
    raft = server.raft
    raft.step(heartbeat("b", "a", 1, commit=2))
    server.ready()
    raft.read_index(7)
    raft.step(heartbeat("b", "a", 1, commit=4))
    handed = server.take(answer_read("b", "a", 1, 7, 4))
    assert ([entry.index for entry in handed.committed], handed.reads) == ([3, 4], (Read(7, 4),))
    raft.give_back(3, handed.reads)
    assert raft.log.applied_index == 3
    again = server.ready()
    assert ([entry.index for entry in again.committed], again.reads) == ([4], handed.reads)
    with pytest.raises(InvariantViolatedError, match="cannot apply from"):
        raft.give_back(5, ())
