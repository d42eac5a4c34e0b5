"""A mutant finds its code wherever it moved, and a row that does not apply says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants.mutant import Mutant
from mutants.source import Source, UnmatchedError

LOG = '''
"""A log."""

LIMITS = (1, 2)


class Log:
    size: int = 3

    @property
    def last(self) -> int:
        return self.base + len(self.entries)

    @last.setter
    def last(self, index: int) -> None:
        self.base = index

    def append(self, entries):
        if entries:
            self.entries.extend(
                entries,  # a comment
            )
        self.saved = False
        self.count += 1

    def commit(self, index):
        if index > self.last: raise ValueError("too far")
        self.commit_index = max(index, 0)
        self.applied_index = max(index, 0)

    def trim(self):
        if self.size:
            self.size = 0
        return self.size


def outer():
    def inner():
        return 1
    return inner
'''


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "raft").mkdir()
    (tmp_path / "raft" / "__init__.py").write_text("def start():\n    return 1\n")
    (tmp_path / "raft" / "log.py").write_text(LOG)
    (tmp_path / "raft" / "other.py").write_text("def outer():\n    return 2\n")
    return Source(tmp_path)


def test_a_module_of_another_package_is_named_with_it_and_not_taken_for_one_that_moved(tmp_path: Path) -> None:
    for name in ("kvorum", "kvorum_client"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "watch.py").write_text(f"def of_{name}():\n    return 1\n\ndef both():\n    return 2\n")
    source = Source(tmp_path / "kvorum", tmp_path / "kvorum_client")
    mutated = source.mutate(Mutant("client", "", "kvorum_client.watch:both", "2", "3"))
    assert mutated.path == Path("kvorum_client/watch.py")
    assert source.mutate(Mutant("B1", "", "watch:both", "2", "3")).path == Path("watch.py")
    assert source.mutate(Mutant("B1", "", "moved:both", "2", "3")).path == Path("watch.py")
    with pytest.raises(UnmatchedError):
        source.mutate(Mutant("B1", "", "watch:of_kvorum_client", "1", "3"))


def changed(source: Source, where: str, old: str, new: str) -> tuple[set[str], set[str]]:
    """Return the lines that a mutant takes away and those that it adds."""
    mutated = source.mutate(Mutant("B1", "", where, old, new))
    before, after = source.text(mutated.path).splitlines(), mutated.text.splitlines()
    return {line.strip() for line in before} - {line.strip() for line in after}, {line.strip() for line in after} - {
        line.strip() for line in before
    }


@pytest.mark.parametrize(
    ("where", "old", "new", "removed", "added"),
    [
        ("raft.log:Log.commit", "index > self.last", "False", "if index > self.last:", "if False:"),
        ("raft.log:Log.commit", "index>(self.last)", "False", "if index > self.last:", "if False:"),
        ("raft.log:Log.append", "self.entries.extend(entries)", "pass", "self.entries.extend(entries)", "pass"),
        ("raft.log:Log.append", "self.count += 1", "self.count = 1", "self.count += 1", "self.count = 1"),
        ("raft.log:LIMITS", "(1, 2)", "()", "LIMITS = (1, 2)", "LIMITS = ()"),
        ("raft.log:Log.size", "3", "4", "size: int = 3", "size: int = 4"),
        ("raft.log:Log.last", "self.base = index", "pass", "self.base = index", "pass"),
        ("raft.log:outer.inner", "1", "2", "return 1", "return 2"),
        ("raft:start", "1", "2", "return 1", "return 2"),
    ],
)
def test_one_expression_or_statement_is_replaced(
    source: Source, where: str, old: str, new: str, removed: str, added: str
) -> None:
    assert changed(source, where, old, new) == ({removed}, {added})


def test_consecutive_statements_are_replaced(source: Source) -> None:
    removed, added = changed(source, "raft.log:Log.append", "self.saved = False\nself.count += 1", "self.lost()")
    assert removed == {"self.saved = False", "self.count += 1"}
    assert added == {"self.lost()"}


def test_an_if_is_replaced_whatever_it_does(source: Source) -> None:
    assert changed(source, "raft.log:Log.trim", "if self.size: ...", "pass")[0] == {"if self.size:", "self.size = 0"}


def test_a_function_is_found_where_it_moved_to(source: Source) -> None:
    assert changed(source, "raft.before:Log.commit", "index > self.last", "False")[1] == {"if False:"}


def test_the_other_functions_do_not_count(source: Source) -> None:
    assert source.mutate(Mutant("B1", "", "raft.other:outer", "2", "3")).text.strip().endswith("return 3")


@pytest.mark.parametrize(
    ("where", "old", "new", "reasons"),
    [
        ("raft.log:Log.commit", "index >= self.last", "False", ["is not in raft.log:Log.commit", "index > self.last"]),
        ("raft.log:Log.append", "index > self.last", "False", ["same code is in", "raft.log:Log.commit, line 27"]),
        ("raft.log:Log.commit", "max(index, 0)", "0", ["occurs 2 times", "lines 28, 29"]),
        ("raft.log:Log.commit", "index > self.last", "index > (self.last)", ["new code is the old code"]),
        ("raft.log:Log.commit", "index >", "False", ["Not Python"]),
        ("raft.log:Log.commit", "index > self.last", "", ["Both old and new must be code"]),
        ("raft.log:Log.commit", "self.commit_index = max(index, 0)", "continue", ["does not compile"]),
        (
            "raft.log:Journal.commit",
            "index > self.last",
            "False",
            ["No module defines", "raft.log:Log.commit, line 27"],
        ),
        ("raft.before:outer", "1", "2", ["several modules do", "raft.log", "raft.other"]),
    ],
)
def test_a_row_that_does_not_apply_says_why(source: Source, where: str, old: str, new: str, reasons: list[str]) -> None:
    with pytest.raises(UnmatchedError) as raised:
        source.mutate(Mutant("B1", "", where, old, new))
    assert str(raised.value).startswith(f"B1 {where}: ")
    for reason in reasons:
        assert reason in str(raised.value)
