"""Mutants of the replicated state."""

from __future__ import annotations

from mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        "B23", "The revision goes back when a snapshot is restored.", "kv.store:Store.restored", "header.revision", "0"
    ),
    Mutant(
        "B17",
        "A snapshot claims an index that its content does not reach.",
        "kv.store:Store.begin_snapshot",
        "self.applied_index",
        "self.applied_index + 1",
    ),
    Mutant(
        "B24",
        "The log's time goes back with the clock of a new leader.",
        "kv.store:Store._apply_batch",
        "batch.time_ms > self.time_ms",
        "batch.time_ms",
    ),
    Mutant(
        "B24",
        "A session is evicted although its client may still retry.",
        "kv.sessions:Sessions._open",
        "time_ms - oldest.last_used_ms <= SESSION_IDLE_MS",
        "False",
        simulated=False,
    ),
    Mutant(
        "B24",
        "A retried write is applied again.",
        "kv.sessions:Sessions.find",
        "result if first == fingerprint else MISMATCH",
        "session",
    ),
    Mutant(
        "B24",
        "A snapshot forgets the results that its sessions hold.",
        "kv.sessions:Session.restored",
        "session._ring[offset : offset + ANSWER_BYTES] = slot",
        "session._ring[offset : offset + ANSWER_BYTES] = bytes(ANSWER_BYTES)",
    ),
    Mutant(
        "6.3",
        "A write whose comparison fails is done all the same.",
        "kv.store:Store._put",
        "prev_revision != ANY_REVISION and prev_revision != mod_revision",
        "prev_revision > mod_revision",
    ),
    Mutant(
        "B26",
        "A record that changes while a snapshot is written appears in it as it is later.",
        "kv.store:Store.begin_snapshot",
        "self._cut_revision = self.revision",
        "pass",
    ),
    Mutant(
        "B40",
        "The state hash leaves the results out.",
        "kv.state_hash:next_hash_of_level_1",
        "digest.update(_results_encoder.encode(results))",
        "pass",
    ),
)
