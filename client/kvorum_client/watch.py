"""Watches: the events of keys, without a gap and without a repetition, whichever nodes come and go.

A node sends one line for each revision, or several if it is long. The client counts a revision as received when its
last line is here, and when the connection ends it goes on at another node, from the revision after that. Of a revision
that was not whole it then leaves out the events that it has: their order is the same at every node.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, TypeVar

from kvorum_client.arguments import check_timeout, check_whole_number
from kvorum_client.errors import ClientError, CompactedError, InvalidArgumentError, RefusedError, UnavailableError
from kvorum_client.results import WatchEvent
from kvorum_client.wire import decode, encoded, quote, watch_event_of
from kvorum_wire import WatchLine

T = TypeVar("T")

LINE_BYTES_MAX = 256 * 1024 * 1024
"""No line is as long: one has 1 MiB of events, or one event more, of which JSON makes six times as much at most."""
PAUSE_MIN_S = 0.02
PAUSE_MAX_S = 1.0
STEADY_S = 1.0
"""A stream that ended sooner does not end the pauses: a cluster that stops may begin many, and end them at once."""
_FOR_EVER_S = 365 * 86_400.0

Resumed = Callable[[int, str], object]
"""Called with the revision from which a watch goes on, and why it had to."""


class AttemptEndedError(Exception):
    """A node sends no more of a watch; another one may."""


class Connect(Protocol):
    """Makes one attempt at one node; yields what it sends."""

    def __call__(self, target: str, within_s: float) -> AsyncGenerator[bytes, None]:
        """Yield pieces of lines.

        Raises:
            AttemptEndedError: there are no more.
            ClientError: no node has any.
        """


def target_of(
    key: bytes | str | None,
    prefix: bytes | str | None,
    start: bytes | str | None,
    end: bytes | str | None,
    kind: str | None,
    *,
    prev_value: bool,
) -> str:
    """Return path and query of a watch, but for its revision.

    Raises:
        InvalidArgumentError: it is not clear what is to be watched.
    """
    is_range = start is not None or end is not None
    if (key is not None) + (prefix is not None) + is_range != 1:
        raise InvalidArgumentError('watch a key, a prefix (b"": all keys), or a range from start to end')
    if start is not None and not start:
        start = b"\0"  # An empty start is the first key, as in every range.
    given = {"key": key, "prefix": prefix, "start": start, "end": end}
    parts = [f"{name}={quote(encoded(data, name))}" for name, data in given.items() if data is not None]
    if kind is not None:
        if kind not in ("put", "delete"):
            raise InvalidArgumentError(f'only is "put" or "delete", not {kind!r}')
        parts.append(f"filter={kind}")
    if prev_value:
        parts.append("prev_value=true")
    return "/v1/watch?" + "&".join(parts)


async def lines_of(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield whole lines of what a node sends in pieces.

    Raises:
        ClientError: a line does not end.
    """
    buffer = bytearray()
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            searched = len(buffer)
            buffer += piece
            begin = 0
            while (end := buffer.find(b"\n", max(begin, searched))) >= 0:
                text, begin = bytes(buffer[begin:end]), end + 1
                yield text
            del buffer[:begin]
            if len(buffer) > LINE_BYTES_MAX:
                raise ClientError("the answer is not Kvorum's: a line of a watch does not end")


