"""The load generators count only what was really answered. A server that lies stands in for the systems under test."""

from __future__ import annotations

import base64
import json
import shutil
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from bench.generators import BENCH, Generator, finish, http_generator
from bench.processes import BenchError

GENERATORS = [
    pytest.param("python", id="python"),
    pytest.param("go", id="go", marks=pytest.mark.skipif(shutil.which("go") is None, reason="needs go")),
]


class Node(socketserver.StreamRequestHandler):
    """A key-value server of one process, with ways to misbehave."""

    store: dict[str, bytes]
    fault: str
    wbufsize = -1

    def handle(self) -> None:
        while line := self.rfile.readline():
            method, path, _ = line.decode().split(" ")
            size = 0
            while (header := self.rfile.readline()) != b"\r\n":
                if header.lower().startswith(b"content-length:"):
                    size = int(header.split(b":")[1])
            body = self.rfile.read(size)
            if method == "POST":
                self.store.update(puts_of(path, body))
                self.answer(200, b'{"succeeded":%s}' % (b"false" if self.fault == "fails transactions" else b"true"))
            elif method == "PUT":
                self.store[path] = body
                self.answer(503 if self.fault == "refuses puts" else 200, b"{}")
            else:
                value = self.store.get(path)
                if value is not None and self.fault == "mixes up values":
                    value = b"key-99999999" + value[12:]
                self.answer(404 if value is None else 200, value or b"")
            self.wfile.flush()

    def answer(self, status: int, body: bytes) -> None:
        if self.fault == "chunks":
            half = len(body) // 2 or 1
            parts = [part for part in (body[:half], body[half:]) if part]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            self.wfile.write(b"HTTP/1.1 %d x\r\nTransfer-Encoding: chunked\r\n\r\n%b" % (status, chunks))
        else:
            self.wfile.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


def puts_of(path: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Return what a transaction puts, as single puts would be kept."""
    txn = json.loads(body)
    if path == "/v1/txn":
        for each in txn["then"]:
            yield f"/v1/kv/{each['put']['key']}", each["put"]["value"].encode()
    else:
        for each in txn["success"]:
            key, value = (base64.b64decode(each["requestPut"][name]) for name in ("key", "value"))
            yield f"/v1/kv/{key.decode()}", value


@contextmanager
def node(fault: str = "") -> Iterator[tuple[str, dict[str, bytes]]]:
    handler = type("FaultyNode", (Node,), {"store": {}, "fault": fault})

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", handler.store  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


def generator(kind: str) -> Generator:
    if kind == "python":
        return Generator((sys.executable, str(BENCH / "pyload.py")), "python")
    found = http_generator()
    assert "loadgen" in found.description
    return found


KEYS = ("-keys", "200", "-value-bytes", "64")
SHORT = ("-clients", "3", "-seconds", "0.2", "-warmup", "0.05", *KEYS)


@pytest.mark.parametrize("fault", ["", "chunks"])
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_fill_puts_every_key_once_and_gets_find_them(kind: str, fault: str) -> None:
    with node(fault) as (address, store):
        filled = finish(generator(kind).run(address, ["-op", "fill", "-clients", "5", *KEYS]), 30)
        assert (filled.ops, filled.errors) == (200, 0)
        assert sorted(store) == [f"/v1/kv/key-{i:08d}" for i in range(200)]
        assert all(value[:12] == path.encode()[-12:] and len(value) == 64 for path, value in store.items())
        read = finish(generator(kind).run(address, ["-op", "get", *SHORT]), 30)
        assert read.ops > 0
        assert read.errors == 0
        assert 0 < read.p50_ms <= read.p99_ms <= read.max_ms
        assert read.cpu_seconds > 0


@pytest.mark.skipif(shutil.which("go") is None, reason="needs go")
@pytest.mark.parametrize("api", ["kvorum", "etcd"])
def test_a_fill_in_transactions_puts_what_a_fill_of_single_puts_does(api: str) -> None:
    with node() as (address, store):
        finish(generator("go").run(address, ["-op", "fill", "-clients", "3", *KEYS]), 30)
        single = dict(store)
        store.clear()
        options = ["-api", api, "-op", "fill", "-batch", "8", "-clients", "3", *KEYS]
        assert finish(generator("go").run(address, options), 30).ops == 25
        assert store == single
        options = ["-api", api, "-op", "put", "-batch", "8", *SHORT]
        assert finish(generator("go").run(address, options), 30).errors == 0
        assert store == single


@pytest.mark.skipif(shutil.which("go") is None, reason="needs go")
def test_a_transaction_that_does_not_succeed_is_an_error() -> None:
    options = ["-op", "put", "-batch", "8", "-clients", "3", "-seconds", "20", *KEYS]
    with node("fails transactions") as (address, _), pytest.raises(BenchError, match="did not succeed"):
        finish(generator("go").run(address, options), 30)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_value_of_another_key_is_an_error(kind: str) -> None:
    with node("mixes up values") as (address, _):
        finish(generator(kind).run(address, ["-op", "fill", "-clients", "5", *KEYS]), 30)
        with pytest.raises(BenchError, match="not the value of"):
            finish(generator(kind).run(address, ["-op", "get", "-clients", "3", "-seconds", "20", *KEYS]), 30)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_missing_key_is_an_error(kind: str) -> None:
    with node() as (address, _), pytest.raises(BenchError, match="status 404"):
        finish(generator(kind).run(address, ["-op", "get", "-clients", "3", "-seconds", "20", *KEYS]), 30)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_refused_put_is_not_counted_as_done(kind: str) -> None:
    with node("refuses puts") as (address, _), pytest.raises(BenchError, match="status 503"):
        finish(generator(kind).run(address, ["-op", "put", "-clients", "3", "-seconds", "20", *KEYS]), 30)


@pytest.mark.parametrize("kind", GENERATORS)
def test_no_server_is_said_so(kind: str) -> None:
    with node() as (address, _):
        pass
    with pytest.raises(BenchError, match="load generator failed"):
        finish(generator(kind).run(address, ["-op", "put", *SHORT]), 30)
