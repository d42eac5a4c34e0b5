"""Who is no member and calls: it is answered for as long as its stream to us is open, and cannot do harm."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from node.local_cluster import Put, running
from transport.test_link import Peer
from waiting import until

from kvorum.identity import Identity
from kvorum.raft.codec import encode
from kvorum.raft.messages import INDEX_MAX, Heartbeat, RequestVote
from kvorum.transport.handshake import dialling_headers


def test_a_caller_to_whom_our_stream_broke_is_dialled_again_until_it_hangs_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, size=1) as cluster, aiohttp.ClientSession() as session:
            node = await cluster.leader()
            peer = Peer()
            peer.may_read.set()
            app = web.Application()
            app.router.add_get("/raft/v1/stream", peer.stream)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            stranger = Identity("n9", "9" * 16, node.identity.cluster_id)
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            headers = dialling_headers(stranger, node.identity.node_id, url, "")
            async with session.ws_connect(f"{node.config.advertise_peer_url}/raft/v1/stream", headers=headers):
                await until("it is answered", lambda: len(peer.streams) == 1)
                await peer.streams[0].close()
                await until("it is dialled again", lambda: len(peer.streams) == 2)
            await until("it is forgotten", lambda: node.peers.url_of(stranger.node_id) is None)
            await runner.cleanup()

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
