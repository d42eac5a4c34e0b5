"""What ``kv`` finds where it runs: descriptors, name servers, and variables of the environment."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import helpers
from client.test_cli import Kv, run
from client.test_watch import Clock
from fronts.fake_node import Server

from kvorum.config.sources import CONFIG_FILE_ENV, options
from kvorum_client import Client, Compacted, cli, cli_endpoints, cli_history
from kvorum_client.transport import NotSentError, Transport


@pytest.mark.parametrize("spare", [1, 2, 3, 4])
@pytest.mark.parametrize("arguments", [["put", "k", "v"], ["get", "k"]])
def test_a_command_without_descriptors_says_that_nothing_was_done(arguments: list[str], spare: int) -> None:
    script = """if True:
        import os, resource, sys
        from kvorum_client import cli
        open_now = len(os.listdir("/proc/self/fd")) - 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + int(sys.argv[1]),) * 2)
        sys.exit(cli.main(sys.argv[2:]))"""
    command = [sys.executable, "-c", script, str(spare), "--endpoints", "127.0.0.1:1", "--timeout", "0.5", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    reason = "cannot begin, and nothing was done: too many open files (ulimit -n)"
    said = f"kv: {reason if spare < 4 else 'http://127.0.0.1:1: connection refused'}\n"
    assert (result.returncode, result.stderr) == (3, said)


def test_an_output_that_fails_before_a_change_is_sent_is_not_called_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: Client, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario(server: Server, kv: Kv) -> None:
        monkeypatch.setattr(cli, "give_up", lambda stream: None)
        monkeypatch.setattr(Client, "put", fails)
        assert await kv("put", "k", "v") == 5
        assert capsys.readouterr().err == "kv: cannot write the output: No space left on device\n"

    run(scenario)


# Deadlines.


def test_kv_ends_at_its_deadline_though_a_name_server_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = threading.Event(), threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[object]:
        asked.set()
        answers.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        with ThreadPoolExecutor(1) as threads:
            command = threads.submit(cli.main, ["--endpoints", "a.invalid:1", "get", "k", "--timeout", "0.3"])
            assert command.result(20) == 3, "while nothing has answered"
            assert asked.is_set()
    finally:
        answers.set()


def test_what_is_done_is_done_though_no_thread_can_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The event loop began one at its end, so a put that was done ended with a traceback and 1 (ulimit -u)."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def done(*_: object) -> int:
        return 0

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(cli, "_run", done)
    assert cli.main(["--endpoints", "127.0.0.1:1", "put", "k", "v"]) == 0
    monkeypatch.undo()
    monkeypatch.setattr(threading.Thread, "start", start)
    assert cli.main(["--endpoints", "a.invalid:1", "put", "k", "v", "--timeout", "0.3"]) == 3
    assert "temporarily unavailable" in capsys.readouterr().err


def test_both_requests_of_a_compaction_keep_to_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, timeouts = Clock(), []
    monkeypatch.setattr(cli_history, "time", clock)

    async def page(self: Client, **_: object) -> SimpleNamespace:
        clock.now_s += 3
        return SimpleNamespace(revision=100)

    async def compact(self: Client, revision: int, *, timeout_s: float) -> Compacted:
        timeouts.append(timeout_s)
        return Compacted(100, revision)

    monkeypatch.setattr(Client, "page", page)
    monkeypatch.setattr(Client, "compact", compact)
    assert cli.main(["--endpoints", "127.0.0.1:1", "compact", "--keep", "10", "--timeout", "4"]) == 0
    assert timeouts == [1]


def test_no_deadline_of_a_request_is_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[aiohttp.ClientTimeout] = []

    def request(*_: object, timeout: aiohttp.ClientTimeout, **__: object) -> None:
        timeouts.append(timeout)
        raise aiohttp.ClientError

    async def main() -> None:
        transport = Transport()
        monkeypatch.setattr(transport, "_open", lambda: SimpleNamespace(request=request))
        with pytest.raises(NotSentError):
            await transport.exchange("http://127.0.0.1:1", "GET", "/", b"", {}, 7.3)

    asyncio.run(main())
    assert [(each.total, helpers.calculate_timeout_when(0.2, 7.3, each.ceil_threshold)) for each in timeouts] == [
        (7.3, 7.5)
    ]


# Variables.


@pytest.mark.parametrize(
    "name",
    [
        "KVORUM_ENDPOINT",
        "KVORUM_ENDPONTS",
        "kvorum_endpoints",
        "KVORUM_END_POINTS",
        "KVORUM_ENDPOINTS_",
        "KVORUM_ENPOINT",
    ],
)
def test_a_misspelt_variable_is_told_unless_the_cluster_is_named(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVORUM_ENDPOINTS", raising=False)
    monkeypatch.setattr(cli_endpoints, "LOCAL_ENDPOINTS", "127.0.0.1:1")
    monkeypatch.setenv(name, "127.0.0.1:2")
    assert cli.main(["get", "k", "--timeout", "0.5"]) == 3
    warning = f"kv: warning: ignoring unknown environment variables: {name}. Did you mean KVORUM_ENDPOINTS?"
    assert capsys.readouterr().err.splitlines()[0] == warning
    assert cli.main(["get", "k", "--timeout", "0.5", "--endpoints", "127.0.0.1:1"]) == 3
    assert "warning" not in capsys.readouterr().err


def test_no_variable_of_a_node_a_pod_or_a_command_under_a_lock_is_taken_for_a_misspelt_one() -> None:
    names = [CONFIG_FILE_ENV, *(option.env for option in options())]
    names += ["KVORUM_ENDPOINTS", *(f"KVORUM_{what}_{of}" for what in ("LOCK", "ELECTION") for of in ("NAME", "TOKEN"))]
    # What Kubernetes sets in a pod beside a Service named kvorum.
    names += ["KVORUM_SERVICE_HOST", "KVORUM_SERVICE_PORT", "KVORUM_PORT", "KVORUM_PORT_8001_TCP_ADDR"]
    assert cli_endpoints.misspelt_warning(dict.fromkeys(names, "x")) == ""
