"""``GET /v1/watch``: the events of keys, as lines of JSON or as server-sent events.

The hub hands events to a :class:`Feed`, which writes them to its connection at once: no task, no queue and no copy for
each watcher. The same bytes go to all that watch the same. The body ends with the connection.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from typing import Literal, Protocol, cast

from aiohttp.web import BaseRequest
from multidict import istr

import kvorum_wire as wire
from kvorum.errors import CallerError, InvalidRequestError, TooLargeError
from kvorum.fronts.http import key_ranges, operations, parameters
from kvorum.fronts.http.request import Query, accepts, combined, parse_integer
from kvorum.fronts.http.response import Fed, Response
from kvorum.fronts.http.watch_buffers import Buffers
from kvorum.fronts.http.watch_lines import NDJSON_LINES, SSE_LINES, Fragment, Lines, fragments
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.limits import INTEGER_MAX
from kvorum.service.requests import NO_END, Watch
from kvorum.service.results import Event, EventBatch, WatchStart, event_bytes
from kvorum.service.results import Watch as Watching

PATH = "/v1/watch"
SSE = operations.SSE
NDJSON = operations.NDJSON
PROGRESS_S = 10
PROGRESS_S_MAX = 30
"""Proxies close a connection that is silent for a minute."""
BUFFER_BYTES_MAX = 1024 * 1024
"""With more than that unread by the client, a watch falls behind."""
FRAGMENT_BYTES = 1024 * 1024
"""With fragments, what takes more is written in several lines, one in each turn of the loop."""
REVISION_BYTES_MAX = 16 * 1024 * 1024
"""Without them, a revision whose keys and values take more ends the watch."""
STALL_S = 30.0
STALL_BYTES = 512 * 1024
"""A client that reads less in :data:`STALL_S`, with so much to read, is disconnected."""
LINGERING_S = 10.0
"""How long a client may take to read what is left once the watch has ended."""

_STALLED = "stalled"
_LAST_EVENT_ID = istr("Last-Event-ID")
_FROM_REVISION = parameters.Integer(
    "from_revision", "Begin with this revision. Default: after everything that was acknowledged before.", 1
)
_PROGRESS = parameters.Integer(
    "progress_s", f"On a quiet watch a line comes so often, in seconds. Default {PROGRESS_S}.", 1, PROGRESS_S_MAX
)
_FRAGMENT = parameters.Switch(
    "fragment", 'A long revision comes in several lines; all of them but the last have "more": true.'
)
_FILTER: parameters.Choice[Literal["", "put", "delete"]] = parameters.Choice(
    "filter", "Only events of this type.", ("", "put", "delete")
)
_PARAMETERS: frozenset[parameters.Parameter] = frozenset(
    {_FROM_REVISION, parameters.PREV_VALUE, _FRAGMENT, _FILTER, _PROGRESS, parameters.TIMEOUT_MS, parameters.FORWARD}
)
_BYTES = (parameters.KEY, *key_ranges.PARAMETERS)
_TAKEN = key_ranges.with_twins(_BYTES)
_HEADERS = "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\nVary: Accept\r\n"
WATCH = operations.Operation(
    summary="Every later put and delete of some keys, until the client ends it",
    parameters=_PARAMETERS | _TAKEN,
    headers=(operations.LAST_EVENT_ID,),
    answers=(
        operations.Answer(
            "One JSON object a line, or the same as server-sent events.",
            {NDJSON: wire.WatchLine, SSE: operations.STRING},
            ("Cache-Control", "X-Kvorum-Revision"),
        ),
    ),
    errors=operations.PAST_ERRORS | {"too_many_watchers"},
)


class WatchHandlers:
    """The handler of watches.

    Args:
        service: what executes the requests.
    """

    def __init__(self, service: Service) -> None:
        self._execute = service.execute
        self._buffers = Buffers()

    async def watch(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/watch``."""
        given, rest = key_ranges.take_bytes(raw_query, _BYTES)
        query = Query(rest, _PARAMETERS, _TAKEN)
        progress_s = query.integer(_PROGRESS) or PROGRESS_S
        resumed = combined(request.headers, _LAST_EVENT_ID)
        wanted = _watch(given, query, resumed)
        start = await self._execute(ANONYMOUS, wanted)
        lines = SSE_LINES if accepts(request.headers, SSE) else NDJSON_LINES
        is_fragmented = query.switch(_FRAGMENT)
        headers = f"{_HEADERS}X-Kvorum-Revision: {start.revision}\r\n"
        feed = Feed(
            start, lines, progress_s, self._buffers, is_from_now=not wanted.from_revision, is_fragmented=is_fragmented
        )
        return Response(200, content_type=lines.content_type, headers=headers, live=feed)


