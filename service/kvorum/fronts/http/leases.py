"""``/v1/leases``: grant, renew, revoke, and what leases there are. Ids are hex, as etcdctl prints them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import msgspec
from aiohttp.web import BaseRequest

from kvorum.errors import InvalidRequestError
from kvorum.fronts.http import operations, parameters
from kvorum.fronts.http.history import text_or_base64
from kvorum.fronts.http.request import BODY, Bodies, Query, decode_json, decode_text
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.leases import SLICE_LEASES
from kvorum.service.limits import INTEGER_MAX, INTEGER_MIN
from kvorum.service.requests import GetLease, GrantLease, ListLeases, RenewLease, RevokeLease
from kvorum.service.results import LeaseState
from kvorum_wire import leases as wire

PATH = "/v1/leases"
PREFIX = "/v1/leases/"
KEEPALIVE = "keepalive"
PARAMETERS = operations.WRITE_PARAMETERS
GET_PARAMETERS = PARAMETERS | {parameters.LEASE_KEYS}
LIST_PARAMETERS = PARAMETERS | {parameters.AFTER, parameters.LEASES_LIMIT}

_ERRORS = operations.WRITE_ERRORS | {"lease_not_found"}
GRANT = operations.Operation(
    summary="Grant a lease",
    parameters=PARAMETERS,
    body=operations.Body(wire.GrantLease),
    answers=(operations.Answer("Granted.", {operations.JSON: wire.LeaseGranted}, ("X-Kvorum-Revision",), 201),),
    errors=operations.WRITE_ERRORS | {"lease_exists", "too_many_leases", "no_space"},
)
KEEP_ALIVE = operations.Operation(
    summary="Renew a lease",
    name=operations.LEASE_ID,
    parameters=PARAMETERS,
    answers=operations.json_answer(wire.LeaseRenewed, "Renewed.", "X-Kvorum-Revision"),
    errors=_ERRORS,
)
REVOKE = operations.Operation(
    summary="Revoke a lease, and delete its keys",
    name=operations.LEASE_ID,
    parameters=PARAMETERS,
    answers=operations.json_answer(wire.LeaseRevoked, "Revoked.", "X-Kvorum-Revision"),
    errors=_ERRORS,
)
GET = operations.Operation(
    summary="How long a lease still lives",
    name=operations.LEASE_ID,
    parameters=GET_PARAMETERS,
    answers=operations.json_answer(wire.LeaseState, "The lease."),
    errors=operations.READ_ERRORS | {"lease_not_found"},
)
LIST = operations.Operation(
    summary="List leases",
    parameters=LIST_PARAMETERS,
    answers=operations.json_answer(wire.LeaseList, "The leases.", "X-Kvorum-Revision"),
    errors=operations.READ_ERRORS,
)

_BODY_BYTES_MAX = 1024
_EXAMPLE = '{"ttl_s": 60}'
_LISTED = 1000
_ID = re.compile(r"-?0*[0-9a-fA-F]{1,16}", re.ASCII)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(wire.GrantLease).decode


class LeaseHandlers:
    """The handlers of leases.

    Args:
        service: what executes the requests.
        bodies: what reads their bodies.
    """

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._execute = service.execute
        self._bodies = bodies

    async def grant(self, request: BaseRequest, _: str, raw_query: str) -> Response:
        """``POST /v1/leases``."""
        timeout_ms = common_parameters(Query(raw_query, PARAMETERS))
        body = request[BODY] = await self._bodies.read(request, _BODY_BYTES_MAX)
        wanted = decode_json(body, _decode, _EXAMPLE)
        id = 0 if wanted.id is None else parse_id(wanted.id, "id")
        granted = await self._execute(ANONYMOUS, GrantLease(wanted.ttl_s, id, wanted.lock_delay_s, timeout_ms))
        answer = wire.LeaseGranted(shown_id(granted.id), granted.ttl_s, granted.revision, granted.delay_s)
        return respond(answer, granted.revision, status=201)

    async def keep_alive(self, _: BaseRequest, raw_id: str, raw_query: str) -> Response:
        """``POST /v1/leases/ID/keepalive``."""
        timeout_ms = common_parameters(Query(raw_query, PARAMETERS))
        renewed = await self._execute(ANONYMOUS, RenewLease(_path_id(raw_id), timeout_ms))
        return respond(wire.LeaseRenewed(shown_id(renewed.id), renewed.ttl_s, renewed.revision), renewed.revision)

    async def revoke(self, _: BaseRequest, raw_id: str, raw_query: str) -> Response:
        """``DELETE /v1/leases/ID``."""
        timeout_ms = common_parameters(Query(raw_query, PARAMETERS))
        gone = await self._execute(ANONYMOUS, RevokeLease(_path_id(raw_id), timeout_ms))
        return respond(wire.LeaseRevoked(shown_id(gone.id), gone.deleted, gone.revision), gone.revision)

    async def get(self, _: BaseRequest, raw_id: str, raw_query: str) -> Response:
        """``GET /v1/leases/ID``."""
        query = Query(raw_query, GET_PARAMETERS)
        with_keys = query.switch(parameters.LEASE_KEYS)
        state = await self._execute(ANONYMOUS, GetLease(_path_id(raw_id), with_keys, common_parameters(query)))
        return respond(_state(state))

    async def list_all(self, _: BaseRequest, __: str, raw_query: str) -> Response:
        """``GET /v1/leases``."""
        query = Query(raw_query, LIST_PARAMETERS)
        after = None if (text := query.get(parameters.AFTER)) is None else parse_id(text, "after")
        limit = query.integer(parameters.LEASES_LIMIT) or _LISTED
        found = await self._execute(ANONYMOUS, ListLeases(after, limit, common_parameters(query)))
        listed = wire.LeaseList(await _listed(found.leases), found.more, found.revision)
        return respond(listed, found.revision)


def common_parameters(query: Query) -> int | None:
    """Return ``timeout_ms``; ``forward`` must be well-formed, its meaning is the dispatcher's."""
    query.switch(parameters.FORWARD)
    return query.integer(parameters.TIMEOUT_MS)


