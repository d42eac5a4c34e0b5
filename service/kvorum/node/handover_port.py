"""The two sides of handing writes over, and the messages between them."""

from __future__ import annotations

from random import Random

from kvorum.node.handover import HandOvers
from kvorum.node.handover_leader import Receiver
from kvorum.node.handover_messages import Frame, HandoverMessage, Opening, Refusal, decode_handover, encode_handover
from kvorum.node.ports import Clock, Peers
from kvorum.node.proposals import Proposals
from kvorum.node.state import State
from kvorum.node.turns import Turns
from kvorum.raft import Raft
from kvorum.raft.messages import HandOver, NodeId
from kvorum.telemetry.counters import Counters


class HandOverPort:
    """Makes both sides, and carries what they say.

    Args:
        raft: the consensus server.
        state: what frames are applied to.
        proposals: the leader's writes.
        peers: where messages go.
        counters: where writes are counted.
        pending_max: writes that wait to be handed over; more are refused.
        timeout_s: how long a frame may wait at the leader for its proposal.
        clock: by which writes expire.
        random: draws the nonce.
        turns: the driver's.

    Attributes:
        origin: what this node hands over.
        receiver: what others hand to this node.
    """

    def __init__(
        self,
        raft: Raft,
        state: State,
        proposals: Proposals,
        peers: Peers,
        counters: Counters,
        pending_max: int,
        timeout_s: float,
        clock: Clock,
        random: Random,
        turns: Turns,
    ) -> None:
        self._raft = raft
        self._peers = peers
        self._turns = turns
        self.receiver = Receiver(raft, state, proposals, counters, timeout_s, self._answer, turns.schedule)
        self.origin = HandOvers(raft, state, counters, pending_max, clock, random, self._post)

    def on_message(self, message: HandOver) -> None:
        """Take a message from a peer.

        Raises:
            MalformedMessageError: it is none of ours; it changed nothing.
        """
        if message.recipient == self._raft.id:
            self._take(message.sender, message.term, decode_handover(message.data, message.sender))

    def _take(self, sender: NodeId, term: int, message: HandoverMessage) -> None:
        match message:
            case Opening():
                self.receiver.open(sender, term, message)
            case Frame():
                self.receiver.take(sender, term, message)
            case Refusal():
                self.origin.refused(sender, message)
        self._turns.schedule()

    def _post(self, recipient: NodeId, term: int, message: HandoverMessage) -> None:
        if recipient == self._raft.id:  # It was elected since.
            self._take(recipient, term, message)
        else:
            self._peers.send([HandOver(term, self._raft.id, recipient, data=encode_handover(message))])

    def _answer(self, recipient: NodeId, term: int, refusal: Refusal) -> None:
        # Not in our own term: it may not be durable here yet.
        self._post(recipient, term, refusal)
