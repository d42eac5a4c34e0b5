"""Elections: one leader at a time, the candidates after it in the order in which they came, and who it is.

An election is a lock whose holder says something of itself (:mod:`kvorum_client.locks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Protocol, Self

import msgspec

from kvorum_client import locks
from kvorum_client.errors import InvalidArgumentError, LockLostError, RefusedError, UnavailableError
from kvorum_client.leases import shown_id
from kvorum_client.locks import LockHolder, Queueing, check_wait, holder_of
from kvorum_client.watch import PAUSE_MAX_S, PAUSE_MIN_S, STEADY_S, AttemptEndedError, Connect, lines_of
from kvorum_client.wire import decode, encoded
from kvorum_wire import Problem
from kvorum_wire import leases as wire

ELECTIONS = "/v1/elections"


class Calls(locks.Calls, Protocol):
    """What an election needs of a client."""

    _stream: Connect
    _timeout_s: float


class _Line(msgspec.Struct, frozen=True):
    """A line of an observation, or its last one."""

    revision: int = 0
    leader: wire.LockHolder | None = None
    error: Problem | None = None


class Election(Queueing):
    """An election: campaign, proclaim, resign, and see who leads.

    ``async with kv.election("name", value="me") as election`` campaigns, and resigns at the end of the block, which
    raises LockLostError if the leadership was lost before. An object campaigns once; it may observe at any time.
    """

    _what = "election"

    def __init__(
        self,
        calls: Calls,
        name: bytes | str,
        value: bytes | str,
        *,
        ttl_s: int,
        wait_s: float | None,
        lock_delay_s: int,
        cancel_when_lost: bool,
        on_lost: Callable[[str], object] | None,
    ) -> None:
        super().__init__(
            calls,
            ELECTIONS,
            name,
            ttl_s=ttl_s,
            wait_s=wait_s,
            lock_delay_s=lock_delay_s,
            cancel_when_lost=cancel_when_lost,
            on_lost=on_lost,
        )
        self._elections: Calls = calls
        self._value = encoded(value, "the value")
        self._random = random.Random()  # noqa: S311 - jitter, not a secret

    @property
    def is_leader(self) -> bool:
        """Whether this candidate certainly leads now, by this machine's clock. It needs no answer of the cluster."""
        return self.is_held

    async def campaign(self, value: bytes | str | None = None, *, wait_s: float | None = None) -> Self:
        """Wait until this candidate is elected, and return it.

        Args:
            value: what to say of itself. None: the value that the election was made with.
            wait_s: give up after so long; None: as the election was made, by default never.

        Raises:
            LockHeldError: another one still leads after the wait; names its lease.
            LockLostError: no node could be reached for as long as the lease of the candidate lives.
            RefusedError, UnavailableError, OutcomeUnknownError: not elected.
        """
        if value is not None:
            self._value = encoded(value, "the value")
        await self._acquire(self._value, self._wait_s if wait_s is None else check_wait(wait_s))
        return self

    async def proclaim(self, value: bytes | str, *, timeout_s: float | None = None) -> None:
        """Change the value, as the leader.

        Raises:
            LockLostError: this candidate does not lead any more.
            UnavailableError: not done.
            OutcomeUnknownError: perhaps done.
            InvalidArgumentError: it was never elected.
        """
        data = encoded(value, "the value")
        if self._granted is None:
            raise InvalidArgumentError("only the leader can proclaim: campaign first")
        parameters: dict[str, str | bytes] = {"lease": shown_id(self.lease.id)}
        try:
            await self._calls._coordinate("PUT", self._path, body=data, parameters=parameters, timeout_s=timeout_s)
        except RefusedError as error:
            if error.code not in ("lock_not_held", "lease_not_found"):
                raise
            self.lease.lose(str(error))
            raise LockLostError(str(error)) from None

    async def resign(self) -> None:
        """Give up the leadership: end the lease. Idempotent. If no node answers, it ends when the lease has ended."""
        await self._release()

    async def leader(self, *, timeout_s: float | None = None) -> LockHolder | None:
        """Return who leads; None: nobody.

        Raises:
            RefusedError, UnavailableError: there is no answer.
        """
        try:
            answer = await self._calls._coordinate("GET", self._path, timeout_s=timeout_s)
        except RefusedError as error:
            if error.code != "not_elected":
                raise
            return None
        return holder_of(decode(answer.body, wire.LockState).holder)

    async def observe(self, *, timeout_s: float | None = None) -> AsyncGenerator[LockHolder | None, None]:
        """Yield who leads, now and after each change, also of the value; None: nobody. It has no end of its own.

        Who reads slowly sees the latest leader, and may miss some in between. When a node stops or fails, the
        observation goes on at another one.

        Args:
            timeout_s: how long to look for a node, to begin and then each time. None: the client's deadline to begin,
                and no limit to go on.

        Raises:
            RefusedError: the cluster has no elections (before version 0.5.0, or its feature level is below 5).
            UnavailableError: no node could be found in time.
        """
        seen, last = 0, (-1, b"")
        deadline = time.monotonic() + (self._elections._timeout_s if timeout_s is None else timeout_s)
        is_lost, pause_s = True, PAUSE_MIN_S
        while True:
            began = time.monotonic()
            try:
                async with contextlib.aclosing(self._lines(max(0.001, deadline - time.monotonic()))) as lines:
                    async for line in lines:
                        is_lost = False
                        if time.monotonic() - began >= STEADY_S:
                            pause_s = PAUSE_MIN_S
                        holder = holder_of(line.leader)
                        shown = (0, b"") if holder is None else (holder.fencing_token, holder.value)
                        # Another node may be behind the last one.
                        if line.revision >= seen and shown != last:
                            seen, last = line.revision, shown
                            yield holder
            except AttemptEndedError as error:
                if not is_lost:
                    # The time to go on counts from the loss, however long the leader was the same before.
                    is_lost, deadline = True, float("inf") if timeout_s is None else time.monotonic() + timeout_s
                elif time.monotonic() >= deadline:
                    raise UnavailableError(str(error)) from None
            await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _lines(self, within_s: float) -> AsyncGenerator[_Line, None]:
        pieces = self._elections._stream(f"{self._path}?watch=true", min(within_s, 86_400.0))
        async with contextlib.aclosing(lines_of(pieces)) as lines:
            async for text in lines:
                if not text.strip():
                    continue
                line = decode(text, _Line)
                if line.error is not None:
                    raise AttemptEndedError(line.error.detail)
                yield line

    async def __aenter__(self) -> Self:
        await self._enter(self._value)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(kind, error)
