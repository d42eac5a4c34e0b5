"""``POST /v1/txn``, ``POST /v1/batch``, and ``DELETE /v1/kv`` of a range."""

from __future__ import annotations

import msgspec
from aiohttp.web import BaseRequest

from kvorum.config import Config
from kvorum.errors import CallerError, InvalidRequestError, NotLeaderError, TooLargeError
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
from kvorum.service.limits import TIMEOUT_MS_MIN
from kvorum.service.requests import NO_END, Batch, BatchItem, DeleteRangeOp, Txn, prefix_end
from kvorum.service.results import DeleteRangeOpResult, TxnResult
from kvorum_wire import DeleteRangeAnswer
from kvorum_wire import transactions as wire

PARAMETERS = frozenset({"timeout_ms", "forward"})
RANGE_PARAMETERS = PARAMETERS | {"prefix", "start", "end"}

_TXN = '{"compare": [{"key": "a", "target": "version", "number": 0}], "then": [{"put": {"key": "a", "value": "1"}}]}'
_BATCH = '{"operations": [{"put": {"key": "a", "value": "1"}}, {"range": {"prefix": "b/"}}]}'

_decode_txn = msgspec.json.Decoder(wire.Txn).decode
_decode_batch = msgspec.json.Decoder(wire.Batch).decode
_encode = msgspec.json.Encoder().encode


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
        """``DELETE /v1/kv`` with ``prefix``, or ``start`` and ``end``."""
        query = Query(raw_query, RANGE_PARAMETERS, encodings=RANGE_PARAMETERS)
        timeout_ms = _checked_timeout_ms(query)
        operation = DeleteRangeOp(*_range_of(query))
        principal, client_id, sequence = _session(request)
        try:
            result = await self._execute(principal, Txn((), (operation,), (), client_id, sequence, timeout_ms))
        except TooLargeError as error:
            raise TooLargeError(
                "the range has too many keys for one request; delete it in parts, as `kv del --prefix` does",
                error.limit,
            ) from None
        return _response(DeleteRangeAnswer(result.revision, result.deleted), result.revision)
