"""Back up, wipe, restore: on real processes, with the commands that an operator types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from acceptance.processes import Cluster, kvorum
from waiting import eventually

KEYS = 50


def kv(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the `kv` command to its end."""
    endpoints = ",".join(cluster.addresses.values())
    command = [sys.executable, "-m", "kvorum_client.cli", "--endpoints", endpoints, *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, env=dict(os.environ), check=False)


def restore(cluster: Cluster, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `kvorum restore` with the flags that the node is served with."""
    serve = cluster.command(name)[4:]
    return kvorum("restore", *serve, *arguments)


def fill(cluster: Cluster) -> None:
    for number in range(KEYS):
        cluster.put_somewhere(f"key-{number}", b"value-%d" % number)


def assert_filled(cluster: Cluster) -> None:
    for number in range(KEYS):
        assert cluster.read(cluster.leader(), f"key-{number}").body == b"value-%d" % number


def test_what_was_backed_up_survives_the_loss_of_everything(tmp_path: Path) -> None:
    backup = tmp_path / "kv.backup"
    with Cluster(tmp_path) as cluster:
        fill(cluster)
        saved = kv(cluster, "snapshot", "save", str(backup))
        assert saved.returncode == 0, saved.stderr
        assert b"50 keys at revision 51" in saved.stdout
        lost = cluster.put_somewhere("after-the-backup", b"lost").document["revision"]
        cluster.kill(*cluster.names)
        for name in cluster.names:
            shutil.rmtree(cluster.data_dir(name))

        done = restore(cluster, "n1", "--from", str(backup))

        assert done.returncode == 0, done.stderr
        assert "holds 50 keys" in done.stdout
        for name in cluster.names:
            cluster.start(name)
        eventually("three voters", lambda: len(voters(cluster)) == 3)
        cluster.converge()
        assert_filled(cluster)
        assert cluster.read(cluster.leader(), "after-the-backup").status == 404
        assert cluster.put_somewhere("new", b"1").document["revision"] > lost, "a revision was given away twice"


def voters(cluster: Cluster) -> list[str]:
    status = cluster.status("n1") or {"members": []}
    return [member["name"] for member in status["members"] if member["voter"]]


def test_a_node_that_runs_takes_a_backup_at_its_next_start(tmp_path: Path) -> None:
    backup = tmp_path / "kv.backup"
    with Cluster(tmp_path, 1) as cluster:
        fill(cluster)
        assert kv(cluster, "snapshot", "save", str(backup)).returncode == 0
        cluster.put_somewhere("key-0", b"changed")

        refused = restore(cluster, "n1", "--from", str(backup), "--replace")
        assert refused.returncode == 4
        assert "is a node already running" in refused.stderr
        refused = restore(cluster, "n1", "--from", str(backup), "--at-next-start")
        assert refused.returncode == 2
        assert "--replace" in refused.stderr
        done = restore(cluster, "n1", "--from", str(backup), "--at-next-start", "--replace")
        assert done.returncode == 0, done.stderr
        assert cluster.get("n1", "key-0").body == b"changed", "the node goes on as it is until then"

        cluster.kill("n1")
        cluster.start("n1")

        cluster.leader()
        assert_filled(cluster)


def test_a_backup_goes_through_a_pipe(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1) as cluster:
        fill(cluster)
        saved = kv(cluster, "snapshot", "save", "-")
        assert saved.returncode == 0, saved.stderr
        shown = subprocess.run(
            [sys.executable, "-m", "kvorum_client.cli", "snapshot", "status", "-", "-o", "json"],
            input=saved.stdout,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        description = json.loads(shown.stdout)
        assert (description["keys"], description["revision"]) == (KEYS, KEYS + 1)
        assert description["size_bytes"] == len(saved.stdout)
        assert description["sha256"] == saved.stdout[-32:].hex()


@pytest.mark.parametrize("cut_bytes", [1, 1000])
def test_a_truncated_backup_is_refused_by_both_commands(cut_bytes: int, tmp_path: Path) -> None:
    backup = tmp_path / "kv.backup"
    with Cluster(tmp_path, 1) as cluster:
        fill(cluster)
        assert kv(cluster, "snapshot", "save", str(backup)).returncode == 0
        cluster.kill("n1")
        shutil.rmtree(cluster.data_dir("n1"))
        backup.write_bytes(backup.read_bytes()[:-cut_bytes])

        shown, refused = kv(cluster, "snapshot", "status", str(backup)), restore(cluster, "n1", "--from", str(backup))

        assert shown.returncode == 1
        assert b"damaged or incomplete" in shown.stderr
        assert refused.returncode == 4
        assert "not a valid backup" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert not (cluster.data_dir("n1") / "restored").exists()
        missing = restore(cluster, "n1", "--from", str(tmp_path / "none"))
        assert missing.returncode == 2
        assert "No such file" in missing.stderr


def test_a_file_is_not_written_over_and_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    backup = tmp_path / "kv.backup"
    backup.write_text("precious")
    with Cluster(tmp_path, 1) as cluster:
        refused = kv(cluster, "snapshot", "save", str(backup))
        assert refused.returncode == 2
        assert b"--force" in refused.stderr
        assert backup.read_text() == "precious"
        assert kv(cluster, "snapshot", "save", "--force", str(backup)).returncode == 0
        cluster.kill("n1")
        assert kv(cluster, "--timeout", "1", "snapshot", "save", str(tmp_path / "none")).returncode == 3
    assert backup.read_bytes().startswith(b"KVORSNAP")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kv.backup", "n1", "n1.log"]


def test_a_backup_is_kept_from_the_terminal_and_a_closed_stdin_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvorum_client.cli", "--endpoints", "127.0.0.1:1", "snapshot"]
    terminal, inside = os.openpty()
    with os.fdopen(terminal, "rb"), os.fdopen(inside, "wb") as output:
        refused = subprocess.run(
            [*command, "save", "-"], stdout=output, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (refused.returncode, refused.stderr) == (
        2,
        b"kv: cannot write a backup to a terminal: redirect the output, or name a file\n",
    )
    closed = ["bash", "-c", 'exec "$@" <&-', "bash", *command, "status", "-"]
    shown = subprocess.run(closed, capture_output=True, timeout=60, check=False)
    assert (shown.returncode, shown.stderr) == (2, b"kv: stdin is closed\n")


def test_a_stale_backup_needs_no_quorum_and_says_what_it_is(tmp_path: Path) -> None:
    """Just before `kvorum recover`, which cannot be undone, no backup was to be had."""
    backup = tmp_path / "kv.backup"
    with Cluster(tmp_path) as cluster:
        fill(cluster)
        cluster.converge()
        cluster.kill("n2", "n3")
        assert kv_at(cluster, "n1", "--timeout", "1", "snapshot", "save", str(backup)).returncode == 3

        saved = kv_at(cluster, "n1", "snapshot", "save", "--stale", str(backup))

        assert saved.returncode == 0, saved.stderr
        assert b"no quorum confirmed" in saved.stderr
        answer = cluster.request("n1", "GET", "/v1/snapshot?consistency=stale")
        assert answer.headers["X-Kvorum-Snapshot-Consistency"] == "stale"
        assert answer.body == backup.read_bytes()
        shown = kv_at(cluster, "n1", "snapshot", "status", "-o", "json", str(backup))
        assert json.loads(shown.stdout)["stale"] is True
        assert b"no quorum confirmed" in shown.stderr
        cluster.kill("n1")
        shutil.rmtree(cluster.data_dir("n1"))

        done = restore(cluster, "n1", "--from", str(backup))

        assert done.returncode == 0, done.stderr
        assert "holds 50 keys" in done.stdout
        assert "no quorum confirmed this backup" in done.stderr


def test_a_backup_does_not_wait_for_a_node_that_does_not_answer(tmp_path: Path) -> None:
    """It tried the next endpoint after 61 s."""
    backup = tmp_path / "kv.backup"
    with Cluster(tmp_path) as cluster:
        fill(cluster)
        paused = cluster.others(cluster.leader())[0]
        others = cluster.others(paused)
        cluster.pause(paused)
        saved = kv_at(cluster, paused, "snapshot", "save", str(backup), and_at=others, timeout_s=30)
        cluster.resume(paused)
    assert saved.returncode == 0, saved.stderr


def kv_at(
    cluster: Cluster, first: str, *arguments: str, and_at: Sequence[str] = (), timeout_s: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run `kv` with these endpoints, in this order."""
    endpoints = ",".join(f"127.0.0.1:{cluster.client_ports[name]}" for name in (first, *and_at))
    command = [sys.executable, "-m", "kvorum_client.cli", "--endpoints", endpoints, *arguments]
    return subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
