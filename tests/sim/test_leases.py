"""Leases in the simulator: the validators notice lies, the faults strike leases, and a lease ends in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from sim import lease_invariants
from sim.invariants import Broken
from sim.lease_invariants import LeaseTruth, Picture, Promise, lasts_us
from sim.node import Answer, SimNode
from sim.plan import Plan, S, draw_plan
from sim.run import simulate
from sim.watchers import Event, Truth
from sim.world import World

from kvorum.kv.commands import ClientCommand, LeaseCommand, LeaseGrant, LeaseGranted, LeaseRenew, LeaseRenewed, Txn
from kvorum.kv.operations import LeasedPutOp
from kvorum.kv.store import Store

TTL_S = 10
LEASE = 7


class Scene:
    """A cluster of three in which one lease of ten seconds was granted, with a key on it."""

    def __init__(self) -> None:
        self.world = World(Plan(seed=7, finalize_after_s=0))
        self.world.clock.run_until(3 * S)
        assert isinstance(self.ask(LeaseGrant(LEASE, TTL_S)), LeaseGranted)
        self.granted_us = self.world.clock.now
        self.ask(Txn((), (LeasedPutOp(b"k", b"v", lease=LEASE),)))

    @property
    def leader(self) -> SimNode:
        return self.world.leaders()[0]

    @property
    def model(self) -> Store:
        return self.world.facts.model

    @property
    def truth(self) -> LeaseTruth:
        return self.world.facts.leases

    def ask(self, command: ClientCommand | LeaseCommand) -> object:
        """Ask the leader, and return its answer."""
        answers: list[Answer] = []
        self.leader.ask(command, answers.append)
        self.pass_time(S // 10)
        return answers[0].result

    def pass_time(self, duration_us: int) -> None:
        self.world.clock.run_until(self.world.clock.now + duration_us)

    def lives(self) -> bool:
        """Tell whether the lease and its key are there."""
        assert (self.model.leases.get(LEASE) is None) == (self.model.get(b"k") is None)
        return self.model.leases.get(LEASE) is not None

    def life_s(self, limit_s: int) -> float:
        """Return for how long it lived after its grant."""
        while self.lives():
            assert self.world.clock.now < self.granted_us + limit_s * S
            self.pass_time(S // 100)
        return (self.world.clock.now - self.granted_us) / S


# --- A lease ends in time ---------------------------------------------------------------------------------


def test_in_an_idle_cluster_a_lease_ends_when_its_time_is_over_and_not_before() -> None:
    scene = Scene()
    # By a clock that is right: 1 % late, by one tick, and by the commit.
    assert TTL_S <= scene.life_s(12) <= TTL_S / 0.99 + 0.3
    scene.world.close()


def test_a_lease_does_not_start_anew_with_each_new_leader() -> None:
    """It lives on while nobody leads, and a second more for each leader: the time of the last tick is in the log."""
    scene = Scene()
    crashed_us = led_us = 0
    for _ in range(3):
        scene.pass_time(3 * S)
        assert scene.lives()
        crashed_us = scene.world.clock.now
        leader = scene.leader
        leader.crash("killed", durable=1)
        while not scene.world.leaders():
            scene.pass_time(S // 100)
        led_us += scene.world.clock.now - crashed_us
        leader.start()
    assert scene.life_s(20) <= (TTL_S + 3) / 0.99 + led_us / S + 1
    scene.world.close()


def test_a_pause_of_the_leader_ends_no_lease_whose_renewal_waits() -> None:
    scene = Scene()
    scene.pass_time(8 * S)
    assert isinstance(scene.ask(LeaseRenew(LEASE)), LeaseRenewed)
    renewed_us = scene.world.clock.now
    for node in scene.world.live():
        node.pause(scene.world.clock.now + 60 * S)
    scene.pass_time(61 * S)
    assert scene.lives(), "nobody could renew it meanwhile"
    scene.granted_us = renewed_us
    assert scene.life_s(80) > 60 + TTL_S - 1
    scene.world.close()


def test_no_tick_is_written_without_a_lease() -> None:
    world = World(Plan(seed=7, finalize_after_s=0))
    world.clock.run_until(5 * S)
    index = world.facts.commit_index
    world.clock.run_until(30 * S)
    assert world.facts.commit_index == index
    world.close()


# --- The validators ---------------------------------------------------------------------------------


def end_early(scene: Scene) -> None:
    scene.pass_time(lasts_us(scene.world, TTL_S) - (scene.world.clock.now - scene.truth.promises[LEASE].since_us) - 1)
    lease_invariants.a_lease_never_ends_early(scene.truth, scene.world, LEASE)


def forget_an_answer(scene: Scene) -> None:
    truth, now = LeaseTruth(), scene.world.clock.now
    lease_invariants.an_answered_grant_or_renewal_counts(scene.truth, scene.world, LEASE, now, TTL_S)
    truth.ended_us[LEASE] = now + TTL_S * S
    lease_invariants.an_answered_grant_or_renewal_counts(truth, scene.world, LEASE, now, TTL_S)
    lease_invariants.an_answered_grant_or_renewal_counts(truth, scene.world, LEASE, now + S, TTL_S)


def lose_a_key(scene: Scene) -> None:
    before = lease_invariants.picture(scene.model)
    lease_invariants.keys_of_a_living_lease_stay(before, before, scene.model)
    with pytest.raises(Broken):
        lease_invariants.keys_of_a_living_lease_stay(before, before._replace(ids=frozenset()), scene.model)
    lease_invariants.keys_of_a_living_lease_stay(before._replace(attached={b"x": LEASE}), before, scene.model)


def delete_in_two_revisions(scene: Scene) -> None:
    before, after = Picture(frozenset({1}), {b"a": 1, b"b": 1}, 5), Picture(frozenset(), {}, 6)
    truth = Truth()
    truth.events = [Event(6, b"a", None, 0, 0, b""), Event(6, b"b", None, 0, 0, b"")]
    lease_invariants.keys_of_an_ended_lease_go_in_one_revision(before, after, truth)
    truth.events[1] = Event(7, b"b", None, 0, 0, b"")
    lease_invariants.keys_of_an_ended_lease_go_in_one_revision(before, after, truth)


def have_another_deadline(scene: Scene) -> None:
    lease_invariants.leases_agree(scene.leader, scene.leader.store, scene.model)
    lease = scene.model.leases.get(LEASE)
    assert lease is not None
    lease.deadline_ms += 1
    lease_invariants.leases_agree(scene.leader, scene.leader.store, scene.model)


def never_end(scene: Scene) -> None:
    lease_invariants.a_lease_ends_in_time(scene.world, LEASE, scene.world.clock.now)
    lease_invariants.a_lease_ends_in_time(scene.world, LEASE, scene.world.clock.now - 1)


def say_too_much(scene: Scene) -> None:
    lease_invariants.a_lease_has_at_most_its_ttl_left(LEASE, 1000 * TTL_S, TTL_S)
    lease_invariants.a_lease_has_at_most_its_ttl_left(LEASE, 1000 * TTL_S + 1, TTL_S)


LIES: dict[str, Callable[[Scene], None]] = {
    "a_lease_never_ends_early": end_early,
    "an_answered_grant_or_renewal_counts": forget_an_answer,
    "keys_of_a_living_lease_stay": lose_a_key,
    "keys_of_an_ended_lease_go_in_one_revision": delete_in_two_revisions,
    "leases_agree": have_another_deadline,
    "a_lease_ends_in_time": never_end,
    "a_lease_has_at_most_its_ttl_left": say_too_much,
}


@pytest.mark.parametrize("name", LIES)
def test_a_validator_notices_the_lie_that_is_told_to_it(name: str) -> None:
    scene = Scene()
    with pytest.raises(Broken) as caught:
        LIES[name](scene)
    scene.world.close()
    assert caught.value.check == name


def test_a_lease_that_is_over_in_time_is_no_lie() -> None:
    scene = Scene()
    promise = scene.truth.promises[LEASE]
    assert isinstance(promise, Promise)
    scene.pass_time(lasts_us(scene.world, TTL_S) - (scene.world.clock.now - promise.since_us))
    lease_invariants.a_lease_never_ends_early(scene.truth, scene.world, LEASE)
    scene.world.close()


# --- The seeds ---------------------------------------------------------------------------------


def test_the_faults_strike_leases() -> None:
    total: Counter[str] = Counter()
    for seed in range(200, 280):
        total.update(simulate(draw_plan(seed)).counts)
    for kind in (
        "crash", "crash_point", "crash_all", "pause", "freeze", "isolate", "one_way", "split", "bridge", "disk_stall",
        "clock_jump", "late_saves", "late_tasks", "stop_reading", "stop", "state_damage", "transfer", "remove",
        "replace", "snapshot_damage", "compact",
    ):  # fmt: skip
        assert total[f"leases under {kind}"] >= 3, f"{kind} strikes no lease: {total}"
    for what in (
        "leases granted", "leases renewed", "leases revoked", "leases expired", "leases renewed under another leader",
        "leases expired under another leader", "leases that ended in time", "keys that went with a lease",
        "renewals of leases that are over", "puts onto leases that are over", "reads of leases",
    ):  # fmt: skip
        assert total[what] >= 5, f"{what} hardly happens: {total}"
