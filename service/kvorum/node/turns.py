"""The driver's turns: whatever gives consensus something to do asks for one; it runs at the end of the loop's turn."""

from __future__ import annotations

from collections.abc import Callable

from kvorum.node.ports import Tasks


class Turns:
    """Asked for by many, taken by one.

    Args:
        tasks: how to be called later in this turn of the loop.
        take: takes a turn, and clears ``is_due`` first.
    """

    def __init__(self, tasks: Tasks, take: Callable[[], None]) -> None:
        self.is_due = False
        self.is_over = False
        """No turn is taken any more: the process ends."""
        self.may_have_changed = True
        """The role, the term, the leader or the members may differ from what they were in the last turn."""
        self._call_soon = tasks.call_soon
        self._take = take

    def schedule(self) -> None:
        """Ask for a turn; once is enough, whatever the number of inputs."""
        if not self.is_due and not self.is_over:
            self.is_due = True
            self._call_soon(self._take)
