"""The table of mutants fits the code."""

from __future__ import annotations

import shlex
from collections import Counter

import pytest
from mutants.__main__ import choose
from mutants.runner import CLIENT, PACKAGE, ROOT
from mutants.source import Mutated, Source, UnmatchedError
from mutants.table import MUTANTS


@pytest.fixture(scope="module")
def changes() -> dict[str, Mutated | str]:
    """For each row the changed module, or why it does not apply."""
    source = Source(PACKAGE, CLIENT)
    found: dict[str, Mutated | str] = {}
    for mutant in MUTANTS:
        try:
            found[mutant.name] = source.mutate(mutant)
        except UnmatchedError as error:
            found[mutant.name] = str(error)
    return found


def test_every_mutant_applies(changes: dict[str, Mutated | str]) -> None:
    reasons = [change for change in changes.values() if isinstance(change, str)]
    assert not reasons, f"{len(reasons)} of {len(MUTANTS)} mutants do not apply:\n\n" + "\n\n".join(reasons)


def test_no_two_mutants_are_the_same(changes: dict[str, Mutated | str]) -> None:
    assert len(changes) == len(MUTANTS)
    codes = Counter((change.path, change.code) for change in changes.values() if isinstance(change, Mutated))
    assert [code for code, count in codes.items() if count > 1] == []


NO_MUTANTS = {
    "B35": "the list of bugs has none of this number",
    "B37": "there are no watches",
    "B38": "there are no watches",
    "B39": "there are no leases of keys",
}


def test_every_bug_of_the_list_that_can_exist_has_a_mutant() -> None:
    bugs = {f"B{number}" for number in range(1, 41)}
    assert {mutant.bug for mutant in MUTANTS} & bugs == bugs - set(NO_MUTANTS)


def test_every_mutant_says_what_goes_wrong() -> None:
    assert [mutant.name for mutant in MUTANTS if not mutant.fault.endswith(".")] == []


def test_the_tests_that_judge_exist() -> None:
    for mutant in MUTANTS:
        paths = [word for word in shlex.split(mutant.judged_by) if word.startswith("tests/")]
        assert paths
        assert [path for path in paths if not (ROOT / path.partition("::")[0]).exists()] == []


def test_one_a_bug_is_one_of_every_bug() -> None:
    assert choose(MUTANTS, "", [], one_a_bug=False) == list(MUTANTS)
    chosen = choose(MUTANTS, "", [], one_a_bug=True)
    assert [mutant.bug for mutant in chosen] == list(dict.fromkeys(mutant.bug for mutant in MUTANTS))


def test_mutants_are_chosen_by_their_module_or_package() -> None:
    modules = {m.module for m in MUTANTS if m.module.startswith("kv.")}
    assert modules >= {"kv.store", "kv.sessions", "kv.features"}
    assert {m.module for m in choose(MUTANTS, "", ["kv"], one_a_bug=False)} == modules
    assert {m.module for m in choose(MUTANTS, "", ["kv.store", "kv.sessions"], False)} == {"kv.store", "kv.sessions"}
    assert choose(MUTANTS, "", ["kv.stor"], one_a_bug=False) == []
