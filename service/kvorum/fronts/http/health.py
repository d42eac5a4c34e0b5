"""``/livez``, ``/readyz``, ``/metrics`` and ``/version``: what a kubelet, a Prometheus and a person ask."""

from __future__ import annotations

import msgspec
from aiohttp.web import BaseRequest

import kvorum_wire as wire
from kvorum.fronts.http import operations, parameters
from kvorum.fronts.http.problems import RefusalError
from kvorum.fronts.http.request import Query
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import CheckLiveness, CheckReadiness, GetMetrics, GetVersion
from kvorum.service.results import Check, Checks

_NO_STORE = "Cache-Control: no-store\r\n"

_CHECKED = {operations.TEXT: operations.STRING}
_CHECKS = (
    operations.Answer("Every check passed.", _CHECKED, ("Cache-Control",)),
    operations.Answer("The checks that failed.", _CHECKED, ("Cache-Control",), status=503),
)
_PARAMETERS: frozenset[parameters.Parameter] = frozenset({parameters.VERBOSE, parameters.EXCLUDE})
LIVEZ = operations.Operation(summary="Whether the process works", parameters=_PARAMETERS, answers=_CHECKS)
LIVEZ_CHECK = operations.Operation(
    summary="One check of /livez",
    name=operations.CHECK_NAME,
    parameters=_PARAMETERS,
    answers=_CHECKS,
    errors=frozenset({"unknown_path"}),
)
READYZ = operations.Operation(summary="Whether this node can serve clients", parameters=_PARAMETERS, answers=_CHECKS)
READYZ_CHECK = operations.Operation(
    summary="One check of /readyz",
    name=operations.CHECK_NAME,
    parameters=_PARAMETERS,
    answers=_CHECKS,
    errors=frozenset({"unknown_path"}),
)
METRICS = operations.Operation(
    summary="Metrics in the text format of Prometheus; takes any parameter and ignores it",
    answers=(operations.Answer("At most a second old.", {"text/plain": operations.STRING}, ("Cache-Control",)),),
)
VERSION = operations.Operation(summary="The versions of this node", answers=operations.json_answer(wire.Versions))


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
        Query(raw_query, VERSION.parameters)
        result = await self._execute(ANONYMOUS, GetVersion())
        return Response(200, msgspec.json.encode(wire.Versions(result.version, ("v1",), result.python)) + b"\n")


def _checked(path: str, result: Checks, only: str, raw_query: str) -> Response:
    checks = result.checks
    query = Query(raw_query, _PARAMETERS)
    excluded = frozenset(filter(None, query.get(parameters.EXCLUDE, "").split(",")))
    if only:
        checks = tuple(check for check in checks if check.name == only)
        if not checks:
            raise RefusalError("unknown_path", f"/{path} has no such check")
    verbose = query.switch(parameters.VERBOSE)
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
    return Response(503 if failed else 200, text.encode("utf-8", "backslashreplace"), operations.TEXT, _NO_STORE)


def _line(check: Check, excluded: bool) -> str:
    if excluded:
        return f"[+]{check.name} excluded: ok"
    if check.ok:
        return f"[+]{check.name} ok"
    return f"[-]{check.name} failed" + (f": {check.detail}" if check.detail else "")
