"""What one process has of the network: the port that carries its messages, and answers its requests.

As between real nodes, each process calls those whose addresses it knows, and is heard by them from then on; a process
that is not a member is answered while it calls. A stream that breaks is noticed by both sides, sooner or later, and
called again. What a stream carries is at the mercy of :mod:`sim.network`. Requests are answered, refused, cut, or never
answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sim import invariants
from sim.loop import ProcessKilled, SimLoop

from kvorum.errors import IdentityRejectedError, PeerError, StorageError
from kvorum.kv.features import FIRST_LEVEL
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.messages import Message, NodeId, PeerMark
from kvorum.transport import Greeting, Hello, NodeHandler, SnapshotChunk
from kvorum.transport.handshake import HEADER_LEVELS, HEADER_VERSION, check_greeting, dialling_headers
from kvorum.transport.recipients import MemberUrls, Recipients

if TYPE_CHECKING:
    from sim.node import SimNode

T = TypeVar("T")

SLOWEST_US = 500
"""A byte of a snapshot file may take so long: so long that faults find it on its way."""
ANSWERS_SAY_MARKS_LEVEL = 3
"""From this level on, a version says what it remembers of a caller's disk when it accepts the call."""
PIECES_MAX = 6
"""A file arrives in so many pieces, or in fewer."""


class _Link:
    """The way to one other node."""

    def __init__(self, node: NodeId, url: str) -> None:
        self.node = node
        self.urls = MemberUrls(url)
        self.peer: SimPeers | None = None
        """The process that our stream is open to; it may have died without our knowing it yet."""
        self.called: SimPeers | None = None
        """The process that our call has reached, until it takes or refuses the call."""
        self.calls = 0
        """How often it was called; only the last call counts."""


