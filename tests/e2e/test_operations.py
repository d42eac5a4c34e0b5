"""docs/operations, each page tried as written: its commands are pasted into a shell, in order."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from e2e.kube import eventually
from e2e.recording import POD
from e2e.system import System, is_ready

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "operations"
_BLOCK = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""One with a language is not for Kubernetes: tests/documents runs it."""


def paste(system: System, page: str, *, section: str = "", leave_out: str = "") -> str:
    """Run every command of the page as a reader would, in our context and namespace; stop at the first that fails.

    Args:
        system: the release.
        page: the file's name.
        section: the heading of the only part to run; empty: all of it.
        leave_out: a regular expression for commands that are not for here.
    """
    return run_commands(system, commands_of(PAGES / page, section, leave_out), system.kube.namespace)


def commands_of(page: Path, section: str = "", leave_out: str = "") -> list[str]:
    """Return the commands of a page's code blocks, or of one of its sections; see :func:`paste`."""
    text = page.read_text()
    if section:
        text = next(part for part in text.split("\n## ") if part.startswith(section + "\n"))
    commands = [command for language, block in _BLOCK.findall(text) if not language for command in block.splitlines()]
    commands = [command for command in commands if command and not (leave_out and re.search(leave_out, command))]
    assert commands, f"{page} has no commands"
    return commands


def run_commands(system: System, commands: list[str], namespace: str) -> str:
    """Run commands in one shell, in our context and the namespace; return what they print."""
    context = system.kube.context
    tag = system.image.rpartition(":")[2]
    script = (
        f'kubectl() {{ command kubectl --context {context} -n {namespace} "$@"; }}\n'
        f'helm() {{ command helm --kube-context {context} -n {namespace} "$@"; }}\n'
        "set -e\n" + "\n".join(f"echo '+' {_quoted(command)}\n{command}{_tolerance(command)}" for command in commands)
    ).replace("$(deploy/image-tag)", tag)
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _tolerance(command: str) -> str:
    """`kv status` exits with 3 where nobody leads, and the reader goes on."""
    return " || [ $? -eq 3 ]" if command.endswith(" status") and " kv " in command else ""


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"


def put(system: System, key: str, value: str) -> None:
    system.kube.exec(system.pod(0), "kv", "--timeout", "30", "put", key, value)


def get(system: System, key: str) -> str:
    return system.kube.exec(system.pod(0), "kv", "--timeout", "30", "get", "-o", "raw", key)


@pytest.fixture
def kept(system: System) -> tuple[str, str]:
    """A key that must be there at the end, whatever the page does."""
    if system.release != "kv":
        pytest.skip("the pages assume a release named kv")
    system.ensure()
    key, value = "operations", str(time.time_ns())
    put(system, key, value)
    return key, value


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("page", "section"),
    [(ROOT / "README.md", "On Kubernetes"), (PAGES / "install.md", "On your own machine")],
    ids=["README", "install.md"],
)
def test_a_first_install_as_it_is_written(system: System, page: Path, section: str) -> None:
    """In a namespace of its own; the image is in the cluster, as `make kind-load` leaves it."""
    if not system.kube.is_kind or system.image.partition(":")[0] != "kvorum":
        pytest.skip("needs the image that make kind-load puts into a kind cluster")
    namespace = f"{system.kube.namespace}-first"
    system.kube.kubectl("create", "namespace", namespace)
    try:
        commands = [c.partition(" #")[0] for c in commands_of(page, section, leave_out="^make ")]
        commands = [c.replace(" --kube-context kind-kvorum-e2e", "") for c in commands]
        output = run_commands(system, commands, namespace)
        assert "hello" in output.split("kv get greeting")[-1]
    finally:
        system.kube.kubectl("delete", "namespace", namespace, timeout_s=180)


def test_upgrade(system: System, kept: tuple[str, str]) -> None:
    worked = json.loads(system.kube.helm("history", system.release, "-o", "json"))[-1]["revision"]
    commands = commands_of(PAGES / "upgrade.md")
    numbered = [command.replace("REVISION", str(worked)) for command in commands]
    assert numbered != commands
    run_commands(system, numbered, system.kube.namespace)
    system.ensure()
    assert get(system, kept[0]) == kept[1]


