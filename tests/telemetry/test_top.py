"""``kv top``: frames of what was seen, rates of what was counted in between, and a view that outlives its nodes."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from acceptance.processes import Cluster
from aiohttp import web
from bench.processes import free_ports
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import stop_server
from telemetry.fakes import FakeNode, follower_status, leader_status, member
from telemetry.live import running_cluster, traffic
from waiting import until

from kvorum import status as server
from kvorum.config import Config
from kvorum.telemetry.counters import Histogram
from kvorum.telemetry.metrics import Telemetry
from kvorum_client.client import Client
from kvorum_client.exposition import Exposition, percentile, rate
from kvorum_client.results import NodeStatus
from kvorum_client.top import Observed, Turn, Watcher, changes, draw

MOMENT = datetime(2026, 1, 2, 3, 4, 5)


def as_client_sees(status: server.NodeStatus) -> NodeStatus:
    return msgspec.json.decode(msgspec.json.encode(status), type=NodeStatus)


def figures(node: FakeNode, at: float) -> Exposition:
    telemetry = Telemetry(node)
    try:
        return Exposition(telemetry.render()[0].decode(), at)
    finally:
        telemetry.close()


def seen(status: server.NodeStatus, node: FakeNode | None = None, at: float = 0.0) -> Observed:
    return Observed(as_client_sees(status), figures(node or FakeNode(Config(name="n1"), status), at))


def turn(**nodes: Observed) -> Turn:
    return Turn(MOMENT, nodes)


def text(before: Turn, after: Turn, *events: str) -> str:
    return "\n".join(line.text for line in draw(before, after, events))


def row(frame: str, name: str) -> dict[str, str]:
    """Return the cells of a node's line, by heading."""
    lines = frame.splitlines()
    headings = next(line for line in lines if line.startswith("NAME"))
    found = next(line for line in lines if re.match(rf"{name} +\S", line) and ":" not in line.split()[0])
    return dict(zip(re.split(r"  +", headings.strip()), re.split(r"  +", found.strip()), strict=True))


def test_a_frame_shows_who_leads_and_who_is_behind() -> None:
    now = turn(n1=seen(leader_status()), n2=seen(follower_status()), n3=Observed(problem="connection refused"))
    frame = text(now, now)
    assert "n1 leads in term 7   2 of 3 voters up, no more may fail   revision 100   42 keys" in frame
    assert row(frame, "n1")["STATE"] == "leader"
    assert row(frame, "n2")["STATE"] == "follower"
    assert row(frame, "n2")["LAG"] == "3"
    assert row(frame, "n2")["CONTACT"] == "30.0ms"
    assert row(frame, "n3")["STATE"] == "down"
    assert "n3: connection refused" in frame


def test_rates_and_latencies_are_those_of_the_interval() -> None:
    node = FakeNode(Config(name="n1"))
    node.counters.writes = 1000
    node.counters.write_duration.record(8.0, times=1000)
    before = turn(n1=seen(leader_status(), node, at=10.0))
    node.counters.writes += 50
    node.counters.reads += 20
    node.counters.stale_reads += 10
    node.counters.write_duration.record(0.0015, times=50)
    node.counters.requests["put", 200] += 45
    node.counters.requests["put", 503] += 5
    node.counters.requests["readyz", 503] += 40  # nobody's error: a kubelet asks, and a node says that it is not ready
    node.counters.requests["metrics", 200] += 40
    after = turn(n1=seen(leader_status(), node, at=12.0))
    cells = row(text(before, after), "n1")
    assert (cells["WRITES/S"], cells["READS/S"]) == ("25", "15")
    assert (cells["P50"], cells["P99"]) == ("1.5ms", "2.0ms")
    assert "writes 25/s   reads 15/s   errors 10%" in text(before, after)


@pytest.mark.parametrize(("errors", "shown"), [(0, "0%"), (1, "0.1%"), (25, "2.5%"), (1000, "100%")])
def test_the_part_of_errors_is_readable(errors: int, shown: str) -> None:
    node = FakeNode(Config(name="n1"))
    before = turn(n1=seen(leader_status(), node, at=10.0))
    node.counters.requests["put", 503] += errors
    node.counters.requests["put", 200] += 1000 - errors
    after = turn(n1=seen(leader_status(), node, at=12.0))
    assert text(before, after).splitlines()[1].endswith(f"errors {shown}")


def test_a_node_that_was_started_anew_has_no_negative_rates() -> None:
    node = FakeNode(Config(name="n1"))
    node.counters.writes = 1000
    node.counters.write_duration.record(8.0, times=1000)
    before = turn(n1=seen(leader_status(), node, at=10.0))
    fresh = FakeNode(Config(name="n1"))
    fresh.counters.writes = 4
    fresh.counters.write_duration.record(0.0015, times=4)
    after = turn(n1=seen(leader_status(), fresh, at=12.0))
    cells = row(text(before, after), "n1")
    assert cells["WRITES/S"] == "2.0"
    assert cells["P50"] == "1.5ms"


