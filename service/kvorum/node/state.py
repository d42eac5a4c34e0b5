"""The replicated state as this node has it: applied entry by entry, or replaced as a whole."""

from __future__ import annotations

from kvorum.kv.store import Store
from kvorum.node.hashes import StateHashes


class State:
    """What is served.

    Args:
        store: the state at start.

    Attributes:
        store: the applied state; a new object after a snapshot was installed or the state rebuilt.
        hashes: its hash after each of the last entries.
        bytes_since_snapshot: of the entries that were applied since a snapshot was begun.
        current_as_of_s: everything committed by this moment of the monotonic clock is applied; None: not known.
        is_wrong: it was found to differ from the majority's, and is being replaced: nothing is taken from it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.hashes = StateHashes()
        self.bytes_since_snapshot = 0
        self.current_as_of_s: float | None = None
        self.is_wrong = False

    def replace(self, store: Store) -> None:
        """Serve this state from now on."""
        self.store = store
        self.bytes_since_snapshot = 0
        self.current_as_of_s = None
        self.hashes.forget()
        self.hashes.applied(store.applied_index, store.state_hash)
