"""``kvorum restore``: a data folder out of a backup; the beginning of a new cluster.

The node becomes a cluster of one with the backup's state, under a new cluster id and a new incarnation, so that nobody
of an older cluster is ever mistaken for a member of it. Nodes with empty disks are then added as always.

What the data folder held before is put aside in it, and not deleted; :mod:`kvorum.storage.datadir` has the steps.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kvorum.config import Config
from kvorum.errors import ConfigError, StorageCorruptError
from kvorum.identity import Identity
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.messages import Configuration, HardState, Member, Save, Snapshot
from kvorum.storage.datadir import (
    ANY_CLUSTER,
    REPLACED,
    Lock,
    foreign_names,
    holds_data,
    note_replaced_cluster,
    staging,
)
from kvorum.storage.files import create_folder, explained
from kvorum.storage.offline import offline
from kvorum.storage.snapshot_format import is_stale, read_header, read_payload

BUMP_REVISION = 2**30
"""How much further the revision goes on by default: none of a write that the backup lacks is given away again."""


class Staged(NamedTuple):
    """What a node will be when it starts next."""

    identity: Identity
    store: Store
    is_stale: bool
    """No quorum confirmed the backup."""


def stage(stream: BinaryIO, config: Config, *, bump_revision: int, replace: bool, running: bool = False) -> Staged:
    """Build what the node will hold, beside what its data folder holds now; return who it will be, and the state.

    Blocking. Nothing else changes until :func:`kvorum.storage.datadir.install_staged`.

    Args:
        stream: the backup; it need not be seekable.
        config: the node's: its name, its data folder and its advertised addresses.
        bump_revision: what is added to the revision. From feature level 4 on the history begins there.
        replace: go on although the folder holds a node's data.
        running: a node may be running on the folder.

    Raises:
        StorageLockedError: a node is running on the folder, and ``running`` is not set.
        ConfigError: the folder holds data and ``replace`` is not set, or holds other files and no node's data.
        StorageCorruptError: the file is no backup, or is damaged.
        StorageError: the disk refuses.
    """
    folder = Path(config.data_dir)
    if holds_data(folder) and not replace:
        raise ConfigError(f"{folder} already holds the data of a node; --replace moves that to {folder / REPLACED}")
    with explained(f"cannot restore into {folder}"):
        if not holds_data(folder) and (foreign := foreign_names(folder)):
            raise ConfigError(
                f"{folder} is not a node's data folder: it holds {', '.join(map(repr, foreign[:3]))}"
                f"{' and more' if len(foreign) > 3 else ''}; give an empty folder, or one that does not exist"
            )
        create_folder(folder)
        if not running:
            Lock(folder).release()
    with staging(folder) as building:
        snapshot, store, stale = _read(stream, building)
        store.bump_revision(bump_revision)
        identity = asyncio.run(_build(building, config, snapshot, store))
    return Staged(identity, store, stale)


def _read(stream: BinaryIO, scratch: Path) -> tuple[Snapshot, Store, bool]:
    """Return what the backup describes, verified as a whole, and whether it is stale."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        # A pipe has no size, and the hash stands at the end.
        shutil.copyfileobj(stream, file)
        size_bytes = file.tell()
        file.seek(0)
        try:
            snapshot, header = read_header(file)
            restorer = Restorer(snapshot.configuration)
            for chunk in read_payload(file, header, size_bytes):
                restorer.feed(chunk)
            return snapshot, restorer.finish(), is_stale(header)
        except StorageCorruptError as error:
            raise StorageCorruptError(f"this is not a valid backup ({size_bytes} bytes): {error}") from error


async def _build(folder: Path, config: Config, snapshot: Snapshot, store: Store) -> Identity:
    """Write a node's data folder that begins with the snapshot."""
    identity = Identity(config.name, secrets.token_hex(8), secrets.token_hex(16))
    member = Member(identity.node_id, True, config.advertise_peer_url, config.advertise_client_url)
    alone = Snapshot(snapshot.last_index, snapshot.last_term, Configuration((member,)))
    async with offline(folder) as new:
        new.storage.write_identity(identity)
        writer = new.storage.snapshots.create(alone)
        store.keep_members(alone.configuration)
        cut = store.begin_snapshot()
        while (chunk := cut.next_chunk()) is not None:
            writer.write(chunk)
        cut.close()
        writer.commit()
        await new.save(Save(1, HardState(snapshot.last_term, None), (), alone))
    # The cluster that the folder belonged to, and that of the release, end with this.
    note_replaced_cluster(folder, ANY_CLUSTER)
    return identity
