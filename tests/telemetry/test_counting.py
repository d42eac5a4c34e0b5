"""What is counted is counted once, and nothing that an alert watches is left out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from storage.support import Disk, entries
from waiting import until

from kvorum.errors import OverloadedError
from kvorum.kv.commands import Put, PutResult
from kvorum.kv.store import Store
from kvorum.node.proposals import Proposals, Waiter
from kvorum.node.role_changes import RoleChanges
from kvorum.node.runtime import SystemClock
from kvorum.node.state import State
from kvorum.raft import Role
from kvorum.raft.messages import Entry, EntryKind
from kvorum.telemetry.counters import Counters

DONE = PutResult(1, 1, 1, 1)
PENDING_MAX = 3


class Leading:
    """The writes of a leader that proposes into nothing; a test says what is applied."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._index = 0
        raft = SimpleNamespace(id="n1", leader="n1", is_transferring=False, propose=self._propose)
        log_time = SimpleNamespace(is_unknown=False, now_ms=lambda: 7)
        self.writes = Proposals(
            cast(Any, raft),
            State(Store()),
            self.counters,
            PENDING_MAX,
            1 << 20,
            SystemClock(),
            cast(Any, log_time),
            cast(Any, None),
            cast(Any, SimpleNamespace(check=lambda _: None)),
        )

    def _propose(self, _: list[bytes]) -> tuple[int, int]:
        self._index += 1
        return self._index, 1

    def submit(self, timeout_s: float = 60.0) -> Waiter:
        return self.writes.submit(Put(b"a", b"1"), timeout_s)

    def apply(self, index: int, count: int, term: int = 1) -> None:
        self.writes.applied(Entry(index, term, EntryKind.COMMAND, b""), [DONE] * count)

    async def expire(self, waiter: Waiter) -> None:
        def expired() -> bool:
            self.writes.expire()
            return waiter.done()

        await until("the write expires", expired)


def counted(scenario: Callable[[Leading], Awaitable[None]]) -> dict[str, int]:
    async def run() -> dict[str, int]:
        leading = Leading()
        await scenario(leading)
        return {result: count for result, count in leading.counters.proposals.items() if count}

    return asyncio.run(run())


def test_a_write_that_does_not_fit_into_the_queue_is_counted_as_refused() -> None:
    async def scenario(leading: Leading) -> None:
        for _ in range(PENDING_MAX):
            leading.submit()
        with pytest.raises(OverloadedError):
            leading.submit()

    assert counted(scenario) == {"refused": 1}


def test_a_write_whose_caller_was_told_unknown_is_not_counted_again_when_it_is_applied() -> None:
    async def scenario(leading: Leading) -> None:
        late, patient = leading.submit(0.001), leading.submit()
        leading.writes.flush()
        await leading.expire(late)
        leading.apply(1, 2)
        assert await patient == DONE
        assert late.exception()

    assert counted(scenario) == {"unknown": 1, "committed": 1}


def test_a_write_whose_caller_was_told_unknown_is_not_counted_again_when_it_is_lost() -> None:
    async def scenario(leading: Leading) -> None:
        late = leading.submit(0.001)
        leading.writes.flush()
        await leading.expire(late)
        leading.apply(1, 1, term=2)
        assert late.exception()

    assert counted(scenario) == {"unknown": 1}


def test_a_write_that_was_refused_in_the_queue_is_not_counted_again_when_the_node_stops() -> None:
    async def scenario(leading: Leading) -> None:
        late = leading.submit(0.001)
        await leading.expire(late)
        leading.writes.stop("the node stopped")
        assert late.exception()

    assert counted(scenario) == {"refused": 1}


def test_a_write_whose_caller_has_gone_is_counted_by_what_became_of_it() -> None:
    async def scenario(leading: Leading) -> None:
        waiter = leading.submit()
        leading.writes.flush()
        waiter.cancel()
        leading.apply(1, 1)

    assert counted(scenario) == {"committed": 1}


