"""How old the applied state may be, and how long ago the leader was heard."""

from __future__ import annotations

from math import ceil

from kvorum.node.ports import Clock
from kvorum.node.state import State


class Staleness:
    """Ages on this node's own clock.

    The age of the state is a bound, which no pause, partition or delay of a message can make too small. It counts from
    the moment at which this node asked for the last read barrier that it passed (:mod:`kvorum.node.reads`): a quorum
    confirmed the leader after that moment, and everything the leader had committed by then is applied here.

    Args:
        state: what is applied.
        clock: its boottime measures the ages: a machine that was suspended has an old state.
    """

    def __init__(self, state: State, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._heard_s: float | None = None

    def leader_heard(self) -> None:
        """Note a message of the leader."""
        self._heard_s = self._clock.boottime()

    def bound_ms(self) -> int | None:
        """Return the milliseconds since a moment by which nothing was committed that is not applied here, or None."""
        return self._age_ms(self._state.current_as_of_s)

    def contact_ms(self) -> int | None:
        """Return the milliseconds since the leader was heard (on a leader: since a quorum confirmed it), or None."""
        return self._age_ms(max((at for at in (self._heard_s, self._state.current_as_of_s) if at), default=None))

    def _age_ms(self, since_s: float | None) -> int | None:
        # Rounded up: a bound that is rounded down is none.
        return None if since_s is None else ceil((self._clock.boottime() - since_s) * 1000)
