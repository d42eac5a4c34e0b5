"""How nodes find each other, begin a cluster, and keep its membership right."""

from __future__ import annotations

import asyncio

from kvorum.cluster.bootstrap import bootstrap
from kvorum.cluster.kubernetes import KubernetesApi, RoleLabel
from kvorum.cluster.membership_spec import StatefulSets, Unanswered, membership_spec_source
from kvorum.cluster.observer import Observer
from kvorum.cluster.reconcile import MembershipSpecSource, Reconciler
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


async def join_and_reconcile(node: Node, source: MembershipSpecSource, api: KubernetesApi | None) -> None:
    """Get into a cluster, then keep its membership right while this node leads; never returns.

    Args:
        node: this node.
        source: who should be a member.
        api: the API server, to label our pod there; None: we are in no pod.

    Raises:
        RemovedError: this incarnation was removed; its data must be put aside before it starts again.
    """
    await bootstrap(node, source)
    observer = Observer(node)
    tasks = [
        asyncio.create_task(observer.run(), name="observer"),
        asyncio.create_task(Reconciler(observer, source, node.clock, node.tasks).run(), name="reconciler"),
        asyncio.create_task(watch_for_removal(node), name="removal"),
    ]
    if api is not None:
        name = node.config.name
        label = RoleLabel(api, name, lambda: "leader" if node.raft.role is Role.LEADER else "follower", node.tasks)
        tasks.append(asyncio.create_task(label.run(), name="role label"))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
