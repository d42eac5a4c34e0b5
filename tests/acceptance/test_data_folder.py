"""The data folder of a node that runs: who may be in it, and what happens when it goes away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from acceptance.processes import Cluster, kvorum
from waiting import DEADLINE_S


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def rename(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replace_by_a_copy(folder: Path) -> None:
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    rename(folder)
    copy.rename(folder)


def delete_the_database(folder: Path) -> None:
    (folder / "kvorum.db").unlink()


def delete_the_write_ahead_log(folder: Path) -> None:
    (folder / "kvorum.db-wal").unlink()


@pytest.mark.parametrize(
    "harm",
    [delete, rename, replace_by_a_copy, delete_the_database, delete_the_write_ahead_log],
    ids=lambda f: f.__name__,
)
def test_a_node_whose_data_folder_is_deleted_or_replaced_stops_with_one_line(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """It acknowledged 150 of 150 writes that nobody could ever read again."""
    with Cluster(tmp_path, 1) as cluster:
        process = cluster.processes["n1"]
        harm(cluster.data_dir("n1"))
        assert process.wait(DEADLINE_S) == 4
        log = cluster.log_file("n1").read_text()
    (line,) = [line for line in log.splitlines() if " info " not in line]
    assert "was deleted or replaced while this node was running" in line


def test_a_folder_that_everybody_may_write_to_is_refused_with_advice(tmp_path: Path) -> None:
    folder = tmp_path / "n1"
    folder.mkdir()
    folder.chmod(0o777)
    done = kvorum("serve", "--name", "n1", "--data-dir", str(folder))
    assert done.returncode == 4, done.stdout
    assert f"chmod o-w {folder}" in done.stdout
    assert list(folder.iterdir()) == []


def test_a_folder_that_a_group_may_write_to_is_used(tmp_path: Path) -> None:
    """A volume in Kubernetes belongs to root and to the group of the pod (fsGroup)."""
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1").chmod(0o2770)
    with Cluster(tmp_path, 1) as cluster:
        assert cluster.leader() == "n1"