# --- What is asked for ------------------------------------------------------------------------------------------------


def _watch(given: dict[str, bytes], query: Query, resumed: str | None) -> Watch:
    start, end = _range(given)
    from_revision = query.integer(_FROM_REVISION) or 0
    if resumed is not None:
        # The browser sends the same URL again, and the id of the last event that it has.
        from_revision = parse_integer(resumed, "Last-Event-ID", 0, INTEGER_MAX - 1) + 1
    kind = query.choice(_FILTER)
    query.switch(parameters.FORWARD)  # Any node serves a watch.
    return Watch(
        start,
        end,
        from_revision,
        query.switch(parameters.PREV_VALUE),
        puts=kind != "delete",
        deletes=kind != "put",
        timeout_ms=query.integer(parameters.TIMEOUT_MS),
    )


def _range(given: dict[str, bytes]) -> tuple[bytes, bytes | None]:
    if not given or ("key" in given and len(given) > 1):
        raise InvalidRequestError(
            "say what to watch: key=KEY; or prefix=PREFIX (empty: all keys); or start=KEY, end=KEY or both"
        )
    if "key" not in given:
        start, end = key_ranges.range_of(given)
        return start, None if end == NO_END else end
    if not given["key"]:
        raise InvalidRequestError("the key is empty: to watch all keys, give an empty prefix")
    return given["key"], given["key"] + b"\0"


# --- What is written --------------------------------------------------------------------------------------------------


class _FedConnection(Protocol):
    feed: Fed | None
    writing_paused: bool


