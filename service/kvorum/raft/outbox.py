"""Where messages wait for what they reveal to be durable (bug B3).

A message that says something of this server's term, vote or log may leave only when that is on its disk. Everything
carries the term, so everything waits while the hard state is not durable; votes and answers about the log wait for
the save that they depend on.
"""

from __future__ import annotations

from kvorum.raft.messages import HardState, Message


class Outbox:
    """Collects messages in two heaps. ``durable`` is the hard state on disk, ``current`` the one in memory.

    Args:
        durable: the hard state that was loaded.
    """

    def __init__(self, durable: HardState) -> None:
        self.durable = durable
        self.current = durable
        self._now: list[Message] = []
        self._after_save: list[Message] = []

    def enter(self, hard_state: HardState) -> None:
        """Take note of a new hard state. What waits in an older term never leaves.

        It would leave with a save that may already replace the entries that it acknowledges, and say to a leader that
        does not know of the new term yet what is not so. A lost message does no harm.
        """
        if hard_state.current_term != self.current.current_term:
            self._after_save.clear()
        self.current = hard_state

    def send(self, message: Message, *, after_save: bool = False) -> None:
        """Let the message leave at once, or with the next save if it must wait or the hard state is not durable."""
        if after_save or self.durable != self.current:
            self._after_save.append(message)
        else:
            self._now.append(message)

    def take_immediate(self) -> tuple[Message, ...]:
        """Hand over what may leave at once."""
        messages, self._now = tuple(self._now), []
        return messages

    def take_after_save(self) -> tuple[Message, ...]:
        """Hand over what waits for a save. The caller attaches it to one, or knows that nothing is unsaved."""
        messages, self._after_save = tuple(self._after_save), []
        return messages
