"""Ranges that are read in slices: their places, their pins, their deadlines, and what they may hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from fronts.fake_node import FakeNode

from kvorum.errors import CallerError, OverloadedError, ReadTimeoutError, RevisionCompactedError
from kvorum.kv.commands import Put
from kvorum.kv.store import Store
from kvorum.service import Service, scans
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import Range, RangeQuery
from kvorum.service.results import RangeItem
from kvorum.service.scans import RangeScan

KEYS = 300
ALL = RangeQuery()


class Clock:
    """Goes on when it is told to."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """A node with 300 keys, and slices of 64 of them."""

    def __init__(self) -> None:
        self.node = FakeNode()
        self.node.raise_feature_level()
        self.clock = Clock()
        self.service = Service(self.node, self.clock)

    async def fill(self, value: bytes = b"v") -> int:
        for number in range(KEYS):
            await self.node.propose(Put(b"%04d" % number, value), 1000)
        return self.node.store.revision

    async def compact(self) -> None:
        await self.node.compact(self.node.store.revision, 1000)
        self.node.store.reclaim(10 * KEYS)

    async def begin(self, *, is_whole: bool = True, query: RangeQuery = ALL, cursor: str = "") -> RangeScan:
        return await self.service.execute(ANONYMOUS, Range(query, cursor, is_whole))

    @property
    def pins(self) -> int:
        return len(self.node.store.versions._pins)


async def rest(scan: RangeScan, between: Callable[[], Coroutine[None, None, None]] | None = None) -> list[RangeItem]:
    """Read on to the end, with something in between."""
    found: list[RangeItem] = []
    async for part in scan.parts():
        found += part
        if between is not None:
            await between()
    return found


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "SLICE_KEYS", 64)


def run(scenario: Callable[[World], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario(World()))


def test_a_range_that_is_being_read_is_not_touched_by_writes_and_compactions() -> None:
    async def scenario(world: World) -> None:
        revision = await world.fill()
        await world.fill(b"w")

        async def change() -> None:
            await world.fill(b"new")
            await world.compact()

        # In the past, so that a pin of the latest revision would not do.
        scan = await world.begin(query=RangeQuery(revision=revision))
        found = await rest(scan, change)
        scan.close()
        assert [(item.key, item.value) for item in found] == [(b"%04d" % n, b"v") for n in range(KEYS)]  # type: ignore[union-attr]

    run(scenario)


def test_the_loop_has_a_turn_before_each_slice() -> None:
    async def scenario(world: World) -> None:
        await world.fill()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        scan = await world.begin()
        counting = asyncio.create_task(count())
        await rest(scan)
        counting.cancel()
        scan.close()
        assert turns >= KEYS // 64

    run(scenario)


def test_a_place_and_a_pin_are_given_back_once_however_often_it_is_closed() -> None:
    async def scenario(world: World) -> None:
        await world.fill()
        for _ in range(2 * scans.STREAMS_MAX):
            scan = await world.begin()
            assert world.pins == 1
            scan.close()
            scan.close()
        many = [await world.begin() for _ in range(scans.STREAMS_MAX)]
        with pytest.raises(OverloadedError, match="8 whole ranges already"):
            await world.begin()
        # Pages have their own places, and a small range needs none.
        (await world.begin(is_whole=False)).close()
        (await world.begin(query=RangeQuery(limit=3))).close()
        for each in many:
            each.close()
        assert not world.pins

    run(scenario)


def test_a_range_that_can_not_begin_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await world.fill()
        await world.compact()
        for limit in (0, 3):
            with pytest.raises(RevisionCompactedError):
                await world.begin(query=RangeQuery(revision=5, limit=limit))
        # Its count needs several slices, and the time is over before.
        monkeypatch.setattr(scans, "STREAM_S_MAX", 0.0)
        for number in range(KEYS):
            await world.node.propose(Put(b"other%d" % number, b""), 1000)
        with pytest.raises(ReadTimeoutError):
            await world.begin(query=RangeQuery(revision=world.node.store.revision - 290, end=b"1"))
        assert not world.pins
        monkeypatch.undo()

    run(scenario)


def test_a_page_that_runs_out_of_time_ends_early_and_a_stream_is_broken_off() -> None:
    async def scenario(world: World) -> None:
        await world.fill()
        page = await world.begin(is_whole=False)
        stream = await world.begin()
        world.clock.now_s += 30
        assert 0 < len(await rest(page)) < KEYS and page.more
        assert len(await rest(stream)) == KEYS
        stream = await world.begin()
        world.clock.now_s += scans.STREAM_S_MAX
        with pytest.raises(ReadTimeoutError, match="within 600 s; read it in pages"):
            await rest(stream)
        assert page.cursor is not None
        following = await world.begin(is_whole=False, cursor=page.cursor)
        await rest(following)
        assert not following.more

    run(scenario)


def test_a_range_goes_on_with_the_store_that_takes_the_place_of_its_own() -> None:
    async def scenario(world: World) -> None:
        await world.fill()
        scan = await world.begin()
        world.node.store, old = _copy(world.node.store), world.node.store
        assert len(await rest(scan)) == KEYS
        assert not old.versions._pins and world.pins == 1
        scan.close()
        assert not world.pins
        scan = await world.begin()
        compacted = _copy(world.node.store)
        compacted.bump_revision(5)
        world.node.store = compacted
        with pytest.raises(RevisionCompactedError):
            await rest(scan)
        scan.close()

    run(scenario)


def _copy(store: Store) -> Store:
    """Return a store with the same keys at the same revisions, as from a snapshot."""
    copy = Store()
    copy.feature_level = store.feature_level
    copy.versions.restore(list(store.versions.records.values()), are_sorted=True)
    copy.revision = store.revision
    copy.versions.set_floor(store.revision)
    return copy


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_range_that_holds_back_too_much_history_ends(is_whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "HISTORY_BYTES_MAX", 100_000)

    async def scenario(world: World) -> None:
        await world.fill(b"v" * 200)
        scan = await world.begin(is_whole=is_whole)
        held: list[int] = []

        async def change() -> None:
            await world.fill(b"w" * 200)
            # What is above the floor is kept for everybody, and is not held back by a reader.
            held.append(world.node.store.versions.held_bytes(scan.revision))
            if len(held) > 1:
                await world.compact()

        with pytest.raises(RevisionCompactedError) as caught:
            await rest(scan, change)
        assert caught.value.code == "compacted" and len(held) == 2 and held[0] == 0
        scan.close()
        world.node.store.reclaim(10_000)
        assert not world.pins and len(world.node.store.versions._log) < 2 * KEYS

    run(scenario)


def test_readers_that_hold_back_little_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "HISTORY_BYTES_MAX", 200_000)

    async def scenario(world: World) -> None:
        await world.fill(b"v" * 200)
        first = await world.begin()
        await world.fill(b"w" * 200)
        second = await world.begin()
        await world.compact()
        assert len(await rest(first)) == len(await rest(second)) == KEYS
        await world.fill(b"x" * 200)
        await world.compact()
        # The older one holds back twice as much by now.
        assert [scan._pin is not None and scan._pin.is_lost for scan in (first, second)] == [True, False]

    run(scenario)


def test_pages_that_wait_for_their_clients_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "UNREAD_BYTES_MAX", 1000)

    async def scenario(world: World) -> None:
        await world.fill()
        page = await world.begin(is_whole=False)
        await rest(page)
        page.wait_for_client(999)
        assert not world.pins
        other = await world.begin(is_whole=False)
        other.wait_for_client(1)
        with pytest.raises(CallerError, match="1000 bytes of pages wait for slow clients"):
            await world.begin(is_whole=False)
        other.close()
        (await world.begin(is_whole=False)).close()
        page.close()
        page.close()
        for _ in range(2 * scans.PAGES_MAX):
            (await world.begin(is_whole=False)).close()

    run(scenario)
