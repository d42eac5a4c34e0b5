"""A naive state machine, correct by inspection: it remembers everything that ever happened and searches it.

It shares with the real one the commands, the results and the wording of the refusals, and no line of logic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from zlib import crc32

from kvorum.kv.commands import (
    Batch,
    BatchCommand,
    Command,
    Compact,
    Compacted,
    CompactRefused,
    CompareFailed,
    DeleteResult,
    EndSession,
    FeatureLevelRaised,
    FeatureLevelRefused,
    HandedOver,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    NoSpace,
    OpenOrigin,
    Put,
    PutResult,
    QuotaSet,
    RaiseFeatureLevel,
    Result,
    SessionEnded,
    SessionRefused,
    SetQuota,
    Txn,
)
from kvorum.kv.records import Record


@dataclass
class ModelSession:
    """A client, and every command it ever had applied."""

    client_id: str
    last_used_ms: int
    applied: dict[int, tuple[tuple[object, ...], Result]] = field(default_factory=dict)


@dataclass
class Model:
    """The whole past: ``history[i]`` is the change of revision ``i + 1``; a value of None is a deletion.

    No key is empty: an empty one stands for the raise to level 4.
    """

    window: int
    sessions_max: int
    idle_ms: int
    ended_max: int
    history: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    sessions: list[ModelSession] = field(default_factory=list)
    ended: list[tuple[str, int]] = field(default_factory=list)
    time_ms: int = 0
    members: Sequence[str] = ()
    level: int = 1
    cluster_id: str = ""
    quota: int = 0
    configured: int = 0
    is_full: bool = False
    floor: int = 0

    @property
    def revision(self) -> int:
        """The latest one."""
        return len(self.history)

    def events(self) -> list[tuple[int, bytes, bytes | None]]:
        """Return the history from the floor on; there is none below level 4."""
        changes = enumerate(self.history, 1)
        return [(revision, *change) for revision, change in changes if 0 < self.floor <= revision and change[0]]

    def history_bytes(self) -> int:
        """Weigh what the events replaced, and the tombstones."""
        total = 0
        for revision, key, value in self.events():
            before = self.get(key, revision - 1)
            total += 0 if before is None else len(key) + len(before.value) + 240
            total += 0 if value is not None else len(key) + 224
        return total

    def used(self) -> int:
        """Weigh everything, from nothing."""
        return self.kept() + self.history_bytes()

    def kept(self) -> int:
        """Weigh everything but the history, which gives way."""
        records = {key: self.get(key) for key in {key for key, _ in self.history}}
        total = sum(len(key) + len(record.value) + 288 for key, record in records.items() if record is not None)
        for session in self.sessions:
            total += 512 + len(session.client_id) + 37 * min(max(session.applied), self.window)
        return total + sum(256 + len(client_id) for client_id, _ in self.ended)

    def state_sum(self) -> int:
        """Sum over every key that there ever was, from nothing."""
        total = 0
        for key in {key for key, _ in self.history}:
            record = self.get(key)
            if record is not None:
                data = b"".join(n.to_bytes(8) for n in (record.create_revision, record.mod_revision, record.version))
                data += len(record.value).to_bytes(4) + crc32(record.value).to_bytes(4) + key
                digest = blake2b(data, digest_size=16, key=self.cluster_id.encode(), person=b"kvorum.record").digest()
                total += int.from_bytes(digest)
        return total % 2**128

    def get(self, key: bytes, latest: int | None = None) -> Record | None:
        """Search the past, up to a revision, for the key's latest life."""
        life: list[tuple[int, bytes]] = []
        for revision, (changed, value) in enumerate(self.history[:latest], 1):
            if changed == key:
                life = [] if value is None else [*life, (revision, value)]
        if not life:
            return None
        return Record(key, life[-1][1], life[0][0], life[-1][0], len(life))

    def apply(self, batch: Batch) -> list[Result]:
        """Apply a batch."""
        self.time_ms = max(self.time_ms, batch.time_ms)
        alone = len(batch.commands) == 1
        results = [self._apply(command, alone) for command in batch.commands]
        if self.quota and self.history_bytes():
            while self.floor < self.revision and self.used() > self.quota * 95 // 100:
                self.floor += 1
        if self.is_full:
            self.is_full = self.kept() >= self.quota * 95 // 100
        else:
            self.is_full = 0 < self.quota < self.kept()
        return results

    def _apply(self, command: BatchCommand, alone: bool) -> Result:
        assert not isinstance(command, Txn), "tests/kv/txn_model.py is the model of transactions"
        assert not isinstance(command, LeaseGrant | LeaseRenew | LeaseRevoke), "tests/kv/lease_model.py is their model"
        if isinstance(command, RaiseFeatureLevel):
            return self._raise(command, alone)
        if isinstance(command, EndSession):
            return self._end(command.client_id)
        if isinstance(command, SetQuota):
            return self._set_quota(command)
        if isinstance(command, Compact):
            return self._compact(command.revision)
        if isinstance(command, OpenOrigin | HandedOver):
            raise TypeError("the model hands nothing over")
        revision = len(self.history)
        if not 1 <= len(command.key) <= 1024 or len(command.client_id) > 64:
            return SessionRefused(revision, "invalid")
        if command.client_id != "" and command.sequence <= 0:
            return SessionRefused(revision, "invalid")
        if self.is_full and isinstance(command, Put) and self._is_new(command.client_id, command.sequence):
            return NoSpace(revision, self.quota, self.kept())
        if command.client_id == "":
            return self._change(command)
        what = (type(command), command.key, getattr(command, "value", None), command.prev_revision)
        verdict = self._session(command.client_id, command.sequence, what)
        if isinstance(verdict, str):
            return SessionRefused(revision, verdict)
        if isinstance(verdict, ModelSession):
            verdict.applied[command.sequence] = (what, self._change(command))
            return verdict.applied[command.sequence][1]
        return verdict

    def _is_new(self, client_id: str, sequence: int) -> bool:
        mine = [session.applied for session in self.sessions if session.client_id == client_id]
        if not client_id:
            return True
        if not mine:
            return sequence == 1 and not self._was_ended(client_id)
        return sequence > max(mine[0]) - self.window and sequence not in mine[0]

    def _set_quota(self, command: SetQuota) -> Result:
        revision, limit = len(self.history), command.limit_bytes
        if self.level < 3 or not 1 <= limit < 2**63 or command.source == "nobody":
            return SessionRefused(revision, "invalid")
        if command.source == "operator":
            self.quota = limit
        elif command.source == "configuration" and limit != self.configured:
            self.quota = self.configured = limit
        elif command.source == "first" and self.quota == 0:
            self.quota = max(limit, self.used() * 3 // 2)
        return QuotaSet(revision, self.quota)

    def _compact(self, revision: int) -> Result:
        if self.level < 4:
            return SessionRefused(self.revision, "invalid")
        if revision <= self.floor or revision > self.revision:
            reason = "compacted" if revision <= self.floor else "future"
            return CompactRefused(self.revision, self.floor, reason)
        self.floor = revision
        return Compacted(self.revision, revision)

    def _raise(self, command: RaiseFeatureLevel, alone: bool) -> Result:
        reason, blocking = "", tuple(m for m in self.members if command.versions.get(m, -1) < command.level)
        if not alone or not 1 <= len(command.cluster_id) <= 64:
            reason, blocking = "invalid", ()
        elif command.level != self.level + 1:
            reason, blocking = "order", ()
        elif not self.members:
            reason = "members"
        elif blocking:
            reason = "blocked"
        if reason:
            return FeatureLevelRefused(len(self.history), self.level, reason, blocking)
        self.level = command.level
        if self.level == 2:
            self.cluster_id = command.cluster_id
        if self.level == 4:
            self.history.append((b"", None))
            self.floor = self.revision
        return FeatureLevelRaised(len(self.history), self.level)

    def _session(self, client_id: str, sequence: int, what: tuple[object, ...]) -> ModelSession | Result | str:
        mine = [session for session in self.sessions if session.client_id == client_id]
        if not mine:
            return self._open(client_id) if sequence == 1 and not self._was_ended(client_id) else "unknown"
        session = mine[0]
        self.sessions.remove(session)
        self.sessions.append(session)
        session.last_used_ms = self.time_ms
        highest = max(session.applied)
        if sequence > highest + self.window:
            return "ahead"
        if sequence <= highest - self.window:
            return "stale"
        if sequence not in session.applied:
            return session
        first, result = session.applied[sequence]
        return result if first == what else "mismatch"

    def _open(self, client_id: str) -> ModelSession | str:
        if len(self.sessions) == self.sessions_max:
            if self.time_ms - self.sessions[0].last_used_ms <= self.idle_ms:
                return "full"
            del self.sessions[0]
        self.ended = [(each, ended_ms) for each, ended_ms in self.ended if each != client_id]
        session = ModelSession(client_id, self.time_ms)
        self.sessions.append(session)
        return session

    def _was_ended(self, client_id: str) -> bool:
        return any(each == client_id and self.time_ms - ended_ms <= self.idle_ms for each, ended_ms in self.ended)

    def _end(self, client_id: str) -> Result:
        revision, mine = len(self.history), [each for each in self.sessions if each.client_id == client_id]
        if self.level < 3:
            return SessionRefused(revision, "invalid")
        if not mine:
            return SessionEnded(revision) if self._was_ended(client_id) else SessionRefused(revision, "unknown")
        if self.ended and self.time_ms - self.ended[0][1] > self.idle_ms:
            del self.ended[0]
        if len(self.ended) == self.ended_max:
            return SessionRefused(revision, "full")
        self.sessions.remove(mine[0])
        self.ended.append((client_id, self.time_ms))
        return SessionEnded(revision)

    def _change(self, command: Command) -> Result:
        old = self.get(command.key)
        mod_revision = old.mod_revision if old else 0
        if command.prev_revision not in (-1, mod_revision):
            return CompareFailed(len(self.history), mod_revision)
        if isinstance(command, Put):
            self.history.append((command.key, command.value))
            new = self.get(command.key)
            assert new is not None
            return PutResult(len(self.history), new.create_revision, new.mod_revision, new.version)
        if old is None:
            return DeleteResult(len(self.history), 0)
        self.history.append((command.key, None))
        return DeleteResult(len(self.history), 1)
