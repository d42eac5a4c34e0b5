"""Counting calls: exactly those between a request and its answer, of a server whose calls are known; and of a node."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench import calls
from bench.calls import COUNTED, Counted, Kinds, Labels, ask_all, costs_of, count, kinds_in
from bench.checkouts import Checkout, check_out
from bench.processes import BenchError, free_ports
from bench.runs import retried

SERVER = """
import asyncio, sys, threading

LOOP = {loop}

def work() -> int:
    return 1

def find() -> int | None:
    return None

def hand_on() -> int:
    return work()

class Protocol(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.received = b""

    def data_received(self, data):
        self.received += data
        if not self.received.endswith((b"\\r\\n\\r\\n", b"v")):
            return
        self.received = b""
        for _ in range(7):
            work()
        find()
        hand_on()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n")
        work()
        self.transport.write(b"ok")
        for _ in range(3):
            work()

async def main():
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

with asyncio.Runner(loop_factory=LOOP) as runner:
    runner.run(main())
"""
TO_THE_ANSWER = {"data_received": 1, "work": 10, "find": 1, "hand_on": 1}
LOOPS = ["None", "__import__('uvloop').Loop"]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WARMUP", 1)
    monkeypatch.setattr(calls, "PAUSE_S", 0.005)
    monkeypatch.setattr(calls, "IDLE_S", 0.2)


@contextmanager
def server(tmp_path: Path, loop: str) -> Iterator[int]:
    """A package called kvorum whose calls are known, under counted.py."""
    package = tmp_path / "service" / "kvorum"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SERVER.replace("{loop}", loop))
    [port] = free_ports(1)
    command = [sys.executable, str(COUNTED), str(port), str(tmp_path), str(port)]
    with subprocess.Popen(command, env={"PYTHONPATH": str(tmp_path / "service")}, cwd=tmp_path) as process:
        try:
            yield port
        finally:
            process.kill()


def asked(port: int, requests: int, folder: Path) -> Counted:
    deadline = time.monotonic() + 30
    while True:
        try:
            return ask_all(port, requests, folder)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
def test_what_is_called_between_a_request_and_its_answer_is_counted_and_nothing_else(tmp_path: Path, loop: str) -> None:
    if "uvloop" in loop:
        pytest.importorskip("uvloop")
    with server(tmp_path, loop) as port:
        counted = asked(port, 3, tmp_path)
    ours = {i: f.name for i, f in enumerate(counted.functions) if f.file.endswith("kvorum/__main__.py")}
    for request in counted.requests:
        found: dict[str, int] = {}
        for called in request.answer:
            if called.calls and called.function in ours:
                name = ours[called.function]
                found[name] = found.get(name, 0) + called.calls
        assert found == TO_THE_ANSWER
        in_all = sum(called.calls for called in request.whole if ours.get(called.function) == "work")
        assert in_all == TO_THE_ANSWER["work"] + 3

    cost = costs_of(counted, 3, Labels(Checkout("head", "", str(tmp_path), "", "", "", ""))).by_operation["put"]
    assert cost.by_file["kvorum/__main__.py"] == cost.in_kvorum == sum(TO_THE_ANSWER.values())
    assert (cost.forwards, cost.nothing_found, cost.forwards_or_nothing_found) == (1, 1, 2)
    assert cost.kvorum_files == 1
    # The thread's own call, and what threading does in it, are not the loop's.
    assert 1 <= cost.to_the_answer - cost.on_the_loops_thread < 10


@pytest.mark.usefixtures("hurried")
def test_a_server_that_is_not_counted_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "ANSWER_WITHIN_S", 0.5)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with server(tmp_path, "None") as port, pytest.raises(BenchError, match="left no counts"):
        asked(port, 2, elsewhere)


@pytest.mark.usefixtures("hurried")
def test_a_real_leader_is_counted(tmp_path: Path) -> None:
    side = check_out("head", None, tmp_path)
    cost = retried(lambda: count(side, 3))
    put, get = cost.by_operation["put"], cost.by_operation["get"]
    for each in (put, get):
        assert 0 < each.in_kvorum <= each.to_the_answer
        assert each.on_the_loops_thread <= each.to_the_answer
        assert 0 < each.forwards <= each.forwards_or_nothing_found
        assert 0 < each.nothing_found <= each.forwards_or_nothing_found
        assert 0 < each.kvorum_files <= each.files
    # Only a put is made durable, which the loop's thread leaves to another.
    assert put.on_the_loops_thread < put.to_the_answer
    assert any(name.startswith("kvorum/storage/") for name in put.by_file)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(self) -> int:\n    return self.log.last", Kinds(True, True)),
        ("def f(self) -> int:\n    '''Say.'''\n    return self.log.at(self.i, 3)", Kinds(True, True)),
        ("async def f(self) -> None:\n    await self.log.save(*self.entries, now=True)", Kinds(True, False)),
        ("def f(self) -> int:\n    return self.log.last + 1", Kinds(False, True)),
        ("def f(self) -> int:\n    return g(h())", Kinds(False, True)),
        ("def f(self) -> None:\n    self.a = 1", Kinds(False, False)),
        ("def f(self) -> None:\n    g()\n    h()", Kinds(False, False)),
        ("def f(self):\n    return self", Kinds(False, False)),
        ("def f(self) -> None:\n    return", Kinds(False, False)),
    ],
)
def test_a_function_is_told_by_its_source(source: str, expected: Kinds) -> None:
    assert kinds_in(source) == {("f", 1): expected}


def test_a_decorated_function_begins_at_its_decorator() -> None:
    assert kinds_in("\n@property\ndef f(self) -> int:\n    return self.n.m") == {("f", 2): Kinds(True, True)}
