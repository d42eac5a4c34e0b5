"""When a leader refuses puts for lack of room, and what brings the room back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvorum.config import Config
from kvorum.errors import NoSpaceError
from kvorum.kv.store import Store
from kvorum.node.space import ADVANCE_S, HAND_OVER_S, LARGE_LOG_BYTES, SETTLE_S, WRITES_PER_BYTE, DiskSpace
from kvorum.node.state import State
from kvorum.raft import Role
from kvorum.raft.messages import Configuration, HeartbeatResponse, Member

US, B, C = "a@" + "1" * 16, "b@" + "2" * 16, "c@" + "3" * 16


class Leading:
    """A leader of three voters, its clock, its disk and its state."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.free_bytes: int | None = None
        self.said: list[int | None] = []
        self.transfers: list[str] = []
        members = Configuration(tuple(Member(node, voter=True) for node in (US, B, C)))
        self.raft = SimpleNamespace(
            id=US,
            role=Role.LEADER,
            configuration=members,
            is_transferring=False,
            set_free_bytes=self.said.append,
            transfer_candidate=self._candidate,
            transfer_leadership=self.transfers.append,
        )
        self.state = State(Store())
        self.config = Config(name="a", snapshot_bytes=64 << 20)
        storage = SimpleNamespace(free_bytes=lambda: self.free_bytes)
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        unused = cast(Any, None)
        self.space = DiskSpace(
            self.config, cast(Any, self.raft), self.state, cast(Any, storage), cast(Any, clock), unused, unused
        )
        self.needed = self.space.needed_bytes

    def _candidate(self, is_eligible: Callable[[str], bool]) -> str | None:
        return next((node for node in (B, C) if is_eligible(node)), None)

    def tick(self, *, own: int | None = None, **reports: int) -> None:
        """Let a tick pass after these members answered a heartbeat."""
        self.free_bytes = own
        for name, free_bytes in reports.items():
            sender = {"b": B, "c": C}[name]
            self.space.reported(HeartbeatResponse(1, sender, US, round=1, free_bytes=free_bytes))
        self.space.tick()

    def accepts(self, size_bytes: int = 1) -> bool:
        try:
            self.space.check(size_bytes)
        except NoSpaceError:
            return False
        return True


def test_what_is_needed_covers_a_snapshot_the_log_and_a_margin() -> None:
    it = Leading()
    batch = it.config.batch_bytes_max
    assert it.needed == 4 * batch + 8 * batch
    it.state.store.versions.record_bytes = 500 << 20
    assert it.space.needed_bytes == (500 << 20) + (64 << 20) + 8 * batch


def test_a_member_that_reports_nothing_has_room() -> None:
    it = Leading()
    it.tick(own=it.needed, b=-1, c=0)
    assert it.accepts(0)
    assert it.space.refusal is None
    assert it.space.free_bytes_of(B) is None
    assert it.space.free_bytes_of(C) == 0


@pytest.mark.parametrize(
    ("own", "b", "c", "accepted"), [(1, 1, 1, True), (1, 1, 0, True), (1, 0, 0, False), (0, 0, 1, False)]
)
def test_puts_are_refused_unless_a_quorum_with_the_leader_has_room(own: int, b: int, c: int, accepted: bool) -> None:
    it = Leading()
    it.tick(own=own * 2 * it.needed, b=b * 2 * it.needed, c=c * 2 * it.needed)
    assert it.accepts() is accepted
    assert (it.space.refusal is None) is accepted


def test_a_refusal_says_what_is_full_and_how_much_there_may_be() -> None:
    it = Leading()
    it.state.store.versions.record_bytes = 1000
    it.tick(own=it.needed, b=5, c=7)
    with pytest.raises(NoSpaceError, match=r"nearly full \(a, b, c\).*deletes and reads go on") as refused:
        it.space.check(1)
    assert refused.value.facts["reason"] == "disk"
    assert refused.value.facts["used"] == 1000
    assert refused.value.facts["limit"] < 1000


def test_a_member_that_does_not_answer_is_no_room_for_a_quorum() -> None:
    it = Leading()
    it.tick(own=2 * it.needed, b=0, c=2 * it.needed)
    assert it.accepts()
    it.now_s += 3 * it.config.election_timeout_ms / 1000
    it.tick(own=2 * it.needed, b=0)
    assert not it.accepts()

    never_heard = Leading()
    never_heard.tick(own=2 * it.needed, b=0)
    assert never_heard.accepts()
    never_heard.now_s += 3 * it.config.election_timeout_ms / 1000
    never_heard.tick(own=2 * it.needed, b=0)
    assert not never_heard.accepts()


def test_what_is_no_member_is_not_heard_and_not_remembered() -> None:
    it = Leading()
    for number in range(100):
        it.space.reported(HeartbeatResponse(1, f"x@{number:016d}", US, round=1, free_bytes=0))
    it.tick(own=2 * it.needed)
    it.now_s += 3 * it.config.election_timeout_ms / 1000
    it.tick(own=2 * it.needed)
    assert it.accepts()
    assert it.space.free_bytes_of(f"x@{1:016d}") is None


