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
        self._snapshot_to_save: Snapshot | None = None
        self._snapshot_saving: Snapshot | None = None
        self._snapshot_to_restore: Snapshot | None = None

    @property
    def is_in_flight(self) -> bool:
        """Whether the disk has not answered yet."""
        return self._in_flight is not None

    @property
    def is_restoring(self) -> bool:
        """Whether the log begins with a snapshot that is not durable yet."""
        return self.has_snapshot or self._snapshot_saving is not None

    @property
    def has_snapshot(self) -> bool:
        """Whether the next save carries a snapshot."""
        return self._snapshot_to_save is not None

    def adopt(self, snapshot: Snapshot) -> None:
        """Let the next save carry this snapshot; it will be restored, and no older one."""
        self._snapshot_to_save = snapshot
        self._snapshot_to_restore = None

    def tick(self) -> None:
        """Let one tick pass."""
        self._elapsed += 1

    def is_stalled(self, ticks: int) -> bool:
        """Tell whether the save in flight has taken ``ticks`` or longer."""
        return self.is_in_flight and self._elapsed >= ticks

    def begin(self, hard_state: HardState, entries: tuple[Entry, ...]) -> Save:
        """Put a save in flight; an adopted snapshot goes with it."""
        self._snapshot_saving, self._snapshot_to_save = self._snapshot_to_save, None
        self._number += 1
        self._elapsed = 0
        self._in_flight = hard_state
        return Save(self._number, hard_state, entries, self._snapshot_saving)

    def done(self, number: int) -> HardState:
        """The disk answered; return what hard state is durable now.

        Raises:
            InvariantViolated: no such save is in flight.
        """
        if self._in_flight is None or number != self._number:
            raise InvariantViolated(f"save {number} is not in flight")
        hard_state = self._in_flight
        if not self.has_snapshot:
            self._snapshot_to_restore = self._snapshot_saving or self._snapshot_to_restore
        self._in_flight = self._snapshot_saving = None
        return hard_state

    def take_restore(self) -> Snapshot | None:
        """Hand over the snapshot that the state machine must load."""
        snapshot, self._snapshot_to_restore = self._snapshot_to_restore, None
        return snapshot
