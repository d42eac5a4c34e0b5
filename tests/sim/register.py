"""A search for a legal order of one key's operations: the second opinion on :mod:`sim.linearizability`.

The algorithm of Wing and Gong (1993) with the memory of Lowe (2017): take any operation that nothing unfinished has to
precede, apply it to a model of one key, go on; go back when stuck; never visit the same (operations done, state) twice.
Revisions are only names of values here. Their order says which branch to try first, and nothing else.

Writes without an answer make such a search explode: each may come anywhere, or never. But those that nobody saw are
alike, but for when they began: of each sort only the one that began first needs to be tried, and none where it would
change nothing, since it need not come at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sim.history import ANY_REVISION, Operation

FOREVER = 1 << 62
State = str | None
"""The key's value; None when it does not exist."""
UNSEEN = "?"
"""Stands for any value that nobody saw; no recorded value is equal to it."""


def check_register(operations: Sequence[Operation], states_max: int) -> str | None:
    """Return None if one key's operations have a legal order, else why not, or that it could not be decided."""
    return _Search(operations).run(states_max)


class _Search:
    def __init__(self, operations: Sequence[Operation]) -> None:
        relevant = (op for op in operations if op.outcome == "ok" or op.is_open)
        self._ops = sorted(relevant, key=lambda op: op.invoked)
        self._ends = [FOREVER if op.completed is None or op.is_open else op.completed for op in self._ops]
        self._revisions: dict[State, int] = {None: 0}
        for op in self._ops:
            if op.kind == "put" and op.is_effective:
                self._revisions[op.value] = op.revision
            elif op.kind == "get" and op.outcome == "ok" and op.value is not None:
                self._revisions.setdefault(op.value, op.mod_revision)
        self._twin_before = self._twins()

    def run(self, states_max: int) -> str | None:
        required = sum(1 << position for position, op in enumerate(self._ops) if op.outcome == "ok")
        visited: set[tuple[int, State]] = {(0, None)}
        path: list[tuple[int, State, Iterator[int]]] = [(0, None, self._candidates(0, None))]
        most = 0
        while path:
            done, state, candidates = path[-1]
            if done & required == required:
                return None
            position = next(candidates, None)
            if position is None:
                path.pop()
                continue
            op = self._ops[position]
            legal, after = self._apply(op, state)
            following = done | (1 << position)
            if not legal or (op.is_open and after == state) or (following, after) in visited:
                continue
            if len(visited) >= states_max:
                return f"could not decide within {states_max} states"
            visited.add((following, after))
            most = max(most, following.bit_count())
            path.append((following, after, self._candidates(following, after)))
        return f"no legal order: at most {most} of its {len(self._ops)} operations fit"

    def _candidates(self, done: int, state: State) -> Iterator[int]:
        """Yield the positions of the operations that can come next, the likeliest first.

        What changes nothing, and is legal now, may as well come now: then there is no other branch to try.
        """
        found = []
        earliest_end = FOREVER
        for position in range((~done & (done + 1)).bit_length() - 1, len(self._ops)):
            if done >> position & 1:
                continue
            if self._ops[position].invoked > earliest_end:
                break
            twin = self._twin_before[position]
            if twin is None or done >> twin & 1:
                if self._changes_nothing(self._ops[position]) and self._apply(self._ops[position], state)[0]:
                    return iter((position,))
                found.append(position)
            earliest_end = min(earliest_end, self._ends[position])
        found.sort(key=self._likely_position)
        return iter(found)

    def _twins(self) -> list[int | None]:
        """Return for each open operation that nobody saw the last one before it that is like it."""
        last: dict[tuple[str, int], int] = {}
        twins: list[int | None] = []
        for position, op in enumerate(self._ops):
            is_unseen = op.is_open and (op.kind == "delete" or op.value not in self._revisions)
            sort = (op.kind, op.prev_revision)
            twins.append(last.get(sort) if is_unseen else None)
            if is_unseen:
                last[sort] = position
        return twins

    @staticmethod
    def _changes_nothing(op: Operation) -> bool:
        return op.outcome == "ok" and not op.is_effective

    def _likely_position(self, position: int) -> tuple[int, int]:
        op = self._ops[position]
        if op.outcome == "ok":
            return 2 * op.revision + (0 if op.is_effective else 1), position
        return 2 * self._revisions.get(op.value, FOREVER) if op.kind == "put" else FOREVER, position

    def _apply(self, op: Operation, state: State) -> tuple[bool, State]:
        """Return whether the operation's answer is legal in this state, and the state after it."""
        revision = self._revisions.get(state)  # None: a value whose revision nobody was told.
        if op.kind == "get":
            return op.value == state, state
        if op.compare_failed:
            fails = op.mod_revision != op.prev_revision
            return fails and (revision is None or revision == op.mod_revision), state
        holds = op.prev_revision == ANY_REVISION or revision is None or revision == op.prev_revision
        if op.kind == "put":
            return holds, op.value if op.value in self._revisions else UNSEEN
        if op.outcome == "ok" and op.deleted == 0:
            return state is None, state
        return holds and state is not None, None
