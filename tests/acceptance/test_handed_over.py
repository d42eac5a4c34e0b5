"""Every kind of write, handed over by any node of three real processes, while leaders are killed and nodes stopped."""

from __future__ import annotations

from pathlib import Path

from acceptance.processes import Cluster
from acceptance.writers import UNKNOWN, WRITES, clients, end, go_on

KILLS = 3


def test_every_kind_of_write_is_done_once_while_leaders_are_killed(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.settled()
        with clients(cluster) as each:
            for _ in range(KILLS):
                go_on(each)
                leader = cluster.leader()
                cluster.kill(leader)
                cluster.start(leader)
                cluster.settled()
            go_on(each)
        end(cluster, each)


def test_every_kind_of_write_is_done_once_while_a_node_is_stopped_with_its_frames(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        with clients(cluster) as each:
            for is_leader in (False, True, False):
                leader = cluster.settled()
                name = leader if is_leader else cluster.others(leader)[0]
                go_on(each)
                cluster.pause(name)
                try:
                    cluster.leader(among=cluster.others(name))
                    go_on(each, WRITES // 4)
                finally:
                    cluster.resume(name)
            cluster.settled()
            go_on(each)
        end(cluster, each)


def test_leadership_that_moves_under_load_redirects_nothing(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.settled()
        with clients(cluster) as each:
            for _ in range(2 * KILLS):
                go_on(each, WRITES // 2)
                cluster.request(cluster.leader(), "POST", "/v1/cluster/leader", b"{}")
            go_on(each)
        end(cluster, each)
        codes = {told.code for client in each for told in client.told}
        assert codes <= {"done", UNKNOWN, "no_leader"}
