"""A node whose disk was set back, or whose disk alone still holds what the others lost.

An older copy in the place of a disk looks whole: its checksums are right, and it may be minutes or months old. Two
things tell.

- *Peers remember* (:mod:`kvorum.raft.marks`) what this node's disk held. They say so when they call, and when they
  accept our call. After a start, a node neither votes nor acknowledges anything before every member has said so, or two
  election timeouts have passed: a vote before the one peer that remembers was heard would be too early. A member that
  accepted our call and has yet to say what it remembers (its version does so only when it calls) is waited for longer.
  Consensus stands still until then. A restart costs some milliseconds, and up to two election timeouts while a member
  is down.
- *Records carry the commit index.* Whoever wants to replace what is committed here comes from a cluster that lost it.

Such a node takes no part any more: it neither votes, nor acknowledges, nor campaigns. It stays up, says what it knows,
and serves its status and a stale backup.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping

from kvorum.errors import ContradictionError, DiskSetBackError
from kvorum.identity import name_of
from kvorum.node.hellos import ask_all
from kvorum.node.ports import Peers, Tasks
from kvorum.raft import Raft
from kvorum.raft.messages import TERM_JUMP_MAX, NodeId, PeerMark
from kvorum.storage.interface import Loaded
from kvorum.transport.interface import Hello

log = logging.getLogger("kvorum.storage")

ELECTION_TIMEOUTS_WAITED = 2
"""For a member of which nothing is heard."""
CONNECTED_WAITED_S = 6.0
"""For a member that accepted our call: it is there, and a call of its own may take this long, which is three times the
timeout of a dial (CONNECT_TIMEOUT_S in transport/link.py)."""
ADVISE_S = 5.0
"""How often a node that takes no part asks whether the others have a leader."""

NOT_KNOWN_YET = (
    "Whether a leader has a quorum without this node is not known yet, and is found out within seconds: keep every "
    "disk until then (docs/operations/a-volume-was-set-back.md)"
)
KEEP_ALL = (
    "No leader has a quorum without this node: keep every disk, and see "
    "docs/operations/a-volume-was-set-back.md before anything is deleted"
)
EMPTY_THIS = (
    "{leader} leads with a quorum without this node: give this node an empty disk, and it rejoins as a new member "
    "(docs/operations/a-volume-was-set-back.md)"
)
KEEP_THIS = (
    "The cluster has lost entries that were committed, and this disk still has them: do not delete it. Take a stale "
    "backup of this node and see docs/operations/a-volume-was-set-back.md"
)


class DiskAtStart:
    """What was on the disk when the process started, to be compared with what peers remember.

    Args:
        loaded: what was loaded.
    """

    def __init__(self, loaded: Loaded) -> None:
        snapshot, entries = loaded.snapshot, loaded.entries
        self._term, self._vote = loaded.hard_state.current_term, loaded.hard_state.voted_for
        self._base_index = snapshot.last_index if snapshot is not None else 0
        self._runs = list(loaded.on_disk.terms)
        for entry in entries:
            if not self._runs or self._runs[-1][1] != entry.term:
                self._runs.append((entry.index, entry.term))
        self._last_index = entries[-1].index if entries else max(loaded.on_disk.last_index, self._base_index)

    def what_it_lacks(self, mark: PeerMark) -> str | None:
        """Return what this disk once held and does not hold, in words, or None. A higher term proves nothing."""
        if mark.term < self._term:
            return None
        if mark.term > self._term:
            return f"it was once in term {mark.term}, and is in term {self._term}"
        if mark.vote is not None and mark.vote != self._vote:
            return (
                f"it once held a vote for {mark.vote} in term {mark.term}, and holds one for {self._vote or 'nobody'}"
            )
        if mark.index > self._base_index and self._entry_term(mark.index) != mark.index_term:
            return (
                f"it once held entry {mark.index} of term {mark.index_term}, and its log of {self._last_index} entries "
                "does not"
            )
        return None

    def _entry_term(self, index: int) -> int | None:
        position = bisect_right(self._runs, index, key=lambda run: run[0]) - 1
        return self._runs[position][1] if position >= 0 and index <= self._last_index else None


class Participation:
    """Whether this node takes part in consensus.

    Args:
        raft: the consensus server, before its first input.
        loaded: what was on the disk.
        start: which start of the process this is.
        peers: whom to ask whether there is a leader.
        tasks: where that is asked.
        stopped: called with the reason when this node takes no part any more.
        tick_ms: how long a tick is.
        expected: the names of the members that the options name.

    Attributes:
        is_active: the driver may give consensus messages and ticks, and may send what it says.
    """

    def __init__(
        self,
        raft: Raft,
        loaded: Loaded,
        start: str,
        peers: Peers,
        tasks: Tasks,
        stopped: Callable[[str], None],
        tick_ms: int,
        expected: Iterable[str] = (),
    ) -> None:
        self.start = start
        self._raft = raft
        self._disk = DiskAtStart(loaded)
        self._peers = peers
        self._tasks = tasks
        self._stopped = stopped
        self._expected = frozenset(expected)
        self._cluster_id = loaded.identity.cluster_id if loaded.identity is not None else ""
        self._accuser: NodeId | None = None
        self._unheard = self._others()
        self._ticks = 0
        self._silent_ticks = ELECTION_TIMEOUTS_WAITED * raft.config.election_timeout_ticks
        self._connected_ticks = max(self._silent_ticks, int(CONNECTED_WAITED_S * 1000) // tick_ms)
        self._finding = ""
        self._advice = ""
        self._task: asyncio.Task[None] | None = None
        self.is_active = not self._unheard

    @property
    def is_distrusted(self) -> bool:
        """Whether this node takes no part any more."""
        return bool(self._finding)

    @property
    def why_not(self) -> str | None:
        """What was found, and what to do; None: this node takes part, or is about to."""
        return f"{self._finding}. {self._advice}" if self._finding else None

    def tick(self) -> None:
        """Let one tick pass: whoever said nothing for long enough is not waited for."""
        self._ticks += 1
        if self.is_active or self._finding:
            return
        if self._ticks < self._silent_ticks:
            return
        if self._ticks < self._connected_ticks and any(map(self._peers.is_connected, self._unheard)):
            return
        log.info("takes part without having heard what %s remember", ", ".join(sorted(self._unheard)))
        self.is_active = True

    def heard(self, node: NodeId, marks: Iterable[PeerMark], address: str = "") -> None:
        """A peer called from this address, or accepted our call there, and said what it remembers.

        Those are believed that bear the name of a member or of one that the options name: the members of an old disk
        may have been replaced since, and the id of a new one is not known here. A node that knows no members believes
        whoever is about to lead it.
        """
        if self._finding or not self._is_believed(node):
            return
        for mark in marks:
            if mark.term > self._raft.current_term + TERM_JUMP_MAX:
                log.warning(
                    "%s at %s says that this disk was once in term %d, which is more than %d ahead of term %d: it is "
                    "not believed, its disk or its memory may be damaged",
                    *(node, address or "an unknown address", mark.term, TERM_JUMP_MAX, self._raft.current_term),
                )
                continue
            is_own = mark.start == self.start or self._holds(mark)
            lacks = None if is_own else self._disk.what_it_lacks(mark)
            if lacks is not None:
                log.warning("%s at %s remembers that %s", node, address or "an unknown address", lacks)
                self._accuser = node
                self._stop(f"this disk was set back to an older state: {node} remembers that {lacks}")
                return
        self._unheard.discard(node)
        if not self._unheard:
            self.is_active = True

    def _holds(self, mark: PeerMark) -> bool:
        """Tell whether the log has by now the entry of which a mark speaks: then it is not lost.

        A peer may attribute what this process has shown to another one: a call of an earlier process that arrives late,
        or of somebody else, comes between.
        """
        raft = self._raft
        if not mark.index or mark.term > raft.current_term:
            return False
        if mark.term == raft.current_term and mark.vote not in (None, raft.voted_for):
            return False
        return mark.index <= raft.log.base_index or raft.log.term(mark.index) == mark.index_term

    def contradicted(self, error: ContradictionError) -> None:
        """Consensus found that what a leader says contradicts this disk."""
        if self._finding:
            return
        if isinstance(error, DiskSetBackError):
            self._stop(f"this disk was set back to an older state: {error}")
        else:
            self._stop(f"the other members contradict what is committed here: {error}", KEEP_THIS)

    async def close(self) -> None:
        """Ask nobody any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _stop(self, finding: str, advice: str = "") -> None:
        self._finding, self._advice = finding, advice or NOT_KNOWN_YET
        self.is_active = False
        self._raft.stand_down()
        self._stopped(finding)
        if advice:
            self._tell()
        else:
            self._task = self._tasks.spawn(self._advise(), name="advise about a disk that was set back")

    def _tell(self) -> None:
        log.critical("%s takes no part any more: %s", self._raft.id, self.why_not)

    def _others(self) -> set[NodeId]:
        """Return the other members, as this node knows them now."""
        return {member.id for member in self._raft.configuration.members} - {self._raft.id}

    def _is_believed(self, node: NodeId) -> bool:
        others = self._others()
        return not others or name_of(node) in self._expected.union(map(name_of, others))

    def _leads_ours(self, node: NodeId, hello: Hello) -> bool:
        """Tell whether the answer at a member's address is that member's, and it leads this cluster with a quorum."""
        is_ours = hello.node_id == node and self._cluster_id in ("", hello.cluster_id)
        return is_ours and hello.is_leader and hello.is_serving

    async def _advise(self) -> None:
        """Find out what the right advice is, for as long as the node is up; say what is new.

        A leader may have had this node in its quorum until just now, and finds out within an election timeout. So it
        counts when it still leads, in the same term, two of them later.
        """
        self._tell()
        told, first, since = self._advice, None, 0
        while True:
            asked = self._others() | ({self._accuser} if self._accuser is not None else set())
            hellos = await ask_all(self._peers, {node: self._peers.url_of(node) for node in sorted(asked)})
            leader = self._leader_among(hellos)
            if leader != first:
                first, since = leader, self._ticks
            is_lasting = self._ticks - since > self._silent_ticks
            self._advice = _advice_for(leader, is_lasting=is_lasting)
            if self._advice != told:
                told = self._advice
                self._tell()
            await self._tasks.sleep(ADVISE_S)

    def _leader_among(self, hellos: Mapping[NodeId, Hello | None]) -> tuple[int, NodeId] | None:
        """Return the newest term in which one of them leads this cluster with a quorum, and who does."""
        return max(
            (
                (hello.term, node)
                for node, hello in hellos.items()
                if hello is not None and self._leads_ours(node, hello)
            ),
            default=None,
        )


def _advice_for(leader: tuple[int, NodeId] | None, *, is_lasting: bool) -> str:
    if leader is None:
        return KEEP_ALL
    return EMPTY_THIS.format(leader=name_of(leader[1])) if is_lasting else NOT_KNOWN_YET
