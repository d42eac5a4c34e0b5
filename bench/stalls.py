"""A store of a million keys: what an operation costs, and how long the event loop stands still while it is read.

Run as ``.venv/bin/python -m bench.stalls [KEYS]``; ``make bench`` prints the same rows. Everything runs in this
process, through the code that a node runs: entries are applied in batches, ranges go through the service's slices and
the encoding of the HTTP front, and a snapshot is written chunk by chunk. Costs and stalls are processor time of this
thread, so other processes on the machine count less; they still cost caches.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from bench.processes import resident_bytes
from kvorum.commands.garbage import collect_seldom, freeze
from kvorum.fronts.http import ranges
from kvorum.kv.commands import Command, Put, RaiseFeatureLevel, encode_batch
from kvorum.kv.features import SUPPORTED_LEVELS
from kvorum.kv.ranges import RangeQuery
from kvorum.kv.scan import Scan
from kvorum.kv.store import Store
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member
from kvorum.service.node_port import NodePort
from kvorum.service.scans import Scans

KEYS = 1_000_000
VALUE_BYTES = 128
BATCH = 64
SAMPLES = 100_000
GROUPS = 1000
"""How many common prefixes there are."""
RANGE_KEYS = 100


class Row(msgspec.Struct, frozen=True):
    """One figure, and what it should be at the most."""

    name: str
    figure: float
    unit: str
    goal: float | None = None

    def __str__(self) -> str:
        goal = (
            "" if self.goal is None else f", goal <= {self.goal:g} ({'met' if self.figure <= self.goal else 'NOT met'})"
        )
        return f"{self.name}: {self.figure:,.1f} {self.unit}{goal}"


class _Node:
    """As much of a node as a range needs."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def check_serves(self) -> None:
        """It serves."""


def key_of(number: int) -> bytes:
    """Return a key of 12 bytes, of a random place in the order."""
    place = number * 7_919 % KEYS
    return b"%04d/%07d" % (place % GROUPS, place)


def new_store() -> Store:
    """Return an empty store at the highest feature level."""
    store = Store()
    _apply(store, EntryKind.CONFIGURATION, encode_configuration(Configuration((Member("n1@00", True),))))
    for level in SUPPORTED_LEVELS[1:]:
        _apply(store, EntryKind.COMMAND, encode_batch(1, [RaiseFeatureLevel(level, {"n1@00": level}, "bench")]))
    return store


def _apply(store: Store, kind: EntryKind, data: bytes) -> None:
    store.apply(Entry(store.applied_index + 1, 1, kind, data))


def _put_all(store: Store, keys: list[bytes]) -> float:
    """Put keys in entries of 64; return microseconds of processor time an operation, hashes and reclaim included."""
    value = b"v" * VALUE_BYTES
    took = 0.0
    for first in range(0, len(keys), BATCH):
        commands: list[Command] = [Put(key, value) for key in keys[first : first + BATCH]]
        data = encode_batch(1, commands)
        begin = time.thread_time()
        _apply(store, EntryKind.COMMAND, data)
        store.reclaim(2 * BATCH)
        took += time.thread_time() - begin
    return took / len(keys) * 1e6


def _each(count: int, act: Callable[[int], object]) -> float:
    """Return microseconds of processor time an act."""
    begin = time.thread_time()
    for number in range(count):
        act(number)
    return (time.thread_time() - begin) / count * 1e6


def measure_operations(store: Store, keys: int) -> list[Row]:
    """Fill an empty store, and measure its operations."""
    draw = random.Random(1)
    rows = []
    before = resident_bytes(os.getpid())
    filled = _put_all(store, [key_of(number) for number in range(keys - SAMPLES)])
    new = _put_all(store, [key_of(number) for number in range(keys - SAMPLES, keys)])
    rows.append(Row("put of a new key, mean of the fill", filled, "us"))
    rows.append(Row("put of a new key, at the end", new, "us", 9.0))
    rows.append(Row("resident memory of the store", (resident_bytes(os.getpid()) - before) / 2**20, "MiB"))
    freeze()
    store.versions.set_floor(store.revision)
    while store.reclaim(10_000) >= 10_000:
        pass
    sample = [key_of(draw.randrange(keys)) for _ in range(SAMPLES)]
    rows.append(Row("get", _each(SAMPLES, lambda number: store.get(sample[number])), "us", 1.6))
    rows.append(Row(f"range of {RANGE_KEYS}", _each(2000, lambda number: _range(store, sample[number])), "us", 100.0))
    rows.append(Row("overwrite", _put_all(store, sample), "us", 6.0))
    return rows


