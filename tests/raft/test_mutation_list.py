"""The list of mutations stays in step with the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from raft.mutation_list import MUTATIONS, Mutation

import kvorum.raft

FOLDER = Path(kvorum.raft.__file__).parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.bug}-{mutation.file}")
def test_a_mutation_applies_at_exactly_one_place(mutation: Mutation) -> None:
    assert (FOLDER / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new


def test_no_mutation_is_listed_twice() -> None:
    assert len(set(MUTATIONS)) == len(MUTATIONS)
