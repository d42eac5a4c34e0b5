"""Where the cluster is."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from urllib.parse import urlsplit

from kvorum_client.errors import InvalidArgumentError

LOCAL_ENDPOINTS = "127.0.0.1:8001,127.0.0.1:8002,127.0.0.1:8003"
"""Where `kvorum local` and `make run` listen."""
_ENDPOINTS = "KVORUM_ENDPOINTS"
"""The only variable that a user sets for `kv`. Others may be the node's, whose names the client does not know."""
_LIKENESS = 0.85
"""Of a variable that is most likely a misspelt one; no option of a node comes near it."""


def endpoints_of(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[str, bool]:
    """Return where the cluster is, and whether that is only where `kvorum local` would listen.

    Raises:
        InvalidArgumentError: the option or the variable is there and names no node. A script whose variable is empty
            must not write to another cluster than it means.
    """
    given: str | None = getattr(options, "endpoints", None)
    if given is not None and not given.strip(", "):
        raise InvalidArgumentError("--endpoints names no node")
    endpoints = given if given is not None else default_endpoints(environ)
    return endpoints, given is None and endpoints == LOCAL_ENDPOINTS


def default_endpoints(environ: Mapping[str, str]) -> str:
    """Return where the cluster is when the command line does not say.

    Raises:
        InvalidArgumentError: KVORUM_ENDPOINTS is set and names no node.
    """
    if (endpoints := environ.get(_ENDPOINTS)) is not None:
        if not endpoints.strip(", "):
            raise InvalidArgumentError(f"{_ENDPOINTS} is set and names no node")
        return endpoints
    port = environ.get("KVORUM_CLIENT_PORT") or _port_of(environ.get("KVORUM_LISTEN_CLIENT", ""))
    if port or "KUBERNETES_SERVICE_HOST" in environ:
        return f"127.0.0.1:{port or 8001}"
    return LOCAL_ENDPOINTS


def misspelt_warning(environ: Mapping[str, str]) -> str:
    """Return one line that names the variables that most likely mean KVORUM_ENDPOINTS; empty: there are none."""
    names = sorted({name for name in environ if name.upper().startswith("KVORUM_")} - {_ENDPOINTS})
    near = [name for name in names if difflib.get_close_matches(name.upper(), [_ENDPOINTS], 1, _LIKENESS)]
    return f"ignoring unknown environment variables: {', '.join(near)}. Did you mean {_ENDPOINTS}?" if near else ""


def _port_of(address: str) -> str:
    try:
        return str(urlsplit(f"//{address}").port or "")
    except ValueError:
        return ""
