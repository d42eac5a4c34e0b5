"""Why a call of a peer failed, in words for logs and answers."""

from __future__ import annotations

import os
import socket

import aiohttp

_DNS_REASONS = {
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME): "the name has no address",
    socket.EAI_NONAME: "there is no such name (NXDOMAIN)",
    socket.EAI_AGAIN: "the name server does not answer",
}


def reason_of(error: BaseException) -> str:
    """Return the reason without what the library adds: an address, which the caller names, and settings of TLS."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _dns_reason(error.os_error)
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _dns_reason(error: OSError) -> str:
    return _DNS_REASONS.get(error.errno or 0, f"the name cannot be resolved ({error.strerror or error})")
