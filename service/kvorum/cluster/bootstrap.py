"""How a cluster begins: once, by agreement, never by a timeout (docs/internals).

A node with an empty disk asks every expected first member who it is. Only when *all* of them answer, all are empty, and
all were told the same members and the same token, the first of them by name alone writes the first configuration; the
others learn of the cluster when its leader calls them. In every other case the node waits to be added by the leader of
the cluster that is there. So a lost disk never makes a second cluster, and neither does a partition.

A cluster that was scaled out may have more members than were expected at first, and all that were may have lost their
disks. So everybody who is *desired* is asked too, and has to be empty as well; as long as nobody knows who is desired,
nothing begins.

All that can be lost: the volumes of all who are asked, while others hold the data who are not. So in Kubernetes a
guard has the last word: a record outside of the volumes (:mod:`kvorum.cluster.record`), or, without the API server,
everybody behind the headless Service (:mod:`kvorum.cluster.addresses`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Protocol

from kvorum.cluster.reconcile import MembershipSpecSource
from kvorum.cluster.record import BootstrapRefusedError
from kvorum.config import Config, ordinal_of, split_address
from kvorum.errors import MembershipRefusedError
from kvorum.node import Node
from kvorum.node.hellos import ask_all
from kvorum.raft.messages import Member, NodeId
from kvorum.transport import Hello

log = logging.getLogger("kvorum.cluster")

ASK_AGAIN_S = 0.25
COMPLAIN_EVERY = 40
"""Rounds between two lines that say what we wait for."""
REFUSED_AGAIN_S = 2.0
"""After the guard refused: what stands in the way is not gone in a moment, and the API server has others to serve."""


class BootstrapGuard(Protocol):
    """Who has the last word on whether a cluster may begin."""

    async def permit(self, node: NodeId, names: Collection[str]) -> str:
        """Return the id under which ``node`` may begin a cluster. Bounded in time.

        Args:
            node: who is about to begin.
            names: the nodes that are empty, by their own word, this one included.

        Raises:
            BootstrapRefusedError: it may not.
        """


class NoGuard:
    """Outside of Kubernetes: nobody knows more than the members themselves."""

    async def permit(self, node: NodeId, names: Collection[str]) -> str:
        """Return a new id."""
        return secrets.token_hex(16)


def obstacle(config: Config, ours: Hello, hellos: Mapping[str, Hello | None]) -> str | None:
    """Return why a new cluster must not begin now, in words; None when nothing stands in the way.

    Args:
        config: this node's.
        ours: what this node says of itself.
        hellos: what the expected members said, and whoever else should be one, by name; None: no answer.
    """
    if elsewhere := listed_elsewhere(ours, hellos):
        return elsewhere
    silent = sorted(name for name, hello in hellos.items() if hello is None)
    if silent:
        return f"{', '.join(silent)} did not answer"
    for name, hello in sorted(hellos.items()):
        if hello is None:
            continue
        if hello.name != name:
            return f"{hello.name} answers at the address of {name}"
        if name == ours.name and hello.node_id != ours.node_id:
            return f"another {name}, {hello.node_id}, answers at the address of this one, {ours.node_id}"
        if hello.cluster_id or not hello.empty:
            return f"{name} is already in cluster {hello.cluster_id or 'unknown'}; waiting to be added to it"
        if sorted(hello.expected) != sorted(ours.expected):
            return f"{name} expects the members {', '.join(hello.expected)}, not {', '.join(ours.expected)}"
        if hello.token != ours.token:
            return f"{name} has another bootstrap token"
    if ours.cluster_id or not ours.empty:
        return "this node is already in a cluster"
    first = min(ours.expected, key=bootstrap_order)
    if config.name != first:
        return f"waiting for {first} to bootstrap the cluster"
    return None


def listed_elsewhere(ours: Hello, hellos: Mapping[str, Hello | None]) -> str:
    """Return what to do when this node is a member already, at an address where nobody finds it; empty: it is not.

    It was added, and has moved before the first call reached it. So it does not know its cluster, and cannot say there
    where it is now.
    """
    for hello in hellos.values():
        if hello is None or not hello.cluster_id or ours.cluster_id:
            continue
        for member, url in zip(hello.members, hello.member_urls, strict=False):
            if member == ours.node_id and url != ours.peer_url:
                return (
                    f"{hello.name} lists {ours.node_id} as a member of cluster {hello.cluster_id} at {url}, and this "
                    f"node serves peers at {ours.peer_url}. Nobody has called it yet, so start it at that address "
                    "again, or remove this member and add it at its new address"
                )
    return ""


def bootstrap_order(name: str) -> tuple[str, int, str]:
    """Return the sort key by which the first of the expected members is found: by ordinal where there is one."""
    base, ordinal = ordinal_of(name) or (name, -1)
    return base, ordinal, name


async def bootstrap(
    node: Node, source: MembershipSpecSource | None = None, guard: BootstrapGuard | None = None
) -> None:
    """Return once this node is in a cluster: one that it began, or one whose leader called it.

    Args:
        node: this node.
        source: who should be a member; None: the expected members and nobody else, ever.
        guard: who has the last word; None: nobody else.
    """
    guard = guard or NoGuard()
    rounds = 0
    before = ""
    while not node.identity.cluster_id:
        failures: dict[str, str] = {}
        try:
            reason, level, wait_s = await _begin(node, source, guard, failures), logging.INFO, ASK_AGAIN_S
        except BootstrapRefusedError as error:
            reason, level, wait_s = str(error), logging.WARNING, REFUSED_AGAIN_S
        if reason is None:
            return
        if reason != before or rounds % COMPLAIN_EVERY == 0:
            # One of them tells enough: a name that does not exist, a port that is closed.
            why = next((f" ({failures[name]})" for name in sorted(failures)), "")
            log.log(level, "not in a cluster yet: %s%s", reason, why)
        before = reason
        rounds += 1
        await node.tasks.sleep(wait_s)


async def _begin(
    node: Node, source: MembershipSpecSource | None, guard: BootstrapGuard, failures: MutableMapping[str, str]
) -> str | None:
    """Begin a cluster and return None, or return why not; ``failures`` takes why a node did not answer, by name.

    Raises:
        BootstrapRefusedError: the guard refused.
    """
    beyond: tuple[str, ...] = ()
    if source is not None:
        desired = await source.desired()
        if desired is None:
            return "the desired replica count is unknown"
        beyond = desired.names
    hellos = await ask(node, beyond, failures)
    ours = node.hello()
    node.listed_elsewhere = listed_elsewhere(ours, hellos)
    reason = obstacle(node.config, ours, hellos)
    if reason is not None:
        return reason
    cluster_id = await guard.permit(ours.node_id, frozenset(hellos))
    # No await from here on: what this node says of itself now is so when it begins.
    reason = obstacle(node.config, node.hello(), hellos)
    if reason is not None:
        return reason
    levels = {hello.node_id: hello.levels[1] for hello in hellos.values() if hello is not None}
    try:
        node.bootstrap(cluster_id, _first_members(node, hellos), levels)
    except MembershipRefusedError as error:
        return str(error)
    return None


async def ask(
    node: Node, beyond: Sequence[str] = (), failures: MutableMapping[str, str] | None = None
) -> dict[str, Hello | None]:
    """Ask every expected member, this node included, and those ``beyond``, who they are; None where none answers.

    Args:
        node: this node.
        beyond: names besides those of the expected members.
        failures: takes the reason, by name, if a node does not answer.
    """
    names = [peer.name for peer in node.config.expected_members()]
    hellos = await ask_all(
        node.peers,
        {name: peer_url_of(node.config, name) for name in dict.fromkeys([*names, *beyond])},
        failures=failures,
    )
    if hellos.get(node.config.name, True) is None:
        # Not every network lets a node reach itself. If another one answers there, it has taken our place.
        hellos[node.config.name] = node.hello()
        if failures is not None:
            failures.pop(node.config.name, None)
    return hellos


def peer_url_of(config: Config, name: str) -> str | None:
    """Return where the node of this name answers its peers, as far as the configuration tells."""
    for peer in config.expected_members():
        if peer.name == name:
            return peer.url
    if not config.discovery_dns:
        return None
    split, own = ordinal_of(name), ordinal_of(config.name)
    if split is None or own is None:
        return None
    port = config.dns_peer_port or split_address(config.listen_peer)[1]
    return f"http://{name}.{config.discovery_dns}:{port}" if split[0] == own[0] else None


def _first_members(node: Node, hellos: Mapping[str, Hello | None]) -> tuple[Member, ...]:
    expected = [(peer, hellos[peer.name]) for peer in node.config.expected_members()]
    return tuple(
        Member(hello.node_id, voter=True, peer_url=peer.url, client_url=hello.client_url)
        for peer, hello in expected
        if hello is not None
    )
