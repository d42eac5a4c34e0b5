"""Waiting for what consensus decides: the fate of one log entry, or another leader. Nobody polls."""

from __future__ import annotations

import asyncio

from kvorum.errors import OutcomeUnknown
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
        """By index: the terms in which an entry was proposed there, and who waits for it."""
        self.changes: list[asyncio.Future[bool]] = []
        """Who waits until the role, the leader or a transfer changes."""
        self._deadlines: Deadlines[None] = Deadlines(clock)
        self._change_deadlines: Deadlines[bool] = Deadlines(clock)

    def entry(self, index: int, term: int, timeout_s: float) -> asyncio.Future[None]:
        """Return what completes when the entry that was proposed with this index and term is applied here.

        It fails with :class:`~kvorum.errors.OutcomeUnknown` when that cannot be told.
        """
        waiter: asyncio.Future[None] = asyncio.Future()
        self.entries.setdefault(index, []).append((term, waiter))
        self._deadlines.add(waiter, timeout_s)
        return waiter

    def change(self, timeout_s: float) -> asyncio.Future[bool]:
        """Return what completes at the next change of role, leader or transfer: True, or False when time is over."""
        waiter: asyncio.Future[bool] = asyncio.Future()
        self.changes.append(waiter)
        self._change_deadlines.add(waiter, timeout_s)
        return waiter

    # --- What the driver tells ----------------------------------------------------------------------------------

    def applied(self, entry: Entry) -> None:
        """An entry was applied: it is the one that was waited for, or took its place."""
        for term, waiter in self.entries.pop(entry.index, ()):
            if term == entry.term:
                _complete(waiter, None)
            else:
                _fail(waiter, "another leader's entry took the place of this change; it was not made")

    def restored(self, index: int) -> None:
        """A snapshot took the place of everything up to ``index``: nobody can tell what was in there."""
        for at in [at for at in self.entries if at <= index]:
            for _, waiter in self.entries.pop(at):
                _fail(waiter, "a snapshot took the place of this change's entry; it may or may not be made")

    def changed(self) -> None:
        """The role, the leader or a transfer changed."""
        waiters, self.changes = self.changes, []
        for waiter in waiters:
            _complete(waiter, True)

    def expire(self) -> None:
        """Answer those whose deadline has passed. Call now and then."""
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
        """The node stops: answer everybody."""
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
        waiter.set_exception(OutcomeUnknown(detail))
