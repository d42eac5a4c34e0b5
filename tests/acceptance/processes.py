"""A cluster of real `kvorum serve` processes on loopback, for tests that kill, stop and starve them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bench.processes import free_ports, serve_arguments, spawn
from waiting import DEADLINE_S, eventually

LAST_LINES = 5
"""How much of a log is told of a process that ended by itself."""


class Answer(NamedTuple):
    """One HTTP answer; redirects are not followed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The body as JSON."""
        document: dict[str, Any] = json.loads(self.body)
        return document


class EndedByItselfError(AssertionError):
    """A process that the test still needs has ended; whatever is waited for would be waited for in vain."""

    def __init__(self, name: str, status: int, log: Path) -> None:
        how = (
            f"killed by {signal.Signals(-status).name}, and not by this test" if status < 0 else f"exit status {status}"
        )
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        super().__init__(f"{name} ended by itself: {how}. The end of {log}:\n" + "\n".join(lines))


def kvorum(
    *arguments: str, timeout_s: float = 60, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run the `kvorum` command to its end. It inherits no options; ``variables`` are added to its environment."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("KVORUM_")}
    return subprocess.run(
        [sys.executable, "-m", "kvorum", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**own, "KVORUM_LOG_FORMAT": "text", **variables},
        check=False,
    )


class Cluster:
    """Nodes ``n1 .. nN``. A context manager; every process that it started is gone when it ends."""

    def __init__(self, folder: Path, size: int = 3, flags: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.names = [f"n{i}" for i in range(1, size + 1)]
        ports = free_ports(2 * size)
        self.client_ports = dict(zip(self.names, ports[:size], strict=True))
        self.peer_ports = dict(zip(self.names, ports[size:], strict=True))
        self.flags = flags
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            for name in self.names:
                self.start(name)
            self.leader()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(*self.processes)

    # --- Processes ----------------------------------------------------------------------------------------------

    def command(self, name: str, *flags: str) -> list[str]:
        """Return the command line of a node."""
        arguments = serve_arguments(name, self.client_ports[name], self.peer_ports, self.data_dir(name))
        return [sys.executable, "-m", "kvorum", *arguments, "--log-format", "text", *self.flags, *flags]

    def start(
        self,
        name: str,
        *flags: str,
        preexec: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a node; it need not be ready yet. ``environment``: None: this process's."""
        self.processes[name] = process = spawn(self.command(name, *flags), self.log_file(name), environment, preexec)
        return process

    def stop(self, name: str, deadline_s: float = DEADLINE_S) -> int:
        """SIGTERM, as a rollout sends it; return the exit status. A node that takes too long is killed."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(deadline_s)
        finally:
            process.kill()
            process.wait()

    def kill(self, *names: str) -> None:
        """SIGKILL: no goodbye, no flush."""
        for name in names:
            self.processes[name].kill()
        for name in names:
            self.processes.pop(name).wait()

    def pause(self, *names: str) -> None:
        """SIGSTOP: the process is there, and does nothing."""
        for name in names:
            self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, *names: str) -> None:
        """SIGCONT."""
        for name in names:
            self.processes[name].send_signal(signal.SIGCONT)

    def running(self) -> list[str]:
        """Return the nodes that were started and not stopped.

        Raises:
            EndedByItselfError: one of them has ended.
        """
        for name, process in self.processes.items():
            if (status := process.poll()) is not None:
                raise EndedByItselfError(name, status, self.log_file(name))
        return list(self.processes)

    def data_dir(self, name: str) -> Path:
        """Return a node's data folder."""
        return self.folder / name

    def log_file(self, name: str) -> Path:
        """Return where a node's output goes."""
        return self.folder / f"{name}.log"

    def others(self, *names: str) -> list[str]:
        """Return the nodes but these."""
        return [name for name in self.names if name not in names]

    @property
    def addresses(self) -> dict[str, str]:
        """Where each node serves clients, host and port."""
        return {name: f"127.0.0.1:{port}" for name, port in self.client_ports.items()}

    # --- HTTP ---------------------------------------------------------------------------------------------------

    def request(
        self,
        name: str,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Answer:
        """Ask one node, without following redirects. OSError: it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.client_ports[name], timeout=timeout_s)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def try_request(self, name: str, method: str, path: str, body: bytes | None = None) -> Answer | None:
        """Ask one node; None when it does not answer."""
        try:
            return self.request(name, method, path, body, timeout_s=3.0)
        except OSError:
            return None

    def put(self, name: str, key: str, value: bytes, **options: Any) -> Answer:
        """Put at this node."""
        return self.request(name, "PUT", f"/v1/kv/{key}", value, **options)

    def get(self, name: str, key: str, query: str = "", **options: Any) -> Answer:
        """Get at this node."""
        return self.request(name, "GET", f"/v1/kv/{key}{query}", **options)

    def read(self, name: str, key: str) -> Answer:
        """Get at this node, trying until it tells what it holds: it refuses while it knows no leader."""

        def attempt() -> Answer | None:
            answer = self.try_request(name, "GET", f"/v1/kv/{key}")
            return answer if answer is not None and answer.status in (200, 404) else None

        answer: Answer = eventually(f"{name} reads {key}", attempt)
        return answer

    def status(self, name: str) -> dict[str, Any] | None:
        """Return a node's own account; None when it does not answer."""
        answer = self.try_request(name, "GET", "/v1/cluster")
        return answer.document if answer is not None and answer.status == 200 else None

    def leader(self, among: list[str] | None = None) -> str:
        """Return the name of a node that leads and that a majority of the running nodes follows."""

        def find() -> str | None:
            names = among or self.running()
            accounts = {name: status for name in names if (status := self.status(name))}
            for name, account in accounts.items():
                followers = [a for a in accounts.values() if a["leader"] == account["id"] and a["caught_up"]]
                if account["state"] == "leader" and len(followers) > len(self.names) // 2:
                    return name
            return None

        found: str = eventually("a leader", find)
        return found

    def settled(self) -> str:
        """Return the leader once every running node follows it and has applied what was committed."""

        def same() -> str | None:
            accounts = [self.status(name) for name in self.running()]
            leaders = {account["leader_name"] if account and account["caught_up"] else None for account in accounts}
            leader = leaders.pop() if len(leaders) == 1 else None
            return leader if leader in self.processes else None

        leader: str = eventually("one leader that all follow", same)
        return leader

    def put_somewhere(self, key: str, value: bytes, among: list[str] | None = None) -> Answer:
        """Put at whoever leads, trying until it is done."""

        def attempt() -> Answer | None:
            for name in among or list(self.processes):
                answer = self.try_request(name, "PUT", f"/v1/kv/{key}", value)
                if answer is not None and answer.status == 200:
                    return answer
            return None

        answer: Answer = eventually(f"put {key}", attempt)
        return answer

    def converge(self) -> None:
        """Wait until all running nodes are at the same index with the same state hash."""

        def same() -> bool:
            accounts = [self.status(name) for name in self.running()]
            states = {(a["applied_index"], a["state_hash"], a["term"]) for a in accounts if a is not None}
            return None not in accounts and len(states) == 1

        eventually("all nodes agree", same)
