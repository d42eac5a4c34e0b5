"""A data folder that is changed while no node runs on it: by ``kvorum recover`` and ``kvorum restore``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kvorum.errors import StorageError
from kvorum.raft.messages import Save
from kvorum.storage.interface import Loaded
from kvorum.storage.log import SqliteStorage
from kvorum.telemetry.counters import Counters

SAVE_DEADLINE_MS = 30_000


class OfflineStorage:
    """An open storage whose saves can be waited for; see :func:`offline`."""

    def __init__(self, storage: SqliteStorage, loaded: Loaded, failed: asyncio.Future[None]) -> None:
        self.storage = storage
        self.loaded = loaded
        self._failed = failed

    async def save(self, save: Save) -> None:
        """Return when it is durable.

        Raises:
            StorageError: it may not be.
        """
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.storage.save(save, lambda: saved.set_result(None))
        await asyncio.wait([saved, self._failed], return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            self._failed.result()


@asynccontextmanager
async def offline(data_dir: str | Path) -> AsyncIterator[OfflineStorage]:
    """Take the folder, and release it in the end. Blocking but for the waits of :meth:`OfflineStorage.save`.

    Raises:
        StorageError: the folder is in use, or cannot be trusted.
    """
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(error: StorageError) -> None:
        if not failed.done():
            failed.set_exception(error)

    storage = SqliteStorage(data_dir, fail, SAVE_DEADLINE_MS, Counters())
    try:
        yield OfflineStorage(storage, storage.load(), failed)
    finally:
        failed.cancel()
        storage.close()
