"""Whom a node speaks to. Pure: what opens and closes the streams is told what changes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from kvorum.identity import name_of
from kvorum.raft.messages import NodeId

STRANGERS_MAX = 16
"""Servers that are not in our configuration and yet called us: candidates of a newer one, the leader of a joiner."""


class MemberUrls:
    """The URLs at which the peer port of one member may be, and the one to try now.

    Whoever answers is asked for its identity on every connection, so one that is out of date does no harm.

    Args:
        url: the first.
    """

    def __init__(self, url: str) -> None:
        self._urls: tuple[str, ...] = (url,)
        self.current = url

    def set_first(self, url: str) -> None:
        """Try this one next, and first from now on."""
        if url != self._urls[0]:
            self._urls = (url, *(other for other in self._urls[1:] if other != url))
            self.current = url

    def set_alternatives(self, urls: Iterable[str]) -> None:
        """Try these after the first, in this order, instead of those that were given before."""
        self._urls = tuple(dict.fromkeys((self._urls[0], *filter(None, urls))))
        if self.current not in self._urls:
            self.current = self._urls[0]

    def failed(self) -> None:
        """The current one led to nobody, or to somebody else: try the next."""
        self.current = self._urls[(self._urls.index(self.current) + 1) % len(self._urls)]


class Recipients:
    """The members, and the callers that are not members.

    Whoever is no member and calls us is a stranger: the candidate or leader of a newer configuration, or anybody. It is
    answered on its own stream (:meth:`kvorum.transport.server.PeerServer.answer`), since a URL that it announces could
    be anything's. A stranger that runs version 0.1.0 takes no answers there; it is called where our options say that a
    node of its name is. What is to be fetched from a stranger (the snapshot of a leader that was added while we were
    down) is fetched where a member's hello says that it is.

    Args:
        keep: called with a member id and the base URL of its peer port: speak to it, and at this address.
        drop: called with the member id of one that is not spoken to any more, or never was.
        configured: the base URLs of the peer ports that our options name, by name of the node.
    """

    def __init__(
        self,
        keep: Callable[[NodeId, str], None],
        drop: Callable[[NodeId], None],
        configured: Mapping[str, str] | None = None,
    ) -> None:
        self._keep = keep
        self._drop = drop
        self._configured = dict(configured or {})
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
            if self._strangers.pop(node, url) != url:
                self._drop(node)  # Its stream is open where it was called as a stranger.
            self._keep(node, url)

    def add_stranger(self, node: NodeId, url: str, *, takes_answers: bool = False) -> None:
        """A server called. If it is not a member, keep a way to it: at the URL of our options, or else at ``url``.

        One that takes answers on its own stream is not called: the URL is for requests. The oldest of too many
        strangers gives way.
        """
        url = self._configured.get(name_of(node), url)
        if node in self._members or not url:
            return
        while len(self._strangers) >= STRANGERS_MAX and node not in self._strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            self._drop(oldest)
        self._strangers[node] = url
        if not takes_answers:
            self._keep(node, url)

    def remove_stranger(self, node: NodeId) -> None:
        """A server that is not a member hung up."""
        if self._strangers.pop(node, None) is not None:
            self._drop(node)

    def url_of(self, node: NodeId) -> str | None:
        """Return where a member or a stranger is reached."""
        return self._members.get(node) or self._strangers.get(node)

    def trusted_urls(self) -> list[str]:
        """Return the URLs of the members, and those that our options name: who can say where a stranger is."""
        return list(dict.fromkeys([*self._members.values(), *self._configured.values()]))
