"""How nodes find each other, begin a cluster, and keep its membership right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kvorum.cluster.addresses import AddressGuard
from kvorum.cluster.bootstrap import BootstrapGuard, bootstrap
from kvorum.cluster.kubernetes import KubernetesApi, RoleLabel
from kvorum.cluster.membership_spec import StatefulSets, Unanswered, membership_spec_source
from kvorum.cluster.observer import Observer
from kvorum.cluster.reconcile import MembershipSpecSource, Reconciler
from kvorum.cluster.record import RecordGuard, RecordKeeper, Release, Replacements, replaceable_cluster
from kvorum.cluster.removal import RemovedError, leave_if_surplus, watch_for_removal
from kvorum.node import Node
from kvorum.raft import Role

__all__ = [
    "MembershipSpecSource",
    "KubernetesApi",
    "RemovedError",
    "StatefulSets",
    "Unanswered",
    "membership_spec_source",
    "join_and_reconcile",
    "leave_if_surplus",
]


async def join_and_reconcile(
    node: Node,
    source: MembershipSpecSource,
    api: KubernetesApi | None,
    *,
    in_kubernetes: bool,
    config_path: str,
    replacements: Replacements,
) -> None:
    """Get into a cluster, then keep its membership right while this node leads; never returns.

    Args:
        node: this node.
        source: who should be a member.
        api: the API server, to label our pod and to record our cluster there; None: we may not ask it.
        in_kubernetes: whether everybody is behind one Service of Kubernetes.
        config_path: the configuration file, which may change while we run; empty: there is none.
        replacements: the clusters whose place ours took.

    Raises:
        RemovedError: this incarnation was removed; its data must be put aside before it starts again.
    """

    async def replaceable() -> str:
        return await replaceable_cluster(node.config, config_path)

    tasks: list[asyncio.Task[None]] = []
    try:
        if api is not None:
            # Before there is a cluster, too: see RecordKeeper.
            keeper = RecordKeeper(
                api,
                Release.of(node.config),
                _Recorded(node),
                replacements,
                replaceable,
                node.tasks,
                node.clock.monotonic,
            )
            tasks.append(asyncio.create_task(keeper.run(), name="cluster id"))
        await bootstrap(node, source, bootstrap_guard(node, api, replaceable, in_kubernetes=in_kubernetes))
        observer = Observer(node)
        tasks += [
            asyncio.create_task(observer.run(), name="observer"),
            asyncio.create_task(Reconciler(observer, source, node.clock, node.tasks).run(), name="reconciler"),
            asyncio.create_task(watch_for_removal(node), name="removal"),
        ]
        if api is not None:
            name = node.config.name
            label = RoleLabel(api, name, lambda: "leader" if node.raft.role is Role.LEADER else "follower", node.tasks)
            tasks.append(asyncio.create_task(label.run(), name="role label"))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def bootstrap_guard(
    node: Node, api: KubernetesApi | None, replaceable: Callable[[], Awaitable[str]], *, in_kubernetes: bool
) -> BootstrapGuard | None:
    """Return who has the last word on whether this node may begin a cluster; None: nobody else has."""
    if not node.config.discovery_dns:
        return None
    if api is not None:
        return RecordGuard(api, Release.of(node.config), replaceable)
    return AddressGuard(node.config, node.peers) if in_kubernetes else None


class _Recorded:
    """A node as :class:`RecordKeeper` sees it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def cluster_id(self) -> str:
        return self._node.identity.cluster_id

    def leads(self) -> bool:
        raft = self._node.raft
        return raft.role is Role.LEADER and raft.can_change_membership

    def follows(self) -> bool:
        raft = self._node.raft
        return self._node.leader_name() is not None and raft.configuration.get(raft.id) is not None
