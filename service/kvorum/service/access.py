"""Who asks, and whether they may."""

from __future__ import annotations

from typing import assert_never

import msgspec

from kvorum.service.requests import (
    AcquireLock,
    AddMember,
    Batch,
    CheckLiveness,
    CheckReadiness,
    Compact,
    Delete,
    EndSession,
    FinalizeUpgrade,
    Get,
    GetHistory,
    GetLeader,
    GetLease,
    GetLock,
    GetMetrics,
    GetQuota,
    GetStateHash,
    GetStatus,
    GetVersion,
    GrantLease,
    ListLeases,
    ListLocks,
    ListMembers,
    ProclaimLeader,
    PromoteMember,
    Put,
    PutWithOptions,
    Range,
    ReleaseLock,
    RemoveMember,
    RenewLease,
    Request,
    RevokeLease,
    SetQuota,
    Snapshot,
    TransferLeadership,
    Txn,
    Watch,
)


class Principal(msgspec.Struct, frozen=True):
    """Who makes a request."""

    name: str
    address: str = ""
    """Where the request came from, without a port: a client's host, or what stands in front of it. Empty: not known."""


ANONYMOUS = Principal("anonymous")
"""Everybody: there is no authentication."""


def authorize(principal: Principal, request: Request) -> None:
    """Let the principal make the request. Today everybody may do everything.

    There is one row for each kind of permission, and every request is in one of them: a request that is in none is a
    type error here, and an AssertionError when it is made.
    """
    match request:
        case Put() | PutWithOptions() | Delete() | EndSession():  # Write keys.
            return
        case Txn() | Batch():  # Read and write keys, by the operations of all branches.
            return
        case Get() | GetHistory() | Range() | Watch():  # Read keys.
            return
        case GrantLease():  # Take the room of a lease, which has no keys yet.
            return
        case RenewLease() | RevokeLease():  # Write the keys of a lease.
            return
        case GetLease() | ListLeases():  # Read the keys of leases.
            return
        case AcquireLock() | ReleaseLock() | ProclaimLeader():  # Read and write the keys of a lock.
            return
        case GetLock() | ListLocks():  # Read the keys of locks.
            return
        case Compact():  # Give up the history of all keys.
            return
        case GetStatus() | GetStateHash() | GetLeader() | GetQuota() | ListMembers():  # Look at the cluster.
            return
        case AddMember() | PromoteMember() | RemoveMember() | TransferLeadership() | SetQuota():  # Change the cluster.
            return
        case FinalizeUpgrade():  # Change the cluster for good.
            return
        case Snapshot():  # Read all keys at once.
            return
        case GetMetrics():  # Look at the metrics.
            return
        case CheckLiveness() | CheckReadiness() | GetVersion():  # Needs no permission: a kubelet has no credentials.
            return
        case _:
            assert_never(request)
