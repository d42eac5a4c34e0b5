"""Bad input on real processes: one clear line, the exit status that the help names, and nothing lost afterwards."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from acceptance.processes import Answer, Cluster, kvorum
from bench.processes import free_ports
from waiting import eventually

from kvorum.identity import Identity, incarnation_of, name_of
from kvorum.raft.codec import encode
from kvorum.raft.messages import HeartbeatResponse
from kvorum.transport.handshake import dialling_headers

EXIT_CONFIG, EXIT_ADDRESS, EXIT_STORAGE = 2, 3, 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for the whole module: whatever a test does to it, the next one finds it whole."""
    with Cluster(tmp_path_factory.mktemp("bad-input"), flags=("--request-timeout-ms", "5000")) as cluster:
        cluster.put_somewhere("kept", b"through all of this")
        yield cluster


def last_line(cluster: Cluster, name: str) -> str:
    """Return the last line that a node wrote."""
    return cluster.log_file(name).read_text().strip().splitlines()[-1]


def ended(cluster: Cluster, name: str) -> int:
    """Wait for the end of a node that cannot start; return its exit status."""
    process = cluster.processes[name]
    eventually(f"{name} ends", lambda: process.poll() is not None)
    del cluster.processes[name]
    assert "Traceback" not in cluster.log_file(name).read_text()
    return int(process.returncode)


def assert_nothing_lost(cluster: Cluster) -> None:
    """All nodes are there, agree, and have what was written before the bad input."""
    for name in cluster.others(*cluster.processes):
        cluster.start(name)
    cluster.converge()
    for name in cluster.names:
        answer = eventually(f"{name} reads", partial(_read, cluster, name))
        assert answer.body == b"through all of this"
    cluster.put_somewhere("written-after", b"fine")


def _read(cluster: Cluster, name: str) -> Answer | None:
    answer = cluster.try_request(name, "GET", "/v1/kv/kept")
    return answer if answer is not None and answer.status == 200 else None


# --- Flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--name", "n9", "--peers", "n1=127.0.0.1:9001"), "n9 is not among peers"),
        (("--name", "kv-0", "--peers", "kv-0=127.0.0.1:9001", "--discovery-dns", "kv.default"), "not both"),
        (("--listen-client", "127.0.0.1:9001", "--listen-peer", "127.0.0.1:9001"), "both use port 9001"),
        (("--listen-client", "0.0.0.0:8001"), "--insecure"),
        (("--heartbeat-ms", "100", "--election-timeout-ms", "200"), "3 times heartbeat_ms"),
        (("--election-timeout-ms", "soon"), "election-timeout-ms"),
        (("--name", "n1", "--peers", ""), "it is empty"),
        (("--name", "n1", "--peers", "n1=127.0.0.1:9001,n2=a..b:9002"), "'a..b' is not a host name"),
        (("--name", "n1", "--peers", f"n1=127.0.0.1:9001,n2={'a' * 64}.b:9002"), "is not a host name"),
        (("--trace-endpoint", "http://["), "trace_endpoint"),
        (("--trace-endpoint", "http://otel:port/v1/traces"), "trace_endpoint"),
        (("--advertise-client-url", "http://a b:8001"), "advertise_client_url"),
    ],
)
def test_contradictory_flags_are_one_line_and_status_2(tmp_path: Path, flags: tuple[str, ...], says: str) -> None:
    folder = tmp_path / "data"

    result = kvorum("serve", "--data-dir", str(folder), *flags)

    assert result.returncode == EXIT_CONFIG, result
    assert says in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not folder.exists(), "a node that cannot start touches no disk"


def test_a_local_cluster_of_which_no_node_can_start_ends(tmp_path: Path) -> None:
    base = str(free_ports(1)[0])
    for name in ("n1", "n2"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)

    result = kvorum("local", "--nodes", "2", "--base-port", base, "--data-dir", str(tmp_path))

    assert result.returncode == EXIT_STORAGE, result
    for name in ("n1", "n2"):
        assert f"everybody on this machine may write to the data folder {tmp_path / name}" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_local_cluster_whose_nodes_would_refuse_an_option_is_not_started(tmp_path: Path) -> None:
    base = str(free_ports(1)[0])

    result = kvorum("local", "--nodes", "2", "--base-port", base, "--data-dir", str(tmp_path), "--", "--tick-ms", "0")

    assert result.returncode == EXIT_CONFIG, result
    assert result.stderr.count("--tick-ms: must be a whole number from 1 to 1,000 ms, not '0'") == 1
    assert "Traceback" not in result.stdout + result.stderr


# --- Ports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--listen-client", "--listen-peer"])
def test_a_port_in_use_is_one_line_and_status_3(tmp_path: Path, flag: str) -> None:
    client, peer, metrics = free_ports(3)
    listeners = {"--listen-client": client, "--listen-peer": peer, "--listen-metrics": metrics}
    flags = [text for name, port in listeners.items() for text in (name, f"127.0.0.1:{port}")]
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", listeners[flag]))
        squatter.listen()

        result = kvorum("serve", "--name", "n1", "--data-dir", str(tmp_path / "data"), *flags)

    assert result.returncode == EXIT_ADDRESS, result
    output = (result.stdout + result.stderr).strip()
    last = output.splitlines()[-1]
    assert "Cannot listen" in last
    assert str(listeners[flag]) in last
    assert "in use" in last
    assert "Traceback" not in output


