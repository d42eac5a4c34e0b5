"""The list of mutants is current: each names a line that is there, once, and changes it into Python that compiles."""

from __future__ import annotations

import pytest
from raft.mutants import choose, mutated
from raft.mutants_list import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.bug}-{mutant.file}")
def test_a_mutant_changes_a_line_that_is_there(mutant: Mutant) -> None:
    compile(mutated(mutant), mutant.file, "exec")


NO_MUTANTS = {
    "B35": "the list of bugs has none of this number",
    "B37": "there are no watches",
    "B38": "there are no watches",
    "B39": "there are no leases of keys",
}


def test_every_bug_of_the_list_that_can_exist_has_a_mutant() -> None:
    bugs = {f"B{number}" for number in range(1, 41)}
    assert {mutant.bug for mutant in MUTANTS} & bugs == bugs - set(NO_MUTANTS)


def test_no_mutant_is_listed_twice() -> None:
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_one_a_bug_is_one_of_every_bug() -> None:
    assert choose("", one_a_bug=False) == list(MUTANTS)
    assert [m.bug for m in choose("", one_a_bug=True)] == list(dict.fromkeys(m.bug for m in MUTANTS))
