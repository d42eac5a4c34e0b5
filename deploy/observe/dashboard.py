"""The Grafana dashboard as readable source: ``make dashboard`` writes deploy/helm/dashboards/kvorum.json from it.

Every panel says what it shows in one sentence. In a query ``$S`` stands for the selector of the dashboard's variables.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from grafana_model import (
    BLUE,
    CLUSTER,
    DATASOURCE,
    GREEN,
    GREY,
    NAMESPACE,
    ORANGE,
    PURPLE,
    RED,
    SCHEMA_VERSION,
    YELLOW,
    Panel,
    Query,
    expand,
    graph,
    p50_p99,
    quantile,
    rate,
    render_panels,
    stat,
    timeline,
    variable,
)

UID = "kvorum-cluster"

STATES = (
    # (the code that the query below gives it, what is shown, its colour)
    (0, "down", RED),
    (1, "joining", GREY),
    (2, "learner", PURPLE),
    (3, "follower", BLUE),
    (4, "pre_candidate", YELLOW),
    (5, "candidate", ORANGE),
    (6, "leader", GREEN),
)
STATE_QUERY = (
    "max by (pod) ("
    + " or ".join(f'{code} * kvorum_raft_state{{state="{state}", $S}}' for code, state, _ in STATES[1:])
    + ") or 0 * max by (pod) (up{$S})"
)


def overview() -> list[Panel]:
    """Return the first row: is it well?"""
    up = 'sum(kvorum_raft_state{state=~"leader|follower|candidate|pre_candidate", $S})'
    voters = 'max(kvorum_raft_members{suffrage="voter", $S})'
    good_when_positive = ((None, RED), (0, ORANGE), (1, GREEN))
    return [
        timeline(
            "State of each pod",
            "The consensus state of each pod over time. Watch it while pods are deleted: one leader at a time, and a "
            "new one about a second after the old one is gone.",
            Query(STATE_QUERY, "{{pod}}"),
            STATES,
        ),
        stat(
            "Leader",
            "The pod that leads now; none during an election.",
            "none",
            Query("max by (pod) (kvorum_raft_is_leader{$S} == 1)", "{{pod}}"),
            name=True,
        ),
        stat(
            "Voters missing",
            "Voters of the configuration that do not answer the scrape.",
            "none",
            Query(f"{voters} - {up}", "missing"),
            steps=((None, GREEN), (1, ORANGE), (2, RED)),
        ),
        stat(
            "Voters",
            "How many voters the configuration has.",
            "none",
            Query(voters, "voters"),
        ),
        stat(
            "Failure tolerance",
            "How many more voters may fail before writes stop.",
            "none",
            Query("max(kvorum_raft_failure_tolerance{$S})", "tolerance"),
            steps=good_when_positive,
        ),
        stat(
            "Term", "The highest term; it rises with each election.", "none", Query("max(kvorum_raft_term{$S})", "term")
        ),
        stat(
            "Writes",
            "Acknowledged writes a second.",
            "wps",
            Query("sum(rate(kvorum_writes_total{$S}[$__rate_interval]))", "writes"),
        ),
        stat(
            "Write latency, p99",
            "From a write's request to its applied commit, the slowest hundredth.",
            "s",
            # Without writes it is NaN, which is no figure.
            Query(quantile(0.99, "kvorum_write_duration_seconds") + " >= 0", "p99"),
            steps=((None, GREEN), (0.1, ORANGE), (0.5, RED)),
        ),
        stat(
            "Alerts firing",
            "Alerts of this namespace and job that fire now.",
            "none",
            Query(
                f'count(ALERTS{{alertname=~"Kvorum.*", alertstate="firing", {CLUSTER}}}) or vector(0)',
                "firing",
            ),
            steps=((None, GREEN), (1, RED)),
        ),
    ]


def consensus() -> list[Panel]:
    """Return the second row: elections and commits."""
    return [
        graph("Term of each pod", "The current term of each pod.", "none", Query("kvorum_raft_term{$S}", "{{pod}}")),
        graph(
            "Elections",
            "Elections in which a pod stood, by result and by what made it stand.",
            "none",
            Query(
                "sum by (result, reason) (increase(kvorum_raft_elections_total{$S}[$__rate_interval]))",
                "{{result}}, {{reason}}",
            ),
            bars=True,
        ),
        graph(
            "Last contact",
            "How long ago a pod heard of its leader; on the leader, of a quorum. At the election timeout it campaigns.",
            "s",
            Query("kvorum_raft_last_contact_seconds{$S}", "{{pod}}"),
        ),
        graph(
            "Proposals",
            "Commands proposed a second, by outcome: committed, refused (not done), unknown (may be done).",
            "ops",
            Query(rate("kvorum_raft_proposals_total", "result"), "{{result}}"),
        ),
        graph(
            "Commit duration",
            "From a batch's proposal to its commit on a majority's disks, on the leader.",
            "s",
            *p50_p99("kvorum_raft_commit_duration_seconds"),
        ),
        graph(
            "Proposals pending",
            "Commands that wait for their outcome; at the limit more are refused.",
            "none",
            Query("kvorum_raft_proposals_pending{$S}", "{{pod}}"),
        ),
        graph(
            "Writes handed over",
            "Frames a second that a pod handed to its leader (sent, resent) or was handed (received), and their writes.",
            "ops",
            Query(rate("kvorum_handover_frames_total", "event"), "frames {{event}}"),
            Query(rate("kvorum_handover_writes_total", "event"), "writes {{event}}"),
        ),
        graph(
            "Handed over and not proposed",
            "Frames a second that a leader refused, by the code of the error, or ignored: they came twice or late.",
            "ops",
            Query(rate("kvorum_handover_refused_total", "reason"), "refused: {{reason}}"),
            Query(rate("kvorum_handover_ignored_total", "reason"), "ignored: {{reason}}"),
        ),
        graph(
            "Handed over and pending",
            "Writes that a pod hands to its leader and has not seen applied; at the limit more are refused.",
            "none",
            Query("kvorum_handover_pending{$S}", "{{pod}}"),
        ),
        graph(
            "Read barrier",
            "Time until a quorum confirmed a round of linearizable reads.",
            "s",
            *p50_p99("kvorum_raft_read_index_duration_seconds"),
        ),
        graph(
            "Apply duration",
            "Time to apply a batch of committed entries.",
            "s",
            *p50_p99("kvorum_raft_apply_duration_seconds"),
        ),
        graph(
            "Members",
            "Voters and learners of the configuration, as each pod knows it.",
            "none",
            Query("max by (pod, suffrage) (kvorum_raft_members{$S})", "{{pod}} {{suffrage}}s"),
        ),
    ]


def replication() -> list[Panel]:
    """Return the third row: do the others keep up?"""
    return [
        graph(
            "Follower lag",
            "Entries that each follower is behind the leader's log.",
            "none",
            Query("max by (peer) (kvorum_raft_peer_lag{$S})", "{{peer}}"),
        ),
        graph(
            "Round trip, p99",
            "From the leader's heartbeat to the peer's answer.",
            "s",
            Query(quantile(0.99, "kvorum_raft_peer_rtt_seconds", "peer"), "{{peer}}"),
        ),
        graph(
            "Peer failures",
            "Failed connections to a peer, by reason, and failed look-ups of its name.",
            "cps",
            Query(rate("kvorum_raft_peer_failures_total", "peer, reason"), "{{peer}}: {{reason}}"),
            Query(rate("kvorum_dns_failures_total", "peer"), "{{peer}}: name not found"),
        ),
        graph(
            "Entries committed",
            "How fast each pod's commit index moves; they should move as one.",
            "ops",
            # No rate(): after a restart the index begins a little lower, and all of it would count as growth.
            Query("clamp_min(deriv(kvorum_raft_commit_index{$S}[$__rate_interval]), 0)", "{{pod}}"),
        ),
        graph(
            "Messages",
            "Messages sent to each peer, those dropped because its queue was full, and those that only a later version "
            "knows.",
            "mps",
            Query(rate("kvorum_raft_peer_messages_sent_total", "peer"), "to {{peer}}"),
            Query(rate("kvorum_raft_peer_messages_dropped_total", "peer"), "to {{peer}}, dropped"),
            Query(rate("kvorum_raft_peer_messages_unknown_total", "peer"), "from {{peer}}, unknown"),
        ),
        graph(
            "Snapshots",
            "Snapshots written, sent to a follower that was too far behind, and installed.",
            "none",
            Query(
                "sum by (op, result) (increase(kvorum_raft_snapshots_total{$S}[$__rate_interval]))",
                "{{op}}: {{result}}",
            ),
            bars=True,
        ),
        graph(
            "Refused identities",
            "Peers refused because of who they are; anything here needs an explanation.",
            "none",
            Query(
                "sum by (reason) (increase(kvorum_raft_identity_rejected_total{$S}[$__rate_interval]))", "{{reason}}"
            ),
            bars=True,
        ),
        graph(
            "Applied behind committed",
            "Entries that a pod knows to be committed and has not applied yet.",
            "none",
            Query("kvorum_raft_commit_index{$S} - kvorum_raft_applied_index{$S}", "{{pod}}"),
        ),
        graph(
            "Unhealthy followers",
            "1 while the leader has not heard of a follower for an election timeout.",
            "none",
            Query("1 - min by (peer) (kvorum_raft_peer_healthy{$S})", "{{peer}}"),
        ),
    ]


def clients() -> list[Panel]:
    """Return the fourth row: what users see."""
    # A probe that is answered "not ready" is nobody's error.
    asked = 'op!~"livez|readyz|metrics|version", '
    errors = rate("kvorum_requests_total", "job", 'code=~"5..", ' + asked)
    requests = rate("kvorum_requests_total", "job", asked)
    return [
        graph(
            "Requests",
            "Requests answered a second, by operation.",
            "reqps",
            Query(rate("kvorum_requests_total", "op"), "{{op}}"),
            stacked=True,
        ),
        graph(
            "Answers",
            "Requests answered a second, by HTTP status.",
            "reqps",
            Query(rate("kvorum_requests_total", "code"), "{{code}}"),
            stacked=True,
        ),
        graph(
            "Error ratio",
            "The part of all requests that is answered with a 5xx status; probes and scrapes do not count.",
            "percentunit",
            Query(f"({errors} or 0 * {requests}) / {requests}", "{{job}}"),
        ),
        graph(
            "Request duration",
            "From a request's arrival to its answer, by operation.",
            "s",
            *p50_p99("kvorum_request_duration_seconds", "op"),
        ),
        graph(
            "Write latency",
            "End-to-end latency of acknowledged writes.",
            "s",
            Query(quantile(0.5, "kvorum_write_duration_seconds"), "p50"),
            Query(quantile(0.99, "kvorum_write_duration_seconds"), "p99"),
        ),
        graph(
            "Writes and reads",
            "Acknowledged writes, and reads by consistency, a second.",
            "ops",
            Query("sum(rate(kvorum_writes_total{$S}[$__rate_interval]))", "writes"),
            Query(rate("kvorum_reads_total", "consistency"), "reads, {{consistency}}"),
        ),
        graph(
            "In flight",
            "Client requests being served.",
            "none",
            Query("kvorum_inflight{$S}", "{{pod}}"),
        ),
        graph(
            "Redirects and malformed requests",
            "Requests sent on to the leader, and requests that were not HTTP.",
            "reqps",
            Query(rate("kvorum_redirects_total", "pod"), "{{pod}} redirects"),
            Query(rate("kvorum_requests_malformed_total", "pod"), "{{pod}} malformed"),
        ),
        graph(
            "Keys, sessions and leases",
            "Keys and leases in the store, and client sessions whose answers are remembered.",
            "none",
            Query("max(kvorum_keys{$S})", "keys"),
            Query("max(kvorum_sessions{$S})", "sessions"),
            Query("max(kvorum_leases{$S})", "leases"),
        ),
        graph(
            "Data and quota",
            "What keys, values, their history, leases and sessions take, and the quota above which puts are refused.",
            "bytes",
            Query("max(kvorum_data_size_bytes{$S})", "data"),
            Query("max(kvorum_data_quota_bytes{$S})", "quota"),
        ),
        graph(
            "Use of the quota",
            "The share of the quota that the data takes; at 100 % puts are refused, and accepted again below 95 %.",
            "percentunit",
            Query("max(kvorum_data_size_bytes{$S}) / max(kvorum_data_quota_bytes{$S} > 0)", "used"),
        ),
        graph(
            "Size of the history",
            "What superseded and deleted versions of keys take: a part of the data that gives way to it.",
            "bytes",
            Query("max(kvorum_history_size_bytes{$S})", "history"),
        ),
        graph(
            "Revisions in the history",
            "How many revisions can still be read, and how many changes of keys the history holds.",
            "none",
            Query("max(kvorum_revision{$S}) - max(kvorum_compacted_revision{$S})", "revisions"),
            Query("max(kvorum_history_events{$S})", "events"),
        ),
        graph(
            "Compactions",
            "Compactions of the history that leaders proposed, by reason.",
            "ops",
            Query(rate("kvorum_compactions_total", "reason"), "{{reason}}"),
        ),
        graph(
            "Puts without room",
            "Puts refused because there is no room for more data, by what is full.",
            "wps",
            Query(rate("kvorum_no_space_total", "reason"), "{{reason}}"),
        ),
        graph(
            "Watches",
            "Watches that are open, and those of them that have to catch up or whose client does not read.",
            "none",
            Query("sum(kvorum_watchers{$S})", "open"),
            Query("sum(kvorum_watchers_behind{$S})", "behind"),
        ),
        graph(
            "Events delivered to watches",
            "Events delivered a second, each counted once for each watch.",
            "ops",
            Query(rate("kvorum_watch_events_total", "job"), "events"),
        ),
        graph(
            "Watches that ended",
            "Watches that ended, by reason.",
            "ops",
            Query(rate("kvorum_watch_ends_total", "reason"), "{{reason}}"),
        ),
        graph(
            "Changes of leases",
            "Leases that were granted, renewed, revoked, or expired, a second.",
            "ops",
            Query(rate("kvorum_lease_changes_total", "change"), "{{change}}"),
        ),
    ]


def storage() -> list[Panel]:
    """Return the fifth row: the disks."""
    return [
        graph(
            "Save duration",
            "One durable write of the log, from its request to its acknowledgement; the disk's part of it ends with the fsync.",
            "s",
            *p50_p99("kvorum_storage_save_duration_seconds"),
            Query(quantile(0.99, "kvorum_storage_fsync_duration_seconds", "pod"), "p99 {{pod}}, the disk"),
        ),
        graph(
            "Saves",
            "Durable writes of the log a second; each is one fsync and carries a batch.",
            "iops",
            Query(rate("kvorum_storage_saves_total", "pod"), "{{pod}}"),
        ),
        graph(
            "Bytes saved",
            "Bytes written by durable writes of the log.",
            "Bps",
            Query(rate("kvorum_storage_saved_bytes_total", "pod"), "{{pod}}"),
        ),
        graph(
            "Data folder",
            "The size of the data folder and of each of its files, the largest of all pods; the snapshots count as one.",
            "bytes",
            Query("max(kvorum_db_size_bytes{$S})", "all"),
            Query("max by (file) (kvorum_storage_size_bytes{$S})", "{{file}}"),
        ),
        graph(
            "Disk free",
            "The free part of the file system that holds the data folder.",
            "percentunit",
            Query("kvorum_storage_disk_free_bytes{$S} / kvorum_storage_disk_size_bytes{$S}", "{{pod}}"),
        ),
        graph(
            "Snapshot duration, p99",
            "Time to write a snapshot, or to fetch and load one.",
            "s",
            Query(quantile(0.99, "kvorum_raft_snapshot_duration_seconds", "op"), "{{op}}"),
        ),
        graph(
            "Log",
            "Entries that the log holds, and entries since the last snapshot; a snapshot is due at the threshold.",
            "none",
            Query("kvorum_raft_last_log_index{$S} - kvorum_raft_first_log_index{$S} + 1", "{{pod}} held"),
            Query("kvorum_raft_last_log_index{$S} - kvorum_raft_snapshot_index{$S}", "{{pod}} since the snapshot"),
            Query("max(kvorum_raft_snapshot_threshold{$S})", "threshold"),
        ),
    ]


def process() -> list[Panel]:
    """Return the last row: the processes."""
    ours = "and on (namespace, job, instance) kvorum_build_info{$S}"
    return [
        graph(
            "CPU",
            "Cores used by each pod's process; a node uses one core for its event loop.",
            "none",
            Query(f"rate(process_cpu_seconds_total{{$S}}[$__rate_interval]) {ours}", "{{pod}}"),
        ),
        graph(
            "Memory",
            "Resident memory of each process.",
            "bytes",
            Query(f"process_resident_memory_bytes{{$S}} {ours}", "{{pod}}"),
        ),
        graph(
            "Loop lag, p99",
            "By how much the event loop is late; everything in a node waits for it.",
            "s",
            Query(quantile(0.99, "kvorum_loop_lag_seconds", "pod"), "{{pod}}"),
        ),
        graph(
            "File descriptors",
            "Open file descriptors, a part of the limit.",
            "percentunit",
            Query(f"process_open_fds{{$S}} / process_max_fds{{$S}} {ours}", "{{pod}}"),
        ),
        graph(
            "Garbage collections",
            "Runs of Python's cyclic garbage collector, by generation; the last one looks at everything.",
            "cps",
            Query(rate("python_gc_collections_total", "generation"), "generation {{generation}}"),
        ),
        graph(
            "Uptime",
            "The time since each process started.",
            "s",
            Query(f"time() - process_start_time_seconds{{$S}} {ours}", "{{pod}}"),
        ),
        graph(
            "Version",
            "Pods by version; two lines during an upgrade.",
            "none",
            Query("count by (version, revision) (kvorum_build_info{$S})", "{{version}} ({{revision}})"),
            Query("max(kvorum_feature_level{$S})", "feature level"),
            Query("min(kvorum_feature_level_supported{$S})", "feature level that all support"),
        ),
    ]


def all_rows() -> dict[str, list[Panel]]:
    """Return the rows, from top to bottom."""
    return {
        "Overview": overview(),
        "Consensus": consensus(),
        "Replication": replication(),
        "Clients": clients(),
        "Storage": storage(),
        "Process": process(),
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's classic JSON model."""
    now = "kvorum_raft_is_leader{$S} == 1"
    return {
        "id": None,
        "uid": UID,
        "title": "Kvorum",
        "description": "A Kvorum cluster: who leads, who follows, what users see, and how the disks do.",
        "tags": ["kvorum", "raft"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [],
        "annotations": {
            "list": [
                {
                    "name": "Leader changes",
                    "datasource": DATASOURCE,
                    "enable": True,
                    "hide": False,
                    "iconColor": ORANGE,
                    "expr": expand(f"{now} unless (kvorum_raft_is_leader{{$S}} offset 1m == 1)"),
                    "step": "15s",
                    "titleFormat": "{{pod}} leads",
                    "textFormat": "A new leader",
                    "tagKeys": "pod",
                }
            ]
        },
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "refresh": 1,
                    "current": {},
                },
                # One cluster at a time: of two together no figure would be right.
                variable("namespace", "Namespace", "label_values(kvorum_build_info, namespace)", many=False),
                variable("job", "Job", f"label_values(kvorum_build_info{{{NAMESPACE}}}, job)", many=False),
                variable("pod", "Pod", f"label_values(kvorum_build_info{{{CLUSTER}}}, pod)", many=True),
            ]
        },
        "panels": render_panels(all_rows()),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dashboard(), indent=2) + "\n")
