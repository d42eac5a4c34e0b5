"""Volumes that are lost, and volumes that outlive the release."""

from __future__ import annotations

import pytest
from e2e.kube import eventually
from e2e.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def incarnations(system: System) -> dict[str, str]:
    return {name: status["id"] for name, status in system.statuses().items()}


@pytest.mark.smoke
@pytest.mark.parametrize("whose", ["follower", "leader"])
def test_a_lost_volume_heals_without_a_human(system: System, whose: str) -> None:
    with system.scenario(f"lose the volume of the {whose}", terms_max=2) as scenario:
        before = incarnations(system)
        pod = system.leader() if whose == "leader" else system.follower()
        scenario.fault("delete claim and pod", pod)
        system.kube.delete_claim(f"data-{pod}")
        system.kube.delete_pod(pod)
        scenario.recovered(within_s=20)
        system.wait_ready(3)
        eventually("a new incarnation is a voter", lambda: pod in incarnations(system), 60)
        system.wait_ready(3)
    after = incarnations(system)
    assert after[pod] != before[pod], "the volume survived: the scenario shows nothing"
    assert {name: node for name, node in after.items() if name != pod} == {
        name: node for name, node in before.items() if name != pod
    }


def test_a_release_comes_back_on_its_volumes(system: System) -> None:
    with system.scenario("uninstall, and install on the kept volumes", terms_max=10) as scenario:
        before = incarnations(system)
        scenario.fault("uninstall", *before)
        system.uninstall(claims=False)
        system.install()
        scenario.recovered(within_s=180)
        system.wait_ready(3)
    assert incarnations(system) == before, "the data is that of before, and so are the nodes"
