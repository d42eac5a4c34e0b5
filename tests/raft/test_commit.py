"""Section 5.4.2: what is committed when; Figure 8; section 8: the no-op."""

from __future__ import annotations

import pytest
from raft.harness import (
    ELECTION,
    HEARTBEAT,
    Cluster,
    Server,
    appended,
    commands,
    heard,
    heartbeat,
    installed,
    leader,
    log,
    noop,
)

from kvorum.raft import RaftConfig, Role
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import (
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    Member,
    Message,
    Ready,
    TimeoutNow,
)


@pytest.mark.parametrize(("voters", "needed"), [("ab", 1), ("abc", 1), ("abcd", 2), ("abcde", 2), ("abcdefg", 3)])
def test_an_entry_is_committed_when_a_majority_holds_it(voters: str, needed: int) -> None:
    """5.3: "A log entry is committed once the leader that created the entry has replicated it on a majority"."""
    server = leader("1", term=2, voters=voters)
    for node in voters[1:needed]:
        server.drain(appended(node, "a", 2, 2), appended(node, "a", 2, 2))
    assert server.raft.log.commit_index == 0
    ready = server.take(appended(voters[needed], "a", 2, 2))
    assert ready.committed == (*log("1", voters), noop(2, 2))


def test_what_an_earlier_process_acknowledged_counts_only_when_the_present_one_acknowledges_it() -> None:
    """The disk may have been set back before the restart; then two of five hold the entry, and not three."""
    server = leader("1", term=2, voters="abcde")
    raft = server.raft
    raft.peer_started("b", "1")
    server.drain(appended("b", "a", 2, 2))
    raft.peer_started("b", "2")
    server.drain(appended("c", "a", 2, 2))
    assert raft.log.commit_index == 0
    assert raft.status().progress["b"].match_index == 2  # Heartbeats tell by it that something is missing there.
    server.drain(appended("b", "a", 2, 1))
    assert (raft.log.commit_index, raft.status().progress["b"].match_index) == (0, 2)
    server.drain(appended("b", "a", 2, 2))
    assert raft.log.commit_index == 2


def test_a_stream_that_the_same_process_dials_again_takes_nothing_back() -> None:
    server = leader("1", term=2, voters="abcde")
    server.raft.peer_started("b", "1")
    server.drain(appended("b", "a", 2, 2))
    server.raft.marks.ended("b")
    server.raft.peer_started("b", "1")
    server.drain(appended("c", "a", 2, 2))
    assert server.raft.log.commit_index == 2


def test_a_late_acknowledgement_takes_nothing_back() -> None:
    """B12: match_index "increases monotonically"."""
    server = leader("1", term=2, voters="abcde")
    server.drain(appended("b", "a", 2, 2), appended("b", "a", 2, 1), appended("c", "a", 2, 2))
    assert server.raft.log.commit_index == 2


def test_a_process_that_started_again_is_asked_what_it_holds_although_nothing_is_new() -> None:
    server = leader("1", term=2, voters="abc", matched="b")
    server.raft.peer_started("b", "2")
    for _ in range(2 * HEARTBEAT):
        server.raft.tick()
        server.ready()
    ready = server.take(heard("b", "a", 2, 0))
    assert [(sent.prev_log_index, sent.entries) for sent in ready.messages if isinstance(sent, AppendEntries)] == [
        (2, ())
    ]


def test_the_leadership_goes_to_who_acknowledges_the_log_and_not_to_a_process_that_has_only_begun() -> None:
    server = leader("1", term=2, voters="abc", matched="bc")
    raft = server.raft
    raft.peer_started("b", "2")
    assert raft.transfer_candidate(lambda _: True) == "c"
    raft.transfer_leadership("b")
    assert not [sent for sent in server.ready().messages if isinstance(sent, TimeoutNow)]
    ready = server.take(appended("b", "a", 2, 2))
    assert [sent.recipient for sent in ready.messages if isinstance(sent, TimeoutNow)] == ["b"]


def test_the_leaders_own_log_counts_only_when_it_is_saved() -> None:
    """10.2.1: the leader's own disk is one voter more, and no more.

    "The leader may even commit an entry before it has been written to its own disk, if a majority of followers" did.
    """
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    server.ready()
    server.take(appended("b", "a", 2, 3))
    assert server.raft.log.commit_index == 2
    server.save()
    assert server.raft.log.commit_index == 3
    assert server.ready().committed == (Entry(3, 2, EntryKind.COMMAND, b"x"),)


