"""The log: the entries after the last snapshot, and how far they are saved, committed and applied (5.3).

Memory holds the newest entries only, up to a number of bytes. Of older ones, which are applied and on the disk, it
holds the terms. Whoever needs one of those says so (``wanted_index``), and the driver reads it back.

Four indexes move through it. None of them goes back, with two exceptions: a truncation lowers ``saved_index``, and
rebuilding the state machine lowers ``applied_index``. ::

    base_index <= applied_index <= commit_index <= last_index
                  applied_index <= saved_index  <= last_index

While an adopted snapshot is not restored yet, ``base_index`` (its end) is ahead of what is applied and saved.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from kvorum.errors import CommitsLostError, InvariantViolatedError
from kvorum.raft.messages import Entry

ENTRY_OVERHEAD_BYTES = 24
"""What an entry weighs on the wire besides its data, rounded up."""


def entry_bytes(entry: Entry) -> int:
    """Return what this entry counts against a limit in bytes."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class OnDisk(msgspec.Struct, frozen=True):
    """What is known of entries that are on the disk and not in memory; they stand before those that are."""

    terms: tuple[tuple[int, int], ...] = ()
    """(index, term) of the first entry of each term among them, and of the first of all."""
    last_index: int = 0
    """The last of them."""
    configurations: tuple[Entry, ...] = ()
    """Those of them that carry a configuration."""


