"""The peer port and the links: what is refused, what is survived, what is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random

import aiohttp
import msgspec
import pytest
from aiohttp import web
from bench.processes import free_ports
from serving import stop_server
from waiting import until

import kvorum
from kvorum.errors import IdentityRejectedError, PeerError, StorageCorruptError
from kvorum.identity import Identity
from kvorum.kv.features import HIGHEST_LEVEL
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.codec import encode
from kvorum.raft.messages import AppendEntries, Entry, EntryKind, HeartbeatResponse, Message, PeerMark
from kvorum.telemetry.counters import Counters
from kvorum.transport import Greeting, Hello, SnapshotChunk, link
from kvorum.transport.handshake import HEADER_MARKS, dialling_headers
from kvorum.transport.server import FRAME_BYTES_MAX, PeerServer
from kvorum.transport.settings import Dialling
from kvorum.transport.transport import Transport

CLUSTER = "c" * 32
SERVER = Identity("n1", "1" * 16, CLUSTER)
CALLER = Identity("n2", "2" * 16, CLUSTER)
DIGESTS = {
    1: StateDigest(1, 0xABC),
    2: StateDigest(2, 0xABC, entry=0xDEF),
    3: StateDigest(2, 2**64 - 1, 2**128 - 1, 2**64 - 1),
}


def message(number: int = 1, sender: str = CALLER.node_id) -> HeartbeatResponse:
    return HeartbeatResponse(term=number, sender=sender, recipient=SERVER.node_id, round=number)


class FakeNode:
    """Records what the peer port hands over."""

    def __init__(self, identity: Identity = SERVER) -> None:
        self.identity = identity
        self.received: list[Message] = []
        self.connected: list[Greeting] = []
        self.disconnected: list[str] = []
        self.snapshot = b"s" * 10
        self.suspected: list[int] = []
        self.members = [CALLER.node_id]
        self.demands: list[int | None] = []
        self.start_id = "1"

    def marks_of(self, node: str) -> tuple[PeerMark, ...]:
        return (PeerMark(node, "2", 3),)

    def hello(self) -> Hello:
        return Hello(self.identity.name, self.identity.incarnation, self.identity.cluster_id, (), "", "", "")

    async def join(self, greeting: Greeting) -> None:
        if greeting.cluster_id == "refused":
            raise IdentityRejectedError("cluster", "no")
        self.identity = Identity(self.identity.name, self.identity.incarnation, greeting.cluster_id)

    def on_messages(self, sender: str, messages: tuple[Message, ...]) -> None:
        self.received += messages

    def on_connected(self, greeting: Greeting) -> None:
        self.connected.append(greeting)

    def on_disconnected(self, sender: str) -> None:
        self.disconnected.append(sender)

    def is_member(self, node: str) -> bool:
        return node in self.members

    async def snapshot_chunk(
        self, last_index: int, offset_bytes: int, size_bytes: int, at_least: int | None
    ) -> SnapshotChunk:
        self.demands.append(at_least)
        if last_index not in (0, 7):
            raise StorageCorruptError("there is no such snapshot")
        return SnapshotChunk(self.snapshot[offset_bytes : offset_bytes + 4], 7, len(self.snapshot), "a" * 64)

    def state_hash_at(self, index: int) -> StateDigest | None:
        return DIGESTS.get(index)

    def suspect_state(self, index: int) -> None:
        self.suspected.append(index)


class Port:
    """A peer port, and a client session for the test's own calls."""

    def __init__(
        self, node: FakeNode, counters: Counters, url: str, session: aiohttp.ClientSession, server: PeerServer
    ) -> None:
        self.node = node
        self.server = server
        self.counters = counters
        self.url = url
        self.session = session

    def headers(self, **changed: str) -> dict[str, str]:
        headers = dialling_headers(CALLER, SERVER.node_id, "http://127.0.0.1:1", "word")
        return {**headers, **{f"X-Kvorum-{name.title()}": value for name, value in changed.items()}}

    async def dial(self, **changed: str) -> aiohttp.ClientWebSocketResponse:
        return await self.session.ws_connect(f"{self.url}/raft/v1/stream", headers=self.headers(**changed))


