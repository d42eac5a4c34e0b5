"""Earlier versions and this one in one cluster of real processes under load: upgraded, rolled back, raised."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest
from acceptance.processes import Answer, Cluster
from acceptance.writers import clients, end, go_on
from versions.old import COMMITS, environment
from waiting import eventually

import kvorum
from kvorum.kv.features import HANDOVER_LEVEL, HIGHEST_LEVEL

OLD = "0.1.0"
NEW = kvorum.__version__
FLAGS = ("--snapshot-entries", "40", "--log-retain-entries", "20", "--shutdown-grace-s", "5")
"""Small, so that an upgraded node begins with a snapshot of the old version, and a late one is sent one."""
KEYS = 30


class Load:
    """Writes until told to stop, and remembers what was acknowledged."""

    def __init__(self, cluster: Cluster) -> None:
        self.acknowledged: dict[str, int] = {}
        self.count = 0
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        names = cycle(self._cluster.names)
        target = next(names)
        while not self._stop.is_set():
            number += 1
            key = f"key-{number % KEYS}"
            answer = self._cluster.try_request(target, "PUT", f"/v1/kv/{key}", b"%d" % number)
            if answer is not None and answer.status == 200:
                self.acknowledged[key] = number
                self.count += 1
            else:
                target = next(names)
                self._stop.wait(0.01)

    def goes_on(self, writes: int = 20) -> None:
        """Wait until this many more writes are acknowledged."""
        enough = self.count + writes
        eventually("writes are acknowledged", lambda: self.count >= enough)


@contextmanager
def cluster_of(version: str, folder: Path, *flags: str) -> Iterator[Cluster]:
    cluster = Cluster(folder, flags=(*FLAGS, *flags))
    try:
        for name in cluster.names:
            start(cluster, name, version)
        cluster.leader()
        yield cluster
    finally:
        cluster.__exit__()


def start(cluster: Cluster, name: str, version: str, *flags: str) -> None:
    cluster.start(name, *flags, environment=environment(version) if version in COMMITS else None)


def replace(cluster: Cluster, name: str, version: str) -> None:
    """Stop a node as a rollout does, and start another version on its data."""
    assert cluster.stop(name) == 0, cluster.log_file(name).read_text()
    start(cluster, name, version)
    wait_until_ready(cluster, name)


def wait_until_ready(cluster: Cluster, name: str) -> None:
    def is_ready() -> bool:
        answer = cluster.try_request(name, "GET", "/readyz")
        return answer is not None and answer.status == 200

    eventually(f"{name} is ready", is_ready)


def wait_for_log(cluster: Cluster, name: str, text: str) -> None:
    eventually(f"{name} says: {text}", lambda: text in cluster.log_file(name).read_text())


def versions(cluster: Cluster) -> dict[str, str]:
    return {name: status["version"] for name in cluster.names if (status := cluster.status(name))}


def check(cluster: Cluster, load: Load) -> None:
    """Nothing that was acknowledged is lost, every node has the same state, and none complained about another."""
    cluster.converge()
    for key, number in load.acknowledged.items():
        answer = cluster.read(cluster.leader(), key)
        assert answer.status == 200
        assert int(answer.body) >= number
    for name in cluster.names:
        status = cluster.status(name)
        assert status is not None and status.get("quarantined") is None
        log = cluster.log_file(name).read_text()
        for complaint in ("refused a peer", "closed the stream", "quarantine", "Traceback", "is damaged"):
            assert complaint not in log, f"{name}: {log}"


def followers_first(cluster: Cluster) -> list[str]:
    leader = cluster.leader()
    return [*cluster.others(leader), leader]


def leader_first(cluster: Cluster) -> list[str]:
    leader = cluster.leader()
    return [leader, *cluster.others(leader)]


@pytest.mark.parametrize("order", [followers_first, leader_first])
def test_a_rolling_upgrade_under_load_loses_nothing(order: Callable[[Cluster], list[str]], tmp_path: Path) -> None:
    with cluster_of(OLD, tmp_path) as cluster, Load(cluster) as load:
        load.goes_on()
        for name in order(cluster):
            replace(cluster, name, NEW)
            load.goes_on()
        assert versions(cluster) == dict.fromkeys(cluster.names, NEW)
        load.__exit__()
        check(cluster, load)


def test_a_rollback_before_the_level_is_raised_loses_nothing(tmp_path: Path) -> None:
    with cluster_of(OLD, tmp_path) as cluster, Load(cluster) as load:
        first, second, third = cluster.names
        load.goes_on()
        for name in (first, second):
            replace(cluster, name, NEW)
            load.goes_on()
        assert versions(cluster) == {first: NEW, second: NEW, third: OLD}
        for name in (second, first):
            replace(cluster, name, OLD)
            load.goes_on()
        assert versions(cluster) == dict.fromkeys(cluster.names, OLD)
        load.__exit__()
        check(cluster, load)


@pytest.mark.parametrize(
    ("version_before", "level", "unavailable"),
    [
        ("0.2.0", 2, ("DELETE", "/v1/sessions/nobody")),
        ("0.3.0", 3, ("GET", "/v1/kv/key-1?revision=1")),
    ],
)
def test_a_cluster_at_the_level_of_a_version_before_is_upgraded_rolled_back_and_raised(
    version_before: str, level: int, unavailable: tuple[str, str], tmp_path: Path
) -> None:
    """Nothing that the version before does not know is written below its level, snapshots included."""
    with cluster_of(version_before, tmp_path) as cluster, Load(cluster) as load:
        eventually("a new cluster begins at its highest level", lambda: levels(cluster, *cluster.names) == {level})
        for version in (NEW, version_before, NEW):
            load.goes_on(100)  # a snapshot is taken
            for name in cluster.names:
                replace(cluster, name, version)
            assert versions(cluster) == dict.fromkeys(cluster.names, version)
            assert levels(cluster, *cluster.names) == {level}
            if version == NEW:
                refused = cluster.request(cluster.leader(), *unavailable)
                assert (refused.status, refused.document["code"]) == (409, "feature_unavailable")
                assert transact(cluster).document["code"] == "feature_unavailable"
        raised = eventually("the level is raised", lambda: (answer := finalize(cluster)).status == 200 and answer)
        assert raised.document == {"feature_level": HIGHEST_LEVEL}
        eventually("all have applied it", lambda: levels(cluster, *cluster.names) == {HIGHEST_LEVEL})
        assert transact(cluster).status == 200
        load.goes_on(100)
        load.__exit__()
        check(cluster, load)


def test_the_level_is_raised_once_all_are_upgraded_and_the_old_version_is_refused_then(tmp_path: Path) -> None:
    with cluster_of(OLD, tmp_path) as cluster, Load(cluster) as load:
        load.goes_on()
        *others, last = cluster.names
        for name in others:
            replace(cluster, name, NEW)
        load.goes_on()
        for leader in (others[0], last):
            # Whether the new version leads or the old one, which does not know the request.
            move_leadership(cluster, leader)
            blocked = finalize(cluster, others[0])
            assert (blocked.status, blocked.document["code"]) == (409, "feature_level_blocked")
            assert f"{last}@" in blocked.document["detail"] and "runs 0.1.0" in blocked.document["detail"]
        assert levels(cluster, *others) == {1}

        replace(cluster, last, NEW)
        load.goes_on()
        raised = eventually("the level is raised", lambda: (answer := finalize(cluster)).status == 200 and answer)
        assert raised.document == {"feature_level": HIGHEST_LEVEL}
        eventually("all have applied it", lambda: levels(cluster, *cluster.names) == {HIGHEST_LEVEL})
        load.goes_on(100)  # a snapshot of the new format is taken
        for name in cluster.names:
            replace(cluster, name, NEW)
        load.goes_on()
        load.__exit__()
        check(cluster, load)

        # The old version neither serves nor changes anything on the new data; the new one goes on where it was.
        cluster.kill(last)
        start(cluster, last, OLD)
        assert cluster.processes.pop(last).wait(30) != 0
        start(cluster, last, NEW)
        wait_until_ready(cluster, last)
        cluster.converge()


def test_the_raise_to_the_level_that_hands_writes_over_under_load_loses_and_doubles_none(tmp_path: Path) -> None:
    """Below the level a request is forwarded to the leader's client port, and at it over the streams of the nodes."""
    with cluster_of("0.5.0", tmp_path) as cluster:
        for name in cluster.names:
            replace(cluster, name, NEW)
        with clients(cluster) as each:
            go_on(each)
            assert levels(cluster, *cluster.names) == {HANDOVER_LEVEL - 1}
            raised = eventually("the level is raised", lambda: (answer := finalize(cluster)).status == 200 and answer)
            assert raised.document["feature_level"] >= HANDOVER_LEVEL
            go_on(each)
            replace(cluster, cluster.leader(), NEW)
            go_on(each)
        end(cluster, each)


