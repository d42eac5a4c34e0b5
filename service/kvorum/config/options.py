"""Every option of a node: its name, unit, default, limits and meaning, in one place.

The struct :class:`Config` is the only source. Flags, environment variables, the configuration file, ``kvorum config``
and docs/config.md are all derived from it (:mod:`kvorum.config.sources`). :func:`resolve` fills in what depends on
other options and refuses contradictory options, with one line that says what to change.
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
    is_base_url,
    is_host,
    is_loopback,
    is_wildcard,
    join_address,
    split_address,
    split_ordinal,
)
from kvorum.errors import ConfigError
from kvorum.identity import is_name

REPLICAS_MAX = 101
KIB = 1024
MIB = 1024 * KIB
HISTORY_AGE_S_MIN = 360
"""A client that reads the past counts on some minutes of it: kube-apiserver asks for revisions of 5 minutes ago."""
HISTORY_BYTES_MIN = MIB
"""Less is a mistake in the unit."""

ANY_HOST = "*"
"""In ``hosts``: every host is known."""

_DURATION = re.compile(r"([0-9]{1,6})([smhd]?)", re.ASCII)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """One node's configuration. The attribute's name ends in its unit; the annotation holds its limits and help."""

    # Who and where.
    name: Annotated[
        str,
        Meta(description="Stable name of the node, unique in the cluster. Empty: the host name (in a pod: its name)."),
    ] = ""
    data_dir: Annotated[str, Meta(description="Folder for the log and the snapshots. Empty: data/NAME.")] = ""
    listen_client: Annotated[str, Meta(description="HOST:PORT of the HTTP API.")] = "127.0.0.1:8001"
    listen_peer: Annotated[str, Meta(description="HOST:PORT for traffic between the nodes.")] = "127.0.0.1:9001"
    listen_metrics: Annotated[
        str,
        Meta(description="Additional HOST:PORT for /metrics, /livez and /readyz. Empty: the client port only."),
    ] = ""
    advertise_client_url: Annotated[
        str,
        Meta(
            description="URL of this node for clients and redirects. Empty: from listen_client, or the pod's DNS name."
        ),
    ] = ""
    advertise_peer_url: Annotated[
        str, Meta(description="URL of this node for its peers. Empty: from peers, the pod's DNS name, or listen_peer.")
    ] = ""
    hosts: Annotated[
        str,
        Meta(
            description="Further host names under which this node is reached, separated by commas, e.g. that of an "
            "ingress. Requests for any other name are refused, so that no web page can use the node by DNS rebinding. "
            "Always known are localhost, literal addresses, the names in other options, the members' URLs, and in "
            "Kubernetes the names in the namespace. *: every name."
        ),
    ] = ""
    insecure: Annotated[
        bool, Meta(description="Allow addresses other than loopback. This version has no authentication.")
    ] = False

    # The cluster.
    peers: Annotated[
        tuple[PeerAddress, ...],
        Meta(
            description="The initial members, this one included: NAME=HOST:PORT,... "
            "Without it and without discovery_dns the node is a cluster of one."
        ),
    ] = ()
    discovery_dns: Annotated[
        str,
        Meta(
            description="DNS name of the headless Service, e.g. kv-headless.default.svc.cluster.local. "
            "Members are then BASE-0 to BASE-(replicas - 1), where this node's name is BASE-ORDINAL."
        ),
    ] = ""
    replicas: Annotated[
        int,
        Meta(ge=0, le=REPLICAS_MAX, description="With discovery_dns: number of initial members."),
    ] = 0
    dns_peer_port: Annotated[
        int,
        Meta(ge=0, le=65535, description="With discovery_dns: peer port of the members. 0: the port of listen_peer."),
    ] = 0
    bootstrap_token: Annotated[
        str,
        Meta(
            max_length=256,
            description="Token that all initial members must share. "
            "It keeps two clusters apart that bootstrap at the same time.",
        ),
    ] = ""

    replace_cluster_id: Annotated[
        str,
        Meta(
            max_length=64,
            description="In Kubernetes: id of a cluster whose data is lost for good. An empty cluster may begin in its "
            "place. In the configuration file it takes effect without a restart.",
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
    tick_ms: Annotated[
        int, Meta(ge=1, le=1000, description="Length of a tick, the unit of all Raft timers.", extra={"unit": "ms"})
    ] = 25
    heartbeat_ms: Annotated[
        int, Meta(ge=5, le=10_000, description="Interval between heartbeats of the leader.", extra={"unit": "ms"})
    ] = 100
    election_timeout_ms: Annotated[
        int,
        Meta(
            ge=50,
            le=60_000,
            description="Base election timeout; each follower draws 1 to 2 times this value. "
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
    disk_stall_limit_s: Annotated[
        float,
        Meta(
            ge=1,
            le=86_400,
            description="A node whose disk makes no progress for this long stops. Until then it waits and is not "
            "ready. An error from the disk stops it at once. At least save_timeout_ms.",
            extra={"unit": "s"},
        ),
    ] = 600.0
    request_timeout_ms: Annotated[
        int,
        Meta(ge=50, le=60_000, description="Maximum time that a request waits for the cluster.", extra={"unit": "ms"}),
    ] = 5000
    shutdown_grace_s: Annotated[
        float,
        Meta(ge=0, le=3600, description="Maximum time that a stopping node waits for the others.", extra={"unit": "s"}),
    ] = 25.0
    shutdown_delay_s: Annotated[
        float,
        Meta(
            ge=0,
            le=600,
            description="Time for which a stopping node still leads and serves, while load balancers learn that it is "
            "not ready. Its answers close their connections. Part of shutdown_grace_s, and less than that.",
            extra={"unit": "s"},
        ),
    ] = 0.0

    # The log.
    snapshot_entries: Annotated[
        int,
        Meta(
            ge=10,
            le=100_000_000,
            description="Entries after which a snapshot is taken, unless snapshot_bytes comes first.",
        ),
    ] = 100_000
    snapshot_bytes: Annotated[
        int,
        Meta(
            ge=64 * KIB,
            le=16 * 1024 * MIB,
            description="Bytes of log after which a snapshot is taken, unless snapshot_entries comes first; half of "
            "the data's size if that is more, up to 256 MiB.",
            extra={"unit": "bytes"},
        ),
    ] = 64 * MIB
    log_retain_entries: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000_000,
            description="Log entries kept after a snapshot, so that a slow follower can catch up without one.",
        ),
    ] = 10_000
    disk_reserve_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1024 * MIB,
            description="Size of a file that is deleted when the disk is full, so that the node can start and delete "
            "keys. At most an eighth of the file system. 0: there is no such file.",
            extra={"unit": "bytes"},
        ),
    ] = 8 * MIB
    log_memory_bytes: Annotated[
        int,
        Meta(
            ge=MIB,
            le=16 * 1024 * MIB,
            description="Applied log entries kept in memory. Older ones are read from disk if a peer needs them.",
            extra={"unit": "bytes"},
        ),
    ] = 32 * MIB
    batch_bytes_max: Annotated[
        int,
        Meta(
            ge=64 * KIB,
            le=8 * MIB,
            description="Maximum size of a log entry and of an AppendEntries message. "
            "A single larger command is still accepted.",
            extra={"unit": "bytes"},
        ),
    ] = 1 * MIB
    quota_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=2**63 - 1,
            description="Quota on the data: what keys, values and sessions may take, each with a fixed overhead. Above "
            "it puts are refused (507 no_space). The quota is part of the replicated state: the leader proposes this "
            "value when it is another one than the configuration said before, so give all nodes the same; `kv quota "
            "set` changes it as well. At least 1 MiB. 0: nothing is proposed but a third of the memory of the first "
            "leader.",
            extra={"unit": "bytes"},
        ),
    ] = 0
    history_age_s: Annotated[
        float,
        Meta(
            ge=0,
            le=604_800,
            description="Superseded and deleted versions of keys are kept for this long, so that they can be read; "
            "then the leader compacts the history. At least 360. 0: the age of the history has no limit.",
            extra={"unit": "s"},
        ),
    ] = 600.0
    history_bytes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=2**63 - 1,
            description="The leader compacts the history when it takes more than this, however young it is. Never more "
            "than a quarter of the quota. At least 1 MiB. 0: the history has no limit of its own, and gives way when "
            "the data takes 95 % of the quota.",
            extra={"unit": "bytes"},
        ),
    ] = 256 * MIB
    pending_max: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Maximum number of proposals in flight; more are refused with 503 and Retry-After.",
        ),
    ] = 10_000

    # Clients.
    forward: Annotated[
        bool,
        Meta(
            description="Hand writes to the leader instead of redirecting the client, as ?forward=true does; "
            "?forward=false redirects."
        ),
    ] = False
    connections_max: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Maximum number of client connections. It is lowered to what the limit of open files allows. "
            "For one more, the connection that has been idle longest is closed; if none is idle, the new one is "
            "refused with 503.",
        ),
    ] = 4096
    body_bytes_max: Annotated[
        int, Meta(ge=1, le=8 * MIB, description="Maximum size of a request body.", extra={"unit": "bytes"})
    ] = 1 * MIB
    inflight_bytes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=16 * 1024 * MIB,
            description="Maximum size of all request bodies that are in memory at a time; more are refused with 503. "
            "At least twice body_bytes_max. 0: 64 MiB, or an eighth of the memory limit of the container if that is "
            "less.",
            extra={"unit": "bytes"},
        ),
    ] = 0
    body_timeout_s: Annotated[
        float, Meta(ge=0.05, le=600, description="Maximum time for a request body to arrive.", extra={"unit": "s"})
    ] = 10.0
    keepalive_s: Annotated[
        float,
        Meta(
            ge=0.05,
            le=600,
            description="Maximum time that a connection may be idle, and for the headers of a request to arrive.",
            extra={"unit": "s"},
        ),
    ] = 20.0

    # The process.
    log_format: Annotated[
        Literal["auto", "json", "text"], Meta(description="Log format. auto: text on a terminal, else JSON lines.")
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Lowest level that is logged.")
    ] = "info"
    metrics_log_interval_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Interval at which write latency, reads, writes and elections are logged. 0: never.",
            extra={"unit": "s", "alias": "--metrics-log-interval"},
        ),
    ] = 0.0
    trace_endpoint: Annotated[
        str,
        Meta(
            description="URL of an OTLP/HTTP collector, e.g. http://otel:4318/v1/traces; needs "
            "opentelemetry-exporter-otlp-proto-http (docs/install.md). "
            "Empty: no traces."
        ),
    ] = ""
    trace_ratio: Annotated[
        float,
        Meta(ge=0, le=1, description="Fraction of requests to trace when the client does not decide."),
    ] = 0.01
    uvloop: Annotated[Literal["auto", "on", "off"], Meta(description="Use uvloop. auto: if it is installed.")] = "auto"

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

    def expected_urls(self) -> dict[str, str]:
        """Return the base URL of the peer port of each of them, by name."""
        return {member.name: member.url for member in self.expected_members()}

    def place(self) -> str:
        """Return the namespace and the StatefulSet that the node belongs to; empty outside of Kubernetes."""
        # SERVICE.NAMESPACE.svc.DOMAIN
        _, namespace, svc, *_ = (*self.discovery_dns.rstrip(".").split("."), "", "")
        return f"{namespace}/{split_ordinal(self.name)[0]}" if namespace and svc == "svc" else ""


def resolve(config: Config, *, host_name: str) -> Config:
    """Return the configuration with every derived default filled in, and check that no two contradict each other.

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
    _check_hosts(config)
    if 0 < config.inflight_bytes_max < 2 * config.body_bytes_max:
        raise ConfigError(
            f"inflight_bytes_max {config.inflight_bytes_max} is less than twice body_bytes_max {config.body_bytes_max}"
        )
    if 0 < config.quota_bytes < MIB:
        raise ConfigError(f"quota_bytes {config.quota_bytes} is less than 1 MiB ({MIB})")
    _check_history(config)
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
    if not is_name(name):
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
            raise ConfigError(f"{option} {address}: give a port, because other nodes connect to it")
        for other, (other_host, other_port) in seen.items():
            if port == other_port and (host == other_host or is_wildcard(host) or is_wildcard(other_host)):
                raise ConfigError(f"{other} and {option} both use port {port}")
        if not config.insecure and not is_loopback(host):
            raise ConfigError(
                f"{option} {address} is reachable from other machines, and this version has no authentication: "
                "use a loopback address, or add --insecure if a network policy protects it"
            )
        seen[option] = (host, port)


