"""The log on disk, through sqlitedict; :class:`SqliteStorage` is the driver's disk.

One save is one row, one statement and one fsync: term, vote, truncation and entries become durable together or not at
all. The event loop never waits: the table's thread writes, and wakes the loop when the row is durable.

::

    loop:    save() --> encode --> queue                                        _saved() --> done()
    thread:                          INSERT (write, fdatasync) --> mark --> call_soon_threadsafe

**What is trusted.** :meth:`SqliteStorage.load` verifies everything before anything is opened for writing. The rows are
a chain of checksums, so nothing can be missing between two of them; the last record says where the log ends, so nothing
can be missing before them that a snapshot does not cover; and the mark, a file of 12 bytes, says where the log ended at
least, so that a lost end is noticed even where SQLite itself sees a shorter but valid file.

**What fails.** A statement that fails ends the storage: ``failed`` is called once, and no save is answered any more.
Nothing is ever tried again: after a failed fsync the kernel may have dropped the pages. A disk that merely does not
answer is waited for, for minutes: shared storage that stalls would otherwise end every node at the same time. So is a
disk that is full: before anything is written, :mod:`kvorum.storage.room` says whether it fits, and what does not waits
for as long as it takes. Only where another program takes the last room in between, a statement fails.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kvorum.errors import (
    InvariantViolatedError,
    StorageAmnesiaError,
    StorageCorruptError,
    StorageError,
    StorageForeignError,
)
from kvorum.raft.log import entry_bytes
from kvorum.raft.messages import Entry, Load, Save
from kvorum.storage.datadir import DATABASE, LOCK, MARK, SNAPSHOTS, WRITE_AHEAD_LOG, Lock, OpenFiles
from kvorum.storage.files import check_not_world_writable, create_folder, explained, sync_folder
from kvorum.storage.high_water_mark import HighWaterMark, check_high_water_mark
from kvorum.storage.interface import Identity, Loaded
from kvorum.storage.records import (
    REJOIN,
    LogState,
    Record,
    check_compaction,
    check_identity,
    check_save,
    decode_record,
    encode_identity,
    encode_record,
    make_record,
    recover,
)
from kvorum.storage.room import Room
from kvorum.storage.snapshots import Snapshots
from kvorum.storage.table import Table
from kvorum.storage.verify import IDENTITY_KEY, TABLE, Log, create_log, key_of, read_log, unfolded_bytes
from kvorum.telemetry.counters import Counters

log = logging.getLogger(__name__)

INSERT = f"INSERT INTO {TABLE} (key, value) VALUES (?, ?)"  # noqa: S608
INSERT_IDENTITY = f"INSERT OR REPLACE INTO {TABLE} (key, value) VALUES (?, ?)"  # noqa: S608
SELECT = f"SELECT value FROM {TABLE} WHERE key BETWEEN ? AND ? ORDER BY key"  # noqa: S608
DELETE_BEFORE = f"DELETE FROM {TABLE} WHERE key < ?"  # noqa: S608
CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"
COUNT_FREE_PAGES = "PRAGMA freelist_count"

CHECKPOINT_PAGES = 1000
"""How many pages (4 KiB) the write-ahead log may grow by, about, before it is folded into the database."""
COMPACT_ROWS = 256
COMPACT_BYTES = 4 * 1024 * 1024
"""What one statement of a compaction deletes at most: saves wait behind it."""
CHECKPOINT_PAGES_LOW = 64
"""The same on a disk with little room: what is not folded in yet takes its room twice."""
LOW_BYTES = 16 * 1024 * 1024
"""So much is little."""
ROOM_RETRY_S = 1.0
"""How often a write that does not fit looks whether there is room now."""
CLOSE_DEADLINE_S = 10.0
WATCHDOG_S = 5.0
"""How often the save in flight is looked at, and after how long the log says that the disk does not answer."""
PAUSE_S = 2.0
"""A watchdog that wakes this late was paused with its process, and says nothing of the disk."""

_PAGE_BYTES = 4096
_PAGES_PER_STATEMENT = 4
"""A statement writes its data's pages, and about so many of the trees above them."""