class SimPeers:
    """The network as one process sees it.

    Args:
        node: whose process it is.
        loop: of the process.
    """

    _handler: NodeHandler
    """What the peers may ask for; set by :meth:`start`."""

    def __init__(self, node: SimNode, loop: SimLoop) -> None:
        self.loop = loop
        self._node = node
        self._world = node.world
        self._recipients = Recipients(self._ensure, self._hang_up)
        self._links: dict[NodeId, _Link] = {}
        self._callers: dict[NodeId, SimPeers] = {}
        self._answering: dict[asyncio.Future[Any], SimPeers] = {}
        """Requests of others that are being answered here."""

    async def start(self, handler: NodeHandler) -> None:
        """Listen, on behalf of this handler."""
        self._check()
        self._handler = handler
        self._node.on_listening(self)

    async def close(self) -> None:
        """Hear nobody any more, and close every stream."""
        self._check()
        if self._node.peers is not self:
            return
        self._node.on_deaf(self)
        for caller in list(self._callers):
            del self._callers[caller]
            self._handler.on_disconnected(caller)
        for node in list(self._links):
            self._hang_up(node)

    # --- Who is spoken to ---------------------------------------------------------------------------------------

    def is_calling(self, node: NodeId) -> bool:
        """Tell whether the stream of this node to us is open."""
        return node in self._callers

    def set_members(self, urls: Mapping[NodeId, str]) -> None:
        """Speak to these, and to no other for long; whoever calls is answered until it hangs up."""
        self._check()
        self._recipients.set_members(urls, self._callers)

    def set_alternatives(self, node: NodeId, urls: Sequence[str]) -> None:
        """Try a member also at these."""
        self._check()
        if node in self._links:
            self._links[node].urls.set_alternatives(urls)

    def add_stranger(self, node: NodeId, url: str) -> None:
        """Answer a process that calls, and call it at once."""
        self._check()
        link = self._links.get(node)
        if link is not None and link.peer is None and link.called is None:
            self._call(link)
        elif link is not None and link.peer is not None and not link.peer._is_heard:
            # The frame that is sent to whoever calls finds the stream broken: that process has ended.
            self._world.clock.after(self._latency(), self.enter, self._broken, link.peer)
        self._recipients.add_stranger(node, url, takes_answers=True)

    def remove_stranger(self, node: NodeId) -> None:
        """It hung up."""
        self._check()
        self._recipients.remove_stranger(node)

    def url_of(self, node: NodeId) -> str | None:
        """Return where it is reached."""
        link = self._links.get(node)
        return link.urls.current if link is not None else self._recipients.url_of(node)

    def is_connected(self, node: NodeId) -> bool:
        """Tell whether our stream to it is open, as far as we know."""
        link = self._links.get(node)
        return link is not None and link.peer is not None

    def send(self, messages: Iterable[Message]) -> None:
        """Let messages leave, one frame for each recipient."""
        self._check()
        node, facts = self._node, self._world.facts
        node.port_called("send")
        frames: dict[NodeId, list[Message]] = {}
        try:
            for message in messages:
                node.observe(facts.on_send, node, message)
                node.observe(invariants.a_node_that_takes_no_part_says_nothing, node, message)
                link = self._links.get(message.recipient)
                # Whoever calls and is not called is answered on its own stream.
                if message.recipient in self._callers if link is None else link.peer is not None:
                    frames.setdefault(message.recipient, []).append(message)
                node.crash_at("between_sends")
        finally:
            # A process that dies between two messages has sent those before.
            for frame in frames.values():
                self._world.send(tuple(frame))

    def _check(self) -> None:
        if self.loop.is_dead:
            raise ProcessKilled

    # --- Streams ------------------------------------------------------------------------------------------------

    def _ensure(self, node: NodeId, url: str) -> None:
        link = self._links.get(node)
        if link is not None:
            link.urls.set_first(url)
            return
        self._links[node] = link = _Link(node, url)
        self._call(link)

    def _hang_up(self, node: NodeId) -> None:
        link = self._links.pop(node, None)
        if link is not None and link.peer is not None:
            self._world.clock.after(self._latency(), link.peer.enter, link.peer._disconnected, self._node.id, self)

    def _call(self, link: _Link) -> None:
        self._call_in(self._latency(), link)

    def _call_again(self, link: _Link) -> None:
        wait_us = self._node.draw.randrange(1, 4) * self._node.plan.tick_us
        self._call_in(self._node.timely(wait_us), link)

    def _call_in(self, delay_us: int, link: _Link) -> None:
        link.calls += 1
        self._world.clock.after(delay_us, self._arrive, link, link.calls)

    def _arrive(self, link: _Link, call: int) -> None:
        """A call reaches the other side, or does not."""
        if not self._is_heard or self._links.get(link.node) is not link or call != link.calls:
            return
        peer = self._world.peers_at(link.urls.current)
        if peer is None or self._is_cut(peer) or self.loop.paused_until > self._world.clock.now:
            link.urls.failed()
            self._call_again(link)
        else:
            link.called = peer
            peer.enter(peer._accept, self, link)

    def _accept(self, caller: SimPeers, link: _Link) -> None:
        ours = self._handler.identity
        try:
            greeting = check_greeting(caller._greeting(link.node), ours, self._node.config.bootstrap_token)
        except IdentityRejectedError:
            self._refuse(caller, link)
            return
        if ours.cluster_id:
            self._connected(caller, link, greeting)
        else:
            self.loop.create_task(self._join(caller, link, greeting), name="join")

    def _greeting(self, recipient: NodeId) -> Mapping[str, str]:
        """Return the headers of a call: those of the product, but for the version that this machine pretends to be."""
        node = self._node
        level = node.supported_level
        handler = self._handler
        start, marks = handler.start_id, handler.marks_of(recipient)
        token = node.config.bootstrap_token
        headers = dialling_headers(
            handler.identity, recipient, node.url, token, client_url=node.client_url, start=start, marks=marks
        )
        return headers | {
            HEADER_LEVELS: f"{FIRST_LEVEL}-{level}",
            HEADER_VERSION: f"level {level}",
        }

    def _refuse(self, caller: SimPeers, link: _Link) -> None:
        self._world.counts["calls refused"] += 1
        link.called = None
        link.urls.failed()
        self._world.clock.after(self._latency(), caller._call_again, link)

    async def _join(self, caller: SimPeers, link: _Link, greeting: Greeting) -> None:
        try:
            await self._handler.join(greeting)
        except IdentityRejectedError:
            self._refuse(caller, link)
        else:
            self._connected(caller, link, greeting)

    def _connected(self, caller: SimPeers, link: _Link, greeting: Greeting) -> None:
        if not caller._is_heard or not self._is_heard:
            return
        link.called = None
        self._callers[greeting.sender] = caller
        says = self._node.supported_level >= ANSWERS_SAY_MARKS_LEVEL
        marks = self._handler.marks_of(greeting.sender) if says else None
        self._world.clock.after(self._latency(), caller._opened, link, self, marks)
        self._handler.on_connected(greeting)

    def _opened(self, link: _Link, peer: SimPeers, marks: tuple[PeerMark, ...] | None) -> None:
        if not self._is_heard:
            return
        if self._links.get(link.node) is not link:
            self._world.clock.after(self._latency(), peer.enter, peer._disconnected, self._node.id, self)
        elif not peer._is_heard:
            self._call(link)
        else:
            link.peer = peer
            if marks is not None:
                self.enter(self._handler.on_marks, link.node, marks, link.urls.current)

    def died(self, peer: SimPeers, notice_us: Callable[[], int]) -> None:
        """Another process died or closed its port: its requests fail, and the streams break, once that is noticed."""
        for waiter, requester in list(peer._answering.items()):
            if requester is self:
                self._world.clock.after(self._latency(), self.enter, _fail, waiter, PeerError("it hung up"))
        for link in [link for link in self._links.values() if link.called is peer]:
            # It died before it took the call: frozen, or while it was joining.
            link.called = None
            self._call_again(link)
        is_called = [link for link in self._links.values() if link.peer is peer]
        if is_called or self._callers.get(peer._node.id) is peer:
            self._world.clock.after(notice_us(), self.enter, self._broken, peer)

    def _broken(self, peer: SimPeers) -> None:
        node = peer._node.id
        link = self._links.get(node)
        if link is not None and link.peer is peer:
            link.peer = None
            self._call(link)
            self._handler.on_broken(node)
        self._disconnected(node, peer)

    def _disconnected(self, sender: NodeId, peer: SimPeers) -> None:
        if self._callers.get(sender) is peer:
            del self._callers[sender]
            self._handler.on_disconnected(sender)

    def enter(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call, as soon as the process runs, unless it hears nobody any more."""
        self.loop.enter(self._hear, callback, arguments)

    def _hear(self, callback: Callable[..., object], arguments: tuple[object, ...]) -> None:
        if self._is_heard:
            callback(*arguments)

    @property
    def _is_heard(self) -> bool:
        """Whether the process runs, and its port is open."""
        return self._node.peers is self

    def receive(self, frame: tuple[Message, ...]) -> None:
        """Take a frame that arrived, if a stream to this process brought it: one ends with the process that had it."""
        self.enter(self._take, frame)

    def _take(self, frame: tuple[Message, ...]) -> None:
        sender = frame[0].sender
        link = self._links.get(sender)
        if sender in self._callers or (link is not None and link.peer is not None):
            self._handler.on_messages(sender, frame)

    # --- Requests -----------------------------------------------------------------------------------------------

    async def hello(self, url: str, timeout_s: float = 2.0) -> Hello:
        """Ask who is there."""

        async def answer(peer: SimPeers) -> Hello:
            level = peer._node.supported_level
            return msgspec.structs.replace(peer._handler.hello(), levels=(FIRST_LEVEL, level), version=f"level {level}")

        return await self._request(url, "", answer, timeout_s)

    async def snapshot_chunk(
        self, node: NodeId, last_index: int, offset_bytes: int, at_least: int = 0
    ) -> SnapshotChunk:
        """Fetch a piece of a snapshot file."""

        async def answer(peer: SimPeers) -> SnapshotChunk:
            size_bytes = peer._piece_bytes()
            chunk = await peer._handler.snapshot_chunk(last_index, offset_bytes, size_bytes, at_least)
            await asyncio.sleep(len(chunk.data) * (1 + peer._node.draw.randrange(SLOWEST_US)) / 1e6)
            return chunk

        chunk = await self._call_member(node, answer, 20.0)
        if self._node.is_fetch_cut():
            raise PeerError(f"{node} hung up")
        return chunk

    async def state_hash(self, node: NodeId, index: int) -> StateDigest | None:
        """Ask for a state hash."""

        async def answer(peer: SimPeers) -> StateDigest | None:
            return peer._handler.state_hash_at(index)

        try:
            return await self._call_member(node, answer, 5.0)
        except PeerError:
            return None

    async def suspect(self, node: NodeId, index: int) -> None:
        """Tell a member that its state differs."""

        async def answer(peer: SimPeers) -> None:
            peer._handler.suspect_state(index)

        await self._call_member(node, answer, 5.0)

    async def _call_member(self, node: NodeId, answer: Callable[[SimPeers], Awaitable[T]], timeout_s: float) -> T:
        url = self.url_of(node)
        if url is None and node in self._callers:
            url = self._callers[node]._node.url  # As a member would say.
        if url is None:
            raise PeerError(f"no address of {node} is known")
        return await self._request(url, node, answer, timeout_s)

    async def _request(self, url: str, node: NodeId, answer: Callable[[SimPeers], Awaitable[T]], timeout_s: float) -> T:
        self._check()
        waiter: asyncio.Future[T] = self.loop.create_future()
        self._world.clock.after(self._latency(), self._arrive_request, url, node, answer, waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        except TimeoutError as error:
            raise PeerError(f"{url} does not answer") from error

    def _arrive_request(
        self, url: str, node: NodeId, answer: Callable[[SimPeers], Awaitable[T]], waiter: asyncio.Future[T]
    ) -> None:
        if not self._is_heard or waiter.done():
            return
        peer = self._world.peers_at(url)
        if peer is None or self._is_cut(peer) or self._is_lost() or node not in ("", peer._node.id):
            wait_us = self._node.timely(self._node.draw.randrange(self._node.plan.election_timeout_us))
            self._world.clock.after(wait_us, self.enter, _fail, waiter, PeerError(f"{url} cannot be reached"))
            return
        peer._answering[waiter] = self
        peer.enter(peer.loop.start_task, peer._answer, self, answer, waiter)

    async def _answer(
        self, requester: SimPeers, answer: Callable[[SimPeers], Awaitable[T]], waiter: asyncio.Future[T]
    ) -> None:
        try:
            result = await answer(self)
        except StorageError as error:
            self._world.clock.after(self._latency(), requester.enter, _fail, waiter, PeerError(str(error)))
        else:
            if not requester._is_lost():
                self._world.clock.after(self._latency(), requester.enter, _succeed, waiter, result)
            else:
                self._world.clock.after(self._latency(), requester.enter, _fail, waiter, PeerError("it hung up"))
        finally:
            self._answering.pop(waiter, None)

    def _piece_bytes(self) -> int:
        kept = self._node.disk.snapshots.kept()
        return 1 + (kept[0].size_bytes if kept else 0) // self._node.draw.randrange(2, PIECES_MAX + 1)

    # --- The network --------------------------------------------------------------------------------------------

    def _latency(self) -> int:
        plan = self._node.plan
        return self._node.timely(plan.latency_us + int(self._node.draw.random() * plan.jitter_us))

    def _is_cut(self, peer: SimPeers) -> bool:
        network, ours, theirs = self._world.network, self._node.id, peer._node.id
        return network.is_cut(ours, theirs) or network.is_cut(theirs, ours)

    def _is_lost(self) -> bool:
        return self._world.network.is_faulty and self._node.draw.random() * 1000 < self._node.plan.drop_per_mille


def _fail(waiter: asyncio.Future[T], error: PeerError) -> None:
    if not waiter.done():
        waiter.set_exception(error)


def _succeed(waiter: asyncio.Future[T], result: T) -> None:
    if not waiter.done():
        waiter.set_result(result)
