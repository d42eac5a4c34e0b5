"""The HTTP API, v1: every request becomes a typed command or query, meets the same limits and has three outcomes.

Theory of operation. aiohttp parses HTTP and owns the connections; its ``web.Application`` (router, middlewares,
signals, header multidicts) is left out, since it doubles the cost of a request (98 against 48 us of CPU each, 28 on
uvloop; measured with 32 connections and 200-byte PUTs). One coroutine, :meth:`Dispatcher.handle
<kvorum.fronts.http.dispatch.Dispatcher.handle>`, takes every request; keys come first,
everything else is looked up in a table.

::

    server     listeners, connections, malformed HTTP       dispatch  path and method -> handler; errors; counting
    response   one answer, rendered in one write            problems  THE table: error code -> status, title, outcome
    request    the target, the query, the body, in limits   kv        /v1/kv/{key}
    cluster    /v1/cluster, members, leader, /v1/hash       health    /livez /readyz /metrics /version
    forward    passes a request on to the leader            facade    what is asked of a node

Three outcomes. Every error body says ``outcome``: ``refused`` (certainly not done) or ``unknown``. A handler that
cannot tell says ``unknown``.
"""

from kvorum.fronts.http.facade import NodeFacade
from kvorum.fronts.http.server import ApiServer

__all__ = ["ApiServer", "NodeFacade"]
