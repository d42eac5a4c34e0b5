"""``/v1/kv/{key}``, ``/v1/kv?key={key}``: put, get, delete. The hot path: every request pays for every line here."""

from __future__ import annotations

import re
from typing import Literal

import msgspec
from aiohttp import hdrs
from aiohttp.web import BaseRequest
from multidict import CIMultiDictProxy

from kvorum.config import Config
from kvorum.errors import CompareFailedError, InvalidRequestError, NotLeaderError
from kvorum.fronts.http import key_ranges, operations, parameters
from kvorum.fronts.http.forward import is_forwarding
from kvorum.fronts.http.history import history_response, shown_lease, text_or_base64
from kvorum.fronts.http.leases import parse_id
from kvorum.fronts.http.problems import RefusalError, problem
from kvorum.fronts.http.ranges import RANGE
from kvorum.fronts.http.request import (
    BODY,
    IDEMPOTENCY_KEY,
    Bodies,
    Query,
    combined,
    decode_bytes,
    parse_etags,
    parse_idempotency_key,
    wants_json,
)
from kvorum.fronts.http.response import Response
from kvorum.fronts.http.transactions import TransactionHandlers
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS, Principal
from kvorum.service.limits import HISTORY_VERSIONS
from kvorum.service.requests import ANY_REVISION, MUST_NOT_EXIST, Delete, Get, GetHistory, Put, PutWithOptions
from kvorum.service.results import GetResult, PutResult, PutWithPrevious, RecordView
from kvorum_wire import DeleteAnswer, DeleteRangeAnswer, GetAnswer, HistoryAnswer, PutAnswer

PATH = "/v1/kv"
PREFIX = "/v1/kv/"

READ_PARAMETERS: frozenset[parameters.Parameter] = frozenset(
    {
        *(parameters.CONSISTENCY, parameters.MAX_STALENESS_MS, parameters.TIMEOUT_MS, parameters.FORWARD),
        *(parameters.REVISION, parameters.HISTORY, parameters.HISTORY_LIMIT),
    }
)
WRITE_PARAMETERS = operations.WRITE_PARAMETERS | {parameters.PREV_REVISION}
PUT_PARAMETERS = WRITE_PARAMETERS | {
    *(parameters.IGNORE_VALUE, parameters.PREV_VALUE, parameters.LEASE, parameters.IGNORE_LEASE)
}

_WRITE_HEADERS = (operations.IDEMPOTENCY_KEY, operations.IF_MATCH, operations.IF_NONE_MATCH)
_WRITE_ERRORS = operations.WRITE_ERRORS | operations.SESSION_ERRORS | {"compare_failed", "precondition_failed"}
_REVISIONS = ("ETag", "X-Kvorum-Revision")
GET = operations.Operation(
    summary="Read a key, or its versions",
    name=operations.KEY_NAME,
    parameters=READ_PARAMETERS,
    headers=(operations.IF_NONE_MATCH,),
    answers=(
        operations.Answer(
            "The value as bytes; with Accept: application/json as JSON; with history=true the versions.",
            {operations.BYTES: operations.BINARY, operations.JSON: (GetAnswer, HistoryAnswer)},
            (
                *_REVISIONS,
                *("X-Kvorum-Create-Revision", "X-Kvorum-Mod-Revision", "X-Kvorum-Version", "X-Kvorum-Staleness-Ms"),
                "X-Kvorum-Lease",
            ),
        ),
        operations.Answer("The key has not changed.", {}, _REVISIONS, status=304),
    ),
    errors=operations.PAST_ERRORS | {"not_found"},
)
PUT = operations.Operation(
    summary="Set a key",
    name=operations.KEY_NAME,
    parameters=PUT_PARAMETERS,
    headers=_WRITE_HEADERS,
    body=operations.Body(operations.BINARY, operations.BYTES, required=False),
    answers=operations.json_answer(PutAnswer, "Done.", *_REVISIONS),
    errors=_WRITE_ERRORS | {"key_not_found", "lease_not_found"},
)
DELETE = operations.Operation(
    summary="Remove a key",
    name=operations.KEY_NAME,
    parameters=WRITE_PARAMETERS,
    headers=_WRITE_HEADERS,
    answers=operations.json_answer(DeleteAnswer, "Done.", "X-Kvorum-Revision"),
    errors=_WRITE_ERRORS,
)
_BY_PARAMETER: frozenset[parameters.Parameter] = frozenset({parameters.KEY})
GET_BY_PARAMETER = msgspec.structs.replace(
    GET,
    summary="Read a key, or without key a range of keys",
    name=None,
    parameters=RANGE.parameters | READ_PARAMETERS | _BY_PARAMETER,
    answers=(
        operations.Answer(
            "Of a key as for /v1/kv/{key}; of a range a page, or the whole range as lines of JSON.",
            {
                operations.BYTES: operations.BINARY,
                operations.JSON: (GetAnswer, HistoryAnswer, RANGE.answers[0].content[operations.JSON]),
                operations.NDJSON: RANGE.answers[0].content[operations.NDJSON],
            },
            GET.answers[0].headers,
        ),
        GET.answers[1],
    ),
)
HEAD_BY_PARAMETER = msgspec.structs.replace(
    GET, name=None, parameters=READ_PARAMETERS | _BY_PARAMETER, required=_BY_PARAMETER
)
PUT_BY_PARAMETER = msgspec.structs.replace(
    PUT, name=None, parameters=PUT_PARAMETERS | _BY_PARAMETER, required=_BY_PARAMETER
)
DELETE_BY_PARAMETER = msgspec.structs.replace(
    DELETE,
    summary="Remove a key, or a range of keys",
    name=None,
    parameters=WRITE_PARAMETERS | key_ranges.ALL | _BY_PARAMETER,
    answers=operations.json_answer((DeleteAnswer, DeleteRangeAnswer), "Done.", "X-Kvorum-Revision"),
)

