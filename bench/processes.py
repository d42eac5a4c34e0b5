"""The processes that benchmark and tests start: their ports and command lines, processor time, memory and ends."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time, user and system, that all threads of a live process have used, to the nanosecond.

    Raises:
        BenchError: the process has ended.
    """
    try:
        # The clock that clock_getcpuclockid(3) names. /proc/PID/stat counts in steps of 10 ms, too coarse for a cell.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        raise BenchError(f"process {pid} has ended") from None


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    """Return the resident memory of a live process.

    Args:
        pid: its id.
        field: of ``/proc/PID/status``: ``VmRSS`` is all of it, ``RssAnon`` what is not a part of a file.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no resident memory: it has ended")


def machine_busy_seconds() -> float:
    """Return the processor time that the whole machine has used since it started."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = (
        int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / TICKS_PER_SECOND


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now, all different, and reserve them.

    From below those that outgoing connections get: a server that is killed and started again must find its port free.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.sample(range(10_000, max(lowest, 20_000)), k=1000):
            each = stack.enter_context(socket.socket())
            try:
                each.bind(("127.0.0.1", port))
            except OSError:
                continue
            if not reserve(port):
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise BenchError("no free ports")


_reserved: set[int] = set()
"""The ports that this process has reserved."""


def reserve(port: int) -> bool:
    """Take a port for this process until it ends; return False if it, or another process of this user, has it already.

    Nobody listens on a port before its server has started, and between two starts. Another process that looks for a
    port then, such as another worker of the tests, would take it.
    """
    if port in _reserved:
        return False
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _reserved.add(port)
    return True


@functools.cache
def _reservations() -> int:
    """Open the file of which byte n is locked by the process that has port n. It stays open: closing it unlocks all."""
    path = Path(tempfile.gettempdir()) / f"kvorum-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def serve_arguments(name: str, client_port: int, peer_ports: Mapping[str, int], data_dir: Path) -> list[str]:
    """Return the arguments of ``kvorum`` that run one node of a cluster on loopback.

    Args:
        name: the node's name.
        client_port: where it serves clients.
        peer_ports: of every node of the cluster, by name.
        data_dir: its data folder.
    """
    peers = ",".join(f"{each}=127.0.0.1:{port}" for each, port in peer_ports.items())
    return [
        *("serve", "--name", name, "--peers", peers, "--data-dir", str(data_dir)),
        *("--listen-client", f"127.0.0.1:{client_port}", "--listen-peer", f"127.0.0.1:{peer_ports[name]}"),
    ]


def spawn(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server whose output is appended to a file.

    Args:
        command: what to run.
        log: the file.
        environment: its whole environment, or None for ours.
        preexec: is called in the new process before the command.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, preexec_fn=preexec
        )


class Server:
    """One server process, its output in a file; it ends with the ``with`` block at the latest.

    Args:
        name: the node's name.
        command: what to run.
        log: the file that takes its output.
        environment: its whole environment, or None for ours.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of a started server."""
        if self.process is None:
            raise ValueError(f"{self.name} is not started")
        return self.process.pid

    def start(self) -> None:
        """Start it, or start it again."""
        self.process = spawn(self.command, self.log, self.environment)

    def check(self) -> None:
        """Raise if it has ended, with the end of its output."""
        if self.process is not None and self.process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise BenchError(f"{self.name} ended with {self.process.returncode}: {' '.join(self.command)}\n{tail}")

    def terminate(self, within_s: float) -> None:
        """SIGTERM, and wait until it is gone.

        Raises:
            BenchError: it has not ended in time.
        """
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name} did not end within {within_s:.0f} s after SIGTERM") from None
        self.process = None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class BenchError(Exception):
    """The benchmark cannot go on; the message says why."""
