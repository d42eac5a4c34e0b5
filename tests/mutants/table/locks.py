"""Bugs of locks and elections (service/locks.py), and of their HTTP."""

from __future__ import annotations

from mutants.mutant import Mutant


def _row(fault: str, function: str, code: str, replacement: str) -> Mutant:
    return Mutant("locks", fault, function, code, replacement, tests="tests/fronts/test_locks.py", simulated=False)


MUTANTS = [
    _row(
        "A lock is granted although its lease has ended.",
        "service.locks:Locks._wait",
        "not is_there or self._node.store.leases.living(request.lease) is None",
        "not is_there",
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
        "[Compare(key, 'mod_revision', '=', attempt.mod_revision)]",
        "[]",
    ),
    _row(
        "A place is removed that may be the first one.",
        "service.locks:Locks._withdraw",
        "compares.append(Compare(before.key, 'create_revision', '=', before.token))",
        "pass",
    ),
    _row(
        "An attempt removes a place of which another attempt was told that it holds the lock.",
        "service.locks:Locks._withdraw",
        "not is_abandoned or attempt.mod_revision != attempt.token",
        "not is_abandoned",
    ),
    _row(
        "A client that goes as its turn comes leaves a lock that nobody knows to hold.",
        "service.locks:Locks._withdraw",
        "not is_abandoned or attempt.mod_revision != attempt.token",
        "True",
    ),
    _row(
        "A lock that is granted to a client that is gone stays held.",
        "fronts.http.locks:LockHandlers._take_back",
        "granted.mod_revision == granted.fencing_token",
        "False",
    ),
    _row(
        "A lock is released of which another attempt may have told its client.",
        "fronts.http.locks:LockHandlers._take_back",
        "granted.mod_revision == granted.fencing_token",
        "True",
    ),
    _row(
        "A waiter of a node that does not lead any more stays in the queue.",
        "service.service:Service.__init__",
        "Transactions(node, now, self._elsewhere, _session_error, hands_over=True)",
        "self._transactions",
    ),
    _row(
        "An attempt that is refused because of the length of the queue stays in it.",
        "service.locks:Locks.acquire",
        "(asyncio.CancelledError, TooLargeError)",
        "asyncio.CancelledError",
    ),
    _row(
        "Locks with longer names keep everybody from a lock.",
        "service.locks:Locks._try",
        "TooLargeError",
        "LockError",
    ),
    _row(
        "Each of those who look at a queue at one revision reads all of it.",
        "service.locks:Locks._queue",
        "revision == store.revision",
        "False",
    ),
    _row(
        "A queue is taken for what it was at an earlier revision.",
        "service.locks:Locks._queue",
        "revision == store.revision",
        "True",
    ),
    _row(
        "Whoever gives up stays in the queue.",
        "service.locks:Locks._withdraw",
        "before is None",
        "True",
    ),
    _row(
        "A lock waits for one whose name begins with its own.",
        "service.locks:_is_in_queue",
        "key.find(b'/', len(prefix)) < 0",
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
        "service.locks:_place",
        "record.create_revision",
        "-record.create_revision",
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
