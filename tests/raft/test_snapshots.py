"""Section 7: log compaction and InstallSnapshot; by pull (the driver fetches the file that the leader offers)."""

from __future__ import annotations

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
    command,
    commands,
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

from kvorum.errors import CommitsLostError, InvariantViolatedError
from kvorum.raft import AddLearner, RaftConfig, Role
from kvorum.raft.messages import Entry, EntryKind, Fetch, InstallSnapshot, Member, Message, Read, Ready, Snapshot
from kvorum.raft.progress import ReplicationState

SNAPSHOT = Snapshot(9, 2, configuration("abcd"))

# --- Taking one -----------------------------------------------------------------------------------------------------


def test_a_snapshot_describes_the_last_entry_it_replaces() -> None:
    """Section 7: "the last included index ... the last included term ... [and] the latest configuration"."""
    server = follower("11223", leader="b", commit=4)
    assert server.raft.snapshot_at(4) == Snapshot(4, 2, configuration(), ((1, 1), (3, 2)))
    assert server.raft.snapshot_at(2) == Snapshot(2, 1, configuration(), ((1, 1),))


def test_a_snapshot_has_the_configuration_as_of_its_last_index() -> None:
    """Section 7: "the latest configuration in the log as of last included index", not the one in force."""
    server = follower("11", leader="b")
    server.drain(append("b", "a", 1, (2, 1), [configuration_entry(3, 1, "abcd"), command(4, 1)], commit=4))
    assert server.raft.snapshot_at(2).configuration == configuration()
    assert server.raft.snapshot_at(3).configuration == configuration("abcd")


@pytest.mark.parametrize("index", [4, 5, 9])
def test_what_is_not_applied_is_in_no_snapshot(index: int) -> None:
    """Section 7: "Servers take snapshots ... covering just the committed entries in [their] log"."""
    with pytest.raises(InvariantViolatedError):
        follower("11223", leader="b", commit=3).raft.snapshot_at(index)


def test_compaction_forgets_what_the_snapshot_covers_but_what_is_retained() -> None:
    """Section 7: "it may delete all log entries up through the last included index"; some are kept for the slow."""
    server = follower("112233", leader="b", commit=6)
    assert server.raft.compact(server.raft.snapshot_at(5), retain=2) == 4
    status = server.raft.status()
    assert (status.first_index, status.last_index, status.snapshot_index) == (4, 6, 5)
    assert server.terms() == "233"
    assert server.raft.log.term(3) == 2  # The entry before the first is still known by its term.
    assert server.raft.log.term(2) is None


def test_a_compacted_log_still_answers_and_grows() -> None:
    """Section 7: the consistency check "for the first log entry following the snapshot"."""
    server = follower("112233", leader="b", commit=6)
    server.raft.compact(server.raft.snapshot_at(6), retain=0)
    new = commands(7, "3")
    assert server.take(append("b", "a", 3, (6, 3), new)) == Ready(
        save=saves(3, None, new), messages_after_save=(appended("a", "b", 3, 7),)
    )
    assert server.take(request_vote("c", "a", 4, (6, 3), transfer=True)).messages == ()
    server.save()
    assert server.ready().messages_after_save == (vote("a", "c", 4, granted=False),)


def test_an_older_snapshot_compacts_nothing() -> None:
    """A snapshot that was begun before a newer one came from the leader."""
    server = follower("112233", leader="b", commit=6)
    server.raft.compact(server.raft.snapshot_at(5), retain=0)
    assert server.raft.compact(Snapshot(3, 2, configuration()), retain=0) == 4
    status = server.raft.status()
    assert (status.snapshot_index, status.first_index) == (5, 6)


def test_the_durable_log_is_not_cut_beyond_the_snapshot_that_is_durable() -> None:
    """A snapshot from the leader is adopted in memory, and not saved, when one of our own is finished.

    The durable log may lose what the finished one covers, not what the other will cover once it is saved.
    """
    server = follower("112233", leader="b", commit=4)
    own = server.raft.snapshot_at(4)
    server.drain(heartbeat("b", "a", 3, commit=6))
    offer = install("b", "a", 3, Snapshot(20, 3, configuration()))
    server.raft.step(offer)
    server.raft.fetched(offer.snapshot)
    assert server.raft.compact(own, retain=0) == 5


