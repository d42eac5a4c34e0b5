"""The core of a simulated process: the real one, which shows each input and each Ready to the invariants."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import msgspec

from kvorum.raft import Change, Raft, RaftConfig, Role
from kvorum.raft.log import OnDisk
from kvorum.raft.messages import (
    AppendEntriesResponse,
    Entry,
    HardState,
    HeartbeatResponse,
    InstallSnapshotResponse,
    Message,
    NodeId,
    PeerMark,
    Read,
    Ready,
    Snapshot,
)

if TYPE_CHECKING:
    from sim.node import SimNode

ANSWERS = (AppendEntriesResponse, HeartbeatResponse, InstallSnapshotResponse)
"""What tells a leader that a follower follows."""


class ObservedRaft(Raft):
    """A consensus server that is watched.

    Args:
        node: whose it is.
        config: as the driver would have it; the plan has its own limits.
        random: draws the election timeouts.
    """

    def __init__(
        self,
        node: SimNode,
        config: RaftConfig,
        random: Random,
        *,
        hard_state: HardState | None = None,
        snapshot: Snapshot | None = None,
        entries: Sequence[Entry] = (),
        on_disk: OnDisk | None = None,
        marks: Sequence[PeerMark] = (),
        commit_index: int = 0,
    ) -> None:
        plan = node.plan
        config = msgspec.structs.replace(
            config,
            append_bytes_max=plan.append_bytes_max,
            inflight_messages_max=plan.inflight_messages_max,
            committed_bytes_max=plan.committed_bytes_max,
            promote_lag_max=plan.promote_lag_max,
            save_bytes_max=plan.save_bytes_max,
            load_bytes_max=plan.load_bytes_max,
        )
        super().__init__(
            config,
            random,
            hard_state=hard_state,
            snapshot=snapshot,
            entries=entries,
            on_disk=on_disk,
            marks=marks,
            commit_index=commit_index,
        )
        self._node = node
        self._is_applying = False
        node.on_raft(self)

    # --- Inputs -------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let a tick pass."""
        node = self._node
        node.port_called("tick")
        node.ticks += 1
        node.count_tick()
        super().tick()
        node.observe(node.world.facts.on_tick, node)
        node.on_input()

    def step(self, message: Message) -> None:
        """Take a message."""
        node = self._node
        if isinstance(message, ANSWERS) and message.term == self.current_term:
            node.heard[message.sender] = node.ticks
        super().step(message)
        node.on_input()

    def propose(self, payloads: Sequence[bytes]) -> tuple[int, int]:
        """Append commands."""
        proposed = super().propose(payloads)
        self._node.observe(self._node.world.facts.on_proposed, self._node, payloads)
        self._node.on_input()
        return proposed

    def propose_change(self, change: Change) -> tuple[int, int]:
        """Append a membership change."""
        proposed = super().propose_change(change)
        self._node.on_change(change)
        self._node.on_input()
        return proposed

    def transfer_leadership(self, target: NodeId | None = None) -> NodeId:
        """Begin to hand the leadership over."""
        target = super().transfer_leadership(target)
        self._node.world.counts["transfers"] += 1
        self._node.world.note(self.id, "hands its leadership to {}", target)
        self._node.on_input()
        return target

    def reapply_from(self, index: int) -> None:
        """The state was rebuilt from another member's."""
        super().reapply_from(index)
        self._node.observe(self._node.world.facts.on_rebuilt, self._node, index)

    def give_back(self, index: int, reads: Sequence[Read]) -> None:
        """The driver has not applied everything."""
        self._node.world.counts["entries given back"] += 1
        self._node.world.counts["reads given back"] += len(reads)
        super().give_back(index, reads)

    def read_index(self, context: int, *, can_wait: bool = False) -> None:
        """Begin a read barrier."""
        super().read_index(context, can_wait=can_wait)
        self._node.on_input()

    def peer_unreachable(self, node: NodeId) -> None:
        """Take a hint."""
        self._node.port_called("peer_unreachable")
        super().peer_unreachable(node)
        self._node.on_input()

    def saved(self, number: int) -> None:
        """A save is durable."""
        self._node.port_called("saved")
        super().saved(number)
        self._node.on_input()

    def fetched(self, snapshot: Snapshot) -> bool:
        """A snapshot is here."""
        is_handed_over = super().fetched(snapshot)
        self._node.on_input()
        return is_handed_over

    def fetch_failed(self, snapshot: Snapshot) -> None:
        """A snapshot does not come."""
        self._node.world.counts["fetches given up"] += 1
        self._node.world.counts["fetches that end at a leader"] += self.role is Role.LEADER
        super().fetch_failed(snapshot)
        self._node.on_input()

    # --- Outputs ------------------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """Hand over what there is to do."""
        ready = super().ready()
        if ready is None:
            return None
        node = self._node
        if ready.committed or ready.restore:
            self._is_applying = True
            node.crash_at("before_apply")
            node.observe(node.on_committed, ready)
        return ready

    def set_state_digest(self, index: int, state_hash: int, version: int = 1, state_sum: bytes = b"") -> None:
        """The driver has applied something."""
        super().set_state_digest(index, state_hash, version, state_sum)
        if self._is_applying:
            self._is_applying = False
            self._node.crash_at("after_apply")
