"""Mutants of the history: old versions, compaction, pins, and the snapshots that carry them."""

from __future__ import annotations

from mutants.mutant import Mutant

_RULES = "tests/kv/test_history.py"
_SNAPSHOTS = "tests/kv/test_restored_history.py"
_MACHINE = "tests/kv/test_history_machine.py"


def _row(fault: str, where: str, old: str, new: str, tests: str) -> Mutant:
    return Mutant("history", fault, where, old, new, tests, simulated=False)


MUTANTS = (
    _row(
        "The raise to the level of the history takes no revision, so that a new cluster begins at 0.",
        "kv.store:Store._raise_feature_level",
        "self.revision += 1",
        "pass",
        _RULES,
    ),
    _row(
        "A read at the revision below the floor is answered, by each node from what it has not reclaimed yet.",
        "kv.store:Store.check_revision",
        "revision < self.floor",
        "revision < self.floor - 1",
        _RULES,
    ),
    _row(
        "A read of the future is answered.",
        "kv.store:Store.check_revision",
        "revision > self.revision",
        "False",
        _RULES,
    ),
    _row(
        "A read at an old revision is answered with the latest version.",
        "kv.store:Store.get",
        "self.versions.at(key, revision)",
        "self.versions.records.get(key)",
        _RULES,
    ),
    _row(
        "A compaction at the floor is done again instead of refused.",
        "kv.store:Store._compact",
        "command.revision <= floor",
        "command.revision < floor",
        _RULES,
    ),
    _row(
        "A compaction above the latest revision is done: nothing can be read any more.",
        "kv.store:Store._compact",
        "command.revision > self.revision",
        "False",
        _RULES,
    ),
    _row(
        "A compaction below its level is done.",
        "kv.store:Store._compact",
        "self.feature_level < HISTORY_LEVEL",
        "False",
        _RULES,
    ),
    _row(
        "Two nodes with different floors have one state hash.",
        "kv.store:Store._compact",
        "self._changes.floor(command.revision)",
        "pass",
        _RULES,
    ),
    _row(
        "Reclaim forgets the events at the floor, where a watch may begin.",
        "kv.versions:Versions.reclaim",
        "min(self.floor or INTEGER_MAX, kept) - 1",
        "min(self.floor or INTEGER_MAX, kept)",
        _RULES,
    ),
    _row(
        "Reclaim ignores pins: a reader in slices, or a snapshot, sees versions vanish.",
        "kv.versions:Versions.reclaim",
        "min([pin.revision for pin in self._pins], default=INTEGER_MAX)",
        "INTEGER_MAX",
        _RULES,
    ),
    _row(
        "A released pin is kept, and memory is never freed again.",
        "kv.versions:Versions._release",
        "each is not pin",
        "True",
        _RULES,
    ),
    _row(
        "A tombstone stays for ever.",
        "kv.versions:Versions.reclaim",
        "newest is event and not event.version",
        "False",
        _RULES,
    ),
    _row(
        "A version that is visible at the floor is dropped.",
        "kv.versions:_drop",
        "count and older[count - 1].version",
        "False",
        _MACHINE,
    ),
    _row(
        "A tombstone between two versions is kept below the floor.",
        "kv.versions:_drop",
        "count and older[count - 1].version",
        "count",
        _RULES,
    ),
    _row(
        "A slice of reclaim that ends in the middle of a key's versions leaves the rest for ever.",
        "kv.versions:Versions.reclaim",
        "dropped and visited >= budget",
        "False",
        _RULES,
    ),
    _row(
        "A replaced version counts nothing towards the quota.",
        "kv.versions:Versions.put",
        "len(old_value) + VERSION_OVERHEAD_BYTES",
        "0",
        _RULES,
    ),
    _row(
        "A tombstone counts nothing towards the quota.",
        "kv.versions:Versions.delete",
        "len(old.value) + VERSION_OVERHEAD_BYTES + len(key) + TOMBSTONE_OVERHEAD_BYTES",
        "len(old.value) + VERSION_OVERHEAD_BYTES",
        _RULES,
    ),
    _row(
        "A compaction frees nothing of the quota.",
        "kv.versions:Versions.set_floor",
        "self._floor_bytes = self._log.bytes_before(self._log.position(revision))",
        "pass",
        _RULES,
    ),
    _row(
        "The floor that is to free enough frees one event less.",
        "kv.versions:Versions.revision_to_free",
        "last + 1",
        "last",
        _RULES,
    ),
    _row(
        "A key that was created anew has forgotten that it existed before.",
        "kv.versions:Versions.put",
        "_with_older(tombstone) if self._is_kept else None",
        "None",
        _RULES,
    ),
    _row(
        "The base of a snapshot has what is visible at the floor, whose events it has as well.",
        "kv.cut:HistoryCut._visit",
        "(self._versions, self._floor - 1, self._revision)",
        "(self._versions, self._floor, self._revision)",
        _SNAPSHOTS,
    ),
    _row(
        "A snapshot has events that are later than its revision.",
        "kv.cut:HistoryCut._events",
        "min(limit, self._end - self._position)",
        "limit",
        _SNAPSHOTS,
    ),
    _row(
        "A snapshot does not pin its floor, and loses what is compacted while it is written.",
        "kv.cut:HistoryCut.__init__",
        "self._pin = versions.pin(versions.floor)",
        "self._pin = versions.pin(revision)",
        _SNAPSHOTS,
    ),
    _row(
        "The bytes of a snapshot depend on how much its node has reclaimed.",
        "kv.cut:HistoryCut.next_frame",
        "not is_full and (self._cursor is not None or not self._rows)",
        "not self._rows",
        _SNAPSHOTS,
    ),
    _row(
        "A restored state has another floor.",
        "kv.snapshot_versions:VersionsRestorer.__init__",
        "versions.set_floor(frame.floor)",
        "versions.set_floor(revision)",
        _SNAPSHOTS,
    ),
    _row(
        "The order of the events of a snapshot is not checked.",
        "kv.snapshot_versions:VersionsRestorer.take_events",
        "self._last_revision <= row.mod_revision <= self._revision",
        "self._floor <= row.mod_revision <= self._revision",
        _SNAPSHOTS,
    ),
    _row(
        "The order of the keys of a snapshot is not checked, and ranges are wrong ever after.",
        "kv.snapshot_versions:VersionsRestorer.take_base",
        "row.key <= self._last_key",
        "False",
        _SNAPSHOTS,
    ),
    _row(
        "An event that does not follow from the version before it is restored.",
        "kv.snapshot_versions:VersionsRestorer._replay",
        "(new.create_revision, new.version) != (row.create_revision, row.version)",
        "False",
        _SNAPSHOTS,
    ),
    _row(
        "A key that changes twice at one revision is restored.",
        "kv.snapshot_versions:VersionsRestorer._replay",
        "newest is not None and newest.mod_revision == revision",
        "False",
        _SNAPSHOTS,
    ),
    _row(
        "A snapshot with fewer events than it announces is restored.",
        "kv.snapshot_versions:VersionsRestorer.check_complete",
        "self._events != self._events_expected",
        "False",
        _SNAPSHOTS,
    ),
    _row(
        "Replaced versions are counted in the sum of a snapshot.",
        "kv.snapshot_versions:VersionsRestorer._take",
        "not row.is_latest",
        "False",
        _SNAPSHOTS,
    ),
    _row(
        "A snapshot whose sum covers another version than the latest one is restored.",
        "kv.snapshot_versions:VersionsRestorer.check_complete",
        "self._replaced",
        "False",
        _SNAPSHOTS,
    ),
    _row(
        "The revisions of a restored backup can be read, which mean something else than in the old cluster.",
        "kv.store:Store.bump_revision",
        "self.versions.set_floor(self.revision)",
        "pass",
        _RULES,
    ),
    _row(
        "Below its level history is kept after a snapshot, and nobody ever compacts it.",
        "kv.versions:Versions._release",
        "self._is_kept = bool(self.floor or self._pins)",
        "pass",
        "tests/kv/test_snapshot.py",
    ),
    _row(
        "A range that ends in the middle of a chunk has keys beyond its end.",
        "kv.keys:Keys.ascending",
        "end is not None and chunk[stop - 1] >= end",
        "False",
        "tests/kv/test_keys.py",
    ),
    _row(
        "An empty chunk stays, and a count or a slice ends at it.",
        "kv.keys:Keys.remove",
        "not chunk",
        "False",
        "tests/kv/test_keys.py",
    ),
)
