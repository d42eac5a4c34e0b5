"""A backup: the newest state as one snapshot file, to be read while the node goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import BinaryIO

from kvorum.errors import NoLeaderError, OverloadedError, StorageError
from kvorum.node.ports import Threads
from kvorum.node.snapshots import Snapshots
from kvorum.node.state import State
from kvorum.storage.interface import SnapshotFile, SnapshotInfo
from kvorum.storage.snapshot_format import CHUNK_BYTES, marked_stale, stale_size_bytes

BACKUPS_MAX = 2
"""Backups being read at a time; each may hold a file open that has been replaced meanwhile."""
TAKES_MAX = 4
"""Snapshots to take before giving up on one that is new enough."""


class Backup:
    """One snapshot file, open until :meth:`close`.

    Attributes:
        size_bytes: of the whole file.
        sha256: its hash, 64 hex digits (see :mod:`kvorum.storage.snapshot_format`); empty for a stale one, whose hash
            is known at its end.
        is_stale: no quorum confirmed it, and the file says so.
        last_index: the log index whose state it is.
    """

    def __init__(
        self,
        info: SnapshotInfo,
        stream: BinaryIO,
        threads: Threads,
        on_close: Callable[[], None],
        stale_size_bytes: int | None = None,
    ) -> None:
        self.is_stale = stale_size_bytes is not None
        self.size_bytes = info.size_bytes if stale_size_bytes is None else stale_size_bytes
        self.sha256 = "" if self.is_stale else info.sha256
        self._file_bytes = info.size_bytes
        self.last_index = info.snapshot.last_index
        self._stream = stream
        self._threads = threads
        self._on_close = on_close

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes as they are.

        Raises:
            ConnectionAbortedError: the disk refuses; the reader must not take the bytes so far for the whole file.
        """
        pieces = marked_stale(self._stream, self._file_bytes) if self.is_stale else self._pieces()
        try:
            while chunk := await self._threads.run(next, pieces, b""):
                yield chunk
        except OSError as error:
            raise ConnectionAbortedError(f"a backup cannot be read: {error.strerror}") from error
        except StorageError as error:
            raise ConnectionAbortedError(f"a backup cannot be read: {error}") from error

    def _pieces(self) -> Iterator[bytes]:
        while chunk := self._stream.read(CHUNK_BYTES):
            yield chunk

    def close(self) -> None:
        """Release the file. Idempotent."""
        if not self._stream.closed:
            self._stream.close()
            self._on_close()


class Backups:
    """Makes the backups of one node.

    Args:
        state: what is backed up.
        snapshots: takes a snapshot of it.
        files: where the snapshot files are.
        threads: where they are read.
    """

    def __init__(self, state: State, snapshots: Snapshots, files: SnapshotFile, threads: Threads) -> None:
        self._state = state
        self._snapshots = snapshots
        self._files = files
        self._threads = threads
        self._open = 0

    async def begin(self, *, stale: bool = False) -> Backup:
        """Return the state of now, or of a little later. Call it after a read barrier, and close what it returns.

        Args:
            stale: there was no read barrier; the file shall say so.

        Raises:
            NoLeaderError: this node holds no state yet.
            OverloadedError: too many are being read, or no snapshot could be taken.
        """
        if self._open >= BACKUPS_MAX:
            raise OverloadedError(f"{self._open} backups are already being read")
        if not self._state.store.applied_index:
            raise NoLeaderError("this node holds no state yet, so there is nothing to back up")
        self._open += 1
        try:
            info, stream = await self._take(self._state.store.applied_index)
        except BaseException:
            self._closed()
            raise
        if not stale:
            return Backup(info, stream, self._threads, self._closed)
        try:
            size_bytes = await self._threads.run(stale_size_bytes, stream, info.size_bytes)
        except BaseException as error:
            stream.close()
            self._closed()
            if isinstance(error, (OSError, StorageError)):
                raise OverloadedError(f"cannot read a snapshot: {error}") from error
            raise
        return Backup(info, stream, self._threads, self._closed, size_bytes)

    def _closed(self) -> None:
        self._open -= 1

    async def _take(self, at_least: int) -> tuple[SnapshotInfo, BinaryIO]:
        try:
            for _ in range(TAKES_MAX):
                newest = self._snapshots.latest()
                if newest is not None and newest.snapshot.last_index >= at_least:
                    try:
                        # Once open, it stays readable when newer snapshots take its place.
                        return newest, await self._threads.run(self._files.stream, newest.snapshot.last_index)
                    except FileNotFoundError:
                        continue
                # A snapshot already under way may be of an earlier state: then another follows. The caller may go
                # away, but the snapshot is the node's.
                await asyncio.shield(self._snapshots.begin())
        except (OSError, StorageError) as error:
            raise OverloadedError(f"cannot take a snapshot: {error}") from error
        raise OverloadedError("cannot take a snapshot; see the log of the node")
