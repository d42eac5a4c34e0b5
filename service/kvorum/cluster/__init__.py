"""How nodes find each other, begin a cluster, and keep its membership right."""

from __future__ import annotations

import asyncio

from kvorum.cluster.bootstrap import bootstrap
from kvorum.cluster.observer import Observer
from kvorum.cluster.reconcile import DesiredSource, Reconciler
from kvorum.cluster.removal import (
    ConfiguredSource,
    Removed,
    finish_setting_aside,
    leave_if_surplus,
    set_aside,
    watch_for_removal,
)
from kvorum.config import Config, split_ordinal
from kvorum.node import Node

__all__ = ["Removed", "desired_source", "finish_setting_aside", "join_and_reconcile", "leave_if_surplus", "set_aside"]


def desired_source(config: Config) -> DesiredSource:
    """Return who says how many members there should be: the configuration."""
    names = tuple(peer.name for peer in config.expected_members())
    return ConfiguredSource(names, split_ordinal(config.name)[0] if config.discovery_dns else "")


async def join_and_reconcile(node: Node, source: DesiredSource) -> None:
    """Get into a cluster, then keep its membership right while this node leads; never returns.

    Raises:
        Removed: this incarnation was removed; its data must be put aside before it starts again.
    """
    await bootstrap(node)
    observer = Observer(node)
    tasks = [
        asyncio.create_task(observer.run(), name="observer"),
        asyncio.create_task(Reconciler(observer, source).run(), name="reconciler"),
        asyncio.create_task(watch_for_removal(node), name="removal"),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
