"""The commands of the replicated state, their results, and their encoding.

One log entry carries one :class:`Batch`: everything that was asked in one turn of the leader's loop. A field that this
version does not know is refused (``forbid_unknown_fields``): a node that applied a command without its newer half would
silently go its own way.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kvorum.kv.operations import OPERATION_FIELDS, Compare, Operation, OperationResult

ANY_REVISION = -1
"""``prev_revision``: do not compare."""
MUST_NOT_EXIST = 0
"""``prev_revision``: create only."""


class Put(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="p", gc=False):
    """Set a key. With ``prev_revision`` only if the key's mod_revision is that (0: only if it does not exist).

    ``client_id`` and ``sequence`` (from 1) make a retry safe: it is applied once (thesis 6.3). Empty: no session.
    """

    key: bytes
    value: bytes
    prev_revision: int = ANY_REVISION
    client_id: str = ""
    sequence: int = 0


class Delete(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="d", gc=False):
    """Remove a key; otherwise as :class:`Put`."""

    key: bytes
    prev_revision: int = ANY_REVISION
    client_id: str = ""
    sequence: int = 0


Command = Put | Delete
"""What a client may ask for: a change of one key, possibly in a session."""


class Txn(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="t"):
    """Do ``then`` if all compares hold, and ``otherwise`` if not: all of it at one revision, or nothing.

    The session is as in :class:`Put`. A retry is answered without what was read (:class:`TxnResult`).
    """

    compares: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()
    client_id: str = ""
    sequence: int = 0


Write = Command | Txn
"""What a client may ask for, possibly in a session: a change of one key, or a transaction."""


class RaiseFeatureLevel(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="f"):
    """Raise the cluster's feature level to ``level``, one above the present one. The only command of its entry.

    It is refused, by every version alike, when a member at its index is not in ``versions`` or supports less.
    """

    level: int
    versions: dict[str, int]
    """Member id -> the highest feature level that this member has announced."""
    cluster_id: str
    """The key of the state hash from level 2 on (later raises leave that key as it is)."""


class EndSession(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="e"):
    """End a session whose client knows the outcome of all its writes, so that another may take its place at once.

    Its id stays refused for as long as an idle session would have been kept: a write that is still on its way must not
    open the session anew and be applied a second time.
    """

    client_id: str


class SetQuota(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="q"):
    """Set the quota on data (:mod:`kvorum.kv.quota`). It may be below what is held: then puts are refused."""

    limit_bytes: int
    source: str
    """Who proposes it: one of the sources of :mod:`kvorum.kv.quota`, which decides whether it counts."""


class Compact(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="c", gc=False):
    """Forget the history below a revision, which becomes the floor: no earlier revision can be read afterwards."""

    revision: int
    """Above the present floor, and at most the store's revision."""


class LeaseGrant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="lg", gc=False):
    """Create a lease (:mod:`kvorum.kv.leases`), whose id the proposer chooses: any signed 64-bit integer but 0."""

    id: int
    ttl_s: int
    """Time to live after the grant and after each renewal; less than 2 is taken as 2."""
    delay_s: int = 0
    """Lock-delay: how much later than its deadline the keys of the lease are deleted."""


class LeaseRenew(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="lr", gc=False):
    """Let a lease live for its time to live from now on."""

    id: int


class LeaseRevoke(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="lv", gc=False):
    """End a lease, and delete its keys, at once; also one whose deadline passed, during its lock-delay."""

    id: int


LeaseCommand = LeaseGrant | LeaseRenew | LeaseRevoke
"""What a client may ask for about a lease. No session: each of them may be repeated."""

ClientCommand = Write | EndSession | LeaseCommand
"""What a client may have proposed: a change of keys, the end of a session, or a change of leases."""

QueuedCommand = ClientCommand | SetQuota | Compact
"""What shares an entry with other commands, while its caller waits for the result."""

BatchCommand = QueuedCommand | RaiseFeatureLevel
"""Everything that an entry may carry."""


class Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One log entry's commands, in order; ``time_ms`` is the log time (Unix, ms) when the leader proposed them.

    Versions before 0.2.0 write the leader's wall clock.
    """

    time_ms: int
    commands: tuple[BatchCommand, ...]


class PutResult(msgspec.Struct, frozen=True, array_like=True, tag="p", gc=False):
    """The key's record after the put; ``revision`` is the cluster-wide revision that the put created."""

    revision: int
    create_revision: int
    mod_revision: int
    version: int


