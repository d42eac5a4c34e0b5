"""One row of the log is one record; a record is one :class:`~kvorum.raft.messages.Save`.

Encoded, a record is a CRC-32 of its body (4 bytes, little-endian) and the body, a msgpack array. The body holds the CRC
of the record before it, so the rows are a chain: a row that is missing, doubled, moved or changed breaks it.

:class:`LogState` folds records into the log that they make, and :func:`recover` joins that log with a snapshot. Both
are pure, and both implementations of :class:`~kvorum.storage.interface.Storage` use them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import msgspec

from kvorum.errors import InvariantViolatedError, StorageCorruptError, StorageForeignError
from kvorum.raft.messages import Entry, HardState, NodeId, Save, Snapshot
from kvorum.storage.interface import Identity, Loaded, SnapshotInfo

FORMAT = 1
"""The version of the layout of rows; written beside the identity."""

REJOIN = "remove the data folder to let the node rejoin as a new member"
"""What to do with a folder that cannot be trusted: never start from what is left of it."""

_CRC_BYTES = 4


class Base(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The log begins behind this entry, which an adopted snapshot covers."""

    last_index: int
    last_term: int


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One durable write. Applied in the order of ``seq``, each changes the log atomically."""

    seq: int
    """Counts records from 1, for ever."""
    prev_crc: int
    """The CRC of record ``seq - 1``; 0 for the first."""
    term: int
    vote: NodeId | None
    last_index: int
    """The log's last index after this record: shows whether records before it are missing."""
    first_index: int = 0
    """``entries[0].index``; everything in the log from it on is replaced. 0: the log does not change."""
    entries: tuple[Entry, ...] = ()
    base: Base | None = None
    """The whole log is replaced by the snapshot that ends here, before ``entries`` follow."""


class StoredIdentity(msgspec.Struct, frozen=True, array_like=True):
    """The row beside the records that says whose log this is."""

    format: int
    identity: Identity


_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(Record)
_identity_decoder = msgspec.msgpack.Decoder(StoredIdentity)


def make_record(seq: int, prev_crc: int, last_index: int, save: Save) -> Record:
    """Return the record of ``save``, for a log that ends at ``last_index`` before it."""
    base = None
    if save.snapshot is not None:
        base = Base(save.snapshot.last_index, save.snapshot.last_term)
        last_index = base.last_index
    first_index = 0
    if save.entries:
        first_index = save.entries[0].index
        last_index = save.entries[-1].index
    state = save.hard_state
    return Record(seq, prev_crc, state.current_term, state.voted_for, last_index, first_index, save.entries, base)


def encode_record(record: Record) -> tuple[bytes, int]:
    """Return the row's bytes and the record's CRC."""
    return _seal(record)


def decode_record(value: bytes) -> tuple[Record, int]:
    """Return the record that a row holds, and its CRC.

    Raises:
        StorageCorruptError: these bytes were not written by :func:`encode_record`.
    """
    body, crc = _unseal(value)
    try:
        return _record_decoder.decode(body), crc
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageCorruptError(f"a record does not decode: {error}") from error


def encode_identity(identity: Identity) -> bytes:
    """Return the identity row's bytes."""
    return _seal(StoredIdentity(FORMAT, identity))[0]


def decode_identity(value: bytes) -> StoredIdentity:
    """Return what the identity row holds.

    Raises:
        StorageCorruptError: these bytes were not written by :func:`encode_identity`.
    """
    try:
        return _identity_decoder.decode(_unseal(value)[0])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageCorruptError(f"the identity does not decode: {error}") from error


def _seal(value: Record | StoredIdentity) -> tuple[bytes, int]:
    body = _encoder.encode(value)
    crc = zlib.crc32(body)
    return crc.to_bytes(_CRC_BYTES, "little") + body, crc


def _unseal(value: bytes) -> tuple[bytes, int]:
    body = value[_CRC_BYTES:]
    crc = zlib.crc32(body)
    if len(value) <= _CRC_BYTES or crc != int.from_bytes(value[:_CRC_BYTES], "little"):
        raise StorageCorruptError("the checksum of a row does not match")
    return body, crc


