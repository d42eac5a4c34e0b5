"""Readers: clients that read ranges, page by page or whole, from any node, while keys come and go.

What a range answers is held against the state that follows from the committed log at the revision that it names. The
pages of one range come from different nodes, with crashes, restores and compactions between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec
from sim import range_invariants

from kvorum.errors import CallerError, RevisionCompactedError, RevisionInFutureError
from kvorum.kv.cursors import decode_cursor
from kvorum.kv.operations import NO_END, ONE_KEY, prefix_end
from kvorum.kv.ranges import RangeQuery
from kvorum.service import requests, scans
from kvorum.service.access import ANONYMOUS
from kvorum.service.results import RangeItem
from kvorum.service.service import Service

if TYPE_CHECKING:
    from sim.node import SimNode
    from sim.plan import Plan
    from sim.world import World

ATTEMPTS_MAX = 12
"""Of all pages of one range together."""
_PREFIXES = (b"", b"k", b"k1", b"account", b"z")
_DELIMITERS = (b"", b"", b"", b"1", b"k", b"nt")


@contextmanager
def small_slices(plan: Plan) -> Iterator[None]:
    """Let ranges be read in slices of so few keys that the ranges of this plan have many."""
    with mock.patch.multiple(scans, SLICE_KEYS=plan.slice_keys, FIRST_SLICE_KEYS=plan.slice_keys):
        yield


def draw_query(draw: Random, keys: int, latest: int) -> RangeQuery:
    """Draw a query of keys that there may be, at a revision that there may be."""
    prefix = draw.choice(_PREFIXES)
    bounds = draw.choice(("prefix", "prefix", "from-to", "from", "key"))
    low, high = sorted(b"k%d" % draw.randrange(keys) for _ in range(2))
    start, end = {
        "prefix": (prefix, prefix_end(prefix)), "from-to": (low, high), "from": (low, NO_END), "key": (low, ONE_KEY)
    }[bounds]  # fmt: skip
    query = RangeQuery(
        start,
        end,
        revision=draw.randrange(max(1, latest - 40), latest + 3) if draw.random() < 0.3 else 0,
        limit=draw.choice((0, 0, 1, 2, 3)),
        reverse=draw.random() < 0.4,
    )
    if draw.random() < 0.15:
        return msgspec.structs.replace(query, count_only=True, limit=0, reverse=False)
    query = msgspec.structs.replace(query, keys_only=draw.random() < 0.2)
    if bounds == "prefix" and (delimiter := draw.choice(_DELIMITERS)):
        return msgspec.structs.replace(query, delimiter=delimiter)
    others: dict[str, Any] = {"sort": draw.choice(("key", "key", "key", "create", "mod", "version", "value"))}
    if draw.random() < 0.2:
        others["min_mod_revision"] = draw.randrange(1, latest + 2)
    if draw.random() < 0.2:
        others["max_create_revision"] = draw.randrange(1, latest + 2)
    return msgspec.structs.replace(query, **others)


class _Reading:
    """One range that is being read."""

    def __init__(self, query: RangeQuery, *, is_whole: bool, is_stale: bool, pause_us: int) -> None:
        self.query = query
        self.is_whole = is_whole
        self.is_stale = is_stale
        self.pause_us = pause_us
        """How long the client of a whole range takes to read a slice, at most."""
        self.cursor = ""
        self.found = 0
        """How many items came in earlier pages."""
        self.pages = 0
        self.attempts = 0


class Reader:
    """One reader with one range at a time.

    Args:
        world: where it lives.
        number: which reader it is.
        ranges: how many it reads.
    """

    def __init__(self, world: World, number: int, ranges: int) -> None:
        self.left = ranges
        self._world = world
        self._name = f"r{number}"
        self._draw = Random(f"{world.plan.seed}:reader:{number}")
        self._reading: _Reading | None = None
        world.clock.after(self._draw.randrange(world.plan.think_us), self._next)

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, and nothing is left to do."""
        return self._reading is None and self.left <= 0

    def _next(self) -> None:
        if self.left <= 0:
            return
        self.left -= 1
        draw, world = self._draw, self._world
        query = draw_query(draw, world.plan.keys, max(world.facts.model.revision, 1))
        if world.counts["states damaged"] and query.sort == "value":
            # A damaged value has another place in that order, and the fault is not what is judged here.
            query = msgspec.structs.replace(query, sort="mod")
        self._reading = _Reading(
            query,
            is_whole=draw.random() < 0.3,
            is_stale=draw.random() < 0.5,
            pause_us=draw.choice((1, 200_000, 2_000_000)),
        )
        self._attempt(self._reading)

    def _attempt(self, reading: _Reading) -> None:
        if reading is not self._reading:
            return
        if reading.attempts >= ATTEMPTS_MAX:
            self._finish("given up")
            return
        world, draw = self._world, self._draw
        nodes = (world.is_recovering and world.live()) or list(world.nodes.values())
        node = nodes[draw.randrange(len(nodes))]
        reading.attempts += 1
        latency_us = world.plan.latency_us + int(draw.random() * world.plan.jitter_us)
        world.clock.after(latency_us, node.call, self._read, node, reading, reading.attempts)
        world.clock.after(2 * latency_us + world.timeout_us, self._time_out, reading, reading.attempts)

    def _time_out(self, reading: _Reading, attempt: int) -> None:
        if reading is self._reading and attempt == reading.attempts:
            self._attempt(reading)

    def _finish(self, what: str) -> None:
        self._reading = None
        self._world.counts[f"ranges {what}"] += 1
        self._world.note(self._name, "a range is {}", what)
        self._world.clock.after(self._draw.randrange(self._world.plan.think_us), self._next)

    # --- In a process -------------------------------------------------------------------------------------------

    async def _read(self, node: SimNode, reading: _Reading, attempt: int) -> None:
        """Read a page, or all of it, in a process of that node."""
        assert node.product is not None
        assert node.loop is not None
        if reading is not self._reading:
            return
        service, facts = Service(node.product, node.loop.time), self._world.facts
        query, cursor, done = reading.query, reading.cursor, reading.found
        asked = decode_cursor(cursor, query).revision if cursor else query.revision
        latest = facts.model.revision
        request = requests.Range(
            query, cursor, reading.is_whole, "stale" if reading.is_stale else "linearizable", None,
            self._world.timeout_us // 1000,
        )  # fmt: skip
        try:
            scan = await service.execute(ANONYMOUS, request)
        except (RevisionCompactedError, RevisionInFutureError) as error:
            self._refused(node, reading, attempt, asked or latest, latest, error)
            return
        except CallerError:
            return
        if not (self._world.is_forked or asked or reading.is_stale):
            node.observe(
                range_invariants.a_linearizable_range_has_all_that_was_acknowledged, node, latest, scan.revision
            )
        items: list[RangeItem] = []
        try:
            async for part in scan.parts():
                items += part
                if reading.is_whole:
                    self._world.counts["slices of streams"] += 1
                    await asyncio.sleep(self._draw.randrange(reading.pause_us) / 1e6)
        except CallerError as error:
            self._world.counts[f"ranges broken off: {error.code}"] += 1
            self._judge(node, reading, asked, done, items, scan, is_complete=False)
            return
        finally:
            scan.close()
        self._judge(node, reading, asked, done, items, scan, is_complete=not scan.more)
        if reading is self._reading and attempt == reading.attempts and cursor == reading.cursor:
            self._go_on(reading, items, scan.cursor)

    def _judge(
        self, node: SimNode, reading: _Reading, asked: int, done: int, items: list[RangeItem], scan: scans.RangeScan,
        *, is_complete: bool,
    ) -> None:  # fmt: skip
        facts, query = self._world.facts, reading.query
        # Between two pages a value may have been damaged, which has another place in the order of the values then.
        is_disordered = query.sort == "value" and self._world.counts["states damaged"] > 0
        if self._world.is_forked or is_disordered:
            return
        node.observe(range_invariants.a_range_is_at_the_revision_that_was_asked_for, node, asked, scan.revision)
        node.observe(range_invariants.a_page_is_within_its_limit, node, query, items)
        node.observe(range_invariants.a_count_is_that_of_its_revision, facts, node, query, scan.revision, scan.count)
        node.observe(
            lambda: range_invariants.a_range_is_the_state_at_its_revision(
                facts, node, query, scan.revision, done, items, is_complete=is_complete
            )
        )
        is_past = facts.truth.state(scan.revision) is not None and scan.revision < facts.model.revision
        self._world.counts["ranges judged"] += 1
        self._world.counts["ranges judged below the floor"] += scan.revision < node.store.floor
        self._world.counts["ranges judged in the past"] += is_past

    def _refused(
        self, node: SimNode, reading: _Reading, attempt: int, revision: int, latest: int,
        error: RevisionCompactedError | RevisionInFutureError,
    ) -> None:  # fmt: skip
        reason = "compacted" if isinstance(error, RevisionCompactedError) else "future"
        node.observe(self._world.facts.on_past_refused, node, revision, latest, reason)
        if reading is self._reading and attempt == reading.attempts:
            what = "between two pages" if reading.cursor else "at once"
            self._finish(f"refused {what}: {reason}")

    def _go_on(self, reading: _Reading, items: list[RangeItem], cursor: str | None) -> None:
        reading.found += len(items)
        reading.pages += 1
        reading.cursor = cursor or ""
        if cursor is None:
            self._finish(f"read in {'pages' if reading.pages > 1 else 'one answer'}")
            return
        self._world.clock.after(self._draw.randrange(2 * self._world.plan.think_us), self._attempt, reading)
