"""The HTTP generator for a machine without ``go``: the flags and the output of bench/loadgen, in asyncio.

It costs about three times as much an operation as the Go one, from the same cores as the servers; the table shows it.
Run as a program of its own; it imports nothing of Kvorum and nothing that is not in the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import re
import sys
import time

ERRORS_MAX = 1000
ANSWER_WITHIN_S = 15.0
HEADER = re.compile(rb"\r\n(content-length|transfer-encoding|connection): *([^\r]*)", re.IGNORECASE)


class Run:
    """A run in progress: what is asked, and what was measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.random = random.Random(options.seed)
        filler_source = random.Random(1)  # not the seed: every run knows the values of every other
        self.filler = bytes(filler_source.randrange(32, 127) for _ in range(options.value_bytes - 12))
        self.samples: list[float] = []
        self.errors = 0
        self.first_error = ""
        self.measuring = options.op == "fill"
        self.asked = 0
        self.answered = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next_request(self) -> tuple[bytes, bytes] | None:
        """Return a key and the bytes of a request for it; None when a fill has asked for every key."""
        number = self.random.randrange(self.options.keys)
        if self.options.op == "fill":
            if self.asked == self.options.keys:
                return None
            number = self.asked
            self.asked += 1
        key = b"key-%08d" % number
        host = self.options.address.encode()
        if self.options.api == "etcd":
            body = {"key": base64.b64encode(key).decode()}
            if self.options.op != "get":
                body["value"] = base64.b64encode(key + self.filler).decode()
            data = json.dumps(body).encode()
            path = b"range" if self.options.op == "get" else b"put"
            head = (
                b"POST /v3/kv/%b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            return key, head % (path, host, len(data)) + data
        if self.options.op == "get":
            return key, b"GET /v1/kv/%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (key, host)
        value = key + self.filler
        return key, b"PUT /v1/kv/%b HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n%b" % (
            key,
            host,
            len(value),
            value,
        )

    def check(self, key: bytes, status: int, body: bytes) -> None:
        """Count an answer as wrong if it is."""
        if status != 200:
            self.fail(f"status {status}: {body[:200]!r}")
        elif self.options.op == "get":
            value = body
            if self.options.api == "etcd":
                kvs = json.loads(body).get("kvs") or [{}]
                value = base64.b64decode(kvs[0].get("value", ""))
            if value != key + self.filler:
                self.fail(f"not the value of {key!r}: {body[:200]!r}")

    def fail(self, message: str) -> None:
        """Count an error; too many, or one while filling, end the run."""
        self.errors += 1
        self.first_error = self.first_error or message
        if (self.errors > ERRORS_MAX or self.options.op == "fill") and not self.done.done():
            self.done.set_exception(RuntimeError(f"{self.errors} errors, the first: {self.first_error}"))


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request in flight."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.buffer = b""
        self.key = b""
        self.asked_at = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the next request."""
        request = self.run.next_request()
        if request is None or self.transport is None:
            return
        self.key, data = request
        self.buffer = b""
        self.asked_at = time.perf_counter()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer; when it is whole, measure it and ask again."""
        self.buffer += data
        answer = parse(self.buffer)
        if answer is None:
            return
        now = time.perf_counter()
        errors_before = self.run.errors
        self.run.check(self.key, *answer)
        if self.run.measuring and self.run.errors == errors_before:
            self.run.samples.append(now - self.asked_at)
        self.run.answered += 1
        if self.run.options.op == "fill" and self.run.answered == self.run.options.keys and not self.run.done.done():
            self.run.done.set_result(None)
        self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        """End the run: a server that closes connections under load is not measured by this simple generator."""
        if not self.run.done.done():
            self.run.done.set_exception(RuntimeError(f"the server closed a connection: {error}"))


def parse(buffer: bytes) -> tuple[int, bytes] | None:
    """Return the status and the body of an answer, or None while it is not whole."""
    head, end, body = buffer.partition(b"\r\n\r\n")
    if not end:
        return None
    headers = {name.lower(): value for name, value in HEADER.findall(head)}
    if b"transfer-encoding" in headers:
        return (int(head[9:12]), b"".join(_chunks(body))) if body.endswith(b"0\r\n\r\n") else None
    size = int(headers.get(b"content-length", b"0"))
    return (int(head[9:12]), body[:size]) if len(body) >= size else None


def _chunks(body: bytes) -> list[bytes]:
    chunks = []
    while body:
        size, _, body = body.partition(b"\r\n")
        chunks.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return chunks


async def drive(options: argparse.Namespace) -> dict[str, object]:
    """Put the load on and return the figures."""
    run = Run(options)
    host, port = options.address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: Connection(run), host, int(port)))[1] for _ in range(options.clients)
    ]
    if options.op != "fill":
        await asyncio.wait([run.done], timeout=options.warmup)
    run.measuring = True
    begin, cpu_begin = time.perf_counter(), time.process_time()
    await asyncio.wait([run.done], timeout=options.seconds if options.op != "fill" else None)
    elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
    if run.done.done():
        run.done.result()  # raises what went wrong
    else:
        run.done.set_result(None)
    for connection in connections:
        if connection.transport is not None:
            connection.transport.abort()
    if not run.samples:
        raise RuntimeError(f"nothing was answered; {run.errors} errors, {run.first_error}")
    ordered = sorted(run.samples)
    quantiles = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
    figures = {k: 1e3 * ordered[min(int(q * len(ordered)), len(ordered) - 1)] for k, q in quantiles.items()}
    counts = {"ops": len(ordered), "errors": run.errors, "first_error": run.first_error}
    return {**counts, "seconds": elapsed, "cpu_seconds": cpu, **figures}


def main() -> int:
    """Read the flags of bench/loadgen, run, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-address", required=True)
    parser.add_argument("-api", choices=("kvorum", "etcd"), default="kvorum")
    parser.add_argument("-op", choices=("put", "get", "fill"), default="put")
    parser.add_argument("-clients", type=int, default=1)
    parser.add_argument("-seconds", type=float, default=5.0)
    parser.add_argument("-warmup", type=float, default=1.0)
    parser.add_argument("-keys", type=int, default=100_000)
    parser.add_argument("-value-bytes", type=int, default=200)
    parser.add_argument("-seed", type=int, default=1)
    try:
        print(json.dumps(asyncio.run(drive(parser.parse_args()))))
    except (RuntimeError, OSError) as error:
        print(f"pyload: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