class RaftLog:
    """Entries ``first_index .. last_index``. Of the entry before them only index and term are known.

    Args:
        snapshot_index: the index before the first entry (0: the log begins at 1).
        snapshot_term: the term of that index.
        entries: contiguous, all of them durable.
        on_disk: what stands between the snapshot and ``entries``.
        memory_bytes_max: how much of the log stays in memory, if the rest is applied.
        commit_index: what was known to be committed when the log was last written.

    Raises:
        InvariantViolatedError: the entries do not follow the snapshot without a gap, or their terms go back.
    """

    def __init__(
        self,
        snapshot_index: int,
        snapshot_term: int,
        entries: Iterable[Entry],
        on_disk: OnDisk | None = None,
        memory_bytes_max: int = 64 << 20,
        commit_index: int = 0,
    ) -> None:
        self.base_index, self.base_term = snapshot_index, snapshot_term
        self.memory_base_index = snapshot_index
        """The index before the first entry in memory."""
        self._terms: list[tuple[int, int]] = []  # OnDisk.terms of what is not in memory
        if on_disk is not None and on_disk.terms:
            if on_disk.terms[0][0] != snapshot_index + 1:
                raise InvariantViolatedError(
                    f"the log has entry {on_disk.terms[0][0]} where {snapshot_index + 1} belongs"
                )
            self._terms, self.memory_base_index = list(on_disk.terms), on_disk.last_index
        self._entries = list(entries)
        for index, entry in enumerate(self._entries, self.memory_base_index + 1):
            if entry.index != index:
                raise InvariantViolatedError(f"the log has entry {entry.index} where {index} belongs")
        terms = [snapshot_term, *(term for _, term in self._terms), *(entry.term for entry in self._entries)]
        if terms != sorted(terms):
            raise InvariantViolatedError("the terms in the log go back")
        self._memory_bytes_max = memory_bytes_max
        self._memory_bytes = sum(map(entry_bytes, self._entries))
        self._loaded: tuple[Entry, ...] = ()  # read back from the disk
        self.wanted_index = 0
        """Which entry that is only on the disk somebody wants; 0: none."""
        self._set_end()
        self.applied_index = snapshot_index
        # What the log does not hold (any more: a record says what is committed before all of it is on the disk).
        self.commit_index = max(snapshot_index, min(commit_index, self.last_index))
        self.saved_index = self.last_index
        self._handed_index = self.last_index  # given to a save, done or in flight
        self._in_flight_index = 0  # the last index of the save in flight that is still ours

    def _set_end(self) -> None:
        self.last_index = self.memory_base_index + len(self._entries)
        if self._entries:
            self.last_term = self._entries[-1].term
        else:
            self.last_term = self._terms[-1][1] if self._terms else self.base_term

    @property
    def first_index(self) -> int:
        """The first entry that is still on the disk (one past the last when there is none)."""
        return self.base_index + 1

    def term(self, index: int) -> int | None:
        """Return the term at ``index``, or None where the log does not reach (any more, or yet)."""
        if self.memory_base_index < index <= self.last_index:
            return self._entries[index - self.memory_base_index - 1].term
        if self.base_index < index <= self.memory_base_index:
            return self._terms[bisect_right(self._terms, index, key=_first_index) - 1][1]
        return self.base_term if index == self.base_index else None

    def terms_up_to(self, index: int) -> list[tuple[int, int]]:
        """Return (index, term) of the first entry of each term in the log, and of its first entry, up to ``index``."""
        runs = [run for run in self._terms if run[0] <= index]
        position, end = 0, index - self.memory_base_index
        while position < end:
            entry = self._entries[position]
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))
            position = bisect_right(self._entries, entry.term, lo=position, hi=end, key=_term)
        return runs

    def matches(self, index: int, term: int) -> bool:
        """Return whether the log holds an entry of this index and term (the consistency check of section 5.3)."""
        return self.term(index) == term

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Return whether a candidate's log is at least as up-to-date as ours (section 5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def slice(self, first: int, bytes_max: int, last: int | None = None) -> tuple[Entry, ...]:
        """Return entries from ``first`` on: at least one if there is one, and at most ``bytes_max`` bytes of them.

        Args:
            first: the index of an entry that is not only on the disk (:meth:`is_only_on_disk`), or one past the last.
            bytes_max: counted as :func:`entry_bytes` does.
            last: the last that may be among them; None: the last of the log.
        """
        entries: Sequence[Entry] = self._entries
        start = first - self.memory_base_index - 1
        if start < 0:
            entries = self._loaded
            start = first - entries[0].index
        stop = len(entries) if last is None else min(len(entries), start + last - first + 1)
        size = 0
        for position in range(start, stop):
            size += len(entries[position].data) + ENTRY_OVERHEAD_BYTES
            if size > bytes_max and position > start:
                stop = position
                break
        return tuple(entries[start:stop])

    def append(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow the last one."""
        self._entries.extend(entries)
        for entry in entries:
            self._memory_bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES
        self._set_end()

    def truncate(self, index: int) -> None:
        """Forget the entries from ``index`` on: they conflict with the leader's (section 5.3).

        Raises:
            CommitsLostError: one of them was committed (State Machine Safety, section 5.4.3).
        """
        if index <= self.commit_index:
            raise CommitsLostError(f"entry {index} conflicts with a leader's, yet {self.commit_index} is committed")
        if index <= self.memory_base_index:
            # Only after a start: which of the entries on the disk are committed is not known yet.
            self._terms = [run for run in self._terms if run[0] < index]
            self._entries, self._loaded = [], ()
            self.memory_base_index = index - 1
        del self._entries[index - self.memory_base_index - 1 :]
        self._memory_bytes = sum(map(entry_bytes, self._entries))
        self._set_end()
        self.saved_index = min(self.saved_index, index - 1)
        self._handed_index = min(self._handed_index, index - 1)
        self._in_flight_index = min(self._in_flight_index, index - 1)

    def commit_to(self, index: int) -> None:
        """Raise ``commit_index`` to ``index``; never lower it.

        Raises:
            InvariantViolatedError: the log does not reach that far.
        """
        if index <= self.commit_index:
            return
        if index > self.last_index:
            raise InvariantViolatedError(f"told that entry {index} is committed, but the log ends at {self.last_index}")
        self.commit_index = index

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """Return (index, term) of the last entry at or before ``index`` whose term is at most ``term`` (section 5.3).

        This finds where two logs may agree while it skips a whole term with each message. The base of the log is
        returned when no entry qualifies.
        """
        index = min(index, self.last_index)
        for position in range(index - self.memory_base_index - 1, -1, -1):
            if self._entries[position].term <= term:
                return self.memory_base_index + 1 + position, self._entries[position].term
        end = min(index, self.memory_base_index)
        for first, of_run in reversed(self._terms):
            if first <= end and of_run <= term:
                return end, of_run
            end = min(end, first - 1)
        return self.base_index, self.base_term

    # --- What is only on the disk -------------------------------------------------------------------------------

    def is_only_on_disk(self, index: int) -> bool:
        """Return whether this entry of the log must be read back before :meth:`slice` can return it."""
        if not self.base_index < index <= self.memory_base_index:
            return False
        loaded = self._loaded
        return not (loaded and loaded[0].index <= index <= loaded[-1].index)

    def take_wanted(self) -> tuple[int, int] | None:
        """Return the first and the last index to read back, or None if nobody wants anything."""
        wanted, self.wanted_index = self.wanted_index, 0
        return (wanted, self.memory_base_index) if wanted and self.is_only_on_disk(wanted) else None

    def loaded(self, entries: Sequence[Entry]) -> None:
        """Take entries that were read back. They replace those that were read back before.

        Raises:
            InvariantViolatedError: they are not those of this log.
        """
        entries = [entry for entry in entries if self.base_index < entry.index <= self.memory_base_index]
        for entry in entries:
            if entry.term != self.term(entry.index):
                raise InvariantViolatedError(
                    f"entry {entry.index} was read back with term {entry.term}; it is of term {self.term(entry.index)}"
                )
        self._loaded = tuple(entries)

    def _release_memory(self) -> None:
        """Drop the oldest entries from memory, until the others fit; what is not applied stays."""
        last = min(self.applied_index, self.saved_index)
        # Some more than needed, since each time moves all that stays.
        goal = self._memory_bytes_max - self._memory_bytes_max // 8
        position = 0
        for entry in self._entries:
            if entry.index > last or self._memory_bytes <= goal:
                break
            self._memory_bytes -= entry_bytes(entry)
            if not self._terms or self._terms[-1][1] != entry.term:
                self._terms.append((entry.index, entry.term))
            position += 1
        del self._entries[:position]
        self.memory_base_index += position

    # --- Saving -------------------------------------------------------------------------------------------------

    def has_unsaved(self) -> bool:
        """Return whether there are entries that no save has been given."""
        return self._handed_index < self.last_index

    def take_unsaved(self, bytes_max: int) -> tuple[Entry, ...]:
        """Hand over the next entries that no save has been given, at most ``bytes_max`` bytes of them (or one entry).

        The caller starts a save with them.
        """
        entries = self._entries[self._handed_index - self.memory_base_index :]
        size = 0
        for position, entry in enumerate(entries):
            size += len(entry.data) + ENTRY_OVERHEAD_BYTES
            if size > bytes_max and position:
                entries = entries[:position]
                break
        self._handed_index = self._in_flight_index = self._handed_index + len(entries)
        return tuple(entries)

    def saved(self) -> None:
        """Note that the save in flight is durable; entries that were truncated meanwhile do not count."""
        self.saved_index = max(self.saved_index, self._in_flight_index)

    # --- Applying -----------------------------------------------------------------------------------------------

    def take_applicable(self, bytes_max: int) -> tuple[Entry, ...]:
        """Hand over the next committed entries, durable here, in order, at most ``bytes_max`` bytes (or one entry).

        Return none while they are only on the disk; they are then wanted.
        """
        last = min(self.commit_index, self.saved_index)
        if self.applied_index >= last:
            return ()
        if self.applied_index < self.memory_base_index and self.is_only_on_disk(self.applied_index + 1):
            self.wanted_index = self.applied_index + 1
            return ()
        entries = self.slice(self.applied_index + 1, bytes_max, last)
        self.applied_index = entries[-1].index
        if self._memory_bytes > self._memory_bytes_max:
            self._release_memory()
        return entries

    # --- Snapshots ----------------------------------------------------------------------------------------------

    def compact(self, index: int) -> None:
        """Forget the entries up to and including ``index`` (section 7).

        Raises:
            InvariantViolatedError: one of them is not applied.
        """
        if index <= self.base_index:
            return
        term = self.term(index)
        if term is None or index > self.applied_index:
            raise InvariantViolatedError(f"cannot compact to {index}: only {self.applied_index} is applied")
        if index < self.memory_base_index:
            run = self._terms[bisect_right(self._terms, index + 1, key=_first_index) - 1]
            self._terms = [(index + 1, run[1]), *(later for later in self._terms if later[0] > index + 1)]
        else:
            self._terms = []
            del self._entries[: index - self.memory_base_index]
            self.memory_base_index = index
            self._memory_bytes = sum(map(entry_bytes, self._entries))
        self._loaded = tuple(entry for entry in self._loaded if entry.index > index)
        self.base_index, self.base_term = index, term

    def restore(self, index: int, term: int) -> None:
        """Replace the whole log by a snapshot that ends at ``index`` (section 7). It does not count as saved yet."""
        self._entries, self._terms, self._loaded = [], [], ()
        self._memory_bytes = 0
        self.base_index, self.base_term = index, term
        self.memory_base_index = index
        self._set_end()
        self.commit_index = self._handed_index = index
        self.saved_index = self._in_flight_index = 0


def _first_index(run: tuple[int, int]) -> int:
    return run[0]


def _term(entry: Entry) -> int:
    return entry.term
