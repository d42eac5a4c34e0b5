"""Reads of the past and compactions, as the service executes them."""

from __future__ import annotations

import pytest
from fronts.fake_node import FakeNode
from service.test_service import execute

from kvorum.errors import (
    NoLeaderError,
    RevisionCompactedError,
    RevisionInFutureError,
)
from kvorum.kv.commands import Put as PutCommand
from kvorum.kv.commands import encode_batch
from kvorum.raft.messages import EntryKind
from kvorum.service.limits import HISTORY_BYTES_MAX
from kvorum.service.requests import Compact, Delete, Get, GetHistory, Put
from kvorum.service.results import Compacted, History


def node_of(*values: bytes) -> FakeNode:
    """Return a node at the highest level whose key ``k`` had these values, from revision 2 on."""
    node = FakeNode()
    node.raise_feature_level()
    execute(node, Get(b"k"), *(Put(b"k", value) for value in values))
    return node


def test_a_stale_read_at_a_revision_that_is_not_applied_yet_asks_a_quorum() -> None:
    node = node_of(b"1")
    barrier = node.read_barrier

    async def catch_up(timeout_ms: int) -> None:
        await barrier(timeout_ms)
        node._apply(EntryKind.COMMAND, encode_batch(1, [PutCommand(b"k", b"2")]))

    node.read_barrier = catch_up  # type: ignore[method-assign]
    barriers = node.barriers
    result = execute(node, Get(b"k", "stale", revision=3))
    assert (result.record.value, result.staleness_ms, node.barriers) == (b"2", 0, barriers + 1)
    execute(node, Get(b"k", "stale", revision=3))
    assert node.barriers == barriers + 1


def test_a_past_read_is_linearizable_unless_it_may_be_stale() -> None:
    node = node_of(b"1", b"2")
    barriers = node.barriers
    assert execute(node, Get(b"k", revision=2)).record.value == b"1"
    assert execute(node, GetHistory(b"k")).versions[0].value == b"2"
    assert node.barriers == barriers + 2
    node.error = NoLeaderError("nobody leads")
    for request in (Get(b"k", revision=2), GetHistory(b"k")):
        with pytest.raises(NoLeaderError):
            execute(node, request)
    assert execute(node, Get(b"k", "stale", revision=2)).record.value == b"1"
    assert len(execute(node, GetHistory(b"k", "stale")).versions) == 2


def test_a_history_is_cut_at_its_limit_and_says_so() -> None:
    node = node_of(b"1", b"2", b"3")
    for limit, is_truncated in ((1, True), (2, True), (3, False), (4, False)):
        result: History = execute(node, GetHistory(b"k", limit=limit))
        assert ([each.value for each in result.versions], result.is_truncated) == (
            [b"3", b"2", b"1"][:limit],
            is_truncated,
        )


def test_a_history_of_large_values_is_cut_and_has_at_least_one() -> None:
    half = HISTORY_BYTES_MAX // 2
    node = node_of(bytes(10), bytes(half), bytes(half), bytes(HISTORY_BYTES_MAX))
    sizes = [[len(each.value) for each in result.versions] for result in _pages(node)]
    assert sizes == [[HISTORY_BYTES_MAX], [half, half], [10]]


def _pages(node: FakeNode) -> list[History]:
    pages: list[History] = [execute(node, GetHistory(b"k"))]
    while pages[-1].is_truncated:
        pages.append(execute(node, GetHistory(b"k", revision=pages[-1].versions[-1].mod_revision - 1)))
    return pages


def test_a_delete_is_a_version_without_a_number() -> None:
    node = node_of(b"1")
    execute(node, Delete(b"k"))
    versions = execute(node, GetHistory(b"k")).versions
    assert [(each.mod_revision, each.version, each.value) for each in versions] == [(3, 0, b""), (2, 1, b"1")]


def test_a_compaction_tells_the_floor_and_is_refused_beyond_it() -> None:
    node = node_of(b"1", b"2", b"3")
    assert execute(node, Compact(3)) == Compacted(4, 3)
    with pytest.raises(RevisionCompactedError) as compacted:
        execute(node, Compact(3))
    assert (compacted.value.facts["floor"], compacted.value.facts["revision"]) == (3, 4)
    with pytest.raises(RevisionInFutureError) as early:
        execute(node, Compact(5))
    assert early.value.facts["revision"] == 4
    with pytest.raises(RevisionCompactedError):
        execute(node, Get(b"k", revision=2))
    assert node.counters.compactions == {"request": 1}
