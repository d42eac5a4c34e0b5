"""Section 6 and thesis chapter 4: membership, one server at a time, with learners."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from raft.harness import (
    ELECTION,
    HEARTBEAT,
    NOTHING,
    Cluster,
    Server,
    append,
    appended,
    candidate,
    command,
    configuration,
    configuration_entry,
    follower,
    heard,
    heartbeat,
    leader,
    log,
    noop,
    pre_vote,
    refused,
    request_pre_vote,
    saves,
    timeout_now,
    vote,
)

from kvorum.errors import MembershipRefusedError, NotLeaderError
from kvorum.raft import AddLearner, Change, Promote, RaftConfig, Remove, Role, UpdateAddresses, bootstrap_entry
from kvorum.raft.membership import MEMBERS_MAX, Configurations, changed, decode_configuration, encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member, Ready, Snapshot


def caught_up(voters: str = "abc", learners: str = "d") -> Server:
    """A leader of term 2 of whose log everybody holds everything; its log is "12"."""
    return leader("1", term=2, voters=voters, learners=learners, matched=(voters + learners).replace("a", ""))


# --- What a change is -----------------------------------------------------------------------------------------------


def test_a_new_server_is_added_as_a_learner() -> None:
    """Thesis 4.2.1: "the new server joins the cluster as a non-voting member"; its addresses go with it."""
    member = Member("d", True, "http://d:2380", "http://d:2379")
    after = changed(configuration(), AddLearner(member))
    assert after.get("d") == Member("d", False, "http://d:2380", "http://d:2379")
    assert (after.voters(), after.learners(), after.quorum()) == (("a", "b", "c"), ("d",), 2)


def test_a_learner_is_promoted() -> None:
    after = changed(configuration("abc", "d"), Promote("d"))
    assert after == configuration("abcd")
    assert after.quorum() == 3


def test_members_are_removed() -> None:
    assert changed(configuration("abc", "d"), Remove("a")) == configuration("bc", "d")
    assert changed(configuration("abc", "d"), Remove("d")) == configuration("abc")


@pytest.mark.parametrize(
    ("before", "change"),
    [
        (configuration(), AddLearner(Member("c", False))),
        (configuration(), Promote("d")),
        (configuration(), Promote("c")),
        (configuration(), Remove("d")),
        (configuration(), UpdateAddresses("d", "http://p:1", "http://c:1")),
        (configuration("a", "b"), Remove("a")),
        (
            Configuration(tuple(Member(f"n{number:02}", True) for number in range(MEMBERS_MAX))),
            AddLearner(Member("x", False)),
        ),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(before: Configuration, change: Change) -> None:
    with pytest.raises(MembershipRefusedError):
        changed(before, change)


def test_a_members_addresses_change_and_nothing_else() -> None:
    before = configuration("ab", "c")
    for node in "abc":
        after = changed(before, UpdateAddresses(node, "http://p:1", "http://c:1"))
        assert (after.voters(), after.learners()) == (before.voters(), before.learners())
        for member in after.members:
            addresses = ("http://p:1", "http://c:1") if member.id == node else ("", "")
            assert (member.peer_url, member.client_url) == addresses
        assert decode_configuration(encode_configuration(after)) == after


def test_members_are_ordered_by_id() -> None:
    """The same on every node, whatever the order of the changes."""
    after = changed(changed(configuration("bd"), AddLearner(Member("c", False))), AddLearner(Member("a", False)))
    assert [member.id for member in after.members] == ["a", "b", "c", "d"]
    assert decode_configuration(encode_configuration(after)) == after


# --- Configurations in the log --------------------------------------------------------------------------------------


def test_the_latest_configuration_in_the_log_is_in_force() -> None:
    """Thesis 4.1: "a server always uses the latest configuration in its log, regardless of whether ... committed"."""
    server = follower("1", leader="b")
    entry = configuration_entry(2, 1, "abcd")
    assert server.take(append("b", "a", 1, (1, 1), [entry])) == Ready(
        save=saves(1, None, [entry]), messages_after_save=(appended("a", "b", 1, 2),)
    )
    status = server.raft.status()
    assert (status.configuration, status.configuration_index, status.commit_index) == (configuration("abcd"), 2, 0)


def test_a_truncated_configuration_is_reverted() -> None:
    """B28; thesis 4.1: "a server must be prepared to fall back to the previous configuration in its log"."""
    server = follower("1", leader="b")
    changes = [configuration_entry(2, 1, "abcd"), configuration_entry(3, 1, "abcde")]
    server.drain(append("b", "a", 1, (1, 1), changes))
    assert server.raft.configuration == configuration("abcde")
    server.drain(append("c", "a", 2, (2, 1), [noop(3, 2)]))
    assert server.raft.configuration == configuration("abcd")
    server.drain(append("b", "a", 3, (1, 1), [configuration_entry(2, 3, "ab")]))
    assert server.raft.configuration == configuration("ab")
    server.crash()
    assert server.raft.configuration == configuration("ab")


def test_a_configuration_replaced_by_another_at_the_same_index() -> None:
    """B28: truncation and append in one message."""
    server = follower("1", leader="b")
    server.drain(append("b", "a", 1, (1, 1), [configuration_entry(2, 1, "abcd")]))
    server.drain(append("c", "a", 2, (1, 1), [configuration_entry(2, 2, "ab"), command(3, 2)]))
    assert (server.raft.configuration, server.raft.configurations.latest_index) == (configuration("ab"), 2)


def test_configurations_return_to_what_was_in_force() -> None:
    """The history, by itself."""
    history = Configurations(0, Configuration())
    for index, voters in ((1, "a"), (4, "ab"), (9, "abc")):
        history.append(index, configuration(voters))
    assert [history.at(index) for index in (0, 1, 3, 4, 8, 9, 99)] == [
        Configuration(),
        *map(configuration, ["a", "a", "ab", "ab", "abc", "abc"]),
    ]
    history.compact(4)
    assert (history.at(4), history.latest) == (configuration("ab"), configuration("abc"))
    history.truncate(9)
    assert (history.latest, history.latest_index) == (configuration("ab"), 4)
    history.truncate(2)
    assert history.latest == configuration("ab")  # What a snapshot covers cannot be truncated.


# --- The leader's rules ---------------------------------------------------------------------------------------------


def test_a_change_is_in_force_on_the_leader_at_once() -> None:
    """Thesis 4.1: "The new configuration takes effect on each server as soon as it is added to that server's log"."""
    server = leader("1", term=2, matched="bc")
    assert server.raft.propose_change(AddLearner(Member("d", False)))[0] == 3
    entry = configuration_entry(3, 2, "abc", "d")
    assert server.ready() == Ready(
        save=saves(2, "a", [entry]),
        messages=(
            append("a", "b", 2, (2, 2), [entry], 2),
            append("a", "c", 2, (2, 2), [entry], 2),
            append("a", "d", 2, (3, 2), (), 2),
        ),
    )


@pytest.mark.parametrize("make", [lambda: follower("1", leader="b"), lambda: candidate("1", term=2)])
def test_only_a_leader_changes_the_membership(make: Callable[[], Server]) -> None:
    server = make()
    with pytest.raises(NotLeaderError):
        server.raft.propose_change(Remove("c"))
    assert server.ready() == NOTHING


def test_no_change_before_an_entry_of_the_leaders_term_is_committed() -> None:
    """B27, the bug announced in 2015: "until it has committed an entry from its current term"."""
    server = follower("12", leader="b", commit=2)  # The configuration in force is known to be committed.
    server.tick(ELECTION)
    server.drain(pre_vote("c", "a", 3))
    server.drain(vote("c", "a", 3))
    assert server.role() is Role.LEADER
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(AddLearner(Member("d", False)))
    assert server.ready() == NOTHING
    server.drain(appended("b", "a", 3, 3))
    assert server.raft.propose_change(AddLearner(Member("d", False)))[0] == 4


def test_one_change_at_a_time() -> None:
    """Thesis 4.1: a change "can be started only when the previous one is committed": two at once may not overlap."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose_change(AddLearner(Member("d", False)))
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(AddLearner(Member("e", False)))
    server.drain()
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(Remove("c"))
    server.drain(appended("b", "a", 2, 3))
    assert server.raft.propose_change(AddLearner(Member("e", False)))[0] == 4


