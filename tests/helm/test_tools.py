"""What `make image`, `make kind-up` and `make e2e` say on a machine that lacks something: one line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")
VARIABLES = {
    "KIND_CLUSTER": "kvorum-e2e",
    "KUBE_CONTEXT": "kind-kvorum-e2e",
    "IMAGE": "kvorum",
    "TAG": "t",
    "VERSION": "v",
    "BASE_IMAGE": "python",
    "DOCKER_BUILD_FLAGS": "--network host",
    "KEEP": "",
}

pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not installed")


def run(command: str, programs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script with nothing but these programs on the PATH."""
    assert BASH is not None
    return subprocess.run(
        [BASH, str(ROOT / "deploy" / "kind" / "run"), command],
        env={**VARIABLES, **variables, "PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def install(folder: Path, name: str, script: str = "exit 0") -> None:
    """Make a program that notes how it was called."""
    path = folder / name
    path.write_text(f'#!{BASH}\necho "{name} $*" >> "{folder}/calls"\n{script}\n')
    path.chmod(0o755)


def calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("image", "image: this needs docker, and there is no docker on the PATH\n"),
        ("up", "kind: this needs docker kind kubectl, and there is no docker kind kubectl on the PATH\n"),
        ("load", "kind: this needs docker kind, and there is no docker kind on the PATH\n"),
        ("down", "kind: this needs docker kind, and there is no docker kind on the PATH\n"),
        ("fit", "e2e: this needs docker kind helm kubectl, and there is no docker kind helm kubectl on the PATH\n"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, command: str, says: str) -> None:
    result = run(command, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", says)


def test_only_what_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("docker", "kubectl"):
        install(tmp_path, name)
    result = run("fit", tmp_path)
    assert result.stderr == "e2e: this needs docker kind helm kubectl, and there is no kind helm on the PATH\n"


def test_a_docker_that_does_not_answer_is_said_in_one_line(tmp_path: Path) -> None:
    install(tmp_path, "docker", "exit 1")
    result = run("image", tmp_path)
    assert result.returncode == 1
    assert result.stderr == "image: docker is installed, but its daemon does not answer\n"


@pytest.mark.parametrize(
    ("context", "says"),
    [
        ("prod", "e2e: context prod is no kind cluster"),
        ("kind-mine", "e2e: context kind-mine is not that of cluster kvorum-e2e; say KIND_CLUSTER=mine instead"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "e2e"])
def test_another_cluster_than_the_one_that_would_be_made_is_refused_before_anything_is_made(
    tmp_path: Path, context: str, says: str, command: str
) -> None:
    for name in ("docker", "kind", "helm", "kubectl"):
        install(tmp_path, name)
    result = run(command, tmp_path, KUBE_CONTEXT=context)
    assert result.returncode == 1
    assert says.removeprefix("e2e: ") in result.stderr
    assert result.stderr.count("\n") == 1
    assert calls(tmp_path) == ["docker info"]


def test_an_image_is_built_once_for_each_tag(tmp_path: Path) -> None:
    built_file = tmp_path / "built"
    inspect = f'[ "$1" = image ] && [ ! -e "{built_file}" ] && exit 1'
    install(tmp_path, "docker", f'{inspect}\n[ "$1" = build ] && : > "{built_file}"\nexit 0')
    install(tmp_path, "git", "echo 0123abc")
    for _ in range(2):
        result = run("image", tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout == "image: kvorum:t, also as kvorum:v, which the chart takes unless it is told another\n"
    built = [call for call in calls(tmp_path) if call.startswith("docker build")]
    assert built == [
        "docker build -q --network host --build-arg BASE_IMAGE=python --build-arg REVISION=0123abc -t kvorum:t ."
    ]