def elections(*roles: tuple[Role, int, str]) -> dict[tuple[str, str], int]:
    """Let a driver notice these (role, term, why it campaigns), and return what it has counted."""
    counters = Counters()
    raft = SimpleNamespace(id="n1@1", campaign_reason="timeout", is_transferring=False)
    seen = RoleChanges(cast(Any, raft), counters)
    for role, term, raft.campaign_reason in roles:
        seen.note(role, term, "n1@1" if role is Role.LEADER else "")
    return dict(counters.elections)


@pytest.mark.parametrize(
    ("after", "lost"),
    [
        pytest.param((Role.PRE_CANDIDATE, 5, "timeout"), True, id="a split vote: it asks again"),
        pytest.param((Role.CANDIDATE, 6, "timeout"), True, id="a split vote: it stands again at once"),
        pytest.param((Role.FOLLOWER, 5, "disconnect"), True, id="another was elected"),
        pytest.param((Role.FOLLOWER, 7, "disconnect"), True, id="another stands in a later term"),
        pytest.param((Role.LEADER, 5, "disconnect"), False, id="it won"),
    ],
)
def test_an_election_is_won_or_lost_and_counted_under_the_reason_for_which_it_was_held(
    after: tuple[Role, int, str], lost: bool
) -> None:
    result = "lost" if lost else "won"
    held = (Role.CANDIDATE, 5, "disconnect")
    assert elections((Role.PRE_CANDIDATE, 4, "disconnect"), held, after) == {(result, "disconnect"): 1}


def test_an_election_that_is_won_within_one_turn_of_the_loop_is_counted() -> None:
    assert elections((Role.PRE_CANDIDATE, 4, "timeout"), (Role.LEADER, 5, "timeout")) == {("won", "timeout"): 1}


def test_asking_whether_an_election_could_be_won_is_none() -> None:
    assert not elections((Role.PRE_CANDIDATE, 4, "timeout"), (Role.FOLLOWER, 4, "timeout"))


def test_a_leader_that_was_only_out_of_hearing_is_no_new_one() -> None:
    counters = Counters()
    raft = SimpleNamespace(id="n1@1", campaign_reason="timeout", is_transferring=False)
    seen = RoleChanges(cast(Any, raft), counters)
    seen.note(Role.FOLLOWER, 4, "n2@1")
    seen.note(Role.PRE_CANDIDATE, 4, "")
    seen.note(Role.FOLLOWER, 4, "n2@1")
    assert counters.leader_changes == 1
    seen.note(Role.FOLLOWER, 5, "n2@1")
    assert counters.leader_changes == 2, "it was elected anew, and writes had stopped"


@pytest.mark.parametrize(
    ("is_transferring", "level", "says"),
    [
        (True, "INFO", "n1@1 transferred the leadership; now in term 6"),
        (False, "WARNING", "n1@1 stepped down; now in term 6"),
    ],
)
def test_a_leadership_that_was_handed_over_as_requested_is_no_warning(
    is_transferring: bool, level: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    raft = SimpleNamespace(id="n1@1", campaign_reason="timeout", is_transferring=False)
    seen = RoleChanges(cast(Any, raft), Counters())
    seen.note(Role.LEADER, 5, "n1@1")
    raft.is_transferring = is_transferring
    seen.note(Role.LEADER, 5, "n1@1")
    raft.is_transferring = False
    seen.note(Role.FOLLOWER, 6, "")
    assert (caplog.records[-1].levelname, caplog.messages[-1]) == (level, says)


def test_what_the_disk_took_is_told_from_what_the_loop_took(tmp_path: Path) -> None:
    """A loop that is busy while the disk works makes the save long, and not the disk slow."""
    busy_s = 0.5

    async def scenario() -> Counters:
        async with Disk(tmp_path) as disk:
            begun = asyncio.create_task(disk.save(1, *entries(1, 1)))
            await asyncio.sleep(0)
            save = disk.storage._in_flight
            assert save is not None
            while not save.synced:
                pass  # The loop learns nothing of it yet.
            until_s = time.monotonic() + busy_s
            while time.monotonic() < until_s:
                pass
            await begun
            assert disk.counters.fsync_duration.sum == save.synced - save.started
            return disk.counters

    counters = asyncio.run(scenario())
    assert counters.fsync_duration.count == counters.save_duration.count == 1
    assert 0 < counters.fsync_duration.sum <= counters.save_duration.sum - busy_s
