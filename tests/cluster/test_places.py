"""Data belongs to a place: what was copied elsewhere waits until it is a cluster of its own."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from acceptance.processes import kvorum
from bench.processes import free_ports, spawn
from node.local_cluster import running
from waiting import DEADLINE_S, eventually

from kvorum.commands import restore
from kvorum.commands.recover import force_new_cluster
from kvorum.commands.serve import is_elsewhere
from kvorum.config import Config
from kvorum.errors import StorageError
from kvorum.storage import datadir
from kvorum.storage.datadir import ANY_CLUSTER

PROD, COPY = "kv-headless.prod.svc.cluster.local", "kv-headless.copy.svc.cluster.local"


@pytest.mark.parametrize(
    ("name", "dns", "place"),
    [
        ("kv-0", PROD, "prod/kv"),
        ("my-kv-12", "my-kv-headless.prod.svc.corp.example.", "prod/my-kv"),
        ("kv-0", "kv-headless.prod.svc", "prod/kv"),
        ("kv-0", "kv-headless", ""),
        ("kv-0", "nodes.example.com", ""),
        ("kv-0", "kv..svc", ""),
        ("n1", "", ""),
    ],
)
def test_a_place_is_a_namespace_and_a_stateful_set(name: str, dns: str, place: str) -> None:
    assert Config(name=name, discovery_dns=dns).place() == place


@pytest.mark.parametrize(
    ("recorded", "place", "elsewhere"),
    [
        ("prod/kv", "copy/kv", True),
        ("prod/kv", "prod/other", True),
        ("prod/kv", "prod/kv", False),
        ("", "prod/kv", False),
        ("prod/kv", "", False),
        ("", "", False),
    ],
)
def test_data_is_elsewhere_if_two_places_are_known_and_differ(recorded: str, place: str, elsewhere: bool) -> None:
    assert is_elsewhere(recorded, place) == elsewhere


def test_the_first_place_is_recorded_and_stays_until_it_is_forgotten(tmp_path: Path) -> None:
    assert datadir.place_of_data(tmp_path) == ""
    datadir.record_place(tmp_path, "")
    assert list(tmp_path.iterdir()) == [], "outside of Kubernetes nothing is recorded"
    datadir.record_place(tmp_path, "prod/kv")
    datadir.record_place(tmp_path, "copy/kv")
    assert datadir.place_of_data(tmp_path) == "prod/kv"
    datadir.forget_place(tmp_path)
    datadir.forget_place(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_replaced_clusters_are_kept_until_they_are_forgotten_and_are_bounded(tmp_path: Path) -> None:
    assert datadir.replaced_clusters(tmp_path) == frozenset()
    for cluster_id in ("a", "b", "a"):
        datadir.note_replaced_cluster(tmp_path, cluster_id)
    assert datadir.replaced_clusters(tmp_path) == {"a", "b"}
    for number in range(100):
        datadir.note_replaced_cluster(tmp_path, f"{number:032x}")
    found = datadir.replaced_clusters(tmp_path)
    assert len(found) <= 64
    assert f"{99:032x}" in found
    datadir.forget_replaced_clusters(tmp_path)
    assert datadir.replaced_clusters(tmp_path) == frozenset()


def test_a_backup_can_be_restored_over_what_is_recorded(tmp_path: Path) -> None:
    """In a folder with files that are no node's it is refused."""
    datadir.record_place(tmp_path, "prod/kv")
    datadir.note_replaced_cluster(tmp_path, "a")
    for path in list(tmp_path.iterdir()):
        # What a crash leaves.
        path.with_name(f"{path.name}.tmp").touch()
    assert datadir.foreign_names(tmp_path) == []


