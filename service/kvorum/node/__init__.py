"""The node: the one module that knows consensus, the disk, the peers and the replicated state."""

from kvorum.node.node import Node

__all__ = ["Node"]
