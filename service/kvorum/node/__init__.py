"""The node: the one package that knows consensus, the disk, the peers and the replicated state.

Theory of operation. A composition root makes the *ports* (:mod:`~kvorum.node.ports`: clock, tasks, threads, storage,
peers) and hands them to :func:`start_node`, which reads the disk, makes the parts and connects them
(:mod:`~kvorum.node.compose`). Every part has one concern and gets what it uses through its constructor; the
:class:`Node` is the facade in front of them.

::

    fronts, cluster -> Node -> proposals, reads, membership --> raft (pure)      peers -> peer_requests -> driver
                                       ^                          ^  |
                                       | applied, released        |  | ready
                                       +--------- driver ---------+<-+---> storage, peers, state
                                                    |
                                                    +---> snapshots, fetch, integrity

Inputs change consensus at once and ask for a turn of the driver (:mod:`~kvorum.node.turns`); the turn, at the end of
the loop's turn, hands on everything that consensus then has to do. Whoever waits for consensus waits for a future that
the driver completes. Only a node that shuts down, or is not a member yet, asks the other nodes again and again.
"""

from kvorum.node.compose import start_node
from kvorum.node.node import Node
from kvorum.node.ports import Clock, Peers, Ports, Tasks, Threads
from kvorum.node.supervisor import Supervisor

__all__ = ["Clock", "Node", "Peers", "Ports", "Supervisor", "Tasks", "Threads", "start_node"]