def _range(store: Store, start: bytes) -> None:
    scan = Scan(RangeQuery(start, limit=RANGE_KEYS), store.revision, is_whole=False)
    while not scan.is_done:
        scan.step(store.versions, store.revision, 512)


# --- Stalls -----------------------------------------------------------------------------------------------------------


async def _longest_stall_ms(act: Callable[[], Awaitable[None]]) -> float:
    """Return how long the longest turn of the loop took while something ran, in processor time."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        await act()
        await asyncio.sleep(0)
    finally:
        watching.cancel()
    return 1000 * longest


async def _read(store: Store, query: RangeQuery, *, is_whole: bool) -> None:
    scans = Scans(cast(NodePort, _Node(store)), time.monotonic)
    scan = Scan(query, query.revision or store.revision, is_whole=is_whole)
    reading = await scans.begin(scan, is_whole=is_whole, timeout_ms=600_000, staleness_ms=None)
    try:
        if is_whole:
            async for _ in ranges._Lines(reading).chunks():
                await asyncio.sleep(0)
        else:
            ranges._encoder.encode(await ranges._page(reading))
    finally:
        reading.close()


async def _snapshot(store: Store) -> None:
    iterator = store.begin_snapshot()
    try:
        while iterator.next_chunk() is not None:  # noqa: ASYNC110 (a turn of the loop)
            await asyncio.sleep(0)
    finally:
        iterator.close()


async def _write_on(store: Store, keys: int) -> None:
    """Apply entries, one a turn, as a node does under load."""
    draw = random.Random(2)
    value = b"w" * VALUE_BYTES
    while True:
        commands: list[Command] = [Put(key_of(draw.randrange(keys)), value) for _ in range(BATCH)]
        _apply(store, EntryKind.COMMAND, encode_batch(1, commands))
        store.reclaim(2 * BATCH)
        await asyncio.sleep(0)


async def measure_stalls(store: Store, keys: int) -> list[Row]:
    """Measure the stalls of a store that has history from its last 100,000 writes, while writes go on."""
    old = store.revision - SAMPLES // 2
    acts: dict[str, Callable[[], Awaitable[None]]] = {
        "a whole range": lambda: _read(store, RangeQuery(), is_whole=True),
        "a whole range at an old revision": lambda: _read(store, RangeQuery(revision=old), is_whole=True),
        "a count at an old revision": lambda: _read(store, RangeQuery(revision=old, count_only=True), is_whole=False),
        "a listing of one level": lambda: _read(store, RangeQuery(delimiter=b"/", limit=GROUPS), is_whole=False),
        "the same at an old revision": lambda: _read(
            store, RangeQuery(revision=old, delimiter=b"/", limit=GROUPS), is_whole=False
        ),
        "a snapshot": lambda: _snapshot(store),
    }
    rows = []
    writing = asyncio.create_task(_write_on(store, keys))
    for name, act in acts.items():
        rows.append(Row(f"longest stall during {name}", await _longest_stall_ms(act), "ms", 10.0))
    writing.cancel()

    async def frozen() -> None:
        freeze()

    rows.append(
        Row("longest stall of the garbage collector after a snapshot", await _longest_stall_ms(frozen), "ms", 10.0)
    )
    return rows


def measure(keys: int = KEYS) -> list[Row]:
    """Measure everything in this process, whose garbage collector is that of a node from then on."""
    collect_seldom()
    store = new_store()
    rows = measure_operations(store, keys)
    return rows + asyncio.run(measure_stalls(store, keys))


if __name__ == "__main__":
    for row in measure(int(sys.argv[1]) if len(sys.argv) > 1 else KEYS):
        print(row)
