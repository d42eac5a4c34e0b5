"""``/v1/kv/{key}``: put, get, delete. The hot path: every line here is paid for by every request."""

from __future__ import annotations

import base64
from time import perf_counter
from typing import assert_never

import msgspec
from aiohttp import hdrs
from aiohttp.web import BaseRequest

from kvorum.errors import InvalidRequest
from kvorum.fronts.http.facade import NodeFacade, RecordView
from kvorum.fronts.http.problems import Refusal, problem
from kvorum.fronts.http.request import (
    Query,
    combined,
    decode_bytes,
    parse_etags,
    parse_idempotency_key,
    read_body,
    wants_json,
)
from kvorum.fronts.http.response import Response
from kvorum.kv.commands import (
    ANY_REVISION,
    MUST_NOT_EXIST,
    Command,
    CompareFailed,
    Delete,
    DeleteResult,
    Put,
    PutResult,
    SessionRefused,
)
from kvorum.kv.limits import check_command

PREFIX = "/v1/kv/"
METHODS = "GET, HEAD, PUT, DELETE"

READ_PARAMETERS = frozenset({"consistency", "max_staleness_ms", "timeout_ms", "forward"})
WRITE_PARAMETERS = frozenset({"prev_revision", "timeout_ms", "forward"})
_STALENESS_MS_MAX = 86_400_000
_SESSION_CODES = {
    "unknown": ("session_unknown", "no such session; whether an earlier try was applied cannot be known"),
    "stale": ("session_stale", "the answer to this sequence is no longer remembered"),
    "ahead": ("session_ahead", "the sequence is more than a window above the highest one seen"),
    "mismatch": ("session_mismatch", "this sequence was used by another request"),
    "full": ("sessions_full", "there are too many live sessions; try later, or write without an Idempotency-Key"),
    "invalid": ("invalid_request", "the command is over a limit"),
}


class PutAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body that answers a put. ``key_base64`` stands in for ``key`` when that is not UTF-8."""

    revision: int
    create_revision: int
    mod_revision: int
    version: int
    key: str | None = None
    key_base64: str | None = None


class DeleteAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body that answers a delete; ``deleted`` is how many keys there were."""

    revision: int
    deleted: int
    key: str | None = None
    key_base64: str | None = None


class GetAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body that answers a get with ``Accept: application/json``; ``revision`` is the store's at the read."""

    revision: int
    create_revision: int
    mod_revision: int
    version: int
    key: str | None = None
    key_base64: str | None = None
    value: str | None = None
    value_base64: str | None = None
    staleness_ms: int | None = None


_encode = msgspec.json.Encoder().encode


def _text(data: bytes) -> tuple[str | None, str | None]:
    """Return the bytes as text, or else as base64."""
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(data).decode()


