"""Who a node is: its name, the incarnation of its disk, and its member id, ``name@incarnation``."""

from __future__ import annotations

import msgspec


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Who this data folder is. Lives and dies with the log; written before the first answer to a peer."""

    name: str
    """The stable name, e.g. the pod's: ``kv-0``."""
    incarnation: str
    """16 hex digits, drawn at random when the folder was created."""
    cluster_id: str = ""
    """32 hex digits; empty until the node has bootstrapped or joined."""

    @property
    def node_id(self) -> str:
        """The member id: ``name@incarnation``."""
        return node_id(self.name, self.incarnation)


def node_id(name: str, incarnation: str) -> str:
    """Return the member id of one incarnation of a node."""
    return f"{name}@{incarnation}"


def name_of(node: str) -> str:
    """Return the stable name in a member id; the whole of it if it is only a name."""
    return node.partition("@")[0]


def is_node_id(text: str) -> bool:
    """Tell whether this could be a member id."""
    return "@" in text
