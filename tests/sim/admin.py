"""Administrators: they change the membership, more than one at a time and at any leader, and take backups."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING

from sim.node import PortError
from sim.plan import MS, Fault, S

from kvorum.errors import CallerError, MembershipRefusedError
from kvorum.identity import incarnation_of, name_of, node_id
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft import AddLearner, Change, Promote, Remove, UpdateAddresses
from kvorum.raft.messages import Member, NodeId
from kvorum.service import requests
from kvorum.service.access import ANONYMOUS
from kvorum.service.service import Service
from kvorum.storage.snapshot_format import read_header, read_payload

if TYPE_CHECKING:
    from sim.node import SimNode
    from sim.world import World

MEMBERS_MAX = 8
PERIOD_US = 100 * MS


class Script:
    """Changes to make one after the other, each tried until it is in force and committed, or moot."""

    def __init__(self, changes: list[Change], *, is_exclusive: bool) -> None:
        self.changes = changes
        self.is_exclusive = is_exclusive
        self.tries_left = 80

    def mentions(self, node: NodeId) -> bool:
        """Tell whether one of its changes is about this node."""
        return any(node == (c.member.id if isinstance(c, AddLearner) else c.id) for c in self.changes)


class Admin:
    """Runs scripts.

    Args:
        world: where.
    """

    def __init__(self, world: World) -> None:
        self.scripts: list[Script] = []
        self._world = world
        self._draw = Random(f"{world.plan.seed}:admin")
        self._born = world.plan.voters

    def begin(self, fault: Fault, node: SimNode) -> None:
        """Begin to add a member, to remove one, or to replace one whose disk is lost now."""
        if any(script.is_exclusive for script in self.scripts):
            return
        match fault.kind:
            case "backup":
                node.call(self._backup, node)
                return
            case "finalize":
                node.call(self._finalize, node)
                return
            case "compact":
                node.call(self._compact, node, fault.argument)
                return
        if any(each.holds_damage for each in self._world.nodes.values()):
            # Nobody would take a member away, or bring one, while the members have to find out whose state is right.
            return
        match fault.kind:
            case "add":
                if len(self._world.nodes) < MEMBERS_MAX:
                    self._run(Script(self._adding(), is_exclusive=False))
            case "remove":
                if not any(script.mentions(node.id) for script in self.scripts):
                    self._run(Script([Remove(node.id)], is_exclusive=False))
            case "replace":
                self._replace(node)

    def _adding(self) -> list[Change]:
        self._born += 1
        newborn = self._world.add_node(f"n{self._born}@1").id
        if self._draw.random() < 0.4:
            # It is of the version before, and upgraded after a while.
            wait_us = self._draw.randrange(8) * S
            self._world.nodes[newborn].upgraded_at_us = self._world.clock.now + wait_us
        return [AddLearner(Member(newborn, voter=False)), Promote(newborn)]

    def _replace(self, node: SimNode) -> None:
        """Lose a disk for good, if the others can do without it: that loss is no bug of ours."""
        leaders = self._world.leaders()
        leader = leaders[0] if leaders else None
        if self.scripts or leader is None or leader.raft is None or leader is node:
            return
        voters = self.settled_voters()
        lost = any(
            voter in self._world.distrusted or (voter in self._world.nodes and self._world.nodes[voter].is_lost)
            for voter in voters
        )
        if lost or len(voters) < 3 or node.id not in voters:
            return
        self._replace_disk(node)

    def is_removing(self) -> bool:
        """Tell whether a script has yet to remove a member whose disk is not lost."""
        nodes = self._world.nodes
        return any(
            isinstance(change, Remove) and not nodes[change.id].is_lost
            for script in self.scripts
            for change in script.changes
        )

    def replace_distrusted(self) -> None:
        """Do what nodes advise whose disks were set back: give each an empty one, one after the other."""
        if self._world.is_forked:
            return
        nodes = [self._world.nodes[node] for node in self._world.distrusted]
        nodes = [node for node in nodes if not node.is_lost and not node.is_retired]
        for node in list(nodes):
            script = next((each for each in self.scripts if Promote(node.id) in each.changes), None)
            if script is not None:
                # It was to take the place of another one, and never will.
                nodes.remove(node)
                script.changes = [
                    *self._replacing(node),
                    *(each for each in script.changes if each != Promote(node.id)),
                ]
        if nodes and not self.scripts:
            self._replace_disk(nodes.pop(0))
        if nodes:
            self._world.clock.after(PERIOD_US, self.replace_distrusted)

    def _replace_disk(self, node: SimNode) -> None:
        self._run(Script(self._replacing(node), is_exclusive=True))

    def _replacing(self, node: SimNode) -> list[Change]:
        """Take a node's disk away, start another node in its place, and return the changes that make it a member."""
        node.crash("its disk is lost")
        node.is_lost = True
        self._world.counts["disks lost"] += 1
        replacement = node_id(node.name, str(int(incarnation_of(node.id)) + 1))
        self._world.add_node(replacement)
        return [AddLearner(Member(replacement, voter=False)), Promote(replacement), Remove(node.id)]

    def settled_voters(self) -> tuple[NodeId, ...]:
        """Return the voters, if a leader knows that the configuration is committed; else nobody."""
        leaders = self._world.leaders()
        if not leaders or leaders[0].raft is None:
            return ()
        raft = leaders[0].raft
        is_settled = raft.configurations.latest_index <= raft.log.commit_index
        if not is_settled or raft.log.term(raft.log.commit_index) != raft.current_term:
            return ()
        return tuple(raft.configuration.voters())

    # --- Backups, and the feature level ---------------------------------------------------------------------------

    async def _backup(self, node: SimNode) -> None:
        """Take a backup as the front does, and look into it."""
        assert node.product is not None
        assert node.loop is not None
        committed, data = self._world.facts.commit_index, bytearray()
        service = Service(node.product, node.loop.time)
        with suppress(CallerError, PortError):  # The latter ends the node.
            backup = await service.execute(ANONYMOUS, requests.Snapshot(self._world.plan.deadline_us // MS))
            try:
                async for chunk in backup.chunks():
                    data += chunk
            finally:
                backup.close()
            node.observe(self._world.facts.on_backup, node, committed, _restored(bytes(data)))

    async def _finalize(self, node: SimNode) -> None:
        """Ask for the highest feature level."""
        assert node.product is not None
        assert node.loop is not None
        service = Service(node.product, node.loop.time)
        with suppress(CallerError):
            await service.execute(ANONYMOUS, requests.FinalizeUpgrade(self._world.plan.deadline_us // MS))
            self._world.counts["feature levels finalized"] += 1

    async def _compact(self, node: SimNode, per_mille: int) -> None:
        """Give up the history below a revision: such a part of what the node has, or more than it has."""
        assert node.product is not None
        assert node.loop is not None
        service, store = Service(node.product, node.loop.time), node.store
        revision = store.floor + (store.revision + 1 - store.floor) * per_mille // 1000
        with suppress(CallerError):
            compacted = await service.execute(ANONYMOUS, requests.Compact(revision, self._world.plan.deadline_us // MS))
            self._world.counts["compactions"] += 1
            node.observe(self._world.facts.on_compaction, node, revision, compacted.floor)

    # --- Scripts ------------------------------------------------------------------------------------------------

    def _run(self, script: Script) -> None:
        self.scripts.append(script)
        self._step(script)

    def _step(self, script: Script) -> None:
        """Look whether the change is done; if not, ask any node that believes it leads, and come back."""
        leaders = self._world.leaders()
        script.tries_left -= 1
        if not script.changes or (script.tries_left <= 0 and not script.is_exclusive):
            self.scripts.remove(script)
            return
        if leaders:
            leader = leaders[self._draw.randrange(len(leaders))]
            if self._is_done(leader, script.changes[0]):
                self._world.counts[f"membership {type(script.changes[0]).__name__}"] += 1
                self._done(script.changes.pop(0))
            else:
                self._ask(leader, script)
        self._world.clock.after(PERIOD_US, self._step, script)

    def _ask(self, leader: SimNode, script: Script) -> None:
        change = script.changes[0]
        if isinstance(change, Remove) and change.id == leader.id and change not in self._world.facts.changes:
            self._world.counts["leaders asked to remove themselves"] += 1
        leader.call(self._change, leader, change)

    async def _change(self, leader: SimNode, change: Change) -> None:
        product, timeout_ms = leader.product, self._world.plan.deadline_us // MS
        assert product is not None
        with suppress(CallerError):
            match change:
                case AddLearner(member):
                    url = self._world.nodes[member.id].url
                    try:
                        await product.add_member(name_of(member.id), url, "", timeout_ms)
                    except MembershipRefusedError as error:
                        self._world.counts["members refused for their level"] += "feature level" in str(error)
                case Promote(node):
                    await product.promote_member(node, timeout_ms)
                case Remove(node):
                    await product.remove_member(node, timeout_ms)
                case UpdateAddresses():
                    raise AssertionError("nobody but a member says where it is")

    def _is_done(self, leader: SimNode, change: Change) -> bool:
        assert leader.raft is not None
        if leader.raft.configurations.latest_index > leader.raft.log.commit_index:
            return False
        members = leader.raft.configuration
        match change:
            case AddLearner(member):
                return members.get(member.id) is not None
            case Promote(node):
                return node in members.voters() or members.get(node) is None
            case Remove(node):
                return members.get(node) is None
            case UpdateAddresses():
                raise AssertionError("nobody but a member says where it is")

    def _done(self, change: Change) -> None:
        if change in self._world.facts.changes and isinstance(change, Remove):
            self._retire(change.id)

    def _retire(self, node: NodeId) -> None:
        """A removed node goes on for a while, or for ever: it must not disturb the others (bug B7)."""
        removed = self._world.nodes[node]
        removed.is_removed = True
        if not self._world.plan.removed_keep_running:
            self._world.clock.after(self._world.plan.election_timeout_us, removed.retire)


def _restored(file: bytes) -> Store:
    """Return the state in a backup."""
    stream = BytesIO(file)
    snapshot, header = read_header(stream)
    restorer = Restorer(snapshot.configuration)
    for chunk in read_payload(stream, header, len(file)):
        restorer.feed(chunk)
    return restorer.finish()
