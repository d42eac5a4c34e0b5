"""``GET /v1/snapshot``: a backup of the whole state, as one file."""

from __future__ import annotations

from aiohttp.web import BaseRequest

from kvorum.fronts.http.request import Query
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import Snapshot

_PARAMETERS = frozenset({"timeout_ms"})


class BackupHandlers:
    """The handlers of backups.

    Args:
        service: what executes the requests.
    """

    def __init__(self, service: Service) -> None:
        self._execute = service.execute

    async def save(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/snapshot``."""
        timeout_ms = Query(raw_query, _PARAMETERS).integer("timeout_ms", 0)
        backup = await self._execute(ANONYMOUS, Snapshot(timeout_ms))
        headers = (
            f'Content-Disposition: attachment; filename="kvorum-{backup.last_index}.snapshot"\r\n'
            f"X-Kvorum-Snapshot-Index: {backup.last_index}\r\nX-Kvorum-Snapshot-Sha256: {backup.sha256}\r\n"
        )
        return Response(200, content_type="application/octet-stream", headers=headers, stream=backup)
