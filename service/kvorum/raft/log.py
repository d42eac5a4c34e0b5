"""The log in memory: what follows the last snapshot, and how far it is saved, committed and applied (section 5.3).

Four indexes move through it, each never backwards but for ``saved_index``, which a truncation takes back (and
``applied_index`` when a state is built anew)::

    base_index <= applied_index <= commit_index <= last_index
                  applied_index <= saved_index  <= last_index

Only while an adopted snapshot is not restored yet does ``base_index``, where that ends, lie ahead of what is applied
and saved.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvorum.errors import InvariantViolated
from kvorum.raft.messages import Entry

ENTRY_OVERHEAD_BYTES = 24
"""What an entry weighs on the wire besides its data, rounded up."""


def entry_bytes(entry: Entry) -> int:
    """Return what this entry counts against a limit in bytes."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class RaftLog:
    """Entries ``first_index .. last_index``; the one before them is known by its index and term only.

    Args:
        snapshot_index: the index before the first entry (0: the log begins at 1).
        snapshot_term: the term of that index.
        entries: contiguous, all of them durable.

    Raises:
        InvariantViolated: the entries do not follow the snapshot without a gap, or their terms go back.
    """

    def __init__(self, snapshot_index: int, snapshot_term: int, entries: Sequence[Entry]) -> None:
        self.base_index = snapshot_index
        self.base_term = snapshot_term
        self._entries = list(entries)
        for offset, entry in enumerate(self._entries):
            if entry.index != snapshot_index + 1 + offset:
                raise InvariantViolated(f"the log has entry {entry.index} where {snapshot_index + 1 + offset} belongs")
        terms = [snapshot_term, *(entry.term for entry in self._entries)]
        if terms != sorted(terms):
            raise InvariantViolated("the terms in the log go back")
        self.commit_index = snapshot_index
        self.applied_index = snapshot_index
        self.saved_index = self.last_index
        self._handed_index = self.last_index  # given to a save, done or in flight
        self._in_flight_index = 0  # the last index of the save in flight that is still ours

    @property
    def first_index(self) -> int:
        """The first entry that is still here (one past the last when there is none)."""
        return self.base_index + 1

    @property
    def last_index(self) -> int:
        """The last entry's index, or the snapshot's."""
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        """The last entry's term, or the snapshot's."""
        return self._entries[-1].term if self._entries else self.base_term

    def term(self, index: int) -> int | None:
        """Return the term at ``index``, or None where the log does not reach (any more, or yet)."""
        if index == self.base_index:
            return self.base_term
        if self.base_index < index <= self.last_index:
            return self._entries[index - self.base_index - 1].term
        return None

    def matches(self, index: int, term: int) -> bool:
        """Tell whether the log holds an entry of this index and term (the consistency check of section 5.3)."""
        return self.term(index) == term

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Tell whether a candidate's log is at least as up-to-date as ours (section 5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def slice(self, first: int, bytes_max: int, last: int | None = None) -> tuple[Entry, ...]:
        """Return entries from ``first`` on, at least one if there is one, at most ``bytes_max`` bytes of them."""
        start = first - self.base_index - 1
        stop = len(self._entries) if last is None else last - self.base_index
        if start >= stop:
            return ()
        size = 0
        for position in range(start, stop):
            size += entry_bytes(self._entries[position])
            if size > bytes_max and position > start:
                return tuple(self._entries[start:position])
        return tuple(self._entries[start:stop])

    def append(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow the last one."""
        self._entries.extend(entries)

    def truncate(self, index: int) -> None:
        """Forget the entries from ``index`` on: they conflict with the leader's (section 5.3).

        Raises:
            InvariantViolated: one of them was committed (State Machine Safety, section 5.4.3).
        """
        if index <= self.commit_index:
            raise InvariantViolated(f"entry {index} conflicts with a leader's, yet {self.commit_index} is committed")
        del self._entries[index - self.base_index - 1 :]
        self.saved_index = min(self.saved_index, index - 1)
        self._handed_index = min(self._handed_index, index - 1)
        self._in_flight_index = min(self._in_flight_index, index - 1)

    def commit_to(self, index: int) -> bool:
        """Raise ``commit_index`` to ``index``; never lowers it. Return whether it rose.

        Raises:
            InvariantViolated: the log does not reach that far.
        """
        if index <= self.commit_index:
            return False
        if index > self.last_index:
            raise InvariantViolated(f"told that entry {index} is committed, but the log ends at {self.last_index}")
        self.commit_index = index
        return True

    def last_not_above(self, index: int, term: int) -> tuple[int, int]:
        """Return (index, term) of the last entry at or before ``index`` whose term is at most ``term`` (section 5.3).

        This is the fast way back to where two logs agree: it skips a whole term a message. (base, its term) when
        nothing here qualifies.
        """
        index = min(index, self.last_index)
        while index > self.base_index:
            found = self._entries[index - self.base_index - 1].term
            if found <= term:
                return index, found
            index -= 1
        return self.base_index, self.base_term

    # --- Saving -------------------------------------------------------------------------------------------------

    def has_unsaved(self) -> bool:
        """Tell whether there are entries that no save has been given."""
        return self._handed_index < self.last_index

    def take_unsaved(self) -> tuple[Entry, ...]:
        """Hand over what no save has been given yet; the caller starts a save with it."""
        entries = tuple(self._entries[self._handed_index - self.base_index :])
        self._handed_index = self._in_flight_index = self.last_index
        return entries

    def saved(self) -> None:
        """Take note that the save in flight is durable; what was truncated meanwhile does not count."""
        self.saved_index = max(self.saved_index, self._in_flight_index)

    # --- Applying -----------------------------------------------------------------------------------------------

    def has_applicable(self) -> bool:
        """Tell whether there are committed entries, durable here, that were not handed over."""
        return self.applied_index < min(self.commit_index, self.saved_index)

    def take_applicable(self, bytes_max: int) -> tuple[Entry, ...]:
        """Hand over the next committed entries, durable here, in order, at most ``bytes_max`` bytes (or one entry)."""
        entries = self.slice(self.applied_index + 1, bytes_max, min(self.commit_index, self.saved_index))
        if entries:
            self.applied_index = entries[-1].index
        return entries

    # --- Snapshots ----------------------------------------------------------------------------------------------

    def compact(self, index: int) -> None:
        """Forget entries up to and including ``index`` (section 7)."""
        if index <= self.base_index:
            return
        if index > self.applied_index:
            raise InvariantViolated(f"cannot compact to {index}: only {self.applied_index} is applied")
        term = self.term(index)
        if term is None:
            raise InvariantViolated(f"cannot compact to {index}: the log ends at {self.last_index}")
        del self._entries[: index - self.base_index]
        self.base_index, self.base_term = index, term

    def restore(self, index: int, term: int) -> None:
        """Replace the whole log by a snapshot that ends at ``index`` (section 7). It counts as saved once it is."""
        self._entries = []
        self.base_index, self.base_term = index, term
        self.commit_index = index
        self.saved_index = 0
        self._handed_index = index
        self._in_flight_index = 0
