"""Traces of requests: request -> propose -> save -> quorum -> apply. Off unless ``trace_endpoint`` is set.

Theory of operation. When it is off, this module is not even imported, and each hook in the driver is one comparison
with None. When it is on, a request is traced if its client says so (W3C ``traceparent`` with the sampled flag) or if
its turn has come (``trace_ratio``), in both cases at most :data:`TRACES_A_SECOND_MAX` times a second. A request that is
not traced costs one addition. The driver's hooks note moments of the few batches that carry a traced write; the spans
are made afterwards, from these moments, when the batch is applied. Ended spans wait in a bounded queue for a thread
that sends them to an OTLP collector; when the queue is full they are dropped. No span carries a key, value or token.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from aiohttp.web import BaseRequest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kvorum import __version__
from kvorum.config import Config
from kvorum.errors import ConfigError
from kvorum.raft.messages import Entry

TRACES_A_SECOND_MAX = 100
PENDING_MAX = 1000
"""Traced writes that wait for their proposal, and traced batches that wait to be applied, at most."""
QUEUE_SPANS_MAX = 2048
SEND_INTERVAL_MS = 2000
EXPORT_TIMEOUT_S = 3.0
"""How long a batch is offered to the collector, attempts included; then it is dropped."""
CLOSE_DEADLINE_S = 2.0
"""How long a node that ends waits for the collector, besides the batch that is on its way."""

_KV_PREFIX = "/v1/kv/"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]([0-9a-f])(?:-.*)?")
_SAMPLED = frozenset("13579bdf")


class Answer(Protocol):
    """What a handler answers with: the API's response, or a test's."""

    @property
    def status(self) -> int:
        """The HTTP status."""


R = TypeVar("R", bound=Answer)
Handler = Callable[[BaseRequest], Awaitable[R]]


class _Write:
    """A traced write: its request's context, and when it was queued."""

    __slots__ = ("context", "submitted_ns")

    def __init__(self, context: Context, submitted_ns: int) -> None:
        self.context = context
        self.submitted_ns = submitted_ns


class _Batch:
    """A log entry that carries traced writes, and its moments so far (0: not yet)."""

    __slots__ = (
        "committed_ns",
        "is_applied",
        "proposed_ns",
        "save_ended_ns",
        "save_started_ns",
        "size",
        "term",
        "writes",
    )

    def __init__(self, term: int, writes: list[_Write], size: int, proposed_ns: int) -> None:
        self.term = term
        self.writes = writes
        self.size = size
        self.proposed_ns = proposed_ns
        self.save_started_ns = 0
        self.save_ended_ns = 0
        self.committed_ns = 0
        self.is_applied = False