def test_a_cluster_that_is_down_everywhere_is_repaired_as_its_page_says(system: System, kept: tuple[str, str]) -> None:
    """No node accepts these options. An upgrade alone replaces one pod, which waits for the others for ever.

    Not every kind enforces limits of memory, which the page takes as its example.
    """
    system.install(config={"heartbeat_ms": 1000})
    for name in system.kube.pods(system.release):
        system.kube.delete_pod(name)

    def all_fail() -> bool | str:
        pods = system.kube.pods(system.release).values()
        counts = {
            pod.metadata.name: sum(each.restart_count for each in pod.status.container_statuses or []) for pod in pods
        }
        return (len(counts) == 3 and all(counts.values())) or f"restarts {counts}"

    eventually("no node starts", all_fail, 180)
    commands = commands_of(PAGES / "does-not-start.md")
    mended = [c.replace("resources.limits.memory=2Gi", "config.heartbeat_ms=100") for c in commands]
    assert mended != commands
    upgrade, delete = (next(i for i, c in enumerate(mended) if word in c) for word in ("helm upgrade", "delete pod"))
    run_commands(system, mended[:delete], system.kube.namespace)
    assert upgrade < delete

    def one_has_the_new_value() -> bool | str:
        pods = system.kube.pods(system.release)
        revisions = [pod.metadata.labels["controller-revision-hash"] for pod in pods.values()]
        return (len(pods) == 3 and len(set(revisions)) == 2) or f"revisions {revisions}"

    eventually("the upgrade has replaced a pod", one_has_the_new_value, 120)
    assert not any(is_ready(pod) for pod in system.kube.pods(system.release).values()), "an upgrade was enough"
    run_commands(system, mended[delete:], system.kube.namespace)
    assert get(system, kept[0]) == kept[1]
    system.install()
    system.wait_ready(3)


def test_a_wrong_cluster_domain_is_named_in_the_log_and_repaired_as_the_page_says(system: System) -> None:
    if system.release != "kv":
        pytest.skip("the pages assume a release named kv")
    system.ensure()
    system.uninstall(claims=True)
    system.histories.clear()
    system.install(clusterDomain="cluster.wrong")
    wrong = "kv-headless.*svc.cluster.wrong:9001/raft/v1/hello: there is no such name \\(NXDOMAIN\\)"

    def says_why() -> bool | str:
        logs = [system.kube.kubectl("logs", system.pod(i), "--tail=50", check=False) for i in range(3)]
        return all(re.search(wrong, log) for log in logs) or logs[0][-300:]

    eventually("each log names what does not exist", says_why, 120)
    commands = commands_of(PAGES / "does-not-start.md")
    mended = [c.replace("resources.limits.memory=2Gi", "clusterDomain=cluster.local") for c in commands]
    assert mended != commands
    run_commands(system, mended, system.kube.namespace)
    system.install()
    system.wait_ready(3)
    system.wait_settled(3)


def test_a_change_of_the_claims_is_refused_and_the_page_says_how(system: System, kept: tuple[str, str]) -> None:
    before = {name: pod.metadata.uid for name, pod in system.kube.pods(system.release).items()}
    for settings in ({"size": "16Gi"}, {"storageClass": "other"}, {"enabled": False}):
        with pytest.raises(AssertionError, match=r"docs/operations/resize\.md"):
            system.install(persistence=settings)
    system.install(persistence={"size": "8192Mi"})
    assert {name: pod.metadata.uid for name, pod in system.kube.pods(system.release).items()} == before

    paste(system, "resize.md")

    def size_of(ordinal: int) -> str:
        claim = system.kube.core.read_namespaced_persistent_volume_claim(
            f"data-{system.pod(ordinal)}", system.kube.namespace
        )
        return str(claim.spec.resources.requests["storage"])

    assert (size_of(0), size_of(2)) == ("8Gi", "16Gi")
    after = {name: pod.metadata.uid for name, pod in system.kube.pods(system.release).items()}
    assert {name for name in before if after[name] != before[name]} == {system.pod(2)}, "others were restarted"
    system.wait_settled(3)
    assert get(system, kept[0]) == kept[1]
    # The suite's own size again.
    system.kube.kubectl("delete", "statefulset", system.name, "--cascade=orphan")
    system.install()
    system.wait_ready(3)


def test_an_upgrade_does_not_undo_kubectl_scale(system: System, kept: tuple[str, str]) -> None:
    system.install()
    system.kube.scale(system.name, 1)
    system.wait_ready(1)
    with pytest.raises(AssertionError, match="was scaled to 1 since"):
        system.install()
    assert set(system.kube.pods(system.release)) == {system.pod(0)}
    system.install(replicaCount=None)
    assert system.kube.apps.read_namespaced_stateful_set(system.name, system.kube.namespace).spec.replicas == 1
    # Stopped as a whole: the number of its members is not forgotten.
    system.kube.scale(system.name, 0)
    eventually("the pod is gone", lambda: not system.kube.pods(system.release), 120)
    system.install(replicaCount=None)
    members = system.kube.core.read_namespaced_config_map(f"{system.name}-cluster", system.kube.namespace)
    assert members.data["kvorum.toml"].strip() == "replicas = 1"
    system.kube.scale(system.name, 1)
    system.wait_ready(1)
    system.install(replicaCount=3)
    system.wait_ready(3)
    system.wait_settled(3)
    assert get(system, kept[0]) == kept[1]


