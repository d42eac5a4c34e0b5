"""What ``/metrics`` says: every instrument, under its documented name, with figures that agree with the node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from telemetry.fakes import FakeNode, follower_status, leader_status, member

from kvorum.config import Config
from kvorum.status import NodeStatus
from kvorum.telemetry.bridge import prometheus_name
from kvorum.telemetry.counters import DURATION_BOUNDARIES_S
from kvorum.telemetry.instruments import STATES, Instrument, Kind, all_instruments
from kvorum.telemetry.metrics import Telemetry
from kvorum.telemetry.scrape import read_disk


@contextmanager
def telemetry_of(node: FakeNode) -> Iterator[Telemetry]:
    telemetry = Telemetry(node)
    try:
        yield telemetry
    finally:
        telemetry.close()


def a_node(tmp_path: Path, status: NodeStatus | None = None) -> FakeNode:
    return FakeNode(Config(name="n1", data_dir=str(tmp_path)), status)


def families(telemetry: Telemetry) -> dict[str, Metric]:
    body, _ = telemetry.render()
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def values(telemetry: Telemetry) -> dict[str, float]:
    """Return every sample, named as Prometheus writes it."""
    found = {}
    for family in families(telemetry).values():
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def touch_everything(node: FakeNode) -> None:
    """Let each thing that a node counts have happened once."""
    counters = node.counters
    counters.requests["put", 200] += 1
    counters.request_duration["put"].record(0.003)
    for peer in ("n2", "n3"):
        counters.peer_rtt[peer].record(0.001)
        counters.peer_failures[peer, "connect"] += 1
        counters.messages_sent[peer] += 1
        counters.messages_received[peer] += 1


@pytest.mark.parametrize("instrument", all_instruments(), ids=lambda instrument: instrument.name)
def test_every_instrument_is_shown_with_its_name_kind_labels_and_meaning(
    instrument: Instrument, tmp_path: Path
) -> None:
    node = a_node(tmp_path)
    touch_everything(node)
    with telemetry_of(node) as telemetry:
        telemetry._disk = read_disk(tmp_path)
        (tmp_path / "kvorum.db").write_bytes(b"x" * 100)
        telemetry._disk = read_disk(tmp_path)
        shown = families(telemetry)
    name = prometheus_name(instrument)
    # The parser calls a counter's family by its name without the suffix.
    family = shown[name.removesuffix("_total") if instrument.kind is Kind.COUNTER else name]
    assert family.type == instrument.kind.value
    assert family.documentation == instrument.description
    labels = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert labels == set(instrument.labels)
    suffix = "_count" if instrument.kind is Kind.HISTOGRAM else ""
    assert any(sample.name == name + suffix for sample in family.samples)


def test_no_unit_is_doubled_and_names_are_unique() -> None:
    names = [prometheus_name(instrument) for instrument in all_instruments()]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.startswith("kvorum_")
        assert name.count("_seconds") <= 1
        assert name.count("_bytes") <= 1
        assert name.count("_total") <= 1


def test_a_duration_of_three_milliseconds_is_told_from_one_of_three_seconds(tmp_path: Path) -> None:
    node = a_node(tmp_path)
    node.counters.write_duration.record(0.003)
    node.counters.write_duration.record(3.0, times=2)
    with telemetry_of(node) as telemetry:
        shown = values(telemetry)
    assert shown['kvorum_write_duration_seconds_bucket{le="0.002"}'] == 0
    assert shown['kvorum_write_duration_seconds_bucket{le="0.004"}'] == 1
    assert shown['kvorum_write_duration_seconds_bucket{le="2.048"}'] == 1
    assert shown['kvorum_write_duration_seconds_bucket{le="4.096"}'] == 3
    assert shown["kvorum_write_duration_seconds_count"] == 3
    assert shown["kvorum_write_duration_seconds_sum"] == pytest.approx(6.003)


def test_every_duration_histogram_has_boundaries_in_seconds(tmp_path: Path) -> None:
    node = a_node(tmp_path)
    touch_everything(node)
    with telemetry_of(node) as telemetry:
        shown = families(telemetry)
    expected = {str(boundary) for boundary in DURATION_BOUNDARIES_S} | {"+Inf"}
    for instrument in all_instruments():
        if instrument.kind is Kind.HISTOGRAM:
            found = {
                sample.labels["le"] for sample in shown[prometheus_name(instrument)].samples if "le" in sample.labels
            }
            assert found == expected, instrument.name


def test_the_figures_of_a_leader_are_those_of_its_status(tmp_path: Path) -> None:
    with telemetry_of(a_node(tmp_path)) as telemetry:
        shown = values(telemetry)
    assert shown["kvorum_raft_term"] == 7
    assert shown["kvorum_raft_is_leader"] == 1
    assert shown["kvorum_raft_has_leader"] == 1
    assert shown["kvorum_raft_commit_index"] == 120
    assert shown["kvorum_raft_applied_index"] == 119
    assert shown["kvorum_raft_last_log_index"] == 123
    assert shown["kvorum_raft_first_log_index"] == 11
    assert shown["kvorum_raft_saved_index"] == 122
    assert shown["kvorum_raft_snapshot_index"] == 10
    assert shown["kvorum_raft_last_contact_seconds"] == pytest.approx(0.03)
    assert shown['kvorum_raft_members{suffrage="voter"}'] == 3
    assert shown['kvorum_raft_members{suffrage="learner"}'] == 0
    assert shown["kvorum_raft_healthy_voters"] == 3
    assert shown["kvorum_raft_failure_tolerance"] == 1
    assert shown['kvorum_raft_peer_lag{peer="n2"}'] == 3
    assert shown["kvorum_keys"] == 42
    assert shown["kvorum_revision"] == 100
    assert shown["kvorum_sessions"] == 5
    assert shown['kvorum_build_info{revision="unknown",version="1.2.3"}'] == 1
    states = {state: shown[f'kvorum_raft_state{{state="{state}"}}'] for state in STATES}
    assert states == {**dict.fromkeys(STATES, 0), "leader": 1}


def test_what_only_a_leader_knows_disappears_when_it_follows(tmp_path: Path) -> None:
    node = a_node(tmp_path)
    with telemetry_of(node) as telemetry:
        before = values(telemetry)
        node.current_status = follower_status()
        after = values(telemetry)
    gone = {
        "kvorum_raft_healthy_voters",
        "kvorum_raft_failure_tolerance",
        'kvorum_raft_peer_lag{peer="n2"}',
        'kvorum_raft_peer_lag{peer="n3"}',
        'kvorum_raft_peer_healthy{peer="n2"}',
    }
    assert gone <= before.keys()
    assert not gone & after.keys()


def test_an_unknown_is_absent_and_never_zero(tmp_path: Path) -> None:
    node = a_node(tmp_path, follower_status(last_contact_ms=None, leader=None, leader_name=None))
    with telemetry_of(node) as telemetry:
        shown = values(telemetry)
    assert "kvorum_raft_last_contact_seconds" not in shown
    assert "kvorum_storage_disk_free_bytes" not in shown
    assert shown["kvorum_raft_has_leader"] == 0


def test_failure_tolerance_is_negative_without_a_quorum(tmp_path: Path) -> None:
    lonely = (member("n1"), member("n2", healthy=False), member("n3", healthy=False))
    with telemetry_of(a_node(tmp_path, leader_status(members=lonely))) as telemetry:
        shown = values(telemetry)
    assert shown["kvorum_raft_healthy_voters"] == 1
    assert shown["kvorum_raft_failure_tolerance"] == -1


def test_a_learner_is_no_voter_and_tolerates_nothing(tmp_path: Path) -> None:
    members = (member("n1"), member("n2"), member("n3"), member("n4", voter=False))
    with telemetry_of(a_node(tmp_path, leader_status(members=members))) as telemetry:
        shown = values(telemetry)
    assert shown['kvorum_raft_members{suffrage="learner"}'] == 1
    assert shown["kvorum_raft_healthy_voters"] == 3
    assert shown["kvorum_raft_failure_tolerance"] == 1


@pytest.mark.parametrize("oldest_first", [False, True])
def test_two_incarnations_of_one_name_show_the_worse_one(tmp_path: Path, oldest_first: bool) -> None:
    old = member("n2", id="n2@old", lag=900, healthy=False)
    new = member("n2", voter=False, lag=2)
    members = (member("n1"), *((old, new) if oldest_first else (new, old)))
    with telemetry_of(a_node(tmp_path, leader_status(members=members))) as telemetry:
        shown = values(telemetry)
    assert shown['kvorum_raft_peer_lag{peer="n2"}'] == 900
    assert shown['kvorum_raft_peer_healthy{peer="n2"}'] == 0


def test_counters_that_alerts_watch_start_at_zero(tmp_path: Path) -> None:
    with telemetry_of(a_node(tmp_path)) as telemetry:
        shown = values(telemetry)
    assert shown['kvorum_raft_elections_total{reason="timeout",result="won"}'] == 0
    assert shown['kvorum_raft_proposals_total{result="unknown"}'] == 0
    assert shown['kvorum_raft_identity_rejected_total{reason="incarnation"}'] == 0
    assert shown['kvorum_raft_snapshots_total{op="install",result="failed"}'] == 0
    assert shown['kvorum_dns_failures_total{peer="n3"}'] == 0
    assert shown["kvorum_raft_leader_changes_total"] == 0
    assert shown['kvorum_requests_total{code="503",op="put"}'] == 0


def test_counters_show_what_was_counted(tmp_path: Path) -> None:
    node = a_node(tmp_path)
    counters = node.counters
    counters.writes, counters.reads, counters.stale_reads, counters.redirects = 11, 30, 7, 4
    counters.requests["put", 307] = 4
    counters.elections["won", "timeout"] = 2
    counters.leader_changes = 3
    counters.saves, counters.saved_bytes = 9, 4096
    with telemetry_of(node) as telemetry:
        shown = values(telemetry)
    assert shown["kvorum_writes_total"] == 11
    assert shown['kvorum_reads_total{consistency="linearizable"}'] == 30
    assert shown['kvorum_reads_total{consistency="stale"}'] == 7
    assert shown["kvorum_redirects_total"] == 4
    assert shown['kvorum_requests_total{code="307",op="put"}'] == 4
    assert shown['kvorum_raft_elections_total{reason="timeout",result="won"}'] == 2
    assert shown["kvorum_raft_leader_changes_total"] == 3
    assert shown["kvorum_storage_saves_total"] == 9
    assert shown["kvorum_storage_saved_bytes_total"] == 4096


def test_the_process_is_shown_under_its_customary_names(tmp_path: Path) -> None:
    with telemetry_of(a_node(tmp_path)) as telemetry:
        shown = values(telemetry)
    assert shown["process_resident_memory_bytes"] > 1_000_000
    assert shown["process_open_fds"] >= 3
    assert shown["process_cpu_seconds_total"] > 0
    assert 'python_gc_collections_total{generation="2"}' in shown


def test_two_nodes_in_one_process_do_not_mix(tmp_path: Path) -> None:
    first, second = a_node(tmp_path), a_node(tmp_path, follower_status())
    first.counters.writes = 1
    second.counters.writes = 2
    with telemetry_of(first) as one, telemetry_of(second) as two:
        assert values(one)["kvorum_writes_total"] == 1
        assert values(two)["kvorum_writes_total"] == 2
        assert values(one)["kvorum_raft_is_leader"] == 1


def test_no_label_of_the_scope_burdens_every_series(tmp_path: Path) -> None:
    with telemetry_of(a_node(tmp_path)) as telemetry:
        body, content_type = telemetry.render()
    assert b"otel_scope" not in body
    assert content_type.startswith("text/plain")


def test_a_closed_telemetry_closes_again_in_peace(tmp_path: Path) -> None:
    telemetry = Telemetry(a_node(tmp_path))
    telemetry.close()
    telemetry.close()


def test_no_series_of_a_removed_member_is_shown_any_more(tmp_path: Path) -> None:
    """The exporter and the SDK behind it show what is observed now, and nothing of earlier scrapes."""
    node = a_node(tmp_path)
    node.counters.keep_peers(["n2", "n3"])
    touch_everything(node)
    for peer in ("n2", "n3"):
        for figures in (node.counters.messages_dropped, node.counters.messages_unknown, node.counters.dns_failures):
            figures[peer] += 1
    with telemetry_of(node) as telemetry:

        def shown(peer: str) -> set[str]:
            return {
                family.name
                for family in families(telemetry).values()
                for sample in family.samples
                if sample.labels.get("peer") == peer
            }

        assert len(shown("n2")) == 9, "a histogram, two gauges and six counters"
        assert shown("n3") == shown("n2")
        node.counters.keep_peers(["n2"])
        node.current_status = leader_status(members=(member("n1"), member("n2")))
        assert shown("n3") == set()
        assert len(shown("n2")) == 9
        node.current_status = follower_status(members=(member("n2", lag=None, healthy=None),), id="n1@1")
        assert len(shown("n2")) == 7, "and who does not lead shows no gauge of the time when it did"
