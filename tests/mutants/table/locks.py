"""Bugs of locks and elections (service/locks.py), and of their HTTP."""

from __future__ import annotations

from mutants.mutant import Mutant


def _row(fault: str, function: str, code: str, replacement: str) -> Mutant:
    return Mutant("locks", fault, function, code, replacement, tests="tests/fronts/test_locks.py", simulated=False)


MUTANTS = [
    _row(
        "A lock is granted although its lease has ended.",
        "service.locks:Locks._wait",
        "place is None or lease is None",
        "False",
    ),
    _row(
        "After a wait, a lock is granted by what this node happens to have applied.",
        "service.locks:Locks._wait",
        "is_confirmed = False",
        "pass",
    ),
    _row(
        "A place is removed that another attempt has taken over.",
        "service.locks:Locks._withdraw",
        "(is_own, is_waiting)",
        "(is_waiting,)",
    ),
    _row(
        "A place is removed that may be the first one.",
        "service.locks:Locks._withdraw",
        "(is_own, is_waiting)",
        "(is_own,)",
    ),
    _row(
        "Whoever gives up stays in the queue.",
        "service.locks:Locks._withdraw",
        "before is None",
        "True",
    ),
    _row(
        "A lock waits for one whose name begins with its own.",
        "service.locks:_of",
        "b'/' not in each.key[len(prefix):]",
        "True",
    ),
    _row(
        "Any key below the name of a lock counts as a place.",
        "service.locks:_is_place",
        "bool(record.lease) and record.key.endswith(b'/%x' % record.lease)",
        "True",
    ),
    _row(
        "The last one in the queue holds the lock.",
        "service.locks:Locks._queue",
        "_place",
        "lambda each: -each.create_revision",
    ),
    _row(
        "A waiter is not told that its own lease has ended.",
        "service.locks:Locks._gone",
        "(before.key, attempt.key)",
        "(before.key,)",
    ),
    _row(
        "A lock that is held is queued for, also without a wait.",
        "service.locks:Locks.acquire",
        "not request.wait_ms and (granted := await self._try(principal, attempt)) is not None",
        "False",
    ),
    _row(
        "A waiter whose client is gone waits on.",
        "fronts.http.locks:while_connected",
        "_is_gone(request)",
        "False",
    ),
    _row(
        "A wait for a lock is forwarded, and ends with the time of a request.",
        "fronts.http.locks:waits",
        "'wait_ms=' in raw_query",
        "False",
    ),
]
