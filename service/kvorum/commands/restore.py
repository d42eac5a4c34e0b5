"""``kvorum restore``: a data folder out of a backup; the beginning of a new cluster.

The node becomes a cluster of one with the backup's state, under a new cluster id and a new incarnation, so that nobody
of an older cluster is ever mistaken for a member of it. Nodes with empty disks are then added as always.

What the data folder held before is put aside in it, and not deleted. The steps, each safe at any crash::

    restored.tmp/    being built                  kill: built anew by the next `kvorum restore`
    restored/        complete, durable            kill, or --at-next-start: goes on at the node's next start
    replaced/        what was there before moves here
    restoring/       `restored`, once that is done: its files move up
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kvorum.config import Config
from kvorum.errors import ConfigError, StorageCorrupt
from kvorum.identity import Identity
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.messages import Configuration, HardState, Member, Save, Snapshot
from kvorum.storage.folder import (
    BUILDING,
    DATABASE,
    LOCK,
    MOVING,
    REPLACED,
    RESTORE_NAMES,
    STAGED,
    Lock,
    create_folder,
    explained,
    sync_folder,
)
from kvorum.storage.offline import offline
from kvorum.storage.snapshot_format import read_header, read_payload

log = logging.getLogger("kvorum.commands.restore")

BUMP_REVISION = 1_000_000_000
"""How much further the revision goes on by default: none of a write that the backup lacks is given away again."""


def stage(
    stream: BinaryIO, config: Config, *, bump_revision: int, replace: bool, running: bool = False
) -> tuple[Identity, Store]:
    """Build what the node will hold, beside what its data folder holds now; return who it will be, and the state.

    Blocking. Nothing else changes until :func:`finish`.

    Args:
        stream: the backup; it need not be seekable.
        config: the node's: its name, its data folder and its advertised addresses.
        bump_revision: what is added to the revision.
        replace: go on although the folder holds a node's data.
        running: a node may be running on the folder.

    Raises:
        StorageLocked: a node is running on the folder, and ``running`` is not set.
        ConfigError: the folder holds data and ``replace`` is not set.
        StorageCorrupt: the file is no backup, or is damaged.
        StorageError: the disk refuses.
    """
    folder = Path(config.data_dir)
    if (folder / DATABASE).exists() and not replace:
        raise ConfigError(
            f"{folder} holds a node's data already; with --replace it is put aside in {folder / REPLACED}"
        )
    with explained(f"cannot restore into {folder}"):
        create_folder(folder)
        if not running:
            Lock(folder).release()
        shutil.rmtree(folder / BUILDING, ignore_errors=True)
        (folder / BUILDING).mkdir(mode=0o700)
        try:
            snapshot, store = _read(stream, folder / BUILDING)
            store.revision += bump_revision
            identity = asyncio.run(_build(folder / BUILDING, config, snapshot, store))
            (folder / BUILDING / LOCK).unlink()
            sync_folder(folder / BUILDING)
        except BaseException:
            shutil.rmtree(folder / BUILDING, ignore_errors=True)
            raise
        for earlier in (STAGED, REPLACED):
            if (folder / earlier).exists():
                shutil.rmtree(folder / earlier)
        (folder / BUILDING).rename(folder / STAGED)
        sync_folder(folder)
    return identity, store


def finish(data_dir: str) -> bool:
    """Put the staged data in the place of what the folder holds, if there is any; return whether there was.

    Blocking; before the folder is opened.

    Raises:
        StorageLocked: a node runs on the folder.
        StorageError: the disk refuses; call it again.
    """
    folder = Path(data_dir)
    if not (folder / STAGED).exists() and not (folder / MOVING).exists():
        return False
    with explained(f"cannot restore into {folder}"), _locked(folder):
        if (folder / STAGED).exists():
            _move_all(folder, folder / REPLACED)
            (folder / STAGED).rename(folder / MOVING)
            sync_folder(folder)
        _move_all(folder / MOVING, folder)
        (folder / MOVING).rmdir()
        sync_folder(folder)
    log.warning("restored a backup; what was here before is in %s", folder / REPLACED)
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = Lock(folder)
    try:
        yield
    finally:
        lock.release()


def _move_all(source: Path, target: Path) -> None:
    """Move what is in a folder; begun again after a crash, it moves the rest."""
    target.mkdir(mode=0o700, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name not in RESTORE_NAMES and path.name not in (LOCK, "lost+found"):
            path.rename(target / path.name)
    sync_folder(target)
    sync_folder(source)


def _read(stream: BinaryIO, scratch: Path) -> tuple[Snapshot, Store]:
    """Return what the backup describes, verified as a whole."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        # A pipe has no size, and the hash stands at the end.
        shutil.copyfileobj(stream, file)
        size_bytes = file.tell()
        file.seek(0)
        try:
            snapshot, header = read_header(file)
            restorer = Restorer()
            for chunk in read_payload(file, header, size_bytes):
                restorer.feed(chunk)
            return snapshot, restorer.finish()
        except StorageCorrupt as error:
            raise StorageCorrupt(f"this is no usable backup ({size_bytes} bytes): {error}") from error


async def _build(folder: Path, config: Config, snapshot: Snapshot, store: Store) -> Identity:
    """Write a node's data folder that begins with the snapshot."""
    identity = Identity(config.name, secrets.token_hex(8), secrets.token_hex(16))
    member = Member(identity.node_id, True, config.advertise_peer_url, config.advertise_client_url)
    alone = Snapshot(snapshot.last_index, snapshot.last_term, Configuration((member,)))
    async with offline(folder) as new:
        new.storage.write_identity(identity)
        writer = new.storage.snapshots.create(alone)
        cut = store.begin_snapshot()
        while (chunk := cut.next_chunk()) is not None:
            writer.write(chunk)
        cut.close()
        writer.commit()
        await new.save(Save(1, HardState(snapshot.last_term, None), (), alone))
    return identity
