"""A clean shutdown: what happens between SIGTERM and the end (docs/operations).

First the node leads and serves on for a while: kube-proxy and other load balancers learn a moment later than the node
that it is not ready, and would lead clients to a closed port.

PodDisruptionBudgets do not govern rollouts, and the controller may stop a pod while another is not ready yet. So the
safety of the quorum lies here: a node that is still needed for a quorum stays as long as its grace period allows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kvorum.config import Config
from kvorum.errors import CallerError
from kvorum.node.handover_port import HandOverPort
from kvorum.node.hellos import ask_all, excludes
from kvorum.node.membership import Membership
from kvorum.node.ports import Clock, Peers, Tasks
from kvorum.node.proposals import Proposals
from kvorum.node.report import Report
from kvorum.raft import Raft, Role
from kvorum.raft.messages import NodeId
from kvorum.telemetry.logs import RateLimit
from kvorum.transport.interface import Hello

log = logging.getLogger("kvorum.node")

RETRY_S = 0.2
HELLO_TIMEOUT_S = 1.0
REMEMBER_S = 1.0
REMEMBER_RETRY_S = 0.02
REDIRECT_S = 1.0
"""How long clients that were on their way to the leader are redirected from here, at most ``shutdown_delay_s``."""


class Shutdown:
    """Serves on, hands over the leadership, and waits until the others can do without this node.

    Args:
        config: how long an election takes, and how long to serve on.
        raft: the consensus server.
        membership: transfers the leadership.
        proposals: the writes that are in flight.
        handover: the writes that are handed to the leader; likewise.
        report: what says that this node was removed.
        hello: returns what this node says of itself.
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
        handover: HandOverPort,
        report: Report,
        hello: Callable[[], Hello],
        peers: Peers,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._patience_ms = 2 * config.election_timeout_ms
        self._delay_s = config.shutdown_delay_s
        self._raft = raft
        self._membership = membership
        self._proposals = proposals
        self._handover = handover
        self._report = report
        self._hello = hello
        self._peers = peers
        self._clock = clock
        self._tasks = tasks

    async def serve_on(self, deadline_s: float) -> None:
        """Lead and answer for ``shutdown_delay_s`` more, at the latest until ``deadline_s`` on the monotonic clock."""
        until_s = min(self._clock.monotonic() + self._delay_s, deadline_s)
        while (left_s := until_s - self._clock.monotonic()) > 0:
            # Scaled in, this node may be removed at any moment; then its clients are sent to the leader.
            if self._raft.leader is None and self._report.removed_by is None:
                await self.is_removed()
            await self._tasks.sleep(min(RETRY_S, left_s))

    async def is_removed(self) -> bool:
        """Ask the other members whether this node is one no longer; it believes that for good."""
        if self._report.removed_by is None:
            await self._ask_others()
        return self._report.removed_by is not None

    async def run(self, deadline_s: float) -> None:
        """Return when this node may stop, at the latest at ``deadline_s`` on the monotonic clock."""
        await self._hand_over(deadline_s)
        if await self._wait_for_quorum_without_us(deadline_s):
            # A node that stays that long may be elected meanwhile.
            await self._hand_over(deadline_s)
        await self._remember(deadline_s)

    async def _remember(self, deadline_s: float) -> None:
        """Save what this node knows of the others' disks: nobody else may know it."""
        until_s = min(self._clock.monotonic() + REMEMBER_S, deadline_s)
        number = self._raft.remember()
        while self._raft.saved_number < number and self._clock.monotonic() < until_s:
            await self._tasks.sleep(REMEMBER_RETRY_S)

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
                left_s = deadline_s - self._clock.monotonic()
                await self._tasks.sleep(max(min(REDIRECT_S, self._delay_s, left_s), 0))
            except CallerError as error:
                if limit.allow() is not None:
                    log.warning("cannot transfer the leadership yet: %s", error)
                await self._tasks.sleep(RETRY_S)
        await self._proposals.idle(deadline_s)
        await self._handover.origin.idle(deadline_s)

    async def _wait_for_quorum_without_us(self, deadline_s: float) -> bool:
        """Return True once the others have a quorum; False if our staying does not help them, or the grace is over."""
        told, hopeless_since_s = False, None
        while (now := self._clock.monotonic()) < deadline_s:
            configuration = self._raft.configuration
            voters, quorum = configuration.voters(), configuration.quorum()
            if self._raft.id not in voters or len(voters) == 1:
                return True
            up = len(await self._others_up())
            if up >= quorum or self._report.removed_by is not None:
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
        hellos = await self._ask_others()
        voters = self._raft.configuration.voters()
        return {voter: hello for voter, hello in hellos.items() if voter in voters and hello.is_serving}

    async def _ask_others(self) -> dict[NodeId, Hello]:
        """Return the hellos of the other members, and note whether one of them says that this node is none."""
        others = [member.id for member in self._raft.configuration.members if member.id != self._raft.id]
        answers = await ask_all(self._peers, {other: self._peers.url_of(other) for other in others}, HELLO_TIMEOUT_S)
        hellos = {other: hello for other, hello in answers.items() if hello is not None and hello.node_id == other}
        remover = next((hello for hello in hellos.values() if excludes(self._hello(), hello)), None)
        if remover is not None and self._report.removed_by is None:
            log.info("%s leads, and %s is no longer a member", remover.node_id, self._raft.id)
            self._report.removed_by = remover
        return hellos