def _check_peers(config: Config) -> None:
    if config.discovery_dns:
        if config.peers:
            raise ConfigError("set peers or discovery_dns, not both")
        if config.replicas < 1:
            raise ConfigError("discovery_dns needs replicas, the number of members of the first configuration")
        if not HOST_NAME.fullmatch(config.discovery_dns):
            raise ConfigError(f"discovery_dns {config.discovery_dns!r} is not a DNS name")
        split_ordinal(config.name)
        return
    for option, value in (("replicas", config.replicas), ("dns_peer_port", config.dns_peer_port)):
        if value:
            raise ConfigError(f"{option} has no effect without discovery_dns")
    names: set[str] = set()
    addresses: dict[str, str] = {}
    for peer in config.peers:
        _check_name(peer.name, "peers: the name")
        if peer.name in names:
            raise ConfigError(f"peers names {peer.name} twice")
        if peer.address in addresses:
            raise ConfigError(f"peers gives {peer.address} to both {addresses[peer.address]} and {peer.name}")
        if is_wildcard(peer.host) or peer.port == 0:
            raise ConfigError(f"peers: {peer.name}={peer.address} is not an address that others can reach")
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
    if 1000 * config.disk_stall_limit_s < (config.save_timeout_ms or config.election_timeout_ms):
        raise ConfigError(
            f"disk_stall_limit_s {config.disk_stall_limit_s:g} is shorter than the time after which a leader with a "
            "slow disk steps down (save_timeout_ms, by default election_timeout_ms)"
        )
    if 0 < config.shutdown_delay_s >= config.shutdown_grace_s:
        raise ConfigError(
            f"shutdown_delay_s {config.shutdown_delay_s:g} is not less than shutdown_grace_s "
            f"{config.shutdown_grace_s:g}: no time would be left to hand over the leadership"
        )


