"""Traces: the whole way of a write, the client's own trace carried on, a bounded cost, and nothing at all when off."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from acceptance.processes import Cluster
from aiohttp import web
from aiohttp.web import BaseRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import stop_server
from telemetry.live import running_cluster
from waiting import until

from kvorum.config import Config
from kvorum.errors import ConfigError
from kvorum.raft.messages import Entry, EntryKind
from kvorum.telemetry import tracing
from kvorum.telemetry.tracing import PENDING_MAX, TRACES_A_SECOND_MAX, Tracer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01"
NOT_SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-00"
SECRET = "the-key-of-a-customer"


class Clock:
    """Unix nanoseconds: each look is a millisecond later."""

    def __init__(self) -> None:
        self.now = 1_000_000_000_000

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


class Traced:
    """A tracer whose spans stay here."""

    def __init__(self, ratio: float = 0.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.clock = Clock()
        self.tracer = Tracer(self.exporter, "n1", ratio, self.clock)

    def spans(self) -> dict[str, ReadableSpan]:
        """Close the tracer and return its spans by name."""
        self.tracer.close()
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.tracer.close()


def request(method: str = "PUT", path: str = f"/v1/kv/{SECRET}", traceparent: str | None = SAMPLED) -> BaseRequest:
    headers = {} if traceparent is None else {"traceparent": traceparent}
    return cast(BaseRequest, SimpleNamespace(method=method, raw_path=path, headers=headers))


def answering(status: int) -> Callable[[BaseRequest], Awaitable[Any]]:
    async def handle(_: BaseRequest) -> Any:
        return SimpleNamespace(status=status)

    return handle


def entries(*indexes: int, term: int = 3) -> Sequence[Entry]:
    return tuple(Entry(index, term, EntryKind.COMMAND, b"") for index in indexes)


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Return the trace's id and the span's own."""
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def a_write(tracer: Tracer, index: int = 8, apply_term: int = 3) -> None:
    """Take one traced write through the node's hooks, in the order of the driver."""

    async def handle(_: BaseRequest) -> Any:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tracer.submitted(waiter)
        tracer.proposed(index, 3, [waiter])
        tracer.saving(entries(index))
        tracer.saved()
        tracer.committed(entries(index, term=apply_term))
        tracer.applied(entries(index, term=apply_term))
        waiter.set_result(None)
        return SimpleNamespace(status=200)

    asyncio.run(cast(Any, tracer.wrap(handle)(request())))


def test_a_write_is_shown_from_request_to_apply(traced: Traced) -> None:
    a_write(traced.tracer)
    spans = traced.spans()
    assert list(spans) == [
        "kvorum.save",
        "kvorum.propose",
        "kvorum.quorum",
        "kvorum.apply",
        "PUT /v1/kv/{key}",
    ]
    root = spans["PUT /v1/kv/{key}"]
    for name in ("kvorum.propose", "kvorum.save", "kvorum.quorum", "kvorum.apply"):
        span = spans[name]
        assert ids(span)[0] == TRACE_ID
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == ids(root)[1]
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
    quorum, apply = spans["kvorum.quorum"], spans["kvorum.apply"]
    assert spans["kvorum.propose"].end_time == quorum.start_time
    assert quorum.end_time == apply.start_time
    assert quorum.attributes == {"raft.index": 8, "raft.term": 3, "kvorum.batch_size": 1}


def test_the_clients_trace_is_carried_on(traced: Traced) -> None:
    asyncio.run(cast(Any, traced.tracer.wrap(answering(200))(request())))
    (span,) = traced.spans().values()
    assert ids(span)[0] == TRACE_ID
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.attributes == {
        "http.request.method": "PUT",
        "http.route": "/v1/kv/{key}",
        "http.response.status_code": 200,
    }


def test_no_span_carries_a_key(traced: Traced) -> None:
    a_write(traced.tracer)
    for span in traced.spans().values():
        assert SECRET not in span.to_json()


def test_a_failed_request_is_marked(traced: Traced) -> None:
    asyncio.run(cast(Any, traced.tracer.wrap(answering(503))(request())))
    (span,) = traced.spans().values()
    assert not span.status.is_ok


