"""``GET /v1/snapshot``: a backup of the whole state, as one file."""

from __future__ import annotations

from aiohttp.web import BaseRequest

from kvorum.fronts.http.facade import NodeFacade
from kvorum.fronts.http.request import Query
from kvorum.fronts.http.response import Response

_PARAMETERS = frozenset({"timeout_ms"})


class BackupHandlers:
    """The handlers of one node's backups."""

    def __init__(self, node: NodeFacade) -> None:
        self._node = node

    async def save(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /v1/snapshot``: all that was acknowledged before the request, from whichever node is asked.

        ``timeout_ms`` is for the confirmation by a quorum; the snapshot takes as long as it takes.
        """
        limit_ms = self._node.config.request_timeout_ms
        timeout_ms = min(limit_ms, Query(raw_query, _PARAMETERS).integer("timeout_ms", 1) or limit_ms)
        await self._node.read_barrier(timeout_ms)
        backup = await self._node.begin_backup()
        headers = (
            f'Content-Disposition: attachment; filename="kvorum-{backup.last_index}.snapshot"\r\n'
            f"X-Kvorum-Snapshot-Index: {backup.last_index}\r\nX-Kvorum-Snapshot-Sha256: {backup.sha256}\r\n"
        )
        return Response(200, content_type="application/octet-stream", headers=headers, stream=backup)
