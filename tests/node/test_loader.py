"""Loading one snapshot at a time, in the memory of one state."""

from __future__ import annotations

import asyncio
import threading

import pytest
from node.test_driver import NoPeers, a_node
from waiting import until

from kvorum.errors import InvariantViolatedError
from kvorum.kv.store import Store
from kvorum.node import Node
from kvorum.node.loader import Loader
from kvorum.storage.memory import MemoryStorage


def loader_of(node: Node) -> Loader:
    parts = node.parts
    return Loader(node.raft, parts.state, parts.snapshots, node.ports.threads)


def empty(*, keeps_records: bool = True) -> Store:
    return Store()


def test_one_state_is_loaded_at_a_time() -> None:
    """A rebuild and an installation at once would take the memory of two states, and each would serve its own."""

    async def scenario() -> None:
        node = a_node(MemoryStorage(), NoPeers())
        loader, go_on, begun = loader_of(node), threading.Event(), threading.Event()

        def slowly(*, keeps_records: bool = True) -> Store:
            begun.set()
            go_on.wait(20)
            return Store()

        asked: list[bool] = []

        def is_wanted() -> bool:
            asked.append(first.done())
            return True

        first = asyncio.create_task(loader.load(slowly, lambda: True))
        await until("the first is being loaded", begun.is_set)
        second = asyncio.create_task(loader.load(empty, is_wanted))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not asked
        go_on.set()
        assert isinstance(await second, Store)
        assert asked == [True]
        await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_error", [True, False])
def test_what_is_not_wanted_any_more_costs_no_state(is_error: bool) -> None:
    async def scenario() -> None:
        node = a_node(MemoryStorage(), NoPeers())
        state = node.parts.state.store

        def is_wanted() -> bool:
            if is_error:
                raise InvariantViolatedError("the log does not reach back that far")
            return False

        loading = loader_of(node).load(empty, is_wanted)
        if is_error:
            with pytest.raises(InvariantViolatedError):
                await loading
        else:
            assert await loading is None
        assert node.parts.state.store is state
        assert not node.parts.state.is_given_up
        await node.close()

    asyncio.run(scenario())
