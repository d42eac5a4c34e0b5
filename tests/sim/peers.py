"""What one process has of the network: the port that carries its messages, and answers its requests.

As between real nodes, each process calls those whose addresses it knows, and is heard by them from then on; a process
that is not a member is answered while it calls. What a stream carries is at the mercy of :mod:`sim.network`. Requests
are answered, refused, cut, or never answered.

Dials and streams last as those of :mod:`kvorum.transport` do:

- A dial is refused at once by a machine whose process does not listen. Where nothing answers (a machine without power,
  an address that nobody has any more, a link that is cut, a process that is paused) it lasts up to CONNECT_TIMEOUT_S,
  and the kernel asks again after a second. Then there is a pause before the next dial, which doubles.
- A process that ends closes its streams, and its peers notice that soon. A machine that loses its power closes nothing,
  and what a cut link closes is not known beyond it. Such a stream stays half open: until the machine is there again
  and answers the next frame with a reset, or until the ping of the calling side or the patience of the other side ends.
- Whoever is called does not call back by itself. The product does what its ``Link.hurry`` does: it ends a pause,
  shortens a dial, and aborts a stream to another start of that process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sim import invariants
from sim.loop import ProcessKilled, SimLoop
from sim.plan import S

from kvorum.errors import IdentityRejectedError, PeerError, StorageError
from kvorum.kv.features import FIRST_LEVEL
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.messages import Message, NodeId, PeerMark
from kvorum.transport import Greeting, Hello, NodeHandler, SnapshotChunk
from kvorum.transport.handshake import HEADER_LEVELS, HEADER_VERSION, check_greeting, dialling_headers
from kvorum.transport.link import (
    BACKOFF_MAX_S,
    BACKOFF_MIN_S,
    CONNECT_TIMEOUT_S,
    HURRIED_DIAL_S,
    KEEP_ALIVE_S,
    PING_S,
)
from kvorum.transport.port import CONNECT_TIMEOUT_S as REQUEST_CONNECT_TIMEOUT_S
from kvorum.transport.port import stream_silence_s
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
RESEND_US = 1 * S
"""A kernel asks again, or says again that a stream is closed, when nothing has answered for so long."""


class _Stream:
    """A dial, and then the stream that it has opened."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.peer: SimPeers | None = None
        """The process that it has reached; it may have died without our knowing it yet."""
        self.answered_us = 0
        """When something was last seen of the other side."""


class _Link:
    """The way to one other node."""

    def __init__(self, node: NodeId, url: str) -> None:
        self.node = node
        self.urls = MemberUrls(url)
        self.dial: _Stream | None = None
        """The dial in progress; any other has ended."""
        self.stream: _Stream | None = None
        """The open stream, as far as we know."""
        self.peer_start = ""
        """Which start of its process the stream leads to, or called last."""
        self.is_hurried = False
        """It has called us since the last dial began."""
        self.backoff_s = BACKOFF_MIN_S
        self.pauses = 0
        """How many pauses between dials there were; only the last one ends in a dial."""


