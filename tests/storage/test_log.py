"""The log on disk: what a save promises, what compaction keeps, and how a storage ends."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from storage.support import IDENTITY, Disk, entries, load, run, send, snapshot, take_snapshot

from kvorum.errors import InvariantViolatedError, StorageError, StorageForeignError, StorageLockedError
from kvorum.raft.messages import Entry, HardState, Save
from kvorum.storage import log as log_module
from kvorum.storage.datadir import MARK
from kvorum.storage.interface import Identity, Loaded, Storage
from kvorum.storage.log import SqliteStorage
from kvorum.storage.memory import MemoryStorage
from kvorum.storage.table import Table
from kvorum.telemetry.counters import Counters


def rows(folder: Path) -> list[str]:
    """The keys in a folder that nobody holds, in order."""
    connection = sqlite3.connect(folder / "kvorum.db")
    try:
        return [key for (key,) in connection.execute("SELECT key FROM kvorum ORDER BY key")]
    finally:
        connection.close()


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_of(folder))


def nothing() -> None:
    """An answer that nobody needs."""


def test_the_disk_implements_the_interface(tmp_path: Path) -> None:
    storage: Storage = SqliteStorage(tmp_path / "n1", lambda error: None, 1000, Counters())
    assert storage.load() == Loaded()
    storage.close()


def test_a_new_folder_holds_nothing_but_its_identity(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        assert disk.loaded == Loaded()

    run(tmp_path / "deep" / "n1", act)
    assert load(tmp_path / "deep" / "n1") == Loaded(identity=IDENTITY)


def test_vote_term_and_entries_survive_a_restart(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(3, *entries(1, 4), vote="n2@00")
        await disk.save(4, vote=None)
        await disk.save(5, *entries(5, 5, term=5), vote="n1@00")

    run(tmp_path, act)
    expected = Loaded(IDENTITY, HardState(5, "n1@00"), None, entries(1, 4) + entries(5, 5, term=5))
    assert load(tmp_path) == expected
    assert load(tmp_path) == expected, "loading changes nothing"


def test_a_vote_is_a_record_of_its_own(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, vote="n1@00")
        await disk.save(2, vote="n2@00")

    run(tmp_path, act)
    assert load(tmp_path).hard_state == HardState(2, "n2@00")
    assert rows(tmp_path) == [f"{1:020d}", f"{2:020d}", "identity"]


def test_truncation_append_and_vote_are_one_row(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 9))
        await disk.save(2, *entries(4, 5, term=2), vote="n3@00")
        await disk.save(2, *entries(6, 6, term=2), vote="n3@00")

    run(tmp_path, act)
    loaded = load(tmp_path)
    assert loaded.entries == entries(1, 3) + entries(4, 6, term=2)
    assert loaded.hard_state == HardState(2, "n3@00")
    assert len(rows(tmp_path)) == 4


def test_a_log_can_be_replaced_from_its_first_entry_on(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 9))
        await disk.save(2, *entries(1, 1, term=2))

    run(tmp_path, act)
    assert load(tmp_path).entries == entries(1, 1, term=2)


def test_entries_of_every_size_come_back_as_they_were(tmp_path: Path) -> None:
    sizes = [0, 1, 4000, 4096, 70_000, 3_000_000]
    written = tuple(entry for i, size in enumerate(sizes, 1) for entry in entries(i, i, size=size))

    async def act(disk: Disk) -> None:
        for entry in written:
            await disk.save(1, entry)

    run(tmp_path, act)
    assert load(tmp_path).entries == written


def test_saves_are_counted_with_their_bytes_and_durations(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 1, size=1000))
        await disk.save(1, *entries(2, 2, size=1000))
        assert disk.counters.saves == 2
        assert 2000 < disk.counters.saved_bytes < 2200
        assert disk.counters.save_duration.count == 2

    run(tmp_path, act)


# --- What a bug above must not do to the disk -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [entries(5, 5), entries(1, 1) + entries(3, 3), entries(2, 2) + entries(2, 2), entries(0, 1)],
    ids=["hole", "hole inside", "doubled", "entry 0"],
)
def test_a_log_with_a_hole_is_never_written(tmp_path: Path, parts: tuple[Entry, ...]) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 3))
        with pytest.raises(InvariantViolatedError):
            await disk.save(1, *parts)

    run(tmp_path, act)
    assert load(tmp_path).entries == entries(1, 3)


def test_a_second_save_in_flight_is_refused(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        disk.storage.save(Save(1, HardState(1)), nothing)
        with pytest.raises(InvariantViolatedError):
            disk.storage.save(Save(2, HardState(1)), nothing)

    run(tmp_path, act)


def test_a_snapshot_that_is_not_here_cannot_be_adopted(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 3))
        for storage in (disk.storage, MemoryStorage()):
            with pytest.raises(InvariantViolatedError, match="at 9, which is missing"):
                storage.save(Save(2, HardState(2), snapshot=snapshot(9)), nothing)

    run(tmp_path, act)
    assert load(tmp_path).entries == entries(1, 3)


def test_a_snapshot_that_is_being_adopted_stays_whatever_arrives(tmp_path: Path) -> None:
    """While the save is in flight, two newer ones come in: the log will need the first."""
    sender = MemoryStorage()
    for last_index in (50, 60):
        take_snapshot(sender.snapshots, last_index, last_term=3)

    async def act(disk: Disk) -> None:
        for last_index in (50, 60):
            send(sender.snapshots, disk.storage.snapshots, snapshot(last_index, 3))
            if last_index == 50:
                adopting = asyncio.create_task(disk.save(3, base=snapshot(50, 3)))
                await asyncio.sleep(0)
                take_snapshot(sender.snapshots, 70, last_term=3)
        send(sender.snapshots, disk.storage.snapshots, snapshot(70, 3))
        await adopting

    run(tmp_path, act)
    assert load(tmp_path) == Loaded(IDENTITY, HardState(3), snapshot(50, 3))


def test_nothing_is_saved_before_the_identity(tmp_path: Path) -> None:
    async def main() -> None:
        storage = SqliteStorage(tmp_path, lambda error: None, 1000, Counters())
        storage.load()
        with pytest.raises(InvariantViolatedError, match="identity"):
            storage.save(Save(1, HardState(1)), nothing)
        storage.close()

    asyncio.run(main())


def test_compaction_without_a_snapshot_is_refused(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 9))
        take_snapshot(disk.storage.snapshots, 5)
        with pytest.raises(InvariantViolatedError):
            disk.storage.compact(7, nothing)
        await disk.compact(6)

    run(tmp_path, act)


# --- Identity and lock ------------------------------------------------------------------------------------------------


def test_the_cluster_id_may_be_added_and_nothing_else_changed(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path, lambda error: None, 1000, Counters())
    storage.load()
    storage.write_identity(Identity("n1", "0" * 16))
    storage.write_identity(Identity("n1", "0" * 16, "c" * 32))
    for other in (Identity("n2", "0" * 16, "c" * 32), Identity("n1", "1" * 16, "c" * 32), Identity("n1", "0" * 16)):
        with pytest.raises(StorageForeignError, match="belongs to n1@0000000000000000"):
            storage.write_identity(other)
    storage.close()
    assert load(tmp_path).identity == Identity("n1", "0" * 16, "c" * 32)


def test_a_folder_of_another_node_is_refused(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 1))

    run(tmp_path, act)
    with pytest.raises(StorageForeignError, match="belongs to n1, not to n2"):
        load(tmp_path, name="n2")
    assert load(tmp_path, name="n1").entries == entries(1, 1)


def test_one_process_a_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from kvorum.telemetry.counters import Counters; from kvorum.storage.log import SqliteStorage\n"
        "try: SqliteStorage(sys.argv[1], print, 1000, Counters()).load()\n"
        "except Exception as error: sys.exit(f'{type(error).__name__}: {error}')"
    )

    holder = SqliteStorage(tmp_path, lambda error: None, 1000, Counters())
    holder.load()
    holder.write_identity(IDENTITY)
    other = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert other.returncode == 1
    assert other.stderr.startswith("StorageLockedError: another process holds the data folder")
    assert len(other.stderr.splitlines()) == 1
    holder.close()
    assert load(tmp_path).identity == IDENTITY


def test_a_folder_is_free_again_after_close_and_after_a_failed_load(tmp_path: Path) -> None:
    first = SqliteStorage(tmp_path, lambda error: None, 1000, Counters(), "n1")
    first.load()
    with pytest.raises(StorageLockedError):
        load(tmp_path)
    first.write_identity(IDENTITY)
    first.close()
    first.close()
    with pytest.raises(StorageForeignError):
        load(tmp_path, name="n2")
    assert load(tmp_path).identity == IDENTITY


def test_no_other_program_can_write_to_the_database_of_a_running_node(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 1))
        connection = sqlite3.connect(tmp_path / "kvorum.db", timeout=0.05)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            connection.execute("DELETE FROM kvorum")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            connection.execute("PRAGMA journal_mode=DELETE")
        connection.close()
        await disk.save(1, *entries(2, 2))

    run(tmp_path, act)
    assert load(tmp_path).entries == entries(1, 2)


def test_a_database_that_another_program_reads_is_not_opened(tmp_path: Path) -> None:
    """What a start loads must be synced anew (the process before may have been killed); a reader prevents that."""

    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 1))
        shutil.copytree(tmp_path / "n1", tmp_path / "killed")

    run(tmp_path / "n1", act)
    reader = sqlite3.connect(tmp_path / "killed" / "kvorum.db", isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM kvorum").fetchone() == (2,)
    with pytest.raises(StorageError, match=r"another program has .* open"):
        load(tmp_path / "killed")
    reader.close()
    assert load(tmp_path / "killed").entries == entries(1, 1)


def test_only_the_owner_can_read_the_folder(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 1))
        take_snapshot(disk.storage.snapshots, 1)
        files = files_of(tmp_path / "n1")
        assert {path.name for path in files} >= {"kvorum.db", "kvorum.db-wal", "kvorum.db-shm", "mark", "lock"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        folders = [tmp_path / "n1", tmp_path / "n1" / "snapshots"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}

    previous = os.umask(0)
    try:
        run(tmp_path / "n1", act)
    finally:
        os.umask(previous)


# --- sqlitedict -------------------------------------------------------------------------------------------------------


def test_the_database_is_in_wal_mode_and_synced_before_the_first_write(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        table = disk.storage._table
        assert table is not None
        pragmas = ("synchronous", "journal_mode", "wal_autocheckpoint", "locking_mode")
        assert [table.run(f"PRAGMA {pragma}")[0][0] for pragma in pragmas] == [2, "wal", 0, "exclusive"]

    run(tmp_path, act)


def test_what_a_start_creates_is_durable_before_the_first_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is durable when its folder was synced after it; a file's bytes, when the file was synced before that."""
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append(f"sync {path.relative_to(tmp_path.parent)}")

    def recorded_rename(self: Path, target: Path) -> Path:
        calls.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    folder = tmp_path / "deep" / "n1"
    load(folder)
    top = tmp_path.name
    assert calls == [
        f"sync {top}",
        f"sync {top}/deep",
        f"sync {top}/deep/n1",
        f"sync {top}/deep/n1/snapshots",
        f"sync {top}/deep/n1/{MARK}.tmp",
        f"rename {MARK}.tmp {MARK}",
        f"sync {top}/deep/n1",
        "rename kvorum.new kvorum.db",
        f"sync {top}/deep/n1",
        f"sync {top}/deep/n1",
    ]

    # The process before may have been killed between a name and its sync.
    calls.clear()
    load(folder)
    assert calls == [f"sync {top}/deep/n1/snapshots", f"sync {top}/deep/n1"]


