"""`kvorum restore` on real data folders: a backup is the beginning of another cluster, whatever interrupts it."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from node.local_cluster import LocalCluster, Put, running
from waiting import until

from kvorum.commands import restore
from kvorum.config import Config, resolve
from kvorum.errors import ConfigError, OverloadedError, StorageCorruptError, StorageLockedError
from kvorum.kv.commands import PutResult
from kvorum.node.backup import Backups
from kvorum.storage import datadir
from kvorum.storage.datadir import REPLACED, Lock


async def backed_up(cluster: LocalCluster) -> bytes:
    """Return a backup, as the node gives it to whoever asks."""
    leader = await cluster.leader()
    await leader.read_barrier(5000)
    backup = await leader.begin_backup()
    try:
        return b"".join([chunk async for chunk in backup.chunks()])
    finally:
        backup.close()


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A backup of three nodes that hold a=1 (revision 1), b=2 (revision 3), and the session of a client."""

    async def scenario() -> bytes:
        async with running(tmp_path_factory.mktemp("source")) as cluster:
            await cluster.put(b"a", b"1")
            await cluster.put(b"b", b"x")
            leader = await cluster.leader()
            await leader.propose(Put(b"b", b"2", client_id="client", sequence=1), 5000)
            return await backed_up(cluster)

    return asyncio.run(scenario())


def config_for(folder: Path, name: str = "n1") -> Config:
    return resolve(Config(name=name, data_dir=str(folder / name)), host_name=name)


def restored(backup: bytes, folder: Path, bump_revision: int = 1000) -> None:
    restore.stage(io.BytesIO(backup), config_for(folder), bump_revision=bump_revision, replace=True)
    assert datadir.install_staged(folder / "n1")


async def served(folder: Path) -> dict[str, Any]:
    """Start a node on the folder; return what it is and holds once it leads."""
    cluster = LocalCluster(folder, 1)
    try:
        await cluster.start("n1")
        leader = await cluster.leader()
        records = {key: record for key in (b"a", b"b") if (record := leader.store.get(key))}
        put = await leader.propose(Put(b"c", b"3"), 5000)
        again = await leader.propose(Put(b"b", b"2", client_id="client", sequence=1), 5000)
        assert isinstance(put, PutResult)
        return {
            "values": {key: record.value for key, record in records.items()},
            "revisions": {key: record.mod_revision for key, record in records.items()},
            "next": put.revision,
            "retry": again,
            "cluster": leader.identity.cluster_id,
            "voters": leader.raft.configuration.voters(),
        }
    finally:
        await cluster.close()


def test_a_backup_begins_a_new_cluster_with_all_that_was_acknowledged(backup: bytes, tmp_path: Path) -> None:
    restored(backup, tmp_path)

    found = asyncio.run(served(tmp_path))

    assert found["values"] == {b"a": b"1", b"b": b"2"}
    assert found["revisions"] == {b"a": 2, b"b": 4}
    assert found["next"] == 4 + 1000 + 1, "a revision that was seen after the backup would be given away again"
    assert found["retry"] == PutResult(4, 3, 4, 2), "the retry of a write from before the backup was applied again"
    assert len(found["voters"]) == 1


def test_nodes_with_empty_disks_join_what_was_restored(backup: bytes, tmp_path: Path) -> None:
    restored(backup, tmp_path)

    async def scenario() -> None:
        cluster = LocalCluster(tmp_path, 2)
        try:
            await cluster.start("n1", "n2")
            first = cluster.nodes["n1"]
            await until("n1 leads alone", lambda: first.raft.can_change_membership)
            # Where it is now differs from what `restore` wrote by the peer URL only.
            wanted = first.config.advertise_peer_url
            await until("its address is published", lambda: first.raft.configuration.members[0].peer_url == wanted)
            await until("that is committed", lambda: first.raft.can_change_membership)
            config = cluster.nodes["n2"].config
            await first.add_member("n2", config.advertise_peer_url, config.advertise_client_url, 5000)
            await cluster.converge()
            await first.promote_member("n2", 5000)
            record = cluster.nodes["n2"].store.get(b"b")
            assert record is not None
            assert record.value == b"2"
        finally:
            await cluster.close()

    asyncio.run(scenario())


