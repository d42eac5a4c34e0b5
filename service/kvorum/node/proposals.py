"""Writes on their way: queued, proposed, committed, answered.

What is asked in one turn of the loop becomes one log entry. Each entry that was proposed waits under its index and
term; the entry that is later applied there decides what its callers hear.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvorum.errors import CallerError, NoLeader, NotLeader, OutcomeUnknown, Overloaded
from kvorum.kv.commands import Command, Delete, Put, Result, encode_batch
from kvorum.kv.limits import BATCH_COMMANDS_MAX, check_command
from kvorum.node.deadlines import Deadlines
from kvorum.node.ports import Clock
from kvorum.raft import Raft
from kvorum.raft.messages import Entry
from kvorum.telemetry.counters import Counters

if TYPE_CHECKING:
    from kvorum.telemetry.tracing import Tracer

Waiter = asyncio.Future[Result]
_COMMAND_OVERHEAD_BYTES = 64


class Proposals:
    """The leader's writes, from :meth:`submit` to :meth:`applied`.

    Args:
        raft: the consensus server.
        counters: where proposals are counted.
        pending_max: writes queued or waiting for a quorum; more are refused.
        batch_bytes_max: the most that one log entry carries.
        clock: by which writes expire, and whose wall time entries carry.
        tracer: what is told of each traced write, if anything is.
    """

    def __init__(
        self,
        raft: Raft,
        counters: Counters,
        pending_max: int,
        batch_bytes_max: int,
        clock: Clock,
        tracer: Tracer | None = None,
    ) -> None:
        self._raft = raft
        self._counters = counters
        self._pending_max = pending_max
        self._batch_bytes_max = batch_bytes_max
        self._clock = clock
        self._tracer = tracer
        self._queue: deque[tuple[Command, Waiter]] = deque()
        self._proposed: dict[int, tuple[int, list[Waiter], float]] = {}  # index -> (term, waiters, since)
        self._deadlines: Deadlines[Result] = Deadlines(clock)
        self._pending = 0

    @property
    def pending(self) -> int:
        """Writes that are queued or wait for a quorum."""
        return self._pending

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits for the outcome of a write; whoever was told that it is unknown does not."""
        waiting = (waiter for _, waiters, _ in self._proposed.values() for waiter in waiters)
        return any(not waiter.done() for waiter in (*(waiter for _, waiter in self._queue), *waiting))

    def submit(self, command: Command, timeout_s: float) -> Waiter:
        """Queue a write; return what will be its result.

        Raises:
            NotLeader, Overloaded, TooLarge, InvalidRequest: it was not queued.
        """
        if self._raft.leader != self._raft.id:
            raise NotLeader(self._raft.leader)
        check_command(command)
        if self._pending >= self._pending_max:
            self._counters.proposals["refused"] += 1
            raise Overloaded(f"{self._pending} writes wait already")
        waiter: Waiter = asyncio.Future()
        self._queue.append((command, waiter))
        self._deadlines.add(waiter, timeout_s)
        self._pending += 1
        return waiter

    def flush(self) -> None:
        """Propose what is queued, unless the leadership is being handed over: then it waits for the end of that."""
        while self._queue and not self._raft.is_transferring:
            commands, waiters = self._take_batch()
            if not commands:
                continue
            try:
                index, term = self._raft.propose([encode_batch(self._clock.wall_ms(), commands)])
            except CallerError as error:
                self._refuse(waiters, error)
            else:
                self._fail_replaced(index)
                self._proposed[index] = (term, waiters, self._clock.monotonic())
                if self._tracer is not None:
                    self._tracer.proposed(index, term, waiters)

    def _fail_replaced(self, index: int) -> None:
        """What was proposed here in an earlier term of ours was truncated meanwhile, and will not be seen applied."""
        if index in self._proposed:
            _, waiters, _ = self._proposed.pop(index)
            self._pending -= len(waiters)
            self._fail(waiters, OutcomeUnknown("another entry took the place of this write"))

    def _take_batch(self) -> tuple[list[Command], list[Waiter]]:
        commands: list[Command] = []
        waiters: list[Waiter] = []
        size = 0
        while self._queue and len(commands) < BATCH_COMMANDS_MAX and size < self._batch_bytes_max:
            command, waiter = self._queue[0]
            weight = _weight(command)
            if commands and size + weight > self._batch_bytes_max:
                break
            self._queue.popleft()
            if waiter.done():  # Its caller gave up before it was proposed: certainly not done.
                self._pending -= 1
                continue
            size += weight
            commands.append(command)
            waiters.append(waiter)
        return commands, waiters

    def applied(self, entry: Entry, results: list[Result]) -> None:
        """An entry was applied: answer those who wait for it."""
        waiting = self._proposed.pop(entry.index, None)
        if waiting is None:
            return
        term, waiters, since = waiting
        self._pending -= len(waiters)
        if term != entry.term:
            self._fail(waiters, OutcomeUnknown("another leader's entry took the place of this write"))
            return
        self._counters.commit_duration.record(self._clock.monotonic() - since)
        told = 0
        for waiter, result in zip(waiters, results, strict=True):
            if not waiter.done():
                waiter.set_result(result)
            elif not waiter.cancelled():
                told += 1  # "Unknown", at its deadline, and counted as that.
        self._counters.proposals["committed"] += len(waiters) - told

    def restored(self, index: int) -> None:
        """A snapshot took the place of everything up to ``index``: what waited there will not be seen applied."""
        for at in [at for at in self._proposed if at <= index]:
            _, waiters, _ = self._proposed.pop(at)
            self._pending -= len(waiters)
            self._fail(waiters, OutcomeUnknown("a snapshot took the place of this write's entry"))

    def expire(self) -> None:
        """Answer those whose deadline has passed. Call now and then.

        A write that is still queued was certainly not done; of one that was proposed nobody knows.
        """
        expired = list(self._deadlines.expired())
        # Thousands may expire at once, with thousands in the queue.
        queued = {waiter for _, waiter in self._queue} if expired else set()
        for waiter in expired:
            if waiter in queued:
                self._refuse([], Overloaded("the write was still queued at its deadline; it was not done"), waiter)
            else:
                self._fail([waiter], OutcomeUnknown("no quorum answered in time; the write may still be done"))

    def _refuse(self, waiters: list[Waiter], error: CallerError, *more: Waiter) -> None:
        self._pending -= len(waiters)
        self._tell((*waiters, *more), error, "refused")

    def _fail(self, waiters: list[Waiter], error: OutcomeUnknown) -> None:
        self._tell(waiters, error, "unknown")

    def _tell(self, waiters: Sequence[Waiter], error: CallerError, outcome: str) -> None:
        """Each write is counted once: by what its caller was told, or by what became of it if the caller has gone."""
        for waiter in waiters:
            if waiter.done() and not waiter.cancelled():
                continue
            self._counters.proposals[outcome] += 1
            if not waiter.done():
                waiter.set_exception(error)

    def stop(self, reason: str) -> None:
        """The node stops, or its state is wrong: answer everybody."""
        queued = [waiter for _, waiter in self._queue]
        self._queue.clear()
        self._refuse(queued, NoLeader(reason))
        for _, waiters, _ in self._proposed.values():
            self._pending -= len(waiters)
            self._fail(waiters, OutcomeUnknown(f"{reason}; the write may still be done"))
        self._proposed.clear()


def _weight(command: Command) -> int:
    match command:
        case Put(key, value):
            return len(key) + len(value) + _COMMAND_OVERHEAD_BYTES
        case Delete(key):
            return len(key) + _COMMAND_OVERHEAD_BYTES
