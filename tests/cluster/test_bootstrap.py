"""How a cluster begins: only by agreement of all expected members, and whatever is killed in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from node.local_cluster import LocalCluster, Put, running
from waiting import until

from kvorum.cluster.bootstrap import BootstrapGuard, bootstrap, bootstrap_order, obstacle
from kvorum.cluster.reconcile import MembershipSpec
from kvorum.cluster.record import BootstrapRefusedError
from kvorum.config import Config
from kvorum.errors import MembershipRefusedError, PeerError, StorageError
from kvorum.identity import Identity
from kvorum.node import Node
from kvorum.raft.messages import Member
from kvorum.storage.log import SqliteStorage
from kvorum.telemetry.counters import Counters
from kvorum.transport import Hello

NAMES = ("n1", "n2", "n3")
LATER = 1.0
"""Seconds in which what must not happen gets its chance."""


def hello(name: str, **fields: object) -> Hello:
    """What an empty node says of itself."""
    plain = Hello(name, "1" * 16, "", NAMES, "token", f"http://{name}:9001", f"http://{name}:8001", empty=True)
    return msgspec.structs.replace(plain, **fields)


def everybody(**changes: Hello | None) -> dict[str, Hello | None]:
    return {name: changes.get(name, hello(name)) for name in NAMES}


def listing(url: str, incarnation: str = "1" * 16) -> Hello:
    """What n3 says in whose cluster n1 is a member at this URL."""
    members = (f"n1@{incarnation}", f"n3@{'1' * 16}")
    return hello("n3", cluster_id="c1", empty=False, members=members, member_urls=(url, "http://n3:9001"))


@pytest.mark.parametrize(
    ("hellos", "because"),
    [
        (everybody(n2=None, n3=None), "n2, n3 did not answer"),
        (everybody(n2=hello("n3")), "n3 answers at the address of n2"),
        (everybody(n3=hello("n3", cluster_id="c1", empty=False)), "n3 is already in cluster c1"),
        (everybody(n3=hello("n3", cluster_id="c1")), "n3 is already in cluster c1"),
        (everybody(n3=hello("n3", empty=False)), "n3 is already in cluster unknown"),
        (everybody(n2=hello("n2", expected=("n1", "n2"))), "n2 expects the members n1, n2, not n1, n2, n3"),
        (everybody(n2=hello("n2", expected=("n1", "n2", "n4"))), "n2 expects the members"),
        (everybody(n3=hello("n3", token="another")), "n3 has another bootstrap token"),
        (
            everybody(n2=None, n3=listing("http://10.0.0.9:9001")),
            f"n3 lists n1@{'1' * 16} as a member of cluster c1 at http://10.0.0.9:9001, and this node serves peers at "
            "http://n1:9001",
        ),
        (everybody(n3=listing("http://n1:9001")), "n3 is already in cluster c1; waiting to be added to it"),
        (everybody(n3=listing("http://10.0.0.9:9001", "2" * 16)), "n3 is already in cluster c1; waiting to be added"),
    ],
)
def test_a_cluster_does_not_begin_while(hellos: dict[str, Hello | None], because: str) -> None:
    reason = obstacle(Config(name="n1"), hello("n1"), hellos)

    assert reason is not None
    assert because in reason


def test_a_cluster_begins_when_all_agree_and_on_the_first_alone() -> None:
    reasons = {name: obstacle(Config(name=name), hello(name), everybody()) for name in NAMES}

    assert reasons == {
        "n1": None,
        "n2": "waiting for n1 to bootstrap the cluster",
        "n3": "waiting for n1 to bootstrap the cluster",
    }


def test_the_order_in_which_members_are_told_does_not_matter() -> None:
    turned = everybody(n2=hello("n2", expected=("n3", "n2", "n1")))

    assert obstacle(Config(name="n1"), hello("n1"), turned) is None


@pytest.mark.parametrize("ours", [hello("n1", cluster_id="c1"), hello("n1", empty=False)])
def test_a_node_that_was_called_meanwhile_begins_nothing(ours: Hello) -> None:
    assert obstacle(Config(name="n1"), ours, everybody()) == "this node is already in a cluster"


def test_the_first_is_the_lowest_ordinal_not_the_first_word() -> None:
    names = ["kv-10", "kv-2", "kv-0", "kv-1"]

    assert sorted(names, key=bootstrap_order) == ["kv-0", "kv-1", "kv-2", "kv-10"]
    assert min(["n2", "n10", "n1"], key=bootstrap_order) == "n1"


def test_a_node_whose_place_another_has_taken_begins_nothing() -> None:
    """Its pod was deleted by force, and still runs: another of its name, with another disk, has its address."""
    reason = obstacle(Config(name="n1"), hello("n1"), everybody(n1=hello("n1", incarnation="2" * 16)))

    assert reason == f"another n1, n1@{'2' * 16}, answers at the address of this one, n1@{'1' * 16}"


# --- A node and what it is told ---------------------------------------------------------------------------------------


class FakeNode:
    """kv-0, just started, with an empty disk; ``hellos`` is who answers, by name."""

    def __init__(self, replicas: int, hellos: dict[str, Hello]) -> None:
        self.config = Config(name="kv-0", discovery_dns="kv-headless", replicas=replicas)
        self.identity = Identity("kv-0", "1" * 16)
        self.peers = self.tasks = self
        self.hellos = hellos
        self.asked: list[str] = []
        self.first: tuple[str, ...] | None = None
        self.seconds = 1.0
        """How long one is."""
        self.joined = ""
        self.listed_elsewhere = ""
        self.is_joining = False

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s * self.seconds)

    def hello(self, url: str = "", timeout_s: float = 0) -> Any:
        return self._hello(url) if url else pod("kv-0", self.config.replicas, cluster_id=self.joined)

    async def _hello(self, url: str) -> Hello:
        self.asked.append(url)
        name = url.removeprefix("http://").partition(".")[0]
        if name not in self.hellos:
            raise PeerError(f"no such host: {url}")
        return self.hellos[name]

    def bootstrap(self, cluster_id: str, members: tuple[Member, ...], levels: Mapping[str, int]) -> None:
        if self.is_joining:
            raise MembershipRefusedError("this node is already in cluster that is calling it")
        self.identity = msgspec.structs.replace(self.identity, cluster_id=cluster_id)
        self.first = tuple(member.id for member in members)


def pod(name: str, replicas: int, **fields: object) -> Hello:
    return hello(name, expected=tuple(f"kv-{ordinal}" for ordinal in range(replicas)), **fields)


class Source:
    """Desired members that may change while somebody waits."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)

    async def desired(self) -> MembershipSpec | None:
        replicas = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return None if replicas is None else MembershipSpec.stateful_set("kv", replicas)