def test_without_any_answer_the_frame_says_so() -> None:
    now = turn(a=Observed(problem="connection refused"))
    assert "no node answers" in text(now, now)


def test_what_a_node_says_cannot_move_the_cursor() -> None:
    now = turn(n1=seen(leader_status()), **{"n\x1b[2J": Observed(problem="\x1b[2Jgone")})
    lines = draw(now, now, ())
    from kvorum_client.top import Screen

    screen = Screen(is_live=True)
    assert not any("\x1b" in screen._text(msgspec.structs.replace(line, color=""), 200) for line in lines)


def test_of_two_that_say_they_lead_the_later_term_is_believed() -> None:
    stale = leader_status(term=7)
    new = follower_status(state="leader", leader_name="n2", term=8)
    for nodes in ({"n1": seen(stale), "n2": seen(new)}, {"n2": seen(new), "n1": seen(stale)}):
        now = Turn(MOMENT, nodes)
        assert "n2 leads in term 8" in text(now, now)


def test_changes_are_told_in_sentences() -> None:
    three = turn(n1=seen(leader_status()), n2=seen(follower_status()))
    assert list(changes(three, three)) == []
    new = as_client_sees(follower_status(state="leader", leader_name="n2", term=8))
    after = turn(n1=Observed(problem="connection refused"), n2=Observed(new, three.nodes["n2"].figures))
    assert list(changes(three, after)) == ["n2 leads in term 8", "n1 does not answer: connection refused"]
    lost = as_client_sees(follower_status(leader=None, leader_name=None, term=9))
    leaderless = turn(n2=Observed(lost, three.nodes["n2"].figures))
    assert list(changes(after, leaderless)) == ["n2 no longer leads, and there is no new leader yet (term 9)"]
    assert list(changes(after, turn(n1=seen(follower_status(name="n1")), n2=after.nodes["n2"]))) == ["n1 answers again"]


def test_a_changed_membership_is_told() -> None:
    before = turn(n1=seen(leader_status()))
    members = (member("n1"), member("n2", voter=False), member("n4", voter=False))
    after = turn(n1=seen(leader_status(members=members)))
    assert list(changes(before, after)) == [
        "n2 is a learner now",
        "n3 was removed from the cluster",
        "n4 was added to the cluster as a learner",
    ]


@settings(deadline=None)
@given(st.text())
def test_no_exposition_is_too_strange_to_read(nonsense: str) -> None:
    exposition = Exposition(nonsense, 1.0)
    assert rate(None, exposition, "kvorum_writes_total") is None
    percentile(exposition, Exposition(nonsense, 2.0), "kvorum_write_duration_seconds", 0.5)