class LogState:
    """The log that a sequence of records makes.

    ``entries`` are contiguous and end at ``last_index``. Records that compaction has removed leave no trace but this:
    ``entries`` may begin anywhere, or be empty while ``last_index`` is not 0. Only a snapshot can fill that gap.
    """

    __slots__ = ("_is_cut", "base", "begins", "entries", "hard_state", "last_index")

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.base: Base | None = None
        self.entries: list[Entry] = []
        self.last_index = 0
        self.begins = True
        """No record has been applied yet."""
        self._is_cut = False
        """Compaction has removed the records before the first, and no snapshot was adopted since."""

    def apply(self, record: Record) -> None:
        """Change the log as ``record`` says. The first record may follow a part that compaction has removed.

        Raises:
            StorageCorruptError: this record cannot follow those before it.
        """
        if self.begins:
            self._is_cut = record.seq != 1
        if record.base is not None:
            self._adopt(record.base)
        if record.entries:
            self._append(record)
        elif self.begins and record.base is None:
            self.last_index = record.last_index if self._is_cut else 0
        if self.last_index != record.last_index:
            raise StorageCorruptError(
                f"record {record.seq} was written for a log that ends at {record.last_index}, not {self.last_index}"
            )
        self.hard_state = HardState(record.term, record.vote)
        self.begins = False

    def _adopt(self, base: Base) -> None:
        self.base = base
        self.entries.clear()
        self.last_index = base.last_index
        self._is_cut = False

    def _append(self, record: Record) -> None:
        first_index, entries = record.first_index, self.entries
        if self._is_cut:
            # A crash between two slices of a compaction may leave a record whose entries, and some before them that are
            # gone already, a later one replaces.
            fits = self.begins or 1 <= first_index <= self.last_index + 1
        elif entries:
            fits = entries[0].index <= first_index <= self.last_index + 1
        else:
            begins = self.base.last_index + 1 if self.base is not None else 1
            fits = begins <= first_index <= self.last_index + 1
        if not fits or not _are_contiguous(first_index, record.entries):
            raise StorageCorruptError(
                f"record {record.seq} begins at entry {first_index}; the log ends at {self.last_index}"
            )
        if entries:
            del entries[max(0, first_index - entries[0].index) :]
        entries.extend(record.entries)
        self.last_index = entries[-1].index

    def forget_before(self, first_index: int) -> None:
        """Drop the entries before ``first_index``."""
        if self.entries:
            del self.entries[: max(0, first_index - self.entries[0].index)]

    def holds(self, snapshot: Snapshot) -> bool:
        """Tell whether this log goes on from ``snapshot``, which it adopted or from which it was taken.

        A snapshot that a peer has sent but that no record adopts is not held: its file came first, then a crash.
        """
        last_index, last_term = snapshot.last_index, snapshot.last_term
        if last_index > self.last_index:
            return False
        if self.base is not None and last_index == self.base.last_index:
            return last_term == self.base.last_term and (not self.entries or self.entries[0].index == last_index + 1)
        if not self.entries:
            return last_index == self.last_index
        position = last_index - self.entries[0].index
        return position == -1 or (position >= 0 and self.entries[position].term == last_term)

    @property
    def stands_alone(self) -> bool:
        """The log begins at entry 1, or is empty: no snapshot is needed."""
        if self.base is not None:
            return False
        return self.entries[0].index == 1 if self.entries else self.last_index == 0


def _are_contiguous(first_index: int, entries: Sequence[Entry]) -> bool:
    return all(entry.index == index for index, entry in enumerate(entries, first_index))


def recover(
    identity: Identity | None, state: LogState, snapshots: Iterable[Snapshot], damaged: Iterable[int] = ()
) -> Loaded:
    """Join the log with the newest snapshot that it goes on from.

    Args:
        identity: whose log it is.
        state: all records, applied.
        snapshots: the verified ones, newest first; read no further than the one that fits.
        damaged: grows while ``snapshots`` is read: the last indexes of those that were found damaged.

    Raises:
        StorageCorruptError: entries are missing that no snapshot covers.
    """
    for snapshot in snapshots:
        if state.holds(snapshot):
            position = snapshot.last_index + 1 - state.entries[0].index if state.entries else 0
            return Loaded(identity, state.hard_state, snapshot, tuple(state.entries[position:]))
    if state.stands_alone:
        return Loaded(identity, state.hard_state, None, tuple(state.entries))
    begins = f"the log begins at entry {state.entries[0].index}" if state.entries else "the log holds no entries"
    why = f"; damaged: {', '.join(map(str, damaged))}" if damaged else ""
    raise StorageCorruptError(f"{begins}, and no valid snapshot covers what came before{why}; {REJOIN}")


def check_identity(stored: Identity | None, identity: Identity) -> None:
    """Refuse to give this folder to another node.

    Raises:
        StorageForeignError: ``stored`` is not ``identity``, and does more than lack a cluster id.
    """
    if stored is None or stored == identity:
        return
    if stored.cluster_id or (stored.name, stored.incarnation) != (identity.name, identity.incarnation):
        raise StorageForeignError(
            f"the data folder belongs to {stored.node_id} of cluster {stored.cluster_id or '(none)'}, "
            f"not to {identity.node_id} of cluster {identity.cluster_id or '(none)'}"
        )


def check_save(save: Save, last_index: int) -> None:
    """Refuse to write what could not be read back: a hole, or entries out of order.

    Raises:
        InvariantViolatedError: ``save.entries`` do not continue or replace a log that ends at ``last_index``.
    """
    if save.snapshot is not None:
        last_index = save.snapshot.last_index
    if not save.entries:
        return
    first, last = save.entries[0].index, save.entries[-1].index
    detached = first != last_index + 1 if save.snapshot is not None else not 1 <= first <= last_index + 1
    if detached or last - first + 1 != len(save.entries):
        raise InvariantViolatedError(
            f"entries {first} to {last} ({len(save.entries)}) in a log that ends at {last_index}"
        )


def check_compaction(first_index: int, latest: SnapshotInfo | None) -> None:
    """Refuse to forget what no durable snapshot covers.

    Raises:
        InvariantViolatedError: entries before ``first_index`` are not in a snapshot.
    """
    covered = latest.snapshot.last_index if latest is not None else 0
    if first_index > covered + 1:
        raise InvariantViolatedError(
            f"compaction up to entry {first_index}, but a snapshot covers only up to {covered}"
        )
