"""``kvorum local``: a whole cluster on this machine, one ``kvorum serve`` process per node, in one terminal.

From another terminal, ``kvorum local start|stop|kill|wipe NAME`` acts on one of its nodes.
"""

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import aiohttp
import msgspec

from kvorum.commands import local_control
from kvorum.config import sources
from kvorum.errors import ConfigError, StorageError
from kvorum.storage import datadir

EXIT_REFUSED = 1
EXIT_ADDRESS = 3
EXIT_STORAGE = 4
EXIT_NODES = 6
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
    folder: str
    """Of its data."""
    arguments: tuple[str, ...]
    """Of ``kvorum``."""


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
        metavar="ACTION NAME | -- SERVE-FLAG",
        help="start, stop, kill (SIGKILL) or wipe (delete the data folder of) the node NAME of the cluster that runs "
        "in another terminal with this --data-dir; or, after --, options for every node: see `kvorum serve --help`",
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
            os.path.join(options.data_dir, f"n{i}"),
            (
                *("serve", "--name", f"n{i}", "--peers", peers),
                *("--listen-client", f"127.0.0.1:{client}", "--listen-peer", f"127.0.0.1:{peer}"),
                *("--data-dir", os.path.join(options.data_dir, f"n{i}"), *options.serve),
            ),
        )
        for i, (client, peer) in enumerate(ports, 1)
    )


def _check(nodes: Sequence[LocalNode]) -> None:
    """Check the options of the nodes, so that a mistake is told once, and before any node is started.

    Raises:
        ConfigError: a value that a node would refuse.
        SystemExit: what argparse refuses; it has said why.
    """
    parser = argparse.ArgumentParser(
        prog="kvorum local", usage="kvorum local -- SERVE-FLAG ... (see kvorum serve --help)", allow_abbrev=False
    )
    sources.add_arguments(parser)
    for node in nodes:
        _, *arguments = node.arguments
        sources.load(vars(parser.parse_args(arguments)))


