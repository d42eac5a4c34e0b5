"""Every request: path and method to handler, errors to answers, and the counting. Nothing else wraps a handler."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from copy import copy
from time import perf_counter
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import HttpVersion11, hdrs
from aiohttp.web import BaseRequest
from multidict import istr

from kvorum.config import Config, KnownHosts
from kvorum.errors import CallerError, InvalidRequestError, NotLeaderError
from kvorum.fronts.http import (
    backup,
    cluster,
    health,
    history,
    kv,
    leases,
    locks,
    parameters,
    ranges,
    sessions,
    transactions,
    watch,
)
from kvorum.fronts.http.backup import BackupHandlers
from kvorum.fronts.http.cluster import ClusterHandlers
from kvorum.fronts.http.forward import CONNECTIONS_MAX, Forwarder, is_forwarding, is_handing_over
from kvorum.fronts.http.health import HealthHandlers
from kvorum.fronts.http.history import HistoryHandlers
from kvorum.fronts.http.leases import LeaseHandlers
from kvorum.fronts.http.locks import LockHandlers
from kvorum.fronts.http.openapi import DOCUMENT, PATH, DocumentHandler
from kvorum.fronts.http.operations import Operation
from kvorum.fronts.http.problems import RefusalError, from_error, problem
from kvorum.fronts.http.ranges import RangeHandlers
from kvorum.fronts.http.request import BODY, SEC_FETCH_SITE, Bodies, Query, split_target
from kvorum.fronts.http.response import Response, header
from kvorum.fronts.http.sessions import SessionHandlers
from kvorum.fronts.http.transactions import TransactionHandlers
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.limits import bounded_timeout_ms
from kvorum.service.requests import GetStatus, LockKind
from kvorum.telemetry.counters import Counters
from kvorum.telemetry.logs import RateLimit
from kvorum_wire import CLUSTER_HEADER

logger = logging.getLogger(__name__)

Handler = Callable[[BaseRequest, str, str], Awaitable[Response]]
"""Takes the request, the raw last part of its path (if the route has one) and the raw query."""

_MEMBERS = "/v1/cluster/members/"
CLUSTER = istr(CLUSTER_HEADER)
_CLUSTER_PARAMETER = parameters.CLUSTER
"""The same in the query, where it survives a redirect that an HTTP library follows."""
_OF_FORWARDING = frozenset({parameters.FORWARD, parameters.TIMEOUT_MS})
"""The parameters that say whether, and for how long, a request is forwarded. Its handler has seen the others."""


class Route(NamedTuple):
    """One method of one path. It is in ``/openapi.json`` because it is registered."""

    op: str
    """The metric's label."""
    handler: Handler
    operation: Operation
    """What it promises."""