def finalize(cluster: Cluster, name: str | None = None) -> Answer:
    return cluster.request(name or cluster.leader(), "POST", "/v1/cluster/finalize")


def transact(cluster: Cluster) -> Answer:
    body = b'{"then": [{"put": {"key": "one", "value": "1"}}, {"put": {"key": "two", "value": "2"}}]}'
    return cluster.request(cluster.leader(), "POST", "/v1/txn", body)


def move_leadership(cluster: Cluster, target: str) -> None:
    def move() -> bool:
        leader = cluster.leader()
        cluster.try_request(leader, "POST", "/v1/cluster/leader", b'{"target": "%s"}' % target.encode())
        return cluster.leader() == target

    eventually(f"{target} leads", move)


def levels(cluster: Cluster, *names: str) -> set[int]:
    return {status["feature_level"] for name in names if (status := cluster.status(name))}


def test_a_node_of_the_new_version_gets_its_state_from_an_old_leader_and_the_other_way_round(tmp_path: Path) -> None:
    """An installed snapshot crosses the versions in both directions."""
    with cluster_of(OLD, tmp_path) as cluster, Load(cluster) as load:
        for version in (NEW, OLD):
            late = cluster.others(cluster.leader())[0]
            cluster.kill(late)
            load.goes_on(200)  # more than the log keeps
            start(cluster, late, version)
            wait_for_log(cluster, late, "installed the snapshot")
            wait_until_ready(cluster, late)
            for name in cluster.others(late):
                if version == NEW:
                    replace(cluster, name, NEW)
        load.__exit__()
        check(cluster, load)