def test_no_change_while_the_leadership_is_handed_over() -> None:
    """Thesis 3.10: the leader "stops accepting new client requests"; B9."""
    server = leader("1", term=2, matched="bc")
    server.raft.transfer_leadership("b")
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(Remove("c"))


def test_a_leader_knows_when_it_could_change_the_membership() -> None:
    """The same three rules, asked beforehand."""
    assert not follower("1", leader="b").raft.can_change_membership
    server = leader("1", term=2)
    assert not server.raft.can_change_membership
    server.drain(appended("b", "a", 2, 2))
    assert server.raft.can_change_membership
    server.raft.propose_change(AddLearner(Member("d", False)))
    assert not server.raft.can_change_membership
    server.drain()
    server.drain(appended("b", "a", 2, 3))
    assert server.raft.can_change_membership
    server.raft.transfer_leadership("b")
    assert not server.raft.can_change_membership


def test_the_2015_bug_two_removals_by_two_leaders_of_four() -> None:
    """B27: the first leader appends "remove d" and is cut off; the next, d, removes a.

    Both have majorities of their own new configurations, {a, b} of three and {c, d} of three, that do not overlap.
    """
    cluster = Cluster(Server(log("1", "abcd"), id=node, term=1) for node in "abcd")
    cluster.elect("a")
    cluster.cut("a")
    cluster["a"].raft.propose_change(Remove("d"))
    cluster.run()
    for node in "bc":
        cluster[node].raft.peer_unreachable("a")
    cluster.elect("d")
    with_noop = cluster["d"].raft.log.commit_index
    assert cluster["d"].raft.log.term(with_noop) == cluster["d"].raft.current_term
    cluster["d"].raft.propose_change(Remove("a"))
    cluster.run()
    assert cluster["d"].raft.configurations.latest_index <= cluster["d"].raft.log.commit_index
    cluster.is_cut = lambda message: {message.sender, message.recipient} - {"a", "b"} != set()
    cluster.tick(4 * ELECTION)
    assert cluster["a"].role() is not Role.LEADER
    assert cluster["a"].raft.log.commit_index < 3


