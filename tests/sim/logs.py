"""What the product logs in a simulation: lines of the transcript, or nothing."""

from __future__ import annotations

import logging
from asyncio.events import _get_running_loop
from collections.abc import Iterator
from contextlib import contextmanager

from sim.loop import SimLoop
from sim.world import World

_LOGGER = logging.getLogger("kvorum")


@contextmanager
def told_logs(world: World) -> Iterator[None]:
    """Write the product's log lines into the transcript of this world; if nobody reads it, write them nowhere."""
    disabled, level, handler = logging.root.manager.disable, _LOGGER.level, _Told(world)
    if world.is_told:
        _LOGGER.setLevel(logging.INFO)
        _LOGGER.addHandler(handler)
    else:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        _LOGGER.setLevel(level)
        _LOGGER.removeHandler(handler)


class _Told(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        loop = _get_running_loop()
        who = loop.name if isinstance(loop, SimLoop) else ""
        self._world.note(who, "{}: {}", record.levelname.lower(), record.getMessage())
