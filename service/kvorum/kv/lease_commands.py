"""What the commands about leases do to the state, and what the log's time does (:mod:`kvorum.kv.leases`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, assert_never

from kvorum.kv.commands import (
    LeaseCommand,
    LeaseGrant,
    LeaseGranted,
    LeaseRefused,
    LeaseRenew,
    LeaseRenewed,
    LeaseRevoke,
    LeaseRevoked,
)
from kvorum.kv.leases import NOT_FOUND, LeaseRow, Leases, deadline_after
from kvorum.kv.limits import LEASE_TTL_S_MIN
from kvorum.kv.records import Record
from kvorum.kv.state_hash import Changes
from kvorum.kv.versions import Versions

LeaseResult = LeaseGranted | LeaseRenewed | LeaseRevoked | LeaseRefused


class State(Protocol):
    """What they read and change: the store."""

    revision: int
    time_ms: int
    versions: Versions
    leases: Leases

    def remove_record(self, old: Record, revision: int) -> None:
        """Remove a key whose record is ``old``; the store's revision is ``revision`` afterwards."""


def run_lease_command(command: LeaseCommand, state: State, changes: Changes) -> LeaseResult:
    """Do what a command within the limits (:func:`kvorum.kv.leases.is_possible`) asks for, or refuse it."""
    match command:
        case LeaseGrant():
            return _grant(command, state, changes)
        case LeaseRenew():
            return _renew(command, state, changes)
        case LeaseRevoke():
            return _revoke(command, state, changes)
        case _:
            assert_never(command)


def expire(state: State, changes: Changes) -> None:
    """Advance the time of the leases to the log's, and delete the keys of those that are due, as far as one entry does.

    Each lease with keys takes one revision.
    """
    for lease, keys in state.leases.advance(state.time_ms):
        changes.lease_end(lease.id, is_expiry=True)
        _delete(keys, state)


def _grant(command: LeaseGrant, state: State, changes: Changes) -> LeaseGranted | LeaseRefused:
    ttl_s = max(command.ttl_s, LEASE_TTL_S_MIN)
    row = LeaseRow(command.id, ttl_s, command.delay_s, deadline_after(state.time_ms, ttl_s))
    refusal = state.leases.grant(row)
    if refusal is not None:
        return LeaseRefused(state.revision, refusal)
    changes.lease(row.id, row.ttl_s, row.delay_s, row.deadline_ms)
    return LeaseGranted(state.revision, ttl_s)


def _renew(command: LeaseRenew, state: State, changes: Changes) -> LeaseRenewed | LeaseRefused:
    lease = state.leases.living(command.id)
    if lease is None:
        return LeaseRefused(state.revision, NOT_FOUND)
    state.leases.renew(lease, state.time_ms)
    changes.lease(lease.id, lease.ttl_s, lease.delay_s, lease.deadline_ms)
    return LeaseRenewed(state.revision, lease.ttl_s)


def _revoke(command: LeaseRevoke, state: State, changes: Changes) -> LeaseRevoked | LeaseRefused:
    lease = state.leases.get(command.id)
    if lease is None:
        return LeaseRefused(state.revision, NOT_FOUND)
    keys = state.leases.remove(lease)
    changes.lease_end(lease.id, is_expiry=False)
    _delete(keys, state)
    return LeaseRevoked(state.revision, len(keys))


def _delete(keys: Sequence[bytes], state: State) -> None:
    """Delete the keys of a lease that is gone, in order, at one revision."""
    revision = state.revision + 1
    for key in keys:
        state.remove_record(state.versions.records[key], revision)
