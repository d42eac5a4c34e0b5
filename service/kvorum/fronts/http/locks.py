"""``/v1/locks`` and ``/v1/elections``: queues of leases (:mod:`kvorum.service.locks`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import NamedTuple

from aiohttp.web import BaseRequest
from msgspec.structs import replace

from kvorum.config import Config
from kvorum.errors import CallerError, InvalidRequestError
from kvorum.fronts.http import key_ranges, operations, parameters
from kvorum.fronts.http.history import text_or_base64
from kvorum.fronts.http.leases import common_parameters, parse_id, respond, shown_id
from kvorum.fronts.http.observe import Observation, holder_of, watch_of
from kvorum.fronts.http.request import BODY, Bodies, Query, decode_bytes
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.queues import queue_prefix
from kvorum.service.requests import AcquireLock, GetLock, ListLocks, LockKind, ProclaimLeader, ReleaseLock
from kvorum.service.results import LockGrant, LockState
from kvorum_wire import leases as wire

LOCKS = "/v1/locks"
ELECTIONS = "/v1/elections"
KINDS: dict[str, LockKind] = {LOCKS: "lock", ELECTIONS: "election"}
PARAMETERS = operations.WRITE_PARAMETERS
LEASE_PARAMETERS = PARAMETERS | {parameters.LEASE}
WAIT_PARAMETERS = LEASE_PARAMETERS | {parameters.WAIT_MS}
GET_PARAMETERS = PARAMETERS | {parameters.OBSERVE}
LIST_PARAMETERS = PARAMETERS | {parameters.LOCKS_LIMIT}
LIST_BYTES = (parameters.LOCKS_AFTER,)

_ERRORS = operations.WRITE_ERRORS | {"lease_not_found", "no_space"}
_NEEDED = frozenset({parameters.LEASE})
_VALUE = operations.Body(operations.BINARY, operations.BYTES, required=False)
_GRANTED = operations.json_answer(wire.LockGranted, "The lease holds it.", "X-Kvorum-Revision")
_RELEASED = operations.json_answer(wire.LockReleased, "Done.", "X-Kvorum-Revision")


class Operations(NamedTuple):
    """What the routes of one kind promise."""

    list_all: operations.Operation
    get: operations.Operation
    acquire: operations.Operation
    release: operations.Operation


_ACQUIRE = operations.Operation(
    summary="Wait for a lock",
    name=operations.LOCK_NAME,
    parameters=WAIT_PARAMETERS,
    required=_NEEDED,
    answers=_GRANTED,
    errors=_ERRORS | {"lock_held", "lock_not_held", "too_many_watchers", *operations.BODY_ERRORS},
)
_RELEASE = operations.Operation(
    summary="Release a lock, or leave its queue",
    name=operations.LOCK_NAME,
    parameters=LEASE_PARAMETERS,
    required=_NEEDED,
    answers=_RELEASED,
    errors=operations.WRITE_ERRORS | {"lock_not_held"},
)
_GET = operations.Operation(
    summary="Who holds a lock, and who waits for it",
    name=operations.LOCK_NAME,
    parameters=PARAMETERS,
    answers=operations.json_answer(wire.LockState, "The lock.", "X-Kvorum-Revision"),
    errors=operations.READ_ERRORS,
)
_LIST = operations.Operation(
    summary="List the locks that somebody holds",
    parameters=LIST_PARAMETERS | key_ranges.with_twins(LIST_BYTES),
    answers=operations.json_answer(wire.LockList, "The locks.", "X-Kvorum-Revision"),
    errors=operations.READ_ERRORS,
)
OPERATIONS: dict[LockKind, Operations] = {
    "lock": Operations(_LIST, _GET, _ACQUIRE, _RELEASE),
    "election": Operations(
        replace(
            _LIST,
            summary="List the elections that somebody has won",
            answers=operations.json_answer(wire.ElectionList, "The elections.", "X-Kvorum-Revision"),
        ),
        replace(
            _GET,
            summary="Who is elected, and who waits; with watch, line after line",
            parameters=GET_PARAMETERS,
            answers=(
                operations.Answer(
                    "The election; with watch=true lines of JSON, without end.",
                    {operations.JSON: wire.LockState, operations.NDJSON: wire.LeaderLine},
                    ("X-Kvorum-Revision",),
                ),
            ),
            errors=operations.READ_ERRORS | {"not_elected", "too_many_watchers"},
        ),
        replace(_ACQUIRE, summary="Campaign: wait until the lease is elected", body=_VALUE),
        replace(_RELEASE, summary="Resign, or campaign no more"),
    ),
}
PROCLAIM = operations.Operation(
    summary="Change the value of an election, as the one who is elected",
    name=operations.LOCK_NAME,
    parameters=LEASE_PARAMETERS,
    required=_NEEDED,
    body=_VALUE,
    answers=_GRANTED,
    errors=_ERRORS | {"lock_not_held"},
)

_STREAM_HEADERS = "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n"
_LASTING = {parameters.WAIT_MS, parameters.OBSERVE}
_LISTED = 1000
_LOOK_S = 1.0
"""How often a request that waits looks whether its client is still there."""


class LockHandlers:
    """The handlers of locks, or those of elections.

    Args:
        kind: which of the two.
        service: what executes the requests.
        config: the node's.
        bodies: what reads their bodies.
    """

    def __init__(self, kind: LockKind, service: Service, config: Config, bodies: Bodies) -> None:
        self._kind: LockKind = kind
        self._service = service
        self._execute = service.execute
        self._body_bytes_max = config.body_bytes_max
        self._bodies = bodies

    async def acquire(self, request: BaseRequest, raw_name: str, raw_query: str) -> Response:
        """``POST``: wait for the lock; or campaign, with the value in the body."""
        query = Query(raw_query, WAIT_PARAMETERS)
        lease, wait_ms = _lease(query), query.integer(parameters.WAIT_MS) or 0
        name, timeout_ms = decode_bytes(raw_name), common_parameters(query)

        def forget_body() -> None:
            del request[BODY]
            self._bodies.release(request)

        # No variable here keeps the value: a wait is long.
        attempt = self._execute(
            ANONYMOUS,
            AcquireLock(self._kind, name, lease, await self._value(request), wait_ms, timeout_ms, forget_body),
        )
        granted = await (while_connected(request, attempt) if wait_ms else attempt)
        if _is_gone(request):
            await self._take_back(granted)
        return _granted(granted)

    async def _take_back(self, granted: LockGrant) -> None:
        """Release a lock whose client went while it was granted, unless another attempt of its lease may know of it.

        Raises:
            ConnectionResetError: always; nobody is left who could be answered.
        """
        if granted.mod_revision == granted.fencing_token:
            kind, at = self._kind, granted.mod_revision
            with suppress(CallerError):  # Then the lock is free when its lease ends.
                await self._execute(ANONYMOUS, ReleaseLock(kind, granted.name, granted.lease, mod_revision=at))
        raise ConnectionResetError("the client is gone")

    async def release(self, _: BaseRequest, raw_name: str, raw_query: str) -> Response:
        """``DELETE``: give up the lock, or the place in its queue; resign."""
        query = Query(raw_query, LEASE_PARAMETERS)
        wanted = ReleaseLock(self._kind, decode_bytes(raw_name), _lease(query), common_parameters(query))
        released = await self._execute(ANONYMOUS, wanted)
        return respond(wire.LockReleased(released.revision), released.revision)

    async def proclaim(self, request: BaseRequest, raw_name: str, raw_query: str) -> Response:
        """``PUT``: change the value of an election, as the one who is elected."""
        query = Query(raw_query, LEASE_PARAMETERS)
        lease = _lease(query)
        value = await self._value(request)
        return _granted(
            await self._execute(
                ANONYMOUS, ProclaimLeader(decode_bytes(raw_name), lease, value, common_parameters(query))
            )
        )

    async def get(self, _: BaseRequest, raw_name: str, raw_query: str) -> Response:
        """``GET`` of a name."""
        query = Query(raw_query, GET_PARAMETERS if self._kind == "election" else PARAMETERS)
        if query.switch(parameters.OBSERVE):
            return await self._observe(decode_bytes(raw_name), common_parameters(query))
        state = await self._execute(ANONYMOUS, GetLock(self._kind, decode_bytes(raw_name), common_parameters(query)))
        return respond(_state(state), state.revision)

    async def _observe(self, name: bytes, timeout_ms: int | None) -> Response:
        start = await self._execute(ANONYMOUS, watch_of(queue_prefix(self._kind, name), timeout_ms))
        headers = f"{_STREAM_HEADERS}X-Kvorum-Revision: {start.revision}\r\n"
        return Response(
            200, content_type="application/x-ndjson", headers=headers, live=Observation(self._service, start, name)
        )

    async def list_all(self, _: BaseRequest, __: str, raw_query: str) -> Response:
        """``GET`` of all that somebody holds."""
        given, rest = key_ranges.take_bytes(raw_query, LIST_BYTES)
        query = Query(rest, LIST_PARAMETERS, key_ranges.with_twins(LIST_BYTES))
        limit = query.integer(parameters.LOCKS_LIMIT) or _LISTED
        wanted = ListLocks(self._kind, given.get(parameters.LOCKS_AFTER), limit, common_parameters(query))
        found = await self._execute(ANONYMOUS, wanted)
        shown = tuple(map(_state, found.locks))
        if self._kind == "lock":
            return respond(wire.LockList(shown, found.revision, found.more), found.revision)
        return respond(wire.ElectionList(shown, found.revision, found.more), found.revision)

    async def _value(self, request: BaseRequest) -> bytes:
        value = request[BODY] = await self._bodies.read(request, self._body_bytes_max)
        if value and self._kind == "lock":
            raise InvalidRequestError("a lock has no value: send no body")
        return value


async def while_connected(request: BaseRequest, done: Awaitable[LockGrant]) -> LockGrant:
    """Return what is awaited; give it up once the client is gone, who would hold what it knows nothing of.

    Raises:
        ConnectionResetError: the client is gone.
    """
    task = asyncio.ensure_future(done)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_S)
            if not task.done() and _is_gone(request):
                raise ConnectionResetError("the client is gone")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def _is_gone(request: BaseRequest) -> bool:
    """Tell whether the client has closed the connection, or its half of it: one that died looks the same."""
    transport = request.transport
    return transport is None or transport.is_closing() or getattr(request.protocol, "is_last_answer", False)


def _lease(query: Query) -> int:
    text = query.get(parameters.LEASE)
    if text is None:
        raise InvalidRequestError("the parameter lease is missing: grant a lease, and give its id (POST /v1/leases)")
    return parse_id(text, "the parameter lease")


def _granted(grant: LockGrant) -> Response:
    answer = wire.LockGranted(
        shown_id(grant.lease),
        grant.fencing_token,
        grant.revision,
        *text_or_base64(grant.name),
        *text_or_base64(grant.key),
    )
    return respond(answer, grant.revision)


def _state(state: LockState) -> wire.LockState:
    return wire.LockState(
        holder_of(state.holder),
        state.waiter_count,
        tuple(filter(None, map(holder_of, state.waiters))),
        *text_or_base64(state.name),
        state.revision,
    )


def lasts(path: str, raw_query: str) -> bool:
    """Tell whether a request waits for a lock or observes an election, for longer than other requests may take."""
    names = {part.partition("=")[0] for part in raw_query.split("&")}
    return path.startswith(tuple(f"{each}/" for each in KINDS)) and not names.isdisjoint(_LASTING)
