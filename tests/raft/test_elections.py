"""Sections 5.1, 5.2 and 5.4.1 of the Raft paper; pre-vote (thesis 9.6) and check-quorum (thesis 6.2)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest
from raft.harness import (
    ELECTION,
    HEARTBEAT,
    NOTHING,
    Cluster,
    Drawing,
    Server,
    answer_read,
    append,
    appended,
    ask_read,
    candidate,
    command,
    configuration,
    configuration_entry,
    follower,
    heard,
    heartbeat,
    install,
    installed,
    leader,
    log,
    noop,
    pre_candidate,
    pre_vote,
    refused,
    request_pre_vote,
    request_vote,
    saves,
    timeout_now,
    vote,
)

from kvorum.errors import ConfigError, InvariantViolatedError, MalformedMessageError
from kvorum.raft import RaftConfig, Role
from kvorum.raft.messages import (
    INDEX_MAX,
    TERM_JUMP_MAX,
    Configuration,
    HardState,
    Message,
    Ready,
    RequestVote,
    Snapshot,
)

# --- Section 5.1: terms ---------------------------------------------------------------------------------------------

EVERY_MESSAGE: list[Message] = [
    vote("b", "a", 9, granted=False),
    pre_vote("b", "a", 9, granted=False),
    append("b", "a", 9, (1, 1)),
    appended("b", "a", 9, 1),
    heartbeat("b", "a", 9),
    heard("b", "a", 9),
    ask_read("b", "a", 9, 7),
    answer_read("b", "a", 9, 7, 1),
    install("b", "a", 9, Snapshot(1, 1, Configuration())),
    installed("b", "a", 9, 1),
    request_vote("b", "a", 9, (1, 1), transfer=True),
]


@pytest.mark.parametrize("make", [follower, lambda: candidate(term=2), lambda: leader(term=2, matched="bc")])
@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_a_higher_term_is_entered_as_a_follower_and_saved(make: Callable[[], Server], message: Message) -> None:
    """Figure 2: "If RPC ... contains term T > currentTerm: set currentTerm = T, convert to follower"."""
    server = make()
    ready = server.take(message)
    assert (server.role(), server.raft.current_term) == (Role.FOLLOWER, 9)
    assert ready.save is not None and ready.save.hard_state.current_term == 9
    assert ready.messages == ()


@pytest.mark.parametrize("make", [follower, lambda: candidate(term=2), lambda: leader(term=2, matched="bc")])
@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_no_message_moves_the_term_by_more_than_elections_can_explain(
    make: Callable[[], Server], message: Message
) -> None:
    """One RequestVote of term 2^62-1 would leave no term in which anybody could be elected."""
    server = make()
    term, role = server.raft.current_term, server.role()
    for far in (term + TERM_JUMP_MAX + 1, INDEX_MAX - 1):
        with pytest.raises(MalformedMessageError, match="ahead of term"):
            server.raft.step(msgspec.structs.replace(message, term=far))
        assert (server.raft.current_term, server.role()) == (term, role)
    assert not (ready := server.raft.ready()) or (ready.save is None and ready.messages == ())
    server.raft.step(msgspec.structs.replace(message, term=term + TERM_JUMP_MAX))
    assert server.raft.current_term == term + TERM_JUMP_MAX


def test_a_campaign_is_for_a_term_that_is_drawn_once_for_each_term() -> None:
    """A disk that was set back forgets terms: those that come after are hardly the same again."""
    server = Server(
        log("1"), term=1, config=RaftConfig("a", ELECTION, HEARTBEAT, term_step_max=1024), random=Drawing(700, 3, 1024)
    )
    asked = server.tick(ELECTION).messages
    assert {(message.term, message.pre_vote) for message in asked if isinstance(message, RequestVote)} == {(701, True)}
    assert server.raft.current_term == 1
    again = server.tick(ELECTION).messages
    assert {message.term for message in again} == {701}, "the same as long as the term is the same"
    server.drain(pre_vote("b", "a", 701))
    assert (server.role(), server.raft.current_term) == (Role.CANDIDATE, 701)
    server.drain(vote("b", "a", 701))
    assert server.role() is Role.LEADER
    server.drain(heartbeat("c", "a", 705))
    asked = server.tick(ELECTION).messages
    assert {message.term for message in asked} == {705 + 1024}


def test_a_server_told_to_campaign_enters_the_term_that_is_drawn() -> None:
    config = RaftConfig("a", ELECTION, HEARTBEAT, term_step_max=1024)
    server = Server(log("1"), term=1, config=config, random=Drawing(500, 1))
    server.drain(timeout_now("b", "a", 1))
    assert (server.role(), server.raft.current_term) == (Role.CANDIDATE, 501)


@pytest.mark.parametrize("step", [0, -1, TERM_JUMP_MAX + 1])
def test_a_step_of_terms_that_would_be_refused_is_no_configuration(step: int) -> None:
    with pytest.raises(ConfigError, match="raises the term by"):
        RaftConfig("a", term_step_max=step)


def test_only_a_leader_takes_an_empty_server_into_an_old_cluster() -> None:
    for far in (TERM_JUMP_MAX + 1, INDEX_MAX - 1):
        server = Server()
        with pytest.raises(MalformedMessageError):
            server.raft.step(request_vote("b", "a", far, (1, 1), transfer=True))
        assert server.raft.current_term == 0
        server.raft.step(heartbeat("b", "a", far))
        assert server.raft.current_term == far


@pytest.mark.parametrize(
    "message",
    [
        vote("b", "a", 1),
        pre_vote("b", "a", 1, granted=False),
        appended("b", "a", 1, 1),
        heard("b", "a", 1),
        ask_read("b", "a", 1, 7),
        answer_read("b", "a", 1, 7, 1),
        install("b", "a", 1, Snapshot(9, 1, Configuration())),
        installed("b", "a", 1, 1),
        timeout_now("b", "a", 1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_of_an_old_term_changes_nothing(message: Message) -> None:
    """5.1: "If a server receives a request with a stale term number, it rejects the request"."""
    server = follower("1", term=3, leader="c")
    assert server.take(message) == NOTHING


def test_a_deposed_leader_is_told_of_the_new_term() -> None:
    """Figure 2, AppendEntries: "Reply false if term < currentTerm" with currentTerm "for leader to update itself"."""
    server = follower("1", term=3)
    assert server.take(append("b", "a", 2, (1, 1), [command(2, 2)])) == Ready(messages=(refused("a", "b", 3, 1),))
    assert server.take(heartbeat("b", "a", 2, round=5)) == Ready(messages=(heard("a", "b", 3, round=0),))


def test_the_answer_to_an_old_term_waits_until_the_new_term_is_durable() -> None:
    """B3: every message carries the term, so none leaves before the term is on disk."""
    server = follower("1", term=1)
    ready = server.take(heartbeat("b", "a", 3), heartbeat("c", "a", 2))
    assert ready == Ready(save=saves(3, None), messages_after_save=(heard("a", "b", 3), heard("a", "c", 3)))


def test_a_message_to_another_server_changes_nothing() -> None:
    """A frame that was delivered to the wrong process, e.g. after an address was given to another pod."""
    server = follower("1")
    assert server.take(request_vote("b", "c", 9, (9, 9)), append("b", "c", 9, (1, 1))) == NOTHING
    assert server.take(append("a", "a", 9, (1, 1))) == NOTHING
    assert server.raft.current_term == 1


# --- Section 5.2: elections -----------------------------------------------------------------------------------------


def test_a_server_starts_as_a_follower() -> None:
    """5.2: "When servers start up, they begin as followers"."""
    server = Server(log("112"), term=2, voted_for="a")
    assert server.ready() == NOTHING
    assert (server.role(), server.raft.leader) == (Role.FOLLOWER, None)


def test_a_follower_remains_one_as_long_as_it_hears_the_leader() -> None:
    """5.2: "A server remains in follower state as long as it receives valid RPCs from a leader or candidate"."""
    server = follower("1", leader="b")
    for _ in range(5):
        assert server.tick(ELECTION - 1) == NOTHING
        assert server.take(heartbeat("b", "a", 1)) == Ready(messages=(heard("a", "b", 1),))
    for _ in range(5):
        assert server.tick(ELECTION - 1) == NOTHING
        assert server.take(append("b", "a", 1, (1, 1))) == Ready(messages=(appended("a", "b", 1, 1),))
    assert server.role() is Role.FOLLOWER


def test_a_follower_that_hears_nothing_asks_whether_it_could_win() -> None:
    """5.2: "If a follower receives no communication over a period of time ... it ... begins an election".

    9.6: first it only asks whether it could win, in the term that it has.
    """
    server = follower("112", leader="b")
    assert server.tick(ELECTION - 1) == NOTHING
    asks = tuple(request_pre_vote("a", node, 3, (3, 2)) for node in "bc")
    assert server.tick() == Ready(messages=asks)
    assert (server.role(), server.raft.current_term, server.raft.leader) == (Role.PRE_CANDIDATE, 2, None)


def test_a_pre_vote_is_asked_again_after_another_timeout() -> None:
    """5.2: "each candidate will time out and start a new election"; nothing is saved for a pre-vote."""
    server = pre_candidate("112")
    assert server.tick(ELECTION - 1) == NOTHING
    assert server.tick() == Ready(messages=tuple(request_pre_vote("a", node, 3, (3, 2)) for node in "bc"))


def test_a_candidate_increments_its_term_votes_for_itself_and_asks_the_others() -> None:
    """5.2: "increments its current term ... votes for itself and issues RequestVote RPCs in parallel to each"."""
    server = pre_candidate("112")
    ready = server.take(pre_vote("b", "a", 3))
    asks = tuple(request_vote("a", node, 3, (3, 2)) for node in "bc")
    assert ready == Ready(save=saves(3, "a"), messages_after_save=asks)
    assert server.role() is Role.CANDIDATE


def test_a_candidate_that_times_out_starts_a_new_election() -> None:
    """Figure 2, candidates: "If election timeout elapses: start new election" (by a pre-vote, thesis 9.6)."""
    server = candidate("1", term=2)
    assert server.tick(ELECTION - 1) == NOTHING
    assert server.tick() == Ready(messages=tuple(request_pre_vote("a", node, 3, (1, 1)) for node in "bc"))
    ready = server.take(pre_vote("c", "a", 3))
    assert ready.save == saves(3, "a")


@pytest.mark.parametrize(("voters", "needed"), [("ab", 1), ("abc", 1), ("abcd", 2), ("abcde", 2), ("abcdefg", 3)])
def test_a_candidate_wins_with_a_majority_and_not_before(voters: str, needed: int) -> None:
    """5.2: "A candidate wins an election if it receives votes from a majority of the servers in the full cluster"."""
    server = candidate("1", term=2, voters=voters)
    for node in voters[1:needed]:
        server.drain(vote(node, "a", 2))
        server.drain(vote(node, "a", 2))  # Told twice, counted once.
        assert server.role() is Role.CANDIDATE
    server.drain(vote(voters[needed], "a", 2))
    assert server.role() is Role.LEADER


def test_a_new_leader_tells_everybody_and_appends_an_entry_of_its_term() -> None:
    """5.2: "Once a candidate wins an election, it becomes leader. It then sends heartbeat messages".

    Section 8: "a blank no-op entry into the log at the start of its term". Figure 2: nextIndex: "leader last log
    index + 1".
    """
    server = candidate("12", term=3)
    first = noop(3, 3)
    assert server.take(vote("b", "a", 3)) == Ready(
        save=saves(3, "a", [first]),
        messages=(
            heartbeat("a", "b", 3),
            heartbeat("a", "c", 3),
            append("a", "b", 3, (2, 2), [first]),
            append("a", "c", 3, (2, 2), [first]),
        ),
    )
    assert (server.role(), server.raft.leader) == (Role.LEADER, "a")


def test_a_vote_is_given_to_the_first_who_asks_in_a_term() -> None:
    """5.2: "Each server will vote for at most one candidate in a given term, on a first-come-first-served basis"."""
    server = follower("1", term=1)
    assert server.take(request_vote("b", "a", 2, (1, 1))) == Ready(
        save=saves(2, "b"), messages_after_save=(vote("a", "b", 2),)
    )
    server.save()
    assert server.take(request_vote("c", "a", 2, (9, 1))) == Ready(messages=(vote("a", "c", 2, granted=False),))


def test_the_same_candidate_is_answered_again() -> None:
    """Figure 2, RequestVote: "If votedFor is null or candidateId ...": its first answer may have been lost."""
    server = follower("1", term=2, voted_for="b")
    assert server.take(request_vote("b", "a", 2, (1, 1))) == Ready(messages=(vote("a", "b", 2),))


def test_a_candidate_does_not_vote_for_another() -> None:
    """5.2: it voted for itself."""
    server = candidate("1", term=2)
    assert server.take(request_vote("b", "a", 2, (9, 1))) == Ready(messages=(vote("a", "b", 2, granted=False),))


def test_a_candidate_of_an_old_term_is_refused_and_told_the_term() -> None:
    """Figure 2, RequestVote: "Reply false if term < currentTerm"."""
    server = follower("1", term=3)
    assert server.take(request_vote("b", "a", 2, (9, 2))) == Ready(messages=(vote("a", "b", 3, granted=False),))


def test_granting_a_vote_starts_the_election_timeout_again() -> None:
    """Figure 2, followers: "... without receiving AppendEntries RPC from current leader or granting vote"."""
    server = follower("1", term=2)
    server.tick(ELECTION - 1)
    server.drain(request_vote("b", "a", 2, (1, 1)))
    assert server.tick(ELECTION - 1) == NOTHING


def test_refusing_a_vote_does_not_start_the_election_timeout_again() -> None:
    """Figure 2, followers, as above: only a vote that is *granted* counts."""
    server = follower("12", term=2)
    server.tick(ELECTION - 1)
    server.drain(request_vote("b", "a", 2, (1, 1)), request_pre_vote("c", "a", 3, (1, 1)))
    assert server.tick() == Ready(messages=tuple(request_pre_vote("a", node, 3, (2, 2)) for node in "bc"))


@pytest.mark.parametrize("message", [append("b", "a", 2, (1, 1)), heartbeat("b", "a", 2)], ids=["append", "heartbeat"])
@pytest.mark.parametrize("make", [lambda: candidate(term=2), lambda: pre_candidate("1", term=2)])
def test_a_candidate_recognizes_the_leader_of_its_term(make: Callable[[], Server], message: Message) -> None:
    """5.2: "the candidate recognizes the leader as legitimate and returns to follower state"."""
    server = make()
    server.take(message)
    assert (server.role(), server.raft.leader, server.raft.current_term) == (Role.FOLLOWER, "b", 2)


def test_a_candidate_ignores_a_leader_of_an_old_term() -> None:
    """5.2: "If the term in the RPC is smaller ... the candidate rejects the RPC and continues in candidate state"."""
    server = candidate("1", term=2)
    assert server.take(append("b", "a", 1, (1, 1))) == Ready(messages=(refused("a", "b", 2, 1),))
    assert server.role() is Role.CANDIDATE


def test_a_candidate_that_cannot_win_any_more_becomes_a_follower() -> None:
    """5.2, outcome (b) or (c): a majority refused; waiting for the timeout would change nothing."""
    server = candidate("1", term=2, voters="abcde")
    server.drain(*(vote(node, "a", 2, granted=False) for node in "bc"))
    assert server.role() is Role.CANDIDATE
    assert server.take(vote("d", "a", 2, granted=False)) == NOTHING
    assert server.role() is Role.FOLLOWER


def test_election_timeouts_are_drawn_at_random_from_an_interval() -> None:
    """5.2: "election timeouts are chosen randomly from a fixed interval"; here from T to 2 T - 1 ticks."""
    drawn = set()
    random = Random(1)
    for _ in range(300):
        server = Server(log("1"), term=1, random=random)
        ticks = 1
        while server.tick() == NOTHING:
            ticks += 1
        drawn.add(ticks)
    assert drawn == set(range(ELECTION, 2 * ELECTION))


def test_every_timeout_is_drawn_anew() -> None:
    """5.2: "Each candidate restarts its randomized election timeout at the start of an election"."""
    server = Server(log("1"), term=1, random=Random(2))
    drawn = []
    for _ in range(20):
        ticks = 1
        while server.tick() == NOTHING:
            ticks += 1
        drawn.append(ticks)
    assert len(set(drawn)) > 5


def test_two_leaders_of_one_term_are_an_invariant_violation() -> None:
    """Figure 3, Election Safety: "at most one leader can be elected in a given term"."""
    with pytest.raises(InvariantViolatedError):
        leader("1", term=2).take(heartbeat("b", "a", 2))
    with pytest.raises(InvariantViolatedError):
        follower("1", term=2, leader="b").take(append("c", "a", 2, (1, 1)))


@pytest.mark.parametrize("message", [heartbeat("z", "a", 2), append("z", "a", 2, (1, 1))])
def test_a_stranger_that_claims_to_lead_the_term_of_another_is_refused(message: Message) -> None:
    """Anybody who reaches the peer port can say so: it ended the leader."""
    for server in (leader("1", term=2), follower("1", term=2, leader="b")):
        before = server.raft.leader
        with pytest.raises(MalformedMessageError):
            server.take(message)
        assert (server.raft.leader, server.raft.current_term) == (before, 2)


def test_a_single_server_elects_itself_and_commits_when_its_disk_answers() -> None:
    """A cluster of one: its own vote and its own disk are the majority."""
    server = follower("1", voters="a")
    assert server.tick(ELECTION) == Ready(save=saves(2, "a", [noop(2, 2)]))
    assert server.role() is Role.LEADER
    server.save()
    assert server.ready() == Ready(committed=(*log("1", "a"), noop(2, 2)))


def test_a_leader_answers_no_vote_request_of_its_own_term_with_a_vote() -> None:
    """5.2: it voted for itself."""
    server = leader("1", term=2)
    assert server.take(request_vote("b", "a", 2, (9, 2))) == Ready(messages=(vote("a", "b", 2, granted=False),))


# --- Section 5.4.1: the election restriction ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "granted"),
    [
        ((3, 2), True),  # equal
        ((4, 2), True),  # longer
        ((2, 2), False),  # shorter
        ((1, 3), True),  # later term, however short
        ((9, 1), False),  # earlier term, however long
    ],
)
@pytest.mark.parametrize("is_pre_vote", [False, True])
def test_only_a_candidate_whose_log_is_up_to_date_is_granted(
    last: tuple[int, int], granted: bool, is_pre_vote: bool
) -> None:
    """5.4.1: "If the logs have last entries with different terms, then the log with the later term is more up-to-date".

    "If the logs end with the same term, then whichever log is longer is more up-to-date". B5; the seed's own bug.
    """
    server = follower("112", term=3)
    if is_pre_vote:
        answer = pre_vote("a", "b", 4 if granted else 3, granted)
        assert server.take(request_pre_vote("b", "a", 4, last)) == Ready(messages=(answer,))
        return
    ready = server.take(request_vote("b", "a", 4, last))
    assert ready == Ready(save=saves(4, "b" if granted else None), messages_after_save=(vote("a", "b", 4, granted),))


def test_unsaved_entries_count_when_a_vote_is_weighed() -> None:
    """5.4.1: what was appended may be counted by the leader as soon as it is saved, so it counts from the beginning."""
    server = follower("1", leader="b")
    server.take(append("b", "a", 1, (1, 1), [command(2, 1)]))
    server.tick(ELECTION - 1)
    server.raft.peer_unreachable("b")
    server.take(request_vote("c", "a", 2, (1, 1)))
    assert server.save() == (appended("a", "b", 1, 2),)
    assert server.ready() == Ready(save=saves(2, None), messages_after_save=(vote("a", "c", 2, granted=False),))


def test_the_log_of_a_snapshot_counts_when_a_vote_is_weighed() -> None:
    """5.4.1 with section 7: the last entry may be known by the snapshot only."""
    server = Server(snapshot=Snapshot(5, 2, configuration()), term=2)
    assert server.take(request_vote("b", "a", 3, (4, 2))).messages_after_save == (vote("a", "b", 3, granted=False),)


# --- Stale answers --------------------------------------------------------------------------------------------------


def test_a_vote_of_an_earlier_term_does_not_count() -> None:
    """B4: a late answer to an earlier election."""
    server = candidate("1", term=3)
    assert server.take(vote("b", "a", 2), vote("c", "a", 2)) == NOTHING
    assert server.role() is Role.CANDIDATE


def test_the_first_answer_of_a_voter_counts() -> None:
    """5.2: a vote, once given, is given for the term, whatever arrives after it."""
    server = candidate("1", term=2, voters="abcde")
    server.drain(vote("b", "a", 2), vote("b", "a", 2, granted=False), vote("c", "a", 2))
    assert server.role() is Role.LEADER


def test_a_granted_pre_vote_is_no_vote() -> None:
    """B4: the answer to a pre-vote, late, must not elect."""
    server = candidate("1", term=2)
    assert server.take(pre_vote("b", "a", 2), pre_vote("c", "a", 3)) == NOTHING
    assert server.role() is Role.CANDIDATE


def test_a_vote_is_no_pre_vote() -> None:
    """B4: the late vote of the election before does not start the next."""
    server = candidate("1", term=2)
    server.tick(ELECTION)
    assert server.take(vote("b", "a", 2), vote("c", "a", 2)) == NOTHING
    assert server.role() is Role.PRE_CANDIDATE


def test_a_pre_vote_for_another_term_does_not_count() -> None:
    """B4, B6: it must answer what was asked."""
    server = pre_candidate("1", term=4)
    assert server.take(pre_vote("b", "a", 4), pre_vote("c", "a", 6)) == NOTHING
    assert (server.role(), server.raft.current_term) == (Role.PRE_CANDIDATE, 4)


def test_only_voters_elect() -> None:
    """Thesis 4.2.1: a learner "is not counted"; nor is a stranger."""
    server = candidate("1", term=2, voters="abc", learners="d")
    assert server.take(vote("d", "a", 2), vote("x", "a", 2)) == NOTHING
    assert server.role() is Role.CANDIDATE


# --- Pre-vote, thesis 9.6 -------------------------------------------------------------------------------------------


def test_a_granted_pre_vote_promises_nothing() -> None:
    """9.6: it carries the term that was asked for, and neither the term nor the vote of the one who answers changes."""
    server = follower("1", term=1)
    assert server.take(request_pre_vote("b", "a", 2, (1, 1)), request_pre_vote("c", "a", 2, (1, 1))) == Ready(
        messages=(pre_vote("a", "b", 2), pre_vote("a", "c", 2))
    )
    assert (server.raft.current_term, server.raft.status().voted_for) == (1, None)


@pytest.mark.parametrize("term", [2, 3])
def test_a_pre_vote_for_a_term_that_is_not_new_is_refused(term: int) -> None:
    """B6: the refusal carries the higher term, so that the one who asks catches up instead of asking for ever."""
    server = follower("1", term=3)
    assert server.take(request_pre_vote("b", "a", term, (1, 1))) == Ready(
        messages=(pre_vote("a", "b", 3, granted=False),)
    )


def test_a_refused_pre_candidate_enters_the_higher_term() -> None:
    """B6: two servers that wait for each other's term deadlock otherwise."""
    server = pre_candidate("1", term=1)
    assert server.take(pre_vote("b", "a", 5, granted=False)) == Ready(save=saves(5, None))
    server.save()
    assert server.tick(ELECTION) == Ready(messages=tuple(request_pre_vote("a", node, 6, (1, 1)) for node in "bc"))