def test_a_server_starts_from_its_snapshot() -> None:
    """Section 7: the log begins behind it; it is committed and applied."""
    server = Server(commands(10, "22"), term=2, snapshot=SNAPSHOT)
    status = server.raft.status()
    assert (status.commit_index, status.applied_index, status.first_index, status.last_index) == (9, 9, 10, 11)
    assert (status.configuration, status.configuration_index) == (SNAPSHOT.configuration, 9)
    assert server.take(heartbeat("b", "a", 2, commit=10)).committed == commands(10, "2")


def test_a_state_machine_that_is_rebuilt_is_given_its_entries_again() -> None:
    """Not in the paper: a node whose state hash differs loads its snapshot and applies what follows."""
    server = follower("112233", leader="b", commit=5)
    server.raft.reapply_from(2)
    assert server.ready() == Ready(committed=commands(3, "223"))
    for index in (6, -1):
        with pytest.raises(InvariantViolatedError):
            server.raft.reapply_from(index)


def test_a_state_that_was_given_up_may_be_rebuilt_from_a_later_one_than_it_was() -> None:
    """Until then nothing is handed over; what follows it is the next to be."""
    server = Server(commands(1, "112"), term=2)
    server.raft.step(append("b", "a", 2, (3, 2), (), commit=1))
    server.ready()
    server.raft.hold_committed()
    server.drain(append("b", "a", 2, (3, 2), commands(4, "222"), commit=5))
    assert (server.raft.log.applied_index, server.raft.log.commit_index) == (1, 5)
    with pytest.raises(InvariantViolatedError):
        server.raft.reapply_from(6)  # It is not known to be committed.
    assert server.ready() is None or not server.ready().committed
    server.raft.reapply_from(4)
    assert server.ready().committed == commands(5, "2")


# --- Installing one -------------------------------------------------------------------------------------------------


def test_a_snapshot_replaces_the_whole_log() -> None:
    """Figure 13, 7 and 8: "Discard the entire log. Reset state machine using snapshot contents" (and configuration)."""
    server = follower("112", leader="b", commit=2)
    ready = server.install(install("b", "a", 2, SNAPSHOT))
    assert ready == Ready(save=saves(2, None, snapshot=SNAPSHOT), messages_after_save=(installed("a", "b", 2, 9),))
    assert (server.terms(), server.raft.configuration) == ("", SNAPSHOT.configuration)
    assert server.save() == (installed("a", "b", 2, 9),)
    assert server.ready() == Ready(restore=SNAPSHOT)
    status = server.raft.status()
    assert (status.commit_index, status.applied_index, status.saved_index, status.last_index) == (9, 9, 9, 9)
    server.crash()
    assert server.raft.status().last_index == 9


def test_a_snapshot_is_restored_only_when_it_is_durable() -> None:
    """B26: "a snapshot adopted but not restored", or restored and then forgotten."""
    server = follower("112", leader="b", commit=2)
    server.install(install("b", "a", 2, SNAPSHOT))
    assert server.take(append("b", "a", 2, (9, 2), commands(10, "2"), commit=10)) == NOTHING
    assert server.raft.log.applied_index == 2
    server.save()
    ready = server.ready()
    assert ready == Ready(
        save=saves(2, None, commands(10, "2")), messages_after_save=(appended("a", "b", 2, 10),), restore=SNAPSHOT
    )
    server.save()
    assert server.ready() == Ready(committed=commands(10, "2"))


def test_entries_behind_the_snapshot_are_saved_and_applied_with_it() -> None:
    """B26: one save for both, restore before apply, reads after both."""
    server = follower("112", leader="b", commit=2)
    server.raft.step(install("b", "a", 2, SNAPSHOT))
    server.raft.fetched(SNAPSHOT)
    server.raft.step(append("b", "a", 2, (9, 2), commands(10, "22"), commit=11))
    answers = (installed("a", "b", 2, 9), appended("a", "b", 2, 11))
    assert server.ready() == Ready(save=saves(2, None, commands(10, "22"), SNAPSHOT), messages_after_save=answers)
    server.save()
    assert server.ready() == Ready(restore=SNAPSHOT, committed=commands(10, "22"))


