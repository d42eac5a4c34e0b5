"""What a batch asks for, and what came of each of its operations."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from kvorum_client.errors import ClientError, InvalidArgumentError, OutcomeUnknownError, UnavailableError
from kvorum_client.refusals import refusal_of
from kvorum_client.transactions import OperationDone, TxnResult, done_of, only_reads
from kvorum_client.wire import decode
from kvorum_wire import transactions as wire

OPERATIONS_MAX = 128
"""Of one batch."""


class Batch:
    """The operations of a batch, and their results as they come in.

    Args:
        operations: 1 to 128 of them.

    Raises:
        InvalidArgumentError: none, or more.
    """

    def __init__(self, operations: Sequence[wire.Operation]) -> None:
        if not 0 < len(operations) <= OPERATIONS_MAX:
            raise InvalidArgumentError(f"a batch has 1 to {OPERATIONS_MAX} operations, not {len(operations)}")
        self._operations = operations
        self._results: dict[int, OperationDone | TxnResult | ClientError] = {}
        reads = [only_reads((operation,)) for operation in operations]
        self.changes = [number for number, is_read in enumerate(reads) if not is_read]
        """Those that change something and have no result yet."""
        self.reads = [number for number, is_read in enumerate(reads) if is_read]
        """Those that only read and have no result yet."""

    @property
    def has_results(self) -> bool:
        """Whether anything is known yet."""
        return bool(self._results)

    def results(self) -> tuple[OperationDone | TxnResult | ClientError, ...]:
        """Return all results, in the order of the operations."""
        return tuple(self._results[number] for number in range(len(self._operations)))

    def body(self, numbers: Sequence[int], idempotency_keys: Sequence[str] = ()) -> bytes:
        """Return the request for these operations; the first ones have these keys."""
        items = []
        for place, number in enumerate(numbers):
            each = self._operations[number]
            key = idempotency_keys[place] if place < len(idempotency_keys) else UNSET
            items.append(
                wire.BatchItem(put=each.put, delete=each.delete, range=each.range, txn=each.txn, idempotency_key=key)
            )
        return msgspec.json.encode(wire.Batch(operations=tuple(items)))

    def answers(self, numbers: Sequence[int], body: bytes) -> list[tuple[int, wire.BatchDone]]:
        """Return what the answer says of these operations, with their numbers.

        Raises:
            ClientError: it is not Kvorum's.
        """
        results = decode(body, wire.BatchAnswer).results
        if len(results) != len(numbers):
            raise ClientError(f"the answer is not Kvorum's: {len(results)} results of {len(numbers)} operations")
        return list(zip(numbers, results, strict=True))

    def finish(self, number: int, done: wire.BatchDone, *, perhaps_done: bool) -> None:
        """Take the result of an operation. ``perhaps_done``: an earlier attempt may be done."""
        if done.problem is not UNSET:
            problem = done.problem
            detail = problem.detail or problem.code
            error: ClientError
            if problem.outcome != "refused" or (perhaps_done and number in self.changes):
                error = OutcomeUnknownError(f"the write may or may not have been applied: {detail}")
            elif problem.retry_after_s is not UNSET or problem.code == "not_leader":
                error = UnavailableError(detail)
            else:
                error = refusal_of(done.status, problem, detail, perhaps_done=False)
            self.fail([number], error)
        elif done.deleted is not UNSET:
            self._set(number, TxnResult(done.revision, True, done.deleted, None))
        else:
            self._set(number, done_of(done, done.revision))

    def fail(self, numbers: Sequence[int], error: ClientError) -> None:
        """Take an error as the result of these operations."""
        for number in list(numbers):
            self._set(number, error)

    def _set(self, number: int, result: OperationDone | TxnResult | ClientError) -> None:
        self._results[number] = result
        for left in (self.changes, self.reads):
            if number in left:
                left.remove(number)
