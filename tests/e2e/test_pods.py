"""Pods that go away, one or all, politely or not."""

from __future__ import annotations

import pytest
from e2e.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.mark.smoke
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_the_leaders_pod_is_deleted(system: System, turn: int) -> None:
    """Three times: the bar is the median of the gaps."""
    with system.scenario(f"delete the leader ({turn})", terms_max=2) as scenario:
        leader = system.leader()
        scenario.fault("delete", leader)
        system.kube.delete_pod(leader)
        scenario.recovered(within_s=15)
        system.wait_ready(3)


def test_a_followers_pod_is_deleted(system: System) -> None:
    with system.scenario("delete a follower", terms_max=0) as scenario:
        follower = system.follower()
        scenario.fault("delete", follower)
        system.kube.delete_pod(follower)
        scenario.recovered(within_s=15)
        system.wait_ready(3)


@pytest.mark.smoke
def test_all_pods_are_deleted_at_once(system: System) -> None:
    with system.scenario("delete all pods at once", terms_max=10) as scenario:
        pods = list(system.kube.pods(system.release))
        scenario.fault("delete all", *pods)
        for pod in pods:
            system.kube.delete_pod(pod)
        scenario.recovered(within_s=120)
        system.wait_ready(3)


def test_the_leaders_pod_is_force_deleted(system: System) -> None:
    with system.scenario("force-delete the leader", terms_max=2) as scenario:
        leader = system.leader()
        scenario.fault("force-delete", leader)
        system.kube.delete_pod(leader, grace_s=0)
        scenario.recovered(within_s=20)
        system.wait_ready(3)


def test_all_pods_are_force_deleted(system: System) -> None:
    with system.scenario("force-delete all pods", terms_max=10) as scenario:
        pods = list(system.kube.pods(system.release))
        scenario.fault("force-delete all", *pods)
        for pod in pods:
            system.kube.delete_pod(pod, grace_s=0)
        scenario.recovered(within_s=120)
        system.wait_ready(3)


def test_the_leaders_process_is_killed(system: System) -> None:
    with system.scenario("SIGKILL in the leader's container", terms_max=2) as scenario:
        leader = system.leader()
        scenario.fault("SIGKILL", leader)
        # PID 1 ignores a SIGKILL from inside its own namespace; the node's own processes are outside of it.
        kill_container(system, leader)
        scenario.recovered(within_s=20)
        system.wait_ready(3)
    restarts = system.kube.pods(system.release)[leader].status.container_statuses[0].restart_count
    assert restarts >= 1, "the process was not killed: the scenario shows nothing"


def kill_container(system: System, pod: str) -> None:
    """SIGKILL the process of a pod's container from the node it runs on."""
    from e2e.kube import run

    if not system.kube.is_kind:
        pytest.skip("needs the nodes of a kind cluster")
    status = system.kube.pods(system.release)[pod].status.container_statuses[0]
    container = status.container_id.removeprefix("containerd://")
    run(["docker", "exec", system.node_of(pod), "ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", container])
