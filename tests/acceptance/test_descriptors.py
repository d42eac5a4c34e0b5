"""A process that may open few files, and clients that open many connections: nodes stay up, lead and take snapshots."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path

from acceptance.processes import Cluster
from waiting import eventually

LIMIT = 256


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, LIMIT))


def test_connections_beyond_the_limit_of_open_files_stop_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, flags=("--snapshot-entries", "20"))
    with contextlib.ExitStack() as stack:
        for name in cluster.names:
            cluster.start(name, preexec=few_files)
        stack.callback(cluster.__exit__)
        leader = cluster.leader()
        for name in cluster.names:
            for _ in range(2 * LIMIT):
                connection = stack.enter_context(socket.socket())
                connection.setblocking(False)
                connection.connect_ex(("127.0.0.1", cluster.client_ports[name]))

        def works() -> bool:
            answers = [cluster.try_request(name, "GET", f"/{probe}") for name in cluster.names for probe in PROBES]
            return all(answer is not None and answer.status == 200 for answer in answers)

        eventually("the probes are answered", works)
        for number in range(60):
            cluster.put_somewhere(f"key-{number}", b"v")
        eventually("every node takes a snapshot", lambda: all(_snapshot_index(cluster, name) for name in cluster.names))
        cluster.kill(leader)
        assert cluster.leader(cluster.others(leader)) != leader
        cluster.put_somewhere("after", b"v", among=cluster.others(leader))
        assert set(cluster.running()) == set(cluster.others(leader))


PROBES = ("livez", "readyz")


def _snapshot_index(cluster: Cluster, name: str) -> int:
    status = cluster.status(name)
    return 0 if status is None else int(status["snapshot_index"])
