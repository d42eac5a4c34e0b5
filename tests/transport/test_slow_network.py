"""A network that carries less than is sent: heartbeats and votes do not wait behind entries."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import aiohttp
from aiohttp import web
from serving import stop_server, stream_server
from transport.test_link import PEER, US, Peer, bulk, heartbeat
from waiting import until

from kvorum.raft.messages import AppendEntries, Message
from kvorum.telemetry.counters import Counters
from kvorum.transport.settings import Dialling
from kvorum.transport.transport import Transport

PIECE_BYTES = 32 << 10
MEGABYTES = 24


class SlowNetwork:
    """Carries bytes to a port, a piece at a time, and hardly keeps any on the way."""

    def __init__(self, target: int) -> None:
        self._target = target

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)

        async def answers() -> None:
            while data := await there.read(PIECE_BYTES):
                writer.write(data)

        task = asyncio.create_task(answers())
        try:
            while data := await reader.read(PIECE_BYTES):
                back.write(data)
                await back.drain()
                await asyncio.sleep(0.002)
        except (ConnectionError, asyncio.CancelledError):
            pass  # A task that was cancelled would be reported as an error by the server that began it.
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for stream in (back, writer):
                stream.close()


@asynccontextmanager
async def over_a_slow_network() -> AsyncIterator[tuple[Transport, Peer]]:
    peer = Peer()
    peer.may_read.set()
    app = web.Application()
    app.router.add_get("/raft/v1/stream", peer.stream)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
    listener.bind(("127.0.0.1", 0))
    network = SlowNetwork(runner.addresses[0][1])
    async with (
        stream_server(network.carry, listener, limit=PIECE_BYTES) as address,
        aiohttp.ClientSession() as session,
    ):
        transport = Transport(
            Dialling(lambda: US, "http://us", "", lambda: session, Counters(), Random(1)), lambda _: None
        )
        transport.set_members({PEER.node_id: f"http://{address}"})
        try:
            await until("a stream", lambda: transport.is_connected(PEER.node_id) and peer.streams)
            yield transport, peer
        finally:
            await transport.close()
            await stop_server(runner)


def arrived(peer: Peer) -> list[Message]:
    return [message for frame in peer.frames for message in frame]


def test_heartbeats_overtake_the_entries_that_a_slow_network_holds_up() -> None:
    async def run() -> None:
        async with over_a_slow_network() as (transport, peer):
            for number in range(MEGABYTES):
                transport.send([bulk(1 << 20, index=number + 1)])
            transport.send([heartbeat(1)])
            await until("the first", lambda: peer.rounds, 20)
            before = sum(isinstance(message, AppendEntries) for message in arrived(peer))
            assert before <= 2, f"{before} MiB arrived before the heartbeat"
            transport.send([heartbeat(2)])
            await until("the second", lambda: peer.rounds == [1, 2], 20)
            assert sum(isinstance(message, AppendEntries) for message in arrived(peer)) <= before + 3
            await until("all", lambda: len(arrived(peer)) == MEGABYTES + 2, 60)
            indexes = [message.entries[0].index for message in arrived(peer) if isinstance(message, AppendEntries)]
            assert indexes == list(range(1, MEGABYTES + 1))

    asyncio.run(run())
