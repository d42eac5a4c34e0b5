"""Kubernetes nodes that are drained, paused or gone, and networks that are cut. Needs the nodes of a kind cluster."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from e2e.kube import eventually, run
from e2e.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def kind_only(system: System) -> None:
    if not system.kube.is_kind:
        pytest.skip("needs the nodes of a kind cluster")


@contextmanager
def paused(*nodes: str) -> Iterator[None]:
    """Freeze the nodes, with everything on them."""
    try:
        for node in nodes:
            run(["docker", "pause", node])
        yield
    finally:
        for node in nodes:
            subprocess.run(["docker", "unpause", node], capture_output=True, timeout=60, check=False)


@contextmanager
def cut_off(system: System, pod: str, *, inbound: bool = True, outbound: bool = True) -> Iterator[None]:
    """Drop a pod's packets to and from other nodes and pods, on its own node."""
    node, address = system.node_of(pod), system.kube.pods(system.release)[pod].status.pod_ip
    rules = [["-s", address]] * outbound + [["-d", address]] * inbound
    try:
        for rule in rules:
            run(["docker", "exec", node, "iptables", "-I", "FORWARD", *rule, "-j", "DROP"])
        yield
    finally:
        for rule in rules:
            command = ["docker", "exec", node, "iptables", "-D", "FORWARD", *rule, "-j", "DROP"]
            subprocess.run(command, capture_output=True, timeout=60, check=False)


def wait_nodes_ready(system: System) -> None:
    system.kube.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=180s", timeout_s=190)


def test_a_drained_nodes_pod_leaves_well_and_comes_back_with_uncordon(system: System) -> None:
    with system.scenario("drain the leader's node, uncordon", terms_max=3) as scenario:
        leader = system.leader()
        node = system.node_of(leader)
        on_node = [name for name, pod in system.kube.pods(system.release).items() if pod.spec.node_name == node]
        scenario.fault("drain", *on_node)
        try:
            drain = ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s"]
            system.kube.kubectl(*drain, timeout_s=200)
            scenario.recovered(within_s=20)
            # A drain never changes the membership.
            members = [member["name"] for member in system.statuses()[system.leader()]["members"]]
            assert sorted(members) == [system.pod(ordinal) for ordinal in range(3)]
        finally:
            system.kube.kubectl("uncordon", node)
        system.wait_ready(3)


def test_a_paused_leader_serves_no_stale_read_when_it_wakes(system: System) -> None:
    """The recorder reads through every node all the time: a stale answer would break the history."""
    with system.scenario("pause the leader's node", terms_max=3) as scenario:
        leader = system.leader()
        node = system.node_of(leader)
        scenario.fault("pause", leader)
        with paused(node):
            scenario.recovered(within_s=30)
            scenario.recording.wait_for_writes("the others go on", 100, 60)
        wait_nodes_ready(system)
        system.wait_ready(3)
        assert system.leader() != leader or system.statuses()[leader]["term"] > 0


def test_with_two_nodes_down_there_are_no_writes_and_no_restarts(system: System) -> None:
    with system.scenario("two of three nodes down", terms_max=6) as scenario:
        leader = system.leader()
        others = [name for name in system.kube.pods(system.release) if name != leader]
        nodes = [system.node_of(leader), system.node_of(others[0])]
        if len(set(nodes)) < 2 or system.node_of(others[1]) in nodes:
            pytest.skip("needs each pod on a node of its own")
        scenario.fault("two nodes down")
        with paused(*nodes):
            # Whatever was on its way may still be answered.
            scenario.recording.wait_for_silence(3, 30)
            scenario.recording.watch_silence(15)
            survivor = system.kube.pods(system.release)[others[1]]
            assert survivor.status.container_statuses[0].restart_count == 0, "liveness must not ask for a quorum"
            scenario.fault("nodes back")
        scenario.recovered(within_s=60)
        wait_nodes_ready(system)
        system.wait_ready(3)


@pytest.mark.parametrize(
    ("name", "inbound", "outbound"),
    [("both ways", True, True), ("what it sends", False, True), ("what it receives", True, False)],
)
def test_a_leader_that_is_cut_off_is_replaced(system: System, name: str, inbound: bool, outbound: bool) -> None:
    with system.scenario(f"cut off the leader: {name}", terms_max=4) as scenario:
        leader = system.leader()
        scenario.fault("cut off")
        with cut_off(system, leader, inbound=inbound, outbound=outbound):
            scenario.recovered(within_s=30)
            scenario.recording.wait_for_writes("the others go on", 100, 60)
        system.wait_ready(3)


def test_a_follower_that_was_cut_off_disturbs_nobody_when_it_returns(system: System) -> None:
    """Pre-vote: its term has not grown, so the leader stays."""
    with system.scenario("cut off a follower", terms_max=0) as scenario:
        follower = system.follower()
        scenario.fault("cut off")
        with cut_off(system, follower):
            scenario.recovered(within_s=30)
            time.sleep(10)
        system.wait_ready(3)


def test_without_dns_the_cluster_goes_on_and_a_pod_comes_back_when_dns_does(system: System) -> None:
    with system.scenario("DNS down", terms_max=1) as scenario:
        follower = system.follower()
        try:
            scale_dns(system, 0)
            scenario.fault("DNS down", follower)
            scenario.recovered(within_s=20)
            system.kube.delete_pod(follower)
            scenario.recording.wait_for_writes("the others go on without DNS", 100, 60)
        finally:
            scale_dns(system, 2)
        system.wait_ready(3)


def scale_dns(system: System, replicas: int) -> None:
    apps = system.kube.apps
    apps.patch_namespaced_deployment_scale("coredns", "kube-system", {"spec": {"replicas": replicas}})

    def scaled() -> bool | str:
        status = apps.read_namespaced_deployment("coredns", "kube-system").status
        return (status.ready_replicas or 0) == replicas or f"{status.ready_replicas} of {replicas}"

    eventually(f"{replicas} DNS servers", scaled, 120)