def test_two_followers_commit_what_the_leader_has_not_saved_and_it_applies_later() -> None:
    """Thesis 10.2.1 for the commit, B16 for the apply: nothing is applied here before it is saved here."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x"])
    server.ready()
    ready = server.take(appended("b", "a", 2, 3), appended("c", "a", 2, 3))
    assert (server.raft.log.commit_index, ready.committed) == (3, ())
    server.save()
    assert server.ready().committed == (Entry(3, 2, EntryKind.COMMAND, b"x"),)


def test_entries_of_old_terms_are_not_committed_by_counting() -> None:
    """5.4.2: "Raft never commits log entries from previous terms by counting replicas". B10."""
    server = leader("12", term=4, voters="abcde")
    server.drain(*(appended(node, "a", 4, 2) for node in "bcde"))
    assert server.raft.log.commit_index == 0


def test_entries_of_old_terms_are_committed_with_one_of_the_own_term() -> None:
    """5.4.2: "then all prior entries are committed indirectly"."""
    server = leader("12", term=4)
    assert server.take(appended("b", "a", 4, 3)) == Ready(
        messages=(heartbeat("a", "b", 4, 3),), committed=(*log("12"), noop(3, 4))
    )


class Figure8:
    """The five servers of Figure 8, brought to the moment (c); every AppendEntries carries one entry.

    S2's copy of S1's entry is sent again in (c), so that S1 knows of it.
    """

    def __init__(self) -> None:
        logs = {"s1": "12", "s2": "1", "s3": "1", "s4": "1", "s5": "1"}  # (a)
        members = Configuration(tuple(Member(node, True) for node in logs))
        first = Entry(1, 1, EntryKind.CONFIGURATION, encode_configuration(members))
        self.cluster = Cluster(
            Server([first, *commands(2, terms[1:])], term=2, config=RaftConfig(node, append_bytes_max=1))
            for node, terms in logs.items()
        )
        self.down: tuple[str, ...] = ("s1", "s2")
        self.last_sent = 0
        self.cluster.is_cut = self.is_cut
        self.cluster.elect("s5")  # (b): S5 is elected by S3 and S4, and has an entry of its own at index 2.
        self.down, self.last_sent = ("s4", "s5"), 2
        self.cluster.elect("s1")  # (c): S1 is elected by S2 and S3, and sends them its entry of term 2.

    def is_cut(self, message: Message) -> bool:
        if isinstance(message, Heartbeat) and message.sender == "s5":
            return True
        if isinstance(message, AppendEntries) and message.entries and message.entries[0].index > self.last_sent:
            # Cut off, but for the probes that are refused.
            return self.cluster[message.recipient].raft.log.matches(message.prev_log_index, message.prev_log_term)
        return message.sender in self.down or message.recipient in self.down


def test_figure_8_an_old_entry_on_a_majority_can_still_be_overwritten() -> None:
    """Figure 8 (c), (d): S1's entry of term 2 is on three of five servers and not committed: B10. S5 replaces it."""
    figure = Figure8()
    cluster = figure.cluster
    assert [cluster[node].terms() for node in ("s1", "s2", "s3", "s4", "s5")] == ["124", "12", "12", "1", "13"]
    matches = [progress.match_index for progress in cluster["s1"].raft.status().progress.values()]
    assert (matches, cluster["s1"].raft.log.commit_index) == ([2, 2, 0, 0], 0)
    figure.down, figure.last_sent = ("s1",), 9
    for node in ("s2", "s3"):
        cluster[node].raft.peer_unreachable("s1")
    cluster.elect("s5")
    cluster.is_cut = lambda message: False
    cluster.tick(2 * HEARTBEAT)
    assert [cluster[node].terms() for node in ("s1", "s2", "s3", "s4", "s5")] == ["135"] * 5
    assert all(applied == cluster.applied["s5"] for applied in cluster.applied.values())


def test_figure_8_with_an_entry_of_its_own_term_the_old_one_is_safe() -> None:
    """Figure 8 (e): "if S1 replicates an entry from its current term on a majority ... S5 cannot win an election"."""
    figure = Figure8()
    cluster = figure.cluster
    figure.last_sent = 9
    cluster["s1"].tick(2 * HEARTBEAT)
    cluster.tick(2 * HEARTBEAT)
    assert [entry.term for entry in cluster.applied["s1"]] == [1, 2, 4]
    figure.down = ("s1",)
    for node in ("s2", "s3"):
        cluster[node].raft.peer_unreachable("s1")
    for _ in range(3 * ELECTION):
        cluster["s5"].raft.tick()
        cluster["s4"].raft.tick()
        cluster.run()
    assert cluster["s5"].role() is not Role.LEADER and cluster["s4"].role() is not Role.LEADER
    cluster.elect("s2")
    assert [entry.term for entry in cluster.applied["s2"]][:3] == [1, 2, 4]


def test_learners_do_not_commit() -> None:
    """Thesis 4.2.1: a learner "is not yet counted towards majorities"."""
    server = leader("1", term=2, voters="abc", learners="de")
    server.drain(appended("d", "a", 2, 2), appended("e", "a", 2, 2), installed("d", "a", 2, 2))
    assert server.raft.log.commit_index == 0


def test_a_candidate_commits_nothing() -> None:
    """5.4.2: only leaders count; answers to an earlier leadership of the same server are of an old term."""
    server = leader("1", term=2)
    for _ in range(10):
        server.raft.tick()
    server.drain(appended("b", "a", 2, 2), appended("c", "a", 2, 2))
    assert (server.role(), server.raft.log.commit_index) == (Role.FOLLOWER, 0)


def test_commit_survives_any_minority() -> None:
    """5.4.3, State Machine Safety: what one server applied at an index, no server applies otherwise."""
    cluster = Cluster(Server(log("1", "abcde"), id=node, term=1) for node in "abcde")
    cluster.elect("a")
    cluster.cut("d", "e")
    for number in range(5):
        cluster["a"].raft.propose([b"%d" % number])
        cluster.run()
    assert len(cluster.applied["a"]) == 7
    cluster.cut("a", "b")
    for node in "cde":
        cluster[node].raft.peer_unreachable("a")
    for _ in range(10):  # d and e lack what is committed: only c can win.
        cluster["d"].raft.tick()
        cluster["e"].raft.tick()
        cluster.run()
    assert {cluster[node].role() for node in "de"} <= {Role.FOLLOWER, Role.PRE_CANDIDATE}
    cluster.elect("c")
    assert cluster.applied["c"][:7] == cluster.applied["d"][:7] == cluster.applied["a"]
