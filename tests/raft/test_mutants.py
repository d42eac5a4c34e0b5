"""The list of mutants is current: each names a line that is there, once, and changes it into Python that compiles."""

from __future__ import annotations

import pytest
from raft.mutants import mutated
from raft.mutants_list import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.bug}-{mutant.file}")
def test_a_mutant_changes_a_line_that_is_there(mutant: Mutant) -> None:
    compile(mutated(mutant), mutant.file, "exec")


def test_there_are_mutants_of_thirty_bugs_and_more() -> None:
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) >= 30
    assert len({mutant.bug for mutant in MUTANTS if mutant.bug.startswith("B")}) >= 25