# --- Data folders ----------------------------------------------------------------------------------------------------


def test_a_second_node_on_a_folder_is_refused_and_the_first_goes_on(cluster: Cluster) -> None:
    name = cluster.names[0]

    result = kvorum("serve", "--name", name, "--data-dir", str(cluster.data_dir(name)))

    assert result.returncode == EXIT_STORAGE, result
    output = (result.stdout + result.stderr).strip()
    assert "another process holds the data folder" in output.splitlines()[-1]
    assert_nothing_lost(cluster)


def test_the_folder_of_another_node_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.others(cluster.leader())[0]
    cluster.kill(name)
    before = _contents(cluster.data_dir(name))

    result = kvorum("serve", "--name", "other", "--data-dir", str(cluster.data_dir(name)))

    assert result.returncode == EXIT_STORAGE, result
    output = (result.stdout + result.stderr).strip()
    assert f"belongs to {name}, not to other" in output.splitlines()[-1]
    assert _contents(cluster.data_dir(name)) == before, "what is refused is not touched"
    assert_nothing_lost(cluster)


def test_a_foreign_folder_is_refused_and_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with sqlite3.connect(folder / "kvorum.db") as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
        database.execute("INSERT INTO recipes VALUES ('pancakes')")
    database.close()
    before = (folder / "kvorum.db").read_bytes()

    result = kvorum("serve", "--name", "n1", "--data-dir", str(folder))

    assert result.returncode == EXIT_STORAGE, result
    last = (result.stdout + result.stderr).strip().splitlines()[-1]
    assert "Cannot use the storage" in last
    assert str(folder) in last
    assert (folder / "kvorum.db").read_bytes() == before


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.write_text("a file")

    result = kvorum("serve", "--name", "n1", "--data-dir", str(folder))

    assert result.returncode == EXIT_STORAGE, result
    assert "Cannot use the storage" in (result.stdout + result.stderr).strip().splitlines()[-1]
    assert folder.read_text() == "a file"


def test_what_a_removal_left_that_cannot_be_moved_is_a_storage_error(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "removing").touch()
    (folder / "removed").write_text("in the way")

    result = kvorum("serve", "--name", "n1", "--data-dir", str(folder))

    assert result.returncode == EXIT_STORAGE, result
    assert "removed" in (result.stdout + result.stderr).strip().splitlines()[-1]


