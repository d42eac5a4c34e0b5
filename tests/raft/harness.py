"""Build a server in the state that a sentence of the paper speaks of, let it do one thing, and see its whole ``Ready``.

A log is written as its terms, one digit an entry: ``"1124"``. Entry 1 is always the configuration of ``voters`` and
``learners``; the others carry ``index/term``. The server under test is ``a`` unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

import msgspec

from kvorum.raft import Raft, RaftConfig, Role
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    Entry,
    EntryKind,
    Fetch,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Load,
    Member,
    Message,
    ReadIndex,
    ReadIndexResponse,
    Ready,
    RequestVote,
    RequestVoteResponse,
    Save,
    Snapshot,
    TimeoutNow,
)

ELECTION = 10
"""The shortest election timeout, in ticks; with the :class:`Shortest` draw also the only one."""
HEARTBEAT = 2
NOTHING = Ready()
"""Stands for "there is nothing to do"."""


class Shortest(Random):
    """Always draws the smallest number: the election timeout is exactly ``ELECTION`` ticks."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return 0 if stop is None else start


class Drawing(Shortest):
    """Draws these terms, in turn, to campaign for: each so many above the present one."""

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.steps = list(steps)

    def randint(self, a: int, b: int) -> int:
        step = self.steps.pop(0)
        assert a <= step <= b
        return step


# --- Logs -----------------------------------------------------------------------------------------------------------


def configuration(voters: str = "abc", learners: str = "") -> Configuration:
    return Configuration(tuple(Member(node, node in voters) for node in sorted(voters + learners)))


def command(index: int, term: int) -> Entry:
    return Entry(index, term, EntryKind.COMMAND, b"%d/%d" % (index, term))


def commands(first: int, terms: str) -> tuple[Entry, ...]:
    """Entries from index ``first`` on, a digit of ``terms`` each."""
    return tuple(command(first + offset, int(term)) for offset, term in enumerate(terms))


def noop(index: int, term: int) -> Entry:
    return Entry(index, term, EntryKind.NOOP, b"")


def configuration_entry(index: int, term: int, voters: str, learners: str = "") -> Entry:
    return Entry(index, term, EntryKind.CONFIGURATION, encode_configuration(configuration(voters, learners)))


def log(terms: str, voters: str = "abc", learners: str = "") -> tuple[Entry, ...]:
    """A log from index 1 on, which begins with the configuration."""
    if not terms:
        return ()
    return (configuration_entry(1, int(terms[0]), voters, learners), *commands(2, terms[1:]))


def saves(term: int, voted_for: str | None, entries: Iterable[Entry] = (), snapshot: Snapshot | None = None) -> Save:
    """A save, whatever its number."""
    return Save(0, HardState(term, voted_for), tuple(entries), snapshot)


# --- Messages: from, to, term, and what is particular -----------------------------------------------------------------


def request_vote(frm: str, to: str, term: int, last: tuple[int, int], *, transfer: bool = False) -> RequestVote:
    return RequestVote(
        term=term, sender=frm, recipient=to, last_log_index=last[0], last_log_term=last[1], leadership_transfer=transfer
    )


def request_pre_vote(frm: str, to: str, term: int, last: tuple[int, int]) -> RequestVote:
    return RequestVote(
        term=term, sender=frm, recipient=to, last_log_index=last[0], last_log_term=last[1], pre_vote=True
    )


def vote(frm: str, to: str, term: int, granted: bool = True) -> RequestVoteResponse:
    return RequestVoteResponse(term=term, sender=frm, recipient=to, vote_granted=granted)


def pre_vote(frm: str, to: str, term: int, granted: bool = True) -> RequestVoteResponse:
    return RequestVoteResponse(term=term, sender=frm, recipient=to, vote_granted=granted, pre_vote=True)


def append(
    frm: str, to: str, term: int, prev: tuple[int, int], entries: Iterable[Entry] = (), commit: int = 0
) -> AppendEntries:
    return AppendEntries(
        term=term,
        sender=frm,
        recipient=to,
        prev_log_index=prev[0],
        prev_log_term=prev[1],
        entries=tuple(entries),
        leader_commit=commit,
    )


def appended(frm: str, to: str, term: int, index: int) -> AppendEntriesResponse:
    return AppendEntriesResponse(term=term, sender=frm, recipient=to, success=True, index=index)


def refused(frm: str, to: str, term: int, index: int, hint: tuple[int, int] = (0, 0)) -> AppendEntriesResponse:
    return AppendEntriesResponse(
        term=term, sender=frm, recipient=to, success=False, index=index, hint_index=hint[0], hint_term=hint[1]
    )


def heartbeat(frm: str, to: str, term: int, commit: int = 0, round: int = 0) -> Heartbeat:
    return Heartbeat(term=term, sender=frm, recipient=to, commit_index=commit, round=round)


def heard(frm: str, to: str, term: int, round: int = 0) -> HeartbeatResponse:
    return HeartbeatResponse(term=term, sender=frm, recipient=to, round=round)


