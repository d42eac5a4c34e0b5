"""Tellers: clients that move money between accounts in transactions.

The sum over all accounts never changes, so whoever sees half of a transaction, or one that was done twice, sees another
sum. A transfer compares the revisions of the accounts that it read, and writes each of them; it reads all accounts
again, after its puts. In between, a teller only reads, without an entry in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from random import Random
from typing import TYPE_CHECKING

from sim import txn_invariants
from sim.damage import is_damaged
from sim.node import Answer, SimNode

from kvorum.kv.commands import SessionRefused, TxnResult
from kvorum.kv.operations import Compare, OperationResult, PutOp, RangeOp, RangeOpResult
from kvorum.service.node_port import RecordView
from kvorum.service.requests import Txn

if TYPE_CHECKING:
    from sim.world import World

ACCOUNTS = tuple(b"account%d" % number for number in range(4))
OPENING_BALANCE = 100
ALL_ACCOUNTS = RangeOp(b"account", b"accounu")


def balance_of(value: bytes) -> int:
    """Return the balance that a value says."""
    return int(value.partition(b":")[0])


class Teller:
    """One teller with one transaction at a time.

    Args:
        world: where it works.
        number: which teller it is.
        transactions: how many it makes.
    """

    def __init__(self, world: World, number: int, transactions: int) -> None:
        self.left = transactions
        self._world = world
        self._plan = world.plan
        self._number = number
        self._draw = Random(f"{world.plan.seed}:teller:{number}")
        self._known: dict[bytes, RecordView] | None = None
        """The accounts as last seen; None: not at all."""
        self._session = 0
        self._sequence = 0
        self._writes = 0
        self._txn: Txn | None = None
        self._attempts = 0
        world.clock.after(self._draw.randrange(world.plan.think_us), self._next)

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, and nothing is left to do."""
        return self._txn is None and self.left <= 0

    def _next(self) -> None:
        if self.left <= 0:
            return
        self.left -= 1
        known = self._known
        if known is None or self._draw.random() < 0.3:
            self._begin(Txn(then=(ALL_ACCOUNTS,)))
        elif known:
            self._begin(self._transfer(known))
        else:
            absent = tuple(Compare(key, "version", "=", 0) for key in ACCOUNTS)
            self._begin(self._in_session(absent, tuple(self._put(key, OPENING_BALANCE) for key in ACCOUNTS)))

    def _transfer(self, known: dict[bytes, RecordView]) -> Txn:
        source, target = self._draw.sample(ACCOUNTS, 2)
        amount = self._draw.randrange(1, 50)
        unchanged = tuple(Compare(key, "mod_revision", "=", known[key].mod_revision) for key in (source, target))
        puts = (
            self._put(source, balance_of(known[source].value) - amount),
            self._put(target, balance_of(known[target].value) + amount),
        )
        return self._in_session(unchanged, puts)

    def _in_session(self, compares: tuple[Compare, ...], puts: tuple[PutOp, ...]) -> Txn:
        self._sequence += 1
        return Txn(compares, (*puts, ALL_ACCOUNTS), (ALL_ACCOUNTS,), self._name, self._sequence)

    def _put(self, key: bytes, balance: int) -> PutOp:
        self._writes += 1
        return PutOp(key, f"{balance}:t{self._number}w{self._writes}".ljust(self._plan.value_bytes, ".").encode())

    @property
    def _name(self) -> str:
        return f"t{self._number}.{self._session}"

    # --- Attempts -----------------------------------------------------------------------------------------------

    def _begin(self, txn: Txn) -> None:
        self._txn = txn
        self._attempts = 0
        self._world.clock.after(self._plan.deadline_us, self._give_up, txn)
        self._attempt(txn, None)

    def _attempt(self, txn: Txn, node: SimNode | None) -> None:
        if txn is not self._txn:
            return
        nodes = (self._world.is_recovering and self._world.live()) or list(self._world.nodes.values())
        node = node or nodes[self._draw.randrange(len(nodes))]
        self._attempts += 1
        self._world.clock.after(self._latency(), self._arrive, txn, node, self._attempts)
        self._world.clock.after(self._world.timeout_us, self._time_out, txn, self._attempts)

    def _arrive(self, txn: Txn, node: SimNode, attempt: int) -> None:
        if self._is_dropped():
            return

        def reply(answer: Answer) -> None:
            if not self._is_dropped():
                self._world.clock.after(self._latency(), self._on_answer, txn, attempt, node, answer)

        node.ask(txn, reply)

    def _is_dropped(self) -> bool:
        return self._world.network.is_faulty and self._draw.random() * 1000 < self._plan.drop_per_mille

    def _latency(self) -> int:
        return self._plan.latency_us + int(self._draw.random() * self._plan.jitter_us)

    def _time_out(self, txn: Txn, attempt: int) -> None:
        if txn is self._txn and attempt == self._attempts:
            self._attempt(txn, None)

    def _give_up(self, txn: Txn) -> None:
        if txn is self._txn:
            self._finish("given up")

    # --- Answers ------------------------------------------------------------------------------------------------

    def _on_answer(self, txn: Txn, attempt: int, node: SimNode, answer: Answer) -> None:
        if txn is not self._txn:
            return
        match answer.result:
            case TxnResult():
                self._on_result(txn, node, answer.result)
            case SessionRefused():
                self._session += 1
                self._sequence = 0
                self._finish("refused by its session")
            case _ if attempt == self._attempts:
                leader = self._world.nodes.get(answer.leader or "")
                pause_us = 0 if leader is not None else self._plan.think_us
                self._world.clock.after(pause_us, self._try_again, txn, attempt, leader)
            case _:
                pass

    def _try_again(self, txn: Txn, attempt: int, node: SimNode | None) -> None:
        if attempt == self._attempts:
            self._attempt(txn, node)

    def _on_result(self, txn: Txn, node: SimNode, result: TxnResult) -> None:
        facts = self._world.facts
        if txn.sequence and not self._world.is_forked:
            txn_invariants.a_transaction_is_answered_as_it_was_applied(facts, txn, result)
        read = _accounts(result.results or ())
        if any(map(is_damaged, read)):
            self._known = None
        elif result.results is not None:
            if not self._world.is_forked:
                txn_invariants.a_transaction_reads_one_revision(facts, node, result.revision, read)
            # What a client has read does not change with the node's memory, where a fault may damage it.
            self._known = {record.key: copy(record) for record in read}
        else:
            self._known = None
        kind = "read" if not txn.sequence else "done" if result.succeeded else "compare failed"
        self._finish(f"{kind}, answered to a retry" if result.replayed else kind)

    def _finish(self, what: str) -> None:
        self._txn = None
        self._world.counts[f"transactions {what}"] += 1
        self._world.note(self._name, "a transaction is {}", what)
        self._world.clock.after(self._draw.randrange(self._plan.think_us), self._next)


def _accounts(results: Sequence[OperationResult]) -> Sequence[RecordView]:
    return next((result.records for result in results if isinstance(result, RangeOpResult)), ())
