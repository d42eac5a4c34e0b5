"""Turns the problem that a node answered into the error that says so."""

from __future__ import annotations

from kvorum_client.errors import (
    FutureRevisionError,
    LeaseExistsError,
    LeaseNotFoundError,
    LockHeldError,
    NoSpaceError,
    RefusedError,
)
from kvorum_client.wire import id_of
from kvorum_wire import Problem


def refusal_of(status: int, problem: Problem, reason: str, *, perhaps_done: bool) -> RefusedError:
    """Return the error for a request that was refused.

    Args:
        status: the HTTP status.
        problem: the body.
        reason: one readable sentence.
        perhaps_done: an earlier attempt of the same call went into the dark.
    """
    match problem.code:
        case "no_space":
            return NoSpaceError(reason, problem.reason or "", problem.limit or 0, problem.used or 0)
        case "future_revision":
            return FutureRevisionError(reason, problem.revision or 0)
        case "lease_not_found":
            return LeaseNotFoundError(reason)
        case "lease_exists":
            return LeaseExistsError(reason, problem.ttl_s or 0, perhaps_done)
        case "lock_held":
            holder = id_of(problem.lease or None)
            return LockHeldError(reason, holder, problem.fencing_token or 0, problem.remaining_ms or 0)
        case _:
            return RefusedError(status, problem.code, reason)
