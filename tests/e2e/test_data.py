"""Watches, locks and writes at any node, by the commands that users run, while pods go away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from e2e.kube import eventually
from e2e.pod_process import PodProcess
from e2e.recording import POD
from e2e.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

COMMAND_S = 300
"""A command in a pod ends by itself after so long: kubectl leaves it there when it is killed."""
TTL_S = 5


class Running:
    """A command that runs in a pod, and the lines that it has printed.

    Args:
        system: the release.
        pod: where it runs.
        command: and its arguments.
    """

    def __init__(self, system: System, pod: str, *command: str) -> None:
        self.lines: list[dict[str, Any]] = []
        bounded = ["timeout", str(COMMAND_S), *command]
        self._process = PodProcess(system.kube, pod, bounded, self.lines.append)

    def wait_for(self, count: int, what: str, within_s: float) -> None:
        """Wait until so many lines were printed."""

        def printed() -> bool | str:
            assert not self._process.has_ended, f"it has ended: {self._process.errors}"
            return len(self.lines) >= count or f"{len(self.lines)} of {count} lines; {self._process.errors}"

        eventually(what, printed, within_s)

    def end(self) -> None:
        """Tell it to end by a line, and wait."""
        self._process.tell("")
        self._process.wait(60)

    def kill(self) -> None:
        """End it, however it is."""
        self._process.kill()


@contextmanager
def running(system: System, pod: str, *command: str) -> Iterator[Running]:
    """Run a command in a pod while the body runs."""
    process = Running(system, pod, *command)
    try:
        yield process
    finally:
        process.kill()


def kv(system: System, *arguments: str) -> list[str]:
    """Return the ``kv`` command for a pod that is no node."""
    return ["kv", "--endpoints", ",".join(system.endpoints[:3]), *arguments]


@pytest.mark.smoke
def test_a_watch_delivers_once_what_any_node_took_while_leaders_go(system: System) -> None:
    """Each write goes to one node, once: `?forward=true` hands it to the leader, and nothing is applied twice."""
    with system.scenario("writes at any node, and a watch", terms_max=4) as scenario:
        prefix = f"any-node-{int(time.time())}/"
        nodes = ",".join(system.endpoints[:3])
        script = ["python3", "/recorder/forwarder.py", "--endpoints", nodes, "--prefix", prefix]
        first = json.loads(system.kube.exec(POD, *kv(system, "put", f"{prefix}first", "1", "-o", "json")))
        watching = kv(system, "watch", "--prefix", prefix, "--from-revision", str(first["revision"]), "-o", "json")
        with running(system, POD, *watching) as watch:
            with running(system, POD, *script) as forwarder:
                for _ in range(2):
                    forwarder.wait_for(len(forwarder.lines) + 50, "writes are answered", 60)
                    leader = system.leader()
                    scenario.fault("delete", leader)
                    system.kube.delete_pod(leader)
                    scenario.recovered(within_s=15)
                    system.wait_ready(3)
                forwarder.wait_for(len(forwarder.lines) + 50, "writes are answered again", 60)
                forwarder.end()
            statuses = forwarder.lines[-1]["statuses"]
            listed = system.kube.exec(POD, *kv(system, "get", "--prefix", prefix, "-o", "json"))
            records = [json.loads(line) for line in listed.splitlines()]
            watch.wait_for(len(records), "the watch has delivered them all", 30)
        events = watch.lines
    written = {record["key"]: record for record in records}
    acknowledged = [f"{prefix}{number}" for number, status in enumerate(statuses) if status == 200]
    assert len(acknowledged) >= 150, statuses
    assert [key for key in acknowledged if key not in written] == [], "acknowledged, and not there"
    assert [key for key, record in written.items() if record["version"] != 1] == [], "applied more than once"
    revisions = [event["mod_revision"] for event in events]
    assert revisions == sorted(set(revisions)), "events are out of order, or doubled"
    seen = [(event["key"], event["mod_revision"]) for event in events]
    assert sorted(seen) == sorted((key, record["mod_revision"]) for key, record in written.items())
    refused = {status for status in statuses if status not in (0, 200)}
    assert refused <= {503, 504}, f"answers that a client cannot try again: {refused}"


@pytest.mark.smoke
def test_a_lock_goes_on_when_its_holders_pod_dies_and_not_when_the_leader_does(system: System) -> None:
    """`kv lock` under `kubectl exec`: nobody revokes the lease of a holder that is gone without a word."""
    with system.scenario("the holder of a lock dies", terms_max=4) as scenario:
        name = f"job-{int(time.time())}"
        options = ("lock", name, "--ttl", str(TTL_S), "-o", "json")
        holder_pod = system.follower()
        with running(system, holder_pod, "kv", *options) as holder:
            holder.wait_for(1, "the lock is held", 30)
            with running(system, POD, *kv(system, *options)) as next_:

                def is_waited_for() -> bool | str:
                    listed = system.kube.exec(POD, *kv(system, "locks", name, "-o", "json"))
                    return json.loads(listed)["waiter_count"] == 1 or listed

                eventually("one waits for the lock", is_waited_for, 30)
                leader = system.leader()
                assert leader != holder_pod
                scenario.fault("delete", leader)
                system.kube.delete_pod(leader)
                scenario.recovered(within_s=15)
                system.wait_ready(3)
                eventually("it still waits", is_waited_for, 30)
                assert next_.lines == []
                scenario.fault("force-delete the holder", holder_pod)
                system.kube.delete_pod(holder_pod, grace_s=0)
                # 1 s and 1 % late at most, and what the election of another leader takes if the holder's pod led.
                next_.wait_for(1, "the next one holds the lock", 30)
                scenario.recovered(within_s=20)
                system.wait_ready(3)
        assert next_.lines[0]["fencing_token"] > holder.lines[0]["fencing_token"]