class Feed:
    """The body of one watch, and the sink of its events.

    Args:
        start: the watch, which can begin.
        lines: how its events are written.
        progress_s: after so many seconds without an event, a line says how far the watch has come.
        buffers: those of all watches.
        is_from_now: nobody knows yet where it begins: the first line says it.
        is_fragmented: the client takes a revision in several lines.
    """

    def __init__(
        self,
        start: WatchStart,
        lines: Lines,
        progress_s: float,
        buffers: Buffers,
        *,
        is_from_now: bool,
        is_fragmented: bool,
    ) -> None:
        self._start = start
        self._lines = lines
        self._progress_s = progress_s
        self._buffers = buffers
        self._is_from_now = is_from_now
        self._is_fragmented = is_fragmented
        self._rest: Iterator[Fragment] | None = None
        """What is left to write of what was taken."""
        self._has_ended = False
        self._connection: _FedConnection | None = None
        self._transport: asyncio.Transport | None = None
        self._watch: Watching | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] | None = None
        self._is_idle = True
        """Nothing was written since the last beat."""
        self._unread_bytes = 0
        self._unread_since_s = 0.0

    async def run(self, request: BaseRequest) -> None:
        """Deliver until the watch ends, or its client is gone or does not read."""
        loop = asyncio.get_running_loop()
        connection = self._connection = cast(_FedConnection, request.protocol)
        self._transport = request.transport
        if self._transport is None:
            raise ConnectionResetError("the client is gone")
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES_MAX)
        self._done = loop.create_future()
        connection.feed = self
        try:
            # A client that resumes is told at once as well that somebody is there.
            first = self._start.first
            self._write(self._lines.progress(first - 1) if self._is_from_now else self._lines.heartbeat)
            self._watch = self._start.open(self)
            self._timer = loop.call_later(self._progress_s, self._beat)
            await self._done
        except CallerError as error:
            self.end(error)
        finally:
            connection.feed = None
            if self._timer is not None:
                self._timer.cancel()
            if self._watch is not None:
                self._watch.close()
            self._rest = None
            self._has_ended = True
            self._buffers.remove(self)

    # --- The sink -----------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the client has too much to read."""
        return self._rest is not None or self._is_blocked

    def take(self, batch: EventBatch) -> None:
        """Write events, or begin to."""
        if self._is_fragmented and batch.size_bytes > 2 * FRAGMENT_BYTES:
            self._rest = fragments(batch.events, FRAGMENT_BYTES)
            self._write_rest()
        elif not self._is_fragmented and batch.size_bytes > REVISION_BYTES_MAX:
            self._refuse(batch.events)
        else:
            self._write(batch.encoded(self._lines.events))

    def _write_rest(self) -> None:
        """Write the next fragment, unless the client has too much to read."""
        if self._rest is None or self._is_blocked or self._watch is None:
            return
        fragment = next(self._rest, None)
        if fragment is None:
            self._rest = None
            self._watch.has_room()
            return
        self._write(self._lines.fragment(fragment))
        asyncio.get_running_loop().call_soon(self._write_rest)

    def _refuse(self, events: list[Event]) -> None:
        """Write whole revisions up to one that is too long for a line, which can be the last one only; then end."""
        last = events[-1][0].mod_revision
        begin = bisect_left(events, last, key=_revision_of)
        if begin:
            self._write(self._lines.events(events[:begin]))
        size_bytes = sum(map(event_bytes, events[begin:]))
        if size_bytes <= REVISION_BYTES_MAX:
            self._write(self._lines.events(events[begin:]))
            return
        # Nothing more is written until the end, which must not come while the hub delivers.
        self._rest = iter(())
        error = TooLargeError(
            f"the events of revision {last} take {size_bytes} bytes, too many for one line; watch with fragment=true",
            REVISION_BYTES_MAX,
        )
        asyncio.get_running_loop().call_soon(self.stop, error)

    @property
    def unread_bytes(self) -> int:
        """How many bytes wait to be sent to the client."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def _is_blocked(self) -> bool:
        is_paused = self._connection is not None and self._connection.writing_paused
        return is_paused or self._buffers.is_full_for(self)

    def end(self, error: CallerError) -> None:
        """Write why the watch ends, and end the connection."""
        transport = self._transport
        self._rest = None
        if transport is not None and not transport.is_closing():
            self._write(self._lines.end(error))
            if transport.get_write_buffer_size():
                # The connection is closed when this is read, or after a while all the same.
                asyncio.get_running_loop().call_later(LINGERING_S, transport.abort)
        self.lost()

    # --- The connection -----------------------------------------------------------------------------------------

    def has_room(self) -> None:
        """The client has read most of what was written, or others have."""
        if self._has_ended:
            return
        self._buffers.note(self)
        self._unread_bytes = 0
        if self._rest is not None:
            self._write_rest()
        elif self._watch is not None:
            self._watch.has_room()

    def lost(self) -> None:
        """The connection has ended, or is about to."""
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def stop(self, error: CallerError) -> None:
        """End the watch from the side of the front, and say why."""
        if self._watch is not None:
            self._watch.close(error.code)
        self.end(error)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._is_idle = False
            self._transport.write(data)
            if not self._has_ended:
                self._buffers.note(self)

    # --- Once in a while ----------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Say how far the watch is, or at least that it lives; give up a client that does not read."""
        loop, transport = asyncio.get_running_loop(), self._transport
        if transport is None or self._watch is None or self._done is None or self._done.done():
            return
        self._timer = loop.call_later(self._progress_s, self._beat)
        self._buffers.note(self)
        if self.is_full:
            self._judge_stall(transport, loop.time())
            return
        self._unread_bytes = 0
        if self._is_idle:
            progress = self._watch.progress()
            self._write(self._lines.heartbeat if progress is None else self._lines.progress(progress))
        self._is_idle = True

    def _judge_stall(self, transport: asyncio.Transport, now_s: float) -> None:
        unread_bytes = transport.get_write_buffer_size()
        if not self._unread_bytes:
            self._unread_bytes, self._unread_since_s = unread_bytes, now_s
        elif now_s - self._unread_since_s >= STALL_S:
            if self._unread_bytes - unread_bytes >= min(STALL_BYTES, self._unread_bytes):
                self._unread_bytes, self._unread_since_s = unread_bytes, now_s
                return
            if self._watch is not None:
                self._watch.close(_STALLED)
            transport.abort()
            self.lost()


def _revision_of(event: Event) -> int:
    return event[0].mod_revision
