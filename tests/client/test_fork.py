"""A process that forks with a client in its hands: a web server with workers, a task queue."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import pytest
from client.test_client import run
from fronts.fake_node import Server, client_id_of, serving
from waiting import until

HEAD = """
import asyncio, os, sys, threading
from kvorum_client import Client, CompareFailedError, SyncClient
endpoint = sys.argv[1]
"""
SYNC = (
    HEAD
    + """
kv = SyncClient([endpoint], timeout_s=20)
def put(key, value, **options):
    return kv.put(key, value, **options)
"""
)
ASYNC = (
    HEAD
    + """
kv, loop, home = Client([endpoint], timeout_s=20), asyncio.new_event_loop(), os.getpid()
def put(key, value, **options):
    call = kv.put(key, value, **options)
    return loop.run_until_complete(call) if os.getpid() == home else asyncio.run(call)
"""
)
RACE = """
put("before", "fork")
reader, writer = os.pipe()
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        break
    children.append(child)
try:
    put("lock", str(os.getpid()), prev_revision=0)
    os.write(writer, b"done\\n")
except CompareFailedError:
    os.write(writer, b"refused\\n")
if not child:
    sys.exit(0)  # The whole end of an interpreter, and not only os._exit.
statuses = [os.waitpid(child, 0)[1] for child in children]
put("after", "the end of the children")
print(statuses, sorted(os.read(reader, 1000).split()))
"""
IN_FLIGHT = """
kv.put("before", "fork")
sys.stdin.readline()
thread = threading.Thread(target=lambda: kv.put("slow", "put"))
thread.start()
sys.stdin.readline()
child = os.fork()
if not child:
    sys.exit(0)
os.waitpid(child, 0)
print("forked", flush=True)
thread.join()
print(kv.put("after", "that").revision, flush=True)
"""
LOCKED = """
with kv._lock:
    child = os.fork()
    if not child:
        kv.put("child", "lives")
        kv.close()
        os._exit(0)
print(os.waitpid(child, 0)[1], kv.get("child").value)
"""
CLOSED = """
kv.put("before", "fork")
kv.close()
child = os.fork()
if not child:
    try:
        kv.put("after", "close")
    except Exception as error:
        os._exit(0 if str(error) == "the client is closed; make a new one" else 1)
print(os.waitpid(child, 0)[1])
"""


def _start(script: str, server: Server) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "default", "-c", script, server.url]
    # A fork with threads is what is tested here.
    environ = {"PYTHONPATH": ":".join(sys.path), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environ, start_new_session=True
    )


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=20)
        return out, "\n".join(line for line in err.splitlines() if "ResourceWarning" not in line)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children as well
        process.wait()


@pytest.mark.parametrize("client", [SYNC, ASYNC], ids=["sync", "async"])
def test_of_parent_and_children_that_create_one_key_one_succeeds(client: str) -> None:
    async def scenario() -> None:
        async with serving() as server:
            out, err = await asyncio.to_thread(lambda: _end(_start(client + RACE, server)))
            assert (out, err) == ("[0, 0, 0] [b'done', b'refused', b'refused', b'refused']\n", "")
            assert len({client_id_of(command) for command in server.node.proposed}) == 4

    run(scenario)


def test_a_child_that_ends_does_not_take_the_parents_calls_with_it() -> None:
    async def scenario() -> None:
        async with serving() as server:
            process = await asyncio.to_thread(_start, SYNC + IN_FLIGHT, server)
            assert process.stdin is not None and process.stdout is not None
            await until("the first put is done", lambda: len(server.node.proposed) == 1)
            server.node.gate = asyncio.Event()
            process.stdin.write("\n")
            process.stdin.flush()
            await until("the second put is under way", lambda: len(server.node.timeouts_ms) == 2)
            process.stdin.write("\n")
            process.stdin.flush()
            assert await asyncio.to_thread(process.stdout.readline) == "forked\n"
            server.node.gate.set()
            assert await asyncio.to_thread(_end, process) == ("3\n", "")
            assert len(server.node.timeouts_ms) == 3, "the put under way was sent again"

    run(scenario)


def test_a_lock_that_another_thread_held_at_the_fork_does_not_stop_the_child() -> None:
    async def scenario() -> None:
        async with serving() as server:
            assert await asyncio.to_thread(lambda: _end(_start(SYNC + LOCKED, server))) == ("0 b'lives'\n", "")

    run(scenario)


def test_a_client_that_was_closed_stays_closed_in_a_child() -> None:
    async def scenario() -> None:
        async with serving() as server:
            assert await asyncio.to_thread(lambda: _end(_start(SYNC + CLOSED, server))) == ("0\n", "")

    run(scenario)
