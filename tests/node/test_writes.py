"""Writes whose deadline passes: what was never proposed is refused for good, what was is unknown."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from node.trio import TIMEOUT_MS, Put, running

from kvorum.errors import OutcomeUnknown, Overloaded
from kvorum.kv.commands import PutResult


def test_a_write_that_expires_in_the_queue_is_refused_and_never_done(tmp_path: Path) -> None:
    """Writes wait in the queue while the leadership is handed to a node that does not answer."""

    async def scenario() -> None:
        async with running(tmp_path) as trio:
            leader = await trio.leader()
            target = trio.others(leader)[0]
            trio.isolate(target.config.name)
            leader.raft.transfer_leadership(target.raft.id)

            hasty = [leader.propose(Put(b"hasty-%d" % n, b"?"), timeout_ms=50) for n in range(100)]
            patient = leader.propose(Put(b"patient", b"1"), TIMEOUT_MS)
            *refused, done = await asyncio.gather(*hasty, patient, return_exceptions=True)

            assert {type(answer) for answer in refused} == {Overloaded}
            assert isinstance(done, PutResult)
            trio.heal()
            await trio.converge()
            for node in trio.nodes.values():
                assert node.store.revision == 1, "only the patient one was ever done"

    asyncio.run(scenario())


def test_a_write_that_expires_after_it_was_proposed_is_unknown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as trio:
            leader = await trio.leader()
            trio.isolate(leader.config.name)

            with pytest.raises(OutcomeUnknown):
                await leader.propose(Put(b"a", b"1"), timeout_ms=200)

    asyncio.run(scenario())
