"""Watchers: they watch keys at any node, are slow, break off, resume elsewhere, and check what they get.

The validators are those of etcd's robustness tests, one function each. The truth is what the committed log says.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from sim.invariants import Broken

from kvorum.errors import CallerError, RevisionCompactedError
from kvorum.kv.store import Store
from kvorum.kv.watch import EventBatch
from kvorum.service import requests
from kvorum.service.access import ANONYMOUS
from kvorum.service.node_port import Watch
from kvorum.service.service import Service

if TYPE_CHECKING:
    from sim.node import SimNode
    from sim.world import World

BUFFERS_EVENTS = (0, 1, 3)
"""A sink with more events than one of these is full."""


class Event(NamedTuple):
    """What a watcher sees of a change, or should see."""

    revision: int
    key: bytes
    value: bytes | None
    """None: a delete."""
    version: int
    create_revision: int
    previous: bytes | None
    """The value before; None: there was none, or it is not watched."""


class Truth:
    """Every event since history began, from the store that follows from the committed log."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.revision = 0
        self.floor = 0
        self._position = 0
        self._values: dict[bytes, bytes | None] = {}
        self._early: dict[int, dict[bytes, Event]] = {}
        """Revision -> the records, while there was no history."""

    def note(self, model: Store) -> None:
        """Take what the last entry did."""
        self.revision, self.floor = model.revision, model.versions.floor
        for record in model.versions.events(self._position, 1 << 30) if self.floor else ():
            value = record.value if record.version else None
            previous = self._values.get(record.key)
            self.events.append(
                Event(record.mod_revision, record.key, value, record.version, record.create_revision, previous)
            )
            self._values[record.key] = value
        if not self.floor:
            self._values = {key: record.value for key, record in model.versions.records.items()}
            self._early[self.revision] = {
                key: Event(each.mod_revision, key, each.value, each.version, each.create_revision, None)
                for key, each in model.versions.records.items()
            }
        self._position = model.versions.end

    def state(self, revision: int) -> dict[bytes, Event] | None:
        """Return the last put of each key that existed at a revision; None: it is not known any more."""
        begin = max(self._early, default=0)
        if revision < begin or revision in self._early:
            return self._early.get(revision)
        state = dict(self._early.get(begin, {}))
        for event in self.events:
            if event.revision > revision:
                break
            if event.value is None:
                del state[event.key]
            else:
                state[event.key] = event._replace(previous=None)
        return state

    def between(self, first: int, last: int, wanted: Wanted) -> list[Event]:
        """Return what must be seen from one revision to another, both included."""
        begin = bisect_left(self.events, (first,))
        end = bisect_right(self.events, (last + 1,))
        return [wanted.shown(event) for event in self.events[begin:end] if wanted.covers(event)]


class Wanted(NamedTuple):
    """What is watched."""

    start: bytes
    end: bytes | None
    prev_value: bool
    puts: bool
    deletes: bool

    def covers(self, event: Event) -> bool:
        """Tell whether an event is to be seen."""
        is_in_range = self.start <= event.key and (self.end is None or event.key < self.end)
        return is_in_range and (self.deletes if event.value is None else self.puts)

    def shown(self, event: Event) -> Event:
        """Return an event as it is to be seen."""
        return event if self.prev_value else event._replace(previous=None)


class Received:
    """What one watcher has received over all its connections."""

    def __init__(self, wanted: Wanted, first: int) -> None:
        self.wanted = wanted
        self.first = first
        """Where the present connection begins."""
        self.checked = first - 1
        """Up to this revision all that is true was received."""
        self.last = 0
        self.bookmark = 0
        self.seen: set[tuple[int, bytes]] = set()

    def resumed(self, first: int) -> None:
        """Another connection begins here."""
        self.first = first

    def lost(self, floor: int) -> None:
        """History is gone up to a floor: the watcher was told, and begins there."""
        self.checked = max(self.checked, floor - 1)
        self.resumed(self.checked + 1)

    def take(self, truth: Truth, batch: Sequence[Event]) -> None:
        """Check what came at once."""
        for check in VALIDATORS:
            check(self, truth, batch)
        self.seen |= {(event.revision, event.key) for event in batch}
        self.last = self.checked = batch[-1].revision

    def told(self, truth: Truth, revision: int) -> None:
        """Check a bookmark."""
        bookmarkable(self, truth, revision)
        self.bookmark = revision
        self.checked = max(self.checked, revision)


