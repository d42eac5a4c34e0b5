"""``/v1/sessions/{id}``: a client ends its session."""

from __future__ import annotations

import msgspec
from aiohttp.web import BaseRequest

from kvorum.fronts.http import operations, parameters
from kvorum.fronts.http.request import Query, decode_text
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import EndSession
from kvorum_wire import SessionEnded

PREFIX = "/v1/sessions/"
END = operations.Operation(
    summary="End a session, so that another client can have its place",
    name=operations.CLIENT_ID,
    parameters=operations.WRITE_PARAMETERS,
    answers=operations.json_answer(SessionEnded),
    errors=operations.WRITE_ERRORS | operations.SESSION_ERRORS,
)


class SessionHandlers:
    """The handlers of sessions.

    Args:
        service: what executes the requests.
    """

    def __init__(self, service: Service) -> None:
        self._execute = service.execute

    async def end(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``DELETE /v1/sessions/{id}``."""
        query = Query(raw_query, END.parameters)
        query.switch(parameters.FORWARD)  # Its meaning is the dispatcher's; here it must only be well-formed.
        result = await self._execute(
            ANONYMOUS, EndSession(decode_text(name, "the client id"), query.integer(parameters.TIMEOUT_MS))
        )
        return Response(200, msgspec.json.encode(SessionEnded(result.revision)) + b"\n")
