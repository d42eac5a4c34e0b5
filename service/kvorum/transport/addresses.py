"""The last addresses at which peers answered under their names, kept across restarts for times without a name server.

An address that is out of date does no harm: whoever answers there is asked for its identity on every connection.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from pathlib import Path

import msgspec

log = logging.getLogger("kvorum.transport")

FILE = "addresses"
NAMES_MAX = 256
FILE_BYTES_MAX = 128 * 1024


class Addresses:
    """Names of peers, and the address of each.

    Args:
        path: the file; it is written in a thread, and not synced, since a node does without it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._addresses: dict[str, str] = {}
        self._writing: asyncio.Task[None] | None = None
        self._is_changed = False

    def load(self) -> None:
        """Read the file, if there is one. Blocks."""
        try:
            with self._path.open("rb") as file:
                read = msgspec.json.decode(file.read(FILE_BYTES_MAX), type=dict[str, str])
            self._addresses = {name: str(ipaddress.ip_address(read[name])) for name in list(read)[:NAMES_MAX]}
        except FileNotFoundError:
            return
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("cannot read %s, the last known addresses of peers: %s", self._path, error)

    def get(self, name: str) -> str | None:
        """Return the last address of a name, if one is known."""
        return self._addresses.get(name)

    def remember(self, name: str, address: str) -> None:
        """Note that the right peer answered there; write the file if that is new."""
        if self._addresses.get(name) == address or _is_address(name) or not _is_address(address):
            return
        self._addresses.pop(name, None)
        while len(self._addresses) >= NAMES_MAX:
            del self._addresses[next(iter(self._addresses))]
        self._addresses[name] = address
        self._is_changed = True
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="peer addresses")

    async def close(self) -> None:
        """Stop; a disk that does not answer is not waited for."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=1.0)
            self._writing.cancel()

    async def _write(self) -> None:
        while self._is_changed:
            self._is_changed = False
            try:
                await asyncio.to_thread(_replace, self._path, msgspec.json.encode(self._addresses))
            except OSError as error:
                log.warning("cannot write %s, the last known addresses of peers: %s", self._path, error)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.rename(path)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
