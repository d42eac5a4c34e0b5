"""What commands that last say while no node answers them, and what ``--timeout`` is for them."""

from __future__ import annotations

import asyncio
import signal

import pytest
from client.test_cli import Kv
from client.test_cli_locks import Out, ended, no_process_is_left, out, run, spawn
from fronts.fake_node import Server
from waiting import until

from kvorum.errors import NoLeaderError
from kvorum_client import cli_waiting

__all__ = ["no_process_is_left", "out"]


@pytest.mark.usefixtures("notice")
@pytest.mark.parametrize("command", [("watch", "k"), ("elect", "e", "--listen")])
def test_a_command_that_lasts_says_what_it_waits_for_until_it_has_begun(command: tuple[str, ...], out: Out) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        # It answers who leads at once, and has no quorum for anything else.
        server.node.gate = asyncio.Event()
        assert await kv(*command, "--timeout", "2.5") == 3
        waiting, _ = out()[1]
        assert waiting.startswith("kv: still waiting, for up to 2.5 s: ")
        assert server.url in waiting

    run(scenario)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            ("watch", "k"),
            "kv: the watch is lost, and no node goes on with it in time; to go on, watch --from-revision 3: ",
        ),
        (("elect", "e", "--listen"), "kv: the election is out of sight, and no node answers in time: "),
    ],
)
def test_a_stream_that_is_lost_is_said_and_ends_after_the_timeout(
    command: tuple[str, ...], says: str, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_waiting, "NOTICE_S", 0.1)

    async def scenario(server: Server, kv: Kv) -> None:
        watching = asyncio.create_task(kv(*command, "--timeout", "2"))
        await until("the watch has begun", lambda: server.node.watches.hub.size == 1)
        assert await kv("put", "k", "v") == 0
        server.node.error = NoLeaderError("no leader is known")
        server.node.watches.end_all(NoLeaderError("alone"))
        assert await watching == 3
        lost, ends = [line for line in out()[1] if not line.startswith("kv: still waiting")]
        assert lost == "kv: the connection is lost; trying to go on, for up to 2 s: no leader is known"
        assert ends.startswith(says)

    run(scenario)


def test_a_watch_goes_on_for_as_long_as_it_takes_unless_told_otherwise() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        watching = spawn(server, "watch", "k")
        assert watching.stdout is not None
        assert watching.stderr is not None
        await until("the watch has begun", lambda: server.node.watches.hub.size == 1)
        server.node.error = NoLeaderError("no leader is known")
        server.node.watches.end_all(NoLeaderError("alone"))
        said = await asyncio.to_thread(watching.stderr.readline)
        assert said.startswith("kv: the connection is lost; trying to go on, until a node answers, or Ctrl-C: ")
        server.node.error = None
        said = await asyncio.to_thread(watching.stderr.readline)
        goes_on = f"kv: the watch goes on at {server.url} from revision 2, without a gap; why it was interrupted: "
        assert said.startswith(goes_on)
        watching.send_signal(signal.SIGINT)
        assert (await ended(watching))[0] == 130

    run(scenario)
