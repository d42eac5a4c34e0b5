"""Every option of a node: its name, unit, default, limits and meaning, in one place.

The struct :class:`Config` is the only source. Flags, environment variables, the configuration file, ``kvorum config``
and docs/config.md are all derived from it (:mod:`kvorum.config.sources`). :func:`resolve` fills in what depends on
other options and refuses what contradicts itself, with one line that says what to change.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from kvorum.config.addresses import (
    HOST_NAME,
    PeerAddress,
    is_host,
    is_loopback,
    is_wildcard,
    join_address,
    split_address,
    split_ordinal,
)
from kvorum.errors import ConfigError

REPLICAS_MAX = 101
KIB = 1024
MIB = 1024 * KIB

_DURATION = re.compile(r"([0-9]{1,6})([smhd]?)", re.ASCII)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """One node's configuration. The attribute's name ends in its unit; the annotation holds its limits and help."""

    # Who and where.
    name: Annotated[
        str,
        Meta(description="The node's stable name, unique in its cluster. Empty: the host name (in a pod, the pod's)."),
    ] = ""
    data_dir: Annotated[str, Meta(description="The folder of the log and the snapshots. Empty: data/NAME.")] = ""
    listen_client: Annotated[str, Meta(description="HOST:PORT of the HTTP API.")] = "127.0.0.1:8001"
    listen_peer: Annotated[str, Meta(description="HOST:PORT of the port that only peers use.")] = "127.0.0.1:9001"
    listen_metrics: Annotated[
        str,
        Meta(description="HOST:PORT that serves /metrics, /livez and /readyz as well. Empty: the client port only."),
    ] = ""
    advertise_client_url: Annotated[
        str, Meta(description="The URL that a redirect names. Empty: from listen_client, or the pod's DNS name.")
    ] = ""
    advertise_peer_url: Annotated[
        str, Meta(description="The URL that peers use. Empty: from peers, the pod's DNS name, or listen_peer.")
    ] = ""
    insecure: Annotated[
        bool, Meta(description="Allow listening beyond loopback without authentication. Needed for that; nothing else.")
    ] = False

    # The cluster.
    peers: Annotated[
        tuple[PeerAddress, ...],
        Meta(
            description="The expected first members, this one included: NAME=HOST:PORT,... "
            "Without it and without discovery_dns the node is a cluster of one."
        ),
    ] = ()
    discovery_dns: Annotated[
        str,
        Meta(
            description="The headless Service's DNS name, e.g. kv-headless.default.svc.cluster.local. Members are then "
            "BASE-0 to BASE-(replicas - 1), where this node's name is BASE-ORDINAL."
        ),
    ] = ""
    replicas: Annotated[
        int,
        Meta(ge=0, le=REPLICAS_MAX, description="With discovery_dns: how many members the first configuration has."),
    ] = 0
    dns_peer_port: Annotated[
        int, Meta(ge=0, le=65535, description="With discovery_dns: the members' peer port. 0: that of listen_peer.")
    ] = 0
    bootstrap_token: Annotated[
        str,
        Meta(
            max_length=256,
            description="A word that all first members must share, so that two clusters set up at once stay apart.",
        ),
    ] = ""

    finalize_after: Annotated[
        str,
        Meta(
            description="How long every member must have announced that it supports the next feature level before the "
            "leader raises it, e.g. 90s, 30m, 24h. Until then every member can go back to its version. 0: at once. "
            "manual: only `kv cluster finalize` raises it."
        ),
    ] = "24h"

    # Time.
    tick_ms: Annotated[int, Meta(ge=1, le=1000, description="The unit of consensus time.", extra={"unit": "ms"})] = 25
    heartbeat_ms: Annotated[
        int, Meta(ge=5, le=10_000, description="How often a leader is heard of.", extra={"unit": "ms"})
    ] = 100
    election_timeout_ms: Annotated[
        int,
        Meta(
            ge=50,
            le=60_000,
            description="Silence after which a follower campaigns, after once to twice as long. "
            "At least 3 times heartbeat_ms.",
            extra={"unit": "ms"},
        ),
    ] = 500
    save_timeout_ms: Annotated[
        int,
        Meta(
            ge=0,
            le=600_000,
            description="A leader whose disk makes no progress for this long steps down. 0: election_timeout_ms.",
            extra={"unit": "ms"},
        ),
    ] = 0
    request_timeout_ms: Annotated[
        int,
        Meta(ge=50, le=60_000, description="How long a request waits for the cluster, at most.", extra={"unit": "ms"}),
    ] = 5000
    shutdown_grace_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="How long a stopping node waits for the others.", extra={"unit": "s"}),
    ] = 25.0

    # The log.
    snapshot_entries: Annotated[
        int, Meta(ge=10, le=100_000_000, description="A snapshot is taken after this many entries, or snapshot_bytes.")
    ] = 100_000
    snapshot_bytes: Annotated[
        int,
        Meta(
            ge=64 * KIB,
            le=16 * 1024 * MIB,
            description="A snapshot is taken after this much log, or snapshot_entries.",
            extra={"unit": "bytes"},
        ),
    ] = 256 * MIB
    log_retain_entries: Annotated[
        int,
        Meta(
            ge=0, le=100_000_000, description="Entries kept behind a snapshot, so that a slow peer needs no snapshot."
        ),
    ] = 10_000
    batch_bytes_max: Annotated[
        int,
        Meta(
            ge=64 * KIB,
            le=8 * MIB,
            description="The most that one log entry or one AppendEntries carries (one over-long command excepted).",
            extra={"unit": "bytes"},
        ),
    ] = 1 * MIB
    pending_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Proposals in flight; more are refused with 503 and Retry-After.")
    ] = 10_000

    # Clients.
    forward: Annotated[
        bool, Meta(description="Pass writes on to the leader instead of redirecting the client (as ?forward=true).")
    ] = False
    connections_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Open client connections; more are refused with 503.")
    ] = 4096
    body_bytes_max: Annotated[
        int, Meta(ge=1, le=8 * MIB, description="The longest request body.", extra={"unit": "bytes"})
    ] = 1 * MIB
    body_timeout_s: Annotated[
        float, Meta(ge=0.05, le=600, description="How long a request's body may take to arrive.", extra={"unit": "s"})
    ] = 10.0
    keepalive_s: Annotated[
        float,
        Meta(
            ge=0.05,
            le=600,
            description="How long a connection may idle, or take to send a request's head.",
            extra={"unit": "s"},
        ),
    ] = 20.0

    # The process.
    log_format: Annotated[
        Literal["auto", "json", "text"], Meta(description="auto: text on a terminal, else JSON lines.")
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least that is logged.")
    ] = "info"
    metrics_log_interval_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Log write latency, reads, writes and elections this often. 0: never.",
            extra={"unit": "s", "alias": "--metrics-log-interval"},
        ),
    ] = 0.0
    trace_endpoint: Annotated[
        str,
        Meta(
            description="URL of an OTLP/HTTP collector, e.g. http://otel:4318/v1/traces; needs kvorum[otlp]. "
            "Empty: no traces."
        ),
    ] = ""
    trace_ratio: Annotated[
        float,
        Meta(ge=0, le=1, description="The part of the requests that is traced where the client does not say."),
    ] = 0.01
    uvloop: Annotated[Literal["auto", "on", "off"], Meta(description="Run on uvloop. auto: when it is installed.")] = (
        "auto"
    )

    def expected_members(self) -> tuple[PeerAddress, ...]:
        """Return the members of the first configuration, ordered by name (discovery: by ordinal)."""
        if self.discovery_dns:
            base, _ = split_ordinal(self.name)
            port = self.dns_peer_port or split_address(self.listen_peer)[1]
            return tuple(
                PeerAddress(f"{base}-{i}", f"{base}-{i}.{self.discovery_dns}", port) for i in range(self.replicas)
            )
        if self.peers:
            return tuple(sorted(self.peers))
        host, port = split_address(self.listen_peer)
        return (PeerAddress(self.name, host, port),)


def resolve(config: Config, *, host_name: str) -> Config:
    """Return the configuration with every derived default filled in, after checking that nothing contradicts itself.

    Args:
        config: as the user gave it.
        host_name: the default of ``name``.

    Raises:
        ConfigError: one line that says which options contradict each other.
    """
    config = msgspec.structs.replace(config, name=config.name or host_name)
    _check_name(config.name, "name")
    _check_listeners(config)
    _check_peers(config)
    _check_times(config)
    finalize_after_s(config.finalize_after)
    config = msgspec.structs.replace(
        config,
        data_dir=config.data_dir or f"data/{config.name}",
        save_timeout_ms=config.save_timeout_ms or config.election_timeout_ms,
        advertise_client_url=(config.advertise_client_url or _default_client_url(config)).rstrip("/"),
        advertise_peer_url=(config.advertise_peer_url or _default_peer_url(config)).rstrip("/"),
    )
    _check_url(config.advertise_client_url, "advertise_client_url")
    _check_trace_endpoint(config.trace_endpoint)
    _check_url(config.advertise_peer_url, "advertise_peer_url")
    return config


def finalize_after_s(finalize_after: str) -> float | None:
    """Return the setting in seconds; None: the level is raised by hand only.

    Raises:
        ConfigError: it is no such duration.
    """
    if finalize_after == "manual":
        return None
    match = _DURATION.fullmatch(finalize_after)
    if match is None:
        raise ConfigError(f"finalize_after {finalize_after!r} is neither manual nor a time such as 0, 90s, 30m or 24h")
    return int(match[1]) * _SECONDS[match[2]]


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} {name!r} is not 1 to 63 letters, digits, '-', '_' or '.' between letters or digits")


def _check_listeners(config: Config) -> None:
    listeners = {"listen_client": config.listen_client, "listen_peer": config.listen_peer}
    if config.listen_metrics and config.listen_metrics != config.listen_client:
        listeners["listen_metrics"] = config.listen_metrics
    seen: dict[str, tuple[str, int]] = {}
    for option, address in listeners.items():
        try:
            host, port = split_address(address)
        except ConfigError as error:
            raise ConfigError(f"{option}: {error}") from None
        if port == 0:
            raise ConfigError(f"{option} {address}: say a port, since others must find it")
        for other, (other_host, other_port) in seen.items():
            if port == other_port and (host == other_host or is_wildcard(host) or is_wildcard(other_host)):
                raise ConfigError(f"{other} and {option} both want port {port}")
        if not config.insecure and not is_loopback(host):
            raise ConfigError(
                f"{option} {address} is reachable from elsewhere and this version has no authentication: "
                "use a loopback address, or add --insecure if a network policy protects it"
            )
        seen[option] = (host, port)


def _check_peers(config: Config) -> None:
    if config.discovery_dns:
        if config.peers:
            raise ConfigError("peers and discovery_dns contradict each other: give one of them")
        if config.replicas < 1:
            raise ConfigError("discovery_dns needs replicas, the number of members of the first configuration")
        if not HOST_NAME.fullmatch(config.discovery_dns):
            raise ConfigError(f"discovery_dns {config.discovery_dns!r} is not a DNS name")
        split_ordinal(config.name)
        return
    for option, value in (("replicas", config.replicas), ("dns_peer_port", config.dns_peer_port)):
        if value:
            raise ConfigError(f"{option} means nothing without discovery_dns")
    names: set[str] = set()
    addresses: dict[str, str] = {}
    for peer in config.peers:
        _check_name(peer.name, "peers: the name")
        if peer.name in names:
            raise ConfigError(f"peers names {peer.name} twice")
        if peer.address in addresses:
            raise ConfigError(f"peers gives {peer.address} to both {addresses[peer.address]} and {peer.name}")
        if is_wildcard(peer.host) or peer.port == 0:
            raise ConfigError(f"peers: {peer.name}={peer.address} is no address that others can reach")
        names.add(peer.name)
        addresses[peer.address] = peer.name
    if config.peers and config.name not in names:
        raise ConfigError(f"name {config.name} is not among peers ({', '.join(sorted(names))})")


def _check_times(config: Config) -> None:
    if config.heartbeat_ms < config.tick_ms:
        raise ConfigError(f"heartbeat_ms {config.heartbeat_ms} is shorter than tick_ms {config.tick_ms}")
    if config.election_timeout_ms < 3 * config.heartbeat_ms:
        raise ConfigError(
            f"election_timeout_ms {config.election_timeout_ms} is less than 3 times heartbeat_ms "
            f"{config.heartbeat_ms}: a single lost heartbeat would start elections"
        )


def _check_url(url: str, option: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{option} {url!r} is not a URL: {error}") from None
    if parts.scheme != "http" or not is_host(parts.hostname or "") or port == 0:
        raise ConfigError(f"{option} {url!r} is not http://HOST:PORT")
    if parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"{option} {url!r} must be http://HOST:PORT without path, query or user")


def _check_trace_endpoint(url: str) -> None:
    if not url:
        return
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"trace_endpoint {url!r} is not a URL: {error}") from None
    is_collector = parts.scheme in {"http", "https"} and is_host(parts.hostname or "") and port != 0
    if not is_collector or not parts.path.strip("/"):
        raise ConfigError(f"trace_endpoint {url!r} is not http://HOST:PORT/v1/traces")


def _default_client_url(config: Config) -> str:
    host, port = split_address(config.listen_client)
    if config.discovery_dns:
        return f"http://{config.name}.{config.discovery_dns}:{port}"
    if is_wildcard(host):
        raise ConfigError(f"listen_client {config.listen_client} is every address: say advertise_client_url too")
    return f"http://{join_address(host, port)}"


def _default_peer_url(config: Config) -> str:
    host, port = split_address(config.listen_peer)
    if config.discovery_dns:
        return f"http://{config.name}.{config.discovery_dns}:{config.dns_peer_port or port}"
    for peer in config.peers:
        if peer.name == config.name:
            return peer.url
    if is_wildcard(host):
        raise ConfigError(f"listen_peer {config.listen_peer} is every address: say advertise_peer_url too")
    return f"http://{join_address(host, port)}"
