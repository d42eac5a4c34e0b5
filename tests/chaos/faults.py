"""What is done to a cluster. Each fault is begun and ended by one call, and leaves every process running."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from acceptance.processes import Cluster
from chaos.network import Network
from waiting import eventually

from kvorum.commands.serve import EXIT_STORAGE
from kvorum.identity import name_of

WHOLE_S = 60.0
"""A lost disk or a removed member must be replaced within this time."""
SYNC_DELAY_US = 300_000
STRACE_END_S = 10.0
REFUSED_S = 30.0
"""Within this time a node under load meets a disk that refuses, and ends."""


class Nodes(Cluster):
    """A cluster whose processes run under groups of their own, so that the network can tell them apart."""

    network: Network | None = None

    def command(self, name: str, *flags: str) -> list[str]:
        """Return the command line of a node."""
        command = super().command(name, *flags)
        if self.network is None:
            return command
        return ["setpriv", f"--regid={self.network.group_of(name)}", "--clear-groups", *command]


class Faults:
    """All faults, by name, on one cluster.

    Args:
        nodes: the cluster; every process runs between two faults.
        random: draws victims and durations.
    """

    def __init__(self, nodes: Nodes, random: Random) -> None:
        self._nodes = nodes
        self._random = random
        self.by_name: dict[str, Callable[[], None]] = {
            "kill_one": self.kill_one,
            "kill_leader": self.kill_leader,
            "kill_minority": self.kill_minority,
            "kill_all": self.kill_all,
            "pause_one": self.pause_one,
            "pause_leader": self.pause_leader,
            "transfer": self.transfer,
            "remove_member": self.remove_member,
            "lose_disk": self.lose_disk,
            "rolling_restart": self.rolling_restart,
        }
        if nodes.network is not None:
            self.by_name |= {
                "isolate_one": self.isolate_one,
                "isolate_leader": self.isolate_leader,
                "deafen_one": self.deafen_one,
                "mute_leader": self.mute_leader,
                "bridge": self.bridge,
            }
        if shutil.which("strace"):
            self.by_name |= {
                "slow_disk": self.slow_disk,
                "failing_disk": self.failing_disk,
                "full_disk": self.full_disk,
                "pause_in_partition": self.pause_in_partition,
            }

    # --- Processes ----------------------------------------------------------------------------------------------

    def kill_one(self) -> None:
        """SIGKILL any node."""
        self._kill([self._anyone()])

    def kill_leader(self) -> None:
        """SIGKILL the leader."""
        self._kill([self._leader()])

    def kill_minority(self) -> None:
        """SIGKILL as many as the others can do without."""
        self._kill(self._random.sample(self._nodes.names, (len(self._nodes.names) - 1) // 2))

    def kill_all(self) -> None:
        """SIGKILL all, at once."""
        self._kill(list(self._nodes.names))

    def _kill(self, names: list[str]) -> None:
        self._nodes.kill(*names)
        self._wait(0.0, 2.0)
        for name in names:
            self._nodes.start(name)

    def pause_one(self) -> None:
        """SIGSTOP any node for a while."""
        self._pause(self._anyone())

    def pause_leader(self) -> None:
        """SIGSTOP the leader for longer than an election takes, or not."""
        self._pause(self._leader())

    def _pause(self, name: str) -> None:
        self._nodes.pause(name)
        self._wait(0.1, 5.0)
        self._nodes.resume(name)

    def rolling_restart(self) -> None:
        """SIGTERM one after the other, each when the one before is back: what a rollout does."""
        for name in self._nodes.names:
            # Until Python has read its modules, SIGTERM ends it as it ends everything.
            self._wait_until_up(name)
            if (status := self._nodes.stop(name, WHOLE_S)) != 0:
                raise AssertionError(f"{name} ended with {status} after SIGTERM")
            self._nodes.start(name)
            self._wait_until_up(name)

    def _wait_until_up(self, name: str) -> None:
        eventually(f"{name} is up", partial(self._nodes.status, name), WHOLE_S)

    # --- The network --------------------------------------------------------------------------------------------

    def isolate_one(self) -> None:
        """Cut a node off, both ways."""
        with self._partition() as network:
            self._isolate(network, self._anyone())

    def isolate_leader(self) -> None:
        """Cut the leader off, both ways."""
        with self._partition() as network:
            self._isolate(network, self._leader())

    def deafen_one(self) -> None:
        """A node hears nobody, and is heard."""
        deaf = self._anyone()
        with self._partition() as network:
            for other in self._nodes.others(deaf):
                network.cut(other, deaf)

    def mute_leader(self) -> None:
        """The leader hears everybody, and is not heard."""
        mute = self._leader()
        with self._partition() as network:
            for other in self._nodes.others(mute):
                network.cut(mute, other)

    def bridge(self) -> None:
        """Two halves that meet in one node only."""
        names = self._random.sample(self._nodes.names, len(self._nodes.names))
        half = (len(names) - 1) // 2
        with self._partition() as network:
            for left in names[1 : 1 + half]:
                for right in names[1 + half :]:
                    network.cut(left, right)
                    network.cut(right, left)

    def pause_in_partition(self) -> None:
        """A leader that is cut off and paused wakes up when it is deposed."""
        leader = self._leader()
        if self._nodes.network is None:
            self._pause(leader)
            return
        with self._partition() as network:
            self._isolate(network, leader)
            self._pause(leader)

    @contextlib.contextmanager
    def _partition(self) -> Iterator[Network]:
        network = self._nodes.network
        assert network is not None
        try:
            yield network
            self._wait(0.5, 5.0)
        finally:
            network.heal()

    def _isolate(self, network: Network, name: str) -> None:
        for other in self._nodes.others(name):
            network.cut(name, other)
            network.cut(other, name)

    # --- Disks --------------------------------------------------------------------------------------------------

    def slow_disk(self) -> None:
        """Every sync of a node takes a third of a second more."""
        with self._injected(self._anyone(), "fsync,fdatasync", f"delay_exit={SYNC_DELAY_US}"):
            self._wait(1.0, 4.0)

    def failing_disk(self) -> None:
        """A disk fails to sync: its node ends itself at once (bug B31), and comes back."""
        self._refuse("fsync,fdatasync", "EIO")

    def full_disk(self) -> None:
        """A disk has no room: its node ends itself (bug B32), and comes back when there is room."""
        self._refuse("pwrite64", "ENOSPC")

    def _refuse(self, calls: str, error: str) -> None:
        name = self._anyone()
        self._wait_until_up(name)
        process = self._nodes.processes[name]
        with self._injected(name, calls, f"error={error}"):
            status = process.wait(REFUSED_S)
        if status != EXIT_STORAGE:
            raise AssertionError(f"{name} ended with {status} after {error}")
        self._nodes.processes.pop(name)
        self._wait(0.0, 2.0)
        self._nodes.start(name)

    @contextlib.contextmanager
    def _injected(self, name: str, calls: str, fault: str) -> Iterator[None]:
        """Let system calls of a node be slow, or fail."""
        inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
        command = ["strace", "-qq", "-f", "-o", "/dev/null", *inject, "-p", str(self._nodes.processes[name].pid)]
        tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)  # It detaches; the node goes on, if it has not ended.
            try:
                tracer.wait(STRACE_END_S)
            except subprocess.TimeoutExpired:
                tracer.kill()
                tracer.wait()

    def lose_disk(self) -> None:
        """A node comes back with an empty disk; it is replaced by its new incarnation."""
        self._wait_until_whole()
        name = self._anyone()
        before = self._id_of(name)
        self._nodes.kill(name)
        shutil.rmtree(self._nodes.data_dir(name))
        self._nodes.start(name)
        self._wait_until_whole(without=before)

    # --- Membership ---------------------------------------------------------------------------------------------

    def transfer(self) -> None:
        """Hand the leadership to a node of our choice. It may fail; nothing may break."""
        target = self._anyone()
        body = b'{"target": "%s"}' % target.encode()
        with contextlib.suppress(OSError):
            self._nodes.request(self._leader(), "POST", "/v1/cluster/leader", body)

    def remove_member(self) -> None:
        """Remove a member; it finds out, puts its data aside, and is added anew."""
        self._wait_until_whole()
        name = self._anyone()
        before = self._id_of(name)

        def removed() -> bool:
            answer = self._nodes.try_request(self._leader(), "DELETE", f"/v1/cluster/members/{name}")
            return (answer is not None and answer.status == 200) or before not in self._voters()

        eventually(f"{name} is removed", removed, WHOLE_S)
        self._wait_until_whole(without=before)

    def _wait_until_whole(self, without: str = "") -> None:
        """Wait until every node is a voter, and no incarnation that is gone is."""

        def whole() -> bool:
            voters = self._voters()
            names = sorted(name_of(voter) for voter in voters)
            return names == sorted(self._nodes.names) and without not in voters

        eventually("all nodes are voters", whole, WHOLE_S)

    def _voters(self) -> list[str]:
        status = self._nodes.status(self._leader())
        return [member["id"] for member in status["members"] if member["voter"]] if status else []

    def _id_of(self, name: str) -> str:
        return next(voter for voter in self._voters() if name_of(voter) == name)

    # --- Choices ------------------------------------------------------------------------------------------------

    def _anyone(self) -> str:
        return self._random.choice(self._nodes.names)

    def _leader(self) -> str:
        return self._nodes.leader()

    def _wait(self, least_s: float, most_s: float) -> None:
        time.sleep(self._random.uniform(least_s, most_s))
