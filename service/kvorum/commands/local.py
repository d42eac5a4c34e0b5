"""``kvorum local``: a whole cluster on this machine, one ``kvorum serve`` process per node, in one terminal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TextIO

import aiohttp
import msgspec

from kvorum.errors import ConfigError

PEER_PORT_OFFSET = 1000
GRACE_S = 2.0
"""A whole cluster that stops has nobody to wait for."""
POLL_INTERVAL_S = 0.2
_COLORS = (36, 33, 35, 32, 34, 31, 96)
_PR_SET_PDEATHSIG = 1
_LINE_BYTES_MAX = 1024 * 1024


class LocalNode(msgspec.Struct, frozen=True):
    """One node of the local cluster."""

    name: str
    client_port: int
    peer_port: int
    arguments: tuple[str, ...]
    """Of ``kvorum``."""

    @property
    def command(self) -> str:
        """What a person types to start it."""
        return shlex.join((_program("kvorum"), *self.arguments))


def _program(name: str) -> str:
    """Return how to call one of our commands from a shell in this folder."""
    beside = os.path.join(os.path.dirname(sys.executable), name)
    if shutil.which(name) or not os.path.exists(beside):
        return name
    return os.path.relpath(beside)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``kvorum local``."""
    parser.add_argument("--nodes", metavar="N", default="3", help="Number of nodes, 1 to 9 [default 3]")
    parser.add_argument(
        "--base-port",
        metavar="PORT",
        default="8001",
        help="Client port of the first node; the others count up from it, peer ports are 1000 higher [default 8001]",
    )
    parser.add_argument(
        "--data-dir", metavar="FOLDER", default="data", help="Parent of the nodes' data folders [default data]"
    )
    parser.add_argument(
        "serve",
        nargs="*",
        metavar="-- SERVE-FLAG",
        help="Options for every node; see `kvorum serve --help`",
    )


def plan(options: argparse.Namespace) -> tuple[LocalNode, ...]:
    """Return the nodes that the options ask for.

    Raises:
        ConfigError: a number that is none, or ports beyond the last.
    """
    count, base = _number(options.nodes, "--nodes", 1, 9), _number(options.base_port, "--base-port", 1, 65535)
    if base + PEER_PORT_OFFSET + count - 1 > 65535:
        raise ConfigError(f"--base-port {base}: the peer ports, {PEER_PORT_OFFSET} higher, would exceed 65535")
    ports = [(base + i, base + PEER_PORT_OFFSET + i) for i in range(count)]
    peers = ",".join(f"n{i}=127.0.0.1:{peer}" for i, (_, peer) in enumerate(ports, 1))
    return tuple(
        LocalNode(
            f"n{i}",
            client,
            peer,
            (
                *("serve", "--name", f"n{i}", "--peers", peers),
                *("--listen-client", f"127.0.0.1:{client}", "--listen-peer", f"127.0.0.1:{peer}"),
                *("--data-dir", os.path.join(options.data_dir, f"n{i}"), *options.serve),
            ),
        )
        for i, (client, peer) in enumerate(ports, 1)
    )


def _number(text: str, flag: str, minimum: int, maximum: int) -> int:
    if not (text.isascii() and text.isdigit()) or not minimum <= int(text) <= maximum:
        raise ConfigError(f"{flag}: {text!r} is not a whole number from {minimum} to {maximum}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Run the cluster until Ctrl-C, and return the exit status."""
    nodes = plan(options)
    for node in nodes:
        for port in (node.client_port, node.peer_port):
            if (reason := _in_use(port)) is not None:
                print_line(
                    f"kvorum local: port {port} of {node.name}: {reason}; choose another --base-port", sys.stderr
                )
                return 3
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_LocalCluster(nodes).run())
    return 130


