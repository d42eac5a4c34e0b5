"""The driver's turns: asked for by whoever gives consensus something to do, taken at the end of the loop's turn."""

from __future__ import annotations

from collections.abc import Callable

from kvorum.node.ports import Tasks


class Turns:
    """Asked for by many, taken by one.

    Args:
        tasks: how to be called later in this turn of the loop.
    """

    def __init__(self, tasks: Tasks) -> None:
        self.is_due = False
        self.is_over = False
        """No turn is taken any more: the process ends."""
        self.may_have_changed = True
        """The role, the term, the leader or the members may differ from what they were in the last turn."""
        self._call_soon = tasks.call_soon
        self._take: Callable[[], None] = lambda: None

    def taken_by(self, take: Callable[[], None]) -> None:
        """Let this take the turns; it clears ``is_due`` first. Called once, by the driver."""
        self._take = take

    def schedule(self) -> None:
        """Ask for a turn; once is enough, whatever the number of inputs."""
        if not self.is_due and not self.is_over:
            self.is_due = True
            self._call_soon(self._take)