def test_a_log_that_holds_what_the_snapshot_covers_is_kept() -> None:
    """Figure 13, 6: "If existing log entry has same index and term ... retain log entries following it and reply"."""
    server = follower("1122233", leader="b", commit=2)
    ready = server.take(install("b", "a", 3, Snapshot(5, 2, configuration(), ((1, 1), (2, 2)))))
    assert ready == Ready(messages=(installed("a", "b", 3, 5),), committed=commands(3, "222"))
    assert server.terms() == "1122233"


def test_a_conflicting_entry_at_the_snapshots_last_index_is_not_kept() -> None:
    """B26: same index, other term: the whole log goes."""
    server = follower("1111111", term=3, leader="b", commit=2)
    snapshot = Snapshot(5, 2, configuration())
    assert server.install(install("b", "a", 3, snapshot)).save == saves(3, None, snapshot=snapshot)
    assert (server.terms(), server.raft.log.last_index) == ("", 5)


def test_an_old_snapshot_undoes_nothing() -> None:
    """Section 7: "snapshot [that] describes a prefix of its log": what is committed here is there; B12, B26."""
    server = follower("11222", leader="b", commit=4)
    assert server.take(install("b", "a", 2, Snapshot(3, 2, configuration()))) == Ready(
        messages=(installed("a", "b", 2, 4),)
    )
    assert server.terms() == "11222"


def test_a_snapshot_that_contradicts_what_is_committed_is_refused() -> None:
    """5.4.3, State Machine Safety: two servers would have applied different entries at one index."""
    for index, term in ((3, 1), (2, 2)):  # at what was committed last, and before it
        server = follower("112", leader="b", commit=3)
        with pytest.raises(CommitsLostError, match=f"yet an entry of term {3 - term} is committed there"):
            server.raft.step(install("b", "a", 2, Snapshot(index, term, configuration())))


def test_a_snapshot_older_than_the_log_undoes_nothing() -> None:
    """B12, B26: as above, where the log no longer reaches back to it."""
    server = Server(commands(10, "22"), term=2, snapshot=SNAPSHOT)
    assert server.take(install("b", "a", 2, Snapshot(3, 2, configuration()))) == Ready(
        messages=(installed("a", "b", 2, 9),)
    )
    assert (server.terms(), server.raft.configuration) == ("22", SNAPSHOT.configuration)


def test_a_snapshot_that_comes_twice_is_saved_once() -> None:
    """The leader offers it again now and then; the answers wait for the one save."""
    server = follower("112", leader="b", commit=2)
    server.install(install("b", "a", 2, SNAPSHOT))
    assert server.take(install("b", "a", 2, SNAPSHOT)) == NOTHING
    server.save()
    assert server.ready() == Ready(messages=(installed("a", "b", 2, 9),), restore=SNAPSHOT)


def test_a_newer_snapshot_overtakes_one_that_is_being_saved() -> None:
    """B26: only the newer is restored, after its own save: the log no longer follows the older."""
    server = follower("112", leader="b", commit=2)
    server.install(install("b", "a", 2, SNAPSHOT))
    newer = Snapshot(20, 2, configuration())
    assert server.install(install("b", "a", 2, newer)) == NOTHING
    server.save()
    ready = server.ready()
    assert ready == Ready(save=saves(2, None, snapshot=newer), messages_after_save=(installed("a", "b", 2, 20),))
    assert server.raft.log.applied_index == 2
    server.save()
    assert server.ready() == Ready(restore=newer)
    assert server.raft.log.applied_index == 20


def test_a_newer_snapshot_overtakes_one_that_was_saved_and_not_handed_over() -> None:
    """B26: and a read that the older would have released waits: the state machine never was there."""
    server = follower("112", leader="b", commit=2)
    server.raft.read_index(7)
    server.drain()
    server.drain(answer_read("b", "a", 2, 7, 9))
    server.install(install("b", "a", 2, SNAPSHOT))
    server.save()
    newer = Snapshot(20, 2, configuration())
    assert server.install(install("b", "a", 2, newer)).save == saves(2, None, snapshot=newer)
    server.save()
    assert server.ready() == Ready(restore=newer, reads=(Read(7, 9),))


