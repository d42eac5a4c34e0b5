"""Whose state is wrong: nobody is put into quarantine but by a majority of the voters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from node.test_driver import Recorder, a_node, complete, configuration_entry
from waiting import until

from kvorum.kv.state_hash import StateDigest
from kvorum.node import Node
from kvorum.raft.messages import AppendEntries, Entry, EntryKind
from kvorum.storage.memory import MemoryStorage

FIVE = ("a@1", "b@1", "c@1", "d@1", "e@1")


class Witnesses(Recorder):
    """Some members answer with the digest that they have."""

    def __init__(self, answers: dict[str, StateDigest]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[str] = []
        self.suspected: list[str] = []

    async def state_hash(self, node: str, index: int) -> StateDigest | None:
        self.asked.append(node)
        return self.answers.get(node)

    async def suspect(self, node: str, index: int) -> None:
        self.suspected.append(node)


async def member_of_five(peers: Witnesses) -> Node:
    storage = MemoryStorage()
    node = a_node(storage, peers)
    entries = (configuration_entry(1, *FIVE), Entry(2, 1, EntryKind.NOOP, b""))
    node.parts.driver.on_messages(
        "b@1", (AppendEntries(1, "b@1", "a@1", prev_log_index=0, prev_log_term=0, entries=entries, leader_commit=2),)
    )
    await complete(storage)
    assert node.store.applied_index == 2
    return node


def test_two_of_five_that_agree_put_nobody_into_quarantine(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        peers = Witnesses({})
        node = await member_of_five(peers)
        ours = node.store.digest
        other = StateDigest(ours.version, ours.chain ^ 1, ours.records)
        peers.answers = {"b@1": other, "c@1": other}
        node.parts.integrity.investigate(2)
        await until("it is undecided", lambda: "no majority agrees on one" in caplog.text)
        assert sorted(peers.asked) == ["b@1", "c@1", "d@1", "e@1"]
        assert node.quarantined is None
        assert not peers.suspected
        await node.close()

    asyncio.run(scenario())


class LogOf(Witnesses):
    """A member whose state differs from entry 2 on; what its log holds there is said, or not."""

    def __init__(self, entry: Callable[[int], int | None]) -> None:
        super().__init__({})
        self.entry = entry
        self.node: Node | None = None

    async def state_hash(self, node: str, index: int) -> StateDigest | None:
        assert self.node is not None
        ours = self.node.parts.integrity.digest_at(index)
        if node != "b@1" or ours is None or ours.entry is None:
            return None
        is_same = index < 2
        chain, entry = (ours.chain, ours.entry) if is_same else (ours.chain ^ 1, self.entry(ours.entry))
        return msgspec.structs.replace(ours, chain=chain, entry=entry)


def test_one_member_whose_log_holds_another_entry_is_enough_to_take_no_part() -> None:
    """Whoever is the majority: both logs hold a committed entry of this index and term, and not the same one."""

    async def scenario() -> None:
        peers = LogOf(lambda entry: entry ^ 1)
        node = peers.node = await member_of_five(peers)
        node.parts.integrity.investigate(2)
        await until("it knows", lambda: node.distrusted)
        assert "b@1 applied another entry 2 than the one that is committed here, of term 1" in (node.distrusted or "")
        assert "do not delete it" in (node.distrusted or "")
        assert node.quarantined is None
        await node.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("entry", [lambda entry: entry, lambda entry: None], ids=["the same entry", "not told"])
def test_logs_that_are_not_known_to_differ_accuse_nobody(
    entry: Callable[[int], int | None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        peers = LogOf(entry)
        node = peers.node = await member_of_five(peers)
        node.parts.integrity.investigate(2)
        await until("it is undecided", lambda: "no majority agrees on one" in caplog.text)
        assert node.distrusted is None
        await node.close()

    asyncio.run(scenario())


def test_who_differs_from_a_majority_of_which_we_are_is_told() -> None:
    async def scenario() -> None:
        peers = Witnesses({})
        node = await member_of_five(peers)
        ours = node.store.digest
        other = StateDigest(ours.version, ours.chain ^ 1, ours.records)
        peers.answers = {"b@1": ours, "c@1": ours, "d@1": other}
        node.parts.integrity.investigate(2)
        await until("it is told", lambda: peers.suspected)
        assert peers.suspected == ["d@1"]
        assert node.quarantined is None
        await node.close()

    asyncio.run(scenario())
