"""sqlitedict 2.1.0, tamed: one table, one connection, one statement a durable write, no pickle, no guessing.

What is wrong with it as shipped, and what is done about it here:

- It runs ``PRAGMA synchronous=OFF``: no write is ever synced. We set FULL before the first write, and read it back.
- Its codec is pickle. Ours is bytes in, bytes out, and nothing but bytes.
- A failed COMMIT kills its thread, and the caller waits for ever. We autocommit, so that the statement itself fails,
  and every wait has a deadline.
- An error surfaces at a later, unrelated call, and is then forgotten. We wait for each statement's own answer, on which
  its thread is asked; and we put requests into its queue ourselves, so that nobody forgets.
- SQLite's automatic checkpoint swallows its errors, and tries a failed fsync again. Ours is a statement like any other.
- Its queue of requests is a ``queue.Queue``, which takes 18 calls of Python functions to hand one over. Ours is a
  ``SimpleQueue``, which takes none.
- Two connections to one file harm each other. Besides the folder's lock, ours holds SQLite's own, exclusively.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from sqlitedict import SqliteDict

from kvorum.errors import StorageError

_ERRORS = (sqlite3.Error, OSError, RuntimeError, MemoryError)
"""What opening can raise."""

Answered = Callable[[list[tuple[Any, ...]], BaseException | None], None]


class Table:
    """One table of keys and values in an SQLite file, reached through sqlitedict.

    Args:
        path: the file.
        name: the table.
        deadline_s: how long a statement may take that a caller waits for.
        close_deadline_s: how long closing may take.

    Raises:
        StorageError: it cannot be opened, or cannot be made safe.
    """

    def __init__(self, path: Path, name: str, deadline_s: float, close_deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._close_deadline_s = close_deadline_s
        self._waiting: set[_Answer] = set()
        try:
            self._dict = SqliteDict(
                str(path),
                tablename=name,
                journal_mode="WAL",
                autocommit=True,
                outer_stack=False,
                encode=_bytes_only,
                decode=_bytes_only,
                encode_key=_text_only,
                decode_key=_text_only,
            )
        except _ERRORS as error:
            raise StorageError(f"cannot open {path}: {error}") from error
        waited_for, self._dict.conn.reqs = self._dict.conn.reqs, SimpleQueue()
        # The thread waits for one request from the old queue; then it turns to the new one.
        waited_for.put(("PRAGMA synchronous=FULL", (), None, None))
        try:
            self._make_safe(path)
        except StorageError:
            self.close()
            raise

    def _make_safe(self, path: Path) -> None:
        wanted = {"synchronous": 2, "journal_mode": "wal", "wal_autocheckpoint": 0, "locking_mode": "exclusive"}
        self.run("PRAGMA synchronous=FULL")
        self.run("PRAGMA wal_autocheckpoint=0")
        self.run("PRAGMA locking_mode=EXCLUSIVE")
        # Some builds overwrite what is deleted with zeros: a compaction would then need as much room as it frees.
        self.run("PRAGMA secure_delete=OFF")
        # What was read a moment ago may be in the kernel's memory only: the process before us may have been killed
        # between its write and its fsync, or the fsync may have failed. From here on it counts as durable, so it is
        # written anew, into the database, and synced.
        busy, *_ = self.run("PRAGMA wal_checkpoint(TRUNCATE)")[0]
        if busy:
            raise StorageError(f"another program has {path} open")
        found = {pragma: self.run(f"PRAGMA {pragma}")[0][0] for pragma in wanted}
        if found != wanted:
            raise StorageError(f"{path}: SQLite did not accept the settings {wanted}: {found}")

    def begin(self, statement: str, arguments: tuple[object, ...], answered: Answered) -> None:
        """Run a statement on the table's thread, and call ``answered`` there with its rows, or with what went wrong.

        Raises:
            StorageError: an earlier statement failed, or the table is closed.
        """
        connection = self._dict.conn
        if connection is None:
            raise StorageError("the table is closed")
        if connection.exception is not None:
            raise StorageError(f"an earlier write failed: {connection.exception[1]}")
        answer = _Answer(connection, self._waiting, answered)
        # sqlitedict keeps weak references only: without this strong one the answer never comes.
        self._waiting.add(answer)
        # What `execute` does, but for one thing: that raises an earlier statement's exception and forgets it, and the
        # answer to that very statement, if it is still on its way, would look like a success.
        connection.reqs.put((statement, arguments, weakref.ref(answer), None))

    def run(self, statement: str, arguments: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a statement, wait for its answer, and return its rows.

        Raises:
            StorageError: it failed, or the deadline passed.
        """
        finished = threading.Event()
        outcome: list[tuple[list[tuple[Any, ...]], BaseException | None]] = []

        def answered(rows: list[tuple[Any, ...]], error: BaseException | None) -> None:
            outcome.append((rows, error))
            finished.set()

        self.begin(statement, arguments, answered)
        if not finished.wait(self._deadline_s):
            raise StorageError(f"the disk did not answer within {self._deadline_s:g} s")
        rows, error = outcome[0]
        if error is not None:
            raise StorageError(f"the disk refused a write: {error}")
        return rows

    def close(self) -> bool:
        """Wait for what is in flight, close the file, and tell whether that succeeded within the deadline."""
        connection, self._dict.conn = self._dict.conn, None
        # Without force it would wait for ever for a thread that has died.
        connection.close(force=True)
        connection.join(self._close_deadline_s)
        return not connection.is_alive()


class _Answer:
    """What sqlitedict takes for the queue of a statement's results. Lives on the table's thread."""

    def __init__(self, connection: Any, waiting: set[_Answer], answered: Answered) -> None:
        self._connection = connection
        self._waiting = waiting
        self._answered = answered
        self._rows: list[tuple[Any, ...]] = []

    def put(self, item: object) -> None:
        """Take a row (a tuple), or the end (a string)."""
        if isinstance(item, tuple):
            self._rows.append(item)
            return
        self._waiting.discard(self)
        # The thread has put the exception there before it ends a failed statement. An older statement's exception
        # counts as ours as well: after one failure nothing is trusted.
        exception = self._connection.exception
        self._answered(self._rows, exception[1] if exception is not None else None)


def _bytes_only(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"the log holds bytes, not {type(value).__name__}")
    return value


def _text_only(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key is text, not {type(key).__name__}")
    return key