@settings(deadline=None)
@given(st.lists(st.floats(min_value=0.0, max_value=20.0), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_agrees_with_the_nodes_own(durations: list[float], fraction: float) -> None:
    from kvorum.telemetry.sampler import percentile as nodes_own

    histogram = Histogram()
    for duration in durations:
        histogram.record(duration)
    cumulative = 0
    bounds = [*map(str, histogram.boundaries), "+Inf"]
    lines: list[str] = []
    for bound, count in zip(bounds, histogram.counts, strict=True):
        cumulative += count
        lines.append(f'h_bucket{{le="{bound}"}} {cumulative}')
    empty = Exposition("\n".join(re.sub(r"\d+$", "0", line) for line in lines), 0.0)
    ours = percentile(empty, Exposition("\n".join(lines), 1.0), "h", fraction)
    assert ours == pytest.approx(nodes_own(histogram.boundaries, histogram.counts, fraction))


class FakeServer:
    """``/v1/cluster`` and ``/metrics`` of one node, which a test may take down."""

    def __init__(self, status: server.NodeStatus) -> None:
        self.status = status
        self.is_down = False

    async def cluster(self, _: web.Request) -> web.Response:
        """Answer, unless down."""
        if self.is_down:
            raise web.HTTPServiceUnavailable
        return web.Response(body=msgspec.json.encode(self.status), content_type="application/json")

    async def metrics(self, _: web.Request) -> web.Response:
        """Answer with nothing."""
        return web.Response(text="")


@asynccontextmanager
async def serving(*servers: tuple[FakeServer, int]) -> AsyncIterator[None]:
    runners = []
    try:
        for fake, port in servers:
            app = web.Application()
            app.router.add_get("/v1/cluster", fake.cluster)
            app.router.add_get("/metrics", fake.metrics)
            runner = web.AppRunner(app)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
        yield
    finally:
        for runner in runners:
            await stop_server(runner)


def test_nodes_are_found_through_one_and_remembered_when_that_one_dies() -> None:
    async def scenario() -> list[Turn]:
        ports = free_ports(2)
        members = tuple(
            member(name, client_url=f"http://127.0.0.1:{port}") for name, port in zip(("n1", "n2"), ports, strict=True)
        )
        first = FakeServer(leader_status(members=members))
        second = FakeServer(follower_status(members=members))
        async with serving((first, ports[0]), (second, ports[1])), Client([f"127.0.0.1:{ports[0]}"]) as client:
            watcher = Watcher(client)
            both = await watcher.turn()
            first.is_down = True
            one = await watcher.turn()
            first.is_down = False
            again = await watcher.turn()
            assert [event[10:] for event in watcher.events] == [
                "n1 does not answer: HTTP status 503",
                "n1 answers again",
            ]
            return [both, one, again]

    both, one, again = asyncio.run(scenario())
    assert [set(t.nodes) for t in (both, one, again)] == [{"n1", "n2"}] * 3
    assert one.nodes["n1"].status is None
    assert one.nodes["n2"].status is not None
    assert again.nodes["n1"].status is not None


def test_a_node_with_two_addresses_is_up_while_one_of_them_answers() -> None:
    async def scenario() -> Turn:
        ports = free_ports(2)
        status = leader_status(members=(member("n1", client_url=f"http://127.0.0.1:{ports[1]}"),))
        first, second = FakeServer(status), FakeServer(status)
        endpoints = [f"127.0.0.1:{port}" for port in ports]
        async with serving((first, ports[0]), (second, ports[1])), Client(endpoints) as client:
            watcher = Watcher(client)
            await watcher.turn()
            first.is_down = True
            one = await watcher.turn()
            assert not watcher.events
            return one

    turn = asyncio.run(scenario())
    assert list(turn.nodes) == ["n1"]
    assert turn.nodes["n1"].status is not None


class Terminal:
    """A pseudo-terminal in which ``kv top`` runs; what it shows is the last frame."""

    def __init__(self, endpoints: str, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "KVORUM_ENDPOINTS": endpoints, "COLUMNS": "180", "LINES": "30", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from kvorum_client.cli import main; sys.exit(main())",
                "top",
                *arguments,
            ],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.output = ""

    def read(self) -> str:
        """Return all that was written so far."""
        try:
            while data := os.read(self._master, 65536):
                self.output += data.decode()
        except OSError:
            pass  # Nothing more now, or the other side has closed.
        return self.output

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def end(self) -> int:
        """Wait for its end and return the exit status."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
            time.sleep(0.02)
        self.read()
        status = self.process.wait(timeout=1)
        os.close(self._master)
        return status

    def kill(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            os.close(self._master)


@pytest.fixture
def a_terminal() -> Iterator[list[Terminal]]:
    terminals: list[Terminal] = []
    yield terminals
    for terminal in terminals:
        terminal.kill()


@pytest.mark.parametrize("leave", ["q", "ctrl-c"])
def test_leaving_gives_the_terminal_back(leave: str, a_terminal: list[Terminal]) -> None:
    (port,) = free_ports(1)
    terminal = Terminal(f"127.0.0.1:{port}", "--interval", "0.05")
    a_terminal.append(terminal)

    def shown() -> bool:
        return "no node answers" in terminal.read()

    asyncio.run(until("the first frame", shown))
    if leave == "q":
        terminal.type(b"q")
    else:
        os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.end() in {0, 3}
    assert terminal.output.startswith("\x1b[?1049h")
    assert terminal.output.rstrip().endswith("\x1b[?25h\x1b[?1049l")
    assert "Traceback" not in terminal.output


def test_once_without_a_cluster_says_so_and_fails() -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", "import sys; from kvorum_client.cli import main; sys.exit(main())"]
    result = subprocess.run(
        [*command, "--endpoints", f"127.0.0.1:{port}", "top", "--once", "--interval", "0.1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 3
    assert "no node answers" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.slow
def test_the_view_survives_the_death_of_the_leader(tmp_path: Path, a_terminal: list[Terminal]) -> None:
    async def scenario() -> tuple[str, str]:
        async with running_cluster(tmp_path) as cluster:
            stopping = asyncio.Event()
            flowing = asyncio.create_task(traffic(cluster, stopping))
            try:
                return await _watch_a_death(cluster, a_terminal)
            finally:
                stopping.set()
                await flowing

    killed, successor = asyncio.run(scenario())
    terminal = a_terminal[0]
    assert terminal.end() == 0
    assert re.search(rf"{killed} does not answer", terminal.output)
    assert re.search(rf"{successor} leads in term \d+ ", terminal.output)
    assert re.search(rf"\x1b\[31m{killed} +down", terminal.output)


async def _watch_a_death(cluster: Cluster, terminals: list[Terminal]) -> tuple[str, str]:
    leader = await asyncio.to_thread(cluster.settled)
    # Only the leader's address: the others must be found, and found again without it.
    terminals.append(Terminal(cluster.addresses[leader], "--interval", "0.2"))
    terminal = terminals[0]

    def leads() -> bool:
        return re.search(rf"{leader} leads in term \d+   3 of 3 voters up", terminal.read()) is not None

    await until("the first leader is shown", leads)
    cluster.kill(leader)
    successor = await asyncio.to_thread(cluster.leader)

    def followed() -> bool:
        return re.search(rf"{successor} leads in term \d+   2 of 3 voters up", terminal.read()) is not None

    await until("the successor is shown", followed)
    terminal.type(b"q")
    return leader, successor
