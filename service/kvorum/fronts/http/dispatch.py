"""Every request: path and method to handler, errors to answers, one line of counting. Nothing else wraps a handler."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import NamedTuple

from aiohttp import hdrs
from aiohttp.web import BaseRequest

from kvorum.errors import CallerError, NotLeader
from kvorum.fronts.http import kv
from kvorum.fronts.http.backup import BackupHandlers
from kvorum.fronts.http.cluster import ClusterHandlers
from kvorum.fronts.http.facade import NodeFacade
from kvorum.fronts.http.forward import FORWARDED_BY, Forwarder
from kvorum.fronts.http.health import HealthHandlers, RenderMetrics
from kvorum.fronts.http.problems import Refusal, from_error, problem
from kvorum.fronts.http.request import BODY, Query, split_target
from kvorum.fronts.http.response import Response, header
from kvorum.telemetry.logs import RateLimit

logger = logging.getLogger(__name__)

Handler = Callable[[BaseRequest, str, str], Awaitable[Response]]
"""Takes the request, the raw last part of its path (if the route has one) and the raw query."""

_MEMBERS = "/v1/cluster/members/"
_FORWARDABLE = kv.READ_PARAMETERS | kv.WRITE_PARAMETERS
"""The parameters of everything that may be for the leader only."""


class Route(NamedTuple):
    """One method of one path."""

    op: str
    """The metric's label."""
    handler: Handler


