"""Mutants of the node: the shell around the core."""

from __future__ import annotations

from mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        "B25",
        "A write that may still be done is reported as certainly not done.",
        "node.proposals:Writes.expire",
        "waiter in queued",
        "True",
        tests="tests/node/test_proposals.py",
    ),
    Mutant(
        "B25",
        "A write gets the result of another leader's entry at the same index.",
        "node.proposals:Writes.applied",
        "term != entry.term",
        "False",
    ),
    Mutant(
        "7",
        "A leader that is gone is asked for its snapshot 20 times before the next leader is.",
        "node.snapshots:Fetcher._run",
        "self._leader() != source",
        "False",
        tests="tests/node/test_driver.py",
    ),
    Mutant(
        "7",
        "A leader that is gone and never answers keeps a follower from the next leader's snapshot.",
        "node.snapshots:Fetcher.offered",
        "not self._has_progressed",
        "False",
        tests="tests/node/test_driver.py",
    ),
    Mutant(
        "7",
        "A fetch that progresses is given up for the offer of a new leader.",
        "node.snapshots:Fetcher.offered",
        "not self._has_progressed",
        "True",
        tests="tests/node/test_driver.py",
    ),
    Mutant(
        "7",
        "Consensus does not hear that a fetch failed, and never begins another.",
        "node.driver:Driver._fetch_failed",
        "self.guarded(partial(self.raft.fetch_failed, snapshot))",
        "pass",
        tests="tests/node/test_driver.py",
    ),
)
