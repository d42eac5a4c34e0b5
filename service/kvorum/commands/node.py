"""The composition root of a real node: its ports are this machine's clock, disk, network, tasks and threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random, SystemRandom
from typing import TYPE_CHECKING

from kvorum.commands.garbage import collect_seldom, freeze, freeze_after_snapshots
from kvorum.config import Config
from kvorum.config.resources import memory_bytes
from kvorum.node import Node, Ports, Supervisor, start_node
from kvorum.node.runtime import LoopTasks, LoopThreads, SystemClock
from kvorum.storage.log import SqliteStorage
from kvorum.telemetry.counters import Counters
from kvorum.transport.port import PeerPort

if TYPE_CHECKING:
    from kvorum.telemetry.tracing import Tracer


FOLDER_CHECK_S = 2.0
"""How often the node looks whether its data folder is still there."""


@asynccontextmanager
async def running_node(config: Config, tracer: Tracer | None = None) -> AsyncIterator[Node]:
    """Start a node, and close it afterwards, then its storage.

    Args:
        config: resolved.
        tracer: records the spans of traced requests; None: there are no traces.

    Raises:
        StorageError: the data folder cannot be trusted.
        OSError: the peer port cannot be had.
    """
    collect_seldom()
    supervisor, counters, threads = Supervisor(), Counters(), LoopThreads()
    async with AsyncExitStack() as stack:
        storage = SqliteStorage(
            config.data_dir,
            supervisor.fail,
            save_deadline_ms=round(1000 * config.disk_stall_limit_s),
            counters=counters,
            name=config.name,
            log_memory_bytes_max=config.log_memory_bytes,
            reserve_bytes=config.disk_reserve_bytes,
        )
        stack.push_async_callback(threads.run, storage.close)
        tasks = LoopTasks(supervisor)
        ports = Ports(
            supervisor=supervisor,
            clock=SystemClock(),
            tasks=tasks,
            threads=threads,
            storage=storage,
            peers=PeerPort(config, counters, _seeded()),
            random=_seeded(),
            counters=counters,
            memory_bytes=memory_bytes(),
            tracer=tracer,
        )
        node = await start_node(config, ports)
        stack.push_async_callback(node.close)
        watch = tasks.spawn(_watch_folder(storage, threads), name="data folder")
        stack.callback(watch.cancel)
        freeze()
        freezing = tasks.spawn(freeze_after_snapshots(counters), name="garbage")
        stack.callback(freezing.cancel)
        yield node


async def _watch_folder(storage: SqliteStorage, threads: LoopThreads) -> None:
    """Look now and then whether the data folder is still there.

    Raises:
        StorageReplacedError: it is not.
    """
    while True:
        await asyncio.sleep(FOLDER_CHECK_S)
        await threads.run(storage.check_folder)


def _seeded() -> Random:
    return Random(SystemRandom().getrandbits(64))  # noqa: S311 (no secret depends on it)
