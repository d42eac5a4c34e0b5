"""``/v1/kv/{key}?history=true`` and ``/v1/compact``: what keys were, and for how long that is kept."""

from __future__ import annotations

import base64

import msgspec
from aiohttp.web import BaseRequest

import kvorum_wire as wire
from kvorum.fronts.http import operations, parameters
from kvorum.fronts.http.request import BODY, Bodies, Query, decode_json
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import Compact
from kvorum.service.results import History, RecordView

_BODY_BYTES_MAX = 1024
_EXAMPLE = '{"revision": 1000}'
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(wire.Compact).decode

COMPACT = operations.Operation(
    summary="Give up the history below a revision",
    parameters=operations.WRITE_PARAMETERS,
    body=operations.Body(wire.Compact),
    answers=operations.json_answer(wire.Compacted),
    errors=operations.WRITE_ERRORS | {"compacted", "future_revision"},
)


class HistoryHandlers:
    """The handler of compactions.

    Args:
        service: what executes the requests.
        bodies: what reads their bodies.
    """

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._execute = service.execute
        self._bodies = bodies

    async def compact(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``POST /v1/compact``: give up the history below a revision."""
        query = Query(raw_query, COMPACT.parameters)
        query.switch(parameters.FORWARD)  # Its meaning is the dispatcher's; here it must only be well-formed.
        timeout_ms = query.integer(parameters.TIMEOUT_MS)
        body = request[BODY] = await self._bodies.read(request, _BODY_BYTES_MAX)
        result = await self._execute(ANONYMOUS, Compact(decode_json(body, _decode, _EXAMPLE).revision, timeout_ms))
        return Response(200, _encode(wire.Compacted(result.revision, result.floor)) + b"\n")


def history_response(key: bytes, result: History) -> Response:
    """Return the answer with the versions of a key."""
    answer = wire.HistoryAnswer(
        result.revision,
        result.floor,
        tuple(_version(version) for version in result.versions),
        result.is_truncated,
        *text_or_base64(key),
    )
    headers = f"X-Kvorum-Revision: {result.revision}\r\n"
    if result.staleness_ms is not None:
        headers += f"X-Kvorum-Staleness-Ms: {result.staleness_ms}\r\n"
    return Response(200, _encode(answer) + b"\n", headers=headers)


def _version(record: RecordView) -> wire.Version:
    if not record.version:
        return wire.Version(record.mod_revision, deleted=True)
    return wire.Version(
        record.mod_revision,
        record.create_revision,
        record.version,
        False,
        *text_or_base64(record.value),
        shown_lease(record),
    )


def shown_lease(record: RecordView) -> str | None:
    """Return the id of a record's lease, in hex; None: it has none."""
    return f"{record.lease:x}" if record.lease else None


def text_or_base64(data: bytes) -> tuple[str | None, str | None]:
    """Return the bytes as text, or else as base64."""
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(data).decode()
