"""``kv snapshot save`` and ``kv snapshot status``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from kvorum_client.backup import Backup, describe
from kvorum_client.cli_arguments import add_output
from kvorum_client.cli_output import print_json, print_table, size_text, warn
from kvorum_client.client import Client
from kvorum_client.errors import InvalidArgumentError

PROGRESS_S = 0.2
STALE = "no quorum confirmed this backup: writes that were acknowledged before it may be missing"


def fill(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands of the group."""
    saving = add("save", save, "save all acknowledged writes to a file for `kvorum restore`")
    saving.add_argument("file", metavar="FILE", help="file to write; - is stdout")
    saving.add_argument("--force", action="store_true", help="overwrite an existing file")
    saving.add_argument(
        "--stale",
        action="store_true",
        help="save what one node has applied, also without a quorum; acknowledged writes may be missing",
    )
    add_output(saving)
    showing = add("status", status, "check a backup's hash and show what it holds; asks no node")
    showing.add_argument("file", metavar="FILE", help="file to read; - is stdin")
    add_output(showing)


async def save(client: Client, options: argparse.Namespace) -> int:
    """``kv snapshot save FILE|-``."""
    with _target(options.file, options.force) as file, _Progress() as progress:

        def write(chunk: bytes, size_bytes: int) -> None:
            options.has_begun = lambda: True
            file.write(chunk)
            progress.show(len(chunk), size_bytes)

        backup = await client.backup(write, stale=options.stale)
        file.flush()
    if options.output == "json":
        # With the backup itself on stdout, what is said of it goes elsewhere.
        print_json(backup, sys.stderr.buffer if options.file == "-" else sys.stdout.buffer)
    else:
        text = f"{options.file}: {backup.keys} keys at revision {backup.revision}, {size_text(backup.size_bytes)}"
        print(text, file=sys.stderr if options.file == "-" else sys.stdout)
    if backup.stale:
        warn(STALE)
    return 0


async def status(client: Client, options: argparse.Namespace) -> int:
    """``kv snapshot status FILE|-``; asks no node."""
    backup = await asyncio.to_thread(_describe, options.file)
    if options.output == "json":
        print_json(backup)
    else:
        written = datetime.fromtimestamp(backup.time_ms / 1000).astimezone().isoformat(timespec="seconds")
        rows = [
            ["REVISION", "KEYS", "SESSIONS", "INDEX", "TERM", "LOG TIME", "SIZE", "SHA256"],
            [*_figures(backup), written, size_text(backup.size_bytes), backup.sha256],
        ]
        print_table(rows)
    if backup.stale:
        warn(STALE)
    return 0


def _describe(name: str) -> Backup:
    if name == "-" and sys.stdin is None:
        raise InvalidArgumentError("stdin is closed")
    try:
        with sys.stdin.buffer if name == "-" else open(name, "rb") as stream:
            return describe(stream)
    except OSError as error:
        raise InvalidArgumentError(f"{name}: {error.strerror}") from None


def _figures(backup: Backup) -> list[str]:
    return [str(n) for n in (backup.revision, backup.keys, backup.sessions, backup.last_index, backup.last_term)]


@contextlib.contextmanager
def _target(name: str, force: bool) -> Iterator[BinaryIO]:
    """Yield where a backup goes; a file appears under its name only when it is whole and durable."""
    if name == "-":
        if sys.stdout.isatty():
            raise InvalidArgumentError("cannot write a backup to a terminal: redirect the output, or name a file")
        yield sys.stdout.buffer
        return
    path = Path(name)
    try:
        if path.exists() and not force:
            raise InvalidArgumentError(f"{name} exists; use --force to overwrite it")
        # In a folder that others may write to, a name that can be guessed may be a link of somebody else.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:50]}.", suffix=".part", dir=path.parent)
        part = Path(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        # The error itself names the temporary file.
        raise InvalidArgumentError(f"{name}: {error.strerror or error}") from None


class _Progress:
    """One line on a terminal that grows with what has arrived; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._wanted = sys.stderr.isatty()
        self._done_bytes = 0
        self._shown_at = 0.0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._wanted and self._shown_at:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def show(self, more_bytes: int, size_bytes: int) -> None:
        self._done_bytes += more_bytes
        now = time.monotonic()
        if self._wanted and now - self._shown_at >= PROGRESS_S:
            self._shown_at = now
            share = 100 * self._done_bytes // max(size_bytes, 1)
            sys.stderr.write(f"\r{share:3d} %  {size_text(self._done_bytes)} of {size_text(size_bytes)}\x1b[K")
            sys.stderr.flush()
