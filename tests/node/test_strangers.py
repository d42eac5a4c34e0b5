"""Who is no member and calls: it is answered for as long as its stream to us is open, and cannot do harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from node.local_cluster import TIMEOUT_MS, LocalCluster, Put, running
from serving import stop_server
from transport.test_link import Peer
from waiting import until

from kvorum.identity import Identity
from kvorum.node import Node
from kvorum.raft.codec import decode, encode
from kvorum.raft.messages import INDEX_MAX, Heartbeat, HeartbeatResponse, RequestVote
from kvorum.transport.handshake import dialling_headers


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Peer, str]]:
    """Yield somebody who takes streams, and its URL."""
    peer = Peer()
    peer.may_read.set()
    app = web.Application()
    app.router.add_get("/raft/v1/stream", peer.stream)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield peer, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await stop_server(runner)


def heartbeat_of(stranger: Identity, node: Node) -> Heartbeat:
    """A heartbeat of an old term, which is answered whoever sent it."""
    return Heartbeat(0, stranger.node_id, node.identity.node_id, commit_index=0, round=1)


def test_a_stranger_is_answered_on_its_own_stream_and_not_called_where_it_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, size=1) as cluster, aiohttp.ClientSession() as session, listening() as (trap, url):
            node = await cluster.leader()
            stranger = Identity("n9", "9" * 16, node.identity.cluster_id)
            headers = dialling_headers(stranger, node.identity.node_id, url, "")
            async with session.ws_connect(
                f"{node.config.advertise_peer_url}/raft/v1/stream", headers=headers
            ) as stream:
                for _ in range(2):
                    await stream.send_bytes(encode([heartbeat_of(stranger, node)]))
                    [answer] = decode((await stream.receive()).data)
                    assert isinstance(answer, HeartbeatResponse)
                    assert (answer.sender, answer.term) == (node.identity.node_id, node.raft.current_term)
                assert node.peers.url_of(stranger.node_id) is None
            assert trap.streams == []

    asyncio.run(scenario())


def test_a_stranger_that_takes_no_answers_is_called_where_our_options_say(tmp_path: Path) -> None:
    """Version 0.1.0: it hangs up on whatever comes on the stream that it dialled."""

    async def scenario() -> None:
        async with (
            running(tmp_path) as cluster,
            aiohttp.ClientSession() as session,
            listening() as (trap, url),
        ):
            node = await cluster.leader()
            await cluster.stop(next(name for name in cluster.names if name != node.config.name))
            [gone] = set(cluster.names) - set(cluster.nodes)
            strangers = [Identity("n9", "9" * 16, node.identity.cluster_id)]
            strangers.append(Identity(gone, "9" * 16, node.identity.cluster_id))
            async with AsyncExitStack() as stack:
                for stranger in strangers:
                    headers = dialling_headers(stranger, node.identity.node_id, url, "")
                    headers |= {"X-Kvorum-Protocols": "1-1"}
                    at = f"{node.config.advertise_peer_url}/raft/v1/stream"
                    stream = await stack.enter_async_context(session.ws_connect(at, headers=headers))
                    await stream.send_bytes(encode([heartbeat_of(stranger, node)]))
                configured = f"http://127.0.0.1:{cluster.ports[gone]}"
                await until("it is known", lambda: node.peers.url_of(strangers[1].node_id) == configured)
                assert node.peers.url_of(strangers[0].node_id) is None
            await until("it is forgotten", lambda: node.peers.url_of(strangers[1].node_id) is None)
            assert trap.streams == []

    asyncio.run(scenario())


def test_a_voter_that_was_down_follows_a_leader_that_was_added_meanwhile(tmp_path: Path) -> None:
    """It has never heard of that leader, and needs its snapshot: the others say where that leader is."""

    async def scenario() -> None:
        cluster = LocalCluster(tmp_path, 4, log_retain_entries=1)
        four = cluster.names
        try:
            cluster.names = ["n1", "n2", "n3"]
            ports = cluster.ports
            cluster.ports = {name: ports[name] for name in cluster.names}
            await cluster.start(*cluster.names)
            leader = await cluster.settled()
            down = next(name for name in cluster.names if name != leader.config.name)
            await cluster.stop(down)
            cluster.ports, cluster.names = ports, four
            await cluster.start("n4")
            cluster.names = ["n1", "n2", "n3"]
            await leader.add_member("n4", f"http://127.0.0.1:{ports['n4']}", "", TIMEOUT_MS)
            new = cluster.nodes["n4"]
            status = leader.raft.status
            await until(
                "it has caught up",
                lambda: status().progress[new.raft.id].match_index == leader.raft.log.last_index,
            )
            await leader.promote_member("n4", TIMEOUT_MS)
            await leader.transfer_leadership("n4", TIMEOUT_MS)
            await until("it leads", lambda: new.raft.can_change_membership)
            for number in range(5):
                await new.propose(Put(b"k", b"%d" % number), TIMEOUT_MS)
            await new.parts.snapshots.begin()
            assert new.raft.log.first_index > 5
            cluster.ports = {name: ports[name] for name in cluster.names}
            await cluster.start(down)
            late = cluster.nodes[down]
            assert late.raft.configuration.get(new.raft.id) is None
            await until("it has caught up", lambda: late.store.applied_index == new.store.applied_index)
        finally:
            await cluster.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_vote", [True, False])
def test_one_frame_with_a_term_that_leaves_none_for_elections_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_vote: bool
) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster, aiohttp.ClientSession() as session:
            leader = await cluster.leader()
            terms = {name: node.raft.current_term for name, node in cluster.nodes.items()}
            stranger = Identity("n9", "9" * 16, leader.identity.cluster_id)
            for node in cluster.nodes.values():
                to = node.identity.node_id
                message = (
                    RequestVote(INDEX_MAX - 1, stranger.node_id, to, last_log_index=9, last_log_term=9)
                    if is_vote
                    else Heartbeat(INDEX_MAX - 1, stranger.node_id, to, commit_index=0, round=1)
                )
                if isinstance(message, RequestVote):
                    message = msgspec.structs.replace(message, leadership_transfer=True)
                url = f"{node.config.advertise_peer_url}/raft/v1/stream"
                for _ in range(3):
                    async with session.ws_connect(url, headers=dialling_headers(stranger, to, "", "")) as stream:
                        await stream.send_bytes(encode([message]))
                        assert (await stream.receive()).type is aiohttp.WSMsgType.CLOSE
                assert node.counters.peer_failures["other", "malformed"] == 3
            assert {name: node.raft.current_term for name, node in cluster.nodes.items()} == terms
            await leader.propose(Put(b"k", b"v"), 5000)

    asyncio.run(scenario())
    assert len([line for line in caplog.messages if "ahead of term" in line]) == 3, "one line a node"