def ask_read(frm: str, to: str, term: int, context: int) -> ReadIndex:
    return ReadIndex(term=term, sender=frm, recipient=to, context=context)


def answer_read(frm: str, to: str, term: int, context: int, index: int) -> ReadIndexResponse:
    return ReadIndexResponse(term=term, sender=frm, recipient=to, context=context, index=index)


def install(frm: str, to: str, term: int, snapshot: Snapshot) -> InstallSnapshot:
    return InstallSnapshot(term=term, sender=frm, recipient=to, snapshot=snapshot)


def installed(frm: str, to: str, term: int, index: int) -> InstallSnapshotResponse:
    return InstallSnapshotResponse(term=term, sender=frm, recipient=to, index=index)


def timeout_now(frm: str, to: str, term: int) -> TimeoutNow:
    return TimeoutNow(term=term, sender=frm, recipient=to)


def plain(ready: Ready) -> Ready:
    """Return what there is to do without what the messages of a leader say of its disk."""
    return msgspec.structs.replace(
        ready,
        messages=tuple(map(_plain_message, ready.messages)),
        messages_after_save=tuple(map(_plain_message, ready.messages_after_save)),
    )


def _plain_message(message: Message) -> Message:
    if isinstance(message, AppendEntries | Heartbeat):
        return msgspec.structs.replace(message, saved_index=0)
    return message


# --- A server -------------------------------------------------------------------------------------------------------


