"""Mutants of the node: the shell around the core."""

from __future__ import annotations

from mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        "B25",
        "A write that may still be done is reported as certainly not done.",
        "node.proposals:Proposals.expire",
        "waiter in queued",
        "True",
        tests="tests/node/test_proposals.py",
    ),
    Mutant(
        "B25",
        "A write gets the result of another leader's entry at the same index.",
        "node.proposals:Proposals.applied",
        "term != entry.term",
        "False",
    ),
)
