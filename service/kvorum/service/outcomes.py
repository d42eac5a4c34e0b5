"""What every error code means, in one table that knows no protocol. Each front derives its own answers from it.

A code is stable: programs switch on it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

import msgspec


class Outcome(msgspec.Struct, frozen=True):
    """What an error means for the request.

    ``refused``: it is certainly not done, now or later. ``unknown``: it may be done, now or later.
    """

    effect: Literal["refused", "unknown"] = "refused"
    retry_after_s: int | None = None
    """When the same request may succeed; None: not by waiting."""


REFUSED = Outcome()
UNKNOWN = Outcome("unknown")
_REFUSED_FOR_NOW = Outcome(retry_after_s=1)

OUTCOMES = MappingProxyType(
    {
        # The request.
        "invalid_request": REFUSED,
        "too_large": REFUSED,
        # The key.
        "compare_failed": REFUSED,
        "key_not_found": REFUSED,
        # Leases and locks. A lock that is held may be free soon, but nobody knows when.
        "lease_not_found": REFUSED,
        "lease_exists": REFUSED,
        "too_many_leases": Outcome(retry_after_s=60),
        "lock_held": REFUSED,
        "lock_not_held": REFUSED,
        "not_elected": REFUSED,
        # The history: what is compacted does not come back, and a future revision may never come.
        "compacted": REFUSED,
        "future_revision": REFUSED,
        # The session: without its memory, nobody knows whether an earlier attempt was applied.
        "session_unknown": UNKNOWN,
        "session_stale": UNKNOWN,
        "session_ahead": REFUSED,
        "session_mismatch": REFUSED,
        "sessions_full": Outcome(retry_after_s=60),
        # The room for data: it comes back by deletes, and not by waiting.
        "no_space": REFUSED,
        # The cluster.
        "not_leader": REFUSED,
        "no_leader": _REFUSED_FOR_NOW,
        "wrong_cluster": REFUSED,
        "not_serving": _REFUSED_FOR_NOW,
        "overloaded": _REFUSED_FOR_NOW,
        "too_many_watchers": _REFUSED_FOR_NOW,
        "read_timeout": _REFUSED_FOR_NOW,
        "too_stale": _REFUSED_FOR_NOW,
        "membership_refused": REFUSED,
        "unknown_member": REFUSED,
        "transfer_failed": _REFUSED_FOR_NOW,
        "feature_unavailable": REFUSED,
        "feature_level_blocked": REFUSED,
        "outcome_unknown": UNKNOWN,
        "internal": UNKNOWN,
    }
)
"""Code -> outcome. ``internal`` stands for every exception that is not a CallerError."""

SESSION_REASONS = MappingProxyType(
    {
        "unknown": (
            "session_unknown",
            "there is no such session; it is not known whether an earlier attempt was applied",
        ),
        "stale": ("session_stale", "the answer to this sequence is no longer remembered"),
        "ahead": ("session_ahead", "the sequence is more than a window above the highest one seen"),
        "mismatch": ("session_mismatch", "this sequence was used by another request"),
        "full": ("sessions_full", "there are too many live sessions; try later, or write without an idempotency key"),
        "invalid": ("invalid_request", "the command exceeds a limit"),
    }
)
"""The state machine's reason to refuse a session -> the code and the sentence for the client."""
