"""How fast the state is swept."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from kv.kv_support import apply, store_at_level_2

from kvorum.kv.commands import Put
from kvorum.node.integrity import Integrity
from kvorum.node.ports import Tasks
from kvorum.node.state import State
from kvorum.node.sweeps import PASS_HURRIED_S, PASS_S, PAUSE_MAX_S, Sweeps


class EnoughError(Exception):
    """The pass is over."""


class Pauses:
    """Notes how long is slept, and does not sleep."""

    def __init__(self) -> None:
        self.sweeps: Sweeps | None = None
        self.slept_s = 0.0

    async def sleep(self, delay_s: float) -> None:
        assert self.sweeps is not None
        if self.sweeps._sweep.passes:
            raise EnoughError
        self.slept_s += delay_s


@pytest.mark.parametrize(
    ("keys", "value_bytes"),
    [pytest.param(200, 256 * 1024, id="large values"), pytest.param(20_000, 8, id="small values")],
)
def test_a_pass_takes_about_as_long_whatever_the_keys_and_values(keys: int, value_bytes: int) -> None:
    store = store_at_level_2()
    value = bytes(value_bytes)
    for number in range(keys):
        apply(store, Put(b"%d" % number, value))
    pauses = Pauses()
    sweeps = Sweeps(State(store), cast(Integrity, None), cast(Tasks, pauses))
    pauses.sweeps = sweeps

    with pytest.raises(EnoughError):
        asyncio.run(sweeps._run())

    assert PASS_S - PAUSE_MAX_S <= pauses.slept_s <= PASS_S + 1


def test_who_asks_for_the_digest_of_a_state_that_stays_gets_the_sum_once_it_counts() -> None:
    store = store_at_level_2()
    apply(store, Put(b"a", b"1"))
    state = State(store)
    sweeps = Sweeps(state, cast(Integrity, None), cast(Tasks, Pauses()))
    state.hashes.applied(store.applied_index, store.digest)
    while store.digest.records is None:
        sweeps.step(1)
    assert state.hashes.at(store.applied_index) == store.digest


def test_a_state_in_doubt_is_swept_from_its_beginning_and_soon() -> None:
    store = store_at_level_2()
    for number in range(100_000):
        apply(store, Put(b"%d" % number, b""))
    pauses, state = Pauses(), State(store)
    sweeps = Sweeps(state, cast(Integrity, None), cast(Tasks, pauses))
    pauses.sweeps = sweeps
    sweeps.step(99_000)
    state.is_in_doubt = True

    with pytest.raises(EnoughError):
        asyncio.run(sweeps._run())

    assert PASS_HURRIED_S - 1 <= pauses.slept_s <= PASS_HURRIED_S + 1
    assert not state.is_in_doubt


def test_a_doubt_during_a_pass_is_not_settled_by_what_that_pass_saw_before() -> None:
    store = store_at_level_2()
    for number in range(10):
        apply(store, Put(b"%d" % number, b"1"))
    state, suspected = State(store), list[int]()
    integrity = SimpleNamespace(suspect=lambda index, shift: suspected.append(index))
    sweeps = Sweeps(state, cast(Integrity, integrity), cast(Tasks, Pauses()))
    sweeps.step(1000)
    sweeps.step(5)
    records = store.versions.records
    records[b"0"] = msgspec.structs.replace(records[b"0"], value=b"2")
    state.is_in_doubt = True

    sweeps.step(5)
    assert (suspected, state.is_in_doubt) == ([], True)
    sweeps.step(5)

    assert (suspected, state.is_in_doubt) == ([store.applied_index], False)
