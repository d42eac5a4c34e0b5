"""The listeners: aiohttp's HTTP/1.1 connections, with limits, and with an answer to malformed HTTP."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse
from aiohttp.web_protocol import _ErrInfo

from kvorum.config import Config, split_address
from kvorum.config.resources import descriptor_limit, memory_limit_bytes
from kvorum.connections import LimitedConnection, LimitedServer, Site
from kvorum.errors import NotServingError
from kvorum.fronts.http.dispatch import Dispatcher
from kvorum.fronts.http.forward import CONNECTIONS_MAX
from kvorum.fronts.http.problems import problem
from kvorum.fronts.http.request import Bodies
from kvorum.fronts.http.response import Fed, Response
from kvorum.resolver import addresses_to_bind
from kvorum.service import Service
from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import RateLimit

logger = logging.getLogger(__name__)

_LINGERING_S = 2.0
"""How long the rest of a refused body is read and thrown away, so that the client gets to read the answer."""
_BACKLOG = 1024
_BACKLOG_MIN = 64
_DESCRIPTORS_RESERVED = 128
"""For files, peers, and connections that are about to be closed."""
_HEALTH_CONNECTIONS_MAX = 64
_LINE_BYTES_MAX = 8190
"""Of the request line, and of each header. A key takes 3 KiB of it at most."""
_HEADERS_MAX = 128
_HEAD_BYTES_MAX = 32 * 1024
"""Of all headers together."""
_INFLIGHT_BYTES_MAX = 64 * 1024 * 1024
_READ_BYTES = 64 * 1024
"""What one connection may have in memory and unread, twice."""

Handle = Callable[[BaseRequest], Awaitable[Response]]


class ApiServer:
    """The HTTP side of one node: the client port, and the metrics port if it is another one.

    Args:
        service: what executes the requests.
        config: the node's.
        counters: where requests are counted.
        wrap: wraps the handling of each request (traces); None: nothing does, at no cost.
    """

    def __init__(
        self,
        service: Service,
        config: Config,
        counters: Counters,
        wrap: Callable[[Handle], Handle] | None = None,
    ) -> None:
        self._service = service
        self._config = config
        self._counters = counters
        self._wrap = wrap
        self.bodies = Bodies(
            config.inflight_bytes_max or max(_inflight_bytes_max(), 2 * config.body_bytes_max), config.body_timeout_s
        )
        self._dispatchers: list[Dispatcher] = []
        self._runners: list[web.ServerRunner] = []

    async def start(self) -> None:
        """Start to listen.

        Raises:
            OSError: a port is in use, or an address is not one of this machine.
        """
        config = self._config
        descriptors = max(descriptor_limit() - _DESCRIPTORS_RESERVED, 8)
        has_health_port = bool(config.listen_metrics) and config.listen_metrics != config.listen_client
        # Probes and scrapes find room there however many clients there are.
        health_max = min(_HEALTH_CONNECTIONS_MAX, descriptors // 4) if has_health_port else 0
        connections_max = min(config.connections_max, descriptors - health_max)
        if connections_max < config.connections_max:
            logger.warning(
                "The limit of open files allows only %d client connections (connections_max is %d)",
                connections_max,
                config.connections_max,
            )
        await self._listen(config.listen_client, connections_max, health_only=False)
        if has_health_port:
            await self._listen(config.listen_metrics, health_max, health_only=True)

    async def _listen(self, address: str, connections_max: int, *, health_only: bool) -> None:
        config = self._config
        dispatcher = Dispatcher(
            self._service,
            config,
            self._counters,
            self.bodies,
            forwarded_max=min(CONNECTIONS_MAX, max(connections_max // 4, 1)),
            health_only=health_only,
        )
        self._dispatchers.append(dispatcher)
        server = _HttpServer(
            dispatcher.handle if self._wrap is None else self._wrap(dispatcher.handle),
            self._counters,
            connections_max=connections_max,
            keepalive_timeout=config.keepalive_s,
        )
        runner = web.ServerRunner(server, shutdown_timeout=config.request_timeout_ms / 1000)
        self._runners.append(runner)
        await runner.setup()
        host, port = split_address(address)
        # As many connections as wait are accepted at once, before any is refused.
        backlog = min(_BACKLOG, max(_BACKLOG_MIN, (descriptor_limit() - connections_max) // 2))
        for each in await addresses_to_bind(host):
            await Site(runner, each, port, backlog=backlog).start()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        return [address[:2] for runner in self._runners for address in runner.addresses]

    def close_after_answers(self) -> None:
        """Go on answering, and end each connection with its next answer: this node is about to stop.

        Watches end now: their clients resume them at another node.
        """
        for dispatcher in self._dispatchers:
            dispatcher.close_after_answers = True
        self._end_watches()

    async def stop(self) -> None:
        """Stop listening, finish what is in flight, close the connections. Watches are told, and not waited for."""
        self._end_watches()
        for runner in self._runners:
            await runner.cleanup()
        for dispatcher in self._dispatchers:
            await dispatcher.close()
        self._runners.clear()
        self._dispatchers.clear()

    def _end_watches(self) -> None:
        error = NotServingError(f"{self._config.name} is stopping: resume the watch at another node")
        for runner in self._runners:
            for connection in runner.server.connections if runner.server is not None else ():
                if isinstance(connection, _Connection) and connection.feed is not None:
                    connection.feed.stop(error)


def _inflight_bytes_max() -> int:
    limit_bytes = memory_limit_bytes()
    return _INFLIGHT_BYTES_MAX if limit_bytes is None else min(_INFLIGHT_BYTES_MAX, limit_bytes // 8)


class _HttpServer(LimitedServer):
    """Makes a protocol per connection, and counts them."""

    def __init__(self, handle: Handle, counters: Counters, *, connections_max: int, **options: Any) -> None:
        super().__init__(
            # aiohttp asks of an answer what Response has, though it is not a StreamResponse.
            handle,
            counters,
            connections_max=lambda: connections_max,
            access_log=None,
            auto_decompress=False,
            lingering_time=_LINGERING_S,
            max_line_size=_LINE_BYTES_MAX,
            max_field_size=_LINE_BYTES_MAX,
            max_headers=_HEADERS_MAX,
            read_bufsize=_READ_BYTES,
            **options,
        )
        self.full_log = RateLimit()

    def malformed(self, error: HttpProcessingError) -> StreamResponse:
        """Return the answer to what could not be parsed."""
        response = _malformed(error)
        self.counters.requests["other", response.status] += 1
        return cast(StreamResponse, response)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)


class _InlineLoop:
    """The event loop, as a connection sees it: a request that no other one follows needs no task of its own.

    aiohttp makes a task for each request and waits for it: 10 of the 65 us that it takes to receive a put and answer
    it. Decision record 0011.

    Args:
        loop: the event loop.
        messages: the connection's requests that have arrived and are not begun.
    """

    __slots__ = ("_loop", "_messages", "call_at", "create_future", "time")

    def __init__(self, loop: asyncio.AbstractEventLoop, messages: deque[Any]) -> None:
        self._loop = loop
        self._messages = messages
        self.call_at = loop.call_at
        self.create_future = loop.create_future
        self.time = loop.time

    def create_task(self, request: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """Return what aiohttp awaits at once. Between requests that arrived together the loop gets a turn."""
        return self._loop.create_task(request) if self._messages else request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


class _HeadTooLargeError(HttpProcessingError):
    code = 431
    message = "the headers are too large"


class _Connection(LimitedConnection):
    """One connection. Differs from aiohttp's in what it does with one too many, and with what is not HTTP.

    aiohttp bounds each header and their number, but not the head as a whole.
    """

    __slots__ = ("_head_bytes", "_is_half_closed", "_is_head_refused", "_latest_body", "_server", "feed")

    def __init__(self, server: _HttpServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._latest_body: StreamReader = EMPTY_PAYLOAD
        self._head_bytes = 0
        """How much has arrived of a head that is not complete; of what came with an earlier request, nothing."""
        self._is_head_refused = False
        self._is_half_closed = False
        self.feed: Fed | None = None
        """The watch, or the observation, that this connection carries."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it; its requests run in the connection's own task."""
        super().connection_made(transport)
        if sys.version_info < (3, 12):
            # The task that was just made sees it. From Python 3.12 on, aiohttp starts the tasks of requests eagerly.
            self._loop = cast(asyncio.AbstractEventLoop, _InlineLoop(self._loop, self._messages))

    @property
    def is_last_answer(self) -> bool:
        """Whether the client sends no more requests and has none that is not answered, but for the current one."""
        return self._is_half_closed and not self._messages

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's returns bool | None
        """Keep the connection open while complete requests wait for their answers: the client may still read.

        A watch ends: it would never notice a client that is gone, while nothing happens.
        """
        if self.feed is not None:
            self.feed.lost()
            return False
        is_idle = not self._messages and (self._waiter is not None or not self._request_count)
        self._is_half_closed = not is_idle and self._latest_body.is_eof()
        return self._is_half_closed

    def resume_writing(self) -> None:
        """The client has read most of what was written."""
        super().resume_writing()
        if self.feed is not None:
            self.feed.has_room()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        if self.feed is not None:
            self.feed.lost()
        super().connection_lost(exc)
        # Both refer to this connection. Without them, all of it is freed at once, and not by a collection.
        self._keepalive_handle, self._latest_body = None, EMPTY_PAYLOAD

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; refuse a head that is too long, whether it is complete or not."""
        if self._is_head_refused:
            return
        count, body = self._request_count, self._latest_body
        body_bytes = -1 if body.is_eof() else body.total_bytes
        super().data_received(data)
        arrived = self._request_count - count
        if arrived and self._messages:
            if self._head_bytes + len(data) > _HEAD_BYTES_MAX:
                self._check_heads(arrived)
            self._head_bytes = 0
            self._latest_body = self._messages[-1][1]
        elif body.is_eof():
            self._head_bytes += len(data) if body_bytes < 0 else len(data) - (body.total_bytes - body_bytes)
            if self._head_bytes > _HEAD_BYTES_MAX:
                self._messages.append(self._refused_head())
                if self._waiter is not None and not self._waiter.done():
                    self._waiter.set_result(None)

    def _check_heads(self, arrived: int) -> None:
        for position in range(len(self._messages) - arrived, len(self._messages)):
            message, _ = self._messages[position]
            if isinstance(message, _ErrInfo):
                continue
            if sum(len(name) + len(value) for name, value in message.raw_headers) > _HEAD_BYTES_MAX:
                self._messages[position] = self._refused_head()

    def _refused_head(self) -> tuple[_ErrInfo, StreamReader]:
        """Return what stands for the request; nothing is read after it."""
        self._is_head_refused = True
        error = _HeadTooLargeError()
        return _ErrInfo(error.code, error, error.message), EMPTY_PAYLOAD

    def refuse(self, transport: asyncio.Transport) -> None:
        """Answer one connection too many."""
        response = problem("overloaded", f"too many connections (limit {self._server.connections_max})", close=True)
        self._server.counters.requests["other", response.status] += 1
        transport.write(response.render())
        held_back = self._server.full_log.allow()
        if held_back is not None:
            logger.warning(
                "Refused a client connection: the limit of %d is reached (%d more)",
                self._server.connections_max,
                held_back,
            )


def _malformed(error: HttpProcessingError) -> Response:
    if error.message.startswith("Too many headers"):
        return problem("head_too_large", "a request has too many headers", close=True, limit=_HEADERS_MAX)
    if isinstance(error, _HeadTooLargeError):
        return problem("head_too_large", "the headers are too large together", close=True, limit=_HEAD_BYTES_MAX)
    if isinstance(error, LineTooLong):
        return problem("head_too_large", "the request line or a header is too long", close=True, limit=_LINE_BYTES_MAX)
    return problem("malformed_http", "the request is not well-formed HTTP/1.1", close=True)