def _in_use(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None


def print_line(line: str, stream: TextIO | None = None) -> None:
    """Print a line at once; several processes' lines must not mix."""
    print(line, file=stream or sys.stdout, flush=True)


class _LocalCluster:
    """The child processes.

    Args:
        nodes: which to start.
    """

    def __init__(self, nodes: tuple[LocalNode, ...]) -> None:
        self._nodes = nodes
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._color = sys.stdout.isatty()

    async def run(self) -> int:
        """Start every node, relay what they say, stop them all on a signal; return how all of them ended, or 1."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        for line in _greeting(self._nodes):
            print_line(line)
        async with asyncio.TaskGroup() as tasks:
            for index, node in enumerate(self._nodes):
                tasks.create_task(self._run_node(node, self._prefix(index, node.name)))
            announcing = tasks.create_task(self._announce())
            await self._stopping.wait()
            announcing.cancel()
            print_line("Stopping all nodes" if self._running else "All nodes have exited")
            tasks.create_task(self._stop())
        codes = {process.returncode for process in self._processes.values()}
        code = codes.pop() if len(codes) == 1 else None
        return code if code is not None and code >= 0 else 1

    @property
    def _running(self) -> list[asyncio.subprocess.Process]:
        return [process for process in self._processes.values() if process.returncode is None]

    def _prefix(self, index: int, name: str) -> str:
        return f"\x1b[{_COLORS[index % len(_COLORS)]}m{name}\x1b[0m " if self._color else f"{name} "

    async def _run_node(self, node: LocalNode, prefix: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvorum", *node.arguments),
            env={"KVORUM_LOG_FORMAT": "text", "KVORUM_SHUTDOWN_GRACE_S": str(GRACE_S), **os.environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_BYTES_MAX,
            # Ctrl-C is ours to hand on: a second signal would tell the node to hurry.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._processes[node.name] = process
        if self._stopping.is_set():
            process.terminate()
        print_line(f"{prefix}process {process.pid}, clients at 127.0.0.1:{node.client_port}")
        assert process.stdout is not None  # noqa: S101
        while line := await process.stdout.readline():
            print_line(prefix + line.decode("utf-8", "backslashreplace").rstrip("\n"))
        code = await process.wait()
        if not self._stopping.is_set():
            for text in _obituary(node, code, len(self._running)):
                print_line(prefix + text)
            if len(self._processes) == len(self._nodes) and not self._running:
                # What is started again elsewhere is not ours.
                self._stopping.set()

    async def _announce(self) -> None:
        """Say once that the whole cluster is ready, and who leads it."""
        urls = [f"http://127.0.0.1:{node.client_port}" for node in self._nodes]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
            while (leader := await _ready_leader(session, urls)) is None:  # noqa: ASYNC110
                await asyncio.sleep(POLL_INTERVAL_S)  # other processes: there is no event to wait for
        print_line(f"Ready: {len(urls)} nodes, led by {leader}")

    async def _stop(self) -> None:
        running = self._running
        for send in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            for process in running:
                if process.returncode is None:
                    process.send_signal(send)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * GRACE_S + 1):
                    await asyncio.gather(*(process.wait() for process in running))
                return


async def _ready_leader(session: aiohttp.ClientSession, urls: list[str]) -> str | None:
    """Return the leader if every node is ready and agrees on it."""
    leaders = set()
    try:
        for url in urls:
            async with session.get(url + "/readyz") as ready, session.get(url + "/v1/cluster/leader") as answer:
                leaders.add((await answer.json())["leader"] if ready.status == 200 else None)
    except (aiohttp.ClientError, TimeoutError):
        return None
    return leaders.pop() if len(leaders) == 1 else None


def _die_with_parent() -> None:
    """Have the kernel stop the node when this process is gone, however it went. Linux only; elsewhere they live on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _greeting(nodes: tuple[LocalNode, ...]) -> Iterator[str]:
    first, last = nodes[0], nodes[-1]
    kv = _program("kv")
    endpoints = ",".join(f"127.0.0.1:{node.client_port}" for node in nodes)
    yield f"Starting {len(nodes)} node{'s' if len(nodes) > 1 else ''}; Ctrl-C stops all. Try in another terminal:"
    if first.client_port != 8001 or len(nodes) != 3:
        # Otherwise it is where kv looks by itself.
        yield f"  export KVORUM_ENDPOINTS={endpoints}"
    yield f"  {kv} put greeting hello"
    yield f"  {kv} get greeting"
    yield f"  {kv} status"
    yield f"  curl -L -X PUT -d hello http://127.0.0.1:{first.client_port}/v1/kv/greeting"
    yield f"  curl http://127.0.0.1:{last.client_port}/v1/kv/greeting"


def _obituary(node: LocalNode, code: int, others: int) -> Iterator[str]:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    yield f"-- {node.name} {how}; other nodes still running: {others}. Restart it in another terminal with:"
    yield f"-- {node.command}"
