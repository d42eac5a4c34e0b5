"""Mutants chosen from the outside: by somebody who did not write the code, from the promises of the documents.

Each breaks one promise of a node that users rely on. The other tables of these topics came with the code.
"""

from __future__ import annotations

from mutants.mutant import Mutant

_HISTORY = "tests/kv/test_history.py"
_RESTORED = "tests/kv/test_restored_history.py"
_RANGES = "tests/kv/test_ranges.py"
_TXN = "tests/kv/test_txn.py"
_LEASES = "tests/kv/test_leases.py"
_LEASE_SNAPSHOTS = "tests/kv/test_lease_snapshots.py"
_HUB = "tests/kv/test_watch.py"
_LOCKS = "tests/fronts/test_locks.py"
_ORIGINS = "tests/kv/test_origins.py"
_HANDOVER = "tests/node/test_handover.py"


def _row(topic: str, fault: str, where: str, old: str, new: str, tests: str) -> Mutant:
    return Mutant(topic, fault, where, old, new, tests=tests, simulated=False)


def _version(fault: str, where: str, old: str, new: str, tests: str = _HISTORY) -> Mutant:
    return _row("versions", fault, where, old, new, tests)


def _range(fault: str, where: str, old: str, new: str, tests: str = _RANGES) -> Mutant:
    return _row("range", fault, where, old, new, tests)


def _txn(fault: str, where: str, old: str, new: str, tests: str = _TXN) -> Mutant:
    return _row("txn", fault, where, old, new, tests)


def _lease(fault: str, where: str, old: str, new: str, tests: str = _LEASES) -> Mutant:
    return _row("lease", fault, where, old, new, tests)


def _watch(fault: str, where: str, old: str, new: str, tests: str = _HUB) -> Mutant:
    return _row("watch", fault, where, old, new, tests)


def _lock(fault: str, where: str, old: str, new: str, tests: str = _LOCKS) -> Mutant:
    return _row("lock", fault, f"service.locks:{where}", old, new, tests)


def _handover(fault: str, where: str, old: str, new: str, tests: str = _HANDOVER) -> Mutant:
    return _row("handover", fault, where, old, new, tests)


