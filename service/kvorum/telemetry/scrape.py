"""What one scrape sees: the node's own account of itself, and what a thread has found out about its disk.

Everything that may block (a folder's listing, ``statvfs``) is read in a thread by the sampler; a scrape only reads
plain attributes, so that it costs the event loop a few milliseconds and never waits for a disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import msgspec

from kvorum.status import NodeStatus
from kvorum.telemetry.counters import Counters


class ObservedConfig(Protocol):
    """The options that telemetry reads."""

    @property
    def data_dir(self) -> str | Path:
        """The folder whose size and free space are reported."""

    @property
    def metrics_log_interval_s(self) -> float:
        """Seconds between two lines in the log; 0: no lines."""

    @property
    def snapshot_entries(self) -> int:
        """A snapshot is due after this many entries: what an alert compares the log's length with."""


class ObservedNode(Protocol):
    """What telemetry asks of a node. The driver is one implementation, the tests' fake another."""

    counters: Counters

    @property
    def config(self) -> ObservedConfig:
        """The node's configuration."""

    def status(self) -> NodeStatus:
        """What the node says of itself."""


class DiskFacts(msgspec.Struct, frozen=True):
    """The data folder and its file system, at one moment."""

    files: tuple[tuple[str, int], ...]
    """(name, bytes), ordered: the files of the data folder, and each sub-folder as one."""
    free_bytes: int
    """What an unprivileged process may still write."""
    size_bytes: int
    """Of the whole file system."""


class Scrape(msgspec.Struct, frozen=True):
    """All that the instruments read; they read nothing else."""

    status: NodeStatus
    counters: Counters
    config: ObservedConfig
    disk: DiskFacts | None
    """None until the sampler has looked for the first time, and where the folder cannot be read."""
    build_revision: str


def read_disk(data_dir: str | Path) -> DiskFacts | None:
    """Return the sizes under ``data_dir`` and the free space around it; None if it cannot be read. Blocking."""
    try:
        usage = os.statvfs(data_dir)
        sizes = [(entry.name, _size(entry)) for entry in os.scandir(data_dir)]
    except OSError:
        return None
    files = tuple(sorted((name, size) for name, size in sizes if size is not None))
    return DiskFacts(files, usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize)


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the bytes of a file, or of all in a folder; None: who owns it lets nobody look (lost+found)."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return sum(_size(inner) or 0 for inner in os.scandir(entry.path))
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:  # Deleted between the listing and the look: it takes no room any more.
        return 0
    except PermissionError:
        return None