def test_a_learner_is_promoted_only_when_it_has_caught_up() -> None:
    """Thesis 4.2.1: "the leader needs to determine when a new server is sufficiently caught up"."""
    server = leader("1", term=2, matched="bc", learners="d")
    server.raft.propose([b"x"] * 100)
    server.drain()
    server.drain(appended("b", "a", 2, 102), refused("d", "a", 2, 1), appended("d", "a", 2, 37))
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(Promote("d"))
    server.drain(appended("d", "a", 2, 38))
    assert server.raft.propose_change(Promote("d"))[0] == 103
    assert server.raft.configuration == configuration("abcd")


def test_a_learner_that_was_never_heard_is_not_promoted() -> None:
    """B30 and thesis 4.2.2: in a young cluster nobody is far behind; a server that is not there must not count."""
    server = leader("1", term=2, matched="bc")
    server.raft.propose_change(AddLearner(Member("d", False)))
    server.drain()
    server.drain(appended("b", "a", 2, 3))
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(Promote("d"))
    server.drain(heard("d", "a", 2), refused("d", "a", 2, 3))
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(Promote("d"))
    server.drain(appended("d", "a", 2, 3))
    assert server.raft.propose_change(Promote("d"))[0] == 4


def test_a_learner_that_is_silent_is_not_promoted() -> None:
    """As above: it was caught up, and is gone."""
    server = caught_up()
    for _ in range(ELECTION):
        server.raft.tick()
        server.drain(heard("b", "a", 2))
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(Promote("d"))
    server.drain(heard("d", "a", 2))
    assert server.raft.propose_change(Promote("d"))[0] == 3


def test_a_removal_that_would_leave_no_quorum_is_refused() -> None:
    """Not in the paper: with one of three dead, removing a live one would stop the cluster."""
    server = leader("1", term=2, matched="bc")
    for _ in range(ELECTION):
        server.raft.tick()
        server.drain(heard("b", "a", 2))
    for node in "ab":
        with pytest.raises(MembershipRefusedError):
            server.raft.propose_change(Remove(node))
    assert server.raft.propose_change(Remove("c"))[0] == 3


def test_a_removal_does_not_count_on_servers_that_a_new_leader_has_not_heard() -> None:
    """As above: of five, d and e are down, which a leader that was just elected cannot know. Four need three."""
    server = leader("1", term=2, matched="bc", voters="abcde")
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(Remove("c"))
    server.drain(refused("d", "a", 2, 1))
    with pytest.raises(MembershipRefusedError):
        server.raft.propose_change(Remove("c"))
    server.drain(appended("d", "a", 2, 2))
    assert server.raft.propose_change(Remove("c"))[0] == 3


def test_a_promoted_server_counts_at_once() -> None:
    """Thesis 4.1: three of four must hold the very entry that makes it four."""
    server = caught_up()
    server.raft.propose_change(Promote("d"))
    server.drain()
    server.drain(appended("b", "a", 2, 3))
    assert server.raft.log.commit_index == 2
    server.drain(appended("d", "a", 2, 3))
    assert server.raft.log.commit_index == 3


