"""``/v1/leases``, and keys with a lease."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import pytest
from fronts import fake_node
from fronts.fake_node import Answer, FakeNode, Server, make_config

from kvorum.errors import NotServingError
from kvorum.fronts.http import leases as front
from kvorum.kv.features import LEASE_LEVEL
from kvorum.kv.limits import LEASES_MAX
from kvorum.service import Service, leases
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import ListLeases, RevokeLease
from kvorum.service.results import LeaseState

JSON = {"Accept": "application/json"}


def run(scenario: Callable[[Server], Awaitable[None]], *, raised: bool = True) -> None:
    """Run the scenario against a server whose state is at the highest level (or at 1)."""
    node = FakeNode(make_config())
    if raised:
        node.raise_feature_level()
    fake_node.run(scenario, node)


async def grant(http: Server, **body: Any) -> Answer:
    """Grant a lease."""
    return await http("POST", "/v1/leases", json.dumps({"ttl_s": 10, **body}).encode())


def test_a_lease_is_granted_renewed_shown_listed_and_revoked() -> None:
    async def scenario(http: Server) -> None:
        granted = await grant(http, id="2a", lock_delay_s=3)
        revision = http.node.store.revision
        assert (granted.status, granted.json) == (
            201,
            {"id": "2a", "ttl_s": 10, "revision": revision, "lock_delay_s": 3},
        )
        assert granted.headers["X-Kvorum-Revision"] == str(revision)
        put = await http("PUT", "/v1/kv/a?lease=2A", b"1")
        assert put.status == 200
        http.node.pass_time(4000)
        shown = (await http("GET", "/v1/leases/2a?keys=true")).json
        assert 5000 < shown.pop("remaining_ms") <= 6010
        assert shown == {"id": "2a", "ttl_s": 10, "key_count": 1, "lock_delay_s": 3, "keys": [{"key": "a"}]}
        renewed = await http("POST", "/v1/leases/2a/keepalive")
        assert (renewed.status, renewed.json) == (200, {"id": "2a", "ttl_s": 10, "revision": revision + 1})
        assert (await http("GET", "/v1/leases/2a")).json["remaining_ms"] > 9000
        listed = (await http("GET", "/v1/leases")).json
        assert [each["id"] for each in listed["leases"]] == ["2a"]
        assert not listed["more"]
        revoked = await http("DELETE", "/v1/leases/2a")
        assert (revoked.status, revoked.json) == (200, {"id": "2a", "deleted": 1, "revision": revision + 2})
        assert (await http("GET", "/v1/kv/a")).status == 404

    run(scenario)


def test_a_lease_that_is_not_renewed_takes_its_keys_with_it() -> None:
    async def scenario(http: Server) -> None:
        await grant(http, id="7")
        await http("PUT", "/v1/kv/a?lease=7", b"1")
        await http("PUT", "/v1/kv/b?lease=7", b"2")
        await http("PUT", "/v1/kv/b", b"without a lease")
        http.node.pass_time(10_100)
        assert (await http("GET", "/v1/kv/a")).status == 404
        assert (await http("GET", "/v1/kv/b")).status == 200
        for method, path in (
            ("GET", "/v1/leases/7"),
            ("DELETE", "/v1/leases/7"),
            ("POST", "/v1/leases/7/keepalive"),
            ("PUT", "/v1/kv/a?lease=7"),
        ):
            gone = await http(method, path, b"1" if method == "PUT" else None)
            assert (gone.status, gone.json["code"]) == (404, "lease_not_found"), path
            assert gone.json["outcome"] == "refused"

    run(scenario)


def test_the_node_draws_an_id_and_one_that_is_given_may_be_asked_for_again() -> None:
    async def scenario(http: Server) -> None:
        first, second = (await grant(http)).json["id"], (await grant(http)).json["id"]
        assert first != second
        assert 0 < int(first, 16) < 2**63
        await grant(http, id="5", ttl_s=7)
        again = await grant(http, id="5", ttl_s=7)
        assert (again.status, again.json["code"], again.json["ttl_s"]) == (409, "lease_exists", 7)

    run(scenario)


def test_an_id_that_the_node_drew_and_that_is_taken_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter((0, 0, 1))
    monkeypatch.setattr("kvorum.service.leases.randbelow", lambda _: next(drawn))

    async def scenario(http: Server) -> None:
        assert (await grant(http)).json["id"] == "1"
        assert (await grant(http)).json["id"] == "2"

    run(scenario)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("000000000000000000000000000002aF", "2af"),
        ("-00000000000002a", "-2a"),
        ("7fffffffffffffff", "7fffffffffffffff"),
        ("-8000000000000000", "-8000000000000000"),
    ],
)
def test_ids_are_signed_numbers_of_64_bits_and_may_have_leading_zeros(given: str, shown: str) -> None:
    async def scenario(http: Server) -> None:
        assert (await grant(http, id=given)).json["id"] == shown
        assert (await http("POST", f"/v1/locks/a?lease={given}")).json["key"] == f"_locks/a/{shown}"
        assert (await http("GET", f"/v1/leases/{given}")).json["key_count"] == 1

    run(scenario)


def test_leases_are_listed_in_pages() -> None:
    async def scenario(http: Server) -> None:
        for id in ("-1", "3", "2", "10"):
            assert (await grant(http, id=id)).status == 201
        first = (await http("GET", "/v1/leases?limit=2")).json
        assert [each["id"] for each in first["leases"]] == ["-1", "2"]
        assert first["more"]
        second = (await http("GET", "/v1/leases?limit=2&after=2")).json
        assert [each["id"] for each in second["leases"]] == ["3", "10"]
        assert not second["more"]

    run(scenario)


def test_other_requests_are_answered_while_many_leases_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        for id in range(1, 7):
            await grant(http, id=f"{id:x}")
        monkeypatch.setattr(leases, "SLICE_LEASES", 2)
        service = Service(http.node, perf_counter)
        listing = asyncio.ensure_future(service.execute(ANONYMOUS, ListLeases(None, 4)))
        revoking = asyncio.ensure_future(service.execute(ANONYMOUS, RevokeLease(3)))
        await asyncio.wait({listing, revoking}, return_when=asyncio.FIRST_COMPLETED)
        assert revoking.done()
        assert not listing.done()
        listed = await listing
        assert ([each.id for each in listed.leases], listed.more) == ([1, 2, 4], True)

    run(scenario)


def test_a_list_whose_leases_all_ended_meanwhile_goes_on_with_the_next_ones() -> None:
    """An empty page that says `more` would end the lists of clients, and give no id to go on from."""

    async def scenario(http: Server) -> None:
        for id in range(1, 4):
            await grant(http, id=f"{id:x}")
        service = Service(http.node, perf_counter)
        listing = asyncio.ensure_future(service.execute(ANONYMOUS, ListLeases(None, 2)))
        await asyncio.sleep(0)
        assert not listing.done()
        for id in (1, 2):
            await service.execute(ANONYMOUS, RevokeLease(id))
        listed = await listing
        assert ([each.id for each in listed.leases], listed.more) == ([3], False)

    run(scenario)


def test_leases_are_not_listed_on_by_a_node_that_serves_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        for id in range(1, 7):
            await grant(http, id=f"{id:x}")
        monkeypatch.setattr(leases, "SLICE_LEASES", 2)
        listing = asyncio.ensure_future(Service(http.node, perf_counter).execute(ANONYMOUS, ListLeases(None, 4)))
        await asyncio.sleep(0)
        assert not listing.done()
        http.node.quarantined = "the state is wrong"
        with pytest.raises(NotServingError):
            await listing

    run(scenario)


def test_other_requests_are_answered_while_a_long_list_of_leases_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(front, "SLICE_LEASES", 2)
        writing = asyncio.ensure_future(front._listed([LeaseState(id, 10, 0, 10, 0) for id in range(1, 6)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not writing.done()
        assert [each.id for each in await writing] == ["1", "2", "3", "4", "5"]

    asyncio.run(scenario())


def test_a_key_shows_its_lease_wherever_it_is_read() -> None:
    async def scenario(http: Server) -> None:
        await grant(http, id="ab")
        await http("PUT", "/v1/kv/a?lease=ab", b"1")
        plain = await http("GET", "/v1/kv/a")
        assert plain.headers["X-Kvorum-Lease"] == "ab"
        assert (await http("GET", "/v1/kv/a", headers=JSON)).json["lease"] == "ab"
        assert (await http("GET", "/v1/kv?prefix=a")).json["records"][0]["lease"] == "ab"
        assert (await http("GET", "/v1/kv/a?history=true")).json["versions"][0]["lease"] == "ab"
        read = {"then": [{"range": {"key": "a"}}]}
        done = await http("POST", "/v1/txn", json.dumps(read).encode())
        assert done.json["results"][0]["range"]["records"][0]["lease"] == "ab"
        kept = await http("PUT", "/v1/kv/a?ignore_lease=true", b"2")
        assert kept.status == 200
        assert (await http("GET", "/v1/kv/a")).headers["X-Kvorum-Lease"] == "ab"
        await http("PUT", "/v1/kv/a", b"3")
        assert "X-Kvorum-Lease" not in (await http("GET", "/v1/kv/a")).headers

    run(scenario)


def test_transactions_put_with_a_lease_and_compare_it() -> None:
    async def scenario(http: Server) -> None:
        await grant(http, id="ab")
        body = {
            "compare": [{"key": "a", "target": "lease", "lease": "0"}],
            "then": [{"put": {"key": "a", "value": "1", "lease": "ab"}}],
            "else": [{"put": {"key": "a", "value": "2", "ignore_lease": True}}],
        }
        assert (await http("POST", "/v1/txn", json.dumps(body).encode())).json["succeeded"]
        assert not (await http("POST", "/v1/txn", json.dumps(body).encode())).json["succeeded"]
        after = (await http("GET", "/v1/kv/a", headers=JSON)).json
        assert (after["value"], after["lease"]) == ("2", "ab")

    run(scenario)


@pytest.mark.parametrize(
    ("method", "target", "body", "words"),
    [
        ("POST", "/v1/leases", b"", "the body is not JSON like"),
        ("POST", "/v1/leases", b'{"ttl_s": 0}', "ttl_s must be a whole number from 1 to 9,000,000,000"),
        ("POST", "/v1/leases", b'{"ttl_s": 9000000001}', "ttl_s must be"),
        ("POST", "/v1/leases", b'{"ttl_s": 1.5}', "the body is not JSON like"),
        ("POST", "/v1/leases", b'{"ttl_s": 5, "id": "0"}', "id is not the id of a lease"),
        (
            "POST",
            "/v1/leases",
            b'{"ttl_s": 5, "id": "8000000000000000"}',
            "from -8000000000000000 to 7fffffffffffffff, and not 0",
        ),
        ("POST", "/v1/leases", b'{"ttl_s": 5, "id": "-8000000000000001"}', "id is not the id of a lease"),
        ("POST", "/v1/leases", b'{"ttl_s": 5, "lock_delay_s": 61}', "from 0 to 60"),
        ("POST", "/v1/leases", b'{"ttl_s": 5, "colour": 1}', "unknown field"),
        ("GET", "/v1/leases/xyz", None, "not the id of a lease"),
        ("GET", "/v1/leases/1?key=true", None, "unknown parameter"),
        ("GET", "/v1/leases?limit=0", None, "limit must be a whole number"),
        ("GET", "/v1/leases?limit=10001", None, "limit must be a whole number"),
        ("PUT", "/v1/kv/a?lease=0", b"", "the parameter lease is not the id of a lease"),
        ("PUT", "/v1/kv/a?lease=1&ignore_lease=true", b"", "contradict each other"),
        ("POST", "/v1/txn", b'{"then":[{"put":{"key":"a","value":"","lease":"z"}}]}', "$.then[0].put.lease"),
        ("POST", "/v1/txn", b'{"compare":[{"key":"a","target":"lease","number":1}]}', "$.compare[0]"),
    ],
)
def test_what_is_malformed_is_refused(method: str, target: str, body: bytes | None, words: str) -> None:
    async def scenario(http: Server) -> None:
        refused = await http(method, target, body)
        assert (refused.status, refused.json["code"]) == (400, "invalid_request")
        assert words in refused.json["detail"]

    run(scenario)


def test_a_time_to_live_of_a_second_becomes_two() -> None:
    async def scenario(http: Server) -> None:
        assert (await grant(http, ttl_s=1)).json["ttl_s"] == 2

    run(scenario)


def test_there_are_no_leases_below_their_feature_level() -> None:
    async def scenario(http: Server) -> None:
        for method, path, body in (
            ("POST", "/v1/leases", b'{"ttl_s": 5}'),
            ("GET", "/v1/leases", None),
            ("GET", "/v1/leases/1", None),
            ("PUT", "/v1/kv/a?lease=1", b""),
            ("POST", "/v1/locks/a?lease=1", None),
            ("GET", "/v1/locks", None),
        ):
            refused = await http(method, path, body)
            assert (refused.status, refused.json["code"]) == (409, "feature_unavailable"), path
            assert f"level {LEASE_LEVEL}" in refused.json["detail"] or "level" in refused.json["detail"]

    run(scenario, raised=False)


def test_too_many_leases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.kv.leases.LEASES_MAX", 1)

    async def scenario(http: Server) -> None:
        await grant(http)
        refused = await grant(http)
        assert (refused.status, refused.json["code"], refused.json["limit"]) == (429, "too_many_leases", LEASES_MAX)

    run(scenario)


def test_a_follower_sends_changes_to_the_leader_and_reads_itself() -> None:
    async def scenario(http: Server) -> None:
        await grant(http, id="1")
        http.node.follow("n2", "http://n2:8001")
        for method, path in (("POST", "/v1/leases"), ("POST", "/v1/leases/1/keepalive"), ("DELETE", "/v1/leases/1")):
            moved = await http(method, path, b'{"ttl_s": 5}' if path == "/v1/leases" else None)
            assert (moved.status, moved.headers["Location"]) == (307, f"http://n2:8001{path}")
        assert (await http("GET", "/v1/leases/1")).status == 200

    run(scenario)
