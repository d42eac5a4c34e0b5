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
from kvorum.raft.log import OnDisk, entry_bytes
from kvorum.raft.messages import Entry, EntryKind, HardState, NodeId, PeerMark, Save, Snapshot
from kvorum.storage.interface import Identity, Loaded, SnapshotInfo

FORMAT = 1
"""The version of the layout of rows; written beside the identity."""

REJOIN = (
    "if the other members are a healthy majority, remove the data folder to let the node rejoin as a new member; "
    "if there are none, keep it and restore a backup"
)
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
    marks: tuple[PeerMark, ...] = ()
    """:attr:`Save.marks`. Those of the last record count, so a compaction loses none. Version 0.1.0 writes neither this
    nor the next, and skips both."""
    commit_index: int = 0
    """:attr:`Save.commit_index`."""


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
    return Record(
        seq,
        prev_crc,
        state.current_term,
        state.voted_for,
        last_index,
        first_index,
        save.entries,
        base,
        save.marks,
        save.commit_index,
    )


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
    the log may begin anywhere, or be empty while ``last_index`` is not 0. Only a snapshot can fill that gap.

    Args:
        bytes_max: of the oldest entries beyond this, only what ``on_disk`` says is kept; None: all are kept.
    """

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_configurations",
        "_is_cut",
        "_on_disk_index",
        "_terms",
        "base",
        "begins",
        "commit_index",
        "entries",
        "hard_state",
        "last_index",
        "marks",
    )

    def __init__(self, bytes_max: int | None = None) -> None:
        self.hard_state = HardState()
        self.marks: tuple[PeerMark, ...] = ()
        self.commit_index = 0
        self.base: Base | None = None
        self.entries: list[Entry] = []
        self.last_index = 0
        self._bytes_max = bytes_max
        self._bytes = 0
        self._terms: list[tuple[int, int]] = []
        self._on_disk_index = 0
        self._configurations: list[Entry] = []
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
        self.marks, self.commit_index = record.marks, record.commit_index
        self.begins = False

    def _adopt(self, base: Base) -> None:
        self.base = base
        self._keep_from(base.last_index + 1)
        self.entries.clear()
        self._bytes = 0
        self.last_index = base.last_index
        self._is_cut = False

    def _append(self, record: Record) -> None:
        first_index, begins = record.first_index, self.first_index
        if self._is_cut:
            # A crash between two slices of a compaction may leave a record whose entries, and some before them that are
            # gone already, a later one replaces.
            fits = self.begins or 1 <= first_index <= self.last_index + 1
        elif begins is not None:
            fits = begins <= first_index <= self.last_index + 1
        else:
            begins = self.base.last_index + 1 if self.base is not None else 1
            fits = begins <= first_index <= self.last_index + 1
        if not fits or not _are_contiguous(first_index, record.entries):
            raise StorageCorruptError(
                f"record {record.seq} begins at entry {first_index}; the log ends at {self.last_index}"
            )
        self._truncate(first_index)
        self.entries.extend(record.entries)
        self.last_index = self.entries[-1].index
        self._bytes += sum(map(entry_bytes, record.entries))
        if self._bytes_max is not None and self._bytes > self._bytes_max:
            self._release(self._bytes_max)

    def _truncate(self, first_index: int) -> None:
        """Drop the entries from ``first_index`` on."""
        entries = self.entries
        if entries:
            position = max(0, first_index - entries[0].index)
            self._bytes -= sum(map(entry_bytes, entries[position:]))
            del entries[position:]
        if first_index <= self._on_disk_index:
            self._on_disk_index = first_index - 1
            self._terms = [run for run in self._terms if run[0] < first_index]
            self._configurations = [entry for entry in self._configurations if entry.index < first_index]

    def _release(self, bytes_max: int) -> None:
        """Keep only the terms and the configurations of the oldest entries, until the others fit."""
        position = 0
        for entry in self.entries:
            if self._bytes <= bytes_max:
                break
            self._bytes -= entry_bytes(entry)
            if not self._terms or self._terms[-1][1] != entry.term:
                self._terms.append((entry.index, entry.term))
            if entry.kind is EntryKind.CONFIGURATION:
                self._configurations.append(entry)
            self._on_disk_index = entry.index
            position += 1
        del self.entries[:position]

    def _keep_from(self, first_index: int) -> None:
        """Forget what ``on_disk`` says of entries before ``first_index``."""
        self._configurations = [entry for entry in self._configurations if entry.index >= first_index]
        if first_index > self._on_disk_index:
            self._terms = []
            return
        before = [run for run in self._terms if run[0] <= first_index]
        after = [run for run in self._terms if run[0] > first_index]
        self._terms = [(first_index, before[-1][1]), *after] if before else after

    @property
    def first_index(self) -> int | None:
        """The first entry of the log; None: it holds none."""
        if self._terms:
            return self._terms[0][0]
        return self.entries[0].index if self.entries else None

    def term(self, index: int) -> int | None:
        """Return the term of an entry, or None if the log does not hold it."""
        if self._terms and self._terms[0][0] <= index <= self._on_disk_index:
            return next(term for first, term in reversed(self._terms) if first <= index)
        position = index - self.entries[0].index if self.entries else -1
        return self.entries[position].term if 0 <= position < len(self.entries) else None

    def bounded(self, bytes_max: int | None) -> LogState:
        """Return a copy that keeps at most so many bytes of entries."""
        copy = LogState(bytes_max)
        copy.hard_state, copy.base, copy.begins = self.hard_state, self.base, self.begins
        copy.marks, copy.commit_index = self.marks, self.commit_index
        copy.last_index, copy._is_cut = self.last_index, self._is_cut
        copy.entries, copy._bytes = list(self.entries), self._bytes
        copy._terms, copy._on_disk_index = list(self._terms), self._on_disk_index
        copy._configurations = list(self._configurations)
        if bytes_max is not None:
            copy._release(bytes_max)
        return copy

    def after(self, last_index: int) -> tuple[tuple[Entry, ...], OnDisk]:
        """Return the log behind ``last_index``: the entries in memory, and what is known of those before them."""
        self._keep_from(last_index + 1)
        position = max(0, last_index + 1 - self.entries[0].index) if self.entries else 0
        on_disk = OnDisk()
        if self._terms:
            on_disk = OnDisk(tuple(self._terms), self._on_disk_index, tuple(self._configurations))
        return tuple(self.entries[position:]), on_disk

    def forget_before(self, first_index: int) -> None:
        """Drop the entries before ``first_index``."""
        self._keep_from(first_index)
        if self.entries:
            position = max(0, first_index - self.entries[0].index)
            self._bytes -= sum(map(entry_bytes, self.entries[:position]))
            del self.entries[:position]

    def holds(self, snapshot: Snapshot) -> bool:
        """Tell whether this log goes on from ``snapshot``, which it adopted or from which it was taken.

        A snapshot that a peer has sent but that no record adopts is not held: its file came first, then a crash.
        """
        last_index, last_term = snapshot.last_index, snapshot.last_term
        first_index = self.first_index
        if self.base is not None and last_index == self.base.last_index:
            return last_term == self.base.last_term and first_index in (None, last_index + 1)
        if first_index is None:
            return last_index == self.last_index
        return last_index == first_index - 1 or self.term(last_index) == last_term

    @property
    def stands_alone(self) -> bool:
        """The log begins at entry 1, or is empty: no snapshot is needed."""
        if self.base is not None:
            return False
        return self.first_index == 1 if self.first_index is not None else self.last_index == 0


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
            return _loaded(identity, state, snapshot)
    if state.stands_alone:
        return _loaded(identity, state, None)
    first_index = state.first_index
    begins = f"the log begins at entry {first_index}" if first_index is not None else "the log holds no entries"
    why = f"; damaged: {', '.join(map(str, damaged))}" if damaged else ""
    raise StorageCorruptError(f"{begins}, and no valid snapshot covers what came before{why}; {REJOIN}")


def _loaded(identity: Identity | None, state: LogState, snapshot: Snapshot | None) -> Loaded:
    entries, on_disk = state.after(snapshot.last_index if snapshot is not None else 0)
    return Loaded(identity, state.hard_state, snapshot, entries, on_disk, state.marks, state.commit_index)


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