def test_silence_alone_is_no_lack_of_room() -> None:
    it = Leading()
    it.tick(own=2 * it.needed, b=2 * it.needed, c=2 * it.needed)
    it.now_s += 3 * it.config.election_timeout_ms / 1000
    it.tick(own=2 * it.needed)
    assert it.accepts()
    assert it.space.refusal is None


def test_what_was_proposed_since_the_reports_counts() -> None:
    it = Leading()
    spare = 1000
    it.tick(own=it.needed + WRITES_PER_BYTE * spare, b=1 << 60, c=1 << 60)
    assert it.accepts(spare // 2)
    it.tick(own=it.needed + WRITES_PER_BYTE * spare)
    assert not it.accepts(spare // 2 + 1)
    assert it.accepts(spare // 2)
    it.now_s += SETTLE_S
    it.tick(own=it.needed + WRITES_PER_BYTE * spare, b=1 << 60, c=1 << 60)
    it.now_s += SETTLE_S
    it.tick(own=it.needed + WRITES_PER_BYTE * spare, b=1 << 60, c=1 << 60)
    assert it.accepts(spare)


def test_puts_return_with_the_room_and_each_change_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    it = Leading()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            it.tick(own=it.needed - 1, b=0, c=0)
        assert not it.accepts()
        it.tick(own=it.needed, b=it.needed, c=it.needed)
        assert it.space.refusal is not None
        room = it.needed + it.needed // 8
        it.tick(own=room, b=room, c=room)
    assert it.accepts()
    assert it.space.refusal is None
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "puts are refused",
        "there is room on the disks of a majority again",
    ]


def test_a_leader_without_room_hands_over_to_a_voter_that_has_some() -> None:
    it = Leading()
    it.tick(own=0, b=0, c=2 * it.needed)
    assert not it.transfers  # No quorum has room: it would not help.
    it.tick(own=0, b=2 * it.needed, c=2 * it.needed)
    assert it.transfers == [B]
    it.tick(own=0)
    assert it.transfers == [B]
    it.now_s += HAND_OVER_S
    it.tick(own=0, b=2 * it.needed, c=2 * it.needed)
    assert it.transfers == [B, B]


def test_a_follower_reports_its_room_and_judges_nobody() -> None:
    it = Leading()
    it.tick(own=0, b=0, c=0)
    it.raft.role = Role.FOLLOWER
    it.tick(own=7)
    assert it.said == [0, 7]
    assert it.space.refusal is None
    assert it.accepts()


def test_a_leader_that_refuses_puts_lets_the_log_go_on_now_and_then() -> None:
    it = Leading()
    it.tick(own=2 * it.needed, b=2 * it.needed, c=2 * it.needed)
    assert not it.space.is_entry_due()
    it.tick(own=0, b=0, c=0)
    assert it.space.is_entry_due()
    assert not it.space.is_entry_due()
    it.now_s += ADVANCE_S
    assert it.space.is_entry_due()


def test_the_log_is_kept_short_on_a_disk_with_little_room() -> None:
    it = Leading()
    it.tick(own=100 * it.needed)
    assert it.space.log_bytes_due == it.config.snapshot_bytes
    it.tick(own=2 * it.needed - 1)
    assert it.space.log_bytes_due == it.space.log_bytes < it.config.snapshot_bytes
    assert (it.space.is_tight, it.space.is_low) == (True, False)
    it.tick(own=it.needed)
    assert it.space.is_low


def test_a_large_state_is_written_less_often() -> None:
    """A snapshot costs as much as the state, so the log may grow with it."""
    it = Leading()
    it.state.store.versions.record_bytes = 3 * it.config.snapshot_bytes
    it.tick(own=100 * it.space.needed_bytes)
    assert it.space.log_bytes_due == it.space.state_bytes // 2 > it.config.snapshot_bytes
    it.state.store.versions.record_bytes = 100 * it.config.snapshot_bytes
    it.tick(own=100 * it.space.needed_bytes)
    assert it.space.log_bytes_due == LARGE_LOG_BYTES


def test_the_disk_is_looked_at_again_and_again() -> None:
    asked: list[int] = []

    async def scenario() -> None:
        it = Leading()
        done = asyncio.Event()

        async def run(_: object, wanted_bytes: int) -> None:
            asked.append(wanted_bytes)

        async def sleep(_: float) -> None:
            if len(asked) == 3:
                done.set()
                await asyncio.Event().wait()

        tasks = SimpleNamespace(spawn=lambda coroutine, name: asyncio.create_task(coroutine, name=name), sleep=sleep)
        storage = SimpleNamespace(free_bytes=lambda: None, measure=None)
        clock, threads = SimpleNamespace(monotonic=lambda: 0.0), SimpleNamespace(run=run)
        space = DiskSpace(
            it.config, cast(Any, it.raft), it.state, cast(Any, storage), cast(Any, clock), cast(Any, tasks),
            cast(Any, threads),
        )  # fmt: skip
        space.start()
        await done.wait()
        await space.close()
        assert asked == 3 * [it.needed]

    asyncio.run(scenario())
