"""What is on its way to the disk: one save at a time, and a snapshot with it (Figure 2, persistent state)."""

from __future__ import annotations

from kvorum.errors import InvariantViolated
from kvorum.raft.messages import Entry, HardState, Save, Snapshot


class Saves:
    """The save in flight. A snapshot from the leader is adopted, then saved, then restored, in that order (bug B26)."""

    def __init__(self) -> None:
        self._number = 0
        self._in_flight: HardState | None = None
        self._elapsed = 0
        self._snapshot_saving: Snapshot | None = None
        self.snapshot_to_save: Snapshot | None = None
        """Adopted in memory; part of the next save."""
        self.snapshot_to_restore: Snapshot | None = None
        """Durable; the driver has not been given it yet."""

    @property
    def is_in_flight(self) -> bool:
        """Whether the disk has not answered yet."""
        return self._in_flight is not None

    @property
    def is_restoring(self) -> bool:
        """Whether the log begins with a snapshot that is not durable yet."""
        return self.snapshot_to_save is not None or self._snapshot_saving is not None

    def tick(self) -> None:
        """Let one tick pass."""
        self._elapsed += 1

    def is_stalled(self, ticks: int) -> bool:
        """Tell whether the save in flight has taken ``ticks`` or longer."""
        return self.is_in_flight and self._elapsed >= ticks

    def begin(self, hard_state: HardState, entries: tuple[Entry, ...]) -> Save:
        """Put a save in flight; an adopted snapshot goes with it."""
        self._snapshot_saving, self.snapshot_to_save = self.snapshot_to_save, None
        self._number += 1
        self._elapsed = 0
        self._in_flight = hard_state
        return Save(self._number, hard_state, entries, self._snapshot_saving)

    def done(self, number: int) -> tuple[HardState, Snapshot | None]:
        """The disk answered; return what hard state and which snapshot are durable now.

        Raises:
            InvariantViolated: no such save is in flight.
        """
        if self._in_flight is None or number != self._number:
            raise InvariantViolated(f"save {number} is not in flight")
        hard_state, snapshot = self._in_flight, self._snapshot_saving
        self._in_flight = self._snapshot_saving = None
        if snapshot is not None:
            self.snapshot_to_restore = snapshot
        return hard_state, snapshot

    def take_restore(self) -> Snapshot | None:
        """Hand over the snapshot that the state machine must load."""
        snapshot, self.snapshot_to_restore = self.snapshot_to_restore, None
        return snapshot
