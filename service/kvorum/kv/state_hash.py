"""The state hash: what nodes compare to find that one of them applied something else, or that its memory changed.

Two definitions exist, one below feature level 2 and one from it on. Hashes of two definitions are never compared.

*Below level 2*, :func:`next_hash_of_level_1`: a chain over each entry and the encoding of its results. A field added to
a result changes it, so nodes of two versions could not be compared.

*From level 2 on* there are two parts.

1. :class:`Changes`, a chain over what each entry changed: records by key, revisions and checksum of the value;
   sessions by the answer that they remember; leases by their deadlines and ends; the members; the level. It shows that
   nodes applied the same.
2. :class:`RecordSum`, the sum modulo 2^128 of a keyed hash of every live record. It is kept up with each change, from
   the records that memory holds, so it also depends on what a record has become since it was written. It is recomputed
   when a snapshot is restored and, slice by slice, by :class:`~kvorum.kv.sweep.StateSweep`. It shows that memory still
   holds what was applied. The raise to level 2 sums a small state at once, so that nothing can change unnoticed while a
   new cluster waits for its first sweep.

The hash of a record is BLAKE2b with 16 bytes of output over its revisions, the length and CRC-32 of its value, its
key, and its lease if it has one. Its own key is a cluster id, so that nobody can choose keys whose hashes cancel out
without knowing it. The value enters by its CRC: faults of memory are found as surely as by the CRCs of the log, and
hashing 1 MiB with BLAKE2b would cost more than the rest of a write. The cluster id is part of the state and stays what
it was when the level was raised to 2; a restored or recovered cluster keeps it, whatever its new id.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct
from zlib import crc32

import msgspec

from kvorum.kv.commands import Result
from kvorum.kv.quota import Quota
from kvorum.kv.records import Record
from kvorum.raft.messages import Configuration, Entry

SLICE_KEYS = 256
"""Keys that are summed in a step unless asked otherwise: less than a millisecond of work."""
SLICE_BYTES = 1024 * 1024
"""Bytes that are summed in a step unless asked otherwise: half a millisecond more."""
STATE_SUM_BYTES = 16
ENTRY_HASH_BYTES = 8
_SUM_MASK = (1 << 8 * STATE_SUM_BYTES) - 1

_results_encoder = msgspec.msgpack.Encoder()
_pack_entry_of_level_1 = Struct(">QQQBQI").pack
_pack_entry = Struct(">QQQBQQ").pack
_pack_logged_entry = Struct(">QQB").pack
_pack_record = Struct(">QQQII").pack
_pack_deletion = Struct(">QH").pack
_pack_session = Struct(">QH").pack
_pack_origin = Struct(">QH").pack
_pack_number = Struct(">QQ").pack
_pack_quota = Struct(">QQ?").pack
_pack_lease = Struct(">qQQQ").pack
_pack_lease_id = Struct(">q").pack
_pack_member = Struct(">?H").pack


def next_hash_of_level_1(previous: int, entry: Entry, results: Sequence[Result]) -> int:
    """Return the state hash after an entry, exactly as version 0.1.0 computes it.

    The data enters by its length and CRC: the log's own checksums guard its bytes, and hashing them again would cost
    as much as applying them. The results enter in full, since they show what the state machine made of the data.
    """
    data = entry.data
    digest = blake2b(
        _pack_entry_of_level_1(previous, entry.index, entry.term, entry.kind, len(data), crc32(data)), digest_size=8
    )
    if results:
        digest.update(_results_encoder.encode(results))
    return int.from_bytes(digest.digest(), "big")


def hash_of_entry(entry: Entry) -> int:
    """Return what two nodes compare of the entries that their logs hold at the same index."""
    digest = blake2b(
        _pack_logged_entry(entry.index, entry.term, entry.kind), digest_size=ENTRY_HASH_BYTES, person=b"kvorum.entry"
    )
    digest.update(entry.data)
    return int.from_bytes(digest.digest())


class StateDigest(msgspec.Struct, frozen=True, gc=False):
    """What two nodes compare of their states at the same index."""

    version: int
    """The definition of ``chain``: 1 below feature level 2, 2 from it on."""
    chain: int
    """The store's ``state_hash``."""
    records: int | None = None
    """The sum over all records; None: it does not count yet, or does not exist at this level."""
    entry: int | None = None
    """The hash of the log's entry at that index. None: it was not asked for, is not in memory, or is not told."""

    def contradicts(self, other: StateDigest) -> bool:
        """Tell whether two nodes with these digests differ. What only one of them has is not compared."""
        if self.version != other.version:
            return False
        if self.chain != other.chain:
            return True
        return self.records is not None and other.records is not None and self.records != other.records


