"""How many connections the peer port holds: those of the members, and a few more."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import aiohttp
from bench.processes import free_ports
from transport.test_peers import CALLER, SERVER, FakeNode, message
from waiting import until

from kvorum.config import Config, PeerAddress
from kvorum.raft.codec import encode
from kvorum.telemetry.counters import Counters
from kvorum.transport.handshake import dialling_headers
from kvorum.transport.port import STRANGERS_MAX, PeerPort

MEMBERS = ("n1", "n2", "n3")


class Node(FakeNode):
    """As the fake, for a port that also calls."""

    def on_broken(self, recipient: str) -> None:
        self.disconnected.append(recipient)


async def _idle_connections(port: int, count: int, stack: contextlib.AsyncExitStack) -> list[asyncio.StreamReader]:
    readers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stack.callback(writer.close)
        readers.append(reader)
    return readers


def test_idle_connections_to_the_peer_port_are_closed_for_new_ones_and_streams_are_not(tmp_path: object) -> None:
    async def scenario() -> None:
        number = free_ports(1)[0]
        node, counters = Node(), Counters()
        config = Config(
            name="n1",
            data_dir=str(tmp_path),
            listen_peer=f"127.0.0.1:{number}",
            advertise_peer_url=f"http://127.0.0.1:{number}",
            advertise_client_url="http://127.0.0.1:1",
            bootstrap_token="word",
            peers=tuple(PeerAddress(name, "127.0.0.1", number) for name in MEMBERS),
        )
        async with contextlib.AsyncExitStack() as stack:
            port = PeerPort(config, counters, Random(1))
            stack.push_async_callback(port.close)
            await port.start(node)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            url = f"http://127.0.0.1:{number}/raft/v1"
            stream = await session.ws_connect(
                f"{url}/stream", headers=dialling_headers(CALLER, SERVER.node_id, "http://127.0.0.1:1", "word")
            )
            readers = await _idle_connections(number, 4 * STRANGERS_MAX, stack)
            # The stream holds one place; each connection above the limit closed the longest idle one.
            places = len(MEMBERS) + STRANGERS_MAX - 1
            await until("most are closed", lambda: sum(each.at_eof() for each in readers) >= len(readers) - places)
            assert not any(each.at_eof() for each in readers[-places:])
            async with session.get(f"{url}/hello") as hello:
                assert hello.status == 200
            await stream.send_bytes(encode([message()]))
            await until("the stream still works", lambda: node.received or None)
            await stream.close()

    asyncio.run(scenario())
