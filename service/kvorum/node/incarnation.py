"""Who a node is when it starts: its name, and the incarnation that lives with its log."""

from __future__ import annotations

import secrets

import msgspec

from kvorum.identity import Identity
from kvorum.storage.interface import Loaded


def identity_at_start(name: str, loaded: Loaded) -> Identity:
    """Return who we are.

    A node that was killed after its cluster's id was durable, and before anything else was, promised nothing to
    anybody: it forgets that cluster, so that one which never began can begin.
    """
    if loaded.identity is None:
        return Identity(name, secrets.token_hex(8))
    if loaded.hard_state.current_term or loaded.entries or loaded.snapshot is not None:
        return loaded.identity
    return msgspec.structs.replace(loaded.identity, cluster_id="")
