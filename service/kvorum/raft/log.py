"""The log in memory: the entries after the last snapshot, and how far they are saved, committed and applied (5.3).

Four indexes move through it. None of them goes back, with two exceptions: a truncation lowers ``saved_index``, and
rebuilding the state machine lowers ``applied_index``. ::

    base_index <= applied_index <= commit_index <= last_index
                  applied_index <= saved_index  <= last_index

While an adopted snapshot is not restored yet, ``base_index`` (its end) is ahead of what is applied and saved.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvorum.errors import InvariantViolatedError
from kvorum.raft.messages import Entry

ENTRY_OVERHEAD_BYTES = 24
"""What an entry weighs on the wire besides its data, rounded up."""


def entry_bytes(entry: Entry) -> int:
    """Return what this entry counts against a limit in bytes."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class RaftLog:
    """Entries ``first_index .. last_index``. Of the entry before them only index and term are known.

    Args:
        snapshot_index: the index before the first entry (0: the log begins at 1).
        snapshot_term: the term of that index.
        entries: contiguous, all of them durable.

    Raises:
        InvariantViolatedError: the entries do not follow the snapshot without a gap, or their terms go back.
    """

    def __init__(self, snapshot_index: int, snapshot_term: int, entries: Iterable[Entry]) -> None:
        self.base_index, self.base_term = snapshot_index, snapshot_term
        self._entries = list(entries)
        for index, entry in enumerate(self._entries, snapshot_index + 1):
            if entry.index != index:
                raise InvariantViolatedError(f"the log has entry {entry.index} where {index} belongs")
        terms = [snapshot_term, *(entry.term for entry in self._entries)]
        if terms != sorted(terms):
            raise InvariantViolatedError("the terms in the log go back")
        self._set_end()
        self.commit_index = self.applied_index = snapshot_index
        self.saved_index = self.last_index
        self._handed_index = self.last_index  # given to a save, done or in flight
        self._in_flight_index = 0  # the last index of the save in flight that is still ours

    def _set_end(self) -> None:
        self.last_index = self.base_index + len(self._entries)
        self.last_term = self._entries[-1].term if self._entries else self.base_term

    @property
    def first_index(self) -> int:
        """The first entry that is still here (one past the last when there is none)."""
        return self.base_index + 1

    def term(self, index: int) -> int | None:
        """Return the term at ``index``, or None where the log does not reach (any more, or yet)."""
        if self.base_index < index <= self.last_index:
            return self._entries[index - self.base_index - 1].term
        return self.base_term if index == self.base_index else None

    def matches(self, index: int, term: int) -> bool:
        """Return whether the log holds an entry of this index and term (the consistency check of section 5.3)."""
        return self.term(index) == term

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Return whether a candidate's log is at least as up-to-date as ours (section 5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def slice(self, first: int, bytes_max: int, last: int | None = None) -> tuple[Entry, ...]:
        """Return entries from ``first`` on: at least one if there is one, and at most ``bytes_max`` bytes of them."""
        start = first - self.base_index - 1
        stop = len(self._entries) if last is None else last - self.base_index
        size = 0
        for position in range(start, stop):
            size += len(self._entries[position].data) + ENTRY_OVERHEAD_BYTES
            if size > bytes_max and position > start:
                stop = position
                break
        return tuple(self._entries[start:stop])

    def append(self, entries: Iterable[Entry]) -> None:
        """Append entries that follow the last one."""
        self._entries.extend(entries)
        self._set_end()

    def truncate(self, index: int) -> None:
        """Forget the entries from ``index`` on: they conflict with the leader's (section 5.3).

        Raises:
            InvariantViolatedError: one of them was committed (State Machine Safety, section 5.4.3).
        """
        if index <= self.commit_index:
            raise InvariantViolatedError(
                f"entry {index} conflicts with a leader's, yet {self.commit_index} is committed"
            )
        del self._entries[index - self.base_index - 1 :]
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
        for position in range(min(index, self.last_index) - self.base_index - 1, -1, -1):
            if self._entries[position].term <= term:
                return self.base_index + 1 + position, self._entries[position].term
        return self.base_index, self.base_term

    # --- Saving -------------------------------------------------------------------------------------------------

    def has_unsaved(self) -> bool:
        """Return whether there are entries that no save has been given."""
        return self._handed_index < self.last_index

    def take_unsaved(self) -> tuple[Entry, ...]:
        """Hand over the entries that no save has been given yet; the caller starts a save with them."""
        entries = tuple(self._entries[self._handed_index - self.base_index :])
        self._handed_index = self._in_flight_index = self.last_index
        return entries

    def saved(self) -> None:
        """Note that the save in flight is durable; entries that were truncated meanwhile do not count."""
        self.saved_index = max(self.saved_index, self._in_flight_index)

    # --- Applying -----------------------------------------------------------------------------------------------

    def take_applicable(self, bytes_max: int) -> tuple[Entry, ...]:
        """Hand over the next committed entries, durable here, in order, at most ``bytes_max`` bytes (or one entry)."""
        last = min(self.commit_index, self.saved_index)
        if self.applied_index >= last:
            return ()
        entries = self.slice(self.applied_index + 1, bytes_max, last)
        self.applied_index = entries[-1].index
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
        del self._entries[: index - self.base_index]
        self.base_index, self.base_term = index, term

    def restore(self, index: int, term: int) -> None:
        """Replace the whole log by a snapshot that ends at ``index`` (section 7). It does not count as saved yet."""
        self._entries = []
        self.base_index, self.base_term = index, term
        self._set_end()
        self.commit_index = self._handed_index = index
        self.saved_index = self._in_flight_index = 0
