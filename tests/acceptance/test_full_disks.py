"""Disks that fill together: nothing ends, reads and deletes go on, and puts return with the room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from acceptance.processes import Answer, Cluster
from waiting import eventually

DISK_BYTES = 40_000_000
VALUE = bytes(200_000)
DEADLINE_S = 90.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Yield three nodes, each on a small disk of its own."""
    cluster = Cluster(tmp_path)
    mounted: list[Path] = []
    try:
        for name in cluster.names:
            folder = cluster.data_dir(name)
            folder.mkdir()
            options = f"size={DISK_BYTES},mode=0700"
            mount = ["mount", "-t", "tmpfs", "-o", options, "kvorum-test", str(folder)]
            if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
                pytest.skip("mounting a file system is not permitted")
            mounted.append(folder)
        with cluster:
            yield cluster
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(cluster: Cluster, prefix: str, keys_max: int = 400) -> list[str]:
    """Put new keys until there is no more room; return those that were put."""
    keys: list[str] = []
    while len(keys) < keys_max:
        answer = put(cluster, f"{prefix}-{len(keys)}")
        if answer.status == 507:
            problem = answer.document
            assert (problem["code"], problem["outcome"], problem["reason"]) == ("no_space", "refused", "disk")
            if any("nearly full" in ((cluster.status(name) or {}).get("disks_full") or "") for name in cluster.names):
                return keys
            # Too much at once: what was just written is not in the reports of the members yet.
            continue
        keys.append(f"{prefix}-{len(keys)}")
    raise AssertionError(f"{keys_max} keys of {len(VALUE)} bytes were put on disks of {DISK_BYTES} bytes")


def put(cluster: Cluster, key: str) -> Answer:
    """Return the first answer to a put that is done, or refused for lack of room."""
    return ask(cluster, "PUT", key, VALUE, {200, 507})


def delete(cluster: Cluster, key: str) -> None:
    ask(cluster, "DELETE", key, None, {200})


def ask(cluster: Cluster, method: str, key: str, body: bytes | None, statuses: set[int]) -> Answer:
    def attempt() -> Answer | None:
        for name in cluster.running():
            answer = cluster.try_request(name, method, f"/v1/kv/{key}", body)
            if answer is not None and answer.status in statuses:
                return answer
        return None

    answer: Answer = eventually(f"{method} {key}", attempt, DEADLINE_S)
    return answer


def fill_up(cluster: Cluster, left_bytes: int = 0) -> None:
    """Let another program take what is left of every disk."""
    for name in cluster.names:
        status = os.statvfs(cluster.data_dir(name))
        with open(cluster.data_dir(name) / "filler", "ab", buffering=0) as filler:
            filler.write(bytes(max(status.f_bavail * status.f_frsize - left_bytes, 0)))


def make_room(cluster: Cluster) -> None:
    for name in cluster.names:
        (cluster.data_dir(name) / "filler").unlink()


def is_ready(cluster: Cluster, name: str) -> bool:
    answer = cluster.try_request(name, "GET", "/readyz")
    return answer is not None and answer.status == 200


def is_whole(reserve: Path) -> bool:
    """Tell whether a reserve is there, as bytes on the disk."""
    return reserve.exists() and min(reserve.stat().st_size, reserve.stat().st_blocks * 512) >= DISK_BYTES // 10


def test_puts_are_refused_before_equal_disks_are_full_and_return_with_the_room(cluster: Cluster) -> None:
    keys = fill(cluster, "a")
    assert cluster.running() == cluster.names
    leader = cluster.settled()
    for name in cluster.names:
        eventually(f"{name} is ready", partial(is_ready, cluster, name))
        assert cluster.get(name, keys[0], "?consistency=stale").body == VALUE
    assert cluster.read(leader, keys[-1]).body == VALUE

    for key in keys[: len(keys) // 2]:
        delete(cluster, key)
    eventually("a put is accepted", lambda: put(cluster, "again").status == 200, DEADLINE_S)
    fill(cluster, "b")
    assert cluster.running() == cluster.names
    cluster.converge()


def test_nodes_on_full_disks_start_and_delete_from_their_reserve(cluster: Cluster) -> None:
    keys = fill(cluster, "a")
    reserves = [cluster.data_dir(name) / "reserve" for name in cluster.names]
    eventually("every node has a reserve", lambda: all(map(is_whole, reserves)))
    cluster.kill(*cluster.names)
    fill_up(cluster)

    for name in cluster.names:
        cluster.start(name)
    eventually("puts are refused", lambda: put(cluster, "b").status == 507, DEADLINE_S)
    for key in keys:
        delete(cluster, key)
    assert cluster.running() == cluster.names
    make_room(cluster)
    eventually("a put is accepted", lambda: put(cluster, "b").status == 200, DEADLINE_S)
    eventually("every node has a reserve again", lambda: all(path.exists() for path in reserves))
    assert cluster.running() == cluster.names


def test_nodes_on_disks_without_a_free_byte_stay_up_and_go_on_when_there_is_room(cluster: Cluster) -> None:
    fill_up(cluster, 6_000_000)

    def is_noticed() -> bool:
        own = [
            member["free_bytes"]
            for name in cluster.names
            for member in (cluster.status(name) or {"members": ()})["members"]
            if member["name"] == name
        ]
        return len(own) == len(cluster.names) and all(free is not None and free < 7_000_000 for free in own)

    # What happens within a second is not noticed: a write then fails, and the node starts again.
    eventually("every node has noticed it", is_noticed, DEADLINE_S)

    def waits() -> bool:
        # What the reserve leaves, another program takes as well.
        fill_up(cluster)
        for name in cluster.running():
            cluster.try_request(name, "DELETE", f"/v1/kv/{'k' * 2000}")
        return any(b"saves wait for room" in cluster.log_file(name).read_bytes() for name in cluster.names)

    eventually("a save waits for room", waits, DEADLINE_S)
    assert cluster.running() == cluster.names
    make_room(cluster)
    cluster.put_somewhere("after", b"v")
    assert cluster.running() == cluster.names
