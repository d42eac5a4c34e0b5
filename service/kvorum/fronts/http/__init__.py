"""The HTTP API, v1: bytes to typed requests, and results or errors to bytes. What a request means is the service's.

Theory of operation. aiohttp parses HTTP and owns the connections; its ``web.Application`` (router, middlewares,
signals, header multidicts) is left out, since it doubles the cost of a request (98 against 48 us of CPU each, 28 on
uvloop; measured with 32 connections and 200-byte PUTs). One coroutine, :meth:`Dispatcher.handle
<kvorum.fronts.http.dispatch.Dispatcher.handle>`, takes every request; keys come first,
everything else is looked up in a table.

::

    server     listeners, connections, malformed HTTP       dispatch  path and method -> handler; errors; counting
    response   one answer, rendered in one write            problems  THE table: error code -> status and title
    request    the target, the query, the body, in limits   kv        /v1/kv/{key}
    cluster    /v1/cluster, members, leader, /v1/hash       health    /livez /readyz /metrics /version
    forward    forwards a request to the leader             backup    /v1/snapshot
    parameters the rows of what a query may have            operations  what each route promises
    openapi    /openapi.json, made of the routes
    ranges     GET /v1/kv                                   history   versions of a key, /v1/compact

HTTP's own: entity tags and conditional headers, 304, redirects and forwarding to the leader, problem+json, content
types, Origin, Expect.
"""

from kvorum.fronts.http.server import ApiServer

__all__ = ["ApiServer"]
