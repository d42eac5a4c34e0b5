"""Why a call of a peer failed, in words for logs and answers."""

from __future__ import annotations

import os

import aiohttp


def reason_of(error: BaseException) -> str:
    """Return the reason without what the library adds: an address, which the caller names, and settings of TLS."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name cannot be resolved"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
