"""The ``kv`` command: what it prints, and the exit status that a script relies on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from api.fake_node import FakeNode, Server, serving, until

from kvorum.errors import NoLeader
from kvorum.errors import OutcomeUnknown as ServerOutcomeUnknown
from kvorum_client import cli

Kv = Callable[..., Awaitable[int]]


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
        assert await kv("put", "k" * 2000, "v") == 1
        err = capsys.readouterr().err
        assert err.count("kv: ") == err.count("\n") == 4

    run(scenario)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["put", "k"],
        ["get"],
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
    ],
)
def test_exit_2_for_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "kv" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--endpoints", "http://", "get", "k"], ["put", "", "v"], ["put", "k", "@/no/such/file"], ["put", "k", "@\0"]],
)
def test_exit_2_in_one_line_for_mistakes_that_only_the_client_sees(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_exit_3_without_a_node_or_a_leader(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--addr", "127.0.0.1:1", "put", "k", "v", "--timeout", "0.2"]) == 3
    assert capsys.readouterr().err == "kv: http://127.0.0.1:1: connection refused\n"

    async def scenario(server: Server, kv: Kv) -> None:
        server.node.error = NoLeader("no leader is known")
        assert await kv("get", "k", "--timeout", "0.5") == 3
        assert capsys.readouterr().err == "kv: no leader is known\n"
        server.node.leader = None
        assert await kv("status") == 3
        assert await kv("leader", "show") == 3

    run(scenario)


def test_exit_4_for_an_unknown_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.error = ServerOutcomeUnknown("lost the quorum")
        assert await kv("put", "k", "v", "--timeout", "1") == 4
        assert "may or may not be done" in capsys.readouterr().err

    run(scenario)


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


def test_members_and_the_leader_are_changed(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("member", "add", "n4", "http://127.0.0.1:9004", "http://127.0.0.1:8004") == 0
        assert "learner" in capsys.readouterr().out
        assert await kv("member", "promote", "n4") == 0
        assert "learner" not in capsys.readouterr().out
        assert await kv("member", "remove", "n4") == 0
        assert await kv("member", "remove", "n4") == 1
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
        ({}, cli.LOCAL_ENDPOINTS),
        ({"KVORUM_ENDPOINTS": "a:1,b:2"}, "a:1,b:2"),
        ({"KVORUM_ENDPOINTS": "a:1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "a:1"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "127.0.0.1:8001"),
        ({"KVORUM_CLIENT_PORT": "7001"}, "127.0.0.1:7001"),
        ({"KVORUM_LISTEN_CLIENT": "0.0.0.0:7002"}, "127.0.0.1:7002"),
        ({"KVORUM_LISTEN_CLIENT": "[::]:7003"}, "127.0.0.1:7003"),
        ({"KVORUM_LISTEN_CLIENT": "nonsense"}, cli.LOCAL_ENDPOINTS),
    ],
)
def test_the_cluster_is_found_without_being_named(environ: dict[str, str], endpoints: str) -> None:
    assert cli.default_endpoints(environ) == endpoints


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


def test_ctrl_c_ends_it_with_one_line() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.gate = asyncio.Event()
        process = await asyncio.to_thread(_spawn, "--endpoints", server.url, "put", "k", "v")
        await until(lambda: bool(server.node.timeouts_ms))
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
