"""The peer port: streams that come in, and what a peer may ask for besides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, KeysView
from time import monotonic

import aiohttp
import msgspec
from aiohttp import web

from kvorum.errors import IdentityRejectedError, MalformedMessageError, StorageError
from kvorum.identity import name_of
from kvorum.raft.codec import Frame, decode_frame, encode
from kvorum.raft.messages import INDEX_MAX, Message
from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import RateLimit
from kvorum.transport.handshake import (
    HEADER_ENTRY,
    HEADER_FROM,
    answer_headers,
    check_greeting,
    digest_text,
    entry_text,
    parse_number,
)
from kvorum.transport.interface import ANSWERS_PROTOCOL, Greeting, PeerHandler

log = logging.getLogger("kvorum.transport")

REFUSALS_LOGGED_EVERY_S = 60.0
"""One line in this time for each reason, and for each member of which it is said; all others count as one."""

FRAME_BYTES_MAX = 32 << 20
"""A frame that is longer closes its stream; the sender keeps far below it."""
SNAPSHOT_CHUNK_BYTES = 1 << 20
ANSWERS_MAX = 256
"""So many messages wait for a caller that is no member; there are no entries among them."""
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
        self._connections: dict[str, web.RequestHandler] = {}
        """Those of the streams."""
        self._starts: dict[str, str] = {}
        """By which start of its process each of them calls."""
        self._answers: dict[str, asyncio.Queue[Message]] = {}
        """To those callers that take answers on their own stream."""
        self._clock = clock
        self._limits: dict[tuple[str, str], RateLimit] = {}
        self.app = web.Application(client_max_size=64 * 1024)
        self.app.router.add_get("/raft/v1/hello", self._hello)
        self.app.router.add_get("/raft/v1/stream", self._stream)
        self.app.router.add_get("/raft/v1/snapshots/{last_index:[0-9]{1,19}}", self._snapshot)
        self.app.router.add_post("/raft/v1/snapshots/0", self._new_snapshot)
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

    def takes_answers(self, caller: str) -> bool:
        """Tell whether this caller's stream is open, and it takes answers there."""
        return caller in self._answers

    def start_of(self, caller: str) -> str:
        """Return by which start of its process this caller's stream was opened; empty: it is not, or does not tell."""
        return self._starts.get(caller, "")

    def to_displace(self, connections: Iterable[web.RequestHandler]) -> web.RequestHandler | None:
        """Return which of these connections, from the oldest on, gives way to a new one when none of them is idle.

        It is the oldest stream of a caller that is no member, or else the oldest request. None: all are streams of
        members, or are being closed.
        """
        callers = {connection: caller for caller, connection in self._connections.items()}
        request = None
        for connection in connections:
            if connection.transport is None or connection.transport.is_closing():
                continue
            caller = callers.get(connection)
            if caller is None:
                request = request or connection
            elif not self._handler.is_member(caller):
                self._warn("places", caller, f"closed the stream of {caller}, no member, for a new connection")
                return connection
        return request

    def answer(self, message: Message) -> None:
        """Send a message on the stream of its recipient, which calls us; one that does not fit is dropped."""
        answers = self._answers.get(message.recipient)
        if answers is None:
            return
        if answers.full():
            self._counters.messages_dropped[self._label(message.recipient)] += 1
        else:
            answers.put_nowait(message)

    def _check(self, request: web.Request) -> Greeting:
        try:
            return check_greeting(request.headers, self._handler.identity, self._token, request.remote or "")
        except IdentityRejectedError as error:
            raise self._refusal(error, request) from None

    def _refusal(self, error: IdentityRejectedError, request: web.Request) -> web.HTTPException:
        self._counters.identity_rejected[error.reason] += 1
        self._warn(error.reason, request.headers.get(HEADER_FROM, ""), f"refused a peer at {request.remote}: {error}")
        refusal = web.HTTPForbidden(text=f"{error.reason}: {error}\n")
        # The caller may have the wrong address. On a kept connection it would call here again.
        refusal.force_close()
        return refusal

    def _warn(self, reason: str, sender: str, text: str) -> None:
        """Log a refusal, but not each: a peer that is refused comes back, and a stranger changes its name."""
        # The reasons are ours, and so are the labels.
        what = (reason, self._label(sender))
        limit = self._limits.get(what)
        if limit is None:
            limit = self._limits[what] = RateLimit(REFUSALS_LOGGED_EVERY_S, self._clock)
        held_back = limit.allow()
        if held_back is not None:
            log.warning("%s%s", text, f" ({held_back} more since the last such line)" if held_back else "")

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
        stream.headers.update(answer_headers(self._handler.start_id, self._handler.marks_of(greeting.sender)))
        try:
            await stream.prepare(request)
        except web.HTTPBadRequest:
            # The library's text repeats the caller's headers.
            refusal = web.HTTPBadRequest(text="the request opens no WebSocket\n")
            refusal.force_close()
            raise refusal from None
        except ConnectionError:
            # It has hung up: it was paused, or we were. Nobody reads this answer.
            self._counters.peer_failures[self._label(greeting.sender), "broken"] += 1
            return web.Response(status=503)
        before = self._streams.get(greeting.sender)
        self._streams[greeting.sender] = stream
        self._connections[greeting.sender] = request.protocol
        self._starts[greeting.sender] = greeting.start
        self._answers.pop(greeting.sender, None)
        answering = None
        if greeting.protocol >= ANSWERS_PROTOCOL:
            answers: asyncio.Queue[Message] = asyncio.Queue(ANSWERS_MAX)
            self._answers[greeting.sender] = answers
            answering = asyncio.create_task(self._send_answers(stream, answers), name=f"answers to {greeting.sender}")
        try:
            if before is not None:
                await before.close()
            self._handler.on_connected(greeting)
            await self._receive(stream, greeting.sender)
        finally:
            if self._streams.get(greeting.sender) is stream:
                del self._streams[greeting.sender], self._connections[greeting.sender], self._starts[greeting.sender]
                self._answers.pop(greeting.sender, None)
                self._handler.on_disconnected(greeting.sender)
            if answering is not None:
                answering.cancel()
        return stream

    async def _send_answers(self, stream: web.WebSocketResponse, answers: asyncio.Queue[Message]) -> None:
        """Send what is put into the queue, until the stream breaks; the one who reads it then hears of that."""
        with contextlib.suppress(ConnectionError):
            while True:
                message = await answers.get()
                await stream.send_bytes(encode([message]))
                self._counters.messages_sent[self._label(message.recipient)] += 1

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
            self._warn("frame", sender, f"closed the stream of {sender}: {error}")
        await stream.close()

    def _label(self, sender: str) -> str:
        return self._counters.peer_label(name_of(sender))

    async def _snapshot(self, request: web.Request) -> web.Response:
        """Return a piece of a snapshot.

        Version 0.1.0 asks for a new snapshot in this way, too. Members that run it are still served: a node in
        quarantine has no other way to a right state.
        """
        sender = self._check(request).sender
        at_least = _number(request, "at_least") if self._handler.is_member(sender) else None
        return await self._send_chunk(int(request.match_info["last_index"]), _number(request, "offset"), at_least)

    async def _new_snapshot(self, request: web.Request) -> web.Response:
        """Return the first piece of our newest snapshot; it is taken now if it is older than ``at_least``."""
        if not self._handler.is_member(self._check(request).sender):
            raise web.HTTPForbidden(text="only a member may ask for a new snapshot\n")
        return await self._send_chunk(0, 0, _number(request, "at_least"))

    async def _send_chunk(self, last_index: int, offset: int, at_least: int | None) -> web.Response:
        try:
            chunk = await self._handler.snapshot_chunk(last_index, offset, SNAPSHOT_CHUNK_BYTES, at_least)
        except StorageError as error:
            self._counters.snapshots["send", "failed"] += 1
            raise web.HTTPNotFound(text=f"{error}\n") from None
        if offset + len(chunk.data) >= chunk.size_bytes:
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
        return web.Response(text=digest_text(digest), headers={HEADER_ENTRY: entry_text(digest)})

    async def _suspect(self, request: web.Request) -> web.Response:
        self._check(request)
        self._handler.suspect_state(int(request.match_info["index"]))
        return web.Response(status=202)


def _number(request: web.Request, name: str) -> int:
    """Return a number of the query, 0 if it is not there.

    Raises:
        web.HTTPBadRequest: it is not a number, or out of range.
    """
    number = parse_number(request.query.get(name, "0"))
    if number is None:
        raise web.HTTPBadRequest(text=f"{name} is not a number below {INDEX_MAX}\n")
    return number


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
