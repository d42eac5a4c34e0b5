"""The ``kvorum`` command as a process: exit statuses, one-line errors, and a whole cluster in one terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from acceptance.processes import kvorum
from bench.processes import reserve
from waiting import until

from kvorum.__main__ import main
from kvorum.commands import local, serve
from kvorum.commands.local import EXIT_NODES, EXIT_REFUSED
from kvorum.storage import datadir
from kvorum_client import Client

# A child process inherits no options.
ENV = {name: value for name, value in os.environ.items() if not name.startswith("KVORUM_")}


def free_base_port(count: int, apart: int) -> int:
    """Return the first of ``count`` ports in a row that are free now, and so are those ``apart`` higher; reserve them.

    Other tests take ports at the same time: where it looks first is drawn.
    """
    for base in random.sample(range(10_000, 30_000 - count - apart), k=1000):
        wanted = [base + i + shift for i in range(count) for shift in (0, apart)]
        with contextlib.ExitStack() as stack:
            try:
                for port in wanted:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            if all(reserve(port) for port in wanted):
                return base
    raise AssertionError("no free ports")


@pytest.fixture
def ports() -> int:
    return free_base_port(3, 1000)


def listen(base: int) -> list[str]:
    return ["--listen-client", f"127.0.0.1:{base}", "--listen-peer", f"127.0.0.1:{base + 1000}", "--log-format", "text"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--tick-ms", "0"],
        ["serve", "--listen-client", "0.0.0.0:8001"],
        ["serve", "--listen-client", "127.0.0.1:9001"],
        ["serve", "--peers", "n1=127.0.0.1:9001", "--name", "n2"],
        ["config", "--election-timeout-ms", "100"],
        ["local", "--nodes", "0"],
        ["local", "--base-port", "65000"],
    ],
)
def test_contradictory_flags_exit_2_with_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in set(os.environ) - set(ENV):
        monkeypatch.delenv(name)
    assert main(arguments) == serve.EXIT_CONFIG
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("kvorum: ") and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--foo"], "unrecognized arguments: --foo"),
        (["--tick-ms", "0"], "--tick-ms: must be a whole number"),
        (["--peers", "n9=127.0.0.1:1"], "name n1 is not among peers"),
    ],
)
def test_wrong_options_for_the_nodes_of_a_local_cluster_are_told_once_and_nothing_is_started(
    flags: list[str], says: str, ports: int, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    result = kvorum("local", "--base-port", str(ports), "--data-dir", str(folder), "--", *flags)
    assert (result.returncode, result.stdout, folder.exists()) == (serve.EXIT_CONFIG, "", False)
    assert result.stderr.count(says) == 1 and result.stderr.count("\n") <= 2


@pytest.mark.parametrize("command", ["serve", "local", "version"])
def test_an_unknown_argument_shows_the_usage_of_its_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--frob"])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"usage: kvorum {command} ") and "unrecognized arguments: --frob" in printed


def test_a_port_in_use_exits_3_with_one_line_that_names_it(ports: int, tmp_path: Path) -> None:
    for taken in (ports, ports + 1000):
        with socket.socket() as blocker:
            blocker.bind(("127.0.0.1", taken))
            blocker.listen()
            result = kvorum("serve", "--name", "n1", "--data-dir", str(tmp_path / "n1"), *listen(ports))
            assert result.returncode == serve.EXIT_ADDRESS
            errors = [line for line in result.stdout.splitlines() if " error " in line]
            assert len(errors) == 1 and str(taken) in errors[0] and "in use" in errors[0]
            assert "Traceback" not in result.stdout + result.stderr
            local = kvorum("local", "--base-port", str(ports), "--data-dir", str(tmp_path))
            assert local.returncode == serve.EXIT_ADDRESS
            assert local.stderr.count("\n") == 1 and str(taken) in local.stderr


@contextlib.asynccontextmanager
async def node(
    ports: int, folder: Path, name: str = "n1", stop: signal.Signals = signal.SIGTERM
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a cluster of one until the block ends, then stop it gently."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kvorum", "serve", "--name", name, "--data-dir", str(folder), *listen(ports)),
        env=ENV,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(stop)
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert b"Stopped" in output


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP])
def test_a_node_writes_stops_on_a_signal_and_finds_everything_again(
    ports: int, tmp_path: Path, stop: signal.Signals
) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(90):
            for round_ in (1, 2):
                running = node(ports, tmp_path / "n1", stop=stop)
                async with running, Client([f"127.0.0.1:{ports}"], timeout_s=30) as kv:
                    record = await kv.get("k")
                    assert (record.value if record else None) == (None if round_ == 1 else b"v")
                    await kv.put("k", "v")

    asyncio.run(scenario())


def test_a_folder_that_cannot_be_used_exits_4_with_one_line(ports: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(90):
            async with node(ports, tmp_path / "n1"), Client([f"127.0.0.1:{ports}"], timeout_s=30) as kv:
                await kv.put("k", "v")
                # Another process holds it.
                await asyncio.to_thread(refused, "n1", ports + 1)
            # It is another node's.
            await asyncio.to_thread(refused, "n2", ports)

    def refused(name: str, port: int) -> None:
        result = kvorum("serve", "--name", name, "--data-dir", str(tmp_path / "n1"), *listen(port))
        assert result.returncode == serve.EXIT_STORAGE, result.stdout
        errors = [line for line in result.stdout.splitlines() if " error " in line]
        assert len(errors) == 1
        assert "Traceback" not in result.stdout + result.stderr

    asyncio.run(scenario())


class Local:
    """A running ``kvorum local``, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip("\n"))

    def find(self, pattern: str) -> re.Match[str] | None:
        return next((found for line in self.lines if (found := re.search(pattern, line))), None)


