"""Who a node is after a start, and what it says of itself to those that form a cluster: one that voted is not empty."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from node.test_driver import Recorder, a_node, complete

from kvorum.identity import Identity
from kvorum.node.incarnation import identity_at_start
from kvorum.raft.messages import Configuration, Entry, EntryKind, HardState, RequestVote, Snapshot
from kvorum.storage.interface import Loaded
from kvorum.storage.memory import MemoryStorage

OURS = Identity("a", "1", "c")


@pytest.mark.parametrize(
    "loaded",
    [
        pytest.param(Loaded(OURS, HardState(3, "b@1")), id="a vote"),
        pytest.param(Loaded(OURS, HardState(3)), id="a term"),
        pytest.param(Loaded(OURS, HardState(1), None, (Entry(1, 1, EntryKind.NOOP, b""),)), id="an entry"),
        pytest.param(Loaded(OURS, HardState(), Snapshot(1, 1, Configuration())), id="a snapshot"),
    ],
)
def test_a_node_that_promised_something_stays_in_its_cluster(loaded: Loaded) -> None:
    assert identity_at_start("a", loaded, Random(1)) == OURS


def test_a_node_that_promised_nothing_forgets_its_cluster_and_keeps_its_incarnation() -> None:
    assert identity_at_start("a", Loaded(OURS), Random(1)) == Identity("a", "1")


def test_every_empty_disk_is_another_incarnation() -> None:
    first, second = (identity_at_start("a", Loaded(), Random(seed)) for seed in (1, 2))
    assert (first.name, first.cluster_id) == ("a", "")
    assert first.incarnation != second.incarnation


def test_a_node_that_only_voted_does_not_call_itself_empty() -> None:
    async def scenario() -> None:
        storage = MemoryStorage()
        node = a_node(storage, Recorder())
        assert node.hello().empty
        asked = RequestVote(3, "b@1", "a@1", last_log_index=5, last_log_term=2, leadership_transfer=True)
        node.parts.driver.on_messages("b@1", (asked,))
        await complete(storage)
        loaded = storage.load()
        assert (loaded.hard_state, loaded.entries) == (HardState(3, "b@1"), ())
        assert not node.hello().empty
        await node.close()

    asyncio.run(scenario())
