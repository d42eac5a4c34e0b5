"""Who a node is: its name, the incarnation of its disk, and its member id, ``name@incarnation``."""

from __future__ import annotations

import re

import msgspec

NAME_CHARS_MAX = 63
_NAME = rf"[A-Za-z0-9](?:[A-Za-z0-9._-]{{0,{NAME_CHARS_MAX - 2}}}[A-Za-z0-9])?"
_IS_NAME = re.compile(_NAME)
_IS_NODE_ID = re.compile(rf"{_NAME}@[0-9a-f]{{1,16}}")


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


def incarnation_of(node: str) -> str:
    """Return the incarnation in a member id; empty if it is only a name."""
    return node.partition("@")[2]


def is_name(text: str) -> bool:
    """Tell whether a node can have this name: 1 to 63 letters, digits, '-', '_' or '.' between letters or digits."""
    return _IS_NAME.fullmatch(text) is not None


def is_node_id(text: str) -> bool:
    """Tell whether this is a member id: a name, ``@``, and an incarnation of 1 to 16 lower-case hex digits."""
    return _IS_NODE_ID.fullmatch(text) is not None
