"""A wrong state is replaced whatever stands in the way, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from node.local_cluster import (
    LocalCluster,
    change_in_memory,
    keep_snapshots_of_changed_memory,
    running,
    running_with_learner,
)
from waiting import until

from kvorum.errors import (
    CommitsLostError,
    DiskSetBackError,
    FatalError,
    KvorumError,
    NotServingError,
    PeerError,
    StorageCorruptError,
    StorageError,
)
from kvorum.kv.snapshot import Restorer
from kvorum.kv.state_hash import Mismatch, StateDigest
from kvorum.kv.store import Store
from kvorum.node import Node
from kvorum.node import integrity as integrity_module
from kvorum.node.snapshots import load_copy, load_store
from kvorum.node.state import SUM_MODULUS, SUSPICIONS_MAX, State
from kvorum.raft import Role
from kvorum.raft.messages import TimeoutNow
from kvorum.storage.interface import SnapshotCopy
from kvorum.storage.snapshots import Snapshots
from kvorum.transport.interface import SnapshotChunk


def spoil(node: Node) -> None:
    """Let the state be wrong, and the node find out."""
    node.store.state_hash ^= 1
    node.parts.state.hashes.applied(node.store.applied_index, node.store.digest)
    node.parts.integrity.investigate(node.store.applied_index)


def test_a_snapshot_that_was_being_taken_of_the_wrong_state_is_not_the_newest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = cluster.others(await cluster.leader())[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()
            snapshots = victim.ports.storage.snapshots
            go_on = threading.Event()
            create = snapshots.create

            def slow(*arguments: Any) -> Any:
                go_on.wait(20)
                return create(*arguments)

            snapshots.create = slow  # type: ignore[assignment, method-assign]
            victim.store.state_hash ^= 1
            victim.parts.snapshots.begin()
            victim.store.state_hash ^= 1
            asked: list[str] = []
            rebuild = victim.parts.integrity._rebuild

            async def recorded(source: str) -> None:
                asked.append(source)
                await rebuild(source)

            victim.parts.integrity._rebuild = recorded  # type: ignore[method-assign]
            spoil(victim)
            await until("quarantine", lambda: victim.quarantined)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not asked, "the snapshot of the wrong state would be the newest after the rebuild"
            go_on.set()
            await until("it is rebuilt", lambda: victim.quarantined is None)
            assert asked

            right = (await cluster.leader()).store
            newest = snapshots.kept()[0].snapshot
            kept = await asyncio.to_thread(load_store, snapshots, newest)
            assert (kept.applied_index, kept.state_hash) == (right.applied_index, right.state_hash)

    asyncio.run(scenario())


def test_every_member_that_is_right_is_asked_for_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity_module, "RETRY_S", 0.01)

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = cluster.others(await cluster.leader())[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()
            asked: set[str] = set()
            rebuild = victim.parts.integrity._rebuild

            async def refused(source: str) -> None:
                asked.add(source)
                if len(asked) > 1:
                    await rebuild(source)

            victim.parts.integrity._rebuild = refused  # type: ignore[method-assign]
            spoil(victim)
            await until("both others are asked", lambda: len(asked) > 1)
            await until("it is over", lambda: victim.quarantined is None)

    asyncio.run(scenario())


def test_a_bug_in_the_investigation_ends_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = cluster.others(await cluster.leader())[0]

            async def broken(source: str) -> None:
                raise ZeroDivisionError

            victim.parts.integrity._rebuild = broken  # type: ignore[method-assign]
            running_node = asyncio.create_task(victim.run())
            spoil(victim)
            await until("the node ends", running_node.done)
            with pytest.raises(FatalError, match="ZeroDivisionError"):
                await running_node

    asyncio.run(scenario())


def test_snapshots_of_a_wrong_state_are_neither_served_nor_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = cluster.others(await cluster.leader())[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()
            files, snapshots = victim.ports.storage.snapshots, victim.parts.snapshots
            await snapshots.begin()
            await cluster.put(b"a", b"2")
            await cluster.converge()
            victim.store.state_hash ^= 1
            await snapshots.begin()
            before = files.kept()
            rebuild, go_on = victim.parts.integrity._rebuild, asyncio.Event()

            async def held(source: str) -> None:
                await go_on.wait()
                await rebuild(source)

            victim.parts.integrity._rebuild = held  # type: ignore[method-assign]
            victim.store.state_hash ^= 1
            spoil(victim)
            await until("quarantine", lambda: victim.quarantined)
            for index in (0, before[0].snapshot.last_index):
                with pytest.raises(StorageError, match="quarantine"):
                    await snapshots.chunk(index, 0, 100, 0)
            go_on.set()
            await until("it is rebuilt", lambda: victim.quarantined is None)

            (kept,) = files.kept()
            assert kept not in before, "all of those were made before"
            assert snapshots.latest() == kept
            index = kept.snapshot.last_index
            store = await asyncio.to_thread(load_store, files, kept.snapshot)
            right = (await cluster.leader()).parts.state.hashes.at(index)
            assert (store.applied_index, store.digest) == (index, right), "what the leader had at this entry"

    asyncio.run(scenario())


def test_a_leader_whose_state_is_wrong_goes_and_does_not_come_back_before_it_is_right(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = await cluster.leader()
            await cluster.put(b"a", b"1")
            await cluster.converge()

            async def never(source: str) -> None:
                pass

            victim.parts.integrity._rebuild = never  # type: ignore[method-assign]
            spoil(victim)
            await until("quarantine", lambda: victim.quarantined)
            await until("another leads", lambda: victim.raft.leader not in (None, victim.raft.id))
            before = victim.raft.current_term
            with contextlib.suppress(KvorumError):
                victim.raft.step(TimeoutNow(before, victim.raft.leader or "", victim.raft.id))
            assert victim.raft.role is Role.FOLLOWER
            assert victim.raft.current_term == before

    asyncio.run(scenario())


def test_a_quarantine_ends_when_consensus_installs_another_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity_module, "RETRY_S", 0.01)

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            victim = cluster.others(leader)[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()

            async def never(source: str) -> None:
                pass

            victim.parts.integrity._rebuild = never  # type: ignore[method-assign]
            spoil(victim)
            await until("quarantine", lambda: victim.quarantined)
            await leader.parts.snapshots.begin()
            newest = leader.ports.storage.snapshots.kept()[0].snapshot
            store = await asyncio.to_thread(load_store, leader.ports.storage.snapshots, newest)
            victim.parts.state.replace(store)
            await until("it is over", lambda: victim.quarantined is None)
            assert not victim.parts.state.is_wrong

    asyncio.run(scenario())


def test_a_verdict_on_a_state_that_was_replaced_meanwhile_counts_for_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            victim = cluster.others(leader)[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()
            await leader.parts.snapshots.begin()
            files = leader.ports.storage.snapshots
            store = await asyncio.to_thread(load_store, files, files.kept()[0].snapshot)
            ask = victim.peers.state_hash

            async def late(node: str, index: int) -> StateDigest | None:
                answer = await ask(node, index)
                victim.parts.state.replace(store)
                return answer

            victim.peers.state_hash = late  # type: ignore[method-assign]
            spoil(victim)
            task = victim.parts.integrity._task
            assert task is not None
            await asyncio.wait([task])
            assert victim.quarantined is None
            assert victim.store is store
            assert not victim.parts.state.is_wrong

    asyncio.run(scenario())


PIECE_BYTES = 1000


@contextlib.asynccontextmanager
async def with_a_wrong_member(folder: Path) -> AsyncIterator[tuple[LocalCluster, Node]]:
    """A cluster with some data, and the member whose state is about to be wrong."""
    async with running(folder) as cluster:
        victim = cluster.others(await cluster.settled())[0]
        for key in (b"a", b"b", b"c"):
            await cluster.put(key, bytes(PIECE_BYTES))
        await cluster.converge()
        yield cluster, victim


def copies(node: Node) -> list[Path]:
    """The copies of other members' snapshots in the node's folder."""
    return list(cast(Snapshots, node.ports.storage.snapshots).folder.glob("*copy*"))


def test_a_wrong_state_is_given_up_before_the_right_one_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of them and the whole file besides were more than the memory of a node that held a third of it."""

    async def scenario() -> None:
        async with with_a_wrong_member(tmp_path) as (cluster, victim):
            wrong, loop = victim.store, asyncio.get_running_loop()
            loading, go_on = asyncio.Event(), threading.Event()
            held: list[tuple[int, int]] = []
            finish = Restorer.finish

            def noted(restorer: Restorer) -> Store:
                store = finish(restorer)
                if len(store):
                    held.append((len(wrong), sum(path.stat().st_size for path in copies(victim))))
                    loop.call_soon_threadsafe(loading.set)
                    go_on.wait(20)
                return store

            monkeypatch.setattr(Restorer, "finish", noted)
            spoil(victim)
            await until("it is loaded", loading.is_set)
            [(records, size_bytes)] = held
            assert records == 0
            assert size_bytes > 3 * PIECE_BYTES, "it is on the disk"
            # What is committed meanwhile is applied when the state is there.
            await cluster.put(b"d", b"2")
            await until("it is committed there", lambda: victim.raft.log.commit_index > wrong.applied_index)
            assert victim.store.get(b"a") is None
            with pytest.raises(NotServingError, match="rebuilt"):
                victim.check_serves()
            go_on.set()
            await until("it is rebuilt", lambda: victim.quarantined is None)
            await cluster.converge()
            assert not copies(victim)
            assert victim.store.get(b"d") is not None

    asyncio.run(scenario())