class _Routes:
    """What is answered, by path and method.

    Args:
        service: what executes the requests.
        config: the node's.
        bodies: what reads the bodies of requests.
        health_only: the health, metrics and version paths only.
    """

    def __init__(self, service: Service, config: Config, bodies: Bodies, *, health_only: bool) -> None:
        self._config = config
        self._bodies = bodies
        self._keys_prefix = "\0" if health_only else kv.PREFIX
        checks = HealthHandlers(service)
        self._routes: dict[str, dict[str, Route]] = {
            "/livez": _read("livez", checks.livez, health.LIVEZ),
            "/readyz": _read("readyz", checks.readyz, health.READYZ),
            "/metrics": _read("metrics", checks.metrics, health.METRICS),
            "/version": _read("version", checks.version, health.VERSION),
        }
        self._prefixes = {
            "/livez/": _read("livez", checks.livez, health.LIVEZ_CHECK),
            "/readyz/": _read("readyz", checks.readyz, health.READYZ_CHECK),
        }
        self.keys: dict[str, Route] = {}
        self._promote: dict[str, Route] = {}
        self._keep_alive: dict[str, Route] = {}
        self._range: dict[str, Route] = {}
        if not health_only:
            self._range = {"GET": Route("range", RangeHandlers(service).read, kv.GET_BY_PARAMETER)}
            self._routes["/v1/snapshot"] = {"GET": Route("snapshot", BackupHandlers(service).save, backup.SAVE)}
            self._routes[watch.PATH] = {"GET": Route("watch", watch.WatchHandlers(service).watch, watch.WATCH)}
            self._routes[PATH] = _read("openapi", DocumentHandler(service, self.routes).get, DOCUMENT)
            self._add_writing(service)

    def handing_over(self, service: Service) -> _Routes:
        """Return the same routes, of which those that may write do it by ``service``.

        The others are shared, and so is what they bound: the buffers of watches, for example.
        """
        other = copy(self)
        other._routes, other._prefixes = dict(self._routes), dict(self._prefixes)
        other._add_writing(service)
        return other

    def _add_writing(self, service: Service) -> None:
        """Add the paths of which at least one method writes."""
        config, bodies = self._config, self._bodies
        many = TransactionHandlers(service, config, bodies)
        keys = kv.KeyValueHandlers(service, config, bodies, many)
        self.keys = _read("get", keys.get, kv.GET) | {
            "PUT": Route("put", keys.put, kv.PUT),
            "DELETE": Route("delete", keys.delete, kv.DELETE),
        }
        self._add_keys_by_parameter(keys)
        self._add_cluster(ClusterHandlers(service, bodies))
        self._routes["/v1/compact"] = {
            "POST": Route("compact", HistoryHandlers(service, bodies).compact, history.COMPACT)
        }
        self._routes["/v1/txn"] = {"POST": Route("txn", many.txn, transactions.TXN)}
        self._routes["/v1/batch"] = {"POST": Route("batch", many.batch, transactions.BATCH)}
        self._prefixes[sessions.PREFIX] = {"DELETE": Route("session", SessionHandlers(service).end, sessions.END)}
        self._add_leases(LeaseHandlers(service, bodies))
        for path, kind in locks.KINDS.items():
            self._add_locks(path, kind, LockHandlers(kind, service, config, bodies))

    def _add_keys_by_parameter(self, keys: kv.KeyValueHandlers) -> None:
        self._routes[kv.PATH] = {
            "GET": Route("get", keys.get, kv.GET_BY_PARAMETER),
            "HEAD": Route("get", keys.get, kv.HEAD_BY_PARAMETER),
            "PUT": Route("put", keys.put, kv.PUT_BY_PARAMETER),
            "DELETE": Route("delete", keys.delete, kv.DELETE_BY_PARAMETER),
        }

    def _add_cluster(self, handlers: ClusterHandlers) -> None:
        self._routes |= {
            "/v1/cluster": _read("cluster", handlers.status, cluster.STATUS),
            "/v1/cluster/leader": _read("leader", handlers.leader, cluster.LEADER)
            | {"POST": Route("leader", handlers.transfer_leadership, cluster.TRANSFER)},
            "/v1/cluster/finalize": {"POST": Route("finalize", handlers.finalize, cluster.FINALIZE)},
            "/v1/cluster/quota": _read("quota", handlers.quota, cluster.QUOTA)
            | {"PUT": Route("quota", handlers.set_quota, cluster.SET_QUOTA)},
            "/v1/cluster/members": _read("members", handlers.members, cluster.MEMBERS)
            | {"POST": Route("members", handlers.add_member, cluster.ADD_MEMBER)},
            "/v1/hash": _read("hash", handlers.hash, cluster.HASH),
        }
        self._prefixes[_MEMBERS] = {"DELETE": Route("members", handlers.remove_member, cluster.REMOVE_MEMBER)}
        self._promote = {"POST": Route("members", handlers.promote_member, cluster.PROMOTE_MEMBER)}

    def routes(self) -> Iterator[tuple[str, str, Operation]]:
        """Yield every route that this port serves: its path, with the last part as ``{name}``; its method; itself."""
        tables = [(path, "", each) for path, each in self._routes.items()]
        tables += [(path, "", each) for path, each in self._prefixes.items()]
        tables += [(self._keys_prefix, "", self.keys), (_MEMBERS, "/promote", self._promote)]
        tables += [(leases.PREFIX, f"/{leases.KEEPALIVE}", self._keep_alive)]
        for path, suffix, table in tables:
            for method, route in table.items():
                name = route.operation.name
                yield path + ("" if name is None else "{" + name.name + "}") + suffix, method, route.operation

    def _add_leases(self, handlers: LeaseHandlers) -> None:
        self._routes[leases.PATH] = _read("leases", handlers.list_all, leases.LIST) | {
            "POST": Route("lease_grant", handlers.grant, leases.GRANT)
        }
        self._prefixes[leases.PREFIX] = _read("lease", handlers.get, leases.GET) | {
            "DELETE": Route("lease_revoke", handlers.revoke, leases.REVOKE)
        }
        self._keep_alive = {"POST": Route("lease_keepalive", handlers.keep_alive, leases.KEEP_ALIVE)}

    def _add_locks(self, path: str, kind: LockKind, handlers: LockHandlers) -> None:
        described = locks.OPERATIONS[kind]
        self._routes[path] = _read(f"{kind}s", handlers.list_all, described.list_all)
        self._prefixes[path + "/"] = _read(kind, handlers.get, described.get) | {
            "POST": Route(f"{kind}_acquire", handlers.acquire, described.acquire),
            "DELETE": Route(f"{kind}_release", handlers.release, described.release),
        }
        if kind == "election":
            self._prefixes[path + "/"]["PUT"] = Route("election_proclaim", handlers.proclaim, locks.PROCLAIM)

    def find(self, path: str, query: str, method: str) -> tuple[dict[str, Route], str]:
        """Return the routes of a path that is not a key's, and the raw last part of the path if they have one."""
        routes, name = self._routes.get(path), ""
        if path == kv.PATH and routes is not None and method == "GET" and not kv.names_key(query):
            return self._range, name
        if routes is None:
            prefix, _, name = path.rpartition("/")
            routes = self._prefixes.get(prefix + "/")
            if routes is None and name == "promote" and prefix.startswith(_MEMBERS) and _MEMBERS in self._prefixes:
                name = prefix.removeprefix(_MEMBERS)
                routes = self._promote if name and "/" not in name else None
            elif routes is None and name == leases.KEEPALIVE and prefix.startswith(leases.PREFIX):
                name = prefix.removeprefix(leases.PREFIX)
                routes = self._keep_alive if name and "/" not in name else None
        if routes is None or (not name and path not in self._routes):
            raise RefusalError(
                "unknown_path", "the path does not exist; try /v1/kv/KEY, /v1/cluster, /livez, /readyz, /metrics"
            )
        return routes, name


