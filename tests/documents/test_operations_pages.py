"""docs/operations without Kubernetes: the blocks marked ``bash`` are pasted into a shell beside a `kvorum local`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

import pytest
from fronts.test_commands import ENV, free_base_port, local_cluster
from waiting import until

from kvorum_client import Client

PAGES = Path(__file__).parents[2] / "docs" / "operations"


def blocks_of(page: str) -> list[str]:
    blocks = re.findall(r"^```([\w-]*)\n(.*?)^```$", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if language == "bash"]


class Reader:
    """Somebody who follows a page in a folder whose cluster has other ports than the page says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_base_port(5, 1000)
        self.endpoints = [f"127.0.0.1:{self.ports + i}" for i in range(3)]

    def _with_ports(self, block: str) -> str:
        for i in range(5):
            block = block.replace(f":{9001 + i}", f":{self.ports + 1000 + i}").replace(
                f":{8001 + i}", f":{self.ports + i}"
            )
        return block

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **ENV,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KVORUM_ENDPOINTS": ",".join(self.endpoints),
        }

    @contextlib.asynccontextmanager
    async def terminal(self, block: str) -> AsyncIterator[Path]:
        """Run a block that goes on in a terminal of its own, and end it with Ctrl-C; yield what it prints."""
        output = self.folder / "terminal.log"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *("bash", "-ec", f"exec {self._with_ports(block)}"),
                cwd=self.folder,
                env=self._environment,
                stdout=file,
                stderr=asyncio.subprocess.STDOUT,
            )
        try:
            yield output
        finally:
            process.send_signal(signal.SIGINT)
            status = await process.wait()
        assert status == 0, output.read_text()

    async def paste(self, block: str, statuses: Collection[int] = (0,)) -> str:
        """Run a block, which ends with one of these exit statuses, and return what it prints."""
        block, environment = self._with_ports(block), self._environment
        result = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-ec", block],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode in statuses, result.stdout + result.stderr
        return str(result.stdout + result.stderr)

    async def value(self, key: str) -> bytes | None:
        async with Client(self.endpoints, timeout_s=30) as kv:
            record = await kv.get(key)
            return record.value if record else None

    async def put(self, key: str) -> None:
        async with Client(self.endpoints, timeout_s=30) as kv:
            await kv.put(key, "v")


def test_the_same_backup_on_each_node_is_mended_as_the_page_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        reader = Reader(tmp_path)
        see, empty, check = blocks_of("two-clusters.md")
        async with local_cluster(reader.ports, tmp_path / "data") as local:
            await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes"), 60)
            await reader.put("kept")
            await reader.paste("kv snapshot save kv.backup")
        peers = ",".join(f"n{i}=127.0.0.1:{9000 + i}" for i in (1, 2, 3))
        await reader.paste("rm -rf data/n*")
        for i in (1, 2, 3):
            addresses = f"--listen-client 127.0.0.1:{8000 + i} --listen-peer 127.0.0.1:{9000 + i}"
            await reader.paste(
                f"kvorum restore --name n{i} --peers {peers} {addresses} --data-dir data/n{i} --from kv.backup"
            )
        async with local_cluster(reader.ports, tmp_path / "data") as local:
            await until("each says it", lambda: all(local.find(rf"^n{i} .*belong to another") for i in (1, 2, 3)), 60)
            assert "these nodes belong to 3 clusters" in await reader.paste(see)
        await reader.paste(empty)
        async with local_cluster(reader.ports, tmp_path / "data") as local:
            await until("the cluster is complete again", lambda: local.find(r"^Ready: 3 nodes"), 60)
            assert await reader.value("kept") == b"v"
            rows = (await reader.paste(check)).splitlines()
            assert [row.split()[0] for row in rows] == ["NAME", "n1", "n2", "n3"]

    async def bounded() -> None:
        async with asyncio.timeout(200):
            await scenario()

    asyncio.run(bounded())


