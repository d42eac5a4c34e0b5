"""The messages between consensus members, and what consensus hands to its driver.

The messages are those of Figure 2 of the Raft paper (Ongaro and Ousterhout, extended version) and of the thesis
(Ongaro 2014), with ``Heartbeat`` and ``ReadIndex`` messages of their own (the package docstring says why).
Every message is a frozen, tagged ``msgspec.Struct``; :data:`Message` is their closed union. On the wire they are
msgpack arrays: ``[tag, term, sender, recipient, ...]``.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import IntEnum
from operator import itemgetter
from typing import Annotated

import msgspec

INDEX_MAX = 2**62
"""No index, term or round reaches this; decoding refuses a larger one."""

TERM_JUMP_MAX = 2**30
"""No message moves a server's term by more. Otherwise one message near :data:`INDEX_MAX` would leave no term in which
anybody could be elected. An election raises the term by ``RaftConfig.term_step_max`` at most, and pre-votes keep a
server that is alone from holding any: a server that really falls so far behind, by a million elections, must rejoin
with an empty disk."""

HAND_OVER_BYTES_MAX = 4 * 1024 * 1024
"""No :class:`HandOver` carries more."""

HISTORY_TERMS_MAX = 256
"""A snapshot tells so many terms of the log that it replaces, the newest."""

Number = Annotated[int, msgspec.Meta(ge=0, lt=INDEX_MAX)]
"""An index, a term or a round."""

NodeId = str
"""A member: ``name@incarnation``. A node that lost its disk comes back as another member of the same name."""


class EntryKind(IntEnum):
    """What a log entry carries in ``data``."""

    COMMAND = 0
    """A batch of the state machine's commands; consensus does not look inside."""
    NOOP = 1
    """Empty: the entry by which a new leader commits what came before it (section 5.4.2, 8)."""
    CONFIGURATION = 2
    """A msgpack :class:`Configuration`; in force from the moment it is appended (thesis 4.1)."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One log entry (section 5.3). ``data`` is encoded once: the same bytes go to disk and to every peer."""

    index: Number
    term: Number
    kind: EntryKind
    data: bytes


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A server of the cluster: a voter, or a learner that receives the log but neither votes nor counts."""

    id: NodeId
    voter: bool
    peer_url: str = ""
    """Where its peers reach it, e.g. ``http://kv-0.kv-headless.default.svc.cluster.local:2380``."""
    client_url: str = ""
    """Where clients reach it; what a redirect hint names."""


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """The members, ordered by id."""

    members: tuple[Member, ...] = ()

    def voters(self) -> tuple[NodeId, ...]:
        """Return the ids of the voters, ordered."""
        return tuple(m.id for m in self.members if m.voter)

    def learners(self) -> tuple[NodeId, ...]:
        """Return the ids of the learners, ordered."""
        return tuple(m.id for m in self.members if not m.voter)

    def get(self, node: NodeId) -> Member | None:
        """Return the member with this id, or None."""
        return next((member for member in self.members if member.id == node), None)

    def quorum(self) -> int:
        """Return how many voters are a majority."""
        return majority(len(self.voters()))


def majority(voters: int) -> int:
    """Return how many of so many voters are a majority."""
    return voters // 2 + 1


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What must be durable before any message that reveals it leaves (Figure 2, "persistent state")."""

    current_term: int = 0
    voted_for: NodeId | None = None


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot replaces: the log up to and including ``last_index`` (section 7). The data is the driver's."""

    last_index: Number
    last_term: Number
    configuration: Configuration
    terms: tuple[tuple[Number, Number], ...] = ()
    """(index, term) of the first entry of each term in that log, in order. The oldest may be missing; empty: version
    0.1.0 or 0.2.0 took it."""

    def term_at(self, index: int) -> int | None:
        """Return the term of an entry that it replaces; None: not known, or it replaces no such entry."""
        if index >= self.last_index:
            return self.last_term if index == self.last_index else None
        position = bisect_right(self.terms, index, key=itemgetter(0)) - 1
        return self.terms[position][1] if position >= 0 else None


