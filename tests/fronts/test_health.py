"""Probes, metrics, version, cluster: what a kubelet, a Prometheus and an operator ask."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from fronts.fake_node import FakeNode, Server, api_of, make_config, run, serving

import kvorum
from kvorum.status import Check


def test_healthy_is_one_word_unless_asked_for_more() -> None:
    async def scenario(http: Server) -> None:
        for path, checks in (("livez", http.node.live), ("readyz", http.node.ready)):
            answer = await http("GET", f"/{path}")
            assert (answer.status, answer.body) == (200, b"ok\n")
            verbose = await http("GET", f"/{path}?verbose")
            expected = [f"[+]{check.name} ok" for check in checks] + [f"{path} check passed"]
            assert verbose.body.decode().splitlines() == expected

    run(scenario)


def test_a_failed_check_is_a_503_that_says_which() -> None:
    async def scenario(http: Server) -> None:
        http.node.ready[0] = Check("leader", False, "none is known")
        answer = await http("GET", "/readyz")
        assert answer.status == 503
        assert answer.body == b"[-]leader failed: none is known\n[+]caught_up ok\n[+]storage ok\nreadyz check failed\n"
        assert (await http("GET", "/livez")).status == 200

    run(scenario)


@pytest.mark.parametrize(("query", "status"), [("exclude=leader", 200), ("exclude=storage", 503), ("exclude=x", 503)])
def test_a_check_can_be_excluded(query: str, status: int) -> None:
    async def scenario(http: Server) -> None:
        http.node.ready[0] = Check("leader", False)
        assert (await http("GET", f"/readyz?{query}")).status == status

    run(scenario)


def test_excluding_several_checks_and_one_that_is_not_there() -> None:
    async def scenario(http: Server) -> None:
        http.node.ready[:2] = [Check("leader", False), Check("caught_up", False)]
        answer = await http("GET", "/readyz?exclude=leader&exclude=caught_up&exclude=typo&verbose=true")
        assert answer.status == 200
        assert b"no matches for typo" in answer.body
        assert b"[+]leader excluded: ok" in answer.body

    run(scenario)


def test_a_switch_that_is_neither_on_nor_off_is_refused_whether_checks_fail_or_not() -> None:
    async def scenario(http: Server) -> None:
        assert (await http("GET", "/readyz?verbose=banana")).status == 400
        http.node.ready[0] = Check("leader", False)
        assert (await http("GET", "/readyz?verbose=banana")).status == 400

    run(scenario)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz/leader", "/version"])
@pytest.mark.parametrize("query", ["typo", "verbose&verbose&verbos=1"])
def test_a_parameter_that_a_probe_does_not_know_is_refused(path: str, query: str) -> None:
    async def scenario(http: Server) -> None:
        assert (await http("GET", f"{path}?{query}")).status == 400

    run(scenario)


def test_one_check_can_be_asked_alone() -> None:
    async def scenario(http: Server) -> None:
        http.node.ready[0] = Check("leader", False)
        assert (await http("GET", "/readyz/leader")).status == 503
        assert (await http("GET", "/readyz/storage")).status == 200
        assert (await http("GET", "/readyz/typo")).status == 404

    run(scenario)


def test_metrics_are_what_telemetry_renders() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving(render_metrics=lambda: (b"metric 1\n", "text/x")) as http:
            answer = await http("GET", "/metrics?anything=goes&anything=twice")
            assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"metric 1\n", "text/x")

    asyncio.run(main())


def test_metrics_are_rendered_once_a_second_at_most_for_all_who_ask() -> None:
    rendered = []
    now = [5.0]

    def render() -> tuple[bytes, str]:
        rendered.append(now[0])
        return b"metric %d\n" % len(rendered), "text/x"

    async def main() -> None:
        async with asyncio.timeout(20), serving(render_metrics=render, now=lambda: now[0]) as http:
            for at_s, body in (
                (5.0, b"metric 1\n"),
                (5.0, b"metric 1\n"),
                (5.999, b"metric 1\n"),
                (6.0, b"metric 2\n"),
            ):
                now[0] = at_s
                assert (await http("GET", "/metrics")).body == body
            assert rendered == [5.0, 6.0]

    asyncio.run(main())


def test_version_cluster_hash_and_leader() -> None:
    async def scenario(http: Server) -> None:
        assert (await http("GET", "/version")).json["version"] == kvorum.__version__
        cluster = (await http("GET", "/v1/cluster")).json
        assert (cluster["name"], cluster["state"], len(cluster["members"])) == ("n1", "leader", 3)
        await http("PUT", "/v1/kv/k", b"v")
        digest = (await http("GET", "/v1/hash")).json
        expected = {"name": "n1", "applied_index": 1, "revision": 1, "state_hash": f"{http.node.store.state_hash:016x}"}
        assert digest == expected
        leader = (await http("GET", "/v1/cluster/leader")).json
        assert leader == {"leader": "n1", "leader_url": http.node.config.advertise_client_url}

    run(scenario)


def test_members_are_added_promoted_and_removed() -> None:
    async def scenario(http: Server) -> None:
        body = msgspec.json.encode({"name": "n4", "peer_url": "http://h:1", "client_url": "http://h:2"})
        added = (await http("POST", "/v1/cluster/members", body)).json["members"]
        assert (added[-1]["name"], added[-1]["voter"]) == ("n4", False)
        promoted = (await http("POST", "/v1/cluster/members/n4/promote")).json["members"]
        assert promoted[-1]["voter"]
        assert (await http("POST", "/v1/cluster/members", body)).json["code"] == "membership_refused"
        removed = (await http("DELETE", "/v1/cluster/members/n4")).json["members"]
        assert [member["name"] for member in removed] == ["n1", "n2", "n3"]
        assert (await http("GET", "/v1/cluster/members")).json["members"] == removed

    run(scenario)


def test_the_client_url_of_a_new_member_may_be_left_out() -> None:
    async def scenario(http: Server) -> None:
        for number, body in enumerate((b"}", b', "client_url": ""}'), start=4):
            start = b'{"name": "n%d", "peer_url": "http://h:1"' % number
            assert (await http("POST", "/v1/cluster/members", start + body)).status == 200
            assert http.node.members[f"n{number}"].client_url == ""

    run(scenario)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"name": "n4", "client_url": "http://h:2"}',
        b'{"name": "n4", "peer_url": "http://h:1", "client_url": "http://h:2", "voter": true}',
        b'{"name": "n/4", "peer_url": "http://h:1", "client_url": "http://h:2"}',
        b'{"name": "n4", "peer_url": "ftp://h:1", "client_url": "http://h:2"}',
        b'{"name": "n4", "peer_url": "http://h:1", "client_url": "http://h:2/path"}',
        b'{"name": "n4", "peer_url": "http://h:1", "client_url": "http://h:99999"}',
        b'{"name": "n4", "peer_url": "http://h:1", "client_url": "http://u:p@h:2"}',
        b'{"name": "n4", "peer_url": "http://h:1", "client_url": "http://h\\r\\n:2"}',
        b"[" * 5000,
    ],
)
def test_a_malformed_member_is_refused(body: bytes) -> None:
    async def scenario(http: Server) -> None:
        assert (await http("POST", "/v1/cluster/members", body)).json["code"] == "invalid_request"
        assert len(http.node.members) == 3

    run(scenario)


def test_an_upgrade_is_finalized() -> None:
    async def scenario(http: Server) -> None:
        assert (await http("POST", "/v1/cluster/finalize?timeout_ms=700")).json == {"feature_level": 2}
        assert (http.node.calls, http.node.timeouts_ms) == ([("finalize",)], [700])
        assert (await http("POST", "/v1/cluster/finalize?level=3")).status == 400
        http.node.follow("n2", "http://127.0.0.1:2")
        assert (await http("POST", "/v1/cluster/finalize")).headers[
            "Location"
        ] == "http://127.0.0.1:2/v1/cluster/finalize"

    run(scenario)


def test_the_leadership_is_moved_to_whom_is_named_or_to_anybody() -> None:
    async def scenario(http: Server) -> None:
        assert (await http("POST", "/v1/cluster/leader", b'{"target": "n3"}')).json == {"leader": "n3"}
        assert (await http("POST", "/v1/cluster/leader", b"{}")).json == {"leader": "n2"}
        assert (await http("POST", "/v1/cluster/leader")).json == {"leader": "n2"}
        assert http.node.calls == [("transfer", "n3"), ("transfer", None), ("transfer", None)]
        assert (await http("POST", "/v1/cluster/leader", b'{"to": "n3"}')).status == 400

    run(scenario)


def test_the_metrics_port_serves_health_and_nothing_else() -> None:
    async def main() -> None:
        node = FakeNode(msgspec.structs.replace(make_config(), listen_metrics="localhost:0"))
        server = api_of(node, lambda: (b"metric 1\n", "text/x"))
        await server.start()
        try:
            ports = [port for _, port in server.addresses]
            assert len(ports) >= 2
            metrics = Server(node, ports[-1])
            assert (await metrics("GET", "/metrics")).body == b"metric 1\n"
            assert (await metrics("GET", "/readyz")).status == 200
            for path in ("/v1/kv/k", "/v1/cluster", "/v1/cluster/members", "/v1/cluster/members/n1/promote"):
                assert (await metrics("POST", path)).status == 404, path
        finally:
            await server.stop()

    asyncio.run(main())
