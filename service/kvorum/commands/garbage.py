"""The garbage collector of a node's process: it must not walk through the state, which would stop the event loop.

Reference counts free nearly everything that a node makes; the collector only finds cycles. A full collection visits the
keys of the whole state: about 100 ms at a million keys. So what has lived through a load or a snapshot is *frozen*:
the collector leaves it out from then on. What is in a cycle by then is collected first, or it would never be.
"""

from __future__ import annotations

import asyncio
import gc

from kvorum.telemetry.counters import Counters

THRESHOLDS = (700, 10, 100)
"""Of the three generations. A key with history has a list of versions, and half a microsecond goes into each that the
collector visits: the 7,000 of the second generation take 4 ms. Larger ones would also keep values of 1 MB for longer
that a cycle holds (tests/acceptance/test_memory.py)."""
CHECK_S = 1.0
"""How often the node looks whether a snapshot was taken or installed."""


def collect_seldom() -> None:
    """Set the thresholds. Call it when the process begins."""
    gc.set_threshold(*THRESHOLDS)


def freeze() -> None:
    """Collect what was made since the last time, and leave what is left of it out of all later collections."""
    gc.collect()
    gc.freeze()


async def freeze_after_snapshots(counters: Counters) -> None:
    """Freeze whenever a snapshot was taken or installed; for ever."""
    seen = sum(counters.snapshots.values())
    while True:
        await asyncio.sleep(CHECK_S)
        now = sum(counters.snapshots.values())
        if now != seen:
            seen = now
            freeze()