def test_a_copy_that_is_cut_off_is_removed_and_another_member_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity_module, "RETRY_S", 0.01)

    async def scenario() -> None:
        async with with_a_wrong_member(tmp_path) as (cluster, victim):
            wrong, ask = victim.store, victim.peers.snapshot_chunk
            cut: list[str] = []
            seen: list[tuple[int, int]] = []

            async def chunk(node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
                if cut and node == cut[0]:
                    assert victim.store is wrong
                    seen.append((len(wrong), len(copies(victim))))
                    raise PeerError("the connection broke")
                answer = await ask(node, last_index, offset_bytes, at_least)
                if cut:
                    assert not copies(victim)
                    return answer
                cut.append(node)
                return msgspec.structs.replace(answer, data=answer.data[:PIECE_BYTES])

            victim.peers.snapshot_chunk = chunk  # type: ignore[method-assign]
            spoil(victim)
            await until("it is rebuilt", lambda: victim.quarantined is None and victim.store is not wrong)
            assert seen[0] == (3, 1), "the wrong state is still there, and one piece of a copy"
            assert not copies(victim)
            await cluster.converge()

    asyncio.run(scenario())


def test_a_copy_that_cannot_be_read_any_more_is_replaced_by_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is gone by then. Nothing is served, and the members' snapshots may be newer than what was applied."""
    monkeypatch.setattr(integrity_module, "RETRY_S", 0.01)

    async def scenario() -> None:
        async with with_a_wrong_member(tmp_path) as (cluster, victim):
            is_damaged = True

            def load(copy: SnapshotCopy, *, keeps_records: bool = True) -> Store:
                if keeps_records and is_damaged:
                    raise StorageCorruptError("a file is damaged")
                return load_copy(copy, keeps_records=keeps_records)

            monkeypatch.setattr(integrity_module, "load_copy", load)
            spoil(victim)
            await until("the state is gone", lambda: victim.parts.state.is_given_up)
            await cluster.put(b"d", b"2")
            for other in cluster.others(victim):
                await until("it is applied", lambda other=other: other.store.get(b"d"))  # type: ignore[misc]
                await other.parts.snapshots.begin()
            # Whatever is found meanwhile: a node without a state has to get one.
            victim.parts.participation.contradicted(CommitsLostError("another cluster"))
            await asyncio.sleep(0)
            assert victim.quarantined
            with pytest.raises(NotServingError):
                victim.check_serves()
            is_damaged = False
            await until("it is over", lambda: victim.quarantined is None)
            assert not victim.parts.state.is_given_up
            # The copy may be of before it, and the log has the rest.
            await until("it has everything", lambda: victim.store.get(b"d"))
            assert not copies(victim)

    asyncio.run(scenario())


def test_a_state_is_not_given_up_for_a_copy_that_the_disk_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(integrity_module, "RETRY_S", 0.01)

    async def scenario() -> None:
        async with with_a_wrong_member(tmp_path) as (cluster, victim):
            wrong = victim.store
            files = cast(Snapshots, victim.ports.storage.snapshots)
            take_room = files.take_room

            def full(size_bytes: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            files.take_room = full  # type: ignore[method-assign]
            spoil(victim)
            await until("it says so", lambda: "No space left on device" in caplog.text)
            assert victim.store is wrong
            assert victim.quarantined
            files.take_room = take_room  # type: ignore[method-assign]
            await until("it is rebuilt", lambda: victim.quarantined is None)
            assert not victim.ports.supervisor.has_failed
            await cluster.converge()

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["the disk was set back", "the copy contradicts the log"])
def test_a_state_is_not_given_up_for_that_of_members_with_another_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async def scenario() -> None:
        async with with_a_wrong_member(tmp_path) as (_, victim):
            wrong = victim.store

            def load(copy: SnapshotCopy, *, keeps_records: bool = True) -> Store:
                store = load_copy(copy, keeps_records=keeps_records)
                if what == "the copy contradicts the log":
                    store.applied_term += 1
                else:
                    loop.call_soon_threadsafe(victim.parts.participation.contradicted, DiskSetBackError(what))
                return store

            monkeypatch.setattr(integrity_module, "load_copy", load)
            loop = asyncio.get_running_loop()
            spoil(victim)
            await until("it is distrusted", lambda: victim.parts.participation.is_distrusted)
            await until("the quarantine is over", lambda: victim.quarantined is None)
            assert victim.store is wrong
            assert len(wrong) == 3
            assert not copies(victim)

    asyncio.run(scenario())


def test_what_no_majority_decided_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity_module, "RETRY_S", 0.01)

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = cluster.others(await cluster.leader())[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()
            ask, asked = victim.peers.state_hash, 0

            async def silent_at_first(node: str, index: int) -> StateDigest | None:
                nonlocal asked
                asked += 1
                return None if asked <= 6 else await ask(node, index)

            victim.peers.state_hash = silent_at_first  # type: ignore[method-assign]
            spoil(victim)
            # No heartbeat leads to another investigation.
            victim.parts.integrity.investigate = lambda index: None  # type: ignore[method-assign]
            await until("quarantine", lambda: victim.quarantined or asked > 6)
            await until("it is rebuilt", lambda: victim.quarantined is None and not victim.parts.state.is_wrong)
            assert asked > 6
            await cluster.converge()

    asyncio.run(scenario())


def test_a_leader_reports_what_a_sweep_or_another_state_changed_without_an_entry(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"a", b"1")
            await cluster.converge()
            victim = cluster.others(leader)[0]
            # Nothing is written from now on.
            spoiled = leader.store
            spoiled.state_hash ^= 1
            leader.parts.state.hashes.applied(spoiled.applied_index, spoiled.digest)
            await until("the others notice", lambda: leader.quarantined or leader.store is not spoiled)
            assert victim.quarantined is None

    asyncio.run(scenario())


def damaged(path: Path) -> bytes:
    """Flip a bit of a file, and return what it holds now."""
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    return bytes(data)


def test_a_damaged_snapshot_is_noticed_by_its_owner_and_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"a", b"1")
            snapshots, files = leader.parts.snapshots, leader.ports.storage.snapshots
            await snapshots.begin()
            index = files.kept()[0].snapshot.last_index
            path = Path(cast(Snapshots, files).path(index))
            data = damaged(path)

            with pytest.raises(StorageError, match="hash does not match"):
                await snapshots.chunk(index, 0, 1 << 20, 0)

            another = await until("another takes its place", lambda: next(iter(files.kept()), None))
            chunk = await snapshots.chunk(another.snapshot.last_index, 0, 1 << 20, 0)
            assert chunk.data != data
            assert path.with_suffix(".damaged").exists()

    asyncio.run(scenario())


