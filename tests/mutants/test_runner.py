"""What counts as a kill, on a package of one function."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants.mutant import Mutant
from mutants.runner import HarnessError, Runner

MODULE = '''
def last(entries):
    """Return the last entry."""
    return entries[-1] if entries else None
'''
TESTS = """
from kvorum.raft.log import last

def test_nothing_is_last_of_nothing():
    assert last([]) is None

def test_the_last_one_is_last():
    assert last([1, 2]) == 2
"""
MUTANT = Mutant("B1", "The first entry is taken.", "raft.log:last", "-1", "0", simulated=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with one module and its tests."""
    root = tmp_path / "checkout"
    for file, text in {
        "service/kvorum/__init__.py": "",
        "service/kvorum/raft/__init__.py": "",
        "service/kvorum/raft/log.py": MODULE,
        "tests/raft/test_log.py": TESTS,
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return root


def runner(root: Path, tmp_path: Path, killers: dict[str, str] | None = None) -> Runner:
    folder = tmp_path / "copies"
    folder.mkdir()
    made = Runner(folder, 0, killers or {}, root)
    made.prepare([MUTANT])
    return made


def test_a_kill_names_the_test_and_a_mutant_that_nothing_notices_survives(root: Path, tmp_path: Path) -> None:
    harmless = Mutant("B2", "None.", "raft.log:last", "None", "entries or None", simulated=False)
    judged = runner(root, tmp_path)
    outcomes = [judged.judge(mutant) for mutant in (MUTANT, harmless)]
    assert [outcome.by_test for outcome in outcomes] == ["tests/raft/test_log.py::test_the_last_one_is_last", ""]
    assert [outcome.is_killed for outcome in outcomes] == [True, False]
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert (root / "service/kvorum/raft/log.py").read_text() == MODULE


def test_a_mutant_of_the_client_is_put_into_a_copy_of_the_client(root: Path, tmp_path: Path) -> None:
    (root / "client/kvorum_client").mkdir(parents=True)
    (root / "client/kvorum_client/__init__.py").write_text("")
    (root / "client/kvorum_client/log.py").write_text(MODULE)
    (root / "tests/client").mkdir()
    (root / "tests/client/test_the_client.py").write_text(TESTS.replace("kvorum.raft", "kvorum_client"))
    mutant = Mutant("client", "It is.", "kvorum_client.log:last", "-1", "0", tests="tests/client")
    outcome = runner(root, tmp_path).judge(mutant)
    assert (outcome.by_test, outcome.error) == ("tests/client/test_the_client.py::test_the_last_one_is_last", "")


def test_a_line_of_a_log_is_not_taken_for_the_name_of_the_test(root: Path, tmp_path: Path) -> None:
    logging_test = """
import logging
from kvorum.raft.log import last

def test_that_logs():
    logging.getLogger("kvorum").error("the disk is full")
    assert last([1, 2]) == 2
"""
    (root / "tests/raft/test_log.py").write_text(logging_test)
    assert runner(root, tmp_path).judge(MUTANT).by_test == "tests/raft/test_log.py::test_that_logs"


def test_tests_that_fail_without_a_mutant_kill_nothing(root: Path, tmp_path: Path) -> None:
    (root / "tests/raft/test_broken.py").write_text("def test_broken():\n    assert False\n")
    outcome = runner(root, tmp_path).judge(MUTANT)
    assert not outcome.is_killed
    assert "test_broken fails without any mutant" in outcome.error


def test_a_crash_of_the_harness_is_no_kill(root: Path, tmp_path: Path) -> None:
    (root / "tests/raft/conftest.py").write_text("import kvorum.nothing\n")
    outcome = runner(root, tmp_path).judge(MUTANT)
    assert not outcome.is_killed
    assert "No module named 'kvorum.nothing'" in outcome.error


def test_the_remembered_killer_is_tried_first(root: Path, tmp_path: Path) -> None:
    killer = "tests/raft/test_log.py::test_the_last_one_is_last"
    judged = runner(root, tmp_path, {MUTANT.name: killer})
    # Were the other tests run, they would find this one.
    (root / "tests/raft/test_broken.py").write_text("def test_broken():\n    assert False\n")
    assert judged.judge(MUTANT).by_test == killer


@pytest.mark.parametrize(
    "killer",
    [
        "test_log.py::test_renamed",
        "test_log.py::test_nothing_is_last_of_nothing[a parameter that is gone]",
        "test_log.py::test_nothing_is_last_of_nothing",
    ],
)
def test_a_killer_that_is_gone_or_kills_no_more_changes_no_verdict(root: Path, tmp_path: Path, killer: str) -> None:
    judged = runner(root, tmp_path, {MUTANT.name: f"tests/raft/{killer}"})
    assert judged.judge(MUTANT).by_test == "tests/raft/test_log.py::test_the_last_one_is_last"


def test_a_remembered_killer_that_fails_without_a_mutant_is_an_error(root: Path, tmp_path: Path) -> None:
    (root / "tests/raft/test_broken.py").write_text("def test_broken():\n    assert False\n")
    with pytest.raises(HarnessError, match="test_broken fails without any mutant"):
        runner(root, tmp_path, {MUTANT.name: "tests/raft/test_broken.py::test_broken"})
