"""What a node needs of the world, handed in by a composition root.

Two implementations of each: the real ones (:mod:`kvorum.node.runtime`, :mod:`kvorum.transport`, :mod:`kvorum.storage`),
and the simulator's. Nothing else in this package asks for the time, starts a task, a timer or a thread, draws a random
number, or opens a file or a socket. Futures, tasks and events are plain asyncio's: they run on any event loop, one with
virtual time included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kvorum.kv.state_hash import StateDigest
from kvorum.kv.store import Store
from kvorum.node.supervisor import Supervisor
from kvorum.raft import Raft
from kvorum.raft.messages import Message, NodeId
from kvorum.storage.interface import Storage
from kvorum.telemetry.counters import Counters
from kvorum.transport.interface import Hello, NodeHandler, SnapshotChunk

if TYPE_CHECKING:
    from kvorum.telemetry.tracing import Tracer

T = TypeVar("T")


class Clock(Protocol):
    """The times."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment; never goes back. For every wait; may stand still in a suspend."""

    def boottime(self) -> float:
        """Return seconds since an arbitrary moment, those of a suspend included; never goes back. For ages."""

    def wall_ms(self) -> int:
        """Return milliseconds since 1970, as this machine believes. Only a new cluster begins with it."""


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Do not call."""


class Tasks(Protocol):
    """What runs later, or besides."""

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        """Call at the end of this turn of the event loop."""

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call in ``delay_s`` seconds."""

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run a coroutine as a task. An exception that leaves it ends the process; being cancelled does not."""

    async def sleep(self, delay_s: float) -> None:
        """Return after ``delay_s`` seconds."""


class Threads(Protocol):
    """Where what blocks runs."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns, or raise what it raises. Cancelling the caller does not stop it."""

    async def finish(self, function: Callable[..., T], *args: Any) -> T:
        """As :meth:`run`; but a caller that is cancelled goes on only when the function has ended, or after 5 s.

        For a function whose file the caller closes or removes afterwards.
        """


class Peers(Protocol):
    """The other nodes, as one node reaches them. Everything is bounded in time."""

    async def start(self, handler: NodeHandler) -> None:
        """Begin to take what peers say and ask, on behalf of ``handler``.

        Raises:
            OSError: the peer port cannot be had.
        """

    async def close(self) -> None:
        """Close the port and every connection. Idempotent."""

    def set_members(self, urls: Mapping[NodeId, str]) -> None:
        """Keep a stream to each of these members (id -> base URL of its peer port), and to no other for long."""

    def set_alternatives(self, node: NodeId, urls: Sequence[str]) -> None:
        """Try a member also at these URLs, when it is not reached at the one of :meth:`set_members`."""

    def add_stranger(self, node: NodeId, url: str) -> None:
        """Keep a way to answer a node that called and is not a member, if need be at ``url`` (empty: unknown)."""

    def remove_stranger(self, node: NodeId) -> None:
        """A node that is not a member hung up."""

    def is_calling(self, node: NodeId) -> bool:
        """Tell whether this node's stream to us is open."""

    def is_connected(self, node: NodeId) -> bool:
        """Tell whether our stream to this node is open."""

    def url_of(self, node: NodeId) -> str | None:
        """Return where a member or a stranger is reached."""

    def send(self, messages: Iterable[Message]) -> None:
        """Send messages; one that cannot be sent now is lost."""

    async def hello(self, url: str, timeout_s: float = 2.0) -> Hello:
        """Ask who answers at this peer port.

        Raises:
            PeerError: no answer, or not a valid hello.
        """

    async def snapshot_chunk(
        self, node: NodeId, last_index: int, offset_bytes: int, at_least: int = 0
    ) -> SnapshotChunk:
        """Fetch a piece of a member's snapshot file (``last_index`` 0: its newest, at ``at_least`` or later).

        Raises:
            PeerError: it has none, or does not answer.
        """

    async def state_hash(self, node: NodeId, index: int) -> StateDigest | None:
        """Ask a member for its digest after applying ``index``; None: it does not remember it, or does not answer."""

    async def suspect(self, node: NodeId, index: int) -> None:
        """Tell a member that its state differs from others' at ``index``.

        Raises:
            PeerError: it does not answer.
        """


@dataclass(frozen=True)
class Ports:
    """Everything that a composition root hands in.

    Attributes:
        supervisor: receives every failure that must end the process, from the storage, the tasks and the driver.
        memory_bytes: what this process may use; the first quota on data is a share of it.
        random: draws the election timeouts, the numbers of reads and the incarnation of a new disk.
        tracer: records the spans of traced requests; None: there are no traces.
        make_raft: makes the consensus server; the simulator wraps it.
        make_store: makes an empty state; the simulator wraps it.
    """

    supervisor: Supervisor
    clock: Clock
    tasks: Tasks
    threads: Threads
    storage: Storage
    peers: Peers
    random: Random
    counters: Counters
    memory_bytes: int
    tracer: Tracer | None = None
    make_raft: Callable[..., Raft] = Raft
    make_store: Callable[[], Store] = Store