class Mismatch(msgspec.Struct, frozen=True):
    """The records in memory are not those that were applied, or the sum kept of them is wrong.

    Nobody can tell from here which of the two it is. The store's sum is now ``found``, the sum of what memory holds, so
    the other members can be asked for theirs at ``index``: if a majority of them has another one, the records are
    wrong.
    """

    index: int
    """The store's ``applied_index`` when it was found."""
    expected: int
    """The sum that was kept up with every change."""
    found: int
    """The sum of the records."""


class RecordSum:
    """The sum of the hashes of all live records, and the sum of a sweep that is under way.

    A sweep visits the keys in order. So a record belongs to what was swept already if its key is not above the cursor.

    Attributes:
        total: the sum, modulo 2^128. It counts only if ``is_counted``.
        sweep_cursor: the last key that the sweep has visited, empty at its beginning; None: no sweep is under way.
        is_counted: whether ``total`` covers all records. In a state of more than a slice it does not between the raise
            to level 2 and the end of the first sweep, because summing everything at once would stall the node.
    """

    __slots__ = ("_keyed", "_sweep_total", "is_counted", "sweep_cursor", "total")

    def __init__(self, cluster_id: str, is_counted: bool) -> None:
        self._keyed = blake2b(digest_size=STATE_SUM_BYTES, key=cluster_id.encode(), person=b"kvorum.record")
        self.total = 0
        self.is_counted = is_counted
        self._sweep_total = 0
        self.sweep_cursor: bytes | None = None

    def hash_of(self, key: bytes, record: Record) -> bytes:
        """Return the hash of one record."""
        value = record.value
        digest = self._keyed.copy()
        digest.update(
            _pack_record(record.create_revision, record.mod_revision, record.version, len(value), crc32(value)) + key
        )
        if record.lease:
            # The hash of a record without a lease stays what it was before there were any.
            digest.update(_pack_lease_id(record.lease))
        return digest.digest()

    def replace(self, key: bytes, old: Record | None, new: Record | None) -> bytes:
        """Take note that a key's record was replaced, created or deleted; return the hash of the new one, if any."""
        digest = b""
        change = 0
        if new is not None:
            digest = self.hash_of(key, new)
            change = int.from_bytes(digest, "big")
        if old is not None:
            change -= int.from_bytes(self.hash_of(key, old), "big")
        self.total = (self.total + change) & _SUM_MASK
        if self.sweep_cursor is not None and key <= self.sweep_cursor:
            self._sweep_total = (self._sweep_total + change) & _SUM_MASK
        return digest

    def add(self, key: bytes, record: Record) -> None:
        """Count a record that is being restored."""
        self.total = (self.total + int.from_bytes(self.hash_of(key, record), "big")) & _SUM_MASK

    def begin_sweep(self) -> None:
        """Begin to sum anew."""
        self._sweep_total = 0
        self.sweep_cursor = b""

    def visit(self, key: bytes, record: Record | None) -> None:
        """Count a record in the sweep, if there is one; its key is the next one after the cursor."""
        self.sweep_cursor = key
        if record is not None:
            self._sweep_total = (self._sweep_total + int.from_bytes(self.hash_of(key, record), "big")) & _SUM_MASK

    def end_sweep(self) -> tuple[int, int]:
        """Adopt what the sweep found, since that is what memory holds; return the sum before, and what was found."""
        before, found = self.total, self._sweep_total
        if not self.is_counted:
            before = found
        self.total = found
        self.is_counted = True
        self.sweep_cursor = None
        return before, found