@pytest.mark.parametrize("page", ["back-up.md", "lose-a-majority.md"])
def test_the_part_without_kubernetes_brings_everything_back(page: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        reader = Reader(tmp_path)
        *before, check = blocks_of(page)
        async with local_cluster(reader.ports, tmp_path / "data") as local:
            await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes"), 60)
            await reader.put("kept")
            if page == "back-up.md":
                await reader.paste(before.pop(0))
                await reader.put("lost")
        for block in before:
            await reader.paste(block)
        async with local_cluster(reader.ports, tmp_path / "data") as local:
            await until("the cluster is complete again", lambda: local.find(r"^Ready: 3 nodes"), 60)
            assert await reader.value("kept") == b"v"
            assert await reader.value("lost") is None
            rows = (await reader.paste(check)).splitlines()
            assert [row.split()[0] for row in rows] == ["NAME", "n1", "n2", "n3"]

    async def bounded() -> None:
        async with asyncio.timeout(200):
            await scenario()

    asyncio.run(bounded())


def test_a_volume_that_was_set_back_is_found_and_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        reader, folder = Reader(tmp_path), tmp_path / "data"
        look, replace = blocks_of("a-volume-was-set-back.md")

        async def rows() -> list[str]:
            # It fails while a node is found to be set back, as the page says, and while there is no leader.
            shown = await reader.paste(look, (0, 1, 3))
            return [row.rpartition(" ")[2] for row in shown.splitlines()]

        async with local_cluster(reader.ports, folder) as local:
            await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes"), 60)
            await reader.put("before")
            await reader.paste("kvorum local stop n2")
            shutil.copytree(folder / "n2", tmp_path / "copy")
            await reader.paste("kvorum local start n2")
            await until("all are well again", lambda: _equals(rows, ["HEALTH", "ok", "ok", "ok"]), 60)
            for number in range(5):
                await reader.put(f"after-{number}")
            await until("all have that", lambda: _equals(rows, ["HEALTH", "ok", "ok", "ok"]), 60)
            await reader.paste("kvorum local kill n2")
            shutil.rmtree(folder / "n2")
            shutil.copytree(tmp_path / "copy", folder / "n2")
            await reader.paste("kvorum local start n2")

            async def says(text: str) -> bool:
                return text in await reader.paste(look, (0, 1, 3))

            await until("it is found", lambda: says("this disk was set back"), 60)
            await until("it says what to do", lambda: says("give this node an empty disk"), 60)
            await reader.paste(look, (1,))
            await reader.paste(replace)
            await until("it is a member again", lambda: _equals(rows, ["HEALTH", "ok", "ok", "ok"]), 60)
            await reader.paste(look)
            assert await reader.value("after-4") == b"v"

    async def bounded() -> None:
        async with asyncio.timeout(400):
            await scenario()

    asyncio.run(bounded())


def test_nodes_are_added_moved_removed_and_upgraded_without_kubernetes(tmp_path: Path) -> None:
    async def scenario() -> None:
        reader = Reader(tmp_path)
        start, add, move, remove, save, upgrade, finalize = blocks_of("without-kubernetes.md")

        async def are_voters(**offsets: int) -> bool:
            """Tell whether these nodes, with client ports so far from the first, are the members, and all vote."""
            rows = [line.split() for line in (await reader.paste("kv member list")).splitlines()[1:]]
            return [row[:3] for row in rows] == [
                [name, "voter", f"http://127.0.0.1:{reader.ports + offset}"] for name, offset in offsets.items()
            ]

        async with local_cluster(reader.ports, tmp_path / "data") as local:
            await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes"), 60)
            await reader.put("kept")
            three = {"n1": 0, "n2": 1, "n3": 2}
            async with reader.terminal(start) as log:
                await until("it waits", lambda: "waiting to be added" in log.read_text(), 60)
                assert " n4 " in f" {' '.join((await reader.paste(add)).split())} "
                await until("it is a voter", lambda: are_voters(**three, n4=3), 60)
            async with reader.terminal(move):
                await until("it has moved", lambda: are_voters(**three, n4=4), 60)
            assert "n4 is removed" in await reader.paste(remove)
            assert await are_voters(**three)
            await reader.paste(save)
            assert (tmp_path / "before-the-upgrade.backup").exists()
            await reader.paste(upgrade)
            assert "the cluster is at feature level" in await reader.paste(finalize)
            assert await reader.value("kept") == b"v"

    async def bounded() -> None:
        async with asyncio.timeout(280):
            await scenario()

    asyncio.run(bounded())


async def _equals(ask: Callable[[], Awaitable[list[str]]], expected: list[str]) -> bool:
    return await ask() == expected


def test_the_past_is_read_and_given_up_as_the_page_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        reader = Reader(tmp_path)
        look, give_up, is_gone = blocks_of("history.md")
        async with local_cluster(reader.ports, tmp_path / "data") as local:
            await until("the cluster is ready", lambda: local.find(r"^Ready: 3 nodes"), 60)
            shown = await reader.paste(look)
            assert shown.startswith("colour: revision 2, version 1") and shown.endswith("\nred")
            assert [line.split() for line in shown.splitlines()[-5:-1]] == [
                ["MOD-REVISION", "CREATE-REVISION", "VERSION", "VALUE"],
                ["4", "-", "-", "(deleted)"],
                ["3", "2", "2", "green"],
                ["2", "2", "1", "red"],
            ]
            assert "the history begins at revision 3" in await reader.paste(give_up)
            assert "compacted" in await reader.paste(is_gone, (1,))

    async def bounded() -> None:
        async with asyncio.timeout(100):
            await scenario()

    asyncio.run(bounded())
