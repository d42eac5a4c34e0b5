"""A naive model of leases, written from their rules: everything is looked for in lists, nothing is kept up."""

from __future__ import annotations

from typing import NamedTuple

from kvorum.kv.commands import (
    BatchCommand,
    Delete,
    DeleteResult,
    LeaseGrant,
    LeaseGranted,
    LeaseRefused,
    LeaseRenew,
    LeaseRenewed,
    LeaseRevoke,
    LeaseRevoked,
    Put,
    PutResult,
    Result,
    SessionRefused,
    Txn,
    TxnRefused,
    TxnResult,
)
from kvorum.kv.operations import LeasedPutOp, PutOp, PutOpResult


class ModelRecord(NamedTuple):
    """The latest version of a key."""

    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class ModelLease(NamedTuple):
    """A lease; times in ms."""

    ttl_s: int
    delay_s: int
    deadline_ms: int


class LeaseModel:
    """Keys and leases after every entry so far; the history is the records at each revision."""

    def __init__(self, leases_max: int, keys_max: int, expiry_max: int) -> None:
        self.leases_max, self.keys_max, self.expiry_max = leases_max, keys_max, expiry_max
        self.level = 4
        self.revision = 1
        self.time_ms = 0
        self.records: dict[bytes, ModelRecord] = {}
        self.leases: dict[int, ModelLease] = {}
        self.history: dict[int, dict[bytes, ModelRecord]] = {1: {}}

    def keys(self, lease: int) -> list[bytes]:
        """Return the keys of a lease in order."""
        return sorted(key for key, record in self.records.items() if record.lease == lease)

    def next_due_ms(self) -> int | None:
        """Return when the next lease is due."""
        return min((each.deadline_ms + each.delay_s * 1000 for each in self.leases.values()), default=None)

    def apply(self, time_ms: int, *commands: BatchCommand) -> list[Result]:
        """Apply an entry: its commands at the time before, then what is due at its own."""
        now_ms = max(time_ms, self.time_ms)
        results = [self._command(command, now_ms) for command in commands]
        self.time_ms = now_ms
        due = [
            (each.deadline_ms + each.delay_s * 1000, id)
            for id, each in self.leases.items()
            if each.deadline_ms + each.delay_s * 1000 <= now_ms
        ]
        size = 0
        for _, id in sorted(due):
            size += 1 + len(self.keys(id))
            if size > self.expiry_max and size > 1 + len(self.keys(id)):
                break
            self._end(id)
        return results

    def _lives(self, id: int) -> bool:
        return id in self.leases and self.time_ms < self.leases[id].deadline_ms

    def _end(self, id: int) -> int:
        keys = self.keys(id)
        for key in keys:
            del self.records[key]
        del self.leases[id]
        if keys:
            self.revision += 1
            self._note()
        return len(keys)

    def _note(self) -> None:
        self.history[self.revision] = dict(self.records)

    def _command(self, command: BatchCommand, now_ms: int) -> Result:
        match command:
            case Put(key, value):
                done = self._put(key, value, 0)
                return PutResult(self.revision, done.create_revision, self.revision, done.version)
            case Delete(key):
                if key not in self.records:
                    return DeleteResult(self.revision, 0)
                del self.records[key]
                self.revision += 1
                self._note()
                return DeleteResult(self.revision, 1)
            case Txn(then=operations):
                return self._txn([each for each in operations if isinstance(each, PutOp)])
            case LeaseGrant() | LeaseRenew() | LeaseRevoke() if self.level < 5:
                return SessionRefused(self.revision, "invalid")
            case LeaseGrant(id, ttl_s, delay_s):
                if id in self.leases:
                    return LeaseRefused(self.revision, "exists")
                if len(self.leases) == self.leases_max:
                    return LeaseRefused(self.revision, "too_many")
                ttl_s = max(ttl_s, 2)
                self.leases[id] = ModelLease(ttl_s, delay_s, now_ms + ttl_s * 1000)
                return LeaseGranted(self.revision, ttl_s)
            case LeaseRenew(id):
                if not self._lives(id):
                    return LeaseRefused(self.revision, "not_found")
                lease = self.leases[id]
                self.leases[id] = lease._replace(deadline_ms=now_ms + lease.ttl_s * 1000)
                return LeaseRenewed(self.revision, lease.ttl_s)
            case LeaseRevoke(id):
                if id not in self.leases:
                    return LeaseRefused(self.revision, "not_found")
                deleted = self._end(id)
                return LeaseRevoked(self.revision, deleted)
        raise AssertionError(command)

    def _txn(self, puts: list[PutOp]) -> Result:
        if self.level < 5 and any(isinstance(put, LeasedPutOp) for put in puts):
            return SessionRefused(self.revision, "invalid")
        leases: list[int] = []
        added: list[int] = []
        for put in puts:
            lease, old = 0, self.records.get(put.key)
            if isinstance(put, LeasedPutOp):
                if put.ignore_lease and old is None:
                    return TxnRefused(self.revision, "key_not_found", put.key, 0)
                lease = old.lease if put.ignore_lease and old is not None else put.lease
            if lease and not self._lives(lease):
                return TxnRefused(self.revision, "lease_not_found", put.key, lease)
            if lease and (old is None or old.lease != lease):
                added.append(lease)
                if len(self.keys(lease)) + added.count(lease) > self.keys_max:
                    return TxnRefused(self.revision, "lease_full", put.key, lease)
            leases.append(lease)
        self.revision += bool(puts)
        results = []
        for put, lease in zip(puts, leases, strict=True):
            self.revision -= 1
            done = self._put(put.key, put.value, lease)
            results.append(PutOpResult(self.revision, done.create_revision, done.version))
        return TxnResult(self.revision, True, 0, tuple(results))

    def _put(self, key: bytes, value: bytes, lease: int) -> ModelRecord:
        old = self.records.get(key)
        self.revision += 1
        created, version = (self.revision, 0) if old is None else (old.create_revision, old.version)
        self.records[key] = ModelRecord(value, created, self.revision, version + 1, lease)
        self._note()
        return self.records[key]
