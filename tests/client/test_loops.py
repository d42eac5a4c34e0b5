"""A client in careless hands: in two event loops, never closed, called from its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import warnings
from collections.abc import AsyncIterator

import pytest
from client.test_client import run
from fronts.fake_node import CLUSTER, Server, serving
from serving import stream_server
from waiting import until

from kvorum_client import Client, InvalidArgumentError, SyncClient

UNCLOSED = "a client of Kvorum was not closed: call close(), or use it in a `with`"
PUT = b'{"revision":1,"create_revision":1,"mod_revision":1,"version":1}'


@contextlib.asynccontextmanager
async def counting_server(connections: set[object]) -> AsyncIterator[str]:
    """Answer every request like a put, and keep the connections that are open in the set."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\nv")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(PUT), PUT))
        connections.remove(writer)
        writer.close()

    async with stream_server(serve) as address:
        yield address


CALLS = ("put", "get", "members", "status", "health", "backup")


async def _call(kv: Client, name: str, url: str) -> object:
    match name:
        case "put":
            return await kv.put("k", "v")
        case "health":
            return await kv.health(url)
        case "get":
            return await kv.get("k")
        case "backup":
            return await kv.backup(lambda chunk, size_bytes: None)
        case "members":
            return await kv.members()
        case _:
            return await kv.status(url)


def _in_another_thread(server: Server, kv: Client, name: str) -> None:
    """Use the client in an event loop of another thread while its own runs."""
    with pytest.raises(InvalidArgumentError, match="was used in another event loop: make a Client"):
        asyncio.run(_call(kv, name, server.url))


def test_a_client_in_a_second_event_loop_says_so() -> None:
    async def scenario() -> None:
        async with serving() as server, Client([server.url]) as kv:
            await kv.put("k", "v")
            for name in CALLS:
                await asyncio.to_thread(_in_another_thread, server, kv, name)
            with pytest.raises(InvalidArgumentError, match="was used in another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(kv.close()))
            assert (await kv.put("k", "v")).revision == 2

    run(scenario)


def test_a_second_asyncio_run_says_so_and_the_client_can_still_be_closed() -> None:
    async def scenario() -> None:
        async with serving() as server:
            with warnings.catch_warnings():
                # The sockets of a loop that was closed under them are asyncio's to report.
                warnings.filterwarnings("ignore", "unclosed (transport|<socket)", ResourceWarning)
                await asyncio.to_thread(_run_twice, server)
                gc.collect()

    run(scenario)


def _run_twice(server: Server) -> None:
    kv = Client([server.url])
    asyncio.run(_call(kv, "put", server.url))
    for name in CALLS:
        with pytest.raises(InvalidArgumentError, match="was used in an event loop that is closed: make a Client"):
            asyncio.run(_call(kv, name, server.url))

    async def use_in_a_with() -> None:
        async with kv:
            await kv.put("k", "v")

    with pytest.raises(InvalidArgumentError, match="that is closed"):
        asyncio.run(use_in_a_with())


def test_a_client_that_was_not_closed_is_named_in_one_warning_and_its_connections_end() -> None:
    async def scenario() -> None:
        connections: set[object] = set()
        async with counting_server(connections) as endpoint:
            reported: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
            kv = Client([endpoint], cluster_id=CLUSTER)
            await kv.put("k", "v")
            assert len(connections) == 1
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del kv
                gc.collect()
            assert [str(w.message) for w in caught if w.category is ResourceWarning] == [UNCLOSED]
            await until("every connection is closed", lambda: not connections)
            assert reported == []

    run(scenario)


def test_a_client_whose_loop_ended_before_it_was_closed_is_named_in_one_warning() -> None:
    async def scenario() -> None:
        async with serving() as server:
            await asyncio.to_thread(_forget_after_the_loop, server)

    run(scenario)


def _forget_after_the_loop(server: Server) -> None:
    kv: Client | None = None

    async def put() -> None:
        nonlocal kv
        kv = Client([server.url])
        await kv.put("k", "v")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(put())
        kv = None
        gc.collect()
    assert {str(w.message) for w in caught if not str(w.message).startswith("unclosed")} == {UNCLOSED}


def test_a_synchronous_client_that_was_not_closed_is_named_in_one_warning_and_its_thread_ends() -> None:
    async def scenario() -> None:
        connections: set[object] = set()
        async with counting_server(connections) as endpoint:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                await asyncio.to_thread(_use_and_forget, endpoint)
            assert [str(w.message) for w in caught if w.category is ResourceWarning] == [UNCLOSED]
            await until("every connection is closed", lambda: not connections)
            await until(
                "the thread has ended",
                lambda: not any(thread.name == "kvorum-client" for thread in threading.enumerate()),
            )

    run(scenario)


def _use_and_forget(endpoint: str) -> None:
    kv = SyncClient([endpoint], cluster_id=CLUSTER)
    kv.put("k", "v")
    del kv
    gc.collect()


def test_a_synchronous_client_that_was_never_used_has_no_thread_and_needs_no_closing() -> None:
    kv = SyncClient(["127.0.0.1:1"])
    assert not any(thread.name == "kvorum-client" for thread in threading.enumerate())
    del kv
    gc.collect()


def test_a_callback_that_calls_its_own_client_is_told_so_instead_of_waiting_for_ever() -> None:
    async def scenario() -> None:
        async with serving() as server:
            server.node.backup_chunks = [b"KVORSNAP"]
            await asyncio.to_thread(_call_back, server)

    run(scenario)


def _call_back(server: Server) -> None:
    with SyncClient([server.url]) as kv, pytest.raises(InvalidArgumentError, match="the client's own thread"):
        kv.backup(lambda chunk, size_bytes: kv.get("k"))
