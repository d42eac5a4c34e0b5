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
    Mutant(
        "B25",
        "A membership change whose entry another leader replaced is reported as made.",
        "node.waits:Waits.applied",
        "term == entry.term",
        "True",
    ),
    Mutant(
        "B25",
        "A membership change whose entry a snapshot replaced is waited for until the deadline.",
        "node.waits:Waits.restored",
        "at <= index",
        "False",
    ),
    Mutant(
        "K7",
        "A membership change that no quorum confirms is waited for without an end.",
        "node.waits:Waits.expire",
        "_fail(waiter, 'no quorum confirmed the change in time; it may still be made')",
        "pass",
    ),
    Mutant(
        "K7",
        "A membership change that begins when the node has stopped is waited for without an end.",
        "node.waits:Waits.entry",
        "if self._stopped: ...",
        "pass",
    ),
    Mutant(
        "K10",
        "The age of the state counts from the last heartbeat of the leader.",
        "node.staleness:Staleness.bound_ms",
        "self._state.current_as_of_s",
        "self._heard_s",
    ),
    Mutant(
        "K10",
        "The age of the state counts from the quorum's answer instead of the question.",
        "node.reads:Reads.released",
        "max(since, self._state.current_as_of_s or since)",
        "self._clock.monotonic()",
    ),
    Mutant(
        "K10",
        "A state that takes the place of another is as current as that was.",
        "node.state:State.replace",
        "self.current_as_of_s = None",
        "pass",
    ),
    Mutant(
        "K10",
        "No quorum is asked how current the state is unless a client reads.",
        "node.reads:Reads.probe",
        "self._ask()",
        "pass",
    ),
)
