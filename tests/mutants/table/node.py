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
    Mutant(
        "7",
        "A leader that is gone is asked for its snapshot 20 times before the next leader is.",
        "node.fetch:Fetcher._run",
        "self._raft.leader != source",
        "False",
        tests="tests/node/test_driver.py",
    ),
    Mutant(
        "7",
        "A leader that is gone and never answers keeps a follower from the next leader's snapshot.",
        "node.fetch:Fetcher.offered",
        "not self._has_progressed",
        "False",
        tests="tests/node/test_driver.py",
    ),
    Mutant(
        "7",
        "A fetch that progresses is given up for the offer of a new leader.",
        "node.fetch:Fetcher.offered",
        "not self._has_progressed",
        "True",
        tests="tests/node/test_driver.py",
    ),
    Mutant(
        "7",
        "Consensus does not hear that a fetch failed, and never begins another.",
        "node.fetch:Fetcher._give_up",
        "self._raft.fetch_failed(fetch.snapshot)",
        "pass",
        tests="tests/node/test_driver.py",
    ),
)
