"""Where members are: announced in the handshake, agreed on by the cluster, and found again after a move."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import aiohttp
import msgspec
import pytest
from bench.processes import free_ports
from node.local_cluster import TIMEOUT_MS, LocalCluster, running
from node.test_strangers import listening
from waiting import until

from kvorum.config import Config
from kvorum.errors import MembershipRefusedError
from kvorum.identity import Identity, name_of
from kvorum.kv.features import HIGHEST_LEVEL
from kvorum.node import Node
from kvorum.transport.handshake import HEADER_CLIENT_URL, dialling_headers
from kvorum.transport.interface import Hello


class Moving(LocalCluster):
    """Nodes whose options can change between two starts; each knows its own new address, the others' as told."""

    own: dict[str, dict[str, str]]

    def __init__(self, folder: Path, size: int = 3) -> None:
        super().__init__(folder, size)
        self.own = {}

    def config(self, name: str) -> Config:
        return msgspec.structs.replace(super().config(name), **self.own.get(name, {}))


def agreed(node: Node) -> dict[str, tuple[str, str]]:
    """Return what the configuration in force says of each member: its peer URL and its client URL."""
    return {name_of(member.id): (member.peer_url, member.client_url) for member in node.raft.configuration.members}


def announced(cluster: LocalCluster) -> dict[str, tuple[str, str]]:
    configs = [cluster.config(name) for name in cluster.names]
    return {config.name: (config.advertise_peer_url, config.advertise_client_url) for config in configs}


def test_a_node_that_moves_alone_is_found_by_nodes_that_were_not_told(tmp_path: Path) -> None:
    """Its own options name it at its new port; those of the running others name the old one."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            moving = cluster.others(leader)[0].config.name
            await cluster.stop(moving)
            [cluster.ports[moving]] = free_ports(1)
            await cluster.start(moving)
            await until("the cluster agrees on it", lambda: agreed(leader) == announced(cluster))
            await cluster.put(b"k", b"v")
            await cluster.converge()
            node = cluster.nodes[moving]
            assert leader.peers.url_of(node.raft.id) == node.config.advertise_peer_url
            # The follower that was not told either reaches it.
            [third] = [other for other in cluster.others(leader) if other is not node]
            await until("it calls it there", lambda: third.peers.url_of(node.raft.id) == node.config.advertise_peer_url)

    asyncio.run(scenario())


def test_a_leader_says_where_it_is_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = Moving(tmp_path, 1)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(cluster.close)
            await cluster.start("n1")
            await cluster.settled()  # The quota is set, and not proposed beside the address.
            await cluster.stop("n1")
            cluster.own["n1"] = {"advertise_client_url": "http://127.0.0.1:4711"}
            await cluster.start("n1")
            leader = await cluster.leader()
            await until("it is agreed on", lambda: agreed(leader)["n1"][1] == "http://127.0.0.1:4711")
            index = leader.raft.log.last_index
            await cluster.put(b"k", b"v")
            assert leader.raft.log.last_index == index + 1, "it is agreed on more than once"

    asyncio.run(scenario())


def test_only_a_member_whose_stream_is_open_changes_its_address(tmp_path: Path) -> None:
    """Not a stranger, not another incarnation of a member, not a node of another cluster, not an older version."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster, aiohttp.ClientSession() as session, listening() as (trap, url):
            leader = await cluster.settled()
            before = agreed(leader)
            index = leader.raft.configurations.latest_index
            gone = cluster.others(leader)[0]
            member, own = gone.identity, leader.identity
            await cluster.stop(gone.config.name)
            callers = [
                Identity("n9", "9" * 16, own.cluster_id),
                Identity(member.name, "9" * 16, own.cluster_id),
            ]
            stream_url = f"{leader.config.advertise_peer_url}/raft/v1/stream"
            for caller in callers:
                headers = dialling_headers(caller, own.node_id, url, "", client_url="http://127.0.0.1:4711")
                async with session.ws_connect(stream_url, headers=headers):
                    await until("it is heard", partial(leader.peers.is_calling, caller.node_id))
                    leader.parts.membership.publish_addresses()
            assert trap.streams == []
            headers = dialling_headers(member, own.node_id, url, "", client_url="http://127.0.0.1:4711")
            foreign = dialling_headers(
                Identity(member.name, member.incarnation, "d" * 32),
                own.node_id,
                url,
                "",
                client_url="http://127.0.0.1:4711",
            )
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(stream_url, headers=foreign)
            del headers[HEADER_CLIENT_URL]
            async with session.ws_connect(stream_url, headers=headers):
                await until("it is heard", lambda: leader.peers.is_calling(member.node_id))
                leader.parts.membership.publish_addresses()
            leader.parts.levels.announced(member.node_id, 2, "0.2.0", url, "http://127.0.0.1:4711")
            assert not leader.peers.is_calling(member.node_id)
            leader.parts.membership.publish_addresses()
            assert agreed(leader) == before
            assert leader.raft.configurations.latest_index == index

    asyncio.run(scenario())


