"""A data folder that is replaced by an older copy of itself while its node is stopped (K4)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.processes import Cluster
from waiting import eventually

from kvorum.storage.datadir import DATABASE, WRITE_AHEAD_LOG

WRITES = 50


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, flags=("--request-timeout-ms", "2000")) as cluster:
        yield cluster


def copied(cluster: Cluster, name: str) -> Path:
    """Stop a node, keep a copy of its folder, and start it again."""
    for number in range(3):
        cluster.put_somewhere(f"before-{number}", b"v")
    cluster.converge()
    cluster.stop(name)
    copy = cluster.folder / f"{name}.copy"
    shutil.copytree(cluster.data_dir(name), copy)
    cluster.start(name)
    return copy


def put_back(cluster: Cluster, name: str, copy: Path) -> None:
    shutil.rmtree(cluster.data_dir(name))
    shutil.copytree(copy, cluster.data_dir(name))


def go_on_with_the_copy(cluster: Cluster, old: str, lagging: str, copy: Path, writes: int) -> None:
    """The old copy and a node that lagged behind elect a leader, and make other writes."""
    put_back(cluster, old, copy)
    cluster.start(old)
    cluster.start(lagging)
    for number in range(writes):
        cluster.put_somewhere(f"other-{number}", b"v", [old, lagging])


def write(cluster: Cluster, among: list[str]) -> None:
    for number in range(WRITES):
        cluster.put_somewhere(f"k{number}", b"v", among)


def missing(cluster: Cluster, name: str) -> list[int]:
    """Return which of the acknowledged writes are gone."""
    return [number for number in range(WRITES) if cluster.read(name, f"k{number}").status != 200]


def missing_in_the_state(cluster: Cluster, name: str) -> list[int]:
    """Return which of the acknowledged writes this node has not applied: it takes no part, so it serves stale reads."""
    statuses = {number: cluster.get(name, f"k{number}", "?consistency=stale").status for number in range(WRITES)}
    return [number for number, status in statuses.items() if status != 200]


def distrust(cluster: Cluster, name: str) -> str | None:
    status = cluster.status(name)
    return status["distrusted"] if status is not None else None


def check_says_so(cluster: Cluster, name: str, *expected: str) -> None:
    """A node takes no part, says why in every place where somebody looks, and goes on serving what it has."""
    eventually("it says so", lambda: all(part in (distrust(cluster, name) or "") for part in expected))
    ready = cluster.request(name, "GET", "/readyz")
    assert ready.status == 503
    assert expected[0] in ready.body.decode()
    assert cluster.request(name, "GET", "/livez").status == 200
    metrics = cluster.request(name, "GET", "/metrics").body.decode()
    assert "kvorum_raft_distrusted 1" in metrics.replace(".0", "")
    eventually("its log says so", lambda: expected[0] in cluster.log_file(name).read_text())
    put = cluster.put(name, "k", b"v")
    assert put.status == 503

    def backup() -> bytes:
        return cluster.request(name, "GET", "/v1/snapshot?consistency=stale").body

    # Its state may just have been found to differ from the others'.
    eventually("a stale backup", lambda: backup().startswith(b"KVORSNAP"))


def test_what_one_disk_forgot_is_not_lost_while_another_remembers(tmp_path: Path) -> None:
    """Before, 50 of 50 acknowledged writes vanished if the old copy and a node that lagged behind elected a leader."""
    # A start waits for its peers for two election timeouts: long enough for a machine that is busy.
    with Cluster(tmp_path, flags=("--request-timeout-ms", "2000", "--election-timeout-ms", "3000")) as cluster:
        leader = cluster.settled()
        old, lagging = cluster.others(leader)
        copy = copied(cluster, old)
        cluster.settled()
        cluster.kill(lagging)
        write(cluster, [old, leader])
        cluster.kill(old, leader)
        put_back(cluster, old, copy)

        cluster.start(leader)
        eventually("the one that remembers is up", lambda: cluster.status(leader))
        cluster.start(old)
        cluster.start(lagging)

        check_says_so(cluster, old, "this disk was set back", "remembers that it once held entry")
        cluster.put_somewhere("after", b"v", [lagging, leader])
        assert missing(cluster, lagging) == missing(cluster, leader) == []
        check_says_so(cluster, old, "this disk was set back", "give this node an empty disk")

        cluster.kill(old)
        shutil.rmtree(cluster.data_dir(old))
        cluster.start(old)
        eventually("it has joined again", lambda: (cluster.status(old) or {}).get("state") == "follower", 60)
        assert distrust(cluster, old) is None


def test_a_disk_that_was_set_back_beside_a_live_leader_ends_no_process(cluster: Cluster) -> None:
    """Before, it ended at every start: it was told that entries are committed that it does not have."""
    leader = cluster.settled()
    old = cluster.others(leader)[0]
    copy = copied(cluster, old)
    cluster.settled()
    write(cluster, cluster.names)
    cluster.converge()
    cluster.kill(old)
    leader = cluster.leader()
    put_back(cluster, old, copy)
    process = cluster.start(old)

    check_says_so(cluster, old, "this disk was set back", f"{leader} leads with a quorum without this node")
    assert process.poll() is None
    shown = kvorum_status(cluster)
    assert "this disk was set back" in shown
    assert missing(cluster, leader) == []


def kvorum_status(cluster: Cluster) -> str:
    endpoints = ",".join(cluster.addresses.values())
    command = [str(Path(sys.executable).with_name("kv")), "--endpoints", endpoints, "status"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def test_the_only_disk_that_holds_what_was_committed_keeps_it(cluster: Cluster) -> None:
    """The peer that remembers comes too late: what it holds is committed, so it takes nothing in its place."""
    leader = cluster.settled()
    old, lagging = cluster.others(leader)
    copy = copied(cluster, old)
    cluster.settled()
    holder = leader
    cluster.kill(lagging)
    write(cluster, [old, holder])
    cluster.kill(old, holder)
    go_on_with_the_copy(cluster, old, lagging, copy, 1)
    process = cluster.start(holder)

    check_says_so(cluster, holder, "contradict what is committed here", "do not delete it")
    assert process.poll() is None
    # That the last write is committed was known to the process only: no later save says so. The disk holds it.
    assert missing_in_the_state(cluster, holder) in ([], [WRITES - 1])
    cluster.kill(holder)
    files = (DATABASE, WRITE_AHEAD_LOG)
    assert any(f"k{WRITES - 1}".encode() in (cluster.data_dir(holder) / file).read_bytes() for file in files)


def test_a_fork_that_begins_in_the_same_term_passes_for_no_continuation(cluster: Cluster) -> None:
    """An election lies between the copy and the writes, so both sides elect a leader of the same last known term.

    Before, both were elected into the same term number: what one side had committed had the index and the term of what
    the other had, the state of the disk that came late was "rebuilt", and its acknowledged writes vanished everywhere.
    """
    leader = cluster.settled()
    old, lagging = cluster.others(leader)
    for number in range(3):
        cluster.put_somewhere(f"before-{number}", b"v")
    cluster.converge()
    cluster.kill(lagging)
    cluster.stop(old)
    copy = cluster.folder / f"{old}.copy"
    shutil.copytree(cluster.data_dir(old), copy)
    cluster.kill(leader)
    for name in (old, leader):
        cluster.start(name)
    write(cluster, [old, leader])
    terms = {(cluster.status(name) or {})["term"] for name in (old, leader)}
    cluster.kill(old, leader)
    go_on_with_the_copy(cluster, old, lagging, copy, WRITES)
    assert (cluster.status(lagging) or {})["term"] not in terms
    cluster.start(leader)

    def who_keeps() -> list[str]:
        return [name for name in (leader, lagging) if "do not delete it" in (distrust(cluster, name) or "")]

    eventually("the fork is found", who_keeps)
    assert missing_in_the_state(cluster, leader) in ([], [WRITES - 1])
    assert "quarantine" not in cluster.log_file(leader).read_text()


def test_the_last_write_before_a_clean_stop_is_remembered(cluster: Cluster) -> None:
    """Before, nobody's disk said that it was committed, nor who had acknowledged it: the next save would have."""
    old = cluster.others(cluster.settled())[0]
    copy = copied(cluster, old)
    leader = cluster.settled()
    holder = leader if leader != old else cluster.others(old)[0]
    [lagging] = cluster.others(old, holder)
    cluster.kill(lagging)
    cluster.put_somewhere("last", b"v", [old, holder])
    for name in (old, holder):
        cluster.stop(name)
    go_on_with_the_copy(cluster, old, lagging, copy, 1)
    cluster.start(holder)

    check_says_so(cluster, holder, "contradict what is committed here", "do not delete it")
    assert cluster.get(holder, "last", "?consistency=stale").body == b"v"