class Watch:
    """The events of a range of keys, one after another: ``async for event in watch``. It has no end of its own.

    Use it in an ``async with``, or call :meth:`close`. Entering it returns once the watch has begun: writes that begin
    later are seen. Without, it begins with the first event that is asked for. One task at a time may ask.

    A call for the next event may be cancelled, by a deadline for example; the next call goes on where it was.
    """

    def __init__(
        self,
        connect: Connect,
        target: str,
        from_revision: int | None,
        begin_timeout_s: float,
        resume_timeout_s: float | None,
        on_resume: Resumed | None,
    ) -> None:
        self._connect = connect
        self._target = target
        self._next = 0 if from_revision is None else check_whole_number(from_revision, "from_revision")
        if from_revision is not None and self._next == 0:
            raise InvalidArgumentError("from_revision is at least 1; leave it out to begin now")
        self._begin_timeout_s = check_timeout(begin_timeout_s)
        self._resume_timeout_s = _FOR_EVER_S if resume_timeout_s is None else check_timeout(resume_timeout_s)
        self._on_resume = on_resume
        self._events: deque[WatchEvent] = deque()
        self._part = (0, 0)
        """A revision that is not whole yet, and how many of its events were received."""
        self._passed = 0
        """How many of them this attempt has sent."""
        self._asks_for_fragments = True
        """Whether the next attempt does."""
        self._lines: AsyncGenerator[WatchLine, None] | None = None
        self._has_begun = False
        self._is_closed = False
        self._random = random.Random()  # noqa: S311 - jitter, not a secret

    @property
    def revision(self) -> int:
        """The revision up to which all events were returned; to go on later, watch from the next one. 0: not known yet.

        It grows while nothing happens, too: nodes tell it every few seconds.
        """
        return self._events[0].mod_revision - 1 if self._events else max(self._next - 1, 0)

    @property
    def has_begun(self) -> bool:
        """Whether a node has sent anything of the watch."""
        return self._has_begun

    async def __aenter__(self) -> Watch:
        while not self._has_begun:
            await self._receive()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WatchEvent:
        """Return the next event.

        Raises:
            CompactedError: the events that come next are no longer in the history; it has the floor.
            RefusedError: the cluster has no watches (before version 0.4.0, or its feature level is below 4).
            UnavailableError: no node could be found in time to begin or to resume.
        """
        while not self._events:
            await self._receive()
        return self._events.popleft()

    async def close(self) -> None:
        """End the watch. Idempotent."""
        self._is_closed = True
        lines, self._lines = self._lines, None
        if lines is not None:
            with contextlib.suppress(RuntimeError):  # Another task is still waiting for an event, and will end.
                await lines.aclose()

    async def _receive(self) -> None:
        """Take one line."""
        if self._is_closed:
            raise UnavailableError("the watch is closed; begin another one")
        if self._lines is None:
            self._lines = self._all_lines()
        try:
            line = await anext(self._lines)
        except BaseException:
            # The generator has ended; the next call makes another one, which begins at the next revision.
            self._lines = None
            raise
        self._take(line)

    def _take(self, line: WatchLine) -> None:
        events = line.events
        revision, received = self._part
        if events and revision == line.revision:
            # What was received already comes again in another attempt.
            events = events[max(received - self._passed, 0) :]
        else:
            received = self._passed = 0
        self._passed += len(line.events)
        if line.more:
            self._part = (line.revision, max(received, self._passed))
        elif line.events:
            self._part, self._passed = (0, 0), 0
        self._events += map(watch_event_of, events)
        if line.revision and not line.more:
            self._next = max(self._next, line.revision + 1)

    # --- Attempt after attempt ----------------------------------------------------------------------------------

    async def _all_lines(self) -> AsyncGenerator[WatchLine, None]:
        deadline = time.monotonic() + (self._resume_timeout_s if self._has_begun else self._begin_timeout_s)
        pause_s, reason = PAUSE_MIN_S, ""
        while True:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise UnavailableError(reason or "no node was asked in time")
            try:
                began = time.monotonic()
                async with contextlib.aclosing(self._attempt(remaining_s)) as lines:
                    async for line in lines:
                        if reason and self._has_begun and self._on_resume is not None:
                            self._on_resume(self._next, reason)
                        reason = ""
                        if time.monotonic() - began >= STEADY_S:
                            pause_s = PAUSE_MIN_S
                        self._has_begun = True
                        yield line
            except AttemptEndedError as error:
                if not reason and self._has_begun:
                    deadline = time.monotonic() + self._resume_timeout_s
                reason = str(error)
            await asyncio.sleep(min(pause_s * self._random.uniform(0.5, 1.5), max(deadline - time.monotonic(), 0)))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _attempt(self, within_s: float) -> AsyncGenerator[WatchLine, None]:
        """Yield the lines of one node; an empty one is a sign of life."""
        self._passed = 0
        target = self._target + (f"&from_revision={self._next}" if self._next else "")
        asks_for_fragments, self._asks_for_fragments = self._asks_for_fragments, True
        target += "&fragment=true" if asks_for_fragments else ""
        try:
            async with contextlib.aclosing(lines_of(self._connect(target, within_s))) as lines:
                async for text in lines:
                    yield self._line(text) if text.strip() else WatchLine()
        except RefusedError as error:
            if not asks_for_fragments or "unknown parameter 'fragment'" not in str(error):
                raise
            self._asks_for_fragments = False  # The next attempt may meet the same node, of version 0.4.
            raise AttemptEndedError(str(error)) from None
        raise AttemptEndedError("the connection ended")

    def _line(self, text: bytes) -> WatchLine:
        line = decode(text, WatchLine)
        if line.error is None:
            return line
        problem = line.error
        if problem.code == "compacted":
            raise CompactedError(problem.detail, problem.floor or 0, problem.revision or 0)
        raise AttemptEndedError(problem.detail)


class SyncWatch:
    """The synchronous twin of :class:`Watch`: ``for event in watch``."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], watch: Watch) -> None:
        self._run = run
        self._watch = watch

    @property
    def revision(self) -> int:
        """See :attr:`Watch.revision`."""
        return self._watch.revision

    def __enter__(self) -> SyncWatch:
        self._run(self._watch.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> SyncWatch:
        return self

    def __next__(self) -> WatchEvent:
        """See :meth:`Watch.__anext__`."""
        event: WatchEvent = self._run(self._watch.__anext__())
        return event

    def close(self) -> None:
        """End the watch. Idempotent."""
        self._run(self._watch.close())
