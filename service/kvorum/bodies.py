"""Answers of other processes, read to their end within a limit."""

from __future__ import annotations

import aiohttp


async def read_bounded(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Return the whole body. One call of ``StreamReader.read`` returns only what has arrived by then.

    Raises:
        aiohttp.ClientPayloadError: it is longer than ``bytes_max``.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > bytes_max:
            raise aiohttp.ClientPayloadError(f"the answer has more than {bytes_max} bytes")
    return bytes(body)
