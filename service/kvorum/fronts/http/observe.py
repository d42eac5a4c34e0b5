"""``GET /v1/elections/{name}?watch=true``: who is elected, line after line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol, cast

import msgspec
from aiohttp.web import BaseRequest

import kvorum_wire
from kvorum.errors import CallerError, LockError
from kvorum.fronts.http.history import text_or_base64
from kvorum.fronts.http.problems import problem_of
from kvorum.fronts.http.response import Fed
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import GetLock, Watch, prefix_end
from kvorum.service.results import EventBatch, LockHolder, WatchStart
from kvorum.service.results import Watch as Watching
from kvorum_wire import leases as wire

HEARTBEAT_S = 10.0
"""Proxies close a connection that is silent for a minute."""

READ_S = 10.0
"""How long a client may take to read what is waiting for it."""

_encode = msgspec.json.Encoder().encode


class _FedConnection(Protocol):
    feed: Fed | None


class Observation:
    """A body with a line for each change of who is elected, and of the value.

    A client that reads slowly sees the latest one and misses those in between: nothing is kept for it.

    Args:
        service: what executes the requests.
        start: a watch of the queue.
        name: of the election.
    """

    def __init__(self, service: Service, start: WatchStart, name: bytes) -> None:
        self._execute = service.execute
        self._start = start
        self._name = name
        self._changed = asyncio.Event()
        self._error: CallerError | None = None
        self._is_gone = False

    async def run(self, request: BaseRequest) -> None:
        """Write the lines until the watch ends, or the client is gone or does not read.

        Raises:
            ConnectionError: the client is gone, or does not read.
        """
        connection = cast(_FedConnection, request.protocol)
        connection.feed = self
        try:
            async with aclosing(self._lines()) as lines:
                async for line in lines:
                    await _write(request, line)
        finally:
            connection.feed = None

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        """Yield the lines; the last one says why there are no more."""
        watch: Watching | None = None
        shown: LockHolder | None = None
        is_first = True
        try:
            watch = self._start.open(self)
            while self._error is None and not self._is_gone:
                self._changed.clear()
                revision, holder = await self._leader()
                if is_first or _identity(holder) != _identity(shown):
                    yield _encode(wire.LeaderLine(revision, holder_of(holder))) + b"\n"
                    shown, is_first = holder, False
                while not await self._has_changed():
                    yield b"\n"
            if self._error is not None:
                raise self._error
        except CallerError as error:
            yield _encode(kvorum_wire.WatchEnd(problem_of(error))) + b"\n"
        finally:
            if watch is not None:
                watch.close()

    async def _leader(self) -> tuple[int, LockHolder | None]:
        try:
            state = await self._execute(ANONYMOUS, GetLock("election", self._name))
        except LockError as error:
            return error.facts["revision"], None
        return state.revision, state.holder

    async def _has_changed(self) -> bool:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                return await self._changed.wait()
        except TimeoutError:
            return False

    # --- The connection -----------------------------------------------------------------------------------------

    def has_room(self) -> None:
        """Nothing is kept that could be written now."""

    def lost(self) -> None:
        """The client is gone, or about to go."""
        self._is_gone = True
        self._changed.set()

    def stop(self, error: CallerError) -> None:
        """End the observation, and say why."""
        self.end(error)

    # --- The sink of the watch ----------------------------------------------------------------------------------

    is_full = False
    """What it keeps does not grow."""

    def take(self, batch: EventBatch) -> None:
        """Somebody came or went, or said something else."""
        self._changed.set()

    def end(self, error: CallerError) -> None:
        """The watch is over."""
        self._error = error
        self._changed.set()


def watch_of(prefix: bytes, timeout_ms: int | None) -> Watch:
    """Return the request for the watch of a queue."""
    return Watch(prefix, prefix_end(prefix), timeout_ms=timeout_ms)


def holder_of(holder: LockHolder | None) -> wire.LockHolder | None:
    """Return a place as this front writes it."""
    if holder is None:
        return None
    value = text_or_base64(holder.value) if holder.value else (None, None)
    return wire.LockHolder(f"{holder.lease:x}", holder.fencing_token, holder.remaining_ms, *value)


async def _write(request: BaseRequest, line: bytes) -> None:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    transport.write(line)
    if not request.protocol.writing_paused:
        return
    try:
        async with asyncio.timeout(READ_S):
            await request.writer.drain()
    except TimeoutError:
        transport.abort()
        raise ConnectionResetError("the client does not read its answers") from None


def _identity(holder: LockHolder | None) -> tuple[int, bytes] | None:
    return None if holder is None else (holder.fencing_token, holder.value)
