"""What a node keeps in memory: its data, and bounded parts of history and log, however much is written."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from acceptance.processes import Cluster
from bench.processes import resident_bytes

MIB = 1 << 20
KEYS = 10
VALUE = bytes(1_000_000)
ABOVE_DATA_MAX = 200 * MIB
HISTORY_BYTES_MAX = 16 * MIB


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, flags=("--history-bytes-max", str(HISTORY_BYTES_MAX))) as cluster:
        yield cluster


def overwrite(cluster: Cluster, megabytes: int) -> int:
    """Overwrite ten keys with values of 1 MB, from four clients; return the most memory that a node ever held."""
    peak = 0

    def put(number: int) -> None:
        cluster.put_somewhere(f"k{number % KEYS}", VALUE)

    with ThreadPoolExecutor(4) as clients:
        for first in range(0, megabytes, 20):
            list(clients.map(put, range(first, first + 20)))
            peak = max(peak, *(resident_bytes(process.pid) for process in cluster.processes.values()))
    return peak


@pytest.mark.parametrize("megabytes", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_memory_is_bounded_while_values_are_overwritten_and_after_a_restart(cluster: Cluster, megabytes: int) -> None:
    allowed = KEYS * len(VALUE) + HISTORY_BYTES_MAX + ABOVE_DATA_MAX
    peak = overwrite(cluster, megabytes)
    assert peak < allowed, f"{peak // MIB} MiB"

    cluster.kill(*cluster.names)
    for name in cluster.names:
        cluster.start(name)
    cluster.leader()
    cluster.converge()
    after = max(resident_bytes(process.pid) for process in cluster.processes.values())
    assert after < allowed, f"{after // MIB} MiB after a restart"


def test_a_node_that_was_away_is_sent_what_only_the_disks_of_the_others_hold(tmp_path: Path) -> None:
    with Cluster(tmp_path, flags=("--log-memory-bytes", str(MIB))) as cluster:
        away = cluster.others(cluster.leader())[0]
        cluster.kill(away)
        for number in range(40):
            cluster.put_somewhere(f"k{number}", VALUE[:200_000])
        cluster.start(away)
        cluster.converge()
        assert b"installed the snapshot" not in cluster.log_file(away).read_bytes()
        assert cluster.get(away, "k7", "?consistency=stale").body == VALUE[:200_000]
