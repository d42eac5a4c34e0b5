"""``POST /v1/txn``, ``POST /v1/batch``, and ``DELETE /v1/kv`` of a range."""

from __future__ import annotations

import msgspec
from aiohttp.web import BaseRequest
from msgspec import UNSET

from kvorum.config import Config
from kvorum.errors import CallerError, InvalidRequestError, TooLargeError
from kvorum.fronts.http import key_ranges, operations, parameters
from kvorum.fronts.http.problems import problem_of
from kvorum.fronts.http.request import (
    BODY,
    IDEMPOTENCY_KEY,
    Bodies,
    Query,
    combined,
    decode_json,
    parse_idempotency_key,
)
from kvorum.fronts.http.response import Response
from kvorum.fronts.http.txn_bodies import FIRST_KEY, operation_of, result_of, results_of, transaction_of
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS, Principal
from kvorum.service.requests import Batch, BatchItem, DeleteRangeOp, Txn
from kvorum.service.results import TxnResult
from kvorum_wire import DeleteRangeAnswer
from kvorum_wire import transactions as wire

_TXN = '{"compare": [{"key": "a", "target": "version", "number": 0}], "then": [{"put": {"key": "a", "value": "1"}}]}'
_BATCH = '{"operations": [{"put": {"key": "a", "value": "1"}}, {"range": {"prefix": "b/"}}]}'

_decode_txn = msgspec.json.Decoder(wire.Txn).decode
_decode_batch = msgspec.json.Decoder(wire.Batch).decode
_encode = msgspec.json.Encoder().encode

_ERRORS = operations.WRITE_ERRORS | operations.SESSION_ERRORS | {"compacted", "future_revision", "key_not_found"}
TXN = operations.Operation(
    summary="A transaction: compares, and operations on several keys at one revision",
    parameters=operations.WRITE_PARAMETERS,
    headers=(operations.IDEMPOTENCY_KEY,),
    body=operations.Body(wire.Txn),
    answers=operations.json_answer(wire.TxnAnswer, "Done, or the compares failed.", "X-Kvorum-Revision"),
    errors=_ERRORS,
)
BATCH = operations.Operation(
    summary="Many operations, each by itself",
    parameters=operations.WRITE_PARAMETERS,
    body=operations.Body(wire.Batch),
    answers=operations.json_answer(wire.BatchAnswer, "What came of each operation."),
    errors=_ERRORS,
)


class TransactionHandlers:
    """The handlers of transactions.

    Args:
        service: what executes the requests.
        config: the node's.
        bodies: what reads their bodies.
    """

    def __init__(self, service: Service, config: Config, bodies: Bodies) -> None:
        self._execute = service.execute
        self._body_bytes_max = config.body_bytes_max
        self._bodies = bodies

    async def txn(self, request: BaseRequest, _: str, raw_query: str) -> Response:
        """``POST /v1/txn``."""
        timeout_ms = _timeout_ms(raw_query)
        body = request[BODY] = await self._bodies.read(request, self._body_bytes_max)
        txn = transaction_of(decode_json(body, _decode_txn, _TXN))
        principal, client_id, sequence = _session(request)
        result = await self._execute(
            principal, Txn(txn.compares, txn.then, txn.otherwise, client_id, sequence, timeout_ms)
        )
        branch = txn.then if result.succeeded else txn.otherwise
        answer = wire.TxnAnswer(
            revision=result.revision,
            succeeded=result.succeeded,
            deleted=result.deleted,
            results=None if result.results is None or result.replayed else results_of(branch, result.results),
            replayed=result.replayed,
        )
        return _response(answer, result.revision)

    async def batch(self, request: BaseRequest, _: str, raw_query: str) -> Response:
        """``POST /v1/batch``."""
        timeout_ms = _timeout_ms(raw_query)
        if IDEMPOTENCY_KEY in request.headers:
            raise InvalidRequestError("a batch has no Idempotency-Key: give each operation its own idempotency_key")
        body = request[BODY] = await self._bodies.read(request, self._body_bytes_max)
        decoded = decode_json(body, _decode_batch, _BATCH)
        items = tuple(_item(each, f"$.operations[{number}]") for number, each in enumerate(decoded.operations))
        opens = any(item.sequence == 1 for item in items)
        principal = Principal(ANONYMOUS.name, request.remote or "") if opens else ANONYMOUS
        batch = await self._execute(principal, Batch(items, timeout_ms))
        done = tuple(_done(*each) for each in zip(items, batch.results, strict=True))
        return _response(wire.BatchAnswer(results=done))

    async def delete_range(self, request: BaseRequest, raw_query: str) -> Response:
        """``DELETE /v1/kv?prefix=P``, or ``?start=A&end=B``."""
        given, rest = key_ranges.take_bytes(raw_query, key_ranges.PARAMETERS)
        start, end = key_ranges.range_of(given)
        timeout_ms = _timeout_ms(rest, key_ranges.ALL | {parameters.KEY})
        principal, client_id, sequence = _session(request)
        operation = DeleteRangeOp(start or FIRST_KEY, end)
        try:
            result = await self._execute(principal, Txn((), (operation,), (), client_id, sequence, timeout_ms))
        except TooLargeError as error:
            raise TooLargeError(
                "the range has more keys than one request may delete: delete it in parts, as `kv del --prefix` does",
                error.limit,
            ) from None
        return _response(DeleteRangeAnswer(result.revision, result.deleted, result.replayed), result.revision)


def _timeout_ms(raw_query: str, taken: frozenset[parameters.Parameter] = frozenset()) -> int | None:
    query = Query(raw_query, operations.WRITE_PARAMETERS, taken)
    query.switch(parameters.FORWARD)  # Its meaning is the dispatcher's; here it must only be well-formed.
    return query.integer(parameters.TIMEOUT_MS)


def _session(request: BaseRequest) -> tuple[Principal, str, int]:
    if IDEMPOTENCY_KEY not in request.headers:
        return ANONYMOUS, "", 0
    client_id, sequence = parse_idempotency_key(combined(request.headers, IDEMPOTENCY_KEY) or "")
    # The first one opens a session.
    principal = Principal(ANONYMOUS.name, request.remote or "") if sequence == 1 else ANONYMOUS
    return principal, client_id, sequence


def _item(item: wire.BatchItem, path: str) -> BatchItem:
    operation = operation_of(item, path)
    if item.idempotency_key is UNSET:
        return BatchItem(operation)
    return BatchItem(operation, *parse_idempotency_key(item.idempotency_key, f"{path}.idempotency_key"))


def _done(item: BatchItem, result: TxnResult | CallerError) -> wire.BatchDone:
    if isinstance(result, CallerError):
        problem = problem_of(result)
        return wire.BatchDone(status=problem.status, problem=problem)
    revision, replayed = result.revision, result.replayed
    if result.results is None:
        return wire.BatchDone(status=200, revision=revision, replayed=replayed, deleted=result.deleted)
    done = result_of(item.operation, result.results[0])
    return wire.BatchDone(
        status=200,
        revision=revision,
        replayed=replayed,
        put=done.put,
        delete=done.delete,
        range=done.range,
        txn=done.txn,
    )


def _response(answer: msgspec.Struct, revision: int | None = None) -> Response:
    headers = "" if revision is None else f"X-Kvorum-Revision: {revision}\r\n"
    return Response(200, _encode(answer) + b"\n", headers=headers)