def test_a_compacted_fork_does_not_replace_the_only_disk_that_holds_what_was_committed(tmp_path: Path) -> None:
    """The others offer a snapshot from behind the end of its log. Before, it was installed in silence."""
    flags = ("--request-timeout-ms", "2000", "--snapshot-entries", "10", "--log-retain-entries", "0")
    with Cluster(tmp_path, flags=flags) as cluster:
        old = cluster.others(cluster.settled())[0]
        copy = copied(cluster, old)
        leader = cluster.settled()
        holder = leader if leader != old else cluster.others(old)[0]
        [lagging] = cluster.others(old, holder)
        cluster.kill(lagging)
        write(cluster, [old, holder])
        cluster.kill(old, holder)
        go_on_with_the_copy(cluster, old, lagging, copy, 3 * WRITES)
        process = cluster.start(holder)

        check_says_so(cluster, holder, "contradict what is committed here", "follows from an entry", "do not delete it")
        assert process.poll() is None
        assert missing_in_the_state(cluster, holder) in ([], [WRITES - 1])


def test_a_restart_of_all_nodes_with_whole_disks_accuses_nobody(cluster: Cluster) -> None:
    write(cluster, cluster.names)
    cluster.kill(*cluster.names)
    for name in cluster.names:
        cluster.start(name)

    def leaders() -> set[str | None]:
        return {(cluster.status(name) or {}).get("leader_name") for name in cluster.names}

    eventually("all follow one leader", lambda: len(leaders()) == 1 and None not in leaders(), 120)
    assert {name: distrust(cluster, name) for name in cluster.names} == dict.fromkeys(cluster.names)
    assert missing(cluster, cluster.leader()) == []
