"""The round-trip time of heartbeats to each peer: the network and the peer's event loop, without its disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from kvorum.identity import name_of
from kvorum.node.ports import Clock
from kvorum.raft.messages import Heartbeat, HeartbeatResponse, Message, NodeId
from kvorum.telemetry.counters import Counters

OUTSTANDING_MAX = 256


class RoundTrips:
    """Matches answers with heartbeats. Streams keep order: an answer is for the oldest heartbeat of its round.

    Args:
        counters: where round trips are recorded, and where a dropped message shows.
        clock: measures time.
    """

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._clock = clock
        self._counters = counters
        self._outstanding: dict[NodeId, deque[tuple[int, float]]] = {}
        self._dropped: dict[NodeId, int] = {}

    def sent(self, messages: Iterable[Message]) -> None:
        """Note the heartbeats among the messages that leave now."""
        now = self._clock.monotonic()
        for message in messages:
            if isinstance(message, Heartbeat):
                waiting = self._outstanding.get(message.recipient)
                if waiting is None:
                    waiting = self._outstanding[message.recipient] = deque(maxlen=OUTSTANDING_MAX)
                waiting.append((message.round, now))

    def answered(self, message: HeartbeatResponse) -> None:
        """Record the round trip that this answer ends."""
        node = message.sender
        waiting = self._outstanding.get(node)
        if waiting is None:
            return
        name = self._counters.peer_label(name_of(node))
        dropped = self._counters.messages_dropped.get(name, 0)
        if dropped != self._dropped.get(node, 0):
            # A message was dropped before it was sent: nobody can tell which heartbeat is answered.
            self._dropped[node] = dropped
            waiting.clear()
        while waiting and waiting[0][0] < message.round:
            waiting.popleft()
        if waiting and waiting[0][0] == message.round:
            self._counters.peer_rtt[name].record(self._clock.monotonic() - waiting.popleft()[1])

    def forget(self, node: NodeId) -> None:
        """Forget the heartbeats sent to this peer: the stream broke, and they will not be answered."""
        self._outstanding.pop(node, None)
