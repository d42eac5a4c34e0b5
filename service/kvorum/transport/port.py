"""The peer port of one node: its server, its links to the others, and the HTTP session that they share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from aiohttp.http_exceptions import InvalidHeader
from aiohttp.typedefs import Handler, Middleware

from kvorum.config import Config, KnownHosts, split_address
from kvorum.connections import LimitedServer, Site
from kvorum.errors import InvariantViolatedError
from kvorum.raft.messages import Message, NodeId
from kvorum.resolver import Resolver, addresses_to_bind
from kvorum.telemetry.counters import Counters
from kvorum.transport.addresses import FILE, Addresses
from kvorum.transport.interface import NodeHandler
from kvorum.transport.server import PeerServer
from kvorum.transport.settings import Dialling
from kvorum.transport.transport import DNS_CACHE_S, Transport

CONNECT_TIMEOUT_S = 5.0
_STREAM_SILENCE_MIN_S = 10.0

STRANGERS_MAX = 16
"""So many connections there may be besides one of each member: short requests of members, joiners, and anybody.

A new connection takes the place of one of these when all are taken: anybody may hold one, and a member must get in.
"""


def stream_silence_s(election_timeout_ms: float) -> float:
    """Return after how long, in seconds, a stream without a frame is taken for dead."""
    return max(10 * election_timeout_ms / 1000, _STREAM_SILENCE_MIN_S)


class PeerPort:
    """The real :class:`kvorum.node.ports.Peers`. Made inside a running event loop.

    Args:
        config: where to listen, and what to say of ourselves.
        counters: where messages and failures are counted.
        random: spreads out reconnections.
    """

    def __init__(self, config: Config, counters: Counters, random: Random) -> None:
        self._config = config
        self._counters = counters
        self._hosts = KnownHosts(config)
        self._handler: NodeHandler | None = None
        self._members = len(config.expected_members())
        self._server: PeerServer | None = None
        self._session: aiohttp.ClientSession | None = None
        self._addresses = Addresses(Path(config.data_dir) / FILE)
        self._closing = contextlib.AsyncExitStack()
        dialling = Dialling(
            lambda: self._started().identity,
            config.advertise_peer_url,
            config.bootstrap_token,
            self._open_session,
            counters,
            random,
            lambda sender, messages: self._started().on_messages(sender, messages),
            answered=self._addresses.remember,
            start=lambda: self._started().start_id,
            marks_of=lambda node: self._started().marks_of(node),
            on_marks=lambda node, marks, url: self._started().on_marks(node, marks, url),
            client_url=config.advertise_client_url,
        )
        configured = config.expected_urls()
        self._transport = transport = Transport(dialling, lambda node: self._started().on_broken(node), configured)
        # Handed on as they are.
        self.remove_stranger = transport.remove_stranger
        self.url_of = transport.url_of
        self.hello = transport.hello
        self.snapshot_chunk = transport.snapshot_chunk
        self.state_hash = transport.state_hash
        self.suspect = transport.suspect

    def _started(self) -> NodeHandler:
        if self._handler is None:
            raise InvariantViolatedError("the peer port was used before it was started")
        return self._handler

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # No connection is used twice: one that a wrong DNS answer led to another node would be kept by every
                # hello and refusal on it, and its name would not be resolved again.
                connector=aiohttp.TCPConnector(
                    resolver=Resolver(self._addresses.get), ttl_dns_cache=DNS_CACHE_S, limit=0, force_close=True
                ),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S),
                trace_configs=[_refusing_redirects()],
            )
        return self._session

    # --- Life ---------------------------------------------------------------------------------------------------

    async def start(self, handler: NodeHandler) -> None:
        """Listen, on behalf of ``handler``. What is opened last is closed first.

        Raises:
            OSError: the port cannot be had.
        """
        config = self._config
        self._handler = handler
        await asyncio.to_thread(self._addresses.load)
        silence_s = stream_silence_s(config.election_timeout_ms)
        self._server = server = PeerServer(handler, self._counters, config.bootstrap_token, silence_s)
        server.app.middlewares.append(_only_known(self._hosts))
        server.app.on_response_prepare.append(_say_less)
        self._closing.push_async_callback(self._close_outgoing)
        runner = _Runner(server, self._counters, lambda: self._members + STRANGERS_MAX)
        self._closing.push_async_callback(runner.cleanup)
        self._closing.push_async_callback(server.close)
        await runner.setup()
        host, port = split_address(config.listen_peer)
        for address in await addresses_to_bind(host):
            site = Site(runner, address, port)
            await site.start()
            self._closing.push_async_callback(site.stop)

    async def close(self) -> None:
        """Stop listening, and close every connection. Idempotent."""
        await self._closing.aclose()

    async def _close_outgoing(self) -> None:
        await self._transport.close()
        if self._session is not None:
            await self._session.close()
        await self._addresses.close()

    # --- The others ---------------------------------------------------------------------------------------------

    def set_members(self, urls: Mapping[NodeId, str]) -> None:
        """Keep a stream to each of these members; see :meth:`Transport.set_members`."""
        self._members = max(len(urls) + 1, len(self._config.expected_members()))
        self._hosts.learn(urls.values())
        self._transport.set_members(urls, self._server.callers if self._server is not None else ())

    def set_alternatives(self, node: NodeId, urls: Sequence[str]) -> None:
        """Try a member also at these URLs; see :meth:`Transport.set_alternatives`."""
        self._transport.set_alternatives(node, urls)

    def add_stranger(self, node: NodeId, url: str) -> None:
        """Keep a way to answer a node that called; see :class:`Transport`."""
        takes_answers, start = False, ""
        if self._server is not None:
            takes_answers, start = self._server.takes_answers(node), self._server.start_of(node)
        self._transport.add_stranger(node, url, takes_answers=takes_answers, start=start)

    def send(self, messages: Iterable[Message]) -> None:
        """Send messages; to one that we do not call, on the stream with which it calls us."""
        for message in self._transport.send(messages):
            if self._server is not None:
                self._server.answer(message)

    def is_calling(self, node: NodeId) -> bool:
        """Tell whether this node's stream to us is open."""
        return self._server is not None and node in self._server.callers

    def is_connected(self, node: NodeId) -> bool:
        """Tell whether our stream to this node is open."""
        return self._transport.is_connected(node)


