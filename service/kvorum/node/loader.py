"""Loading a snapshot in the place of the state, in the memory of one state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from kvorum.errors import StorageCorruptError
from kvorum.kv.store import Store
from kvorum.node.memory import release_freed_memory
from kvorum.node.ports import Threads
from kvorum.node.snapshots import Snapshots
from kvorum.node.state import State
from kvorum.raft import Raft


class Load(Protocol):
    """Reads a snapshot from the disk. Blocks."""

    def __call__(self, *, keeps_records: bool = True) -> Store:
        """Return its state; with ``keeps_records=False`` without the records.

        Raises:
            StorageError: it is damaged, or cannot be read.
        """


class Loader:
    """Gives the state up, and loads that of a snapshot; one at a time.

    Args:
        raft: the consensus server, which hands nothing over meanwhile.
        state: what is given up.
        snapshots: what may be taking a snapshot of it.
        threads: where the disk is read.
    """

    def __init__(self, raft: Raft, state: State, snapshots: Snapshots, threads: Threads) -> None:
        self._raft = raft
        self._state = state
        self._snapshots = snapshots
        self._threads = threads
        self._lock = asyncio.Lock()

    async def verify(self, load: Load) -> Store:
        """Read a snapshot to its end; return its state without the records.

        Raises:
            StorageCorruptError: it is damaged, or contradicts the sum that it carries.
            StorageError: it cannot be read.
        """
        read = await self._threads.run(partial(load, keeps_records=False))
        if read.mismatch is not None:
            raise StorageCorruptError(f"the snapshot at {read.applied_index} does not have the sum that it carries")
        return read

    async def load(self, load: Load, is_wanted: Callable[[], bool]) -> Store | None:
        """Give the state up and return that of a snapshot, which was verified; None: it is not wanted any more.

        The caller puts it in the place of the one that was given up, without awaiting anything before.

        Args:
            load: reads the snapshot.
            is_wanted: asked immediately before the state is given up. What it raises leaves everything as it was.

        Raises:
            InvariantViolatedError: this server leads; nothing was given up.
            StorageError: the snapshot cannot be read any more. The state is gone.
        """
        async with self._lock:
            await self._snapshots.ended()
            if not is_wanted():
                return None
            # Two states at once may be more than memory holds.
            self._raft.hold_committed()
            self._state.give_up()
            return await self._threads.run(_load_into_freed_memory, load)

    def put(self, store: Store) -> None:
        """Put a state in the place of the present one, and have what follows it applied.

        Raises:
            InvariantViolatedError: our log does not go on from there; nothing was changed.
        """
        self._raft.reapply_from(store.applied_index)
        self._state.replace(store)


def _load_into_freed_memory(load: Load) -> Store:
    release_freed_memory()
    store = load()
    release_freed_memory()
    return store
