"""The promises that the original project made and broke, each on real processes (docs/known-faults.md)."""

from __future__ import annotations

import re
import resource
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from acceptance.processes import Cluster
from waiting import eventually

from kvorum.errors import StorageError
from kvorum.storage.interface import Loaded
from kvorum.storage.log import SqliteStorage
from kvorum.telemetry.counters import Counters


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, flags=("--request-timeout-ms", "1000")) as cluster:
        yield cluster


def read_disk(folder: Path) -> Loaded:
    def failed(error: StorageError) -> None:
        raise AssertionError(error)

    storage = SqliteStorage(folder, failed, 10_000, Counters())
    try:
        return storage.load()
    finally:
        storage.close()


def test_vote_and_term_survive_a_restart(cluster: Cluster) -> None:
    cluster.put_somewhere("a", b"1")
    leader = cluster.leader()
    before = {name: cluster.status(name) for name in cluster.names}
    cluster.kill(*cluster.names)

    votes = {name: read_disk(cluster.data_dir(name)).hard_state for name in cluster.names}

    for name, account in before.items():
        assert account is not None
        assert votes[name].current_term >= account["term"]
    leader_id = (before[leader] or {})["id"]
    voters = [name for name, vote in votes.items() if vote.voted_for == leader_id]
    assert len(voters) >= 2, "a majority remembers for whom it voted"
    for name in cluster.names:
        cluster.start(name)
    after = cluster.status(cluster.leader())
    assert after is not None
    assert after["term"] > max(vote.current_term for vote in votes.values())


def test_a_candidate_with_an_older_log_is_refused(cluster: Cluster) -> None:
    stale = cluster.others(cluster.leader())[0]
    cluster.kill(stale)
    cluster.put_somewhere("written-without", b"it")
    fresh = cluster.others(stale)
    cluster.kill(*fresh)

    # Of these two only the one that holds the write may win, however often the other one asks.
    cluster.start(stale)
    eventually("the stale node asks for votes", lambda: b"starts a pre-vote" in cluster.log_file(stale).read_bytes())
    cluster.start(fresh[0])

    assert cluster.leader() == fresh[0]
    assert cluster.read(stale, "written-without").body == b"it"


def test_a_follower_that_missed_entries_catches_up(cluster: Cluster) -> None:
    follower = cluster.others(cluster.leader())[0]
    cluster.kill(follower)
    for number in range(20):
        cluster.put_somewhere(f"missed-{number}", b"v%d" % number)

    cluster.start(follower)

    cluster.converge()
    for number in range(20):
        answer = cluster.get(follower, f"missed-{number}", "?consistency=stale")
        assert (answer.status, answer.body) == (200, b"v%d" % number)


def test_a_follower_with_conflicting_entries_is_repaired(cluster: Cluster) -> None:
    cluster.put_somewhere("x", b"before")
    old = cluster.leader()
    others = cluster.others(old)
    cluster.pause(*others)
    lonely = cluster.put(old, "x", b"lonely", timeout_s=20)
    assert lonely.status == 504
    assert lonely.document["outcome"] == "unknown"
    cluster.kill(old)
    cluster.resume(*others)
    cluster.put_somewhere("x", b"after")

    cluster.start(old)

    cluster.converge()
    for name in cluster.names:
        assert cluster.read(name, "x").body == b"after"


def test_a_write_reported_as_failed_is_never_found_committed_later(cluster: Cluster) -> None:
    leader = cluster.leader()
    down = cluster.others(leader)
    cluster.kill(*down)
    refused: list[str] = []
    unknown: list[str] = []
    deadline = time.monotonic() + 20
    while len(refused) < 5 and time.monotonic() < deadline:
        key = f"doubtful-{len(refused)}-{len(unknown)}"
        answer = cluster.put(leader, key, b"?", timeout_s=20)
        assert answer.status in (503, 504), answer
        (refused if answer.document["outcome"] == "refused" else unknown).append(key)
        assert answer.document["outcome"] in ("refused", "unknown")
    assert len(refused) == 5

    for name in down:
        cluster.start(name)
    cluster.put_somewhere("now", b"it works again")
    cluster.converge()

    for name in cluster.names:
        for key in refused:
            assert cluster.read(name, key).status == 404


def test_a_get_at_a_deposed_leader_is_not_stale(cluster: Cluster) -> None:
    cluster.put_somewhere("x", b"old")
    old = cluster.leader()
    cluster.pause(old)
    others = cluster.others(old)
    eventually("another leader", lambda: any((cluster.status(n) or {}).get("state") == "leader" for n in others))
    cluster.put_somewhere("x", b"new", among=others)

    answers = []
    asking = [threading.Thread(target=lambda: answers.append(cluster.get(old, "x", timeout_s=20))) for _ in range(8)]
    for thread in asking:
        thread.start()  # They wait in the paused process's socket, and are the first thing that it sees.
    cluster.resume(old)
    for thread in asking:
        thread.join()

    assert len(answers) == 8
    for answer in answers:
        assert answer.status != 200 or answer.body == b"new"
    assert cluster.read(old, "x").body == b"new"


