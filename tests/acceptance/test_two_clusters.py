"""One operation that made several clusters: every node and `kv status` say so, and there is a way out."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from acceptance.processes import Cluster, kvorum
from acceptance.test_addresses import kv
from acceptance.test_backup import restore
from waiting import eventually


def see_foreign(cluster: Cluster, name: str) -> set[str]:
    return {peer["name"] for peer in (cluster.status(name) or {}).get("foreign_peers", [])}


def sees(cluster: Cluster, name: str, others: set[str]) -> bool:
    return see_foreign(cluster, name) >= others


def is_ready(cluster: Cluster, name: str) -> bool:
    return cluster.request(name, "GET", "/readyz").status == 200


def assert_said(cluster: Cluster, names: list[str]) -> None:
    """Each of these nodes, and `kv status` through it alone, says that the others are in other clusters."""
    for name in names:
        others = set(names) - {name}
        eventually(f"{name} sees the others", partial(sees, cluster, name, others))
        eventually(f"{name} is ready", partial(is_ready, cluster, name))
        metrics = cluster.request(name, "GET", "/metrics").body.decode()
        assert any(f"kvorum_raft_foreign_peers {count}.0" in metrics for count in (1, 2))
        assert "belong to another cluster and can never join its cluster" in cluster.log_file(name).read_text()
        status = kv(cluster.addresses[name], "status")
        assert (status.returncode, f"belong to {len(names)} clusters" in status.stderr) == (1, True), status


def test_the_same_backup_on_each_node_is_noticed_by_every_node_and_mended_as_the_page_says(tmp_path: Path) -> None:
    backup = tmp_path / "kv.backup"
    with Cluster(tmp_path) as cluster:
        cluster.put_somewhere("k", b"v")
        assert kv(",".join(cluster.addresses.values()), "snapshot", "save", str(backup)).returncode == 0
        cluster.kill(*cluster.names)
        for name in cluster.names:
            shutil.rmtree(cluster.data_dir(name))
            assert restore(cluster, name, "--from", str(backup)).returncode == 0
            cluster.start(name)

        assert_said(cluster, cluster.names)

        for name in ("n2", "n3"):
            cluster.kill(name)
            shutil.rmtree(cluster.data_dir(name))
            cluster.start(name)
        cluster.settled()
        eventually("nobody is foreign", lambda: not any(see_foreign(cluster, name) for name in cluster.names))
        assert cluster.read("n3", "k").body == b"v"
        assert kv(cluster.addresses["n2"], "status").returncode == 0


def test_two_survivors_that_were_both_recovered_are_noticed(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.put_somewhere("k", b"v")
        cluster.kill(*cluster.names)
        for name in ("n1", "n2"):
            done = kvorum("recover", "--data-dir", str(cluster.data_dir(name)), "--force-new-cluster", "--yes")
            assert done.returncode == 0, done.stderr
        for name in ("n1", "n2"):
            cluster.start(name)

        assert_said(cluster, ["n1", "n2"])
