"""Whether a recorded history is linearizable, each write applied at most once, and no acknowledged write lost.

Every answer carries a revision, so the order of the writes is known, and the check is a sort and one sweep, O(n log n),
instead of a search:

- an effective write with revision r takes place at position r; a read (or anything that changed nothing) that was
  answered at revision R takes place after write R and before write R + 1;
- if a took place before b, then b must not have ended before a began;
- what each answer says must be what a replay of the writes up to its position gives.

A write without an answer may have taken place at any time after it began, or never. Where the log of applied writes is
given, its fate is looked up there. Otherwise a put is found by its value, which must be unique in the history, in what
others read; a delete, which leaves no trace of its own, only explains an absence that nothing else explains.
:mod:`sim.register` is the second opinion: a search that does not trust the order of revisions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from sim.history import ANY_REVISION, Applied, Operation, Violation
from sim.register import check_register

FOREVER = 1 << 62
OTHERS = ("raise", "txn", "lease")
"""Of the log, what takes a revision and is no write of one key: the raise of the feature level from which on there is a
history, a transaction, which :mod:`sim.tellers` judges, and the end of a lease (:mod:`sim.lease_invariants`)."""
SAMPLE_OPERATIONS_MAX = 600
"""Keys with more operations than this are not searched."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A key's state from one write on: ``value`` None means that it was deleted."""

    revision: int
    value: str | None
    create_revision: int
    version: int

    @property
    def mod_revision(self) -> int:
        """The key's mod_revision as an answer would give it: 0 when it does not exist."""
        return 0 if self.value is None else self.revision


NEVER_WRITTEN = Record(0, None, 0, 0)


class History:
    """The operations and the writes that took place, as far as they are known.

    Args:
        operations: in any order.
        log: every write that was applied, from the first revision on, or None if the log is not known.
    """

    def __init__(self, operations: Sequence[Operation], log: Sequence[Applied] | None) -> None:
        self.operations = operations
        self.log = log
        self.by_key: dict[str, list[Operation]] = {}
        self.puts: dict[str | None, Operation] = {}
        self.requests: dict[tuple[str, int], Operation] = {}
        for op in operations:
            self.by_key.setdefault(op.key, []).append(op)
            if op.kind == "put":
                self.puts[op.value] = op
            if op.sequence:
                self.requests[op.client, op.sequence] = op
        log = None if log is None else sorted(log, key=lambda write: write.revision)
        self.others = {each.revision for each in log or () if each.kind in OTHERS}
        """Revisions without a write of one key."""
        self.writes = _writes_seen(operations) if log is None else [each for each in log if each.kind not in OTHERS]
        self.records: dict[str, list[Record]] = {}
        for write in self.writes:
            _replay(self.records.setdefault(write.key, []), write)
        self._revisions = {key: [record.revision for record in records] for key, records in self.records.items()}
        found = {id(self.owner(write)) for write in self.writes}
        self._open: dict[str, list[Operation]] = {}
        if log is None:
            for op in operations:
                if op.is_open and id(op) not in found:
                    self._open.setdefault(op.key, []).append(op)

    def owner(self, write: Applied) -> Operation | None:
        """Return the operation that made this write, or None if that is not known."""
        if write.kind == "put":
            return self.puts.get(write.value)
        return self.requests.get((write.client, write.sequence)) if write.sequence else None

    def at(self, key: str, revision: int) -> Record:
        """Return the key's record after write ``revision``."""
        position = bisect_right(self._revisions.get(key, []), revision)
        return self.records[key][position - 1] if position else NEVER_WRITTEN

    def may_be(self, op: Operation, expected: int, seen: int) -> bool:
        """Tell whether the key's mod_revision can have been ``seen``, though the known writes give ``expected``.

        Without the log, a write without an answer may have come between, unseen by anybody else.
        """
        if expected == seen:
            return True
        kind = "delete" if seen == 0 else "put"
        if seen and seen < expected:
            return False
        end = FOREVER if op.completed is None else op.completed
        return any(other.kind == kind and other.invoked <= end for other in self._open.get(op.key, ()))

    def is_certain(self, key: str) -> bool:
        """Tell whether the fate of every write of this key is known."""
        return key not in self._open


