"""``GET /v1/snapshot``: a backup of the whole state, as one file."""

from __future__ import annotations

from aiohttp.web import BaseRequest

from kvorum.fronts.http import operations, parameters
from kvorum.fronts.http.request import Query
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import Snapshot

SAVE = operations.Operation(
    summary="Back up everything, as one file",
    parameters=frozenset({parameters.CONSISTENCY, parameters.TIMEOUT_MS}),
    answers=(
        operations.Answer(
            "The backup.",
            {operations.BYTES: operations.BINARY},
            (
                *("Content-Disposition", "X-Kvorum-Snapshot-Index", "X-Kvorum-Snapshot-Consistency"),
                "X-Kvorum-Snapshot-Sha256",
            ),
        ),
    ),
    errors=operations.READ_ERRORS,
)


class BackupHandlers:
    """The handlers of backups.

    Args:
        service: what executes the requests.
    """

    def __init__(self, service: Service) -> None:
        self._execute = service.execute

    async def save(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/snapshot``."""
        query = Query(raw_query, SAVE.parameters)
        timeout_ms = query.integer(parameters.TIMEOUT_MS)
        stale = query.choice(parameters.CONSISTENCY) == "stale"
        backup = await self._execute(ANONYMOUS, Snapshot(timeout_ms, stale))
        headers = (
            f'Content-Disposition: attachment; filename="kvorum-{backup.last_index}.snapshot"\r\n'
            f"X-Kvorum-Snapshot-Index: {backup.last_index}\r\n"
            f"X-Kvorum-Snapshot-Consistency: {'stale' if backup.is_stale else 'linearizable'}\r\n"
        )
        if backup.sha256:
            headers += f"X-Kvorum-Snapshot-Sha256: {backup.sha256}\r\n"
        return Response(200, content_type="application/octet-stream", headers=headers, stream=backup)