def shown_id(id: int) -> str:
    """Return the id of a lease as this front writes it."""
    return f"{id:x}"


def parse_id(text: str, what: str) -> int:
    """Return the id of a lease.

    Raises:
        InvalidRequestError: it is not one; ``what`` names the field.
    """
    id = int(text, 16) if len(text) <= 64 and _ID.fullmatch(text) else 0
    if id == 0 or not INTEGER_MIN <= id <= INTEGER_MAX:
        raise InvalidRequestError(
            f"{what} is not the id of a lease, which is a hexadecimal number from {INTEGER_MIN:x} to {INTEGER_MAX:x}, "
            "and not 0"
        )
    return id


def _path_id(raw: str) -> int:
    return parse_id(decode_text(raw, "the id"), "the last part of the path")


async def _listed(states: Sequence[LeaseState]) -> tuple[wire.LeaseState, ...]:
    """Return what a list shows; the event loop has turns meanwhile."""
    listed: list[wire.LeaseState] = []
    for start in range(0, len(states), SLICE_LEASES):
        if start:
            await asyncio.sleep(0)
        listed.extend(map(_state, states[start : start + SLICE_LEASES]))
    return tuple(listed)


def _state(state: LeaseState) -> wire.LeaseState:
    return wire.LeaseState(
        shown_id(state.id),
        state.ttl_s,
        state.remaining_ms,
        state.key_count,
        state.delay_s,
        None if state.keys is None else tuple(wire.LeaseKey(*text_or_base64(key)) for key in state.keys),
    )


def respond(answer: msgspec.Struct, revision: int | None = None, *, status: int = 200) -> Response:
    """Return an answer in JSON."""
    headers = "" if revision is None else f"X-Kvorum-Revision: {revision}\r\n"
    return Response(status, _encode(answer) + b"\n", headers=headers)
