"""Bugs of locks and elections (service/locks.py), and of their HTTP."""

from __future__ import annotations

from mutants.mutant import Mutant


def _row(fault: str, function: str, code: str, replacement: str, tests: str = "test_locks.py") -> Mutant:
    return Mutant("locks", fault, function, code, replacement, tests=f"tests/fronts/{tests}", simulated=False)


MUTANTS = [
    _row(
        "A lock is granted although its lease has ended.",
        "service.locks:Locks._wait",
        "self._node.store.leases.living(request.lease) is None",
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
        "(is_own, *is_waiting)",
        "is_waiting",
    ),
    _row(
        "A place is removed that may be the first one.",
        "service.locks:Locks._withdraw",
        "(is_own, *is_waiting)",
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
        "service.queues:Queues._keys",
        "b'/' not in key[len(prefix):]",
        "True",
    ),
    _row(
        "Any key below the name of a lock counts as a place.",
        "service.queues:place_of",
        "record is None or not record.lease or (not record.key.endswith(b'/%x' % record.lease))",
        "record is None",
    ),
    _row(
        "The last one in the queue holds the lock.",
        "service.queues:Queues.read",
        "_rank",
        "lambda each: -each.create_revision",
    ),
    _row(
        "A waiter is not told that its own lease has ended.",
        "service.locks:Locks._gone",
        "((before.key, before.lease), (attempt.key, attempt.request.lease))",
        "((before.key, before.lease),)",
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
        "fronts.http.locks:lasts",
        "not names.isdisjoint(_LASTING)",
        "False",
    ),
    _row(
        "Whoever waits for an election keeps its share of what bodies may take.",
        "service.locks:Locks.acquire",
        "request.on_placed is not None",
        "False",
        "test_lock_bounds.py",
    ),
    _row(
        "Whoever waits for an election keeps its value in memory.",
        "service.locks:_Attempt.forget_value",
        "msgspec.structs.replace(self.request, value=b'')",
        "self.request",
        "test_lock_bounds.py",
    ),
    _row(
        "A body without a length keeps the share of the longest one.",
        "fronts.http.request:Bodies._keep",
        "size_bytes - self._taken.get(id(request), 0)",
        "0",
        "test_lock_bounds.py",
    ),
    _row(
        "A key that is no place becomes one with its old revision, before the place of the holder.",
        "service.locks:Locks._put",
        "(DeleteRangeOp(put.key),)",
        "(put,)",
        "test_lock_keys.py",
    ),
    _row(
        "Who leads no more, since others put the key without its lease, is made the leader again by what it proclaims.",
        "service.locks:Locks.proclaim",
        "(Compare(key, 'create_revision', '=', token), Compare(key, 'lease', '=', request.lease))",
        "(Compare(key, 'create_revision', '=', token),)",
        "test_lock_keys.py",
    ),
    _row(
        "A waiter does not notice that the holder's key has lost its lease.",
        "service.locks:_Wake.take",
        "not each.version or each.lease != self._lease",
        "not each.version",
        "test_lock_keys.py",
    ),
    _row(
        "A place is removed that may be the first one, since the one before has lost its lease.",
        "service.locks:Locks._withdraw",
        "Compare(before.key, 'lease', '=', before.lease)",
        "Compare(before.key, 'version', '>', 0)",
        "test_lock_keys.py",
    ),
    _row(
        "An attempt that fails says that it was refused, and its place stays.",
        "service.locks:Locks._failed",
        "not isinstance(error, NotServingError) and await self._withdraw(principal, attempt) == 'done'",
        "True",
        "test_lock_failures.py",
    ),
    _row(
        "An attempt whose time is over says that it was refused, and its place stays.",
        "service.locks:Locks._wait",
        "withdrawal == 'done'",
        "withdrawal != 'first'",
        "test_lock_failures.py",
    ),
    _row(
        "At a node that leads no more, nobody gives up a place.",
        "service.locks:Locks._withdraw",
        "self._handing_over.txn",
        "self._transactions.txn",
        "test_lock_failures.py",
    ),
    _row(
        "A place that may be the first one now counts as given up.",
        "service.locks:Locks._withdraw",
        "record.mod_revision == attempt.mod_revision",
        "False",
        "test_lock_failures.py",
    ),
    _row(
        "The value of an election is as long as it likes, and so is what is sent to each observer.",
        "service.locks:_check_value",
        "len(value) > ELECTION_VALUE_BYTES_MAX",
        "False",
        "test_lock_bounds.py",
    ),
    _row(
        "Locks below the name of another one use up what a read of its queue may look at.",
        "service.queues:Queues._keys",
        "b'0' if slash else b'\\x00'",
        "b'\\x00'",
        "test_lock_bounds.py",
    ),
    _row(
        "A queue has more places than can be read.",
        "service.locks:Locks._put",
        "len(queue) >= LOCK_PLACES_MAX and all((each.key != attempt.key for each in queue))",
        "False",
        "test_lock_bounds.py",
    ),
    _row(
        "A page of a list says that it is all.",
        "service.queues:Queues._list",
        "len(states) < len(names)",
        "False",
        "test_lock_bounds.py",
    ),
    _row(
        "A list of locks mixes revisions.",
        "service.queues:Queues._list",
        "store.versions.at(key, pin.revision)",
        "store.get(key)",
        "test_lock_bounds.py",
    ),
    _row(
        "The answer to HEAD has a body without end.",
        "fronts.http.response:Response.write_eof",
        "request.method == hdrs.METH_HEAD and (self.live is not None or self.stream is not None)",
        "False",
        "test_observe.py",
    ),
    _row(
        "An observation does not notice that its client has gone.",
        "fronts.http.observe:Observation.lost",
        "self._is_gone = True",
        "return",
        "test_observe.py",
    ),
    _row(
        "An observation that cannot begin ends without a word.",
        "fronts.http.observe:Observation._lines",
        "problem_of(error)",
        "(_ for _ in ()).throw(error)",
        "test_observe.py",
    ),
    _row(
        "A redirect refuses a parameter that its handler knows.",
        "fronts.http.dispatch:Dispatcher._to_leader",
        "part.partition('=')[0] in _OF_FORWARDING",
        "True",
        "test_forward.py",
    ),
]