def test_a_snapshot_that_arrives_during_a_save_of_entries() -> None:
    """B26: the entries in flight are gone from the log; their save must not count for anything behind the snapshot."""
    server = follower("1", leader="b")
    server.take(append("b", "a", 1, (1, 1), commands(2, "111")))
    assert server.install(install("b", "a", 1, Snapshot(9, 1, configuration()))) == NOTHING
    server.save()
    assert (server.raft.log.saved_index, server.raft.log.applied_index) == (0, 0)
    assert server.ready().save == saves(1, None, snapshot=Snapshot(9, 1, configuration()))


def test_an_unsaved_tail_that_the_snapshot_covers_is_not_applied_before_its_save() -> None:
    """B16, B26: the log matches, so it is kept; what it commits is applied when saved."""
    server = follower("1", leader="b")
    new = commands(2, "11")
    server.take(append("b", "a", 1, (1, 1), new))
    assert server.take(install("b", "a", 1, Snapshot(3, 1, configuration()))) == Ready(committed=log("1"))
    assert server.save() == (appended("a", "b", 1, 3),)
    assert server.ready() == Ready(messages=(installed("a", "b", 1, 3),), committed=new)


def test_reads_wait_for_the_restore() -> None:
    """6.4, step 4: the state of the snapshot counts as applied when it is restored."""
    server = follower("112", leader="b", commit=2)
    server.raft.read_index(7)
    server.drain()
    server.drain(answer_read("b", "a", 2, 7, 9))
    server.install(install("b", "a", 2, SNAPSHOT))
    server.save()
    assert server.ready() == Ready(restore=SNAPSHOT, reads=(Read(7, 9),))


def test_a_server_that_is_restoring_does_not_campaign() -> None:
    """Its log is the snapshot, which is not on its disk yet: an election that it won would wait for that."""
    server = follower("112", voters="abcd", leader="b", commit=2)
    server.install(install("b", "a", 2, SNAPSHOT))
    server.raft.peer_unreachable("b")
    assert server.tick(2 * ELECTION) == NOTHING
    assert server.take(timeout_now("b", "a", 2)) == NOTHING
    assert server.role() is Role.FOLLOWER
    server.save()
    server.ready()
    assert server.tick(2 * ELECTION).messages[0] == request_pre_vote("a", "b", 3, (9, 2))


# --- Fetching one ---------------------------------------------------------------------------------------------------

NEWER = Snapshot(20, 2, configuration("abcd"))


def fetching() -> Server:
    """A follower of b in term 2, log 1 to 3, that fetches ``SNAPSHOT``."""
    server = follower("112", leader="b", commit=2)
    assert server.take(install("b", "a", 2, SNAPSHOT)) == Ready(fetch=Fetch("b", SNAPSHOT))
    return server


def test_an_offered_snapshot_is_fetched_before_it_is_adopted() -> None:
    """Section 7, by pull: nothing is answered, and the log stays, until the file is durable here."""
    server = fetching()
    assert server.ready() == NOTHING, "a fetch is handed over once"
    assert server.terms() == "112"
    server.raft.fetched(SNAPSHOT)
    assert server.ready() == Ready(
        save=saves(2, None, snapshot=SNAPSHOT), messages_after_save=(installed("a", "b", 2, 9),)
    )


def test_an_offer_counts_as_contact_with_the_leader() -> None:
    """5.2: a follower that is being sent snapshots hears its leader; it does not campaign, and protects the leader."""
    server = follower("112", leader="b", commit=2)
    for _ in range(3):
        assert server.tick(ELECTION - 1) == NOTHING
        server.take(install("b", "a", 2, SNAPSHOT))
    assert server.take(request_vote("c", "a", 3, (3, 2))) == NOTHING, "the lease of section 6"
    assert server.role() is Role.FOLLOWER


def test_an_offer_tells_who_leads() -> None:
    """5.1, 5.2: a pre-candidate follows, a higher term is entered, a second leader of one term is noticed."""
    server = pre_candidate("112")
    ready = server.take(install("b", "a", 2, SNAPSHOT))
    assert (ready.fetch, server.role(), server.raft.leader) == (Fetch("b", SNAPSHOT), Role.FOLLOWER, "b")
    assert server.take(install("c", "a", 3, SNAPSHOT)).save == saves(3, None)
    assert server.raft.leader == "c"
    with pytest.raises(InvariantViolatedError):
        server.raft.step(install("b", "a", 3, SNAPSHOT))


