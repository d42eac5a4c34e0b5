"""Durable names: what it takes to create a file or a folder so that a crash does not undo it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvorum.errors import StorageError

FOLDER_MODE = 0o700
FILE_MODE = 0o600


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an ``OSError`` into a :class:`StorageError` that says what was being done.

    Raises:
        StorageError: the body raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}") from error


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Open a folder, whose names ``os.fsync`` of the descriptor makes durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_folder(path: Path, descriptor: int | None = None) -> None:
    """Make the names in a folder durable; ``descriptor``: of the folder, if it is open."""
    if descriptor is not None:
        os.fsync(descriptor)
        return
    with opened_folder(path) as opened:
        os.fsync(opened)


def create_folder(path: Path) -> None:
    """Create a folder and its parents, durably; only its owner may read it."""
    missing = [level for level in (path, *path.parents) if not level.exists()]
    for level in reversed(missing):
        level.mkdir(FOLDER_MODE, exist_ok=True)
        sync_folder(level.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def check_not_world_writable(folder: Path) -> None:
    """Check that not everybody may put files into a folder, if it exists.

    A mount point is not checked: who mounts a volume sets its mode (0777 for an emptyDir), and decides who sees it.

    Raises:
        StorageError: everybody may.
    """
    with explained(f"cannot use the data folder {folder}"):
        if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH and not os.path.ismount(folder):
            raise StorageError(
                f"everybody on this machine may write to the data folder {folder}, and could replace the data: "
                f"run `chmod o-w {folder}` (a group may write to it), or use another folder"
            )


def create_file(path: Path) -> None:
    """Create an empty file that only its owner may read, unless it is there. SQLite gives ``-wal`` the same mode."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, FILE_MODE))


def replace_file(path: Path, data: bytes) -> None:
    """Give a file this content, durably: after a crash it has the old one or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, FILE_MODE)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)