@asynccontextmanager
async def port(node: FakeNode | None = None, silence_s: float = 10.0, number: int = 0) -> AsyncIterator[Port]:
    node = node or FakeNode()
    counters = Counters()
    counters.keep_peers(["n1", "n2"])
    server = PeerServer(node, counters, "word", silence_s)
    runner = web.AppRunner(server.app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    number = number or free_ports(1)[0]
    await web.TCPSite(runner, "127.0.0.1", number).start()
    session = aiohttp.ClientSession()
    try:
        yield Port(node, counters, f"http://127.0.0.1:{number}", session, server)
    finally:
        await session.close()
        await server.close()
        await stop_server(runner)


@asynccontextmanager
async def transport(
    url: str, on_marks: Callable[[str, tuple[PeerMark, ...], str], None] = lambda _node, _marks, _url: None
) -> AsyncIterator[tuple[Transport, Counters, list[str]]]:
    counters = Counters()
    broken: list[str] = []
    session = aiohttp.ClientSession()
    dialling = Dialling(
        lambda: CALLER, "http://127.0.0.1:1", "word", lambda: session, counters, Random(1), on_marks=on_marks
    )
    transport = Transport(dialling, broken.append)
    transport.set_members({SERVER.node_id: url})
    try:
        yield transport, counters, broken
    finally:
        await transport.close()
        await session.close()


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Serve an application on a port of its own, and yield its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await stop_server(runner)


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("cluster", {"cluster": "d" * 32}),
        ("cluster", {"cluster": ""}),
        ("name", {"to": "n9@" + "1" * 16}),
        ("incarnation", {"to": "n1@" + "9" * 16}),
        ("version", {"protocol": "0", "protocols": "0"}),
        ("version", {"protocol": "0", "protocols": "0-0"}),
        ("version", {"protocols": "3-4"}),
        ("version", {"protocols": "1-"}),
        ("version", {"protocols": "2-1"}),
        ("version", {"protocols": "-1-1"}),
        ("version", {"protocols": "1-" + "9" * 10}),
        ("version", {"protocols": ""}),
        ("version", {"protocols": "\u0661"}),  # a digit, but not ours
        ("version", {"feature-levels": "many"}),
        ("version", {"feature-levels": "2-1"}),
        ("token", {"token": "another"}),
        ("malformed", {"from": "nobody"}),
        ("malformed", {"from": "n2@" + "2" * 17}),
        ("malformed", {"version": "9" * 65}),
        ("malformed", {"peer-url": "http://" + "h" * 600}),
        ("token", {"token": "\u00e9"}),
        ("name", {"from": SERVER.node_id}),
    ],
)
def test_a_peer_that_is_not_one_is_refused_and_counted(reason: str, changed: dict[str, str]) -> None:
    async def scenario() -> None:
        async with port() as it:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await it.dial(**changed)
            assert refused.value.status == 403
            assert dict(it.counters.identity_rejected) == {reason: 1}
            assert it.node.connected == []

    asyncio.run(scenario())


def test_a_node_without_a_cluster_joins_the_one_that_calls_it_by_its_incarnation() -> None:
    async def scenario() -> None:
        async with port(FakeNode(Identity("n1", "1" * 16))) as it:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await it.dial(cluster="refused")
            stream = await it.dial()
            assert it.node.identity.cluster_id == CLUSTER
            await stream.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "frame",
    [
        b"garbage",
        encode([message()])[:-3],
        encode([message(), message(sender="n3@x")]),
        encode([HeartbeatResponse(term=-1, sender=CALLER.node_id, recipient=SERVER.node_id, round=1)]),
        encode(
            [
                AppendEntries(
                    term=2,
                    sender=CALLER.node_id,
                    recipient=SERVER.node_id,
                    prev_log_index=4,
                    prev_log_term=1,
                    entries=(Entry(7, 2, EntryKind.COMMAND, b""),),
                    leader_commit=0,
                )
            ]
        ),
    ],
)
def test_a_malformed_frame_closes_its_stream_and_nothing_else(frame: bytes) -> None:
    async def scenario() -> None:
        async with port() as it:
            stream = await it.dial()
            await stream.send_bytes(frame)
            assert (await stream.receive()).type is aiohttp.WSMsgType.CLOSE
            assert it.node.received == []
            assert it.counters.peer_failures["n2", "malformed"] == 1
            await until("noticed", lambda: it.node.disconnected == [CALLER.node_id])

            again = await it.dial()
            await again.send_bytes(encode([message()]))
            await until("received", lambda: it.node.received == [message()])
            await again.close()

    asyncio.run(scenario())


