"""More nodes and fewer, by kubectl scale and by helm upgrade."""

from __future__ import annotations

import pytest
from e2e.kube import eventually
from e2e.recording import unretried_writes
from e2e.system import Scenario, System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def voters(system: System) -> list[str]:
    """Return the names of the voters that the leader counts."""
    statuses = system.statuses()
    leader = system.leader()
    return sorted(member["name"] for member in statuses[leader]["members"] if member["voter"])


def wait_for_voters(system: System, replicas: int, timeout_s: float) -> None:
    """Wait until exactly the first so many nodes are voters."""
    wanted = [system.pod(ordinal) for ordinal in range(replicas)]

    def are_voters() -> bool | str:
        found = voters(system)
        return found == wanted or f"they are {found}"

    eventually(f"{wanted} are the voters", are_voters, timeout_s)


def grow_or_shrink(system: System, scenario: Scenario, replicas: int) -> None:
    """Scale, and wait until exactly these nodes are voters, and the pods there and ready."""
    scenario.fault(f"scale to {replicas}", *(system.pod(ordinal) for ordinal in range(3, 5)))
    system.kube.scale(system.name, replicas)
    scenario.recovered(within_s=30)
    wait_for_voters(system, replicas, 90)
    system.wait_ready(replicas)


@pytest.mark.smoke
def test_three_nodes_become_five_and_three_again(system: System) -> None:
    with system.scenario("scale 3-5-3-5-3", terms_max=4) as scenario:
        for replicas in (5, 3, 5, 3):
            grow_or_shrink(system, scenario, replicas)


def test_a_leader_that_is_scaled_in_hands_over_first(system: System) -> None:
    with system.scenario("scale in below the leader", terms_max=4) as scenario:
        grow_or_shrink(system, scenario, 5)
        system.kube.exec(system.pod(0), "kv", "leader", "move", system.pod(4))
        eventually("kv-4 leads", lambda: system.leader() == system.pod(4), 30)
        grow_or_shrink(system, scenario, 3)


def test_pods_that_are_scaled_in_believe_it_at_once_and_refuse_no_connection(system: System) -> None:
    """Two of three go together: by the configuration that they know, the one that stays has no quorum."""
    with system.scenario("scale 3-1-3", terms_max=6) as scenario:
        url = f"http://{system.name}.{system.kube.namespace}.svc.cluster.local:8001"
        with unretried_writes(system.kube, url, "scaled-in") as failures:
            scenario.fault("scale to 1", system.pod(1), system.pod(2))
            system.kube.scale(system.name, 1)
            # The grace period is 40 s; 4 s of it they serve on, and each removal is a few round trips.
            eventually("one pod is left", lambda: len(system.kube.pods(system.release)) == 1, 30)
            scenario.recovered(within_s=30)
        lost = [failure for failure in failures if '"outcome":"refused"' not in failure]
        assert not lost, "\n".join(lost[:20])
        wait_for_voters(system, 1, 30)
        system.kube.scale(system.name, 3)
        wait_for_voters(system, 3, 120)
        system.wait_ready(3)


def test_a_stop_of_all_nodes_by_scaling_to_zero_loses_nothing(system: System) -> None:
    with system.scenario("scale to zero and back", terms_max=10) as scenario:
        scenario.fault("scale to zero", *system.kube.pods(system.release))
        system.kube.scale(system.name, 0)
        eventually("the pods are gone", lambda: not system.kube.pods(system.release), 180)
        system.kube.scale(system.name, 3)
        scenario.recovered(within_s=120)
        system.wait_ready(3)


def test_helm_upgrade_scales_without_replacing_a_pod(system: System) -> None:
    with system.scenario("helm upgrade to 5 and back to 3", terms_max=2) as scenario:
        for replicas in (5, 3):
            scenario.fault(f"upgrade to {replicas}", system.pod(3), system.pod(4))
            system.install(replicaCount=replicas)
            scenario.recovered(within_s=30)
            wait_for_voters(system, replicas, 90)
            system.wait_ready(replicas)


def test_without_the_api_server_the_config_map_scales(system: System) -> None:
    """kubernetesApi.enabled=false: the replica count reaches the nodes through the mounted file alone."""
    with system.scenario("scale without the API server", terms_max=10) as scenario:
        scenario.fault("upgrade", *(system.pod(ordinal) for ordinal in range(5)))
        values = {"kubernetesApi": {"enabled": False}, "leaderService": {"enabled": False}}
        system.install(**values)
        system.kube.kubectl("rollout", "status", f"statefulset/{system.name}", "--timeout=180s", timeout_s=190)
        system.install(replicaCount=5, **values)
        # The kubelet brings a changed ConfigMap into the pods within about a minute and a half.
        wait_for_voters(system, 5, 240)
        system.install()
        scenario.recovered(within_s=60)
        system.kube.kubectl("rollout", "status", f"statefulset/{system.name}", "--timeout=180s", timeout_s=190)
        wait_for_voters(system, 3, 120)
        system.wait_ready(3)
