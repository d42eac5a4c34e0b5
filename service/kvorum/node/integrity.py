"""A node whose state is wrong: found by its hash, put in quarantine, rebuilt from another member's snapshot.

Its log is right (the disk's checksums and consensus vouch for it), but what memory made of it is not. So a snapshot of
a member in the majority replaces the state, and the log after it is applied again.
"""

from __future__ import annotations

import asyncio
import logging
from io import BytesIO
from itertools import cycle

from kvorum.errors import CallerError, InvariantViolatedError, PeerError, StorageCorruptError, StorageError
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.node.fetch import download
from kvorum.node.hashes import is_wrong
from kvorum.node.ports import Clock, Peers, Tasks, Threads
from kvorum.node.proposals import Proposals
from kvorum.node.reads import Reads
from kvorum.node.snapshots import Snapshots
from kvorum.node.state import State
from kvorum.node.turns import Turns
from kvorum.raft import Raft, Role
from kvorum.raft.messages import NodeId
from kvorum.storage.snapshot_format import read_header, read_payload
from kvorum.telemetry.logs import RateLimit

log = logging.getLogger("kvorum.state")

RETRY_S = 1.0


class Integrity:
    """Investigates mismatches of state hashes, one at a time.

    Args:
        raft: the consensus server.
        state: what is compared, and replaced when it is wrong.
        proposals: the writes that are not answered from a wrong state.
        reads: the reads that are not answered from it.
        snapshots: none may be taken of it.
        peers: whom to ask.
        clock: what limits log lines.
        tasks: where it runs.
        threads: where a snapshot is decoded.
        turns: the driver's.
    """

    def __init__(
        self,
        raft: Raft,
        state: State,
        proposals: Proposals,
        reads: Reads,
        snapshots: Snapshots,
        peers: Peers,
        clock: Clock,
        tasks: Tasks,
        threads: Threads,
        turns: Turns,
    ) -> None:
        self.quarantined: str | None = None
        """Why this node serves nothing, or None."""
        self._raft = raft
        self._state = state
        self._proposals = proposals
        self._reads = reads
        self._snapshots = snapshots
        self._peers = peers
        self._tasks = tasks
        self._threads = threads
        self._turns = turns
        self._task: asyncio.Task[None] | None = None
        # While states differ, each heartbeat may say so again.
        self._limit = RateLimit(clock=clock.monotonic)

    def investigate(self, index: int) -> None:
        """Somebody's state at ``index`` differs from ours: find out whose is wrong."""
        if self._task is None or self._task.done():
            self._task = self._tasks.spawn(self._investigate(index), name="investigate a hash mismatch")

    async def close(self) -> None:
        """Stop investigating."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _investigate(self, index: int) -> None:
        raft = self._raft
        ours = self._state.hashes.at(index)
        if ours is None:
            return
        voters = raft.configuration.voters()
        others = [voter for voter in voters if voter != raft.id]
        answers = await asyncio.gather(*(self._peers.state_hash(voter, index) for voter in others))
        theirs = {voter: answer for voter, answer in zip(others, answers, strict=True) if answer is not None}
        wrong = is_wrong(ours, theirs, len(voters) if raft.id in voters else len(voters) + 1)
        if wrong is None:
            if self._limit.allow() is not None:
                log.error(
                    "state hashes differ at index %d, and no majority agrees on one; members that answered: %s",
                    index,
                    sorted(theirs),
                )
        elif wrong:
            await self._replace(index, [voter for voter, digest in theirs.items() if digest.contradicts(ours)])
        else:
            for voter in [voter for voter, digest in theirs.items() if digest.contradicts(ours)]:
                await self._tell(voter, index)

    async def _tell(self, voter: NodeId, index: int) -> None:
        if self._limit.allow() is None:
            return
        log.error("hash mismatch: the state of %s differs from the majority's at index %d", voter, index)
        try:
            await self._peers.suspect(voter, index)
        except PeerError as error:
            log.warning("cannot tell %s about its hash mismatch: %s", voter, error)

    async def _replace(self, index: int, sources: list[NodeId]) -> None:
        """Serve nobody until the state is one of these members'."""
        self.quarantined = reason = f"the state differs from the majority's at index {index}; it is being rebuilt"
        log.critical("%s enters quarantine: %s", self._raft.id, reason)
        if self._raft.role is Role.LEADER:
            self._resign()
        self._state.is_wrong = True
        self._proposals.stop(reason)
        self._reads.stop(reason)
        await self._snapshots.ended()
        for source in cycle(sources):
            if await self._rebuild(source):
                break
            await self._tasks.sleep(RETRY_S)
        self.quarantined = None
        log.warning("%s leaves quarantine: its state was rebuilt from %s", self._raft.id, source)

    def _resign(self) -> None:
        try:
            self._raft.transfer_leadership()
        except CallerError as error:
            log.error("this leader is in quarantine, but cannot transfer the leadership: %s", error)
        self._turns.may_have_changed = True
        self._turns.schedule()

    async def _rebuild(self, source: NodeId) -> bool:
        try:
            # The file stays in memory: the disk must not take it for a snapshot that our log goes on from.
            at_least = self._raft.log.base_index
            first = await self._peers.snapshot_chunk(source, 0, 0, at_least=at_least)
            data = bytearray()

            async def keep(piece: bytes) -> None:
                data.extend(piece)

            await download(self._peers, source, first, keep)
            store = await self._threads.run(_decode, bytes(data))
            if store.mismatch is not None:
                raise StorageCorruptError(f"the snapshot of {source} does not match its state sum")
            self._raft.reapply_from(store.applied_index)
        except (PeerError, StorageError, InvariantViolatedError) as error:
            if self._limit.allow() is not None:
                log.warning("rebuilding the state from %s failed: %s", source, error)
            return False
        self._state.replace(store)
        self._state.is_wrong = False
        self._turns.schedule()
        # Our own snapshots may hold the wrong state: let a right one be the newest.
        await self._snapshots.begin()
        return True


def _decode(data: bytes) -> Store:
    stream = BytesIO(data)
    snapshot, header = read_header(stream)
    restorer = Restorer(snapshot.configuration)
    for chunk in read_payload(stream, header, len(data)):
        restorer.feed(chunk)
    return restorer.finish()
