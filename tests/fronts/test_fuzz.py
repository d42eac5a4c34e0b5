"""Thousands of odd requests to a leader, a follower that forwards, and a node without a leader: each gets an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import time

import pytest
from fronts.fake_node import FakeNode, Server, make_config, serving

from kvorum.errors import NoLeaderError
from kvorum.fronts.http.problems import TABLE

REQUESTS = 2400
AT_ONCE = 16
ANSWER_S = 5.0
"""More than any deadline of these nodes, even on a slow machine: what takes longer hangs."""
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d\d\d) ")

TARGETS = (
    *("/v1/kv/k", "/v1/kv/k", "/v1/kv/k", "/v1/kv/k?prev_revision=0", "/v1/kv/k?forward=true", "/v1/kv/"),
    *("/v1/kv/k?consistency=stale", "/v1/cluster", "/v1/cluster/leader", "/v1/cluster/members", "/v1/hash"),
    *("/v1/txn", "/v1/batch", "/v1/kv?prefix=k", "/v1/kv?start=a&end=%ff", "/v1/kv/k?ignore_value&prev_value"),
    *("/v1/cluster/members/n1", "/v1/cluster/members/n1/promote", "/livez", "/readyz?verbose", "/metrics", "/version"),
)
ODDS = (2, 5, 6, 1, 1, 1, 1)
METHODS = (
    "GET",
    "HEAD",
    "PUT",
    "PUT",
    "PUT",
    "DELETE",
    "POST",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "get",
    "P UT",
    "",
)
PIECES = (
    *("/", "/v1/kv/", "/v1/kv/k", "/v1/cluster", "/v1/cluster/leader", "/v1/cluster/members", "/v1/cluster/members/n1"),
    *("/promote", "/v1/hash", "/livez", "/readyz", "/readyz/leader", "/metrics", "/version", "..", "//", "%2F", "%00"),
    *("%ff", "%", "%zz", "%25", "+", "#", "\\", '"', "\u00e9", "\x7f", "k" * 1100, "k" * 9000, "http://h", "*", ";"),
)
PARAMETERS = ("prev_revision", "timeout_ms", "consistency", "max_staleness_ms", "forward", "verbose", "exclude", "x")
VALUES = (
    "",
    "0",
    "1",
    "50",
    "-1",
    "stale",
    "linearizable",
    "true",
    "9" * 20,
    "%00",
    "%ff",
    "%",
    "leader,storage",
    "\u0663",
)
HEADERS = (
    *("Idempotency-Key: c/1", "Idempotency-Key: c/2", "Idempotency-Key: c", "Idempotency-Key: /", "Idempotency-Key:"),
    *(
        'If-Match: "1"',
        "If-Match: *",
        'If-None-Match: "1", W/"2"',
        "If-None-Match: *",
        "If-None-Match: ,",
        "Accept: */*",
    ),
    *("Accept: application/json", "Content-Encoding: gzip", "Content-Encoding: identity", "Expect: 100-continue"),
    *(
        "Expect: x",
        "Origin: http://evil",
        "Origin: null",
        "Upgrade: websocket",
        "Connection: upgrade",
        "Range: bytes=0-",
    ),
    *("Content-Range: bytes 0-1/2", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Content-Length: 3"),
    *(
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Content-Length: 2000000",
        "Host: y",
        "TE: trailers",
    ),
    *("X-Kvorum-Forwarded-By: n9", "traceparent: 00-0-0-00", "X: " + "y" * 9000, "no colon", " folded", ": empty"),
)
BODIES = (
    b"",
    b"v",
    b"{}",
    b'{"target": "n2"}',
    b'{"then": [{"put": {"key": "k", "value": "v"}}, {"range": {"prefix": ""}}]}',
    b'{"operations": [{"put": {"key": "k", "value": "v"}}, {"delete": {"prefix": "k"}}]}',
    b'{"then": [' + b'{"txn": {"then": [' * 400,
    b'{"target": "\xff"}',
    b"[" * 3000,
    b"null",
    b"1\r\nv\r\n0\r\n\r\n",
    b"x" * 4000,
)


def odd_request(chance: random.Random) -> bytes:
    """Return a request that would be fine, but for up to two oddities: of the head, the body, or its bytes."""
    method, version, headers, body = chance.choice(METHODS[:7]), "HTTP/1.1", ["Host: x"], chance.choice(BODIES)
    target = chance.choice(TARGETS)
    length = f"Content-Length: {len(body)}"
    damage = None
    for oddity in chance.choices(
        ("piece", "parameter", "header", "method", "version", "length", "damage"), ODDS, k=chance.choice((0, 1, 1, 2))
    ):
        match oddity:
            case "piece":
                target += chance.choice(PIECES)
            case "parameter":
                target += f"{'&' if '?' in target else '?'}{chance.choice(PARAMETERS)}={chance.choice(VALUES)}"
            case "header":
                headers.append(chance.choice(HEADERS))
            case "method":
                method = chance.choice(METHODS)
            case "version":
                version = chance.choice(("HTTP/1.0", "HTTP/1.0", "HTTP/2.0", "HTTP/9", ""))
            case "length":
                length = chance.choice(("", f"Content-Length: {len(body) + 3}", "Transfer-Encoding: chunked"))
            case _:
                damage = chance.random()
    lines = [f"{method} {target} {version}", *headers, "Connection: close", *filter(None, [length]), "", ""]
    data = "\r\n".join(lines).encode() + body
    if damage is None:
        return data
    place = int(damage * len(data))
    return data[:place] + chance.choice((b"", chance.randbytes(3) + data[place + 1 :]))


def check(request: bytes, answer: bytes) -> int:
    """Look at what came back; return how many answers there were."""
    statuses = [int(status) for status in STATUS_LINE.findall(answer)]
    assert 500 not in statuses, (request, answer)
    assert b"Traceback" not in answer, (request, answer)
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"problem+json" in head and not request.startswith(b"HEAD") and len(statuses) == 1:
        problem = json.loads(body)
        row = TABLE[problem["code"]]
        assert (problem["status"], problem["outcome"], statuses) == (row.status, row.outcome, [row.status]), request
        assert problem["detail"], request
    return len(statuses)


def test_no_request_of_thousands_makes_a_500_a_traceback_or_a_hang(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> int:
        quick = {"body_timeout_s": 0.1, "keepalive_s": 0.3, "request_timeout_ms": 200}
        leader, follower, orphan = (FakeNode(make_config(name=name, **quick)) for name in ("n1", "n2", "n3"))
        async with contextlib.AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(serving(node)) for node in (leader, follower, orphan)]
            follower.follow("n1", servers[0].url)
            orphan.leads, orphan.leader, orphan.error = False, None, NoLeaderError("nobody leads")
            chance = random.Random(1)
            requests = [(odd_request(chance), servers[i % 3]) for i in range(REQUESTS)]
            answered = await _send_all(requests)
            for server in servers:
                assert (await server("GET", "/livez")).status == 200
                assert server.node.counters.inflight == 0
        assert len(leader.proposed) > REQUESTS / 100, "enough of it was a write after all"
        return answered

    with caplog.at_level(logging.DEBUG, logger="kvorum"):
        answered = asyncio.run(main())
    assert answered > 0.8 * REQUESTS, "most of them were answered: silence is for half a head only"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info] == []


async def _send_all(requests: list[tuple[bytes, Server]]) -> int:
    remaining = iter(requests)
    answered = 0

    async def worker() -> None:
        nonlocal answered
        for request, server in remaining:
            started = time.monotonic()
            answer = await server.raw(request)
            answered += bool(check(request, answer))
            assert time.monotonic() - started < ANSWER_S, request

    async with asyncio.timeout(240), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())
    return answered
