"""A folder that is not what was written: the node says so and stops, or what it loads is exactly what was saved."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest
from storage.support import IDENTITY, Disk, entries, load, run
from storage.workload import Model, follow_up, perform, plan

from kvorum.errors import StorageAmnesiaError, StorageCorruptError, StorageError, StorageForeignError
from kvorum.raft.messages import HardState, Save
from kvorum.storage.datadir import MARK
from kvorum.storage.high_water_mark import HighWaterMark
from kvorum.storage.interface import Loaded
from kvorum.storage.log import SqliteStorage
from kvorum.storage.records import FORMAT, StoredIdentity, _seal, encode_record, make_record
from kvorum.telemetry.counters import Counters

SEED = 31


class Golden:
    """A folder in mid-flight, with rows in the write-ahead log and in the database, and the model of what it holds."""

    def __init__(self, folder: Path, operations: int) -> None:
        self.live, self.older, self.closed = folder / "live", folder / "older", folder / "closed"
        self.model = Model()
        asyncio.run(self._make(operations))

    async def _make(self, operations: int) -> None:
        async with Disk(self.closed) as disk:
            for operation, model in plan(SEED):
                await perform(disk, operation)
                await follow_up(disk, operation, model)
                if operation.number == operations - 5:
                    shutil.copytree(self.closed, self.older)
                if operation.number == operations // 2:
                    assert disk.storage._table is not None
                    disk.storage._table.run("PRAGMA wal_checkpoint(PASSIVE)")
                if operation.number == operations:
                    self.model = deepcopy(model)
                    shutil.copytree(self.closed, self.live)
                    return


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="kvorum-corrupt-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def golden(scratch: Path) -> Golden:
    return Golden(scratch / "golden", 65)


def outcome(golden: Golden, folder: Path) -> str:
    """Load, and return ``exact`` or the name of the error; anything else that is loaded fails the test."""
    try:
        loaded = load(folder)
    except StorageError as error:
        assert str(error)
        assert "\n" not in str(error)
        return type(error).__name__
    golden.model.check(loaded)
    return "exact"


@contextmanager
def copied(source: Path, scratch: Path) -> Iterator[Path]:
    folder = scratch / "copy"
    shutil.copytree(source, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_the_undamaged_folders_are_loaded(golden: Golden, scratch: Path) -> None:
    assert (golden.live / "kvorum.db-wal").stat().st_size > 10_000
    for source in (golden.live, golden.closed):
        with copied(source, scratch) as folder:
            assert outcome(golden, folder) == "exact"


# --- Random damage ----------------------------------------------------------------------------------------------------


def flip(data: bytearray, random_: random.Random) -> None:
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def zero(data: bytearray, random_: random.Random) -> None:
    start = random_.randrange(len(data)) // 512 * 512
    data[start : start + 512] = bytes(len(data[start : start + 512]))


def cut(data: bytearray, random_: random.Random) -> None:
    del data[random_.randrange(len(data)) :]


def garbage(data: bytearray, random_: random.Random) -> None:
    start = random_.randrange(len(data))
    data[start : start + 64] = random_.randbytes(len(data[start : start + 64]))


def move(data: bytearray, random_: random.Random) -> None:
    """A write that went to another place: one page stands where another should."""
    pages = max(1, len(data) // 4096)
    source, target = random_.randrange(pages) * 4096, random_.randrange(pages) * 4096
    data[target : target + 4096] = data[source : source + 4096]


DAMAGES = (flip, flip, flip, zero, cut, garbage, move)


def damage_at_random(golden: Golden, scratch: Path, count: int, seed: int) -> dict[str, int]:
    """Damage one file in one way, ``count`` times; returns how often each outcome came."""
    random_ = random.Random(seed)
    outcomes: dict[str, int] = {}
    for _ in range(count):
        with copied(random_.choice((golden.live, golden.closed)), scratch) as folder:
            path = random_.choice(files_of(folder))
            data = bytearray(path.read_bytes())
            random_.choice(DAMAGES)(data, random_)
            path.write_bytes(data)
            found = outcome(golden, folder)
        outcomes[found] = outcomes.get(found, 0) + 1
    return outcomes


def test_no_damage_is_silent(golden: Golden, scratch: Path) -> None:
    outcomes = damage_at_random(golden, scratch, 250, seed=1)
    assert outcomes.keys() <= {"exact", "StorageCorruptError", "StorageAmnesiaError", "StorageForeignError"}
    assert outcomes["StorageCorruptError"] >= 20
    assert outcomes["StorageAmnesiaError"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 105))
def test_no_damage_of_thousands_is_silent(golden: Golden, scratch: Path, seed: int) -> None:
    assert sum(damage_at_random(golden, scratch, 1000, seed).values()) == 1000


@pytest.mark.parametrize("name", ["kvorum.db", "kvorum.db-wal", "mark"])
def test_a_file_that_is_older_than_the_others_is_noticed(golden: Golden, scratch: Path, name: str) -> None:
    """Files out of step (B34): an older log has lost what the mark remembers; an older mark is only a lower bound."""
    with copied(golden.live, scratch) as folder:
        shutil.copy(golden.older / name, folder / name)
        found = outcome(golden, folder)
    assert found == ("StorageAmnesiaError" if name == "kvorum.db-wal" else "exact")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kvorum.db", "StorageAmnesiaError"),
        ("kvorum.db-wal", "StorageAmnesiaError"),
        ("kvorum.db-shm", "exact"),
        ("mark", "StorageAmnesiaError"),
        ("lock", "exact"),
    ],
)
def test_a_file_that_is_missing_is_noticed_if_it_matters(
    golden: Golden, scratch: Path, name: str, expected: str
) -> None:
    """A mark without a log, a log without its end or its mark (B36): this disk has lost memory."""
    with copied(golden.live, scratch) as folder:
        (folder / name).unlink()
        found = outcome(golden, folder)
    assert found == expected


def test_a_write_ahead_log_without_its_database_is_never_replayed_into_a_new_one(tmp_path: Path) -> None:
    """The mark may lag behind after a loss of power, so it alone does not tell."""

    async def act(disk: Disk) -> None:
        await disk.save(7, *entries(1, 3), vote="n2@00")
        shutil.copytree(tmp_path / "n1", tmp_path / "copy")

    run(tmp_path / "n1", act)
    (tmp_path / "copy" / "kvorum.db").unlink()
    HighWaterMark(tmp_path / "copy" / MARK).create()
    for _ in range(2):
        with pytest.raises(StorageAmnesiaError, match=r"kvorum.db is missing, but its write-ahead log exists"):
            load(tmp_path / "copy")


def test_snapshots_without_a_log_are_refused(golden: Golden, tmp_path: Path) -> None:
    shutil.copytree(golden.closed / "snapshots", tmp_path / "snapshots")
    with pytest.raises(StorageAmnesiaError, match="incomplete copy"):
        load(tmp_path)


# --- Deliberate changes, each of which SQLite itself finds correct ----------------------------------------------------


def written(folder: Path) -> None:
    async def act(disk: Disk) -> None:
        for index in range(1, 11):
            await disk.save(1, *entries(index, index))

    run(folder, act)


def execute(folder: Path, statement: str, *arguments: object) -> None:
    connection = sqlite3.connect(folder / "kvorum.db", isolation_level=None)
    connection.execute(statement, arguments)
    connection.close()


def key(seq: int) -> str:
    return f"{seq:020d}"


def value(folder: Path, seq: int) -> bytes:
    connection = sqlite3.connect(folder / "kvorum.db")
    (found,) = connection.execute("SELECT value FROM kvorum WHERE key = ?", (key(seq),)).fetchone()
    connection.close()
    assert isinstance(found, bytes)
    return found


Change = Callable[[Path], None]

CHANGES: dict[str, tuple[type[StorageError], str, Change]] = {
    "a row in the middle is gone": (
        StorageCorruptError,
        "record 6 follows record 4",
        lambda folder: execute(folder, "DELETE FROM kvorum WHERE key = ?", key(5)),
    ),
    "the first rows are gone": (
        StorageCorruptError,
        "the log begins at entry 4, and no valid snapshot covers",
        lambda folder: execute(folder, "DELETE FROM kvorum WHERE key < ?", key(4)),
    ),
    "all rows but a late vote are gone": (
        StorageCorruptError,
        "the log holds no entries, and no valid snapshot covers",
        lambda folder: keep_a_vote(folder),
    ),
    "the last row is gone": (
        StorageAmnesiaError,
        "the log ends at record 9, but record 10 was once durable",
        lambda folder: execute(folder, "DELETE FROM kvorum WHERE key = ?", key(10)),
    ),
    "all rows are gone": (
        StorageAmnesiaError,
        "the log ends at record 0",
        lambda folder: execute(folder, "DELETE FROM kvorum WHERE key != 'identity'"),
    ),
    "two rows are swapped": (
        StorageCorruptError,
        "record 6 is stored under the key",
        lambda folder: swap(folder, 5, 6),
    ),
    "a row is there twice": (
        StorageCorruptError,
        "record 3 is stored under the key",
        lambda folder: execute(folder, "INSERT INTO kvorum VALUES (?, ?)", key(11), value(folder, 3)),
    ),
    "a row is of another log": (
        StorageCorruptError,
        "record 10 was not written after the record that now stands before it",
        lambda folder: replace(folder, 10, prev_crc=1234),
    ),
    "the last row is of another log with the same past": (
        StorageCorruptError,
        "record 10 of the log does not match the high-water mark",
        lambda folder: replace(folder, 10, prev_crc=int.from_bytes(value(folder, 9)[:4], "little")),
    ),
    "a value is text": (
        StorageCorruptError,
        "does not match|not a blob",
        lambda folder: execute(folder, "UPDATE kvorum SET value = 'text' WHERE key = ?", key(10)),
    ),
    "a value is null": (
        StorageCorruptError,
        "not a blob",
        lambda folder: execute(folder, "UPDATE kvorum SET value = NULL WHERE key = ?", key(10)),
    ),
    "the identity is gone": (
        StorageCorruptError,
        "no identity",
        lambda folder: execute(folder, "DELETE FROM kvorum WHERE key = 'identity'"),
    ),
    "the identity is damaged": (
        StorageCorruptError,
        "checksum",
        lambda folder: execute(folder, "UPDATE kvorum SET value = X'0102030405060708' WHERE key = 'identity'"),
    ),
    "the format is of the future": (
        StorageForeignError,
        f"format 99; this version of Kvorum supports {FORMAT}",
        lambda folder: execute(
            folder, "UPDATE kvorum SET value = ? WHERE key = 'identity'", _seal(StoredIdentity(99, IDENTITY))[0]
        ),
    ),
    "there is another table": (
        StorageForeignError,
        "is not a log of Kvorum: it holds kvorum, users",
        lambda folder: execute(folder, "CREATE TABLE users (id)"),
    ),
    "the mark is too short": (
        StorageCorruptError,
        "is 5 bytes long, not 12",
        lambda folder: os.truncate(folder / "mark", 5),
    ),
}


def keep_a_vote(folder: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(2, vote="n2@00")

    run(folder, act)
    execute(folder, "DELETE FROM kvorum WHERE key < ?", key(11))


def swap(folder: Path, first: int, second: int) -> None:
    one, other = value(folder, first), value(folder, second)
    execute(folder, "UPDATE kvorum SET value = ? WHERE key = ?", other, key(first))
    execute(folder, "UPDATE kvorum SET value = ? WHERE key = ?", one, key(second))


def replace(folder: Path, seq: int, prev_crc: int) -> None:
    save = Save(seq, HardState(9, "n9@99"), entries(seq, seq, term=9))
    row, _ = encode_record(make_record(seq, prev_crc, seq - 1, save))
    execute(folder, "UPDATE kvorum SET value = ? WHERE key = ?", row, key(seq))


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_log_is_refused(tmp_path: Path, case: str) -> None:
    error, message, change = CHANGES[case]
    written(tmp_path)
    assert load(tmp_path).entries == entries(1, 10)
    change(tmp_path)
    for _ in range(2):
        with pytest.raises(error, match=message) as caught:
            load(tmp_path)
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)


# --- Foreign folders --------------------------------------------------------------------------------------------------


def test_a_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    execute(tmp_path, "CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
    execute(tmp_path, "INSERT INTO unnamed VALUES ('0', X'80')")
    before = (tmp_path / "kvorum.db").read_bytes()
    with pytest.raises(StorageForeignError, match="is not a log of Kvorum: it holds unnamed"):
        load(tmp_path)
    assert (tmp_path / "kvorum.db").read_bytes() == before
    assert not (tmp_path / "kvorum.db-wal").exists()


def test_a_foreign_database_keeps_its_write_ahead_log(tmp_path: Path) -> None:
    """Whoever opens it for writing folds the log into it. Verifying must not: it may be another program's."""
    (tmp_path / "theirs").mkdir()
    connection = sqlite3.connect(tmp_path / "theirs" / "kvorum.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE users (id)")
    shutil.copytree(tmp_path / "theirs", tmp_path / "ours")
    connection.close()
    before = {name: (tmp_path / "ours" / name).read_bytes() for name in ("kvorum.db", "kvorum.db-wal")}
    assert len(before["kvorum.db-wal"]) > 4096
    with pytest.raises(StorageForeignError, match="users"):
        load(tmp_path / "ours")
    assert {name: (tmp_path / "ours" / name).read_bytes() for name in before} == before


