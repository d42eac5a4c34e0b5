"""Servers that talk, and a scribe who writes down what they say, save and apply: the machinery of the transcripts.

Everything happens in the order in which it was asked for; every election timeout is exactly as long as configured. So a
story told twice is the same, word for word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random

from raft.harness import Shortest
from sim.transcript import describe_entries, phrase

from kvorum.raft import Change, Raft, RaftConfig, Role, bootstrap_entry
from kvorum.raft.messages import (
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Member,
    Message,
    NodeId,
    Ready,
    Save,
    Snapshot,
)

ELECTION_TICKS = 10
HEARTBEAT_TICKS = 2


class Disk:
    """What survives a crash of one server."""

    def __init__(self, entries: Sequence[Entry] = (), term: int = 0) -> None:
        self.hard_state = HardState(term)
        self.snapshot: Snapshot | None = None
        self.entries = list(entries)

    def write(self, save: Save) -> None:
        """Make a save durable."""
        self.hard_state = save.hard_state
        if save.snapshot is not None:
            self.snapshot, self.entries = save.snapshot, []
        if save.entries:
            self.entries = [entry for entry in self.entries if entry.index < save.entries[0].index]
            self.entries += save.entries


class Conversation:
    """Some servers, the messages between them, and the lines that a reader will see.

    Args:
        title: what the story is about.
        prologue: what the reader should know first.
        voters: who votes at first.
    """

    def __init__(self, title: str, prologue: str, voters: Sequence[NodeId] = ("a", "b", "c")) -> None:
        self.lines = [title, "=" * len(title), "", *prologue.strip().splitlines(), ""]
        entry = bootstrap_entry(Configuration(tuple(Member(node, True) for node in voters)))
        self.disks = {node: Disk([entry], term=1) for node in voters}
        self.servers: dict[NodeId, Raft] = {}
        self.shows_heartbeats = False
        self.fetches_take_long = False
        """A fetch ends when the story says so."""
        self._fetches: dict[NodeId, Snapshot] = {}
        self._cut: set[NodeId] = set()
        self._queue: deque[Message] = deque()
        self._roles: dict[NodeId, tuple[Role, int]] = {}
        for node in voters:
            self._start(node)

    # --- What the story does ------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Let the narrator speak."""
        self.lines += ["", f"-- {text}"] if self.lines[-1] else [f"-- {text}"]

    def tick(self, node: NodeId, ticks: int = 1) -> None:
        """Let time pass for one server, then let everybody talk until there is nothing to say."""
        for _ in range(ticks):
            self.servers[node].tick()
        self.settle()

    def elapse(self, ticks: int) -> None:
        """Let time pass for everybody."""
        for _ in range(ticks):
            for raft in self.servers.values():
                raft.tick()
            self.settle()

    def elect(self, node: NodeId) -> None:
        """Let one server's election timeout pass, and no other's."""
        self._line(node, "hears nothing for an election timeout")
        for other in self.servers:
            if other != node and other not in self._cut:
                self._forget_the_leader(other)
        self.tick(node, ELECTION_TICKS)

    def begin_with_leader(self, node: NodeId) -> None:
        """Let one server be elected before the story begins."""
        before = len(self.lines)
        self.elect(node)
        del self.lines[before:]
        raft = self.servers[node]
        self.lines.append(
            f"({node} leads term {raft.current_term}. All logs end at {raft.log.last_index}/{raft.log.last_term}, "
            "which is committed. Heartbeats are left out unless they matter.)"
        )
        self.lines.append("")

    def propose(self, node: NodeId, *commands: str) -> None:
        """Let a client ask the leader for some writes; nobody talks yet."""
        index, term = self.servers[node].propose([command.encode() for command in commands])
        self._line(node, f"is asked to write {', '.join(commands)}: {index}/{term} and on")

    def change(self, node: NodeId, change: Change) -> None:
        """Let an administrator ask the leader for a change of the membership."""
        index, term = self.servers[node].propose_change(change)
        self._line(node, f"is asked to {_in_words(change)}: {index}/{term}")
        self.settle()

    def transfer(self, node: NodeId, target: NodeId) -> None:
        """Let an administrator ask the leader to hand over."""
        self._line(node, f"is asked to hand the leadership to {target}")
        self.servers[node].transfer_leadership(target)
        self.settle()

    def read(self, node: NodeId, context: int) -> None:
        """Let a client ask for a linearizable read."""
        self._line(node, "is asked for a linearizable read")
        self.servers[node].read_index(context)
        self.settle()

    def compact(self, node: NodeId) -> None:
        """Let a server write a snapshot of all it has applied, and cut its log there."""
        raft = self.servers[node]
        snapshot = raft.snapshot_at(raft.log.applied_index)
        self.disks[node].snapshot = snapshot
        self.disks[node].entries = [e for e in self.disks[node].entries if e.index > snapshot.last_index]
        raft.compact(snapshot, 0)
        self._line(node, f"writes a snapshot up to {snapshot.last_index}/{snapshot.last_term} and cuts its log there")

    def finish_fetch(self, node: NodeId) -> None:
        """Let the snapshot that a server fetches be here."""
        snapshot = self._fetches.pop(node)
        self._line(node, f"has fetched the snapshot up to {snapshot.last_index}")
        self.servers[node].fetched(snapshot)
        self.settle()

    def fail_fetch(self, node: NodeId) -> None:
        """Let a server's driver give up the fetch."""
        snapshot = self._fetches.pop(node)
        self._line(node, f"gives up fetching the snapshot up to {snapshot.last_index}")
        self.servers[node].fetch_failed(snapshot)
        self.settle()

    def restart(self, node: NodeId) -> None:
        """End a server's process, and start it again from its disk."""
        self._fetches.pop(node, None)
        self.lines.append(f"   ({node}: restarted)")
        self._start(node)

    def cut(self, *nodes: NodeId) -> None:
        """Cut these servers off; what is under way to or from them is lost."""
        self._cut.update(nodes)
        self.lines.append(f"   ({', '.join(nodes)}: cut off)")

    def heal(self) -> None:
        """End every partition."""
        self._cut.clear()
        self.lines.append("   (the network is whole again)")

    def stop(self, node: NodeId) -> None:
        """End a server's process for good; its disk is gone too."""
        del self.servers[node], self.disks[node]
        self.lines.append(f"   ({node}: gone, with its disk)")

    def join(self, node: NodeId) -> None:
        """Start a server with an empty disk."""
        self.disks[node] = Disk()
        self._start(node)
        self.lines.append(f"   ({node}: started with an empty disk)")

    def settle(self) -> None:
        """Let everybody talk, save and apply until there is nothing left to do."""
        while self._drive() or self._queue:
            if self._queue:
                self._deliver(self._queue.popleft())

    # --- How it comes about -------------------------------------------------------------------------------------

    def _start(self, node: NodeId) -> None:
        disk = self.disks[node]
        random: Random = Shortest()
        self.servers[node] = Raft(
            RaftConfig(node, ELECTION_TICKS, HEARTBEAT_TICKS),
            random,
            hard_state=disk.hard_state,
            snapshot=disk.snapshot,
            entries=disk.entries,
        )
        self._roles[node] = (Role.FOLLOWER, disk.hard_state.current_term)

    def _forget_the_leader(self, node: NodeId) -> None:
        """Let a server's lease on the old leader run out, but not its election timeout."""
        raft = self.servers[node]
        if raft.leader is not None and raft.leader != node:
            raft.peer_unreachable(raft.leader)

    def _drive(self) -> bool:
        """Let every server hand over what there is to do; return whether there was anything."""
        is_busy = False
        for node, raft in list(self.servers.items()):
            while (ready := raft.ready()) is not None:
                is_busy = True
                self._handle(node, ready)
            self._note_role(node)
        return is_busy

    def _handle(self, node: NodeId, ready: Ready) -> None:
        self._note_role(node)
        self._send(ready.messages)
        if ready.save is not None:
            before = self.disks[node].hard_state
            self._line(node, _saved_in_words(ready.save, before))
            self.disks[node].write(ready.save)
            self._send(ready.messages_after_save)
            self.servers[node].saved(ready.save.number)
        if ready.fetch is not None:
            self._fetches[node] = ready.fetch.snapshot
            if self.fetches_take_long:
                up_to = ready.fetch.snapshot.last_index
                self._line(node, f"begins to fetch the snapshot up to {up_to} from {ready.fetch.source}")
            else:
                self._line(node, f"fetches the snapshot from {ready.fetch.source}")
                self.servers[node].fetched(self._fetches.pop(node))
        if ready.restore is not None:
            self._line(node, f"restores the snapshot up to {ready.restore.last_index}")
        if ready.committed:
            self._line(node, f"applies {describe_entries(ready.committed).removeprefix('entries ')}")
        for read in ready.reads:
            self._line(node, f"may read: everything up to {read.index} is applied")

    def _note_role(self, node: NodeId) -> None:
        raft = self.servers[node]
        now = (raft.role, raft.current_term)
        if now != self._roles[node]:
            self._roles[node] = now
            self._line(node, f"is now {raft.role.replace('_', '-')} of term {raft.current_term}")

    def _send(self, messages: Sequence[Message]) -> None:
        self._queue.extend(messages)

    def _deliver(self, message: Message) -> None:
        is_lost = message.sender in self._cut or message.recipient in self._cut
        is_lost = is_lost or message.recipient not in self.servers
        if self.shows_heartbeats or not isinstance(message, Heartbeat | HeartbeatResponse):
            lost = "   ... lost" if is_lost else ""
            self.lines.append(
                f"{message.sender} -> {message.recipient}   {phrase(message)} (term {message.term}){lost}"
            )
        if is_lost:
            return
        self.servers[message.recipient].step(message)

    def _line(self, node: NodeId, text: str) -> None:
        self.lines.append(f"{node} {text}")

    def text(self) -> str:
        """Return the story."""
        return "\n".join(self.lines) + "\n"


Story = Callable[[], Conversation]


def _saved_in_words(save: Save, before: HardState) -> str:
    parts = []
    if save.snapshot is not None:
        parts.append(f"the snapshot up to {save.snapshot.last_index}/{save.snapshot.last_term} instead of its log")
    if save.hard_state.current_term != before.current_term:
        parts.append(f"term {save.hard_state.current_term}")
    if save.hard_state.voted_for is not None and save.hard_state != before:
        parts.append(f"its vote for {save.hard_state.voted_for}")
    if save.entries:
        parts.append(describe_entries(save.entries))
    return f"saves {', '.join(parts)}"


def _in_words(change: Change) -> str:
    name = type(change).__name__
    node = change.member.id if hasattr(change, "member") else change.id
    return {"AddLearner": "add {} as a learner", "Promote": "promote {}", "Remove": "remove {}"}[name].format(node)
