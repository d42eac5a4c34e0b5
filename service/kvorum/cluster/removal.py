"""A node that was removed: it finds out, and starts again with an empty disk (bug B29).

A removed incarnation is never revived: its old log may lack what was committed without it, and its vote no longer
counts. So it puts its data aside and comes back as a new incarnation, which the leader adds if it should be there.
"""

from __future__ import annotations

import logging

from kvorum.cluster.bootstrap import ask
from kvorum.cluster.reconcile import MembershipSpec, MembershipSpecSource
from kvorum.errors import CallerError, KvorumError
from kvorum.identity import name_of
from kvorum.node import Node
from kvorum.node.hellos import ask_all, excludes
from kvorum.raft import Role
from kvorum.telemetry.logs import RateLimit
from kvorum.transport import Hello

log = logging.getLogger("kvorum.cluster")

ASK_S = 1.0
FOREIGN_LOGGED_EVERY_S = 60.0


class RemovedError(KvorumError):
    """This incarnation is no longer a member; its data must be put aside."""


async def watch_for_removal(node: Node) -> None:
    """Return never; ask, while no leader calls us, whether we were removed, or belong to a cluster that was replaced.

    Raises:
        RemovedError: a leader of our cluster, with a committed configuration not older than ours, does not count us in.
    """
    limit = RateLimit(FOREIGN_LOGGED_EVERY_S, node.clock.monotonic)
    while True:
        await node.tasks.sleep(ASK_S)
        contact_ms = node.status().last_contact_ms
        is_lost = contact_ms is None or contact_ms > 2 * node.config.election_timeout_ms
        if node.identity.cluster_id and is_lost and not node.stopping:
            hellos = await _ask_around(node)
            for hello in hellos:
                if excludes(node.hello(), hello):
                    raise RemovedError(
                        f"{hello.node_id} leads term {hello.term}, and {node.raft.id} is no longer a member"
                    )
            foreign = next((hello for hello in hellos if leads_another_cluster(node.hello(), hello)), None)
            if foreign is not None and limit.allow() is not None:
                log.warning(
                    "this node belongs to cluster %s and can never join cluster %s, which %s leads. If that cluster "
                    "was recovered or restored, empty %s and start this node again. Otherwise correct the addresses of "
                    "the peers (docs/operations/two-clusters.md)",
                    node.identity.cluster_id,
                    foreign.cluster_id,
                    foreign.node_id,
                    node.config.data_dir,
                )


def leads_another_cluster(ours: Hello, leader: Hello) -> bool:
    """Tell whether this answer comes from the leader of a cluster that is not ours.

    Never for a cluster of one, whose disk holds all there is: nobody should be told to empty that.
    """
    return leader.is_leader and len(ours.members) > 1 and leader.cluster_id not in ("", ours.cluster_id)


async def _ask_around(node: Node) -> list[Hello]:
    """Ask everybody we know of: the expected members, and those of our last configuration."""
    hellos = [hello for hello in (await ask(node)).values() if hello is not None]
    known = {hello.node_id for hello in hellos}
    others = {
        member.id: member.peer_url
        for member in node.raft.configuration.members
        if member.id not in known and member.id != node.raft.id
    }
    return hellos + [hello for hello in (await ask_all(node.peers, others)).values() if hello is not None]


async def leave_if_surplus(node: Node, source: MembershipSpecSource, deadline: float) -> None:
    """Before we stop: if we are scaled in, let the leader remove us first, so that the others need no vote of ours.

    Args:
        node: this node; its own reconciler has ended.
        source: who should be a member, as of now: an answer from before the scale-in would not say so.
        deadline: when to give up, on the node's monotonic clock; the leader removes us all the same when it can.
    """
    desired = await source.desired()
    if desired is None or not desired.is_surplus(node.config.name) or not _is_member(node):
        return
    log.info("%s is being scaled in: waiting to be removed from the cluster", node.config.name)
    limit = RateLimit(clock=node.clock.monotonic)
    while node.clock.monotonic() < deadline:
        try:
            await _hand_over(node, desired)
        except CallerError as error:
            if limit.allow() is not None:
                log.warning("cannot transfer the leadership yet: %s", error)
        if not _is_member(node) or await node.is_removed():
            return
        await node.tasks.sleep(ASK_S / 4)
    log.warning("%s is still a member: the leader removes it when it can", node.config.name)


async def _hand_over(node: Node, desired: MembershipSpec) -> None:
    """If we lead, transfer that to the most caught-up voter that stays: no other would remove us.

    Raises:
        CallerError: it did not move.
    """
    if node.raft.role is not Role.LEADER:
        return
    target = node.raft.transfer_candidate(lambda voter: not desired.is_surplus(name_of(voter)))
    if target is not None:
        leader = await node.transfer_leadership(target, 2 * node.config.election_timeout_ms)
        log.info("transferred the leadership to %s, which stays", leader)


def _is_member(node: Node) -> bool:
    return node.raft.configuration.get(node.raft.id) is not None
