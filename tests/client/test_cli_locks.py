"""``kv lease``, ``kv lock`` and ``kv elect``: what they print, the exit status, and what becomes of the command."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client.test_cli import Kv
from client.test_cli import run as run_cli
from client.test_leases import record_leases, renewals
from fronts.fake_node import Server
from waiting import until

from kvorum.fronts.http import observe
from kvorum_client import Client, cli, cli_guard
from kvorum_client.cli_guard import Signals, run_command

Out = Callable[[], tuple[list[str], list[str]]]


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Out:
    """What was printed since the last look: the lines of stdout and of stderr."""

    def read() -> tuple[list[str], list[str]]:
        told = capsys.readouterr()
        return told.out.splitlines(), told.err.splitlines()

    return read


_spawned: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Kill what a test that failed has left behind."""
    yield
    for process in _spawned:
        if process.poll() is None:
            process.kill()
            process.communicate()
    _spawned.clear()


def run(scenario: Callable[[Server, Kv], Awaitable[None]]) -> None:
    async def with_level(server: Server, kv: Kv) -> None:
        server.node.raise_feature_level()
        record_leases(server.node)
        await scenario(server, kv)

    run_cli(with_level)


def spawn(server: Server, *arguments: str, terminal: int | None = None) -> subprocess.Popen[str]:
    """Start `kv`, with pipes; ``terminal``: its stdin, which becomes the terminal of its session."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # A shell lets what runs in the background ignore it.
        if terminal is not None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "kvorum_client.cli", "--endpoints", server.url, *arguments],
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=terminal is not None,
        preexec_fn=prepare,
    )
    _spawned.append(process)
    return process


async def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of a process; return its status, stdout and stderr."""
    out, err = await asyncio.to_thread(process.communicate, timeout=20)
    return process.returncode, out, err


def test_leases_are_granted_kept_shown_and_revoked(out: Out) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("lease", "grant", "60", "--delay", "5") == 0
        [[id], errors] = out()
        assert errors == []
        assert await kv("put", "k", "v", "--lease", id) == 0
        assert await kv("lease", "show", id, "--keys", "-o", "json") == 0
        shown = json.loads("\n".join(out()[0][1:]))
        assert 50_000 < shown.pop("remaining_ms") <= 60_000
        assert shown == {"id": id, "ttl_s": 60, "key_count": 1, "lock_delay_s": 5, "keys": [{"key": "k"}]}
        assert await kv("lease", "show", id, "--keys") == 0
        heading, row, key = out()[0]
        assert heading.split() == ["ID", "TTL", "REMAINING", "KEYS", "LOCK-DELAY"]
        assert (row.split()[0], row.split()[-3], key) == (id, "1", "  k")
        assert await kv("lease", "keep", id, "--once") == 0
        assert out()[0] == [f"lease {id} lives for 60 s"]
        assert await kv("lease", "ls") == 0 and await kv("lease", "ls", "-o", "json") == 0
        assert id in "".join(out()[0])
        assert await kv("lease", "revoke", id) == 0
        assert out()[0] == [f"lease {id} is revoked; 1 keys deleted"]
        assert await kv("get", "k") == 1
        out()
        for command in ("revoke", "show", "keep"):
            assert await kv("lease", command, id) == 1
            assert len(out()[1]) == 1
        assert await kv("lease", "grant", "1", "--id", "ff", "-o", "json") == 0
        granted = json.loads("\n".join(out()[0]))
        assert (granted["id"], granted["ttl_s"], granted["lock_delay_s"]) == ("ff", 2, 0)
        assert await kv("lease", "grant", "1", "--id", "ff") == 1

    run(scenario)