def begun(
    node: FakeNode, source: Source, within_s: float = LATER, guard: BootstrapGuard | None = None
) -> tuple[str, ...] | None:
    """Let the node try to begin; return the first members, or None when it did not begin in time."""

    async def scenario() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(bootstrap(cast(Node, node), source, guard), within_s)

    asyncio.run(scenario())
    return node.first


def test_a_lost_disk_of_a_cluster_that_was_scaled_out_begins_no_second_one() -> None:
    """Installed with one replica, scaled to three: what was expected at first is this node alone."""
    old = {"cluster_id": "c" * 32, "empty": False}
    node = FakeNode(1, {name: pod(name, 1, **old) for name in ("kv-1", "kv-2")})

    assert begun(node, Source(3)) is None
    assert "http://kv-2.kv-headless:9001" in node.asked


def test_the_lost_disks_of_all_first_members_begin_no_second_cluster() -> None:
    """Installed with three replicas, scaled to five, three disks lost: a majority, and never healed by itself."""
    hellos = {name: pod(name, 3) for name in ("kv-0", "kv-1", "kv-2")}
    old = {name: pod(name, 3, cluster_id="c" * 32, empty=False) for name in ("kv-3", "kv-4")}

    assert begun(FakeNode(3, hellos | old), Source(5)) is None
    assert begun(FakeNode(3, hellos), Source(5)) is None, "kv-3 and kv-4 do not answer: they may hold it"


