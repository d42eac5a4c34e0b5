"""Whoever makes the plan's faults happen."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from sim import invariants
from sim.admin import Admin
from sim.network import Link
from sim.plan import (
    CRASH_PASSES_MAX,
    MS,
    PORT_ERRORS,
    SET_BACK_ANYHOW,
    SET_BACK_LATE,
    SET_BACK_MOVES,
    SET_BACK_OFF,
    Fault,
)

from kvorum.errors import CallerError
from kvorum.node.set_back import DiskAtStart

if TYPE_CHECKING:
    from sim.node import SimNode
    from sim.world import World


class Nemesis:
    """Plays the faults of a plan, each at its time.

    Args:
        world: where to strike.
    """

    def __init__(self, world: World) -> None:
        self.admin = Admin(world)
        self._world = world
        world.replace_distrusted = self.admin.replace_distrusted
        world.on_taking_part = self._on_taking_part
        self._set_back: SimNode | None = None
        """Whose disk was set back, until it takes part or is replaced."""
        self._disk: DiskAtStart | None = None
        """What was on that disk; None: it lacked nothing."""
        for fault in world.plan.faults:
            world.clock.after(fault.at_us, self._strike, fault)

    def _strike(self, fault: Fault) -> None:
        world = self._world
        if world.is_recovering:
            return
        node = self._target(fault)
        if node is None:
            return
        world.counts[f"fault {fault.kind}"] += 1
        world.counts[f"leases under {fault.kind}"] += bool(len(world.facts.model.leases))
        world.note("nemesis", "{} {} {} for {} ms", fault.kind, fault.point, node.id, fault.duration_us // MS)
        match fault.kind:
            case "crash":
                self._crash(node, fault)
            case "crash_point":
                node.armed = (fault.point, fault.argument % CRASH_PASSES_MAX, fault.duration_us)
            case "crash_all":
                for each in world.live():
                    self._crash(each, fault)
            case "pause":
                node.pause(world.clock.now + fault.duration_us)
            case "freeze":
                self._freeze(node, fault)
            case "isolate" | "one_way" | "split" | "bridge":
                self._partition(self._links(node, fault), fault.duration_us)
            case "disk_stall":
                node.stall(world.clock.now + fault.duration_us)
            case "disk_fail":
                node.fail_next_save = True
            case "disk_full":
                # A disk on which there is room for the log again may have none for a snapshot for long.
                node.no_files_until = world.clock.now + 6 * fault.duration_us
                if fault.argument % 2:
                    node.full_until = world.clock.now + fault.duration_us
            case "disks_fill":
                self._fill_disks(node, fault)
            case "snapshot_damage":
                self._crash(node, fault)
                node.damage_newest_snapshot()
            case "clock_jump":
                node.clock_offset_ms += fault.argument * 100 - 2_000_000
            case "late_saves":
                node.late_saves_until = world.clock.now + fault.duration_us
            case "late_tasks":
                node.late_tasks_until = world.clock.now + fault.duration_us
            case "stop_reading":
                world.network.hold(node.id, world.clock.now + fault.duration_us)
            case "cut_fetches":
                for each in world.nodes.values():
                    each.cut_fetches_until = world.clock.now + 36 * fault.duration_us
            case "port_error":
                node.port_error = PORT_ERRORS[fault.argument % len(PORT_ERRORS)]
            case "stop":
                node.stop(fault.duration_us)
            case "state_damage":
                self._damage_state(node)
            case "disk_copy":
                node.copy_disk()
            case "disk_set_back":
                self._begin_set_back(node, fault)
            case "move":
                self._crash(node, fault)
                node.move()
            case "transfer":
                node.call(self._transfer, node)
            case "remove" | "replace" if self.is_pending:
                pass
            case _:
                self.admin.begin(fault, node)

    def _target(self, fault: Fault) -> SimNode | None:
        leaders, live = self._world.leaders(), self._world.live()
        if leaders and (fault.target < 0 or fault.kind == "transfer"):
            return leaders[0]
        return live[fault.target % len(live)] if live else None

    def _crash(self, node: SimNode, fault: Fault) -> None:
        node.crash("killed", durable=fault.argument % 2, is_off=fault.argument // 2 % 3 == 0)
        self._world.clock.after(fault.duration_us, node.start)

    def _fill_disks(self, node: SimNode, fault: Fault) -> None:
        """Leave little room on every disk; or on every disk but one, so that its node cannot hear it from itself."""
        if node.product is None:
            return
        needed = node.product.parts.space.needed_bytes
        left = needed * (fault.argument % 256) // 100
        for each in self._world.nodes.values():
            each.filled_at_tick = each.ticks
            if fault.argument % 3 or each is not node:
                each.fill_disk(left, needed, fault.duration_us)

    # --- A disk that is set back ------------------------------------------------------------------------------------

    def _begin_set_back(self, node: SimNode, fault: Fault) -> None:
        """Take a machine down to give it an older disk, if it has a copy, and its peers will notice."""
        if node.copied_at is None or not self._may_be_set_back(node, fault):
            return
        node.crash("killed", durable=1, is_off=bool(fault.argument & SET_BACK_OFF))
        self._world.clock.after(fault.duration_us, self._end_set_back, node, fault)

    def _end_set_back(self, node: SimNode, fault: Fault) -> None:
        """Set the disk back, unless too much has happened meanwhile; start the machine."""
        world = self._world
        if node.is_up or node.is_lost or node.is_retired:
            return
        if not world.is_recovering and self._may_be_set_back(node, fault):
            # The machine was down for minutes: nothing that it said is on its way any more.
            world.network.forget(node.id)
            self._set_back, self._disk = node, node.what_the_copy_lacks()
            world.counts["set back while others were disturbed"] += not self._is_calm()
            world.counts["set back over a change of members"] += self._members_changed(node)
            if fault.argument & SET_BACK_LATE and self._disk is not None:
                late_us = (4 + fault.argument // (2 * SET_BACK_LATE)) * world.plan.election_timeout_us // 4
                for peer in self._who_remembers(node, self._disk):
                    world.counts["peers that remember and are late"] += 1
                    self._partition(self._links(peer, msgspec.structs.replace(fault, kind="isolate")), late_us)
            node.set_disk_back()
            if fault.argument & SET_BACK_MOVES:
                node.move()
        node.start()

    def _may_be_set_back(self, node: SimNode, fault: Fault) -> bool:
        """Tell whether decision 0012 promises something, and the cluster can do without this disk.

        Anything may strike before, meanwhile and afterwards. Excluded is:

        - A copy that lacks nothing, and one from before the node had a log: that is an empty disk.
        - What nobody remembers who is up: the decision promises nothing then. ``SET_BACK_ANYHOW`` lifts this.
        - Another disk that was set back and is not replaced yet, and more disks gone than the quorum can do without:
          no operator could replace them. For the same reason no member is removed or replaced, and no state is damaged,
          until the disk is replaced; and a cluster in which a state is damaged has its minority of wrong nodes already.

        A peer that remembers may be cut off, late or down when the node starts. Whether it should have been heard in
        time is judged when the node takes part: see :meth:`_on_taking_part`.
        """
        world = self._world
        if world.is_forked or self.is_pending or any(each.holds_damage for each in world.nodes.values()):
            return False
        disk, configuration = node.what_the_copy_lacks(), world.facts.model.configuration
        if disk is None or configuration.get(node.id) is None:
            return False
        voters = configuration.voters()
        broken = {voter for voter in voters if voter in world.distrusted or world.nodes[voter].is_lost} | {node.id}
        if len(broken & set(voters)) > (len(voters) - 1) // 2 or self.admin.is_removing():
            return False
        return bool(fault.argument & SET_BACK_ANYHOW or self._who_remembers(node, disk))

    def _who_remembers(self, node: SimNode, disk: DiskAtStart) -> list[SimNode]:
        return [each for each in self._world.live() if each is not node and each.remembers(node.id, disk)]

    @property
    def is_pending(self) -> bool:
        """Whether a disk was set back, and is not replaced yet."""
        if self._set_back is not None and (self._set_back.is_lost or self._set_back.is_retired):
            self._set_back = None
        return self._set_back is not None

    def _is_calm(self) -> bool:
        """Tell whether nobody is disturbed now."""
        now = self._world.clock.now
        nodes = [each for each in self._world.nodes.values() if not (each.is_lost or each.is_retired)]
        return all(each.is_undisturbed_since(now) for each in nodes if each is not self._set_back)

    def _members_changed(self, node: SimNode) -> bool:
        """Tell whether the members of the copy are others than those of now."""
        return node.copied_members != {member.id for member in self._world.facts.model.configuration.members}

    def _on_taking_part(self, node: SimNode) -> None:
        """A node whose disk was set back has waited, and takes part: judge whether that is allowed.

        Not if a peer that remembers, and that the node calls, was there all the time. Allowed it is, by decision 0012,
        if every such peer was down, cut off, paused or late meanwhile, moved to where the old disk does not look, or is
        none of the members that the disk knows; or if the network is slower than two election timeouts allow. Then
        there may be two histories, and what remains of the promise is that no disk loses what its node knows.
        """
        if node is not self._set_back or self._world.is_forked:
            return
        self._set_back, disk = None, self._disk
        if disk is None or node.raft is None:
            return
        members = {member.id: member.peer_url for member in node.raft.configuration.members}
        since_us = node.started_us
        for peer in self._who_remembers(node, disk):
            is_called = members.get(peer.id) == peer.url
            if (
                is_called
                and self._is_fast
                and node.is_undisturbed_since(since_us)
                and peer.is_undisturbed_since(since_us)
            ):
                invariants.a_disk_that_was_set_back_is_noticed_in_time(node, peer)
        self._world.fork(f"{node.id} takes part")

    @property
    def _is_fast(self) -> bool:
        """A handshake takes a few messages; after two election timeouts nobody is waited for."""
        plan = self._world.plan
        return 20 * (plan.latency_us + plan.jitter_us + plan.turn_us + 1) < plan.election_timeout_us

    def _damage_state(self, node: SimNode) -> None:
        """Change a record in memory, if the others are a majority, and remain one."""
        if self.is_pending:
            return
        voters = self.admin.settled_voters()
        wrong = [voter for voter in voters if self._world.nodes[voter].holds_damage]
        if self.admin.scripts or node.id not in voters or len({*wrong, node.id}) > (len(voters) - 1) // 2:
            return
        if node.damage_state():
            self._world.counts["states damaged"] += 1

    def _freeze(self, node: SimNode, fault: Fault) -> None:
        """Pause a node that is cut off until the others have elected another leader: it wakes up alone (B20, B22)."""
        timeout_us = self._world.plan.election_timeout_us
        frozen_us = 2 * timeout_us + fault.duration_us
        node.pause(self._world.clock.now + frozen_us)
        self._partition(self._links(node, msgspec.structs.replace(fault, kind="isolate")), frozen_us + timeout_us)

    @staticmethod
    async def _transfer(node: SimNode) -> None:
        assert node.product is not None
        with suppress(CallerError):
            await node.product.transfer_leadership(None, 10 * node.plan.election_timeout_us // MS)

    # --- Partitions ---------------------------------------------------------------------------------------------

    def _partition(self, links: list[Link], duration_us: int) -> None:
        self._world.network.cut(links)
        self._world.clock.after(duration_us, self._world.network.mend, links)

    def _links(self, node: SimNode, fault: Fault) -> list[Link]:
        """Return which directions of which links a partition cuts."""
        ids = list(self._world.nodes)
        others = [other for other in ids if other != node.id]
        match fault.kind:
            case "isolate":
                return [(node.id, other) for other in others] + [(other, node.id) for other in others]
            case "one_way":
                if fault.argument & 1:
                    return [(node.id, other) for other in others]
                return [(other, node.id) for other in others]
            case "split":
                ours = [other for position, other in enumerate(ids) if fault.argument >> position & 1]
                return [(a, b) for a in ids for b in ids if a != b and (a in ours) != (b in ours)]
            case _:  # A bridge: two halves that only ``node`` reaches.
                ours = others[: len(others) // 2]
                return [(a, b) for a in others for b in others if a != b and (a in ours) != (b in ours)]
