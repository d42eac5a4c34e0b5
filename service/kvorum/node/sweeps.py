"""Checking in the background that memory still holds what was applied."""

from __future__ import annotations

import asyncio
import logging
from math import ceil

from kvorum.kv.state_hash import SLICE_KEYS
from kvorum.kv.sweep import StateSweep
from kvorum.node.integrity import Integrity
from kvorum.node.ports import Tasks
from kvorum.node.state import SUM_MODULUS, State

log = logging.getLogger("kvorum.state")

PASS_S = 600.0
"""A pass over all records takes about this long, however many there are, and however large."""
PASS_HURRIED_S = 30.0
"""The same of a state that is in doubt."""
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 60.0


class Sweeps:
    """Sweeps the state again and again, slice by slice, from :meth:`start` to :meth:`close`.

    A mismatch does not put the node in quarantine: its sum becomes that of what memory holds, and the members vote.

    Args:
        state: what is swept.
        integrity: what asks the members.
        tasks: where it runs.
    """

    def __init__(self, state: State, integrity: Integrity, tasks: Tasks) -> None:
        self._state = state
        self._integrity = integrity
        self._tasks = tasks
        self._store = state.store
        self._sweep = StateSweep(state.store)
        self._is_hurried = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = self._tasks.spawn(self._run(), name="sweep the state")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = PAUSE_MIN_S
        while True:
            await self._tasks.sleep(pause_s)
            pass_s = PASS_HURRIED_S if self._state.is_in_doubt else PASS_S
            self.step(max(SLICE_KEYS, ceil(len(self._state.store) * PAUSE_MIN_S / pass_s)))
            # A slice may end early, because of its bytes.
            pause_s = min(max(pass_s * self._sweep.share, PAUSE_MIN_S), PAUSE_MAX_S)

    def step(self, max_keys: int) -> None:
        """Sweep the next slice of the state as it is now."""
        state = self._state
        store = state.store
        if store is not self._store:
            self._store, self._sweep = store, StateSweep(store)
        if state.is_wrong or state.is_given_up:
            return
        if state.is_in_doubt and not self._is_hurried:
            # What has changed may lie behind the present pass.
            self._sweep, self._is_hurried = StateSweep(store), True
        mismatch = self._sweep.step(max_keys)
        if self._is_hurried and self._sweep.passes:
            self._is_hurried = state.is_in_doubt = False
        # The first pass makes the sum count: who asks for the digest of a state that stays gets it with the sum.
        state.hashes.applied(store.applied_index, store.digest)
        if mismatch is None:
            return
        log.critical(
            "the records in memory do not match their state sum: computed %032x, expected %032x, at index %d; "
            "asking the other members which of the two is right",
            mismatch.found,
            mismatch.expected,
            mismatch.index,
        )
        self._integrity.suspect(mismatch.index, (mismatch.expected - mismatch.found) % SUM_MODULUS)
