"""Three nodes of Kvorum, or of etcd, with default durability and fresh data folders, on free ports of loopback."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from bench.processes import BenchError, Server, free_ports, serve_arguments

NODES = 3
READY_WITHIN_S = 30.0
POLL_EVERY_S = 0.02


class System(Protocol):
    """What the benchmark needs to know of a system: etcd and Kvorum are the two."""

    name: str
    api: str
    """As bench/loadgen calls it."""

    def version(self) -> str:
        """Return the version, in words."""

    def servers(self, folder: Path, client_ports: Sequence[int], peer_ports: Sequence[int]) -> list[Server]:
        """Return the servers of one cluster, not started."""

    def leads(self, port: int) -> bool | None:
        """Say whether the node at this client port leads; None: it knows no leader, or does not answer."""

    def put(self, key: str, value: bytes) -> tuple[str, str, bytes]:
        """Return method, path and body of a put over HTTP."""

    def get(self, key: str) -> tuple[str, str, bytes | None]:
        """Return method, path and body of a linearizable get over HTTP."""


def ask(port: int, method: str, path: str, body: bytes | None = None, timeout_s: float = 2.0) -> Any:
    """Return the JSON answer of a node, or None if there is none (or it is not a 200)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path, body=body)
        response = connection.getresponse()
        content = response.read()
        return json.loads(content) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


class Etcd:
    """etcd, from ``$ETCD`` or the PATH.

    Args:
        binary: the path of the server.
    """

    name = "etcd"
    api = "etcd"

    def __init__(self, binary: str) -> None:
        self.binary = binary

    @classmethod
    def find(cls) -> Etcd | None:
        """Return the etcd of this machine, if there is one."""
        binary = os.environ.get("ETCD") or shutil.which("etcd")
        if not binary:
            return None
        if not shutil.which(binary):
            raise BenchError(f"ETCD={binary} is not a program")
        return cls(binary)

    def version(self) -> str:
        """Return the version, in words."""
        output = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True).stdout
        return output.splitlines()[0].removeprefix("etcd Version: ")

    def servers(self, folder: Path, client_ports: Sequence[int], peer_ports: Sequence[int]) -> list[Server]:
        """Return the servers of one cluster, not started."""
        cluster = ",".join(f"e{i}=http://127.0.0.1:{port}" for i, port in enumerate(peer_ports, 1))
        servers = []
        for i, (client, peer) in enumerate(zip(client_ports, peer_ports, strict=True), 1):
            client_url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
            command = [self.binary, "--name", f"e{i}", "--data-dir", str(folder / f"e{i}"), "--log-level", "warn"]
            command += ["--listen-client-urls", client_url, "--advertise-client-urls", client_url]
            command += ["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]
            command += ["--initial-cluster", cluster, "--initial-cluster-state", "new"]
            servers.append(Server(f"e{i}", command, folder / f"e{i}.log"))
        return servers

    def leads(self, port: int) -> bool | None:
        """Say whether the node at this client port leads."""
        status = ask(port, "POST", "/v3/maintenance/status", b"{}")
        if status is None or status.get("errors") or status.get("leader", "0") == "0":
            return None
        return bool(status["leader"] == status["header"]["member_id"])

    def put(self, key: str, value: bytes) -> tuple[str, str, bytes]:
        """Return method, path and body of a put over HTTP."""
        body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
        return "POST", "/v3/kv/put", json.dumps(body).encode()

    def get(self, key: str) -> tuple[str, str, bytes | None]:
        """Return method, path and body of a linearizable get over HTTP."""
        return "POST", "/v3/kv/range", json.dumps({"key": base64.b64encode(key.encode()).decode()}).encode()


class Kvorum:
    """Kvorum, by default from this checkout: the ``kvorum`` command beside the running interpreter.

    Args:
        options: further arguments of ``kvorum serve``.
        name: what the figures call it.
        command: what runs ``kvorum``; a function of the node's client port may be given instead.
        environment: the servers' whole environment, or None for ours.
    """

    api = "kvorum"

    def __init__(
        self,
        options: Sequence[str] = (),
        *,
        name: str = "kvorum",
        command: Sequence[str] | Callable[[int], Sequence[str]] = (str(Path(sys.executable).parent / "kvorum"),),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.options = list(options)
        self.name = name
        self.command = command
        self.environment = environment

    def version(self) -> str:
        """Return the version, in words."""
        try:
            loop = f"uvloop {metadata.version('uvloop')}"
        except metadata.PackageNotFoundError:
            loop = "asyncio's own loop"
        return f"{metadata.version('kvorum')} ({loop})"

    def servers(self, folder: Path, client_ports: Sequence[int], peer_ports: Sequence[int]) -> list[Server]:
        """Return the servers of one cluster, not started."""
        named = {f"n{i}": port for i, port in enumerate(peer_ports, 1)}
        servers = []
        for name, client in zip(named, client_ports, strict=True):
            start = self.command(client) if callable(self.command) else self.command
            command = [*start, *serve_arguments(name, client, named, folder / name), *self.options]
            servers.append(Server(name, command, folder / f"{name}.log", self.environment))
        return servers

    def leads(self, port: int) -> bool | None:
        """Say whether the node at this client port leads."""
        status = ask(port, "GET", "/v1/cluster")
        if status is None or not status.get("leader"):
            return None
        return bool(status["state"] == "leader")

    def put(self, key: str, value: bytes) -> tuple[str, str, bytes]:
        """Return method, path and body of a put over HTTP."""
        return "PUT", f"/v1/kv/{key}", value

    def get(self, key: str) -> tuple[str, str, bytes | None]:
        """Return method, path and body of a linearizable get over HTTP."""
        return "GET", f"/v1/kv/{key}", None


class Cluster:
    """Three running nodes of one system; a context manager that ends them.

    Args:
        system: whose nodes.
        folder: where their data and output go; what is there from before is removed.
    """

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder
        ports = free_ports(2 * NODES)
        self.client_ports = ports[:NODES]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.servers = system.servers(folder, self.client_ports, ports[NODES:])

    def __enter__(self) -> Self:
        try:
            for server in self.servers:
                server.start()
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """End every node, at once: its data is thrown away, and a gentle stop waits for the others."""
        for server in self.servers:
            server.kill()

    def check(self) -> None:
        """Raise if a node has ended by itself."""
        for server in self.servers:
            server.check()

    def leader(self) -> int | None:
        """Return the position of the leader if every node answers and knows that it has one, and one leads."""
        answers = [self.system.leads(port) for port in self.client_ports]
        return answers.index(True) if answers.count(True) == 1 and None not in answers else None

    def wait_until_ready(self, within_s: float = READY_WITHIN_S) -> int:
        """Wait until the nodes agree on a leader and return its position."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            self.check()
            leader = self.leader()
            if leader is not None:
                return leader
            time.sleep(POLL_EVERY_S)
        raise BenchError(f"{self.system.name}: no leader within {within_s:.0f} s; see {self.folder}/*.log")
