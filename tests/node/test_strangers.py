"""Who is no member and calls: it is answered for as long as its stream to us is open."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from aiohttp import web
from node.local_cluster import running
from transport.test_link import Peer
from waiting import until

from kvorum.identity import Identity
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
