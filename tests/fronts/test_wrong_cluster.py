"""A request that is for another cluster than the node's: refused by whoever gets it, and never done."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from fronts.fake_node import CLUSTER, FakeNode, Server, make_config, serving

from kvorum.service.outcomes import OUTCOMES, REFUSED

OURS, THEIRS = CLUSTER, "d" * 32
LEADER = "http://leader:1"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/v1/kv/k"),
        ("PUT", "/v1/kv/k?prev_revision=0&"),
        ("DELETE", "/v1/kv?key=k"),
        ("GET", "/v1/kv/k?consistency=stale"),
        ("POST", "/v1/cluster/leader"),
        ("DELETE", "/v1/cluster/members/n2?timeout_ms=5"),
        ("GET", "/v1/cluster"),
        ("GET", "/v1/snapshot"),
    ],
)
def test_a_request_that_names_another_cluster_is_refused_and_one_that_names_ours_is_not(
    method: str, target: str
) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            http.node.store.revision = 1
            before = http.node.store.applied_index
            mark = "&" if "?" in target else "?"
            for query, headers in ((f"{mark}cluster={THEIRS}", {}), ("", {"X-Kvorum-Cluster": THEIRS})):
                answer = await http(method, target + query, b"", headers)
                assert (answer.status, answer.json["code"], answer.json["outcome"]) == (421, "wrong_cluster", "refused")
                assert answer.headers["X-Kvorum-Cluster"] == answer.json["cluster_id"] == OURS
                assert THEIRS in answer.json["detail"]
            assert (http.node.store.applied_index, http.node.calls, http.node.barriers) == (before, [], 0)
            answer = await http(method, f"{target}{mark}cluster={OURS}", b"", {"X-Kvorum-Cluster": OURS})
            assert answer.status not in (400, 421), answer.body
            assert answer.headers["X-Kvorum-Cluster"] == OURS

    asyncio.run(main())


@pytest.mark.parametrize(
    "query", [f"cluster={OURS}&cluster={OURS}", f"cluster={OURS}&cluster={THEIRS}", "cluster", "cluster=", "cluster&a"]
)
def test_a_cluster_that_is_named_twice_or_not_at_all_is_refused(query: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            for method, path in (("PUT", "/v1/kv/k"), ("GET", "/v1/cluster"), ("GET", "/livez")):
                answer = await http(method, f"{path}?{query}", b"v" if method == "PUT" else None)
                assert (answer.status, answer.json["code"]) == (400, "invalid_request")
                assert "the parameter cluster is" in answer.json["detail"]
            assert http.node.proposed == []
            http.node.follow("n2", LEADER)
            assert (await http("PUT", f"/v1/kv/k?{query}", b"v")).status == 400

    asyncio.run(main())


def test_each_header_that_names_a_cluster_counts() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            for first, second, status in ((OURS, THEIRS, b"421"), (THEIRS, OURS, b"421"), (OURS, OURS, b"200")):
                raw = await http.raw(
                    b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n"
                    + f"X-Kvorum-Cluster: {first}\r\nX-Kvorum-Cluster: {second}\r\n\r\nv".encode()
                )
                assert raw.split(b" ")[1] == status

    asyncio.run(main())


def test_a_key_or_a_value_of_a_parameter_that_looks_like_a_cluster_is_none() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            assert (await http("PUT", f"/v1/kv?key=cluster={THEIRS}", b"v")).status == 200
            assert (await http("GET", f"/v1/kv/cluster={THEIRS}")).body == b"v"

    asyncio.run(main())


def test_a_node_that_is_in_no_cluster_yet_says_none_and_refuses_who_names_one() -> None:
    """It has lost its disk, say: what it does not have is no fact of the cluster that is named."""

    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            http.node.cluster = ""
            for query, headers in ((f"?cluster={THEIRS}", {}), ("", {"X-Kvorum-Cluster": THEIRS})):
                for path in ("/v1/kv/k", "/v1/cluster", "/v1/cluster/members", "/v1/cluster/quota"):
                    refused = await http("GET", path + query, None, headers)
                    assert (refused.status, refused.json["code"]) == (503, "not_serving")
                    assert (refused.json["outcome"], refused.json["retry_after_s"]) == ("refused", 1)
                    assert "in no cluster yet" in refused.json["detail"]
                    assert "X-Kvorum-Cluster" not in refused.headers
            assert http.node.barriers == 0
            answer = await http("GET", "/v1/cluster")
            assert answer.status == 200
            assert "X-Kvorum-Cluster" not in answer.headers
            http.node.cluster = OURS
            assert (await http("GET", "/v1/cluster")).headers["X-Kvorum-Cluster"] == OURS

    asyncio.run(main())


def test_a_redirect_names_the_cluster_if_the_leader_understands_that() -> None:
    """``curl -L`` sends no header of ours. An older leader refuses a parameter that it does not know."""

    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            http.node.follow("n2", LEADER)
            for target in ("/v1/kv/k", "/v1/kv/k?prev_revision=3", "/v1/kv?key=k"):
                old = await http("PUT", target, b"v")
                assert (old.status, old.headers["Location"]) == (307, LEADER + target)
            http.node.leader_is_new = True
            for target in ("/v1/kv/k", "/v1/kv/k?prev_revision=3", "/v1/kv?key=k"):
                named = f"{LEADER}{target}{'&' if '?' in target else '?'}cluster={OURS}"
                assert (await http("PUT", target, b"v")).headers["Location"] == named
                # The one that was redirected here by another follower names it already.
                again = await http("PUT", named.removeprefix(LEADER), b"v")
                assert again.headers["Location"] == named
            http.node.leader_is_new = False
            old = await http("PUT", f"/v1/kv/k?cluster={OURS}", b"v")
            assert old.headers["Location"] == f"{LEADER}/v1/kv/k"

    asyncio.run(main())


def test_a_forwarded_request_is_not_done_by_another_cluster() -> None:
    """The address of the leader is out of date, and somebody else's node answers there."""

    async def main() -> None:
        async with asyncio.timeout(20), AsyncExitStack() as stack:
            follower: Server = await stack.enter_async_context(serving(FakeNode(make_config(name="n1"))))
            foreign: Server = await stack.enter_async_context(serving(FakeNode(make_config(name="n2"))))
            foreign.node.cluster = THEIRS
            follower.node.follow("n2", foreign.url)
            answer = await follower("PUT", "/v1/kv/k?forward=true", b"v")
            assert (answer.status, answer.json["code"], answer.json["outcome"]) == (503, "no_leader", "refused")
            assert answer.headers["X-Kvorum-Cluster"] == OURS
            assert foreign.node.proposed == []
            foreign.node.cluster = OURS
            assert (await follower("PUT", "/v1/kv/k?forward=true", b"v")).status == 200

    asyncio.run(main())


def test_the_outcome_is_in_the_neutral_table() -> None:
    assert OUTCOMES["wrong_cluster"] is REFUSED
