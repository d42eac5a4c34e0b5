"""Mutants of the Python client and of ``kv``."""

from __future__ import annotations

from mutants.mutant import Mutant


def _client(fault: str, where: str, old: str, new: str, tests: str) -> Mutant:
    return Mutant("client", fault, f"kvorum_client.{where}", old, new, tests=f"tests/client/{tests}", simulated=False)


MUTANTS = (
    _client(
        "A watch resumes one revision too late.",
        "watch:Watch._take",
        "max(self._next, line.revision + 1)",
        "max(self._next, line.revision + 2)",
        "test_watch.py",
    ),
    _client(
        "A watch resumes with the revision that it has.",
        "watch:Watch._take",
        "max(self._next, line.revision + 1)",
        "max(self._next, line.revision)",
        "test_watch.py",
    ),
    _client(
        "A watch resumes behind a revision of which it has a part.",
        "watch:Watch._take",
        "line.revision and not line.more",
        "line.revision",
        "test_watch.py",
    ),
    _client(
        "The parts of a revision that were received come again.",
        "watch:Watch._take",
        "events[max(received - self._passed, 0) :]",
        "events",
        "test_watch.py",
    ),
    _client(
        "A watch tells the revision of events that were not returned yet.",
        "watch:Watch.revision",
        "self._events[0].mod_revision - 1 if self._events else max(self._next - 1, 0)",
        "max(self._next - 1, 0)",
        "test_watch.py",
    ),
    _client(
        "A watch goes on after a compaction, with a gap.",
        "watch:Watch._line",
        "problem.code == 'compacted'",
        "False",
        "test_watch.py",
    ),
    _client(
        "A renewal counts from its answer.",
        "leases:Lease._renew",
        "self._take_renewal(sent)",
        "self._take_renewal(now())",
        "test_leases.py",
    ),
    _client(
        "A grant counts from its answer.",
        "leases:Lease._begin",
        "self._take_renewal(sent)",
        "self._take_renewal(now())",
        "test_leases.py",
    ),
    _client(
        "A renewal that is answered too late keeps the lease.",
        "leases:Lease._renew",
        "not self.is_alive",
        "False",
        "test_leases.py",
    ),
    _client(
        "A lease lives for what was asked for, not for what was granted.",
        "leases:Lease._begin",
        "self.ttl_s = granted.ttl_s",
        "pass",
        "test_leases.py",
    ),
    _client(
        "A lease is renewed when its time is over.",
        "leases:Lease._keep",
        "self.ttl_s / RENEWALS",
        "self.ttl_s",
        "test_leases.py",
    ),
    _client(
        "A lock whose lease was lost as it was granted is taken for held.",
        "locks:Queueing._acquire",
        "not self.is_held",
        "False",
        "test_locks.py",
    ),
    _client(
        "A lock is held as long as it was granted once.",
        "locks:Queueing.is_held",
        "self._granted is not None and self._lease.is_alive",
        "self._granted is not None",
        "test_locks.py",
    ),
    _client(
        "A block goes on when its lock is lost.",
        "locks:Queueing._lose",
        "self._cancel_body()",
        "pass",
        "test_locks.py",
    ),
    _client(
        "A holder does not notice that somebody else has put its key anew.",
        "locks:Queueing._check",
        "answer.status == 404 or (record := record_of(key, answer)).create_revision != self.fencing_token",
        "answer.status == 404 or not (record := record_of(key, answer))",
        "test_locks.py",
    ),
    _client(
        "Who gives up keeps its place until the lease ends.",
        "locks:Queueing._acquire",
        "await self._lease.abandon()",
        "pass",
        "test_locks.py",
    ),
    _client(
        "A node that is behind tells an observer of an earlier leader.",
        "elections:Election.observe",
        "line.revision >= seen and shown != last",
        "shown != last",
        "test_elections.py",
    ),
    _client(
        "An observer does not see a new leader that says the same.",
        "elections:Election.observe",
        "(holder.fencing_token, holder.value)",
        "(0, holder.value)",
        "test_elections.py",
    ),
    _client(
        "An observer is given up at the first loss if the leader was the same for long.",
        "elections:Election.observe",
        "not is_lost",
        "not is_lost and time.monotonic() < deadline",
        "test_elections.py",
    ),
    _client(
        "The addresses of a name are looked for in no time once a stream has lasted for long.",
        "streams:Streams._stream",
        "within_s if has_answered else deadline - time.monotonic()",
        "deadline - time.monotonic()",
        "test_watch.py",
    ),
    _client(
        "A change that was never sent is called done when the output fails.",
        "cli:_run",
        "run in _WRITES and client.writes_perhaps_sent > 0",
        "run in _WRITES",
        "test_cli_environment.py",
    ),
    _client(
        "Nobody is told that the quota is used up.",
        "cli_status:_fullness",
        "latest is None or not latest.quota_exceeded",
        "True",
        "test_cli_words.py",
    ),
    _client(
        "kv waits for a name server beyond its deadline.",
        "cli:_runner",
        "use_daemon_threads(runner.get_loop())",
        "runner.get_loop()",
        "test_cli_environment.py",
    ),
    _client(
        "aiohttp rounds the deadline of an attempt up to whole seconds.",
        "transport:Transport.exchange",
        'float("inf")',
        "5.0",
        "test_cli_environment.py",
    ),
    _client(
        "A leader that could not proclaim still takes itself for one.",
        "elections:Election.proclaim",
        "self.lease.lose(str(error))",
        "pass",
        "test_elections.py",
    ),
    _client(
        "A client lets too many writes wait after the last one that was answered.",
        "sessions:_Lane.room",
        "min(WINDOW - self.next_sequence + oldest, WINDOW + 1 - self.next_sequence + self.answered)",
        "WINDOW - self.next_sequence + oldest",
        "test_sessions.py",
    ),
)
