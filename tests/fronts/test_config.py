"""Every option from every source, and every contradiction refused in one line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvorum.config import Config, KnownHosts, PeerAddress, join_address, parse_peers, resolve, split_address
from kvorum.config import sources as config_sources
from kvorum.config.options import finalize_after_s
from kvorum.config.sources import load, options
from kvorum.errors import ConfigError

THREE = "n1=127.0.0.1:9001,n2=127.0.0.1:9002,n3=127.0.0.1:9003"


def resolved(**flags: Any) -> Config:
    return load(flags, {}, "host")[0]


def test_the_defaults_are_a_cluster_of_one_on_loopback() -> None:
    config = resolved()
    assert (config.name, config.data_dir) == ("host", "data/host")
    assert config.advertise_client_url == "http://127.0.0.1:8001"
    assert config.expected_members() == (PeerAddress("host", "127.0.0.1", 9001),)
    assert config.save_timeout_ms == config.election_timeout_ms


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kvorum.toml"
    file.write_text("tick_ms = 1\nheartbeat_ms = 90\npending_max = 7\n")
    environ = {"KVORUM_CONFIG": str(file), "KVORUM_TICK_MS": "2", "KVORUM_HEARTBEAT_MS": "80"}
    config, sources = load({"tick_ms": "3"}, environ, "h")
    assert (config.tick_ms, config.heartbeat_ms, config.pending_max) == (3, 80, 7)
    assert sources == {
        "tick_ms": "--tick-ms",
        "heartbeat_ms": "KVORUM_HEARTBEAT_MS",
        "pending_max": f"pending_max in {file}",
    }
    assert load({"config": str(file)}, {}, "h")[0].pending_max == 7


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load({}, {"KVORUM_TICK_MS": "", "KVORUM_NAME": ""}, "h")[0].tick_ms == Config().tick_ms


def _example(option: config_sources.Option) -> tuple[str, Any]:
    """Return a value as text that is not the default, and what it must become."""
    if option.name == "peers":
        return "host=127.0.0.1:9001", (PeerAddress("host", "127.0.0.1", 9001),)
    if option.is_bool:
        return ("false", False) if option.default else ("true", True)
    if option.choices:
        return option.choices[-1], option.choices[-1]
    if option.name in ("inflight_bytes_max", "quota_bytes"):
        return "4194304", 4_194_304
    if option.name == "history_age_s":
        return "3600", 3600.0
    if isinstance(option.default, int):
        return str(option.default + 1), option.default + 1
    if isinstance(option.default, float):
        half = 0.5 if option.default == 0 else option.default / 2
        return str(half), half
    special = {
        "listen_client": "127.0.0.1:7001",
        "listen_peer": "127.0.0.1:7002",
        "listen_metrics": "127.0.0.1:7003",
        "discovery_dns": "kv-headless.ns.svc.cluster.local",
        "finalize_after": "manual",
        "trace_endpoint": "http://otel:4318/v1/traces",
    }
    value = special.get(option.name, "http://h:1" if option.name.endswith("_url") else "word")
    return value, value


@pytest.mark.parametrize("option", options(), ids=lambda option: option.name)
def test_every_knob_is_set_by_its_flag_its_variable_and_the_file(option: config_sources.Option, tmp_path: Path) -> None:
    text, value = _example(option)
    needs = {"name": "kv-0", "replicas": "3", "discovery_dns": "h.ns"}
    others = {n: v for n, v in needs.items() if n != option.name} if option.name in _DISCOVERY else {}
    parser = argparse.ArgumentParser(allow_abbrev=False)
    config_sources.add_arguments(parser)
    flag = [option.flag] if option.is_bool else [option.flag, text]
    file = tmp_path / "kvorum.toml"
    # JSON's strings, numbers and booleans are TOML's too.
    file.write_text(f"{option.name} = {json.dumps(text if option.name == 'peers' else value)}\n")
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        (vars(parser.parse_args(flag)), {}),
        ({}, {option.env: text}),
        ({"config": str(file)}, {}),
    ]
    for flags, environ in cases:
        config, _ = load(others | flags, environ, "host")
        assert getattr(config, option.name) == value


_DISCOVERY = {"discovery_dns", "replicas", "dns_peer_port"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tick_ms": "x"}, "--tick-ms: must be a whole number from 1 to 1,000 ms, not 'x'"),
        ({"tick_ms": "0"}, "--tick-ms: must be a whole number from 1 to 1,000 ms, not '0'"),
        ({"tick_ms": "1.5"}, "--tick-ms"),
        ({"body_timeout_s": "soon"}, "must be a number from 0.05 to 600 s, not 'soon'"),
        ({"body_timeout_s": "nan"}, "--body-timeout-s"),
        ({"log_format": "xml"}, "auto, json, text"),
        ({"bootstrap_token": "x" * 257}, "at most 256"),
        ({"name": "n1@x"}, "name 'n1@x'"),
        ({"name": "-n1"}, "name '-n1'"),
        ({"name": "n" * 64}, "1 to 63"),
        ({"listen_client": "8001"}, "listen_client: '8001' is not HOST:PORT"),
        ({"listen_client": "127.0.0.1:0"}, "give a port"),
        ({"listen_client": "127.0.0.1:65536"}, "1 to 65535"),
        ({"listen_client": "h h:1"}, "not a host name"),
        ({"listen_client": "[::x]:1"}, "no IPv6 address"),
        ({"listen_client": "0.0.0.0:8001"}, "--insecure"),
        ({"listen_peer": "192.168.1.1:9001"}, "--insecure"),
        ({"listen_metrics": "[::]:9100"}, "--insecure"),
        ({"listen_client": "127.0.0.1:9001"}, "both use port 9001"),
        ({"listen_metrics": "127.0.0.1:9001"}, "listen_peer and listen_metrics both use port 9001"),
        ({"listen_client": "0.0.0.0:9001", "insecure": True}, "both use port 9001"),
        ({"listen_client": "0.0.0.0:8001", "insecure": True}, "advertise_client_url"),
        ({"listen_peer": "0.0.0.0:9001", "insecure": True}, "advertise_peer_url"),
        ({"peers": THREE, "name": "n4"}, "name n4 is not among peers (n1, n2, n3)"),
        ({"peers": THREE}, "name host is not among peers"),
        ({"peers": "n1=127.0.0.1:9001,n1=127.0.0.1:9002", "name": "n1"}, "names n1 twice"),
        ({"peers": "n1=127.0.0.1:9001,n2=127.0.0.1:9001", "name": "n1"}, "to both n1 and n2"),
        ({"peers": "n1"}, "'n1' is not NAME=HOST:PORT"),
        ({"peers": "n1=127.0.0.1"}, "is not HOST:PORT"),
        ({"peers": "n1=0.0.0.0:9001", "name": "n1"}, "not an address that others can reach"),
        ({"peers": "n1=127.0.0.1:0", "name": "n1"}, "not an address that others can reach"),
        ({"peers": THREE, "discovery_dns": "h.ns", "name": "n1"}, "set peers or discovery_dns, not both"),
        ({"discovery_dns": "h.ns", "name": "kv-0"}, "needs replicas"),
        ({"discovery_dns": "h.ns", "replicas": "3", "name": "kv"}, "ends in -ORDINAL"),
        ({"discovery_dns": "h.ns", "replicas": "3", "name": "kv-01"}, "ends in -ORDINAL"),
        ({"discovery_dns": "h ns", "replicas": "3", "name": "kv-0"}, "not a DNS name"),
        ({"replicas": "3"}, "replicas has no effect without discovery_dns"),
        ({"dns_peer_port": "9001"}, "dns_peer_port has no effect without discovery_dns"),
        ({"heartbeat_ms": "10", "tick_ms": "20"}, "shorter than tick_ms"),
        ({"election_timeout_ms": "299"}, "less than 3 times heartbeat_ms"),
        ({"advertise_client_url": "https://h:1"}, "not http://HOST:PORT"),
        ({"advertise_client_url": "http://h:1/path"}, "without path"),
        ({"advertise_client_url": "http://h:99999"}, "advertise_client_url"),
        ({"advertise_peer_url": "h:1"}, "advertise_peer_url"),
        ({"advertise_peer_url": "http://a..b:1"}, "advertise_peer_url"),
        ({"advertise_peer_url": "http://h:1?"}, "advertise_peer_url"),
        ({"advertise_peer_url": "http://h:1\n"}, "advertise_peer_url"),
        ({"hosts": "kv.example, http://kv.example"}, "'http://kv.example' is not a host name"),
        ({"hosts": "kv.example:8001"}, "omit the scheme and the port"),
        ({"config": "/no/such/file"}, "No such file"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(**flags)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tick_ms = \n", "is not TOML"),
        ("tickms = 1\n", "there is no option 'tickms'"),
        ("tick-ms = 1\n", "write '_' for '-'"),
        ("tick_ms = 'x'\n", "tick_ms in "),
        ("tick_ms = true\n", "tick_ms in "),
        ("insecure = 'maybe'\n", "is not true or false"),
        ("peers = 3\n", "neither NAME=HOST:PORT"),
        ("peers = {n1 = 3}\n", "neither NAME=HOST:PORT"),
        ("name = ['n1']\n", "name in "),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "kvorum.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolved(config=str(file))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kvorum.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        resolved(config=str(tmp_path / "kvorum.toml"))


def test_peers_may_be_a_table_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kvorum.toml"
    file.write_text('name = "n1"\n[peers]\nn1 = "127.0.0.1:9001"\nn2 = "[::1]:9002"\n')
    config = resolved(config=str(file))
    assert config.expected_members() == (PeerAddress("n1", "127.0.0.1", 9001), PeerAddress("n2", "::1", 9002))
    assert config.expected_members()[1].url == "http://[::1]:9002"


def test_discovery_names_the_members_of_a_stateful_set() -> None:
    dns = "kv-headless.ns.svc.cluster.local"
    config = resolved(
        name="my-kv-1",
        discovery_dns=dns,
        replicas="3",
        insecure=True,
        listen_client="0.0.0.0:8001",
        listen_peer="0.0.0.0:9001",
        dns_peer_port="7000",
    )
    assert [m.name for m in config.expected_members()] == ["my-kv-0", "my-kv-1", "my-kv-2"]
    assert config.expected_members()[2] == PeerAddress("my-kv-2", f"my-kv-2.{dns}", 7000)
    assert config.advertise_client_url == f"http://my-kv-1.{dns}:8001"
    assert config.advertise_peer_url == f"http://my-kv-1.{dns}:7000"


def test_a_pod_beyond_the_first_members_is_welcome() -> None:
    config = resolved(name="kv-3", discovery_dns="h.ns", replicas="3")
    assert "kv-3" not in [member.name for member in config.expected_members()]


def test_the_peer_url_is_what_the_peers_were_told() -> None:
    config = resolved(name="n2", peers=THREE, listen_peer="127.0.0.1:9902")
    assert config.advertise_peer_url == "http://127.0.0.1:9002"


@pytest.mark.parametrize("address", ["h:1", "127.0.0.1:65535", "[::1]:80", "a-b.c_d:9"])
def test_addresses_come_apart_and_together_again(address: str) -> None:
    assert join_address(*split_address(address)) == address


def test_spaces_and_a_last_comma_in_peers_do_no_harm() -> None:
    assert [peer.name for peer in parse_peers(" n1=h:1 , n2=h:2, ")] == ["n1", "n2"]


def test_resolving_twice_changes_nothing() -> None:
    config = resolved(name="n1", peers=THREE)
    assert resolve(config, host_name="other") == config


def test_the_token_is_not_printed() -> None:
    config, sources = load({"bootstrap_token": "hush"}, {}, "h")
    assert "hush" not in config_sources.describe(config, sources)


def test_variables_that_nobody_reads_are_noticed() -> None:
    environ = {"KVORUM_TICK_MS": "1", "KVORUM_TICKMS": "1", "KVORUM_ENDPOINTS": "x", "PATH": "/"}
    assert config_sources.unknown_variables(environ) == ["KVORUM_TICKMS"]
    assert config_sources.unknown_variables_warning({}) == ""
    assert config_sources.unknown_variables_warning({"KVORUM_COLOUR": "1", "KVORUM_LOCK_NAME": "a"}) == (
        "Ignoring unknown environment variables: KVORUM_COLOUR"
    )


def test_the_page_of_the_knobs_is_the_one_that_is_generated() -> None:
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text() == config_sources.markdown(), "run: kvorum config --markdown > docs/config.md"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("manual", None), ("0", 0), ("90", 90), ("90s", 90), ("30m", 1800), ("24h", 86_400), ("7d", 604_800)],
)
def test_finalize_after_is_a_time_or_manual(text: str, seconds: float | None) -> None:
    assert finalize_after_s(resolved(name="n1", finalize_after=text).finalize_after) == seconds


@pytest.mark.parametrize("text", ["", "never", "-1", "1.5h", "1 h", "h", "24H", "1w", "\u0661h", "9" * 7])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="finalize_after"):
        resolved(name="n1", finalize_after=text)


_POD = Config(
    name="kv-1",
    discovery_dns="kv-headless.ns.svc.cluster.local",
    replicas=3,
    insecure=True,
    listen_client="0.0.0.0:8001",
    listen_peer="0.0.0.0:9001",
    hosts="kv, kv.ns, keys.example.com",
)
_LOCAL = Config(peers=parse_peers("n1=one.example:9001,n2=two.example:9002"), name="n1")


@pytest.mark.parametrize(
    ("config", "known", "unknown"),
    [
        (
            _LOCAL,
            "localhost:8001 LOCALHOST. a.localhost 127.0.0.1:8001 127.9.9.9 10.0.0.7:1 [::1]:8001 [fe80::1] n1 "
            "one.example:9001 two.example",
            "evil.example evil.example:8001 localhost.evil.example 127.0.0.1.evil.example xlocalhost x.one.example "
            "[evil.example] [fe80::1%25evil.example] "
            "[::1 a:b:c evil.example:x @ 2130706433 kv.ns.svc",
        ),
        (
            _POD,
            "kv kv:8001 kv.ns kv.ns.svc kv.ns.svc.cluster.local. kv-leader.ns.svc:80 kv-2.kv-headless.ns.svc "
            "kv-0.kv-headless.ns.svc.cluster.local:8001 KEYS.example.com 10.1.2.3:8001 localhost:9999 kv-1 "
            "kv-0.kv-headless:8001 kv-0.kv-headless.ns kv-headless",
            "evil.example kv-0.other-headless kv-0.kv-headless.other "
            "kv.other kv.other.svc ns.svc.evil.example evilns.svc example.com x.keys.example.com",
        ),
    ],
    ids=["local", "pod"],
)
def test_only_hosts_that_the_configuration_names_are_known(config: Config, known: str, unknown: str) -> None:
    hosts = KnownHosts(resolve(config, host_name="host"))
    for _ in range(2):
        assert [host for host in known.split() if not hosts.knows(host)] == []
        assert [host for host in (*unknown.split(), "", " ") if hosts.knows(host)] == []
    assert hosts.knows(None)
    hosts.learn(["http://Three.example:8003"])
    assert hosts.knows("three.example")
    every = msgspec.structs.replace(config, hosts="*")
    assert KnownHosts(resolve(every, host_name="host")).knows("any.example")


def test_a_node_that_stops_has_time_left_to_hand_over_after_it_has_served_on() -> None:
    assert resolve(Config(), host_name="n1").shutdown_delay_s == 0
    resolve(Config(shutdown_grace_s=0), host_name="n1")
    resolve(Config(shutdown_delay_s=4, shutdown_grace_s=4.5), host_name="n1")
    for grace_s in (0, 3, 4):
        with pytest.raises(ConfigError, match="no time would be left to hand over the leadership"):
            resolve(Config(shutdown_delay_s=4, shutdown_grace_s=grace_s), host_name="n1")


def test_a_stalled_disk_is_waited_for_longer_than_a_leader_keeps_leading() -> None:
    """Storage that all nodes share may stall for a while; ten minutes by default, and never less than the step-down."""
    assert resolve(Config(), host_name="n1").disk_stall_limit_s == 600
    with pytest.raises(ConfigError, match="disk_stall_limit_s 5 is shorter than"):
        resolve(Config(disk_stall_limit_s=5, save_timeout_ms=6000), host_name="n1")


def test_a_quota_of_less_than_a_mebibyte_is_a_mistake_in_the_unit() -> None:
    for size in (0, 1 << 20):
        assert resolve(Config(name="n1", quota_bytes=size), host_name="n1").quota_bytes == size
    with pytest.raises(ConfigError, match="quota_bytes 512 is less than 1 MiB"):
        resolve(Config(name="n1", quota_bytes=512), host_name="n1")


def test_a_history_of_less_than_some_minutes_or_a_mebibyte_is_refused_and_none_is_no_limit() -> None:
    """kube-apiserver reads at revisions of five minutes ago."""
    for age_s, size in ((0, 0), (360, 1 << 20)):
        config = resolve(Config(name="n1", history_age_s=age_s, history_bytes_max=size), host_name="n1")
        assert (config.history_age_s, config.history_bytes_max) == (age_s, size)
    with pytest.raises(ConfigError, match="history_age_s 300 is less than 360"):
        resolve(Config(name="n1", history_age_s=300), host_name="n1")
    with pytest.raises(ConfigError, match="history_bytes_max 256 is less than 1 MiB"):
        resolve(Config(name="n1", history_bytes_max=256), host_name="n1")