def test_an_offer_of_what_the_log_holds_is_not_fetched() -> None:
    """Figure 13, 6: the follower has the entries already; the file would tell it nothing."""
    server = follower("1122233", leader="b", commit=2)
    ready = server.take(install("b", "a", 3, Snapshot(5, 2, configuration(), ((1, 1), (2, 2)))))
    assert (ready.fetch, ready.messages) == (None, (installed("a", "b", 3, 5),))


@pytest.mark.parametrize("other", [SNAPSHOT, Snapshot(5, 2, configuration()), NEWER], ids=["same", "older", "newer"])
def test_one_snapshot_is_fetched_at_a_time(other: Snapshot) -> None:
    """An offer during a fetch, newer or not, neither cancels it nor begins another."""
    server = fetching()
    assert server.take(install("b", "a", 2, other)) == NOTHING
    server.raft.fetched(SNAPSHOT)
    assert server.ready().save == saves(2, None, snapshot=SNAPSHOT)


def test_a_follower_that_fetches_more_slowly_than_snapshots_are_taken_gets_there() -> None:
    """The fetch under way is finished; the next offer after it starts the next fetch."""
    server = fetching()
    for last in range(10, 20):
        assert server.take(install("b", "a", 2, Snapshot(last, 2, configuration()))) == NOTHING
    server.raft.fetched(SNAPSHOT)
    server.drain()
    assert server.raft.log.commit_index == 9
    assert server.take(install("b", "a", 2, NEWER)) == Ready(fetch=Fetch("b", NEWER))


def test_a_fetch_whose_leader_is_gone_still_helps() -> None:
    """A snapshot covers committed entries only: every later leader has them (Leader Completeness)."""
    server = fetching()
    server.drain(heartbeat("c", "a", 3))
    server.raft.fetched(SNAPSHOT)
    assert server.ready() == Ready(
        save=saves(3, None, snapshot=SNAPSHOT), messages_after_save=(installed("a", "c", 3, 9),)
    )


def test_a_fetch_that_ends_while_nobody_leads_still_helps() -> None:
    """There is nobody to answer; the candidacy with the log that is replaced is over."""
    server = fetching()
    server.tick(ELECTION)
    assert server.role() is Role.PRE_CANDIDATE
    server.raft.fetched(SNAPSHOT)
    assert server.ready() == Ready(save=saves(2, None, snapshot=SNAPSHOT))
    assert server.role() is Role.FOLLOWER
    assert server.take(pre_vote("b", "a", 3), pre_vote("c", "a", 3)) == NOTHING, "no election with it"


def test_a_fetch_that_the_log_has_overtaken_is_dropped() -> None:
    """What is not ahead of the commit index is of no use, and is only answered."""
    server = fetching()
    server.drain(append("c", "a", 3, (3, 2), commands(4, "222222" + "3"), commit=10))
    assert server.raft.log.commit_index == 10
    server.raft.fetched(SNAPSHOT)
    assert server.ready() == Ready(messages=(installed("a", "c", 3, 10),))
    assert server.terms() == "1122222223"


def test_a_state_that_was_given_up_is_restored_even_if_the_log_has_overtaken_the_snapshot() -> None:
    """Until then nothing is handed over, and the server neither campaigns nor obeys a TimeoutNow."""
    server = fetching()
    server.raft.hold_committed()
    server.drain(append("c", "a", 3, (3, 2), commands(4, "222222" + "3"), commit=10))
    assert (server.raft.log.commit_index, server.raft.log.applied_index) == (10, 2)
    server.take(timeout_now("c", "a", 3))
    server.tick(2 * ELECTION)
    assert server.role() is Role.FOLLOWER
    assert server.raft.fetched(SNAPSHOT)
    ready = server.ready()
    assert (ready.save, ready.restore, [entry.index for entry in ready.committed]) == (None, SNAPSHOT, [10])
    assert server.terms() == "1122222223"
    server.tick(2 * ELECTION)
    assert server.role() is Role.PRE_CANDIDATE