class Tracer:
    """Traces the requests of one node, within bounds. All methods are called on the node's event loop.

    Args:
        exporter: where ended spans go, in batches, from a thread.
        node: this node's name.
        ratio: which part of the requests without a ``traceparent`` is traced.
        clock_ns: Unix time in nanoseconds.
    """

    def __init__(
        self, exporter: SpanExporter, node: str, ratio: float, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        resource = Resource.create({SERVICE_NAME: "kvorum", SERVICE_INSTANCE_ID: node, SERVICE_VERSION: __version__})
        self._exporter = exporter
        # Who is traced is decided here, before anything of OpenTelemetry is called.
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX, schedule_delay_millis=SEND_INTERVAL_MS)
        )
        self._tracer = self._provider.get_tracer("kvorum", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._ratio = ratio
        self._clock_ns = clock_ns
        self._credit = 0.0
        self._second = 0
        self._left = 0
        self._current: ContextVar[Context | None] = ContextVar("kvorum_traced_request", default=None)
        self._waiting: dict[asyncio.Future[Any], _Write] = {}
        self._batches: dict[int, _Batch] = {}

    # --- Requests -----------------------------------------------------------------------------------------------

    def wrap(self, handle: Handler[R]) -> Handler[R]:
        """Return a handler that traces the requests whose turn it is."""

        async def traced(request: BaseRequest) -> R:
            header = request.headers.get("traceparent")
            if not self._is_chosen(_TRACEPARENT.fullmatch(header) if header else None):
                return await handle(request)
            return await self._trace(request, header, handle)

        return traced

    def _is_chosen(self, parent: re.Match[str] | None) -> bool:
        if parent is None:
            # Nobody began a trace, or nobody who knows how.
            self._credit += self._ratio
            if self._credit < 1.0:
                return False
            self._credit -= 1.0
        elif parent[1] not in _SAMPLED:
            # Whoever began this trace does not want it recorded.
            return False
        return self._is_within_rate()

    def _is_within_rate(self) -> bool:
        second = self._clock_ns() // 1_000_000_000
        if second != self._second:
            self._second, self._left = second, TRACES_A_SECOND_MAX
        self._left -= 1
        return self._left >= 0

    async def _trace(self, request: BaseRequest, header: str | None, handle: Handler[R]) -> R:
        parent = self._propagator.extract({"traceparent": header} if header else {}, Context())
        route = _route(request.raw_path)
        attributes = {"http.request.method": request.method, "http.route": route}
        kind = trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(f"{request.method} {route}", parent, kind, attributes) as span:
            token = self._current.set(trace.set_span_in_context(span, Context()))
            try:
                response = await handle(request)
            finally:
                self._current.reset(token)
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= 500:
                span.set_status(trace.StatusCode.ERROR)
            return response

    # --- The node's hooks ---------------------------------------------------------------------------------------

    def waits(self, name: str, waiter: asyncio.Future[Any]) -> None:
        """The current request waits for this future: a span of its own, if the request is traced."""
        context = self._current.get()
        if context is not None:
            since = self._clock_ns()
            waiter.add_done_callback(lambda _: self._child(name, context, since, self._clock_ns()))

    def submitted(self, waiter: asyncio.Future[Any]) -> None:
        """The current request has queued a write, which this future will answer."""
        context = self._current.get()
        if context is not None and len(self._waiting) < PENDING_MAX:
            self._waiting[waiter] = _Write(context, self._clock_ns())
            waiter.add_done_callback(lambda done: self._waiting.pop(done, None))

    def proposed(self, index: int, term: int, waiters: Sequence[asyncio.Future[Any]]) -> None:
        """The writes that these futures answer were appended to the log as one entry."""
        if not self._waiting:
            return
        writes = [write for waiter in waiters if (write := self._waiting.pop(waiter, None)) is not None]
        if not writes:
            return
        if len(self._batches) >= PENDING_MAX:
            del self._batches[next(iter(self._batches))]
        self._batches[index] = _Batch(term, writes, len(waiters), self._clock_ns())

    def saving(self, entries: Sequence[Entry]) -> None:
        """The disk was asked to save these entries."""
        for _, batch in self._among(entries):
            batch.save_started_ns = self._clock_ns()

    def saved(self) -> None:
        """The save in flight is durable."""
        now = self._clock_ns() if self._batches else 0
        for index, batch in list(self._batches.items()):
            if batch.save_started_ns and not batch.save_ended_ns:
                batch.save_ended_ns = now
                self._children("kvorum.save", index, batch, batch.save_started_ns, now)
                self._forget_if_done(index, batch)

    def committed(self, entries: Sequence[Entry]) -> None:
        """A quorum has these entries; they are about to be applied."""
        for _, batch in self._among(entries):
            batch.committed_ns = self._clock_ns()

    def applied(self, entries: Sequence[Entry]) -> None:
        """These entries are applied: the story of their writes is known."""
        terms = {entry.index: entry.term for entry in entries} if self._batches else {}
        for index, batch in self._among(entries):
            if terms[index] != batch.term:
                # Another leader's entry took the place: these writes were never applied.
                del self._batches[index]
                continue
            now = self._clock_ns()
            for write in batch.writes:
                self._child("kvorum.propose", write.context, write.submitted_ns, batch.proposed_ns)
            self._children("kvorum.quorum", index, batch, batch.proposed_ns, batch.committed_ns)
            self._children("kvorum.apply", index, batch, batch.committed_ns, now)
            batch.is_applied = True
            self._forget_if_done(index, batch)

    def close(self) -> None:
        """Send what is queued, as far as the collector takes it in time, and end the thread. Blocking: use a thread."""
        giving_up = threading.Timer(CLOSE_DEADLINE_S, self._exporter.shutdown)
        giving_up.daemon = True
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()

    # --- Spans --------------------------------------------------------------------------------------------------

    def _among(self, entries: Sequence[Entry]) -> list[tuple[int, _Batch]]:
        if not self._batches or not entries:
            return []
        first, last = entries[0].index, entries[-1].index
        return [(index, batch) for index, batch in self._batches.items() if first <= index <= last]

    def _forget_if_done(self, index: int, batch: _Batch) -> None:
        # A follower's disk may be faster than ours: an entry can be applied here before it is saved here.
        if batch.is_applied and (batch.save_ended_ns or not batch.save_started_ns):
            del self._batches[index]

    def _children(self, name: str, index: int, batch: _Batch, start_ns: int, end_ns: int) -> None:
        attributes = {"raft.index": index, "raft.term": batch.term, "kvorum.batch_size": batch.size}
        for write in batch.writes:
            self._child(name, write.context, start_ns, end_ns, attributes)

    def _child(
        self, name: str, context: Context, start_ns: int, end_ns: int, attributes: dict[str, int] | None = None
    ) -> None:
        self._tracer.start_span(name, context, attributes=attributes, start_time=start_ns).end(end_ns)


def _route(raw_path: str) -> str:
    """Return the path without what users put into it."""
    path = raw_path.partition("?")[0]
    if path.startswith(_KV_PREFIX):
        return _KV_PREFIX + "{key}"
    return "/".join(path.split("/")[:4])


def open_tracer(config: Config) -> Tracer:
    """Return a tracer that sends its spans to the configured collector.

    Raises:
        ConfigError: the exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError(
            "trace_endpoint: opentelemetry-exporter-otlp-proto-http is not installed (docs/install.md)"
        ) from None
    exporter = OTLPSpanExporter(endpoint=config.trace_endpoint, timeout=EXPORT_TIMEOUT_S)
    return Tracer(exporter, config.name, config.trace_ratio)
