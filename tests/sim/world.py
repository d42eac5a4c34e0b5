"""The simulated world: clock, network, nodes, what was seen, what is written down."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
from sim.clock import Clock
from sim.disk import SimDisk
from sim.facts import Facts, ForkedFacts
from sim.history import Operation
from sim.invariants import Broken
from sim.network import Frame, Network
from sim.node import CLUSTER, SimNode
from sim.peers import SimPeers
from sim.plan import MS, Plan
from sim.transcript import describe

from kvorum.identity import Identity, incarnation_of, name_of
from kvorum.raft import Role, bootstrap_entry
from kvorum.raft.messages import (
    Configuration,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Member,
    Message,
    NodeId,
    Save,
)

_encode = msgspec.msgpack.Encoder().encode


def identity_of(node: NodeId, cluster_id: str) -> Identity:
    """Return who the node with this member id is."""
    return Identity(name_of(node), incarnation_of(node), cluster_id)


class World:
    """Everything that a plan brings to life.

    Args:
        plan: what to simulate.
        transcript: where readable lines go, or None.
    """

    def __init__(self, plan: Plan, transcript: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.clock = Clock()
        self.facts: Facts = Facts()
        self.is_forked = False
        """There may be two histories, and that is no bug of ours."""
        self.on_taking_part: Callable[[SimNode], None] = lambda _: None
        """Told in each turn of a process whose disk was set back, and which takes part."""
        self.network = Network(plan, self.clock, self._deliver)
        self.nodes: dict[NodeId, SimNode] = {}
        self.counts: Counter[str] = Counter()
        self.distrusted: list[NodeId] = []
        """Members that take no part any more."""
        self.replace_distrusted: Callable[[], None] = lambda: None
        """What an operator does about them."""
        self.messages = 0
        self.frames = 0
        self.crash_points = 0
        """How many were passed, over all nodes."""
        self.is_recovering = False
        """True in the liveness phase: whatever crashes is started again soon."""
        self._transcript = transcript
        self._rounds: dict[tuple[NodeId, NodeId, int], int] = {}  # (from, to, term) -> the latest that was told
        self._draw = Random(f"{plan.seed}:world")
        self._hash = hashlib.blake2b(digest_size=16)
        self._bootstrap()

    def _bootstrap(self) -> None:
        ids = [f"n{number}@1" for number in range(1, self.plan.voters + 1)]
        machines = [SimNode(self, node, SimDisk(self.plan.log_memory_bytes)) for node in ids]
        entry = bootstrap_entry(
            Configuration(
                tuple(Member(node.id, True, peer_url=node.url, client_url=node.client_url) for node in machines)
            )
        )
        self.facts.bootstrap(entry)
        for node in machines:
            save = Save(1, HardState(1, None), (entry,))
            node.disk.write_identity(identity_of(node.id, CLUSTER))
            node.disk.save(save, lambda: None)
            node.disk.complete()
            node.durable.apply(save)
            self.nodes[node.id] = node
        for node in machines:
            node.start()

    def add_node(self, node: NodeId) -> SimNode:
        """Start a node with an empty disk."""
        self.nodes[node] = machine = SimNode(self, node, SimDisk(self.plan.log_memory_bytes))
        machine.disk.write_identity(identity_of(node, ""))
        machine.start()
        return machine

    @property
    def timeout_us(self) -> int:
        """How long a client waits for the answer to one attempt.

        In the liveness phase it is long enough for a write when nothing is late: what the plan says may be less than
        the network of that plan takes.
        """
        return max(self.plan.timeout_us, 20 * self.plan.timely_us) if self.is_recovering else self.plan.timeout_us

    def close(self) -> None:
        """End every process, so that nothing of this world runs in another one's time."""
        for node in self.nodes.values():
            if node.loop is not None:
                node.loop.kill()

    def host_of(self, name: str) -> str:
        """Return where the options of a process that starts now say that the peers of this name are."""
        return next((node.host for node in reversed(self.nodes.values()) if node.name == name), name)

    def machine_at(self, url: str) -> SimNode | None:
        """Return the machine that answers at this address, or None: nothing does."""
        found = None
        for node in self.nodes.values():
            if node.url == url and not node.is_off and not (node.is_lost and node.peers is None):
                found = node
                if node.peers is not None:
                    break
        return found

    # --- Messages -----------------------------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        """Let a frame leave a node."""
        self.messages += len(frame)
        self.frames += 1
        self._hash.update(_encode((self.clock.now, frame)))
        self.network.send(frame)

    def _deliver(self, frame: Frame) -> None:
        recipient = frame[0].recipient
        node = self.nodes.get(recipient)
        if self._transcript is not None:
            for message in frame:
                if node is None or self._is_worth_telling(message, node):
                    self.note(recipient, "<- {}", describe(message))
        if node is not None and node.peers is not None:
            node.peers.receive(frame)

    def _is_worth_telling(self, message: Message, node: SimNode) -> bool:
        """Tell whether a heartbeat, or its answer, says anything new: a term, a leader, a commit, a read round."""
        if node.raft is None:
            return False
        if not isinstance(message, Heartbeat | HeartbeatResponse) or message.term != node.raft.current_term:
            return True
        link = (message.sender, message.recipient, message.term)
        is_new = message.round > self._rounds.get(link, 0)
        self._rounds[link] = max(message.round, self._rounds.get(link, 0))
        if isinstance(message, HeartbeatResponse):
            return is_new
        is_followed = node.raft.leader == message.sender
        return is_new or not is_followed or message.commit_index > node.raft.log.commit_index

    def on_deaf(self, peers: SimPeers) -> None:
        """A process ended, or closed its port: its peers notice that the connection broke, at once or after a while."""
        for other in self.nodes.values():
            if other.peers is not None and other.peers is not peers:
                other.peers.died(peers, self._notice_us)

    def fork(self, why: str) -> None:
        """A disk that was set back takes part, and nobody could tell it in time: now there may be two histories.

        What is still promised is that no disk loses what its node knows to be committed.
        """
        if not self.is_forked:
            self.is_forked = True
            self.counts["forks"] += 1
            self.note("", "there may be two histories from now on: {}", why)
            self.facts = ForkedFacts(self.facts)

    def on_distrusted(self, node: SimNode) -> None:
        """A process takes no part any more: its disk must have been set back, and the operator gives it another.

        Where there may be two histories, every disk is kept.
        """
        if self.is_forked:
            if node.id not in self.distrusted:
                self.distrusted.append(node.id)
                self.counts["nodes that keep their disks"] += 1
                if node.product is not None and node.product.parts.fetcher._fetch is not None:
                    self.counts["nodes that keep their disks during a fetch"] += 1
                self.note(node.id, "takes no part any more, and keeps its disk")
        elif not node.is_set_back:
            why = node.product.distrusted if node.product is not None else ""
            self.clock.abort(Broken("only_a_disk_that_was_set_back_is_distrusted", f"{node.id}: {why}"))
        elif node.id not in self.distrusted:
            self.distrusted.append(node.id)
            self.counts["disks found set back"] += 1
            self.note(node.id, "takes no part any more")
            self.clock.after(100 * MS, self.replace_distrusted)

    def on_end(self, node: SimNode) -> None:
        """A process ended."""
        if self.is_recovering:
            self.clock.after(100 * MS, node.start)

    def _notice_us(self) -> int:
        if self.plan.unreachable_hints or self.is_recovering:
            return self.plan.latency_us
        return self._draw.randrange(2 * self.plan.election_timeout_us)

    # --- What is written down -----------------------------------------------------------------------------------

    @property
    def is_told(self) -> bool:
        """Somebody reads the transcript."""
        return self._transcript is not None

    def note(self, who: str, text: str, *arguments: object) -> None:
        """Write a line of the transcript, if somebody reads it."""
        if self._transcript is not None:
            self._transcript(f"{self.clock.now / 1e6:10.6f}  {who:<6} {text.format(*arguments)}")

    def heard(self, operation: Operation) -> None:
        """A client knows the outcome of an operation."""
        self._hash.update(_encode(operation))

    def trace_hash(self) -> str:
        """Return a hash over everything that was sent, what every client heard, and what every node holds now."""
        final = self._hash.copy()
        for node in self.nodes.values():
            final.update(_encode((node.id, node.store.applied_index, node.store.state_hash, node.durable.terms)))
        final.update(_encode((self.clock.now, self.clock.events)))
        return final.hexdigest()

    # --- What a bystander sees ----------------------------------------------------------------------------------

    def live(self) -> list[SimNode]:
        """Return the nodes whose process runs, in the order they were created."""
        return [node for node in self.nodes.values() if node.raft is not None]

    def leaders(self) -> list[SimNode]:
        """Return the nodes that believe that they lead, the highest term first."""
        leading = [node for node in self.live() if node.raft is not None and node.raft.role is Role.LEADER]
        return sorted(leading, key=lambda node: -node.raft.current_term if node.raft is not None else 0)
