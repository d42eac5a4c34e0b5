"""Holders of leases: they are granted leases, put keys onto them, renew them with gaps, and revoke or forget them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import msgspec
from sim import lease_invariants
from sim.node import Answer, SimNode, TimeToLive
from sim.plan import S

from kvorum.kv.commands import (
    LeaseGrant,
    LeaseGranted,
    LeaseRefused,
    LeaseRenew,
    LeaseRenewed,
    LeaseRevoke,
    LeaseRevoked,
    Txn,
    TxnRefused,
    TxnResult,
)
from kvorum.kv.operations import LeasedPutOp, PutOp

if TYPE_CHECKING:
    from sim.world import World

Asked = LeaseGrant | LeaseRenew | LeaseRevoke | Txn | TimeToLive
LEASES_A_HOLDER = 1000


class Holder:
    """One holder, with one lease and one request at a time.

    Args:
        world: where it lives.
        number: which holder it is.
        steps: how many requests it makes.
    """

    def __init__(self, world: World, number: int, steps: int) -> None:
        self.left = steps
        self._world = world
        self._plan = world.plan
        self._number = number
        self._draw = Random(f"{world.plan.seed}:holder:{number}")
        self._granted = 0
        self._lease = 0
        self._ttl_s = 0
        self._has_keys = False
        self._asked: Asked | None = None
        self._attempts = 0
        world.clock.after(self._draw.randrange(world.plan.duration_us // 4), self._next)

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, and nothing is left to do."""
        return self._asked is None and self.left <= 0

    # --- What it does -------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self.left <= 0:
            return
        self.left -= 1
        if not self._lease:
            self._granted += 1
            lease = LEASES_A_HOLDER * (self._number + 1) + self._granted
            self._begin(LeaseGrant(lease, self._draw.choice((1, 2, 2, 3, 5)), self._draw.choice((0, 0, 0, 1))))
        elif not self._has_keys or self._draw.random() < 0.1:
            self._begin(Txn((), tuple(self._put(n) for n in range(self._draw.choice((1, 2, 3))))))
        elif self._draw.random() < 0.1:
            self._begin(LeaseRevoke(self._lease))
        elif self._draw.random() < 0.2:
            self._begin(TimeToLive(self._lease))
        else:
            self._begin(LeaseRenew(self._lease))

    def _put(self, number: int) -> PutOp:
        """Return a put onto the lease; of a key of its own, or of one that another holder takes away now and then."""
        key = b"lease/shared" if self._draw.random() < 0.1 else b"lease/%d/%d" % (self._number, number)
        return LeasedPutOp(key + (b"/%d" % number), b"%d" % self._lease, lease=self._lease)

    def _pause_us(self) -> int:
        """Return how long to wait: mostly for a part of the time to live, now and then until the lease is over."""
        if not self._lease or not self._has_keys:
            return self._draw.randrange(self._plan.think_us)
        return int(self._ttl_s * S * self._draw.choice((0.05, 0.3, 0.3, 0.5, 0.9, 1.5)))

    # --- Attempts -----------------------------------------------------------------------------------------------

    def _begin(self, asked: Asked) -> None:
        self._asked = asked
        self._attempts = 0
        self._world.clock.after(self._plan.deadline_us, self._give_up, asked)
        self._attempt(asked, None)

    def _attempt(self, asked: Asked, node: SimNode | None) -> None:
        if asked is not self._asked:
            return
        nodes = (self._world.is_recovering and self._world.live()) or list(self._world.nodes.values())
        node = node or nodes[self._draw.randrange(len(nodes))]
        self._attempts += 1
        self._world.clock.after(self._latency(), self._arrive, asked, node, self._attempts, self._world.clock.now)
        self._world.clock.after(self._world.timeout_us, self._time_out, asked, self._attempts)

    def _arrive(self, asked: Asked, node: SimNode, attempt: int, sent_us: int) -> None:
        if self._is_dropped():
            return

        def reply(answer: Answer) -> None:
            if not self._is_dropped():
                self._world.clock.after(self._latency(), self._on_answer, asked, attempt, answer, sent_us)

        node.ask(asked, reply)

    def _is_dropped(self) -> bool:
        return self._world.network.is_faulty and self._draw.random() * 1000 < self._plan.drop_per_mille

    def _latency(self) -> int:
        return self._plan.latency_us + int(self._draw.random() * self._plan.jitter_us)

    def _time_out(self, asked: Asked, attempt: int, node: SimNode | None = None) -> None:
        if attempt == self._attempts:
            self._attempt(asked, node)

    def _give_up(self, asked: Asked) -> None:
        if asked is self._asked:
            self._finish("given up")

    # --- Answers ------------------------------------------------------------------------------------------------

    def _on_answer(self, asked: Asked, attempt: int, answer: Answer, sent_us: int) -> None:
        if asked is not self._asked:
            return
        act = self._of(asked, answer, sent_us)
        if act is not None:
            act()
            self._finish(type(answer.result).__name__)
        elif attempt == self._attempts:
            leader = self._world.nodes.get(answer.leader or "")
            pause_us = 0 if leader is not None else self._plan.think_us
            self._world.clock.after(pause_us, self._time_out, asked, attempt, leader)

    def _of(self, asked: Asked, answer: Answer, sent_us: int) -> Callable[[], None] | None:
        """Return what an answer means; None: nothing was done."""
        match asked, answer.result:
            case LeaseGrant(), LeaseGranted(_, ttl_s):
                return lambda: self._has(asked.id, ttl_s, sent_us)
            case LeaseGrant(), LeaseRefused():
                # An earlier attempt of it was done.
                return lambda: self._has(asked.id, max(asked.ttl_s, 2), None)
            case LeaseRenew(), LeaseRenewed(_, ttl_s):
                return lambda: self._has(asked.id, ttl_s, sent_us, has_keys=True)
            case (
                (LeaseRenew(), LeaseRefused())
                | (LeaseRevoke(), LeaseRevoked() | LeaseRefused())
                | (Txn(), TxnRefused())
            ):
                return self._lost
            case Txn(), TxnResult():
                return self._has_put
            case TimeToLive(), None if answer.kind == "lease":
                return lambda: None
            case _:
                return None

    def _has(self, lease: int, ttl_s: int, sent_us: int | None, *, has_keys: bool = False) -> None:
        self._lease, self._ttl_s, self._has_keys = lease, ttl_s, has_keys
        if sent_us is not None and not self._world.is_forked:
            lease_invariants.an_answered_grant_or_renewal_counts(
                self._world.facts.leases, self._world, lease, sent_us, ttl_s
            )

    def _has_put(self) -> None:
        self._has_keys = True

    def _lost(self) -> None:
        self._lease, self._has_keys = 0, False

    def _finish(self, what: str) -> None:
        asked, self._asked = self._asked, None
        self._world.note(f"h{self._number}", "{}: {}", msgspec.json.encode(type(asked).__name__).decode(), what)
        if isinstance(asked, LeaseGrant) and not self._lease:
            self._lost()
        self._world.clock.after(max(self._pause_us(), 1), self._next)
