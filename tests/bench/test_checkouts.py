"""A version under comparison runs its own code, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bench import checkouts
from bench.checkouts import ROOT, check_out
from bench.processes import BenchError, cpu_seconds

needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the git repository")


@needs_git
def test_a_commit_is_imported_from_its_exported_files_and_the_working_tree_from_here(tmp_path: Path) -> None:
    base, head = check_out("base", "HEAD", tmp_path), check_out("head", None, tmp_path)
    assert Path(base.imported).is_relative_to(tmp_path / "base" / "service")
    assert Path(head.imported).is_relative_to(ROOT / "service")
    assert base.revision in head.revision
    assert base.revision in str(base)
    assert base.imported in str(base)
    shown = subprocess.run([*base.command, "--help"], capture_output=True, text=True, env=base.environment, check=True)
    assert "serve" in shown.stdout


def test_code_of_another_version_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(_commit: str, folder: Path) -> Path:
        (folder / "service").mkdir(parents=True)
        (folder / "requirements.lock").write_text("")
        return folder

    monkeypatch.setattr(checkouts, "_export", export)
    with pytest.raises(BenchError, match=r"base: kvorum (is imported from|cannot be imported)"):
        check_out("base", "HEAD", tmp_path)


@needs_git
def test_an_unknown_commit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="git rev-parse"):
        check_out("base", "no-such-commit", tmp_path)


def test_our_environment_serves_a_version_with_our_pins_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"aiohttp": "3.1", "msgspec": "0.2"}
    commands: list[str] = []

    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        commands.append(" ".join(command))
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(checkouts, "_installed", installed.get)
    monkeypatch.setattr(checkouts, "OUT", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    lock = tmp_path / "requirements.lock"
    lock.write_text("aiohttp==3.1 \\\n    --hash=sha256:00\n    # via kvorum\nmsgspec==0.2 \\\n    --hash=sha256:11\n")
    assert checkouts._python_for(lock) == sys.executable
    assert commands == []

    lock.write_text("aiohttp==3.2 \\\n    --hash=sha256:00\n")
    own = checkouts._python_for(lock)
    assert own != sys.executable
    assert [command.split()[2] for command in commands] == ["venv", "pip"]
    assert checkouts._python_for(lock) == own
    assert len(commands) == 2


def test_processor_time_is_that_of_the_process_and_finer_than_a_clock_tick() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = cpu_seconds(process.pid)
        process.communicate(b"\n")
    assert 0.3 <= used < 3
    assert used * 100 != int(used * 100)
    with pytest.raises(BenchError, match="has ended"):
        cpu_seconds(process.pid)
