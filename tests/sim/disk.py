"""A simulated disk, and what its owner and the invariants may count on after a crash.

The storage's own twin in memory says what a disk does; here it gets bytes under it. Every save is the row that the real
storage writes, in the same encoding, chained by the same checksums, and a start reads the rows back. A loss of power
may tear the end of what was being written: the torn row is dropped, as SQLite drops a frame of its write-ahead log
whose checksum does not match (that it does so is what tests/storage/test_power_loss.py shows).
"""

from __future__ import annotations

from copy import deepcopy
from random import Random

from kvorum.errors import StorageCorruptError
from kvorum.raft.messages import HardState, Load, Save
from kvorum.storage.interface import Identity, Loaded
from kvorum.storage.memory import Compaction, MemoryStorage
from kvorum.storage.records import LogState, Record, decode_record, encode_record, make_record
from kvorum.storage.verify import Rows


class Durable:
    """What is on a disk, as the invariants see it: the hard state, and the terms of the log.

    It is kept apart from the disk, so that the invariants do not trust what they judge.
    """

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.base_index = 0
        self.base_term = 0
        self.terms: list[int] = []

    @property
    def last_index(self) -> int:
        """The last durable index."""
        return self.base_index + len(self.terms)

    @property
    def last_term(self) -> int:
        """The term of the last durable entry."""
        return self.terms[-1] if self.terms else self.base_term

    def term(self, index: int) -> int | None:
        """Return the term at ``index``, or None where there is nothing or only a snapshot."""
        if index == self.base_index:
            return self.base_term
        if self.base_index < index <= self.last_index:
            return self.terms[index - self.base_index - 1]
        return None

    def covers(self, index: int) -> bool:
        """Tell whether ``index`` is durable, in the log or in a snapshot."""
        return index <= self.last_index

    def apply(self, save: Save) -> None:
        """Take a save that became durable."""
        self.hard_state = save.hard_state
        if save.snapshot is not None:
            self.base_index, self.base_term = save.snapshot.last_index, save.snapshot.last_term
            self.terms = []
        if save.entries:
            del self.terms[save.entries[0].index - self.base_index - 1 :]
            self.terms.extend(entry.term for entry in save.entries)


class SimDisk(MemoryStorage):
    """A disk whose log is rows of bytes."""

    def __init__(self, log_memory_bytes_max: int | None = None) -> None:
        super().__init__(log_memory_bytes_max=log_memory_bytes_max)
        self._values: list[bytes] = []
        self._rows = Rows()
        self._last_crc = 0
        self.has_damaged_part = False
        """Of a snapshot file that was arriving, a loss of power left bytes that were not sent."""

    @property
    def identity(self) -> Identity | None:
        """Whose it is."""
        return self._identity

    def load(self) -> Loaded:
        """Read the rows back, then go on as the twin does.

        Raises:
            StorageCorruptError: a row is damaged that is not the last, or the chain is broken.
        """
        self._state, self._rows, self._seq, self._last_crc = LogState(), Rows(), 0, 0
        for position, value in enumerate(self._values):
            try:
                record, crc = decode_record(value)
            except StorageCorruptError:
                if position != len(self._values) - 1:
                    raise
                del self._values[-1]
                break
            if self._seq and (record.seq, record.prev_crc) != (self._seq + 1, self._last_crc):
                raise StorageCorruptError(f"record {record.seq} does not follow record {self._seq}")
            self._note(record, value, crc)
        return super().load()

    @property
    def log_bytes(self) -> int:
        """How large the rows are together."""
        return sum(map(len, self._values))

    @property
    def file_bytes(self) -> int:
        """How large the snapshot files are together."""
        parts = (part for _, part in self.snapshots.parts.values())
        return sum(map(len, (*self.snapshots.files.values(), *parts)))

    def size_bytes(self, save: Save) -> int:
        """Return how large the row of a save is."""
        return len(self._encoded(save)[1])

    def copy(self) -> SimDisk:
        """Return what a copy of the whole disk would hold if it were taken now, as it is after a loss of power."""
        twin = deepcopy(self)
        twin.crash()
        return twin

    def tear(self, bytes_written: int) -> bool:
        """Lose power in the middle of a save: of its row only so many bytes arrive. Return whether there is a save."""
        pending = self.pending
        if not pending or not isinstance(pending[0], Save):
            return False
        _, value, _ = self._encoded(pending[0])
        # A record may end with zeros: without those it would be whole, and not torn.
        arrived = bytes_written % len(value.rstrip(b"\0"))
        self._values.append(value[:arrived] + bytes(len(value) - arrived))  # The file may have grown before the data.
        return True

    def lose_unsynced_parts(self, draw: Random) -> None:
        """Lose power: of a snapshot file that is arriving, the end may be lost, or be zeros."""
        for _, part in self.snapshots.parts.values():
            kept = draw.randrange(len(part) + 1)
            match draw.randrange(4):
                case 0:
                    del part[kept:]
                case 1:
                    self.has_damaged_part = self.has_damaged_part or any(part[kept:])
                    part[kept:] = bytes(len(part) - kept)

    def damage(self, last_index: int, draw: Random) -> None:
        """Flip a bit of a complete snapshot file."""
        data = bytearray(self.snapshots.files[last_index])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        self.snapshots.files[last_index] = bytes(data)

    def _encoded(self, save: Save) -> tuple[Record, bytes, int]:
        record = make_record(self._seq + 1, self._last_crc, self._state.last_index, save)
        return record, *encode_record(record)

    def _note(self, record: Record, value: bytes, crc: int) -> None:
        self._state.apply(record)
        self._rows.add(record, len(value))
        self._seq, self._last_crc = record.seq, crc

    def _apply(self, operation: Save | Compaction | Load) -> None:
        if isinstance(operation, Load):
            return
        if isinstance(operation, Compaction):
            taken = self._rows.take(operation.first_index, len(self._values), 1 << 60)
            del self._values[: len(taken)]
            return
        record, value, crc = self._encoded(operation)
        self._values.append(value)
        self._note(record, value, crc)
        if operation.snapshot is not None:
            self.snapshots.adopt(operation.snapshot)
