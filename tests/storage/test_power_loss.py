"""The loss of power: every folder that a crash could leave holds what was acknowledged."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage.replay import Disk
from storage.support import load
from storage.test_faults import check
from storage.tracing import FILE_CALLS, Call, acknowledged, command, needs_strace, read_trace, run_child, trace

from kvorum.errors import StorageError

pytestmark = needs_strace


@pytest.fixture
def images() -> Iterator[Path]:
    """Where crash images are made: in memory if possible, since each is synced by the load that checks it."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="kvorum-images-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


class Session:
    """One process after another on one disk, each traced."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.disk = Disk()
        self.seed = seed
        self._folder = folder
        self._processes = 0
        folder.mkdir()

    def run(self, operations: int, *more: str, strace: tuple[str, ...] = ()) -> list[Call]:
        """Run the workload on what the processes before it have left, and return its calls, not applied yet."""
        self._processes += 1
        root, output = self._folder / f"n{self._processes}", self._folder / f"trace{self._processes}"
        self.disk.after_kill(root)
        self.disk.start(root)
        arguments = command(root, operations, self.seed, *more)
        if strace:
            options = ["strace", "-f", "-qq", "-s", "10000000", "-xx", "-e", f"trace={FILE_CALLS}", *strace]
            run_child([*options, "-o", str(output), *arguments])
        else:
            trace(output, FILE_CALLS, arguments)
        return list(read_trace(output))

    def apply(self, calls: list[Call]) -> None:
        for _ in self.disk.apply(calls):
            pass

    def crash(self, image: Path, random_: random.Random) -> None:
        """Lose power, load what is left, and compare it with what was acknowledged."""
        self.disk.after_crash(image, random_)
        said = self.disk.said
        check(image, self.seed, acknowledged(said), acknowledged(said, "begin"))
        shutil.rmtree(image)


def crash_at_random(session: Session, calls: list[Call], images: Path, count: int) -> None:
    """Lose power ``count`` times, at random calls of one process."""
    random_ = random.Random(session.seed)
    points = sorted(random_.choices(range(len(calls)), k=count))
    for position, _ in enumerate(session.disk.apply(calls)):
        while points and points[0] == position:
            points.pop(0)
            session.crash(images / "image", random_)


def test_a_loss_of_power_loses_no_acknowledged_save(tmp_path: Path, images: Path) -> None:
    session = Session(tmp_path / "disk", seed=21)
    crash_at_random(session, session.run(110), images, 150)
    crash_at_random(session, session.run(110), images, 150)


CHANGING = ("pwrite64", "write", "ftruncate", "rename", "unlink", "fsync", "fdatasync")


def test_a_loss_of_power_anywhere_in_the_first_start_is_no_obstacle(tmp_path: Path, images: Path) -> None:
    """The folder, the mark and the log come into being: at each call, three of the folders that a crash could leave."""
    session = Session(tmp_path / "disk", seed=24)
    random_ = random.Random(4)
    points = 0
    for call in session.disk.apply(session.run(2)):
        if call.name in CHANGING and session.disk.names:
            points += 1
            for _ in range(3):
                session.crash(images / "image", random_)
    assert points > 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
def test_thousands_of_losses_of_power_lose_no_acknowledged_save(tmp_path: Path, images: Path, seed: int) -> None:
    session = Session(tmp_path / "disk", seed)
    for _ in range(2):
        crash_at_random(session, session.run(300), images, 250)


def test_the_replay_notices_a_disk_that_does_not_sync(tmp_path: Path, images: Path) -> None:
    """The same workload as sqlitedict writes it by default: nearly every crash loses acknowledged saves."""
    session = Session(tmp_path / "disk", seed=21)
    session.apply(session.run(60, "unsafe")[:-30])
    random_ = random.Random(1)
    lost = 0
    for _ in range(20):
        try:
            session.crash(images / "image", random_)
        except (AssertionError, StorageError):
            lost += 1
            shutil.rmtree(images / "image")
    assert lost >= 10


def unsynced(calls: list[Call], operation: int) -> int:
    """The position of the first sync after operation ``operation`` was begun."""
    begun = f"begin {operation}\n".encode().hex()
    seen = False
    for position, call in enumerate(calls):
        seen = seen or (call.name == "write" and begun in call.arguments.replace("\\x", ""))
        if seen and call.name == "fdatasync":
            return position
    raise AssertionError("no sync")


def test_what_is_loaded_after_a_kill_is_durable(tmp_path: Path, images: Path) -> None:
    """Killed between the write and its sync, the next process finds the record, and from then on relies on it."""
    session = Session(tmp_path / "disk", seed=22)
    calls = session.run(40)
    session.apply(calls[: unsynced(calls, 33)])
    assert acknowledged(session.disk.said) == 32
    session.disk.after_kill(tmp_path / "look")
    assert load(tmp_path / "look").hard_state.current_term == 33
    crash_at_random(session, session.run(5), images, 60)
    assert acknowledged(session.disk.said) == 38


@pytest.mark.parametrize("number", [20, 31])
def test_what_is_loaded_after_a_failed_sync_is_durable(tmp_path: Path, images: Path, number: int) -> None:
    """After a failed fsync the kernel takes the pages for clean, and still shows them to the next process."""
    session = Session(tmp_path / "disk", seed=23)
    calls = session.run(60, strace=("-e", f"inject=fdatasync:error=EIO:when={number}"))
    failure = next(position for position, call in enumerate(calls) if call.name == "fdatasync" and call.result == -1)
    session.apply(calls[: failure + 1])
    crash_at_random(session, session.run(10), images, 60)
