"""``?forward``: a follower that can hand writes to the leader executes them itself, and redirects the rest."""

from __future__ import annotations

import asyncio

import pytest
from fronts.fake_node import FakeNode, make_config, serving

from kvorum.errors import NotLeaderError
from kvorum.fronts.http.dispatch import Dispatcher
from kvorum.fronts.http.forward import FORWARDED_BY
from kvorum.fronts.http.request import Bodies
from kvorum.kv.commands import Put
from kvorum.service import Service

MIB = 1024 * 1024

WRITES = [
    ("PUT", "/v1/kv/k", b"v"),
    ("PUT", "/v1/kv?key=k", b"v"),
    ("PUT", "/v1/kv/k?prev_value", b"v"),
    ("DELETE", "/v1/kv/k", b""),
    ("DELETE", "/v1/kv?prefix=k", b""),
    ("POST", "/v1/txn", b'{"then": [{"put": {"key": "k", "value": "v"}}]}'),
    ("POST", "/v1/batch", b'{"operations": [{"put": {"key": "k", "value": "v"}}]}'),
    ("POST", "/v1/compact", b'{"revision": 2}'),
    ("PUT", "/v1/cluster/quota", b'{"quota_bytes": 67108864}'),
]


def follower(*, forward: bool = False, hands_over: bool = True) -> FakeNode:
    node = FakeNode(make_config(name="n2", forward=forward))
    node.raise_feature_level()
    for _ in range(2):
        asyncio.run(node.propose(Put(b"x", b"v"), 1000))
    node.proposed.clear()
    node.follow("n1", "http://127.0.0.1:9")
    node.hands_over = hands_over
    return node


@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=lambda value: str(value))
def test_every_write_is_handed_over_if_it_asks_for_it(method: str, path: str, body: bytes) -> None:
    node = follower()

    async def main() -> None:
        async with asyncio.timeout(20), serving(node) as http:
            with_query = path + ("&" if "?" in path else "?")
            assert (await http(method, path, body)).status == 307
            assert (await http(method, with_query + "forward=false", body)).status == 307
            answer = await http(method, with_query + "forward=true", body)
            assert answer.status == 200, answer.body

    asyncio.run(main())


@pytest.mark.parametrize(("method", "path", "body"), WRITES, ids=lambda value: str(value))
def test_with_the_option_it_is_handed_over_unless_it_says_no(method: str, path: str, body: bytes) -> None:
    node = follower(forward=True)

    async def main() -> None:
        async with asyncio.timeout(20), serving(node) as http:
            with_query = path + ("&" if "?" in path else "?")
            assert (await http(method, with_query + "forward=false", body)).status == 307
            assert (await http(method, path, body)).status == 200

    asyncio.run(main())


def test_what_was_forwarded_once_is_not_handed_over_again() -> None:
    node = follower(forward=True)

    async def main() -> None:
        async with asyncio.timeout(20), serving(node) as http:
            assert (await http("PUT", "/v1/kv/k", b"v", {FORWARDED_BY: "n3"})).status == 307

    asyncio.run(main())


def test_what_only_the_leader_can_do_goes_to_its_client_port() -> None:
    node = follower()

    async def main() -> None:
        async with asyncio.timeout(20), serving() as leader, serving(node) as http:
            node.follow("n1", leader.url)
            answer = await http("POST", "/v1/cluster/leader?forward=true", b'{"target": "n3"}')
            assert answer.status == 200
            assert leader.node.calls == [("transfer", "n3")]

    asyncio.run(main())


def test_below_the_level_a_write_goes_to_its_client_port_as_well() -> None:
    node = follower(hands_over=False)

    async def main() -> None:
        async with asyncio.timeout(20), serving() as leader, serving(node) as http:
            node.follow("n1", leader.url)
            assert (await http("PUT", "/v1/kv/k?forward=true", b"v")).status == 200
            assert len(leader.node.proposed) == 1
            assert node.proposed == []

    asyncio.run(main())


@pytest.mark.parametrize("health_only", [False, True])
def test_handing_over_has_no_second_bound_for_what_only_reads(*, health_only: bool) -> None:
    node = FakeNode()
    service = Service(node, lambda: 0.0)
    bodies = Bodies(MIB, 1)
    dispatcher = Dispatcher(service, node.config, node.counters, bodies, health_only=health_only)
    own, other = dispatcher._own, dispatcher._handing_over
    assert service.handing_over()._scans is service._scans
    if health_only:
        assert other is own
        return
    for path in ("/v1/watch", "/v1/snapshot", "/openapi.json", "/metrics"):
        assert other._routes[path] is own._routes[path]
    assert other._range is own._range
    assert other.keys["PUT"] is not own.keys["PUT"]
    assert [row[:2] for row in other.routes()] == [row[:2] for row in own.routes()]


REMOVED = [
    "/v1/elections/x",
    "/v1/elections/x?watch=true",
    "/v1/elections/x?watch=true&forward=true",
    "/v1/elections?limit=5&after64=/w==",
    "/v1/locks?limit=5&after=%FF",
    "/v1/leases/1?keys=true",
    "/v1/leases?after=1&limit=5",
    "/v1/kv/x?history=true&limit=3",
    "/v1/kv?key=%FF",
    "/v1/kv?prefix=%FF&sort=mod",
    "/v1/watch?prefix=%FF",
]


@pytest.mark.parametrize("target", REMOVED)
def test_a_node_that_was_removed_redirects_every_read_whatever_its_parameters(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = follower()

    def removed(*_: object) -> None:
        raise NotLeaderError("n1", leader_name="n1", leader_client_url="http://127.0.0.1:9")

    async def barrier(_: int) -> None:
        removed()

    monkeypatch.setattr(node, "check_serves", removed)
    monkeypatch.setattr(node, "read_barrier", barrier)

    async def main() -> None:
        async with asyncio.timeout(20), serving(node) as http:
            answer = await http("GET", target)
            assert (answer.status, answer.headers.get("Location", "")[:18]) == (307, "http://127.0.0.1:9"), answer.body

    asyncio.run(main())
