"""The checker on histories that are known to be good, and on histories each of which breaks one promise."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from sim.history import Applied, Operation
from sim.linearizability import check_history
from sim.register import check_register


def put(value: str, revision: int, invoked: int, completed: int, **more: object) -> Operation:
    fields = {"create_revision": 0, "version": 0, **more}
    return Operation(
        kind="put", key="k", value=value, revision=revision, mod_revision=revision, invoked=invoked,
        completed=completed, outcome="ok", **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def get(value: str | None, mod_revision: int, revision: int, invoked: int, completed: int) -> Operation:
    return Operation(
        kind="get", key="k", value=value, mod_revision=mod_revision, revision=revision, invoked=invoked,
        completed=completed, outcome="ok",
    )  # fmt: skip


def delete(revision: int, invoked: int, completed: int, deleted: int = 1) -> Operation:
    return Operation(
        kind="delete", key="k", deleted=deleted, revision=revision, invoked=invoked, completed=completed, outcome="ok"
    )


def lost_put(value: str, invoked: int, outcome: str = "unknown", **more: object) -> Operation:
    return Operation(kind="put", key="k", value=value, invoked=invoked, outcome=outcome, **more)  # type: ignore[arg-type]


def lost_delete(invoked: int) -> Operation:
    return Operation(kind="delete", key="k", invoked=invoked)


def checks(operations: Sequence[Operation], log: Sequence[Applied] | None = None) -> set[str]:
    return {violation.check for violation in check_history(operations, log)}


GOOD: dict[str, list[Operation]] = {
    "sequential": [put("a", 1, 0, 1), get("a", 1, 1, 2, 3), put("b", 2, 4, 5), get("b", 2, 2, 6, 7)],
    "a read overlaps a write and sees the old value": [put("a", 1, 0, 1), put("b", 2, 2, 9), get("a", 1, 1, 3, 4)],
    "a read overlaps a write and sees the new value": [put("a", 1, 0, 1), put("b", 2, 2, 9), get("b", 2, 2, 3, 4)],
    "concurrent writes in any order": [put("a", 2, 0, 9), put("b", 1, 1, 8), get("a", 2, 2, 10, 11)],
    "a write without an answer is seen later": [lost_put("a", 0), get(None, 0, 0, 1, 2), get("a", 1, 1, 3, 4)],
    "a write without an answer is never seen": [lost_put("a", 0), get(None, 0, 0, 1, 2), put("b", 1, 3, 4)],
    "a delete without an answer explains an absence": [put("a", 1, 0, 1), lost_delete(2), get(None, 0, 2, 3, 4)],
    "a refused write": [put("a", 1, 0, 1), lost_put("b", 2, "refused"), get("a", 1, 1, 3, 4)],
    "a comparison holds, another fails": [
        put("a", 1, 0, 1, prev_revision=0, create_revision=1, version=1),
        put("b", 2, 2, 3, prev_revision=1, create_revision=1, version=2),
        Operation(
            kind="put", key="k", value="c", invoked=4, completed=5, outcome="ok", prev_revision=1, compare_failed=True,
            revision=2, mod_revision=2,
        ),
        get("b", 2, 2, 6, 7),
    ],
    "deleted and created anew": [
        put("a", 1, 0, 1), delete(2, 2, 3), delete(2, 4, 5, deleted=0), get(None, 0, 2, 6, 7),
        put("b", 3, 8, 9, create_revision=3, version=1),
    ],
}  # fmt: skip

BAD: dict[str, tuple[str, list[Operation]]] = {
    "a stale read": (
        "the_order_respects_real_time",
        [put("a", 1, 0, 1), put("b", 2, 2, 3), get("a", 1, 1, 4, 5)],
    ),
    "a stale read that claims a new revision": (
        "answers_equal_a_replay",
        [put("a", 1, 0, 1), put("b", 2, 2, 3), get("a", 1, 2, 4, 5)],
    ),
    "reads that go back": (
        "the_order_respects_real_time",
        [put("a", 1, 0, 1), put("b", 2, 2, 20), get("b", 2, 2, 3, 4), get("a", 1, 1, 5, 6)],
    ),
    "a read from the future": (
        "the_order_respects_real_time",
        [get("a", 1, 1, 0, 1), put("a", 1, 2, 3)],
    ),
    "a lost write": (
        "answers_equal_a_replay",
        [put("a", 1, 0, 1), get(None, 0, 1, 2, 3)],
    ),
    "an absence that a later delete cannot explain": (
        "answers_equal_a_replay",
        [put("a", 1, 0, 1), get(None, 0, 1, 2, 3), lost_delete(4)],
    ),
    "two writes of one revision": (
        "a_revision_is_created_once",
        [put("a", 1, 0, 9), put("b", 1, 1, 8)],
    ),
    "revisions against real time": (
        "the_order_respects_real_time",
        [put("a", 2, 0, 1), put("b", 1, 2, 3)],
    ),
    "a refused write is read": (
        "a_refused_write_is_never_found",
        [lost_put("a", 0, "refused"), get("a", 1, 1, 2, 3)],
    ),
    "a value from nowhere": (
        "every_value_was_written",
        [get("z", 1, 1, 0, 1)],
    ),
    "a retried write applied twice": (
        "a_write_is_applied_once",
        [lost_put("a", 0), get("a", 1, 1, 1, 2), put("b", 2, 3, 4), get("a", 3, 3, 5, 6)],
    ),
    "a comparison that did not hold": (
        "answers_equal_a_replay",
        [put("a", 1, 0, 1), put("b", 2, 2, 3), put("c", 3, 4, 5, prev_revision=1)],
    ),
    "a comparison that failed although it held": (
        "answers_equal_a_replay",
        [
            put("a", 1, 0, 1),
            Operation(
                kind="put", key="k", value="b", invoked=2, completed=3, outcome="ok", prev_revision=1,
                compare_failed=True, revision=1, mod_revision=1,
            ),
        ],
    ),
    "a create over an existing key": (
        "answers_equal_a_replay",
        [put("a", 1, 0, 1), put("b", 2, 2, 3, prev_revision=0)],
    ),
    "a wrong version": (
        "answers_equal_a_replay",
        [put("a", 1, 0, 1, create_revision=1, version=1), put("b", 2, 2, 3, create_revision=1, version=3)],
    ),
    "a delete of nothing that claims a key": (
        "answers_equal_a_replay",
        [delete(1, 0, 1)],
    ),
    "a delete that found nothing where there was a key": (
        "answers_equal_a_replay",
        [put("a", 1, 0, 1), delete(1, 2, 3, deleted=0)],
    ),
    "a history that was recorded badly": (
        "the_history_is_well_formed",
        [put("a", 1, 5, 4), put("a", 2, 6, 7)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    assert check_history(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_each_broken_promise_is_found_by_its_check(name: str) -> None:
    check, operations = BAD[name]
    assert check in checks(operations)


@pytest.mark.parametrize(
    "name",
    [
        "a stale read", "a stale read that claims a new revision", "reads that go back", "a read from the future",
        "a lost write", "a comparison that did not hold", "a create over an existing key",
        "a comparison that failed although it held", "a delete of nothing that claims a key",
        "a delete that found nothing where there was a key",
    ],
)  # fmt: skip
def test_the_search_finds_by_itself_what_needs_no_revisions(name: str) -> None:
    verdict = check_register(BAD[name][1], 10_000)
    assert verdict is not None
    assert "no legal order" in verdict


def test_the_log_shows_an_acknowledged_write_that_is_gone() -> None:
    assert "an_acknowledged_write_is_never_lost" in checks([put("a", 1, 0, 1)], [])


def test_the_log_shows_a_session_that_was_applied_twice() -> None:
    operations = [put("a", 1, 0, 1, client="c", sequence=1)]
    log = [Applied(1, "put", "k", "a", "c", 1), Applied(2, "put", "k", "a", "c", 1)]
    assert "a_write_is_applied_once" in checks(operations, log)


def test_the_log_shows_a_gap() -> None:
    operations = [put("a", 1, 0, 1), put("b", 3, 2, 3)]
    log = [Applied(1, "put", "k", "a"), Applied(3, "put", "k", "b")]
    assert "a_revision_is_created_once" in checks(operations, log)
    assert checks(operations, [*log, Applied(2, "raise", "")]) == checks([], [])


def test_the_log_shows_that_a_refused_write_was_done() -> None:
    operations = [lost_put("a", 0, "refused")]
    assert "a_refused_write_is_never_found" in checks(operations, [Applied(1, "put", "k", "a")])


def test_the_log_shows_a_write_without_an_answer_that_took_place_before_it_began() -> None:
    operations = [lost_put("a", 50), put("b", 2, 2, 3)]
    log = [Applied(1, "put", "k", "a"), Applied(2, "put", "k", "b")]
    assert "the_order_respects_real_time" in checks(operations, log)


def test_the_log_shows_a_conditional_write_without_an_answer_that_should_not_have_been_done() -> None:
    operations = [put("a", 1, 0, 1), lost_put("b", 2, prev_revision=0)]
    log = [Applied(1, "put", "k", "a"), Applied(2, "put", "k", "b")]
    assert "answers_equal_a_replay" in checks(operations, log)


def test_a_search_that_cannot_decide_is_a_violation() -> None:
    operations = [put(f"v{n}", n + 1, 0, 100) for n in range(9)] + [get("nobody", 99, 99, 0, 100)]
    found = check_history(operations, states_max=50)
    assert any("could not decide" in violation.detail for violation in found)


def test_hundreds_of_writes_without_an_answer_that_nobody_saw_do_not_hinder_the_search() -> None:
    operations = [lost_put(f"lost{n}", n, prev_revision=(-1, 3, 7)[n % 3]) for n in range(300)]
    operations += [lost_put(f"seen{n}", n) for n in range(10)]
    operations += [get(f"seen{n}", 10 * n + 1, 10 * n + 1, 400 + 10 * n, 405 + 10 * n) for n in (7, 2, 9, 4)]
    assert check_register(operations, 20_000) is None
    stale = get("seen7", 71, 71, 600, 605)
    assert "no legal order" in (check_register([*operations, stale], 200_000) or "")


def random_history(seed: int, count: int) -> list[Operation]:
    """Return a linearizable history: every operation takes effect at one instant within its call."""
    draw = random.Random(seed)
    operations, state, revision, create, version = [], None, 0, 0, 0
    mod, instant = 0, 0
    for number in range(count):
        instant += draw.randrange(1, 5)
        invoked, completed = instant - draw.randrange(0, 12), instant + draw.randrange(0, 12)
        roll = draw.random()
        if roll < 0.5:
            operations.append(get(state, mod, revision, invoked, completed))
        elif roll < 0.9 or state is None:
            revision += 1
            create, version = (create, version + 1) if state is not None else (revision, 1)
            state, mod = f"v{number}", revision
            answered = put(state, revision, invoked, completed, create_revision=create, version=version)
            operations.append(lost_put(state, invoked) if draw.random() < 0.1 else answered)
        else:
            revision += 1
            state, mod = None, 0
            operations.append(delete(revision, invoked, completed))
    draw.shuffle(operations)
    return operations


@pytest.mark.parametrize("seed", range(40))
def test_random_linearizable_histories_pass(seed: int) -> None:
    assert check_history(random_history(seed, 80)) == []


@pytest.mark.parametrize("seed", range(40))
def test_a_random_history_with_one_stale_read_fails(seed: int) -> None:
    operations = [op for op in random_history(seed, 80) if op.outcome == "ok"]
    writes = sorted((op for op in operations if op.kind == "put"), key=lambda op: op.revision)
    old, new = next((a, b) for a, b in pairwise(writes) if a.revision < b.revision)
    after = max(op.completed or 0 for op in operations) + 1
    assert new.revision > old.revision
    stale = get(old.value, old.revision, old.revision, after, after + 1)
    assert check_history([*operations, stale]) != []


def test_twenty_thousand_operations_are_checked_without_a_search() -> None:
    operations = random_history(1, 20_000)  # One key: beyond SAMPLE_OPERATIONS_MAX, so only the sweep judges it.
    assert check_history(operations) == []
    assert check_history([*operations, get("v0", 1, 1, 1 << 40, (1 << 40) + 1)]) != []
