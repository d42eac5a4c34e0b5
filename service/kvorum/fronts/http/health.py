"""``/livez``, ``/readyz``, ``/metrics`` and ``/version``: what a kubelet, a Prometheus and a person ask."""

from __future__ import annotations

import msgspec
from aiohttp.web import BaseRequest

from kvorum.fronts.http.problems import RefusalError
from kvorum.fronts.http.request import Query
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import CheckLiveness, CheckReadiness, GetMetrics, GetVersion
from kvorum.service.results import Check, Checks

_PARAMETERS = frozenset({"verbose", "exclude"})
_EXCLUDE = frozenset({"exclude"})
_TEXT = "text/plain; charset=utf-8"
_NO_STORE = "Cache-Control: no-store\r\n"


class HealthHandlers:
    """The handlers of one node's health.

    Args:
        service: what executes the requests.
    """

    def __init__(self, service: Service) -> None:
        self._execute = service.execute

    async def livez(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /livez[/CHECK]``: whether the process works; a kubelet restarts it if not."""
        return _checked("livez", await self._execute(ANONYMOUS, CheckLiveness()), name, raw_query)

    async def readyz(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /readyz[/CHECK]``: whether this node can serve clients."""
        return _checked("readyz", await self._execute(ANONYMOUS, CheckReadiness()), name, raw_query)

    async def metrics(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /metrics``; the parameters that a scraper adds are ignored."""
        metrics = await self._execute(ANONYMOUS, GetMetrics())
        return Response(200, metrics.body, metrics.content_type, _NO_STORE)

    async def version(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /version``."""
        Query(raw_query, frozenset())
        result = await self._execute(ANONYMOUS, GetVersion())
        fields = {"version": result.version, "api": ["v1"], "python": result.python}
        return Response(200, msgspec.json.encode(fields) + b"\n")


def _checked(path: str, result: Checks, only: str, raw_query: str) -> Response:
    checks = result.checks
    query = Query(raw_query, _PARAMETERS, _EXCLUDE)
    excluded = frozenset(filter(None, query.get("exclude", "").split(",")))
    if only:
        checks = tuple(check for check in checks if check.name == only)
        if not checks:
            raise RefusalError("unknown_path", f"/{path} has no such check")
    verbose = query.switch("verbose")
    failed = [check for check in checks if not check.ok and check.name not in excluded]
    lines = [_line(check, check.name in excluded) for check in checks]
    unknown = sorted(excluded - {check.name for check in checks})
    if unknown:
        lines.append(f"warn: some checks cannot be excluded: no matches for {', '.join(unknown)}")
    lines.append(f"{path} check {'failed' if failed else 'passed'}")
    if failed or verbose:
        text = "\n".join(lines) + "\n"
    else:
        text = "ok\n"
    return Response(503 if failed else 200, text.encode("utf-8", "backslashreplace"), _TEXT, _NO_STORE)


def _line(check: Check, excluded: bool) -> str:
    if excluded:
        return f"[+]{check.name} excluded: ok"
    if check.ok:
        return f"[+]{check.name} ok"
    return f"[-]{check.name} failed" + (f": {check.detail}" if check.detail else "")