def test_after_a_statement_that_failed_nothing_is_written_any_more(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    table = Table(path, "t", 10.0, 10.0)
    with pytest.raises(StorageError, match="refused"):
        table.run("INSERT INTO nothing VALUES (1)")
    with pytest.raises(StorageError, match="an earlier write failed"):
        table.run("REPLACE INTO t (key, value) VALUES (?, ?)", ("a", b"1"))
    table.close()
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    finally:
        connection.close()


def test_pickle_cannot_be_reached(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.db", "t", 10.0, 10.0)
    dictionary = table._dict
    for value in (1, None, "text", [b"list"], bytearray(b"x"), object()):
        with pytest.raises(TypeError):
            dictionary["key"] = value
        with pytest.raises(TypeError):
            dictionary.decode(value)
    with pytest.raises(TypeError):
        dictionary[b"key"] = b"value"
    # A pickle that would create a file, read back through the dictionary's own door, stays bytes.
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "exploded").encode() + b"'\ntR."
    dictionary["bomb"] = bomb
    assert dictionary["bomb"] == bomb
    assert list(dictionary.items()) == [("bomb", bomb)]
    assert table.close()
    assert not (tmp_path / "exploded").exists()
    assert not [name for name in vars(log_module) if "pickle" in name]


def test_the_loop_is_not_blocked_while_the_disk_works(tmp_path: Path) -> None:
    """The table's thread is held; the loop goes on turning, and the save is answered when the thread is let go."""

    async def act(disk: Disk) -> None:
        held, turns = threading.Event(), 0
        write_mark = disk.storage._write_mark

        def slow(seq: int, crc: int) -> BaseException | None:
            held.wait(60)
            return write_mark(seq, crc)

        disk.storage._write_mark = slow  # type: ignore[method-assign]
        saving = asyncio.create_task(disk.save(1, *entries(1, 1)))
        while turns < 1000:
            await asyncio.sleep(0)
            turns += 1
        assert not saving.done()
        held.set()
        await saving

    run(tmp_path, act)


# --- Failing ----------------------------------------------------------------------------------------------------------


def test_a_save_that_takes_too_long_fails_and_is_never_answered(tmp_path: Path) -> None:
    async def main() -> None:
        held = threading.Event()
        async with Disk(tmp_path, deadline_ms=50) as disk:
            write_mark = disk.storage._write_mark

            def slow(seq: int, crc: int) -> BaseException | None:
                held.wait(60)
                return write_mark(seq, crc)

            disk.storage._write_mark = slow  # type: ignore[method-assign]
            answers: list[int] = []
            disk.storage.save(Save(1, HardState(1), entries(1, 1)), lambda: answers.append(1))
            async with asyncio.timeout(30):
                await disk.failed.wait()
            held.set()
            disk.storage.save(Save(2, HardState(2)), lambda: answers.append(2))
            disk.storage.compact(1, lambda: answers.append(3))
            disk.storage.close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert answers == []
        assert [str(error) for error in disk.failures] == [
            f"{tmp_path}: the disk did not make record 1 durable in 0.05 s"
        ]

    asyncio.run(main())


def test_a_process_that_was_paused_does_not_take_that_for_a_slow_disk(tmp_path: Path) -> None:
    """Found by pausing a Kubernetes node: every node with a save in flight ended itself when it woke."""

    async def main() -> None:
        held = threading.Event()
        async with Disk(tmp_path, deadline_ms=5000) as disk:
            storage = disk.storage
            write_mark = storage._write_mark

            def slow(seq: int, crc: int) -> BaseException | None:
                held.wait(60)
                return write_mark(seq, crc)

            storage._write_mark = slow  # type: ignore[method-assign]
            saved = asyncio.Event()
            storage.save(Save(1, HardState(1), entries(1, 1)), saved.set)
            loop = asyncio.get_running_loop()
            assert storage._in_flight is not None
            assert storage._watchdog is not None
            storage._watchdog.cancel()
            # As if the process had woken a minute after the watchdog was due.
            storage._in_flight.started = loop.time() - 65
            storage._watchdog = loop.call_at(loop.time() - 60, lambda: storage._check_deadline())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert disk.failures == []
            held.set()
            async with asyncio.timeout(30):
                await saved.wait()

    asyncio.run(main())


def test_a_disk_that_stalls_is_waited_for_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Shared storage that stalled for 10 s ended all nodes at once."""
    monkeypatch.setattr(log_module, "WATCHDOG_S", 0.05)

    async def main() -> None:
        held = threading.Event()
        async with Disk(tmp_path, deadline_ms=600_000) as disk:
            write_mark = disk.storage._write_mark

            def slow(seq: int, crc: int) -> BaseException | None:
                held.wait(60)
                return write_mark(seq, crc)

            disk.storage._write_mark = slow  # type: ignore[method-assign]
            said, saved, checks = asyncio.Event(), asyncio.Event(), 0
            check = disk.storage._check_deadline

            def checked() -> None:
                nonlocal checks
                checks += 1
                check()
                if checks == 3:
                    said.set()

            disk.storage._check_deadline = checked  # type: ignore[method-assign]
            disk.storage.save(Save(1, HardState(1), entries(1, 1)), saved.set)
            async with asyncio.timeout(30):
                await said.wait()
                held.set()
                await saved.wait()
            assert disk.failures == []
            assert caplog.text.count("has not answered") == 1
            assert caplog.text.count("answers again") == 1

    asyncio.run(main())


def test_the_watchdog_lets_saves_pass_that_are_in_time(tmp_path: Path) -> None:
    """More saves than one deadline's time, each in time: the timer is set again and again, and never fails."""

    async def main() -> None:
        async with Disk(tmp_path, deadline_ms=2000) as disk:
            loop = asyncio.get_running_loop()
            checks = 0
            check = disk.storage._check_deadline

            def counted() -> None:
                nonlocal checks
                checks += 1
                check()

            disk.storage._check_deadline = counted  # type: ignore[method-assign]
            index, end = 1, loop.time() + 2.5
            while loop.time() < end:
                await disk.save(1, *entries(index, index))
                index += 1
            assert checks >= 1
            assert disk.failures == []

    asyncio.run(main())


@pytest.mark.parametrize("statement", ["INSERT", "DELETE_BEFORE", "CHECKPOINT"])
def test_a_statement_that_fails_ends_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """A constraint is broken, a table missing: the storage reports it once, and answers nothing from then on."""
    monkeypatch.setattr(log_module, "CHECKPOINT_PAGES", 1 if statement == "CHECKPOINT" else 1000)

    async def main() -> None:
        async with Disk(tmp_path) as disk:
            await disk.save(1, *entries(1, 5))
            take_snapshot(disk.storage.snapshots, 5)
            monkeypatch.setattr(log_module, statement, "INSERT INTO absent VALUES (?, ?)")
            answers: list[int] = []
            if statement == "DELETE_BEFORE":
                await disk.save(1, *entries(6, 6))
                disk.storage.compact(6, lambda: answers.append(1))
            else:
                disk.storage.save(Save(9, HardState(1)), nothing)
            async with asyncio.timeout(30):
                await disk.failed.wait()
            disk.storage.save(Save(10, HardState(2)), lambda: answers.append(2))
            assert answers == []
            assert len(disk.failures) == 1

    asyncio.run(main())
    loaded = load(tmp_path)
    assert (loaded.snapshot, loaded.entries) == (snapshot(5), entries(6, 6) if statement == "DELETE_BEFORE" else ())


def test_a_failed_save_leaves_no_mark_whoever_hears_of_the_failure_first(tmp_path: Path) -> None:
    """By sqlitedict's own door the next caller hears of a failure, and it is forgotten: the save must have failed."""
    failing, heard = threading.Event(), threading.Event()

    class Between(logging.Handler):
        """sqlitedict logs a failure after it has noted it and before it answers."""

        def emit(self, record: logging.LogRecord) -> None:
            failing.set()
            heard.wait(60)

    async def main() -> None:
        async with Disk(tmp_path) as disk:
            for index in range(1, 6):
                await disk.save(1, *entries(index, index))
            take_snapshot(disk.storage.snapshots, 5)
            assert disk.storage._table is not None
            disk.storage._table.run("PRAGMA max_page_count=1")
            disk.storage.save(Save(2, HardState(2), entries(6, 9, size=90_000)), nothing)
            assert await asyncio.to_thread(failing.wait, 60)
            disk.storage.compact(6, nothing)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            heard.set()
            async with asyncio.timeout(30):
                await disk.failed.wait()
        assert len(disk.failures) == 1
        assert "full" in str(disk.failures[0])

    log, handler = logging.getLogger("sqlitedict"), Between()
    level = log.level
    log.addHandler(handler)
    # A node of an earlier test may have silenced it.
    log.setLevel(logging.NOTSET)
    try:
        asyncio.run(main())
    finally:
        heard.set()
        log.setLevel(level)
        log.removeHandler(handler)
    assert load(tmp_path) == Loaded(IDENTITY, HardState(1), snapshot(5))


def test_a_mark_that_cannot_be_written_fails_the_save(tmp_path: Path) -> None:
    async def main() -> None:
        async with Disk(tmp_path) as disk:
            await disk.save(1, *entries(1, 1))
            disk.storage._mark.close()
            with pytest.raises(StorageError, match="record 2 could not be written"):
                await disk.save(1, *entries(2, 2))

    asyncio.run(main())


def test_close_waits_for_the_save_in_flight(tmp_path: Path) -> None:
    async def main() -> None:
        disk = Disk(tmp_path)
        async with disk:
            disk.storage.save(Save(1, HardState(7), entries(1, 50, size=5000)), nothing)
            disk.storage.close()

    asyncio.run(main())
    assert load(tmp_path).hard_state == HardState(7)


def test_closing_under_load_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node closes the storage in a thread, while the loop still turns and answers still come."""
    monkeypatch.setattr(log_module, "CHECKPOINT_PAGES", 1)
    surprises: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: surprises.append(context))
        async with Disk(tmp_path) as disk:
            number = 0
            busy = asyncio.Event()

            def go_on() -> None:
                nonlocal number
                number += 1
                if number == 20:
                    busy.set()
                disk.storage.save(Save(number, HardState(number), entries(number, number)), go_on)

            go_on()
            await busy.wait()
            await asyncio.to_thread(disk.storage.close)
            for _ in range(10):
                await asyncio.sleep(0)
            disk.storage.save(Save(0, HardState(99)), go_on)
            disk.storage.compact(1, go_on)
            assert disk.failures == []
            surprises.append(number)

    asyncio.run(main())
    (number,) = surprises
    assert isinstance(number, int)
    held = load(tmp_path).hard_state.current_term
    assert number - 1 <= held <= number


def test_an_answer_after_the_loop_has_ended_does_no_harm(tmp_path: Path) -> None:
    held = threading.Event()
    storage: list[SqliteStorage] = []

    async def main() -> None:
        disk = Disk(tmp_path)
        await disk.__aenter__()
        write_mark = disk.storage._write_mark

        def slow(seq: int, crc: int) -> BaseException | None:
            held.wait(60)
            return write_mark(seq, crc)

        disk.storage._write_mark = slow  # type: ignore[method-assign]
        disk.storage.save(Save(1, HardState(7)), nothing)
        storage.append(disk.storage)

    asyncio.run(main())
    held.set()
    storage[0].close()
    assert load(tmp_path).hard_state == HardState(7)


# --- Compaction and snapshots -----------------------------------------------------------------------------------------


def test_compaction_keeps_the_last_row_and_what_no_snapshot_covers(tmp_path: Path) -> None:
    async def act(disk: Disk) -> None:
        for index in range(1, 10):
            await disk.save(1, *entries(index, index))
        take_snapshot(disk.storage.snapshots, 6)
        await disk.compact(4)

    run(tmp_path, act)
    assert rows(tmp_path) == [*(f"{seq:020d}" for seq in range(4, 10)), "identity"]
    assert load(tmp_path) == Loaded(IDENTITY, HardState(1), snapshot(6), entries(7, 9))

    async def all_of_it(disk: Disk) -> None:
        await disk.save(2, vote="n2@00")
        take_snapshot(disk.storage.snapshots, 9)
        await disk.compact(10)

    run(tmp_path, all_of_it)
    assert rows(tmp_path) == [f"{10:020d}", "identity"]
    assert load(tmp_path) == Loaded(IDENTITY, HardState(2, "n2@00"), snapshot(9))

    async def go_on(disk: Disk) -> None:
        await disk.save(3, *entries(10, 11, term=3))

    run(tmp_path, go_on)
    assert load(tmp_path) == Loaded(IDENTITY, HardState(3), snapshot(9), entries(10, 11, term=3))


def test_saves_go_on_during_a_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "COMPACT_ROWS", 2)

    async def act(disk: Disk) -> None:
        for index in range(1, 21):
            await disk.save(1, *entries(index, index))
        take_snapshot(disk.storage.snapshots, 20)
        compacting = asyncio.create_task(disk.compact(21))
        for index in range(21, 26):
            await disk.save(1, *entries(index, index))
        await compacting

    run(tmp_path, act)
    assert rows(tmp_path)[0] >= f"{20:020d}"
    assert load(tmp_path) == Loaded(IDENTITY, HardState(1), snapshot(20), entries(21, 25))


def test_the_log_stays_bounded_under_endless_writes(tmp_path: Path) -> None:
    """Sizes after 20 rounds of writing and compacting, and after 20 more: nothing has grown."""
    sizes: list[int] = []

    async def act(disk: Disk) -> None:
        index = 0
        for round_number in range(1, 41):
            for _ in range(25):
                await disk.save(1, *entries(index + 1, index + 4, size=500))
                index += 4
            take_snapshot(disk.storage.snapshots, index)
            await disk.compact(disk.storage.snapshots.kept()[-1].snapshot.last_index + 1)
            if round_number % 20 == 0:
                sizes.append(size_of(tmp_path))

    run(tmp_path, act)
    assert sizes[1] <= sizes[0] + 64 * 1024
    assert len(rows(tmp_path)) <= 51
    assert len(load(tmp_path).entries) == 0


def test_truncated_rows_do_not_hold_up_compaction(tmp_path: Path) -> None:
    """The first row's tail was replaced: it counts only up to where the second row begins."""

    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 100))
        await disk.save(2, *entries(5, 9, term=2))
        take_snapshot(disk.storage.snapshots, 6, last_term=2)
        await disk.compact(5)

    run(tmp_path, act)
    assert rows(tmp_path) == [f"{2:020d}", "identity"]
    assert load(tmp_path) == Loaded(IDENTITY, HardState(2), snapshot(6, 2), entries(7, 9, term=2))


