"""Idempotency keys: who a write is from, and which of its writes it is, so that a retry is applied once.

The cluster remembers a session's last 256 answers, knows a session from its sequence 1 on, and takes no sequence more
than 256 above the highest one that reached it. Hence three rules, kept here and nowhere else:

- The first write of a session is awaited alone.
- No write is sent whose sequence is 200 or more above the oldest one still in flight: what is being retried must not
  fall out of the window.
- No write is sent whose sequence is more than 200 above the highest one that the cluster has answered: those in between
  may never have arrived, in an outage for example.

When that leaves no room, another session is opened: a *lane*. A lane that will never have room again is dropped.

The cluster has room for a bounded number of sessions and keeps each for an hour. So a client ends those of which it
knows the outcome of every write. The cluster refuses an ended session's id for an hour: an attempt that is still on its
way does not open it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

from kvorum_client.errors import RefusedError, UnavailableError

WINDOW = 200
"""How far a lane runs ahead of its oldest write in flight and of its highest answer; below the cluster's 256."""
BATCH_MAX = 128
"""How many writes of one batch have a place in a session: as many as a batch may have, and a lane has room for."""
LANES_MAX = 64
"""How many sessions one client opens; more writes than these hold wait for room."""


class _Lane:
    """One session."""

    def __init__(self) -> None:
        self.client_id = secrets.token_hex(12)
        self.next_sequence = 1
        self.open = False
        self.answered = 0
        """The highest sequence that the cluster has answered."""
        self.in_flight: dict[int, None] = {}
        self.is_in_doubt = False
        """Whether the outcome of a write is not known."""

    @property
    def has_room(self) -> bool:
        return self.room > 0

    @property
    def room(self) -> int:
        """How many writes it takes now."""
        if not self.open:
            return 0
        oldest = next(iter(self.in_flight), self.next_sequence)
        return min(WINDOW - self.next_sequence + oldest, WINDOW + 1 - self.next_sequence + self.answered)

    @property
    def is_spent(self) -> bool:
        """Whether it has no room, and no write in flight that could still make some."""
        return not self.in_flight and not self.has_room

    def take(self) -> int:
        sequence = self.next_sequence
        self.next_sequence += 1
        self.in_flight[sequence] = None
        return sequence


class Ticket:
    """One write's place in a session.

    Args:
        lane: the session.
        sequence: which of its writes this is.
    """

    def __init__(self, lane: _Lane, sequence: int) -> None:
        self.lane = lane
        self.sequence = sequence
        self.answered = False
        """Set by the caller when the cluster has answered for this sequence: it is in the session's window."""
        self.lost = False
        """Set by the caller when the cluster does not take this session's writes any more."""

    @property
    def opens(self) -> bool:
        """Whether it opens its session."""
        return self.sequence == 1

    @property
    def idempotency_key(self) -> str:
        """The header's value."""
        return f"{self.lane.client_id}/{self.sequence}"


class Sessions:
    """The sessions of one client; for one event loop."""

    def __init__(self) -> None:
        self._lanes: list[_Lane] = []
        self._opening: _Lane | None = None
        self._changed: asyncio.Event | None = None

    @contextlib.asynccontextmanager
    async def ticket(self, timeout_s: float) -> AsyncIterator[Ticket]:
        """Lend a place in a session for one write; waits while another write opens the session, or all are full.

        Raises:
            TimeoutError: there was no room in time.
        """
        async with asyncio.timeout(timeout_s):
            while (ticket := self._take()) is None:
                if self._changed is None:
                    self._changed = asyncio.Event()
                await self._changed.wait()
        try:
            yield ticket
        except (RefusedError, UnavailableError):
            raise
        except BaseException:
            ticket.lane.is_in_doubt = True
            raise
        finally:
            self._give_back(ticket)

    @contextlib.asynccontextmanager
    async def tickets(self, count: int, timeout_s: float) -> AsyncIterator[list[Ticket]]:
        """Lend places in one session for a batch of writes, or a single place that opens a session.

        Args:
            count: how many places, at most :data:`BATCH_MAX`.
            timeout_s: how long to wait for them.

        Raises:
            TimeoutError: there was no room in time.
        """
        async with asyncio.timeout(timeout_s):
            while not (tickets := self._take_several(count)):
                if self._changed is None:
                    self._changed = asyncio.Event()
                await self._changed.wait()
        try:
            yield tickets
        except (RefusedError, UnavailableError):
            raise
        except BaseException:
            tickets[0].lane.is_in_doubt = True
            raise
        finally:
            for ticket in tickets:
                self._give_back(ticket)

    def take_ended(self) -> list[str]:
        """Return the client ids of the sessions that may be ended, and use them no more.

        These are the ones without a write in flight of which the outcome of every write is known.
        """
        ended = [lane for lane in self._lanes if not lane.in_flight and not lane.is_in_doubt]
        self._lanes = [lane for lane in self._lanes if lane not in ended]
        return [lane.client_id for lane in ended]

    def _take_several(self, count: int) -> list[Ticket]:
        for lane in self._lanes:
            if lane.room >= count:
                return [Ticket(lane, lane.take()) for _ in range(count)]
        opening = self._open()
        return [] if opening is None else [opening]

    def _take(self) -> Ticket | None:
        for lane in self._lanes:
            if lane.has_room:
                return Ticket(lane, lane.take())
        return self._open()

    def _open(self) -> Ticket | None:
        if self._opening is not None or len(self._lanes) >= LANES_MAX:
            return None
        lane = self._opening = _Lane()
        return Ticket(lane, lane.take())

    def _give_back(self, ticket: Ticket) -> None:
        lane = ticket.lane
        lane.in_flight.pop(ticket.sequence, None)
        if ticket.answered:
            lane.answered = max(lane.answered, ticket.sequence)
        if lane is self._opening:
            self._opening = None
            # Without an answer nobody knows whether the session exists: the next write opens another one.
            if ticket.answered:
                lane.open = True
                self._lanes.append(lane)
        if (ticket.lost or lane.is_spent) and lane in self._lanes:
            self._lanes.remove(lane)
        if self._changed is not None:
            self._changed.set()
            self._changed = None
