"""Which membership change comes next, if any: the cluster heals and scales itself, one safe step at a time.

:func:`decide` is pure: it looks at one :class:`View` of the cluster and returns one :class:`Decision`.
:class:`Reconciler` is the thin loop around it, which every node runs and in which only the leader acts. All that there
is to remember is in the replicated configuration itself, so a new leader goes on where the old one stopped.

The rules, and what each of them has cost someone:

1. **One step at a time.** Nothing happens before an entry of this term is committed, nor while another change is not.
2. **Silence never changes the membership.** A pod that restarts, drains, is evicted or paused stays a member; only the
   desired replica count and a *new incarnation of the same name with an empty disk* change anything.
3. **A lost disk is replaced**: the old incarnation is removed once the new one has been seen and the old one has
   fallen silent, and only while the other voters are a majority without it, before and after the change. Then the new
   one is a newcomer.
4. **Newcomers are learners first**, one at a time, and are promoted when they have caught up. They come with an empty
   disk: an old log under an unknown identity is refused (its node starts afresh, and comes back as a new incarnation).
5. **Scale-in removes the highest ordinal first**, only while the remaining voters keep a healthy majority. A leader
   that is to go hands over the leadership first, so that its removal is not an election.
6. **A desired count of zero is a stop**, not a removal: ``kubectl scale --replicas=0`` and back loses nothing.
7. **An unknown desired count scales nothing.** Members without an ordinal, or of another base name, are the operator's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol, assert_never

import msgspec

from kvorum.config import ordinal_of
from kvorum.errors import CallerError
from kvorum.identity import name_of
from kvorum.node.ports import Clock, Tasks
from kvorum.raft.membership import AddLearner, Promote, Remove
from kvorum.raft.messages import Configuration, Member, NodeId, majority
from kvorum.telemetry.logs import RateLimit

PROMOTE_LAG_MAX = 64
"""A learner this many entries or fewer behind has caught up (each entry is a batch; a voter may lag as much)."""

logger = logging.getLogger(__name__)


class MembershipSpec(msgspec.Struct, frozen=True):
    """Who should be a member.

    ``names`` in the order in which they are added. ``base``: of a StatefulSet's pods; a member ``BASE-ORDINAL`` that
    is not in ``names`` is surplus. Empty: nobody is.
    """

    names: tuple[str, ...]
    base: str = ""

    @classmethod
    def stateful_set(cls, base: str, replicas: int) -> MembershipSpec:
        """Return the members of a StatefulSet with this many replicas."""
        return cls(tuple(f"{base}-{ordinal}" for ordinal in range(replicas)), base)

    def wants(self, name: str) -> bool:
        """Tell whether this name should be a member."""
        return name in self.names

    def is_surplus(self, name: str) -> bool:
        """Tell whether this name should be removed. Nobody should when nobody at all is desired: that is a stop."""
        split = ordinal_of(name)
        return bool(self.base and self.names and split and split[0] == self.base and name not in self.names)


class Observed(msgspec.Struct, frozen=True):
    """Who answers under a name now, by its own words (its hello to this leader)."""

    id: NodeId
    empty: bool
    """Its disk is empty: no log, no vote, no cluster. What makes it a newcomer."""
    peer_url: str
    client_url: str = ""
    is_too_old: bool = False
    """It does not support the feature level of the cluster: it could not read the snapshot, nor apply the log."""


class Health(msgspec.Struct, frozen=True):
    """A member as the leader's replication sees it.

    Of a new leader's members, some are neither healthy nor silent for a moment: it cannot know yet.
    """

    healthy: bool
    """It holds entries of this leader's log, by its own word, and was heard of within the last election timeout."""
    lag: int
    """Entries behind the leader's log."""
    silent: bool
    """Not heard of for an election timeout, in which this leader led."""


class View(msgspec.Struct, frozen=True):
    """All that a leader's decision depends on."""

    leader: NodeId
    configuration: Configuration
    settled: bool
    """An entry of this term is committed, and so is the configuration (thesis 4.1, and the bug of 2015)."""
    observed: Mapping[str, Observed]
    """By name; recent hellos only. The leader itself need not be in it."""
    health: Mapping[NodeId, Health]
    """By member; the leader itself need not be in it."""
    desired: MembershipSpec | None
    """None: unknown."""
    successor: NodeId | None = None
    """Who should lead next of those that are desired, as consensus says (:meth:`Raft.transfer_candidate`)."""


class Transfer(msgspec.Struct, frozen=True, tag="transfer"):
    """Hand the leadership over to this member, so that its new leader can remove us."""

    id: NodeId


Step = AddLearner | Promote | Remove | Transfer