def test_a_member_is_added_at_the_client_url_that_it_announces_and_at_no_other(tmp_path: Path) -> None:
    """What it announces is published while its stream is open, so another URL would not last."""
    said = "http://127.0.0.1:8002"
    hello = Hello("n2", "2" * 16, "", (), "", "http://127.0.0.1:1", said, levels=(1, HIGHEST_LEVEL))

    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            leader = await cluster.settled()

            async def answer(url: str, timeout_s: float = 2.0) -> Hello:
                return hello

            leader.peers.hello = answer  # type: ignore[method-assign]
            index = leader.raft.configurations.latest_index
            with pytest.raises(MembershipRefusedError, match=f"{said}, not http://lb:80.*advertise_client_url"):
                await leader.add_member("n2", hello.peer_url, "http://lb:80", TIMEOUT_MS)
            assert leader.raft.configurations.latest_index == index
            for given in ("", said):
                await leader.add_member("n2", hello.peer_url, given, TIMEOUT_MS)
                assert agreed(leader)["n2"] == (hello.peer_url, said)
                await leader.remove_member("n2", TIMEOUT_MS)

    asyncio.run(scenario())


def test_the_status_says_where_addresses_differ(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            assert leader.status().address_mismatches == ()
            other = cluster.others(leader)[0]
            port = other.config.advertise_peer_url.rpartition(":")[2]
            leader.parts.report._expected_urls[other.config.name] = f"http://localhost:{port}"
            [text] = leader.status().address_mismatches
            assert text == (
                f"the options of {leader.config.name} say that {other.config.name} serves peers at "
                f"http://localhost:{port}, and the members list says {other.config.advertise_peer_url}"
            )
            # About itself a node has no more to say than where it serves.
            leader.parts.report._expected_urls[leader.config.name] = "http://localhost:1"
            assert leader.status().address_mismatches == (text,)
            assert leader.status().peer_url == leader.config.advertise_peer_url
            assert leader.status().client_url == leader.config.advertise_client_url

    asyncio.run(scenario())


def test_a_follower_sends_clients_where_the_leader_says_that_it_is(tmp_path: Path) -> None:
    """At once: the leader announces it with its stream, before the cluster has agreed on it."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            follower = cluster.others(leader)[0]
            assert follower.leader_client_url() == leader.config.advertise_client_url
            assert follower.leader_checks_cluster()
            levels = follower.parts.levels
            levels.announced(leader.raft.id, 2, "0.2.0", leader.config.advertise_peer_url, "http://127.0.0.1:4711")
            assert follower.leader_client_url() == follower.status().leader_client_url == "http://127.0.0.1:4711"
            levels.announced(leader.raft.id, 1, "0.1.0", leader.config.advertise_peer_url)
            assert follower.leader_client_url() == leader.config.advertise_client_url
            assert not follower.leader_checks_cluster(), "a version that announces no client URL refuses the parameter"

    asyncio.run(scenario())
