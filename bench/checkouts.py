"""Versions of Kvorum to compare: a commit, exported into a folder of its own, or the working tree.

Each version runs its own ``python -m kvorum``, with its own ``service`` folder first on the module path. Both use this
environment if it holds exactly what the version's ``requirements.lock`` pins; a version with other pins gets an
environment of its own under ``bench/out``, which later runs use again.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from types import FrameType

import msgspec

from bench.processes import BenchError

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "out"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
PROBE = """
import platform, sysconfig, kvorum
optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
print(kvorum.__file__, kvorum.__version__, sep="\\n")
print(platform.python_version(), "(an optimized build)" if optimized else "(not an optimized build)")
"""


class Checkout(msgspec.Struct, frozen=True):
    """One version, ready to run."""

    label: str
    """``base`` or ``head``."""
    revision: str
    """The commit, and whether uncommitted changes come on top."""
    folder: str
    """The root of its files."""
    python: str
    """The interpreter of its environment."""
    imported: str
    """The file from which this interpreter, in this environment, imports ``kvorum``; under ``folder``."""
    version: str
    """Kvorum's own version."""
    python_version: str
    """And whether the interpreter was built with ``--enable-optimizations``, which matters."""

    @property
    def service(self) -> str:
        """The folder that holds the package ``kvorum``."""
        return f"{self.folder}/service"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables under which this version's code is imported."""
        return _environment(self.service)

    @property
    def command(self) -> list[str]:
        """What runs this version's ``kvorum`` command."""
        return [self.python, "-m", "kvorum"]

    def __str__(self) -> str:
        return f"{self.label}: {self.revision}, Kvorum {self.version}, Python {self.python_version}, {self.imported}"


def check_out(label: str, commit: str | None, scratch: Path) -> Checkout:
    """Prepare a version and prove which code it runs.

    Args:
        label: what the figures call it.
        commit: what git calls it; None: the working tree.
        scratch: an existing folder, removed by the caller; a commit's files go into ``scratch/label``.

    Raises:
        BenchError: there is no such commit, or another version's code would be imported.
    """
    folder = ROOT if commit is None else _export(commit, scratch / label)
    python = _python_for(folder / "requirements.lock")
    service = folder / "service"
    probe = [python, "-c", PROBE]
    done = subprocess.run(probe, capture_output=True, text=True, check=False, env=_environment(str(service)))
    if done.returncode != 0:
        raise BenchError(f"{label}: kvorum cannot be imported: {done.stderr.strip()}")
    imported, version, python_version = done.stdout.splitlines()
    if not Path(imported).resolve().is_relative_to(service.resolve()):
        raise BenchError(f"{label}: kvorum is imported from {imported}, not from {service}")
    return Checkout(label, _revision(commit), str(folder), python, imported, version, python_version)


def end_by_interrupt() -> None:
    """Make SIGTERM and SIGHUP raise ``KeyboardInterrupt`` as SIGINT does; a second signal does not cut the clean-up."""
    for number in _ENDING:
        signal.signal(number, _interrupt)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _environment(service: str) -> dict[str, str]:
    # PYTHONPATH precedes the site-packages, where the working tree may be installed; the current folder must not.
    return {**os.environ, "PYTHONPATH": service, "PYTHONSAFEPATH": "1"}


def _export(commit: str, folder: Path) -> Path:
    """Write a commit's files into a new folder. A git worktree would leave its registration behind after SIGKILL."""
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", _full(commit)))) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _full(commit: str) -> str:
    return _git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()


def _revision(commit: str | None) -> str:
    short = _git("rev-parse", "--short", _full(commit or "HEAD")).decode().strip()
    if commit is not None:
        return short
    changed = bool(_git("status", "--porcelain", "--", "service", "requirements.lock").strip())
    return f"the working tree at {short}" + (" with uncommitted changes" if changed else "")


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"git {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def _python_for(lock: Path) -> str:
    """Return an interpreter whose environment holds what a lock file pins: ours if it does, else one made for it."""
    text = lock.read_text()
    if all(_installed(name) == version for name, version in PIN.findall(text)):
        return sys.executable
    folder = OUT / "environments" / hashlib.sha256(text.encode()).hexdigest()[:12]
    python, complete = folder / "bin" / "python", folder / ".installed"
    if not complete.exists():
        print(f"installing other dependencies of {lock} into {folder}", file=sys.stderr, flush=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes"]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [*install, "-r", str(lock)]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
        complete.touch()
    return str(python)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
