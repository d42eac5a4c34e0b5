"""A node whose state is wrong: found by its hash, put in quarantine, rebuilt from another member's snapshot.

Its log is right (the disk's checksums and consensus vouch for it), but what memory made of it is not. So a snapshot of
a member in the majority replaces the state, and the log after it is applied again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

import msgspec

from kvorum.errors import (
    CommitsLostError,
    InvariantViolatedError,
    MemoryChangedError,
    PeerError,
    SnapshotFailedError,
    StorageCorruptError,
    StorageError,
)
from kvorum.kv.state_hash import StateDigest, hash_of_entry
from kvorum.node.fetch import download
from kvorum.node.handover_port import HandOverPort
from kvorum.node.hashes import is_wrong
from kvorum.node.loader import Load, Loader
from kvorum.node.ports import Clock, Peers, Tasks, Threads
from kvorum.node.proposals import Proposals
from kvorum.node.reads import Reads
from kvorum.node.set_back import Participation
from kvorum.node.snapshots import Snapshots, load_copy, load_store
from kvorum.node.state import State
from kvorum.node.turns import Turns
from kvorum.raft import Raft
from kvorum.raft.messages import NodeId
from kvorum.storage.interface import SnapshotFile
from kvorum.telemetry.logs import RateLimit

log = logging.getLogger("kvorum.state")

RETRY_S = 1.0


class Integrity:
    """Investigates mismatches of state hashes, one at a time.

    Args:
        raft: the consensus server.
        state: what is compared, and replaced when it is wrong.
        proposals: the writes that are not answered from a wrong state.
        handover: the writes that are handed to the leader; likewise.
        reads: the reads that are not answered from it.
        snapshots: none may be taken of it.
        loader: what puts another state in its place.
        files: where another member's snapshot is kept until it is loaded.
        peers: whom to ask.
        clock: what limits log lines.
        tasks: where it runs.
        threads: where the disk is written and read.
        turns: the driver's.
        participation: what hears that another member's log contradicts what is committed here.
    """

    def __init__(
        self,
        raft: Raft,
        state: State,
        proposals: Proposals,
        handover: HandOverPort,
        reads: Reads,
        snapshots: Snapshots,
        loader: Loader,
        files: SnapshotFile,
        peers: Peers,
        clock: Clock,
        tasks: Tasks,
        threads: Threads,
        turns: Turns,
        participation: Participation,
    ) -> None:
        self.quarantined: str | None = None
        """Why this node serves nothing, or None."""
        self._raft = raft
        self._state = state
        self._proposals = proposals
        self._handover = handover
        self._reads = reads
        self._snapshots = snapshots
        self._loader = loader
        self._files = files
        self._peers = peers
        self._tasks = tasks
        self._threads = threads
        self._turns = turns
        self._participation = participation
        self._task: asyncio.Task[None] | None = None
        # While states differ, each heartbeat may say so again.
        self._limit = RateLimit(clock=clock.monotonic)

    def investigate(self, index: int) -> None:
        """Somebody's state at ``index`` differs from ours: find out whose is wrong."""
        # Members that applied other entries have other states, and neither is wrong.
        if not self._participation.is_distrusted and (self._task is None or self._task.done()):
            self._task = self._tasks.spawn(self._investigate(index), name="investigate a hash mismatch")

    def suspect(self, index: int, shift: int) -> None:
        """Memory does not hold what was applied, or the sum kept of it is wrong: find out which, at ``index``.

        Whichever it is, the snapshots that were taken since do not have the sum that they carry.

        Args:
            index: what is applied.
            shift: see :meth:`State.suspect`.
        """
        self._state.suspect(shift)
        self._snapshots.distrust_all()
        self.investigate(index)

    def digest_at(self, index: int) -> StateDigest | None:
        """Return the digest of the state after applying ``index``, if it is remembered, with the hash of the entry."""
        digest = self._state.hashes.at(index)
        return None if digest is None else msgspec.structs.replace(digest, entry=self._entry_hash(index))

    async def close(self) -> None:
        """Stop investigating."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _investigate(self, index: int) -> None:
        """Ask until a majority decides: as long as nothing is decided, this node may serve a wrong state."""
        # A sweep may find something while the question before it is still being settled.
        while await self._is_undecided(index) or self._state.suspected_shifts:
            if self._participation.is_distrusted:
                return
            index = self._state.store.applied_index
            self._state.hashes.applied(index, self._state.store.digest)
            await self._tasks.sleep(RETRY_S)

    async def _is_undecided(self, index: int) -> bool:
        raft, store, voters = self._raft, self._state.store, self._raft.configuration.voters()
        if voters == (raft.id,):
            if self._state.suspected_shifts:
                await self._ask_the_disk(index)
            else:
                # A learner differs, which has no vote: only our own memory can tell.
                self._state.is_in_doubt = True
            return False
        ours, shifts = self._state.hashes.at(index), self._state.suspected_shifts
        if ours is None:
            return False
        others = [voter for voter in voters if voter != raft.id]
        answers = await asyncio.gather(*(self._peers.state_hash(voter, index) for voter in others))
        theirs = {voter: answer for voter, answer in zip(others, answers, strict=True) if answer is not None}
        is_voter = raft.id in voters
        wrong = is_wrong(ours, theirs, len(voters), self._state.expected_sums(ours), is_voter=is_voter)
        if wrong is not False and not shifts and await self._is_forked(index, ours, theirs):
            return False
        if self._state.store is not store:
            return False  # What was asked about is not served any more.
        different = [voter for voter, digest in theirs.items() if digest.contradicts(ours)]
        if self._state.suspected_shifts != shifts:
            return True  # A sweep has found something meanwhile.
        if wrong is None:
            if self._limit.allow() is not None:
                log.error(
                    "state hashes differ at index %d, and no majority agrees on one; members that answered: %s",
                    index,
                    sorted(theirs),
                )
                self._state.is_in_doubt = True
                for voter in () if is_voter else different:
                    await self._ask_to_investigate(voter, index)
            return True
        if wrong:
            await self._replace(index, different)
        else:
            self._state.suspected_shifts = ()
            for voter in different:
                await self._tell(voter, index)
        return False

    async def _is_forked(self, index: int, ours: StateDigest, theirs: Mapping[NodeId, StateDigest]) -> bool:
        """Tell whether states differ since logs do, and take no part any more then.

        Two logs hold different entries of one index and term if a disk that was set back forgot a term, and its number
        was drawn again. Consensus cannot see that. Neither state is wrong, and ours is the state of what was committed
        here: a rebuild would lose that everywhere.
        """
        for voter, digest in sorted(theirs.items()):
            if digest.entry is None or digest.version != ours.version or digest.chain == ours.chain:
                continue
            fork = await self._first_difference(index, voter, digest)
            if fork is not None:
                self._participation.contradicted(
                    CommitsLostError(
                        f"{voter} applied another entry {fork} than the one that is committed here, of term "
                        f"{self._raft.log.term(fork)}"
                    )
                )
                return True
        return False

    async def _first_difference(self, index: int, voter: NodeId, digest: StateDigest) -> int | None:
        """Return the index of the first entry since which our chain differs from a member's, if the entries differ.

        None: they do not, or one of the two is not known any more. The chains differ at ``index``, where the member
        has this digest; once they differ, they do so at every later index.
        """
        same = 0
        while index - same > 1:
            middle = (same + index) // 2
            ours = self._state.hashes.at(middle)
            theirs = None if ours is None else await self._peers.state_hash(voter, middle)
            if ours is None or theirs is None or theirs.version != ours.version or theirs.chain == ours.chain:
                same = middle
            else:
                index, digest = middle, theirs
        entry = self._entry_hash(index)
        return index if entry is not None and digest.entry is not None and entry != digest.entry else None

    def _entry_hash(self, index: int) -> int | None:
        log = self._raft.log
        return hash_of_entry(log.slice(index, 0, index)[0]) if log.memory_base_index < index <= log.last_index else None

    async def _tell(self, voter: NodeId, index: int) -> None:
        if self._limit.allow() is None:
            return
        log.error("hash mismatch: the state of %s differs from the majority's at index %d", voter, index)
        await self._ask_to_investigate(voter, index)

    async def _ask_to_investigate(self, voter: NodeId, index: int) -> None:
        try:
            await self._peers.suspect(voter, index)
        except PeerError as error:
            log.warning("cannot tell %s about its hash mismatch: %s", voter, error)

    async def _replace(self, index: int, sources: list[NodeId]) -> None:
        """Serve nobody until the state is one of these members'."""
        await self._quarantine(f"the state differs from the majority's at index {index}; it is being rebuilt")
        rounds = 0
        while self._is_to_be_replaced():
            voters = self._raft.configuration.voters()
            right = [each for each in sources if each in voters] or [each for each in voters if each != self._raft.id]
            if right:
                await self._rebuild(right[rounds % len(right)])
            rounds += 1
            if self._is_to_be_replaced():
                await self._tasks.sleep(RETRY_S)
        if self._participation.is_distrusted:
            if self._state.suspected_shifts:
                return  # Whatever the others have, memory does not hold what was applied here.
            self._state.is_wrong = False
            self.quarantined = None
            log.warning("%s leaves quarantine: its state is that of its own log", self._raft.id)
            return
        self._raft.set_unfit(False)
        self._turns.schedule()
        # Our own snapshots may hold the wrong state: a right one takes their place.
        with suppress(SnapshotFailedError):
            await self._snapshots.begin()
        self.quarantined = None
        log.warning("%s leaves quarantine: its state was replaced", self._raft.id)

    async def _quarantine(self, reason: str) -> None:
        """Serve nobody from now on; return once no snapshot is being taken."""
        self.quarantined = reason
        log.critical("%s enters quarantine: %s", self._raft.id, reason)
        self._state.is_wrong = True
        self._raft.set_unfit(True)
        self._snapshots.distrust_all()
        self._proposals.stop(reason)
        self._handover.origin.stop(reason)
        self._reads.stop(reason)
        await self._snapshots.ended()

    async def _ask_the_disk(self, index: int) -> None:
        """Memory does not hold what was applied, or the sum kept of it is wrong, and this is the only voter.

        The log is whole. So is a snapshot that has its sum, and what follows it is in the log: the next start reads
        these. Snapshots that do not have their sum are set aside first, so that it does not begin with one of them.
        Without a whole snapshot the node stays in quarantine: after a start it would be no wiser.

        Raises:
            MemoryChangedError: the process must end.
        """
        await self._quarantine(
            f"the records in memory do not match their sum at index {index}, and this node is the only voter"
        )
        self._state.suspected_shifts = ()
        kept, wrong = self._files.kept(), dict[int, str]()
        for info in kept:
            try:
                await self._loader.verify(partial(load_store, self._files, info.snapshot))
                break
            except StorageCorruptError as error:
                wrong[info.snapshot.last_index] = str(error)
        if kept and len(wrong) == len(kept):
            log.critical("no snapshot on the disk matches its sum: %s; restore a backup", "; ".join(wrong.values()))
            return
        for last_index, why in wrong.items():
            await self._threads.run(self._files.discard, last_index, why)
        raise MemoryChangedError(f"{self.quarantined}; the next start reads the state from the disk")

    def _is_to_be_replaced(self) -> bool:
        """Whether the state still has to be replaced. One that was given up has to be, whoever is distrusted."""
        return self._state.is_wrong and (self._state.is_given_up or not self._participation.is_distrusted)

    async def _rebuild(self, source: NodeId) -> None:
        """Replace the wrong state by the member's, if that is possible now."""
        raft = self._raft
        try:
            # It is not older than our own newest one: one that is taken of it then becomes the newest.
            own = raft.snapshot.last_index if raft.snapshot is not None else 0
            first = await self._peers.snapshot_chunk(source, 0, 0, at_least=max(raft.log.base_index, own))
            copy = await self._threads.run(self._files.copy, first.last_index)
            try:
                await download(self._peers, source, first, partial(self._threads.finish, copy.write))
                await self._load(source, partial(load_copy, copy))
            finally:
                await self._threads.finish(copy.abort)
        except CommitsLostError as error:
            self._participation.contradicted(error)
        except (PeerError, StorageError, InvariantViolatedError) as error:
            if self._limit.allow() is not None:
                log.warning("rebuilding the state from %s failed: %s", source, error)

    async def _load(self, source: NodeId, load: Load) -> None:
        """Replace the wrong state by the one that ``load`` reads, unless it was replaced meanwhile.

        Raises:
            CommitsLostError: the other state contradicts what is committed here.
            InvariantViolatedError: our log does not go on from there.
            StorageError: the snapshot is damaged, or cannot be read.
        """
        raft = self._raft
        read = await self._loader.verify(load)

        def is_wanted() -> bool:
            if raft.log.term(read.applied_index) not in (None, read.applied_term):
                raise CommitsLostError(
                    f"{source} applied an entry {read.applied_index} of term {read.applied_term}, yet one of term "
                    f"{raft.log.term(read.applied_index)} is committed"
                )
            raft.check_reapply(read.applied_index)
            return self._is_to_be_replaced()

        store = await self._loader.load(load, is_wanted)
        if store is None:
            return
        self._loader.put(store)
        log.warning("%s has rebuilt its state from %s", raft.id, source)
