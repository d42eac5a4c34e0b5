"""What must always hold of transactions: all or nothing, one revision, once, and what is told is what was done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sim.invariants import Broken

from kvorum.kv.commands import Txn, TxnResult
from kvorum.service import requests
from kvorum.service.node_port import RecordView

if TYPE_CHECKING:
    from sim.facts import Facts
    from sim.node import SimNode


def a_transaction_is_applied_once(facts: Facts, txn: Txn, result: TxnResult) -> None:
    """A transaction of a session is done once; a retry is told the same (thesis 6.3)."""
    first = facts.transactions.get((txn.client_id, txn.sequence))
    if (first is not None) != result.replayed:
        raise Broken("a_transaction_is_applied_once", f"{txn.client_id}/{txn.sequence}: {first}, then {result}")
    if first is not None:
        _are_told_alike("a_transaction_is_applied_once", first, result)


def a_transaction_makes_one_revision(facts: Facts, result: TxnResult) -> None:
    """All changes of a transaction have one revision, the next one."""
    last = facts.log[-1].revision if facts.log else 0
    if result.revision != last + 1:
        raise Broken("a_transaction_makes_one_revision", f"{result} follows revision {last}")


def a_transaction_is_answered_as_it_was_applied(facts: Facts, txn: requests.Txn, result: TxnResult) -> None:
    """What a client is told of a transaction is in the log: branch, revision and count."""
    applied = facts.transactions.get((txn.client_id, txn.sequence))
    if applied is None:
        raise Broken("a_transaction_is_answered_as_it_was_applied", f"{txn} was never applied: {result}")
    _are_told_alike("a_transaction_is_answered_as_it_was_applied", applied, result)


def _are_told_alike(check: str, first: TxnResult, other: TxnResult) -> None:
    seen = [(each.revision, each.succeeded, each.deleted) for each in (first, other)]
    if seen[0] != seen[1]:
        raise Broken(check, f"{first}, then {other}")


def the_sum_never_changes(records: Iterable[RecordView]) -> None:
    """A transfer is done whole, or not at all."""
    balances = [int(record.value.partition(b":")[0]) for record in records if record.key.startswith(b"account")]
    if balances and sum(balances) != 100 * len(balances):
        raise Broken("the_sum_never_changes", f"the accounts hold {balances}")


def a_transaction_reads_one_revision(facts: Facts, node: SimNode, revision: int, records: Sequence[RecordView]) -> None:
    """What a transaction reads is what there was at the revision that it answers with."""
    the_sum_never_changes(records)
    model = facts.model
    if not model.floor <= revision <= model.revision:
        return
    there = [model.get(record.key, revision) for record in records]
    seen = [(record.value, record.mod_revision, record.version) for record in records]
    if seen != [(each.value, each.mod_revision, each.version) for each in there if each is not None]:
        raise Broken("a_transaction_reads_one_revision", f"{node.id} answers {seen} at revision {revision}: {there}")