def test_a_refused_pre_candidate_waits_for_the_next_timeout() -> None:
    """9.6: no majority, no election."""
    server = pre_candidate("1", term=1)
    assert server.take(*(pre_vote(node, "a", 1, granted=False) for node in "bc")) == NOTHING
    assert (server.role(), server.raft.current_term) == (Role.FOLLOWER, 1)


def test_a_pre_candidate_that_grants_a_vote_gives_up_its_own_candidacy() -> None:
    """5.2: the one it voted for is likely to win; a late pre-vote must not make it depose the winner."""
    server = pre_candidate("1", term=2)
    server.drain(request_vote("b", "a", 2, (1, 1)))
    assert server.role() is Role.FOLLOWER
    assert server.take(pre_vote("c", "a", 3)) == NOTHING


def test_a_server_that_hears_a_leader_does_not_answer_a_candidate() -> None:
    """Section 6, B7: "it does not update its term or grant its vote".

    "If a server receives a RequestVote RPC within the minimum election timeout of hearing from a current leader".
    """
    server = follower("1", leader="b")
    server.tick(ELECTION - 1)
    assert server.take(request_vote("c", "a", 9, (9, 9)), request_pre_vote("c", "a", 9, (9, 9))) == NOTHING
    assert server.raft.current_term == 1


