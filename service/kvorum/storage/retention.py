"""Which snapshot files are kept: one rule for the disk and for its twin in memory."""

from __future__ import annotations

from collections.abc import Collection

SNAPSHOTS_KEPT = 2
"""The newest, and the one to fall back to."""


def kept(last_indexes: Collection[int], adopted: int) -> list[int]:
    """Return the snapshots that the log goes on from and can fall back to, newest first.

    Args:
        last_indexes: of every complete snapshot that is there.
        adopted: the last index of the newest that the log goes on from.
    """
    return sorted((index for index in last_indexes if index <= adopted), reverse=True)[:SNAPSHOTS_KEPT]


def superfluous(
    last_indexes: Collection[int], adopted: int, expected: Collection[int], pinned: Collection[int]
) -> list[int]:
    """Return which snapshots can be removed.

    Kept are the two newest that the log goes on from, the newest that arrived and no save has adopted yet, and what is
    expected or pinned.

    Args:
        last_indexes: of every complete snapshot that is there.
        adopted: the last index of the newest that the log goes on from.
        expected: those that a save is about to adopt.
        pinned: those that a peer is reading.
    """
    ahead = {index for index in last_indexes if index > adopted}
    arrived = ahead.difference(expected)
    needed = {*kept(last_indexes, adopted), *ahead.intersection(expected), max(arrived, default=0), *pinned}
    return sorted(index for index in last_indexes if index not in needed)
