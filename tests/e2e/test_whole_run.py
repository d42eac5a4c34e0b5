"""At the end of the run: everything that was ever acknowledged is still there. Runs last, by its name."""

from __future__ import annotations

import json

import pytest
from e2e.recording import POD
from e2e.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.smoke, pytest.mark.timeout(600)]

KEYS_MAX = 3000
"""Read back at most so many, spread evenly over the run."""
READER = """
import asyncio, json, sys
from kvorum_client import Client
async def main():
    wanted, lost = json.load(sys.stdin), []
    items = iter(wanted.items())
    async with Client(sys.argv[1].split(","), timeout_s=20) as kv:
        async def read():
            for key, value in items:
                record = await kv.get(key)
                if record is None or record.value.decode() != value:
                    lost.append(key)
        await asyncio.gather(*(read() for _ in range(16)))
    print(json.dumps(lost))
asyncio.run(main())
"""


def test_every_write_of_the_whole_run_is_still_there(system: System) -> None:
    written: dict[str, str] = {}
    for history in system.histories:
        for line in history.read_text().splitlines():
            op = json.loads(line).get("operation", {})
            if op.get("kind") == "put" and "/own/" in op["key"] and op.get("outcome") == "ok":
                written[op["key"]] = op["value"]
    if not written:
        pytest.skip("no scenario ran before")
    step = max(1, len(written) // KEYS_MAX)
    sample = dict(list(written.items())[::step])
    system.ensure()
    command = ["exec", "-i", POD, "--", "python3", "-c", READER, ",".join(system.endpoints)]
    lost = json.loads(system.kube.kubectl(*command, stdin=json.dumps(sample), timeout_s=300))
    assert lost == [], f"{len(lost)} of {len(sample)} keys are lost"
    system.say(f"{len(sample)} of {len(written)} keys written by all scenarios were read back")
