"""The Python client of Kvorum.

::

    async with Client(["http://127.0.0.1:8001"]) as kv:
        await kv.put("greeting", "hello")
        record = await kv.get("greeting")

Theory of operation. A call has one deadline. Within it the client tries node after node: it follows the leader's
hints, fails over when a node does not answer, and waits a little, with jitter, when nobody leads. Reads may be asked
twice; so may writes, because each carries a session's id and a sequence number, and the cluster applies it once and
remembers the answer (:mod:`kvorum_client.sessions`). When the deadline passes, the error says which of two things is
true: nothing was done (:class:`UnavailableError`), or nobody can tell (:class:`OutcomeUnknownError`).

Any number of calls may be made at once; 64 of them (``concurrent_calls_max``) are in progress, and the others wait for
their turn (:mod:`kvorum_client.concurrency`).

Leases are kept alive in the background (:mod:`kvorum_client.leases`), and locks and elections have one each
(:mod:`kvorum_client.locks`). Their calls take no turn: a renewal must not wait.

Needs aiohttp and msgspec; imports nothing of ``kvorum``.
"""

from typing import TYPE_CHECKING

from kvorum_client.backup import Backup
from kvorum_client.client import Client
from kvorum_client.elections import Election
from kvorum_client.errors import (
    BackupDamagedError,
    ClientError,
    CompactedError,
    CompareFailedError,
    FutureRevisionError,
    InvalidArgumentError,
    LeaseExistsError,
    LeaseLostError,
    LeaseNotFoundError,
    LockHeldError,
    LockLostError,
    NoSpaceError,
    OutcomeUnknownError,
    RefusedError,
    UnavailableError,
    WrongClusterError,
)
from kvorum_client.leases import Lease, LeaseGranted, LeaseInfo
from kvorum_client.locks import Lock, LockHolder, LockInfo
from kvorum_client.results import (
    CommonPrefix,
    Compacted,
    DeleteResult,
    History,
    KeyVersion,
    Member,
    NodeHealth,
    NodeStatus,
    Page,
    PutResult,
    Quota,
    Record,
    WatchEvent,
)
from kvorum_client.sync import SyncClient
from kvorum_client.sync_coordination import SyncElection, SyncLease, SyncLock
from kvorum_client.transactions import (
    CreateRevision,
    Delete,
    DeleteDone,
    Get,
    GetDone,
    LeaseId,
    ModRevision,
    Put,
    PutDone,
    Transaction,
    TxnDone,
    TxnResult,
    Value,
    Version,
)
from kvorum_client.watch import SyncWatch, Watch

if not TYPE_CHECKING:
    # Type checkers must go on reporting names that do not exist.
    from kvorum_client.errors import __getattr__ as __getattr__

__all__ = [
    "Backup",
    "BackupDamagedError",
    "Client",
    "ClientError",
    "CommonPrefix",
    "Compacted",
    "CompactedError",
    "CompareFailedError",
    "CreateRevision",
    "Delete",
    "DeleteDone",
    "DeleteResult",
    "Election",
    "FutureRevisionError",
    "Get",
    "GetDone",
    "History",
    "InvalidArgumentError",
    "KeyVersion",
    "Lease",
    "LeaseExistsError",
    "LeaseGranted",
    "LeaseId",
    "LeaseInfo",
    "LeaseLostError",
    "LeaseNotFoundError",
    "Lock",
    "LockHeldError",
    "LockHolder",
    "LockInfo",
    "LockLostError",
    "Member",
    "ModRevision",
    "NoSpaceError",
    "NodeHealth",
    "NodeStatus",
    "OutcomeUnknownError",
    "Put",
    "PutDone",
    "Page",
    "PutResult",
    "Quota",
    "Record",
    "RefusedError",
    "SyncClient",
    "SyncElection",
    "SyncLease",
    "SyncLock",
    "SyncWatch",
    "Transaction",
    "TxnDone",
    "TxnResult",
    "UnavailableError",
    "Value",
    "Version",
    "Watch",
    "WatchEvent",
    "WrongClusterError",
]