def test_no_snapshot_is_taken_of_a_suspected_state(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            node = await cluster.leader()
            await cluster.put(b"a", b"1")
            node.parts.state.suspect(1)
            with pytest.raises(StorageError, match="do not match their sum"):
                await node.parts.snapshots.begin()
            node.parts.state.suspected_shifts = ()
            await node.parts.snapshots.begin()

    asyncio.run(scenario())


def test_a_snapshot_of_changed_memory_is_not_offered_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member refused it, for ever, though the record that had changed was overwritten since."""
    keep_snapshots_of_changed_memory(monkeypatch)

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            await cluster.put(b"a", b"1")
            await cluster.converge()
            victim = cluster.others(leader)[0]
            await change_in_memory(victim, b"a")
            await victim.parts.snapshots.begin()
            [wrong] = victim.ports.storage.snapshots.kept()
            await cluster.put(b"a", b"2")
            await cluster.converge()
            name = victim.raft.id.partition("@")[0]
            await cluster.stop(name)
            await cluster.start(name)
            again = cluster.nodes[name]
            await cluster.converge()

            snapshots, files = again.parts.snapshots, again.ports.storage.snapshots
            newest = await until("another is there", snapshots.latest)
            assert newest.sha256 != wrong.sha256
            await until("the wrong one is gone", lambda: wrong.sha256 not in {info.sha256 for info in files.kept()})
            await until("the members have decided", lambda: not again.parts.state.may_be_wrong)
            assert again.store.digest == (await cluster.leader()).store.digest

    asyncio.run(scenario())


def test_no_snapshot_is_taken_of_loaded_records_before_the_members_have_decided() -> None:
    store = Store()
    store.mismatch = Mismatch(7, expected=5, found=2)

    state = State(store)

    assert state.may_be_wrong
    assert state.expected_sums(StateDigest(2, 1, 2)) == (5,)


def test_a_second_finding_does_not_make_the_first_one_forgotten() -> None:
    """Memory may hold both changes, or one: the record of the other may have been overwritten since."""
    state = State(Store())
    state.suspect(3)
    assert state.may_be_wrong
    state.suspect(SUM_MODULUS - 1)

    assert set(state.expected_sums(StateDigest(2, 1, 20))) == {23, 19, 22}
    assert state.expected_sums(StateDigest(2, 1, None)) == ()


def test_a_change_that_is_taken_back_accuses_nobody() -> None:
    state = State(Store())
    state.suspect(3)
    state.suspect(SUM_MODULUS - 3)

    assert 20 not in state.expected_sums(StateDigest(2, 1, 20)), "a member with our own sum is no witness against us"


def test_what_is_suspected_is_bounded_and_the_last_finding_is_part_of_it() -> None:
    state = State(Store())
    for shift in range(12):
        state.suspect(1 << shift)

    sums = state.expected_sums(StateDigest(2, 1, 0))
    assert 1 << 11 in sums
    assert len(sums) <= SUSPICIONS_MAX


def test_a_snapshot_of_changed_memory_is_not_offered_once_a_sweep_has_found_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member refused it, for ever: the leader whose record was overwritten since had no reason to take another."""
    keep_snapshots_of_changed_memory(monkeypatch)

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            victim = await cluster.settled()
            await cluster.put(b"a", b"1")
            await cluster.converge()
            # The others see the wrong sum in its heartbeats, too, and would have it rebuilt.
            for other in cluster.others(victim):
                other.parts.integrity.investigate = lambda index: None  # type: ignore[method-assign]
            await change_in_memory(victim, b"a")
            files, snapshots = victim.ports.storage.snapshots, victim.parts.snapshots
            await snapshots.begin()
            [wrong] = files.kept()
            await cluster.put(b"a", b"2")
            await cluster.converge()
            go_on = threading.Event()
            create = files.create

            def slow(*arguments: Any) -> Any:
                go_on.wait(20)
                return create(*arguments)

            files.create = slow  # type: ignore[assignment, method-assign]
            taking = snapshots.begin()
            victim.parts.sweeps.step(1000)
            go_on.set()
            await taking
            assert snapshots.latest() is None, "neither the one before nor the one that was being taken"
            await until("the members have decided", lambda: not victim.parts.state.may_be_wrong)
            assert victim.quarantined is None
            with pytest.raises(StorageError, match="another is being taken"):
                await snapshots.chunk(wrong.snapshot.last_index, 0, 100, None)
            await until("another is there", snapshots.latest)
            await until("the wrong one is gone", lambda: wrong.sha256 not in {info.sha256 for info in files.kept()})

    asyncio.run(scenario())


def value_of(node: Node, key: bytes) -> bytes | None:
    record = node.store.get(key)
    return record.value if record else None


async def ended(node: Node) -> FatalError:
    """Sweep the state, and return what ended the node."""
    node.parts.sweeps.step(1000)
    for _ in range(3):
        await asyncio.sleep(0)
    assert node.quarantined, "it serves nothing from the moment at which it is found"
    return await asyncio.wait_for(node.ports.supervisor.wait(), 30)


@pytest.mark.parametrize("snapshots", [0, 1, 2])
def test_the_only_voter_reads_its_state_from_the_disk_again_when_memory_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshots: int
) -> None:
    """It asked the majority of the voters, which it was, and took what memory held for right."""
    keep_snapshots_of_changed_memory(monkeypatch)

    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            node = await cluster.settled()
            # It is swept when this test says so: a sweep of its own would end it between two writes.
            await node.parts.sweeps.close()
            await cluster.put(b"a", b"1")
            if snapshots:
                await node.parts.snapshots.begin()
            await cluster.put(b"a", b"2")
            await cluster.put(b"b", b"3")
            await change_in_memory(node, b"a")
            if snapshots > 1:
                # It holds what memory held, and the sum of what was applied.
                await node.parts.snapshots.begin()
            await cluster.put(b"c", b"4")
            error = await ended(node)
            assert "only voter" in str(error)
            with pytest.raises(NotServingError):
                node.check_serves()

            await cluster.stop("n1")
            await cluster.start("n1")
            again = await cluster.leader()
            await again.read_barrier(5000)
            again.check_serves()
            assert [value_of(again, key) for key in (b"a", b"b", b"c")] == [b"2", b"3", b"4"]
            again.parts.sweeps.step(1000)
            await asyncio.sleep(0)
            assert not again.quarantined

    asyncio.run(scenario())