class Decision(msgspec.Struct, frozen=True):
    """The next step and why, or why there is none although there is something to do (``step`` None)."""

    step: Step | None
    reason: str = ""


def decide(view: View) -> Decision:
    """Return the single next step for the leader whose view this is."""
    if not view.settled:
        return Decision(None)
    waiting = ""
    for rule in (_replace, _scale_in, _promote, _add):
        decision = rule(view)
        if decision.step is not None:
            return decision
        waiting = waiting or decision.reason
    return Decision(None, waiting)


def _replace(view: View) -> Decision:
    """Remove an incarnation whose disk is lost (rule 3)."""
    waiting = ""
    for member in view.configuration.members:
        name = name_of(member.id)
        observed = view.observed.get(name)
        if member.id == view.leader or observed is None or observed.id == member.id or not observed.empty:
            continue
        what = f"{name} came back with an empty disk as {observed.id}, so {member.id}"
        if view.desired is None or not view.desired.wants(name):
            waiting = f"{what} is lost, but the desired replica count is unknown"
        elif not _is_silent(view, member.id):
            waiting = f"{what} should be gone, but it still answers, or did a moment ago"
        elif not _others_are_majority(view, member.id):
            waiting = f"{what} is lost, but the other voters do not form a majority"
        else:
            return Decision(Remove(member.id), f"{what} is lost")
    return Decision(None, waiting)


def _scale_in(view: View) -> Decision:
    """Remove the highest surplus ordinal; a surplus leader hands over first (rules 5, 6, 7)."""
    desired = view.desired
    if desired is None:
        return Decision(None)
    surplus = [member for member in view.configuration.members if desired.is_surplus(name_of(member.id))]
    if not surplus:
        return Decision(None)
    why = f"{len(desired.names)} replicas are desired"
    # The leader last: with the others gone its successor has one removal to do.
    surplus.sort(key=lambda member: (member.id != view.leader, _ordinal(member.id)), reverse=True)
    for member in surplus:
        if member.id == view.leader:
            return _hand_over(view, why)
        if not _remaining_are_majority(view, member.id):
            return Decision(
                None, f"{member.id} is surplus ({why}), but the other voters would have no healthy majority"
            )
        return Decision(Remove(member.id), f"{why}")
    return Decision(None)


def _hand_over(view: View, why: str) -> Decision:
    successor = view.successor
    if successor is None or not _is_healthy(view, successor):
        return Decision(
            None, f"{view.leader}, the leader, is surplus ({why}), but no other voter can take the leadership"
        )
    return Decision(Transfer(successor), f"{why}, and the leader is not among them")


def _promote(view: View) -> Decision:
    """Make a learner that has caught up a voter (rule 4)."""
    waiting = ""
    for member in view.configuration.members:
        if member.voter or not _is_current(view, member.id) or _is_unwanted(view, member.id):
            continue
        health = view.health.get(member.id)
        if health is None or health.silent:
            waiting = f"{member.id}, a learner, does not answer"
        elif health.lag > PROMOTE_LAG_MAX:
            waiting = f"{member.id}, a learner, is {health.lag} entries behind"
        elif not health.healthy:
            waiting = f"{member.id}, a learner, has not answered yet"
        elif _healthy_voters(view) + 1 < majority(len(view.configuration.voters()) + 1):
            waiting = (
                f"{member.id}, a learner, has caught up, but promoting it would leave no majority of healthy voters"
            )
        else:
            return Decision(Promote(member.id), "it has caught up")
    return Decision(None, waiting)


def _add(view: View) -> Decision:
    """Begin to replicate to a newcomer, one at a time (rule 4)."""
    if view.desired is None:
        return Decision(None)
    catching_up = [node for node in view.configuration.learners() if not _is_silent(view, node)]
    names = {name_of(member.id) for member in view.configuration.members}
    waiting = ""
    for name in view.desired.names:
        observed = view.observed.get(name)
        if name in names or observed is None:
            continue
        if not observed.empty:
            waiting = waiting or f"{observed.id} is not a member but has a log: it must restart with an empty disk"
        elif observed.is_too_old:
            waiting = waiting or f"{observed.id} does not support the feature level of the cluster: upgrade it"
        elif catching_up:
            waiting = waiting or f"{observed.id} waits until {catching_up[0]} has caught up"
        else:
            return Decision(
                AddLearner(Member(observed.id, False, observed.peer_url, observed.client_url)), f"{name} is desired"
            )
    return Decision(None, waiting)


def _ordinal(node: NodeId) -> int:
    split = ordinal_of(name_of(node))
    return split[1] if split else -1


