"""Changes of the members, and of the leader. Each waits for what consensus decides, as a write does."""

from __future__ import annotations

import logging

from kvorum.config import Config
from kvorum.errors import (
    MembershipRefusedError,
    NotLeaderError,
    OutcomeUnknownError,
    PeerError,
    UnknownMemberError,
)
from kvorum.identity import name_of
from kvorum.node.hellos import TIMEOUT_S as HELLO_TIMEOUT_S
from kvorum.node.incarnation import ClusterIdentity
from kvorum.node.levels import FeatureLevels
from kvorum.node.ports import Clock, Peers
from kvorum.node.turns import Turns
from kvorum.node.waits import Waits
from kvorum.raft import AddLearner, Change, Promote, Raft, Remove, Role, UpdateAddresses
from kvorum.raft.messages import Configuration, Member, NodeId
from kvorum.transport.interface import Hello

log = logging.getLogger("kvorum.raft")


class Membership:
    """Proposes changes, and follows the configuration in force.

    Args:
        config: the node's.
        raft: the consensus server.
        identity: who we are.
        levels: the feature level that a new member has to support.
        peers: the other nodes.
        waits: completed by the driver when a change is decided.
        clock: for the deadlines of callers.
        turns: the driver's.
    """

    def __init__(
        self,
        config: Config,
        raft: Raft,
        identity: ClusterIdentity,
        levels: FeatureLevels,
        peers: Peers,
        waits: Waits,
        clock: Clock,
        turns: Turns,
    ) -> None:
        self._raft = raft
        self._identity = identity
        self._levels = levels
        self._peers = peers
        self._waits = waits
        self._clock = clock
        self._turns = turns
        self._expected_urls = config.expected_urls()
        self._followed: tuple[Configuration, ...] = ()
        self._announced = raft.configuration

    # --- The members --------------------------------------------------------------------------------------------

    async def add(self, name: str, peer_url: str, client_url: str, timeout_ms: int) -> None:
        """Add the node that answers at ``peer_url`` as a learner.

        The client URL of a member is what the member announces (see :meth:`publish_addresses`). ``client_url`` may be
        empty; a caller who expects another URL is told so.

        Raises:
            NotLeaderError, MembershipRefusedError: not done.
            OutcomeUnknownError: it may be.
        """
        self._check_leads()
        deadline_s = self._clock.monotonic() + timeout_ms / 1000
        hello = await self._greet(name, peer_url, deadline_s)
        if client_url not in ("", hello.client_url):
            raise MembershipRefusedError(
                f"{name} says that clients reach it at {hello.client_url}, not {client_url}: set advertise_client_url "
                f"of {name} and restart it, or leave the client URL out"
            )
        member = Member(hello.node_id, voter=False, peer_url=peer_url, client_url=hello.client_url)
        await self._make(AddLearner(member), deadline_s)

    async def promote(self, name: str, timeout_ms: int) -> None:
        """Make a learner a voter. Raises as :meth:`add`; UnknownMemberError: there is no such member."""
        await self.change(Promote(self.member_named(name)), timeout_ms)

    async def remove(self, name: str, timeout_ms: int) -> None:
        """Remove a member. Raises as :meth:`promote`."""
        await self.change(Remove(self.member_named(name)), timeout_ms)

    def member_named(self, name: str) -> NodeId:
        """Return the id of the one member with this name or id.

        Raises:
            NotLeaderError: this node may not know the newest members.
            UnknownMemberError: there is none.
            MembershipRefusedError: there are two incarnations.
        """
        self._check_leads()
        members = self._raft.configuration.members
        matches = [member.id for member in members if name in (member.id, name_of(member.id))]
        if not matches:
            known = ", ".join(member.id for member in members) or "none"
            raise UnknownMemberError(f'no member is named "{name}" (members: {known})')
        if len(matches) > 1:
            raise MembershipRefusedError(f'{len(matches)} members are named "{name}": {", ".join(matches)}; give an id')
        return matches[0]

    async def change(self, change: Change, timeout_ms: int) -> None:
        """Make one membership change and wait until it is committed, and applied here.

        Raises:
            NotLeaderError, MembershipRefusedError: not done.
            OutcomeUnknownError: it may be.
        """
        self._check_leads()
        deadline_s = self._clock.monotonic() + timeout_ms / 1000
        if isinstance(change, AddLearner):
            member = change.member
            hello = await self._greet(name_of(member.id), member.peer_url, deadline_s)
            if hello.node_id != member.id:
                raise MembershipRefusedError(f"{hello.node_id} answers at {member.peer_url}, not {member.id}")
        await self._make(change, deadline_s)

    def _check_leads(self) -> None:
        if self._raft.role is not Role.LEADER:
            raise NotLeaderError(self._raft.leader)

    async def _greet(self, name: str, peer_url: str, deadline_s: float) -> Hello:
        """Return what the node that is to be added says of itself.

        Raises:
            MembershipRefusedError: it does not answer in time, or it cannot be a member.
        """
        timeout_s = min(max(deadline_s - self._clock.monotonic(), 0), HELLO_TIMEOUT_S)
        try:
            hello = await self._peers.hello(peer_url, timeout_s)
        except PeerError as error:
            raise MembershipRefusedError(f"{name} does not answer at {peer_url}: {error}") from error
        if hello.name != name:
            raise MembershipRefusedError(f"{hello.name} answers at {peer_url}, not {name}")
        if hello.cluster_id and hello.cluster_id != self._identity.current.cluster_id:
            raise MembershipRefusedError(f"{name} belongs to another cluster, {hello.cluster_id}")
        level = self._levels.needed_level()
        if hello.levels[1] < level:
            raise MembershipRefusedError(
                f"{name} runs {hello.version}, which does not support the feature level of the cluster, {level}"
            )
        return hello

    async def _make(self, change: Change, deadline_s: float) -> None:
        """Propose the change and wait for it. No ``await`` may come between :meth:`_greet` and the proposal."""
        index, term = self._raft.propose_change(change)
        waiter = self._waits.entry(index, term, deadline_s - self._clock.monotonic())
        self.follow()
        self._turns.may_have_changed = True
        self._turns.schedule()
        await waiter

    def follow(self) -> None:
        """Keep a stream to every member, and to whoever was one before a change that is not committed.

        The address in our options comes first, then the one that the cluster agreed on, then the one that the member
        announced when it called: each may be out of date, and identity is checked wherever we call.

        Nobody is called before something of the cluster is durable here: killed until then, we forget it.
        """
        if not (self._raft.log.saved_index or self._raft.log.applied_index):
            return
        self._followed = self._possible()
        # The later configuration counts where both have a member.
        members = {member.id: member for configuration in self._followed for member in configuration.members}
        self._raft.marks.keep(set(members))
        own_id = self._identity.current.node_id
        others = [member for member in members.values() if member.id != own_id]
        self._peers.set_members(
            {member.id: self._expected_urls.get(name_of(member.id), member.peer_url) for member in others}
        )
        for member in others:
            said = self._levels.announcement(member.id)
            self._peers.set_alternatives(member.id, (member.peer_url, said.peer_url if said is not None else ""))

    def follow_if_changed(self) -> None:
        """Take note of what is in force, once for each change."""
        if self._possible() != self._followed:
            self.follow()
        configuration = self._raft.configuration
        if configuration is not self._announced:
            self._announced = configuration
            log.info(
                "members are now: %s (index %d)",
                ", ".join(f"{m.id}{'' if m.voter else ' (learner)'}" for m in configuration.members) or "none",
                self._raft.configurations.latest_index,
            )

    def _possible(self) -> tuple[Configuration, ...]:
        """Return the configurations whose members are called.

        Whoever leads may have in force what was in force before the last entry of ours: a removal that only this node
        has would otherwise keep it from telling the leader where it is now.
        """
        raft = self._raft
        return raft.configurations.possible(raft.log.commit_index)

    # --- Addresses ----------------------------------------------------------------------------------------------

    def publish_addresses(self) -> None:
        """As the leader, have the configuration say where each member is now. Called once a tick.

        A member's word counts while its stream to this node is open: the handshake has checked its identity, and no
        later word of it is on another leader's side.
        """
        raft = self._raft
        if raft.role is not Role.LEADER:
            return
        for member in raft.configuration.members:
            addresses = self._addresses_of(member.id)
            if addresses is None or addresses == (member.peer_url, member.client_url):
                continue
            if not raft.can_change_membership:
                return
            raft.propose_change(UpdateAddresses(member.id, *addresses))
            log.info(
                "%s is now at %s for peers and %s for clients (before: %s and %s)",
                *(member.id, *addresses, member.peer_url or "unknown", member.client_url or "unknown"),
            )
            self.follow()
            return

    def _addresses_of(self, node: NodeId) -> tuple[str, str] | None:
        """Return the peer URL and the client URL that a member announces now; None: it does not."""
        said = self._levels.announcement(node)
        if said is None or not said.peer_url or not said.client_url:
            return None
        if node != self._raft.id and not self._peers.is_calling(node):
            return None
        return said.peer_url, said.client_url

    # --- The leader ---------------------------------------------------------------------------------------------

    async def transfer(self, target_name: str | None, timeout_ms: int) -> str:
        """Hand the leadership to the target (None: the most caught-up voter) and return the new leader's name.

        Raises:
            NotLeaderError, UnknownMemberError, MembershipRefusedError, TransferFailedError: the leadership stays;
                nothing was begun.
            OutcomeUnknownError: it left, or may still leave.
        """
        self._check_leads()
        raft = self._raft
        target = self.member_named(target_name) if target_name else None
        if target == raft.id:
            return name_of(target)
        target = raft.transfer_leadership(target)
        self._turns.may_have_changed = True
        self._turns.schedule()
        deadline = self._clock.monotonic() + timeout_ms / 1000
        while True:
            if raft.role is not Role.LEADER and raft.leader is not None:
                return name_of(raft.leader)
            if raft.role is Role.LEADER and not raft.is_transferring:
                # The target may have been told to campaign. It may be paused, and do so when it wakes up.
                raise OutcomeUnknownError(f"{target} did not take the leadership in time; it may still do so")
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0 or not await self._waits.change(left_s):
                raise OutcomeUnknownError(f"leadership transfer to {target} started; the new leader is not known yet")
