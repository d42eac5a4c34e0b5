"""Any sequence of saves, adoptions, snapshots, compactions, restarts and kills, against a dictionary and the twin."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from storage.support import Disk, entries, load, send, snapshot, take_snapshot
from storage.workload import Model, Operation

from kvorum.raft.messages import HardState, Save
from kvorum.storage import log as log_module
from kvorum.storage.memory import MemorySnapshots, MemoryStorage


@dataclass(frozen=True)
class Append:
    """Replace the last ``replaced`` entries that are not committed, and append ``count``."""

    replaced: int
    count: int
    size: int


@dataclass(frozen=True)
class Vote:
    vote: str | None


@dataclass(frozen=True)
class Commit:
    back: int


@dataclass(frozen=True)
class Adopt:
    ahead: int
    count: int


@dataclass(frozen=True)
class TakeSnapshot:
    """Of the state ``back`` entries before the last committed one."""

    back: int


@dataclass(frozen=True)
class Compact:
    """Behind the newest snapshot, or behind the older one."""

    all_of_it: bool


@dataclass(frozen=True)
class Restart:
    kill: bool


Step = Append | Vote | Commit | Adopt | TakeSnapshot | Compact | Restart

STEPS = st.lists(
    st.one_of(
        st.builds(Append, st.integers(0, 5), st.integers(0, 8), st.sampled_from([0, 100, 9000])),
        st.builds(Append, st.just(0), st.integers(1, 8), st.just(50)),
        st.builds(Vote, st.sampled_from([None, "n1@00", "n2@00"])),
        st.builds(Commit, st.integers(0, 3)),
        st.builds(Adopt, st.integers(-3, 10), st.integers(0, 3)),
        st.builds(TakeSnapshot, st.integers(0, 5)),
        st.builds(Compact, st.booleans()),
        st.builds(Restart, st.booleans()),
    ),
    min_size=5,
    max_size=40,
)


@dataclass
class Trial:
    """One folder, the model, and the twin, which all see the same steps."""

    folder: Path
    model: Model = field(default_factory=Model)
    twin: MemoryStorage = field(default_factory=lambda: MemoryStorage(automatic=True))
    committed: int = 0
    lives: int = 0
    crashes: int = 0

    async def run(self, steps: list[Step]) -> None:
        remaining = list(steps)
        while True:
            async with Disk(self.folder / str(self.lives)) as disk:
                if self.twin.load().identity is None:
                    self.twin.write_identity(disk.storage._identity or disk.loaded.identity)  # type: ignore[arg-type]
                self.check(disk)
                restart = await self.live(disk, remaining)
                if restart is None:
                    break
                if restart.kill:
                    shutil.copytree(self.folder / str(self.lives), self.folder / str(self.lives + 1))
            if restart.kill:
                self.lives += 1
        async with Disk(self.folder / str(self.lives)) as disk:
            self.check(disk)

    def check(self, disk: Disk) -> None:
        self.model.check(disk.loaded)
        twin = self.twin.load()
        assert (disk.loaded.hard_state, disk.loaded.snapshot, disk.loaded.entries) == (
            twin.hard_state,
            twin.snapshot,
            twin.entries,
        )
        assert disk.storage.snapshots.kept() == self.twin.snapshots.kept()

    async def live(self, disk: Disk, steps: list[Step]) -> Restart | None:
        while steps:
            step = steps.pop(0)
            match step:
                case Restart():
                    return step
                case Commit(back):
                    self.committed = max(self.committed, self.model.last_index - back)
                case Append(replaced, count, size):
                    first_index = max(self.committed + 1, self.model.last_index + 1 - replaced)
                    parts = entries(first_index, first_index + count - 1, self.model.number + 1, size)
                    await self.save(disk, Operation(self.model.number + 1, None, parts))
                case Vote(vote):
                    await self.save(disk, Operation(self.model.number + 1, vote))
                case Adopt(ahead, count):
                    await self.adopt(disk, ahead, count)
                case TakeSnapshot(back):
                    self.take_snapshot(disk, self.committed - back)
                case Compact(all_of_it):
                    await self.compact(disk, all_of_it)
        return None

    async def save(self, disk: Disk, operation: Operation) -> None:
        await disk.save(operation.number, *operation.entries, vote=operation.vote, base=operation.base)
        hard_state = HardState(operation.number, operation.vote)
        self.twin.save(Save(operation.number, hard_state, operation.entries, operation.base), lambda: None)
        self.model.apply(operation)

    async def adopt(self, disk: Disk, ahead: int, count: int) -> None:
        last_index = max(self.committed + 1, self.model.last_index + ahead)
        number = self.model.number + 1
        base = snapshot(last_index, number)
        theirs = MemorySnapshots()
        take_snapshot(theirs, last_index, b"theirs", number)
        for snapshots in (disk.storage.snapshots, self.twin.snapshots):
            send(theirs, snapshots, base)
        self.committed = last_index
        await self.save(disk, Operation(number, None, entries(last_index + 1, last_index + count, number), base))

    def take_snapshot(self, disk: Disk, last_index: int) -> None:
        entry = self.model.log.get(last_index)
        kept = disk.storage.snapshots.kept()
        if entry is None or (kept and last_index <= kept[0].snapshot.last_index):
            return
        for snapshots in (disk.storage.snapshots, self.twin.snapshots):
            take_snapshot(snapshots, last_index, b"ours", entry.term)
        self.model.terms[last_index] = entry.term

    async def compact(self, disk: Disk, all_of_it: bool) -> None:
        kept = disk.storage.snapshots.kept()
        if kept:
            first_index = kept[0 if all_of_it else -1].snapshot.last_index + 1
            with mock.patch.object(disk.storage, "_compact_slice", self.crashing(disk.storage._compact_slice)):
                await disk.compact(first_index)
            self.twin.compact(first_index, lambda: None)

    def crashing(self, compact_slice: Callable[[BaseException | None], None]) -> Callable[[BaseException | None], None]:
        """Return a ``compact_slice`` that looks first at what a crash would leave now."""

        def slice_of_compaction(error: BaseException | None) -> None:
            self.crashes += 1
            crashed = self.folder / f"crashed{self.crashes}"
            shutil.copytree(self.folder / str(self.lives), crashed)
            self.model.check(load(crashed))
            compact_slice(error)

        return slice_of_compaction


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
@example([Append(0, 8, 0), Append(5, 2, 0), Commit(0), TakeSnapshot(0), Compact(True), Restart(False), Append(0, 1, 0)])
@example([Append(0, 4, 0), Commit(2), Append(0, 4, 0), Append(9, 3, 0), Commit(3), TakeSnapshot(0), Compact(True)])
@example(
    [Append(0, 8, 9000), Adopt(-3, 2), Restart(True), Compact(True), Vote("n1@00"), Restart(True), Append(1, 3, 0)]
)
def test_any_history_is_loaded_as_it_was_saved(steps: list[Step]) -> None:
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="kvorum-model-", dir=memory if memory.is_dir() else None) as folder,
        # Small slices and few pages: every statement comes into every history.
        mock.patch.object(log_module, "COMPACT_ROWS", 1),
        mock.patch.object(log_module, "CHECKPOINT_PAGES", 30),
    ):
        asyncio.run(Trial(Path(folder)).run(steps))
