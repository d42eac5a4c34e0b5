"""`make setup` on machines that lack something: it says what is wrong, and changes nothing beside its folder."""

from __future__ import annotations

import ensurepip
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
WITHOUT_ENSUREPIP = """#!/bin/bash
# A Debian without python3-venv: ensurepip is missing.
if [ "$1 $2" = "-m venv" ] && [ "$3" != --without-pip ] || [ "$1 $2" = "-m virtualenv" ]; then
  echo "The virtual environment was not created successfully because ensurepip is not available."
  exit 1
fi
exec {python} "$@"
"""


def _executable(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def wheel() -> Path:
    """Return pip's wheel that Python brings along."""
    return next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))


@pytest.fixture
def index(wheel: Path, tmp_path: Path) -> Iterator[str]:
    """Serve a package index that has this one file."""
    (tmp_path / "index" / "pip").mkdir(parents=True)
    (tmp_path / "index" / "pip" / "index.html").write_text(f'<a href="../files/{wheel.name}#sha256=00">pip</a>')
    (tmp_path / "index" / "files").mkdir()
    (tmp_path / "index" / "files" / wheel.name).write_bytes(wheel.read_bytes())

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "index"))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def setup_venv(folder: Path, python: str, index: str) -> tuple[int, str, list[str]]:
    """Run it with a package manager that only records what it was told; return status, errors and that record."""
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    record = folder / "installed"
    for name in ("apt-get", "sudo"):
        _executable(binaries / name, f'#!/bin/sh\necho "{name} $*" >> {record}\n')
    result = subprocess.run(
        ["bash", str(folder / "deploy" / "setup-venv"), python, str(folder / "venv")],
        cwd=folder,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PIP_INDEX_URL": index},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return result.returncode, result.stderr, record.read_text().splitlines() if record.exists() else []


def _copy_deploy(folder: Path, wheel: Path) -> None:
    """Copy the scripts, and have them expect this wheel."""
    (folder / "deploy").mkdir()
    for name in ("setup-venv", "fetch_pip.py"):
        text = (DEPLOY / name).read_text()
        if name == "fetch_pip.py":
            text = text.replace(fetch_pip.VERSION, wheel.name.split("-")[1])
            text = text.replace(fetch_pip.SHA256, hashlib.sha256(wheel.read_bytes()).hexdigest())
        (folder / "deploy" / name).write_text(text)


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_pip", DEPLOY / "fetch_pip.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fetch_pip = _load()


def test_a_python_without_ensurepip_gets_pip_and_no_package_is_installed(
    tmp_path: Path, wheel: Path, index: str
) -> None:
    _copy_deploy(tmp_path, wheel)
    python = _executable(tmp_path / "python", WITHOUT_ENSUREPIP.format(python=sys.executable))
    # Nothing is locked, and there is no project: only the environment is of interest.
    (tmp_path / "requirements-dev.lock").write_text("")
    _, errors, installed = setup_venv(tmp_path, python, index)
    assert "making" in errors and installed == []
    version = [str(tmp_path / "venv" / "bin" / "pip"), "--version"]
    output = subprocess.run(version, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.startswith(f"pip {wheel.name.split('-')[1]} ")


def test_what_cannot_be_made_shows_the_real_errors_and_what_to_run(tmp_path: Path, wheel: Path) -> None:
    _copy_deploy(tmp_path, wheel)
    python = _executable(tmp_path / "python", WITHOUT_ENSUREPIP.format(python=sys.executable))
    status, errors, installed = setup_venv(tmp_path, python, "http://127.0.0.1:1/simple")
    assert (status, installed) == (1, [])
    assert "ensurepip is not available" in errors
    assert "cannot be fetched from http://127.0.0.1:1/simple/pip/: " in errors and "refused" in errors
    assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in errors.splitlines()[-1]
    assert not (tmp_path / "venv").exists()


def test_a_wheel_with_another_hash_is_not_used(tmp_path: Path, wheel: Path, index: str) -> None:
    with pytest.raises(ValueError, match="another hash"):
        fetch_pip.fetch(f"{index}/pip/", wheel.name, "0" * 64, str(tmp_path))
    with pytest.raises(ValueError, match="is not there"):
        fetch_pip.fetch(f"{index}/pip/", "pip-0-py3-none-any.whl", "0" * 64, str(tmp_path))
    assert not list(tmp_path.glob("*.whl"))
