"""What ``kv`` says when the output or the cluster is not there, and what `kv status` says of nodes that are not."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from client.test_cli import Kv, run
from fronts.fake_node import Server
from serving import stop_server

from kvorum.errors import NoLeaderError
from kvorum_client import Backup, Client, NodeStatus, UnavailableError, cli, cli_endpoints, cli_parser, cli_waiting


async def _shell(server_url: str, arguments: list[str], redirection: str, **environ: str) -> tuple[int, str, str]:
    command = shlex.join([sys.executable, "-m", "kvorum_client.cli", "--endpoints", server_url, *arguments])
    if not server_url:
        command = shlex.join([sys.executable, "-m", "kvorum_client.cli", *arguments])

    def execute() -> tuple[int, str, str]:
        result = subprocess.run(
            ["bash", "-c", f"{command} {redirection}"],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, **environ},
        )
        return result.returncode, result.stdout, result.stderr

    return await asyncio.to_thread(execute)


# The output.


async def status_of(answers: Mapping[str, NodeStatus]) -> int:
    """Run ``kv status`` against endpoints that answer so; return its exit status."""

    async def status(self: Client, endpoint: str | None = None, *, timeout_s: float | None = None) -> NodeStatus:
        assert endpoint is not None
        return answers[endpoint]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "status", status)
        return await asyncio.to_thread(cli.main, ["--endpoints", ",".join(answers), "status"])


@pytest.mark.parametrize(
    ("redirection", "reason"), [(">&-", "stdout is closed"), (">/dev/full", "No space left on device")]
)
def test_a_write_whose_output_cannot_be_written_is_done_and_says_so(redirection: str, reason: str) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        done = await _shell(server.url, ["put", "k", "v"], redirection)
        assert done == (5, "", f"kv: done, but cannot write the output: {reason}\n")
        record = server.node.store.get(b"k")
        assert record is not None and record.value == b"v"
        assert await _shell(server.url, ["get", "k"], redirection) == (
            5,
            "",
            f"kv: cannot write the output: {reason}\n",
        )

    run(scenario)


@pytest.mark.parametrize("redirection", [">&-", ">&- <&-", ">&- 2>&-", ">&- <&- 2>&-", "2>&-", "2>/dev/full"])
def test_the_exit_status_of_what_failed_does_not_depend_on_the_output(redirection: str) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        refused = await _shell("127.0.0.1:1", ["put", "k", "v", "--timeout", "0.9"], redirection)
        assert refused[0] == 3
        if "2>" not in redirection:
            assert refused[2] == "kv: http://127.0.0.1:1: connection refused\n"
        assert (await _shell(server.url, ["get", "nokey"], redirection))[0] == 1
        assert (await _shell(server.url, ["del", "nokey"], redirection))[0] == 1
        assert (await _shell(server.url, ["put", "k", "@/no/such/file"], redirection))[0] == 2
        assert (await _shell(server.url, ["frobnicate"], redirection))[0] == 2
        assert server.node.store.revision == 0 or not server.node.store.get(b"k")

    run(scenario)


# The endpoints.


@pytest.mark.parametrize("endpoints", ["", " ", ",", " , "])
def test_no_endpoint_is_an_error_and_not_the_default_cluster(
    endpoints: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["--endpoints", endpoints, "get", "k"]) == 2
    assert capsys.readouterr().err == "kv: --endpoints names no node\n"
    assert cli.main(["get", "k", f"--addr={endpoints}"]) == 2
    assert capsys.readouterr().err == "kv: --endpoints names no node\n"
    monkeypatch.setenv("KVORUM_ENDPOINTS", endpoints)
    assert cli.main(["get", "k"]) == 2
    assert capsys.readouterr().err == "kv: KVORUM_ENDPOINTS is set and names no node\n"


# Waiting.


async def first_words(capsys: pytest.CaptureFixture[str], command: asyncio.Task[int]) -> str:
    """Return what a command says first on stderr; nothing, if it ends without a word."""
    said = ""
    while not said and not command.done():
        await asyncio.sleep(0.05)
        said = capsys.readouterr().err
    return said


@pytest.mark.usefixtures("notice")
def test_after_a_second_it_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.error = NoLeaderError("no leader is known")
        assert await kv("get", "k", "--timeout", "3") == 3
        waiting, failed = capsys.readouterr().err.splitlines()
        assert waiting == "kv: still waiting, for up to 3 s: no leader is known"
        assert failed == f"kv: {cli_waiting.NO_LEADER}"
        server.node.error, server.node.gate = None, asyncio.Event()
        putting = asyncio.create_task(kv("put", "k", "v", "--timeout", "30"))
        said = await first_words(capsys, putting)
        server.node.gate.set()
        assert await putting == 0
        assert said == f"kv: still waiting, for up to 30 s: no answer yet from {server.url}\n"

    run(scenario)


@pytest.mark.usefixtures("notice")
def test_where_nothing_runs_it_hints_how_to_start_a_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVORUM_ENDPOINTS", raising=False)
    monkeypatch.setattr(cli_endpoints, "LOCAL_ENDPOINTS", "127.0.0.1:1,127.0.0.1:2")
    hint = "; start a cluster with `kvorum local`, or name its nodes with --endpoints"
    assert cli.main(["put", "k", "v", "--timeout", "0.9"]) == 3
    assert capsys.readouterr().err.endswith(f"connection refused{hint}\n")
    assert cli.main(["put", "k", "v", "--timeout", "2.5"]) == 3
    waiting, failed = capsys.readouterr().err.splitlines()
    assert waiting.startswith("kv: still waiting, for up to 2.5 s: http://127.0.0.1:") and waiting.endswith(hint)
    assert failed.endswith(f"connection refused{hint}")
    assert cli.main(["status"]) == 3
    assert capsys.readouterr().err == "kv: no node answers" + hint + "\n"
    assert cli.main(["--endpoints", "127.0.0.1:1", "put", "k", "v", "--timeout", "0.9"]) == 3
    assert hint not in capsys.readouterr().err


def test_a_cluster_that_answers_gets_no_hint_to_start_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        monkeypatch.delenv("KVORUM_ENDPOINTS", raising=False)
        monkeypatch.setattr(cli_endpoints, "LOCAL_ENDPOINTS", server.url)
        server.node.error = NoLeaderError("no leader is known")
        assert await asyncio.to_thread(cli.main, ["get", "k", "--timeout", "0.9"]) == 3
        assert capsys.readouterr().err == f"kv: {cli_waiting.NO_LEADER}\n"

    run(scenario)


def test_a_peer_port_among_the_endpoints_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        async def listens_to_peers(_: web.Request) -> web.Response:
            return web.json_response({"name": "n1", "incarnation": "0" * 16, "peer_url": "http://n1:9001"})

        app = web.Application()
        app.router.add_get("/raft/v1/hello", listens_to_peers)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        peer_port = f"http://127.0.0.1:{runner.addresses[0][1]}"
        says = f"{peer_port} is not a client port of Kvorum (is it the peer port?)"
        try:
            for command, status in ((["get", "k"], 1), (["put", "k", "v"], 1), (["leader", "show"], 1)):
                assert await asyncio.to_thread(cli.main, ["--endpoints", peer_port, *command]) == status
                err = capsys.readouterr().err
                assert says in err
                assert "may or may not" not in err
            assert await asyncio.to_thread(cli.main, ["--endpoints", peer_port, "status"]) == 3
            assert "is not a client port of Kvorum" in capsys.readouterr().out
        finally:
            await stop_server(runner)

    run(scenario)


def test_a_404_of_what_is_no_peer_port_leaves_the_outcome_of_a_write_open(capsys: pytest.CaptureFixture[str]) -> None:
    """A proxy may have passed the write on before it answered by itself."""

    async def scenario(server: Server, kv: Kv) -> None:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            assert await asyncio.to_thread(cli.main, ["--endpoints", endpoint, "put", "k", "v"]) == 4
            assert "may or may not have been applied" in capsys.readouterr().err
        finally:
            await stop_server(runner)

    run(scenario)


# kv status.


def test_a_dead_node_has_its_name_in_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        members = server.node.members
        members["n3"] = msgspec.structs.replace(members["n3"], client_url="http://127.0.0.1:2/")
        endpoints = f"{server.url},127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"
        assert await asyncio.to_thread(cli.main, ["--endpoints", endpoints, "status"]) == 0
        rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
        assert rows == [
            ["n1", server.url, "leader"],
            ["n2", "http://127.0.0.1:1", "unreachable"],
            ["n3", "http://127.0.0.1:2", "unreachable"],
            ["127.0.0.1:3", "http://127.0.0.1:3", "unreachable"],
        ]

    run(scenario)


def test_the_status_in_json_has_one_shape_for_nodes_dead_and_alive(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        members = server.node.members
        members["n3"] = msgspec.structs.replace(members["n3"], client_url="")
        endpoints = f"{server.url},127.0.0.1:1,127.0.0.1:3"
        assert await asyncio.to_thread(cli.main, ["--endpoints", endpoints, "status", "-o", "json"]) == 0
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        assert [list(row) for row in rows] == [["name", "endpoint", "status", "error"]] * 3
        assert [(row["name"], row["endpoint"]) for row in rows] == [
            ("n1", server.url),
            ("n2", "http://127.0.0.1:1"),
            (None, "http://127.0.0.1:3"),
        ]
        assert rows[0]["status"]["state"] == "leader" and rows[0]["error"] is None
        assert [(row["status"], row["error"]) for row in rows[1:]] == [(None, "connection refused")] * 2

    run(scenario)


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (
            {"last_term": 5, "last_index": 12},
            "the logs end at (term, index): n1 (4, 30), n2 (5, 12); most up-to-date: n2",
        ),
        (
            {"last_term": 4, "last_index": 30},
            "the logs end at (term, index): n1 (4, 30), n2 (4, 30); most up-to-date: n1 and n2",
        ),
        ({"last_term": 0, "last_index": 12}, "a node of version 0.1.0 does not tell the term of its last entry"),
        (
            {"last_term": 5, "last_index": 12, "distrusted": "do not delete it"},
            "n1 (4, 30), n2 (5, 12); some nodes take no part: see what they say",
        ),
    ],
)
def test_without_a_leader_the_status_says_which_log_is_the_most_up_to_date(
    others: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A longer log of an older term, or one that has applied more, is not the better one."""

    async def scenario(server: Server, kv: Kv) -> None:
        own = server.node.status()
        first = msgspec.structs.replace(own, leader=None, leader_name=None, last_term=4, last_index=30, members=())
        second = msgspec.structs.replace(first, name="n2", applied_index=99, **others)
        answers = {server.url: first, "http://127.0.0.1:1": second}

        code = await status_of(answers)
        assert code == (1 if "distrusted" in others else 3)
        assert says in capsys.readouterr().err

    run(scenario)


