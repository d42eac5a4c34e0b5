"""The ``kv`` command: what it prints, and the exit status that a script relies on."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fronts.fake_node import FakeNode, Server, serving
from waiting import until

import kvorum
from kvorum.errors import FeatureLevelBlockedError, NoLeaderError, NoSpaceError
from kvorum.errors import OutcomeUnknownError as ServerOutcomeUnknown
from kvorum.kv.commands import Put
from kvorum_client import cli, cli_endpoints, cli_parser, cli_waiting

Kv = Callable[..., Coroutine[Any, Any, int]]


def run(scenario: Callable[[Server, Kv], Awaitable[None]]) -> None:
    """Run the scenario with a server and with the command line pointed at it."""

    async def main() -> None:
        async with asyncio.timeout(30), serving(FakeNode()) as server:

            async def kv(*arguments: str) -> int:
                return await asyncio.to_thread(cli.main, ["--endpoints", server.url, *arguments])

            server.node.leader = ("n1", server.url)
            members = server.node.members
            members["n1"] = msgspec.structs.replace(members["n1"], client_url=server.url)
            for name in ("n2", "n3"):
                members[name] = msgspec.structs.replace(members[name], client_url="http://127.0.0.1:1")
            await scenario(server, kv)

    asyncio.run(main())


def test_put_get_del(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("put", "foo", "bar") == 0
        assert capsysbinary.readouterr().out == b"foo: revision 1, version 1\n"
        assert await kv("get", "foo") == 0
        assert capsysbinary.readouterr().out == b"bar"
        assert await kv("del", "foo") == 0
        assert capsysbinary.readouterr().out == b"foo: deleted at revision 2\n"

    run(scenario)


def test_exit_1_for_a_missing_key_and_a_failed_compare(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("get", "nokey") == 1
        assert await kv("del", "nokey") == 1
        assert await kv("put", "k", "v", "--prev-revision", "7") == 1
        err = capsys.readouterr().err
        assert err.count("kv: ") == err.count("\n") == 3

    run(scenario)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["put", "k"],
        ["get", "k", "-o", "yaml"],
        ["put", "k", "v", "--prev-revision", "-1"],
        ["put", "k", "v", "--prev-revision", "x"],
        ["get", "k", "--timeout", "0"],
        ["get", "k", "--timeout", "nan"],
        ["-op", "put", "-key", "k"],
        ["-op", "get", "-key", "k", "-val", "v"],
        ["-op", "frob", "-key", "k"],
        ["member", "add", "n4"],
        ["member"],
        ["put", "", "v"],
        ["put", "k" * 1025, "v"],
        ["get", ""],
        ["del", "k" * 1025],
        ["history", ""],
        ["watch", ""],
        ["get", "--prefix", "k" * 1025],
        ["get", "--to", ""],
        ["get", "--prefix", "k", "--limit", "0"],
        ["get", "k", "--revision", "0"],
        ["ls", "--delimiter", ""],
        ["history", "k", "--limit", "1001"],
        ["compact", "0"],
        ["compact", "--keep", "0"],
        ["quota", "set", "abc"],
        ["quota", "set", "5"],
        ["quota", "set", "8388608TiB"],
        ["lease", "grant", "0"],
        ["lease", "grant", "9000000001"],
        ["lease", "grant", "5", "--delay", "61"],
        ["lock", "", "--", "true"],
        ["lock", "l" * 996, "--", "true"],
        ["member", "remove", ""],
        ["leader", "move", ""],
        ["--cluster-id", "C" * 32, "get", "k"],
    ],
)
def test_exit_2_for_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "kv" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--endpoints", "http://", "get", "k"],
        ["put", "k", "@/no/such/file"],
        ["put", "k", "@\0"],
        ["put", "k", "@/dev/zero"],
        ["get"],
        ["get", "k", "--prefix", "k"],
        ["get", "--prefix", "k", "--from", "k"],
        ["del", "--from", "a", "k"],
        ["watch"],
    ],
)
def test_exit_2_in_one_line_for_mistakes_that_only_the_client_sees(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_at_sign_without_a_file_says_how_to_store_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["put", "k", "@"]) == 2
    assert capsys.readouterr().err == "kv: @ names no file: write @FILE, or add --literal to store the value '@'\n"


@pytest.mark.parametrize("arguments", [("--help",), ("put", "--help"), ("--version",)])
@pytest.mark.parametrize("stdout", ["closed", "full", "gone"])
def test_a_help_that_cannot_be_written_is_one_line_and_no_success(arguments: tuple[str, ...], stdout: str) -> None:
    redirection = {"closed": ">&-", "full": ">/dev/full", "gone": "| exec true"}[stdout]
    script = f"{shlex.join([sys.executable, '-m', 'kvorum_client.cli', *arguments])} {redirection}"
    result = subprocess.run(
        ["bash", "-c", f"{script}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=20, check=False
    )
    assert result.returncode == (0 if stdout == "gone" else 5), result
    assert result.stderr.count("\n") == (0 if stdout == "gone" else 1), result


def test_exit_3_without_a_node_or_a_leader(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--addr", "127.0.0.1:1", "put", "k", "v", "--timeout", "0.9"]) == 3
    assert capsys.readouterr().err == "kv: http://127.0.0.1:1: connection refused\n"

    async def scenario(server: Server, kv: Kv) -> None:
        server.node.error = NoLeaderError("no leader is known")
        assert await kv("get", "k", "--timeout", "0.9") == 3
        assert capsys.readouterr().err == f"kv: {cli_waiting.NO_LEADER}\n"
        server.node.leader = None
        assert await kv("status") == 3
        assert await kv("leader", "show") == 3

    run(scenario)


def test_exit_4_for_an_unknown_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.error = ServerOutcomeUnknown("lost the quorum")
        assert await kv("put", "k", "v", "--timeout", "1") == 4
        assert "may or may not have been applied" in capsys.readouterr().err

    run(scenario)


def test_exit_6_without_room_for_more_data(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.error = NoSpaceError("the data takes 9 of 8 bytes", reason="quota", limit=8, used=9)
        assert await kv("put", "k", "v") == 6
        assert capsys.readouterr().err == "kv: the data takes 9 of 8 bytes\n"

    run(scenario)


def test_the_quota_is_shown_and_set_and_the_status_says_when_it_is_used_up(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("quota", "get") == 0
        assert capsys.readouterr().out == "there is no quota yet; the data takes 0 B\n"
        assert await kv("quota", "set", "1MiB") == 1
        assert "feature level 3" in capsys.readouterr().err
        server.node.raise_feature_level()
        assert await kv("quota", "set", "1MiB") == 0
        assert capsys.readouterr().out == "the data takes 0 B of 1.0 MiB (0 %)\n"
        assert await kv("put", "k", "v" * 500_000) == 0
        assert await kv("put", "l", "v" * 600_000) == 0
        capsys.readouterr()
        assert await kv("put", "k", "v") == 6
        assert capsys.readouterr().err.startswith("kv: the data takes 11")
        used = server.node.store.used_bytes
        assert await kv("quota", "get") == 0
        assert (
            capsys.readouterr().out
            == f"the data takes {used / 2**20:.1f} MiB of 1.0 MiB ({used * 100 >> 20} %); puts are refused\n"
        )
        assert await kv("quota", "get", "-o", "json") == 0
        assert json.loads(capsys.readouterr().out) == {"quota_bytes": 1 << 20, "used_bytes": used, "no_space": True}
        await kv("status")
        assert "the data takes more than the quota" in capsys.readouterr().out

    run(scenario)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1048576", 1 << 20), ("512MiB", 512 << 20), ("2gib", 2 << 30), ("1024KIB", 1 << 20),
     ("3TiB", 3 << 40), ("1GB", None), ("", None),
     ("-1", None), ("1023KiB", None), ("1.5GiB", None), ("MiB", None)],
)  # fmt: skip
def test_a_size_is_bytes_or_has_a_binary_unit(text: str, size: int | None) -> None:
    if size is not None:
        assert cli_parser.build_parser().parse_args(["quota", "set", text]).quota_bytes == size
        return
    with pytest.raises(SystemExit) as caught:
        cli_parser.build_parser().parse_args(["quota", "set", "--", text])
    assert caught.value.code == 2


def test_the_flags_of_the_seed_still_work(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        async def seed(*arguments: str) -> int:
            return await asyncio.to_thread(cli.main, ["-addr", f"127.0.0.1:{server.port}", *arguments])

        assert await seed("-op", "put", "-key", "foo", "-val", "-bar") == 0
        capsysbinary.readouterr()
        assert await seed("-op=get", "-key=foo") == 0
        assert capsysbinary.readouterr().out == b"-bar"
        assert await seed("-op", "delete", "-key", "foo") == 0
        assert await seed("--op", "put", "--key", "foo", "--val", "@x") == 0
        record = server.node.store.get(b"foo")
        assert record is not None and record.value == b"@x"
        assert await asyncio.to_thread(cli.main, ["--addr", f"127.0.0.1:{server.port}", "put", "foo", "bar"]) == 0

    run(scenario)


def test_options_may_stand_before_or_after_the_command() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await asyncio.to_thread(cli.main, ["put", "k", "v", "--endpoints", server.url, "--timeout", "5"]) == 0
        assert await asyncio.to_thread(cli.main, ["--timeout", "5", "--endpoints", server.url, "get", "k"]) == 0

    run(scenario)


def test_a_value_comes_from_a_file_or_as_it_is(tmp_path: Path) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        (tmp_path / "value").write_bytes(b"\x00\xff\n")
        for arguments, value in (
            ([f"@{tmp_path / 'value'}"], b"\x00\xff\n"),
            (["--literal", "@name"], b"@name"),
            (["--", "-5"], b"-5"),
            (["caf\udce9"], b"caf\xe9"),
        ):
            assert await kv("put", "k", *arguments) == 0
            record = server.node.store.get(b"k")
            assert record is not None and record.value == value

    run(scenario)


def test_json_is_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    def printed() -> Any:
        return json.loads(capsys.readouterr().out)

    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("put", "k", "v", "-o", "json") == 0
        assert printed() == {"revision": 1, "create_revision": 1, "mod_revision": 1, "version": 1}
        assert await kv("get", "k", "-o", "json") == 0
        expected = {"key": "k", "value": "v", "create_revision": 1, "mod_revision": 1, "version": 1, "revision": 1}
        assert printed() == expected
        assert await kv("get", "k", "-o", "json", "--stale") == 0
        assert printed() == {**expected, "staleness_ms": 0}
        assert await kv("del", "k", "-o", "json") == 0
        assert printed() == {"revision": 2, "deleted": 1}
        assert await kv("status", "-o", "json") == 0
        assert printed()[0]["status"]["name"] == "n1"
        assert await kv("member", "list", "-o", "json") == 0
        assert [member["name"] for member in printed()] == ["n1", "n2", "n3"]

    run(scenario)


def test_status_shows_every_member_and_the_dead_ones_too(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("status") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:4] == ["NAME", "ENDPOINT", "STATE", "TERM"]
        assert lines[1].split()[:4] == ["n1", server.url, "leader", "1"]
        assert "unreachable" in lines[2] and "connection refused" in lines[2]

    run(scenario)


def test_health_tells_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.members = {"n1": server.node.members["n1"]}
        assert await kv("health") == 0
        assert "is ready" in capsys.readouterr().out
        server.node.ready = [server.node.ready[0]._replace(ok=False, detail="none is known")]
        assert await kv("health") == 3
        assert "[-]leader failed: none is known" in capsys.readouterr().out

    run(scenario)


def test_an_upgrade_is_finalized_or_it_is_said_who_blocks_it(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("cluster", "finalize") == 0
        assert capsys.readouterr().out == "the cluster is at feature level 2\n"
        assert server.node.calls == [("finalize",)]
        server.node.error = FeatureLevelBlockedError("n2@1 runs 0.1.0, which supports feature level 1")
        assert await kv("cluster", "finalize") == 1
        assert "n2@1 runs 0.1.0, which supports feature level 1" in capsys.readouterr().err

    run(scenario)


def test_members_and_the_leader_are_changed(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("member", "add", "n4", "http://127.0.0.1:9004", "http://127.0.0.1:8004") == 0
        assert "learner" in capsys.readouterr().out
        assert await kv("member", "promote", "n4") == 0
        assert "learner" not in capsys.readouterr().out
        capsys.readouterr()
        assert await kv("member", "remove", "n4") == 0
        assert "to keep it out, stop it first" in capsys.readouterr().err
        assert await kv("member", "remove", "n4") == 1
        assert await kv("member", "add", "n5", "http://127.0.0.1:9005") == 0
        assert await kv("member", "list") == 0
        assert await kv("leader", "move", "n2") == 0
        assert await kv("leader", "move") == 0
        assert await kv("leader", "show") == 0
        assert server.node.calls == [("transfer", "n2"), ("transfer", None)]

    run(scenario)


def test_what_was_stored_does_not_move_the_terminals_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("put", "k", "\x1b[2J") == 0
        assert await kv("get", "k", "-o", "table") == 0
        assert "\x1b" not in capsys.readouterr().out

    run(scenario)


@pytest.mark.parametrize(
    ("environ", "endpoints"),
    [
        ({}, cli_endpoints.LOCAL_ENDPOINTS),
        ({"KVORUM_ENDPOINTS": "a:1,b:2"}, "a:1,b:2"),
        ({"KVORUM_ENDPOINTS": "a:1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "a:1"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "127.0.0.1:8001"),
        ({"KVORUM_CLIENT_PORT": "7001"}, "127.0.0.1:7001"),
        ({"KVORUM_LISTEN_CLIENT": "0.0.0.0:7002"}, "127.0.0.1:7002"),
        ({"KVORUM_LISTEN_CLIENT": "[::]:7003"}, "127.0.0.1:7003"),
        ({"KVORUM_LISTEN_CLIENT": "nonsense"}, cli_endpoints.LOCAL_ENDPOINTS),
    ],
)
def test_the_cluster_is_found_without_being_named(environ: dict[str, str], endpoints: str) -> None:
    assert cli_endpoints.default_endpoints(environ) == endpoints


def _unread(pipe: int) -> int:
    """Return how many bytes in a pipe nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def _spawn(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kvorum_client.cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


def test_stdin_is_a_value_and_a_closed_pipe_is_no_error() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        def pipe() -> None:
            process = _spawn("--endpoints", server.url, "put", "k", "-")
            _, err = process.communicate(b"x" * 100_000, timeout=20)
            assert (process.returncode, err) == (0, b"")
            process = _spawn("--endpoints", server.url, "get", "k")
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait(timeout=20) == 0
            assert process.stderr is not None and process.stderr.read() == b""
            process.stderr.close()
            assert process.stdin is not None
            process.stdin.close()

        await asyncio.to_thread(pipe)
        record = server.node.store.get(b"k")
        assert record is not None and record.value == b"x" * 100_000

    run(scenario)


def test_ctrl_c_ends_the_reading_of_a_value_and_nothing_is_sent() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        def interrupt() -> None:
            process = _spawn("--endpoints", server.url, "put", "k", "-")
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            process.stdin.write(b"half")
            process.stdin.flush()
            deadline = time.monotonic() + 10
            while _unread(process.stdin.fileno()) and time.monotonic() < deadline:
                time.sleep(0.01)
            # It has taken what there is, and waits for more.
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(timeout=10) == 130
                assert process.stderr.read() == b"kv: interrupted; nothing was done\n"
            finally:
                process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()

        await asyncio.to_thread(interrupt)
        assert server.node.proposed == []

    run(scenario)


def test_a_value_longer_than_any_is_not_read_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await asyncio.wait_for(kv("put", "k", "@/dev/zero"), 10) == 2
        assert capsys.readouterr().err == "kv: /dev/zero is longer than a value may be (limit 1,048,576 bytes)\n"
        assert server.node.proposed == []

    run(scenario)


@pytest.mark.parametrize("arguments", [("put", "k", "v"), ("get", "there"), ("status",), ("status", "-o", "json")])
@pytest.mark.parametrize("stdout", ["closed", "full", "gone"])
def test_an_answer_that_cannot_be_written_is_one_line_and_no_traceback(arguments: tuple[str, ...], stdout: str) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("put", "there", "x") == 0
        redirection = {"closed": ">&-", "full": ">/dev/full", "gone": "| exec true"}[stdout]
        command = shlex.join([sys.executable, "-m", "kvorum_client.cli", "--endpoints", server.url, *arguments])
        script = f"{command} {redirection}; exit ${{PIPESTATUS[0]}}"
        result = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", script], capture_output=True, text=True, timeout=20
        )
        assert result.returncode == (0 if stdout == "gone" else 5), result
        assert result.stderr.count("\n") == (0 if stdout == "gone" else 1), result
        assert "Traceback" not in result.stderr

    run(scenario)


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a_key_that_the_terminal_cannot_show_is_written_all_the_same(encoding: str) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        def use() -> None:
            environ = {**os.environ, "PYTHONIOENCODING": encoding}
            for arguments in (["put", "\udcff\u00e9", "v"], ["get", "\udcff\u00e9", "-o", "table"]):
                command = [sys.executable, "-m", "kvorum_client.cli", "--endpoints", server.url, *arguments]
                result = subprocess.run(command, capture_output=True, env=environ, timeout=20)
                assert (result.returncode, result.stderr) == (0, b""), result

        await asyncio.to_thread(use)
        assert server.node.store.get(b"\xff\xc3\xa9") is not None

    run(scenario)


