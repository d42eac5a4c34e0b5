"""A real process on a real disk that is traced, starved of space, failed at the N-th call, and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench.processes import free_ports, serve_arguments
from storage.support import Disk, entries, load
from storage.tracing import acknowledged, command, environment, needs_strace, read_trace, run_child, strings, trace
from storage.workload import plan

from kvorum.errors import StorageError


def check(folder: Path, seed: int, least: int, most: int) -> None:
    """The folder holds exactly the state after some operation: none that was acknowledged is lost."""
    loaded = load(folder)
    held = loaded.hard_state.current_term
    assert least <= held <= most
    for operation, model in plan(seed):
        if operation.number == held:
            model.check(loaded)
        if operation.number >= held:
            return


# --- Counting ---------------------------------------------------------------------------------------------------------


def syncs_between_begin_and_acknowledgement(folder: Path, output: Path, *more: str) -> list[int]:
    trace(output, "write,fsync,fdatasync", command(folder, 60, 3, *more))
    counts: list[int] = []
    syncs = 0
    for call in read_trace(output):
        if call.name in ("fsync", "fdatasync") and call.result == 0:
            syncs += 1
        elif call.name == "write" and call.arguments.startswith("1, "):
            (line,) = strings(call.arguments)
            if line.startswith(b"begin"):
                syncs = 0
            elif line.startswith(b"ack"):
                counts.append(syncs)
    return counts[1:]  # The first stands for what was loaded.


@needs_strace
def test_every_save_is_synced_exactly_once_before_it_is_acknowledged(tmp_path: Path) -> None:
    counts = syncs_between_begin_and_acknowledgement(tmp_path / "n1", tmp_path / "trace")
    assert counts == [1] * 60


@needs_strace
def test_the_count_of_syncs_would_show_a_disk_that_is_not_synced(tmp_path: Path) -> None:
    counts = syncs_between_begin_and_acknowledgement(tmp_path / "n1", tmp_path / "trace", "unsafe")
    assert counts == [0] * 60


# --- Failing at the N-th call -----------------------------------------------------------------------------------------


def fail_at(folder: Path, call: str, error: str, number: int, seed: int) -> tuple[int, list[str]]:
    fault = f"inject={call}:error={error}:when={number}"
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", fault]
    return run_child([*strace, *command(folder, 120, seed)])


def check_failure(folder: Path, call: str, error: str, number: int) -> bool:
    """One fault, or none if the call is not made so often: returns whether it was met. Nothing acknowledged is lost."""
    status, lines = fail_at(folder, call, error, number, seed=number)
    if status == 0:
        assert acknowledged(lines) == 120
        check(folder, number, 120, 120)
        return False
    assert status == 3, lines
    assert lines[-1].startswith(("StorageError: ", "SnapshotFailedError: ")), lines[-1]
    check(folder, number, acknowledged(lines), acknowledged(lines, "begin"))
    return True


QUICK = [("fdatasync", "EIO"), ("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("fsync", "EIO")]


@needs_strace
@pytest.mark.parametrize(("call", "error"), QUICK)
@pytest.mark.parametrize("number", [1, 12, 90])
def test_a_disk_that_fails_once_ends_the_node_and_loses_nothing(
    tmp_path: Path, call: str, error: str, number: int
) -> None:
    met = check_failure(tmp_path / "n1", call, error, number)
    assert met or (call == "fsync" and number == 90)


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize(("call", "error"), [*QUICK, ("fdatasync", "ENOSPC"), ("fsync", "ENOSPC")])
def test_a_disk_that_fails_at_any_call_ends_the_node_and_loses_nothing(tmp_path: Path, call: str, error: str) -> None:
    number, met = 1, 0
    while met < 40 and check_failure(tmp_path / f"n{number}", call, error, number):
        met += 1
        number += 1 if call == "fsync" else 5
    assert met >= 10


# --- Full -------------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def remount(folder: Path) -> None:
    """Let a small disk be large."""
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("size_kib", [700, 1500])
def test_a_disk_that_is_full_without_warning_ends_the_node_and_loses_nothing(
    tmp_path: Path, size_kib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes the last room after the log has looked."""
    monkeypatch.setattr("kvorum.storage.room.Room.holds", lambda *_: True)

    async def scenario(folder: Path, small: Path) -> None:
        saved = 0
        async with Disk(folder) as disk:
            with pytest.raises(StorageError, match=r"full|No space left"):
                while True:
                    await disk.save(1, *entries(saved + 1, saved + 1, size=20_000))
                    saved += 1
            assert len(disk.failures) == 1
        assert saved
        await asyncio.to_thread(remount, small)
        async with Disk(folder) as disk:
            assert [entry.index for entry in disk.loaded.entries[:saved]] == list(range(1, saved + 1))
            last = disk.loaded.entries[-1].index
            await disk.save(1, *entries(last + 1, last + 1))

    with small_disk(tmp_path / "small", size_kib) as small:
        asyncio.run(scenario(small / "n1", small))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("size_kib", [8, 40, 64])
def test_a_node_whose_disk_is_full_at_its_start_says_so_in_one_line_and_waits(tmp_path: Path, size_kib: int) -> None:
    with small_disk(tmp_path / "small", size_kib) as disk:
        client, peer = free_ports(2)
        node = [sys.executable, "-m", "kvorum", *serve_arguments("n1", client, {"n1": peer}, disk / "n1")]
        with subprocess.Popen([*node, "--log-format=text"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            error = next((line for line in process.stdout if " error " in line), "")
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
        assert "error   kvorum.storage.log: The disk is full" in error
        assert "the node waits for room before it starts" in error
        assert " error " not in rest
        assert process.returncode == 0


# --- Killed -----------------------------------------------------------------------------------------------------------


def kill_and_check(folder: Path, rounds: int, seed: int) -> int:
    """Kill the workload again and again, each time after another number of acknowledgements; returns the last one."""
    last = 0
    for round_number in range(rounds):
        child = subprocess.Popen(command(folder, 100_000, seed), env=environment(), stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        wanted = 1 + (round_number * 37 + seed) % 90
        begun = last
        with child:
            for line in child.stdout:
                if line.startswith("ack"):
                    last = int(line.split()[1])
                if line.startswith("begin"):
                    begun = int(line.split()[1])
                if last >= begun - 1 and line.startswith("begin") and begun % 90 == wanted % 90:
                    child.send_signal(signal.SIGKILL)
                    break
            rest = child.stdout.read().splitlines()
        assert child.returncode == -signal.SIGKILL
        last, begun = max(last, acknowledged(rest)), max(begun, acknowledged(rest, "begin"))
        check(folder, seed, last, begun)
    return last


def test_a_node_that_is_killed_under_load_loses_nothing(tmp_path: Path) -> None:
    assert kill_and_check(tmp_path / "n1", rounds=8, seed=11) > 100


@pytest.mark.slow
def test_a_node_that_is_killed_a_hundred_times_loses_nothing(tmp_path: Path) -> None:
    assert kill_and_check(tmp_path / "n1", rounds=100, seed=12) > 1000


def test_the_workload_ends_by_itself(tmp_path: Path) -> None:
    """So that a status of 0 above means what it says."""
    status, lines = run_child([sys.executable, "-m", "storage.workload", str(tmp_path / "n1"), "30", "1"])
    assert status == 0
    assert acknowledged(lines) == 30
    check(tmp_path / "n1", 1, 30, 30)
