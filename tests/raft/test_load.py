"""Entries that are only on the disk: a server reads them back to apply them, and to send them to a slow follower."""

from __future__ import annotations

import pytest
from raft.harness import (
    ELECTION,
    HEARTBEAT,
    Cluster,
    Server,
    Shortest,
    append,
    appended,
    commands,
    configuration,
    follower,
    heartbeat,
    leader,
    log,
)

from kvorum.errors import InvariantViolatedError
from kvorum.raft import Raft, RaftConfig
from kvorum.raft.log import OnDisk
from kvorum.raft.messages import AppendEntries, HardState, Load, Snapshot


def config(node: str, **limits: int) -> RaftConfig:
    return RaftConfig(node, ELECTION, HEARTBEAT, log_memory_bytes_max=0, **limits)


def cluster(**limits: int) -> Cluster:
    """Three servers that keep nothing in memory that is applied; the first leads, and has committed 20 entries."""
    servers = [Server(log("1", "abc"), id=node, term=1, config=config(node, **limits)) for node in "abc"]
    made = Cluster(servers)
    made.elect("a")
    return made


@pytest.mark.parametrize("load_bytes_max", [0, 300, 1 << 20], ids=["one at a time", "a few", "all"])
def test_a_follower_that_was_away_is_sent_entries_that_are_only_on_the_leaders_disk(load_bytes_max: int) -> None:
    it = cluster(load_bytes_max=load_bytes_max)
    it.cut("c")
    for number in range(20):
        it["a"].raft.propose([b"%d" % number])
        it.run()
    assert it["a"].raft.log.is_only_on_disk(5)
    it.cut()
    it.tick(ELECTION)
    assert it["c"].disk_entries == it["a"].disk_entries
    assert it.applied["c"] == it.applied["a"]
    assert it.loads and it.fetches == []


def test_a_load_goes_on_at_once_with_those_who_wait_for_it() -> None:
    """No heartbeat is needed between one load and the next."""
    it = cluster(load_bytes_max=0)
    it.cut("c")
    for number in range(20):
        it["a"].raft.propose([b"%d" % number])
        it.run()
    it.cut()
    while not it.loads:
        it.tick()
    assert it["c"].disk_entries == it["a"].disk_entries


def test_two_followers_that_were_away_are_both_served() -> None:
    servers = [Server(log("1", "abcde"), id=node, term=1, config=config(node, load_bytes_max=0)) for node in "abcde"]
    it = Cluster(servers)
    it.elect("a")
    it.cut("d", "e")
    it["a"].raft.propose([b"x"] * 10)
    it.run()
    it.cut("e")
    it.tick(HEARTBEAT)
    it["a"].raft.propose([b"y"] * 10)
    it.run()
    it.cut()
    it.tick(ELECTION)
    assert it["d"].disk_entries == it["e"].disk_entries == it["a"].disk_entries


def test_a_start_applies_what_is_only_on_the_disk() -> None:
    """It knows terms and members from the start, and asks for the entries once they are committed."""
    on_disk = OnDisk(((1, 1), (3, 2)), 4, log("1", "abc"))
    raft = Raft(config("a"), Shortest(), hard_state=HardState(2, None), entries=commands(5, "2"), on_disk=on_disk)
    assert raft.configuration == configuration("abc")
    assert [raft.log.term(index) for index in range(6)] == [0, 1, 1, 2, 2, 2]
    raft.step(heartbeat("b", "a", 2, 4))
    ready = raft.ready()
    assert ready is not None
    assert (ready.load, ready.committed) == (Load(1, 4, raft.config.load_bytes_max), ())
    raft.loaded([*log("1", "abc"), *commands(2, "1")])
    ready = raft.ready()
    assert ready is not None
    assert [entry.index for entry in ready.committed] == [1, 2]
    assert ready.load is None
    ready = raft.ready()
    assert ready is not None
    assert ready.load == Load(3, 4, raft.config.load_bytes_max)


def test_one_load_at_a_time_and_none_that_nobody_asked_for() -> None:
    on_disk = OnDisk(((1, 1),), 4, log("1", "abc"))
    raft = Raft(config("a"), Shortest(), hard_state=HardState(1, None), entries=commands(5, "1"), on_disk=on_disk)
    with pytest.raises(InvariantViolatedError, match="no load is under way"):
        raft.loaded(())
    raft.step(heartbeat("b", "a", 1, 4))
    first = raft.ready()
    assert first is not None and first.load is not None
    assert raft.ready() is None
    raft.loaded(())
    again = raft.ready()
    assert again is not None and again.load == first.load


def test_after_a_start_a_new_leader_replaces_entries_that_are_only_on_the_disk() -> None:
    """Nothing says yet which of them are committed."""
    on_disk = OnDisk(((1, 1),), 4, log("1", "abc"))
    raft = Raft(config("a"), Shortest(), hard_state=HardState(1, None), entries=commands(5, "1"), on_disk=on_disk)
    raft.step(append("b", "a", 2, (2, 1), commands(3, "22"), 2))
    ready = raft.ready()
    assert ready is not None and ready.save is not None
    assert ready.save.entries == commands(3, "22")
    assert (raft.log.last_index, raft.log.term(2), raft.log.term(3)) == (4, 1, 2)
    assert ready.load is not None and ready.load.last_index == 2


def test_what_does_not_fit_into_a_save_waits_for_the_next_and_so_does_its_answer() -> None:
    """An answer that left with the first save would acknowledge entries that are not on the disk."""
    server = follower("1", leader="b")
    server.config = RaftConfig("a", ELECTION, HEARTBEAT, save_bytes_max=1)
    server.crash()
    ready = server.take(append("b", "a", 1, (1, 1), commands(2, "111"), 1))
    assert ready.save is not None
    assert (ready.save.entries, ready.messages_after_save) == (commands(2, "1"), ())
    assert server.save() == ()
    ready = server.ready()
    assert ready.save is not None
    assert (ready.save.entries, ready.messages_after_save) == (commands(3, "1"), ())
    assert server.save() == ()
    server.ready()
    assert server.save() == (appended("a", "b", 1, 4),)


def test_behind_a_snapshot_no_entry_is_kept_that_is_not_in_memory() -> None:
    server = leader("1", term=2, matched="bc")
    server.raft.propose([b"x" * 100] * 10)
    server.drain()
    server.drain(appended("b", "a", 2, server.raft.log.last_index))
    log_ = server.raft.log
    log_._memory_bytes_max = 0
    log_._release_memory()
    server.raft.compact(server.raft.snapshot_at(10), 1 << 30)
    assert (log_.base_index, log_.first_index) == (10, 11)
    assert server.raft.snapshot == Snapshot(10, 2, configuration("abc"), ((1, 1), (2, 2)))


def test_an_empty_probe_is_sent_while_the_next_entry_is_only_on_the_disk() -> None:
    it = cluster()
    it.cut("c")
    for number in range(5):
        it["a"].raft.propose([b"%d" % number])
        it.run()
    it.cut()
    it.seen.clear()
    it.tick(ELECTION)
    sent = [message for message in it.seen if isinstance(message, AppendEntries) and message.recipient == "c"]
    assert sent[0].entries == ()
