"""Reading a log with plain ``sqlite3``, read-only, before sqlitedict opens it for writing.

What is checked: the structure of the file (``PRAGMA integrity_check``, which also compares the index with the table),
that the table is ours and the only one, each row's checksum, the chain of checksums, and that the records fold into one
log without a hole. The caller compares the end of the log with the mark.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from kvorum.errors import StorageAmnesiaError, StorageCorruptError, StorageError, StorageForeignError
from kvorum.storage.files import create_file, sync_folder
from kvorum.storage.interface import Identity
from kvorum.storage.records import FORMAT, REJOIN, LogState, Record, decode_identity, decode_record

TABLE = "kvorum"
IDENTITY_KEY = "identity"

_SCHEMA = f'CREATE TABLE "{TABLE}" (key TEXT PRIMARY KEY, value BLOB)'


@dataclass(slots=True)
class Row:
    """What compaction needs to know of a row."""

    seq: int
    last_entry: int
    """The row holds nothing of the log above this index; 0: it holds no entry that counts."""
    size_bytes: int


@dataclass
class Rows:
    """The rows of the log, oldest first, as far as compaction cares."""

    rows: deque[Row] = field(default_factory=deque)

    def add(self, record: Record, size_bytes: int) -> None:
        """Note a record, and what of older ones it makes void."""
        if record.base is not None:
            for row in self.rows:
                row.last_entry = 0
        if record.entries:
            for row in reversed(self.rows):
                if 0 < row.last_entry < record.first_index:
                    break
                row.last_entry = min(row.last_entry, record.first_index - 1)
        base_index = record.base.last_index if record.base is not None else 0
        last_entry = record.last_index if record.entries else base_index
        self.rows.append(Row(record.seq, last_entry, size_bytes))

    def holding(self, first_index: int, last_index: int, bytes_max: int) -> list[Row]:
        """Return the rows that hold entries from ``first_index`` to ``last_index``, oldest first.

        At least one if there is one, and at most ``bytes_max`` bytes of them.
        """
        found: list[Row] = []
        size_bytes = 0
        for row in self.rows:
            if row.last_entry < first_index:
                continue
            size_bytes += row.size_bytes
            if found and size_bytes > bytes_max:
                break
            found.append(row)
            if row.last_entry >= last_index:
                break
        return found

    def take(self, first_index: int, rows_max: int, bytes_max: int) -> list[Row]:
        """Remove and return the oldest rows that hold nothing from ``first_index`` on; never the last row."""
        taken: list[Row] = []
        size_bytes = 0
        while len(self.rows) > 1 and self.rows[0].last_entry < first_index:
            if len(taken) == rows_max or size_bytes >= bytes_max:
                break
            row = self.rows.popleft()
            taken.append(row)
            size_bytes += row.size_bytes
        return taken


@dataclass
class Log:
    """What a folder's log holds."""

    identity: Identity | None = None
    state: LogState = field(default_factory=LogState)
    rows: Rows = field(default_factory=Rows)
    last_seq: int = 0
    last_crc: int = 0
    crcs: dict[int, int] = field(default_factory=dict)


def key_of(seq: int) -> str:
    """Return the key of record ``seq``: keys are text, and are ordered as text."""
    return f"{seq:020d}"


def create_log(path: Path) -> None:
    """Make an empty log, durably, under a name of its own first: a log is there as a whole or not at all.

    Otherwise a crash could leave the rollback journal with which SQLite turns an empty file into one with a write-ahead
    log, and a reader that changes nothing cannot do anything with it.
    """
    temporary = path.with_suffix(".new")
    for leftover in path.parent.glob(f"{temporary.name}*"):
        leftover.unlink()
    create_file(temporary)
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(_SCHEMA)
            # Closing would do this as well, but would not say when it fails. Synced: SQLite's default is FULL.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise StorageError(f"cannot create {path}: {error}") from error
    temporary.rename(path)
    sync_folder(path.parent)


