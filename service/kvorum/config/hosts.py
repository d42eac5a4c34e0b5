"""The names under which a node is reached, so that a web page of another name cannot talk to it.

A page of ``evil.example`` may have its name resolved to 127.0.0.1, or to an address in the visitor's network (DNS
rebinding): the browser then takes the node for the page's own server, and lets the page read and write. The browser
still sends the page's name as ``Host``, so a node answers only requests for a name that it knows.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from kvorum.config.addresses import split_address
from kvorum.config.options import ANY_HOST, Config, split_hosts

_HEADER = re.compile(r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<host>[^:\[\]]*))(?::[0-9]{0,5})?")
_REMEMBERED_MAX = 1024
_REMEMBERED_BYTES_MAX = 300


class KnownHosts:
    """The hosts of one listener.

    Known are localhost, every literal address (no page has one as its name unless it came from there), the node's name,
    all hosts of the configuration, in Kubernetes every name in the node's namespace, and what was learnt.

    Args:
        config: the node's, resolved.
    """

    def __init__(self, config: Config) -> None:
        hosts = split_hosts(config.hosts)
        self._is_any = ANY_HOST in hosts
        addresses = (config.listen_client, config.listen_peer, config.listen_metrics)
        self._names = {
            *map(_normal, (config.name, "localhost", *hosts)),
            *(_normal(split_address(address)[0]) for address in addresses if address),
            *(_normal(peer.host) for peer in config.expected_members()),
        }
        self._suffixes: tuple[str, ...] = (".localhost",)
        if config.discovery_dns:
            # SERVICE.NAMESPACE.svc.DOMAIN: nobody outside has a name in NAMESPACE.svc.
            service, _, namespace = _normal(config.discovery_dns).partition(".")
            self._names.add(_normal(config.discovery_dns))
            short, svc, _ = namespace.partition(".svc.")
            if svc:
                # Pods of the namespace may write POD.SERVICE, and no public domain is called as a Service is.
                self._names |= {service, f"{service}.{short}"}
                self._suffixes += (f".{namespace}", f".{short}.svc", f".{service}", f".{service}.{short}")
            else:
                self._suffixes += (f".{_normal(config.discovery_dns)}",)
        self.learn((config.advertise_client_url, config.advertise_peer_url))
        self._remembered: set[str] = set()

    def learn(self, urls: Iterable[str]) -> None:
        """Know the hosts of these base URLs, too."""
        self._names.update(_normal(urlsplit(url).hostname or "") for url in urls if url)

    def knows(self, header: str | None) -> bool:
        """Tell whether a request with this ``Host`` may be answered. Browsers always send one."""
        if header is None or header in self._remembered or self._is_any:
            return True
        if not self._is_known(header):
            return False
        if len(self._remembered) < _REMEMBERED_MAX and len(header) <= _REMEMBERED_BYTES_MAX:
            self._remembered.add(header)
        return True

    def _is_known(self, header: str) -> bool:
        match = _HEADER.fullmatch(header)
        if match is None:
            return False
        host = match["bracketed"] if match["host"] is None else _normal(match["host"])
        return host in self._names or host.endswith(self._suffixes) or _is_address(host)


def _normal(host: str) -> str:
    return host.rstrip(".").lower()


def _is_address(host: str) -> bool:
    try:
        # A zone id can be any text.
        return getattr(ipaddress.ip_address(host), "scope_id", None) is None
    except ValueError:
        return False
