"""Pods that are replaced by an upgrade, a good one and a bad one."""

from __future__ import annotations

import pytest
from e2e.kube import eventually
from e2e.system import System, is_ready

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
