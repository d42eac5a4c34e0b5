"""Waiting for what consensus decides: the fate of one log entry, or another leader."""

from __future__ import annotations

import asyncio

from kvorum.errors import OutcomeUnknownError
from kvorum.node.deadlines import Deadlines
from kvorum.node.ports import Clock
from kvorum.raft.messages import Entry


class Waits:
    """Futures that the driver completes.

    Args:
        clock: by which they expire.
    """

    def __init__(self, clock: Clock) -> None:
        self.entries: dict[int, list[tuple[int, asyncio.Future[None]]]] = {}
        """By index: the term of each entry proposed there, and the future of whoever waits for it."""
        self.changes: list[asyncio.Future[bool]] = []
        """The futures of those that wait until the role, the leader or a transfer changes."""
        self._stopped = ""
        self._deadlines: Deadlines[None] = Deadlines(clock)
        self._change_deadlines: Deadlines[bool] = Deadlines(clock)

    def entry(self, index: int, term: int, timeout_s: float) -> asyncio.Future[None]:
        """Return what completes when the entry that was proposed with this index and term is applied here.

        It fails with :class:`~kvorum.errors.OutcomeUnknownError` when that cannot be told.
        """
        waiter: asyncio.Future[None] = asyncio.Future()
        if self._stopped:
            _fail(waiter, f"{self._stopped}; the change may still be made")
            return waiter
        self.entries.setdefault(index, []).append((term, waiter))
        self._deadlines.add(waiter, timeout_s)
        return waiter

    def change(self, timeout_s: float) -> asyncio.Future[bool]:
        """Return what completes at the next change of role, leader or transfer: True, or False when time is over."""
        waiter: asyncio.Future[bool] = asyncio.Future()
        if self._stopped:
            _complete(waiter, False)
            return waiter
        self.changes.append(waiter)
        self._change_deadlines.add(waiter, timeout_s)
        return waiter

    # --- What the driver tells ----------------------------------------------------------------------------------

    def applied(self, entry: Entry) -> None:
        """Complete the waits for the index of this entry, which was applied: it is the awaited one, or replaced it."""
        for term, waiter in self.entries.pop(entry.index, ()):
            if term == entry.term:
                _complete(waiter, None)
            else:
                _fail(waiter, "an entry of another leader replaced the entry of this change")

    def restored(self, index: int) -> None:
        """Fail the waits up to ``index``: a snapshot replaced the entries, and nobody can tell which they were."""
        for at in [at for at in self.entries if at <= index]:
            for _, waiter in self.entries.pop(at):
                _fail(waiter, "a snapshot replaced the entry of this change, which may or may not be made")

    def changed(self) -> None:
        """Complete the waits for a change of role, leader or transfer."""
        waiters, self.changes = self.changes, []
        for waiter in waiters:
            _complete(waiter, True)

    def expire(self) -> None:
        """Complete the waits whose deadline has passed; called once a tick."""
        for waiter in self._deadlines.expired():
            _fail(waiter, "no quorum confirmed the change in time; it may still be made")
        for waiting in self._change_deadlines.expired():
            _complete(waiting, False)
        if self.entries:
            alive = {at: [each for each in waiting if not each[1].done()] for at, waiting in self.entries.items()}
            self.entries = {at: waiting for at, waiting in alive.items() if waiting}
        if self.changes:
            self.changes = [each for each in self.changes if not each.done()]

    def stop(self, reason: str) -> None:
        """Complete every wait, now and from now on: the node stops."""
        self._stopped = reason
        for waiting in self.entries.values():
            for _, waiter in waiting:
                _fail(waiter, f"{reason}; the change may still be made")
        self.entries.clear()
        for each in self.changes:
            _complete(each, False)
        self.changes.clear()


def _complete(waiter: asyncio.Future[bool] | asyncio.Future[None], value: bool | None) -> None:
    if not waiter.done():
        waiter.set_result(value)  # type: ignore[arg-type]


def _fail(waiter: asyncio.Future[None], detail: str) -> None:
    if not waiter.done():
        waiter.set_exception(OutcomeUnknownError(detail))
