"""Transactions, batches, and the puts that need one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from kvorum.errors import (
    CallerError,
    CompareFailedError,
    InvalidRequestError,
    InvariantViolatedError,
    KeyNotFoundError,
    LeaseError,
    NoSpaceError,
    NotLeaderError,
    RevisionCompactedError,
    RevisionInFutureError,
    TooLargeError,
)
from kvorum.kv import commands, txn
from kvorum.kv.commands import ANY_REVISION, NoSpace, PutResult, SessionRefused, TxnRefused, TxnResult
from kvorum.kv.features import LEASE_LEVEL, check_command_level
from kvorum.kv.limits import LEASE_KEYS_MAX, TXN_ANSWER_BYTES_MAX, check_command
from kvorum.kv.operations import Compare, LeasedPutOp, PutOp, PutOpResult, RangeOp, RangeOpResult
from kvorum.kv.txn_check import check_transaction, is_read_only
from kvorum.service.access import Principal
from kvorum.service.limits import BATCH_OPERATIONS_MAX, bounded_timeout_ms
from kvorum.service.node_port import NodePort
from kvorum.service.refusals import Refusals, session_error
from kvorum.service.requests import Batch, BatchItem, PutWithOptions, Txn
from kvorum.service.results import BatchResult, PutWithPrevious


class Transactions:
    """The transactions of one node's clients.

    Args:
        node: the node.
        now: a monotonic clock, in seconds.
        refusals: makes the errors for what is not proposed or not applied.
        hands_over: a node that does not lead hands transactions to the leader.
    """

    def __init__(
        self,
        node: NodePort,
        now: Callable[[], float],
        refusals: Refusals,
        *,
        hands_over: bool = False,
    ) -> None:
        self._hands_over = hands_over
        self._node = node
        self._now = now
        self._refusals = refusals
        self._counters = node.counters

    async def txn(self, principal: Principal, request: Txn) -> TxnResult:
        """Do a transaction. One that only reads makes no log entry, and any node does it."""
        command = commands.Txn(request.compares, request.then, request.otherwise, request.client_id, request.sequence)
        return await self._do(principal, command, self._bounded(request.timeout_ms))

    async def put(self, principal: Principal, request: PutWithOptions) -> PutWithPrevious:
        """Do a put that keeps the value, or answers with the record before."""
        key, expected = request.key, request.prev_revision
        # The same limits, and the same words for them, as of every other put.
        check_command(commands.Put(key, request.value, expected, request.client_id, request.sequence))
        compares = () if expected == ANY_REVISION else (Compare(key, "mod_revision", "=", expected),)
        options = (key, request.value, request.ignore_value, request.prev_value)
        is_leased = request.lease or request.ignore_lease
        operation = LeasedPutOp(*options, request.lease, request.ignore_lease) if is_leased else PutOp(*options)
        # At level 4 an older node may have done the first attempt of a retry, without such a range.
        has_range = compares and self._node.store.feature_level >= LEASE_LEVEL
        otherwise = (RangeOp(key, keys_only=True),) if has_range else ()
        command = commands.Txn(compares, (operation,), otherwise, request.client_id, request.sequence)
        result = await self._do(principal, command, self._bounded(request.timeout_ms))
        if not result.succeeded:
            raise CompareFailedError(result.revision, self._mod_revision(key, result), expected)
        match result.results:
            case (PutOpResult(revision, create_revision, version, previous),):
                done = PutResult(revision, create_revision, revision, version)
                return PutWithPrevious(done, previous, result.replayed)
            case _:
                raise InvariantViolatedError(f"a put was answered with {result}")

    def _mod_revision(self, key: bytes, failed: TxnResult) -> int:
        """Return the revision that a key had when its put failed; after a replay, which keeps no record, has now."""
        match failed.results:
            case (RangeOpResult(records=records),):
                return records[0].mod_revision if records else 0
            case _:
                record = self._node.store.get(key)
                return 0 if record is None else record.mod_revision

    async def batch(self, principal: Principal, request: Batch) -> BatchResult:
        """Do every operation by itself. The changes are proposed in one turn, and applied in their order."""
        items = request.items
        if not 0 < len(items) <= BATCH_OPERATIONS_MAX:
            raise InvalidRequestError(f"a batch has 1 to {BATCH_OPERATIONS_MAX} operations, not {len(items)}")
        timeout_ms = self._bounded(request.timeout_ms)
        batch = [_command_of(item) for item in items]
        changes = [number for number, command in enumerate(batch) if not is_read_only(command)]
        if changes:
            try:
                self._node.check_leads(hand_over=self._hands_over)
            except NotLeaderError as error:
                raise self._refusals.elsewhere(error) from None
        check_command_level(batch[0], self._node.store.feature_level)
        reads = [number for number, command in enumerate(batch) if is_read_only(command)]
        results: dict[int, TxnResult | CallerError] = {}
        group = object()
        for numbers in (changes, reads):
            done = await asyncio.gather(*(self._outcome(principal, batch[each], timeout_ms, group) for each in numbers))
            results.update(zip(numbers, done, strict=True))
        ordered = [results[number] for number in range(len(batch))]
        return BatchResult(_within_bounds(ordered, frozenset(changes)))

    async def _outcome(
        self, principal: Principal, command: commands.Txn, timeout_ms: int, batch: object
    ) -> TxnResult | CallerError:
        try:
            return await self._do(principal, command, timeout_ms, batch)
        except CallerError as error:
            return error

    async def _do(
        self, principal: Principal, command: commands.Txn, timeout_ms: int, batch: object | None = None
    ) -> TxnResult:
        check_transaction(command)
        if is_read_only(command):
            if command.client_id:
                # No session would hear of it, and the sequence after this one would be unknown to it.
                raise InvalidRequestError(
                    "the transaction only reads, so it needs no idempotency key: leave it out, and use its number for "
                    "the next write"
                )
            return await self._read(command, timeout_ms)
        started = self._now()
        try:
            result = await self._node.propose(
                command, timeout_ms, principal.address, hand_over=self._hands_over, batch=batch
            )
        except (NotLeaderError, NoSpaceError) as error:
            raise self._refusals.of_proposal(error) from None
        self._counters.writes += 1
        self._counters.write_duration.record(self._now() - started)
        match result:
            case TxnResult():
                return result
            case TxnRefused():
                raise self._refusal(result)
            case SessionRefused(revision, reason):
                raise session_error(revision, reason)
            case NoSpace():
                raise self._refusals.no_space(result)
            case _:
                raise InvariantViolatedError(f"a transaction was answered with {result}")

    async def _read(self, command: commands.Txn, timeout_ms: int) -> TxnResult:
        check_command_level(command, self._node.store.feature_level)
        await self._node.read_barrier(timeout_ms)
        self._counters.reads += 1
        # No await between the barrier and the read, and the store is asked for anew: a snapshot may have replaced it.
        result = self._node.store.read_transaction(command)
        if isinstance(result, TxnRefused):
            raise self._refusal(result)
        return result

    def _refusal(self, refused: TxnRefused) -> CallerError:
        """Return the error for what depends on the state, and cannot be done."""
        where, number = _shown(refused.key), refused.number
        match refused.reason:
            case txn.KEY_NOT_FOUND:
                return KeyNotFoundError(
                    f"the key {where} does not exist: there is nothing to keep (ignore_value, ignore_lease)",
                    refused.revision,
                )
            case txn.COMPACTED:
                return RevisionCompactedError(number, self._node.store.floor, refused.revision)
            case txn.FUTURE:
                return RevisionInFutureError(number, refused.revision)
            case txn.LEASE_NOT_FOUND:
                return LeaseError(
                    "lease_not_found",
                    f"the lease {number:x}, which the key {where} was to have, does not exist, or its time is over",
                    revision=refused.revision,
                )
            case txn.LEASE_FULL:
                return TooLargeError(
                    f"with the key {where} the lease {number:x} would have too many keys; grant another one",
                    LEASE_KEYS_MAX,
                )
            case txn.TOO_MANY_KEYS:
                return TooLargeError(
                    f"the ranges visit too many keys, the last of them at {where}; ask for smaller ranges, one after "
                    "the other",
                    number,
                )
            case txn.ANSWER_TOO_LARGE:
                return TooLargeError(
                    f"the records to answer with take too many bytes, the last range of them at {where}; ask for less: "
                    "a limit, keys only, or no previous values",
                    number,
                )
            case _:
                raise InvariantViolatedError(f"a transaction was refused for {refused.reason!r}")

    def _bounded(self, timeout_ms: int | None) -> int:
        return bounded_timeout_ms(timeout_ms, self._node.config.request_timeout_ms)


def _within_bounds(
    results: Sequence[TxnResult | CallerError], changes: frozenset[int]
) -> tuple[TxnResult | CallerError, ...]:
    """Return the results of a batch without the records that are too many for one answer.

    A read is refused then. A change is done: its previous values are left out.
    """
    bounded: list[TxnResult | CallerError] = []
    size = 0
    for number, result in enumerate(results):
        if isinstance(result, TxnResult):
            size_bytes = txn.answer_bytes(result.results)
            if size + size_bytes > TXN_ANSWER_BYTES_MAX:
                if number in changes:
                    bounded.append(msgspec.structs.replace(result, results=None))
                else:
                    bounded.append(
                        TooLargeError("the records of all reads of the batch take too many bytes", TXN_ANSWER_BYTES_MAX)
                    )
                continue
            size += size_bytes
        bounded.append(result)
    return tuple(bounded)


def _command_of(item: BatchItem) -> commands.Txn:
    return commands.Txn((), (item.operation,), (), item.client_id, item.sequence)


def _shown(key: bytes) -> str:
    return repr(key[:64].decode("utf-8", "backslashreplace"))