def test_nodes_of_another_cluster_than_the_one_that_is_meant_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.members.clear()
        says = f"kv: not of cluster {'d' * 32}: n1 belongs to {'c' * 32}\n"
        assert await kv("--cluster-id", "d" * 32, "status") == 1
        output = capsys.readouterr()
        assert output.err == says
        assert output.out.splitlines()[1].endswith("  of another cluster")
        assert await kv("--cluster-id", "d" * 32, "health") == 1
        assert capsys.readouterr().err == says
        for command in ("status", "health"):
            assert await kv("--cluster-id", "c" * 32, command) == 0
        assert capsys.readouterr().err == ""

    run(scenario)


def test_a_node_that_takes_no_part_fails_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        own = msgspec.structs.replace(server.node.status(), members=())
        says = "this disk was set back to an older state"
        answers = {
            server.url: own,
            "http://127.0.0.1:1": msgspec.structs.replace(own, name="n2", state="follower", distrusted=says),
        }

        code = await status_of(answers)
        assert code == 1
        assert says in capsys.readouterr().out

    run(scenario)


def test_nodes_of_two_clusters_are_told_apart_and_fail_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        own = msgspec.structs.replace(server.node.status(), members=())
        answers = {
            server.url: own,
            "http://127.0.0.1:1": msgspec.structs.replace(own, name="n2", cluster_id="d" * 32),
            "http://127.0.0.1:2": msgspec.structs.replace(own, name="n3", cluster_id=""),
        }

        code = await status_of(answers)
        said = capsys.readouterr().err
        assert code == 1
        assert (
            f"these nodes belong to 2 clusters, and no node can join another cluster: {'c' * 32} (n1); {'d' * 32} (n2)."
            in said
        )
        assert "recovered or restored, empty the data folders" in said
        assert "start them again. Otherwise correct the addresses; see docs/operations/two-clusters.md" in said

    run(scenario)