def check_history(
    operations: Sequence[Operation],
    log: Sequence[Applied] | None = None,
    *,
    sampled_keys: int = 4,
    states_max: int = 200_000,
) -> list[Violation]:
    """Return every broken promise in the history; an empty list means that it is linearizable.

    Args:
        operations: the history, in any order.
        log: every write that was applied, from the first revision on, if it is known.
        sampled_keys: how many keys, those with the most operations first, the search of :mod:`sim.register` checks too.
        states_max: the search's budget a key; a search that cannot decide within it is a violation, too.
    """
    history = History(operations, log)
    checks: tuple[Callable[[History], Iterable[str]], ...] = (
        the_history_is_well_formed,
        a_revision_is_created_once,
        a_write_is_applied_once,
        a_refused_write_is_never_found,
        an_acknowledged_write_is_never_lost,
        every_value_was_written,
        the_order_respects_real_time,
        answers_equal_a_replay,
    )
    found = [Violation(check.__name__, detail) for check in checks for detail in check(history)]
    fitting = [key for key, ops in history.by_key.items() if len(ops) <= SAMPLE_OPERATIONS_MAX]
    for key in sorted(fitting, key=lambda key: (-len(history.by_key[key]), key))[:sampled_keys]:
        verdict = check_register(history.by_key[key], states_max)
        if verdict is not None:
            found.append(Violation("a_search_finds_an_order", f"key {key}: {verdict}"))
    return found


def _writes_seen(operations: Sequence[Operation]) -> list[Applied]:
    """Return the writes that were acknowledged, and those whose value somebody read, by revision."""
    seen: dict[tuple[int, str, str], Applied] = {}
    for op in operations:
        if op.is_effective:
            value = op.value if op.kind == "put" else None
            seen[op.revision, op.key, value or ""] = Applied(
                op.revision, op.kind, op.key, value, op.client, op.sequence
            )
    for op in operations:
        if op.kind == "get" and op.outcome == "ok" and op.value is not None:
            write = Applied(op.mod_revision, "put", op.key, op.value)
            seen.setdefault((op.mod_revision, op.key, op.value), write)
    return [seen[at] for at in sorted(seen)]


def _replay(records: list[Record], write: Applied) -> None:
    last = records[-1] if records else NEVER_WRITTEN
    if write.kind == "delete":
        records.append(Record(write.revision, None, 0, 0))
    elif last.value is None:
        records.append(Record(write.revision, write.value, write.revision, 1))
    else:
        records.append(Record(write.revision, write.value, last.create_revision, last.version + 1))


# --- The checks: each yields what it finds, in words ---------------------------------------------------------------


def the_history_is_well_formed(history: History) -> Iterator[str]:
    """The recorder kept its own promises: without them the other checks mean nothing."""
    puts = sum(op.kind == "put" for op in history.operations)
    if puts != len(history.puts):
        yield f"{puts} puts wrote only {len(history.puts)} different values"
    requests = sum(op.sequence > 0 for op in history.operations)
    if requests != len(history.requests):
        yield f"{requests} requests share {len(history.requests)} names (client, sequence)"
    for op in history.operations:
        if op.kind not in ("put", "delete", "get") or op.outcome not in ("ok", "refused", "unknown"):
            yield f"no such kind or outcome: {op}"
        if op.outcome == "ok" and op.completed is None:
            yield f"answered, but never completed: {op}"
        if op.completed is not None and op.completed < op.invoked:
            yield f"completed before it was invoked: {op}"


def a_revision_is_created_once(history: History) -> Iterator[str]:
    """A revision belongs to one write; the log, where it is known, has no gap."""
    last: Applied | None = None
    for write in history.writes:
        if last is not None and write.revision == last.revision:
            yield f"revision {write.revision} was created by two writes: {last} and {write}"
        elif last is not None and history.log is not None and write.revision != _next(history, last.revision):
            yield f"revision {write.revision} follows {last.revision}"
        last = write


def _next(history: History, revision: int) -> int:
    following = revision + 1
    while following in history.others:
        following += 1
    return following


def a_write_is_applied_once(history: History) -> Iterator[str]:
    """A retried write changes the state once (thesis 6.3)."""
    by_value: dict[str, Applied] = {}
    by_request: dict[tuple[str, int], Applied] = {}
    for write in history.writes:
        if write.kind == "put" and write.value is not None:
            first = by_value.setdefault(write.value, write)
            if first is not write:
                yield f"value {write.value} was written twice, at {first.revision} and {write.revision}"
        if write.sequence:
            first = by_request.setdefault((write.client, write.sequence), write)
            if first is not write:
                yield f"{write.client}/{write.sequence} was applied twice, at {first.revision} and {write.revision}"


def a_refused_write_is_never_found(history: History) -> Iterator[str]:
    """What was reported as certainly not done is not done, then or later."""
    for write in history.writes:
        owner = history.owner(write)
        if owner is not None and (owner.outcome == "refused" or owner.compare_failed):
            yield f"{owner} was refused, but it is revision {write.revision}"


