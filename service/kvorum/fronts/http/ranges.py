"""``GET /v1/kv``: a range of keys, as a page in JSON or whole as lines of JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec
from aiohttp.web import BaseRequest

import kvorum_wire as wire
from kvorum.errors import CallerError, InvalidRequestError
from kvorum.fronts.http import key_ranges, operations, parameters
from kvorum.fronts.http.history import shown_lease, text_or_base64
from kvorum.fronts.http.problems import problem_of
from kvorum.fronts.http.request import Query, accepts
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import CommonPrefix, Range, RangeQuery
from kvorum.service.results import RangeItem, RangeScan

NDJSON = operations.NDJSON

BYTES: tuple[parameters.Parameter, ...] = (*key_ranges.PARAMETERS, parameters.DELIMITER)
"""The parameters that are bytes, and need not be text."""
_NUMBERS = (
    *(parameters.REVISION, parameters.MIN_MOD_REVISION, parameters.MAX_MOD_REVISION),
    *(parameters.MIN_CREATE_REVISION, parameters.MAX_CREATE_REVISION),
)
_SWITCHES = (parameters.REVERSE, parameters.KEYS_ONLY, parameters.COUNT_ONLY)
PARAMETERS: frozenset[parameters.Parameter] = frozenset(
    {
        *(parameters.LIMIT, parameters.CURSOR, parameters.SORT, parameters.CONSISTENCY, parameters.MAX_STALENESS_MS),
        *(parameters.TIMEOUT_MS, parameters.FORWARD, *_NUMBERS, *_SWITCHES),
    }
)
"""The parameters beside those that are bytes."""
_TAKEN = key_ranges.with_twins(BYTES) | {parameters.KEY}
"""What is taken from the query first. With ``key`` the request is one for that key."""
_NOT_COUNTED = ("limit", "cursor", "sort", "reverse", "keys_only", "delimiter", *_NUMBERS[1:])
"""What has no meaning, or another one than expected, with count_only: the count is that of the whole range."""

RANGE = operations.Operation(
    summary="Read a range of keys at one revision",
    parameters=PARAMETERS | key_ranges.with_twins(BYTES),
    answers=(
        operations.Answer(
            "A page, or the whole range as lines of JSON.",
            {
                operations.JSON: wire.RangeAnswer,
                NDJSON: (wire.RangeBegin, wire.RangeRecord, wire.CommonPrefix, wire.RangeEnd, wire.RangeBroken),
            },
            ("X-Kvorum-Revision", "X-Kvorum-Staleness-Ms"),
        ),
    ),
    errors=operations.PAST_ERRORS,
)

_encoder = msgspec.json.Encoder()


class RangeHandlers:
    """The handler of ranges.

    Args:
        service: what executes the requests.
    """

    def __init__(self, service: Service) -> None:
        self._execute = service.execute

    async def read(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/kv``: a page, or with ``Accept: application/x-ndjson`` the whole range."""
        is_whole = wants_stream(request)
        scan = await self._execute(ANONYMOUS, parse_range(raw_query, is_whole=is_whole))
        headers = f"X-Kvorum-Revision: {scan.revision}\r\nVary: Accept\r\n"
        if scan.staleness_ms is not None:
            headers += f"X-Kvorum-Staleness-Ms: {scan.staleness_ms}\r\n"
        if is_whole:
            return Response(200, content_type=NDJSON, headers=headers, stream=_Lines(scan))
        try:
            body = _encoder.encode(await _page(scan)) + b"\n"
        except BaseException:
            scan.close()
            raise
        if not scan.has_place:
            return Response(200, body, headers=headers)
        scan.wait_for_client(len(body))
        return Response(200, headers=headers, stream=_Body(body, scan))


def wants_stream(request: BaseRequest) -> bool:
    """Tell whether the client asked for lines of JSON."""
    return accepts(request.headers, NDJSON)


