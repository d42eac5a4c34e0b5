"""How nodes find each other, begin a cluster, and keep its membership right."""

from __future__ import annotations

import asyncio

from kvorum.cluster.bootstrap import bootstrap
from kvorum.node import Node


async def join_and_reconcile(node: Node) -> None:
    """Get into a cluster, then keep its membership right for as long as this node leads; never returns."""
    await bootstrap(node)
    await asyncio.Event().wait()
