"""Mistakes of the caller: an ``InvalidArgumentError``, and nothing is sent."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from fronts.fake_node import serving

from kvorum_client import Client, InvalidArgumentError, SyncClient

Kinds = type[Client] | type[SyncClient]


@pytest.mark.parametrize("kind", [Client, SyncClient])
@pytest.mark.parametrize("endpoints", [None, 8001, [None], [b"127.0.0.1:1"], b"127.0.0.1:1", ["127.0.0.1:1", 2], []])
def test_endpoints_are_texts(kind: Kinds, endpoints: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="endpoints"):
        kind(endpoints)


@pytest.mark.parametrize("kind", [Client, SyncClient])
@pytest.mark.parametrize("cluster_id", ["x", "C" * 32, "c" * 31, "c" * 33, "g" * 32, "c" * 32 + "\n", None, b"c" * 32])
def test_the_id_of_a_cluster_has_32_hex_digits(kind: Kinds, cluster_id: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="not the id of a cluster"):
        kind(["127.0.0.1:1"], cluster_id=cluster_id)


NO_TIMEOUTS = [math.inf, math.nan, -1, 0, 1e300, 86_401, "5", None, Decimal(5), 1j]


@pytest.mark.parametrize("kind", [Client, SyncClient])
@pytest.mark.parametrize("timeout_s", NO_TIMEOUTS, ids=repr)
def test_a_timeout_is_a_positive_number_of_seconds_up_to_a_day(kind: Kinds, timeout_s: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"timeout_s must be a number of seconds above 0, up to 86,400"):
        kind(["127.0.0.1:1"], timeout_s=timeout_s)


@pytest.mark.parametrize("calls_max", [0, -1, 1.5, "5", None, True])
def test_the_number_of_calls_is_whole_and_at_least_1(calls_max: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="concurrent_calls_max must be a whole number from 1"):
        Client(["127.0.0.1:1"], concurrent_calls_max=calls_max)


def test_numbers_of_other_types_are_numbers() -> None:
    class Whole:
        """A whole number of another library."""

        def __index__(self) -> int:
            return 3

    async def scenario() -> None:
        async with serving() as server:
            two: Any = Fraction(2)
            three: Any = Whole()
            async with Client([server.url], timeout_s=two, concurrent_calls_max=three) as kv:
                await kv.put("k", "v", timeout_s=two)
                record = await kv.get("k", max_staleness_ms=three)
                assert record is not None

    asyncio.run(scenario())


CALLS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "prev_revision below 0": lambda kv: kv.put("k", "v", prev_revision=-1),
    "prev_revision too high": lambda kv: kv.put("k", "v", prev_revision=2**63),
    "prev_revision a fraction": lambda kv: kv.delete("k", prev_revision=1.0),
    "prev_revision text": lambda kv: kv.delete("k", prev_revision="1"),
    "prev_revision a truth value": lambda kv: kv.put("k", "v", prev_revision=True),
    "max_staleness_ms a fraction": lambda kv: kv.get("k", max_staleness_ms=1.5),
    "max_staleness_ms below 0": lambda kv: kv.get("k", max_staleness_ms=-1),
    "timeout_s of a call": lambda kv: kv.get("k", timeout_s=math.inf),
    "timeout_s of a call, text": lambda kv: kv.put("k", "v", timeout_s="5"),
    "timeout_s of a backup": lambda kv: kv.backup(lambda chunk, size: None, timeout_s=1e300),
    "a key that is a number": lambda kv: kv.put(5, "v"),
    "a quota that is no whole number": lambda kv: kv.set_quota(1.5),
    "a quota below 0": lambda kv: kv.set_quota(-1),
    "revision 0 of a key": lambda kv: kv.get("k", revision=0),
    "a revision that is text": lambda kv: kv.get("k", revision="7"),
    "a history of no version": lambda kv: kv.history("k", limit=0),
    "a history at revision 0": lambda kv: kv.history("k", revision=0),
    "a compaction at revision 0": lambda kv: kv.compact(0),
    "a compaction at a fraction": lambda kv: kv.compact(1.5),
    "an empty member": lambda kv: kv.remove_member(""),
    "no member": lambda kv: kv.remove_member(None),
    "a member that is bytes": lambda kv: kv.promote_member(b"n1"),
    "a member that cannot be encoded": lambda kv: kv.promote_member("\ud800"),
    "a new member without a URL": lambda kv: kv.add_member("n4", "", "http://127.0.0.1:1"),
    "a new member with no URL": lambda kv: kv.add_member("n4", "http://127.0.0.1:1", None),
    "a new member without a name": lambda kv: kv.add_member("", "http://127.0.0.1:1", "http://127.0.0.1:1"),
    "an empty target": lambda kv: kv.move_leader(""),
    "a target that is a number": lambda kv: kv.move_leader(2),
    "an endpoint that is a number": lambda kv: kv.status(8001),
    "an empty endpoint": lambda kv: kv.health(""),
    "an endpoint that is bytes": lambda kv: kv.metrics(b"127.0.0.1:1"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_mistake_in_a_call_is_found_before_anything_is_sent(call: Callable[[Any], Awaitable[object]]) -> None:
    async def scenario() -> None:
        async with serving() as server, Client([server.url]) as kv:
            with pytest.raises(InvalidArgumentError):
                await call(kv)
            assert not kv.has_heard
            assert server.node.proposed == []

    asyncio.run(scenario())


@pytest.mark.parametrize("key", [b".", b".."])
def test_a_key_that_is_a_folder_of_the_path_is_sent_as_a_parameter(key: bytes) -> None:
    async def scenario() -> None:
        async with serving() as server, Client([server.url]) as kv:
            assert (await kv.put(key, "v", prev_revision=0)).version == 1
            assert server.node.proposed_keys == [key]
            for record in (await kv.get(key), await kv.get(key, stale=True)):
                assert record is not None
                assert (record.key, record.value) == (key, b"v")
            assert (await kv.delete(key)).deleted

    asyncio.run(scenario())