@contextlib.asynccontextmanager
async def local_cluster(ports: int, folder: Path) -> AsyncIterator[Local]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kvorum", "local", "--base-port", str(ports), "--data-dir", str(folder)),
        env=ENV,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    local = Local(process)
    reading = asyncio.create_task(local.read())
    try:
        yield local
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()
        await reading
        # What pytest shows when the test failed.
        sys.stdout.write("\n".join(local.lines))


async def until_ready(kv: Client, endpoint: str) -> None:
    while not (await kv.health(endpoint)).ready:  # noqa: ASYNC110 - another process: there is no event
        await asyncio.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_local_cluster_survives_a_node_and_says_how_to_start_it_again(ports: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(120):
            async with local_cluster(ports, tmp_path) as local:
                await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes, led by n\d$"))
                pids = [int(m[1]) for line in local.lines if (m := re.match(r"n\d process (\d+),", line))]
                leader = local.find(r"led by n(\d)$")
                assert leader is not None and len(pids) == 3
                async with Client([f"127.0.0.1:{ports + i}" for i in range(3)], timeout_s=30) as kv:
                    await kv.put("k", "1")
                    os.kill(pids[int(leader[1]) - 1], signal.SIGKILL)
                    await until(
                        "the death is told",
                        lambda: local.find(r"was killed by SIGKILL; other nodes still running: 2"),
                    )
                    await kv.put("k", "2")
                    again = local.find(rf"^n{leader[1]} -- (\S*kvorum local start .*)$")
                    assert again is not None
                    restarted = await asyncio.to_thread(kvorum, *shlex.split(again[1])[1:])
                    assert restarted.returncode == 0, restarted
                    own = f"127.0.0.1:{ports + int(leader[1]) - 1}"
                    await until_ready(kv, own)
                    record = await kv.get("k")
                    assert record is not None and record.value == b"2"
                    os.kill(pids[int(leader[1]) % 3], signal.SIGKILL)
                    await until(
                        "the second death is told",
                        lambda: len([line for line in local.lines if "was killed by SIGKILL" in line]) == 2,
                    )
            assert local.find("Stopping all nodes")
            # The user ended it; what happened to a node before is told.
            assert local.process.returncode == 0
            assert not any(_alive(pid) for pid in pids)

    asyncio.run(scenario())


def test_a_local_cluster_whose_nodes_all_die_ends_with_a_status_of_its_own(ports: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(90), local_cluster(ports, tmp_path) as local:
            await until("three nodes are started", lambda: sum(" process " in line for line in local.lines) == 3)
            for line in local.lines:
                if found := re.match(r"n\d process (\d+),", line):
                    os.kill(int(found[1]), signal.SIGKILL)
            assert await local.process.wait() == EXIT_NODES
            assert local.find("All nodes have exited")

    asyncio.run(scenario())


def test_one_node_of_a_local_cluster_is_stopped_killed_wiped_and_started_by_name(ports: int, tmp_path: Path) -> None:
    async def act(*arguments: str) -> tuple[int, str]:
        result = await asyncio.to_thread(kvorum, "local", *arguments, "--data-dir", str(tmp_path))
        return result.returncode, (result.stdout + result.stderr).strip()

    async def scenario() -> None:
        async with asyncio.timeout(120):
            async with local_cluster(ports, tmp_path) as local:
                await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes, led by n\d$"))
                async with Client([f"127.0.0.1:{ports + i}" for i in range(3)], timeout_s=30) as kv:
                    await kv.put("k", "1")
                    assert await act("wipe", "n2") == (1, "kvorum local: n2 is running; stop it first")
                    assert await act("start", "n2") == (1, "kvorum local: n2 is running")
                    assert await act("stop", "n2") == (0, "n2 exited with status 0")
                    assert await act("stop", "n2") == (1, "kvorum local: n2 is not running")
                    assert await act("wipe", "n2") == (0, f"n2: deleted {tmp_path / 'n2'}")
                    assert not (tmp_path / "n2").exists()
                    assert sorted(os.listdir(tmp_path)) == ["local.sock", "n1", "n3"]
                    assert await act("wipe", "n2") == (0, f"n2 has no data at {tmp_path / 'n2'}")
                    status, said = await act("start", "n2")
                    assert (status, said.split(", ")[0]) == (0, "n2 is started")
                    await until_ready(kv, f"127.0.0.1:{ports + 1}")
                    assert await act("kill", "n3") == (0, "n3 was killed by SIGKILL")
                    assert (await kv.put("k", "2")).version == 2
                    for name in ("n9", "..", ""):
                        status, said = await act("wipe", name)
                        assert (status, "there is no node" in said) == (1, True)
                    assert (await act("frobnicate", "n1"))[0] == serve.EXIT_CONFIG
                    assert (await act("stop"))[0] == serve.EXIT_CONFIG
                    # Nodes that were told to stop do not end the cluster, even all of them.
                    for name in ("n1", "n2"):
                        assert (await act("stop", name))[0] == 0
                    assert (await act("start", "n1"))[0] == 0
            assert local.process.returncode == 0
            assert not (tmp_path / "local.sock").exists()
            status, said = await act("stop", "n1")
            assert (status, "no local cluster runs" in said) == (EXIT_REFUSED, True)

    asyncio.run(scenario())


def test_a_folder_that_another_process_uses_is_not_wiped(ports: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(90), local_cluster(ports, tmp_path) as local:
            await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes, led by n\d$"))
            data_dir = ("--data-dir", str(tmp_path))
            assert (await asyncio.to_thread(kvorum, "local", "stop", "n2", *data_dir)).returncode == 0
            with datadir.locked(tmp_path / "n2"):
                result = await asyncio.to_thread(kvorum, "local", "wipe", "n2", *data_dir)
                assert (result.returncode, "another process holds" in result.stderr) == (serve.EXIT_STORAGE, True)
                assert (tmp_path / "n2" / "kvorum.db").exists()

    asyncio.run(scenario())


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_cluster_of_somebody_else_at_its_ports_is_not_taken_for_its_own(
    when: str, ports: int, tmp_path: Path
) -> None:
    # The other cluster takes the ports after they were found free.
    script = (
        "import sys; from kvorum.__main__ import main; from kvorum.commands import local\n"
        "look, looks = local._in_use, []\n"
        "local._in_use = lambda port: looks.append(port) if len(looks) < 6 else look(port)\n"
        "sys.exit(main())"
    )
    start = ["-m", "kvorum"] if when == "before" else ["-c", script]
    arguments = [*start, "local", "--base-port", str(ports), "--data-dir", str(tmp_path / "ours")]

    async def scenario() -> None:
        async with asyncio.timeout(90), local_cluster(ports, tmp_path / "theirs") as theirs:
            await until("their cluster is ready", lambda: theirs.find(r"^Ready: 3 nodes"))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *arguments),
                env=ENV,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                async with asyncio.timeout(30):
                    output = (await process.communicate())[0].decode()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert "Ready" not in output
            assert process.returncode == serve.EXIT_ADDRESS, output
            last = output.splitlines()[-1]
            assert re.fullmatch(r"kvorum local: port \d+ of n\d: address already in use; choose another .*", last), (
                output
            )

    asyncio.run(scenario())


def test_a_second_local_cluster_in_a_folder_is_refused(ports: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(90), local_cluster(ports, tmp_path) as local:
            await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes"))
            base = ("--base-port", str(ports + 100))
            result = await asyncio.to_thread(kvorum, "local", *base, "--data-dir", str(tmp_path))
            assert (result.returncode, "another cluster runs in" in result.stderr) == (serve.EXIT_STORAGE, True)

    asyncio.run(scenario())


def test_a_local_cluster_whose_output_nobody_reads_stops_its_nodes_and_says_so(ports: int, tmp_path: Path) -> None:
    """As in `kvorum local | head`."""
    command = [sys.executable, "-m", "kvorum", "local", "--base-port", str(ports), "--data-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("Starting 3 nodes")
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 1
    assert said == "kvorum local: the output cannot be written (Broken pipe): all nodes are stopped\n"


def test_the_nodes_of_a_local_cluster_die_with_it(ports: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(60):
            async with local_cluster(ports, tmp_path) as local:
                await until("three nodes are started", lambda: sum(" process " in line for line in local.lines) == 3)
                pids = [int(m[1]) for line in local.lines if (m := re.match(r"n\d process (\d+),", line))]
                local.process.kill()
                await until("all nodes are gone", lambda: not any(_alive(pid) for pid in pids))

    asyncio.run(scenario())


@pytest.mark.parametrize("command", [["config", "--name", "n1"], ["version"], ["local", "start"], ["restore"]])
def test_every_command_warns_of_variables_that_nobody_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    monkeypatch.setenv("KVORUM_TICKMS", "1")
    monkeypatch.chdir(tmp_path)
    main([*command, "--from", str(tmp_path / "none")] if command == ["restore"] else command)
    assert capsys.readouterr().err.splitlines()[0] == (
        "kvorum: Ignoring unknown environment variables: KVORUM_TICKMS. Did you mean KVORUM_TICK_MS?"
    )


def test_a_node_logs_once_which_variables_nobody_reads(ports: int, tmp_path: Path) -> None:
    (tmp_path / "no folder").write_bytes(b"")
    options = ("--name", "n1", *listen(ports), "--data-dir", str(tmp_path / "no folder"))
    result = kvorum("serve", *options, variables={"KVORUM_TICKMS": "1"})
    assert result.stdout.count("Ignoring unknown environment variables: KVORUM_TICKMS. Did you mean") == 1


def test_the_nodes_of_a_local_cluster_do_not_repeat_its_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVORUM_TICKMS", "1")
    monkeypatch.setenv("KVORUM_TICK_MS", "20")
    environ = local._environment()
    assert "KVORUM_TICKMS" not in environ
    assert environ["KVORUM_TICK_MS"] == "20"


def test_without_the_packages_of_the_node_the_command_says_which_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(module: str, arguments: object) -> int:
        raise ModuleNotFoundError("No module named 'sqlitedict'", name="sqlitedict")

    monkeypatch.setattr("kvorum_entry.run", run)
    assert main(["version"]) == serve.EXIT_CONFIG
    assert "pip install --require-hashes -r requirements.lock" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["start", "stop", "kill", "wipe"])
def test_an_action_without_a_local_cluster_is_refused_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    assert main(["local", action, "n1", "--data-dir", str(tmp_path)]) == EXIT_REFUSED
    said = capsys.readouterr().err
    assert f"no local cluster runs in {tmp_path}: nothing was done. Start one" in said
    assert "--data-dir" in said


def test_version_and_help_say_what_there_is() -> None:
    assert kvorum("version").stdout.startswith("kvorum ")
    text = kvorum("serve", "--help").stdout
    assert "--election-timeout-ms" in text and "exit status" in text
    assert kvorum("config", "--name", "n1").stdout.startswith("name ")
    assert kvorum("frobnicate").returncode == 2
