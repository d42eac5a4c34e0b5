"""The replicated state machine: the same entries make the same state and the same answers on every node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from kvorum import __version__
from kvorum.errors import (
    InvariantViolatedError,
    RevisionCompactedError,
    RevisionInFutureError,
    SessionError,
    VersionTooOldError,
)
from kvorum.kv.commands import (
    ANY_REVISION,
    MUST_NOT_EXIST,
    Batch,
    BatchCommand,
    Command,
    Compact,
    Compacted,
    CompactRefused,
    CompareFailed,
    Delete,
    DeleteResult,
    EndSession,
    FeatureLevelRaised,
    FeatureLevelRefused,
    HandedOver,
    HandedOverDone,
    LeaseCommand,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    NoSpace,
    OpenOrigin,
    OriginOpened,
    OriginRefused,
    Put,
    PutResult,
    QuotaSet,
    RaiseFeatureLevel,
    Result,
    SessionEnded,
    SessionRefused,
    SetQuota,
    Txn,
    TxnRefused,
    TxnResult,
    Write,
    decode_batch,
    unknown_part,
)
from kvorum.kv.features import (
    END_SESSION_LEVEL,
    FIRST_LEVEL,
    HANDOVER_LEVEL,
    HISTORY_LEVEL,
    LEASE_LEVEL,
    QUOTA_LEVEL,
    STATE_HASH_LEVEL,
    blockers,
    check_supported,
)
from kvorum.kv.frames import FORMAT_OF_LEVEL_1, FORMAT_WITH_FEATURES, Features, Header, OriginsFrame, QuotaFrame
from kvorum.kv.lease_commands import LeaseResult, expire, run_lease_command
from kvorum.kv.leases import Leases, is_possible
from kvorum.kv.limits import (
    BATCH_COMMANDS_MAX,
    CLIENT_ID_CHARS_MAX,
    CLUSTER_ID_BYTES_MAX,
    INTEGER_MAX,
    KEY_BYTES_MAX,
    QUOTA_BYTES_MIN,
    RECORD_OVERHEAD_BYTES,
    VALUE_BYTES_MAX,
)
from kvorum.kv.origins import UNKNOWN, Origins
from kvorum.kv.quota import SOURCES, Quota, quota_error, resume_bytes
from kvorum.kv.records import Record
from kvorum.kv.sessions import AHEAD, FULL, MISMATCH, STALE, Remembered, Session, Sessions, fingerprint
from kvorum.kv.snapshot_iterator import SnapshotIterator
from kvorum.kv.state_hash import (
    SLICE_BYTES,
    SLICE_KEYS,
    STATE_SUM_BYTES,
    Changes,
    Mismatch,
    RecordSum,
    StateDigest,
    next_hash_of_level_1,
)
from kvorum.kv.txn import PLAN_OF_PUTS, Plan, plan_transaction, run_transaction
from kvorum.kv.txn_check import has_lease, has_put, has_valid_session, is_valid, only_puts
from kvorum.kv.versions import Pin, Versions
from kvorum.raft.membership import decode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind

INVALID = "invalid"
COMPACTED = "compacted"
FUTURE = "future"
_WRITES = (Put, Delete)
_REFUSALS_THAT_USE_A_SESSION = (AHEAD, STALE, MISMATCH)


class Store:
    """The key-value state after ``applied_index``.

    Attributes:
        revision: counts the mutations that changed something, over the whole cluster and all time. The raise to
            feature level 4 takes one, too: so it is 1 in an empty cluster that was never below that level.
        versions: the versions of all keys (:mod:`kvorum.kv.versions`). They are changed here and nowhere else.
        applied_index: the log index of the last entry applied.
        applied_term: its term.
        leases: the leases (:mod:`kvorum.kv.leases`). They are changed by applying and nowhere else.
        state_hash: 64 bits over every entry so far; equal on all nodes at the same index
            (:mod:`kvorum.kv.state_hash`).
        time_ms: the log's time: the highest ``time_ms`` of any batch so far (Unix, ms).
        feature_level: the level in force for the next entry (:mod:`kvorum.kv.features`).
        configuration: the members at ``applied_index``; empty before the first configuration.
        cluster_id: the key of the sum over the records; empty below level 2.
        quota: the quota on data, and whether puts are refused because of it (:mod:`kvorum.kv.quota`).
        given_way: how often the history gave way to the quota since this object was made; no part of the state.
        mismatch: the restored records do not have the sum that their snapshot carries: it was taken of a state that
            memory had changed. The store is usable, and its sum is that of its records.
    """

    __slots__ = (
        "__weakref__",
        "_changes",
        "_handed_over",
        "_iterator",
        "_origins",
        "_sessions",
        "applied_index",
        "applied_term",
        "cluster_id",
        "configuration",
        "feature_level",
        "given_way",
        "leases",
        "mismatch",
        "quota",
        "revision",
        "state_hash",
        "time_ms",
        "versions",
    )

    def __init__(self) -> None:
        self.revision = 0
        self.applied_index = 0
        self.applied_term = 0
        self.state_hash = 0
        self.time_ms = 0
        self.feature_level = FIRST_LEVEL
        self.configuration = Configuration()
        self.cluster_id = ""
        self.given_way = 0
        self.mismatch: Mismatch | None = None
        self.quota = Quota()
        self._changes: Changes | None = None
        self.versions = Versions()
        self.leases = Leases()
        self._sessions = Sessions()
        self._origins = Origins()
        self._handed_over: list[tuple[HandedOver, HandedOverDone]] = []
        self._iterator: SnapshotIterator | None = None

    @classmethod
    def restored(
        cls,
        header: Header,
        features: Features | None,
        record_sum: RecordSum | None,
        configuration: Configuration,
        versions: Versions,
        leases: Leases,
        sessions: Sessions,
        quota: Quota,
        origins: Origins,
    ) -> Store:
        """Return the store that a snapshot describes; the parts become its own. Use the Restorer, which verifies.

        Args:
            header: the store's numbers.
            features: its feature level and what depends on that; None at level 1.
            record_sum: the sum over the latest versions; None at level 1.
            configuration: the members at ``header.applied_index``.
            versions: the versions of all keys.
            leases: the leases, with their keys.
            sessions: the sessions.
            quota: the quota on data.
            origins: which writes of the members were applied.
        """
        store = cls()
        store.revision = header.revision
        store.applied_index = header.applied_index
        store.applied_term = header.applied_term
        store.state_hash = header.state_hash
        store.time_ms = header.time_ms
        store.configuration = configuration
        if features is not None:
            store.feature_level = features.level
            store.cluster_id = features.cluster_id
        if record_sum is not None:
            store._changes = Changes(record_sum)
        store.versions = versions
        store.leases = leases
        leases.time_ms = header.time_ms
        store._sessions = sessions
        store.quota = quota
        store._origins = origins
        return store

    def give_up(self) -> Store:
        """Drop all records, leases and sessions; return a store that holds nothing and has the same numbers.

        Nothing can be applied to either of them. No snapshot iterator may be open.
        """
        left = Store()
        # By convention, the data is in these two and the private attributes, and the others are numbers or the like.
        for name in self.__slots__:
            if not name.startswith("_") and name not in ("versions", "leases"):
                setattr(left, name, getattr(self, name))
        left.versions.floor = self.versions.floor
        # Whoever still has this store must not keep what it held.
        self.versions, self.leases, self._sessions = Versions(), Leases(), Sessions()
        self._origins, self._handed_over, self._changes = Origins(), [], None
        return left

    def bump_revision(self, by: int) -> None:
        """Go on at a higher revision, as a restored backup does that begins a new cluster.

        From level 4 on the history begins there: an earlier revision, which may mean something else to clients of the
        old cluster, is refused as compacted.
        """
        self.revision += by
        if self.feature_level >= HISTORY_LEVEL:
            self.versions.set_floor(self.revision)

    def __len__(self) -> int:
        """How many keys exist."""
        return len(self.versions.records)

    @property
    def used_bytes(self) -> int:
        """What the state takes, as the quota counts it: the same on every node, and about what it takes in memory."""
        return self.kept_bytes + self.versions.history_bytes

    @property
    def kept_bytes(self) -> int:
        """What keys, leases and sessions take: :attr:`used_bytes` without the history, which gives way to them."""
        return self.versions.record_bytes + self.leases.used_bytes + self._sessions.used_bytes

    @property
    def counted_bytes(self) -> int:
        """:attr:`used_bytes` for people and metrics: without history that the quota makes give way to the next write.

        Near the quota the floor is raised as far as it can be, which is to the present revision. What the last write
        itself has replaced or deleted is above that, and is only freed by the next one, however much it is. No
        decision of the state machine may depend on this.
        """
        return self.kept_bytes + self.counted_history_bytes

    @property
    def counted_history_bytes(self) -> int:
        """The history in :attr:`counted_bytes`."""
        limit_bytes = self.quota.limit_bytes
        if limit_bytes and self.floor >= self.revision and self.used_bytes > resume_bytes(limit_bytes):
            return 0
        return self.history_bytes

    @property
    def history_bytes(self) -> int:
        """The part of :attr:`used_bytes` that compaction can free: 0 below level 4."""
        return self.versions.history_bytes

    @property
    def history_events(self) -> int:
        """How many puts and deletes the history has, from the floor on: 0 below level 4."""
        return self.versions.history_events

    @property
    def floor(self) -> int:
        """The lowest revision that can be read: the latest one below level 4."""
        return self.versions.floor or self.revision

    @property
    def data_bytes(self) -> int:
        """The bytes of all keys and values; of each key the latest value."""
        return self.versions.record_bytes - RECORD_OVERHEAD_BYTES * len(self)

    def check_room(self, command: Write | LeaseGrant) -> None:
        """Refuse what the leader does not propose for lack of room: a put, a grant, or a delete that opens a session.

        A transaction counts as a put if any of its branches has one. A put or a grant would be refused if it were
        applied now, and such a delete would be done. But the session that it opens would take more than a small key
        frees, and for an hour after its end as well.

        Raises:
            NoSpaceError: the data takes more than the quota; nothing was done.
            SessionError: the same, for a delete, which needs no room without a session; nothing was done.
        """
        if not self.quota.is_full:
            return
        if isinstance(command, LeaseGrant):
            raise quota_error(self.quota.limit_bytes, self.kept_bytes)
        if not self._is_new(command):
            return
        if isinstance(command, Put) or (isinstance(command, Txn) and has_put(command)):
            raise quota_error(self.quota.limit_bytes, self.kept_bytes)
        if command.client_id and command.client_id not in self._sessions:
            raise SessionError(
                "sessions_full",
                f"the data takes {self.kept_bytes} of {self.quota.limit_bytes} bytes, above its quota, and another "
                "session would take more: delete without a session (an idempotency key)",
                FULL,
                self.revision,
            )

    @property
    def origins(self) -> Origins:
        """Which writes of the members were applied. Only apply may change it."""
        return self._origins

    @property
    def handed_over(self) -> Sequence[tuple[HandedOver, HandedOverDone]]:
        """What the last entry carried that a member handed over, and that was applied; with the results."""
        return self._handed_over

    def keep_members(self, configuration: Configuration) -> None:
        """Let these be the members, as a restored backup does that begins a new cluster."""
        self.configuration = configuration
        self._origins.keep(frozenset(member.id for member in configuration.members))

    @property
    def session_count(self) -> int:
        """How many sessions are remembered."""
        return len(self._sessions)

    def has_session(self, client_id: str) -> bool:
        """Tell whether a session of this client is remembered."""
        return client_id in self._sessions

    def has_ended_session(self, client_id: str) -> bool:
        """Tell whether this client ended its session, and its id is on the list of those that did."""
        return self._sessions.has_ended(client_id)

    def get(self, key: bytes, revision: int = 0) -> Record | None:
        """Return the version of a key at a revision, or None if the key did not exist then.

        Args:
            key: the key.
            revision: from :attr:`floor` to the latest one; 0: the latest one.

        Raises:
            RevisionCompactedError: the revision is below the floor.
            RevisionInFutureError: the revision does not exist yet.
        """
        if not revision or revision == self.revision:
            return self.versions.records.get(key)
        self.check_revision(revision)
        return self.versions.at(key, revision)

    def history(self, key: bytes, limit: int, revision: int = 0) -> list[Record]:
        """Return the versions of a key that can be read, and its deletes since the floor, the newest first.

        A delete has the ``version`` 0. The last one is what is visible at the floor, if the history goes back so far.

        Args:
            key: the key.
            limit: return so many at most.
            revision: leave out what is newer, from :attr:`floor` on; 0: nothing.

        Raises:
            RevisionCompactedError: the revision is below the floor.
            RevisionInFutureError: the revision does not exist yet.
        """
        self.check_revision(revision)
        return self.versions.history(key, limit, revision or self.revision)

    def check_revision(self, revision: int) -> None:
        """Refuse a revision that cannot be read; 0 stands for the latest one.

        Raises:
            RevisionCompactedError: it is below the floor.
            RevisionInFutureError: it does not exist yet.
        """
        if revision > self.revision:
            raise RevisionInFutureError(revision, self.revision)
        if revision and revision < self.floor:
            raise RevisionCompactedError(revision, self.floor, self.revision)

    def read_transaction(self, txn: Txn) -> TxnResult | TxnRefused:
        """Return what a valid transaction that only reads answers, or why it cannot."""
        plan = plan_transaction(txn, self)
        return plan if isinstance(plan, TxnRefused) else run_transaction(txn, plan, self)

    def pin(self, revision: int = 0, bytes_max: int | None = None) -> Pin:
        """Keep what is visible at a revision until the pin is released; 0: at the latest one.

        ``versions.at(key, pin.revision)`` reads it meanwhile, even if the history is compacted. A pin that holds back
        more than ``bytes_max`` of history is lost: see ``Pin.is_lost``.

        Raises:
            RevisionCompactedError: it is below the floor.
            RevisionInFutureError: it does not exist yet.
        """
        self.check_revision(revision)
        return self.versions.pin(revision or self.revision, bytes_max=bytes_max)

    def reclaim(self, budget: int) -> int:
        """Free memory of history that was compacted; see :meth:`Versions.reclaim`. Changes no part of the state."""
        return self.versions.reclaim(budget)

    def revision_to_free(self, bytes_to_free: int) -> int:
        """Return the lowest floor with which a compaction frees so many bytes, or the highest one if none does."""
        return self.versions.revision_to_free(bytes_to_free, self.revision) or self.revision

    @property
    def record_sum(self) -> RecordSum | None:
        """The sum over all records; None below level 2."""
        return None if self._changes is None else self._changes.records

    @property
    def state_sum(self) -> int | None:
        """The sum's value; None while it does not count, or below level 2."""
        records = self.record_sum
        return records.total if records is not None and records.is_counted else None

    @property
    def digest(self) -> StateDigest:
        """What other nodes compare with theirs at the same index."""
        changes = self._changes
        if changes is None:
            return StateDigest(1, self.state_hash)
        records = changes.records
        return StateDigest(2, self.state_hash, records.total if records.is_counted else None)

    def apply(self, entry: Entry) -> list[Result]:
        """Apply the next committed entry and return one result per command, in order.

        Raises:
            InvariantViolatedError: not the next entry, or damaged. No command was applied; the process ends.
            VersionTooOldError: a newer version wrote it. No command was applied; the process ends.
        """
        if entry.index != self.applied_index + 1 or entry.term < self.applied_term:
            raise InvariantViolatedError(
                f"entry {entry.index} of term {entry.term} does not follow {self.applied_index} of {self.applied_term}"
            )
        if self._handed_over:
            self._handed_over = []
        match entry.kind:
            case EntryKind.COMMAND:
                results = self._apply_batch(self._decode(entry), len(entry.data))
            case EntryKind.CONFIGURATION:
                self._apply_configuration(entry)
                results = []
            case EntryKind.NOOP:
                results = []
            case _:
                assert_never(entry.kind)
        self.applied_index = entry.index
        self.applied_term = entry.term
        if self._changes is None:
            self.state_hash = next_hash_of_level_1(self.state_hash, entry, results)
        else:
            self.state_hash = self._changes.next_hash(self.state_hash, entry, self.revision, self.time_ms)
        return results

    def begin_snapshot(self) -> SnapshotIterator:
        """Begin to write the state of this moment; the store goes on applying meanwhile. Close the iterator when done.

        It lists the ids of all leases and sessions, and the sessions that have ended; below level 4 also all keys. From
        then on each change costs what it preserves.

        Raises:
            InvariantViolatedError: another iterator is still open.
        """
        if self._iterator is not None:
            raise InvariantViolatedError("a snapshot is begun while another is being written")
        features = self._features()
        header = Header(
            format=FORMAT_OF_LEVEL_1 if features is None else FORMAT_WITH_FEATURES,
            revision=self.revision,
            applied_index=self.applied_index,
            applied_term=self.applied_term,
            state_hash=self.state_hash,
            time_ms=self.time_ms,
            keys=len(self),
            sessions=len(self._sessions),
        )
        self._iterator = SnapshotIterator(
            header,
            features,
            self._quota_frame(),
            OriginsFrame(self._origins.rows()) if self.feature_level >= HANDOVER_LEVEL else None,
            self.versions,
            self.leases if self.feature_level >= LEASE_LEVEL else None,
            self._sessions,
            self._end_snapshot,
        )
        return self._iterator

    def _end_snapshot(self) -> None:
        self._iterator = None

    def _features(self) -> Features | None:
        if self.feature_level == FIRST_LEVEL:
            return None
        state_sum = self.state_sum
        return Features(
            self.feature_level, self.cluster_id, b"" if state_sum is None else state_sum.to_bytes(STATE_SUM_BYTES)
        )

    def _quota_frame(self) -> QuotaFrame | None:
        if self.feature_level < QUOTA_LEVEL:
            return None
        return QuotaFrame(self.quota.limit_bytes, self.quota.configured_bytes, self.quota.is_full)

    def _decode(self, entry: Entry) -> Batch:
        try:
            return decode_batch(entry.data)
        except msgspec.DecodeError as error:
            unknown = unknown_part(entry.data)
            if unknown is None:
                raise InvariantViolatedError(f"the committed entry {entry.index} is not a batch: {error}") from error
            raise VersionTooOldError(
                f"the committed entry {entry.index} is not a batch that version {__version__} knows: it has {unknown}; "
                f"a newer version wrote it (the feature level is {self.feature_level}): start that version again"
            ) from error

    def _apply_configuration(self, entry: Entry) -> None:
        try:
            self.keep_members(decode_configuration(entry.data))
        except msgspec.DecodeError as error:
            raise InvariantViolatedError(
                f"the committed entry {entry.index} is not a configuration: {error}"
            ) from error
        if self._changes is not None:
            self._changes.configuration(self.configuration)

    def _apply_batch(self, batch: Batch, data_bytes: int) -> list[Result]:
        if batch.time_ms > self.time_ms:
            self.time_ms = batch.time_ms
        if len(batch.commands) > BATCH_COMMANDS_MAX:
            # One refusal per command: whoever waits for the n-th result finds it.
            results: list[Result] = [SessionRefused(self.revision, INVALID)] * len(batch.commands)
        else:
            # Only in a large batch can one of the values be too large.
            results = self._apply_commands(batch.commands, large=data_bytes > VALUE_BYTES_MAX)
        if self._changes is not None:
            expire(self, self._changes)
            self._judge_room(self._changes)
        return results

    def _apply_commands(self, commands: Sequence[BatchCommand], *, large: bool) -> list[Result]:
        results: list[Result] = []
        is_full = self.quota.is_full
        for command in commands:
            if not isinstance(command, _WRITES):
                if isinstance(command, HandedOver):
                    results.append(self._apply_handed_over(command, large=large))
                else:
                    results.append(self._apply_rare(command, is_alone=len(commands) == 1))
                continue
            # The limits come first: what passes one must not open a session, nor be remembered by one.
            if not 0 < len(command.key) <= KEY_BYTES_MAX or (large and _value_is_too_large(command)):
                result: Result = SessionRefused(self.revision, INVALID)
            elif is_full and isinstance(command, Put) and self._is_new(command):
                result = NoSpace(self.revision, self.quota.limit_bytes, self.kept_bytes)
            elif command.client_id:
                result = self._apply_once(command)
            elif isinstance(command, Put):
                result = self._put(command)
            else:
                result = self._delete(command)
            results.append(result)
        return results

    def _apply_handed_over(self, command: HandedOver, *, large: bool) -> HandedOverDone | OriginRefused:
        """Apply what a member handed over, unless its number was applied already."""
        is_possible = 1 <= command.number <= INTEGER_MAX and len(command.commands) <= BATCH_COMMANDS_MAX
        if self._changes is None or self.feature_level < HANDOVER_LEVEL or not is_possible:
            return OriginRefused(self.revision, INVALID)
        origin = self._origins.find(command.nonce)
        if origin is None:
            return OriginRefused(self.revision, UNKNOWN)
        refused = origin.take(command.number)
        if refused is not None:
            return OriginRefused(self.revision, refused)
        self._changes.handed_over(command.nonce, command.number)
        results = self._apply_commands(command.commands, large=large)
        done = HandedOverDone(self.revision, tuple(results))
        self._handed_over.append((command, done))
        return done

    def _open_origin(self, command: OpenOrigin) -> OriginOpened | OriginRefused:
        is_possible = 1 <= command.nonce <= INTEGER_MAX
        if self._changes is None or self.feature_level < HANDOVER_LEVEL or not is_possible:
            return OriginRefused(self.revision, INVALID)
        members = frozenset(member.id for member in self.configuration.members)
        refused = self._origins.open(command.member, command.nonce, command.replaces, members)
        if refused is not None:
            return OriginRefused(self.revision, refused)
        self._changes.origin(command.member, command.nonce)
        return OriginOpened(self.revision, command.nonce)

    def _judge_room(self, changes: Changes) -> None:
        """Decide whether puts are refused from now on. Near the quota the history gives way first, as far as needed."""
        quota, versions = self.quota, self.versions
        if quota.limit_bytes and versions.floor < self.revision and versions.history_bytes:
            floor = versions.revision_to_free(self.used_bytes - resume_bytes(quota.limit_bytes), self.revision)
            if floor > versions.floor:
                versions.set_floor(floor)
                changes.floor(floor)
                self.given_way += 1
        if quota.judge(self.kept_bytes):
            changes.quota(quota)

    def _apply_rare(
        self,
        command: Txn | EndSession | SetQuota | Compact | LeaseCommand | OpenOrigin | RaiseFeatureLevel,
        *,
        is_alone: bool,
    ) -> Result:
        match command:
            case Txn():
                return self._txn(command)
            case EndSession():
                return self._end_session(command)
            case SetQuota():
                return self._set_quota(command)
            case Compact():
                return self._compact(command)
            case LeaseGrant() | LeaseRenew() | LeaseRevoke():
                return self._change_lease(command)
            case OpenOrigin():
                return self._open_origin(command)
            case RaiseFeatureLevel():
                return self._raise_feature_level(command, is_alone=is_alone)
            case _:
                assert_never(command)

    def _is_new(self, command: Write) -> bool:
        """Tell whether a write is valid, and not the retry of one that was applied, or may have been."""
        client_id, sequence = command.client_id, command.sequence
        if not client_id:
            return True
        is_valid = len(client_id) <= CLIENT_ID_CHARS_MAX and sequence >= 1
        return is_valid and self._sessions.is_new(client_id, sequence, self.time_ms)

    def _apply_once(self, command: Write, plan: Plan | None = None) -> Result:
        """Apply a command of a session, unless it has been applied already. ``plan``: of a transaction that is new."""
        client_id = command.client_id
        sequence = command.sequence
        if len(client_id) > CLIENT_ID_CHARS_MAX or sequence < 1:
            return SessionRefused(self.revision, INVALID)
        mark = fingerprint(command)
        sessions, changes = self._sessions, self._changes
        found = sessions.find(client_id, sequence, mark, self.time_ms)
        if isinstance(found, Session):
            if changes is not None and sessions.evicted is not None:
                changes.eviction(sessions.evicted)
            sessions.evicted = None
            result: Remembered
            if isinstance(command, Put):
                result = self._put(command)
            elif isinstance(command, Delete):
                result = self._delete(command)
            else:
                assert plan is not None, "a new transaction is planned first"  # noqa: S101
                result = run_transaction(command, plan, self)
            found.remember(sequence, mark, result)
            if changes is not None:
                changes.session(client_id, found.highest, found.answer(sequence))
            return result
        if isinstance(found, str):
            if changes is not None and found in _REFUSALS_THAT_USE_A_SESSION:
                changes.session(client_id, 0, b"")
            return SessionRefused(self.revision, found)
        if changes is not None:
            changes.session(client_id, 0, b"")
        return found

    def _end_session(self, command: EndSession) -> SessionEnded | SessionRefused:
        if self._changes is None or self.feature_level < END_SESSION_LEVEL:
            return SessionRefused(self.revision, INVALID)
        ended = self._sessions.end(command.client_id, self.time_ms)
        if isinstance(ended, str):
            return SessionRefused(self.revision, ended)
        if ended:
            self._changes.end(command.client_id)
        return SessionEnded(self.revision)

    def _set_quota(self, command: SetQuota) -> QuotaSet | SessionRefused:
        is_possible = QUOTA_BYTES_MIN <= command.limit_bytes <= INTEGER_MAX and command.source in SOURCES
        if self._changes is None or self.feature_level < QUOTA_LEVEL or not is_possible:
            return SessionRefused(self.revision, INVALID)
        if self.quota.set(command.limit_bytes, command.source, self.used_bytes):
            self._changes.quota(self.quota)
        return QuotaSet(self.revision, self.quota.limit_bytes)

    def _put(self, command: Put) -> PutResult | CompareFailed:
        key = command.key
        prev_revision = command.prev_revision
        old = self.versions.records.get(key)
        if prev_revision != ANY_REVISION:
            mod_revision = MUST_NOT_EXIST if old is None else old.mod_revision
            if prev_revision != mod_revision:
                return CompareFailed(self.revision, mod_revision)
        revision = self.revision + 1
        new = self.set_record(key, command.value, revision, old)
        return PutResult(revision, new.create_revision, revision, new.version)

    def _delete(self, command: Delete) -> DeleteResult | CompareFailed:
        key = command.key
        old = self.versions.records.get(key)
        mod_revision = 0 if old is None else old.mod_revision
        if command.prev_revision not in (ANY_REVISION, mod_revision):
            return CompareFailed(self.revision, mod_revision)
        if old is None:
            return DeleteResult(self.revision, 0)
        self.remove_record(old, self.revision + 1)
        return DeleteResult(self.revision, 1)

    def _txn(self, command: Txn) -> Result:
        if self._changes is None or self.feature_level < HISTORY_LEVEL:
            return SessionRefused(self.revision, INVALID)
        is_plain = only_puts(command)
        if not (has_valid_session(command) if is_plain else is_valid(command)):
            return SessionRefused(self.revision, INVALID)
        if self.feature_level < LEASE_LEVEL and has_lease(command):
            return SessionRefused(self.revision, INVALID)
        if not self._is_new(command):
            return self._apply_once(command)
        # What is refused here must not open a session, nor be remembered by one.
        if self.quota.is_full and has_put(command):
            return NoSpace(self.revision, self.quota.limit_bytes, self.kept_bytes)
        plan = PLAN_OF_PUTS if is_plain else plan_transaction(command, self)
        if isinstance(plan, TxnRefused):
            return plan
        return self._apply_once(command, plan) if command.client_id else run_transaction(command, plan, self)

    def _change_lease(self, command: LeaseCommand) -> LeaseResult | NoSpace | SessionRefused:
        if self._changes is None or self.feature_level < LEASE_LEVEL:
            return SessionRefused(self.revision, INVALID)
        if isinstance(command, LeaseGrant):
            if not is_possible(command.id, command.ttl_s, command.delay_s):
                return SessionRefused(self.revision, INVALID)
            if self.quota.is_full:
                return NoSpace(self.revision, self.quota.limit_bytes, self.kept_bytes)
        return run_lease_command(command, self, self._changes)

    def set_record(self, key: bytes, value: bytes, revision: int, old: Record | None, lease: int = 0) -> Record:
        """Set a key, whose record is ``old``, at a revision, which is the store's from now on. Only apply may do it.

        ``lease``: the id of its lease, which exists; 0: it has none any more.
        """
        self.revision = revision
        new = self.versions.put(key, value, revision, old)
        if lease or (old is not None and old.lease):
            self._attach(new, 0 if old is None else old.lease, lease)
        if self._changes is not None:
            self._changes.put(key, old, new)
        return new

    def remove_record(self, old: Record, revision: int) -> None:
        """Remove a key, whose record is ``old``; otherwise as :meth:`set_record`."""
        self.revision = revision
        if old.lease:
            self.leases.detach(old.key, old.lease)
        self.versions.delete(old, revision)
        if self._changes is not None:
            self._changes.delete(old.key, old, revision)

    def _attach(self, record: Record, before: int, lease: int) -> None:
        """Give a record, whose key had the lease ``before``, its lease."""
        record.lease = lease
        if before == lease:
            return
        if before:
            self.leases.detach(record.key, before)
        if lease:
            self.leases.attach(record.key, lease)

    def _compact(self, command: Compact) -> Compacted | CompactRefused | SessionRefused:
        floor = self.versions.floor
        if self._changes is None or self.feature_level < HISTORY_LEVEL:
            return SessionRefused(self.revision, INVALID)
        if command.revision <= floor:
            return CompactRefused(self.revision, floor, COMPACTED)
        if command.revision > self.revision:
            return CompactRefused(self.revision, floor, FUTURE)
        self.versions.set_floor(command.revision)
        self._changes.floor(command.revision)
        return Compacted(self.revision, command.revision)

    def _raise_feature_level(
        self, command: RaiseFeatureLevel, *, is_alone: bool
    ) -> FeatureLevelRaised | FeatureLevelRefused:
        """Raise the level, or say why not. Whether *this* version supports it must not change the answer.

        Raises:
            VersionTooOldError: it is raised to a level that this version does not support. Nothing was applied.
        """
        present = self.feature_level
        level, cluster_id = command.level, command.cluster_id
        if not is_alone or not 0 < len(cluster_id.encode()) <= CLUSTER_ID_BYTES_MAX:
            return FeatureLevelRefused(self.revision, present, INVALID)
        if level != present + 1:
            return FeatureLevelRefused(self.revision, present, "order")
        if not self.configuration.members:
            return FeatureLevelRefused(self.revision, present, "members")
        blocking = blockers(level, self.configuration, command.versions)
        if blocking:
            return FeatureLevelRefused(self.revision, present, "blocked", blocking)
        check_supported(level, f"the committed entry {self.applied_index + 1}")
        self.feature_level = level
        if self._changes is None and level >= STATE_HASH_LEVEL:
            self.cluster_id = cluster_id
            self._changes = Changes(self._first_sum(cluster_id))
        if self._changes is not None:
            self._changes.level(level)
        if level == HISTORY_LEVEL:
            self.revision += 1
            self.versions.set_floor(self.revision)
        return FeatureLevelRaised(self.revision, level)

    def _first_sum(self, cluster_id: str) -> RecordSum:
        """Return the sum of the records; of more than a slice it does not count before the first sweep."""
        is_counted = len(self) <= SLICE_KEYS and self.versions.record_bytes <= SLICE_BYTES
        record_sum = RecordSum(cluster_id, is_counted)
        if is_counted:
            for key, record in self.versions.records.items():
                record_sum.add(key, record)
        return record_sum


def _value_is_too_large(command: Command) -> bool:
    return isinstance(command, Put) and len(command.value) > VALUE_BYTES_MAX
