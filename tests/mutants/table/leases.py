"""Mutants of leases: when they end, what ends with them, and what a snapshot keeps."""

from __future__ import annotations

from mutants.mutant import Mutant

_RULES = "tests/kv/test_leases.py"
_FRONT = "tests/fronts/test_leases.py -k list"
_SNAPSHOTS = "tests/kv/test_lease_snapshots.py"


def _row(fault: str, where: str, old: str, new: str, tests: str = _RULES) -> Mutant:
    return Mutant("leases", fault, where, old, new, tests, simulated=False)


MUTANTS = (
    _row(
        "The deadline of a grant counts from the time before its entry: it is over at once after an idle hour.",
        "kv.lease_commands:_grant",
        "deadline_after(state.time_ms, ttl_s)",
        "deadline_after(state.leases.time_ms, ttl_s)",
    ),
    _row(
        "The deadline of a renewal counts from the time before its entry.",
        "kv.lease_commands:_renew",
        "state.leases.renew(lease, state.time_ms)",
        "state.leases.renew(lease, state.leases.time_ms)",
    ),
    _row(
        "A renewal tests the time of its own entry: the first one after a pause ends a lease that still lives.",
        "kv.store:Store._apply_batch",
        "self.time_ms = batch.time_ms",
        "self.time_ms = self.leases.time_ms = batch.time_ms",
    ),
    _row(
        "A lease expires one millisecond too early.",
        "kv.leases:Leases.advance",
        "self._heap[0][0] > time_ms",
        "self._heap[0][0] > time_ms + 1",
    ),
    _row(
        "A lease still lives at its deadline.",
        "kv.leases:Leases.living",
        "self.time_ms < lease.deadline_ms",
        "self.time_ms <= lease.deadline_ms",
    ),
    _row(
        "A lease whose deadline passed is renewed while its keys wait for their delay.",
        "kv.lease_commands:_renew",
        "state.leases.living(command.id)",
        "state.leases.get(command.id)",
    ),
    _row(
        "A key is given to a lease whose deadline passed.",
        "kv.txn:_Planner._check_lease",
        "self._leases.living(lease)",
        "self._leases.get(lease)",
    ),
    _row(
        "The lock-delay is ignored: the keys go with the deadline.",
        "kv.leases:Lease.due_ms",
        "self.deadline_ms + self.delay_s * _MS_PER_S",
        "self.deadline_ms",
    ),
    _row(
        "A revoke finds no lease during its lock-delay.",
        "kv.lease_commands:_revoke",
        "state.leases.get(command.id)",
        "state.leases.living(command.id)",
    ),
    _row(
        "The keys of an expired lease stay.",
        "kv.lease_commands:expire",
        "_delete(keys, state)",
        "pass",
    ),
    _row(
        "The keys of a revoked lease stay.",
        "kv.lease_commands:_revoke",
        "_delete(keys, state)",
        "pass",
    ),
    _row(
        "The keys of a lease are deleted in the order in which they were attached.",
        "kv.leases:Leases._remove",
        "sorted(lease.keys)",
        "list(lease.keys)",
    ),
    _row(
        "Each key of a lease takes a revision of its own.",
        "kv.lease_commands:_delete",
        "state.remove_record(state.versions.records[key], revision)",
        "state.remove_record(state.versions.records[key], state.revision + 1)",
    ),
    _row(
        "A lease without keys makes a revision.",
        "kv.lease_commands:_delete",
        "revision = state.revision + 1",
        "revision = state.revision = state.revision + 1",
    ),
    _row(
        "Leases expire in the order of their grants: one that is due waits for one that is not.",
        "kv.leases:Leases.restore",
        "heappush(self._heap, (lease._place_ms, row.id))",
        "self._heap.append((lease._place_ms, row.id))",
    ),
    _row(
        "A renewed lease expires when it was due before.",
        "kv.leases:Leases._settle",
        "place_ms < (due_ms := lease.due_ms)",
        "place_ms < (due_ms := place_ms)",
    ),
    _row(
        "Places of leases that were revoked fill the memory until they would have been due.",
        "kv.leases:Leases._remove",
        "len(self._heap) > 2 * len(self._leases) + _STALE_PLACES_MIN",
        "False",
    ),
    _row(
        "One entry expires everything that is due, however much.",
        "kv.leases:Leases.advance",
        "size > left and left < LEASE_EXPIRY_MAX",
        "False",
    ),
    _row(
        "A lease with more keys than one entry expires stays for ever, and so do all after it.",
        "kv.leases:Leases.advance",
        "size > left and left < LEASE_EXPIRY_MAX",
        "size > left",
    ),
    _row(
        "A put without a lease leaves the key attached: the end of the old lease deletes it.",
        "kv.store:Store._attach",
        "self.leases.detach(record.key, before)",
        "pass",
    ),
    _row(
        "A deleted key stays attached to its lease.",
        "kv.store:Store.remove_record",
        "self.leases.detach(old.key, old.lease)",
        "pass",
    ),
    _row(
        "A transaction gives a lease more keys than it may have, one by one all allowed.",
        "kv.txn:_Planner._check_lease",
        "self._attached.get(lease, 0) + 1",
        "1",
    ),
    _row(
        "A key that has the lease already counts again, and a full lease cannot be written.",
        "kv.txn:_Planner._check_lease",
        "old is None or old.lease != lease",
        "True",
    ),
    _row(
        "A put that keeps the lease of its key creates a key without one.",
        "kv.txn:_Planner._check_lease",
        "put.ignore_lease and old is None",
        "False",
    ),
    _row(
        "A put that keeps the lease takes it away.",
        "kv.txn:_lease_of",
        "put.ignore_lease and old is not None",
        "False",
    ),
    _row(
        "The records of a range without values have no lease (etcd#22209).",
        "kv.txn:_without_value",
        "record.lease",
        "0",
    ),
    _row(
        "A member of level 4 gets a transaction that it cannot decode.",
        "kv.features:check_command_level",
        "level < LEASE_LEVEL and isinstance(command, Txn) and has_lease(command)",
        "False",
    ),
    _row(
        "A lease is granted below its level: a member of level 4 has another state.",
        "kv.store:Store._change_lease",
        "self._changes is None or self.feature_level < LEASE_LEVEL",
        "self._changes is None",
    ),
    _row(
        "A put gets a lease below the level of leases.",
        "kv.store:Store._txn",
        "self.feature_level < LEASE_LEVEL and has_lease(command)",
        "False",
    ),
    _row(
        "Leases take no room of the quota.",
        "kv.store:Store.kept_bytes",
        "self.leases.used_bytes",
        "0",
    ),
    _row(
        "A full state takes grants until the memory is full.",
        "kv.store:Store._change_lease",
        "self.quota.is_full",
        "False",
    ),
    _row(
        "The state hash covers no renewal: a node that missed one is not found.",
        "kv.lease_commands:_renew",
        "changes.lease(lease.id, lease.ttl_s, lease.delay_s, lease.deadline_ms)",
        "pass",
    ),
    _row(
        "The state hash covers no expiry of a lease without keys.",
        "kv.lease_commands:expire",
        "changes.lease_end(lease.id, is_expiry=True)",
        "pass",
    ),
    _row(
        "The sum over the records does not cover their leases.",
        "kv.state_hash:RecordSum.hash_of",
        "digest.update(_pack_lease_id(record.lease))",
        "pass",
    ),
    _row(
        "A snapshot has the deadline that a lease has when it is written, not when the snapshot began.",
        "kv.leases:Leases.renew",
        "self._preserve(lease)",
        "pass",
        _SNAPSHOTS,
    ),
    _row(
        "A lease that ends under a snapshot is missing in it.",
        "kv.leases:Leases._remove",
        "self._preserve(lease)",
        "pass",
        _SNAPSHOTS,
    ),
    _row(
        "A restored lease counts from its restore.",
        "kv.leases:Lease.row",
        "self.deadline_ms",
        "0",
        _SNAPSHOTS,
    ),
    _row(
        "A restored lease has no lock-delay.",
        "kv.leases:Lease.row",
        "self.delay_s",
        "0",
        _SNAPSHOTS,
    ),
    _row(
        "A restored version of a key has no lease.",
        "kv.cut:_leased_row",
        "record.lease",
        "0",
        _SNAPSHOTS,
    ),
    _row(
        "A restored lease has lost its keys: they outlive it.",
        "kv.snapshot_versions:VersionsRestorer._take",
        "self._attach(row.key, lease)",
        "pass",
        _SNAPSHOTS,
    ),
    _row(
        "A restored node takes a lease that is over for one that lives.",
        "kv.store:Store.restored",
        "leases.time_ms = header.time_ms",
        "pass",
        _SNAPSHOTS,
    ),
    _row(
        "A snapshot is restored whose record has a lease that is not there.",
        "kv.snapshot_versions:VersionsRestorer._attach",
        "leases.get(lease) is None",
        "False",
        _SNAPSHOTS,
    ),
    _row(
        "A long list of leases holds the event loop.",
        "service.leases:Leases._let_others_run",
        "await asyncio.sleep(0)",
        "pass",
        _FRONT,
    ),
    _row(
        "A page of leases that all ended meanwhile is empty and says that there are more: lists of clients end there.",
        "service.leases:Leases._list",
        "states or not has_more",
        "True",
        _FRONT,
    ),
    _row(
        "A node whose state turned out to be wrong lists leases on.",
        "service.leases:Leases._let_others_run",
        "self._node.check_serves()",
        "pass",
        _FRONT,
    ),
    _row(
        "The answer with a long list of leases is made in one go.",
        "fronts.http.leases:_listed",
        "await asyncio.sleep(0)",
        "pass",
        _FRONT,
    ),
)
