"""Whom a node speaks to. Pure: what opens and closes the streams is told what changes."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from kvorum.raft.messages import NodeId

STRANGERS_MAX = 16
"""Servers that are not in our configuration and yet called us: candidates of a newer one, the leader of a joiner."""


class Recipients:
    """The members, and the callers that are not members.

    Args:
        keep: called with a member id and the base URL of its peer port: speak to it, and at this address.
        drop: called with the member id of one that is not spoken to any more.
    """

    def __init__(self, keep: Callable[[NodeId, str], None], drop: Callable[[NodeId], None]) -> None:
        self._keep = keep
        self._drop = drop
        self._members: dict[NodeId, str] = {}
        self._strangers: dict[NodeId, str] = {}

    def set_members(self, urls: Mapping[NodeId, str], callers: Container[NodeId] = ()) -> None:
        """Speak to each of these members (id -> base URL of its peer port), and to no other for long.

        One of ``callers``, whose stream to us is open, is answered until it hangs up, member or not: a leader that
        removes itself needs the answers to the entry that says so (thesis 4.2.2).
        """
        if urls == self._members:
            return
        before, self._members = self._members, dict(urls)
        for node, url in before.items():
            if node in urls:
                continue
            if node in callers:
                self._strangers[node] = url
            else:
                self._drop(node)
        for node, url in urls.items():
            self._strangers.pop(node, None)
            self._keep(node, url)

    def add_stranger(self, node: NodeId, url: str) -> None:
        """A server that may not be a member called: answer it. The oldest of too many strangers gives way."""
        if node in self._members or not url:
            return
        while len(self._strangers) >= STRANGERS_MAX and node not in self._strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            self._drop(oldest)
        self._strangers[node] = url
        self._keep(node, url)

    def remove_stranger(self, node: NodeId) -> None:
        """A server that is not a member hung up."""
        if self._strangers.pop(node, None) is not None:
            self._drop(node)

    def url_of(self, node: NodeId) -> str | None:
        """Return where a member or a stranger is reached."""
        return self._members.get(node) or self._strangers.get(node)
