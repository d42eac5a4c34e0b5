"""The one word for how a node is, from which a table derives what it shows of it."""

from __future__ import annotations

import enum

from kvorum_client.results import NodeStatus


class Condition(enum.Enum):
    """How a node is; the first one that applies."""

    FOREIGN = "of another cluster"
    """Than the one that is meant."""
    QUARANTINED = "quarantined"
    """It serves nothing, since its state differs."""
    DISTRUSTED = "distrusted"
    """It takes no part, since its disk was set back."""
    JOINING = "joining"
    """It has no configuration yet."""
    LEADERLESS = "no leader"
    """It knows no leader, so that nobody knows whether it is behind."""
    BEHIND = "behind"
    """No quorum confirmed lately that it has applied everything."""
    FULL = "full"
    """Puts are refused."""
    OK = "ok"


APART = (Condition.QUARANTINED, Condition.DISTRUSTED, Condition.JOINING)
"""The node takes no part in the cluster; what it remembers of a leader says nothing."""


def condition_of(status: NodeStatus, cluster_id: str = "") -> Condition:
    """Return how a node is; ``cluster_id``: the cluster that is meant, empty: any."""
    if cluster_id not in ("", status.cluster_id) and status.cluster_id != "":
        return Condition.FOREIGN
    if status.quarantined:
        return Condition.QUARANTINED
    if status.distrusted:
        return Condition.DISTRUSTED
    if status.state == "joining":
        return Condition.JOINING
    if not status.leader_name:
        return Condition.LEADERLESS
    if not status.caught_up:
        return Condition.BEHIND
    return Condition.FULL if status.disks_full or status.quota_exceeded else Condition.OK


def state_of(status: NodeStatus) -> str:
    """Return the node's part in consensus: its role, or why it has none."""
    condition = condition_of(status)
    return str(condition.value) if condition in APART else status.state


def health_of(status: NodeStatus, cluster_id: str = "") -> str:
    """Return how a node is, in a word or, where somebody must act, in the words of the node."""
    condition = condition_of(status, cluster_id)
    if condition is Condition.QUARANTINED:
        return status.quarantined or ""
    if condition is Condition.DISTRUSTED:
        return status.distrusted or ""
    if condition is Condition.FULL:
        return status.disks_full or "the data takes more than the quota"
    return str(condition.value)