@pytest.mark.parametrize("header", [None, NOT_SAMPLED, "", "nonsense", f"00-{TRACE_ID}", SAMPLED.upper()])
def test_a_request_that_nobody_wants_traced_leaves_no_span(traced: Traced, header: str | None) -> None:
    asyncio.run(cast(Any, traced.tracer.wrap(answering(200))(request(traceparent=header))))
    assert not traced.spans()


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.25, 10), (1.0, 40)])
def test_the_ratio_is_the_part_of_the_requests_that_is_traced(ratio: float, expected: int) -> None:
    traced = Traced(ratio)

    async def scenario() -> None:
        handle = traced.tracer.wrap(answering(200))
        for _ in range(40):
            await cast(Any, handle(request(traceparent=None)))

    asyncio.run(scenario())
    traced.tracer.close()
    assert len(traced.exporter.get_finished_spans()) == expected


def test_clients_cannot_have_more_traced_than_the_node_allows(traced: Traced) -> None:
    async def scenario() -> None:
        handle = traced.tracer.wrap(answering(200))
        for _ in range(5 * TRACES_A_SECOND_MAX):
            traced.clock.now = 5_000_000_000_000
            await cast(Any, handle(request()))

    asyncio.run(scenario())
    traced.tracer.close()
    assert len(traced.exporter.get_finished_spans()) == TRACES_A_SECOND_MAX


def test_a_write_whose_entry_another_leader_replaced_is_not_said_to_be_applied(traced: Traced) -> None:
    a_write(traced.tracer, apply_term=4)
    assert not traced.tracer._batches
    assert "kvorum.apply" not in traced.spans()


def test_an_entry_may_be_applied_before_it_is_saved_here(traced: Traced) -> None:
    tracer = traced.tracer

    async def handle(_: BaseRequest) -> Any:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tracer.submitted(waiter)
        tracer.proposed(8, 3, [waiter])
        tracer.saving(entries(7, 8))
        tracer.committed(entries(8))
        tracer.applied(entries(8))
        tracer.saved()
        waiter.set_result(None)
        return SimpleNamespace(status=200)

    asyncio.run(cast(Any, tracer.wrap(handle)(request())))
    assert not tracer._batches
    assert {"kvorum.save", "kvorum.apply"} <= traced.spans().keys()


def test_writes_that_are_never_proposed_or_applied_are_forgotten(traced: Traced) -> None:
    tracer = traced.tracer

    async def handle(_: BaseRequest) -> Any:
        for index in range(3 * PENDING_MAX):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            tracer.submitted(waiter)
            if index % 2:
                tracer.proposed(index, 3, [waiter])
            else:
                waiter.cancel()
                await asyncio.sleep(0)
        return SimpleNamespace(status=200)

    asyncio.run(cast(Any, tracer.wrap(handle)(request())))
    assert not tracer._waiting
    assert len(tracer._batches) == PENDING_MAX


def test_a_read_shows_its_barrier(traced: Traced) -> None:
    async def handle(_: BaseRequest) -> Any:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        traced.tracer.waits("kvorum.read_barrier", waiter)
        waiter.set_result(None)
        await waiter
        await asyncio.sleep(0)
        return SimpleNamespace(status=200)

    asyncio.run(cast(Any, traced.tracer.wrap(handle)(request("GET"))))
    assert set(traced.spans()) == {"kvorum.read_barrier", "GET /v1/kv/{key}"}


def test_what_is_not_traced_is_not_looked_at(traced: Traced) -> None:
    async def handle(_: BaseRequest) -> Any:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        traced.tracer.submitted(waiter)
        traced.tracer.waits("kvorum.read_barrier", waiter)
        traced.tracer.proposed(8, 3, [waiter])
        waiter.set_result(None)
        return SimpleNamespace(status=200)

    asyncio.run(cast(Any, traced.tracer.wrap(handle)(request(traceparent=None))))
    assert not traced.tracer._waiting
    assert not traced.tracer._batches
    assert not traced.spans()