def test_a_server_that_no_longer_hears_a_leader_answers() -> None:
    """Section 6, the other side: the lease ends with the minimum election timeout."""
    server = Server(log("1"), term=1, random=Latest())
    server.drain(heartbeat("b", "a", 1))
    server.tick(ELECTION)
    assert server.take(request_pre_vote("c", "a", 2, (1, 1))) == Ready(messages=(pre_vote("a", "c", 2),))


class Latest(Random):
    """Draws the largest number: the longest election timeout."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return (start if stop is None else stop) - 1


def test_a_leader_is_not_deposed_by_a_candidate_that_it_does_not_need() -> None:
    """Section 6, B7: a removed or partitioned server comes back with a higher term; the others still follow."""
    server = leader("1", term=2, matched="bc")
    assert server.take(request_vote("c", "a", 9, (9, 9)), request_pre_vote("c", "a", 9, (9, 9))) == NOTHING
    assert (server.role(), server.raft.current_term) == (Role.LEADER, 2)


def test_a_candidate_sent_by_the_leader_is_answered_at_once() -> None:
    """Thesis 4.2.3: the lease does not hold against a candidate that the leader itself asked to campaign."""
    server = follower("1", leader="b")
    assert server.take(request_vote("c", "a", 2, (1, 1), transfer=True)) == Ready(
        save=saves(2, "c"), messages_after_save=(vote("a", "c", 2),)
    )


def test_a_partitioned_server_does_not_inflate_its_term() -> None:
    """9.6, B7: however long it is alone, its term stays; it does not disturb when it comes back."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster.cut("c")
    cluster.tick(10 * ELECTION)
    assert (cluster["c"].role(), cluster["c"].raft.current_term) == (Role.PRE_CANDIDATE, 2)
    cluster.cut()
    cluster.tick(2 * ELECTION)
    assert [cluster[node].raft.status().leader for node in "abc"] == ["a", "a", "a"]
    assert cluster["a"].raft.current_term == 2