def test_a_release_that_was_scaled_before_it_began_begins_with_the_expected_members() -> None:
    hellos = {f"kv-{ordinal}": pod(f"kv-{ordinal}", 1) for ordinal in range(3)}

    assert begun(FakeNode(1, hellos), Source(3)) == (f"kv-0@{'1' * 16}",)


def test_nothing_begins_while_it_is_not_known_who_is_desired() -> None:
    assert begun(FakeNode(1, {}), Source(None)) is None
    assert begun(FakeNode(1, {}), Source(None, None, 1), 20) == (f"kv-0@{'1' * 16}",)


def test_fewer_desired_replicas_than_expected_begin_nothing() -> None:
    hellos = {"kv-0": pod("kv-0", 3)}

    assert begun(FakeNode(3, hellos), Source(1)) is None
    assert begun(FakeNode(3, hellos), Source(0)) is None


# --- The guard ------------------------------------------------------------------------------------------------------


class Guard:
    """Refuses so many times, then permits; ``act`` is what happens to the node meanwhile."""

    def __init__(self, refusals: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.refusals = refusals
        self.act = act
        self.asked: list[tuple[str, Collection[str]]] = []

    async def permit(self, node: str, names: Collection[str]) -> str:
        self.asked.append((node, names))
        if len(self.asked) <= self.refusals:
            raise BootstrapRefusedError("this release holds another cluster")
        self.act()
        return "d" * 32


def test_a_cluster_begins_under_the_id_that_the_guard_recorded() -> None:
    node, guard = FakeNode(1, {"kv-0": pod("kv-0", 1), "kv-1": pod("kv-1", 1)}), Guard()

    assert begun(node, Source(2), guard=guard) == (f"kv-0@{'1' * 16}",)
    assert node.identity.cluster_id == "d" * 32
    assert guard.asked == [(f"kv-0@{'1' * 16}", {"kv-0", "kv-1"})]


def test_nothing_begins_while_the_guard_refuses_and_the_log_warns(caplog: pytest.LogCaptureFixture) -> None:
    node, guard = FakeNode(1, {"kv-0": pod("kv-0", 1)}), Guard(refusals=50)
    node.seconds = 0.0

    assert begun(node, Source(1), 60, guard) == (f"kv-0@{'1' * 16}",)
    assert len(guard.asked) == 51
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["not in a cluster yet: this release holds another cluster"] * 2, "now and then"


def test_the_guard_is_not_asked_while_a_member_stands_in_the_way() -> None:
    node, guard = FakeNode(3, {"kv-0": pod("kv-0", 3)}), Guard()

    assert begun(node, Source(3), guard=guard) is None
    assert guard.asked == []


def test_a_node_that_joins_a_cluster_while_the_guard_is_asked_begins_none() -> None:
    node = FakeNode(1, {"kv-0": pod("kv-0", 1)})

    def joins() -> None:
        node.joined = "e" * 32

    assert begun(node, Source(1), guard=Guard(act=joins)) is None


def test_a_node_that_is_about_to_join_a_cluster_begins_none() -> None:
    node = FakeNode(1, {"kv-0": pod("kv-0", 1)})
    node.is_joining = True

    assert begun(node, Source(1), guard=Guard()) is None


# --- Real nodes ------------------------------------------------------------------------------------------------------


def write_identity(folder: Path, identity: Identity) -> None:
    """Make the folder of a node that was killed right after its identity was durable."""

    def failed(error: StorageError) -> None:
        raise AssertionError(error)

    storage = SqliteStorage(folder, failed, 10_000, Counters())
    storage.load()
    storage.write_identity(identity)
    storage.close()


@pytest.mark.parametrize("killed", ["n1", "n2"])
def test_a_kill_between_the_cluster_id_and_the_first_entry_hinders_no_beginning(tmp_path: Path, killed: str) -> None:
    write_identity(tmp_path / killed, Identity(killed, "f" * 16, "c" * 32))

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            await cluster.put(b"a", b"1")
            await cluster.converge()
            assert len({node.identity.cluster_id for node in cluster.nodes.values()}) == 1

    asyncio.run(scenario())


def test_nobody_hears_of_a_cluster_before_its_first_entry_is_durable(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = LocalCluster(tmp_path, 3)
        held: list[tuple[object, ...]] = []
        try:
            await cluster.start("n1")
            first = cluster.nodes["n1"]
            storage = first.ports.storage
            save = storage.save
            storage.save = lambda *arguments: held.append(arguments)  # type: ignore[method-assign]
            await cluster.start("n2", "n3")
            await until("n1 wants its first entry saved", lambda: held)
            await asyncio.sleep(LATER)

            assert first.identity.cluster_id
            assert {cluster.nodes[name].identity.cluster_id for name in ("n2", "n3")} == {""}

            storage.save = save  # type: ignore[method-assign]
            storage.save(*held[0])  # type: ignore[arg-type]
            await cluster.leader()
        finally:
            await cluster.close()

    asyncio.run(scenario())


def test_members_that_were_told_different_things_never_form_a_cluster(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = LocalCluster(tmp_path, 3)
        whole = cluster.config
        try:
            await cluster.start("n1", "n2")
            cluster.config = lambda name: msgspec.structs.replace(  # type: ignore[method-assign]
                whole(name), peers=tuple(peer for peer in whole(name).peers if peer.name != "n2")
            )
            await cluster.start("n3")
            await asyncio.sleep(2 * LATER)

            assert {node.identity.cluster_id for node in cluster.nodes.values()} == {""}
        finally:
            await cluster.close()

    asyncio.run(scenario())


def test_a_lost_disk_of_the_first_member_begins_no_second_cluster(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            await cluster.put(b"a", b"1")
            await cluster.converge()
            cluster_id = cluster.nodes["n1"].identity.cluster_id
            await cluster.stop("n1")
            for path in sorted((tmp_path / "n1").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            await cluster.start("n1")
            await cluster.put(b"b", b"2")
            await asyncio.sleep(LATER)

            assert cluster.nodes["n1"].identity.cluster_id in ("", cluster_id)
            assert {cluster.nodes[name].identity.cluster_id for name in ("n2", "n3")} == {cluster_id}

    asyncio.run(scenario())


def test_stopping_in_the_middle_of_the_beginning_ends_in_one_cluster(tmp_path: Path) -> None:
    async def scenario() -> None:
        cluster = LocalCluster(tmp_path, 3)
        try:
            await cluster.start("n1", "n2", "n3")
            await until("it begins", lambda: cluster.nodes["n1"].identity.cluster_id)
            await cluster.stop("n1", "n2", "n3")
            await cluster.start("n1", "n2", "n3")
            leader = await cluster.leader()
            await leader.propose(Put(b"a", b"1"), 5000)
            await cluster.converge()

            assert len({node.identity.cluster_id for node in cluster.nodes.values()}) == 1
        finally:
            await cluster.close()

    asyncio.run(scenario())


def test_the_log_says_why_nobody_answers_and_not_once_for_each_round(caplog: pytest.LogCaptureFixture) -> None:
    """With a wrong cluster domain no name of a member exists."""
    caplog.set_level("INFO")

    class Elsewhere(FakeNode):
        async def _hello(self, url: str) -> Hello:
            self.asked.append(url)
            # A reason that is another one each time is no reason for another line.
            raise PeerError(f"{url}: there is no such name (NXDOMAIN), {len(self.asked)}")

        async def sleep(self, delay_s: float) -> None:
            if len(self.asked) > 60:
                raise asyncio.CancelledError
            await asyncio.sleep(0)

    node = Elsewhere(3, {})
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(bootstrap(node))  # type: ignore[arg-type]

    assert caplog.messages == [
        "not in a cluster yet: kv-1, kv-2 did not answer "
        "(http://kv-1.kv-headless:9001: there is no such name (NXDOMAIN), 2)"
    ]
