"""The network between the nodes: it drops, duplicates, delays, reorders, and cuts any direction of any link."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from sim.clock import Clock
from sim.plan import Plan

from kvorum.raft.messages import Message, NodeId

Link = tuple[NodeId, NodeId]
"""(from, to)."""
Frame = tuple[Message, ...]
"""Messages that one node sends to another at one moment."""


class Network:
    """Delivers frames late, and messages of them twice, out of order, or never.

    Args:
        plan: the rates.
        clock: the virtual clock.
        deliver: where frames arrive.
    """

    def __init__(self, plan: Plan, clock: Clock, deliver: Callable[[Frame], None]) -> None:
        self._plan = plan
        self._clock = clock
        self._deliver = deliver
        self._draw = Random(f"{plan.seed}:network").random
        self._cuts: dict[Link, int] = {}
        self._mended: dict[Link, int] = {}
        """When a cut of a link ended last."""
        self._held: dict[NodeId, int] = {}
        self._forgotten: dict[NodeId, int] = {}
        self.is_faulty = True
        """False in the liveness phase: nothing is dropped, doubled or slow."""

    def send(self, frame: Frame) -> None:
        """Let a frame leave."""
        plan, draw = self._plan, self._draw
        if self._cuts and self.is_cut(frame[0].sender, frame[0].recipient):
            return
        delay = plan.latency_us + int(draw() * plan.jitter_us)
        if not self.is_faulty:
            self._clock.after(min(delay, plan.timely_us), self._arrive, frame, self._clock.now)
            return
        if plan.drop_per_mille or plan.duplicate_per_mille or plan.slow_per_mille:
            frame = tuple(message for message in frame if self._is_in_time(message, delay))
        if frame:
            self._clock.after(delay, self._arrive, frame, self._clock.now)

    def _is_in_time(self, message: Message, delay: int) -> bool:
        """Return whether a message arrives with its frame; else it is lost, or comes later. Either may come twice."""
        plan, draw = self._plan, self._draw
        if plan.drop_per_mille and draw() * 1000 < plan.drop_per_mille:
            return False
        if plan.duplicate_per_mille and draw() * 1000 < plan.duplicate_per_mille:
            self._clock.after(
                self._slowed(plan.latency_us + int(draw() * plan.jitter_us)), self._arrive, (message,), self._clock.now
            )
        slowed = self._slowed(delay)
        if slowed != delay:
            self._clock.after(slowed, self._arrive, (message,), self._clock.now)
        return slowed == delay

    def _slowed(self, delay: int) -> int:
        plan, draw = self._plan, self._draw
        if plan.slow_per_mille and draw() * 1000 < plan.slow_per_mille:
            return delay + 1 + int(draw() * plan.slow_us)
        return delay

    def hold(self, recipient: NodeId, until_us: int) -> None:
        """Deliver nothing to this node before then: it does not read. What arrives waits, in its order."""
        self._held[recipient] = until_us

    def _arrive(self, frame: Frame, sent_us: int) -> None:
        if self._forgotten and sent_us <= self._forgotten.get(frame[0].sender, -1):
            return
        if self._held and (wait_us := self._held.get(frame[0].recipient, 0) - self._clock.now) > 0:
            self._clock.after(wait_us, self._arrive, frame, sent_us)
        elif not self._cuts or not self.is_cut(frame[0].sender, frame[0].recipient):
            self._deliver(frame)

    def forget(self, sender: NodeId) -> None:
        """Lose everything that this node has sent."""
        self._forgotten[sender] = self._clock.now

    def is_cut(self, sender: NodeId, recipient: NodeId) -> bool:
        """Tell whether nothing gets from ``sender`` to ``recipient`` now."""
        return self._cuts.get((sender, recipient), 0) > 0

    def was_cut(self, node: NodeId, since_us: int) -> bool:
        """Tell whether any direction of any link of a node is cut, or was since then."""
        cuts = any(node in link and count > 0 for link, count in self._cuts.items())
        return cuts or any(node in link and mended_us >= since_us for link, mended_us in self._mended.items())

    def cut(self, links: list[Link]) -> None:
        """Cut these directions of these links; cuts add up."""
        for link in links:
            self._cuts[link] = self._cuts.get(link, 0) + 1

    def mend(self, links: list[Link]) -> None:
        """Undo one :meth:`cut` of the same links."""
        for link in links:
            count = self._cuts.get(link, 0) - 1
            if count > 0:
                self._cuts[link] = count
            else:
                self._cuts.pop(link, None)
                self._mended[link] = self._clock.now

    def heal(self) -> None:
        """Mend everything, and stop being faulty; whoever does not read reads soon."""
        for recipient, until_us in self._held.items():
            self._held[recipient] = min(until_us, self._clock.now + self._plan.timely_us)
        self._mended.update(dict.fromkeys(self._cuts, self._clock.now))
        self._cuts.clear()
        self.is_faulty = False
