"""For each alert a case in which it fires and at least one near it in which it stays silent, in promtool's notation.

A series is ``name{labels}: values``, one value a minute; ``0+10x5`` is 0 10 20 ... (5 steps), ``_`` no sample,
``stale`` the end of a series. Labels of the cluster are added to each series.
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One scenario of one alert."""

    alert: str
    fires: bool
    why: str
    series: tuple[tuple[str, str], ...]
    minute: int
    """When to look."""


def _nodes(metric: str, *values: str, labels: str = "") -> tuple[tuple[str, str], ...]:
    """Return one series for each of kv-0, kv-1, ..."""
    comma = "," if labels else ""
    return tuple(
        (f'{metric}{{pod="kv-{i}",instance="kv-{i}:8001"{comma}{labels}}}', value) for i, value in enumerate(values)
    )


def _states(*values: str) -> tuple[tuple[str, str], ...]:
    return _nodes("kvorum_raft_state", *values, labels='state="follower"')


def _voters(*values: str) -> tuple[tuple[str, str], ...]:
    return _nodes("kvorum_raft_members", *values, labels='suffrage="voter"')


def _latency(metric: str, fast: str, slow: str, boundary: str, labels: str = "") -> tuple[tuple[str, str], ...]:
    """Return a histogram of which ``fast`` samples lie below ``boundary`` and ``slow - fast`` up to 2.048 s."""
    return tuple(
        series
        for le, values in ((boundary, fast), ("2.048", slow), ("+Inf", slow))
        for series in _nodes(f"{metric}_bucket", values, labels=f'le="{le}"' + (f",{labels}" if labels else ""))
    )


UP = "1x30"

HOLDS_MIN = {
    "KvorumClusterDown": 2,
    "KvorumNoLeader": 1,
    "KvorumInsufficientMembers": 3,
    "KvorumMembersDown": 5,
    "KvorumNoFailureTolerance": 10,
    "KvorumRestartLoop": 0,
    "KvorumMultipleLeaders": 0,
    "KvorumLeaderChanges": 0,
    "KvorumMembershipMismatch": 10,
    "KvorumIdentityRejected": 0,
    "KvorumForeignPeers": 1,
    "KvorumPeerRejected": 10,
    "KvorumQuarantined": 0,
    "KvorumDistrusted": 0,
    "KvorumProposalsFailing": 5,
    "KvorumErrorRatio": 5,
    "KvorumErrorRatioCritical": 5,
    "KvorumRequestLatency": 10,
    "KvorumPeerRTT": 10,
    "KvorumFollowerLag": 5,
    "KvorumLearnerStuck": 30,
    "KvorumSnapshotsFailing": 0,
    "KvorumSaveLatency": 10,
    "KvorumSaveLatencyCritical": 10,
    "KvorumDiskLow": 5,
    "KvorumDisksFull": 0,
    "KvorumDiskFilling": 15,
    "KvorumLogNotCompacting": 15,
    "KvorumLoopLag": 10,
    "KvorumFileDescriptors": 5,
    "KvorumQuota": 5,
}
"""How many minutes a condition must last before it is told: what passes by itself wakes nobody up."""