class Dispatcher:
    """Answers every request of one node.

    Args:
        node: the node.
        render_metrics: what ``/metrics`` answers; None: there are none.
        health_only: serve the health, metrics and version paths only (the metrics port).
    """

    def __init__(self, node: NodeFacade, render_metrics: RenderMetrics | None, *, health_only: bool = False) -> None:
        self._node = node
        self._config = node.config
        self._counters = node.counters
        self._kv = kv.KeyValueHandlers(node)
        self._kv_prefix = "\0" if health_only else kv.PREFIX
        health, cluster = HealthHandlers(node, render_metrics), ClusterHandlers(node)
        self._routes: dict[str, dict[str, Route]] = {
            "/livez": _read("livez", health.livez),
            "/readyz": _read("readyz", health.readyz),
            "/metrics": _read("metrics", health.metrics),
            "/version": _read("version", health.version),
        }
        self._prefixes = {
            "/livez/": _read("livez", health.livez),
            "/readyz/": _read("readyz", health.readyz),
        }
        self._promote: dict[str, Route] = {}
        if not health_only:
            self._add_cluster(cluster)
        self._forwarder = Forwarder(self._config.name, self._config.election_timeout_ms / 1000)
        self._bug_log = RateLimit()

    def _add_cluster(self, cluster: ClusterHandlers) -> None:
        self._routes |= {
            "/v1/cluster": _read("cluster", cluster.status),
            "/v1/cluster/leader": _read("leader", cluster.leader) | {"POST": Route("leader", cluster.move_leader)},
            "/v1/cluster/members": _read("members", cluster.members) | {"POST": Route("members", cluster.add_member)},
            "/v1/hash": _read("hash", cluster.hash),
            "/v1/snapshot": {"GET": Route("snapshot", BackupHandlers(self._node).save)},
        }
        self._prefixes[_MEMBERS] = {"DELETE": Route("members", cluster.remove_member)}
        self._promote = {"POST": Route("members", cluster.promote_member)}

    async def close(self) -> None:
        """Close what was opened to forward requests."""
        await self._forwarder.close()

    async def handle(self, request: BaseRequest) -> Response:
        """Answer one request. The boundary: whatever goes wrong behind it becomes an answer.

        Raises:
            ConnectionError: the client is gone; there is nobody to answer.
        """
        started = perf_counter()
        counters = self._counters
        counters.inflight += 1
        op = "other"
        try:
            try:
                path, query = split_target(request.raw_path)
                if hdrs.ORIGIN in request.headers:
                    _check_origin(request)
                if path.startswith(self._kv_prefix):
                    op = _KV_OPS.get(request.method, "other")
                    response = await self._kv.handle(request, path[len(self._kv_prefix) :], query, started)
                else:
                    route, name = self._route(request.method, path)
                    op = route.op
                    response = await route.handler(request, name, query)
            except NotLeader as error:
                response = await self._to_leader(request, error)
            except CallerError as error:
                response = from_error(error)
        except CallerError as error:
            response = from_error(error)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the HTTP boundary
            response = self._bug(error)
        finally:
            counters.inflight -= 1
        response.write_timeout_s = self._config.body_timeout_s
        counters.requests[op, response.status] += 1
        counters.request_duration[op].record(perf_counter() - started)
        return response

    def _route(self, method: str, path: str) -> tuple[Route, str]:
        routes, name = self._routes.get(path), ""
        if routes is None:
            prefix, _, name = path.rpartition("/")
            routes = self._prefixes.get(prefix + "/")
            if routes is None and name == "promote" and prefix.startswith(_MEMBERS) and _MEMBERS in self._prefixes:
                name = prefix.removeprefix(_MEMBERS)
                routes = self._promote if name and "/" not in name else None
        if routes is None or (not name and path not in self._routes):
            raise Refusal(
                "unknown_path", "there is nothing here; see /v1/kv/KEY, /v1/cluster, /livez, /readyz, /metrics"
            )
        route = routes.get(method)
        if route is None:
            allowed = ", ".join(sorted(routes))
            raise Refusal("method_not_allowed", f"this path takes {allowed}", headers=f"Allow: {allowed}\r\n")
        return route, name

    async def _to_leader(self, request: BaseRequest, error: NotLeader) -> Response:
        """Redirect the client to the leader, or pass its request on if it or the configuration says so."""
        path, raw_query = split_target(request.raw_path)
        leader, leader_url = self._node.leader_name() or "", self._node.leader_client_url()
        if not leader_url or leader_url == self._config.advertise_client_url:
            # Nobody to go to; or we were told of our own election only just now.
            return problem("no_leader", str(error), leader=leader or None)
        target = path + ("?" + raw_query if raw_query else "")
        query = Query(raw_query, _FORWARDABLE)
        if (self._config.forward or query.switch("forward")) and FORWARDED_BY not in request.headers:
            timeout_s = self._forward_timeout_s(query)
            return await self._forwarder.forward(request, request.get(BODY, b""), leader_url, target, timeout_s)
        self._counters.redirects += 1
        location = leader_url + target
        return problem(
            "not_leader",
            f"{self._config.name} does not lead; ask {leader or 'the leader'} at {leader_url}",
            headers=header("Location", location) + header("X-Kvorum-Leader", leader),
            leader=leader,
            leader_url=leader_url,
        )

    def _forward_timeout_s(self, query: Query) -> float:
        # The leader should give up first, since it knows more about why.
        limit = self._config.request_timeout_ms
        return 1.05 * min(limit, query.integer("timeout_ms", 1) or limit) / 1000

    def _bug(self, error: Exception) -> Response:
        held_back = self._bug_log.allow()
        if held_back is not None:
            logger.error("A request met a bug (%d more since the last such line)", held_back, exc_info=error)
        return problem("internal", f"a bug in Kvorum ({type(error).__name__}); see the node's log", close=True)


_KV_OPS = {"PUT": "put", "GET": "get", "HEAD": "get", "DELETE": "delete"}


def _read(op: str, handler: Handler) -> dict[str, Route]:
    route = Route(op, handler)
    return {"GET": route, "HEAD": route}


def _check_origin(request: BaseRequest) -> None:
    """Keep a web page that somebody happens to look at from writing to a node on their machine or network.

    Browsers say where a page is from, and cannot be told not to.
    """
    origin = request.headers[hdrs.ORIGIN].partition("://")[2].lower()
    if request.method not in {"GET", "HEAD"} and origin != request.headers.get(hdrs.HOST, "").lower():
        raise Refusal("cross_origin", "only pages that this node itself serves may change anything")
