"""The replicated state as this node has it: applied entry by entry, or replaced as a whole."""

from __future__ import annotations

import logging

from kvorum.kv.state_hash import STATE_SUM_BYTES, Mismatch, StateDigest
from kvorum.kv.store import Store
from kvorum.node.hashes import StateHashes

log = logging.getLogger("kvorum.state")

SUM_MODULUS = 1 << 8 * STATE_SUM_BYTES
SUSPICIONS_MAX = 64
"""Sums that are looked for while nobody has decided: all those that six sweeps make possible."""


class State:
    """What is served.

    Args:
        store: the state at start.

    Attributes:
        store: the applied state; a new object after a snapshot was installed or the state rebuilt.
        hashes: its hash after each of the last entries.
        bytes_since_snapshot: of the entries that were applied since a snapshot was begun.
        current_as_of_s: everything committed by this moment of the boottime clock is applied; None: not known.
        suspected_shifts: sweeps found that memory does not hold what was applied, or that the sum kept of it is wrong,
            and nobody has decided yet which of the two; or this was found of the snapshot that was loaded at start.
            What may have to be added to the sum, modulo 2^128, to get the one that was expected: after two findings
            either difference or both, since a record that had changed may have been overwritten. Empty: there is no
            suspicion.
        is_in_doubt: something says that memory may not hold what was applied: a sweep is to find out soon.
        is_wrong: it was found to differ from the majority's, and is being replaced: nothing is taken from it.
        is_given_up: it was dropped to make room for the state of a snapshot that is being loaded: it is empty, and
            nothing is read from it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.hashes = StateHashes()
        self.bytes_since_snapshot = 0
        self.current_as_of_s: float | None = None
        self.suspected_shifts: tuple[int, ...] = () if store.mismatch is None else (_suspect(store.mismatch),)
        self.is_in_doubt = False
        self.is_wrong = False
        self.is_given_up = False

    @property
    def may_be_wrong(self) -> bool:
        """Whether no snapshot may be taken: the state is wrong, or is suspected to be, or was given up."""
        return self.is_wrong or self.is_given_up or bool(self.suspected_shifts)

    def suspect(self, shift: int) -> None:
        """Take note that a sweep found another sum than was kept; ``shift`` is what was kept, less what was found."""
        earlier = self.suspected_shifts
        with_earlier = ((shift + each) % SUM_MODULUS for each in earlier)
        self.suspected_shifts = tuple(dict.fromkeys((shift, *with_earlier, *earlier)))[:SUSPICIONS_MAX]

    def expected_sums(self, digest: StateDigest) -> tuple[int, ...]:
        """Return the sums one of which ``digest`` would have if memory held what was applied, as far as suspected."""
        if digest.records is None:
            return ()
        return tuple((digest.records + shift) % SUM_MODULUS for shift in self.suspected_shifts if shift)

    def give_up(self) -> None:
        """Drop it, and serve nothing until :meth:`replace`: two states may be more than memory holds."""
        self.store = self.store.give_up()
        self.is_given_up = True
        self.current_as_of_s = None
        self.suspected_shifts = ()
        self.hashes.forget()

    def replace(self, store: Store) -> None:
        """Serve this state from now on. Its records have the sum that its snapshot carries."""
        self.store = store
        self.is_wrong = False
        self.is_given_up = False
        self.bytes_since_snapshot = 0
        self.current_as_of_s = None
        self.suspected_shifts = ()
        self.hashes.forget()
        self.hashes.applied(store.applied_index, store.digest)


def _suspect(mismatch: Mismatch) -> int:
    """Log that the snapshot that was loaded is of a state that memory had changed; return the shift of its sum."""
    log.critical(
        "the snapshot at index %d does not match its state sum: computed %032x, stored %032x; "
        "asking the other members whether its records are wrong",
        mismatch.index,
        mismatch.found,
        mismatch.expected,
    )
    return (mismatch.expected - mismatch.found) % SUM_MODULUS