def test_nothing_of_tracing_is_loaded_when_it_is_off() -> None:
    loaded = "[m for m in sys.modules if 'otlp' in m or m == 'kvorum.telemetry.tracing']"
    code = f"import sys, kvorum.commands.serve; print({loaded})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


class Collector:
    """A stand-in for an OpenTelemetry collector: OTLP over HTTP, on loopback."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.nodes: set[str] = set()

    async def take(self, request: web.Request) -> web.Response:
        """Take a batch of spans."""
        received = ExportTraceServiceRequest.FromString(await request.read())
        for resource in received.resource_spans:
            attributes = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
            self.nodes.add(attributes["service.instance.id"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def trace(self, trace_id: str, span_count: int) -> dict[str, Any]:
        """Return the spans of a trace, by name, once there are so many."""

        def found() -> dict[str, Any] | None:
            spans = {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}
            return spans if len(spans) >= span_count else None

        return await until(f"{span_count} spans of trace {trace_id}", found)


@pytest.mark.slow
def test_a_real_cluster_sends_the_whole_trace_of_a_write_and_of_a_read(tmp_path: Path) -> None:
    async def scenario() -> tuple[dict[str, Any], dict[str, Any], set[str]]:
        collector = Collector()
        app = web.Application()
        app.router.add_post("/v1/traces", collector.take)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        flags = ("--trace-endpoint", f"http://127.0.0.1:{port}/v1/traces", "--trace-ratio", "0")
        try:
            async with running_cluster(tmp_path, *flags) as cluster:
                leader = await asyncio.to_thread(cluster.settled)
                await _ask(cluster, leader, "PUT", SAMPLED)
                write = await collector.trace(TRACE_ID, 5)
                other = SAMPLED.replace("0af7", "1af7")
                await _ask(cluster, leader, "GET", other)
                read = await collector.trace(other.split("-")[1], 2)
                return write, read, collector.nodes
        finally:
            await stop_server(runner)

    write, read, nodes = asyncio.run(scenario())
    assert set(write) == {"PUT /v1/kv/{key}", "kvorum.propose", "kvorum.save", "kvorum.quorum", "kvorum.apply"}
    assert set(read) == {"GET /v1/kv/{key}", "kvorum.read_barrier"}
    assert len(nodes) == 1
    root = write["PUT /v1/kv/{key}"]
    assert root.parent_span_id.hex() == PARENT_ID
    for name in ("kvorum.propose", "kvorum.save", "kvorum.quorum", "kvorum.apply"):
        assert write[name].parent_span_id == root.span_id
        assert root.start_time_unix_nano <= write[name].start_time_unix_nano <= write[name].end_time_unix_nano


async def _ask(cluster: Cluster, node: str, method: str, traceparent: str) -> None:
    url = f"http://{cluster.addresses[node]}/v1/kv/a"
    body = b"1" if method == "PUT" else None
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=body, headers={"traceparent": traceparent}) as response,
    ):
        assert response.status == 200


def test_a_wrong_endpoint_is_one_clear_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvorum", "serve", "--data-dir", str(tmp_path), "--trace-endpoint", "otel:4318"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "trace_endpoint 'otel:4318' is not http://HOST:PORT/v1/traces" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_without_the_exporter_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match="opentelemetry-exporter-otlp-proto-http is not installed"):
        tracing.open_tracer(Config(name="n1", trace_endpoint="http://127.0.0.1:4318/v1/traces"))


def test_a_collector_that_does_not_answer_does_not_keep_the_node_from_ending() -> None:
    """It takes the connection and says nothing: the worst of its kind."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1/traces"
        tracer = tracing.open_tracer(Config(name="n1", trace_endpoint=endpoint, trace_ratio=1.0))
        asyncio.run(cast(Any, tracer.wrap(answering(200))(request(traceparent=None))))
        begun = time.monotonic()
        tracer.close()
        assert time.monotonic() - begun < tracing.CLOSE_DEADLINE_S + tracing.EXPORT_TIMEOUT_S + 1