def parse_range(raw_query: str, *, is_whole: bool) -> Range:
    """Return the range that a query asks for.

    Raises:
        InvalidRequestError: a parameter is unknown or malformed, or some contradict each other.
    """
    given, raw_rest = key_ranges.take_bytes(raw_query, BYTES)
    query = Query(raw_rest, PARAMETERS, _TAKEN)
    query.switch(parameters.FORWARD)  # Its meaning is the dispatcher's; here it must only be well-formed.
    if given.get("delimiter") == b"":
        raise InvalidRequestError("the parameter delimiter is empty: leave it out")
    start, end = key_ranges.range_of(given)
    limit = query.integer(parameters.LIMIT) or 0
    if query.get("cursor") == "":
        raise InvalidRequestError("the parameter cursor is empty: leave it out for the first page")
    numbers = {str(name): query.integer(name) or 0 for name in _NUMBERS}
    switches = {str(name): query.switch(name) for name in _SWITCHES}
    sort = query.choice(parameters.SORT)
    if switches["count_only"]:
        _check_count_only(query, given)
    return Range(
        RangeQuery(
            start,
            end,
            limit=limit,
            sort=sort,
            delimiter=given.get("delimiter", b""),
            reverse=switches["reverse"],
            keys_only=switches["keys_only"],
            count_only=switches["count_only"],
            **numbers,
        ),
        query.get("cursor", ""),
        is_whole,
        "stale" if query.choice(parameters.CONSISTENCY) == "stale" else "linearizable",
        query.integer(parameters.MAX_STALENESS_MS),
        query.integer(parameters.TIMEOUT_MS),
    )


def _check_count_only(query: Query, given: dict[str, bytes]) -> None:
    others = [name for name in _NOT_COUNTED if name in given or (name in query and not _is_off(query, name))]
    if others:
        raise InvalidRequestError(
            f"count_only counts all keys of the range, and cannot be combined with {', '.join(others)}"
        )


def _is_off(query: Query, name: str) -> bool:
    return any(each == name and not query.switch(each) for each in _SWITCHES)


async def _page(scan: RangeScan) -> wire.RangeAnswer:
    records: list[wire.RangeRecord] = []
    prefixes: list[wire.CommonPrefix] = []
    async for part in scan.parts():
        for item in _shown(scan, part):
            if isinstance(item, wire.CommonPrefix):
                prefixes.append(item)
            else:
                records.append(item)
    return wire.RangeAnswer(
        scan.revision,
        scan.count,
        scan.more,
        tuple(records),
        tuple(prefixes) if scan.query.delimiter else msgspec.UNSET,
        scan.cursor,
        scan.staleness_ms,
    )


class _Body:
    """A page, which has its place until the client has been given it.

    Args:
        body: the page.
        scan: where it is from; closed with this.
    """

    def __init__(self, body: bytes, scan: RangeScan) -> None:
        self._body = body
        self._scan = scan
        self.size_bytes = len(body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the page."""
        yield self._body

    def close(self) -> None:
        """Let go of the place."""
        self._scan.close()


class _Lines:
    """A whole range as lines of JSON: what it is, its records, and that it is complete.

    Args:
        scan: the range; closed with this.
    """

    size_bytes = None
    """Not known before its end."""

    def __init__(self, scan: RangeScan) -> None:
        self._scan = scan

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the lines. If the range ends early, the last one says why instead of that it is complete."""
        scan, count = self._scan, 0
        yield _encoder.encode_lines([wire.RangeBegin(scan.revision, scan.count, scan.staleness_ms)])
        try:
            async for part in scan.parts():
                count += len(part)
                yield _encoder.encode_lines(_shown(scan, part))
        except CallerError as error:
            yield _encoder.encode_lines([wire.RangeBroken(problem_of(error))])
        else:
            yield _encoder.encode_lines([wire.RangeEnd(count, scan.more, scan.cursor)])

    def close(self) -> None:
        """Let go of the range."""
        self._scan.close()


def _shown(scan: RangeScan, part: Sequence[RangeItem]) -> list[wire.RangeRecord | wire.CommonPrefix]:
    keys_only = scan.query.keys_only
    shown: list[wire.RangeRecord | wire.CommonPrefix] = []
    for item in part:
        if isinstance(item, CommonPrefix):
            shown.append(wire.CommonPrefix(item.count, *text_or_base64(item.prefix)))
            continue
        value = (None, None) if keys_only else text_or_base64(item.value)
        key = text_or_base64(item.key)
        shown.append(
            wire.RangeRecord(item.create_revision, item.mod_revision, item.version, *key, *value, shown_lease(item))
        )
    return shown
