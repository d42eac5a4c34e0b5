"""One simulation from its plan to its verdict: a safety phase with faults, then a liveness phase without."""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
from sim.clients import Client
from sim.history import Operation, Violation
from sim.holders import Holder
from sim.invariants import Broken
from sim.lease_invariants import RATE_PER_MILLE, a_lease_ends_in_time
from sim.linearizability import check_history
from sim.logs import told_logs
from sim.nemesis import Nemesis
from sim.node import SimNode
from sim.plan import MS, Plan, S, draw_plan
from sim.readers import Reader, small_slices
from sim.tellers import Teller
from sim.watchers import Watcher
from sim.world import World

from kvorum.errors import KvorumError
from kvorum.kv.commands import ANY_REVISION
from kvorum.kv.features import FIRST_LEVEL

FORKED_US = 8 * S
"""For so long a cluster with two histories is looked at without faults."""
RECOVERY_TIMEOUTS = 60
"""After the faults end, a leader, a write and equal states must be there within so many election timeouts."""


class Verdict(msgspec.Struct, frozen=True):
    """What came out of one simulation."""

    seed: int
    violation: Violation | None
    trace_hash: str
    simulated_us: int
    events: int
    counts: dict[str, int]
    elections: int
    operations: int
    crash_points: int = 0
    """At how many points somebody could have died while faults were on."""

    @property
    def is_clean(self) -> bool:
        """Nothing was broken."""
        return self.violation is None


def simulate(plan: Plan, *, transcript: Callable[[str], None] | None = None) -> Verdict:
    """Run one plan to its end, or to the first broken promise."""
    is_collecting = gc.isenabled()
    # The cycles of one run are few; looking for them costs a tenth of the time.
    gc.disable()
    try:
        return _simulate(plan, transcript)
    finally:
        if is_collecting:
            gc.enable()


def _simulate(plan: Plan, transcript: Callable[[str], None] | None) -> Verdict:
    world = World(plan, transcript)
    simulation = _Simulation(world)
    violation: Violation | None = None
    try:
        with told_logs(world), small_slices(plan):
            simulation.run()
    except Broken as broken:
        violation = Violation(broken.check, broken.detail)
    except KvorumError as error:
        violation = Violation("the_core_never_contradicts_itself", f"{type(error).__name__}: {error}")
    finally:
        world.close()
    if violation is not None:
        world.note("", "BROKEN {}: {}", violation.check, violation.detail)
    return Verdict(
        seed=plan.seed,
        violation=violation,
        trace_hash=world.trace_hash(),
        simulated_us=world.clock.now,
        events=world.clock.events,
        counts=dict(sorted((world.counts + Counter(messages=world.messages, frames=world.frames)).items())),
        elections=world.facts.elections,
        operations=len(simulation.history()),
        crash_points=world.crash_points,
    )


def simulate_seed(seed: int) -> Verdict:
    """Run one seed, whatever it raises: one that crashes must not end the run of a thousand others."""
    plan = draw_plan(seed)
    try:
        return simulate(plan)
    except Exception as error:  # noqa: BLE001 - the supervisor of the seeds
        detail = "".join(traceback.format_exception(error)[-3:])
        return Verdict(seed, Violation("the_simulation_ends_in_order", detail), "", 0, 0, {}, 0, 0)


