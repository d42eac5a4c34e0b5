"""`kvorum recover --force-new-cluster` on real data folders: what it keeps, what it refuses, and a kill in between."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from fronts.fake_node import serving
from node.local_cluster import LocalCluster, Put, running
from serving import stream_server
from storage.support import send, take_snapshot
from telemetry.fakes import leader_status
from waiting import until

from kvorum.__main__ import main
from kvorum.commands import recover, serve
from kvorum.commands.recover import force_new_cluster, recover_if_requested
from kvorum.errors import ConfigError, StorageError, StorageLockedError
from kvorum.identity import Identity
from kvorum.raft.messages import INDEX_MAX, Configuration, HardState, Member, Save, Snapshot
from kvorum.storage.datadir import RECOVERY_REQUEST as REQUEST
from kvorum.storage.datadir import request_recovery
from kvorum.storage.interface import Loaded
from kvorum.storage.log import SqliteStorage
from kvorum.storage.memory import MemorySnapshots
from kvorum.storage.offline import offline
from kvorum.telemetry.counters import Counters
from kvorum.transport import Hello
from kvorum_wire import NodeStatus


def failed(error: StorageError) -> None:
    raise AssertionError(error)


def read_disk(folder: Path) -> Loaded:
    storage = SqliteStorage(folder, failed, 10_000, Counters())
    try:
        return storage.load()
    finally:
        storage.close()


@pytest.fixture
def survivor(tmp_path: Path) -> Path:
    """The folder of one of three nodes that held the writes a=1 and b=2; the others are lost."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            await cluster.put(b"a", b"1")
            await cluster.put(b"b", b"2")
            await cluster.converge()

    asyncio.run(scenario())
    return tmp_path / "n2"


async def serve_alone(folder: Path) -> dict[str, Any]:
    """Start the node on the folder; return what it is and holds once it leads."""
    cluster = LocalCluster(folder.parent, 1)
    cluster.names, cluster.ports = ["n2"], {"n2": cluster.ports["n1"]}
    try:
        await cluster.start("n2")
        leader = await cluster.leader()
        await leader.propose(Put(b"c", b"3"), 5000)
        values = {key: record.value for key in (b"a", b"b", b"c") if (record := leader.store.get(key))}
        return {"values": values, "cluster": leader.identity.cluster_id, "members": leader.raft.configuration.voters()}
    finally:
        await cluster.close()


@pytest.mark.parametrize(
    ("term", "index", "is_better"),
    [(1, 0, True), (0, 1, True), (0, 0, False), (-1, 1000, False)],
    ids=["a later term", "more entries", "the same log", "a longer log of an older term"],
)
def test_a_survivor_is_not_recovered_while_a_member_answers_whose_log_is_more_up_to_date(
    survivor: Path, monkeypatch: pytest.MonkeyPatch, term: int, index: int, is_better: bool
) -> None:
    loaded = read_disk(survivor)
    assert loaded.identity is not None
    last = loaded.entries[-1]
    other = leader_status(
        name="n1",
        cluster_id=loaded.identity.cluster_id,
        last_term=last.term + term,
        last_index=last.index + index,
    )
    # A node of another cluster does not count.
    answers = [other, msgspec.structs.replace(other, cluster_id="d" * 32, last_term=last.term + 9)]

    async def status(session: object, client_url: str) -> NodeStatus | None:
        return answers.pop()

    monkeypatch.setattr(recover, "_status_of", status)
    if not is_better:
        force_new_cluster(str(survivor), accept_older_log=False)
        return
    with pytest.raises(ConfigError, match="n1 answers and has a more up-to-date log"):
        force_new_cluster(str(survivor), accept_older_log=False)
    # It may have the later log because it lost what is here.
    elsewhere = msgspec.structs.replace(other, cluster_id="d" * 32)
    answers.extend((msgspec.structs.replace(other, distrusted="its disk was set back"), elsewhere))
    with pytest.raises(ConfigError, match=r"takes no part: its disk was set back.*--accept-older-log"):
        force_new_cluster(str(survivor), accept_older_log=False)
    after = read_disk(survivor)
    assert (after.identity, after.entries) == (loaded.identity, loaded.entries)
    force_new_cluster(str(survivor), accept_older_log=True)


