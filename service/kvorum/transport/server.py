"""The peer port: streams that come in, and what a peer may ask for besides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, KeysView
from time import monotonic

import aiohttp
import msgspec
from aiohttp import web

from kvorum.errors import IdentityRejectedError, MalformedMessageError, StorageError
from kvorum.identity import name_of
from kvorum.raft.codec import Frame, decode_frame
from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import RateLimit
from kvorum.transport.handshake import HEADER_FROM, check_greeting, digest_text
from kvorum.transport.interface import Greeting, PeerHandler

log = logging.getLogger("kvorum.transport")

REFUSALS_LOGGED_EVERY_S = 60.0
"""One line in this time for each reason, and for each member of which it is said; all others count as one."""

FRAME_BYTES_MAX = 32 << 20
"""A frame that is longer closes its stream; the sender keeps far below it."""
SNAPSHOT_CHUNK_BYTES = 1 << 20
HEADER_SIZE = "X-Kvorum-Snapshot-Bytes"
HEADER_SHA256 = "X-Kvorum-Snapshot-Sha256"
HEADER_INDEX = "X-Kvorum-Snapshot-Index"


class PeerServer:
    """The aiohttp application of the peer port.

    Args:
        handler: the node.
        counters: where rejections and messages are counted.
        token: the bootstrap token.
        stream_silence_s: a stream without a frame for so long is taken for dead.
        clock: monotonic seconds, by which log lines are limited.
    """

    def __init__(
        self,
        handler: PeerHandler,
        counters: Counters,
        token: str,
        stream_silence_s: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._handler = handler
        self._counters = counters
        self._token = token
        self._silence_s = stream_silence_s
        self._streams: dict[str, web.WebSocketResponse] = {}
        # A peer that sends nonsense comes back and sends it again.
        self._malformed_limit = RateLimit()
        self._clock = clock
        self._refusals: dict[tuple[str, str], RateLimit] = {}
        self.app = web.Application(client_max_size=64 * 1024)
        self.app.router.add_get("/raft/v1/hello", self._hello)
        self.app.router.add_get("/raft/v1/stream", self._stream)
        self.app.router.add_get("/raft/v1/snapshots/{last_index:[0-9]{1,19}}", self._snapshot)
        self.app.router.add_get("/raft/v1/state-hash/{index:[0-9]{1,19}}", self._state_hash)
        self.app.router.add_post("/raft/v1/suspect/{index:[0-9]{1,19}}", self._suspect)

    async def close(self) -> None:
        """Close the streams that came in."""
        for stream in list(self._streams.values()):
            await stream.close(code=aiohttp.WSCloseCode.GOING_AWAY)

    @property
    def callers(self) -> KeysView[str]:
        """The member ids whose streams to us are open."""
        return self._streams.keys()

    def _check(self, request: web.Request) -> Greeting:
        try:
            return check_greeting(request.headers, self._handler.identity, self._token)
        except IdentityRejectedError as error:
            raise self._refusal(error, request) from None

    def _refusal(self, error: IdentityRejectedError, request: web.Request) -> web.HTTPException:
        self._counters.identity_rejected[error.reason] += 1
        # The reasons are ours, and so are the labels: a caller that changes its name gets no line of its own.
        what = (error.reason, self._counters.peer_label(name_of(request.headers.get(HEADER_FROM, ""))))
        limit = self._refusals.get(what)
        if limit is None:
            limit = self._refusals[what] = RateLimit(REFUSALS_LOGGED_EVERY_S, self._clock)
        held_back = limit.allow()
        if held_back is not None:
            more = f" ({held_back} more since the last such line)" if held_back else ""
            log.warning("refused a peer at %s: %s%s", request.remote, error, more)
        return web.HTTPForbidden(text=f"{error.reason}: {error}\n")

    async def _hello(self, request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._handler.hello()), content_type="application/json")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        greeting = self._check(request)
        if not self._handler.identity.cluster_id:
            try:
                await self._handler.join(greeting)
            except IdentityRejectedError as error:
                raise self._refusal(error, request) from None
        stream = web.WebSocketResponse(max_msg_size=FRAME_BYTES_MAX, compress=False, timeout=2.0)
        try:
            await stream.prepare(request)
        except ConnectionError:
            # It has hung up: it was paused, or we were. Nobody reads this answer.
            self._counters.peer_failures[self._label(greeting.sender), "broken"] += 1
            return web.Response(status=503)
        before = self._streams.get(greeting.sender)
        self._streams[greeting.sender] = stream
        try:
            if before is not None:
                await before.close()
            self._handler.on_connected(greeting)
            await self._receive(stream, greeting.sender)
        finally:
            if self._streams.get(greeting.sender) is stream:
                del self._streams[greeting.sender]
                self._handler.on_disconnected(greeting.sender)
        return stream

    async def _receive(self, stream: web.WebSocketResponse, sender: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._silence_s) as patience:
                renewed = loop.time()
                async for frame in stream:
                    messages, unknown = _decode(frame, stream)
                    if unknown:
                        self._counters.messages_unknown[self._label(sender)] += unknown
                    for message in messages:
                        if message.sender != sender:
                            raise MalformedMessageError(f"a message from {message.sender!r} on a stream of {sender!r}")
                    self._counters.messages_received[self._label(sender)] += len(messages)
                    self._handler.on_messages(sender, messages)
                    # A new timer for every frame would cost more than the frame.
                    if loop.time() - renewed > self._silence_s / 4:
                        renewed = loop.time()
                        patience.reschedule(renewed + self._silence_s)
        except TimeoutError:
            self._counters.peer_failures[self._label(sender), "silent"] += 1
        except ConnectionError:
            # It hung up while the library answered its ping.
            self._counters.peer_failures[self._label(sender), "broken"] += 1
        except MalformedMessageError as error:
            self._counters.peer_failures[self._label(sender), "malformed"] += 1
            if self._malformed_limit.allow() is not None:
                log.warning("closed the stream of %s: %s", sender, error)
        await stream.close()

    def _label(self, sender: str) -> str:
        return self._counters.peer_label(name_of(sender))

    async def _snapshot(self, request: web.Request) -> web.Response:
        self._check(request)
        try:
            offset = int(request.query.get("offset", "0"))
            at_least = int(request.query.get("at_least", "0"))
            last_index = int(request.match_info["last_index"])
            chunk = await self._handler.snapshot_chunk(last_index, max(offset, 0), SNAPSHOT_CHUNK_BYTES, at_least)
        except ValueError:
            raise web.HTTPBadRequest(text="offset or at_least is not a number\n") from None
        except StorageError as error:
            self._counters.snapshots["send", "failed"] += 1
            raise web.HTTPNotFound(text=f"{error}\n") from None
        if max(offset, 0) + len(chunk.data) >= chunk.size_bytes:
            # The last piece: whether the peer can use it, its own counter says.
            self._counters.snapshots["send", "ok"] += 1
        headers = {
            HEADER_INDEX: str(chunk.last_index),
            HEADER_SIZE: str(chunk.size_bytes),
            HEADER_SHA256: chunk.sha256,
        }
        return web.Response(body=chunk.data, headers=headers, content_type="application/octet-stream")

    async def _state_hash(self, request: web.Request) -> web.Response:
        self._check(request)
        digest = self._handler.state_hash_at(int(request.match_info["index"]))
        if digest is None:
            raise web.HTTPNotFound(text="not remembered\n")
        return web.Response(text=digest_text(digest))

    async def _suspect(self, request: web.Request) -> web.Response:
        self._check(request)
        self._handler.suspect_state(int(request.match_info["index"]))
        return web.Response(status=202)


def _decode(frame: aiohttp.WSMessage, stream: web.WebSocketResponse) -> Frame:
    """Return what a frame of a stream holds.

    Raises:
        MalformedMessageError: it is neither messages nor a kind of frame that a later version may send.
    """
    if frame.type is aiohttp.WSMsgType.BINARY:
        return decode_frame(frame.data)
    if frame.type is aiohttp.WSMsgType.TEXT:
        # No version sends one yet.
        return Frame((), 1)
    raise MalformedMessageError(f"a frame that is not binary ({frame.type.name}: {stream.exception() or ''})")