def test_a_crash_between_two_slices_of_a_compaction_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left begins with a row whose entries a later row replaced, from before its own first entry on."""
    monkeypatch.setattr(log_module, "COMPACT_ROWS", 1)
    crashed: list[Path] = []

    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 4))
        await disk.save(1, *entries(5, 8))
        await disk.save(2, *entries(3, 5, term=2))
        take_snapshot(disk.storage.snapshots, 2)
        compact_slice = disk.storage._compact_slice

        def and_crash(error: BaseException | None) -> None:
            crashed.append(tmp_path / f"crashed{len(crashed)}")
            shutil.copytree(tmp_path / "n1", crashed[-1])
            compact_slice(error)

        monkeypatch.setattr(disk.storage, "_compact_slice", and_crash)
        await disk.compact(3)

    run(tmp_path / "n1", act)
    expected = Loaded(IDENTITY, HardState(2), snapshot(2), entries(3, 5, term=2))
    assert [load(folder) for folder in crashed] == [expected] * 3
    assert load(tmp_path / "n1") == expected


@pytest.mark.parametrize("more", [(), entries(51, 52, term=3)], ids=["alone", "with entries"])
def test_an_adopted_snapshot_replaces_the_log_in_one_record(tmp_path: Path, more: tuple[Entry, ...]) -> None:
    sender = MemoryStorage()
    take_snapshot(sender.snapshots, 50, b"theirs", last_term=3)

    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 60))
        send(sender.snapshots, disk.storage.snapshots, snapshot(50, 3))
        assert disk.storage.snapshots.latest() is None, "received, but no save has adopted it"
        await disk.save(3, *more, base=snapshot(50, 3))
        latest = disk.storage.snapshots.latest()
        assert latest is not None
        assert latest.snapshot == snapshot(50, 3)

    run(tmp_path, act)
    assert load(tmp_path) == Loaded(IDENTITY, HardState(3), snapshot(50, 3), more)

    async def compact(disk: Disk) -> None:
        await disk.compact(51)
        assert b"".join(disk.storage.snapshots.read(50)) == b"theirs"

    run(tmp_path, compact)
    assert rows(tmp_path) == [f"{2:020d}", "identity"]


def test_a_received_snapshot_that_was_not_adopted_is_ignored_after_a_crash(tmp_path: Path) -> None:
    """Its file came first, then the crash: the log is still the old one, and its own snapshot is still there."""
    sender = MemoryStorage()
    for last_index in (50, 60, 70):
        take_snapshot(sender.snapshots, last_index, last_term=3)

    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 9))
        take_snapshot(disk.storage.snapshots, 4)
        await disk.compact(5)
        send(sender.snapshots, disk.storage.snapshots, snapshot(60, 3))
        send(sender.snapshots, disk.storage.snapshots, snapshot(70, 3))
        files = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
        assert files == [f"{4:020d}.snapshot", f"{70:020d}.snapshot"], "of those ahead of the log, the newest is enough"

    run(tmp_path, act)
    assert load(tmp_path) == Loaded(IDENTITY, HardState(1), snapshot(4), entries(5, 9))
    files = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert files == [f"{4:020d}.snapshot"], "nobody asks for it any more, and as another cluster's it would be wrong"


def test_a_received_snapshot_that_contradicts_the_log_is_not_used_unless_adopted(tmp_path: Path) -> None:
    sender = MemoryStorage()
    take_snapshot(sender.snapshots, 5, last_term=2)

    async def act(disk: Disk) -> None:
        await disk.save(1, *entries(1, 9))
        send(sender.snapshots, disk.storage.snapshots, snapshot(5, 2))

    run(tmp_path, act)
    assert load(tmp_path) == Loaded(IDENTITY, HardState(1), None, entries(1, 9))