def _contents(folder: Path) -> dict[str, bytes]:
    """Return what the folder holds, without the index of SQLite's readers, which every one of them writes."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_corrupt_folder_stops_the_node_and_the_others_go_on(cluster: Cluster) -> None:
    victim = cluster.others(cluster.leader())[0]
    cluster.kill(victim)
    folder = cluster.data_dir(victim)
    spare = folder.with_name(f"{victim}-spare")
    shutil.copytree(folder, spare)
    try:
        _flip_the_values(folder)
        cluster.start(victim)

        assert ended(cluster, victim) == EXIT_STORAGE
        assert "Cannot use the storage" in last_line(cluster, victim)
        cluster.put_somewhere("without-the-corrupt-node", b"fine")
    finally:
        shutil.rmtree(folder)
        spare.rename(folder)
    assert_nothing_lost(cluster)


def _flip_the_values(folder: Path) -> None:
    """Flip one byte in the middle of every place where the value lies, as a bad disk would."""
    found = 0
    for path in folder.glob("kvorum.db*"):
        data = bytearray(path.read_bytes())
        at = data.find(b"through all of this")
        while at >= 0:
            found += 1
            data[at] ^= 0x01
            at = data.find(b"through all of this", at + 1)
        path.write_bytes(data)
    assert found, "the value is in no file of the log"


def test_a_log_that_lost_its_end_stops_the_node(cluster: Cluster) -> None:
    """An older copy of the log beside a newer mark: the node has forgotten what it promised."""
    victim = cluster.others(cluster.leader())[0]
    cluster.kill(victim)
    folder = cluster.data_dir(victim)
    older = folder.with_name(f"{victim}-older")
    shutil.copytree(folder, older)
    cluster.start(victim)
    for number in range(3):
        cluster.put_somewhere(f"promised-{number}", b"1")
    cluster.converge()
    cluster.kill(victim)
    shutil.copy(folder / "mark", older / "mark")
    newer = folder.with_name(f"{victim}-newer")
    folder.rename(newer)
    older.rename(folder)

    try:
        cluster.start(victim)

        assert ended(cluster, victim) == EXIT_STORAGE
        assert "must not vote" in last_line(cluster, victim)
    finally:
        shutil.rmtree(folder)
        newer.rename(folder)
    assert_nothing_lost(cluster)


# --- Peers -----------------------------------------------------------------------------------------------------------


def test_a_peer_of_another_cluster_is_refused_and_neither_loses_anything(cluster: Cluster, tmp_path: Path) -> None:
    """A node of another cluster is started with the peer addresses of ours, under the name of one that is down."""
    with Cluster(tmp_path, size=1) as other:
        other.put_somewhere("elsewhere", b"mine")
    name = cluster.others(cluster.leader())[0]
    cluster.kill(name)
    stranger = Cluster(tmp_path / "stranger")
    stranger.folder.mkdir()
    stranger.names, stranger.client_ports, stranger.peer_ports = (
        cluster.names,
        cluster.client_ports,
        cluster.peer_ports,
    )
    shutil.copytree(other.data_dir("n1"), stranger.data_dir("n1"))
    if name != "n1":
        # The folder says n1: let it be n1 that is down.
        cluster.start(name)
        cluster.converge()
        if cluster.leader() == "n1":
            target = b'{"target": "%s"}' % name.encode()
            # It has applied everything from its own disk, perhaps before it has answered the leader.
            eventually(
                "it takes the leadership",
                lambda: cluster.request("n1", "POST", "/v1/cluster/leader", target).status == 200,
            )
        cluster.kill("n1")

    process = stranger.start("n1")
    try:
        rest = cluster.others("n1")
        eventually(
            "our nodes refuse it, or it refuses ours",
            lambda: (
                any(b"refused a peer" in cluster.log_file(n).read_bytes() for n in rest)
                or b"refused a peer" in stranger.log_file("n1").read_bytes()
            ),
        )
        cluster.put_somewhere("with-a-stranger", b"fine", among=rest)
        assert process.poll() is None, "the stranger goes on, too: it is whole in its own cluster"
    finally:
        process.kill()
        process.wait()
    lines = [line for n in (*cluster.names,) for line in cluster.log_file(n).read_text().splitlines()]
    lines += stranger.log_file("n1").read_text().splitlines()
    refusals = [line for line in lines if "refused a peer" in line]
    assert any("belongs to cluster" in line or "this is" in line for line in refusals), refusals
    assert_nothing_lost(cluster)
    assert cluster.get("n1", "elsewhere").status == 404


def _dial(cluster: Cluster, target: str, sender: str) -> socket.socket:
    """Open a peer's stream to a node by hand, with the greeting of the member ``sender``."""
    status = cluster.status(target)
    assert status is not None
    ids = {member["name"]: member["id"] for member in status["members"]}
    identity = Identity(name_of(ids[sender]), incarnation_of(ids[sender]), status["cluster_id"])
    headers = dialling_headers(identity, ids[target], f"http://127.0.0.1:{cluster.peer_ports[sender]}", "")
    lines = [
        "GET /raft/v1/stream HTTP/1.1",
        f"Host: 127.0.0.1:{cluster.peer_ports[target]}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    connection = socket.create_connection(("127.0.0.1", cluster.peer_ports[target]), timeout=10)
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101"), answer
    return connection


def _masked(payload: bytes, *, announced: int | None = None) -> bytes:
    """Return a binary WebSocket frame; ``announced``: the length that its header claims."""
    length = len(payload) if announced is None else announced
    return b"\x82\xfe" + length.to_bytes(2, "big") + b"\0\0\0\0" + payload


def _failures(cluster: Cluster, name: str, reason: str) -> float:
    text = cluster.request(name, "GET", "/metrics").body.decode()
    lines = [line for line in text.splitlines() if line.startswith("kvorum_") and f'"{reason}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize("what", ["half a message", "half a frame", "garbage"])
def test_a_truncated_peer_frame_closes_its_stream_and_nothing_else(cluster: Cluster, what: str) -> None:
    leader = cluster.leader()
    sender = cluster.others(leader)[0]
    term = (cluster.status(leader) or {})["term"]
    ids = {member["name"]: member["id"] for member in (cluster.status(leader) or {})["members"]}
    whole = encode((HeartbeatResponse(term=term, sender=ids[sender], recipient=ids[leader], round=1),))
    before = _failures(cluster, leader, "malformed")

    def is_counted() -> bool:
        """Send it. The real peer may call again first, and take the place of our stream: then it is sent again."""
        with _dial(cluster, leader, sender) as connection:
            match what:
                case "half a message":
                    connection.sendall(_masked(whole[: len(whole) // 2]))
                case "half a frame":
                    connection.sendall(_masked(whole[: len(whole) // 2], announced=len(whole)))
                    connection.shutdown(socket.SHUT_WR)
                case _:
                    connection.sendall(_masked(b"\xff" * 100))
            while connection.recv(4096):
                pass  # Until the node hangs up.
        return what == "half a frame" or _failures(cluster, leader, "malformed") > before

    eventually("it is counted", is_counted)
    assert_nothing_lost(cluster)
    assert "Traceback" not in cluster.log_file(leader).read_text()


def test_the_help_names_every_exit_status() -> None:
    result = kvorum("--help")

    for status in (EXIT_CONFIG, EXIT_ADDRESS, EXIT_STORAGE, 5):
        assert f"\n  {status}  " in result.stdout