def test_a_closed_stdin_is_no_value() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        command = shlex.join([sys.executable, "-m", "kvorum_client.cli", "--endpoints", server.url, "put", "k", "-"])
        result = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", f"{command} <&-"], capture_output=True, text=True, timeout=20
        )
        assert (result.returncode, result.stderr) == (2, "kv: stdin is closed\n")

    run(scenario)


def test_a_value_on_a_terminal_is_escaped_where_it_is_not_text() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("put", "k", "--literal", "a\tb\n\x1b[2J\udcff\u00e9") == 0

        def look() -> bytes:
            ours, theirs = pty.openpty()
            command = [sys.executable, "-m", "kvorum_client.cli", "--endpoints", server.url, "get", "k"]
            subprocess.run(command, stdout=theirs, env={**os.environ, "PYTHONUTF8": "1"}, timeout=20, check=True)
            shown = os.read(ours, 4096)
            os.close(theirs)
            os.close(ours)
            return shown

        lines = (await asyncio.to_thread(look)).decode().splitlines()
        assert [line.expandtabs(8) for line in lines] == ["a       b", "\\x1b[2J\\xff\u00e9"]

    run(scenario)


def test_status_and_health_keep_to_the_timeout() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            for command in ("status", "health"):
                started = time.monotonic()
                assert await asyncio.to_thread(cli.main, ["--endpoints", address, command, "--timeout", "0.3"]) == 3
                assert time.monotonic() - started < 1.5

    run(scenario)


