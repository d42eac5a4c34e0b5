"""docs/client.md: each of its Python blocks is run, as a program of its own, against a node."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from client.test_cli import Kv, run
from fronts.fake_node import Server

import kvorum_client
from kvorum.fronts.http import observe
from kvorum_client import errors

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PRINTS = [
    "",
    "1 at revision 2\nn1 voter\nn2 voter\nn3 voter\n",
    "refused: too_large\n",
    "b'hello'\n",
    "b'old'\n3 b'new'\n2 b'old'\nthe history begins at revision 3\n",
    "b'app/a' b'1'\nb'app/b/c' b'2'\n[b'app/a'] [b'app/b/']\n2\n",
    "True at revision 3\nb'1'\n",
    "PutDone\nerror: the key 'x/2' does not exist: there is nothing to keep (ignore_value, ignore_lease)\n"
    "DeleteDone\nGetDone\n"
    "1 deleted\n",
    "2 put b'job/1' b'new' None\n3 put b'job/1' b'done' b'new'\n4 delete b'job/1' b'' b'done'\nseen up to revision 4\n",
    "True True\nNone\n60 60 0\n",
    "held with the fencing token 2\nheld by 2\nNone 0\n",
    "None\nTrue b'host-a:7000'\nb'host-a:7001'\n",
]


@pytest.fixture(autouse=True)
def short_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node notices with the next heartbeat that an observer is gone, and the server of the test waits for that."""
    monkeypatch.setattr(observe, "HEARTBEAT_S", 0.1)


@pytest.mark.parametrize(("block", "prints"), list(zip(BLOCKS, PRINTS, strict=True)), ids=range(len(PRINTS)))
def test_every_example_runs_and_prints_what_a_reader_expects(block: str, prints: str) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.raise_feature_level()
        # The other nodes of the page's cluster are not there.
        program = block.replace("127.0.0.1:8001", server.url).replace("127.0.0.1:8002", "127.0.0.1:1")
        program = program.replace("127.0.0.1:8003", "127.0.0.1:1")
        result = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, prints, "")

    run(scenario)


def test_the_page_tells_of_every_exception_and_of_no_other() -> None:
    told = set(re.findall(r"^\| `(\w+Error)`", PAGE, re.MULTILINE))
    public = {getattr(kvorum_client, name) for name in kvorum_client.__all__}
    kinds = {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, errors.ClientError)}
    assert told == kinds - {"ClientError"}