def test_two_restores_of_one_backup_are_two_clusters(backup: bytes, tmp_path: Path) -> None:
    restored(backup, tmp_path)
    first = asyncio.run(served(tmp_path))["cluster"]
    restored(backup, tmp_path)

    assert asyncio.run(served(tmp_path))["cluster"] != first


def test_what_was_there_before_is_put_aside_and_could_be_used_again(backup: bytes, tmp_path: Path) -> None:
    async def other() -> None:
        async with running(tmp_path, 1) as cluster:
            await cluster.put(b"precious", b"data")

    asyncio.run(other())
    with pytest.raises(ConfigError, match="--replace"):
        restore.stage(io.BytesIO(backup), config_for(tmp_path), bump_revision=0, replace=False)
    restored(backup, tmp_path)
    assert asyncio.run(served(tmp_path))["values"] == {b"a": b"1", b"b": b"2"}

    async def before() -> bytes | None:
        cluster = LocalCluster(tmp_path / "aside", 1)
        try:
            await cluster.start("n1")
            record = (await cluster.leader()).store.get(b"precious")
            return record.value if record else None
        finally:
            await cluster.close()

    (tmp_path / "aside").mkdir()
    shutil.copytree(tmp_path / "n1" / REPLACED, tmp_path / "aside" / "n1")
    assert asyncio.run(before()) == b"data"


class Killed(BaseException):
    """Ends a restore at one of its steps."""