class Server:
    """A :class:`Raft` with a disk that answers when it is told to, and what that disk holds."""

    def __init__(
        self,
        log: Sequence[Entry] = (),
        *,
        id: str = "a",
        term: int = 0,
        voted_for: str | None = None,
        snapshot: Snapshot | None = None,
        random: Random | None = None,
        config: RaftConfig | None = None,
    ) -> None:
        self.config = config or RaftConfig(id, ELECTION, HEARTBEAT)
        self.disk_hard_state = HardState(term, voted_for)
        self.disk_snapshot = snapshot
        self.disk_entries = {entry.index: entry for entry in log}
        self.saving: Save | None = None
        self.waiting: tuple[Message, ...] = ()
        self.raft = self._start(random or Shortest())

    def _start(self, random: Random) -> Raft:
        return Raft(
            self.config,
            random,
            hard_state=self.disk_hard_state,
            snapshot=self.disk_snapshot,
            entries=[self.disk_entries[index] for index in sorted(self.disk_entries)],
        )

    def ready(self) -> Ready:
        """Take what there is to do; its save, if any, is in flight until :meth:`save` is called.

        The number of the save is replaced by 0: :func:`saves`. What it and messages say of disks, besides what the
        paper has them say, is left out: tests/raft/test_marks.py. So is whether there is more: it is checked here.
        """
        ready = plain(self.raft.ready() or NOTHING)
        if not ready.has_more:
            assert self.raft.ready() is None, "there was more to do"
        ready = msgspec.structs.replace(ready, has_more=False)
        if ready.save is None:
            assert ready.messages_after_save == (), "there is nothing to wait for"
            return ready
        assert self.saving is None, "two saves in flight"
        self.saving, self.waiting = ready.save, ready.messages_after_save
        plain_save = msgspec.structs.replace(ready.save, number=0, marks=(), commit_index=0)
        return msgspec.structs.replace(ready, save=plain_save)

    def save(self) -> tuple[Message, ...]:
        """Let the save in flight become durable; return the messages that it held back."""
        assert self.saving is not None, "no save is in flight"
        save, waiting = self.saving, self.waiting
        self.saving, self.waiting = None, ()
        self.disk_hard_state = save.hard_state
        if save.snapshot is not None:
            self.disk_snapshot = save.snapshot
            self.disk_entries.clear()
        if save.entries:
            first = save.entries[0].index
            self.disk_entries = {index: entry for index, entry in self.disk_entries.items() if index < first}
            self.disk_entries.update((entry.index, entry) for entry in save.entries)
        self.raft.saved(save.number)
        return waiting

    def load(self, load: Load) -> None:
        """Let the load that a Ready asked for end: one entry at least, as a disk would."""
        indexes = range(load.first_index, min(load.last_index, load.first_index + load.bytes_max // 100) + 1)
        self.raft.loaded([self.disk_entries[index] for index in indexes])

    def crash(self) -> None:
        """Lose everything that is not on disk, and start again."""
        self.saving, self.waiting = None, ()
        self.raft = self._start(Shortest())

    def take(self, *messages: Message) -> Ready:
        """Step these, then take what there is to do."""
        for message in messages:
            self.raft.step(message)
        return self.ready()

    def install(self, offer: InstallSnapshot) -> Ready:
        """Step an offer whose fetch succeeds at once, then take what there is to do."""
        self.raft.step(offer)
        self.raft.fetched(offer.snapshot)
        return self.ready()

    def tick(self, ticks: int = 1) -> Ready:
        """Let time pass, then take what there is to do."""
        for _ in range(ticks):
            self.raft.tick()
        return self.ready()

    def drain(self, *messages: Message) -> tuple[Message, ...]:
        """Step these, save and fetch whatever there is to, and return every message that left."""
        for message in messages:
            self.raft.step(message)
        left: tuple[Message, ...] = self.save() if self.saving else ()
        while (ready := self.ready()) != NOTHING:
            left += ready.messages + (self.save() if ready.save else ())
            if ready.fetch is not None:
                self.raft.fetched(ready.fetch.snapshot)
            if ready.load is not None:
                self.load(ready.load)
        return left

    def role(self) -> Role:
        return self.raft.role

    def log(self) -> tuple[Entry, ...]:
        return self.raft.log.slice(self.raft.log.first_index, 1 << 30)

    def terms(self) -> str:
        """The log as the tests write it."""
        return "".join(str(entry.term) for entry in self.log())


def follower(
    terms: str = "1", *, term: int | None = None, leader: str | None = None, commit: int = 0, **more: str | None
) -> Server:
    """A follower with this log; in the last entry's term unless told otherwise; ``leader`` was heard just now."""
    server = _with_log(terms, term, **more)
    if leader is not None:
        server.drain(heartbeat(leader, server.config.id, server.raft.current_term, commit))
    return server


def pre_candidate(terms: str = "1", *, term: int | None = None, **more: str | None) -> Server:
    """A server whose election timeout has just passed; its questions have left."""
    server = _with_log(terms, term, **more)
    server.tick(ELECTION)
    assert server.role() is Role.PRE_CANDIDATE
    return server


def candidate(terms: str = "1", *, term: int, **more: str | None) -> Server:
    """A candidate of ``term``; its vote for itself is durable and its requests have left."""
    server = pre_candidate(terms, term=term - 1, **more)
    others = [node for node in server.raft.configuration.voters() if node != server.config.id]
    server.drain(*(pre_vote(node, server.config.id, term) for node in others))
    assert server.role() is Role.CANDIDATE
    return server


def leader(terms: str = "1", *, term: int, matched: str = "", acked: str = "", **more: str | None) -> Server:
    """The leader of ``term``, whose no-op is saved; ``matched`` hold its whole log, and a majority commits it.

    ``acked`` are followers in state replicate that hold everything but the no-op.
    """
    server = candidate(terms, term=term, **more)
    me = server.config.id
    others = [node for node in server.raft.configuration.voters() if node != me]
    server.drain(*(vote(node, me, term) for node in others))
    assert server.role() is Role.LEADER
    last = server.raft.log.last_index
    server.drain(*(appended(node, me, term, last - 1) for node in acked))
    server.drain(*(appended(node, me, term, last) for node in matched))
    return server


def _with_log(
    terms: str,
    term: int | None,
    *,
    voters: str | None = "abc",
    learners: str | None = "",
    id: str | None = "a",
    voted_for: str | None = None,
) -> Server:
    term = int(terms[-1] if terms else 0) if term is None else term
    return Server(log(terms, voters or "", learners or ""), id=id or "a", term=term, voted_for=voted_for)


# --- A cluster ------------------------------------------------------------------------------------------------------


class Cluster:
    """Servers and a network in which messages arrive in order, at once, unless a link is cut."""

    def __init__(self, servers: Iterable[Server]) -> None:
        self.servers = {server.config.id: server for server in servers}
        self.applied: dict[str, list[Entry]] = {node: [] for node in self.servers}
        self.is_cut: Callable[[Message], bool] = lambda message: False
        self.seen: list[Message] = []
        self.fetches_arrive = True
        self.fetches: list[Fetch] = []
        self.loads: list[Load] = []

    def __getitem__(self, node: str) -> Server:
        return self.servers[node]

    def cut(self, *nodes: str) -> None:
        """Cut these servers off from all others; none: heal."""
        self.is_cut = lambda message: (message.sender in nodes) or (message.recipient in nodes)

    def run(self) -> None:
        """Deliver and save until nothing is left to do."""
        busy = True
        while busy:
            busy = False
            for node, server in self.servers.items():
                while (ready := server.ready()) != NOTHING:
                    busy = True
                    self.applied[node] += ready.committed
                    self._deliver(ready.messages)
                    if ready.save is not None:
                        self._deliver(server.save())
                    if ready.fetch is not None:
                        self.fetches.append(ready.fetch)
                        if self.fetches_arrive:
                            server.raft.fetched(ready.fetch.snapshot)
                    if ready.load is not None:
                        self.loads.append(ready.load)
                        server.load(ready.load)

    def _deliver(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.seen.append(message)
            if message.recipient in self.servers and not self.is_cut(message):
                self.servers[message.recipient].raft.step(message)

    def tick(self, ticks: int = 1) -> None:
        """Let time pass everywhere, a tick at a time."""
        for _ in range(ticks):
            for server in self.servers.values():
                server.raft.tick()
            self.run()

    def elect(self, node: str) -> None:
        """Let this server's election timeout pass, and nobody else's."""
        for _ in range(2 * ELECTION):
            if self[node].raft.role is Role.LEADER:
                return
            self[node].raft.tick()
            self.run()
        assert self[node].raft.role is Role.LEADER