def test_an_adopted_snapshot_ends_the_wait_for_a_state() -> None:
    server = fetching()
    server.raft.hold_committed()
    assert server.raft.fetched(SNAPSHOT)
    server.ready()
    server.save()
    assert server.ready().restore == SNAPSHOT
    server.drain(append("b", "a", 2, (9, 2), commands(10, "2"), commit=10))
    assert server.raft.log.applied_index == 10


def test_a_candidate_that_gives_up_its_state_does_not_win() -> None:
    server = fetching()
    server.tick(ELECTION)
    assert server.role() is Role.PRE_CANDIDATE
    server.raft.hold_committed()
    assert server.take(pre_vote("b", "a", 3), pre_vote("c", "a", 3)) == NOTHING
    assert server.role() is Role.FOLLOWER


def test_a_leader_keeps_its_state() -> None:
    with pytest.raises(InvariantViolatedError, match="leader"):
        leader("1", term=2).raft.hold_committed()


@pytest.mark.parametrize("is_saved_first", [False, True])
def test_a_snapshot_that_was_passed_while_it_was_saved_is_not_restored_over_a_later_one(is_saved_first: bool) -> None:
    """The first is being saved when the second, which the log has overtaken, is restored."""
    server = fetching()
    server.raft.fetched(SNAPSHOT)
    server.ready()
    server.raft.step(install("b", "a", 2, NEWER))
    server.ready()
    server.raft.hold_committed()
    last = NEWER.last_index
    server.raft.step(append("b", "a", 2, (9, 2), commands(10, "2" * (last - 9)), commit=last))
    assert server.raft.fetched(NEWER)
    if is_saved_first:
        server.save()
    assert server.ready().restore == NEWER
    if not is_saved_first:
        server.save()
    assert server.ready().restore is None
    assert server.raft.log.applied_index >= last


def test_a_fetched_snapshot_that_the_log_holds_commits_it() -> None:
    """Figure 13, 6: the entries came meanwhile; they are kept, with what follows them."""
    server = fetching()
    server.drain(append("b", "a", 2, (3, 2), commands(4, "22222222"), commit=2))
    server.raft.fetched(SNAPSHOT)
    ready = server.ready()
    assert (ready.save, ready.messages) == (None, (installed("a", "b", 2, 9),))
    assert [entry.index for entry in ready.committed] == [3, 4, 5, 6, 7, 8, 9]
    assert server.raft.log.last_index == 11


def test_a_leader_has_what_it_once_fetched() -> None:
    """5.4.3, Leader Completeness: what the snapshot covers is in its log, or there is a bug."""
    for terms, is_sound in (("112222222", True), ("112", False)):
        server = fetching()
        if is_sound:
            server.drain(append("b", "a", 2, (3, 2), commands(4, terms[3:]), commit=2))
        server.tick(ELECTION)
        server.drain(pre_vote("b", "a", 3))
        server.drain(vote("b", "a", 3))
        assert server.role() is Role.LEADER
        if not is_sound:
            with pytest.raises(InvariantViolatedError):
                server.raft.fetched(SNAPSHOT)
            return
        server.raft.fetched(SNAPSHOT)
        assert (server.role(), server.raft.log.commit_index) == (Role.LEADER, 9)


def test_a_fetched_snapshot_that_contradicts_what_is_committed_is_refused() -> None:
    """5.4.3, State Machine Safety: two servers would have applied different entries at one index."""
    server = fetching()
    server.drain(append("c", "a", 3, (3, 2), commands(4, "333333"), commit=9))
    with pytest.raises(CommitsLostError):
        server.raft.fetched(SNAPSHOT)


def test_after_a_failed_fetch_the_next_offer_starts_again() -> None:
    """The driver gave up; whoever leads offers what it has."""
    server = fetching()
    server.raft.fetch_failed(SNAPSHOT)
    assert server.ready() == NOTHING
    assert server.take(install("b", "a", 2, SNAPSHOT)) == Ready(fetch=Fetch("b", SNAPSHOT))
    server.raft.fetch_failed(SNAPSHOT)
    server.drain(heartbeat("c", "a", 3))
    assert server.take(install("c", "a", 3, NEWER)) == Ready(fetch=Fetch("c", NEWER))