def _check_history(config: Config) -> None:
    if 0 < config.history_age_s < HISTORY_AGE_S_MIN:
        raise ConfigError(
            f"history_age_s {config.history_age_s:g} is less than {HISTORY_AGE_S_MIN}: clients that read the past "
            "count on some minutes of history; set at least that, or 0 for no limit by age"
        )
    if 0 < config.history_bytes_max < HISTORY_BYTES_MIN:
        raise ConfigError(
            f"history_bytes_max {config.history_bytes_max} is less than 1 MiB ({HISTORY_BYTES_MIN}): set at least "
            "that, or 0 for no limit"
        )


def split_hosts(hosts: str) -> tuple[str, ...]:
    """Return the names of the option ``hosts``."""
    return tuple(filter(None, (host.strip() for host in hosts.split(","))))


def _check_hosts(config: Config) -> None:
    for host in split_hosts(config.hosts):
        if host != ANY_HOST and not is_host(host):
            raise ConfigError(f"hosts: {host!r} is not a host name: omit the scheme and the port")


def _check_url(url: str, option: str) -> None:
    if not is_base_url(url):
        raise ConfigError(f"{option} {url!r} is not http://HOST:PORT without path, query or user")


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
        raise ConfigError(f"listen_client {config.listen_client} is a wildcard address: set advertise_client_url too")
    return f"http://{join_address(host, port)}"


def _default_peer_url(config: Config) -> str:
    host, port = split_address(config.listen_peer)
    if config.discovery_dns:
        return f"http://{config.name}.{config.discovery_dns}:{config.dns_peer_port or port}"
    for peer in config.peers:
        if peer.name == config.name:
            return peer.url
    if is_wildcard(host):
        raise ConfigError(f"listen_peer {config.listen_peer} is a wildcard address: set advertise_peer_url too")
    return f"http://{join_address(host, port)}"