def _is_healthy(view: View, node: NodeId) -> bool:
    if node == view.leader:
        return True
    health = view.health.get(node)
    return health is not None and health.healthy


def _is_silent(view: View, node: NodeId) -> bool:
    health = view.health.get(node)
    return health is not None and health.silent


def _is_unwanted(view: View, node: NodeId) -> bool:
    return view.desired is not None and view.desired.is_surplus(name_of(node))


def _is_current(view: View, node: NodeId) -> bool:
    """Tell whether nobody else answers under this member's name."""
    observed = view.observed.get(name_of(node))
    return observed is None or observed.id == node


def _healthy_voters(view: View, without: NodeId = "") -> int:
    return sum(1 for node in view.configuration.voters() if node != without and _is_healthy(view, node))


def _remaining_are_majority(view: View, without: NodeId) -> bool:
    """Tell whether the healthy voters but this one are a majority of the configuration without it."""
    remaining = len(view.configuration.voters()) - 1
    return _healthy_voters(view, without) >= majority(remaining)


def _others_are_majority(view: View, without: NodeId) -> bool:
    """Tell whether the healthy voters but this one are a majority of the configuration with it, too."""
    return _healthy_voters(view, without) >= view.configuration.quorum() and _remaining_are_majority(view, without)


class Cluster(Protocol):
    """What the loop asks of a node."""

    def membership_view(self, desired: MembershipSpec | None) -> View | None:
        """Return what this node sees as the leader, or None when it does not lead."""

    async def change_membership(self, change: AddLearner | Promote | Remove, timeout_ms: int) -> None:
        """Propose the change and wait until it is committed.

        Raises:
            CallerError: it was refused, or its outcome is unknown; either way the next view tells.
        """

    async def transfer_leadership(self, target_name: str | None, timeout_ms: int) -> str:
        """Hand the leadership over and return the new leader's name.

        Raises:
            CallerError: it did not move; we go on.
        """


class MembershipSpecSource(Protocol):
    """Where the desired members are known from: the API server, or the configuration."""

    async def desired(self) -> MembershipSpec | None:
        """Return who should be a member, or None when that cannot be known now. Bounded in time; never raises."""


class Reconciler:
    """The loop: look, decide, take one step, look again.

    Args:
        cluster: the node.
        source: who should be a member; asked only while this node leads.
        clock: by which log lines are limited.
        tasks: how to wait.
        interval_s: between two looks when there is nothing to do.
        timeout_ms: for one step.
    """

    def __init__(
        self,
        cluster: Cluster,
        source: MembershipSpecSource,
        clock: Clock,
        tasks: Tasks,
        *,
        interval_s: float = 1.0,
        timeout_ms: int = 5000,
    ) -> None:
        self._cluster = cluster
        self._source = source
        self._interval_s = interval_s
        self._timeout_ms = timeout_ms
        self._said = ""
        self._limit = RateLimit(clock=clock.monotonic)
        self._tasks = tasks

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            stepped = await self.reconcile()
            if not stepped:
                await self._tasks.sleep(self._interval_s)

    async def reconcile(self) -> bool:
        """Look once and take at most one step. Return whether one was taken: then the next look follows at once."""
        if self._cluster.membership_view(None) is None:
            self._said = ""
            return False
        desired = await self._source.desired()
        # The view is taken after the await: the node may have lost the leadership meanwhile.
        view = self._cluster.membership_view(desired)
        if view is None:
            return False
        decision = decide(view)
        self._say(decision)
        if decision.step is None:
            return False
        return await self._take(decision.step)

    async def _take(self, step: Step) -> bool:
        try:
            match step:
                case Transfer(node):
                    await self._cluster.transfer_leadership(name_of(node), self._timeout_ms)
                case AddLearner() | Promote() | Remove():
                    await self._cluster.change_membership(step, self._timeout_ms)
                case _:
                    assert_never(step)
        except CallerError as error:
            if self._limit.allow() is not None:
                logger.warning("membership: %s failed (%s): %s", describe(step), error.code, error)
            return False
        return True

    def _say(self, decision: Decision) -> None:
        """Log each decision once, not once a second."""
        if decision.step is not None:
            text = f"{describe(decision.step)}: {decision.reason}"
        else:
            text = f"waiting: {decision.reason}" if decision.reason else ""
        if text and text != self._said:
            logger.info("membership: %s", text)
        self._said = text


def describe(step: Step) -> str:
    """Return the step in words."""
    match step:
        case AddLearner(member):
            return f"adding {member.id} as a learner"
        case Promote(node):
            return f"promoting {node} to a voter"
        case Remove(node):
            return f"removing {node}"
        case Transfer(node):
            return f"transferring the leadership to {node}"
        case _:
            assert_never(step)
