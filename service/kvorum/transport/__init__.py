"""Between peers: one WebSocket stream and one bounded queue to each, and a few plain requests.

Between members a stream is one-way: each server dials every other, and sends on the stream that it dialled. So the loss
of either direction is seen by its sender, and a server learns within milliseconds that a peer's process has died, from
the stream that the peer had dialled. AppendEntries keep their order within a stream; what is lost with a stream
consensus sends again. A caller that is no member is answered on its own stream, so that nobody is dialled only because
it says where.

Every connection begins with a handshake (:mod:`kvorum.transport.handshake`): which cluster, from whom, to whom, each
with the incarnation of its disk. Whatever does not match is refused and counted.

This module offers the types only, so that importing it opens no door to the network: the port itself is
:class:`kvorum.transport.port.PeerPort`.
"""

from kvorum.transport.interface import Greeting, Hello, NodeHandler, PeerHandler, SnapshotChunk

__all__ = ["Greeting", "Hello", "NodeHandler", "PeerHandler", "SnapshotChunk"]
