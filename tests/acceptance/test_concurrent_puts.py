"""What a leader keeps in memory while many large puts arrive at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from acceptance.processes import Cluster

MIB = 1 << 20
VALUE = bytes(MIB)
KEYS = 10
LIMIT_BYTES = 1024 * MIB
"""Of the memory of a node; the kernel ends one that takes more."""
HEADROOM_BYTES = 256 * MIB


@pytest.mark.parametrize("clients", [200, pytest.param(600, marks=pytest.mark.slow)])
def test_many_large_puts_at_once_stay_far_below_the_memory_limit(tmp_path: Path, clients: int) -> None:
    with Cluster(tmp_path) as cluster:
        leader = cluster.leader()

        def put(number: int) -> int:
            try:
                return cluster.put(leader, f"k{number % KEYS}", VALUE, timeout_s=120.0).status
            except OSError:
                return 0

        with ThreadPoolExecutor(clients) as pool:
            statuses = list(pool.map(put, range(clients)))
        assert cluster.running() == cluster.names
        assert statuses.count(200) > 0
        assert 500 not in statuses
        peaks = {name: peak_bytes(cluster.processes[name].pid) for name in cluster.names}
        assert max(peaks.values()) < LIMIT_BYTES - HEADROOM_BYTES, {name: peak // MIB for name, peak in peaks.items()}


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process ever had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
