"""etcd's transactions, naively: a list of every change that ever happened, and searches through it.

It shares the types with the real thing, and no line of logic.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kvorum.kv.operations import (
    Compare,
    DeleteRangeOp,
    Operation,
    PutOp,
    RangeOp,
    TxnOp,
)

Answer = tuple[object, ...]


@dataclass
class Version:
    """A key as it was at a revision."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


class RefusedError(Exception):
    """Nothing is done; the argument says why."""


@dataclass
class TxnModel:
    """``changes``: revision, key, and value (None: deleted), in order."""

    revision: int = 1
    floor: int = 1
    changes: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)

    def read(self, key: bytes, end: bytes, revision: int) -> list[Version]:
        """Return the keys of a range as they were at a revision, in order."""
        found: dict[bytes, Version] = {}
        for at, changed, value in self.changes:
            if at > revision or not _is_in(changed, key, end):
                continue
            if value is None:
                found.pop(changed, None)
            elif changed in found:
                old = found[changed]
                found[changed] = replace(old, value=value, mod_revision=at, version=old.version + 1)
            else:
                found[changed] = Version(changed, value, at, at, 1)
        return [found[each] for each in sorted(found)]

    def apply(self, txn: TxnOp) -> tuple[bool, list[Answer]]:
        """Do a transaction, or raise RefusedError and do nothing."""
        _check_duplicates(txn)
        before = TxnModel(self.revision, self.floor, list(self.changes))
        self._check(txn, before)
        return self._do(txn, before)

    def _branch(self, txn: TxnOp, before: TxnModel) -> tuple[bool, tuple[Operation, ...]]:
        succeeded = all(before.holds(compare) for compare in txn.compares)
        return succeeded, txn.then if succeeded else txn.otherwise

    def holds(self, compare: Compare) -> bool:
        """Tell whether a compare holds now."""
        actuals: list[object] = [
            getattr(each, compare.target) for each in self.read(compare.key, compare.end, self.revision)
        ]
        if not actuals and compare.target == "value":
            return False
        return all(_is_true(each, compare.result, compare.operand) for each in actuals or [0])

    def _check(self, txn: TxnOp, before: TxnModel) -> None:
        for each in self._branch(txn, before)[1]:
            if isinstance(each, TxnOp):
                self._check(each, before)
            elif isinstance(each, PutOp) and each.ignore_value and not before.read(each.key, b"", before.revision):
                raise RefusedError("key_not_found")
            elif isinstance(each, RangeOp) and each.revision > before.revision:
                raise RefusedError("future")
            elif isinstance(each, RangeOp) and 0 < each.revision < before.floor:
                raise RefusedError("compacted")

    def _do(self, txn: TxnOp, before: TxnModel) -> tuple[bool, list[Answer]]:
        succeeded, branch = self._branch(txn, before)
        return succeeded, [self._operation(each, before) for each in branch]

    def _operation(self, each: Operation, before: TxnModel) -> Answer:
        mine = before.revision + 1
        if isinstance(each, TxnOp):
            return ("txn", *self._do(each, before))
        if isinstance(each, RangeOp):
            found = self.read(each.key, each.end, each.revision or self.revision)
            count = len(found)
            found = found[::-1] if each.descending else found
            found = found[: each.limit] if each.limit else found
            if each.keys_only:
                found = [replace(version, value=b"") for version in found]
            if each.count_only:
                return "range", self.revision, count, [], False
            return "range", self.revision, count, found, len(found) < count
        if isinstance(each, PutOp):
            old = self.read(each.key, b"", self.revision)
            self.revision = mine
            self.changes.append((mine, each.key, old[0].value if each.ignore_value else each.value))
            [new] = self.read(each.key, b"", mine)
            return "put", mine, new.create_revision, new.version, old if each.prev_value else []
        assert isinstance(each, DeleteRangeOp)
        gone = self.read(each.key, each.end, self.revision)
        for version in gone:
            self.revision = mine
            self.changes.append((mine, version.key, None))
        return "delete", self.revision, len(gone), gone if each.prev_values else []


def _is_in(key: bytes, start: bytes, end: bytes) -> bool:
    if end == b"":
        return key == start
    return start <= key and (end == b"\0" or key < end)


def _is_true(actual: object, result: str, operand: object) -> bool:
    values = [actual, operand]
    ordered = sorted(values)  # type: ignore[type-var]
    if result == "=":
        return actual == operand
    if result == "!=":
        return actual != operand
    return actual != operand and ordered[0 if result == "<" else 1] == actual


def _check_duplicates(txn: TxnOp) -> None:
    """Try every way through the branches: none may put a key twice, or put and delete it."""
    for ways in (_ways(txn.then), _ways(txn.otherwise)):
        for way in ways:
            for number, (kind, key, end) in enumerate(way):
                for other_kind, other_key, other_end in way[number + 1 :]:
                    if "put" not in (kind, other_kind):
                        continue
                    put, within = (key, (other_key, other_end)) if kind == "put" else (other_key, (key, end))
                    if _is_in(put, *within):
                        raise RefusedError("duplicate")


Way = list[tuple[str, bytes, bytes]]


def _ways(operations: tuple[Operation, ...]) -> list[Way]:
    """Return, for each combination of outcomes, what is put and what is deleted."""
    ways: list[Way] = [[]]
    for each in operations:
        if isinstance(each, PutOp):
            more: list[Way] = [[("put", each.key, b"")]]
        elif isinstance(each, DeleteRangeOp):
            more = [[("delete", each.key, each.end)]]
        elif isinstance(each, TxnOp):
            more = _ways(each.then) + _ways(each.otherwise)
        else:
            continue
        ways = [way + addition for way in ways for addition in more]
    return ways
