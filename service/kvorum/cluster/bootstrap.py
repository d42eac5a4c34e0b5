"""How a cluster begins: once, by agreement, never by a timeout (docs/internals).

A node with an empty disk asks every expected first member who it is. Only when *all* of them answer, all are empty, and
all were told the same members and the same token, the first of them by name alone writes the first configuration; the
others learn of the cluster when its leader calls them. In every other case the node waits to be added by the leader of
the cluster that is there. So a lost disk never makes a second cluster, and neither does a partition.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence

from kvorum.config import Config, split_ordinal
from kvorum.errors import ConfigError, PeerError
from kvorum.node import Node
from kvorum.raft.messages import Member
from kvorum.transport import Hello

log = logging.getLogger("kvorum.cluster")

ASK_AGAIN_S = 0.25
COMPLAIN_EVERY = 40
"""Rounds between two lines that say what we wait for."""


def obstacle(config: Config, ours: Hello, hellos: Mapping[str, Hello | None]) -> str | None:
    """Return why a new cluster must not begin now, in words; None when nothing stands in the way.

    Args:
        config: this node's.
        ours: what this node says of itself.
        hellos: what the expected members said, by name; None: no answer.
    """
    silent = sorted(name for name, hello in hellos.items() if hello is None)
    if silent:
        return f"{', '.join(silent)} did not answer"
    for name, hello in sorted(hellos.items()):
        if hello is None:
            continue
        if hello.name != name:
            return f"{hello.name} answers at the address of {name}"
        if hello.cluster_id or not hello.empty:
            return f"{name} is in cluster {hello.cluster_id or 'unknown'} already; waiting to be added to it"
        if sorted(hello.expected) != sorted(ours.expected):
            return f"{name} expects the members {', '.join(hello.expected)}, not {', '.join(ours.expected)}"
        if hello.token != ours.token:
            return f"{name} has another bootstrap token"
    if ours.cluster_id or not ours.empty:
        return "this node is in a cluster already"
    first = min(ours.expected, key=bootstrap_order)
    if config.name != first:
        return f"{first} begins the cluster"
    return None


def bootstrap_order(name: str) -> tuple[str, int, str]:
    """Return the sort key by which the first of the expected members is found: by ordinal where there is one."""
    try:
        base, ordinal = split_ordinal(name)
    except ConfigError:
        return name, -1, name
    return base, ordinal, name


async def bootstrap(node: Node) -> None:
    """Return once this node is in a cluster: one that it began, or one whose leader called it."""
    rounds = 0
    before = ""
    while not node.identity.cluster_id:
        hellos = await ask_expected(node)
        reason = obstacle(node.config, node.hello(), hellos)
        if reason is None:
            members = _first_members(node, [hello for hello in hellos.values() if hello is not None])
            node.bootstrap(secrets.token_hex(16), members)
            return
        if reason != before or rounds % COMPLAIN_EVERY == 0:
            log.info("not in a cluster yet: %s", reason)
        before = reason
        rounds += 1
        await asyncio.sleep(ASK_AGAIN_S)


async def ask_expected(node: Node) -> dict[str, Hello | None]:
    """Ask every expected member, this node included, who it is; None where none answers."""

    async def ask(name: str, url: str) -> tuple[str, Hello | None]:
        if name == node.config.name:
            return name, node.hello()
        try:
            return name, await node.transport.hello(url)
        except PeerError as error:
            log.debug("%s does not answer: %s", name, error)
            return name, None

    peers = node.config.expected_members()
    return dict(await asyncio.gather(*(ask(peer.name, peer.url) for peer in peers)))


def _first_members(node: Node, hellos: Sequence[Hello]) -> tuple[Member, ...]:
    urls = {peer.name: peer.url for peer in node.config.expected_members()}
    return tuple(
        Member(hello.node_id, voter=True, peer_url=urls[hello.name], client_url=hello.client_url) for hello in hellos
    )
