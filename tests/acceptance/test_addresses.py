"""Nodes that come back at other addresses, while somebody else's cluster answers at the old ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from acceptance.processes import Cluster
from bench.processes import free_ports
from waiting import eventually


def kv(endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the `kv` command with one endpoint to its end."""
    command = [sys.executable, "-m", "kvorum_client.cli", "--endpoints", endpoint, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def move(cluster: Cluster, *names: str) -> None:
    """Give these nodes other ports; they are down."""
    ports = free_ports(2 * len(names))
    cluster.client_ports |= dict(zip(names, ports[: len(names)], strict=True))
    cluster.peer_ports |= dict(zip(names, ports[len(names) :], strict=True))


@contextmanager
def moved_beside_another(folder: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """Yield a cluster whose nodes have other ports than before, and another one that has the old ports."""
    for each in ("ours", "other"):
        (folder / each).mkdir()
    other = Cluster(folder / "other")
    with Cluster(folder / "ours") as ours:
        ours.put_somewhere("before", b"ours")
        ours.kill(*ours.names)
        other.client_ports, other.peer_ports = dict(ours.client_ports), dict(ours.peer_ports)
        with other:
            other.put_somewhere("before", b"theirs")
            move(ours, *ours.names)
            for name in ours.names:
                ours.start(name)
            ours.settled()
            yield ours, other


def addresses(cluster: Cluster, at: str | None = None) -> dict[str, tuple[str, str]]:
    """Return what a node's members list says of each member, its client URL and its peer URL. None: the leader's."""
    status: dict[str, Any] = cluster.status(at or cluster.leader()) or {"members": []}
    return {member["name"]: (member["client_url"], member["peer_url"]) for member in status["members"]}


def wanted(cluster: Cluster) -> dict[str, tuple[str, str]]:
    return {
        name: (f"http://127.0.0.1:{cluster.client_ports[name]}", f"http://127.0.0.1:{cluster.peer_ports[name]}")
        for name in cluster.names
    }


def knows_addresses(cluster: Cluster, name: str) -> bool:
    return addresses(cluster, name) == wanted(cluster)


def content(status: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str] | None:
    # After a second it says what it waits for, which a busy machine makes it do.
    return status if status.returncode == 0 and status.stderr == "" else None


def test_a_write_never_goes_to_the_cluster_that_has_the_old_ports_now(tmp_path: Path) -> None:
    with moved_beside_another(tmp_path) as (ours, other):
        revision = (other.status(other.leader()) or {})["revision"]
        for number, name in enumerate(ours.names):
            url = f"http://{ours.addresses[name]}/v1/kv/curl-{number}"
            curl = subprocess.run(
                ["curl", "-sS", "-L", "-X", "PUT", "-d", "ours", url], capture_output=True, text=True, timeout=30
            )
            assert json.loads(curl.stdout)["version"] == 1, (curl.stdout, curl.stderr)
            put = kv(ours.addresses[name], "put", f"kv-{number}", "ours")
            assert put.returncode == 0, put.stderr
        for number in range(len(ours.names)):
            for key in (f"curl-{number}", f"kv-{number}"):
                assert ours.read(ours.leader(), key).body == b"ours"
                assert other.read(other.leader(), key).status == 404
        assert (other.status(other.leader()) or {})["revision"] == revision


def test_a_moved_cluster_agrees_on_its_new_addresses_and_says_so(tmp_path: Path) -> None:
    with moved_beside_another(tmp_path) as (ours, _):
        for name in ours.names:
            eventually(f"{name} knows where they are", partial(knows_addresses, ours, name))
        # Until a peer is asked at its new address, whoever answered at its old one counts as seen.
        status = eventually("kv status is content", lambda: content(kv(ours.addresses["n1"], "status")))
        assert "unreachable" not in status.stdout


def test_a_node_that_moves_alone_is_found_although_no_other_was_told(tmp_path: Path) -> None:
    """The others' options still name its old ports."""
    with Cluster(tmp_path) as cluster:
        leader = cluster.settled()
        moving = cluster.others(leader)[0]
        cluster.kill(moving)
        move(cluster, moving)
        cluster.start(moving)
        eventually("the members list says where it is", lambda: addresses(cluster) == wanted(cluster))
        cluster.put_somewhere("after", b"1", [leader])
        eventually("it follows", lambda: (cluster.status(moving) or {}).get("caught_up") is True)
        assert cluster.read(moving, "after").body == b"1"
        # The leader itself moves as well: the two others elect, and the third of them was never told of anything.
        cluster.kill(leader)
        move(cluster, leader)
        cluster.start(leader)
        eventually("the members list says where both are", lambda: addresses(cluster) == wanted(cluster))
        cluster.settled()


def test_a_request_for_another_cluster_is_refused(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1) as cluster:
        own = (cluster.status("n1") or {})["cluster_id"]
        for path, headers in (("/v1/kv/k?cluster=" + "d" * 32, {}), ("/v1/kv/k", {"X-Kvorum-Cluster": "d" * 32})):
            answer = cluster.request("n1", "PUT", path, b"v", headers)
            assert (answer.status, answer.document["code"], answer.document["outcome"]) == (
                421,
                "wrong_cluster",
                "refused",
            )
            assert answer.headers["X-Kvorum-Cluster"] == own
        assert cluster.get("n1", "k").status == 404
        assert cluster.request("n1", "PUT", f"/v1/kv/k?cluster={own}", b"v").status == 200
        refused = kv(cluster.addresses["n1"], "--cluster-id", "d" * 32, "put", "k", "other")
        assert (refused.returncode, f"--cluster-id names the cluster {'d' * 32}" in refused.stderr) == (1, True), (
            refused
        )
        assert cluster.get("n1", "k").body == b"v"
