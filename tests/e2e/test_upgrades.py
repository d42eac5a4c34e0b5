"""Pods that are replaced by an upgrade, a good one and a bad one."""

from __future__ import annotations

import pytest
from e2e.kube import eventually
from e2e.recording import unretried_writes
from e2e.system import System, identity, is_ready

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def roll_out(system: System, timeout_s: int = 300) -> None:
    system.kube.kubectl(
        "rollout", "status", f"statefulset/{system.name}", f"--timeout={timeout_s}s", timeout_s=timeout_s + 10
    )


def test_a_rolling_restart_fails_no_write_that_a_client_retries(system: System) -> None:
    """About one term for each leader that is replaced; every client's write is acknowledged in the end."""
    with system.scenario("rolling restart", terms_max=4) as scenario:
        scenario.fault("restart", *system.kube.pods(system.release))
        system.kube.kubectl("rollout", "restart", f"statefulset/{system.name}")
        roll_out(system)
        scenario.recovered(within_s=30)
    assert scenario.recording.verdict.unknown == 0


def test_a_rolling_restart_refuses_no_connection_through_the_service(system: System) -> None:
    """kube-proxy learns a moment later than a pod that it stops: a closed port fails writes that are not retried.

    A write may meet the moment of a hand-over: then it is answered, and was certainly not done.
    """
    system.ensure()
    url = f"http://{system.name}.{system.kube.namespace}.svc.cluster.local:8001"
    with unretried_writes(system.kube, url, "unretried") as failures:
        system.kube.kubectl("rollout", "restart", f"statefulset/{system.name}")
        roll_out(system)
    lost = [failure for failure in failures if '"outcome":"refused"' not in failure]
    assert not lost, "\n".join(lost[:20])


def test_a_version_that_dies_after_a_while_replaces_one_pod_only(system: System) -> None:
    """It is ready for a few seconds each time: without minReadySeconds it would take the place of all pods."""
    with system.scenario("a version that dies, then rollback", terms_max=4) as scenario:
        pods = system.kube.pods(system.release)
        scenario.fault("a version that dies", *pods)
        dying = {
            "name": "dies",
            "image": system.image,
            "command": ["sleep", "10"],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        system.install(sidecars=[dying])
        last = system.pod(2)

        def died_twice() -> bool | str:
            pod = system.kube.pods(system.release).get(last)
            statuses = (pod.status.container_statuses or []) if pod is not None else []
            counts = {status.name: status.restart_count for status in statuses}
            return counts.get("dies", 0) >= 2 or f"restarts {counts}"

        eventually("the new version has died twice", died_twice, 180)
        after = system.kube.pods(system.release)
        for name in set(pods) - {last}:
            assert identity(after[name]) == identity(pods[name]), f"{name} was replaced as well"
        system.kube.helm("rollback", system.release)
        roll_out(system)
        scenario.recovered(within_s=30)


def test_a_bad_image_stops_at_its_first_pod_and_a_rollback_heals(system: System) -> None:
    with system.scenario("bad image, then rollback", terms_max=4) as scenario:
        scenario.fault("bad image", *system.kube.pods(system.release))
        repository, _, tag = system.image.rpartition(":")
        system.install(image={"repository": repository, "tag": "no-such-tag", "pullPolicy": "Never"})

        def first_pod_is_stuck() -> bool | str:
            pods = system.kube.pods(system.release)
            unready = sorted(name for name, pod in pods.items() if not is_ready(pod))
            images = {name: pod.spec.containers[0].image for name, pod in pods.items()}
            stuck = [name for name, image in images.items() if image.endswith("no-such-tag")]
            return (len(pods) == 3 and stuck == unready and len(stuck) == 1) or f"unready {unready}, of the bad {stuck}"

        eventually("one pod has the bad image", first_pod_is_stuck, 120)
        scenario.recovered(within_s=20)
        system.kube.helm("rollback", system.release)
        # With podManagementPolicy OrderedReady a human would have to delete the stuck pod now.
        roll_out(system)
        assert all(pod.spec.containers[0].image.endswith(tag) for pod in system.kube.pods(system.release).values())