class Dispatcher:
    """Answers every request of one node.

    Args:
        service: what executes the requests.
        config: the node's.
        counters: where requests are counted.
        bodies: what reads the bodies of requests.
        forwarded_max: how many connections to the leader may be open at a time.
        health_only: serve the health, metrics and version paths only (the metrics port).

    Attributes:
        close_after_answers: each answer is the last of its connection.
    """

    def __init__(
        self,
        service: Service,
        config: Config,
        counters: Counters,
        bodies: Bodies,
        *,
        forwarded_max: int = CONNECTIONS_MAX,
        health_only: bool = False,
    ) -> None:
        self._service = service
        self._config = config
        self._counters = counters
        self._hosts = KnownHosts(config)
        self._kv_prefix = "\0" if health_only else kv.PREFIX
        self._bodies = bodies
        self._own = _Routes(service, config, bodies, health_only=health_only)
        # The paths of the metrics port write nothing.
        self._handing_over = self._own if health_only else self._own.handing_over(service.handing_over())
        self._forwarder = Forwarder(self._config.name, self._config.election_timeout_ms / 1000, forwarded_max)
        self._bug_log = RateLimit()
        self.close_after_answers = False
        self._cluster = ("", "")
        """The id of the cluster, and the header line that says so."""

    def routes(self) -> Iterator[tuple[str, str, Operation]]:
        """Yield every route that this port serves: its path, with the last part as ``{name}``; its method; itself."""
        return self._own.routes()

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
                headers = request.headers
                if request.version != HttpVersion11 and hdrs.TRANSFER_ENCODING in headers:
                    raise RefusalError("malformed_http", "Transfer-Encoding needs HTTP/1.1")
                if not self._hosts.knows(host := headers.get(hdrs.HOST)):
                    await self._check_host(host)
                if hdrs.ORIGIN in headers or SEC_FETCH_SITE in headers:
                    _check_origin(request)
                if CLUSTER in headers:
                    for wanted in headers.getall(CLUSTER):
                        self._service.check_cluster(wanted)
                if _CLUSTER_PARAMETER in query:
                    query = self._without_cluster(query)
                tables = self._own
                if (self._config.forward or "forward" in query) and is_handing_over(self._config, request, query):
                    tables = self._handing_over
                if path.startswith(self._kv_prefix):
                    routes, name = tables.keys, path[len(self._kv_prefix) :]
                else:
                    routes, name = tables.find(path, query, request.method)
                route = routes.get(request.method)
                if route is None:
                    raise _method_not_allowed(routes)
                op, handler, _ = route
                response = await handler(request, name, query)
            except NotLeaderError as error:
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
            self._bodies.release(request)
        if self.close_after_answers or request._message.upgrade:
            # After a request to upgrade (h2c, CONNECT), which nobody does here, what follows is not parsed.
            response.close = True
        response.write_timeout_s = self._config.body_timeout_s
        if cluster_id := self._service.cluster_id:
            if cluster_id != self._cluster[0]:
                self._cluster = cluster_id, header(CLUSTER, cluster_id)
            response.headers += self._cluster[1]
        counters.requests[op, response.status] += 1
        counters.request_duration[op].record(perf_counter() - started)
        return response

    def _without_cluster(self, raw_query: str) -> str:
        """Check the cluster that a query names, and return the rest of the query.

        Raises:
            InvalidRequestError: it names none, or more than one.
            WrongClusterError, NotServingError: it is another one, or this node is in none.
        """
        rest, named = [], []
        for part in raw_query.split("&"):
            name, _, value = part.partition("=")
            if name == _CLUSTER_PARAMETER:
                named.append(value)
            else:
                rest.append(part)
        if len(named) > 1:
            raise InvalidRequestError("the parameter cluster is given twice")
        for cluster_id in named:
            if not cluster_id:
                raise InvalidRequestError("the parameter cluster is empty: write cluster=ID")
            self._service.check_cluster(cluster_id)
        return "&".join(rest)

    async def _check_host(self, host: str | None) -> None:
        """Refuse a request for a host that is not even a member's, see :mod:`kvorum.config.hosts`."""
        status = await self._service.execute(ANONYMOUS, GetStatus())
        self._hosts.learn(member.client_url for member in status.members)
        if not self._hosts.knows(host):
            raise RefusalError(
                "unknown_host",
                f"{self._config.name} does not know the host {host!r:.300}; if clients reach it under this name, add "
                "it to the option hosts",
            )

    async def _to_leader(self, request: BaseRequest, error: NotLeaderError) -> Response:
        """Redirect the client to the leader, or forward its request if it or the configuration says so."""
        leader, leader_url = error.leader_name, error.leader_client_url
        path, raw_query = split_target(request.raw_path)
        if _CLUSTER_PARAMETER in raw_query:
            raw_query = self._without_cluster(raw_query)
        target = path + ("?" + raw_query if raw_query else "")
        # What streams is redirected, and never forwarded: a watch would take a connection of this node for as long as
        # it lasts, so would one that waits for a lock, and of a range this node would have to hold all.
        is_stream = path == watch.PATH or ranges.wants_stream(request) or locks.lasts(path, raw_query)
        parts = [part for part in raw_query.split("&") if unquote(part.partition("=")[0]) in _OF_FORWARDING]
        query = Query("&".join(parts), _OF_FORWARDING)
        if not is_stream and is_forwarding(self._config, request, query):
            timeout_s = self._forward_timeout_s(query)
            return await self._forwarder.forward(
                request, request.get(BODY, b""), leader_url, target, timeout_s, {CLUSTER: self._service.cluster_id}
            )
        if error.cluster_id:
            target += ("&" if "?" in target else "?") + f"{_CLUSTER_PARAMETER}={error.cluster_id}"
        self._counters.redirects += 1
        return problem(
            "not_leader",
            f"{self._config.name} is not the leader; ask {leader or 'the leader'} at {leader_url}",
            headers=header("Location", leader_url + target) + header("X-Kvorum-Leader", leader),
            leader=leader,
            leader_url=leader_url,
        )

    def _forward_timeout_s(self, query: Query) -> float:
        # The leader should give up first, since it knows more about why.
        timeout_ms = bounded_timeout_ms(query.integer(parameters.TIMEOUT_MS), self._config.request_timeout_ms)
        return 1.05 * timeout_ms / 1000

    def _bug(self, error: Exception) -> Response:
        held_back = self._bug_log.allow()
        if held_back is not None:
            logger.error(
                "Internal error while answering a request (%d more since the last such line)", held_back, exc_info=error
            )
        return problem("internal", f"a bug in Kvorum ({type(error).__name__}); see the log of the node", close=True)


def _read(op: str, handler: Handler, operation: Operation) -> dict[str, Route]:
    route = Route(op, handler, operation)
    return {"GET": route, "HEAD": route}


def _method_not_allowed(routes: dict[str, Route]) -> RefusalError:
    allowed = ", ".join(routes)
    return RefusalError("method_not_allowed", f"this path supports {allowed}", headers=f"Allow: {allowed}\r\n")


def _check_origin(request: BaseRequest) -> None:
    """Refuse a web page of another origin that tries to write to a node on its visitor's machine or network.

    Browsers send the origin of the page, and the page cannot prevent that.
    """
    if request.headers.get(SEC_FETCH_SITE, "") == "cross-site":
        raise RefusalError("cross_origin", "a web page of another site may not use this node")
    if hdrs.ORIGIN not in request.headers:
        return
    origin = request.headers[hdrs.ORIGIN].partition("://")[2].lower()
    if request.method not in {"GET", "HEAD"} and origin != request.headers.get(hdrs.HOST, "").lower():
        raise RefusalError("cross_origin", "cross-origin requests may only read")
