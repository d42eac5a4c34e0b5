"""One cluster a release: whichever volumes are lost, copied or kept, no second one begins by itself."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2e.kube import eventually, run
from e2e.system import System
from e2e.test_operations import ROOT, commands_of, get, paste, put, run_commands

from kvorum.cluster.record import record_name

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PAGE = "cluster-id.md"
CHANCE_S = 15
"""In which what must not happen gets its chance."""


@pytest.fixture
def kept(system: System) -> Iterator[tuple[str, str]]:
    """A key that must be there at the end, and the id of its cluster."""
    system.ensure()
    value = str(time.time_ns())
    put(system, "guarded", value)
    yield value, cluster_of(system)
    system.histories.clear()


def config_map(system: System) -> dict[str, Any] | None:
    text = system.kube.kubectl("get", "configmap", record_name(system.name), "--ignore-not-found", "-o", "json")
    return json.loads(text) if text else None


def recorded(system: System) -> str | None:
    found = config_map(system)
    return found["data"]["cluster-id"] if found else None


def cluster_of(system: System) -> str:
    clusters = {status["cluster_id"] for status in system.statuses().values()}
    assert len(clusters) == 1, clusters
    return str(next(iter(clusters)))


def lose_first_volume_and_scale_to_one(
    system: System, meanwhile: Callable[[], object] = lambda: None, **values: Any
) -> None:
    """Do so at once, and let the pod come back only when its configuration says that it is alone, and ``meanwhile``."""
    pod = system.pod(0)
    system.kube.kubectl("patch", "pod", pod, "--type=merge", "-p", '{"metadata":{"finalizers":["kvorum.io/held"]}}')
    try:
        system.kube.kubectl("delete", "pvc", f"data-{pod}", "--wait=false")
        system.kube.kubectl("delete", "pod", pod, "--wait=false")
        system.install(replicaCount=1, **values)
        meanwhile()
    finally:
        system.kube.kubectl("patch", "pod", pod, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


def no_other_cluster_begins(system: System, cluster: str) -> None:
    """Look for a while, once the first pod is there again, at what every node that answers says."""
    eventually("the first pod answers", lambda: system.pod(0) in system.statuses(), 120)
    deadline = time.monotonic() + CHANCE_S
    while time.monotonic() < deadline:
        clusters = {status["cluster_id"] for status in system.statuses().values()} - {""}
        assert clusters <= {cluster}, "a second cluster began"
        time.sleep(1)


def all_is_back(system: System, kept: tuple[str, str]) -> None:
    system.wait_ready(3)
    system.wait_settled(3)
    assert cluster_of(system) == kept[1]
    assert get(system, "guarded") == kept[0]


def test_a_lost_first_volume_and_a_scale_in_to_one_begin_no_second_cluster(
    system: System, kept: tuple[str, str]
) -> None:
    lose_first_volume_and_scale_to_one(system)
    no_other_cluster_begins(system, kept[1])
    system.install(replicaCount=3)
    all_is_back(system, kept)


def test_a_stopped_release_that_starts_as_one_without_its_first_volume_waits_for_the_others(
    system: System, kept: tuple[str, str]
) -> None:
    system.kube.scale(system.name, 0)
    eventually("all pods are gone", lambda: not system.kube.pods(system.release), 120)
    system.kube.delete_claim(f"data-{system.pod(0)}")
    system.install(replicaCount=1)
    no_other_cluster_begins(system, kept[1])
    log = system.kube.kubectl("logs", system.pod(0))
    assert f"says that this release holds cluster {kept[1]}" in log
    system.install(replicaCount=3)
    all_is_back(system, kept)


def lose_all_volumes(system: System) -> None:
    claims = system.kube.claims(system.release)
    uids = {pod.metadata.uid for pod in system.kube.pods(system.release).values()}
    system.kube.kubectl("delete", "pvc", *claims, "--wait=false")
    for name in system.kube.pods(system.release):
        system.kube.delete_pod(name, grace_s=0)

    def others_are_there() -> bool:
        pods = system.kube.pods(system.release)
        return len(pods) == 3 and not uids & {pod.metadata.uid for pod in pods.values()}

    eventually("new pods are there", others_are_there, 120)
    eventually("all of them answer", lambda: len(system.statuses()) == 3, 120)


def test_all_volumes_lost_is_no_new_cluster_until_the_operator_gives_the_old_one_up(
    system: System, kept: tuple[str, str]
) -> None:
    if system.release != "kv":
        pytest.skip("the pages assume a release named kv")
    lose_all_volumes(system)
    no_other_cluster_begins(system, kept[1])
    assert kept[1] in system.kube.kubectl("logs", system.pod(0))
    assert recorded(system) == kept[1]
    before = {name: pod.metadata.uid for name, pod in system.kube.pods(system.release).items()}
    paste(system, PAGE, section="Begin an empty cluster")
    system.wait_settled(3)
    assert cluster_of(system) != kept[1]
    assert recorded(system) == cluster_of(system)
    assert before == {name: pod.metadata.uid for name, pod in system.kube.pods(system.release).items()}


def test_all_volumes_lost_right_after_the_stateful_set_was_replaced_begin_nothing(
    system: System, kept: tuple[str, str]
) -> None:
    """As a resize replaces it, and before the leader looks for the new one."""
    system.kube.kubectl("delete", "statefulset", system.name, "--cascade=orphan")
    system.install(persistence={"size": "16Gi"})
    lose_all_volumes(system)
    no_other_cluster_begins(system, kept[1])
    assert recorded(system) == kept[1]
    system.uninstall(claims=True)
    eventually("the record is gone", lambda: config_map(system) is None, 60)
    system.install()
    system.wait_ready(3)
    system.wait_settled(3)
    assert cluster_of(system) != kept[1]


def test_all_volumes_lost_and_a_backup_restored_as_it_is_written(system: System, kept: tuple[str, str]) -> None:
    if system.release != "kv":
        pytest.skip("the pages assume a release named kv")
    backup = ROOT / "kv.backup"
    try:
        paste(system, "back-up.md", section="Save")
        lose_all_volumes(system)
        paste(system, PAGE, section="All volumes are lost")
    finally:
        backup.unlink(missing_ok=True)
    system.wait_ready(3)
    system.wait_settled(3)
    assert get(system, "guarded") == kept[0]
    eventually("the new id is recorded", lambda: recorded(system) == cluster_of(system), 60)
    assert recorded(system) != kept[1]


@pytest.mark.smoke
def test_a_release_without_a_record_gets_one_that_lives_as_long_as_the_release_or_its_claims(
    system: System, kept: tuple[str, str]
) -> None:
    system.kube.kubectl("delete", "configmap", record_name(system.name))
    eventually("the leader records its cluster", lambda: recorded(system) == kept[1], 60)
    found = config_map(system)
    assert found is not None
    owners = {(owner["kind"], owner["name"]) for owner in found["metadata"]["ownerReferences"]}
    claims = {("PersistentVolumeClaim", name) for name in system.kube.claims(system.release)}
    assert owners >= claims | {("StatefulSet", system.name), ("Service", f"{system.name}-headless")}
    assert "labels" not in found["metadata"]

    system.uninstall(claims=False)
    assert recorded(system) == kept[1]
    system.install()
    all_is_back(system, kept)

    system.uninstall(claims=True)
    eventually("the record is gone", lambda: config_map(system) is None, 60)
    system.install()
    system.wait_ready(3)
    assert cluster_of(system) != kept[1]


def test_without_the_api_server_a_release_begins_and_its_pods_are_asked_before_another_does(system: System) -> None:
    system.uninstall(claims=True)
    system.histories.clear()
    values = {"kubernetesApi": {"enabled": False}, "leaderService": {"enabled": False}}
    system.install(**values)
    try:
        system.wait_ready(3)
        system.wait_settled(3)
        assert config_map(system) is None
        cluster = cluster_of(system)
        value = str(time.time_ns())
        put(system, "guarded", value)

        def the_others_run_on() -> None:
            """The file that the first pod will find still says one: in this mode kubectl does not change it."""
            system.kube.scale(system.name, 3)
            others = {system.pod(1), system.pod(2)}

            def lead() -> bool:
                statuses = system.statuses()
                return set(statuses) == others and len({s["leader"] for s in statuses.values()} - {None}) == 1

            eventually("the others have a leader", lead, 180)

        lose_first_volume_and_scale_to_one(system, the_others_run_on, **values)
        no_other_cluster_begins(system, cluster)
        system.install(**values)
        all_is_back(system, (value, cluster))
    finally:
        system.uninstall(claims=True)
        system.histories.clear()
        system.install()
        system.wait_ready(3)


COPIER: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "copier"},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-kv-0"}}],
        "containers": [
            {
                "name": "copier",
                "command": ["sleep", "600"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data-kv-0", "labels": {"app.kubernetes.io/instance": "kv", "app.kubernetes.io/name": "kv"}},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


def test_a_copy_of_a_volume_in_another_namespace_waits_until_it_is_a_cluster_of_its_own(
    system: System, kept: tuple[str, str]
) -> None:
    if system.release != "kv":
        pytest.skip("the pages assume a release named kv")
    kube, other = system.kube, f"{system.kube.namespace}-copy"
    there = [part if part != kube.namespace else other for part in kube.kubectl_command()]
    repository, _, tag = system.image.rpartition(":")
    COPIER["spec"]["containers"][0]["image"] = system.image
    kube.scale(system.name, 0)
    eventually("all pods are gone", lambda: not kube.pods(system.release), 120)
    run([*there, "create", "namespace", other])
    try:
        run([*there, "apply", "-f", "-"], stdin=json.dumps(CLAIM))
        for where in (kube.kubectl_command(), there):
            run([*where, "apply", "-f", "-"], stdin=json.dumps(COPIER))
            run([*where, "wait", "--for=condition=Ready", "pod/copier", "--timeout=120s"], timeout_s=130)
        source, target = kube.kubectl_command("exec", "copier", "--"), [*there, "exec", "-i", "copier", "--"]
        data = subprocess.run(
            [*source, "tar", "c", "-C", "/data", "kvorum"], capture_output=True, timeout=120, check=True
        ).stdout
        subprocess.run([*target, "tar", "x", "-C", "/data"], input=data, timeout=120, check=True)
        for where in (kube.kubectl_command(), there):
            run([*where, "delete", "pod", "copier"])
        kube.scale(system.name, 3)

        values = f"image.repository={repository},image.tag={tag},replicaCount=1,persistence.size=1Gi"
        run_commands(system, [f"helm install kv deploy/helm --set {values}"], other)

        def says_why() -> bool:
            return f"belongs to {kube.namespace}/kv, and this is {other}/kv" in run(
                [*there, "logs", "kv-0", "--ignore-errors"], check=False
            )

        eventually("the copy says why it waits", says_why, 120)
        run_commands(system, commands_of(ROOT / "docs" / "operations" / PAGE, "A copy in another namespace"), other)
        assert run([*there, "exec", "kv-0", "--", "kv", "get", "-o", "raw", "guarded"]) == kept[0]
        status = json.loads(run([*there, "exec", "kv-0", "--", "kv", "status", "-o", "json"]))
        assert kept[1] not in json.dumps(status)
    finally:
        run([*there, "delete", "namespace", other, "--wait=false"])
    all_is_back(system, kept)
