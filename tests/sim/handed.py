"""What the nodes hand to leaders, what the leaders refuse of it, and what is applied."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from sim import invariants

from kvorum.kv.commands import HandedOver, QueuedCommand
from kvorum.node.handover_messages import Frame, Refusal, decode_handover
from kvorum.raft.messages import HandOver, NodeId

if TYPE_CHECKING:
    from sim.facts import Facts

Number = tuple[int, int]
"""(nonce, number)."""
Attempt = tuple[NodeId, int, tuple[QueuedCommand, ...]]
"""(who made it, in which term, what it carried)."""


class Handed:
    """The frames of all nodes.

    Attributes:
        done: the numbers that were applied, with what they carried.
    """

    def __init__(self) -> None:
        self.done: dict[Number, HandedOver] = {}
        self._attempts: defaultdict[Number, dict[int, Attempt]] = defaultdict(dict)
        self._refused: defaultdict[Number, set[int]] = defaultdict(set)

    def sent(self, facts: Facts, message: HandOver) -> None:
        """A message leaves a process."""
        said = decode_handover(message.data, message.sender)
        match said:
            case Frame():
                attempt = (message.sender, message.term, said.commands)
                self._attempts[said.nonce, said.number][said.attempt] = attempt
            case Refusal():
                self._refused[said.nonce, said.number].update(said.attempts)
                command = self.done.get((said.nonce, said.number))
                if command is not None:
                    self._judge(facts, command)
            case _:
                pass

    def applied(self, facts: Facts, command: HandedOver) -> None:
        """A frame is applied."""
        invariants.a_number_is_applied_once(self.done, command)
        self.done[command.nonce, command.number] = command
        self._judge(facts, command)

    def _judge(self, facts: Facts, command: HandedOver) -> None:
        number = (command.nonce, command.number)
        same = {
            attempt: (origin, term)
            for attempt, (origin, term, commands) in self._attempts[number].items()
            if commands == command.commands
        }
        # What a node hands to itself, once it leads, is not seen here.
        for origin, since in same.values():
            if any(leader == origin and term > since for term, (leader, _) in facts.leaders.items()):
                return
        if command.commands:
            invariants.what_was_refused_is_not_applied(command, same.keys(), self._refused[number])
