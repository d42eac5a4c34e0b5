"""A node whose state is wrong: found, put in quarantine, rebuilt from another member's snapshot.

Its log is not in doubt (the disk's checksums and consensus vouch for it); what memory made of it is. So the state is
replaced by a snapshot of a member in the majority, and the log after it is applied again.
"""

from __future__ import annotations

import asyncio
import logging
from io import BytesIO
from itertools import cycle

from kvorum.errors import CallerError, InvariantViolated, MalformedMessage, PeerError, StorageError
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.node.digests import verdict
from kvorum.node.driver import Driver
from kvorum.raft import Role
from kvorum.storage.snapshot_format import read_header, read_payload
from kvorum.telemetry.logs import RateLimit
from kvorum.transport import Transport

log = logging.getLogger("kvorum.state")

RETRY_S = 1.0


class Rebuilder:
    """Investigates contradictions between state hashes, one at a time.

    Args:
        driver: whose state it is.
        transport: how to ask the others.
    """

    def __init__(self, driver: Driver, transport: Transport) -> None:
        self.quarantined: str | None = None
        self._driver = driver
        self._transport = transport
        self._task: asyncio.Task[None] | None = None
        # While states differ, each heartbeat may say so again.
        self._limit = RateLimit()

    def investigate(self, index: int) -> None:
        """Somebody's state at ``index`` differs from ours: find out who is wrong."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._investigate(index), name="investigate the state")
            self._task.add_done_callback(self._driver.task_ended)

    async def close(self) -> None:
        """Stop investigating."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _investigate(self, index: int) -> None:
        driver = self._driver
        raft = driver.raft
        ours = driver.digests.at(index)
        if ours is None:
            return
        voters = raft.configuration.voters()
        others = [voter for voter in voters if voter != raft.id]
        answers = await asyncio.gather(*(self._transport.state_hash(voter, index) for voter in others))
        hashes = {voter: answer for voter, answer in zip(others, answers, strict=True) if answer is not None}
        wrong = verdict(ours, hashes, len(voters) if raft.id in voters else len(voters) + 1)
        if wrong is None:
            if self._limit.allow() is not None:
                log.error("states differ at index %d, and no majority agrees on one: %s", index, sorted(hashes))
            return
        if not wrong:
            for voter, state_hash in hashes.items():
                if state_hash != ours:
                    if self._limit.allow() is not None:
                        log.error("the state of %s differs from the majority's at index %d; telling it", voter, index)
                    await self._tell(voter, index)
            return
        await self._replace(index, [voter for voter, state_hash in hashes.items() if state_hash != ours])

    async def _replace(self, index: int, sources: list[str]) -> None:
        """Serve nobody until the state is one of these members'."""
        driver, raft = self._driver, self._driver.raft
        self.quarantined = reason = f"the state differs from the majority's at index {index}; it is being rebuilt"
        log.critical("%s is in quarantine: %s", raft.id, reason)
        if raft.role is Role.LEADER:
            self._resign()
        await driver.doubt(reason)
        for source in cycle(sources):
            if await self._rebuild(source):
                break
            await asyncio.sleep(RETRY_S)
        self.quarantined = None
        log.warning("%s left quarantine: its state was rebuilt from %s", raft.id, source)

    async def _tell(self, voter: str, index: int) -> None:
        try:
            await self._transport.suspect(voter, index)
        except PeerError as error:
            log.warning("could not tell %s: %s", voter, error)

    def _resign(self) -> None:
        try:
            self._driver.raft.transfer_leadership()
        except CallerError as error:
            log.error("a leader with a wrong state cannot hand over: %s", error)
        self._driver.schedule()

    async def _rebuild(self, source: str) -> bool:
        driver = self._driver
        try:
            # The file stays in memory: the disk must not take it for a snapshot that our log goes on from.
            first = await self._transport.snapshot_chunk(source, 0, 0, at_least=driver.raft.log.base_index)
            data = bytearray(first.data)
            while len(data) < first.size_bytes:
                chunk = await self._transport.snapshot_chunk(source, first.last_index, len(data))
                if chunk.sha256 != first.sha256 or not chunk.data:
                    raise MalformedMessage(f"{source} changed its snapshot at {first.last_index} meanwhile")
                data += chunk.data
            store = await asyncio.to_thread(_decode, bytes(data))
            driver.raft.reapply_from(store.applied_index)
        except (PeerError, StorageError, InvariantViolated) as error:
            if self._limit.allow() is not None:
                log.warning("rebuilding the state from %s failed: %s", source, error)
            return False
        driver.replace_store(store)
        driver.is_doubtful = False
        driver.schedule()
        # Our own snapshots may hold the wrong state: let a right one be the newest.
        await driver.begin_snapshot()
        return True


def _decode(data: bytes) -> Store:
    stream = BytesIO(data)
    _, header = read_header(stream)
    restorer = Restorer()
    for chunk in read_payload(stream, header, len(data)):
        restorer.feed(chunk)
    return restorer.finish()
