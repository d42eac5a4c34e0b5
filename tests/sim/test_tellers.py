"""The tellers of the simulator, and the invariants that judge transactions, notice what is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import msgspec
import pytest
from sim import txn_invariants
from sim.invariants import Broken
from sim.node import SimNode
from sim.plan import Plan, S, draw_plan
from sim.run import simulate
from sim.world import World

from kvorum.kv import txn
from kvorum.kv.commands import Txn, TxnResult
from kvorum.kv.operations import PutOp, PutOpResult
from kvorum.kv.records import Record
from kvorum.kv.sessions import Session
from kvorum.kv.store import Store
from kvorum.service import requests

FIRST = TxnResult(7, True, 0, None)
AGAIN = msgspec.structs.replace(FIRST, replayed=True)
MOST_SEEDS = 60


def account(number: int, balance: int, revision: int = 3) -> Record:
    """Return the record of an account."""
    return Record(b"account%d" % number, b"%d:t0w1" % balance, 3, revision, 1)


@pytest.fixture(scope="module")
def world() -> World:
    """Return a world in which one transaction was applied."""
    world = World(Plan(seed=1, duration_us=1 * S), None)
    world.facts.transactions["t0.0", 1] = FIRST
    model = world.facts.model
    for number in (0, 1):
        model.set_record(b"account%d" % number, b"100:t0w1", 3, None)
    model.versions.set_floor(2)
    return world


def node_of(world: World) -> SimNode:
    """Return some node."""
    return next(iter(world.nodes.values()))


ASKED = requests.Txn((), (), (), "t0.0", 1)
APPLIED = Txn((), (), (), "t0.0", 1)
LIES: dict[str, Callable[[World], None]] = {
    "a_transaction_is_applied_once": lambda w: txn_invariants.a_transaction_is_applied_once(w.facts, APPLIED, FIRST),
    "a_transaction_makes_one_revision": lambda w: txn_invariants.a_transaction_makes_one_revision(
        w.facts, TxnResult(3, True, 0, None)
    ),
    "a_transaction_is_answered_as_it_was_applied": lambda w: txn_invariants.a_transaction_is_answered_as_it_was_applied(
        w.facts, ASKED, TxnResult(7, False, 0, None)
    ),
    "the_sum_never_changes": lambda w: txn_invariants.the_sum_never_changes([account(0, 90), account(1, 100)]),
    "a_transaction_reads_one_revision": lambda w: txn_invariants.a_transaction_reads_one_revision(
        w.facts, node_of(w), 3, [account(0, 110), account(1, 90)]
    ),
}


def test_there_is_a_lie_for_every_invariant() -> None:
    functions = inspect.getmembers(txn_invariants, inspect.isfunction)
    public = {name for name, each in functions if each.__module__ == txn_invariants.__name__ and name[0] != "_"}
    assert public == set(LIES)


@pytest.mark.parametrize("name", LIES)
def test_an_invariant_notices_the_lie_that_is_told_to_it(name: str, world: World) -> None:
    with pytest.raises(Broken) as broken:
        LIES[name](world)
    assert broken.value.check == name


def test_the_truth_is_no_violation(world: World) -> None:
    facts = world.facts
    txn_invariants.a_transaction_is_applied_once(facts, APPLIED, AGAIN)
    txn_invariants.a_transaction_makes_one_revision(facts, TxnResult(1, True, 0, None))
    txn_invariants.a_transaction_is_answered_as_it_was_applied(facts, ASKED, AGAIN)
    txn_invariants.a_transaction_reads_one_revision(facts, node_of(world), 3, [account(0, 100), account(1, 100)])
    txn_invariants.a_transaction_reads_one_revision(facts, node_of(world), 1, [account(0, 90), account(1, 110)])


def takes_a_revision_for_each_change(patch: pytest.MonkeyPatch) -> None:
    """Others see a transfer that is half done."""

    def put(self: txn._Run, put: PutOp) -> PutOpResult:
        old = self._versions.records.get(put.key)
        new = self._state.set_record(put.key, put.value, self._state.revision + 1, old)
        return PutOpResult(new.mod_revision, new.create_revision, new.version)

    patch.setattr(txn._Run, "_put", put)


def compares_nothing(patch: pytest.MonkeyPatch) -> None:
    """A transfer overwrites one that it has not seen."""
    patch.setattr(txn._Planner, "_holds", lambda self, compare: True)


def remembers_the_other_branch(patch: pytest.MonkeyPatch) -> None:
    """A retry is told that else was done."""
    true = Session.remember

    def remember(self: Session, sequence: int, mark: int, result: object) -> None:
        if isinstance(result, TxnResult):
            result = msgspec.structs.replace(result, succeeded=not result.succeeded)
        true(self, sequence, mark, result)  # type: ignore[arg-type]

    patch.setattr(Session, "remember", remember)


def does_the_first_operation_only(patch: pytest.MonkeyPatch) -> None:
    """Money is taken from one account, and not put into the other."""
    true = Store.set_record

    def set_record(self: Store, key: bytes, value: bytes, revision: int, old: Record | None, lease: int = 0) -> Record:
        if key == b"account3" and old is not None:
            return old
        return true(self, key, value, revision, old, lease)

    patch.setattr(Store, "set_record", set_record)


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[str]]] = {
    "takes a revision for each change": (
        takes_a_revision_for_each_change,
        {"a_transaction_makes_one_revision", "a_transaction_reads_one_revision"},
    ),
    "compares nothing": (compares_nothing, {"the_sum_never_changes"}),
    "does the first operation only": (does_the_first_operation_only, {"the_sum_never_changes"}),
    "remembers the other branch": (remembers_the_other_branch, {"a_transaction_is_applied_once"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_transaction_is_found_by_the_seeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking, expected = BROKEN[name]
    breaking(monkeypatch)
    for seed in range(MOST_SEEDS):
        plan = draw_plan(seed)
        if not plan.tellers:
            continue
        violation = simulate(plan).violation
        if violation is not None:
            assert violation.check in expected, f"seed {seed}: {violation}"
            return
    pytest.fail(f"{MOST_SEEDS} seeds found nothing")