_DOT_SEGMENT = re.compile(r"(?:\A|/)(?:\.|%2e){1,2}(?:/|\Z)", re.IGNORECASE)

_encode = msgspec.json.Encoder().encode


class KeyValueHandlers:
    """The handlers of keys.

    Args:
        service: what executes the requests.
        config: the node's.
        bodies: what reads their bodies.
        transactions: what deletes ranges.
    """

    def __init__(self, service: Service, config: Config, bodies: Bodies, transactions: TransactionHandlers) -> None:
        self._service = service
        self._execute = service.execute
        self._config = config
        self._node_name = config.name
        self._body_bytes_max = config.body_bytes_max
        self._bodies = bodies
        self._transactions = transactions

    async def put(self, request: BaseRequest, raw_key: str, raw_query: str) -> Response:
        """``PUT /v1/kv/KEY``."""
        key, raw_query = decode_key(raw_key, raw_query)
        if not request.content.is_eof() and not is_forwarding(
            self._config, request, Query(raw_query, PUT_PARAMETERS, _taken(raw_key))
        ):
            # A body that this node will only refuse is not worth reading.
            self._service.check_leads()
        value = await self._bodies.read(request, self._body_bytes_max)
        headers = request.headers
        if hdrs.CONTENT_RANGE in headers:
            raise InvalidRequestError("Content-Range is not supported: put the whole value")
        prev_revision, timeout_ms, options = (
            _put_parameters(raw_query, raw_key) if raw_query else (ANY_REVISION, None, None)
        )
        if conditional := hdrs.IF_MATCH in headers or hdrs.IF_NONE_MATCH in headers:
            prev_revision = _precondition(headers, prev_revision)
        principal, client_id, sequence = ANONYMOUS, "", 0
        if IDEMPOTENCY_KEY in headers:
            client_id, sequence = _session(headers)
            if sequence == 1:  # It opens a session.
                principal = Principal(ANONYMOUS.name, request.remote or "")
        parts = (key, value, prev_revision, client_id, sequence, timeout_ms)
        try:
            if options is not None:
                done = await self._execute(principal, PutWithOptions(*parts, *options))
                return _put_response(key, done.put, done)
            result = await self._execute(principal, Put(*parts))
        except CompareFailedError as error:
            raise _compare_failed(error, conditional) from None
        except NotLeaderError:
            request[BODY] = value
            raise
        return _put_response(key, result)

    async def delete(self, request: BaseRequest, raw_key: str, raw_query: str) -> Response:
        """``DELETE /v1/kv/KEY``, or of a range."""
        if not raw_key and key_ranges.names_range(raw_query):
            return await self._transactions.delete_range(request, raw_query)
        if not raw_key and not names_key(raw_query):
            raise InvalidRequestError(
                "the request does not say which keys to delete: the path is /v1/kv/KEY or /v1/kv?key=KEY for one key, "
                "and /v1/kv?prefix=P or /v1/kv?start=A&end=B for a range (start or end may be left out); "
                "prefix64, start64 and end64 take base64"
            )
        key, raw_query = decode_key(raw_key, raw_query)
        headers = request.headers
        prev_revision, timeout_ms = _write_parameters(raw_query, raw_key) if raw_query else (ANY_REVISION, None)
        if conditional := hdrs.IF_MATCH in headers or hdrs.IF_NONE_MATCH in headers:
            prev_revision = _precondition(headers, prev_revision)
        principal, client_id, sequence = ANONYMOUS, "", 0
        if IDEMPOTENCY_KEY in headers:
            client_id, sequence = _session(headers)
            if sequence == 1:  # It opens a session.
                principal = Principal(ANONYMOUS.name, request.remote or "")
        try:
            result = await self._execute(principal, Delete(key, prev_revision, client_id, sequence, timeout_ms))
        except CompareFailedError as error:
            raise _compare_failed(error, conditional) from None
        body = _encode(DeleteAnswer(result.revision, result.deleted, *text_or_base64(key))) + b"\n"
        return Response(200, body, headers=f"X-Kvorum-Revision: {result.revision}\r\n")

    async def get(self, request: BaseRequest, raw_key: str, raw_query: str) -> Response:
        """``GET /v1/kv/KEY``."""
        key, raw_query = decode_key(raw_key, raw_query)
        wanted = _get_with_parameters(key, raw_query, raw_key) if raw_query else Get(key)
        if isinstance(wanted, GetHistory):
            return history_response(key, await self._execute(ANONYMOUS, wanted))
        result = await self._execute(ANONYMOUS, wanted)
        record = result.record
        if record is None:
            return self._not_found(result, wanted.revision)
        return _record_response(request.headers, key, record, result)

    def _not_found(self, result: GetResult, revision: int) -> Response:
        where = f"at revision {result.revision} on {self._node_name}"
        if revision:
            where = f"at revision {revision}; {self._node_name} is at revision {result.revision}"
        return problem(
            "not_found",
            f"the key does not exist {where}",
            headers=f"X-Kvorum-Revision: {result.revision}\r\n",
            node=self._node_name,
            revision=result.revision,
            staleness_ms=result.staleness_ms,
        )


