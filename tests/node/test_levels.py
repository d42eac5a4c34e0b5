"""When the feature level is raised, by whom, and what keeps it from being raised."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from bench.processes import free_ports
from node.local_cluster import TIMEOUT_MS, change_in_memory, running
from waiting import until

import kvorum
from kvorum.cluster.observer import Observer
from kvorum.config import Config
from kvorum.errors import (
    FeatureLevelBlockedError,
    FeatureUnavailableError,
    MembershipRefusedError,
    NotLeaderError,
    OutcomeUnknownError,
    OverloadedError,
)
from kvorum.identity import Identity
from kvorum.kv import features
from kvorum.kv.commands import Delete, Put, RaiseFeatureLevel, decode_batch
from kvorum.kv.features import HIGHEST_LEVEL
from kvorum.kv.state_hash import StateDigest
from kvorum.kv.store import Store
from kvorum.node import Node
from kvorum.node.hashes import StateHashes, is_wrong
from kvorum.node.levels import ANNOUNCEMENTS_MAX, FeatureLevels
from kvorum.node.state import State
from kvorum.node.waits import Waits
from kvorum.raft import Role
from kvorum.raft.membership import AddLearner, encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member
from kvorum.transport import Hello

OURS, VOTER, LEARNER = "n1@1", "n2@1", "n3@1"
MEMBERS = Configuration((Member(OURS, True), Member(VOTER, True), Member(LEARNER, False)))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def boottime(self) -> float:
        raise AssertionError

    def wall_ms(self) -> int:
        return 7


class Leading:
    """A leader whose proposals are applied when a test says so."""

    def __init__(self, finalize_after: str = "24h") -> None:
        self.clock = Clock()
        self.waits = Waits(self.clock)
        self.state = State(Store())
        self.raft = SimpleNamespace(
            id=OURS,
            leader=OURS,
            role=Role.LEADER,
            current_term=3,
            configuration=MEMBERS,
            propose=self._propose,
            log=SimpleNamespace(memory_base_index=0, first_index=1, slice=self._slice),
        )
        self.proposed: list[bytes] = []
        self.refusal: Exception | None = None
        self.turns = 0
        self.state.store.apply(Entry(1, 1, EntryKind.CONFIGURATION, encode_configuration(MEMBERS)))
        identity = SimpleNamespace(current=Identity("n1", "1", "c" * 32))
        self.levels = FeatureLevels(
            Config(finalize_after=finalize_after),
            cast(Any, self.raft),
            self.state,
            cast(Any, identity),
            self.waits,
            self.clock,
            cast(Any, SimpleNamespace(now_ms=lambda: 7)),
            cast(Any, SimpleNamespace(schedule=self._schedule)),
        )

    def _propose(self, payloads: list[bytes]) -> tuple[int, int]:
        if self.refusal is not None:
            raise self.refusal
        self.proposed += payloads
        return self.state.store.applied_index + len(payloads), self.raft.current_term

    def _slice(self, first: int, bytes_max: int) -> list[Entry]:
        return [Entry(first + i, 3, EntryKind.COMMAND, data) for i, data in enumerate(self.proposed)]

    def _schedule(self) -> None:
        self.turns += 1

    def all_announce(self, level: int = 2) -> None:
        for node in (VOTER, LEARNER):
            self.levels.announced(node, level, "0.2.0")

    def pass_time(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.levels.tick()

    def apply(self) -> None:
        """Let everything that was proposed be committed and applied."""
        for data in self.proposed:
            entry = Entry(self.state.store.applied_index + 1, 3, EntryKind.COMMAND, data)
            self.state.store.apply(entry)
            self.waits.applied(entry)
        self.proposed = []


DAY_S = 86_400.0


def test_the_leader_raises_the_level_once_every_member_has_announced_it_for_long_enough() -> None:
    async def scenario() -> None:
        it = Leading()
        it.all_announce()
        it.levels.tick()
        it.pass_time(DAY_S - 1)
        assert it.proposed == []

        it.pass_time(1)

        [data] = it.proposed
        command = RaiseFeatureLevel(2, {OURS: HIGHEST_LEVEL, VOTER: 2, LEARNER: 2}, "c" * 32)
        assert decode_batch(data).commands == (command,)
        assert it.turns == 1
        it.pass_time(1)
        assert len(it.proposed) == 1
        it.apply()
        assert it.levels.level == 2
        it.pass_time(DAY_S)
        it.pass_time(DAY_S)
        assert it.proposed == []

    asyncio.run(scenario())


@pytest.mark.parametrize("node", [VOTER, LEARNER])
def test_a_member_that_has_announced_nothing_keeps_the_level_where_it_is(node: str) -> None:
    """A learner, and a member that is down, count like every other."""

    async def scenario() -> None:
        it = Leading("0")
        it.levels.announced(VOTER if node == LEARNER else LEARNER, 2, "0.2.0")
        for _ in range(3):
            it.pass_time(DAY_S)
        assert it.proposed == []
        it.levels.announced(node, 2, "0.2.0")
        it.pass_time(0)
        assert len(it.proposed) == 1

    asyncio.run(scenario())


def test_a_member_that_goes_back_to_its_version_starts_the_wait_anew() -> None:
    async def scenario() -> None:
        it = Leading("1h")
        it.all_announce()
        it.levels.tick()
        it.pass_time(3000)
        it.levels.announced(VOTER, 1, "0.1.0")
        it.pass_time(1)
        it.levels.announced(VOTER, 2, "0.2.0")
        it.pass_time(1)
        it.pass_time(3599)
        assert it.proposed == []
        it.pass_time(1)
        assert len(it.proposed) == 1

    asyncio.run(scenario())


def test_a_new_leader_waits_by_its_own_clock() -> None:
    async def scenario() -> None:
        it = Leading("1h")
        it.raft.role = Role.FOLLOWER
        it.all_announce()
        it.levels.tick()
        it.pass_time(7200)
        assert it.proposed == []
        it.raft.role = Role.LEADER
        it.pass_time(1)
        it.pass_time(3599)
        assert it.proposed == []
        it.pass_time(1)
        assert len(it.proposed) == 1

    asyncio.run(scenario())


def test_a_raise_that_was_lost_with_its_term_is_proposed_again() -> None:
    async def scenario() -> None:
        it = Leading("0")
        it.all_announce()
        it.pass_time(0)
        it.proposed = []
        it.pass_time(1)
        assert it.proposed == []
        it.raft.current_term = 5
        it.pass_time(1)
        assert len(it.proposed) == 1

    asyncio.run(scenario())


def test_a_raise_that_cannot_be_proposed_now_is_proposed_later() -> None:
    async def scenario() -> None:
        it = Leading("0")
        it.all_announce()
        it.refusal = OverloadedError("the leadership is being transferred")
        it.pass_time(0)
        it.refusal = None
        it.pass_time(1)
        assert len(it.proposed) == 1

    asyncio.run(scenario())


def test_manual_leaves_it_to_an_operator() -> None:
    async def scenario() -> None:
        it = Leading("manual")
        it.all_announce(HIGHEST_LEVEL)
        it.levels.tick()
        it.pass_time(100 * DAY_S)
        assert it.proposed == []

        finalizing = asyncio.create_task(it.levels.finalize(TIMEOUT_MS))
        while not finalizing.done():
            await asyncio.sleep(0)
            it.apply()

        assert await finalizing == HIGHEST_LEVEL

    asyncio.run(scenario())


def test_finalize_says_who_blocks_it_and_why() -> None:
    async def scenario() -> None:
        it = Leading()
        it.levels.announced(VOTER, 1, "0.1.0")
        with pytest.raises(FeatureLevelBlockedError) as raised:
            await it.levels.finalize(TIMEOUT_MS)
        assert str(raised.value) == (
            "the cluster stays at feature level 1; level 2 needs version 0.2.0 on every member: "
            "n2@1 runs 0.1.0, which supports feature level 1; "
            "n3@1 has not announced its version to this leader (is it down?)"
        )
        assert it.proposed == []

    asyncio.run(scenario())


def test_finalize_is_the_leaders_and_does_nothing_at_the_highest_level() -> None:
    async def scenario() -> None:
        it = Leading("0")
        it.raft.role, it.raft.leader = Role.FOLLOWER, VOTER
        with pytest.raises(NotLeaderError):
            await it.levels.finalize(TIMEOUT_MS)
        it.levels.announced(VOTER, 1, "0.1.0")
        with pytest.raises(FeatureLevelBlockedError, match=r"n2@1 runs 0\.1\.0"):
            await it.levels.finalize(TIMEOUT_MS)  # the leader does not know what is asked
        it.raft.role = Role.LEADER
        it.all_announce(HIGHEST_LEVEL)
        it.pass_time(0)
        waiting = asyncio.create_task(it.levels.finalize(TIMEOUT_MS))
        await asyncio.sleep(0)
        assert len(it.proposed) == 1  # it waits for the raise that is under way
        while not waiting.done():
            it.apply()
            await asyncio.sleep(0)
        assert await waiting == HIGHEST_LEVEL
        assert await it.levels.finalize(TIMEOUT_MS) == HIGHEST_LEVEL
        assert it.proposed == []

    asyncio.run(scenario())


def test_finalize_takes_no_longer_than_its_timeout_for_all_levels_together() -> None:
    async def scenario() -> None:
        it = Leading("manual")
        it.all_announce(3)
        finalizing = asyncio.create_task(it.levels.finalize(5000))
        await asyncio.sleep(0)
        it.clock.now_s += 4.0
        it.apply()
        await asyncio.sleep(0)
        assert len(it.proposed) == 1  # the second raise
        it.clock.now_s += 1.5
        it.waits.expire()
        await asyncio.sleep(0)

        assert finalizing.done()
        with pytest.raises(OutcomeUnknownError):
            await finalizing

    asyncio.run(scenario())


def test_announcements_are_bounded_and_those_of_members_are_kept() -> None:
    async def scenario() -> None:
        it = Leading("0")
        it.all_announce()
        for number in range(2 * ANNOUNCEMENTS_MAX):
            it.levels.announced(f"stranger@{number}", 1, "0.1.0")
        assert len(it.levels._announced) <= ANNOUNCEMENTS_MAX
        assert it.levels.blockers(2) == {}

    asyncio.run(scenario())


@pytest.mark.parametrize(("levels", "expected"), [({}, []), ({OURS: 2, VOTER: 1, LEARNER: 2}, [])])
def test_a_new_cluster_begins_at_level_1_unless_all_announce_more(
    levels: dict[str, int], expected: list[bytes]
) -> None:
    async def scenario() -> None:
        assert Leading().levels.first_entries(MEMBERS, levels) == expected

    asyncio.run(scenario())


def test_a_new_cluster_begins_at_the_highest_level_that_all_announce() -> None:
    async def scenario() -> None:
        it = Leading()
        entries = it.levels.first_entries(MEMBERS, dict.fromkeys((OURS, VOTER, LEARNER), 9))
        commands = [command for data in entries for command in decode_batch(data).commands]
        assert [command.level for command in commands if isinstance(command, RaiseFeatureLevel)] == [2, 3, 4, 5, 6]
        assert HIGHEST_LEVEL == 6

    asyncio.run(scenario())


def test_a_level_that_the_log_raises_already_is_not_announced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def scenario() -> None:
        it = Leading()
        it.proposed = it.levels.first_entries(MEMBERS, dict.fromkeys((OURS, VOTER, LEARNER), 2))
        it.all_announce()
        it.levels.tick()
        it.apply()
        it.levels.tick()
        it.levels.tick()
        assert it.levels.level == 2
        messages = [record.getMessage() for record in caplog.records]
        assert messages == ["the cluster is at feature level 2: versions before 0.2.0 can no longer start"]

    asyncio.run(scenario())


def test_nodes_of_this_version_begin_at_its_level_and_know_each_others_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            await cluster.put(b"a", b"1")
            await cluster.converge()
            for node in cluster.nodes.values():
                assert node.store.feature_level == HIGHEST_LEVEL
                assert node.store.state_sum is not None
            # A member's answers may come on the stream that this node dialled, before its own call.
            await until("all have announced themselves", lambda: leader.parts.levels.blockers(HIGHEST_LEVEL) == {})
            for member in leader.raft.configuration.members:
                said = leader.parts.levels.announcement(member.id)
                assert said is not None and said.version == kvorum.__version__
            assert await leader.finalize(TIMEOUT_MS) == HIGHEST_LEVEL

    asyncio.run(scenario())


def test_a_node_that_does_not_support_the_level_is_not_added(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            ask = leader.peers.hello

            async def of_version_0_1_0(url: str, timeout_s: float = 2.0) -> Hello:
                hello = await ask(url, timeout_s)
                return msgspec.structs.replace(hello, levels=(1, 1), version="0.1.0")

            leader.peers.hello = of_version_0_1_0  # type: ignore[method-assign]
            other = cluster.others(leader)[0]
            url = other.config.advertise_peer_url
            with pytest.raises(MembershipRefusedError, match=r"0\.1\.0, which does not support the feature level"):
                await leader.add_member(other.config.name, url, "", TIMEOUT_MS)

            observer = Observer(leader)
            await observer.look()
            view = observer.membership_view(None)
            assert view is not None
            assert [seen.is_too_old for seen in view.observed.values()] == [True, True]
            leader.peers.hello = ask  # type: ignore[method-assign]
            await observer.look()
            view = observer.membership_view(None)
            assert view is not None
            assert [seen.is_too_old for seen in view.observed.values()] == [False, False]

    asyncio.run(scenario())


@pytest.mark.parametrize("by", ["hand", "the reconciler"])
def test_a_node_that_does_not_support_a_level_that_the_log_raises_to_is_not_added(tmp_path: Path, by: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            await cluster.put(b"a", b"1")
            ask, newcomer = leader.peers.hello, f"http://127.0.0.1:{free_ports(1)[0]}"

            async def of_version_0_1_0(url: str, timeout_s: float = 2.0) -> Hello:
                if url != newcomer:
                    return await ask(url, timeout_s)
                return msgspec.structs.replace(
                    leader.hello(), name="n4", incarnation="1", peer_url=url, levels=(1, 1), version="0.1.0"
                )

            leader.peers.hello = of_version_0_1_0  # type: ignore[method-assign]
            leader.store.feature_level = 1
            for other in cluster.others(leader):
                cluster.cut.add((leader.config.name, other.config.name))
            index, _ = leader.parts.levels._propose(2)
            assert index > leader.store.applied_index
            last_index = leader.raft.log.last_index

            with pytest.raises(MembershipRefusedError, match=r"0\.1\.0, which does not support the feature level"):
                if by == "hand":
                    await leader.add_member("n4", newcomer, "", TIMEOUT_MS)
                else:
                    await leader.change_membership(AddLearner(Member("n4@1", False, newcomer)), TIMEOUT_MS)
            assert leader.raft.log.last_index == last_index

    asyncio.run(scenario())


def digest(chain: int = 7, records: int | None = 9, version: int = 2) -> StateDigest:
    return StateDigest(version, chain, records)


@pytest.mark.parametrize(
    ("others", "wrong"),
    [
        ([digest(), digest()], False),
        ([digest(8), digest(8)], True),
        ([digest(8), digest(9)], None),  # no two of three agree
        ([digest(8), digest()], False),
        ([digest(8)], None),
        ([digest(records=8), digest(records=8)], True),
        ([digest(records=8), digest()], False),
        ([digest(records=8), digest(records=6)], None),
        ([digest(records=8), digest(records=None)], None),  # a sum that does not count has no vote
        ([digest(records=None), digest(records=None)], None),  # nor do two that will count soon
        ([digest(8, version=1), digest(8, version=1)], None),  # another definition is not compared
    ],
)
def test_the_members_vote_on_the_chain_first_and_then_on_the_sum(others: list[StateDigest], wrong: bool | None) -> None:
    assert is_wrong(digest(), {str(at): other for at, other in enumerate(others)}, 3) is wrong


def test_below_the_level_that_has_sums_the_chain_decides_alone() -> None:
    assert is_wrong(digest(records=None), {"b": digest(records=None)}, 3) is False


@pytest.mark.parametrize(
    ("others", "wrong"),
    [
        ([digest(records=5)], True),  # it has the sum that this node's own account of all changes gives
        ([digest(records=5), digest()], True),
        ([digest()], False),
        ([digest(records=6)], None),
        ([digest(8, records=5)], None),
        ([], None),
    ],
)
def test_one_member_that_has_the_expected_sum_shows_that_the_records_are_wrong(
    others: list[StateDigest], wrong: bool | None
) -> None:
    assert is_wrong(digest(), {str(at): other for at, other in enumerate(others)}, 3, expected_sums=(4, 5)) is wrong


@pytest.mark.parametrize(
    ("others", "wrong"),
    [
        ([digest()], False),
        ([digest(8)], True),  # the only voter decides what was applied
        ([digest(records=8)], None),  # and not which of two memories changed
        ([digest(records=None)], None),
        ([digest(version=1)], None),
        ([], None),
    ],
)
def test_a_learner_believes_the_only_voter_about_the_chain_and_not_about_the_sum(
    others: list[StateDigest], wrong: bool | None
) -> None:
    assert is_wrong(digest(), {str(at): other for at, other in enumerate(others)}, 1, is_voter=False) is wrong


def test_a_learner_has_no_vote_among_three_voters() -> None:
    others = {"a": digest(8), "b": digest(8), "c": digest()}
    assert is_wrong(digest(), others, 3, is_voter=False) is True
    assert is_wrong(digest(), {"a": digest(8), "c": digest()}, 3, is_voter=False) is None


def test_a_leaders_report_is_compared_by_one_definition_and_as_far_as_both_have_it() -> None:
    for reported, expected in (
        (digest(), None),
        (digest(8), 5),
        (digest(records=8), 5),
        (digest(records=None), None),
        (digest(8, version=1), None),
    ):
        hashes = StateHashes()
        hashes.applied(5, digest())
        hashes.reported = (5, reported)
        assert hashes.mismatch() == expected


def test_a_command_above_the_level_is_not_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_LEVELS_OF_COMMANDS", {Put: 1, Delete: 2, RaiseFeatureLevel: 1})

    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            leader = await cluster.leader()
            await leader.propose(Delete(b"a"), TIMEOUT_MS)
            leader.store.feature_level = 1
            last = leader.raft.log.last_index
            with pytest.raises(FeatureUnavailableError):
                await leader.propose(Delete(b"a"), TIMEOUT_MS)
            assert leader.raft.log.last_index == last
            await leader.propose(Put(b"a", b"1"), TIMEOUT_MS)

    asyncio.run(scenario())


def _is_replaced(node: Node, wrong: Store) -> bool:
    return node.store is not wrong and node.quarantined is None


def test_memory_that_changes_under_a_follower_is_found_by_the_sweep_and_rebuilt(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            for number in range(20):
                await cluster.put(b"%d" % number, b"v")
            await cluster.converge()
            victim = cluster.others(leader)[0]
            for key in (b"7", b"8"):  # the second time in the state that took the first one's place
                await change_in_memory(victim, key)
                assert victim.store.state_hash == leader.store.state_hash

                wrong = victim.store
                victim.parts.sweeps.step(1000)

                # A quarantine may be shorter than the pause between two looks at it.
                await until("it is rebuilt", partial(_is_replaced, victim, wrong))
                rebuilt = victim.store.get(key)
                assert rebuilt is not None and rebuilt.value == b"v"
                assert victim.store.digest == leader.store.digest

    asyncio.run(scenario())


def test_a_sum_that_was_wrong_by_itself_is_put_right_without_quarantine(tmp_path: Path) -> None:
    """The members vote: the records are what the others hold, so only the sum had changed."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            await cluster.put(b"a", b"1")
            await cluster.converge()
            victim = cluster.others(leader)[0]
            assert victim.store.record_sum is not None
            victim.store.record_sum.total ^= 1

            victim.parts.sweeps.step(1000)
            task = victim.parts.integrity._task
            assert task is not None
            await task

            assert victim.quarantined is None
            # What is applied goes on: the first leader proposes a quota.
            await until("equal digests", lambda: victim.store.digest == leader.store.digest)

    asyncio.run(scenario())