def test_a_server_with_a_higher_term_and_no_leader_is_heard_in_the_end() -> None:
    """B6: its term is ahead, as its election was cut off, and the lease of the others keeps it out.

    So it answers the leader's heartbeat with its term, and there is a new election.
    """
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster["c"].drain(request_vote("b", "c", 7, (2, 2), transfer=True))
    cluster.tick(4 * ELECTION)
    leaders = {cluster[node].raft.leader for node in "abc"}
    assert len(leaders) == 1 and None not in leaders
    assert {server.raft.current_term for server in cluster.servers.values()} == {8}


# --- Check-quorum, thesis 6.2 ---------------------------------------------------------------------------------------


def test_a_leader_without_a_quorum_steps_down() -> None:
    """6.2: "a leader steps down if an election timeout elapses without a successful round of heartbeats to a majority".

    B6: seen by one side of a bridge only, it would keep the others from electing another.
    """
    server = leader("1", term=2, matched="bc")
    for _ in range(ELECTION - 1):
        server.tick()
    assert server.role() is Role.LEADER
    assert server.tick() == NOTHING
    assert (server.role(), server.raft.leader, server.raft.current_term) == (Role.FOLLOWER, None, 2)


@pytest.mark.parametrize("answer", [heard("b", "a", 2), appended("b", "a", 2, 2), refused("b", "a", 2, 9)])
def test_a_leader_that_hears_a_majority_stays(answer: Message) -> None:
    """6.2: with itself, one other of three is a majority."""
    server = leader("1", term=2, matched="bc")
    for _ in range(3 * ELECTION):
        server.tick()
        server.drain(answer)
    assert server.role() is Role.LEADER