def decode_key(raw: str, raw_query: str) -> tuple[bytes, str]:
    """Return the key of a path that ends in ``raw``, or else of the parameter ``key``; and the rest of the query.

    Raises:
        InvalidRequestError: there is none, or the path is not the same for everybody.
    """
    if not raw:
        return _key_parameter(raw_query)
    if "." not in raw and "%" not in raw:
        return raw.encode("utf-8", "surrogateescape"), raw_query
    if _DOT_SEGMENT.search(raw):
        raise InvalidRequestError(
            "browsers, proxies and HTTP libraries collapse '.' and '..' in a path, so that it names another key: "
            "write the slashes around them as %2F, or send the key as /v1/kv?key=KEY"
        )
    return decode_bytes(raw), raw_query


def names_key(raw_query: str) -> bool:
    """Tell whether a query has the parameter ``key``."""
    return raw_query.startswith("key=") or "&key=" in raw_query


def _key_parameter(raw_query: str) -> tuple[bytes, str]:
    parts = raw_query.split("&")
    keys = [part for part in parts if part.startswith("key=")]
    if len(keys) > 1:
        raise InvalidRequestError("the parameter key is given twice")
    key = decode_bytes(keys[0].removeprefix("key=")) if keys else b""
    if not key:
        raise InvalidRequestError("the key is empty: the path is /v1/kv/KEY or /v1/kv?key=KEY")
    return key, "&".join(part for part in parts if part not in keys)


def _put_response(key: bytes, result: PutResult, options: PutWithPrevious | None = None) -> Response:
    mod_revision = result.mod_revision
    shown = (key.decode(), None) if key.isascii() else text_or_base64(key)
    answer = PutAnswer(result.revision, result.create_revision, mod_revision, result.version, *shown)
    if options is not None:
        previous = (None, None) if options.previous is None else text_or_base64(options.previous.value)
        answer = msgspec.structs.replace(
            answer, prev_value=previous[0], prev_value_base64=previous[1], replayed=options.replayed
        )
    return Response(
        200, _encode(answer) + b"\n", headers=f'ETag: "{mod_revision}"\r\nX-Kvorum-Revision: {result.revision}\r\n'
    )


def _taken(raw_key: str) -> frozenset[parameters.Parameter]:
    """Return what :func:`decode_key` took from the query: the key, if the path has none."""
    return frozenset() if raw_key else _BY_PARAMETER


def _put_parameters(raw_query: str, raw_key: str) -> tuple[int, int | None, tuple[bool, bool, int, bool] | None]:
    """Return ``prev_revision`` and ``timeout_ms``; and the options that need a transaction, if one is given."""
    query = Query(raw_query, PUT_PARAMETERS, _taken(raw_key))
    lease = parse_id(query[parameters.LEASE], "the parameter lease") if parameters.LEASE in query else 0
    switches = query.switch(parameters.IGNORE_VALUE), query.switch(parameters.PREV_VALUE)
    options = (*switches, lease, query.switch(parameters.IGNORE_LEASE))
    if lease and options[3]:
        raise InvalidRequestError("lease and ignore_lease contradict each other: give one of them")
    return *_common_parameters(query), options if any(options) else None