# --- The validators ---------------------------------------------------------------------------------------------------


def filtered(received: Received, truth: Truth, batch: Sequence[Event]) -> None:
    """Filter: only what is watched comes."""
    for event in batch:
        if not received.wanted.covers(event):
            raise Broken("watch_filter", f"{event} is not of {received.wanted}")


def ordered(received: Received, truth: Truth, batch: Sequence[Event]) -> None:
    """Ordered: revisions never go back."""
    last = received.last
    for event in batch:
        if event.revision < last:
            raise Broken("watch_ordered", f"{event} comes after revision {last}")
        last = event.revision


def unique(received: Received, truth: Truth, batch: Sequence[Event]) -> None:
    """Unique: no event comes twice, over all connections."""
    seen = set(received.seen)
    for event in batch:
        if (event.revision, event.key) in seen:
            raise Broken("watch_unique", f"{event} comes twice")
        seen.add((event.revision, event.key))


def atomic(received: Received, truth: Truth, batch: Sequence[Event]) -> None:
    """Atomic: all events of a revision come at once, in the order of its operations."""
    for revision in sorted({event.revision for event in batch}):
        got = [event.key for event in batch if event.revision == revision]
        due = [event.key for event in truth.between(revision, revision, received.wanted)]
        if due and got != due:
            raise Broken("watch_atomic", f"of revision {revision} come {got}, not {due}")


def resumable(received: Received, truth: Truth, batch: Sequence[Event]) -> None:
    """Resumable: a connection begins with the first event at or after the revision that it asked for."""
    early = [event for event in batch if event.revision < received.first]
    if early:
        raise Broken("watch_resumable", f"asked for revision {received.first}; {early[0]} comes")
    if received.checked < received.first:
        due = truth.between(received.first, batch[0].revision, received.wanted)
        if due and due[0].revision != batch[0].revision:
            raise Broken("watch_resumable", f"asked for revision {received.first}; {due[0]} does not come")


def is_create(received: Received, truth: Truth, batch: Sequence[Event]) -> None:
    """IsCreate: version 1 says that the key did not exist before, and only that does."""
    for event in batch:
        true = [
            each for each in truth.between(event.revision, event.revision, received.wanted) if each.key == event.key
        ]
        if true and (event.version, event.create_revision) != (true[0].version, true[0].create_revision):
            raise Broken("watch_is_create", f"{event} should be {true[0]}")


def prev_kv(received: Received, truth: Truth, batch: Sequence[Event]) -> None:
    """PrevKV: the previous value is the one that the event replaced."""
    for event in batch:
        true = [
            each for each in truth.between(event.revision, event.revision, received.wanted) if each.key == event.key
        ]
        if true and not _is_damaged(event) and event.previous != true[0].previous:
            raise Broken("watch_prev_kv", f"{event} should be {true[0]}")


def reliable(received: Received, truth: Truth, batch: Sequence[Event]) -> None:
    """Reliable: nothing is left out, and nothing is made up."""
    due = truth.between(received.checked + 1, batch[-1].revision, received.wanted)
    if [_essence(event) for event in due] != [_essence(event) for event in batch]:
        if any(map(_is_damaged, batch)) and [(e.revision, e.key) for e in due] == [(e.revision, e.key) for e in batch]:
            return  # The fault's own doing, until the product has noticed.
        raise Broken("watch_reliable", f"from revision {received.checked + 1} on come {list(batch)}, not {due}")