def test_what_only_a_later_version_knows_is_skipped_and_counted() -> None:
    later = ["propose", 7, CALLER.node_id, SERVER.node_id, [b"x"]]
    known = msgspec.msgpack.decode(encode([message()]))

    async def scenario() -> None:
        async with port() as it:
            stream = await it.dial()
            await stream.send_bytes(msgspec.msgpack.encode([later, *known, later]))
            await stream.send_str("a kind of frame")
            await stream.send_bytes(encode([message(2)]))
            await until("received", lambda: it.node.received == [message(), message(2)])
            assert dict(it.counters.messages_unknown) == {"n2": 3}
            assert it.counters.messages_received["n2"] == 2
            assert (it.counters.peer_failures, it.node.disconnected) == ({}, [])
            await stream.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("reason", "header", "value"),
    [
        ("malformed", "From", b"n\xff@1"),
        ("malformed", "Version", b"9\xff"),
        ("malformed", "Peer-Url", b"http://h\xff:1"),
        ("token", "Token", b"\xff"),
        ("incarnation", "To", b"n1@\xff"),
        ("cluster", "Cluster", b"\xff"),
        ("version", "Protocols", b"\xff"),
        ("version", "Feature-Levels", b"\xff"),
    ],
)
def test_a_header_that_is_not_utf8_is_refused_and_counted(reason: str, header: str, value: bytes) -> None:
    """The library decodes such bytes as lone surrogates, which neither JSON nor a metric can carry."""

    async def scenario() -> None:
        async with port() as it:
            headers = {name: text.encode() for name, text in it.headers().items()} | {f"X-Kvorum-{header}": value}
            reader, writer = await asyncio.open_connection("127.0.0.1", int(it.url.rpartition(":")[2]))
            lines = b"".join(name.encode() + b": " + text + b"\r\n" for name, text in headers.items())
            writer.write(b"GET /raft/v1/stream HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
            assert b" 403 " in await reader.readline()
            assert dict(it.counters.identity_rejected) == {reason: 1}
            writer.close()
            await writer.wait_closed()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("headers", "protocol", "level", "version"),
    [
        ({}, 2, HIGHEST_LEVEL, kvorum.__version__),
        # What 0.1.0 sends.
        ({"X-Kvorum-Protocols": None, "X-Kvorum-Feature-Levels": None, "X-Kvorum-Version": None}, 1, 1, "0.1.0"),
        # What later versions may send.
        ({"X-Kvorum-Protocols": "1-7", "X-Kvorum-Feature-Levels": "2-9", "X-Kvorum-Version": "9.0"}, 2, 9, "9.0"),
        ({"X-Kvorum-Protocols": "0-1", "X-Kvorum-Protocol": "0"}, 1, HIGHEST_LEVEL, kvorum.__version__),
    ],
)
def test_a_peer_of_another_version_is_taken_if_it_speaks_a_common_protocol(
    headers: dict[str, str | None], protocol: int, level: int, version: str
) -> None:
    async def scenario() -> None:
        async with port() as it:
            sent = {name: value for name, value in {**it.headers(), **headers}.items() if value is not None}
            stream = await it.session.ws_connect(f"{it.url}/raft/v1/stream", headers=sent)
            await until("connected", lambda: it.node.connected)
            [greeting] = it.node.connected
            assert (greeting.protocol, greeting.highest_level, greeting.version) == (protocol, level, version)
            await stream.close()

    asyncio.run(scenario())


def test_the_first_header_is_what_version_0_1_0_accepts() -> None:
    headers = dialling_headers(CALLER, SERVER.node_id, "http://127.0.0.1:1", "word")

    assert headers["X-Kvorum-Protocol"] == "1"


def test_a_frame_over_the_limit_closes_its_stream() -> None:
    async def scenario() -> None:
        async with port() as it:
            stream = await it.dial()
            with suppress(ConnectionError):  # It may be closed before all of it is sent.
                await stream.send_bytes(b"\0" * (FRAME_BYTES_MAX + 1))
            await until("it is closed", lambda: it.node.disconnected == [CALLER.node_id])
            assert it.node.received == []
            assert it.counters.peer_failures["n2", "malformed"] == 1
            await stream.close()

    asyncio.run(scenario())


def test_messages_arrive_in_order_and_a_broken_stream_is_dialled_again() -> None:
    async def scenario() -> None:
        number = free_ports(1)[0]
        async with transport(f"http://127.0.0.1:{number}") as (ours, counters, broken):
            async with port(number=number) as it:
                await until("connected", lambda: ours.is_connected(SERVER.node_id))
                ours.send([message(n) for n in range(1, 500)])
                await until("all arrive", lambda: len(it.node.received) == 499)
                assert [m.term for m in it.node.received] == list(range(1, 500))
                assert counters.messages_sent["n1"] == 499
            await until("the loss is noticed", lambda: broken)
            async with port(number=number) as it:
                await until("connected again", lambda: ours.is_connected(SERVER.node_id))
                ours.send([message()])
                await until("it arrives", lambda: it.node.received == [message()])

    asyncio.run(scenario())


