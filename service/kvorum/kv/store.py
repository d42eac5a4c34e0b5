"""The replicated state machine: the same entries make the same state and the same answers on every node."""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import assert_never
from zlib import crc32

import msgspec

from kvorum.errors import InvariantViolated
from kvorum.kv.commands import (
    ANY_REVISION,
    MUST_NOT_EXIST,
    Batch,
    Command,
    CompareFailed,
    Delete,
    DeleteResult,
    Put,
    PutResult,
    Result,
    SessionRefused,
    decode_batch,
)
from kvorum.kv.cut import SnapshotCut
from kvorum.kv.frames import Header
from kvorum.kv.limits import BATCH_COMMANDS_MAX, CLIENT_ID_CHARS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX
from kvorum.kv.records import Record
from kvorum.kv.sessions import Session, Sessions, fingerprint
from kvorum.raft.messages import Entry, EntryKind

INVALID = "invalid"
NO_CUT = -1
"""A revision below every record's: no record belongs to a cut."""

_results_encoder = msgspec.msgpack.Encoder()
_pack_entry = Struct(">QQQBQI").pack


class Store:
    """The key-value state after ``applied_index``.

    Attributes:
        revision: counts the mutations that changed something, over the whole cluster and all time.
        applied_index: the log index of the last entry applied.
        applied_term: its term.
        state_hash: 64 bits over every entry and every result so far; equal on all nodes at the same index.
        time_ms: the log's time: the highest ``time_ms`` of any batch so far (Unix, ms).
    """

    __slots__ = (
        "_cut",
        "_cut_revision",
        "_records",
        "_sessions",
        "_shadow",
        "applied_index",
        "applied_term",
        "revision",
        "state_hash",
        "time_ms",
    )

    def __init__(self) -> None:
        self.revision = 0
        self.applied_index = 0
        self.applied_term = 0
        self.state_hash = 0
        self.time_ms = 0
        self._records: dict[bytes, Record] = {}
        self._sessions = Sessions()
        self._cut: SnapshotCut | None = None
        self._cut_revision = NO_CUT
        self._shadow: dict[bytes, Record] = {}

    @classmethod
    def restored(cls, header: Header, records: dict[bytes, Record], sessions: Sessions) -> Store:
        """Return the store that a snapshot describes; the parts become its own. Use the Restorer, which verifies."""
        store = cls()
        store.revision = header.revision
        store.applied_index = header.applied_index
        store.applied_term = header.applied_term
        store.state_hash = header.state_hash
        store.time_ms = header.time_ms
        store._records = records
        store._sessions = sessions
        return store

    def __len__(self) -> int:
        """How many keys exist."""
        return len(self._records)

    @property
    def session_count(self) -> int:
        """How many sessions are remembered."""
        return len(self._sessions)

    def get(self, key: bytes) -> Record | None:
        """Return the key's latest version, or None if the key does not exist."""
        return self._records.get(key)

    def apply(self, entry: Entry) -> list[Result]:
        """Apply the next committed entry and return one result per command, in order.

        Raises:
            InvariantViolated: not the next entry, or its data is not a batch. Nothing was applied; the process ends.
        """
        if entry.index != self.applied_index + 1 or entry.term < self.applied_term:
            raise InvariantViolated(
                f"entry {entry.index} of term {entry.term} does not follow {self.applied_index} of {self.applied_term}"
            )
        match entry.kind:
            case EntryKind.COMMAND:
                try:
                    batch = decode_batch(entry.data)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise InvariantViolated(f"the committed entry {entry.index} is not a batch: {error}") from error
                results = self._apply_batch(batch, len(entry.data))
            case EntryKind.NOOP | EntryKind.CONFIGURATION:
                results = []
            case _:
                assert_never(entry.kind)
        self.applied_index = entry.index
        self.applied_term = entry.term
        self.state_hash = _next_state_hash(self.state_hash, entry, results)
        return results

    def begin_snapshot(self) -> SnapshotCut:
        """Begin to write the state of this moment; the store goes on applying meanwhile. Close the cut when done.

        Costs a list of all keys, and nothing per record.

        Raises:
            InvariantViolated: another cut is still open.
        """
        if self._cut is not None:
            raise InvariantViolated("a snapshot is begun while another is being written")
        header = Header(
            revision=self.revision,
            applied_index=self.applied_index,
            applied_term=self.applied_term,
            state_hash=self.state_hash,
            time_ms=self.time_ms,
            keys=len(self._records),
            sessions=len(self._sessions),
        )
        self._shadow = {}
        self._cut_revision = self.revision
        self._cut = SnapshotCut(header, self._records, self._shadow, self._sessions, self._end_snapshot)
        return self._cut

    def _end_snapshot(self) -> None:
        self._cut = None
        self._cut_revision = NO_CUT
        self._shadow = {}

    def _apply_batch(self, batch: Batch, data_bytes: int) -> list[Result]:
        if batch.time_ms > self.time_ms:
            self.time_ms = batch.time_ms
        commands = batch.commands
        results: list[Result] = []
        if len(commands) > BATCH_COMMANDS_MAX:
            # One refusal per command: whoever waits for the n-th result finds it.
            results.extend([SessionRefused(self.revision, INVALID)] * len(commands))
            return results
        large = data_bytes > VALUE_BYTES_MAX  # only then can one of the values be too large
        for command in commands:
            # The limits come first: what passes one must not open a session, nor be remembered by one.
            if not 0 < len(command.key) <= KEY_BYTES_MAX or (large and _value_is_too_large(command)):
                result: Result = SessionRefused(self.revision, INVALID)
            elif command.client_id:
                result = self._apply_once(command)
            elif isinstance(command, Put):
                result = self._put(command)
            else:
                result = self._delete(command)
            results.append(result)
        return results

    def _apply_once(self, command: Command) -> Result:
        """Apply a command of a session, unless it has been applied already."""
        client_id = command.client_id
        sequence = command.sequence
        if len(client_id) > CLIENT_ID_CHARS_MAX or sequence < 1:
            return SessionRefused(self.revision, INVALID)
        mark = fingerprint(command)
        found = self._sessions.find(client_id, sequence, mark, self.time_ms)
        if isinstance(found, Session):
            result = self._put(command) if isinstance(command, Put) else self._delete(command)
            found.remember(sequence, mark, result)
            return result
        if isinstance(found, str):
            return SessionRefused(self.revision, found)
        return found

    def _put(self, command: Put) -> PutResult | CompareFailed:
        key = command.key
        prev_revision = command.prev_revision
        old = self._records.get(key)
        if old is None:
            if prev_revision != ANY_REVISION and prev_revision != MUST_NOT_EXIST:
                return CompareFailed(self.revision, 0)
            self.revision = revision = create_revision = self.revision + 1
            version = 1
        else:
            mod_revision = old.mod_revision
            if prev_revision != ANY_REVISION and prev_revision != mod_revision:
                return CompareFailed(self.revision, mod_revision)
            if mod_revision <= self._cut_revision:
                self._shadow[key] = old
            self.revision = revision = self.revision + 1
            create_revision = old.create_revision
            version = old.version + 1
        self._records[key] = Record(command.value, create_revision, revision, version)
        return PutResult(revision, create_revision, revision, version)

    def _delete(self, command: Delete) -> DeleteResult | CompareFailed:
        key = command.key
        old = self._records.get(key)
        mod_revision = 0 if old is None else old.mod_revision
        if command.prev_revision not in (ANY_REVISION, mod_revision):
            return CompareFailed(self.revision, mod_revision)
        if old is None:
            return DeleteResult(self.revision, 0)
        if mod_revision <= self._cut_revision:
            self._shadow[key] = old
        self.revision += 1
        del self._records[key]
        return DeleteResult(self.revision, 1)


def _value_is_too_large(command: Command) -> bool:
    return isinstance(command, Put) and len(command.value) > VALUE_BYTES_MAX


def _next_state_hash(previous: int, entry: Entry, results: list[Result]) -> int:
    """Return the state hash after an entry: a chain over what was asked and over everything that was answered.

    The data enters by its length and CRC: the log's own checksums guard its bytes, and hashing them again would cost
    as much as applying them. The results enter in full, since they show what the state machine made of the data. So a
    change of a result's encoding changes the hash, and nodes of both versions must not be compared meanwhile.
    """
    data = entry.data
    digest = blake2b(_pack_entry(previous, entry.index, entry.term, entry.kind, len(data), crc32(data)), digest_size=8)
    if results:
        digest.update(_results_encoder.encode(results))
    return int.from_bytes(digest.digest(), "big")
