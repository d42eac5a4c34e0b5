"""How one terminal tells the ``kvorum local`` of another what to do with one of its nodes.

The running cluster listens at a Unix socket in its data folder. A request is a line, ``ACTION NAME``; its answer is a
line, ``STATUS TEXT``, with the exit status of the command.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

ACTIONS = ("start", "stop", "kill", "wipe")
SOCKET = "local.sock"
DEADLINE_S = 60.0
_LINE_BYTES_MAX = 4096

Handle = Callable[[str, str], Awaitable[tuple[int, str]]]
"""Carries out an action on the node of this name; returns the exit status and what to say."""


def ask(data_dir: str, action: str, name: str) -> tuple[int, str]:
    """Have the cluster that runs in this folder do something; return the exit status and what it says.

    Raises:
        OSError: none runs there.
    """
    with _connect(data_dir) as connection, connection.makefile("rw") as stream:
        connection.settimeout(DEADLINE_S)
        stream.write(f"{action} {name}\n")
        stream.flush()
        status, _, text = stream.readline(_LINE_BYTES_MAX).strip().partition(" ")
    return (int(status), text) if status.isdigit() else (1, "the cluster ended before it answered")


def is_taken(data_dir: str) -> bool:
    """Tell whether a cluster runs in this folder."""
    try:
        _connect(data_dir).close()
    except OSError:
        return False
    return True


async def listen(data_dir: str, handle: Handle) -> asyncio.Server:
    """Listen for requests.

    Raises:
        OSError: the folder cannot have a socket (its path is too long, for example).
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            action, _, name = (await reader.readline()).decode("utf-8", "replace").strip().partition(" ")
            status, text = await handle(action, name)
            writer.write(f"{status} {text}\n".encode())
            await writer.drain()
        except (ConnectionError, ValueError):
            pass  # It hung up, or sent a line without an end.
        finally:
            writer.close()

    os.makedirs(data_dir, exist_ok=True)
    before = os.umask(0o077)
    try:
        return await asyncio.start_unix_server(answer, _path(data_dir), limit=_LINE_BYTES_MAX)
    finally:
        os.umask(before)


def _connect(data_dir: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(_path(data_dir))
    except BaseException:
        connection.close()
        raise
    return connection


def _path(data_dir: str) -> str:
    # The path of a Unix socket has at most 107 bytes.
    path = str(Path(data_dir) / SOCKET)
    return min(path, os.path.relpath(path), key=len)
