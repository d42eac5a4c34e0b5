"""What the leader sees of the nodes that are, or should be, members: the reconciler's view."""

from __future__ import annotations

from kvorum.cluster.bootstrap import peer_url_of
from kvorum.cluster.reconcile import Health, MembershipSpec, Observed, View
from kvorum.identity import name_of
from kvorum.node import Node
from kvorum.node.hellos import ask_all
from kvorum.raft import Role
from kvorum.raft.membership import AddLearner, Promote, Remove

LOOK_S = 1.0
"""Between two rounds of asking who is there, on the leader."""
LOOK_RARELY_S = 5.0
"""On the others, which only want to know whether their peers are in another cluster."""
OBSERVATION_VALID_S = 5.0
"""How long an answer counts."""


class Observer:
    """Asks around, shows the reconciler what it found while this node leads, and notes peers of another cluster.

    Args:
        node: this node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._observed: dict[str, tuple[float, Observed]] = {}
        self._desired: MembershipSpec | None = None

    async def run(self) -> None:
        """Look around, for ever."""
        while True:
            await self.look()
            await self._wait()

    async def _wait(self) -> None:
        """Wait until it is time to look again; a node that begins to lead looks soon."""
        node, waited_s = self._node, 0.0
        while waited_s < LOOK_RARELY_S and (waited_s == 0.0 or node.raft.role is not Role.LEADER):
            await node.tasks.sleep(LOOK_S)
            waited_s += LOOK_S

    async def look(self) -> None:
        """Ask every node that is or should be a member who it is."""
        node = self._node
        urls = {
            name_of(member.id): node.peers.url_of(member.id) or member.peer_url
            for member in node.raft.configuration.members
        }
        names = list(urls) + [peer.name for peer in node.config.expected_members()]
        if self._desired is not None:
            names += self._desired.names
        asked = {}
        for name in dict.fromkeys(names):
            url = urls.get(name) or peer_url_of(node.config, name)
            if url and name != node.config.name:
                asked[name] = url
        hellos = await ask_all(node.peers, asked)
        ours, now, needed_level = node.hello(), node.clock.monotonic(), node.parts.levels.needed_level()
        for name, hello in hellos.items():
            if hello is not None:
                node.parts.foreign.answered(name, asked[name], hello.node_id, hello.cluster_id)
            if hello is None or hello.name != name or hello.token != ours.token:
                continue
            if hello.cluster_id not in ("", ours.cluster_id):
                continue
            is_too_old = hello.levels[1] < needed_level
            self._observed[name] = (
                now,
                Observed(hello.node_id, hello.empty, asked[name], hello.client_url, is_too_old),
            )

    # --- What the reconciler asks -------------------------------------------------------------------------------

    def membership_view(self, desired: MembershipSpec | None) -> View | None:
        """Return what this node sees as the leader, or None when it does not lead."""
        if desired is not None:
            self._desired = desired
        status = self._node.raft.status()
        if status.role is not Role.LEADER or self._node.stopping:
            return None
        now = self._node.clock.monotonic()
        return View(
            leader=status.id,
            configuration=status.configuration,
            settled=self._node.raft.can_change_membership,
            observed={
                name: observed for name, (at, observed) in self._observed.items() if now - at < OBSERVATION_VALID_S
            },
            health={
                peer: Health(
                    # A new leader takes everybody for active: who holds none of its entries was not heard yet.
                    progress.active and progress.match_index > 0,
                    max(status.last_index - progress.match_index, 0),
                    not progress.active,
                )
                for peer, progress in status.progress.items()
            },
            desired=desired,
            successor=self._node.raft.transfer_candidate(
                lambda voter: desired is None or not desired.is_surplus(name_of(voter))
            ),
        )

    async def change_membership(self, change: AddLearner | Promote | Remove, timeout_ms: int) -> None:
        """Propose the change and wait until it is committed."""
        await self._node.change_membership(change, timeout_ms)

    async def transfer_leadership(self, target_name: str | None, timeout_ms: int) -> str:
        """Hand the leadership over and return the new leader's name."""
        return await self._node.transfer_leadership(target_name, timeout_ms)
