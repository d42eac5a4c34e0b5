"""Watches: how many events a second one node delivers to many watchers of one prefix, and what an event costs it.

Run as ``.venv/bin/python -m bench.watch [WATCHERS]``; ``make bench`` prints the same row. There is no goal: on a shared
machine the receivers, which run in this process, may be the limit. Processor time an event is the figure to compare.
"""

from __future__ import annotations

import asyncio
import http.client
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from bench.processes import BenchError, Server, cpu_seconds, free_ports, serve_arguments

WATCHERS = 1000
WRITERS = 16
EVENTS = 62 * WRITERS
VALUE = b"v" * 128
DEADLINE_S = 120.0


class Watched(msgspec.Struct, frozen=True):
    """One measurement."""

    watchers: int
    events: int
    """Delivered, over all watchers."""
    seconds: float
    """From the first write to the last event."""
    node_cpu_seconds: float

    def row(self) -> str:
        """Return the figures as a line."""
        return (
            f"watch: {self.watchers:,} watchers of one prefix, {self.events:,} events in {self.seconds:.2f} s: "
            f"{self.events / self.seconds:,.0f} events/s, {1e6 * self.node_cpu_seconds / self.events:.2f} us of the "
            "node's processor an event (writes included)"
        )


class _Receiver(asyncio.Protocol):
    """Counts the events of one watch."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.events = 0
        loop = asyncio.get_running_loop()
        self.has_begun, self.has_all = loop.create_future(), loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        host = f"127.0.0.1:{self._port}"
        transport.write(f"GET /v1/watch?prefix=w/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b'"events"')
        if not self.has_begun.done() and b'"progress"' in data:
            self.has_begun.set_result(None)
        if self.events >= EVENTS and not self.has_all.done():
            self.has_all.set_result(None)


async def _write(port: int, numbers: range) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in numbers:
        head = f"PUT /v1/kv/w/{number % 100} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(VALUE)}\r\n\r\n"
        writer.write(head.encode() + VALUE)
        answer = await reader.readuntil(b"}\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"a put failed: {answer[:200]!r}")
    writer.close()


async def _measure(port: int, pid: int, watchers: int) -> Watched:
    loop = asyncio.get_running_loop()
    pairs = [await loop.create_connection(lambda: _Receiver(port), "127.0.0.1", port) for _ in range(watchers)]
    receivers = [receiver for _, receiver in pairs]
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(receiver.has_begun for receiver in receivers))
        began, cpu = time.monotonic(), cpu_seconds(pid)
        share = EVENTS // WRITERS
        await asyncio.gather(*(_write(port, range(each * share, (each + 1) * share)) for each in range(WRITERS)))
        await asyncio.gather(*(receiver.has_all for receiver in receivers))
        watched = Watched(watchers, EVENTS * watchers, time.monotonic() - began, cpu_seconds(pid) - cpu)
    for transport, _ in pairs:
        transport.abort()
    return watched


def _wait_for_level(port: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v1/watch?key=k&from_revision=1")
            if connection.getresponse().status in (200, 410):
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise BenchError("the node does not serve watches")


def measure_watches(folder: Path, watchers: int = WATCHERS) -> Watched:
    """Measure one node of its own, whose data folder and log are made in a folder.

    Raises:
        BenchError: it did not work.
    """
    client_port, peer_port = free_ports(2)
    arguments = serve_arguments("n1", client_port, {"n1": peer_port}, folder / "n1")
    server = Server("n1", [sys.executable, "-m", "kvorum", *arguments], folder / "n1.log")
    server.start()
    try:
        _wait_for_level(client_port)
        return asyncio.run(_measure(client_port, server.pid, watchers))
    finally:
        server.kill()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(measure_watches(Path(temporary), int(sys.argv[1]) if len(sys.argv) > 1 else WATCHERS).row())