class KeyValueHandlers:
    """The handlers of one node's keys."""

    def __init__(self, node: NodeFacade) -> None:
        self._node = node
        self._config = node.config
        self._counters = node.counters

    async def handle(self, request: BaseRequest, raw_key: str, raw_query: str, started: float) -> Response:
        """Answer a request for the key.

        Raises:
            CallerError: what the API answers with a problem or a redirect.
        """
        key = decode_bytes(raw_key)
        if not key:
            raise InvalidRequest("the key is empty: the path is /v1/kv/KEY")
        match request.method:
            case "PUT":
                value = await read_body(request, self._config.body_bytes_max, self._config.body_timeout_s)
                return await self._write(request, key, value, raw_query, started)
            case "GET" | "HEAD":
                return await self._get(request, key, raw_query)
            case "DELETE":
                return await self._write(request, key, None, raw_query, started)
        raise Refusal(
            "method_not_allowed",
            f"a key takes {METHODS}",
            headers=f"Allow: {METHODS}\r\n",
        )

    async def _write(
        self, request: BaseRequest, key: bytes, value: bytes | None, raw_query: str, started: float
    ) -> Response:
        prev_revision, timeout_ms, conditional = ANY_REVISION, self._config.request_timeout_ms, False
        if raw_query:
            query = Query(raw_query, WRITE_PARAMETERS)
            prev_revision = _or(query.integer("prev_revision", 0), ANY_REVISION)
            timeout_ms = min(timeout_ms, _or(query.integer("timeout_ms", 1), timeout_ms))
            query.switch("forward")  # What it means is up to the dispatcher; but it must not be nonsense.
        headers = request.headers
        if value is not None and hdrs.CONTENT_RANGE in headers:
            raise InvalidRequest("a value is put whole, never a range of it: no Content-Range")
        if hdrs.IF_MATCH in headers or hdrs.IF_NONE_MATCH in headers:
            prev_revision, conditional = _precondition(request, prev_revision), True
        client_id, sequence = "", 0
        if (idempotency_key := combined(headers, "Idempotency-Key")) is not None:
            client_id, sequence = parse_idempotency_key(idempotency_key)
        command: Command
        if value is None:
            command = Delete(key, prev_revision, client_id, sequence)
        else:
            command = Put(key, value, prev_revision, client_id, sequence)
        check_command(command)
        response = self._written(key, await self._node.propose(command, timeout_ms), command, conditional)
        self._counters.writes += 1
        self._counters.write_duration.record(perf_counter() - started)
        return response

    def _written(
        self,
        key: bytes,
        result: PutResult | DeleteResult | CompareFailed | SessionRefused,
        command: Command,
        conditional: bool,
    ) -> Response:
        match result:
            case PutResult():
                answer = PutAnswer(
                    result.revision, result.create_revision, result.mod_revision, result.version, *_text(key)
                )
                return Response(
                    200,
                    _encode(answer) + b"\n",
                    headers=f'ETag: "{result.mod_revision}"\r\nX-Kvorum-Revision: {result.revision}\r\n',
                )
            case DeleteResult():
                body = _encode(DeleteAnswer(result.revision, result.deleted, *_text(key))) + b"\n"
                return Response(200, body, headers=f"X-Kvorum-Revision: {result.revision}\r\n")
            case CompareFailed():
                return _compare_failed(result, command.prev_revision, conditional)
            case SessionRefused():
                code, detail = _SESSION_CODES.get(result.reason, ("session_unknown", result.reason))
                return problem(code, detail, reason=result.reason, revision=result.revision)
            case _:
                assert_never(result)

    async def _get(self, request: BaseRequest, key: bytes, raw_query: str) -> Response:
        timeout_ms, stale, staleness_max_ms = self._config.request_timeout_ms, False, None
        if raw_query:
            query = Query(raw_query, READ_PARAMETERS)
            stale = query.choice("consistency", ("linearizable", "stale")) == "stale"
            staleness_max_ms = query.integer("max_staleness_ms", 0, _STALENESS_MS_MAX)
            timeout_ms = min(timeout_ms, _or(query.integer("timeout_ms", 1), timeout_ms))
            query.switch("forward")
            if staleness_max_ms is not None and not stale:
                raise InvalidRequest("max_staleness_ms goes with consistency=stale: a linearizable read is never stale")
        staleness_ms = None
        if stale:
            staleness_ms = self._check_staleness(staleness_max_ms)
            self._counters.stale_reads += 1
        else:
            await self._node.read_barrier(timeout_ms)
            self._counters.reads += 1
        # No await between the barrier and the read, and the store is asked for anew: a snapshot may have replaced it.
        store = self._node.store
        record, revision = store.get(key), store.revision
        if record is None:
            return self._not_found(revision, staleness_ms)
        return _record_response(request, key, record, revision, staleness_ms)

    def _check_staleness(self, staleness_max_ms: int | None) -> int | None:
        self._node.check_serves()
        staleness_ms = self._node.staleness_ms()
        if staleness_max_ms is not None and (staleness_ms is None or staleness_ms > staleness_max_ms):
            known = (
                "never heard of a leader" if staleness_ms is None else f"last heard of a leader {staleness_ms} ms ago"
            )
            raise Refusal(
                "too_stale",
                f"{self._config.name} {known}; at most {staleness_max_ms} ms were asked for",
                staleness_ms=staleness_ms,
                limit=staleness_max_ms,
            )
        return staleness_ms

    def _not_found(self, revision: int, staleness_ms: int | None) -> Response:
        return problem(
            "not_found",
            f"no such key at revision {revision}, says {self._config.name}",
            headers=f"X-Kvorum-Revision: {revision}\r\n",
            node=self._config.name,
            revision=revision,
            staleness_ms=staleness_ms,
        )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _precondition(request: BaseRequest, prev_revision: int) -> int:
    """Return the ``prev_revision`` that ``If-Match: "N"`` or ``If-None-Match: *`` stands for."""
    if prev_revision != ANY_REVISION:
        raise InvalidRequest("prev_revision and If-Match or If-None-Match say the same thing: give one of them")
    match_, none_match = combined(request.headers, hdrs.IF_MATCH), combined(request.headers, hdrs.IF_NONE_MATCH)
    if match_ is not None and none_match is not None:
        raise InvalidRequest("If-Match and If-None-Match contradict each other")
    if none_match is not None:
        if none_match.strip() != "*":
            raise InvalidRequest("on a write If-None-Match can only be *: create only")
        return MUST_NOT_EXIST
    revisions = parse_etags(match_ or "", "If-Match")
    if revisions is None or len(revisions) != 1 or revisions[0] == MUST_NOT_EXIST:
        raise InvalidRequest('on a write If-Match is one "REVISION"')
    return revisions[0]


def _compare_failed(result: CompareFailed, wanted: int, conditional: bool) -> Response:
    actual = f"at revision {result.mod_revision}" if result.mod_revision else "not there"
    expected = f"at revision {wanted}" if wanted else "not there"
    return problem(
        "precondition_failed" if conditional else "compare_failed",
        f"the key is {actual}; it should be {expected}",
        headers=f"X-Kvorum-Revision: {result.revision}\r\n",
        mod_revision=result.mod_revision,
        prev_revision=wanted,
        revision=result.revision,
    )


def _record_response(
    request: BaseRequest, key: bytes, record: RecordView, revision: int, staleness_ms: int | None
) -> Response:
    headers = f'ETag: "{record.mod_revision}"\r\nX-Kvorum-Revision: {revision}\r\n'
    if staleness_ms is not None:
        headers += f"X-Kvorum-Staleness-Ms: {staleness_ms}\r\n"
    if (none_match := combined(request.headers, hdrs.IF_NONE_MATCH)) is not None:
        revisions = parse_etags(none_match, "If-None-Match")
        if revisions is None or record.mod_revision in revisions:
            return Response(304, content_type="", headers=headers)
    if wants_json(request.headers):
        answer = GetAnswer(
            revision,
            record.create_revision,
            record.mod_revision,
            record.version,
            *_text(key),
            *_text(record.value),
            staleness_ms,
        )
        return Response(200, _encode(answer) + b"\n", headers=headers + "Vary: Accept\r\n")
    headers += (
        f"X-Kvorum-Create-Revision: {record.create_revision}\r\nX-Kvorum-Mod-Revision: {record.mod_revision}\r\n"
        f"X-Kvorum-Version: {record.version}\r\nVary: Accept\r\nX-Content-Type-Options: nosniff\r\n"
    )
    return Response(200, record.value, "application/octet-stream", headers)