def test_a_full_queue_drops_and_counts() -> None:
    async def scenario() -> None:
        async with transport("http://127.0.0.1:1") as (ours, counters, _):
            ours.send([message()] * (link.QUEUE_MESSAGES_MAX + 5))
            assert counters.messages_dropped["n1"] == 5

    asyncio.run(scenario())


def test_an_idle_stream_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "KEEP_ALIVE_S", 0.05)

    async def scenario() -> None:
        number = free_ports(1)[0]
        async with (
            port(silence_s=0.4, number=number) as it,
            transport(f"http://127.0.0.1:{number}") as (ours, _, broken),
        ):
            await until("connected", lambda: ours.is_connected(SERVER.node_id))
            await asyncio.sleep(1.0)  # More than twice the silence that the server bears.
            assert broken == []
            assert len(it.node.connected) == 1
            assert it.counters.peer_failures == {}

    asyncio.run(scenario())


def test_a_silent_stream_is_given_up() -> None:
    async def scenario() -> None:
        async with port(silence_s=0.1) as it:
            stream = await it.dial()  # Held: an unreferenced one is closed.
            await until("given up", lambda: it.node.disconnected == [CALLER.node_id], 20)
            await stream.close()
            assert it.counters.peer_failures["n2", "silent"] == 1

    asyncio.run(scenario())


def test_strangers_are_answered_but_not_without_a_bound() -> None:
    async def scenario() -> None:
        async with transport("http://127.0.0.1:1") as (ours, _, _):
            for number in range(40):
                ours.add_stranger(f"s{number}@x", f"http://127.0.0.1:{number + 1}")
            known = [n for n in range(40) if ours.url_of(f"s{n}@x")]
            assert known == list(range(24, 40))
            ours.remove_stranger("s39@x")
            assert ours.url_of("s39@x") is None

    asyncio.run(scenario())


def test_who_accepts_a_stream_says_what_it_knows_of_the_callers_disk() -> None:
    async def run() -> None:
        async with port() as server:
            said: list[tuple[str, tuple[PeerMark, ...], str]] = []
            async with transport(server.url, on_marks=lambda *heard: said.append(heard)):
                await until("it was said", lambda: said)
            assert said == [(SERVER.node_id, (PeerMark(CALLER.node_id, "2", 3),), server.url)]
            [greeting] = server.node.connected
            assert greeting.address == "127.0.0.1"

    asyncio.run(run())


def test_who_accepts_a_stream_and_talks_nonsense_is_hung_up_on() -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        stream = web.WebSocketResponse()
        stream.headers[HEADER_MARKS] = "nonsense"
        await stream.prepare(request)
        await stream.receive()
        return stream

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/raft/v1/stream", stream)
        async with serving(app) as url, transport(url) as (ours, counters, broken):
            await until("it is given up", lambda: counters.peer_failures["n1", "malformed"])
            assert not ours.is_connected(SERVER.node_id)
            assert broken == []

    asyncio.run(run())


def test_what_a_peer_may_ask_for_besides() -> None:
    async def scenario() -> None:
        async with port() as it, transport(it.url) as (ours, _, _):
            assert (await ours.hello(it.url)).node_id == SERVER.node_id
            chunk = await ours.snapshot_chunk(SERVER.node_id, 7, 8)
            assert (chunk.data, chunk.last_index, chunk.size_bytes, chunk.sha256) == (b"ss", 7, 10, "a" * 64)
            for index in range(1, 5):
                assert await ours.state_hash(SERVER.node_id, index) == DIGESTS.get(index)
            await ours.suspect(SERVER.node_id, 5)
            assert it.node.suspected == [5]
            with pytest.raises(PeerError, match="404"):
                await ours.snapshot_chunk(SERVER.node_id, 8, 0)
            with pytest.raises(PeerError):
                await ours.snapshot_chunk("n9@x", 7, 0)
            async with it.session.get(f"{it.url}/raft/v1/snapshots/7?offset=x", headers=it.headers()) as answer:
                assert answer.status == 400
            async with it.session.get(f"{it.url}/raft/v1/snapshots/7") as answer:
                assert answer.status == 403

    asyncio.run(scenario())