def test_an_index_that_does_not_match_its_table_is_refused(tmp_path: Path) -> None:
    """The rows are whole, and a scan reads them; but compaction deletes by the index."""
    written(tmp_path)
    data = bytearray((tmp_path / "kvorum.db").read_bytes())
    places = [place for place in range(len(data)) if data.startswith(key(5).encode(), place)]
    assert len(places) == 2, "once in the table, once in the index"
    index = next(place for place in places if data[place // 4096 * 4096] == 10)
    data[index + 19] = ord("9")
    (tmp_path / "kvorum.db").write_bytes(data)
    with pytest.raises(StorageCorruptError, match="is damaged: row"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a database at all", bytes(8192)])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kvorum.db").write_bytes(content)
    with pytest.raises(StorageError, match="is not a log"):
        load(tmp_path)
    assert (tmp_path / "kvorum.db").read_bytes() == content


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "n1"):
        with pytest.raises(StorageError, match=r"cannot use the data folder .*: Not a directory"):
            load(path)


def test_files_that_are_not_ours_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "README").write_text("mine")
    written(tmp_path)
    (tmp_path / "snapshots" / "notes.txt").write_text("mine")
    assert load(tmp_path).entries == entries(1, 10)
    assert (tmp_path / "snapshots" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("leftover", ["mark.tmp", "kvorum.new", "kvorum.new-journal", "kvorum.new-wal", "lock"])
def test_what_a_crash_at_the_first_start_leaves_is_no_obstacle(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).write_bytes(b"half")
    assert load(tmp_path) == Loaded()
    written(tmp_path)
    assert load(tmp_path).entries == entries(1, 10)


def test_a_folder_with_a_mark_but_no_log_yet_is_new(tmp_path: Path) -> None:
    HighWaterMark(tmp_path / MARK).create()
    assert load(tmp_path) == Loaded()


def test_a_failed_load_holds_nothing(tmp_path: Path) -> None:
    """Neither the lock nor a descriptor: the message can be printed, the folder removed, the node started again."""
    written(tmp_path)
    (tmp_path / "kvorum.db").rename(tmp_path / "elsewhere")
    storage = SqliteStorage(tmp_path, lambda error: None, 1000, Counters())
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageAmnesiaError):
        storage.load()
    assert len(os.listdir("/proc/self/fd")) == before
    (tmp_path / "elsewhere").rename(tmp_path / "kvorum.db")
    assert load(tmp_path) == Loaded(IDENTITY, HardState(1), None, entries(1, 10))


def test_a_vote_that_the_disk_lost_is_missed(tmp_path: Path) -> None:
    """A record without entries moves the mark as well: a node that forgot its vote would vote twice."""

    async def vote(disk: Disk) -> None:
        await disk.save(2, vote="n2@00")

    written(tmp_path / "n1")
    shutil.copytree(tmp_path / "n1", tmp_path / "before")
    run(tmp_path / "n1", vote)
    for path in (tmp_path / "n1").glob("kvorum.db*"):
        path.unlink()
    for path in (tmp_path / "before").glob("kvorum.db*"):
        shutil.copy(path, tmp_path / "n1" / path.name)
    with pytest.raises(StorageAmnesiaError, match="the log ends at record 10, but record 11 was once durable"):
        load(tmp_path / "n1")
