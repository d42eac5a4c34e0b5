"""``/v1/cluster/quota``, and a put above the quota."""

from __future__ import annotations

import pytest
from fronts.fake_node import Server
from fronts.test_sessions import run

MIB = 1024 * 1024


def test_the_quota_is_shown_set_and_kept_to() -> None:
    async def scenario(http: Server) -> None:
        assert (await http("GET", "/v1/cluster/quota")).json == {"quota_bytes": 0, "used_bytes": 0, "no_space": False}
        answer = await http("PUT", "/v1/cluster/quota", b'{"quota_bytes": 1048576}')
        assert (answer.status, answer.json) == (200, {"quota_bytes": MIB, "used_bytes": 0, "no_space": False})
        await http("PUT", "/v1/kv/k", bytes(MIB))
        full = (await http("GET", "/v1/cluster/quota")).json
        assert full == {"quota_bytes": MIB, "used_bytes": http.node.store.used_bytes, "no_space": True}
        refused = await http("PUT", "/v1/kv/k", b"")
        assert (refused.status, refused.json["code"], refused.json["outcome"]) == (507, "no_space", "refused")
        assert (refused.json["reason"], refused.json["limit"]) == ("quota", MIB)
        assert refused.json["used"] == full["used_bytes"]
        assert "Retry-After" not in refused.headers
        assert (await http("GET", "/v1/kv/k")).status == 200
        assert (await http("DELETE", "/v1/kv/k")).status == 200
        assert (await http("PUT", "/v1/kv/k", b"")).status == 200

    run(scenario)


def test_a_delete_of_everything_above_the_quota_is_seen_at_once() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/cluster/quota", b'{"quota_bytes": 1048576}')
        await http("PUT", "/v1/kv/k", bytes(MIB))
        assert (await http("DELETE", "/v1/kv?prefix=k")).status == 200
        shown = (await http("GET", "/v1/cluster/quota")).json
        assert shown == {"quota_bytes": MIB, "used_bytes": 0, "no_space": False}
        assert (await http("GET", "/v1/cluster")).json["used_bytes"] == 0

    run(scenario)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"quota_bytes": 5}', b'{"quota_bytes": "1GiB"}', b'{"bytes": 9999999}'])
def test_what_is_no_quota_is_refused(body: bytes) -> None:
    async def scenario(http: Server) -> None:
        answer = await http("PUT", "/v1/cluster/quota", body)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        assert http.node.store.quota.limit_bytes == 0

    run(scenario)


def test_below_its_feature_level_no_quota_is_set() -> None:
    async def scenario(http: Server) -> None:
        answer = await http("PUT", "/v1/cluster/quota", b'{"quota_bytes": 1048576}')
        assert (answer.status, answer.json["code"]) == (409, "feature_unavailable")

    run(scenario, is_raised=False)


def test_a_follower_shows_the_quota_and_says_who_sets_it() -> None:
    async def scenario(http: Server) -> None:
        http.node.follow("n2", "http://leader:1")
        assert (await http("GET", "/v1/cluster/quota")).status == 200
        answer = await http("PUT", "/v1/cluster/quota", b'{"quota_bytes": 1048576}')
        assert (answer.status, answer.headers["Location"]) == (307, "http://leader:1/v1/cluster/quota")

    run(scenario)
