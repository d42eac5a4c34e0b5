"""How large anything in the replicated state may be, and the check that the API makes before it proposes.

The numbers are part of the state machine: two nodes with different numbers would compute different states from one
log. So they are constants of the code, and not configuration.
"""

from __future__ import annotations

import re

from kvorum.errors import InvalidRequestError, TooLargeError
from kvorum.kv.commands import ANY_REVISION, Command, Put

KEY_BYTES_MAX = 1024
"""Of a key; and a key has at least one byte."""
VALUE_BYTES_MAX = 1024 * 1024
"""Of a value; an empty value is a value."""
CLIENT_ID_CHARS_MAX = 64
"""Of a session's client id."""
CLUSTER_ID_BYTES_MAX = 64
"""Of the cluster id in UTF-8: the longest key of BLAKE2b."""
INTEGER_MAX = 2**63 - 1
"""Of a sequence or a revision: what every client's language can hold."""
INTEGER_MIN = -(2**63)
"""Of a lease's id, which 0 is not, and of what a compare compares with."""
BATCH_COMMANDS_MAX = 4096
"""Commands in one log entry: about 3 ms of applying, which is how long one entry may hold up the loop."""
TXN_LIST_MAX = 128
"""Compares, or operations, in one list of a transaction; of a nested one, less those of the lists around it (etcd)."""
TXN_OPERATIONS_MAX = 2048
"""Compares and operations of a transaction in all its branches."""
TXN_DEPTH_MAX = 16
"""Transactions around each other: their nesting is walked by recursion."""
TXN_BYTES_MAX = 1536 * 1024
"""Keys and values of a transaction in all its branches: etcd's limit of a request."""
TXN_KEYS_MAX = 10_000
"""Keys that a transaction may visit: deleting so many takes about 80 ms, which holds up the loop."""
TXN_ANSWER_BYTES_MAX = 4 * 1024 * 1024
"""Keys and values that a transaction may answer with."""
SESSION_WINDOW = 256
"""Answers that a session remembers, and how far its sequences may run ahead: what a client may have in flight."""
SESSIONS_MAX = 10_000
"""Live sessions."""
SESSIONS_ENDED_MAX = 50_000
"""Sessions that their clients ended within :data:`SESSION_IDLE_MS`; while there are so many, none is ended."""
SESSION_IDLE_MS = 3_600_000
"""A session may be evicted, when there are too many, once it has been idle for longer than this (of the log's time)."""

LEASES_MAX = 100_000
"""Leases at one time."""
LEASE_KEYS_MAX = 10_000
"""Keys attached to one lease: its end deletes them all in one entry, which cannot be refused (as TXN_KEYS_MAX)."""
LEASE_EXPIRY_MAX = 1024
"""Leases and keys together that end with one entry because their time is over, if more than one lease is due."""
LEASE_TTL_S_MIN = 2
"""Of a lease's time to live: less is taken as this (etcd)."""
LEASE_TTL_S_MAX = 9_000_000_000
"""Of a lease's time to live (etcd)."""
LEASE_DELAY_S_MAX = 60
"""Of a lease's lock-delay (Consul)."""

RECORD_OVERHEAD_BYTES = 288
"""What a key takes in memory beside the bytes of key and value, counted towards the quota (measured: 270)."""
VERSION_OVERHEAD_BYTES = 240
"""Likewise of a version that was replaced, beside its value and its key, which snapshots repeat (180 to 240)."""
TOMBSTONE_OVERHEAD_BYTES = 224
"""Likewise of a deletion, beside the key and the version that it deleted (measured: 110 to 210)."""
SESSION_OVERHEAD_BYTES = 512
"""Likewise of a session, beside its client id and its answers (measured: 330)."""
ENDED_SESSION_OVERHEAD_BYTES = 256
"""Likewise of an ended session, beside its client id (measured: 180)."""
LEASE_OVERHEAD_BYTES = 512
"""Likewise of a lease, without its keys (measured: 440)."""
LEASE_KEY_OVERHEAD_BYTES = 96
"""Likewise of a key that has a lease, beside its record (measured: 160 for the first of a lease, else 15 to 30)."""
QUOTA_BYTES_MIN = 1024 * 1024
"""Of the quota: less is a mistake in the unit."""
ORIGIN_WINDOW = 1024
"""Numbers of what a member handed over that are remembered, and how far apart those may be that it has outstanding."""

_CLIENT_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{CLIENT_ID_CHARS_MAX}}}")


def check_command(command: Command) -> None:
    """Refuse what the state machine would refuse, before it costs a round of consensus.

    What passes here is never refused as ``invalid`` when it is applied.

    Raises:
        TooLargeError: the key or the value is too long.
        InvalidRequestError: an empty key, a revision below -1, or a session that is not one.
    """
    if not command.key:
        raise InvalidRequestError("the key is empty")
    if len(command.key) > KEY_BYTES_MAX:
        raise TooLargeError(f"the key has {len(command.key)} bytes", KEY_BYTES_MAX)
    if isinstance(command, Put) and len(command.value) > VALUE_BYTES_MAX:
        raise TooLargeError(f"the value has {len(command.value)} bytes", VALUE_BYTES_MAX)
    if not ANY_REVISION <= command.prev_revision <= INTEGER_MAX:
        raise InvalidRequestError(f"prev_revision {command.prev_revision} is not a revision, nor 0, nor -1")
    check_session(command.client_id, command.sequence)


def check_client_id(client_id: str) -> None:
    """Refuse what is no client id.

    Raises:
        InvalidRequestError: it has other characters, none, or too many.
    """
    # These characters fit in a header as they are, and always encode (a lone surrogate would not).
    if not _CLIENT_ID.fullmatch(client_id):
        raise InvalidRequestError(f"a client id is 1 to {CLIENT_ID_CHARS_MAX} of A-Z a-z 0-9 . _ -")


def check_session(client_id: str, sequence: int) -> None:
    """Refuse what is no session, and not none (an empty id and 0) either.

    Raises:
        InvalidRequestError: it is neither.
    """
    if not client_id and not sequence:
        return
    if not client_id:
        raise InvalidRequestError(f"sequence {sequence} without a client id")
    check_client_id(client_id)
    if sequence == 1 and client_id in {".", ".."}:
        raise InvalidRequestError(
            "the client id is '.' or '..', which HTTP libraries remove from a path: its session "
            "could not be ended; choose another one"
        )
    if not 1 <= sequence <= INTEGER_MAX:
        raise InvalidRequestError(f"sequence {sequence} is not from 1 to {INTEGER_MAX:,}")