def test_learners_do_not_keep_a_leader_in_office() -> None:
    """6.2: a majority of voters."""
    server = leader("1", term=2, matched="bc", learners="de")
    for _ in range(ELECTION):
        server.tick()
        server.drain(heard("d", "a", 2), heard("e", "a", 2))
    assert server.role() is Role.FOLLOWER


def test_heartbeats_are_sent_in_time() -> None:
    """5.2: "Leaders send periodic heartbeats ... to all followers in order to maintain their authority"."""
    server = leader("1", term=2, matched="bc", learners="d")
    assert server.tick(HEARTBEAT - 1) == NOTHING
    beats = (heartbeat("a", "b", 2, 2), heartbeat("a", "c", 2, 2), heartbeat("a", "d", 2, 0))
    assert server.tick() == Ready(messages=beats)
    assert server.tick(HEARTBEAT - 1) == NOTHING


# --- Who may campaign -----------------------------------------------------------------------------------------------


def test_a_server_without_a_configuration_never_campaigns() -> None:
    """Thesis 4.4: an empty server waits until it is told; it would elect itself otherwise."""
    server = Server()
    assert server.tick(10 * ELECTION) == NOTHING
    assert server.take(request_vote("b", "a", 1, (1, 1))).messages_after_save == (vote("a", "b", 1),)