def test_a_removed_server_counts_no_more() -> None:
    """Thesis 4.1: two of three suffice for the entry that removes the fourth; it is sent nothing more."""
    server = caught_up("abcd", "")
    server.raft.propose_change(Remove("d"))
    assert {message.recipient for message in server.ready().messages} == {"b", "c"}
    server.save()
    server.drain(appended("d", "a", 2, 3))
    assert server.raft.log.commit_index == 2
    server.drain(appended("b", "a", 2, 3))
    assert server.raft.log.commit_index == 3


def test_a_read_that_waits_is_released_when_the_quorum_shrinks() -> None:
    """6.4 under thesis 4.1: those who have answered may be a majority of the new configuration."""
    server = caught_up("abcd", "")
    server.raft.read_index(7)
    server.ready()
    assert server.take(heard("b", "a", 2, 1)) == NOTHING
    server.raft.propose_change(Remove("d"))
    assert [read.context for read in server.ready().reads] == [7]


def test_an_answer_from_a_removed_server_confirms_no_read() -> None:
    """6.4: a majority of the configuration in force."""
    server = caught_up("abcd", "")
    server.raft.read_index(7)
    server.ready()
    server.raft.propose_change(Remove("d"))
    server.drain()
    assert server.take(heard("d", "a", 2, 1)).reads == ()
    assert [read.context for read in server.take(heard("b", "a", 2, 1)).reads] == [7]


# --- Removal of the leader, thesis 4.2.2 ----------------------------------------------------------------------------


def test_a_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    """Thesis 4.2.2: "it ... replicates log entries but does not count itself in majorities"; then it steps down.

    Divergence: it also tells the furthest voter to campaign (thesis 3.10), so that nobody waits for a timeout.
    """
    server = leader("1", term=2, matched="bc")
    server.raft.propose_change(Remove("a"))
    server.drain()
    server.drain(appended("b", "a", 2, 3))
    assert (server.role(), server.raft.log.commit_index) == (Role.LEADER, 2)
    ready = server.take(appended("c", "a", 2, 3))
    assert ready.messages == (heartbeat("a", "b", 2, 3), heartbeat("a", "c", 2, 3), timeout_now("a", "b", 2))
    assert ready.committed == (configuration_entry(3, 2, "bc"),)
    assert (server.role(), server.raft.leader) == (Role.FOLLOWER, None)


def test_the_leadership_of_a_removed_leader_moves_in_one_round() -> None:
    """Thesis 4.2.2 and 3.10 end to end: no election timeout passes."""
    cluster = Cluster(Server(log("1"), id=node, term=1) for node in "abc")
    cluster.elect("a")
    cluster["a"].raft.propose_change(Remove("a"))
    cluster.run()
    assert [cluster[node].role() for node in "abc"] == [Role.FOLLOWER, Role.LEADER, Role.FOLLOWER]
    assert cluster["b"].raft.configuration == configuration("bc")


def test_a_removed_server_does_not_campaign() -> None:
    """Thesis 4.2.3: once it knows that its removal is committed."""
    server = follower("1", leader="b")
    server.drain(append("b", "a", 1, (1, 1), [configuration_entry(2, 1, "bc")], commit=2))
    assert server.tick(10 * ELECTION) == NOTHING
    assert server.take(timeout_now("b", "a", 1)) == NOTHING


def test_a_server_whose_removal_is_not_committed_campaigns_and_does_not_vote_for_itself() -> None:
    """Thesis 4.2.2: it "should still start new elections"; "it does not count its own vote in elections".

    "It might still be needed until the Cnew entry is committed" (Figure 4.6).
    """
    server = Server((*log("1", "ab"), configuration_entry(2, 1, "b")), term=1)
    assert server.tick(ELECTION) == Ready(messages=(request_pre_vote("a", "b", 2, (2, 1)),))
    assert server.role() is Role.PRE_CANDIDATE
    server.raft.tick()
    assert server.role() is Role.PRE_CANDIDATE


def test_figure_4_6_a_cluster_of_two_survives_the_crash_of_the_leader_that_removes_itself() -> None:
    """Thesis, Figure 4.6: b's log is behind, so b cannot be elected; a must be, though its own log removes it."""
    cluster = Cluster(
        [
            Server((*log("1", "ab"), configuration_entry(2, 1, "b")), id="a", term=1),
            Server(log("1", "ab"), id="b", term=1),
        ]
    )
    cluster.tick(6 * ELECTION)
    assert cluster["b"].role() is Role.LEADER
    assert cluster["b"].raft.configuration == configuration("b")
    assert cluster["b"].raft.log.commit_index == cluster["b"].raft.log.last_index
    assert cluster["a"].role() is Role.FOLLOWER


def test_a_server_that_was_removed_by_a_snapshot_does_not_campaign() -> None:
    """A snapshot is committed: there is nothing before its configuration to fall back to."""
    server = Server(snapshot=configuration_snapshot(), term=1)
    assert server.tick(5 * ELECTION) == NOTHING