def _only_known(hosts: KnownHosts) -> Middleware:
    """Return what refuses requests for a host that is not this node's, see :mod:`kvorum.config.hosts`."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not hosts.knows(request.headers.get(hdrs.HOST)):
            raise web.HTTPMisdirectedRequest(text="this node is not known under this host: see the option hosts\n")
        return await handler(request)

    return check


def _only_ascii(handle: Handler) -> Handler:
    """Return what takes requests whose headers are ASCII: the library quotes others in answers that it cannot encode.

    Our own headers are judged by the handshake, which counts what it refuses.
    """

    async def check(request: web.Request) -> web.StreamResponse:
        for name, value in request.headers.items():
            if not value.isascii() and not name.lower().startswith("x-kvorum-"):
                raise InvalidHeader(name)
        return await handle(request)

    return check


async def _say_less(_request: web.Request, response: web.StreamResponse) -> None:
    """Take out of an answer what the port is made of."""
    response.headers.popall(hdrs.SERVER, None)


def _refusing_redirects() -> aiohttp.TraceConfig:
    """Return what makes every redirect an error: ``ws_connect`` follows them, and has no option against it."""

    async def refuse(_session: object, _context: object, params: aiohttp.TraceRequestRedirectParams) -> None:
        params.response.close()
        raise aiohttp.ClientConnectionError(f"{params.url} redirects, which peers never do")

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config


class _Connections(LimitedServer):
    """The connections of the peer port. Of those that are not idle, only the streams of members keep their places.

    Who calls is known when it has said so. Until then, a new connection is younger than all others.
    """

    def __init__(self, handle: Handler, counters: Counters, peers: PeerServer, **options: Any) -> None:
        super().__init__(_only_ascii(handle), counters, **options)
        self._peers = peers

    def make_room(self) -> bool:
        """Close an idle connection for a new one, or else the one that the peers miss least."""
        if super().make_room():
            return True
        connection = self._peers.to_displace(self.connections)
        if connection is None or connection.transport is None:
            return False
        # What is written is not waited for: nobody may be reading it.
        connection.transport.abort()
        return True


class _Runner(web.AppRunner):
    """Serves the peer port with a limit of connections."""

    def __init__(self, peers: PeerServer, counters: Counters, connections_max: Callable[[], int]) -> None:
        super().__init__(peers.app, access_log=None, keepalive_timeout=20, shutdown_timeout=2)
        self._peers = peers
        self._counters = counters
        self._connections_max = connections_max

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Connections(
            made.request_handler,
            self._counters,
            self._peers,
            connections_max=self._connections_max,
            request_factory=made.request_factory,
            **made._kwargs,
        )