class DeleteResult(msgspec.Struct, frozen=True, array_like=True, tag="d", gc=False):
    """``deleted`` is 1 or 0; a delete that found nothing creates no revision."""

    revision: int
    deleted: int


class CompareFailed(msgspec.Struct, frozen=True, array_like=True, tag="c", gc=False):
    """Nothing was done: the key's ``mod_revision`` (0: it does not exist) is not the one that was asked for."""

    revision: int
    mod_revision: int


class TxnResult(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """What came of a transaction: which branch was taken, and the store's revision afterwards."""

    revision: int
    succeeded: bool
    """Whether all compares held: ``then`` was done, else ``otherwise``."""
    deleted: int
    """How many keys were removed in all."""
    results: tuple[OperationResult, ...] | None
    """One for each operation of the branch. None: they are not kept."""
    replayed: bool = False
    """This answers the retry of a transaction that was done at ``revision``. What it read is not kept, nor previous
    values; of a branch that was a single put the rest of its result is."""


class TxnRefused(msgspec.Struct, frozen=True, array_like=True, tag="tr", gc=False):
    """Nothing was done, and a session does not remember it; ``reason`` says why.

    ``key_not_found``: the value or the lease of ``key`` was to be kept, and there is no such key. ``compacted``,
    ``future``: the revision ``number`` cannot be read. ``too_many_keys``: the transaction would visit more than
    ``number`` keys, with the range at ``key``. ``answer_too_large``: likewise it would answer with more than ``number``
    bytes. ``lease_not_found``: the lease ``number``, which ``key`` was to have, does not exist, or its deadline passed.
    ``lease_full``: with ``key`` the lease ``number`` would have too many keys.
    """

    revision: int
    reason: str
    key: bytes
    number: int


class SessionRefused(msgspec.Struct, frozen=True, array_like=True, tag="s", gc=False):
    """Nothing was done now; ``reason`` says why.

    ``unknown``: no such session, and the sequence is not 1, or the session was ended (it expired, or never was: whether
    an earlier try of this request was applied cannot be known). ``stale``: the sequence is below the window of
    remembered answers. ``ahead``: more than a window above the highest sequence seen. ``mismatch``: this sequence was
    used by another request. ``full``: too many live sessions; try later. (Of an :class:`EndSession`: too many sessions
    were ended within the hour.) ``invalid``: the command or its batch passes a limit of :mod:`kvorum.kv.limits` (with
    or without a session), or comes before its feature level; only a node that does not check proposes it.
    """

    revision: int
    reason: str


class SessionEnded(msgspec.Struct, frozen=True, array_like=True, tag="e", gc=False):
    """The session is ended, now or by an earlier attempt."""

    revision: int


class NoSpace(msgspec.Struct, frozen=True, array_like=True, tag="n", gc=False):
    """Nothing was done: the data takes more than the quota."""

    revision: int
    limit_bytes: int
    used_bytes: int


class QuotaSet(msgspec.Struct, frozen=True, array_like=True, tag="q", gc=False):
    """The quota that is in force after the command."""

    revision: int
    limit_bytes: int


class Compacted(msgspec.Struct, frozen=True, array_like=True, tag="k", gc=False):
    """The history below ``floor`` is forgotten. ``revision`` is the store's."""

    revision: int
    floor: int


class CompactRefused(msgspec.Struct, frozen=True, array_like=True, tag="kr", gc=False):
    """Nothing was done: the floor stays at ``floor``; ``reason`` says why.

    ``compacted``: the command's revision is not above the floor. ``future``: it is above the store's ``revision``.
    """

    revision: int
    floor: int
    reason: str


class LeaseGranted(msgspec.Struct, frozen=True, array_like=True, tag="lg", gc=False):
    """The lease lives. ``revision`` is the store's; a grant makes none."""

    revision: int
    ttl_s: int


class LeaseRenewed(msgspec.Struct, frozen=True, array_like=True, tag="lr", gc=False):
    """The lease lives for ``ttl_s`` from now on. ``revision`` is the store's; a renewal makes none."""

    revision: int
    ttl_s: int


class LeaseRevoked(msgspec.Struct, frozen=True, array_like=True, tag="lv", gc=False):
    """The lease is gone, and with it ``deleted`` keys, all at ``revision``, which is new unless there were none."""

    revision: int
    deleted: int


class LeaseRefused(msgspec.Struct, frozen=True, array_like=True, tag="lf", gc=False):
    """Nothing was done; ``reason`` says why.

    ``exists``: there is a lease of that id (perhaps this is the retry of a grant that was done). ``not_found``: there
    is none, or its deadline passed. ``too_many``: there are as many leases as there may be.
    """

    revision: int
    reason: str


class FeatureLevelRaised(msgspec.Struct, frozen=True, array_like=True, tag="f", gc=False):
    """The feature level is ``level`` from the next entry on."""

    revision: int
    level: int


class FeatureLevelRefused(msgspec.Struct, frozen=True, array_like=True, tag="fr", gc=False):
    """The feature level stays at ``level``; ``reason`` says why.

    ``order``: the command asks for another level than the next one. ``blocked``: a member, named in ``members``, is not
    known to support it. ``members``: the members are not known. ``invalid``: the command is not alone in its entry, or
    its cluster id is empty or too long.
    """

    revision: int
    level: int
    reason: str
    members: tuple[str, ...] = ()


Result = (
    PutResult
    | DeleteResult
    | CompareFailed
    | TxnResult
    | TxnRefused
    | SessionRefused
    | SessionEnded
    | NoSpace
    | QuotaSet
    | Compacted
    | CompactRefused
    | LeaseGranted
    | LeaseRenewed
    | LeaseRevoked
    | LeaseRefused
    | FeatureLevelRaised
    | FeatureLevelRefused
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_newer_decoder = msgspec.msgpack.Decoder(list[object])
_FIELDS = {
    str(kind.__struct_config__.tag): len(kind.__struct_fields__) + 1
    for kind in (
        Put,
        Delete,
        Txn,
        RaiseFeatureLevel,
        EndSession,
        SetQuota,
        Compact,
        LeaseGrant,
        LeaseRenew,
        LeaseRevoke,
    )
}
"""Tag of a command -> the length of its array."""
_TXN = str(Txn.__struct_config__.tag)
"""Also the tag of a nested transaction, whose branches are at the same places."""


def encode_batch(time_ms: int, commands: Sequence[BatchCommand]) -> bytes:
    """Return the bytes of a log entry's data."""
    return _encoder.encode(Batch(time_ms, tuple(commands)))


def decode_batch(data: bytes) -> Batch:
    """Return the batch that these bytes are.

    Raises:
        msgspec.DecodeError: they are not a batch.
    """
    try:
        return _decoder.decode(data)
    except UnicodeDecodeError as error:  # msgspec lets it through as it is
        raise msgspec.DecodeError(f"a string is not UTF-8: {error}") from error
    except RecursionError as error:
        raise msgspec.DecodeError("transactions are nested too deep") from error


def unknown_part(data: bytes) -> str | None:
    """Return what a newer version may have put into these bytes, which are no batch to this one; None: nothing.

    They are damaged if this finds nothing: neither a command of an unknown tag, nor a field more than there should be.
    """
    try:
        batch = _newer_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(batch) < 2 or not isinstance(batch[0], int) or not isinstance(batch[1], list):
        return None
    for command in batch[1]:
        if not isinstance(command, list) or not command or not isinstance(command[0], str):
            return None
        if command[0] not in _FIELDS:
            return f"a command {command[0][:32]!r}"
        if len(command) > _FIELDS[command[0]]:
            return f"a field of the command {command[0]!r}"
        if command[0] == _TXN and (unknown := _unknown_operation(command[2:4])) is not None:
            return unknown
    return "a field of the batch" if len(batch) > 2 else None


def _unknown_operation(branches: list[object]) -> str | None:
    """Return what a newer version may have put into the branches of a transaction."""
    for branch in branches:
        for operation in branch if isinstance(branch, list) else ():
            if not isinstance(operation, list) or not operation or not isinstance(operation[0], str):
                return None
            fields = OPERATION_FIELDS.get(operation[0])
            if fields is None:
                return f"an operation {operation[0][:32]!r} of a transaction"
            if len(operation) > fields:
                return f"a field of the operation {operation[0]!r}"
            if operation[0] == _TXN and (unknown := _unknown_operation(operation[2:4])) is not None:
                return unknown
    return None
