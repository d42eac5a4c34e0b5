"""How many connections the peer port holds: those of the members, and a few more."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import aiohttp
from bench.processes import free_ports
from transport.test_peers import CALLER, CLUSTER, SERVER, FakeNode, message
from waiting import until

from kvorum.config import Config, PeerAddress
from kvorum.connections import LimitedServer
from kvorum.identity import Identity
from kvorum.raft.codec import encode
from kvorum.raft.messages import PeerMark
from kvorum.telemetry.counters import Counters
from kvorum.transport import SnapshotChunk
from kvorum.transport.handshake import dialling_headers
from kvorum.transport.port import STRANGERS_MAX, PeerPort

MEMBERS = ("n1", "n2", "n3")


class Node(FakeNode):
    """As the fake, for a port that also calls."""

    def on_broken(self, recipient: str) -> None:
        self.disconnected.append(recipient)

    def on_marks(self, node: str, marks: tuple[PeerMark, ...], address: str) -> None:
        pass


async def _idle_connections(port: int, count: int, stack: contextlib.AsyncExitStack) -> list[asyncio.StreamReader]:
    readers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stack.callback(writer.close)
        readers.append(reader)
    return readers


def _servers() -> list[LimitedServer]:
    return [each for each in gc.get_objects() if isinstance(each, LimitedServer)]


class Served(NamedTuple):
    """A peer port that is being served, and a session for the test's own calls."""

    port: PeerPort
    server: LimitedServer
    """What holds the connections of the port, which does not offer it."""
    node: Node
    counters: Counters
    number: int
    session: aiohttp.ClientSession
    stack: contextlib.AsyncExitStack

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.number}/raft/v1"

    def headers(self, caller: Identity) -> dict[str, str]:
        return dialling_headers(caller, SERVER.node_id, "http://127.0.0.1:1", "word")

    async def dial(self, caller: Identity = CALLER) -> aiohttp.ClientWebSocketResponse:
        return await self.session.ws_connect(f"{self.url}/stream", headers=self.headers(caller))


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Served]:
    number = free_ports(1)[0]
    node = Node()
    config = Config(
        name="n1",
        data_dir=str(folder),
        listen_peer=f"127.0.0.1:{number}",
        advertise_peer_url=f"http://127.0.0.1:{number}",
        advertise_client_url="http://127.0.0.1:1",
        bootstrap_token="word",
        peers=tuple(PeerAddress(name, "127.0.0.1", number) for name in MEMBERS),
    )
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        counters = Counters()
        port = PeerPort(config, counters, Random(1))
        stack.push_async_callback(port.close)
        others = _servers()
        await port.start(node)
        # Other tests may have left theirs.
        [server] = [each for each in _servers() if not any(each is other for other in others)]
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Served(port, server, node, counters, number, session, stack)


def stranger(number: int) -> Identity:
    return Identity(f"zz{number}", "9" * 16, CLUSTER)


PLACES = len(MEMBERS) + STRANGERS_MAX


def test_idle_connections_to_the_peer_port_are_closed_for_new_ones_and_streams_are_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            stream = await served.dial()
            readers = await _idle_connections(served.number, 4 * STRANGERS_MAX, served.stack)
            # The stream holds one place; each connection above the limit closed the longest idle one.
            places = PLACES - 1
            await until("most are closed", lambda: sum(each.at_eof() for each in readers) >= len(readers) - places)
            assert not any(each.at_eof() for each in readers[-places:])
            async with served.session.get(f"{served.url}/hello") as hello:
                assert hello.status == 200
            await stream.send_bytes(encode([message()]))
            await until("the stream still works", lambda: served.node.received or None)
            await stream.close()

    asyncio.run(scenario())


def test_a_member_displaces_the_stream_of_a_stranger_and_not_that_of_a_member(tmp_path: Path) -> None:
    """The streams of invented members took all places, and a member that was restarted could not call."""

    async def scenario() -> None:
        async with serving(tmp_path) as served:
            first = await served.dial()
            strangers = [await served.dial(stranger(number)) for number in range(PLACES - 1)]
            served.node.members.append("n3@" + "3" * 16)
            second = await served.dial(Identity("n3", "3" * 16, CLUSTER))
            assert (await strangers[0].receive()).type is aiohttp.WSMsgType.CLOSED
            for number in range(PLACES, 2 * PLACES):
                strangers.append(await served.dial(stranger(number)))
            for stream, sender in ((first, CALLER.node_id), (second, "n3@" + "3" * 16)):
                served.node.received.clear()
                await stream.send_bytes(encode([message(sender=sender)]))
                await until("the member's stream still works", lambda: served.node.received or None)
            assert served.node.disconnected.count(CALLER.node_id) == 0
            for stream in (first, second, *strangers):
                await stream.close()

    asyncio.run(scenario())


def test_a_member_displaces_a_request_that_does_not_end_when_there_is_no_stranger(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            released = asyncio.Event()

            async def held(*_: object) -> SnapshotChunk:
                served.node.demands.append(None)
                await released.wait()
                return SnapshotChunk(b"s", 7, 1, "a" * 64)

            served.node.snapshot_chunk = held  # type: ignore[assignment, method-assign]
            readers = []
            for number in range(PLACES):
                reader, writer = await asyncio.open_connection("127.0.0.1", served.number)
                served.stack.callback(writer.close)
                headers = {"Host": "127.0.0.1", **served.headers(stranger(number))}
                head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(f"GET /raft/v1/snapshots/7 HTTP/1.1\r\n{head}\r\n".encode())
                readers.append(reader)
                await until("it is in hand", lambda number=number: len(served.node.demands) > number)  # type: ignore[misc]
            stream = await served.dial()
            await stream.send_bytes(encode([message()]))
            await until("the member's stream works", lambda: served.node.received or None)
            await until("the oldest request was given up", readers[0].at_eof)
            assert not any(reader.at_eof() for reader in readers[1:])
            released.set()
            await stream.close()

    asyncio.run(scenario())


def test_a_port_that_closes_keeps_no_connection_of_somebody_who_does_not_read(tmp_path: Path) -> None:
    """What such a one had not read kept its connection open, and its descriptor, until the process ended."""

    async def scenario() -> None:
        async with serving(tmp_path) as served:

            async def large(*_: object) -> SnapshotChunk:
                return SnapshotChunk(bytes(32 << 20), 7, 32 << 20, "a" * 64)

            served.node.snapshot_chunk = large  # type: ignore[assignment, method-assign]
            _reader, writer = await asyncio.open_connection("127.0.0.1", served.number, limit=1)
            served.stack.callback(writer.close)
            headers = {"Host": "127.0.0.1", **served.headers(CALLER)}
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"GET /raft/v1/snapshots/7 HTTP/1.1\r\n{head}\r\n".encode())
            sending = await until("a connection", lambda: next(iter(served.server.open), None))
            await until("an answer that waits", sending.get_write_buffer_size)
            await served.port.close()
            await asyncio.sleep(0)
            assert sending.get_extra_info("socket").fileno() == -1

    asyncio.run(scenario())


def test_a_connection_that_is_accepted_while_the_port_closes_is_closed(tmp_path: Path) -> None:
    """It stayed open until the process ended."""

    async def scenario() -> None:
        async with serving(tmp_path) as served:
            server = served.server
            await served.port.close()
            ours, theirs = socket.socketpair()
            with ours:
                transport, _ = await asyncio.get_running_loop().connect_accepted_socket(server, theirs)
                assert transport.is_closing()
                await until("it is closed", lambda: theirs.fileno() == -1 or None)
            assert not server.open

    asyncio.run(scenario())
