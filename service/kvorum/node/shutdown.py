"""A clean shutdown: what happens between SIGTERM and the end (docs/operations).

PodDisruptionBudgets do not govern rollouts, and the controller may stop a pod while another is not ready yet. So the
safety of the quorum lies here: a node that is still needed for a quorum stays as long as its grace period allows.
"""

from __future__ import annotations

import logging

from kvorum.config import Config
from kvorum.errors import CallerError
from kvorum.node.hellos import ask_all
from kvorum.node.membership import Membership
from kvorum.node.ports import Clock, Peers, Tasks
from kvorum.node.proposals import Proposals
from kvorum.raft import Raft, Role
from kvorum.raft.messages import NodeId
from kvorum.telemetry.logs import RateLimit
from kvorum.transport.interface import Hello

log = logging.getLogger("kvorum.node")

RETRY_S = 0.2
HELLO_TIMEOUT_S = 1.0


class Shutdown:
    """Hands over the leadership, and waits until the others can do without this node.

    Args:
        config: how long an election takes.
        raft: the consensus server.
        membership: transfers the leadership.
        proposals: the writes that are in flight.
        peers: whom to ask whether they are up.
        clock: measures time.
        tasks: how to wait.
    """

    def __init__(
        self,
        config: Config,
        raft: Raft,
        membership: Membership,
        proposals: Proposals,
        peers: Peers,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._patience_ms = 2 * config.election_timeout_ms
        self._raft = raft
        self._membership = membership
        self._proposals = proposals
        self._peers = peers
        self._clock = clock
        self._tasks = tasks

    async def run(self, deadline_s: float) -> None:
        """Return when this node may stop, at the latest at ``deadline_s`` on the monotonic clock."""
        await self._hand_over(deadline_s)
        if await self._wait_for_quorum_without_us(deadline_s):
            # A node that stays that long may be elected meanwhile.
            await self._hand_over(deadline_s)

    async def _hand_over(self, deadline_s: float) -> None:
        """Transfer the leadership to the most caught-up voter that is up, and let writes in flight be answered."""
        limit = RateLimit(clock=self._clock.monotonic)
        while self._raft.role is Role.LEADER and self._clock.monotonic() < deadline_s:
            up = await self._others_up()
            target = self._raft.transfer_candidate(up.__contains__)
            if target is None:
                # All nodes stop, or no other is fit: an election will do once one is.
                break
            try:
                leader = await self._membership.transfer(target, self._patience_ms)
                log.info("transferred the leadership to %s", leader)
            except CallerError as error:
                if limit.allow() is not None:
                    log.warning("cannot transfer the leadership yet: %s", error)
                await self._tasks.sleep(RETRY_S)
        await self._proposals.idle(deadline_s)

    async def _wait_for_quorum_without_us(self, deadline_s: float) -> bool:
        """Return True once the others have a quorum; False if our staying does not help them, or the grace is over."""
        told, hopeless_since_s = False, None
        while (now := self._clock.monotonic()) < deadline_s:
            configuration = self._raft.configuration
            voters, quorum = configuration.voters(), configuration.quorum()
            if self._raft.id not in voters or len(voters) == 1:
                return True
            up = len(await self._others_up())
            if up >= quorum:
                return True
            if up + 1 >= quorum:
                hopeless_since_s = None
            elif hopeless_since_s is None:
                # For the moment of an election no node is ready.
                hopeless_since_s = now
            elif now - hopeless_since_s >= self._patience_ms / 1000:
                return False
            if not told and hopeless_since_s is None:
                told = True
                log.warning(
                    "delaying shutdown: only %d other voter%s up, and quorum is %d",
                    up,
                    " is" if up == 1 else "s are",
                    quorum,
                )
            await self._tasks.sleep(RETRY_S)
        return False

    async def _others_up(self) -> dict[NodeId, Hello]:
        """Return the hellos of the other voters that are ready."""
        others = [voter for voter in self._raft.configuration.voters() if voter != self._raft.id]
        hellos = await ask_all(self._peers, {other: self._peers.url_of(other) for other in others}, HELLO_TIMEOUT_S)
        return {
            other: hello
            for other, hello in hellos.items()
            if hello is not None and hello.node_id == other and hello.is_serving
        }