def test_a_leader_without_a_quorum_serves_no_linearizable_read(cluster: Cluster) -> None:
    cluster.put_somewhere("x", b"1")
    leader = cluster.leader()
    cluster.pause(*cluster.others(leader))

    answer = cluster.get(leader, "x", timeout_s=20)

    assert answer.status in (503, 504)
    stale = cluster.get(leader, "x", "?consistency=stale")
    assert (stale.status, stale.body) == (200, b"1"), "a stale one is served when it is asked for"


def test_a_get_at_a_follower_is_linearizable(cluster: Cluster) -> None:
    for number in range(60):
        cluster.put_somewhere("x", b"%d" % number)
        for name in cluster.names:
            assert cluster.read(name, "x").body == b"%d" % number


def test_a_follower_redirects_writes_with_the_hint(cluster: Cluster) -> None:
    leader = cluster.leader()
    for follower in cluster.others(leader):
        answer = cluster.put(follower, "a%2Fb", b"1")

        assert answer.status == 307
        assert answer.headers["Location"].startswith(f"http://{cluster.addresses[leader]}/v1/kv/a%2Fb?cluster=")
        assert answer.headers["X-Kvorum-Leader"] == leader
        assert answer.document["leader"] == leader
        assert answer.document["outcome"] == "refused"
    assert cluster.read(leader, "a%2Fb").status == 404


def test_acknowledged_means_applied(cluster: Cluster) -> None:
    leader = cluster.leader()
    for number in range(100):
        revision = cluster.put(leader, "x", b"%d" % number).document["revision"]
        answer = cluster.get(leader, "x", "?consistency=stale")
        assert (answer.body, answer.headers["X-Kvorum-Mod-Revision"]) == (b"%d" % number, str(revision))


def test_writes_go_on_with_one_of_three_down_and_stop_with_two(cluster: Cluster) -> None:
    first = cluster.others(cluster.leader())[0]
    cluster.kill(first)
    cluster.put_somewhere("one-down", b"fine")
    leader = cluster.leader()
    second = cluster.others(leader, first)[0]
    cluster.kill(second)

    answer = cluster.put(leader, "two-down", b"?", timeout_s=20)
    assert answer.status in (503, 504)
    eventually("the leader without a quorum steps down", lambda: cluster.put(leader, "later", b"?").status == 503)

    for name in (first, second):
        cluster.start(name)
    cluster.put_somewhere("three-up", b"fine")
    assert cluster.read(leader, "one-down").body == b"fine"


def test_a_storage_error_stops_the_node_with_one_clear_line(cluster: Cluster) -> None:
    follower = cluster.others(cluster.leader())[0]
    cluster.kill(follower)
    size = sum(path.stat().st_size for path in cluster.data_dir(follower).glob("kvorum.db*"))

    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 400_000, size + 400_000))

    starved = cluster.start(follower, preexec=starve)
    for number in range(60):
        cluster.put_somewhere(f"fill-{number}", b"x" * 50_000, among=cluster.others(follower))
        if starved.poll() is not None:
            break

    assert eventually("the node ends", lambda: starved.poll() is not None)
    assert starved.returncode == 4
    last = cluster.log_file(follower).read_text().strip().splitlines()[-1]
    assert re.search(r"error .*storage", last, re.IGNORECASE), last
    cluster.processes.pop(follower)
    cluster.start(follower)
    cluster.converge()


def _has_more_than(acknowledged: dict[str, bytes], count: int) -> bool:
    return len(acknowledged) > count


@pytest.mark.parametrize("victims", ["one", "all"])
def test_sigkill_loses_no_acknowledged_write(cluster: Cluster, victims: str) -> None:
    acknowledged: dict[str, bytes] = {}
    stop = threading.Event()

    def write(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            key, value = f"w{worker}-{number}", b"%d" % number
            for name in cluster.names:
                answer = cluster.try_request(name, "PUT", f"/v1/kv/{key}", value)
                if answer is not None and answer.status == 200:
                    acknowledged[key] = value
                    break

    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(4):
            seen = len(acknowledged)
            eventually("writes are acknowledged", partial(_has_more_than, acknowledged, seen + 20))
            down = cluster.names if victims == "all" else [cluster.leader()]
            cluster.kill(*down)
            for name in down:
                cluster.start(name)
    finally:
        stop.set()
        for writer in writers:
            writer.join()

    cluster.converge()
    reader = cluster.leader()
    for key, value in acknowledged.items():
        answer = cluster.read(reader, key)
        assert (answer.status, answer.body) == (200, value), key