def test_a_new_snapshot_is_taken_for_a_post_of_a_member_alone() -> None:
    async def scenario() -> None:
        async with port() as it, transport(it.url) as (ours, _, _):
            chunk = await ours.snapshot_chunk(SERVER.node_id, 0, 0, at_least=5)
            assert (chunk.data, chunk.last_index, it.node.demands) == (b"ssss", 7, [5])
            url = f"{it.url}/raft/v1/snapshots/0?at_least=6"
            async with it.session.get(url, headers=it.headers()) as answer:
                assert (answer.status, it.node.demands) == (200, [5, 6]), "a member of version 0.1.0"
            it.node.members = []
            async with it.session.post(url, headers=it.headers()) as answer:
                assert (answer.status, it.node.demands) == (403, [5, 6])
            async with it.session.get(url, headers=it.headers()) as answer:
                assert (answer.status, it.node.demands) == (200, [5, 6, None])

    asyncio.run(scenario())


def test_a_peer_of_version_0_1_0_is_asked_for_a_new_snapshot_as_it_understands() -> None:
    asked: list[str] = []

    async def scenario() -> None:
        async def answer(request: web.Request) -> web.Response:
            asked.append(request.path_qs)
            described = {"Index": "7", "Bytes": "2", "Sha256": "a" * 64}
            return web.Response(body=b"ss", headers={f"X-Kvorum-Snapshot-{k}": v for k, v in described.items()})

        app = web.Application()
        app.router.add_get("/raft/v1/snapshots/{last_index:[0-9]{1,19}}", answer)
        async with serving(app) as url, transport(url) as (ours, _, _):
            assert (await ours.snapshot_chunk(SERVER.node_id, 0, 0, at_least=5)).last_index == 7

    asyncio.run(scenario())
    assert asked == ["/raft/v1/snapshots/0?offset=0&at_least=5"]


@pytest.mark.parametrize(
    "query", ["offset=" + "9" * 24, "offset=-1", "offset=x", "at_least=" + "9" * 19, "offset=\u0661"]
)
def test_a_number_that_is_none_is_a_bad_request(query: str) -> None:
    async def scenario() -> None:
        path = f"/raft/v1/snapshots/7?{query}"
        async with port() as it, it.session.get(it.url + path, headers=it.headers()) as answer:
            assert (answer.status, it.node.demands) == (400, [])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "changed",
    [
        {"Index": "8"},
        {"Index": "9" * 19},
        {"Index": "-7"},
        {"Bytes": "9" * 5000},
        {"Bytes": "1e3"},
        {"Sha256": "../" + "a" * 61},
        {"Sha256": "a" * 63},
        {"Sha256": "a" * 8000},
    ],
)
def test_a_piece_of_a_snapshot_that_is_not_described_is_the_peers_fault(changed: dict[str, str]) -> None:
    async def scenario() -> None:
        async def answer(_: web.Request) -> web.Response:
            described = {"Index": "7", "Bytes": "2", "Sha256": "a" * 64} | changed
            return web.Response(body=b"ss", headers={f"X-Kvorum-Snapshot-{k}": v for k, v in described.items()})

        app = web.Application()
        app.router.add_get("/raft/v1/snapshots/7", answer)
        async with serving(app) as url, transport(url) as (ours, _, _):
            with pytest.raises(PeerError):
                await ours.snapshot_chunk(SERVER.node_id, 7, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("body", [b"", b"{}", b'{"name": 3}', b"\xff", b"[" * 10_000])
def test_a_hello_that_makes_no_sense_is_a_peers_fault(body: bytes) -> None:
    async def scenario() -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=body)

        app = web.Application()
        app.router.add_get("/raft/v1/hello", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        number = free_ports(1)[0]
        await web.TCPSite(runner, "127.0.0.1", number).start()
        async with transport("http://127.0.0.1:1") as (ours, _, _):
            with pytest.raises(PeerError):
                await ours.hello(f"http://127.0.0.1:{number}")
        await stop_server(runner)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "snapshots/7"),
        ("POST", "snapshots/0"),
        ("GET", "state-hash/3"),
        ("POST", "suspect/5"),
        ("GET", "stream"),
    ],
)
def test_nobody_but_a_peer_may_ask(method: str, path: str) -> None:
    async def scenario() -> None:
        async with port() as it, it.session.request(method, f"{it.url}/raft/v1/{path}") as answer:
            assert answer.status == 403
            assert it.node.suspected == []

    asyncio.run(scenario())


def test_a_stream_that_a_new_one_replaces_is_closed_and_its_end_is_not_the_peers() -> None:
    async def scenario() -> None:
        async with port() as it:
            first = await it.dial()
            second = await it.dial()
            assert (await first.receive()).type is aiohttp.WSMsgType.CLOSE
            await first.close()
            await second.send_bytes(encode([message()]))
            await until("the new one is read", lambda: it.node.received == [message()])
            assert it.node.disconnected == []
            await second.close()
            await until("the end of the new one", lambda: it.node.disconnected == [CALLER.node_id])

    asyncio.run(scenario())
