"""A deterministic workload on a data folder, as a module for tests and as a program that tests trace, starve and kill.

As a program, ``python -m storage.workload FOLDER OPERATIONS SEED [unsafe]``: goes on from what the folder holds, prints
``begin N`` before and ``ack N`` after operation N, and exits with 3 and one line when the storage fails.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.support import IDENTITY, Disk, entries, send, snapshot, take_snapshot

from kvorum.errors import StorageError
from kvorum.raft.messages import Entry, HardState, Snapshot
from kvorum.storage import log as log_module
from kvorum.storage.interface import Loaded
from kvorum.storage.memory import MemorySnapshots


@dataclass
class Operation:
    """One save, and what is done after it. Its number is its term, so a state tells which operation was the last."""

    number: int
    vote: str | None
    entries: tuple[Entry, ...] = ()
    base: Snapshot | None = None
    snapshot_index: int = 0
    """Take a snapshot here, after the save; 0: none."""


@dataclass
class Model:
    """What the log must be, said in the plainest words: a dictionary of entries."""

    number: int = 0
    vote: str | None = None
    log: dict[int, Entry] = field(default_factory=dict)
    last_index: int = 0
    terms: dict[int, int] = field(default_factory=dict)
    """The terms of snapshots that were taken or adopted, by last index."""

    def apply(self, operation: Operation) -> None:
        self.number, self.vote = operation.number, operation.vote
        if operation.base is not None:
            self.log.clear()
            self.last_index = operation.base.last_index
            self.terms = {self.last_index: operation.base.last_term}
        if operation.entries:
            first_index = operation.entries[0].index
            self.log = {index: entry for index, entry in self.log.items() if index < first_index}
            self.log |= {entry.index: entry for entry in operation.entries}
            self.last_index = operation.entries[-1].index
        if operation.snapshot_index:
            entry = self.log.get(operation.snapshot_index)
            if entry is not None:
                self.terms[operation.snapshot_index] = entry.term

    def check(self, loaded: Loaded) -> None:
        """Raise AssertionError unless ``loaded`` is this log, with or without its latest snapshots."""
        assert loaded.hard_state == HardState(self.number, self.vote)
        begins = 1
        if loaded.snapshot is not None:
            begins = loaded.snapshot.last_index + 1
            assert self.terms[loaded.snapshot.last_index] == loaded.snapshot.last_term
        assert loaded.entries == tuple(self.log[index] for index in range(begins, self.last_index + 1))


def plan(seed: int, size: int = 60) -> Iterator[tuple[Operation, Model]]:
    """Yield operations for ever, each with the model after it. The model is one object: copy what you keep."""
    random_ = random.Random(seed)
    model, committed = Model(), 0
    number = 0
    while True:
        number += 1
        vote = random_.choice((None, "n1@00", "n2@00"))
        operation = Operation(number, vote)
        if number % 70 == 0:
            base = snapshot(max(committed + 1, model.last_index + random_.randrange(-3, 20)), number)
            operation.base, committed = base, base.last_index
            model.last_index = base.last_index
        if operation.base is None or random_.random() < 0.5:
            first_index = random_.randint(max(committed, model.last_index - 3) + 1, model.last_index + 1)
            count = random_.choice((0, 1, 1, 1, 2, 5, 20))
            if operation.base is not None or random_.random() < 0.8:
                first_index = model.last_index + 1
            operation.entries = entries(first_index, first_index + count - 1, number, random_.randrange(size * 2))
        model.apply(operation)
        committed = max(committed, model.last_index - 4)
        if number % 25 == 0 and committed in model.log:
            operation.snapshot_index = committed
            model.terms[committed] = model.log[committed].term
        yield operation, model


async def perform(disk: Disk, operation: Operation) -> None:
    """Do one operation, and wait until it is durable."""
    snapshots = disk.storage.snapshots
    if operation.base is not None:
        theirs = MemorySnapshots()
        take_snapshot(theirs, operation.base.last_index, b"theirs" * 50, operation.base.last_term)
        send(theirs, snapshots, operation.base)
    await disk.save(operation.number, *operation.entries, vote=operation.vote, base=operation.base)


async def follow_up(disk: Disk, operation: Operation, model: Model) -> None:
    """Take the snapshot that the operation asks for, and compact behind the older one that is kept."""
    if operation.snapshot_index:
        snapshots = disk.storage.snapshots
        last_index = operation.snapshot_index
        take_snapshot(snapshots, last_index, b"ours" * 100, model.terms[last_index])
        await disk.compact(snapshots.kept()[-1].snapshot.last_index + 1)


async def work(folder: Path, operations: int, seed: int, *, unsafe: bool) -> None:
    async with Disk(folder, deadline_ms=20_000) as disk:
        if unsafe:
            # What sqlitedict does as shipped: the replay must notice it.
            assert disk.storage._table is not None
            disk.storage._table.run("PRAGMA synchronous=OFF")
        held = disk.loaded.hard_state.current_term
        # What was loaded counts as durable: a follower acknowledges it to a leader without another save.
        say(f"begin {held}")
        say(f"ack {held}")
        for operation, model in plan(seed):
            if operation.number > held + operations:
                return
            if operation.number > held:
                say(f"begin {operation.number}")
                await perform(disk, operation)
                say(f"ack {operation.number}")
                await follow_up(disk, operation, model)


def say(line: str) -> None:
    """Write one line in one system call: its place in a trace says when it left."""
    os.write(1, f"{line}\n".encode())


def main(arguments: list[str]) -> int:
    folder, operations, seed = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    say(f"ready {IDENTITY.name}")
    # Small slices: a compaction is several statements, and a crash may come between any two of them.
    log_module.COMPACT_ROWS = 3
    try:
        asyncio.run(work(folder, operations, seed, unsafe="unsafe" in arguments[3:]))
    except StorageError as error:
        say(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
