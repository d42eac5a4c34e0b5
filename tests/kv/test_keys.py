"""The sorted set of keys against a sorted list."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kv.kv_support import examples

from kvorum.kv.keys import Keys

_keys = st.binary(min_size=1, max_size=2).map(lambda key: bytes(byte % 6 for byte in key))
_bounds = st.one_of(st.none(), st.just(b""), _keys)


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    with patch("kvorum.kv.keys.CHUNK_KEYS", 2):
        yield


@examples
@given(st.sets(_keys), st.lists(st.tuples(st.booleans(), _keys)), st.lists(st.tuples(_bounds, _bounds), max_size=9))
def test_a_set_of_keys_is_a_sorted_list(
    first: set[bytes], changes: list[tuple[bool, bytes]], ranges: list[tuple[bytes | None, bytes | None]]
) -> None:
    keys, expected = Keys(sorted(first)), set(first)
    for is_added, key in changes:
        if is_added and key not in expected:
            keys.add(key)
            expected.add(key)
        elif not is_added and key in expected:
            keys.remove(key)
            expected.remove(key)
        assert (key in keys) == (key in expected)
        assert len(keys) == len(expected)

    for start, end in [(b"", None), *ranges]:
        start = start or b""
        inside = sorted(key for key in expected if key >= start and (end is None or key < end))
        assert keys.count(start, end) == len(inside)
        for limit in (1, 2, 3, 50):
            assert keys.ascending(start, end, limit) == inside[:limit]
            assert keys.descending(start, end, limit) == inside[::-1][:limit]


@examples
@given(st.lists(st.integers(0, 5), max_size=6))
def test_sorted_keys_are_added_at_the_end_in_any_portions(sizes: list[int]) -> None:
    ordered = [b"%03d" % number for number in range(sum(sizes))]
    keys, start = Keys(), 0
    for size in sizes:
        keys.extend(ordered[start : start + size])
        start += size

    assert keys.ascending(b"", None, 100) == ordered
    assert (len(keys), keys.count(b"001", None)) == (len(ordered), max(len(ordered) - 1, 0))


def test_no_chunk_grows_without_bound_and_none_is_empty() -> None:
    keys = Keys()
    for number in range(200):
        keys.add(b"%03d" % (number * 7 % 200))
    assert all(1 <= len(chunk) < 4 for chunk in keys._chunks)

    for number in range(199):
        keys.remove(b"%03d" % (number * 11 % 200))
    assert len(keys) == 1
    assert [len(chunk) for chunk in keys._chunks] == [1]
    assert len(keys._firsts) == 1


def test_after_mass_deletes_the_chunks_that_are_left_are_few() -> None:
    with patch("kvorum.kv.keys.CHUNK_KEYS", 16):
        keys = Keys([b"%05d" % number for number in range(16 * 100)])
        for number in range(16 * 100):
            if number % 16:
                keys.remove(b"%05d" % number)
        assert len(keys) == 100
        assert len(keys._chunks) <= 26
        assert keys.ascending(b"", None, 200) == [b"%05d" % number for number in range(0, 1600, 16)]
        assert keys._firsts == [chunk[0] for chunk in keys._chunks]
