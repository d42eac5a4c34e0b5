"""Who a node is."""

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
        return f"{self.name}@{self.incarnation}"
