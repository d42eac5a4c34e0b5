"""Which snapshots are kept: the rule, and that the disk and its twin in memory both follow it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from storage.support import send, snapshot, take_snapshot

from kvorum.errors import StorageError
from kvorum.storage.memory import MemorySnapshots
from kvorum.storage.retention import kept, superfluous
from kvorum.storage.snapshots import Snapshots


def unexpected(error: StorageError) -> None:
    raise AssertionError(error)


@pytest.mark.parametrize(
    ("there", "adopted", "expected", "pinned", "removed"),
    [
        pytest.param([1, 2], 2, (), (), [], id="two"),
        pytest.param([1, 2, 3], 3, (), (), [1], id="a third"),
        pytest.param([1, 2, 3, 4], 4, (), (1,), [2], id="a peer reads one"),
        pytest.param([1, 2, 8], 2, (), (), [], id="one arrived"),
        pytest.param([1, 2, 8, 9], 2, (), (), [8], id="a newer one arrived"),
        pytest.param([1, 2, 8, 9], 2, (8,), (), [], id="a save adopts the older"),
        pytest.param([1, 2, 7, 8, 9], 2, (7, 8), (), [], id="a save adopts one, the next another"),
        pytest.param([1, 8, 9, 10], 10, (8,), (), [1, 8], id="what was expected was overtaken"),
    ],
)
def test_what_is_superfluous(
    there: list[int], adopted: int, expected: tuple[int, ...], pinned: tuple[int, ...], removed: list[int]
) -> None:
    assert superfluous(there, adopted, expected, pinned) == removed
    assert set(kept(there, adopted)).isdisjoint(removed)


def test_the_disk_and_its_twin_keep_the_same(tmp_path: Path) -> None:
    for seed in range(10):
        draw = Random(seed)
        disk, twin, theirs = Snapshots(tmp_path / str(seed), unexpected), MemorySnapshots(), MemorySnapshots()
        disk.open()
        last = 0
        for _ in range(40):
            index = last + draw.randrange(1, 4)
            match draw.randrange(5):
                case 0:
                    take_snapshot(disk, last := index)
                    take_snapshot(twin, index)
                case 1:
                    take_snapshot(theirs, last := index)
                    for snapshots in (disk, twin):
                        send(theirs, snapshots, snapshot(index))
                case 2 if ahead := [each for each in twin.files if twin.find(each) is None]:
                    chosen = draw.choice(ahead)
                    for snapshots in (disk, twin):
                        snapshots.expect(chosen)
                case 3 if ahead := [each for each in twin.files if twin.find(each) is None]:
                    chosen = draw.choice(ahead)
                    for snapshots in (disk, twin):
                        snapshots.begin_adoption(chosen)
                    disk.adopt_index(chosen)
                    twin.adopt(snapshot(chosen))
                case _:
                    chosen = draw.choice([0, *twin.files])
                    for snapshots in (disk, twin):
                        snapshots.pin([chosen])
            names = sorted(int(path.stem) for path in disk.folder.glob("*.snapshot"))
            assert names == sorted(twin.files), seed
            assert disk.kept() == twin.kept(), seed
            assert len(names) <= 2 + 1 + 2 + 1