def configuration_snapshot() -> Snapshot:
    return Snapshot(5, 1, configuration("bc"))


def test_a_removed_server_does_not_disturb_the_others() -> None:
    """Section 6, B7: it was not told, times out, and asks in vain."""
    cluster = Cluster(Server(log("1", "abcd"), id=node, term=1) for node in "abcd")
    cluster.elect("a")
    cluster["a"].raft.propose_change(Remove("d"))
    cluster.run()
    cluster.tick(10 * ELECTION)
    assert cluster["a"].role() is Role.LEADER
    assert {cluster[node].raft.current_term for node in "abcd"} == {2}


# --- Learners -------------------------------------------------------------------------------------------------------


def test_a_learner_receives_the_log_and_applies_it() -> None:
    """Thesis 4.2.1: "the leader replicates log entries to it"."""
    cluster = Cluster([Server(log("1", "abc", "d"), id=node, term=1) for node in "abcd"])
    cluster.elect("a")
    cluster["a"].raft.propose([b"x"])
    cluster.run()
    assert cluster.applied["d"] == cluster.applied["a"]
    assert len(cluster.applied["d"]) == 3


def test_a_learner_that_is_promoted_may_campaign() -> None:
    """Thesis 4.1: as soon as the entry is in its log."""
    server = follower("1", voters="bc", learners="a", leader="b")
    server.drain(append("b", "a", 1, (1, 1), [configuration_entry(2, 1, "abc")]))
    assert server.tick(ELECTION).messages[0] == request_pre_vote("a", "b", 2, (2, 1))


def test_a_removed_learner_added_again_is_probed_from_the_start() -> None:
    """Nothing is remembered of an earlier membership: its disk may be another (B30)."""
    server = caught_up()
    server.raft.propose_change(Remove("d"))
    server.drain()
    server.drain(appended("b", "a", 2, 3))
    server.raft.propose_change(AddLearner(Member("d", False)))
    assert server.raft.status().progress["d"].match_index == 0
    assert append("a", "d", 2, (4, 2), (), 3) in server.ready().messages


def test_a_cluster_grows_from_one_to_three_and_shrinks_to_one() -> None:
    """Chapter 4 end to end; every configuration is committed before the next."""
    cluster = Cluster([Server(log("1", "a"), id="a", term=1), Server(id="b"), Server(id="c")])
    cluster.elect("a")
    for node in "bc":
        cluster["a"].raft.propose_change(AddLearner(Member(node, False)))
        cluster.tick(2 * HEARTBEAT)
        cluster["a"].raft.propose_change(Promote(node))
        cluster.tick(2 * HEARTBEAT)
    assert all(cluster[node].raft.configuration == configuration("abc") for node in "abc")
    for node in "cb":
        cluster["a"].raft.propose_change(Remove(node))
        cluster.tick(2 * HEARTBEAT)
    cluster["a"].raft.propose([b"alone"])
    cluster.run()
    assert cluster.applied["a"][-1].data == b"alone"
    assert cluster["a"].raft.configuration == configuration("a")


# --- Bootstrap, thesis 4.4 ------------------------------------------------------------------------------------------


def test_the_bootstrap_entry_is_the_same_everywhere() -> None:
    """Several servers that begin with it have one log."""
    entry = bootstrap_entry(configuration())
    assert entry == Entry(1, 1, EntryKind.CONFIGURATION, encode_configuration(configuration()))


def test_bootstrap_is_refused_where_a_log_is() -> None:
    """A restart never changes the membership."""
    for server in (follower("1"), Server(term=1)):
        with pytest.raises(MembershipRefusedError):
            server.raft.bootstrap(configuration())
    with pytest.raises(MembershipRefusedError):
        Server().raft.bootstrap(configuration("bc"))


def test_a_cluster_of_three_begins_with_one_bootstrap() -> None:
    """Thesis 4.4, with the first configuration of all three: the others learn it from the log."""
    cluster = Cluster(Server(id=node, config=RaftConfig(node, ELECTION, HEARTBEAT)) for node in "abc")
    cluster["a"].raft.bootstrap(configuration())
    cluster.run()
    assert [cluster[node].role() for node in "abc"] == [Role.LEADER, Role.FOLLOWER, Role.FOLLOWER]
    assert all(cluster[node].raft.configuration == configuration() for node in "abc")
    assert cluster.applied["a"] == cluster.applied["b"] == cluster.applied["c"] == list(cluster["a"].log())
    assert vote("b", "a", 2) in cluster.seen