def _number(text: str, flag: str, minimum: int, maximum: int) -> int:
    if not (text.isascii() and text.isdigit()) or not minimum <= int(text) <= maximum:
        raise ConfigError(f"{flag}: must be a whole number from {minimum:,} to {maximum:,}, not {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Run the cluster until Ctrl-C, or act on a node of the one that runs; return the exit status.

    Raises:
        ConfigError: the arguments make no sense.
    """
    if options.serve and not options.serve[0].startswith("-"):
        return _act(options.data_dir, options.serve)
    nodes = plan(options)
    _check(nodes)
    if (occupied := _occupied(nodes)) is not None:
        print_line(f"kvorum local: {occupied}; choose another --base-port", sys.stderr)
        return EXIT_ADDRESS
    if local_control.is_taken(options.data_dir):
        print_line(f"kvorum local: another cluster runs in {options.data_dir}; choose another --data-dir", sys.stderr)
        return EXIT_STORAGE
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_LocalCluster(nodes, options.data_dir).run())
    return 130


def _act(data_dir: str, words: list[str]) -> int:
    actions = local_control.ACTIONS
    if words[0] not in actions or len(words) != 2:
        raise ConfigError(
            f"{shlex.join(words)!r} is not {', '.join(actions[:-1])} or {actions[-1]} with one node's name"
        )
    try:
        status, text = local_control.ask(data_dir, *words)
    except OSError:
        print_line(
            f"kvorum local: no local cluster runs in {data_dir}: nothing was done. Start one with `kvorum local` in "
            "another terminal, or name the folder of the one that runs with --data-dir",
            sys.stderr,
        )
        return EXIT_REFUSED
    print_line(text if status == 0 else f"kvorum local: {text}", sys.stdout if status == 0 else sys.stderr)
    return status


def _occupied(nodes: Sequence[LocalNode]) -> str | None:
    """Return which port of these nodes another process has; None: none."""
    for node in nodes:
        for port in (node.client_port, node.peer_port):
            if (reason := _in_use(port)) is not None:
                return f"port {port} of {node.name}: {reason}"
    return None


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
        data_dir: the parent of their folders.
    """

    def __init__(self, nodes: tuple[LocalNode, ...], data_dir: str) -> None:
        self._nodes = nodes
        self._data_dir = data_dir
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._told: set[str] = set()
        """The nodes that do not run because somebody said so."""
        self._tasks = asyncio.TaskGroup()
        self._is_ready = False
        self._is_interrupted = False
        """The user ends the cluster."""
        self._stopping = asyncio.Event()
        self._occupied: str | None = None
        """Why the cluster cannot start: a port that another process took meanwhile."""
        self._color = sys.stdout.isatty()
        self._unwritable = ""
        """Why nobody can read what the nodes say."""

    async def run(self) -> int:
        """Start every node, relay what they say, and stop them all on a signal; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        for line in _greeting(self._nodes):
            self._say(line)
        control = await self._listen()
        async with self._tasks as tasks:
            for node in self._nodes:
                tasks.create_task(self._run_node(node))
            announcing = tasks.create_task(self._announce())
            await self._stopping.wait()
            announcing.cancel()
            if control is not None:
                control.close()
            self._say("Stopping all nodes" if self._running else "All nodes have exited")
            tasks.create_task(self._stop())
        if control is not None:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._data_dir, local_control.SOCKET))
        if self._occupied is not None:
            print_line(f"kvorum local: {self._occupied}; choose another --base-port", sys.stderr)
            return EXIT_ADDRESS
        if self._unwritable:
            with contextlib.suppress(OSError):
                print_line(
                    f"kvorum local: the output cannot be written ({self._unwritable}): all nodes are stopped",
                    sys.stderr,
                )
            return EXIT_REFUSED
        if self._is_interrupted:
            return 0
        codes = {process.returncode for process in self._processes.values()}
        code = codes.pop() if len(codes) == 1 else None
        return code if code is not None and code >= 0 else EXIT_NODES

    def _say(self, line: str) -> None:
        """Print a line; stop all nodes if that is not possible: nobody would hear of them."""
        if self._unwritable:
            return
        try:
            print_line(line)
        except OSError as error:
            self._unwritable = error.strerror or str(error)
            # What is still in the buffer must not fail again when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._stopping.set()

    def _interrupt(self) -> None:
        self._is_interrupted = True
        self._stopping.set()

    async def _listen(self) -> asyncio.Server | None:
        try:
            return await local_control.listen(self._data_dir, self._act)
        except OSError as error:
            print_line(f"kvorum local: `kvorum local start|stop|kill|wipe` will not work: {error}", sys.stderr)
            return None

    async def _act(self, action: str, name: str) -> tuple[int, str]:
        """Carry out what another terminal asks for; return the exit status and what to say."""
        node = next((node for node in self._nodes if node.name == name), None)
        if node is None:
            return EXIT_REFUSED, f"there is no node {name!r}; there are {', '.join(node.name for node in self._nodes)}"
        match action:
            case "start":
                return await self._start(node)
            case "stop" | "kill":
                return await self._end(node, signal.SIGTERM if action == "stop" else signal.SIGKILL)
            case "wipe":
                return await self._wipe(node)
        return EXIT_REFUSED, f"{action!r} is not an action"

    async def _start(self, node: LocalNode) -> tuple[int, str]:
        if self._runs(node):
            return EXIT_REFUSED, f"{node.name} is running"
        if (occupied := _occupied([node])) is not None:
            return EXIT_ADDRESS, occupied
        self._told.discard(node.name)
        started = asyncio.get_running_loop().create_future()
        self._tasks.create_task(self._run_node(node, started))
        return 0, f"{node.name} is started, process {await started}"

    async def _end(self, node: LocalNode, number: signal.Signals) -> tuple[int, str]:
        if not self._runs(node):
            return EXIT_REFUSED, f"{node.name} is not running"
        process = self._processes[node.name]
        self._told.add(node.name)
        process.send_signal(number)
        try:
            async with asyncio.timeout(2 * GRACE_S + 1):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        return 0, f"{node.name} {_how(process.returncode or 0)}"

    async def _wipe(self, node: LocalNode) -> tuple[int, str]:
        if self._runs(node):
            return EXIT_REFUSED, f"{node.name} is running; stop it first"
        try:
            return 0, await asyncio.to_thread(_delete, node)
        except (StorageError, OSError) as error:
            return EXIT_STORAGE, str(error)

    def _runs(self, node: LocalNode) -> bool:
        process = self._processes.get(node.name)
        return process is not None and process.returncode is None

    @property
    def _running(self) -> list[asyncio.subprocess.Process]:
        return [process for process in self._processes.values() if process.returncode is None]

    def _prefix(self, node: LocalNode) -> str:
        index, name = self._nodes.index(node), node.name
        return f"\x1b[{_COLORS[index % len(_COLORS)]}m{name}\x1b[0m " if self._color else f"{name} "

    async def _run_node(self, node: LocalNode, started: asyncio.Future[int] | None = None) -> None:
        prefix = self._prefix(node)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvorum", *node.arguments),
            env=_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_BYTES_MAX,
            # Ctrl-C is ours to hand on: a second signal would tell the node to hurry.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._processes[node.name] = process
        if started is not None:
            started.set_result(process.pid)
        if self._stopping.is_set():
            process.terminate()
        self._say(f"{prefix}process {process.pid}, clients at 127.0.0.1:{node.client_port}")
        assert process.stdout is not None  # noqa: S101
        while line := await process.stdout.readline():
            self._say(prefix + line.decode("utf-8", "backslashreplace").rstrip("\n"))
        code = await process.wait()
        if self._stopping.is_set():
            return
        if code == EXIT_ADDRESS and not self._is_ready:
            # Another process took the port since it was free; a cluster that answers there is not this one.
            self._occupied = _occupied([node]) or f"{node.name} cannot listen"
            self._stopping.set()
            return
        for text in self._obituary(node, code):
            self._say(prefix + text)
        if len(self._processes) == len(self._nodes) and not self._running and not self._told:
            self._stopping.set()

    def _obituary(self, node: LocalNode, code: int) -> Iterator[str]:
        option = "" if self._data_dir == "data" else f" --data-dir {shlex.quote(self._data_dir)}"
        yield f"-- {node.name} {_how(code)}; other nodes still running: {len(self._running)}. Restart it with:"
        yield f"-- {_program('kvorum')} local start {node.name}{option}"

    async def _announce(self) -> None:
        """Say once that the whole cluster is ready, and who leads it."""
        urls = [f"http://127.0.0.1:{node.client_port}" for node in self._nodes]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
            # Other processes: there is no event to wait for.
            while (leader := await _ready_leader(session, urls)) is None or not self._answers_itself():  # noqa: ASYNC110
                await asyncio.sleep(POLL_INTERVAL_S)
        self._is_ready = True
        self._say(f"Ready: {len(urls)} nodes, led by {leader}")

    def _answers_itself(self) -> bool:
        """Tell whether it is our own nodes that answer at their ports."""
        pids = {name: process.pid for name, process in self._processes.items() if process.returncode is None}
        return all(node.name in pids and _listens(pids[node.name], node.client_port) for node in self._nodes)

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


def _listens(pid: int, port: int) -> bool:
    """Tell whether this process listens at a port. Elsewhere than on Linux: suppose so."""
    if sys.platform != "linux":
        return True
    try:
        with open(f"/proc/{pid}/net/tcp") as table:
            rows = [line.split() for line in table][1:]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
        return any(os.readlink(entry.path) in sockets for entry in os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return False  # It is gone, or closed a file meanwhile: the next look will tell.


def _delete(node: LocalNode) -> str:
    """Delete the node's data folder, unless some process uses it; return what was done. Blocks."""
    folder = Path(node.folder)
    if not folder.is_dir():
        return f"{node.name} has no data at {folder}"
    lock = datadir.Lock(folder)
    try:
        shutil.rmtree(folder)
    finally:
        lock.release()
    return f"{node.name}: deleted {folder}"


def _environment() -> dict[str, str]:
    """Return that of a node: ours, without the variables of which this command has warned."""
    ignored = sources.unknown_variables(os.environ)
    ours = {name: value for name, value in os.environ.items() if name not in ignored}
    return {"KVORUM_LOG_FORMAT": "text", "KVORUM_SHUTDOWN_GRACE_S": str(GRACE_S), **ours}


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"


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
