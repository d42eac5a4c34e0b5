"""A removed node: what proves it, and a data folder that is put aside, killed at every step."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import msgspec
import pytest
from node.local_cluster import LocalCluster, running
from waiting import until

from kvorum.cluster.observer import Observer
from kvorum.cluster.reconcile import MembershipSpec, Reconciler
from kvorum.cluster.removal import (
    RemovedError,
    leads_another_cluster,
    leave_if_surplus,
    watch_for_removal,
)
from kvorum.commands.recover import force_new_cluster
from kvorum.errors import StorageError, StorageLockedError
from kvorum.identity import Identity, name_of
from kvorum.node import Node
from kvorum.node.hellos import excludes
from kvorum.raft import Role
from kvorum.storage import datadir
from kvorum.storage.datadir import finish_setting_aside, set_aside
from kvorum.storage.files import sync_folder
from kvorum.storage.log import SqliteStorage
from kvorum.telemetry.counters import Counters
from kvorum.transport import Hello

OURS = Hello(
    *("n3", "3" * 16, "c" * 32, ("n1", "n2", "n3"), "token", "http://n3:9001", "http://n3:8001"),
    term=4,
    members=("n1@1", "n2@2", f"n3@{'3' * 16}"),
    configuration_index=7,
    configuration_committed=True,
)
LEADER = Hello(
    *("n1", "1", "c" * 32, ("n1", "n2", "n3"), "token", "http://n1:9001", "http://n1:8001"),
    term=5,
    is_leader=True,
    members=("n1@1", "n2@2"),
    configuration_index=9,
    configuration_committed=True,
)


def test_a_newer_committed_configuration_without_us_proves_that_we_were_removed() -> None:
    assert excludes(OURS, LEADER)
    assert excludes(OURS, msgspec.structs.replace(LEADER, members=("n1@1", "n2@2", "n3@another")))


@pytest.mark.parametrize(
    "change",
    [
        {"is_leader": False},
        {"cluster_id": "d" * 32},
        {"configuration_committed": False},
        {"configuration_index": 6},
        {"members": OURS.members},
    ],
)
def test_nothing_less_proves_it(change: dict[str, object]) -> None:
    assert not excludes(OURS, msgspec.structs.replace(LEADER, **change))


def test_the_configuration_that_removed_us_may_be_the_last_that_we_have() -> None:
    """A leader that removes itself has the entry in its own log, and hears of no other."""
    left = msgspec.structs.replace(OURS, members=LEADER.members, configuration_index=9)

    assert excludes(left, LEADER)


@pytest.mark.parametrize(
    "change",
    [{"is_leader": False}, {"cluster_id": ""}, {"cluster_id": OURS.cluster_id}],
)
def test_only_the_leader_of_another_cluster_shows_that_ours_was_replaced(change: dict[str, object]) -> None:
    leader = msgspec.structs.replace(LEADER, cluster_id="d" * 32)
    assert leads_another_cluster(OURS, leader)
    assert not leads_another_cluster(OURS, msgspec.structs.replace(leader, **change))


def test_a_cluster_of_one_is_never_told_to_empty_its_disk() -> None:
    alone = msgspec.structs.replace(OURS, members=(OURS.node_id,))
    assert not leads_another_cluster(alone, msgspec.structs.replace(LEADER, cluster_id="d" * 32))


def test_a_survivor_of_a_cluster_that_was_recovered_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            before = (await cluster.settled()).identity.cluster_id
            await cluster.stop("n1", "n2", "n3")
            after = await asyncio.to_thread(force_new_cluster, str(tmp_path / "n1"))
            await cluster.start("n1", "n2")
            survivor = cluster.nodes["n2"]
            watching = asyncio.create_task(watch_for_removal(survivor))
            try:
                said = await until(
                    "the survivor says it",
                    lambda: next((text for text in caplog.messages if "can never join cluster" in text), None),
                )
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            assert said == (
                f"this node belongs to cluster {before} and can never join cluster {after.cluster_id}, which "
                f"{after.node_id} leads. If that cluster was recovered or restored, empty {tmp_path / 'n2'} and start "
                "this node again. Otherwise correct the addresses of the peers (docs/operations/two-clusters.md)"
            )

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", ["the leader", "a follower"])
def test_who_is_removed_finds_out_whoever_it_was(tmp_path: Path, victim: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            await cluster.put(b"a", b"1")
            leader = await cluster.leader()
            removed = leader if victim == "the leader" else cluster.others(leader)[0]
            name = removed.config.name

            await leader.remove_member(name, 5000)
            with pytest.raises(RemovedError, match="is no longer a member"):
                await asyncio.wait_for(watch_for_removal(removed), 20)

            for other in cluster.others(removed):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(watch_for_removal(other), 1.5)

    asyncio.run(scenario())


def test_who_was_never_a_member_was_not_removed() -> None:
    assert not excludes(msgspec.structs.replace(OURS, members=()), LEADER)


# --- Scale-in --------------------------------------------------------------------------------------------------------


class Pods(LocalCluster):
    """Nodes ``kv-0 .. kv-N``, each with a reconciler, until it leaves."""

    def __init__(self, folder: Path, size: int, source: MembershipSpec) -> None:
        super().__init__(folder, size)
        self.names = [f"kv-{ordinal}" for ordinal in range(size)]
        self.ports = dict(zip(self.names, self.ports.values(), strict=True))
        self.desired_now: MembershipSpec | None = source
        self._reconciling: dict[str, list[asyncio.Task[None]]] = {}

    async def desired(self) -> MembershipSpec | None:
        return self.desired_now

    def reconcile(self) -> None:
        for name, node in self.nodes.items():
            observer = Observer(node)
            loop = Reconciler(observer, self, node.clock, node.tasks, interval_s=0.1)
            self._reconciling[name] = [asyncio.create_task(observer.run()), asyncio.create_task(loop.run())]

    def stop_reconciling(self, *names: str) -> None:
        for name in names or list(self._reconciling):
            for task in self._reconciling.pop(name, ()):
                task.cancel()

    async def leave(self, node: Node, grace_s: float) -> None:
        """What SIGTERM does: its reconciler ends first."""
        self.stop_reconciling(node.config.name)
        node.stopping = True
        await leave_if_surplus(node, self, monotonic() + grace_s)

    async def close(self) -> None:
        self.stop_reconciling()
        await super().close()


@contextlib.asynccontextmanager
async def pods(folder: Path, leader: str, replicas: int) -> AsyncIterator[Pods]:
    """Three nodes under ``leader``, of which so many shall stay."""
    cluster = Pods(folder, 3, MembershipSpec.stateful_set("kv", 3))
    try:
        await cluster.start(*cluster.names)
        first = await cluster.leader()
        await first.transfer_leadership(leader, 5000)
        await cluster.put(b"a", b"1")
        cluster.reconcile()
        cluster.desired_now = MembershipSpec.stateful_set("kv", replicas)
        yield cluster
    finally:
        await cluster.close()


def voters(node: Node) -> list[str]:
    return [name_of(voter) for voter in node.raft.configuration.voters()]


@pytest.mark.parametrize("leader", ["kv-0", "kv-1", "kv-2"])
def test_who_is_scaled_in_is_removed_before_it_stops_whoever_leads(tmp_path: Path, leader: str) -> None:
    """Two of three at once: if the first stopped while it is a voter, the last would be no majority for ever."""

    async def scenario() -> None:
        async with pods(tmp_path, leader, 1) as cluster:
            stays, *leaving = (cluster.nodes[name] for name in cluster.names)
            await asyncio.wait_for(asyncio.gather(*(cluster.leave(node, 60) for node in leaving)), 20)

            assert voters(stays) == ["kv-0"]
            assert stays.raft.role is Role.LEADER

    asyncio.run(scenario())


@pytest.mark.parametrize("desired", [MembershipSpec.stateful_set("kv", 3), MembershipSpec.stateful_set("kv", 0), None])
def test_who_is_not_scaled_in_does_not_wait_and_stays_a_member(tmp_path: Path, desired: MembershipSpec | None) -> None:
    """A restart, a stop of all, and a stop while nobody knows."""

    async def scenario() -> None:
        async with pods(tmp_path, "kv-2", 3) as cluster:
            cluster.desired_now = desired
            await asyncio.wait_for(cluster.leave(cluster.nodes["kv-2"], 60), 5)

            assert voters(cluster.nodes["kv-0"]) == cluster.names
            assert cluster.nodes["kv-2"].raft.role is Role.LEADER

    asyncio.run(scenario())


def test_who_is_not_removed_gives_up_when_its_time_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with pods(tmp_path, "kv-0", 3) as cluster:
            cluster.stop_reconciling()
            cluster.desired_now = MembershipSpec.stateful_set("kv", 1)
            await asyncio.wait_for(cluster.leave(cluster.nodes["kv-2"], 0.5), 10)

            assert voters(cluster.nodes["kv-2"]) == cluster.names

    asyncio.run(scenario())


# --- The data folder -------------------------------------------------------------------------------------------------


STEPS = 13
"""One more than the changes of the file system that putting the folder of the fixture aside takes."""


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with what a node leaves, and with what an earlier removal put aside."""
    folder = tmp_path / "data"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "lost+found").mkdir()
    (folder / "removed" / "snapshots").mkdir(parents=True)
    (folder / "removed" / "snapshots" / "older").write_text("of an earlier removal")
    (folder / "removed" / "kvorum.db").write_text("of an earlier removal")
    (folder / "snapshots" / "10.snapshot").write_text("state")
    for name in ("kvorum.db", "kvorum.db-wal", "mark", "lock"):
        (folder / name).write_text(name)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