def test_keeping_a_lease_goes_on_until_it_is_gone(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum_client.cli_lease.RENEWALS", 1000)

    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("lease", "grant", "30", "--id", "a") == 0
        keeping = asyncio.create_task(kv("lease", "keep", "a"))
        await until("renewed", lambda: renewals(server) > 3)
        server.node.revoke(10)
        assert await keeping == 1
        lines, errors = out()
        assert lines.count("lease a lives for 30 s") >= 3 and "the lease a does not exist" in errors[-1]

    run(scenario)


def test_commands_that_go_on_print_each_object_of_json_in_a_line(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs read them line by line."""
    monkeypatch.setattr("kvorum_client.cli_lease.RENEWALS", 1000)

    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("lease", "grant", "30", "--id", "a") == 0
        out()
        keeping = asyncio.create_task(kv("lease", "keep", "a", "-o", "json"))
        holding = asyncio.create_task(kv("lock", "l", "-o", "json"))
        lines = list[str]()

        def is_held() -> bool:
            lines.extend(out()[0])
            return any("fencing_token" in line for line in lines)

        await until("renewed", lambda: renewals(server) > 3)
        await until("held", is_held)
        for lease in list(server.node.store.leases):
            server.node.revoke(lease.id)
        assert [await keeping, await holding] == [1, 1]
        printed = [json.loads(line) for line in lines + out()[0]]
        assert printed.count({"id": "a", "ttl_s": 30}) >= 3
        assert [set(each) for each in printed if "name" in each] == [{"name", "fencing_token", "lease"}]

    run(scenario)


def test_a_transaction_puts_with_a_lease_and_compares_it(out: Out, tmp_path: Path) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        await kv("lease", "grant", "60", "--id", "1a")
        for lines, status in (
            ("if lease k = 0\nthen put k v --lease 1a", 0),
            ("if lease k = 1a\nthen put k w --ignore-lease\nthen get k", 0),
            ("if lease k = 1b\nthen put k x", 1),
            ("if lease k = xyz\nthen put k x", 2),
            ("then put k x --lease 0", 2),
        ):
            (tmp_path / "txn").write_text(lines)
            assert await kv("txn", str(tmp_path / "txn"), "-o", "json") == status
        assert '"lease": "1a"' in "".join(out()[0])
        assert await kv("get", "k") == 0
        assert out()[0] == ["w"]

    run(scenario)


def test_records_show_their_lease(out: Out) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        await kv("lease", "grant", "60", "--id", "1a")
        await kv("put", "k", "v", "--lease", "1A")
        await kv("put", "plain", "v")
        out()
        assert await kv("get", "k", "-o", "json") == 0
        assert json.loads("\n".join(out()[0]))["lease"] == "1a"
        assert await kv("get", "plain", "-o", "json") == 0
        assert "lease" not in json.loads("\n".join(out()[0]))
        assert await kv("get", "k", "-o", "table") == 0
        assert [line.split()[-1] for line in out()[0]] == ["lease", "1a"]
        assert await kv("get", "--prefix", "", "-o", "table") == 0
        assert [line.split()[-1] for line in out()[0]] == ["LEASE", "1a", "-"]
        assert await kv("get", "--prefix", "k", "-o", "json") == 0
        assert json.loads(out()[0][0])["lease"] == "1a"
        assert await kv("history", "k", "-o", "json") == 0
        assert json.loads("\n".join(out()[0]))["versions"][0]["lease"] == "1a"
        assert await kv("put", "k", "v", "--lease", "99") == 1
        assert "the lease 99, which the key" in out()[1][0]

    run(scenario)


@pytest.mark.parametrize(
    "arguments",
    [
        ("lease", "revoke", "0"),
        ("lease", "revoke", "xyz"),
        ("lease", "revoke", "1_0"),
        ("lease", "revoke", "8000000000000000"),
        ("lease", "grant", "-1"),
        ("lease", "grant", "0"),
        ("lease", "grant", "5", "--delay", "61"),
        ("lock",),
        ("lock", "a", "--wait", "-1"),
        ("lock", "a", "b"),
        ("lock", "", "--", "true"),
        ("elect", "e"),
        ("elect", "e", "v", "--listen"),
        ("elect", "e", "--listen", "--", "true"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        try:
            status = await kv(*arguments)
        except SystemExit as error:
            status = int(str(error.code))
        assert status == 2 and server.node.calls == []

    run(scenario)


def test_a_command_runs_under_a_lock_and_its_status_is_that_of_kv(out: Out) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        script = 'test "$KVORUM_LOCK_NAME" = "a b" && test "$KVORUM_LOCK_TOKEN" = "$1" && test "$2" = -- && exit 7'
        token = server.node.store.revision + 1
        assert await kv("lock", "a b", "--ttl", "5", "--", "sh", "-c", script, "-", str(token), "--") == 7
        assert await kv("lock", "a", "--", "sh", "-c", "kill -9 $$") == 128 + 9
        assert await kv("locks") == 0
        assert len(out()[0]) == 1 and len(server.node.store.leases) == 0

    run(scenario)


@pytest.mark.parametrize(("command", "status"), [("/no/such/command", 127), ("/etc/passwd", 126)])
def test_the_lock_is_not_taken_for_a_command_that_cannot_run(command: str, status: int, out: Out) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("lock", "a", "--", command) == status
        assert server.node.calls == [] and command in out()[1][0]

    run(scenario)


def test_a_lock_that_is_held_is_shown_and_refused(out: Out) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        async with Client([server.url]) as client, client.lock("a") as lock:
            id = f"{lock.lease.id:x}"
            assert await kv("lock", "a", "--wait", "0", "--", "true") == 1
            assert f"the lease {id} holds the lock 'a'" in out()[1][0]
            assert await kv("locks") == 0
            heading, row = out()[0]
            assert heading.split() == ["NAME", "HOLDER", "TOKEN", "REMAINING", "WAITERS"]
            assert row.split()[:3] == ["a", id, str(lock.fencing_token)] and row.split()[-1] == "0"
            assert await kv("locks", "a") == 0
            assert out()[0][1].split()[:4] == ["holds", "it", id, str(lock.fencing_token)]
            assert await kv("locks", "-o", "json") == 0
            [listed] = json.loads("\n".join(out()[0]))
            assert await kv("locks", "a", "-o", "json") == 0
            shown = json.loads("\n".join(out()[0]))
            for each in (listed, shown):
                assert each["name"] == "a" and each["holder"]["lease"] == id and each["waiters"] == []
            waiting = asyncio.create_task(kv("lock", "a", "--", "true"))
            await until("kv says what it waits for", lambda: f"kv: waiting for the lock a: the lease {id}" in told(out))
        assert await waiting == 0
        assert await kv("locks", "a") == 1

    told_lines: list[str] = []

    def told(out: Out) -> str:
        told_lines.extend(out()[1])
        return "\n".join(told_lines)

    run(scenario)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("is_held", [True, False])
def test_without_a_command_a_lock_is_held_until_a_signal(number: signal.Signals, status: int, is_held: bool) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        async with Client([server.url]) as client:
            first = None if is_held else await client.lock("a").acquire()
            holding = spawn(server, "lock", "a")

            async def is_there() -> bool:
                info = await client.lock_info("a")
                return info.waiter_count == 1 if first else info.holder is not None

            await until("it is held, or waited for", is_there)
            if first is None:
                assert holding.stdout is not None
                token = await asyncio.to_thread(holding.stdout.readline)
                info = await client.lock_info("a")
                assert info.holder is not None and int(token) == info.holder.fencing_token
            holding.send_signal(number)
            assert (await ended(holding))[0] == status
            info = await client.lock_info("a")
            assert info.waiter_count == 0 and (info.holder is None) == is_held
            if first is not None:
                await first.release()
            assert len(server.node.store.leases) == 0

    run(scenario)


def test_signals_are_passed_on_to_the_command() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            script = f"import signal; signal.signal({int(number)}, lambda *_: exit(40)); print(1, flush=True); "
            holding = spawn(server, "lock", "a", "--", sys.executable, "-c", script + "\nwhile True: signal.pause()")
            assert holding.stdout is not None
            await asyncio.to_thread(holding.stdout.readline)
            holding.send_signal(number)
            assert (await ended(holding))[0] == 40
            assert len(server.node.store.leases) == 0

    run(scenario)


def test_ctrl_c_on_a_terminal_reaches_the_command_once() -> None:
    script = """
import signal
signal.signal(signal.SIGINT, lambda *_: print("int", flush=True))
signal.signal(signal.SIGTERM, lambda *_: exit(40))
print("ready", flush=True)
while True: signal.pause()
"""

    async def scenario(server: Server, kv: Kv) -> None:
        terminal, slave = pty.openpty()
        holding = spawn(server, "lock", "a", "--", sys.executable, "-c", script, terminal=slave)
        os.close(slave)
        assert holding.stdout is not None
        assert await asyncio.to_thread(holding.stdout.readline) == "ready\n"
        os.write(terminal, b"\x03")
        assert await asyncio.to_thread(holding.stdout.readline) == "int\n"
        holding.send_signal(signal.SIGTERM)
        assert (await ended(holding))[:2] == (40, "")
        os.close(terminal)

    run(scenario)


@pytest.mark.parametrize("ignores", [False, True])
def test_a_command_is_stopped_when_the_lock_is_lost(ignores: bool) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        trap = "trap '' TERM; " if ignores else "trap 'exit 0' TERM; "
        command = ("sh", "-c", f"{trap}echo $$; while true; do sleep 0.05; done")
        holding = spawn(server, "lock", "a", "--ttl", "2", "--grace", "0.2", "--", *command)
        assert holding.stdout is not None
        await asyncio.to_thread(holding.stdout.readline)
        server.node.revoke(next(iter(server.node.store.leases)).id)
        status, _, err = await ended(holding)
        assert status == 1
        assert "kv: the lock a is lost: the lease" in err and "sh is stopped" in err

    run(scenario)


def test_a_command_that_has_ended_is_sent_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be that of another process by then."""
    sent = list[signal.Signals]()
    send = cli_guard._send

    def recorded(pid: int, number: signal.Signals, *, to_group: bool) -> None:
        sent.append(number)
        send(pid, number, to_group=to_group)

    async def scenario() -> None:
        monkeypatch.setattr(cli_guard, "_send", recorded)
        lost = asyncio.Event()
        lost.set()
        with Signals() as signals:
            assert await run_command(["sleep", "60"], dict(os.environ), lost, 60.0, signals) == 128 + signal.SIGTERM
        assert sent == [signal.SIGTERM, signal.SIGCONT]

    asyncio.run(scenario())


def test_a_command_begins_without_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 starts one once the command runs; where none can be had (ulimit -u), it ran on without the lock."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        with Signals() as signals:
            monkeypatch.setattr(threading.Thread, "start", start)
            assert await run_command(["sh", "-c", "exit 40"], dict(os.environ), asyncio.Event(), 1.0, signals) == 40

    asyncio.run(scenario())


def test_ctrl_c_at_a_terminal_just_before_the_command_begins_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal has sent it to every program that was there, and the command was not."""
    start = asyncio.create_subprocess_exec
    script = "trap 'exit 40' INT; echo ready; while true; do sleep 0.05; done"

    async def slow(*command: str, **options: Any) -> asyncio.subprocess.Process:
        os.kill(os.getpid(), signal.SIGINT)
        process = await start(*command, stdout=subprocess.PIPE, **options)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return process

    async def scenario() -> None:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        with Signals() as signals:
            assert await run_command(["sh", "-c", script], dict(os.environ), asyncio.Event(), 1.0, signals) == 40

    asyncio.run(scenario())


def test_a_signal_ends_kv_again_when_the_command_cannot_begin() -> None:
    async def scenario() -> None:
        with Signals() as signals:
            assert await run_command(["/no/such"], dict(os.environ), asyncio.Event(), 1.0, signals) == 127
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(10)
            assert signals.ended_by == signal.SIGTERM

    asyncio.run(scenario())


def test_a_signal_that_comes_while_the_command_is_started_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the task, and so the command that had just begun was killed, and `kv` said that it was interrupted."""
    start = asyncio.create_subprocess_exec
    script = "trap 'exit 40' USR1 TERM; echo ready; while true; do sleep 0.05; done"

    async def slow(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*command, stdout=subprocess.PIPE, **options)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        os.kill(os.getpid(), signal.SIGTERM)
        handled = asyncio.Event()
        asyncio.get_running_loop().call_later(0, handled.set)
        await handled.wait()
        return process

    async def scenario() -> None:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
        with Signals() as signals:
            assert await run_command(["sh", "-c", script], dict(os.environ), asyncio.Event(), 1.0, signals) == 40
            assert not signals.ended_by

    asyncio.run(scenario())


def test_a_command_that_cannot_be_started_is_a_status(out: Out) -> None:
    async def scenario() -> None:
        with Signals() as signals:
            assert await run_command(["/no/such"], {}, asyncio.Event(), 1.0, signals) == 127
            assert await run_command(["/etc/passwd"], {}, asyncio.Event(), 1.0, signals) == 126
        assert len(out()[1]) == 2

    asyncio.run(scenario())


def test_elections_are_won_shown_and_listened_to(out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "HEARTBEAT_S", 0.1)

    async def scenario(server: Server, kv: Kv) -> None:
        listening = spawn(server, "elect", "e", "--listen")
        assert listening.stdout is not None
        assert await asyncio.to_thread(listening.stdout.readline) == "no leader\n"
        token = server.node.store.revision + 1
        script = 'test "$KVORUM_ELECTION_NAME/$KVORUM_ELECTION_TOKEN" = e/$1 && exit 7'
        assert await kv("elect", "e", "me\n", "--", "sh", "-c", script, "-", str(token)) == 7
        assert await asyncio.to_thread(listening.stdout.readline) == f"{token} me\\n\n"
        assert await asyncio.to_thread(listening.stdout.readline) == "no leader\n"
        listening.send_signal(signal.SIGINT)
        assert (await ended(listening))[0] == 130
        async with Client([server.url]) as client, client.election("e", "me"):
            assert await kv("elections") == 0
            assert out()[0][-1].split()[0] == "e"
            assert await kv("elections", "e") == 0
            assert out()[0][1].split()[-1] == "me"
            assert await kv("elections", "e", "-o", "json") == 0
            assert json.loads("\n".join(out()[0]))["holder"]["value"] == "me"
            assert await kv("elect", "e", "you", "--wait", "0") == 1
        assert await kv("elections", "e") == 1
        assert "nobody leads: e" in out()[1][-1]

    run(scenario)


def test_the_help_says_how_to_run_a_command(out: Out) -> None:
    for command in ("lock", "elect"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text = "\n".join(out()[0])
        assert "[-- COMMAND...]" in text and "fencing token" in text
