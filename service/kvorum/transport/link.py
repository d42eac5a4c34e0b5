"""One peer: a bounded queue of messages, and the stream that we dial to carry them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from random import Random
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from kvorum.errors import IdentityRejectedError, MalformedMessageError
from kvorum.identity import name_of
from kvorum.raft.codec import decode_frame, encode
from kvorum.raft.messages import AppendEntries, HandOver, Message
from kvorum.telemetry.counters import Counters
from kvorum.transport.failures import reason_of
from kvorum.transport.handshake import check_answer, dialling_headers
from kvorum.transport.recipients import MemberUrls
from kvorum.transport.settings import Dialling

log = logging.getLogger("kvorum.transport")

QUEUE_MESSAGES_MAX = 4096
QUEUE_BYTES_MAX = 64 << 20
"""When full, what comes is dropped and counted: consensus sends again what matters."""
FRAME_BYTES = 256 << 10
"""A frame of entries is closed once it holds this much. What does not wait for entries waits for one such frame."""
UNSENT_BYTES_MAX = 128 << 10
"""The kernel takes no more while so much waits in it: what it has taken, nothing overtakes."""
_TCP_NOTSENT_LOWAT = 25  # Linux; the module socket does not name it in every version of Python.
CONNECT_TIMEOUT_S = 2.0
HURRIED_DIAL_S = 0.5
"""What is left to a dial when its peer calls us: the peer is there, so a dial that takes longer goes elsewhere. Both
often dial each other at once, and a dial that is about to succeed is not to be given up."""
SEND_TIMEOUT_S = 5.0
PING_S = 10.0
"""A peer is pinged this often, and has half as long to answer: one that lost its power or network closes nothing."""
KEEP_ALIVE_S = 2.0
"""An idle stream carries an empty frame this often; the receiving side gives up on a silent one (see
stream_silence_s in transport/port.py)."""
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
COMPLAINTS_MAX = 16


class Link:
    """The way to one peer.

    AppendEntries are sent in order, and writes that are handed over with them. Everything else is small, overtakes
    them, and has frames of its own: a leader that sends a megabyte on a slow network must not be taken for dead because
    its heartbeats wait behind it, and neither a vote nor a read has to. Consensus takes messages in any order.

    A frame is written by whoever has messages for it, at once: a task's turn would be dearer than the write. Only when
    the peer does not read, and a write has to wait, does the stream's task finish it, and what comes meanwhile queues.

    Args:
        node: the peer's member id.
        url: the base URL of its peer port.
        dialling: what every link shares.
        on_broken: called with the member id when an open stream breaks.
    """

    def __init__(self, node: str, url: str, dialling: Dialling, on_broken: Callable[[str], None]) -> None:
        self.node = node
        self.urls = MemberUrls(url)
        """Where it is called. What is changed here counts from the next connection on."""
        self.connected = False
        self._name = name_of(node)
        self._dialling = dialling
        self._counters: Counters = dialling.counters
        self._random: Random = dialling.random
        self._on_broken = on_broken
        self._urgent: deque[Message] = deque()
        self._appends: deque[tuple[int, AppendEntries | HandOver]] = deque()
        self._queued_bytes = 0
        """Of what is in ``_appends``."""
        self._stream: aiohttp.ClientWebSocketResponse | None = None
        """The open stream, while a frame can be written to it at once."""
        self._opened: aiohttp.ClientWebSocketResponse | None = None
        """The open stream."""
        self._dial: asyncio.Timeout | None = None
        """How long the dial in progress may take."""
        self._peer_start = ""
        """Which start of the peer's process the stream leads to, or called last; empty: its version does not tell."""
        self._unfinished: _Unfinished | Exception | None = None
        self._stuck = asyncio.Event()
        self._hurry = asyncio.Event()
        self._complaints: dict[str, str] = {}
        """URL -> why it was said last that the peer is not reached there."""
        self._idle = True

    @property
    def url(self) -> str:
        """Where the peer is, or is tried now."""
        return self.urls.current

    def hurry(self, start: str = "") -> None:
        """The peer is there (it just called us): do not wait out the backoff, or a dial to where it was.

        An open stream that leads to another start of its process is aborted: a machine that lost its power or network
        closes nothing. If the peer's version does not tell its starts, a frame breaks such a stream, unless it leads to
        an address at which nothing answers.

        Args:
            start: which start of its process the peer called by; empty: its version does not tell.
        """
        self._hurry.set()
        if self._dial is not None and not self._dial.expired():
            soon = asyncio.get_running_loop().time() + HURRIED_DIAL_S
            self._dial.reschedule(min(self._dial.when() or soon, soon))
        is_other = bool(start and self._peer_start and start != self._peer_start)
        self._peer_start = start or self._peer_start
        if self._opened is not None and is_other:
            _abort(self._opened)
        elif self._stream is not None:
            self._write(self._stream, encode(()))

    def send(self, message: Message) -> None:
        """Queue a message for the next :meth:`flush`; drop it when the queue is full."""
        if isinstance(message, AppendEntries):
            size = 64
            for entry in message.entries:
                size += len(entry.data) + 24
        elif isinstance(message, HandOver):
            size = 64 + len(message.data)
        else:
            if len(self._urgent) >= QUEUE_MESSAGES_MAX:
                self._drop()
            else:
                self._urgent.append(message)
            return
        if len(self._appends) >= QUEUE_MESSAGES_MAX or self._queued_bytes + size > QUEUE_BYTES_MAX:
            self._drop()
            return
        self._appends.append((size, message))
        self._queued_bytes += size

    def _drop(self) -> None:
        self._counters.messages_dropped[self._counters.peer_label(self._name)] += 1

    def flush(self) -> None:
        """Write what is queued, if the stream is open and takes it."""
        while self._stream is not None and (self._urgent or self._appends):
            self._idle = False
            messages = self._take()
            self._write(self._stream, encode(messages))
            self._counters.messages_sent[self._counters.peer_label(self._name)] += len(messages)

    def _write(self, stream: aiohttp.ClientWebSocketResponse, frame: bytes) -> None:
        sending = stream.send_bytes(frame)
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        except (aiohttp.ClientError, OSError) as error:
            self._unfinished = error
        else:
            self._unfinished = _Unfinished(sending, waits_for)
        self._stream = None
        self._stuck.set()

    async def run(self) -> None:
        """Keep a stream open for as long as the peer is known; ends only by being cancelled."""
        backoff_s = BACKOFF_MIN_S
        while True:
            # Whoever calls from now on, even while we dial in vain, is there.
            self._hurry.clear()
            try:
                # A task for each stream: until Python 3.13 a TaskGroup leaves its parent's count of cancellations
                # raised, which aiohttp takes for a cancellation of its caller. Then one lost connection ended the link.
                await asyncio.create_task(self._run_stream(), name=f"stream to {self.node}")
                backoff_s = BACKOFF_MIN_S
            except aiohttp.WSServerHandshakeError as error:
                self._failed("rejected", f"it answers {error.status}")
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                # ValueError: the URL is none that the library can dial.
                if isinstance(error, aiohttp.ClientConnectorDNSError):
                    self._counters.dns_failures[self._counters.peer_label(self._name)] += 1
                self._failed("unreachable", reason_of(error))
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # A TaskGroup whose task fails while it is being cancelled reports the failure only.
                raise asyncio.CancelledError
            if self.connected:
                self.connected = False
                backoff_s = BACKOFF_MIN_S
                self._on_broken(self.node)
            else:
                self.urls.failed()
            # What waited for the old stream is out of date; consensus knows what to send on a new one.
            self._urgent.clear()
            self._appends.clear()
            self._queued_bytes = 0
            try:
                await asyncio.wait_for(self._hurry.wait(), backoff_s * (0.5 + self._random.random()))
            except TimeoutError:
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def _failed(self, reason: str, detail: str) -> None:
        label = self._counters.peer_label(self._name)
        self._counters.peer_failures[label, reason] += 1
        if self._complaints.get(self.url) != detail:
            if len(self._complaints) >= COMPLAINTS_MAX:
                self._complaints.clear()
            self._complaints[self.url] = detail
            log.info("cannot reach %s at %s: %s; retrying until it answers", self.node, self.url, detail)

    async def _run_stream(self) -> None:
        dialling = self._dialling
        identity = dialling.identity()
        headers = dialling_headers(
            identity,
            self.node,
            dialling.peer_url,
            dialling.token,
            client_url=dialling.client_url,
            start=dialling.start(),
            marks=dialling.marks_of(self.node),
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S) as self._dial:
                stream = await dialling.session().ws_connect(
                    f"{self.url}/raft/v1/stream",
                    headers=headers,
                    compress=0,
                    autoping=True,
                    heartbeat=PING_S,
                    max_msg_size=64 * 1024,
                )
        finally:
            self._dial = None
        try:
            answer = check_answer(stream._response.headers, self.node, identity.node_id)
            _bound_unsent(stream)
            self.connected, self._opened = True, stream
            self._peer_start = answer.start or self._peer_start
            self._complaints.clear()
            log.info("connected to %s at %s", self.node, self.url)
            if peer_name := stream.get_extra_info("peername"):
                dialling.answered(urlsplit(self.url).hostname or "", peer_name[0])
            self._open(stream)
            if answer.marks is not None:
                dialling.on_marks(self.node, answer.marks, self.url)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(stream))
                group.create_task(self._finish(stream))
                group.create_task(self._keep_alive())
        except* _StreamBrokenError:
            pass
        except* (IdentityRejectedError, MalformedMessageError) as errors:
            self._failed("malformed", str(errors.exceptions[0]))
        except* (aiohttp.ClientError, OSError, TimeoutError) as errors:
            self._failed("broken", str(errors.exceptions[0]))
        finally:
            self._stream = self._opened = None
            self._unfinished = None
            self._stuck.clear()
            await stream.close()

    async def _watch(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        """Notice at once that the peer has closed, and take the answers of one that does not know us as a member."""
        while True:
            frame = await stream.receive()
            if frame.type is aiohttp.WSMsgType.ERROR:
                raise aiohttp.ClientConnectionError(str(frame.data))
            if frame.type is not aiohttp.WSMsgType.BINARY:
                raise _StreamBrokenError
            messages, unknown = decode_frame(frame.data)
            label = self._counters.peer_label(self._name)
            if unknown:
                self._counters.messages_unknown[label] += unknown
            for message in messages:
                if message.sender != self.node:
                    raise MalformedMessageError(f"a message from {message.sender!r} on a stream to {self.node!r}")
            self._counters.messages_received[label] += len(messages)
            self._dialling.on_messages(self.node, messages)

    def _open(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        """Write what queued while the stream was not open, and from now on what comes, at once."""
        self._stream = stream
        self.flush()

    async def _finish(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        """Finish every write that has to wait for the peer."""
        while True:
            await self._stuck.wait()
            self._stuck.clear()
            unfinished, self._unfinished = self._unfinished, None
            if isinstance(unfinished, Exception):
                raise unfinished
            if unfinished is not None:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await unfinished
            self._open(stream)

    async def _keep_alive(self) -> None:
        """Two followers have nothing to say to each other; an empty frame now and then shows that the stream lives."""
        while True:
            self._idle = True
            await asyncio.sleep(KEEP_ALIVE_S)
            if self._idle and self._stream is not None:
                self._write(self._stream, encode(()))

    def _take(self) -> list[Message]:
        """Return the messages of the next frame. A peer reads a frame as a whole: what is urgent has its own."""
        messages: list[Message] = list(self._urgent)
        if messages:
            self._urgent.clear()
            return messages
        size = 0
        while self._appends and size < FRAME_BYTES:
            message_bytes, message = self._appends.popleft()
            size += message_bytes
            messages.append(message)
        self._queued_bytes -= size
        return messages


def _bound_unsent(stream: aiohttp.ClientWebSocketResponse) -> None:
    connection: socket.socket | None = stream.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)


def _abort(stream: aiohttp.ClientWebSocketResponse) -> None:
    """Drop the connection of a stream. A close would wait for the answer of a peer that is gone."""
    connection = stream._response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


class _Unfinished:
    """A coroutine that was begun by hand and has to wait for something; a task awaits this to finish it."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: object) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            # Handed to the task as the coroutine itself would have, had the task begun it.
            yield self._waits_for
            yield from self._coroutine.__await__()
        finally:
            self._coroutine.close()


class _StreamBrokenError(Exception):
    """The peer closed the stream."""