def test_a_disk_that_refuses_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for act in (datadir.place_of_data, datadir.replaced_clusters):
        with pytest.raises(StorageError, match=r"file/(place|replaced-clusters)"):
            act(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot write"):
        datadir.record_place(tmp_path / "none", "prod/kv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of one of three nodes, whose place is recorded."""

    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            await cluster.put(b"a", b"1")
            await cluster.converge()

    asyncio.run(scenario())
    datadir.record_place(tmp_path / "n2", "prod/kv")
    return tmp_path / "n2"


def test_a_recovered_cluster_belongs_where_it_starts_next_and_names_every_cluster_that_it_replaces(
    folder: Path,
) -> None:
    first = force_new_cluster(str(folder))
    assert datadir.place_of_data(folder) == ""
    (original,) = datadir.replaced_clusters(folder)
    assert original != first.cluster_id

    second = force_new_cluster(str(folder))
    assert datadir.replaced_clusters(folder) == {original, first.cluster_id}
    assert second.cluster_id not in datadir.replaced_clusters(folder)


def test_a_restored_cluster_belongs_where_it_starts_next_and_replaces_whichever_was_there(folder: Path) -> None:
    async def backed_up() -> bytes:
        async with running(folder.parent / "source", 1) as cluster:
            await cluster.put(b"b", b"2")
            backup = await (await cluster.leader()).begin_backup()
            data = b"".join([chunk async for chunk in backup.chunks()])
            backup.close()
            return data

    backup = asyncio.run(backed_up())
    config = Config(name="n2", data_dir=str(folder), advertise_peer_url="http://n2:1", advertise_client_url="http://n2")
    restore.stage(io.BytesIO(backup), config, bump_revision=0, replace=True)
    assert datadir.place_of_data(folder) == "prod/kv", "nothing changes before the restart"

    datadir.install_staged(folder)
    assert datadir.place_of_data(folder) == ""
    assert datadir.replaced_clusters(folder) == {ANY_CLUSTER}


# --- A process ------------------------------------------------------------------------------------------------------


class Served:
    """kv-0, as one process after another; ``log`` is that of the present one."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.ports = free_ports(2)
        self._log = folder / "log"

    @contextmanager
    def started(self, *flags: str) -> Iterator[None]:
        arguments = ["serve", "--name", "kv-0", "--data-dir", str(self.data_dir), "--log-format", "text"]
        listen = ["--listen-client", f"127.0.0.1:{self.ports[0]}", "--listen-peer", f"127.0.0.1:{self.ports[1]}"]
        self._log.unlink(missing_ok=True)
        process = spawn([sys.executable, "-m", "kvorum", *arguments, *listen, *flags], self._log)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0, self.log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, pattern: str) -> None:
        eventually(f"the log says {pattern}", lambda: re.search(pattern, self.log))

    def in_kubernetes(self, dns: str) -> tuple[str, ...]:
        return "--discovery-dns", dns, "--replicas", "1", "--insecure"


def test_a_copy_waits_elsewhere_until_recover_makes_it_a_cluster_of_its_own(tmp_path: Path) -> None:
    node = Served(tmp_path)
    with node.started():
        node.says("bootstrapped cluster")
    assert datadir.place_of_data(node.data_dir) == ""
    with node.started(*node.in_kubernetes(PROD)):
        node.says("Serving clients")
    assert datadir.place_of_data(node.data_dir) == "prod/kv", "what an earlier version wrote belongs here"
    with node.started(*node.in_kubernetes(PROD)):
        node.says("Serving clients")

    with node.started(*node.in_kubernetes(COPY)):
        node.says(f"Not started: the data in {node.data_dir} belongs to prod/kv, and this is copy/kv")
        assert "Serving" not in node.log
        advice = re.search(r"run `kvorum ([^`]*)`", node.log)
        assert advice is not None
        assert kvorum(*advice[1].split()).returncode == 0
        node.says("recovered: kv-0@[0-9a-f]* is now the only member")
        node.says("Serving clients")
    assert datadir.place_of_data(node.data_dir) == "copy/kv"
    with node.started(*node.in_kubernetes(PROD)):
        node.says("belongs to copy/kv, and this is prod/kv")
