"""What a node and its peer port say to each other: types only, nothing here opens a socket."""

from __future__ import annotations

from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from kvorum.identity import NAME_CHARS_MAX, Identity, node_id
from kvorum.kv.features import FIRST_LEVEL
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.messages import Message, NodeId, Number, PeerMark

PROTOCOLS = (1, 2)
"""The lowest and the highest protocol that this version speaks. The highest is raised when messages change so that an
older server would misread them; what an older server skips (a field, a kind of message) needs no new protocol."""
ANSWERS_PROTOCOL = 2
"""From this protocol on, a caller takes messages on the stream that it dialled; with protocol 1 it hangs up on them."""
FIRST_VERSION = "0.1.0"
"""The version of a peer that announces none."""
LEVEL_MAX = 10**9 - 1
"""No version announces a higher protocol or feature level."""
VERSION_CHARS_MAX = 64
URL_CHARS_MAX = 512

_Level = Annotated[int, Meta(ge=0, le=LEVEL_MAX)]
_Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
_MemberId = Annotated[str, Meta(max_length=NAME_CHARS_MAX + 17)]
_Url = Annotated[str, Meta(max_length=URL_CHARS_MAX)]
_Hex64 = Annotated[str, Meta(max_length=64)]


class Greeting(msgspec.Struct, frozen=True):
    """What the dialling side says of itself, once checked."""

    cluster_id: str
    sender: str
    """Its member id, ``name@incarnation``."""
    peer_url: str
    protocol: int = PROTOCOLS[0]
    """The highest protocol that both speak."""
    highest_level: int = FIRST_LEVEL
    """The highest feature level that it supports."""
    version: str = FIRST_VERSION
    """Its version of Kvorum."""
    start: str = ""
    """Which start of its process it speaks for; empty: its version does not tell."""
    marks: tuple[PeerMark, ...] = ()
    """What it knows of our disk."""
    client_url: str = ""
    """Where its clients reach it. Empty from versions that do not announce it; those that do understand requests that
    name their cluster (``?cluster=``)."""
    address: str = ""
    """The IP address from which it calls."""


class Answer(msgspec.Struct, frozen=True):
    """What the called side says when it accepts a stream, once checked."""

    start: str = ""
    """Which start of its process accepted it; empty: its version does not tell."""
    marks: tuple[PeerMark, ...] | None = None
    """What it knows of our disk; None: its version does not say so here, but only when it calls."""


class Hello(msgspec.Struct, frozen=True):
    """A node's answer to ``GET /raft/v1/hello``: who it is, before anybody trusts it with anything.

    Anybody may answer a hello, so every field is bounded; :func:`kvorum.transport.handshake.decode_hello` checks what
    the types do not say.
    """

    name: _Name
    incarnation: Annotated[str, Meta(max_length=16)]
    cluster_id: _Hex64
    """Empty: it has never been in a cluster."""
    expected: tuple[_Name, ...]
    """The names of the first members, from the configuration of this node."""
    token: _Hex64
    """SHA-256 of the bootstrap token, hex."""
    peer_url: _Url
    client_url: _Url
    term: Number = 0
    is_leader: bool = False
    members: tuple[_MemberId, ...] = ()
    """The member ids of its configuration in force; empty: it has none."""
    member_urls: tuple[_Url, ...] = ()
    """Where the peer ports of these members are, in the same order; empty before version 0.2.0."""
    configuration_index: Number = 0
    configuration_committed: bool = False
    is_serving: bool = False
    """It is ready: a voter, with a leader, caught up, and not stopping."""
    empty: bool = False
    """Its log is empty, and always was."""
    version: Annotated[str, Meta(max_length=VERSION_CHARS_MAX)] = FIRST_VERSION
    protocols: tuple[_Level, _Level] = (1, 1)
    """The lowest and the highest protocol that it speaks. This version does not use them: every connection negotiates
    its own. A later version, whose lowest protocol is higher, can tell from them whom it cannot talk to."""
    levels: tuple[_Level, _Level] = (1, 1)
    """The lowest and the highest feature level that it supports."""

    @property
    def node_id(self) -> str:
        """``name@incarnation``."""
        return node_id(self.name, self.incarnation)


class SnapshotChunk(msgspec.Struct, frozen=True):
    """A piece of a snapshot file, and what the whole file is."""

    data: bytes
    last_index: int
    size_bytes: int
    sha256: str


class PeerHandler(Protocol):
    """What the peer port asks of the node; the tests' fake is the second implementation."""

    @property
    def identity(self) -> Identity:
        """Who we are now."""

    @property
    def start_id(self) -> str:
        """Which start of our process this is; up to 16 hex digits."""

    def marks_of(self, node: NodeId) -> tuple[PeerMark, ...]:
        """Return what we know of a peer's disk, to be said when we call it and when it calls."""

    def hello(self) -> Hello:
        """Return what we say of ourselves to anybody."""

    async def join(self, greeting: Greeting) -> None:
        """Make the caller's cluster ours, durably; called only while we have none.

        Raises:
            IdentityRejectedError: no.
        """

    def on_messages(self, sender: str, messages: tuple[Message, ...]) -> None:
        """Take checked messages, all from ``sender``.

        Raises:
            MalformedMessageError: one of them cannot be true; the stream is closed.
        """

    def on_connected(self, greeting: Greeting) -> None:
        """A peer's stream to us is open."""

    def on_disconnected(self, sender: str) -> None:
        """A peer's stream to us broke."""

    def is_member(self, node: NodeId) -> bool:
        """Tell whether a caller is a member of our configuration in force."""

    async def snapshot_chunk(
        self, last_index: int, offset_bytes: int, size_bytes: int, at_least: int | None
    ) -> SnapshotChunk:
        """Return a piece of our snapshot at ``last_index``; 0: the newest.

        The newest is taken now if there is none at ``at_least`` or later; with None, none is ever taken.

        Raises:
            StorageError: there is no such snapshot (any more), or we have not applied ``at_least``.
        """

    def state_hash_at(self, index: int) -> StateDigest | None:
        """Return the digest of the state after applying ``index``, if it is remembered."""

    def suspect_state(self, index: int) -> None:
        """A peer's state differs from ours at ``index``: find out which of us is wrong."""


class NodeHandler(PeerHandler, Protocol):
    """What the peer port asks of the node."""

    def on_broken(self, recipient: NodeId) -> None:
        """Our stream to a peer broke."""

    def on_marks(self, node: NodeId, marks: tuple[PeerMark, ...], address: str) -> None:
        """A peer accepted our stream at this URL, and said what it knows of our disk."""