def test_a_learner_never_campaigns() -> None:
    """B5, thesis 4.2.1: nor when it is told to."""
    server = follower("1", voters="bc", learners="a", leader="b")
    assert server.tick(10 * ELECTION) == NOTHING
    assert server.take(timeout_now("b", "a", 1)) == NOTHING
    assert server.role() is Role.FOLLOWER


def test_a_learner_forgets_a_leader_that_it_no_longer_hears() -> None:
    """Its redirect hints and its reads would go to a dead server for ever."""
    server = follower("1", voters="bc", learners="a", leader="b")
    server.raft.read_index(7)
    server.drain()
    server.tick(ELECTION - 1)
    assert server.raft.leader == "b"
    assert server.tick() == Ready(reads_refused=(7,))
    assert server.raft.leader is None


def test_a_voter_answers_candidates_that_it_does_not_know() -> None:
    """Thesis 4.1: "servers process incoming RPC requests without consulting their current configurations"."""
    server = follower("1", term=1)
    assert server.take(request_vote("x", "a", 2, (1, 1))).messages_after_save == (vote("a", "x", 2),)


def test_a_server_whose_disk_hangs_does_not_campaign() -> None:
    """B8: it could win, and never commit anything."""
    server = follower("1", leader="b")
    server.take(append("b", "a", 1, (1, 1), [command(2, 1)]))
    assert server.tick(5 * ELECTION) == NOTHING
    assert server.take(timeout_now("b", "a", 1)) == NOTHING
    server.save()
    server.ready()
    assert server.tick(ELECTION).messages == tuple(request_pre_vote("a", node, 2, (2, 1)) for node in "bc")