class _Caller:
    """A stream that another process has opened to us."""

    def __init__(self, peer: SimPeers, stream: _Stream, start: str, heard_us: int) -> None:
        self.peer = peer
        self.stream = stream
        self.start = start
        self.heard_us = heard_us
        """When something was last heard on it."""


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
        self._callers: dict[NodeId, _Caller] = {}
        self._answering: dict[asyncio.Future[Any], SimPeers] = {}
        """Requests of others that are being answered here."""

    async def start(self, handler: NodeHandler) -> None:
        """Listen, on behalf of this handler."""
        self._check()
        self._handler = handler
        self._node.on_listening(self)
        self._world.clock.after(int(KEEP_ALIVE_S * S), self.enter, self._look_at_streams)

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
        """Answer a process that calls; if it is one that we call, it is there, and we hurry."""
        self._check()
        link, caller = self._links.get(node), self._callers.get(node)
        if link is not None:
            self._hurry(link, caller.start if caller is not None else "")
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
        return link is not None and link.stream is not None

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
                if self._is_carried(message.recipient):
                    frames.setdefault(message.recipient, []).append(message)
                node.crash_at("between_sends")
        finally:
            # A process that dies between two messages has sent those before.
            for frame in frames.values():
                self._world.send(tuple(frame))

    def _is_carried(self, recipient: NodeId) -> bool:
        """Tell whether a stream takes a message, and does not end in a process that is dead.

        Whoever calls and is not called is answered on its own stream.
        """
        link = self._links.get(recipient)
        if link is None:
            caller = self._callers.get(recipient)
            return caller is not None and caller.peer._is_heard
        stream = link.stream
        if stream is None:
            return False
        assert stream.peer is not None
        if stream.peer._is_heard:
            return True
        self._write(link, stream)
        return False

    def _check(self) -> None:
        if self.loop.is_dead:
            raise ProcessKilled

    # --- Dials --------------------------------------------------------------------------------------------------

    def _ensure(self, node: NodeId, url: str) -> None:
        link = self._links.get(node)
        if link is not None:
            link.urls.set_first(url)
            return
        self._links[node] = link = _Link(node, url)
        self._call(link)

    def _hang_up(self, node: NodeId) -> None:
        link = self._links.pop(node, None)
        if link is None:
            return
        for stream in (link.stream, link.dial):
            if stream is not None:
                self._abandon(stream)

    def _hurry(self, link: _Link, start: str) -> None:
        """It has called us: do what the product's link does."""
        link.is_hurried = True
        is_other = bool(start and link.peer_start and start != link.peer_start)
        link.peer_start = start or link.peer_start
        if link.dial is not None:
            self._world.clock.after(int(HURRIED_DIAL_S * S), self.enter, self._time_out, link, link.dial)
        elif link.stream is None:
            self._call(link)
        elif is_other:
            self._world.counts["streams aborted"] += 1
            self.enter(self._broken, link, link.stream)
        else:
            self._write(link, link.stream)

    def _call(self, link: _Link) -> None:
        link.is_hurried = False
        link.pauses += 1
        link.dial = dial = _Stream(link.urls.current)
        self._world.clock.after(self._latency(), self._arrive, link, dial)
        self._world.clock.after(int(CONNECT_TIMEOUT_S * S), self.enter, self._time_out, link, dial)

    def _is_in_progress(self, link: _Link, dial: _Stream) -> bool:
        """Tell whether a dial has not ended yet, and what it opens is still wanted."""
        return link.dial is dial and self._links.get(link.node) is link

    def _call_later(self, link: _Link) -> None:
        """Call again: at once if it has called us meanwhile, else after a pause."""
        if link.is_hurried:
            self._call(link)
            return
        link.pauses += 1
        pause_us = int(link.backoff_s * S * (0.5 + self._node.draw.random()))
        link.backoff_s = min(2 * link.backoff_s, BACKOFF_MAX_S)
        self._world.clock.after(pause_us, self.enter, self._end_pause, link, link.pauses)

    def _end_pause(self, link: _Link, pause: int) -> None:
        if self._links.get(link.node) is link and pause == link.pauses:
            self._call(link)

    def _time_out(self, link: _Link, dial: _Stream) -> None:
        if self._is_in_progress(link, dial):
            self._world.counts["dials that hung"] += 1
            self._fail(link, dial)

    def _fail(self, link: _Link, dial: _Stream) -> None:
        """A dial has failed, unless it has ended before."""
        if not self._is_in_progress(link, dial):
            return
        self._abandon(dial)
        link.dial = None
        link.urls.failed()
        self._call_later(link)

    def _arrive(self, link: _Link, dial: _Stream) -> None:
        """A call reaches the other side, or does not."""
        now = self._world.clock.now
        if not self._is_heard or not self._is_in_progress(link, dial):
            return
        if self.loop.paused_until > now:
            # What is to be said when the connection is there has to be said by the process.
            self._world.clock.after(self.loop.paused_until - now, self._arrive, link, dial)
            return
        machine = self._world.machine_at(dial.url)
        if machine is None or self._is_cut(machine):
            self._world.clock.after(RESEND_US, self._arrive, link, dial)
        elif machine.peers is None:
            self._world.clock.after(self._latency(), self.enter, self._fail, link, dial)
        else:
            dial.peer = peer = machine.peers
            peer.enter(peer._accept, self, link, dial)

    def _accept(self, caller: SimPeers, link: _Link, dial: _Stream) -> None:
        if link.dial is not dial:
            return  # It has hung up while this process was paused.
        ours = self._handler.identity
        try:
            greeting = check_greeting(caller._greeting(link.node), ours, self._node.config.bootstrap_token)
        except IdentityRejectedError:
            self._refuse(caller, link, dial)
            return
        if ours.cluster_id:
            self._connected(caller, link, dial, greeting)
        else:
            self.loop.create_task(self._join(caller, link, dial, greeting), name="join")

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

    def _refuse(self, caller: SimPeers, link: _Link, dial: _Stream) -> None:
        self._world.counts["calls refused"] += 1
        dial.peer = None
        self._world.clock.after(self._latency(), caller.enter, caller._fail, link, dial)

    async def _join(self, caller: SimPeers, link: _Link, dial: _Stream, greeting: Greeting) -> None:
        try:
            await self._handler.join(greeting)
        except IdentityRejectedError:
            self._refuse(caller, link, dial)
        else:
            self._connected(caller, link, dial, greeting)

    def _connected(self, caller: SimPeers, link: _Link, dial: _Stream, greeting: Greeting) -> None:
        if not caller._is_heard or not self._is_heard or link.dial is not dial:
            return
        self._callers[greeting.sender] = _Caller(caller, dial, greeting.start, self._world.clock.now)
        says = self._node.supported_level >= ANSWERS_SAY_MARKS_LEVEL
        marks = self._handler.marks_of(greeting.sender) if says else None
        start = self._handler.start_id if says else ""
        self._world.clock.after(self._latency(), caller.enter, caller._opened, link, dial, start, marks)
        self._handler.on_connected(greeting)

    def _opened(self, link: _Link, dial: _Stream, start: str, marks: tuple[PeerMark, ...] | None) -> None:
        peer = dial.peer
        if not self._is_in_progress(link, dial) or peer is None:
            return
        if self._is_cut(peer._node):
            self._world.clock.after(RESEND_US, self.enter, self._opened, link, dial, start, marks)
            return
        link.dial, link.stream, dial.answered_us = None, dial, self._world.clock.now
        link.peer_start = start or link.peer_start
        link.backoff_s = BACKOFF_MIN_S
        if marks is not None:
            self._handler.on_marks(link.node, marks, dial.url)

    # --- Streams ------------------------------------------------------------------------------------------------

    def died(self, peer: SimPeers, notice_us: Callable[[], int]) -> None:
        """Another process ended or closed its port: its requests fail, and the streams break, once that is noticed.

        Without power its machine closes nothing.
        """
        for waiter, requester in list(peer._answering.items()):
            if requester is self:
                self._world.clock.after(self._latency(), self.enter, _fail, waiter, PeerError("it hung up"))
        if peer._node.is_off:
            self._world.counts["streams left half open"] += self._calls(peer)
            return
        for link in self._links.values():
            if link.dial is not None and link.dial.peer is peer:
                # It died before it took the call, or we heard that it did: frozen, or while it was joining.
                dial, dial.peer = link.dial, None
                peer._close(self, self._fail, link, dial)
        caller = self._callers.get(peer._node.id)
        if self._calls(peer) or (caller is not None and caller.peer is peer):
            self._world.clock.after(notice_us(), peer._close, self, self._closed, peer)

    def _close(self, peer: SimPeers, hear: Callable[..., object], *arguments: object) -> None:
        """Our machine says that a stream is closed, until the other one has heard it; without power it says nothing."""
        if self._node.is_off or not peer._is_heard:
            return
        if self._is_cut(peer._node):
            self._world.clock.after(RESEND_US, self._close, peer, hear, *arguments)
        else:
            self._world.clock.after(self._latency(), peer.enter, hear, *arguments)

    def _abandon(self, stream: _Stream) -> None:
        """Close a stream of ours, or a dial."""
        if stream.peer is not None:
            self._close(stream.peer, stream.peer._disconnected, self._node.id, stream)

    def _closed(self, peer: SimPeers) -> None:
        """A process has ended: neither stream is open any more."""
        node = peer._node.id
        link, caller = self._links.get(node), self._callers.get(node)
        if link is not None and link.stream is not None and link.stream.peer is peer:
            self._broken(link, link.stream)
        if caller is not None and caller.peer is peer:
            self._disconnected(node, caller.stream)

    def _write(self, link: _Link, stream: _Stream) -> None:
        """Write a frame: the machine of a process that has ended answers it with a reset, if it is there."""
        peer, machine = stream.peer, self._world.machine_at(stream.url)
        if peer is not None and not peer._is_heard and machine is not None and not self._is_cut(machine):
            self._world.clock.after(self._latency(), self.enter, self._broken, link, stream)

    def _look_at_streams(self) -> None:
        """Find out which streams are dead: by a keep-alive, by a ping that is not answered, or by silence."""
        now, plan = self._world.clock.now, self._node.plan
        for link in list(self._links.values()):
            stream = link.stream
            if stream is None or stream.peer is None:
                continue
            if self._is_there(stream.peer):
                stream.answered_us = now
            elif now - stream.answered_us >= 1.5 * PING_S * S:
                self._world.counts["pings not answered"] += 1
                self._broken(link, stream)
            else:
                self._write(link, stream)
        # The product's option is the shortest election timeout; that of the plan is the longest.
        silence_us = int(stream_silence_s(plan.election_timeout_ticks * plan.tick_us / 1000) * S)
        for sender, caller in list(self._callers.items()):
            if self._is_there(caller.peer) and caller.peer._calls(self):
                caller.heard_us = now
            elif now - caller.heard_us >= silence_us:
                self._world.counts["silent streams closed"] += 1
                self._disconnected(sender, caller.stream)
        self._world.clock.after(int(KEEP_ALIVE_S * S), self.enter, self._look_at_streams)

    def _is_there(self, peer: SimPeers) -> bool:
        """Tell whether another process runs, and we hear of each other."""
        return peer._is_heard and peer.loop.paused_until <= self._world.clock.now and not self._is_cut(peer._node)

    def _calls(self, peer: SimPeers) -> bool:
        """Tell whether our stream to a process is open."""
        link = self._links.get(peer._node.id)
        return link is not None and link.stream is not None and link.stream.peer is peer

    def _broken(self, link: _Link, stream: _Stream) -> None:
        """A stream of ours is broken, unless we know that already."""
        if link.stream is not stream or self._links.get(link.node) is not link:
            return
        link.stream = None
        self._abandon(stream)
        self._handler.on_broken(link.node)
        if self._links.get(link.node) is link and link.dial is None:
            self._call_later(link)

    def _disconnected(self, sender: NodeId, stream: _Stream) -> None:
        caller = self._callers.get(sender)
        if caller is not None and caller.stream is stream:
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
        if sender in self._callers or (link is not None and link.stream is not None):
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
            url = self._callers[node].peer._node.url  # As a member would say.
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
        machine = self._world.machine_at(url)
        peer = machine.peers if machine is not None else None
        if machine is None or self._is_cut(machine):
            wait_us = int(REQUEST_CONNECT_TIMEOUT_S * S)
        else:
            wait_us = self._node.timely(self._node.draw.randrange(self._node.plan.election_timeout_us))
        if machine is None or peer is None or self._is_cut(machine) or self._is_lost() or node not in ("", machine.id):
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

    def _is_cut(self, machine: SimNode) -> bool:
        network, ours, theirs = self._world.network, self._node.id, machine.id
        return network.is_cut(ours, theirs) or network.is_cut(theirs, ours)

    def _is_lost(self) -> bool:
        return self._world.network.is_faulty and self._node.draw.random() * 1000 < self._node.plan.drop_per_mille


def _fail(waiter: asyncio.Future[T], error: PeerError) -> None:
    if not waiter.done():
        waiter.set_exception(error)


def _succeed(waiter: asyncio.Future[T], result: T) -> None:
    if not waiter.done():
        waiter.set_result(result)