MUTANTS = (
    _version(
        "A read of the past takes a version by when its key was created.",
        "kv.versions:Versions.newest_at",
        "record.mod_revision <= revision",
        "record.create_revision <= revision",
    ),
    _version(
        "The previous value of an event is its own.",
        "kv.versions:Versions.previous",
        "event.mod_revision - 1",
        "event.mod_revision",
    ),
    _version(
        "Only the youngest pin counts.",
        "kv.versions:Versions.reclaim",
        "min([pin.revision for pin in self._pins], default=INTEGER_MAX)",
        "max([pin.revision for pin in self._pins], default=INTEGER_MAX)",
    ),
    _version(
        "A key that is deleted loses all versions but the last.",
        "kv.versions:Versions.delete",
        "_with_older(old)",
        "old",
    ),
    _version(
        "The history of a key goes on below the floor.",
        "kv.versions:Versions.history",
        "record.mod_revision <= self.floor",
        "record.mod_revision < self.floor",
        "tests/kv/test_history_of_a_key.py",
    ),
    _version(
        "What the event at the floor made history of is not counted.",
        "kv.versions:Versions.set_floor",
        "self._log.position(revision)",
        "self._log.position(revision + 1)",
        f"{_HISTORY} {_RESTORED}",
    ),
    _version(
        "Nothing is kept any more once a reader has let go.",
        "kv.versions:Versions._release",
        "bool(self.floor or self._pins)",
        "bool(self._pins)",
    ),
    _version(
        "Deleted keys come after all others in a read of the past.",
        "kv.versions:Versions.keys_from",
        "keys.sort()",
        "pass",
        f"{_HISTORY} {_RANGES}",
    ),
    _version(
        "The floor itself cannot be read.",
        "kv.store:Store.check_revision",
        "revision < self.floor",
        "revision <= self.floor",
    ),
    _version(
        "The history cannot be compacted up to the present revision.",
        "kv.store:Store._compact",
        "command.revision > self.revision",
        "command.revision >= self.revision",
    ),
    _range(
        "The page after a full one begins one key too late.",
        "kv.scan:Scan._stop_before",
        "self._low = key",
        "self._low = key + b'\\0'",
    ),
    _range(
        "The second page of a sorted range ends where the first one ended.",
        "kv.scan:Scan._go_to",
        "self._items_max = min(self._items_max + position, INTEGER_MAX)",
        "pass",
    ),
    _range(
        "A count in the past has the keys that were created since.",
        "kv.scan:_Changes.follow",
        "event.version > 1",
        "event.version > 0",
    ),
    _range(
        "A count in the past leaves out what was created at that revision.",
        "kv.scan:_Changes.__init__",
        "versions.position(revision + 1)",
        "versions.position(revision)",
    ),
    _range(
        "max_create_revision is judged by the other bound.",
        "kv.ranges:RangeQuery.admits",
        "self.max_create_revision or INTEGER_MAX",
        "self.max_mod_revision or INTEGER_MAX",
    ),
    _range(
        "A cursor goes on in the other direction.",
        "kv.cursors:digest",
        "msgspec.structs.replace(query, limit=0)",
        "msgspec.structs.replace(query, limit=0, reverse=False)",
    ),
    _txn(
        "A nested transaction of the else branch is not evaluated.",
        "kv.txn:_Planner.choose",
        "txn.then if succeeded else txn.otherwise",
        "txn.then",
    ),
    _txn(
        "A compare of the value of a missing key holds.",
        "kv.txn:_Planner._holds",
        "compare.target != 'value' and _RESULTS[compare.result](0, compare.operand)",
        "compare.target == 'value' or _RESULTS[compare.result](0, compare.operand)",
    ),
    _txn(
        "The count of a limited range in the past is that of the answer.",
        "kv.txn:_read",
        "found = found[:limit]",
        "found = found[:limit]\ncount = len(found)",
    ),
    _txn(
        "A range in the past misses a key that was deleted right after it.",
        "kv.txn:_past",
        "versions.position(revision + 1)",
        "versions.position(revision + 2)",
    ),
    _txn(
        "A record without its value has no lease.",
        "kv.txn:_without_value",
        "Record(record.key, b'', record.create_revision, record.mod_revision, record.version, lease=record.lease)",
        "Record(record.key, b'', record.create_revision, record.mod_revision, record.version)",
        f"{_LEASES} {_TXN}",
    ),
    _txn(
        "ignore_value keeps the lease instead of ignore_lease.",
        "kv.txn:_lease_of",
        "put.ignore_lease and old is not None",
        "put.ignore_value and old is not None",
        f"{_LEASES} {_TXN}",
    ),
    _txn(
        "The previous value of a put is the new one.",
        "kv.txn:_Run._put",
        "old if put.prev_value else None",
        "new if put.prev_value else None",
    ),
    _txn(
        "Each deleted range counts as one key.",
        "kv.txn:_Run._delete_range",
        "self.deleted += len(records)",
        "self.deleted += 1",
    ),
    _txn(
        "A range reads one revision below the floor.",
        "kv.txn:_Planner._check_range",
        "0 < revision < self._versions.floor",
        "0 < revision < self._versions.floor - 1",
    ),
    _txn(
        "A transaction that writes only in its else branch is taken for a read.",
        "kv.txn_check:is_read_only",
        "(*txn.then, *txn.otherwise)",
        "txn.then",
        "tests/kv/test_txn_check.py",
    ),
    _txn(
        "A key may be put again that a nested else branch puts.",
        "kv.txn_check:_writes",
        "tuple(then_puts | else_puts)",
        "tuple(then_puts)",
        "tests/kv/test_txn_check.py",
    ),
    _lease(
        "A plain put leaves the key with its lease.",
        "kv.store:Store.set_record",
        "lease or (old is not None and old.lease)",
        "lease",
    ),
    _lease(
        "A lease can be renewed during its lock-delay.",
        "kv.leases:Leases.living",
        "self.time_ms < lease.deadline_ms",
        "self.time_ms < lease.due_ms",
    ),
    _lease(
        "A lease expires one entry late when it is due exactly.",
        "kv.leases:Leases.advance",
        "self._heap[0][0] > time_ms",
        "self._heap[0][0] >= time_ms",
    ),
    _lease(
        "Renewals add up.",
        "kv.leases:Leases.renew",
        "deadline_after(time_ms, lease.ttl_s)",
        "deadline_after(lease.deadline_ms, lease.ttl_s)",
    ),
    _lease(
        "The time of the log goes back with an entry of an older time.",
        "kv.store:Store._apply_batch",
        "batch.time_ms > self.time_ms",
        "True",
        f"{_LEASES} tests/kv/test_store.py",
    ),
    _lease(
        "A key that was restored from the history has no lease.",
        "kv.snapshot_versions:VersionsRestorer._replay",
        "new.lease = _lease_of(row)",
        "pass",
        _LEASE_SNAPSHOTS,
    ),
    _watch(
        "A watch cannot begin at the floor.",
        "kv.watch:Hub.add",
        "first < store.floor",
        "first <= store.floor",
    ),
    _watch(
        "The next event of those in step may be reclaimed.",
        "kv.watch:Hub._hold",
        "self._pin.revision = self._next",
        "self._pin.revision = self._next + 1",
    ),
    _watch(
        "Who was in step sees old events again after the state went back.",
        "kv.watch:Hub._go_back",
        "self._next if watcher.place is watcher.group.in_step else watcher.cursor",
        "watcher.cursor",
    ),
    _watch(
        "A watcher just below the floor goes on with a gap.",
        "kv.watch:Hub._end_below_floor",
        "watcher.cursor < floor",
        "watcher.cursor < floor - 1",
    ),
    _watch(
        "A watch from the next revision on has no progress.",
        "kv.watch:Hub.turn",
        "self._future[0][0] <= self._next",
        "self._future[0][0] < self._next",
    ),
    _watch(
        "A watch of puts does not see that a key is created.",
        "kv.watch:Hub._scan",
        "interest.puts if event.version else interest.deletes",
        "interest.puts if event.version > 1 else interest.deletes",
    ),
    _watch(
        "Watches go on while a snapshot is installed.",
        "node.watches:Watches.advance",
        "state.is_given_up",
        "False",
        "tests/service/test_watch.py",
    ),
    _watch(
        "A browser that reconnects gets its last event again.",
        "fronts.http.watch:_watch",
        "parse_integer(resumed, 'Last-Event-ID', 0, INTEGER_MAX - 1) + 1",
        "parse_integer(resumed, 'Last-Event-ID', 0, INTEGER_MAX - 1)",
        "tests/fronts/test_watch.py",
    ),
    _watch(
        "The first line of a watch promises the next revision.",
        "fronts.http.watch:Feed.run",
        "self._lines.progress(first - 1)",
        "self._lines.progress(first)",
        "tests/fronts/test_watch.py",
    ),
    _watch(
        "Other events come between the fragments of a revision.",
        "fronts.http.watch:Feed.is_full",
        "self._rest is not None or self._is_blocked",
        "self._is_blocked",
        "tests/fronts/test_watch.py",
    ),
    _row(
        "lock",
        "An attempt that is repeated goes to the end of the queue.",
        "service.queues:place_of",
        "record.create_revision",
        "record.mod_revision",
        _LOCKS,
    ),
    _lock(
        "A lease that has the lock is told that another one holds it.",
        "Locks._try",
        "queue and all(each.key != attempt.key for each in queue)",
        "queue",
    ),
    _lock(
        "A wake-up that comes at once is missed.",
        "Locks._gone",
        "self._node.store.revision + 1",
        "self._node.store.revision + 2",
    ),
    _lock(
        "A leader that was replaced as it proclaims changes its new place in the queue.",
        "Locks.proclaim",
        "Compare(key, 'create_revision', '=', token)",
        "Compare(key, 'create_revision', '>', 0)",
    ),
    _handover(
        "A number below the window is applied again.",
        "kv.origins:Origin.is_applied",
        "below >= ORIGIN_WINDOW or (below >= 0 and bool(self._applied >> below & 1))",
        "below >= 0 and bool(self._applied >> below & 1)",
        _ORIGINS,
    ),
    _handover(
        "A number that came late is applied twice.",
        "kv.origins:Origin.take",
        "self._applied |= 1 << -ahead",
        "pass",
        _ORIGINS,
    ),
    _handover(
        "A number is used that is a whole window above one outstanding.",
        "node.handover:HandOvers._has_room",
        "self._next_number < lowest + window",
        "self._next_number <= lowest + window",
    ),
    _handover(
        "A leader takes an attempt of an earlier term.",
        "node.handover_leader:Receiver._leads",
        "self._raft.leader == self._raft.id and self._raft.current_term == term",
        "self._raft.leader == self._raft.id",
    ),
    _handover(
        "A snapshot leaves out which writes were applied.",
        "kv.store:Store.begin_snapshot",
        "OriginsFrame(self._origins.rows())",
        "OriginsFrame(())",
        _ORIGINS,
    ),
)
