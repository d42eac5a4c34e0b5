"""A server with leases, and requests for its locks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from fronts import fake_node
from fronts.fake_node import Answer, FakeNode, Server, make_config
from waiting import until


def run(scenario: Callable[[Server], Awaitable[None]], node: FakeNode | None = None) -> None:
    """Run the scenario against a server with leases 1 to 4 of 10 s."""
    node = node or FakeNode(make_config())
    node.raise_feature_level()

    async def with_leases(http: Server) -> None:
        for id in range(1, 5):
            await http("POST", "/v1/leases", json.dumps({"ttl_s": 10, "id": f"{id:x}"}).encode())
        await scenario(http)

    fake_node.run(with_leases, node)


async def lock(http: Server, lease: int, wait_ms: int = 0, name: str = "a", kind: str = "locks") -> Answer:
    """Ask for a lock."""
    return await http("POST", f"/v1/{kind}/{name}?lease={lease}" + (f"&wait_ms={wait_ms}" if wait_ms else ""))


def held(http: Server, name: str = "a", kind: str = "_locks") -> list[bytes]:
    """The keys of a queue."""
    return http.node.store.versions.live.ascending(f"{kind}/{name}/".encode(), f"{kind}/{name}0".encode(), 100)


async def waiting(http: Server, count: int, kind: str = "_locks") -> None:
    """Wait until so many places are taken, and those who wait have their two watches each."""
    hub = http.node.watches.hub
    await until("the queue is that long", lambda: len(held(http, kind=kind)) >= count and hub.size >= 2 * (count - 1))