class PeerMark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A lower bound of what is on another server's disk, as that server's own messages showed it.

    A disk that holds less was set back: replaced by an older copy of itself.
    """

    node: NodeId
    start: str
    """Which start of its process said so; empty: it runs a version that does not tell."""
    term: Number
    vote: NodeId | None = None
    """For whom it voted in ``term``; None: not known."""
    index: Number = 0
    """An entry that it acknowledged, or saved as the leader, in ``term``; 0: none is known."""
    index_term: Number = 0
    """The term of that entry."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    term: Number
    sender: NodeId
    recipient: NodeId


class RequestVote(_Message, frozen=True, array_like=True, tag="rv", kw_only=True):
    """Sections 5.2, 5.4.1; with ``pre_vote`` the question of thesis 9.6, asked for ``term`` without entering it."""

    last_log_index: Number
    last_log_term: Number
    pre_vote: bool = False
    leadership_transfer: bool = False
    """The leader told the candidate to campaign (thesis 4.2.3): the leader's lease does not protect it."""


class RequestVoteResponse(_Message, frozen=True, array_like=True, tag="rvr", kw_only=True):
    """A granted pre-vote carries the term that was asked for; everything else the responder's own term."""

    vote_granted: bool
    pre_vote: bool = False


class AppendEntries(_Message, frozen=True, array_like=True, tag="ae", kw_only=True):
    """Section 5.3. Never empty but when it probes for the place where two logs agree.

    ``saved_index``: how much of the leader's own log is on its disk. Version 0.1.0 does not send it, and skips it.
    """

    prev_log_index: Number
    prev_log_term: Number
    entries: tuple[Entry, ...]
    leader_commit: Number
    saved_index: Number = 0


class AppendEntriesResponse(_Message, frozen=True, array_like=True, tag="aer", kw_only=True):
    """The follower's answer, sent when the entries are on its disk.

    ``index``: on success the last index known to match the leader's log (never more than was sent); on refusal the
    ``prev_log_index`` that was refused. ``hint_index`` and ``hint_term``, on refusal: the last entry of the follower's
    log whose term is at most ``prev_log_term`` (the fast backtracking of section 5.3, by term).
    """

    success: bool
    index: Number
    hint_index: Number = 0
    hint_term: Number = 0


class Heartbeat(_Message, frozen=True, array_like=True, tag="hb", kw_only=True):
    """The empty AppendEntries of section 5.2; answered at once, since the answer says nothing about the log.

    ``commit_index`` is at most what the recipient is known to hold. ``round`` numbers the leader's rounds: a quorum
    of answers to a round later than a read's arrival proves that the leader still led then (thesis 6.4).
    ``state_index`` and ``state_hash``: the leader's state hash after applying that index, for the driver (0: none).
    ``state_hash_version`` is that hash's definition, and ``state_sum`` the second part of the second one (empty: none).
    ``saved_index``: how much of the leader's own log is on its disk. Version 0.1.0 sends none of the last three and
    skips them.
    """

    commit_index: Number
    round: Number
    state_index: Number = 0
    state_hash: int = 0
    state_hash_version: int = 1
    state_sum: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    saved_index: Number = 0


class HeartbeatResponse(_Message, frozen=True, array_like=True, tag="hbr", kw_only=True):
    """Carries back the round; says nothing about the log, so it need not wait for the disk.

    ``free_bytes``: how much the sender's disk can still store, for the leader's driver (-1: not known). Version 0.1.0
    does not send it and skips it.
    """

    round: Number
    free_bytes: Annotated[int, msgspec.Meta(ge=-1, lt=INDEX_MAX)] = -1


class ReadIndex(_Message, frozen=True, array_like=True, tag="ri", kw_only=True):
    """A follower asks the leader for a linearizable read barrier (thesis 6.4); ``context`` is the follower's own.

    ``can_wait``: the next heartbeats are soon enough for the leader's question to a quorum. Version 0.1.0 does not send
    it, skips it, and asks at once.
    """

    context: int
    can_wait: bool = False


class ReadIndexResponse(_Message, frozen=True, array_like=True, tag="rir", kw_only=True):
    """The barrier: a read is linearizable once ``index`` is applied, and so is every one that was asked for before it.

    ``index`` 0: the sender does not lead this term, or no longer.
    """

    context: int
    index: Number