def _write_parameters(raw_query: str, raw_key: str) -> tuple[int, int | None]:
    """Return ``prev_revision`` and ``timeout_ms``."""
    return _common_parameters(Query(raw_query, WRITE_PARAMETERS, _taken(raw_key)))


def _common_parameters(query: Query) -> tuple[int, int | None]:
    prev_revision = query.integer(parameters.PREV_REVISION)
    query.switch(parameters.FORWARD)  # Its meaning is the dispatcher's; here it must only be well-formed.
    return ANY_REVISION if prev_revision is None else prev_revision, query.integer(parameters.TIMEOUT_MS)


def _get_with_parameters(key: bytes, raw_query: str, raw_key: str) -> Get | GetHistory:
    query = Query(raw_query, READ_PARAMETERS, _taken(raw_key))
    stale = query.choice(parameters.CONSISTENCY) == "stale"
    query.switch(parameters.FORWARD)
    consistency: Literal["linearizable", "stale"] = "stale" if stale else "linearizable"
    max_staleness_ms, timeout_ms = query.integer(parameters.MAX_STALENESS_MS), query.integer(parameters.TIMEOUT_MS)
    revision = query.integer(parameters.REVISION) or 0
    limit = query.integer(parameters.HISTORY_LIMIT)
    if query.switch(parameters.HISTORY):
        return GetHistory(key, consistency, max_staleness_ms, timeout_ms, revision, limit or HISTORY_VERSIONS)
    if limit is not None:
        raise InvalidRequestError("limit needs history=true: a key has one value at a time")
    return Get(key, consistency, max_staleness_ms, timeout_ms, revision)


def _session(headers: CIMultiDictProxy[str]) -> tuple[str, int]:
    return parse_idempotency_key(combined(headers, IDEMPOTENCY_KEY) or "")


def _precondition(headers: CIMultiDictProxy[str], prev_revision: int) -> int:
    """Return the ``prev_revision`` that ``If-Match: "N"`` or ``If-None-Match: *`` stands for."""
    if prev_revision != ANY_REVISION:
        raise InvalidRequestError("prev_revision cannot be combined with If-Match or If-None-Match")
    match_, none_match = combined(headers, hdrs.IF_MATCH), combined(headers, hdrs.IF_NONE_MATCH)
    if match_ is not None and none_match is not None:
        raise InvalidRequestError("If-Match and If-None-Match contradict each other")
    if none_match is not None:
        if none_match.strip() != "*":
            raise InvalidRequestError("If-None-Match of a write must be * (create only)")
        return MUST_NOT_EXIST
    revisions = parse_etags(match_ or "", "If-Match", strong=True)
    if revisions is None or len(revisions) != 1 or revisions[0] == MUST_NOT_EXIST:
        raise InvalidRequestError('If-Match of a write must be a single "REVISION"; a weak tag, W/"...", never matches')
    return revisions[0]


def _compare_failed(error: CompareFailedError, conditional: bool) -> RefusalError:
    """Return the same error with HTTP's own status if the condition came in HTTP's own headers."""
    code = "precondition_failed" if conditional else error.code
    return RefusalError(code, str(error), headers=f"X-Kvorum-Revision: {error.revision}\r\n", **error.facts)


def _record_response(
    request_headers: CIMultiDictProxy[str], key: bytes, record: RecordView, result: GetResult
) -> Response:
    mod_revision, staleness_ms = record.mod_revision, result.staleness_ms
    headers = f'ETag: "{mod_revision}"\r\nX-Kvorum-Revision: {result.revision}\r\n'
    if staleness_ms is not None:
        headers += f"X-Kvorum-Staleness-Ms: {staleness_ms}\r\n"
    if hdrs.IF_NONE_MATCH in request_headers:
        revisions = parse_etags(combined(request_headers, hdrs.IF_NONE_MATCH) or "", "If-None-Match")
        if revisions is None or mod_revision in revisions:
            return Response(304, content_type="", headers=headers)
    if hdrs.ACCEPT in request_headers and wants_json(request_headers):
        answer = GetAnswer(
            result.revision,
            record.create_revision,
            mod_revision,
            record.version,
            *text_or_base64(key),
            *text_or_base64(record.value),
            staleness_ms,
            shown_lease(record),
        )
        return Response(200, _encode(answer) + b"\n", headers=headers + "Vary: Accept\r\n")
    headers += (
        f"X-Kvorum-Create-Revision: {record.create_revision}\r\nX-Kvorum-Mod-Revision: {mod_revision}\r\n"
        f"X-Kvorum-Version: {record.version}\r\nVary: Accept\r\nX-Content-Type-Options: nosniff\r\n"
    )
    if (lease := shown_lease(record)) is not None:
        headers += f"X-Kvorum-Lease: {lease}\r\n"
    return Response(200, record.value, "application/octet-stream", headers)