def test_a_restart_forgets_the_fetch() -> None:
    """It is not in what is saved; the next offer starts it again, and the driver resumes with what has arrived."""
    server = fetching()
    server.crash()
    assert server.take(install("b", "a", 2, SNAPSHOT)) == Ready(fetch=Fetch("b", SNAPSHOT))


@pytest.mark.parametrize("end", ["fetched", "fetch_failed"])
def test_the_end_of_a_fetch_that_was_not_asked_for_is_an_invariant_violation(end: str) -> None:
    """The driver would adopt what nobody offered."""
    for server in (follower("112", leader="b", commit=2), fetching()):
        with pytest.raises(InvariantViolatedError):
            getattr(server.raft, end)(NEWER)


def test_the_leader_goes_on_offering_while_the_follower_fetches() -> None:
    """The leader cannot tell a slow fetch from a lost offer; what it repeats does not make the follower start over."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster.cut("c")
    cluster["a"].raft.propose([b"x"])
    cluster.run()
    cluster["a"].raft.compact(cluster["a"].raft.snapshot_at(3), retain=0)
    cluster.cut()
    cluster.fetches_arrive = False
    before = len(cluster.seen)
    cluster.tick(4 * ELECTION)
    offered = Snapshot(3, 2, configuration(), ((1, 1), (2, 2)))
    offers = [message for message in cluster.seen[before:] if isinstance(message, InstallSnapshot)]
    assert offers == [install("a", "c", 2, offered)] * 4
    assert cluster.fetches == [Fetch("a", offered)]
    assert (cluster["c"].role(), cluster["c"].raft.leader) == (Role.FOLLOWER, "a")
    cluster["c"].raft.fetched(offered)
    cluster["a"].raft.propose([b"y"])
    cluster.run()
    assert cluster["c"].log() == cluster["a"].log()


# --- The leader's side ----------------------------------------------------------------------------------------------


def compacted_leader() -> Server:
    """Leader of term 2, log 1 to 6, of which b holds everything and only the last is left; c was never heard."""
    server = leader("1", term=2, matched="b")
    server.raft.propose([b"x", b"y", b"z", b"w"])
    server.drain()
    server.drain(appended("b", "a", 2, 6))
    server.raft.compact(server.raft.snapshot_at(5), retain=0)
    return server


def test_a_follower_that_needs_compacted_entries_is_offered_the_snapshot() -> None:
    """Section 7: "when the leader has already discarded the next log entry that it needs to send to a follower"."""
    server = compacted_leader()
    assert server.take(refused("c", "a", 2, 1, hint=(0, 0))) == Ready(
        messages=(install("a", "c", 2, Snapshot(5, 2, configuration(), ((1, 1), (2, 2)))),)
    )
    assert server.raft.status().progress["c"].state is ReplicationState.SNAPSHOT


def test_a_follower_in_snapshot_state_is_sent_no_entries() -> None:
    """They would be refused; heartbeats go on, or it would campaign."""
    server = compacted_leader()
    server.take(refused("c", "a", 2, 1))
    server.raft.propose([b"v"])
    assert all(message.recipient == "b" for message in server.ready().messages)
    server.save()
    assert heartbeat("a", "c", 2, 0) in server.tick(HEARTBEAT).messages
    assert server.take(heard("c", "a", 2)) == NOTHING


def test_after_the_snapshot_entries_follow() -> None:
    """Section 7: the follower goes on from the snapshot's last index."""
    server = compacted_leader()
    server.take(refused("c", "a", 2, 1))
    rest = server.log()
    assert server.take(installed("c", "a", 2, 5)) == Ready(messages=(append("a", "c", 2, (5, 2), rest, 6),))
    progress = server.raft.status().progress["c"]
    assert (progress.state, progress.match_index) == (ReplicationState.REPLICATE, 5)


def test_a_snapshot_is_offered_again_if_nothing_comes_of_it() -> None:
    """The offer was lost, or the fetch failed: once an election timeout, as long as the follower answers."""
    server = compacted_leader()
    offer = install("a", "c", 2, Snapshot(5, 2, configuration(), ((1, 1), (2, 2))))
    assert offers(server.take(refused("c", "a", 2, 1))) == [offer]
    seen: list[Message] = []
    for _ in range(2 * ELECTION):
        server.raft.tick()
        seen += server.drain(heard("b", "a", 2), heard("c", "a", 2))
    assert [message for message in seen if isinstance(message, InstallSnapshot)] == [offer, offer]