def bookmarkable(received: Received, truth: Truth, revision: int) -> None:
    """Bookmarkable: a bookmark is not ahead of an event, and does not go back."""
    if missing := truth.between(received.checked + 1, revision, received.wanted):
        raise Broken("watch_bookmarkable", f"the bookmark {revision} is ahead of {missing[0]}")
    if revision > truth.revision:
        raise Broken("watch_bookmarkable", f"the bookmark {revision} is ahead of all that was committed")
    if revision < received.bookmark:
        raise Broken("watch_bookmarkable", f"the bookmark {revision} follows {received.bookmark}")


VALIDATORS = (filtered, ordered, unique, atomic, resumable, is_create, prev_kv, reliable)
"""And :func:`bookmarkable`."""


def a_watch_begins_after_what_was_acknowledged(asked_at: int, revision: int) -> None:
    """A watch from now on begins at or after every revision that was acknowledged when it was asked for."""
    if revision < asked_at:
        raise Broken("a_watch_begins_after_what_was_acknowledged", f"revision {revision}; {asked_at} was acknowledged")


def _true(received: Received, truth: Truth, event: Event) -> list[Event]:
    """Return the true event that this one tells of, if there is one."""
    due = truth.between(event.revision, event.revision, received.wanted)
    return [each for each in due if each.key == event.key]


def _essence(event: Event) -> tuple[int, bytes, bytes | None]:
    return event.revision, event.key, event.value


def _is_damaged(event: Event) -> bool:
    return any(value is not None and value.startswith(b"#") for value in (event.value, event.previous))


# --- A watcher --------------------------------------------------------------------------------------------------------


