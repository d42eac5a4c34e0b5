"""A cluster of real `kvorum serve` processes on loopback, for tests that kill, stop and starve them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import SystemRandom
from typing import Any, NamedTuple

DEADLINE_S = 30.0


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


def eventually(what: str, check: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``check``; fail when there is none in time."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not in {deadline_s} s: {what}")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now, from below those that the kernel hands to outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = 20_000 + SystemRandom().randrange(12_000)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def kvorum(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the `kvorum` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "kvorum", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "KVORUM_LOG_FORMAT": "text"},
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
        for name in self.names:
            self.start(name)
        self.leader()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self.processes.values():
            process.wait()

    # --- Processes ----------------------------------------------------------------------------------------------

    def command(self, name: str, *flags: str) -> list[str]:
        """Return the command line of a node."""
        peers = ",".join(f"{each}=127.0.0.1:{port}" for each, port in self.peer_ports.items())
        return [
            *(sys.executable, "-m", "kvorum", "serve", "--name", name, "--peers", peers, "--log-format", "text"),
            *("--listen-client", f"127.0.0.1:{self.client_ports[name]}"),
            *("--listen-peer", f"127.0.0.1:{self.peer_ports[name]}"),
            *("--data-dir", str(self.data_dir(name)), *self.flags, *flags),
        ]

    def start(
        self,
        name: str,
        *flags: str,
        preexec: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a node; it need not be ready yet. ``environment``: None: this process's."""
        with open(self.log_file(name), "ab") as output:
            process = subprocess.Popen(
                self.command(name, *flags), stdout=output, stderr=output, preexec_fn=preexec, env=environment
            )
        self.processes[name] = process
        return process

    def kill(self, *names: str) -> None:
        """SIGKILL: no goodbye, no flush."""
        for name in names:
            self.processes[name].send_signal(signal.SIGCONT)
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

    def data_dir(self, name: str) -> Path:
        """Return a node's data folder."""
        return self.folder / name

    def log_file(self, name: str) -> Path:
        """Return where a node's output goes."""
        return self.folder / f"{name}.log"

    def others(self, *names: str) -> list[str]:
        """Return the nodes but these."""
        return [name for name in self.names if name not in names]

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

    def status(self, name: str) -> dict[str, Any] | None:
        """Return a node's own account; None when it does not answer."""
        answer = self.try_request(name, "GET", "/v1/cluster")
        return answer.document if answer is not None and answer.status == 200 else None

    def leader(self, among: list[str] | None = None) -> str:
        """Return the name of a node that leads and that a majority of the running nodes follows."""

        def find() -> str | None:
            names = among or list(self.processes)
            accounts = {name: status for name in names if (status := self.status(name))}
            for name, account in accounts.items():
                followers = [a for a in accounts.values() if a["leader"] == account["id"] and a["caught_up"]]
                if account["state"] == "leader" and len(followers) > len(self.names) // 2:
                    return name
            return None

        found: str = eventually("a leader", find)
        return found

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
            accounts = [self.status(name) for name in self.processes]
            states = {(a["applied_index"], a["state_hash"], a["term"]) for a in accounts if a is not None}
            return None not in accounts and len(states) == 1

        eventually("all nodes agree", same)