def test_a_leader_whose_disk_hangs_steps_down() -> None:
    """B8: it would be heard of for ever, and commit nothing of its own."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    server.ready()
    for _ in range(ELECTION - 1):
        server.raft.tick()
        server.raft.step(heard("b", "a", 2))
    assert server.role() is Role.LEADER
    server.raft.tick()
    assert server.role() is Role.FOLLOWER


def test_a_leader_whose_disk_hangs_lets_the_furthest_voter_campaign_at_once() -> None:
    """3.10; B8: it knows that it will commit nothing, so the others need not wait for their timeouts, too."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    server.ready()
    for _ in range(ELECTION - 1):
        server.raft.tick()
        server.raft.step(heard("b", "a", 2))
    server.take(appended("c", "a", 2, 3))
    assert server.tick() == Ready(messages=(timeout_now("a", "c", 2),))
    assert server.tick(5 * ELECTION) == NOTHING


def test_a_leader_whose_disk_is_slow_but_moves_stays() -> None:
    """B8, the other side: each save takes almost an election timeout, and that is enough."""
    server = leader("1", term=2, matched="bc")
    for _ in range(5):
        server.raft.propose([b"x"])
        server.ready()
        for _ in range(ELECTION - 1):
            server.raft.tick()
            server.raft.step(heard("b", "a", 2))
        server.save()
    assert server.role() is Role.LEADER