@dataclass(slots=True)
class _InFlight:
    record: Record
    crc: int
    size_bytes: int
    done: Callable[[], None]
    started: float
    synced: float = 0.0
    is_stall_logged: bool = False


class SqliteStorage:
    """One node's data folder; implements :class:`~kvorum.storage.interface.Storage`.

    Make it on the event loop that it will answer on.

    Args:
        data_dir: the folder; it is created if need be.
        failed: called once, on the event loop, when a write fails or takes too long.
        save_deadline_ms: how long a save, or any statement at the start, may take before the storage has failed.
        counters: where saves are counted.
        name: the node that the folder must belong to if it belongs to any; empty: any.
        log_memory_bytes_max: how much of the log's end :meth:`load` returns; None: all of it.
        reserve_bytes: how much room is kept in reserve for a full disk; 0: none.
    """

    def __init__(
        self,
        data_dir: str | Path,
        failed: Callable[[StorageError], None],
        save_deadline_ms: int,
        counters: Counters,
        name: str = "",
        log_memory_bytes_max: int | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        self._log_memory_bytes_max = log_memory_bytes_max
        self._folder = Path(data_dir)
        self._failed = failed
        self._save_deadline_s = save_deadline_ms / 1000
        self._counters = counters
        self._name = name
        self._room = Room(self._folder, reserve_bytes)
        self._snapshots = Snapshots(
            self._folder / SNAPSHOTS, lambda error: self._wake(self._snapshot_broken, error), self._room
        )
        self._mark = HighWaterMark(self._folder / MARK)
        self._lock: Lock | None = None
        self._files: OpenFiles | None = None
        self._table: Table | None = None
        self._loop = _running_loop()
        self._log = Log()
        self._last_index = 0
        self._identity: Identity | None = None
        self._in_flight: _InFlight | None = None
        self._compaction: tuple[int, Callable[[], None]] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._pages = 0
        self._free_pages = 0
        """Pages of the database that hold nothing; the log is written to them before the file grows."""
        self._waits_for_room = False
        """The save in flight has not begun, since it does not fit."""
        self._dead = False
        self._closed = False
        self._closing = threading.Event()

    @property
    def snapshots(self) -> Snapshots:
        """The snapshot files."""
        return self._snapshots

    # --- Starting -----------------------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """Take the folder, verify it, and read it.

        Raises:
            StorageLockedError: another process holds the folder.
            StorageForeignError: it belongs to another node, another program or another version.
            StorageCorruptError: what is there is not what was written.
            StorageAmnesiaError: what was once durable is missing.
            StorageError: the disk refuses.
        """
        try:
            with explained(f"cannot use the data folder {self._folder}"):
                create_folder(self._folder)
                check_not_world_writable(self._folder)
                self._lock = Lock(self._folder)
                self._await_room(0)
                self._snapshots.open()
                log = read_log(self._folder / DATABASE, self._log_memory_bytes_max)
                self._check(log)
                damaged: list[int] = []
                loaded = recover(log.identity, log.state, self._snapshots.verified(damaged), damaged)
                self._await_room(unfolded_bytes(self._folder / DATABASE))
                self._open(log, loaded)
        except StorageError:
            self.close()
            raise
        return loaded

    def _await_room(self, size_bytes: int) -> None:
        """Return when there is room for so many bytes, from the reserve if need be.

        Raises:
            StorageError: the storage was closed meanwhile.
        """
        is_told = False
        while not self._room.make(size_bytes):
            if not is_told:
                is_told = True
                log.error(
                    "The disk is full (%d bytes are free, %s): the node waits for room before it starts",
                    self._room.free_bytes or 0,
                    self._folder,
                )
            if self._closing.wait(ROOM_RETRY_S):
                raise StorageError(f"cannot use the data folder {self._folder}: the disk is full")

    def _check(self, log: Log) -> None:
        """Compare the log with what stands beside it, and make the mark of a folder that is new."""
        if self._name and log.identity is not None and log.identity.name != self._name:
            raise StorageForeignError(
                f"the data folder {self._folder} belongs to {log.identity.name}, not to {self._name}"
            )
        mark = self._mark.read()
        if mark is None:
            if log.identity is not None or self._snapshots.exist():
                raise StorageAmnesiaError(
                    f"the data folder {self._folder} has no high-water mark: it is an incomplete copy. "
                    f"The node must not vote; {REJOIN}"
                )
            self._mark.create()
            return
        try:
            check_high_water_mark(mark, log.last_seq, log.crcs)
        except StorageAmnesiaError as error:
            raise StorageAmnesiaError(f"{self._folder}: {error}; {REJOIN}") from error
        except StorageCorruptError as error:
            raise StorageCorruptError(f"{self._folder}: {error}; {REJOIN}") from error

    def _open(self, log: Log, loaded: Loaded) -> None:
        path = self._folder / DATABASE
        if not path.exists():
            create_log(path)
        self._table = Table(path, TABLE, self._save_deadline_s, CLOSE_DEADLINE_S)
        self._free_pages = self._table.run(COUNT_FREE_PAGES)[0][0]
        self._mark.open()
        self._files = OpenFiles(self._folder, (LOCK, DATABASE, WRITE_AHEAD_LOG, MARK))
        sync_folder(self._folder)
        self._snapshots.start_from(loaded.snapshot)
        self._identity = log.identity
        self._last_index = log.state.last_index
        self._log = log
        log.crcs.clear()
        log.state = LogState()

    def write_identity(self, identity: Identity, *, replace: bool = False) -> None:
        """Make the identity durable; with ``replace`` whoever the folder belonged to (``kvorum recover``)."""
        if not replace:
            check_identity(self._identity, identity)
        if self._table is None:
            raise InvariantViolatedError("the storage is not open")
        self._table.run(INSERT_IDENTITY, (IDENTITY_KEY, encode_identity(identity)))
        self._identity = identity

    # --- Saving -------------------------------------------------------------------------------------------------------

    def save(self, save: Save, done: Callable[[], None]) -> None:
        """Queue one row, and return; ``done`` is called on the event loop when the row is durable."""
        if self._dead or self._closed:
            return
        if self._in_flight is not None:
            raise InvariantViolatedError("a save was begun while another is in flight")
        if self._identity is None:
            raise InvariantViolatedError("a save was begun before the identity was written")
        check_save(save, self._last_index)
        if save.snapshot is not None:
            self._snapshots.begin_adoption(save.snapshot.last_index)
        loop = self._running_loop()
        record = make_record(self._log.last_seq + 1, self._log.last_crc, self._last_index, save)
        value, crc = encode_record(record)
        self._in_flight = saving = _InFlight(record, crc, len(value), done, loop.time())
        if self._watchdog is None:
            self._watchdog = loop.call_later(min(self._save_deadline_s, WATCHDOG_S), self._check_deadline)

        def answered(rows: list[tuple[Any, ...]], error: BaseException | None) -> None:
            saving.synced = loop.time()
            if error is None:
                error = self._write_mark(record.seq, crc)
            if error is None and record.base is not None:
                error = self._adopt(record.base.last_index)
            self._wake(self._saved, error)

        self._write(len(value), partial(self._begin, INSERT, (key_of(record.seq), value), answered), is_save=True)

    # --- Room ---------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int | None:
        """Return how much can be stored besides the reserve."""
        free_bytes = self._room.unreserved_bytes
        if free_bytes is None:
            return None
        # The database grows by what is not folded in yet, unless that goes to pages that are free.
        return max(free_bytes + (self._free_pages - self._pages) * _PAGE_BYTES, 0)

    def measure(self, wanted_bytes: int) -> None:
        """Look how much room is left, and make the reserve again if ``wanted_bytes`` remain beside it."""
        self._room.measure()
        if not self._closed:
            self._room.keep(wanted_bytes)

    def _needed_bytes(self, size_bytes: int) -> int:
        """Return what must be free for a write: it goes into the write-ahead log, and the database grows as much."""
        return 2 * (size_bytes + _PAGES_PER_STATEMENT * _PAGE_BYTES) + self._pages * _PAGE_BYTES

    def _write(self, size_bytes: int, begin: Callable[[], None], *, is_save: bool = False) -> None:
        """Begin a write when there is room for it, from the reserve if need be.

        With plenty of room that is at once. With little, a thread looks how much there is now: other programs may have
        written as well since it was measured.
        """
        if self._room.holds(self._needed_bytes(size_bytes) + LOW_BYTES):
            self._room.take(2 * size_bytes)
            begin()
            return
        loop = self._running_loop()

        def made(making: asyncio.Future[bool]) -> None:
            if self._dead or self._closed or making.cancelled():
                return
            if making.result():
                if is_save:
                    self._has_room()
                self._room.take(2 * size_bytes)
                begin()
                return
            if is_save:
                self._has_no_room()
            loop.call_later(ROOM_RETRY_S, attempt)

        def make(error: BaseException | None) -> None:
            if error is not None:
                self._checkpointed(error)
            if not self._dead and not self._closed:
                making = loop.run_in_executor(None, self._room.make, self._needed_bytes(size_bytes))
                making.add_done_callback(made)

        def attempt() -> None:
            if self._pages and self._room.holds(self._pages * _PAGE_BYTES):
                # What is not folded in yet takes its room twice.
                self._pages = 0
                self._begin(CHECKPOINT, (), lambda rows, error: self._wake(make, error))
            else:
                make(None)

        attempt()

    def _has_no_room(self) -> None:
        if not self._waits_for_room:
            self._waits_for_room = True
            log.error(
                "The disk is full (%d bytes are free, %s): saves wait for room, and go on by themselves",
                self._room.free_bytes or 0,
                self._folder,
            )

    def _has_room(self) -> None:
        if self._in_flight is not None:
            # The disk was not asked before.
            self._in_flight.started = self._running_loop().time()
        if self._waits_for_room:
            self._waits_for_room = False
            log.warning("The disk has room again (%s)", self._folder)

    def _write_mark(self, seq: int, crc: int) -> BaseException | None:
        """Runs on the table's thread: the mark's page may be under write-back, and the loop must not wait for that."""
        try:
            self._mark.write(seq, crc)
        except OSError as error:
            return error
        return None

    def _adopt(self, last_index: int) -> BaseException | None:
        """Runs on the table's thread: removing a large file takes long, and the loop must not wait for that."""
        try:
            self._snapshots.adopt_index(last_index)
        except OSError as error:
            return error
        return None

    def _saved(self, error: BaseException | None) -> None:
        saved, self._in_flight = self._in_flight, None
        if saved is None or self._dead:
            return
        if error is not None:
            self._fail(f"record {saved.record.seq} could not be written: {error}")
            return
        record = saved.record
        if saved.is_stall_logged:
            log.warning("The disk answers again after %.1f s", self._running_loop().time() - saved.started)
        self._log.rows.add(record, saved.size_bytes)
        self._log.last_seq, self._log.last_crc = record.seq, saved.crc
        self._last_index = record.last_index
        self._counters.save_duration.record(self._running_loop().time() - saved.started)
        self._counters.fsync_duration.record(max(saved.synced - saved.started, 0.0))
        self._counters.saves += 1
        self._counters.saved_bytes += saved.size_bytes
        self._grew(saved.size_bytes // _PAGE_BYTES)
        saved.done()

    def _check_deadline(self) -> None:
        """One timer for all saves: it is set again for what is left of the save that it finds in flight."""
        watchdog, self._watchdog = self._watchdog, None
        if self._in_flight is None or self._dead:
            return
        loop = self._running_loop()
        if self._waits_for_room or (watchdog is not None and loop.time() - watchdog.when() > PAUSE_S):
            # The save has not begun. Or the whole process stood still (a paused or suspended machine), and so did the
            # disk's answer: start anew.
            self._in_flight.started = loop.time()
        waited_s = loop.time() - self._in_flight.started
        remaining_s = self._save_deadline_s - waited_s
        if remaining_s > 0:
            if waited_s >= WATCHDOG_S and not self._in_flight.is_stall_logged:
                self._in_flight.is_stall_logged = True
                log.warning(
                    "The disk has not answered for %.1f s; the node stops if it does not within %.0f s (%s)",
                    waited_s,
                    remaining_s,
                    self._folder,
                )
            self._watchdog = loop.call_later(min(remaining_s, WATCHDOG_S), self._check_deadline)
            return
        self._fail(f"the disk did not make record {self._in_flight.record.seq} durable in {self._save_deadline_s:g} s")

    # --- Reading back -------------------------------------------------------------------------------------------------

    def load_entries(self, load: Load, done: Callable[[tuple[Entry, ...]], None]) -> None:
        """Queue a read, and return; the table's thread decodes the rows, and ``done`` is called on the event loop."""
        if self._dead or self._closed:
            return
        loop = self._running_loop()
        rows = self._log.rows.holding(load.first_index, load.last_index, load.bytes_max)
        if not rows:
            loop.call_soon(done, ())
            return
        last_entries = {row.seq: row.last_entry for row in rows}

        def answered(found: list[tuple[Any, ...]], error: BaseException | None) -> None:
            entries: tuple[Entry, ...] = ()
            if error is None:
                try:
                    entries = _entries(load, (value for (value,) in found), last_entries)
                except StorageError as damage:
                    error = damage
            self._wake(partial(self._entries_read, entries, done), error)

        self._begin(SELECT, (key_of(rows[0].seq), key_of(rows[-1].seq)), answered)

    def _entries_read(
        self, entries: tuple[Entry, ...], done: Callable[[tuple[Entry, ...]], None], error: BaseException | None
    ) -> None:
        if self._dead or self._closed:
            return
        if error is not None:
            self._fail(f"the log could not be read back: {error}")
            return
        done(entries)

    # --- Keeping it small ---------------------------------------------------------------------------------------------

    def compact(self, first_index: int, done: Callable[[], None]) -> None:
        """Delete the rows that hold nothing from ``first_index`` on, a slice at a time; the last row stays."""
        if self._dead or self._closed:
            return
        if self._compaction is not None:
            raise InvariantViolatedError("a compaction was begun while another is in progress")
        check_compaction(first_index, self._snapshots.latest())
        self._compaction = (first_index, done)
        self._running_loop().call_soon(self._compact_slice, None)

    def _compact_slice(self, error: BaseException | None) -> None:
        if self._dead or self._compaction is None:
            return
        if error is not None:
            self._fail(f"the log could not be compacted: {error}")
            return
        first_index, done = self._compaction
        taken = self._log.rows.take(first_index, COMPACT_ROWS, COMPACT_BYTES)
        if not taken:
            self._compaction = None
            self._begin(
                COUNT_FREE_PAGES, (), lambda rows, error: self._wake(partial(self._compacted, done, rows), error)
            )
            return
        self._grew(len(taken))
        delete = partial(
            self._begin,
            DELETE_BEFORE,
            (key_of(taken[-1].seq + 1),),
            lambda rows, error: self._wake(self._compact_slice, error),
        )
        self._write(len(taken) * _PAGE_BYTES, delete)

    def _compacted(self, done: Callable[[], None], rows: list[tuple[Any, ...]], error: BaseException | None) -> None:
        if self._dead or self._closed:
            return
        if error is not None:
            self._fail(f"the free pages of the log could not be counted: {error}")
            return
        self._free_pages = rows[0][0]
        done()

    def _grew(self, pages: int) -> None:
        """Fold the write-ahead log into the database when it has grown enough."""
        self._pages += pages + _PAGES_PER_STATEMENT
        self._free_pages = max(self._free_pages - pages, 0)
        is_low = self._room.free_bytes is not None and self._room.free_bytes < LOW_BYTES
        if self._pages >= (CHECKPOINT_PAGES_LOW if is_low else CHECKPOINT_PAGES):
            if is_low and not self._room.holds(self._pages * _PAGE_BYTES):
                # It would fail. The next write waits for this room, too.
                return
            self._pages = 0
            self._begin(CHECKPOINT, (), lambda rows, error: self._wake(self._checkpointed, error))

    def _checkpointed(self, error: BaseException | None) -> None:
        if error is not None:
            self._fail(f"cannot checkpoint the write-ahead log: {error}")

    def _snapshot_broken(self, error: BaseException | None) -> None:
        self._fail(str(error))

    # --- Failing and ending -------------------------------------------------------------------------------------------

    def check_folder(self) -> None:
        """Check that the files of the folder are still those that are open here. Blocks; call it now and then.

        Raises:
            StorageReplacedError: they are not.
        """
        if self._files is not None and not self._closed:
            self._files.check()

    def close(self) -> None:
        """Wait for the save in flight and release the folder; with a disk that does not answer, keep the lock."""
        self._closed = True
        self._closing.set()
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        table, self._table = self._table, None
        if table is not None and not table.close():
            return
        self._mark.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _begin(
        self,
        statement: str,
        arguments: tuple[object, ...],
        answered: Callable[[list[tuple[Any, ...]], BaseException | None], None],
    ) -> None:
        table = self._table
        if table is None:
            # Closed, perhaps by another thread, while an answer was on its way to the loop: nobody waits for more.
            return
        try:
            table.begin(statement, arguments, answered)
        except StorageError as error:
            if not self._closed:
                self._fail(str(error))

    def _wake(self, callback: Callable[[BaseException | None], None], error: BaseException | None) -> None:
        """Runs on any thread."""
        if self._loop is None:
            # Nothing was saved through a loop yet, and whoever called is waiting for the error itself.
            return
        try:
            self._loop.call_soon_threadsafe(callback, error)
        except RuntimeError:
            # The loop has ended: nobody waits for this answer. The next start reads what is durable.
            return

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _fail(self, reason: str) -> None:
        if self._dead:
            return
        self._dead = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._failed(StorageError(f"{self._folder}: {reason}"))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop of this thread; None: the storage is made by a command that has none, or makes it later."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _entries(load: Load, values: Iterable[bytes], last_entries: Mapping[int, int]) -> tuple[Entry, ...]:
    """Return the entries that a load asks for.

    Args:
        load: what is asked for.
        values: of rows, oldest first.
        last_entries: for each record among them (by ``seq``), the last entry of it that a later one did not replace.

    Raises:
        StorageCorruptError: a row is damaged, or an entry is missing.
    """
    entries: list[Entry] = []
    size_bytes = 0
    for value in values:
        record, _ = decode_record(value)
        for entry in record.entries:
            if entry.index < load.first_index or entry.index > min(last_entries.get(record.seq, 0), load.last_index):
                continue
            if entry.index != load.first_index + len(entries):
                raise StorageCorruptError(f"entry {entry.index} stands where {load.first_index + len(entries)} belongs")
            size_bytes += entry_bytes(entry)
            if entries and size_bytes > load.bytes_max:
                return tuple(entries)
            entries.append(entry)
    return tuple(entries)
