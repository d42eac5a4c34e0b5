"""Installing: what a new user types, and what the API server thinks of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e.kube import run
from e2e.system import CHART, System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.mark.smoke
def test_three_nodes_are_one_cluster_and_helm_test_passes(system: System) -> None:
    system.ensure()
    output = system.kube.helm("test", system.release, "--timeout", "2m")
    assert "Phase:          Succeeded" in output


@pytest.mark.smoke
def test_the_commands_of_the_notes_work_when_pasted(system: System, tmp_path: Path) -> None:
    system.ensure()
    notes = system.kube.helm("get", "notes", system.release)
    commands = [line.strip() for line in notes.splitlines() if line.startswith("  ")]
    assert len(commands) >= 10
    # What changes the cluster has scenarios of its own; helm test ran above.
    pasted = [c for c in commands if " scale " not in c and not c.startswith("helm")]
    script = tmp_path / "notes.sh"
    # Job control, as at a prompt, for `kill %?port-forward`; our context instead of the current one.
    context = system.kube.context
    script.write_text(
        "set -m\n"
        f'kubectl() {{ command kubectl --context {context} "$@"; }}\n'
        + "\n".join(f"{c} || exit 1" for c in _joined(pasted))
    )
    result = subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "hello again" in result.stdout


def _joined(commands: list[str]) -> list[str]:
    """Return the commands; one that goes into the background cannot be followed by ``||``."""
    return [f"{{ {command} }}" if command.endswith("&") else command for command in commands]


def test_the_api_server_accepts_every_object_of_every_value_set(system: System) -> None:
    """The strictest schema check there is: a dry run on a real API server."""
    from helm.test_chart import VALUE_SETS

    known = run(system.kube.kubectl_command("api-resources", "-o", "name"))
    for name, values in VALUE_SETS.items():
        rendered = run(
            [
                "helm",
                "template",
                "dry",
                str(CHART),
                "-n",
                system.kube.namespace,
                "--values",
                "-",
                "--kube-version",
                "1.34",
            ],
            stdin=json.dumps(values),
        )
        objects = _without_unknown_kinds(rendered, known)
        # --validate=strict refuses unknown and duplicate fields.
        command = system.kube.kubectl_command("apply", "--dry-run=server", "--validate=strict", "-f", "-")
        result = subprocess.run(command, input=objects, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, f"{name}: {result.stderr}"
        # The namespace enforces Pod Security restricted; a template that would be refused is warned about.
        ours = [line for line in result.stderr.splitlines() if "PodSecurity" in line and "init" not in line]
        if name != "everything":
            assert ours == [], name


def _without_unknown_kinds(rendered: str, known: str) -> str:
    """Leave out the Prometheus operator's kinds where it is not installed."""
    import yaml

    documents: list[dict[str, Any]] = [document for document in yaml.safe_load_all(rendered) if document]
    kept = [d for d in documents if not d["apiVersion"].startswith("monitoring.coreos.com/") or "podmonitors" in known]
    return yaml.safe_dump_all(kept)


def test_the_pods_role_allows_nothing_else(system: System) -> None:
    system.ensure()
    account = f"system:serviceaccount:{system.kube.namespace}:{system.name}"

    def may(*what: str) -> bool:
        command = system.kube.kubectl_command("auth", "can-i", *what, "--as", account)
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip() == "yes"

    assert may("get", f"statefulsets.apps/{system.name}")
    assert may("patch", f"pods/{system.pod(0)}")
    assert may("create", "configmaps")
    assert may("get", f"configmaps/{system.name}-cluster-id")
    assert may("update", f"configmaps/{system.name}-cluster-id")
    assert may("get", f"persistentvolumeclaims/data-{system.pod(0)}")
    assert may("get", f"services/{system.name}-headless")
    assert not may("update", f"services/{system.name}-headless")
    assert not may("get", f"services/{system.name}")
    assert not may("get", f"configmaps/{system.name}-cluster")
    assert not may("delete", f"configmaps/{system.name}-cluster-id")
    assert not may("list", "persistentvolumeclaims")
    assert not may("delete", f"persistentvolumeclaims/data-{system.pod(0)}")
    assert not may("get", "statefulsets.apps/other")
    assert not may("list", "statefulsets.apps")
    assert not may("patch", "pods/other-0")
    assert not may("delete", f"pods/{system.pod(0)}")
    assert not may("get", "secrets")
    assert not may("update", f"statefulsets.apps/{system.name}")


def test_the_leader_and_nobody_else_is_labelled(system: System) -> None:
    system.ensure()
    leader = system.leader()

    def labelled() -> bool | str:
        pods = system.kube.pods(system.release)
        found = sorted(name for name, pod in pods.items() if pod.metadata.labels.get("kvorum.io/role") == "leader")
        return found == [leader] or f"{found}, not {leader}"

    from e2e.kube import eventually

    eventually("the leader's pod is labelled, and no other", labelled, 30)