def test_a_stale_label_of_a_leader_is_advice_that_redirects(system: System, kept: tuple[str, str]) -> None:
    """The Role is gone, and the leadership moves: nobody can change the labels."""
    old = system.leader()
    service = f"http://{system.name}-leader:8001"

    def labelled() -> list[str]:
        pods = system.kube.pods(system.release).items()
        return [name for name, pod in pods if (pod.metadata.labels or {}).get("kvorum.io/role") == "leader"]

    eventually("the leader is labelled", lambda: labelled() == [old], 60)
    role = system.kube.kubectl("get", "role", system.name, "-o", "json")
    system.kube.kubectl("delete", "role", system.name)
    try:
        system.kube.exec(old, "kv", "leader", "move", system.follower())
        new = system.leader()

        def says_so() -> bool:
            return "cannot label this pod" in system.kube.kubectl("logs", new, "--tail=50")

        eventually("the new leader says so", says_so, 60)
        assert labelled() == [old]
        system.kube.exec(POD, "kv", "--endpoints", service, "put", "through-a-stale-label", "done")
    finally:
        system.kube.kubectl("apply", "-f", "-", stdin=role)
    eventually("the labels are right again", lambda: labelled() == [new], 90)
    # A leader asks for the number of replicas more and more rarely while it is refused.
    for name in (new, old):
        log = system.kube.kubectl("logs", name)
        if "cannot read the desired replica count" in log:
            if system.leader() != name:
                system.kube.exec(name, "kv", "leader", "move", name)

            def reads_again(name: str = name) -> bool:
                return "can read the desired replica count again" in system.kube.kubectl("logs", name)

            eventually(f"{name} reads the number of replicas again", reads_again, 60)


def test_scale(system: System, kept: tuple[str, str]) -> None:
    output = paste(system, "scale.md")
    assert "membership" in output, "the page's command to see what the leader does shows nothing"
    system.ensure()
    assert get(system, kept[0]) == kept[1]


def test_lose_a_disk(system: System, kept: tuple[str, str]) -> None:
    paste(system, "lose-a-disk.md")
    system.wait_settled(3)
    assert get(system, kept[0]) == kept[1]


def test_lose_a_majority(system: System, kept: tuple[str, str]) -> None:
    """Two of three volumes are gone: nothing begins by itself, and the page brings everything back."""
    system.wait_settled(3)
    before = system.statuses()[system.pod(0)]["cluster_id"]
    for ordinal in (1, 2):
        system.kube.delete_claim(f"data-{system.pod(ordinal)}")
    for ordinal in (1, 2):
        system.kube.delete_pod(system.pod(ordinal), grace_s=0)
    eventually("the pods are back", lambda: len(system.statuses()) == 3, 120)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        clusters = {status["cluster_id"] for status in system.statuses().values()} - {""}
        assert clusters == {before}, "a second cluster began by itself"
        time.sleep(1)
    paste(system, "lose-a-majority.md")
    system.wait_ready(3)
    system.wait_settled(3)
    assert get(system, kept[0]) == kept[1]
    assert system.statuses()[system.pod(0)]["cluster_id"] != before


@pytest.mark.smoke
def test_back_up(system: System, kept: tuple[str, str]) -> None:
    """Everything is lost, claims and all; the page brings back what was saved, and nothing that came after."""
    before = system.statuses()[system.pod(0)]["cluster_id"]
    backup = ROOT / "kv.backup"
    try:
        paste(system, "back-up.md", section="Save")
        put(system, "after-the-backup", "lost")
        lost = system.statuses()[system.leader()]["revision"]
        system.uninstall(claims=True)
        system.histories.clear()
        paste(system, "back-up.md", section="Restore")
    finally:
        backup.unlink(missing_ok=True)
    system.wait_ready(3)
    system.wait_settled(3)
    assert get(system, kept[0]) == kept[1]
    status = system.statuses()[system.leader()]
    assert status["cluster_id"] != before
    assert status["revision"] > lost
    missing = system.kube.exec(system.pod(0), "sh", "-c", "kv get after-the-backup || echo status $?")
    assert missing.strip() == "status 1", missing
    # With the suite's own values again.
    system.install()
    system.wait_ready(3)


def test_uninstall(system: System, kept: tuple[str, str]) -> None:
    paste(system, "uninstall.md", leave_out="delete pvc")
    eventually("the pods are gone", lambda: not system.kube.pods(system.release), 120)
    system.install()
    system.wait_ready(3)
    assert get(system, kept[0]) == kept[1], "the claims were kept"
    paste(system, "uninstall.md")
    eventually("the claims are gone", lambda: not system.kube.claims(system.release), 60)
    system.histories.clear()
    system.install()
    system.wait_ready(3)