# The help.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["get", "k", "--max-staleness-ms", "soon"],
            "must be a whole number of milliseconds from 0 to 86,400,000, not 'soon'",
        ),
        (["top", "--count", "-1"], "must be a whole number of frames from 1 to 9,223,372,036,854,775,807, not '-1'"),
        (
            ["put", "k", "v", "--prev-revision", "old"],
            "must be a revision, a whole number from 0 to 9,223,372,036,854,775,807, not 'old'",
        ),
    ],
)
def test_a_wrong_number_is_named_for_what_it_is(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["put"], "deadline for the whole command [default 10]"),
        (["status"], "deadline for the whole command, at most 4 [default 4]"),
        (["health"], "deadline for the whole command, at most 6 [default 6]"),
        (
            ["snapshot", "save"],
            "how long to look for a node that gives a backup, and to wait for a quorum to confirm it; the node may "
            "then be silent for 60 s, or this long if it is more [default 10]",
        ),
        (["top"], "ignored: a node has 1 s for each answer"),
    ],
)
def test_the_help_tells_what_the_timeout_of_a_command_is(
    command: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    assert says in " ".join(capsys.readouterr().out.split())


# What a new user met.


@pytest.mark.usefixtures("notice")
def test_a_backup_without_a_quorum_says_what_it_waits_for_and_names_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.gate = asyncio.Event()  # The read barrier ends when the time is over that the node was given.
        server.node.error = NoLeaderError("no leader is known")
        saving = asyncio.create_task(kv("snapshot", "save", str(tmp_path / "b"), "--timeout", "5"))
        assert await first_words(capsys, saving) == (
            "kv: still waiting, for up to 5 s for a node and a quorum, then for the backup: no answer yet from "
            f"{server.url}\n"
        )
        server.node.gate.set()
        assert await saving == 3
        failed = capsys.readouterr().err
        assert failed == f"kv: {cli_waiting.NO_LEADER}{cli_waiting.OR_STALE}\n" and "--stale" in failed
        assert server.node.timeouts_ms[0] <= 5000

    run(scenario)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "timeout_s"), [([], 10), (["--timeout", "3"], 3)])