class Changes:
    """What the entry that is being applied changes, for the chain of level 2.

    Attributes:
        records: the sum over the records, which is kept up by the same calls.
    """

    __slots__ = ("_parts", "records")

    def __init__(self, records: RecordSum) -> None:
        self.records = records
        self._parts: list[bytes] = []

    def put(self, key: bytes, old: Record | None, new: Record) -> None:
        """A record was created or replaced."""
        self._parts.append(b"p" + self.records.replace(key, old, new))

    def delete(self, key: bytes, old: Record, revision: int) -> None:
        """A record was deleted; ``revision`` is the one of the deletion."""
        self.records.replace(key, old, None)
        self._parts.append(b"d" + _pack_deletion(revision, len(key)) + key)

    def floor(self, revision: int) -> None:
        """The history below a revision is forgotten."""
        self._parts.append(b"f" + revision.to_bytes(8))

    def session(self, client_id: str, highest: int, answer: bytes) -> None:
        """A session was used. ``highest``: its highest sequence; ``answer``: what it remembers now (empty: no more)."""
        name = client_id.encode()
        self._parts.append(b"s" + _pack_session(highest, len(name)) + name)
        self._parts.append(len(answer).to_bytes(1) + answer)

    def eviction(self, client_id: str) -> None:
        """A session gave way to a new one."""
        name = client_id.encode()
        self._parts.append(b"e" + len(name).to_bytes(2) + name)

    def end(self, client_id: str) -> None:
        """A session was ended by its client."""
        name = client_id.encode()
        self._parts.append(b"x" + len(name).to_bytes(2) + name)

    def quota(self, quota: Quota) -> None:
        """The quota changed, or whether the state is full."""
        self._parts.append(b"q" + _pack_quota(quota.limit_bytes, quota.configured_bytes, quota.is_full))

    def lease(self, id: int, ttl_s: int, delay_s: int, deadline_ms: int) -> None:
        """A lease was granted or renewed."""
        self._parts.append(b"g" + _pack_lease(id, ttl_s, delay_s, deadline_ms))

    def lease_end(self, id: int, *, is_expiry: bool) -> None:
        """A lease expired, or was revoked."""
        self._parts.append((b"y" if is_expiry else b"v") + _pack_lease_id(id))

    def origin(self, member: str, nonce: int) -> None:
        """A member opened a nonce."""
        name = member.encode()
        self._parts.append(b"o" + _pack_origin(nonce, len(name)) + name)

    def handed_over(self, nonce: int, number: int) -> None:
        """What was handed over under a number is applied now; what it changes follows."""
        self._parts.append(b"h" + _pack_number(nonce, number))

    def configuration(self, configuration: Configuration) -> None:
        """The members changed."""
        self._parts.append(b"c" + len(configuration.members).to_bytes(4))
        for member in configuration.members:
            name = member.id.encode()
            self._parts.append(_pack_member(member.voter, len(name)) + name)

    def level(self, level: int) -> None:
        """The feature level was raised."""
        self._parts.append(b"l" + level.to_bytes(4))

    def next_hash(self, previous: int, entry: Entry, revision: int, time_ms: int) -> int:
        """Return the hash after the entry, and be ready for the next one."""
        digest = blake2b(
            _pack_entry(previous, entry.index, entry.term, entry.kind, revision, time_ms),
            digest_size=8,
            person=b"kvorum.changes",
        )
        if self._parts:
            digest.update(b"".join(self._parts))
            self._parts.clear()
        return int.from_bytes(digest.digest(), "big")
