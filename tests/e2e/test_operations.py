"""docs/operations, each page tried as written: its commands are pasted into a shell, in order."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from e2e.kube import eventually
from e2e.system import System

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
    paste(system, "upgrade.md")
    system.ensure()
    assert get(system, kept[0]) == kept[1]


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
