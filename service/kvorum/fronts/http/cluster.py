"""``/v1/cluster``: what the node says of the cluster, its members, and the moving of the leadership."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec
from aiohttp.web import BaseRequest

from kvorum.errors import InvalidRequest
from kvorum.fronts.http.facade import NodeFacade
from kvorum.fronts.http.request import Query, decode_json, decode_text, read_body
from kvorum.fronts.http.response import Response

_PARAMETERS = frozenset({"timeout_ms", "forward"})
_BODY_BYTES_MAX = 16 * 1024
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_encode = msgspec.json.Encoder().encode


class AddMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/cluster/members``."""

    name: str
    peer_url: str
    client_url: str


class MoveLeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/cluster/leader``; it may be left out."""

    target: str | None = None


_decode_add_member = msgspec.json.Decoder(AddMember).decode
_decode_move_leader = msgspec.json.Decoder(MoveLeader).decode


class ClusterHandlers:
    """The handlers of one node's view of the cluster."""

    def __init__(self, node: NodeFacade) -> None:
        self._node = node
        self._config = node.config

    async def status(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/cluster``: this node's view; it asks nobody."""
        Query(raw_query, frozenset())
        return _json(_encode(self._node.status()))

    async def hash(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/hash``: the state's hash. Nodes at the same ``applied_index`` agree, or one is damaged."""
        Query(raw_query, frozenset())
        status = self._node.status()
        fields = {
            "name": status.name,
            "applied_index": status.applied_index,
            "revision": status.revision,
            "state_hash": status.state_hash,
        }
        return _json(_encode(fields))

    async def leader(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/cluster/leader``: who leads, as far as this node knows."""
        Query(raw_query, frozenset())
        fields = {"leader": self._node.leader_name(), "leader_url": self._node.leader_client_url()}
        return _json(_encode(fields))

    async def move_leader(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``POST /v1/cluster/leader``: hand the leadership on; answers with the new leader."""
        timeout_ms = self._timeout_ms(raw_query)
        body = await self._body(request)
        wanted = decode_json(body, _decode_move_leader, '{"target": "n2"}') if body else MoveLeader()
        leader = await self._node.transfer_leadership(wanted.target or None, timeout_ms)
        return _json(_encode({"leader": leader}))

    async def members(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/cluster/members``."""
        Query(raw_query, frozenset())
        return self._members()

    async def add_member(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``POST /v1/cluster/members``: add a learner."""
        timeout_ms = self._timeout_ms(raw_query)
        example = '{"name": "n4", "peer_url": "http://127.0.0.1:9004", "client_url": "http://127.0.0.1:8004"}'
        member = decode_json(await self._body(request), _decode_add_member, example)
        if not _NAME.fullmatch(member.name):
            raise InvalidRequest("the member's name is not 1 to 63 letters, digits, '-', '_' or '.'")
        for what, url in (("peer_url", member.peer_url), ("client_url", member.client_url)):
            _check_url(url, what)
        await self._node.add_member(member.name, member.peer_url, member.client_url, timeout_ms)
        return self._members()

    async def promote_member(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``POST /v1/cluster/members/{name}/promote``: make a learner a voter."""
        timeout_ms = self._timeout_ms(raw_query)
        await self._body(request)
        await self._node.promote_member(_member_name(name), timeout_ms)
        return self._members()

    async def remove_member(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``DELETE /v1/cluster/members/{name}``."""
        timeout_ms = self._timeout_ms(raw_query)
        await self._node.remove_member(_member_name(name), timeout_ms)
        return self._members()

    def _members(self) -> Response:
        return _json(_encode({"members": self._node.status().members}))

    def _timeout_ms(self, raw_query: str) -> int:
        query = Query(raw_query, _PARAMETERS)
        query.switch("forward")  # What it means is up to the dispatcher; but it must not be nonsense.
        wanted = query.integer("timeout_ms", 1)
        limit = self._config.request_timeout_ms
        return limit if wanted is None else min(wanted, limit)

    async def _body(self, request: BaseRequest) -> bytes:
        return await read_body(request, _BODY_BYTES_MAX, self._config.body_timeout_s)


def _json(body: bytes) -> Response:
    return Response(200, body + b"\n")


def _member_name(raw: str) -> str:
    name = decode_text(raw, "the member's name")
    if not _NAME.fullmatch(name):
        raise InvalidRequest("the member's name is not 1 to 63 letters, digits, '-', '_' or '.'")
    return name


def _check_url(url: str, what: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidRequest(f"{what} is not a URL") from None
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme != "http" or not parts.hostname or port == 0 or parts.path not in {"", "/"}:
        raise InvalidRequest(f"{what} is not http://HOST:PORT")
    if parts.query or parts.fragment or parts.username is not None:
        raise InvalidRequest(f"{what} is http://HOST:PORT without user, query or fragment")