def killed_after(steps: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run ``act``, and kill it before its ``steps``-th rename or removal; tell whether it got so far."""
    left = steps
    rename, rmtree = Path.rename, shutil.rmtree

    def step() -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1

    def counted(self: Path, target: Path) -> Path:
        step()
        return rename(self, target)

    def counted_removal(path: Path, **options: Any) -> None:
        step()
        # A kill in the middle of a removal leaves the folder, and some of what it held.
        for each in sorted(path.iterdir())[:1]:
            rmtree(each) if each.is_dir() else each.unlink()
        step()
        rmtree(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        patch.setattr(shutil, "rmtree", counted_removal)
        try:
            act()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_something_else_is_not_restored_into(replace: bool, backup: bytes, tmp_path: Path) -> None:
    """A mistyped --data-dir, or the folder above those of the nodes, was emptied, and its files deleted later."""
    folder = tmp_path / "n1"
    for name in ("n2", "n3"):
        (folder / name).mkdir(parents=True)
        (folder / name / datadir.DATABASE).write_bytes(b"precious")

    with pytest.raises(ConfigError, match="is not a node's data folder: it holds 'n2', 'n3'; give an empty folder"):
        restore.stage(io.BytesIO(backup), config_for(tmp_path), bump_revision=1, replace=replace)

    assert sorted(path.name for path in folder.iterdir()) == ["n2", "n3"]
    assert not datadir.install_staged(folder)


def test_a_restore_into_an_empty_folder_says_nothing_of_data_that_was_moved(
    backup: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    restored(backup, tmp_path)
    assert "Restored a backup" in caplog.text and "moved" not in caplog.text
    restored(backup, tmp_path)
    assert f"the previous data was moved to {tmp_path / 'n1' / REPLACED}" in caplog.text


def test_a_restore_that_was_killed_anywhere_is_finished_at_the_next_start(
    backup: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def other() -> None:
        async with running(tmp_path, 1) as cluster:
            await cluster.put(b"precious", b"data")

    asyncio.run(other())
    original = tmp_path / "original"
    shutil.copytree(tmp_path / "n1", original)
    data_dir = str(tmp_path / "n1")
    files = sorted(path.name for path in original.iterdir() if path.name not in ("lock", "reserve"))
    step = 0
    while True:
        shutil.rmtree(data_dir)
        shutil.copytree(original, data_dir)
        restore.stage(io.BytesIO(backup), config_for(tmp_path), bump_revision=0, replace=True)
        if not killed_after(step, lambda: datadir.install_staged(Path(data_dir)), monkeypatch):
            break
        # The next start is killed at its first step as well.
        killed_after(1, lambda: datadir.install_staged(Path(data_dir)), monkeypatch)
        while datadir.install_staged(Path(data_dir)):
            pass
        assert asyncio.run(served(tmp_path))["values"] == {b"a": b"1", b"b": b"2"}, f"killed before step {step}"
        aside = sorted(path.name for path in (tmp_path / "n1" / REPLACED).iterdir())
        assert aside == files, f"killed before step {step}"
        step += 1
    assert step > len(files), "the loop ended before the restore had moved anything"


def test_a_restore_that_is_repeated_after_it_was_killed_keeps_the_data_that_was_there_first(
    backup: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def other() -> None:
        async with running(tmp_path, 1) as cluster:
            await cluster.put(b"precious", b"data")

    asyncio.run(other())
    original = tmp_path / "original"
    shutil.copytree(tmp_path / "n1", original)
    data_dir = tmp_path / "n1"
    files = sorted(path.name for path in original.iterdir() if path.name not in ("lock", "reserve"))

    def aside() -> list[str]:
        assert not [path for path in data_dir.iterdir() if path.name.startswith("restor")], "a restore is not finished"
        return sorted(path.name for path in (data_dir / REPLACED).iterdir())

    def stage() -> None:
        restore.stage(io.BytesIO(backup), config_for(tmp_path), bump_revision=0, replace=True)

    def install_killed_after(steps: int, begin: Path) -> bool:
        shutil.rmtree(data_dir)
        shutil.copytree(begin, data_dir)
        return killed_after(steps, lambda: datadir.install_staged(data_dir), monkeypatch)

    stage()
    once, twice = tmp_path / "once", tmp_path / "twice"
    shutil.copytree(data_dir, once)
    step = 0
    while install_killed_after(step, once):
        stage()
        shutil.rmtree(twice, ignore_errors=True)
        shutil.copytree(data_dir, twice)
        again = 0
        # The repeat is killed at each of its steps as well.
        while install_killed_after(again, twice):
            assert datadir.install_staged(data_dir)
            assert aside() == files, (step, again)
            again += 1
        assert aside() == files, step
        assert asyncio.run(served(tmp_path))["values"] == {b"a": b"1", b"b": b"2"}, f"killed before step {step}"
        step += 1
    assert step > len(files), "the loop ended before the restore had moved anything"


def test_a_staged_restore_leaves_what_an_earlier_one_replaced_until_it_is_installed(
    backup: bytes, tmp_path: Path
) -> None:
    restored(backup, tmp_path)
    restored(backup, tmp_path)
    before = sorted(path.name for path in (tmp_path / "n1" / REPLACED).iterdir())

    restore.stage(io.BytesIO(backup), config_for(tmp_path), bump_revision=0, replace=True)

    assert sorted(path.name for path in (tmp_path / "n1" / REPLACED).iterdir()) == before
    assert before


@pytest.mark.parametrize("moved", ["nothing", "the old data", "the backup as well"])
def test_what_an_earlier_version_left_half_restored_is_finished(moved: str, backup: bytes, tmp_path: Path) -> None:
    """0.1.0 removed ``replaced/`` while it staged, and called what was staged ``restored``."""
    restored(backup, tmp_path)
    folder = tmp_path / "n1"
    restore.stage(io.BytesIO(backup), config_for(tmp_path), bump_revision=0, replace=True)
    shutil.rmtree(folder / REPLACED)
    (folder / datadir.STAGED).rename(folder / "restored")
    (folder / REPLACED).mkdir()
    names = sorted(path.name for path in folder.iterdir() if path.name in {"kvorum.db", "mark", "snapshots"})
    if moved != "nothing":
        (folder / "mark").rename(folder / REPLACED / "mark")
    if moved == "the backup as well":
        for name in {*names} - {"mark"}:
            (folder / name).rename(folder / REPLACED / name)
        (folder / "restored").rename(folder / "restoring")
        (folder / "restoring" / "mark").rename(folder / "mark")

    assert datadir.install_staged(folder)

    assert {*names} <= {path.name for path in (folder / REPLACED).iterdir()}
    assert asyncio.run(served(tmp_path))["values"] == {b"a": b"1", b"b": b"2"}


def test_a_removal_leaves_a_staged_restore_alone(backup: bytes, tmp_path: Path) -> None:
    restore.stage(io.BytesIO(backup), config_for(tmp_path), bump_revision=0, replace=True)
    datadir.set_aside(tmp_path / "n1")

    assert datadir.install_staged(tmp_path / "n1")
    assert asyncio.run(served(tmp_path))["values"] == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "hash does not match"),
        (lambda data: data[: len(data) // 2], "truncated|hash does not match|damaged"),
        (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:], "not a valid backup"),
        (lambda data: b"", "not a snapshot file"),
        (lambda data: b"SQLite format 3\0" + data, "not a snapshot file"),
        (lambda data: data + b"more", "hash does not match"),
    ],
)
def test_a_damaged_backup_changes_nothing(
    damage: Callable[[bytes], bytes], words: str, backup: bytes, tmp_path: Path
) -> None:
    with pytest.raises(StorageCorruptError, match=words):
        restore.stage(io.BytesIO(damage(backup)), config_for(tmp_path), bump_revision=0, replace=False)

    assert not datadir.install_staged(tmp_path / "n1")
    assert [path.name for path in (tmp_path / "n1").iterdir() if path.name != "lock"] == []


def test_a_node_that_runs_is_not_replaced_under_its_feet(backup: bytes, tmp_path: Path) -> None:
    config = config_for(tmp_path)
    Path(config.data_dir).mkdir()
    lock = Lock(Path(config.data_dir))
    try:
        with pytest.raises(StorageLockedError):
            restore.stage(io.BytesIO(backup), config, bump_revision=0, replace=True)
        restore.stage(io.BytesIO(backup), config, bump_revision=0, replace=True, running=True)
        with pytest.raises(StorageLockedError):
            datadir.install_staged(Path(config.data_dir))
    finally:
        lock.release()
    assert datadir.install_staged(Path(config.data_dir))


def test_without_a_staged_restore_nothing_is_done(tmp_path: Path) -> None:
    assert not datadir.install_staged(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_backup_holds_what_was_written_while_an_older_snapshot_was_being_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            await cluster.put(b"a", b"1")
            leader = await cluster.leader()
            leader.parts.snapshots.begin()
            await cluster.put(b"b", b"2")
            applied_index = leader.store.applied_index
            backup = await leader.begin_backup()
            assert backup.last_index >= applied_index
            backup.close()

    asyncio.run(scenario())


def test_backups_are_limited_and_a_closed_one_makes_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            await cluster.put(b"a", b"1")
            leader = await cluster.leader()
            backups = Backups(
                leader.parts.state, leader.parts.snapshots, leader.ports.storage.snapshots, leader.ports.threads
            )
            first, second = await backups.begin(), await backups.begin()
            with pytest.raises(OverloadedError, match="2 backups are already being read"):
                await backups.begin()
            first.close()
            first.close()
            (await backups.begin()).close()
            second.close()

    asyncio.run(scenario())


def test_a_backup_stays_readable_when_newer_snapshots_have_taken_its_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            await cluster.put(b"a", b"1")
            leader = await cluster.leader()
            backup = await leader.begin_backup()
            for number in range(3):
                await cluster.put(b"a", str(number).encode())
                await leader.parts.snapshots.begin()
            data = b"".join([chunk async for chunk in backup.chunks()])
            backup.close()
            assert len(data) == backup.size_bytes
            assert data[-32:].hex() == backup.sha256

    asyncio.run(scenario())


def test_the_identity_is_a_new_one(backup: bytes, tmp_path: Path) -> None:
    identity, store, _ = restore.stage(io.BytesIO(backup), config_for(tmp_path), bump_revision=7, replace=False)

    assert identity.name == "n1"
    assert msgspec.structs.astuple(identity)[1:] not in {("", ""), ()}
    assert (len(store), store.revision, store.floor) == (2, 11, 11)
