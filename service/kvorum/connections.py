"""Listeners that hold a bounded number of connections, and answer what is not HTTP with few bytes.

When one more connection arrives, the longest idle one is closed. A listener may give up others as well: see
:meth:`LimitedServer.make_room`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from operator import itemgetter
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import RateLimit

logger = logging.getLogger(__name__)


_ACCEPTING_TURNS = 2
"""An accepted connection has its transport in the next turn of the loop, and its protocol in the one after."""


class Site(web.TCPSite):
    """Listens at one address, and loses no connection when it ends.

    A server of asyncio that is closed in the turn in which it accepted a connection fails to make its transport, and
    the socket stays open until the garbage collector finds it.
    """

    async def stop(self) -> None:
        """Accept no more connections, wait for those that were accepted to be known to the server, and close."""
        if self._server is not None:
            loop = asyncio.get_running_loop()
            for listener in cast(asyncio.Server, self._server).sockets:
                loop.remove_reader(listener.fileno())
            for _ in range(_ACCEPTING_TURNS):
                await asyncio.sleep(0)
        await super().stop()


class LimitedServer(web.Server):
    """Makes a protocol per connection, and counts them.

    Args:
        handle: what takes the requests.
        counters: where malformed requests are counted.
        connections_max: returns how many connections there may be.
        options: aiohttp's.
    """

    def __init__(self, handle: Any, counters: Counters, *, connections_max: Callable[[], int], **options: Any) -> None:
        super().__init__(handle, **options)
        self.counters = counters
        self.malformed_log = RateLimit()
        self.bug_log = RateLimit()
        self._connections_max = connections_max
        self._idle: list[tuple[float, LimitedConnection]] = []
        """Connections that were idle when this was filled, the one that had been so longest last."""
        self.open: set[asyncio.Transport] = set()
        """The transports of all connections, those that are being closed as well."""
        self.is_over = False

    @property
    def connections_max(self) -> int:
        """How many connections there may be."""
        return self._connections_max()

    @property
    def is_full(self) -> bool:
        """Whether one more is too many."""
        return len(self._connections) >= self._connections_max()

    def make_room(self) -> bool:
        """Close a connection for a new one; return whether there was one to close."""
        return self.close_longest_idle()

    def close_longest_idle(self) -> bool:
        """Close the connection that has been without a request longest; return whether there was one."""
        for is_filled in (True, False):
            if not is_filled:
                connections = cast("list[LimitedConnection]", self.connections)
                idle = ((each.idle_since_s, each) for each in connections)
                self._idle = sorted(
                    ((since, each) for since, each in idle if since is not None), key=itemgetter(0), reverse=True
                )
            while self._idle:
                since_s, connection = self._idle.pop()
                if connection.idle_since_s == since_s:
                    connection.force_close()
                    return True
        return False

    async def shutdown(self, timeout: float | None = None) -> None:
        """Finish what is in hand, for so long; then no connection is left, whoever has not read all of its answer."""
        self.is_over = True
        await super().shutdown(timeout)
        # The library closes them, and a transport that is closed goes on sending what it holds.
        for transport in list(self.open):
            transport.abort()

    def malformed(self, error: HttpProcessingError) -> StreamResponse:
        """Return the answer to what is not HTTP. It repeats nothing of it."""
        return _LastAnswer(400, "the request is not well-formed HTTP/1.1\n")

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        return LimitedConnection(self, loop=asyncio.get_running_loop(), **self._kwargs)


class LimitedConnection(RequestHandler):
    """One connection, which is refused if it is one too many and none can be closed for it."""

    __slots__ = ("_limited_server", "_transport")

    def __init__(self, server: LimitedServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._limited_server = server
        self._transport: asyncio.Transport | None = None
        """The library forgets its own when it closes it."""

    @property
    def idle_since_s(self) -> float | None:
        """When it last had a request, on the loop's clock less a constant; None: it has one, or is being closed."""
        is_idle = self._waiter is not None and not self._waiter.done() and not self._force_close
        return self._next_keepalive_close_time if is_idle else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it."""
        server, transport = self._limited_server, cast(asyncio.Transport, transport)
        server.open.add(transport)
        self._transport = transport
        if not server.is_over and (not server.is_full or server.make_room()):
            super().connection_made(transport)
            return
        # Without a manager, connection_lost has nothing to undo.
        self._manager = None
        self._force_close = True
        if server.is_over:
            # It was accepted when the server was about to end.
            transport.abort()
        else:
            self.refuse(transport)
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        if self._transport is not None:
            self._limited_server.open.discard(self._transport)
            self._transport = None
        super().connection_lost(exc)

    def refuse(self, transport: asyncio.Transport) -> None:
        """Say why, before the connection is closed."""

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> StreamResponse:
        """Answer what is not HTTP, or what a handler failed on: with one line now and then, not one for each.

        Raises:
            ConnectionError: nobody is there to be answered, or the answer was begun.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was begun, and cannot be taken back")
        server = self._limited_server
        if isinstance(exc, HttpProcessingError):
            server.counters.malformed_requests += 1
            held_back = server.malformed_log.allow()
            if held_back is not None:
                kind = type(exc).__name__
                logger.warning(
                    "Refused malformed HTTP: %s from %s (%d more since the last such line)",
                    kind,
                    request.remote,
                    held_back,
                )
            return server.malformed(exc)
        held_back = server.bug_log.allow()
        if held_back is not None:
            logger.error(
                "Internal error while answering a request (%d more since the last such line)", held_back, exc_info=exc
            )
        return _LastAnswer(status, "a bug in Kvorum; see the log of the node\n")


class _LastAnswer(web.Response):
    """Ends the connection, and does not say what the listener is made of."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status=status, text=text)
        self.force_close()

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        del self.headers[hdrs.SERVER]
