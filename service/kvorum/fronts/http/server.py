"""The listeners: aiohttp's HTTP/1.1 connections, with limits, and with an answer to malformed HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from kvorum.config import Config, split_address
from kvorum.fronts.http.dispatch import Dispatcher
from kvorum.fronts.http.health import RenderMetrics
from kvorum.fronts.http.problems import problem
from kvorum.fronts.http.response import Response
from kvorum.resolver import addresses_to_bind
from kvorum.service import Service
from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import RateLimit

logger = logging.getLogger(__name__)

_LINGERING_S = 2.0
"""How long the rest of a refused body is read and thrown away, so that the client gets to read the answer."""
_BACKLOG = 1024
_LINE_BYTES_MAX = 8190
"""Of the request line, and of each header. A key takes 3 KiB of it at most."""
_HEADERS_MAX = 128

Handle = Callable[[BaseRequest], Awaitable[Response]]


class ApiServer:
    """The HTTP side of one node: the client port, and the metrics port if it is another one.

    Args:
        service: what executes the requests.
        config: the node's.
        counters: where requests are counted.
        render_metrics: renders the answer to ``/metrics``; None: there is no such path.
        wrap: wraps the handling of each request (traces); None: nothing does, at no cost.
    """

    def __init__(
        self,
        service: Service,
        config: Config,
        counters: Counters,
        render_metrics: RenderMetrics | None = None,
        wrap: Callable[[Handle], Handle] | None = None,
    ) -> None:
        self._service = service
        self._config = config
        self._counters = counters
        self._render_metrics = render_metrics
        self._wrap = wrap
        self._dispatchers: list[Dispatcher] = []
        self._runners: list[web.ServerRunner] = []

    async def start(self) -> None:
        """Start to listen.

        Raises:
            OSError: a port is in use, or an address is not one of this machine.
        """
        config = self._config
        await self._listen(config.listen_client, health_only=False)
        if config.listen_metrics and config.listen_metrics != config.listen_client:
            await self._listen(config.listen_metrics, health_only=True)

    async def _listen(self, address: str, *, health_only: bool) -> None:
        config = self._config
        dispatcher = Dispatcher(self._service, config, self._counters, self._render_metrics, health_only=health_only)
        self._dispatchers.append(dispatcher)
        server = _HttpServer(
            dispatcher.handle if self._wrap is None else self._wrap(dispatcher.handle),
            self._counters,
            connections_max=config.connections_max,
            keepalive_timeout=config.keepalive_s,
        )
        runner = web.ServerRunner(server, shutdown_timeout=config.request_timeout_ms / 1000)
        self._runners.append(runner)
        await runner.setup()
        host, port = split_address(address)
        for each in await addresses_to_bind(host):
            await web.TCPSite(runner, each, port, backlog=_BACKLOG).start()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        return [address[:2] for runner in self._runners for address in runner.addresses]

    async def stop(self) -> None:
        """Stop listening, finish what is in flight, close the connections."""
        for runner in self._runners:
            await runner.cleanup()
        for dispatcher in self._dispatchers:
            await dispatcher.close()
        self._runners.clear()
        self._dispatchers.clear()


class _HttpServer(web.Server):
    """Makes a protocol per connection, and counts them."""

    def __init__(self, handle: Handle, counters: Counters, *, connections_max: int, **options: Any) -> None:
        super().__init__(
            # aiohttp asks of an answer what Response has, though it is not a StreamResponse.
            cast(Any, handle),
            access_log=None,
            auto_decompress=False,
            lingering_time=_LINGERING_S,
            max_line_size=_LINE_BYTES_MAX,
            max_field_size=_LINE_BYTES_MAX,
            max_headers=_HEADERS_MAX,
            **options,
        )
        self.counters = counters
        self.connections_max = connections_max
        self.malformed_log = RateLimit()
        self.full_log = RateLimit()

    @property
    def is_full(self) -> bool:
        return len(self._connections) >= self.connections_max

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)


class _Connection(RequestHandler):
    """One connection. Differs from aiohttp's in what it does with one too many, and with what is not HTTP."""

    __slots__ = ("_server",)

    def __init__(self, server: _HttpServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._server.is_full:
            self._refuse(cast(asyncio.Transport, transport))
        else:
            super().connection_made(transport)

    def _refuse(self, transport: asyncio.Transport) -> None:
        # Without a manager, connection_lost has nothing to undo.
        self._manager = None
        self._force_close = True
        response = problem("overloaded", f"too many connections (limit {self._server.connections_max})", close=True)
        self._server.counters.requests["other", response.status] += 1
        transport.write(response.render())
        transport.close()
        held_back = self._server.full_log.allow()
        if held_back is not None:
            logger.warning(
                "Refused a client connection: the limit of %d is reached (%d more)",
                self._server.connections_max,
                held_back,
            )

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> StreamResponse:
        """Answer what could not be parsed: a count and one line, rather than a traceback each time."""
        response = _malformed(exc)
        if isinstance(exc, ConnectionError):
            # The client hung up in the middle of its body: nobody is there to be answered.
            return cast(StreamResponse, response)
        self._server.counters.malformed_requests += 1
        self._server.counters.requests["other", response.status] += 1
        held_back = self._server.malformed_log.allow()
        if held_back is not None:
            kind = type(exc).__name__ if exc is not None else "unknown"
            logger.warning(
                "Refused malformed HTTP: %s from %s (%d more since the last such line)", kind, request.remote, held_back
            )
        return cast(StreamResponse, response)


def _malformed(error: BaseException | None) -> Response:
    too_many = isinstance(error, HttpProcessingError) and error.message.startswith("Too many headers")
    if too_many:
        return problem("head_too_large", "a request has too many headers", close=True, limit=_HEADERS_MAX)
    if isinstance(error, LineTooLong):
        return problem("head_too_large", "the request line or a header is too long", close=True, limit=_LINE_BYTES_MAX)
    return problem("malformed_http", "the request is not well-formed HTTP/1.1", close=True)