class InstallSnapshot(_Message, frozen=True, array_like=True, tag="is", kw_only=True):
    """Section 7: the follower needs what the leader's log no longer holds.

    It carries the description only: an offer. The follower that needs it asks its driver to fetch the file
    (:attr:`Ready.fetch`).
    """

    snapshot: Snapshot


class InstallSnapshotResponse(_Message, frozen=True, array_like=True, tag="isr", kw_only=True):
    """The follower's log now begins behind ``index`` (or already held it)."""

    index: Number


class TimeoutNow(_Message, frozen=True, array_like=True, tag="tn", kw_only=True):
    """Leadership transfer, thesis 3.10: campaign at once."""


class HandOver(_Message, frozen=True, array_like=True, tag="ho", kw_only=True):
    """What the drivers say to each other about writes that one hands to the other, which leads in ``term``.

    Consensus does not look inside, and is not told. Sent from feature level 6 on.
    """

    data: Annotated[bytes, msgspec.Meta(max_length=HAND_OVER_BYTES_MAX)]


LeaderMessage = AppendEntries | Heartbeat | InstallSnapshot
"""What only the leader of a term sends."""
Response = AppendEntriesResponse | HeartbeatResponse | InstallSnapshotResponse
"""The answers to it."""
Message = (
    LeaderMessage | Response | RequestVote | RequestVoteResponse | ReadIndex | ReadIndexResponse | TimeoutNow | HandOver
)


class Save(msgspec.Struct, frozen=True):
    """What must become durable in one atomic write, before :meth:`Raft.saved` is called with its ``number``.

    A save that fails ends the process: nobody knows what of it is durable.
    """

    number: int
    """Counts saves from 1; at most one is in flight."""
    hard_state: HardState
    entries: tuple[Entry, ...] = ()
    """Contiguous; replaces everything in the log from ``entries[0].index`` on."""
    snapshot: Snapshot | None = None
    """Adopt this snapshot: the whole log is replaced by it, then ``entries`` follow."""
    marks: tuple[PeerMark, ...] = ()
    """What is known of the other members' disks. They replace those of the save before. A change of them waits for the
    next save, or for :meth:`Raft.remember`."""
    commit_index: int = 0
    """What is known to be committed; the log on the disk may not reach as far yet. It waits in the same way."""


class Fetch(msgspec.Struct, frozen=True):
    """Fetch this snapshot from ``source`` and make it durable.

    Then call :meth:`Raft.fetched`, or :meth:`Raft.fetch_failed` after giving up. There is one fetch at a time.
    """

    source: NodeId
    snapshot: Snapshot


class Load(msgspec.Struct, frozen=True):
    """Read entries of the log back from the disk, then call :meth:`Raft.loaded`. There is one load at a time.

    ``first_index`` and as many after it, up to ``last_index``, as fit into ``bytes_max``; at least one.
    """

    first_index: int
    last_index: int
    bytes_max: int


class Read(msgspec.Struct, frozen=True):
    """A read barrier was passed: whatever is read now, after ``committed`` was applied, is linearizable."""

    context: int
    index: int


class Ready(msgspec.Struct, frozen=True):
    """Everything there is to do now, handed over exactly once, unless it is given back (:meth:`Raft.give_back`).

    Order: adopt and apply as given; ``messages`` may leave at once; ``messages_after_save`` only when ``save`` is
    durable. ``save`` is None while another save is in flight.
    """

    save: Save | None = None
    messages: tuple[Message, ...] = ()
    messages_after_save: tuple[Message, ...] = ()
    restore: Snapshot | None = None
    """Load this (already durable) snapshot into the state machine before applying ``committed``."""
    committed: tuple[Entry, ...] = ()
    """Apply these, in order. All of them are durable on this node."""
    reads: tuple[Read, ...] = ()
    """Release these reads after applying ``committed``."""
    reads_refused: tuple[int, ...] = ()
    """Contexts whose barrier failed because the leader changed; ask again."""
    fetch: Fetch | None = None
    """Begin this fetch. The one before it has ended."""
    load: Load | None = None
    """Begin this load, after ``save`` if both are here. The one before it has ended."""
    has_more: bool = False
    """There is more to do already. Otherwise there is none before the next input, or the end of what is begun here."""
