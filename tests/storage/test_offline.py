"""A data folder that is changed while no node runs on it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from storage.support import IDENTITY, entries, load

from kvorum.errors import StorageError, StorageLockedError
from kvorum.raft.messages import HardState, Save
from kvorum.storage.offline import offline


def test_a_save_is_durable_when_it_returns_and_the_folder_is_free_in_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with offline(tmp_path) as folder:
            folder.storage.write_identity(IDENTITY)
            await folder.save(Save(1, HardState(3, "n1@00"), entries(1, 2)))
            with pytest.raises(StorageLockedError):
                load(tmp_path)
        loaded = load(tmp_path)
        assert (loaded.hard_state, loaded.entries) == (HardState(3, "n1@00"), entries(1, 2))

    asyncio.run(main())


def test_a_save_that_fails_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with offline(tmp_path) as folder:
            folder.storage.write_identity(IDENTITY)
            folder.storage._mark.close()
            with pytest.raises(StorageError, match="record 1 could not be written"):
                await folder.save(Save(1, HardState(3), ()))

    asyncio.run(main())