def an_acknowledged_write_is_never_lost(history: History) -> Iterator[str]:
    """Every acknowledged write is in the log, at the revision that was answered."""
    if history.log is None:
        return  # Then it counts as a write that took place, and every later answer is held against it.
    log = {write.revision: write for write in history.log}
    for op in history.operations:
        if op.is_effective:
            found = log.get(op.revision)
            value = op.value if op.kind == "put" else None
            if found is None or (found.kind, found.key, found.value) != (op.kind, op.key, value):
                yield f"{op} was acknowledged, but revision {op.revision} is {found}"


def every_value_was_written(history: History) -> Iterator[str]:
    """Nobody reads, and no log holds, what nobody wrote to that key."""
    for op in history.operations:
        if op.kind == "get" and op.value is not None:
            put = history.puts.get(op.value)
            if put is None or put.key != op.key:
                yield f"{op} found a value that nobody wrote there"
    for write in history.log or ():
        if write.kind == "put":
            put = history.puts.get(write.value)
            if put is None or put.key != write.key:
                yield f"{write} is a value that nobody wrote there"


def the_order_respects_real_time(history: History) -> Iterator[str]:
    """What takes place later in the order of revisions did not end before something earlier in it began."""
    latest: Operation | None = None  # Of all at lower positions, the one that began last.
    placed = sorted(_positions(history), key=lambda item: item[0])
    start = 0
    while start < len(placed):
        stop = start
        while stop < len(placed) and placed[stop][0] == placed[start][0]:
            stop += 1
        group = [op for _, op in placed[start:stop]]
        for op in group:
            if latest is not None and op.completed is not None and op.completed < latest.invoked:
                yield f"{op} ended before {latest} began, yet it is ordered after it"
        for op in group:
            if latest is None or op.invoked > latest.invoked:
                latest = op
        start = stop


def _positions(history: History) -> Iterator[tuple[int, Operation]]:
    for op in history.operations:
        if op.outcome == "ok":
            yield 2 * op.revision + (0 if op.is_effective else 1), op
    for write in history.writes:
        owner = history.owner(write)
        if owner is not None and owner.is_open:
            yield 2 * write.revision, owner


def answers_equal_a_replay(history: History) -> Iterator[str]:
    """Every answer is what the writes before it, replayed in the order of their revisions, give."""
    for op in history.operations:
        if op.outcome == "ok":
            problem = _disagreement(history, op)
            if problem is not None:
                yield f"{op}: {problem}"
    for write in history.writes:
        owner = history.owner(write)
        if owner is not None and owner.is_open and owner.prev_revision != ANY_REVISION:
            before = history.at(write.key, write.revision - 1).mod_revision
            if not history.may_be(owner, before, owner.prev_revision):
                yield f"{owner} became revision {write.revision}, but the key was at {before}"


def _disagreement(history: History, op: Operation) -> str | None:
    """Return how the answer differs from the replay, or None."""
    if op.is_effective:
        return _write_disagreement(history, op)
    record = history.at(op.key, op.revision)
    if op.compare_failed:
        if op.mod_revision == op.prev_revision:
            return "the comparison failed, although it holds"
        seen = op.mod_revision
    elif op.kind == "delete":
        seen = 0
    else:
        seen = op.mod_revision
        if (seen == 0) != (op.value is None):
            return "a value without a revision, or a revision without a value"
    if not history.may_be(op, record.mod_revision, seen):
        return f"at revision {op.revision} the replay has {record}"
    if op.kind == "get" and seen == record.mod_revision and op.value != record.value:
        return f"at revision {op.revision} the replay has the value {record.value}"
    return _counters_disagreement(history, op, record) if op.kind == "get" else None


def _write_disagreement(history: History, op: Operation) -> str | None:
    before = history.at(op.key, op.revision - 1).mod_revision
    if op.prev_revision != ANY_REVISION and not history.may_be(op, before, op.prev_revision):
        return f"the comparison held, although the key was at {before}"
    if op.kind == "delete" and before == 0 and history.is_certain(op.key):
        return "it deleted a key that did not exist"
    record = history.at(op.key, op.revision)
    if op.kind == "put" and record.revision == op.revision:
        return _counters_disagreement(history, op, record)
    return None


def _counters_disagreement(history: History, op: Operation, record: Record) -> str | None:
    if op.version and history.is_certain(op.key):
        answered = (op.create_revision, op.version)
        if answered != (record.create_revision, record.version):
            return f"create_revision and version are {answered}, the replay has {record}"
    return None
