"""Forwarding of requests to the leader's client port, for clients that cannot follow a redirect there.

From feature level 6 on writes are handed to the leader between the nodes instead (:mod:`kvorum.node.handover`). What is
forwarded here is what only the leader can do: changes of the members and of the leader, and writes below that level.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import unquote

import aiohttp
from aiohttp import hdrs
from aiohttp.web import BaseRequest
from yarl import URL

from kvorum.config import Config
from kvorum.fronts.http.parameters import FORWARD
from kvorum.fronts.http.problems import RefusalError
from kvorum.fronts.http.request import Query
from kvorum.fronts.http.response import Response, header
from kvorum.resolver import Resolver

FORWARDED_BY = "X-Kvorum-Forwarded-By"
"""Set on a forwarded request, which is never forwarded again: so it cannot go in circles."""

_REQUEST_HEADERS = ("Idempotency-Key", hdrs.CONTENT_TYPE, hdrs.ACCEPT, hdrs.IF_MATCH, hdrs.IF_NONE_MATCH, "traceparent")
_RESPONSE_HEADERS = ("ETag", hdrs.RETRY_AFTER, hdrs.ALLOW, "X-Kvorum-Revision")
_STATUSES = frozenset(HTTPStatus)
CONNECTIONS_MAX = 256


def is_forwarding(config: Config, request: BaseRequest, query: Query) -> bool:
    """Tell whether a request that is for the leader is forwarded there, rather than redirected."""
    return query.switch(FORWARD, default=config.forward) and FORWARDED_BY not in request.headers


def is_handing_over(config: Config, request: BaseRequest, raw_query: str) -> bool:
    """Tell whether a write of this request is handed to the leader. A malformed query is the handler's to refuse."""
    is_wanted = config.forward
    if FORWARD in raw_query:
        for part in raw_query.split("&"):
            name, _, value = part.partition("=")
            if name == FORWARD:
                is_wanted = unquote(value).lower() in {"", "1", "true"}
    return is_wanted and FORWARDED_BY not in request.headers


class Forwarder:
    """One node's connections to the leader's client port.

    Args:
        name: this node's name.
        connect_timeout_s: how long a connection may take.
        connections_max: how many may be open at a time.
    """

    def __init__(self, name: str, connect_timeout_s: float, connections_max: int) -> None:
        self._connections_max = connections_max
        self._name = name
        self._connect_timeout_s = connect_timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def forward(
        self,
        request: BaseRequest,
        body: bytes,
        leader_url: str,
        target: str,
        timeout_s: float,
        cluster: Mapping[str, str],
    ) -> Response:
        """Forward the request and return the leader's answer. ``cluster`` is the header that names our cluster.

        Raises:
            RefusalError: ``no_leader`` (certainly not done), or ``outcome_unknown``.
        """
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        headers[FORWARDED_BY] = self._name
        headers |= cluster
        try:
            async with self._open().request(
                request.method,
                URL(leader_url + target, encoded=True),
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=self._connect_timeout_s),
            ) as answer:
                if any(answer.headers.get(name, value) != value for name, value in cluster.items()):
                    raise RefusalError("no_leader", "the leader's address leads to another cluster; nothing was done")
                return await self._answer(answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise RefusalError("no_leader", "this node cannot reach the leader; nothing was done") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RefusalError(
                "outcome_unknown", f"forwarded to the leader, which did not answer ({type(error).__name__})"
            ) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=Resolver(), limit=self._connections_max, ttl_dns_cache=1, keepalive_timeout=10
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                raise_for_status=False,
                trust_env=False,
            )
            # aiohttp sends a PUT or DELETE a second time when a kept-alive connection breaks before the answer: that
            # would apply a write twice, and report a compare that succeeded as failed.
            self._session._retry_connection = False
        return self._session

    async def _answer(self, answer: aiohttp.ClientResponse) -> Response:
        if answer.status == 307:
            raise RefusalError("no_leader", "the leadership is being transferred; nothing was done")
        if answer.status not in _STATUSES:
            raise RefusalError(
                "outcome_unknown",
                f"forwarded to the leader, but the answer is not from Kvorum: status {answer.status}",
            )
        body = await answer.read()
        lines = "".join(header(name, answer.headers[name]) for name in _RESPONSE_HEADERS if name in answer.headers)
        return Response(answer.status, body, answer.headers.get(hdrs.CONTENT_TYPE, ""), lines)