def test_a_follower_that_is_not_heard_is_offered_nothing() -> None:
    """Preparing a file for a dead server is in vain."""
    server = compacted_leader()
    server.take(refused("c", "a", 2, 1))
    for _ in range(3 * ELECTION):
        server.raft.tick()
        assert not any(isinstance(message, InstallSnapshot) for message in server.drain(heard("b", "a", 2)))
    assert offers(server.take(heard("c", "a", 2))) != []


def test_a_follower_that_was_compacted_past_again_is_offered_the_newer_snapshot() -> None:
    """It adopted one, and the log moved on meanwhile."""
    server = compacted_leader()
    server.take(refused("c", "a", 2, 1))
    server.raft.propose([b"v"])
    server.drain()
    server.drain(appended("b", "a", 2, 7))
    server.raft.compact(server.raft.snapshot_at(7), retain=0)
    assert server.take(installed("c", "a", 2, 5)) == Ready(messages=(heartbeat("a", "c", 2, 5),))
    for _ in range(ELECTION):
        server.raft.tick()
        seen = server.drain(heard("b", "a", 2), heard("c", "a", 2))
    assert install("a", "c", 2, Snapshot(7, 2, configuration(), ((1, 1), (2, 2)))) in seen


def offers(ready: Ready) -> list[Message]:
    return [message for message in ready.messages if isinstance(message, InstallSnapshot)]


def test_a_new_member_catches_up_by_a_snapshot_and_the_log() -> None:
    """Section 7 with thesis 4.2.1, end to end, in a cluster."""
    config = RaftConfig("a", ELECTION, HEARTBEAT)
    cluster = Cluster([Server(log("1", "a"), id="a", term=1, config=config), Server(id="d")])
    cluster.elect("a")
    for number in range(20):
        cluster["a"].raft.propose([b"%d" % number])
        cluster.run()
    cluster["a"].raft.compact(cluster["a"].raft.snapshot_at(20), retain=3)
    cluster["a"].raft.propose_change(AddLearner(Member("d", False)))
    cluster.tick(3 * ELECTION)
    assert cluster["d"].raft.status().snapshot_index == 20
    assert cluster["d"].log() == cluster["a"].log()[3:]
    assert [entry.index for entry in cluster.applied["d"]] == [21, 22, 23]
    assert cluster["d"].raft.configuration == configuration("a", "d")


def test_a_snapshot_of_an_old_term_is_ignored() -> None:
    """5.1: the new leader will offer its own."""
    server = follower("112", term=3)
    assert server.take(install("b", "a", 2, SNAPSHOT)) == NOTHING
    assert server.terms() == "112"


def test_the_snapshot_of_a_new_leader_is_followed() -> None:
    """5.1, section 7: a higher term, its leader, and its snapshot, in one save."""
    server = follower("112", term=2)
    ready = server.install(install("b", "a", 5, SNAPSHOT))
    assert ready == Ready(save=saves(5, None, snapshot=SNAPSHOT), messages_after_save=(installed("a", "b", 5, 9),))
    assert server.raft.leader == "b"


def test_configurations_before_the_snapshot_are_gone_after_it() -> None:
    """B28: a later truncation returns to the snapshot's configuration, not to one before it."""
    server = follower("112", leader="b", commit=2)
    server.drain(install("b", "a", 2, SNAPSHOT))
    change = configuration_entry(10, 2, "ab")
    server.drain(append("b", "a", 2, (9, 2), [change]))
    assert server.raft.configuration == configuration("ab")
    server.drain(append("c", "a", 3, (9, 2), [noop(10, 3)]))
    assert server.raft.configuration == SNAPSHOT.configuration


def test_an_entry_of_unknown_data_is_carried_as_it_is() -> None:
    """The core never looks into a command."""
    server = follower("1", leader="b")
    entry = Entry(2, 1, EntryKind.COMMAND, b"\xff\x00")
    server.drain(append("b", "a", 1, (1, 1), [entry]))
    assert server.log()[1] == entry