@pytest.mark.parametrize("accept_older_log", [False, True])
def test_a_recovery_at_the_next_start_asks_the_members_too(
    survivor: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, accept_older_log: bool
) -> None:
    """A worse disk is not recovered, and the node starts as it was: a crash loop could not be ended from a pod."""
    loaded = read_disk(survivor)
    assert loaded.identity is not None
    last = loaded.entries[-1]
    better = leader_status(
        name="n1", cluster_id=loaded.identity.cluster_id, last_term=last.term, last_index=last.index + 1
    )

    async def status(session: object, client_url: str) -> NodeStatus | None:
        return better

    monkeypatch.setattr(recover, "_status_of", status)
    request_recovery(survivor, accept_older_log=accept_older_log)

    recover_if_requested(str(survivor))

    after = read_disk(survivor)
    assert not (survivor / REQUEST).exists()
    assert (after.identity == loaded.identity) is not accept_older_log
    assert after.entries[: len(loaded.entries)] == loaded.entries
    said = [text for text in caplog.messages if "not recovered" in text]
    assert len(said) == (0 if accept_older_log else 1)
    assert all("n1 answers and has a more up-to-date log" in text for text in said)


class Moved:
    """A node at a new address, both ports in one: what it says of itself, and where it is."""

    def __init__(self, status: NodeStatus, port: int) -> None:
        self.port = port
        name, _, incarnation = status.id.partition("@")
        url = f"http://127.0.0.1:{port}"
        hello = Hello(name, incarnation, status.cluster_id, (), "", url, url)
        self.answers = {"/raft/v1/hello": msgspec.json.encode(hello), "/v1/cluster": msgspec.json.encode(status)}


@contextlib.contextmanager
def moved(status: NodeStatus) -> Iterator[Moved]:
    """Let a node with this status answer at an address that no configuration names; it has a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = node.answers.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        node = Moved(status, server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield node
        finally:
            server.shutdown()
            thread.join()


def ahead_of(survivor: Path, **changes: object) -> NodeStatus:
    """Return the status of n1, of the survivor's cluster, whose log has one entry more."""
    loaded = read_disk(survivor)
    assert loaded.identity is not None
    last = loaded.entries[-1]
    status = leader_status(
        name="n1", cluster_id=loaded.identity.cluster_id, last_term=last.term, last_index=last.index + 1
    )
    return msgspec.structs.replace(status, **changes)


