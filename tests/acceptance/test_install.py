"""What a node keeps in memory while it installs the snapshot that it needs after it was away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from acceptance.processes import Cluster
from acceptance.test_concurrent_puts import peak_bytes
from waiting import eventually

MIB = 1 << 20
VALUE_BYTES = 1_000_000
FLAGS = (
    # The log behind a snapshot goes at once, so that who was away needs the snapshot.
    *("--log-memory-bytes", str(MIB), "--log-retain-entries", "0", "--snapshot-bytes", str(32 * MIB)),
    # What is overwritten is not part of the state for long.
    *("--history-bytes-max", str(MIB)),
)
STATES_MAX = 2.5
"""Above an idle node's. A start and batches in flight take some of it; with both states at once it is above 3."""


def put_all(cluster: Cluster, values: int) -> None:
    for number in range(values):
        cluster.put_somewhere(f"k{number}", os.urandom(VALUE_BYTES))


@pytest.mark.parametrize("values", [64, pytest.param(300, marks=pytest.mark.slow)])
def test_a_node_that_installs_a_snapshot_does_not_hold_two_states(
    tmp_path: Path, record_property: Callable[[str, str], None], values: int
) -> None:
    with Cluster(tmp_path, flags=FLAGS) as cluster:
        idle = max(peak_bytes(process.pid) for process in cluster.processes.values())
        put_all(cluster, values)
        away = cluster.others(cluster.settled())[0]
        cluster.stop(away)
        put_all(cluster, values)
        cluster.start(away)
        eventually("it installs a snapshot", lambda: b"installed the snapshot" in cluster.log_file(away).read_bytes())
        cluster.converge()
        state = values * VALUE_BYTES
        peak = peak_bytes(cluster.processes[away].pid)
        record_property("peak", (told := f"{peak // MIB} MiB; {idle // MIB} MiB idle, {state // MIB} MiB of data"))
        assert peak - idle < STATES_MAX * state, told
