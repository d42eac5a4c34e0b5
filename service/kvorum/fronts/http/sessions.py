"""``/v1/sessions/{id}``: a client ends its session."""

from __future__ import annotations

import msgspec
from aiohttp.web import BaseRequest

from kvorum.fronts.http.request import Query, decode_text
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.limits import TIMEOUT_MS_MIN
from kvorum.service.requests import EndSession
from kvorum_wire import SessionEnded

PREFIX = "/v1/sessions/"
_PARAMETERS = frozenset({"timeout_ms", "forward"})


class SessionHandlers:
    """The handlers of sessions.

    Args:
        service: what executes the requests.
    """

    def __init__(self, service: Service) -> None:
        self._execute = service.execute

    async def end(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``DELETE /v1/sessions/{id}``."""
        query = Query(raw_query, _PARAMETERS)
        query.switch("forward")  # Its meaning is the dispatcher's; here it must only be well-formed.
        result = await self._execute(
            ANONYMOUS, EndSession(decode_text(name, "the client id"), query.integer("timeout_ms", TIMEOUT_MS_MIN))
        )
        return Response(200, msgspec.json.encode(SessionEnded(result.revision)) + b"\n")