def read_log(path: Path, memory_bytes_max: int | None = None) -> Log:
    """Verify and read a log. A file that is missing is an empty log.

    Args:
        path: the database.
        memory_bytes_max: how much of the log's end is kept in memory; None: all of it.

    Raises:
        StorageCorruptError: it is damaged.
        StorageForeignError: it is not a log, or one of another format.
        StorageAmnesiaError: there is a write-ahead log, and the database that it belongs to is gone.
    """
    if not path.exists():
        # SQLite would take it for that of the empty database that we are about to make.
        if path.with_name(f"{path.name}-wal").exists():
            raise StorageAmnesiaError(
                f"{path} is missing, but its write-ahead log exists: the folder is an incomplete copy; {REJOIN}"
            )
        return Log()
    try:
        # Read-only keeps SQLite from folding -wal into the database: nothing is changed before all of it is trusted.
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            connection.text_factory = bytes
            return _read(connection, path, memory_bytes_max)
    except sqlite3.Error as error:
        raise StorageCorruptError(f"{path} is damaged, or is not a log: {error}; {REJOIN}") from error


def unfolded_bytes(path: Path) -> int:
    """Return by how much the database of a log that was read grows when its write-ahead log is folded into it.

    Raises:
        StorageCorruptError: it cannot be read any more.
    """
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            pages, page_bytes = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
            )
    except sqlite3.Error as error:
        raise StorageCorruptError(f"{path} cannot be read: {error}") from error
    return max(int(pages) * int(page_bytes) - path.stat().st_size, 0)


def _read(connection: sqlite3.Connection, path: Path, memory_bytes_max: int | None) -> Log:
    log = Log(state=LogState(memory_bytes_max))
    tables = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    if tables != [(b"table", TABLE.encode(), _SCHEMA.encode())]:
        names = ", ".join(_text(name) for _, name, _ in tables)
        raise StorageForeignError(f"{path} is not a log of Kvorum: it holds {names or 'no table'}")
    findings = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if findings != [b"ok"]:
        details = "; ".join(_text(finding) for finding in findings)
        raise StorageCorruptError(f"{path} is damaged: {details}; {REJOIN}")
    try:
        log.identity = _read_identity(connection)
        for key, value in _records(connection):
            _add(log, key, value)
    except StorageCorruptError as error:
        raise StorageCorruptError(f"{path} is damaged: {error}; {REJOIN}") from error
    if log.last_seq and log.identity is None:
        raise StorageCorruptError(f"{path} holds a log but no identity; {REJOIN}")
    return log


def _read_identity(connection: sqlite3.Connection) -> Identity | None:
    row = connection.execute(f"SELECT value FROM {TABLE} WHERE key = ?", (IDENTITY_KEY,)).fetchone()  # noqa: S608
    if row is None:
        return None
    stored = decode_identity(_blob(row[0]))
    if stored.format != FORMAT:
        raise StorageForeignError(f"the log has format {stored.format}; this version of Kvorum supports {FORMAT}")
    return stored.identity


def _records(connection: sqlite3.Connection) -> Iterator[tuple[bytes, bytes]]:
    # In the order of the table, not of the index: rows were only ever added at its end. The chain proves the order.
    for key, value in connection.execute(f"SELECT key, value FROM {TABLE} ORDER BY rowid"):  # noqa: S608
        if not isinstance(key, bytes):
            raise StorageCorruptError("a key is not text")
        if key != IDENTITY_KEY.encode():
            yield key, _blob(value)


def _add(log: Log, key: bytes, value: bytes) -> None:
    record, crc = decode_record(value)
    if key != key_of(record.seq).encode():
        raise StorageCorruptError(f"record {record.seq} is stored under the key {key!r}")
    if log.last_seq and record.seq != log.last_seq + 1:
        raise StorageCorruptError(f"record {record.seq} follows record {log.last_seq}")
    if (log.last_seq or record.seq == 1) and record.prev_crc != log.last_crc:
        raise StorageCorruptError(f"record {record.seq} was not written after the record that now stands before it")
    log.state.apply(record)
    log.rows.add(record, len(value))
    log.last_seq, log.last_crc = record.seq, crc
    log.crcs[record.seq] = crc


def _text(value: object) -> str:
    """Return what SQLite says, which may be damaged itself, on one line."""
    return " ".join(value.decode(errors="replace").split()) if isinstance(value, bytes) else repr(value)


def _blob(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise StorageCorruptError("a value is not a blob")
    return value