AFTERWARDS = {
    "lock": "lock",
    "removed/kvorum.db": "kvorum.db",
    "removed/kvorum.db-wal": "kvorum.db-wal",
    "removed/mark": "mark",
    "removed/snapshots/10.snapshot": "state",
}


def test_what_is_put_aside_takes_the_place_of_what_was(folder: Path) -> None:
    set_aside(folder)

    assert contents(folder) == AFTERWARDS
    assert (folder / "lost+found").is_dir()


def test_nothing_happens_to_a_folder_that_nobody_puts_aside(folder: Path) -> None:
    before = contents(folder)

    finish_setting_aside(folder)
    finish_setting_aside(folder / "none")

    assert contents(folder) == before


def step_names(monkeypatch: pytest.MonkeyPatch, kill_before: int) -> list[str]:
    """Let the process be killed before its n-th change of the file system; return the changes that it began."""
    steps: list[str] = []

    def stepping(name: str, act: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            steps.append(name)
            if len(steps) > kill_before:
                raise Killed
            return act(*arguments, **options)

        return step

    for owner, name in ((Path, "rename"), (Path, "touch"), (Path, "mkdir"), (Path, "unlink"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, stepping(name, getattr(owner, name)))
    monkeypatch.setattr(datadir, "sync_folder", stepping("sync_folder", sync_folder))
    return steps


@pytest.mark.parametrize("kill_before", range(STEPS))
def test_a_kill_at_any_step_loses_nothing_and_is_finished_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kill_before: int
) -> None:
    data = {name: text for name, text in contents(folder).items() if not name.startswith("removed/")}
    with monkeypatch.context() as patch:
        steps = step_names(patch, kill_before)
        try:
            set_aside(folder)
        except Killed:
            pass
        else:
            assert len(steps) <= kill_before
    is_begun = (folder / "removing").exists()
    left = contents(folder)

    finish_setting_aside(folder)

    if is_begun or kill_before >= len(steps):
        assert contents(folder) == AFTERWARDS
    elif left.keys() >= data.keys():
        # Killed before the folder said so: nothing of the data has moved, and the node asks again.
        assert {name: left[name] for name in data} == data
    else:
        assert left == AFTERWARDS, "killed after the last step"


def test_the_crash_points_cover_every_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        steps = step_names(patch, 1000)
        set_aside(folder)

    assert len(steps) == STEPS - 1
    # What says that it is being done is durable before anything moves, and goes only once all of it is.
    assert steps.index("touch") < steps.index("sync_folder") < steps.index("rename")
    assert steps[-4:] == ["sync_folder", "sync_folder", "unlink", "sync_folder"]


def test_a_folder_that_was_put_aside_is_an_empty_one_to_the_storage(tmp_path: Path) -> None:
    def failed(error: StorageError) -> None:
        raise AssertionError(error)

    storage = SqliteStorage(tmp_path, failed, 10_000, Counters())
    storage.load()
    storage.write_identity(Identity("n1", "1" * 16, "c" * 32))
    storage.close()

    set_aside(tmp_path)

    again = SqliteStorage(tmp_path, failed, 10_000, Counters())
    assert again.load().identity is None
    again.close()


def test_a_disk_that_refuses_is_a_storage_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)

    with pytest.raises(StorageError, match="No space left on device"):
        set_aside(folder)

    assert (folder / "removing").exists(), "the next start tries again"


def test_nothing_is_put_aside_while_a_node_runs_on_the_folder(tmp_path: Path) -> None:
    (tmp_path / "kvorum.db").touch()
    (tmp_path / "removing").touch()
    with datadir.locked(tmp_path):
        for move in (set_aside, finish_setting_aside):
            with pytest.raises(StorageLockedError):
                move(tmp_path)
        assert (tmp_path / "kvorum.db").exists()
    finish_setting_aside(tmp_path)
    assert (tmp_path / "removed" / "kvorum.db").exists()