def test_two_dashes_are_a_key_and_a_value_like_others() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("put", "k", "--", "--") == 0
        assert await kv("put", "--", "-op", "-op") == 0
        assert await kv("-op", "put", "-key", "--", "-val", "--") == 0
        assert [(c.key, c.value) for c in server.node.proposed if isinstance(c, Put)] == [
            (b"k", b"--"),
            (b"-op", b"-op"),
            (b"--", b"--"),
        ]

    run(scenario)


def test_what_a_node_says_does_not_move_the_terminals_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.error = NoLeaderError("\x1b[2Jnobody\rleads")
        assert await kv("get", "k", "--timeout", "0.9") == 3
        member = server.node.members["n2"]
        server.node.members["n2"] = msgspec.structs.replace(member, name="\x1b[2J", client_url="http://\x1b[2J")
        server.node.leader = ("\x1b[2J", "http://x")
        for command in (["status"], ["member", "list"], ["leader", "show"]):
            await kv(*command)
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + printed.err
        assert "\r" not in printed.err

    run(scenario)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"kv {kvorum.__version__}\n"


def test_ctrl_c_ends_it_with_one_line() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.gate = asyncio.Event()
        process = await asyncio.to_thread(_spawn, "--endpoints", server.url, "put", "k", "v")
        await until("the node has the request", lambda: bool(server.node.timeouts_ms))
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(process.communicate, None, 20)
        assert process.returncode == 130
        assert (out, err.count(b"\n"), b"Traceback" in err) == (b"", 1, False)
        server.node.gate.set()

    run(scenario)


def test_the_client_imports_nothing_of_the_node() -> None:
    code = (
        "import sys, kvorum_client, kvorum_client.cli\n"
        "print([m for m in sys.modules if m == 'kvorum' or m.startswith(('kvorum.', 'sqlitedict', 'opentelemetry'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20).stdout
    assert out.strip() == "[]"