def silences(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines about members that did not answer."""
    return [line for line in capsys.readouterr().err.splitlines() if "was not compared" in line]


@pytest.mark.parametrize("name_server", [True, False], ids=["an address", "a name, without a name server"])
def test_a_member_that_moved_is_asked_where_the_options_say_that_it_is(
    survivor: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name_server: bool
) -> None:
    """No leader has published its new address, so the configuration names the old one."""
    host = "127.0.0.1"
    if not name_server:
        host = "n1.example"
        (survivor / "addresses").write_bytes(msgspec.json.encode({host: "127.0.0.1"}))

        def failing(*_: object, **__: object) -> Any:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", failing)
    with moved(ahead_of(survivor)) as node:
        urls = {"n1": f"http://{host}:{node.port}", "n2": "http://127.0.0.1:1"}
        with pytest.raises(ConfigError, match="n1 answers and has a more up-to-date log"):
            force_new_cluster(str(survivor), accept_older_log=False, peer_urls=urls)
        assert [line.partition(" (")[0] for line in silences(capsys)] == ["n3"], "n2 is the node itself"

        request_recovery(survivor)
        before = read_disk(survivor).identity
        recover_if_requested(str(survivor), urls)
        assert read_disk(survivor).identity == before


def test_every_member_that_did_not_answer_is_named(survivor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    force_new_cluster(str(survivor), accept_older_log=False, peer_urls={"n3": "http://127.0.0.1:1"})

    first, third = silences(capsys)
    assert first.startswith("n1 (http://") and "did not answer" in first
    assert third.startswith("n3 (http://") and "http://127.0.0.1:1" in third
    assert third.endswith(": its log was not compared")


@pytest.mark.parametrize(
    "changes",
    [{"cluster_id": "d" * 32}, {"cluster_id": ""}, {"name": "n9", "id": "n9@0123456789abcdef", "last_index": 1}],
    ids=["another cluster", "no cluster", "another member"],
)
def test_a_member_at_whose_address_another_node_answers_was_not_compared(
    survivor: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object]
) -> None:
    status = ahead_of(survivor, **changes)
    with moved(status) as node:
        force_new_cluster(str(survivor), accept_older_log=False, peer_urls={"n1": f"http://127.0.0.1:{node.port}"})

    line = silences(capsys)[0]
    assert line.startswith("n1 (http://")
    assert f"{status.name} of {status.cluster_id or 'no cluster'}" in line
    assert "is there" in line


@pytest.mark.parametrize("by", ["--peers", "KVORUM_PEERS"])
def test_the_command_takes_the_addresses_of_the_peers(
    survivor: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    command = ["recover", "--data-dir", str(survivor), "--force-new-cluster", "--yes"]
    with moved(ahead_of(survivor)) as node:
        peers = f"n1=127.0.0.1:{node.port}"
        if by == "--peers":
            command += [by, peers]
        else:
            monkeypatch.setenv(by, peers)
        assert main(command) == 2
    assert "n1 answers and has a more up-to-date log" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stdin at which somebody answers."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("options", [[], ["--at-next-start"]])
@pytest.mark.parametrize(
    ("stdin", "said"),
    [(io.StringIO("y\n"), "--yes"), (None, "--yes"), (Terminal("\n"), "[y/N]"), (Terminal(), "[y/N]")],
)
def test_nothing_is_recovered_that_nobody_confirmed(
    survivor: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stdin: io.StringIO | None,
    said: str,
    options: list[str],
) -> None:
    before = read_disk(survivor).identity
    monkeypatch.setattr("sys.stdin", stdin)
    command = ["recover", "--data-dir", str(survivor), "--force-new-cluster", "--accept-older-log", *options]
    assert main(command) == serve.EXIT_CONFIG
    output = capsys.readouterr().err
    assert "nothing was done" in output
    assert said in output
    assert read_disk(survivor).identity == before
    assert not (survivor / REQUEST).exists()


@pytest.mark.parametrize(("stdin", "options"), [(Terminal("y\n"), []), (Terminal("Yes\n"), []), (None, ["--yes"])])
def test_what_was_confirmed_is_recovered(
    survivor: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stdin: io.StringIO | None,
    options: list[str],
) -> None:
    before = read_disk(survivor).identity
    assert before is not None
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["recover", "--data-dir", str(survivor), "--force-new-cluster", "--accept-older-log", *options]) == 0
    after = read_disk(survivor).identity
    assert after is not None
    assert after.cluster_id != before.cluster_id
    # The question comes after what it is about.
    assert "becomes the only member" in capsys.readouterr().err.partition("[y/N]")[0]


def test_peers_that_are_no_addresses_are_refused(survivor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_disk(survivor).identity
    assert main(["recover", "--data-dir", str(survivor), "--force-new-cluster", "--peers", "n1"]) == 2
    assert "--peers: 'n1' is not NAME=HOST:PORT" in capsys.readouterr().err
    assert read_disk(survivor).identity == before


def test_a_node_that_recovers_at_its_start_asks_at_the_addresses_of_its_options(
    survivor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LocalCluster(survivor.parent, 3).config("n2")
    asked: list[object] = []
    monkeypatch.setattr(serve, "recover_if_requested", lambda *arguments: asked.extend(arguments))

    asyncio.run(serve._prepare_data(config))

    assert asked == [str(survivor), config.expected_urls()]


def test_a_member_is_asked_for_its_status_and_whatever_else_answers_is_none() -> None:
    async def scenario() -> None:
        async with serving() as server, aiohttp.ClientSession() as session:
            status = await recover._status_of(session, f"{server.url}/")
            assert status is not None and status.name == server.node.config.name
            for url in ("http://127.0.0.1:1", "", "no url", f"{server.url}/v1"):
                assert await recover._status_of(session, url) is None

    asyncio.run(scenario())


def test_a_status_that_arrives_in_two_segments_is_read_to_its_end() -> None:
    """Longer than one Ethernet segment, it was taken for nonsense, and the member for one that does not answer."""

    async def scenario() -> None:
        async with serving() as server, aiohttp.ClientSession() as session:
            async with session.get(f"{server.url}/v1/cluster") as response:
                whole = await response.read()
            first_is_read = asyncio.Event()

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole[:100])
                await writer.drain()
                await first_is_read.wait()
                writer.write(whole[100:])
                await writer.drain()
                writer.close()

            async with stream_server(answer) as address:
                asking = asyncio.create_task(recover._status_of(session, f"http://{address}"))
                # Reads, if one call took what has arrived, would be over by now.
                await asyncio.wait([asking], timeout=0.2)
                first_is_read.set()
                status = await asking
            assert status is not None and status.name == server.node.config.name

    asyncio.run(scenario())


def test_the_survivor_goes_on_alone_with_all_that_it_holds(survivor: Path) -> None:
    before = read_disk(survivor)
    assert before.identity is not None

    identity = force_new_cluster(str(survivor))

    assert identity.node_id == before.identity.node_id
    assert identity.cluster_id != before.identity.cluster_id
    served = asyncio.run(serve_alone(survivor))
    assert served["values"] == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert served["cluster"] == identity.cluster_id
    assert list(served["members"]) == [identity.node_id]


def test_the_others_never_take_the_survivor_for_a_member_of_theirs(survivor: Path) -> None:
    force_new_cluster(str(survivor))

    async def scenario() -> None:
        cluster = LocalCluster(survivor.parent, 3)
        try:
            await cluster.start("n1", "n2", "n3")
            leader = await cluster.leader(["n1", "n3"])
            await leader.propose(Put(b"old", b"cluster"), 5000)
            await until("n2 leads its own", lambda: cluster.nodes["n2"].raft.leader == cluster.nodes["n2"].raft.id)
            await cluster.nodes["n2"].propose(Put(b"new", b"cluster"), 5000)

            assert leader.store.get(b"new") is None
            assert cluster.nodes["n2"].store.get(b"old") is None
        finally:
            await cluster.close()

    asyncio.run(scenario())


def test_it_can_be_done_again_and_again(survivor: Path) -> None:
    first = force_new_cluster(str(survivor))
    second = force_new_cluster(str(survivor))

    assert first.cluster_id != second.cluster_id
    assert asyncio.run(serve_alone(survivor))["values"][b"b"] == b"2"


def test_of_a_node_that_is_alone_there_is_nothing_to_recover(
    survivor: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    force_new_cluster(str(survivor))
    capsys.readouterr()
    before = read_disk(survivor)
    assert before.identity is not None
    command = ["recover", "--data-dir", str(survivor), "--force-new-cluster"]

    assert main([*command, "--peers", "n3=127.0.0.1:1"]) == 0
    told = capsys.readouterr()
    says = f"there is nothing to recover: {before.identity.node_id} is the only member of cluster"
    assert told.out.startswith(f"{says} {before.identity.cluster_id} already")
    assert "becomes the only member" not in told.err, "and nobody is asked whether to go on"

    request_recovery(survivor)
    recover_if_requested(str(survivor))
    assert f"not recovered, starting as before: {says}" in caplog.text
    assert not (survivor / REQUEST).exists()
    after = read_disk(survivor)
    assert (after.identity, after.entries) == (before.identity, before.entries)

    assert main([*command, "--accept-older-log", "--yes"]) == 0
    copied = read_disk(survivor).identity
    assert copied is not None and copied.cluster_id != before.identity.cluster_id


def test_a_node_that_is_alone_with_a_term_that_leaves_none_for_elections_is_recovered(survivor: Path) -> None:
    force_new_cluster(str(survivor))
    save_offline(survivor, Save(1, HardState(INDEX_MAX - 1, None)))
    force_new_cluster(str(survivor), accept_older_log=False)
    assert read_disk(survivor).hard_state.current_term < 2**20


def test_a_kill_between_the_new_cluster_id_and_the_new_configuration_is_repaired_by_doing_it_again(
    survivor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: SqliteStorage, save: Save, done: object) -> None:
        raise KeyboardInterrupt

    request_recovery(survivor)
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStorage, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            recover_if_requested(str(survivor))
    assert (survivor / REQUEST).exists()

    recover_if_requested(str(survivor))

    assert not (survivor / REQUEST).exists()
    assert asyncio.run(serve_alone(survivor))["values"] == {b"a": b"1", b"b": b"2", b"c": b"3"}


def save_offline(folder: Path, save: Save) -> None:
    async def scenario() -> None:
        async with offline(folder) as storage:
            await storage.save(save)

    asyncio.run(scenario())


@pytest.mark.parametrize("term", [INDEX_MAX - 1, INDEX_MAX])
def test_a_term_that_leaves_none_for_elections_is_given_up(survivor: Path, term: int) -> None:
    """One message brought it there, from a peer of a version that took it; the log's own terms are as before."""
    save_offline(survivor, Save(1, HardState(term, None)))

    force_new_cluster(str(survivor))

    assert read_disk(survivor).hard_state.current_term < 2**20
    assert asyncio.run(serve_alone(survivor))["values"] == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_entries_of_a_term_that_leaves_none_for_elections_get_lower_ones(survivor: Path) -> None:
    entries = read_disk(survivor).entries
    far = tuple(msgspec.structs.replace(entry, term=INDEX_MAX - 1) for entry in entries[2:])
    save_offline(survivor, Save(1, HardState(INDEX_MAX - 1, None), far))

    force_new_cluster(str(survivor))

    loaded = read_disk(survivor)
    assert [entry.data for entry in loaded.entries[:-1]] == [entry.data for entry in entries]
    assert loaded.entries[-1].term < 2**20
    assert asyncio.run(serve_alone(survivor))["values"] == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_a_snapshot_of_a_term_that_leaves_none_for_elections_is_refused() -> None:
    member = Configuration((Member("n1@" + "1" * 16, voter=True),))
    loaded = Loaded(
        Identity("n1", "1" * 16, "c" * 32), HardState(INDEX_MAX - 1, None), Snapshot(7, INDEX_MAX - 1, member)
    )
    with pytest.raises(ConfigError, match="restore a backup"):
        recover.plan(loaded, "folder")


def test_a_node_that_recovers_when_it_starts_says_so_in_its_log_only(
    survivor: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What reads the log of a pod takes each line for a JSON object."""
    request_recovery(survivor)

    recover_if_requested(str(survivor), {"n3": "http://127.0.0.1:1"})

    output = capsys.readouterr()
    assert output.out + output.err == ""
    first, third, warning, done = caplog.messages
    assert (first[:4], third[:4]) == ("n1 (", "n3 (")
    assert "becomes the only member of a new cluster" in warning
    assert "Continue only if a majority of the disks is lost for good." in warning
    assert "\n" not in warning
    assert done.startswith("recovered: ")


def test_a_request_is_carried_out_once(survivor: Path) -> None:
    before = read_disk(survivor).identity
    recover_if_requested(str(survivor))
    assert read_disk(survivor).identity == before, "without a request nothing is done"
    request_recovery(survivor)
    assert read_disk(survivor).identity == before, "the request alone changes nothing"

    recover_if_requested(str(survivor))
    after = read_disk(survivor).identity
    recover_if_requested(str(survivor))

    assert before is not None
    assert after is not None
    assert after.cluster_id != before.cluster_id
    assert read_disk(survivor).identity == after


def test_a_node_that_runs_is_not_recovered(survivor: Path) -> None:
    storage = SqliteStorage(survivor, failed, 10_000, Counters())
    storage.load()
    try:
        with pytest.raises(StorageLockedError):
            force_new_cluster(str(survivor))
    finally:
        storage.close()


def test_what_is_no_nodes_folder_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a data folder"):
        force_new_cluster(str(tmp_path / "none"))
    with pytest.raises(StorageError, match="cannot write"):
        request_recovery(tmp_path / "none")

    assert not (tmp_path / "none").exists()


def test_a_folder_that_holds_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not hold the data of a node"):
        force_new_cluster(str(tmp_path))
    assert list(tmp_path.iterdir()) == [], "and nothing is made in it"


def test_a_folder_that_was_never_used_is_refused(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path, failed, 10_000, Counters())
    storage.load()
    storage.close()

    with pytest.raises(ConfigError, match="does not hold the data of a node"):
        force_new_cluster(str(tmp_path))


def test_a_request_that_cannot_be_removed_is_a_storage_error(survivor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an address that cannot be listened on, which is what `serve` takes any other error of the system for."""
    request_recovery(survivor)

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        with pytest.raises(StorageError, match=f"cannot use .*{REQUEST}: Input/output error"):
            recover_if_requested(str(survivor))
    recover_if_requested(str(survivor))
    assert not (survivor / REQUEST).exists()


def test_the_old_clusters_snapshot_does_not_survive_into_the_new_one(survivor: Path) -> None:
    """It had arrived from the lost leader, and was ahead of all that the survivor's own log adopts."""
    last_index = read_disk(survivor).entries[-1].index + 100
    storage = SqliteStorage(survivor, failed, 10_000, Counters())
    storage.load()
    theirs = MemorySnapshots()
    take_snapshot(theirs, last_index)
    send(theirs, storage.snapshots, theirs.kept()[0].snapshot)
    storage.close()
    assert list((survivor / "snapshots").iterdir())

    force_new_cluster(str(survivor))

    assert list((survivor / "snapshots").iterdir()) == []


def test_a_node_that_was_never_a_member_is_refused(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path, failed, 10_000, Counters())
    storage.load()
    storage.write_identity(Identity("n1", "1" * 16, "c" * 32))
    storage.close()

    with pytest.raises(ConfigError, match="is not a member"):
        force_new_cluster(str(tmp_path))

    identity = read_disk(tmp_path).identity
    assert identity is not None
    assert identity.cluster_id == "c" * 32, "what is refused changes nothing"


def test_the_warning_names_what_is_given_up(survivor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = read_disk(survivor)

    recover.force_new_cluster(str(survivor))

    warning = capsys.readouterr().err
    assert f"entries 1 to {loaded.entries[-1].index}" in warning
    assert "n1@" in warning
    assert "n3@" in warning
