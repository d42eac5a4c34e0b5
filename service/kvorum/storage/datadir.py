"""The data folder: the name of every file in it, its lock, and the protocols that replace its content as a whole.

::

    kvorum.db, -wal, -shm    the log
    mark                     a lower bound of the log's end (:mod:`kvorum.storage.high_water_mark`)
    addresses                where peers answered last (:mod:`kvorum.transport.addresses`)
    lock                     held while a node runs
    reserve                  bytes that are given up when the disk is full (:mod:`kvorum.storage.room`)
    place                    the namespace and the StatefulSet that the data belongs to; only in Kubernetes
    replaced-clusters        whose place this cluster took by recover or restore, until that is recorded in Kubernetes
    snapshots/               see :mod:`kvorum.storage.snapshots`
    force-new-cluster        asks the node to recover when it starts next
    removing                 says that the folder is being emptied: this member was removed
    removed/                 what the last removed incarnation left
    restored.tmp/            a restored backup, being built
    restored.staged/         a restored backup, complete and durable; nothing was moved for it yet
    restored/                the same, while what was here before is on its way to ``replaced``
    restoring/               the same, on its way up into the data folder
    replaced/                what was here before the restored backup

Each protocol is a sequence of steps, each of them durable before the next. After a crash at any point,
:func:`finish_interrupted` completes what was begun; what was not begun leaves no trace. All functions block.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvorum.errors import StorageLockedError, StorageReplacedError
from kvorum.storage.files import (
    FILE_MODE,
    FOLDER_MODE,
    check_not_world_writable,
    explained,
    replace_file,
    sync_folder,
)
from kvorum.storage.room import RESERVE

log = logging.getLogger("kvorum.storage")

DATABASE = "kvorum.db"
WRITE_AHEAD_LOG = "kvorum.db-wal"
MARK = "mark"
LOCK = "lock"
SNAPSHOTS = "snapshots"
PLACE = "place"
REPLACED_CLUSTERS = "replaced-clusters"
RECOVERY_REQUEST = "force-new-cluster"
_ACCEPT_OLDER_LOG = b"accept-older-log"
REMOVING = "removing"
REMOVED = "removed"
BUILDING = "restored.tmp"
STAGED = "restored.staged"
REPLACING = "restored"
MOVING = "restoring"
REPLACED = "replaced"

ANY_CLUSTER = "*"
"""In ``replaced-clusters``: whichever there was."""
_REPLACED_MAX = 64
_FACT_BYTES_MAX = 16 * 1024

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

_STAYS = frozenset({LOCK, RESERVE, "lost+found", BUILDING, STAGED, REPLACING, MOVING, REPLACED})
"""Names that no protocol moves."""

_OURS = _STAYS | {
    DATABASE,
    WRITE_AHEAD_LOG,
    "kvorum.db-shm",
    MARK,
    "addresses",
    SNAPSHOTS,
    PLACE,
    REPLACED_CLUSTERS,
    f"{PLACE}.tmp",
    f"{REPLACED_CLUSTERS}.tmp",
    RECOVERY_REQUEST,
    REMOVING,
    REMOVED,
}


class Lock:
    """One process a folder: an flock that ends with the process, however it ends.

    Raises:
        StorageLockedError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, FILE_MODE)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise StorageLockedError(
                f"another process holds the data folder {folder}: is a node already running?"
            ) from None

    def release(self) -> None:
        """Let another process have the folder."""
        os.close(self._descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder.

    Raises:
        StorageLockedError: another process holds it.
    """
    lock = Lock(folder)
    try:
        yield
    finally:
        lock.release()


class OpenFiles:
    """Files of the data folder that the node has open, remembered by inode, so that it notices when they are replaced.

    A process goes on writing to files whose names were removed, and nobody will ever read what it wrote.

    Args:
        folder: the data folder.
        names: of files in it; all of them exist.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._files = {name: _inode(folder / name) for name in names}

    def check(self) -> None:
        """Check that each name still leads to the same file. Blocks.

        Raises:
            StorageReplacedError: one does not.
        """
        for name, inode in self._files.items():
            try:
                found: tuple[int, int] | None = _inode(self._folder / name)
            except OSError as error:
                if error.errno not in _GONE:
                    # The name may well be right: a disk that fails is noticed by the next write.
                    continue
                found = None
            if found != inode:
                raise StorageReplacedError(
                    f"the data folder {self._folder} was deleted or replaced while this node was running: its file "
                    f"{name} is {'missing' if found is None else 'another one'}. What the node wrote since then is not "
                    "in the folder. Put the folder back before the next start if you can; an empty one makes a cluster "
                    "of one begin anew, and a node of a larger cluster join as a new member"
                )


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def holds_data(folder: Path) -> bool:
    """Tell whether the folder holds a node's data."""
    return (folder / DATABASE).exists()


def foreign_names(folder: Path) -> list[str]:
    """Return the names in the folder that no node gives its files, ordered; none if there is no folder. Blocks."""
    return sorted(path.name for path in folder.iterdir() if path.name not in _OURS) if folder.exists() else []


def finish_interrupted(folder: Path) -> None:
    """Complete what a crash interrupted; call it before the folder is opened.

    Raises:
        StorageLockedError: a node runs on the folder.
        StorageError: the disk refuses (call it again), or everybody may write to the folder.
    """
    check_not_world_writable(folder)
    finish_setting_aside(folder)
    install_staged(folder)


# --- A member that was removed ------------------------------------------------------------------------------------


def set_aside(folder: Path) -> None:
    """Move what is in the folder into its ``removed`` folder, in place of what an earlier removal left there.

    Raises:
        StorageLockedError: a node runs on the folder.
        StorageError: the disk refuses.
    """
    with explained(f"cannot move what {folder} holds to {folder / REMOVED}"), locked(folder):
        if (folder / REMOVED).exists():
            shutil.rmtree(folder / REMOVED)
        (folder / REMOVING).touch(mode=FILE_MODE)
        sync_folder(folder)
        _finish_setting_aside(folder)


def finish_setting_aside(folder: Path) -> None:
    """Complete :func:`set_aside` if it was begun.

    Raises:
        StorageLockedError: a node runs on the folder.
        StorageError: the disk refuses.
    """
    with explained(f"cannot move what a removed member left to {folder / REMOVED}"):
        if not (folder / REMOVING).exists():
            return
        with locked(folder):
            _finish_setting_aside(folder)


def _finish_setting_aside(folder: Path) -> None:
    if not (folder / REMOVING).exists():
        # Another process finished it before this one had the lock.
        return
    _move_all(folder, folder / REMOVED, besides=frozenset({REMOVED, REMOVING}))
    (folder / REMOVING).unlink()
    sync_folder(folder)


# --- A backup that is restored ------------------------------------------------------------------------------------


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give an empty folder to build a node's data in; stage it when the body ends, discard it when the body raises.

    What is staged takes the place of the folder's content at :func:`install_staged`. Until then nothing else changes.

    Raises:
        StorageError: the disk refuses.
    """
    with explained(f"cannot restore into {folder}"):
        shutil.rmtree(folder / BUILDING, ignore_errors=True)
        (folder / BUILDING).mkdir(mode=FOLDER_MODE)
        try:
            yield folder / BUILDING
            (folder / BUILDING / LOCK).unlink()
            sync_folder(folder / BUILDING)
        except BaseException:
            shutil.rmtree(folder / BUILDING, ignore_errors=True)
            raise
        _remove(folder / STAGED)
        (folder / BUILDING).rename(folder / STAGED)
        sync_folder(folder)


def install_staged(folder: Path) -> bool:
    """Put what is staged in the place of what the folder holds, if anything is; return whether it was.

    What the folder holds is moved to ``replaced``; what an earlier restore had moved there is removed before. Of a
    restore that was interrupted and then repeated nothing is kept but what it had moved to ``replaced``.

    Raises:
        StorageLockedError: a node runs on the folder.
        StorageError: the disk refuses; call it again.
    """
    staged, replacing, moving = folder / STAGED, folder / REPLACING, folder / MOVING
    if not (staged.exists() or replacing.exists() or moving.exists()):
        return False
    with explained(f"cannot restore into {folder}"), locked(folder):
        if moving.exists() and (staged.exists() or replacing.exists()):
            _move_all(folder, moving)
            _remove(moving)
        if staged.exists():
            if replacing.exists():
                _move_all(folder, folder / REPLACED)
                _remove(replacing)
            if any(path.name not in _STAYS for path in folder.iterdir()):
                _remove(folder / REPLACED)
            staged.rename(replacing)
            sync_folder(folder)
        if replacing.exists():
            _move_all(folder, folder / REPLACED)
            replacing.rename(moving)
            sync_folder(folder)
        _move_all(moving, folder)
        moving.rmdir()
        sync_folder(folder)
    if any((folder / REPLACED).iterdir()):
        log.warning("Restored a backup; the previous data was moved to %s", folder / REPLACED)
    else:
        log.warning("Restored a backup")
    return True


def _remove(path: Path) -> None:
    """Remove a folder, durably, if it exists."""
    if path.exists():
        shutil.rmtree(path)
        sync_folder(path.parent)


def _move_all(source: Path, target: Path, *, besides: frozenset[str] = frozenset()) -> None:
    """Move what is in a folder; called again after a crash, it moves the rest."""
    target.mkdir(mode=FOLDER_MODE, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name not in _STAYS and path.name not in besides:
            path.rename(target / path.name)
    sync_folder(target)
    sync_folder(source)


# --- A survivor that shall recover --------------------------------------------------------------------------------


def request_recovery(folder: Path, *, accept_older_log: bool = False) -> None:
    """Ask the node that runs on this folder to recover when it starts next.

    Args:
        folder: the node's data folder.
        accept_older_log: also if another member has a more up-to-date log.

    Raises:
        StorageError: the folder is not there, or cannot be written to.
    """
    with explained(f"cannot write {folder / RECOVERY_REQUEST}"):
        descriptor = os.open(folder / RECOVERY_REQUEST, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, FILE_MODE)
        try:
            if accept_older_log:
                os.write(descriptor, _ACCEPT_OLDER_LOG)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(folder)


def accepts_older_log(folder: Path) -> bool:
    """Tell whether the request says that a more up-to-date log elsewhere does not matter.

    Raises:
        StorageError: the disk refuses.
    """
    with explained(f"cannot use {folder / RECOVERY_REQUEST}"), (folder / RECOVERY_REQUEST).open("rb") as file:
        return file.read(len(_ACCEPT_OLDER_LOG)) == _ACCEPT_OLDER_LOG


def is_recovery_requested(folder: Path) -> bool:
    """Tell whether :func:`request_recovery` was called and not withdrawn.

    Raises:
        StorageError: the disk refuses.
    """
    with explained(f"cannot use {folder / RECOVERY_REQUEST}"):
        return (folder / RECOVERY_REQUEST).exists()


def withdraw_recovery_request(folder: Path) -> None:
    """Forget the request: it was carried out.

    Raises:
        StorageError: the disk refuses.
    """
    with explained(f"cannot use {folder / RECOVERY_REQUEST}"):
        (folder / RECOVERY_REQUEST).unlink()
        sync_folder(folder)


# --- Where the data belongs, and what it takes the place of -------------------------------------------------------


def place_of_data(folder: Path) -> str:
    """Return the place that the data in the folder belongs to; empty: none is recorded.

    Raises:
        StorageError: the disk refuses.
    """
    return _read_fact(folder, PLACE)


def record_place(folder: Path, place: str) -> None:
    """Record the place that the data belongs to, unless one is recorded.

    Raises:
        StorageError: the disk refuses.
    """
    with explained(f"cannot write {folder / PLACE}"):
        if place and not (folder / PLACE).exists():
            replace_file(folder / PLACE, f"{place}\n".encode())


def forget_place(folder: Path) -> None:
    """Let the data belong to the place where it is started next.

    Raises:
        StorageError: the disk refuses.
    """
    _remove_fact(folder, PLACE)


def replaced_clusters(folder: Path) -> frozenset[str]:
    """Return the ids of the clusters whose place this one took; ``ANY_CLUSTER`` among them: of whichever there was.

    Raises:
        StorageError: the disk refuses.
    """
    return frozenset(_read_fact(folder, REPLACED_CLUSTERS).split())


def note_replaced_cluster(folder: Path, cluster_id: str) -> None:
    """Note that the folder's cluster takes the place of this one, and of those noted before.

    Raises:
        StorageError: the disk refuses.
    """
    noted = _read_fact(folder, REPLACED_CLUSTERS).split()
    with explained(f"cannot write {folder / REPLACED_CLUSTERS}"):
        kept = list(dict.fromkeys([*noted, cluster_id]))[-_REPLACED_MAX:]
        replace_file(folder / REPLACED_CLUSTERS, "".join(f"{noted}\n" for noted in kept).encode())


def forget_replaced_clusters(folder: Path) -> None:
    """Forget them: what took their place is recorded.

    Raises:
        StorageError: the disk refuses.
    """
    _remove_fact(folder, REPLACED_CLUSTERS)


def _read_fact(folder: Path, name: str) -> str:
    with explained(f"cannot read {folder / name}"):
        try:
            with (folder / name).open("rb") as file:
                return file.read(_FACT_BYTES_MAX).decode(errors="replace").strip()
        except FileNotFoundError:
            return ""


def _remove_fact(folder: Path, name: str) -> None:
    with explained(f"cannot remove {folder / name}"):
        if (folder / name).exists():
            (folder / name).unlink()
            sync_folder(folder)