def test_a_backup_is_looked_for_as_long_as_other_commands_wait(
    arguments: list[str], timeout_s: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits: list[float] = []

    async def backup(self: Client, write: object, *, stale: bool = False, timeout_s: float | None = None) -> Backup:
        waits.append(self._timeout_s if timeout_s is None else timeout_s)
        raise UnavailableError("nobody is there")

    monkeypatch.setattr(Client, "backup", backup)
    assert cli.main(["--endpoints", "127.0.0.1:1", "snapshot", "save", str(tmp_path / "b"), *arguments]) == 3
    assert waits == [timeout_s]


def test_the_error_of_a_backup_names_the_path_that_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--endpoints", "127.0.0.1:1", "snapshot", "save", "/no-such-folder/backup"]) == 2
    assert capsys.readouterr().err == "kv: /no-such-folder/backup: No such file or directory\n"


def test_a_key_that_is_not_utf_8_is_shown_as_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    key = os.fsdecode(b"a\xffb")

    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("put", key, "v") == 0
        assert server.node.proposed_keys == [b"a\xffb"]
        assert await kv("del", key) == 0
        assert await kv("get", key) == 1
        assert await kv("del", key) == 1

    run(scenario)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [r"a\xffb: revision 1, version 1", r"a\xffb: deleted at revision 2"]
    assert printed.err == "kv: no such key: a\\xffb\n" * 2


@pytest.mark.parametrize("text", ["n4:9001", "http://n4:9001", "[::1]:9001"])
def test_a_member_is_added_by_host_and_port(text: str) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("member", "add", "n4", text, text) == 0
        url = f"http://{text.removeprefix('http://')}"
        assert (server.node.members["n4"].peer_url, server.node.members["n4"].client_url) == (url, url)

    run(scenario)


@pytest.mark.parametrize("text", ["n4", "http://n4", "https://n4:9001", "http://n4:9001/path", ":9001", "n4:port"])
def test_a_member_with_a_wrong_address_is_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["n4", text], ["n4", "n4:9001", text]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["--endpoints", "127.0.0.1:1", "member", "add", *arguments])
        assert caught.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith("usage: kv member add ")
        assert printed.endswith(f"must be HOST:PORT or http://HOST:PORT, not {text!r}\n")


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["put", "k", "v", "--frob"], "usage: kv put "),
        (["leader", "show", "--frob"], "usage: kv leader show "),
        (["snapshot", "save", "f", "g"], "usage: kv snapshot save "),
        (["--frob", "get", "k"], "usage: kv ["),
    ],
)
def test_an_unknown_argument_shows_the_usage_of_its_command(
    arguments: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(usage) and "unrecognized arguments" in printed


def test_every_output_option_has_a_long_form() -> None:
    for command in (
        *(["put", "k", "v"], ["get", "k"], ["del", "k"], ["status"], ["health"], ["member", "list"]),
        *(["member", "add", "n4", "n4:9001"], ["member", "promote", "n4"], ["member", "remove", "n4"]),
        *(["leader", "show"], ["leader", "move"], ["quota", "get"], ["quota", "set", "1GiB"], ["cluster", "finalize"]),
        *(["snapshot", "save", "f"], ["snapshot", "status", "f"]),
        *(["history", "k"], ["compact", "7"], ["compact", "--keep", "7"]),
    ):
        assert cli_parser.build_parser().parse_args([*command, "--output", "json"]).output == "json"
        assert cli_parser.build_parser().parse_args([*command, "-o", "json"]).output == "json"


def test_changes_of_the_cluster_are_told_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        async def told(*arguments: str) -> Any:
            assert await kv(*arguments, "-o", "json") == 0
            return json.loads(capsys.readouterr().out)

        shown = await told("leader", "show")
        assert shown == {"leader": "n1", "term": shown["term"], "client_url": server.url, "according_to": "n1"}
        assert await told("leader", "move", "n1") == {"leader": "n1"}
        assert [member["name"] for member in await told("member", "add", "n4", "n4:9001")] == ["n1", "n2", "n3", "n4"]
        assert [member["name"] for member in await told("member", "remove", "n4")] == ["n1", "n2", "n3"]

    run(scenario)


def test_ctrl_c_of_a_write_that_no_node_took_says_that_nothing_was_done() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "kvorum_client.cli", "--endpoints", "127.0.0.1:1", "put", "k", "v"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "connection refused" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "kv: interrupted; nothing was done\n"
    assert process.returncode == 130


def test_addresses_that_differ_come_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    mismatch = "the options of n1 say that n3 serves peers at http://a:1, and the members list says http://b:1"

    async def scenario(server: Server, kv: Kv) -> None:
        async with Client([server.url]) as client:
            status = msgspec.structs.replace(await client.status(), address_mismatches=(mismatch,), members=())
        assert await status_of({server.url: status}) == 0

    run(scenario)
    first, advice = capsys.readouterr().err.splitlines()
    assert first == f"kv: addresses differ: {mismatch}"
    assert "correct the options" in advice and "docs/operations/without-kubernetes.md" in advice


def test_an_empty_stdin_is_stored_and_said() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        status, _, said = await _shell(server.url, ["put", "k", "-"], "</dev/null")
        assert (status, said) == (0, "kv: stdin is empty: the value has 0 bytes\n")
        status, _, said = await _shell(server.url, ["put", "k", "-"], "<<< v")
        assert (status, said) == (0, "")

    run(scenario)
