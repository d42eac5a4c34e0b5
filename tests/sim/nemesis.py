"""Whoever makes the plan's faults happen."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from sim.admin import Admin
from sim.network import Link
from sim.plan import CRASH_PASSES_MAX, MS, PORT_ERRORS, Fault

from kvorum.errors import CallerError

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
        self._set_back: SimNode | None = None
        """Whose disk was set back, until it is decided whether that is noticed: nothing else happens meanwhile."""
        for fault in world.plan.faults:
            world.clock.after(fault.at_us, self._strike, fault)

    def _strike(self, fault: Fault) -> None:
        world = self._world
        if world.is_recovering or self._is_deciding():
            return
        node = self._target(fault)
        if node is None:
            return
        world.counts[f"fault {fault.kind}"] += 1
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
                    each.cut_fetches_until = world.clock.now + 12 * fault.duration_us
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
        if node.copied_at is None or (not fault.argument and not self._is_quiet(node)):
            return
        node.crash("killed", durable=1)
        self._world.clock.after(fault.duration_us, self._end_set_back, node, fault)

    def _end_set_back(self, node: SimNode, fault: Fault) -> None:
        """Set the disk back, unless something has happened meanwhile; start the machine."""
        world = self._world
        if node.is_up or node.is_lost or node.is_retired:
            return
        if fault.argument or (not world.is_recovering and self._is_quiet(node)):
            # The machine was down for minutes: nothing that it said is on its way any more.
            world.network.forget(node.id)
            node.set_disk_back()
            self._set_back = None if fault.argument else node
        node.start()

    def _is_deciding(self) -> bool:
        """Tell whether a node whose disk was set back has not yet heard what its peers remember."""
        node = self._set_back
        if node is None:
            return False
        participation = node.product.parts.participation if node.product is not None else None
        if participation is None or not (participation.is_active or participation.is_distrusted):
            return node.is_up
        self._set_back = None
        return False

    def _is_quiet(self, node: SimNode) -> bool:
        """Tell whether a majority is there without this node, undisturbed, and has been since its disk was copied."""
        world, plan = self._world, self._world.plan
        voters = self.admin.settled_voters()
        others = [world.nodes[voter] for voter in voters if voter != node.id]
        # A handshake takes a few messages; after two election timeouts nobody is waited for.
        is_fast = 20 * (plan.latency_us + plan.jitter_us + plan.turn_us + 1) < plan.election_timeout_us
        is_settled = node.id in voters and len(voters) >= 3 and not self.admin.scripts and plan.crash_at == 0
        return is_fast and is_settled and all(each.is_undisturbed_since(node.copied_at or 0) for each in others)

    def _damage_state(self, node: SimNode) -> None:
        """Change a record in memory, if the others are a majority, and remain one."""
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
