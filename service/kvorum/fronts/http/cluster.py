"""``/v1/cluster``: this node's view of the cluster, the members, and the transfer of the leadership."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp.web import BaseRequest

import kvorum_wire as wire
from kvorum.fronts.http import operations, parameters
from kvorum.fronts.http.request import BODY, Bodies, Query, decode_json, decode_text
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import (
    AddMember,
    FinalizeUpgrade,
    GetLeader,
    GetQuota,
    GetStateHash,
    GetStatus,
    ListMembers,
    PromoteMember,
    RemoveMember,
    SetQuota,
    TransferLeadership,
)
from kvorum.service.results import Members, Quota, StateHash

_BODY_BYTES_MAX = 16 * 1024
_ADD_MEMBER_EXAMPLE = '{"name": "n4", "peer_url": "http://127.0.0.1:9004"}'
_TRANSFER_EXAMPLE = '{"target": "n2"}'
_QUOTA_EXAMPLE = '{"quota_bytes": 1073741824}'
_encode = msgspec.json.Encoder().encode
_decode_add_member = msgspec.json.Decoder(wire.AddMember).decode
_decode_quota = msgspec.json.Decoder(wire.SetQuota).decode
_decode_transfer = msgspec.json.Decoder(wire.TransferLeadership).decode

_MEMBERS = operations.json_answer(wire.Members, "All members.")


def _change(summary: str, answers: tuple[operations.Answer, ...], *errors: str, **facts: Any) -> operations.Operation:
    return operations.Operation(
        summary=summary,
        answers=answers,
        parameters=operations.WRITE_PARAMETERS,
        errors=operations.WRITE_ERRORS | frozenset(errors),
        **facts,
    )


STATUS = operations.Operation(
    summary="What this node says of itself and the cluster", answers=operations.json_answer(wire.NodeStatus)
)
HASH = operations.Operation(summary="The hash of the state", answers=operations.json_answer(StateHash))
LEADER = operations.Operation(summary="The leader, as far as it is known", answers=operations.json_answer(wire.Leader))
TRANSFER = _change(
    "Transfer the leadership",
    operations.json_answer(wire.NewLeader),
    *("unknown_member", "transfer_failed"),
    body=operations.Body(wire.TransferLeadership, required=False),
)
FINALIZE = _change(
    "End an upgrade: raise the feature level", operations.json_answer(wire.FeatureLevel), "feature_level_blocked"
)
QUOTA = operations.Operation(summary="The quota on data", answers=operations.json_answer(wire.Quota))
SET_QUOTA = _change("Set the quota on data", operations.json_answer(wire.Quota), body=operations.Body(wire.SetQuota))
MEMBERS = operations.Operation(summary="The members", answers=_MEMBERS)
ADD_MEMBER = _change("Add a learner", _MEMBERS, "membership_refused", body=operations.Body(wire.AddMember))
PROMOTE_MEMBER = _change(
    "Make a learner a voter", _MEMBERS, *("membership_refused", "unknown_member"), name=operations.MEMBER_NAME
)
REMOVE_MEMBER = _change(
    "Remove a member", _MEMBERS, *("membership_refused", "unknown_member"), name=operations.MEMBER_NAME
)


class ClusterHandlers:
    """The handlers of the cluster.

    Args:
        service: what executes the requests.
        bodies: what reads their bodies.
    """

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._execute = service.execute
        self._bodies = bodies

    async def status(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/cluster``."""
        Query(raw_query, frozenset())
        return _json(await self._execute(ANONYMOUS, GetStatus()))

    async def hash(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/hash``."""
        Query(raw_query, frozenset())
        return _json(await self._execute(ANONYMOUS, GetStateHash()))

    async def leader(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/cluster/leader``."""
        Query(raw_query, frozenset())
        leader = await self._execute(ANONYMOUS, GetLeader())
        return _json(wire.Leader(leader.name, leader.client_url))

    async def transfer_leadership(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``POST /v1/cluster/leader``; answers with the new leader."""
        timeout_ms = _timeout_ms(raw_query)
        body = await self._body(request)
        wanted = decode_json(body, _decode_transfer, _TRANSFER_EXAMPLE) if body else wire.TransferLeadership()
        leader = await self._execute(ANONYMOUS, TransferLeadership(wanted.target, timeout_ms))
        return _json(wire.NewLeader(leader.name))

    async def finalize(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``POST /v1/cluster/finalize``: raise the feature level; answers with the level."""
        timeout_ms = _timeout_ms(raw_query)
        await self._body(request)
        result = await self._execute(ANONYMOUS, FinalizeUpgrade(timeout_ms))
        return _json(wire.FeatureLevel(result.level))

    async def quota(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/cluster/quota``."""
        Query(raw_query, frozenset())
        return _quota(await self._execute(ANONYMOUS, GetQuota()))

    async def set_quota(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``PUT /v1/cluster/quota``; answers with the quota that is in force."""
        timeout_ms = _timeout_ms(raw_query)
        wanted = decode_json(await self._body(request), _decode_quota, _QUOTA_EXAMPLE)
        return _quota(await self._execute(ANONYMOUS, SetQuota(wanted.quota_bytes, timeout_ms)))

    async def members(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/cluster/members``."""
        Query(raw_query, frozenset())
        return _members(await self._execute(ANONYMOUS, ListMembers()))

    async def add_member(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``POST /v1/cluster/members``: add a learner."""
        timeout_ms = _timeout_ms(raw_query)
        member = decode_json(await self._body(request), _decode_add_member, _ADD_MEMBER_EXAMPLE)
        wanted = AddMember(member.name, member.peer_url, member.client_url, timeout_ms)
        return _members(await self._execute(ANONYMOUS, wanted))

    async def promote_member(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``POST /v1/cluster/members/{name}/promote``: make a learner a voter."""
        timeout_ms = _timeout_ms(raw_query)
        await self._body(request)
        return _members(await self._execute(ANONYMOUS, PromoteMember(_member_name(name), timeout_ms)))

    async def remove_member(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``DELETE /v1/cluster/members/{name}``."""
        timeout_ms = _timeout_ms(raw_query)
        return _members(await self._execute(ANONYMOUS, RemoveMember(_member_name(name), timeout_ms)))

    async def _body(self, request: BaseRequest) -> bytes:
        body = request[BODY] = await self._bodies.read(request, _BODY_BYTES_MAX)
        return body


def _json(body: msgspec.Struct) -> Response:
    return Response(200, _encode(body) + b"\n")


def _members(result: Members) -> Response:
    return _json(wire.Members(result.members))


def _quota(result: Quota) -> Response:
    return _json(wire.Quota(result.limit_bytes, result.used_bytes, result.is_full))


def _timeout_ms(raw_query: str) -> int | None:
    query = Query(raw_query, operations.WRITE_PARAMETERS)
    query.switch(parameters.FORWARD)  # Its meaning is the dispatcher's; here it must only be well-formed.
    return query.integer(parameters.TIMEOUT_MS)


def _member_name(raw: str) -> str:
    return decode_text(raw, "the member's name")
