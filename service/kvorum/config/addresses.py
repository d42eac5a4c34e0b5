"""Addresses of members: ``HOST:PORT``, the peers' list, the ordinals of a StatefulSet's pods."""

from __future__ import annotations

import ipaddress
import re

import msgspec

from kvorum.errors import ConfigError

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,254}}\Z){_LABEL}(?:\.{_LABEL})*\.?")
_BASE_URL = re.compile(
    r"(?i:http)://(?:\[(?P<bracketed>[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._~-]{1,32})?)\]|(?P<host>[A-Za-z0-9._-]{1,254}))"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_ORDINAL = re.compile(r"(?P<base>.+)-(?P<ordinal>0|[1-9][0-9]{0,3})")


class PeerAddress(msgspec.Struct, frozen=True, order=True):
    """An expected member of the cluster and where its peers reach it."""

    name: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """``host:port``, with brackets around an IPv6 address."""
        return join_address(self.host, self.port)

    @property
    def url(self) -> str:
        """The base URL of its peer port."""
        return f"http://{self.address}"


def split_address(address: str) -> tuple[str, int]:
    """Return the host and the port of ``HOST:PORT`` or ``[IPV6]:PORT``; a listener's port 0 is for tests.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ConfigError(f"{address!r} is not HOST:PORT with a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), int(port)
        except ValueError:
            raise ConfigError(f"{address!r}: the brackets hold no IPv6 address") from None
    if not HOST_NAME.fullmatch(host):
        raise ConfigError(f"{address!r} is not HOST:PORT: {host!r} is not a host name or an address")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ordinal_of(name: str) -> tuple[str, int] | None:
    """Return the base and the ordinal of a StatefulSet pod's name: ``kv-0`` gives ``kv`` and 0; None: it has none."""
    match = _ORDINAL.fullmatch(name)
    return (match["base"], int(match["ordinal"])) if match else None


def split_ordinal(name: str) -> tuple[str, int]:
    """Return what :func:`ordinal_of` returns.

    Raises:
        ConfigError: the name has no ordinal.
    """
    split = ordinal_of(name)
    if split is None:
        raise ConfigError(f"discovery_dns needs a name that ends in -ORDINAL like kv-0; {name!r} does not")
    return split


def parse_peers(text: str) -> tuple[PeerAddress, ...]:
    """Return the peers of ``NAME=HOST:PORT,...``.

    Raises:
        ConfigError: it is malformed, or names nobody.
    """
    peers = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, address = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} is not NAME=HOST:PORT")
        host, port = split_address(address)
        peers.append(PeerAddress(name, host, port))
    if not peers:
        # A template's variable that was not set must not begin a cluster of one.
        raise ConfigError("it is empty: omit it for a cluster of one")
    return tuple(peers)


def is_loopback(host: str) -> bool:
    """Tell whether nothing but this machine can reach the host."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_host(host: str) -> bool:
    """Tell whether this is a host name or an address, as it stands in a URL."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return HOST_NAME.fullmatch(host) is not None
    return True


def is_base_url(url: str) -> bool:
    """Tell whether this is ``http://HOST``, ``http://HOST:PORT`` or the same with an IPv6 address in brackets.

    Nodes use nothing else as the URL of a node, whoever named it. Other URLs can make the HTTP library raise.
    """
    match = _BASE_URL.fullmatch(url)
    if match is None or (match["port"] is not None and not 1 <= int(match["port"]) <= 65535):
        return False
    if match["host"] is not None:
        return is_host(match["host"])
    try:
        ipaddress.IPv6Address(match["bracketed"])
    except ValueError:
        return False
    return True


def is_wildcard(host: str) -> bool:
    """Tell whether this is the address that stands for every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