CASES = (
    Case("KvorumClusterDown", True, "all were there and are gone", _nodes("kvorum_build_info", *["1x5 stale"] * 3), 9),
    Case("KvorumClusterDown", False, "one is left", _nodes("kvorum_build_info", "1x5 stale", "1x5 stale", UP), 9),
    Case("KvorumClusterDown", False, "a gap of a minute", _nodes("kvorum_build_info", "1x5 stale _ 1x20"), 9),
    Case("KvorumClusterDown", True, "an outage of hours", _nodes("kvorum_build_info", "1x5 stale"), 90),
    Case("KvorumClusterDown", False, "back after an hour", _nodes("kvorum_build_info", "1x5 stale _x60 1x30"), 90),
    Case("KvorumNoLeader", True, "nobody knows a leader", _nodes("kvorum_raft_has_leader", "0x30", "0x30", "0x30"), 5),
    Case("KvorumNoLeader", False, "an election", _nodes("kvorum_raft_has_leader", "1x3 0 1x20", "1x3 0 1x20"), 4),
    Case("KvorumNoLeader", False, "one is cut off", _nodes("kvorum_raft_has_leader", "0x30", UP, UP), 20),
    Case("KvorumInsufficientMembers", True, "one of three", _states(UP) + _voters("3x30"), 5),
    Case("KvorumInsufficientMembers", True, "two of four", _states(UP, UP) + _voters("4x30", "4x30"), 5),
    Case("KvorumInsufficientMembers", False, "two of three", _states(UP, UP) + _voters("3x30", "3x30"), 20),
    Case("KvorumInsufficientMembers", False, "a cluster of one", _states(UP) + _voters("1x30"), 20),
    Case("KvorumMembersDown", True, "two of three answer", _states(UP, UP) + _voters("3x30", "3x30"), 10),
    Case("KvorumMembersDown", False, "a restart", _states(UP, UP, "1x3 stale _ 1x20") + _voters("3x30"), 10),
    Case("KvorumMembersDown", False, "scaled in", _states(UP, UP, UP) + _voters("5x3 3x30"), 20),
    Case(
        "KvorumNoFailureTolerance",
        True,
        "two of three are heard of",
        _nodes("kvorum_raft_failure_tolerance", "0x30") + _voters("3x30"),
        15,
    ),
    Case(
        "KvorumNoFailureTolerance",
        False,
        "a cluster of one never tolerates a failure",
        _nodes("kvorum_raft_failure_tolerance", "0x30") + _voters("1x30"),
        15,
    ),
    Case(
        "KvorumNoFailureTolerance",
        False,
        "the leadership moved and the new leader hears of all",
        _nodes("kvorum_raft_failure_tolerance", "0x3 stale", "_x3 1x30") + _voters("3x30"),
        15,
    ),
    Case(
        "KvorumRestartLoop",
        True,
        "four starts",
        _nodes("process_start_time_seconds", "100 200 300 400x30") + _nodes("kvorum_build_info", UP),
        10,
    ),
    Case(
        "KvorumRestartLoop",
        False,
        "a rolling upgrade",
        _nodes("process_start_time_seconds", "100x5 200x30") + _nodes("kvorum_build_info", UP),
        10,
    ),
    Case("KvorumRestartLoop", False, "another job", _nodes("process_start_time_seconds", "1 2 3 4 5 6x9"), 10),
    Case(
        "KvorumMultipleLeaders",
        True,
        "two in one term",
        _nodes("kvorum_raft_term", "7x30", "7x30") + _nodes("kvorum_raft_is_leader", UP, UP),
        3,
    ),
    Case(
        "KvorumMultipleLeaders",
        False,
        "a deposed leader that does not know it yet",
        _nodes("kvorum_raft_term", "7x30", "8x30") + _nodes("kvorum_raft_is_leader", UP, UP),
        3,
    ),
    Case("KvorumLeaderChanges", True, "five", _nodes("kvorum_raft_leader_changes_total", "1 2 3 4 5 6x30"), 10),
    Case("KvorumLeaderChanges", False, "one", _nodes("kvorum_raft_leader_changes_total", "1x3 2x30"), 10),
    Case("KvorumMembershipMismatch", True, "one is left behind", _voters("5x30", "5x30", "3x30"), 15),
    Case("KvorumMembershipMismatch", False, "a change on its way", _voters("3x3 5x30", "3x5 5x30"), 15),
    Case(
        "KvorumIdentityRejected",
        True,
        "a peer of another cluster",
        _nodes("kvorum_raft_identity_rejected_total", "0x3 1x30", labels='reason="cluster"'),
        8,
    ),
    Case(
        "KvorumIdentityRejected",
        False,
        "a removed member knocks",
        _nodes("kvorum_raft_identity_rejected_total", "0x3 1x30", labels='reason="removed"'),
        8,
    ),
    Case(
        "KvorumIdentityRejected",
        False,
        "a member lost its disk, and is called by its old name for a while",
        _nodes("kvorum_raft_identity_rejected_total", "0x3 40x30", labels='reason="incarnation"'),
        8,
    ),
    Case(
        "KvorumPeerRejected",
        True,
        "an old copy of a disk runs and runs",
        _nodes("kvorum_raft_identity_rejected_total", "0+10x30", labels='reason="incarnation"'),
        20,
    ),
    Case(
        "KvorumPeerRejected",
        False,
        "a member lost its disk and was replaced within a minute",
        _nodes("kvorum_raft_identity_rejected_total", "0x3 40x30", labels='reason="incarnation"'),
        20,
    ),
    Case(
        "KvorumIdentityRejected",
        False,
        "long ago",
        _nodes("kvorum_raft_identity_rejected_total", "0 1x60", labels='reason="cluster"'),
        30,
    ),
    Case(
        "KvorumForeignPeers",
        True,
        "each of three nodes restored the same backup",
        _nodes("kvorum_raft_foreign_peers", "2x30", "2x30", "2x30"),
        2,
    ),
    Case(
        "KvorumForeignPeers",
        True,
        "one member was recovered, and sees another that kept its data",
        _nodes("kvorum_raft_foreign_peers", "1x30", "0x30"),
        2,
    ),
    Case(
        "KvorumForeignPeers",
        False,
        "all peers are of one cluster",
        _nodes("kvorum_raft_foreign_peers", "0x30", "0x30", "0x30"),
        2,
    ),
    Case(
        "KvorumForeignPeers",
        False,
        "an address leads to another cluster for a moment",
        _nodes("kvorum_raft_foreign_peers", "0x3 1 0x30", "0x30"),
        5,
    ),
    Case("KvorumQuarantined", True, "one is", _nodes("kvorum_raft_quarantined", "0x30", "1x30"), 1),
    Case("KvorumQuarantined", False, "none is", _nodes("kvorum_raft_quarantined", "0x30", "0x30"), 1),
    Case("KvorumDistrusted", True, "one is", _nodes("kvorum_raft_distrusted", "0x30", "1x30"), 1),
    Case("KvorumDistrusted", False, "none is", _nodes("kvorum_raft_distrusted", "0x30", "0x30"), 1),
    Case(
        "KvorumProposalsFailing",
        True,
        "a tenth has an unknown outcome",
        _nodes("kvorum_raft_proposals_total", "0+90x30", labels='result="committed"')
        + _nodes("kvorum_raft_proposals_total", "0+10x30", labels='result="unknown"'),
        20,
    ),
    Case(
        "KvorumProposalsFailing",
        False,
        "one of a hundred",
        _nodes("kvorum_raft_proposals_total", "0+99x30", labels='result="committed"')
        + _nodes("kvorum_raft_proposals_total", "0+1x30", labels='result="refused"'),
        20,
    ),
    *(
        case
        for alert, ratio in (("KvorumErrorRatio", 2), ("KvorumErrorRatioCritical", 8))
        for case in (
            Case(
                alert,
                True,
                f"{ratio} % are answered 503",
                _nodes("kvorum_requests_total", f"0+{100 - ratio}x30", labels='op="put",code="200"')
                + _nodes("kvorum_requests_total", f"0+{ratio}x30", labels='op="put",code="503"'),
                15,
            ),
            Case(
                alert,
                False,
                "half of them are the callers' own mistakes",
                _nodes("kvorum_requests_total", "0+50x30", labels='op="put",code="200"')
                + _nodes("kvorum_requests_total", "0+50x30", labels='op="put",code="404"'),
                15,
            ),
            Case(
                alert,
                False,
                "hardly anybody asks but the kubelet, and one pod is not ready",
                _nodes("kvorum_requests_total", "0+5x30", labels='op="put",code="200"')
                + _nodes("kvorum_requests_total", "0+30x30", labels='op="readyz",code="503"'),
                15,
            ),
        )
    ),
    Case(
        "KvorumErrorRatioCritical",
        False,
        "2 % are answered 503",
        _nodes("kvorum_requests_total", "0+98x30", labels='op="put",code="200"')
        + _nodes("kvorum_requests_total", "0+2x30", labels='op="put",code="503"'),
        15,
    ),
    Case(
        "KvorumRequestLatency",
        True,
        "a tenth takes a second",
        _latency("kvorum_request_duration_seconds", "0+90x30", "0+100x30", "0.512", 'op="put"'),
        20,
    ),
    Case(
        "KvorumRequestLatency",
        False,
        "all are fast",
        _latency("kvorum_request_duration_seconds", "0+100x30", "0+100x30", "0.256", 'op="put"'),
        20,
    ),
    Case(
        "KvorumRequestLatency",
        False,
        "an administrator moves the leadership",
        _latency("kvorum_request_duration_seconds", "0x30", "0+100x30", "0.512", 'op="transfer"'),
        20,
    ),
    Case(
        "KvorumPeerRTT",
        True,
        "a tenth takes a second",
        _latency("kvorum_raft_peer_rtt_seconds", "0+90x30", "0+100x30", "0.128", 'peer="kv-1"'),
        20,
    ),
    Case(
        "KvorumPeerRTT",
        False,
        "all are fast",
        _latency("kvorum_raft_peer_rtt_seconds", "0+100x30", "0+100x30", "0.128", 'peer="kv-1"'),
        20,
    ),
    Case("KvorumFollowerLag", True, "far behind", _nodes("kvorum_raft_peer_lag", "6000x30", labels='peer="kv-1"'), 10),
    Case(
        "KvorumFollowerLag",
        False,
        "catching up after a restart",
        _nodes("kvorum_raft_peer_lag", "9000 6000 3000 0x30", labels='peer="kv-1"'),
        10,
    ),
    Case("KvorumLearnerStuck", True, "an hour", _nodes("kvorum_raft_members", "1x60", labels='suffrage="learner"'), 40),
    Case(
        "KvorumLearnerStuck",
        False,
        "promoted after ten minutes",
        _nodes("kvorum_raft_members", "1x10 0x60", labels='suffrage="learner"'),
        40,
    ),
    Case(
        "KvorumSnapshotsFailing",
        True,
        "again and again",
        _nodes("kvorum_raft_snapshots_total", "0+1x30", labels='op="create",result="failed"'),
        10,
    ),
    Case(
        "KvorumSnapshotsFailing",
        False,
        "once",
        _nodes("kvorum_raft_snapshots_total", "0x3 1x30", labels='op="send",result="failed"'),
        10,
    ),
    *(
        case
        for alert in ("KvorumSaveLatency", "KvorumSaveLatencyCritical")
        for case in (
            Case(
                alert,
                True,
                "a tenth takes between one and two seconds",
                _latency("kvorum_storage_fsync_duration_seconds", "0+90x30", "0+100x30", "1.024"),
                20,
            ),
            Case(
                alert,
                False,
                "all are fast",
                _latency("kvorum_storage_fsync_duration_seconds", "0+100x30", "0+100x30", "0.256"),
                20,
            ),
        )
    ),
    Case(
        "KvorumDiskLow",
        True,
        "5 % are free",
        _nodes("kvorum_storage_disk_free_bytes", "5x30") + _nodes("kvorum_storage_disk_size_bytes", "100x30"),
        10,
    ),
    Case(
        "KvorumDiskLow",
        False,
        "15 % are free",
        _nodes("kvorum_storage_disk_free_bytes", "15x30") + _nodes("kvorum_storage_disk_size_bytes", "100x30"),
        10,
    ),
    Case("KvorumDisksFull", True, "the leader refuses", _nodes("kvorum_storage_puts_refused", "0x30", "1x30"), 1),
    Case("KvorumDisksFull", False, "nobody refuses", _nodes("kvorum_storage_puts_refused", "0x30", "0x30"), 1),
    Case(
        "KvorumDiskFilling",
        True,
        "gone in two hours, 40 % free",
        _nodes("kvorum_storage_disk_free_bytes", "4000-30x60") + _nodes("kvorum_storage_disk_size_bytes", "10000x60"),
        40,
    ),
    Case(
        "KvorumDiskFilling",
        False,
        "nothing grows",
        _nodes("kvorum_storage_disk_free_bytes", "4000x60") + _nodes("kvorum_storage_disk_size_bytes", "10000x60"),
        40,
    ),
    Case(
        "KvorumDiskFilling",
        False,
        "a burst on a nearly empty disk",
        _nodes("kvorum_storage_disk_free_bytes", "9000-40x30") + _nodes("kvorum_storage_disk_size_bytes", "10000x30"),
        29,
    ),
    Case(
        "KvorumLogNotCompacting",
        True,
        "four thresholds behind",
        _nodes("kvorum_raft_last_log_index", "5000x30")
        + _nodes("kvorum_raft_snapshot_index", "1000x30")
        + _nodes("kvorum_raft_snapshot_threshold", "1000x30"),
        20,
    ),
    Case(
        "KvorumLogNotCompacting",
        False,
        "two thresholds behind",
        _nodes("kvorum_raft_last_log_index", "3000x30")
        + _nodes("kvorum_raft_snapshot_index", "1000x30")
        + _nodes("kvorum_raft_snapshot_threshold", "1000x30"),
        20,
    ),
    Case(
        "KvorumLoopLag",
        True,
        "a tenth takes a second",
        _latency("kvorum_loop_lag_seconds", "0+90x30", "0+100x30", "0.128"),
        20,
    ),
    Case("KvorumLoopLag", False, "never", _latency("kvorum_loop_lag_seconds", "0+100x30", "0+100x30", "0.064"), 20),
    Case(
        "KvorumQuota",
        True,
        "81 %",
        _nodes("kvorum_data_size_bytes", "81x30", "81x30") + _nodes("kvorum_data_quota_bytes", "100x30", "100x30"),
        10,
    ),
    Case(
        "KvorumQuota",
        True,
        "one node has not applied the last entries",
        _nodes("kvorum_data_size_bytes", "70x30", "95x30") + _nodes("kvorum_data_quota_bytes", "100x30", "100x30"),
        10,
    ),
    Case(
        "KvorumQuota",
        False,
        "79 %",
        _nodes("kvorum_data_size_bytes", "79x30", "79x30") + _nodes("kvorum_data_quota_bytes", "100x30", "100x30"),
        20,
    ),
    Case(
        "KvorumQuota",
        False,
        "the history takes a quarter of it, and gives way",
        _nodes("kvorum_data_size_bytes", "90x30", "90x30")
        + _nodes("kvorum_history_size_bytes", "25x30", "25x30")
        + _nodes("kvorum_data_quota_bytes", "100x30", "100x30"),
        10,
    ),
    Case(
        "KvorumQuota",
        False,
        "there is none yet",
        _nodes("kvorum_data_size_bytes", "81x30") + _nodes("kvorum_data_quota_bytes", "0x30"),
        20,
    ),
    Case(
        "KvorumFileDescriptors",
        True,
        "90 %",
        _nodes("process_open_fds", "90x30") + _nodes("process_max_fds", "100x30") + _nodes("kvorum_build_info", UP),
        10,
    ),
    Case(
        "KvorumFileDescriptors",
        False,
        "another job's",
        _nodes("process_open_fds", "90x30") + _nodes("process_max_fds", "100x30"),
        10,
    ),
)