class _Simulation:
    def __init__(self, world: World) -> None:
        self._world = world
        self._plan = world.plan
        self._clients = [Client(world, number, world.plan.operations) for number in range(world.plan.clients)]
        self._tellers = [Teller(world, number, world.plan.operations) for number in range(world.plan.tellers)]
        self._readers = [Reader(world, number, world.plan.operations) for number in range(world.plan.readers)]
        self._watchers = [Watcher(world, number) for number in range(world.plan.watchers)]
        self._holders = [Holder(world, number, world.plan.operations) for number in range(world.plan.holders)]
        self._nemesis = Nemesis(world)
        self._draw = Random(f"{world.plan.seed}:run")

    def history(self) -> list[Operation]:
        """Return what every client recorded."""
        return [operation for client in self._clients for operation in client.history]

    def run(self) -> None:
        self._world.clock.run_until(self._plan.duration_us)
        self._recover()
        if self._world.is_forked:
            # Whoever remembers what another disk lacks has time to say so, and to be contradicted.
            self._world.clock.run_until(self._world.clock.now + FORKED_US)
        else:
            self._check_history()
        for node in self._world.nodes.values():
            if node.loop is not None:
                node.loop.sweep()
        self._world.clock.run_until(self._world.clock.now)

    # --- The liveness phase -------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """End all faults; then a leader, a write, reads on every member, and equal states must come about in time."""
        world = self._world
        world.note("", "the faults end")
        world.is_recovering = True
        world.network.heal()
        for node in list(world.nodes.values()):
            node.recover()
            node.start()
        self._await("a_leader_is_elected", self._leader_is_settled)
        asking: list[Client | Teller | Reader | Holder] = [
            *self._clients,
            *self._tellers,
            *self._readers,
            *self._holders,
        ]
        for each in asking:
            each.left = 0
        self._await("every_client_is_answered", lambda: all(each.is_idle for each in asking))
        self._await("membership_changes_end", lambda: not any(s.is_exclusive for s in self._nemesis.admin.scripts))
        self._await("addresses_are_agreed_on", self._addresses_are_agreed_on)
        self._write_and_read()
        self._let_leases_end()
        self._await("all_members_converge", self._has_converged)
        if world.facts.truth.floor:
            self._await("every_watcher_has_seen_all", lambda: all(each.has_all for each in self._watchers))

    def _await(self, check: str, condition: Callable[[], bool]) -> None:
        """Let time pass until the condition holds; the limit is in election timeouts, plus slow disks and clients."""
        world, plan = self._world, self._plan
        slack = plan.deadline_us + plan.slow_us + 200 * (plan.disk_us + plan.disk_jitter_us + plan.jitter_us) + 10 * S
        limit = world.clock.now + RECOVERY_TIMEOUTS * plan.election_timeout_us + slack
        step = max(5 * MS, plan.tick_us)
        while not world.is_forked and not condition():
            if world.clock.now >= limit:
                raise Broken(check, f"not by {limit / S:.1f} s: {self._picture()}")
            world.clock.run_until(world.clock.now + step)

    def _picture(self) -> str:
        pictures = []
        for node in self._world.nodes.values():
            if node.raft is None:
                pictures.append(f"{node.id} is down")
                continue
            log = node.raft.log
            pictures.append(
                f"{node.id} is {node.raft.role} of term {node.raft.current_term}, "
                f"log {log.first_index}..{log.last_index}, commit {log.commit_index}, applied {log.applied_index}"
            )
        return "; ".join(pictures)

    def _leader(self) -> SimNode | None:
        leaders = self._world.leaders()
        return leaders[0] if leaders else None

    def _leader_is_settled(self) -> bool:
        leader = self._leader()
        if leader is None or leader.raft is None:
            return False
        log = leader.raft.log
        return log.term(log.commit_index) == leader.raft.current_term

    def _members(self) -> list[SimNode]:
        leader = self._leader()
        if leader is None or leader.raft is None:
            return []
        ids = [member.id for member in leader.raft.configuration.members]
        return [self._world.nodes[node] for node in ids if not self._world.nodes[node].is_lost]

    def _addresses_are_agreed_on(self) -> bool:
        """The leader's configuration says where each member is, whoever moved, and that is committed."""
        leader = self._leader()
        if leader is None or leader.raft is None:
            return False
        return leader.raft.configurations.latest_index <= leader.raft.log.commit_index and all(
            node.is_lost or (member.peer_url, member.client_url) == (node.url, node.client_url)
            for member in leader.raft.configuration.members
            for node in [self._world.nodes[member.id]]
        )

    def _write_and_read(self) -> None:
        """A write must succeed, and every key be readable: an acknowledged write that is gone would show now."""
        client = Client(self._world, len(self._clients), 0)
        self._clients.append(client)

        def succeeds(kind: str, key: str) -> bool:
            last = client.history[-1] if client.history else None
            if last is not None and (last.kind, last.key, last.outcome) == (kind, key, "ok"):
                return True
            if client.is_idle:
                client.start_again(kind, key, ANY_REVISION)
            return False

        self._await("a_write_succeeds", lambda: succeeds("put", "k0"))
        if self._world.counts["states damaged"]:
            # Members compare their states as they are after a write.
            self._await("a_damaged_state_is_rebuilt", lambda: not any(node.serves_damage for node in self._members()))
        for number in range(self._plan.keys):
            key = f"k{number}"
            self._await("a_read_succeeds", lambda key=key: succeeds("get", key))  # type: ignore[misc]

    def _let_leases_end(self) -> None:
        """Every lease, which nobody renews any more, must end in time: by the slowest clock, a second later at most."""
        world, plan, model = self._world, self._plan, self._world.facts.model
        slowest = max(node.rate_per_mille for node in world.nodes.values())
        slack_us = S + 4 * plan.tick_us * slowest // 1000 + 20 * plan.timely_us
        limits_us = {
            lease.id: world.clock.now + (lease.due_ms - model.time_ms) * slowest * MS // RATE_PER_MILLE + slack_us
            for lease in model.leases
        }
        while not world.is_forked and len(model.leases):
            for lease, limit_us in limits_us.items():
                a_lease_ends_in_time(world, lease, limit_us)
            world.clock.run_until(world.clock.now + plan.tick_us)
        world.counts["leases that ended in time"] += len(limits_us)

    def _has_converged(self) -> bool:
        """Every member has applied what is committed, and all states are equal."""
        members, index = self._members(), self._world.facts.commit_index
        if not members:
            return False
        for node in members:
            if node.raft is None or node.store.applied_index != index or node.raft.log.last_index != index:
                return False
            if node.is_quarantined:
                # Its records are gone, and it waits for the leader's.
                return False
        if len({node.store.state_hash for node in members}) != 1:
            raise Broken("state_hashes_agree", f"after entry {index}: {[hex(n.store.state_hash) for n in members]}")
        if len({node.store.feature_level for node in members}) != 1:
            raise Broken("feature_levels_agree", f"after entry {index}: {[n.store.feature_level for n in members]}")
        sums = {node.store.digest.records for node in members} - {None}
        if len(sums) > 1:
            if self._world.counts["states damaged"]:
                # A record that was damaged and then replaced leaves a wrong sum behind.
                return False
            raise Broken("state_sums_agree", f"after entry {index}: {sorted(map(hex, filter(None, sums)))}")
        model = self._world.facts.model
        for node in members:
            if any(
                node.store.get(key) != model.get(key) for key in {*node.store.versions.records, *model.versions.records}
            ):
                raise Broken("states_agree_record_by_record", f"after entry {index} the records of {node.id} are wrong")
        if members[0].store.feature_level > FIRST_LEVEL:
            self._world.counts["feature levels raised"] += 1
        return True

    # --- The verdict of the clients -----------------------------------------------------------------------------

    def _check_history(self) -> None:
        operations = self.history()
        for log in (self._world.facts.log, None):
            violations = check_history(operations, log, sampled_keys=0 if log is None else 2)
            if violations:
                raise Broken(violations[0].check, violations[0].detail)