class _Connection:
    """One stream from a process to a watcher: the sink of its events, and the network."""

    def __init__(self, watcher: Watcher, node: SimNode) -> None:
        self.watcher = watcher
        self.node = node
        self.loop = node.loop
        self.is_full = False
        self.is_over = False
        self.watch: Watch | None = None
        self.batches: list[list[Event]] = []

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs that it goes to."""
        return not self.is_over and self.node.loop is self.loop and self.loop is not None and not self.loop.is_dead

    def take(self, batch: EventBatch) -> None:
        """Let a batch leave the process."""
        self.batches.append(
            [
                Event(
                    record.mod_revision, record.key, record.value if record.version else None, record.version,
                    record.create_revision, None if old is None else old.value,
                )
                for record, old in batch.events
            ]
        )  # fmt: skip
        self.is_full = sum(map(len, self.batches)) > self.watcher.buffer_events
        self.watcher.arrives(self)

    def end(self, error: CallerError) -> None:
        """The process ends the watch."""
        self.watcher.world.counts["watches ended by their nodes"] += 1
        self.watcher.ends(self, error)


class Watcher:
    """One watcher, which begins again whenever its connection ends.

    Args:
        world: where it lives.
        number: which watcher it is.
    """

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.received: Received | None = None
        self._draw = Random(f"{world.plan.seed}:watcher:{number}")
        keys = world.plan.keys
        low = b"k%d" % self._draw.randrange(keys)
        ranges = ((b"", None), (b"k", b"l"), (low, low + b"\0"), (low, None))
        start, end = ranges[self._draw.randrange(len(ranges))]
        kinds = self._draw.choice(((True, True), (True, True), (True, False), (False, True)))
        self._wanted = Wanted(start, end, self._draw.random() < 0.5, *kinds)
        self._patience_us = self._draw.choice((1_000_000, 3_000_000, 20_000_000))
        """How long a connection lasts before the watcher goes elsewhere by itself."""
        self.buffer_events = self._draw.choice(BUFFERS_EVENTS)
        self._slow_us = self._draw.choice((0, 0, 200_000))
        self._connection: _Connection | None = None
        self._asking = 0
        world.clock.after(self._draw.randrange(world.plan.duration_us // 2), self._check)

    @property
    def has_all(self) -> bool:
        """Whether it has received all that happened."""
        truth, received = self.world.facts.truth, self.received
        if received is None:
            return False
        return not truth.between(received.checked + 1, truth.revision, self._wanted)

    def _check(self) -> None:
        """Look after the connection, for ever."""
        self.world.clock.after(100_000 + self._draw.randrange(200_000), self._check)
        connection = self._connection
        if connection is not None and connection.is_alive:
            if self._draw.randrange(self._patience_us) < 100_000 and not self.world.is_recovering:
                self._hang_up(connection)
            elif connection.watch is not None and not connection.batches:
                self._look_at_progress(connection, connection.watch)
            return
        self._connection = None
        nodes = self.world.live()
        if nodes and self._asking <= self.world.clock.now:
            node = nodes[self._draw.randrange(len(nodes))]
            self._asking = self.world.clock.now + 2 * self.world.timeout_us
            node.call(self._begin, node)

    def _hang_up(self, connection: _Connection) -> None:
        self.world.counts["watches resumed"] += 1
        connection.is_over = True
        if connection.watch is not None and connection.loop is not None:
            connection.loop.enter(connection.watch.close)

    def _look_at_progress(self, connection: _Connection, watch: Watch) -> None:
        progress = watch.progress()
        if progress is not None and not connection.batches and self.received is not None:
            self.world.counts["bookmarks"] += 1
            if not self.world.is_forked:
                self.received.told(self.world.facts.truth, progress)

    async def _begin(self, node: SimNode) -> None:
        """Begin a watch in a process of that node."""
        assert node.product is not None
        assert node.loop is not None
        connection = _Connection(self, node)
        service, truth = Service(node.product, node.loop.time), self.world.facts.truth
        asked_at, received = truth.revision, self.received
        first = 0 if received is None else received.checked + 1
        request = requests.Watch(
            self._wanted.start, self._wanted.end, first, self._wanted.prev_value, self._wanted.puts,
            self._wanted.deletes, self.world.timeout_us // 1000,
        )  # fmt: skip
        try:
            start = await service.execute(ANONYMOUS, request)
            if self._connection is not None or (received is not None and received.checked + 1 != first):
                return
            connection.watch = start.open(connection)
        except RevisionCompactedError as error:
            self._compacted(error)
            return
        except CallerError:
            return
        self._connection, self._asking = connection, 0
        self.world.counts["watches begun"] += 1
        if self.world.is_forked:
            return
        if self.received is None:
            node.observe(a_watch_begins_after_what_was_acknowledged, asked_at, start.revision)
            self.received = Received(self._wanted, start.first)
        self.received.resumed(start.first)

    def _compacted(self, error: RevisionCompactedError) -> None:
        self.world.counts["watches compacted"] += 1
        if self.received is not None:
            self.received.lost(error.floor)

    def ends(self, connection: _Connection, error: CallerError) -> None:
        """The process ends the watch; what it sent before is received."""
        self._receive(connection)
        connection.is_over = True
        if isinstance(error, RevisionCompactedError):
            self._compacted(error)

    def arrives(self, connection: _Connection) -> None:
        """Something was sent: it is received after a while."""
        plan = self.world.plan
        delay_us = plan.latency_us + self._draw.randrange(plan.jitter_us + 1) + self._draw.randrange(self._slow_us + 1)
        self.world.clock.after(delay_us, self._receive, connection)

    def _receive(self, connection: _Connection) -> None:
        if connection.is_over or connection is not self._connection or self.received is None:
            return
        batches, connection.batches = connection.batches, []
        for batch in batches:
            self.world.counts["events watched"] += len(batch)
            if not self.world.is_forked:
                self.received.take(self.world.facts.truth, batch)
        if connection.is_full and connection.is_alive:
            connection.is_full = False
            self.world.counts["slow watchers"] += 1
            if connection.watch is not None and connection.loop is not None:
                connection.loop.enter(connection.watch.has_room)