# --- The hint that the leader's connection broke --------------------------------------------------------------------


def test_a_broken_connection_to_the_leader_brings_the_election_forward() -> None:
    """Not in the paper: when the leader's process dies, its sockets close long before the timeout."""
    server = follower("1", leader="b")
    server.raft.peer_unreachable("b")
    assert server.tick() == Ready(messages=tuple(request_pre_vote("a", node, 2, (1, 1)) for node in "bc"))


def test_a_broken_connection_to_another_changes_nothing() -> None:
    server = follower("1", leader="b")
    server.raft.peer_unreachable("c")
    assert server.tick(ELECTION - 1) == NOTHING


def test_a_server_that_suspects_the_leader_answers_candidates() -> None:
    """Otherwise its lease would hold the others back for the rest of the timeout."""
    server = follower("1", leader="b")
    server.raft.peer_unreachable("b")
    assert server.take(request_pre_vote("c", "a", 2, (1, 1))) == Ready(messages=(pre_vote("a", "c", 2),))


def test_a_suspicion_ends_when_the_leader_is_heard() -> None:
    server = follower("1", leader="b")
    server.raft.peer_unreachable("b")
    server.drain(heartbeat("b", "a", 1))
    assert server.take(request_pre_vote("c", "a", 2, (1, 1))) == NOTHING
    assert server.tick(ELECTION - 1) == NOTHING


def test_a_server_remembers_why_it_campaigned() -> None:
    """For the metrics: an election that nobody expects has a reason."""
    server = follower("1", leader="b")
    server.tick(ELECTION)
    assert server.raft.campaign_reason == "timeout"
    server = follower("1", leader="b")
    server.raft.peer_unreachable("b")
    server.tick()
    assert server.raft.campaign_reason == "disconnect"
    server = follower("1", leader="b")
    server.drain(timeout_now("b", "a", 1))
    assert server.raft.campaign_reason == "transfer"


# --- The first server -----------------------------------------------------------------------------------------------


def test_bootstrap_writes_the_first_configuration_and_campaigns() -> None:
    """Thesis 4.4: "the first server's log [is initialized] with a configuration entry"; others learn it from there."""
    server = Server(config=RaftConfig("a", ELECTION, HEARTBEAT))
    server.raft.bootstrap(configuration())
    first = configuration_entry(1, 1, "abc")
    asks = tuple(request_pre_vote("a", node, 2, (1, 1)) for node in "bc")
    assert server.ready() == Ready(save=saves(1, None, [first]), messages_after_save=asks)
    server.save()
    assert server.disk_hard_state == HardState(1, None)