def test_the_only_voter_serves_nothing_while_no_whole_state_is_on_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it end, since it would find the same after each start."""
    keep_snapshots_of_changed_memory(monkeypatch)

    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            node = await cluster.settled()
            await cluster.put(b"a", b"1")
            await change_in_memory(node, b"a")
            await node.parts.snapshots.begin()
            [kept] = node.ports.storage.snapshots.kept()
            node.parts.sweeps.step(1000)
            await until("it says what to do", lambda: "restore a backup" in caplog.text)
            caplog.clear()
            await cluster.stop("n1")
            await cluster.start("n1")
            again = cluster.nodes["n1"]
            await until("it says so again", lambda: "restore a backup" in caplog.text)
            with pytest.raises(NotServingError, match="only voter"):
                again.check_serves()
            assert not again.ports.supervisor.has_failed
            assert again.ports.storage.snapshots.kept() == (kept,), "nothing is deleted"

    asyncio.run(scenario())


async def fail_to_snapshot(node: Node) -> None:
    """Have two snapshots taken of changed memory; none is kept."""
    snapshots, files = node.parts.snapshots, node.ports.storage.snapshots
    before = files.kept()
    for _ in range(2):
        await snapshots.begin()
    assert files.kept() == before
    assert node.parts.state.is_in_doubt


def test_the_only_voter_keeps_no_snapshot_of_changed_memory(tmp_path: Path) -> None:
    """Two of them within one pass of the sweep took the place of all that was right, and a backup was needed."""

    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            node = await cluster.settled()
            await cluster.put(b"a", b"1")
            await node.parts.snapshots.begin()
            await cluster.put(b"b", b"2")
            await change_in_memory(node, b"a")
            await fail_to_snapshot(node)
            assert "only voter" in str(await ended(node))

            await cluster.stop("n1")
            await cluster.start("n1")
            again = await cluster.leader()
            await again.read_barrier(5000)
            assert [value_of(again, key) for key in (b"a", b"b")] == [b"1", b"2"]
            await again.parts.snapshots.begin()
            assert again.ports.storage.snapshots.kept()[0].snapshot.last_index == again.store.applied_index

    asyncio.run(scenario())


def test_a_member_keeps_and_sends_no_snapshot_of_changed_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.settled()
            victim = cluster.others(leader)[0]
            await cluster.put(b"a", b"1")
            await cluster.converge()
            await change_in_memory(victim, b"a")
            await fail_to_snapshot(victim)
            with pytest.raises(StorageError, match="there is no snapshot"):
                await victim.parts.snapshots.chunk(0, 0, 100, 0)
            victim.parts.sweeps.step(1000)
            await until("it is rebuilt", lambda: value_of(victim, b"a") == b"1")
            await until("the quarantine is over", lambda: victim.quarantined is None)
            assert victim.parts.snapshots.latest() is not None

    asyncio.run(scenario())


def test_a_learner_whose_memory_has_changed_takes_its_state_from_the_only_voter(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_with_learner(tmp_path) as (cluster, voter, learner):
            await cluster.put(b"a", b"1")
            await cluster.converge()
            right = voter.store
            await change_in_memory(learner, b"a")
            # The sum shows it once the record is replaced. It does not show in whose memory it was.
            await cluster.put(b"a", b"2")
            await until("the learner is to look at its memory", lambda: learner.parts.state.is_in_doubt)
            assert learner.quarantined is None
            learner.parts.sweeps.step(1000)
            await until("it is rebuilt", lambda: learner.store.digest == right.digest)
            await until("the quarantine is over", lambda: learner.quarantined is None)
            voter.parts.sweeps.step(1000)
            assert voter.store is right
            assert not voter.parts.state.may_be_wrong

    asyncio.run(scenario())


def test_a_learner_that_applied_something_else_than_the_only_voter_is_rebuilt(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_with_learner(tmp_path) as (cluster, voter, learner):
            await cluster.put(b"a", b"1")
            await cluster.converge()
            right = voter.store
            spoil(learner)
            await until("it is rebuilt", lambda: learner.store.digest == right.digest)
            await until("the quarantine is over", lambda: learner.quarantined is None)
            assert voter.store is right

    asyncio.run(scenario())


@pytest.mark.parametrize("who", ["the sweep of the voter", "the learner"])
def test_the_only_voter_reads_its_disk_and_not_the_state_of_a_learner(tmp_path: Path, who: str) -> None:
    async def scenario() -> None:
        async with running_with_learner(tmp_path) as (cluster, voter, learner):
            await cluster.put(b"a", b"1")
            await cluster.put(b"b", b"1")
            await cluster.converge()
            right = learner.store
            await change_in_memory(voter, b"a")
            if who == "the learner":
                # The sum of the voter shows it once the record is replaced, and the learner compares it.
                await cluster.put(b"a", b"2")
                await until("the voter is to look at its memory", lambda: voter.parts.state.is_in_doubt)
                assert learner.quarantined is None
            assert "only voter" in str(await ended(voter))

            await cluster.stop("n1")
            await cluster.start("n1")
            again = await cluster.leader()
            await again.read_barrier(5000)
            assert value_of(again, b"a") == (b"2" if who == "the learner" else b"1")
            await cluster.put(b"b", b"2")
            await cluster.converge()
            assert learner.store is right
            assert (value_of(learner, b"b"), learner.quarantined, again.quarantined) == (b"2", None, None)

    asyncio.run(scenario())
