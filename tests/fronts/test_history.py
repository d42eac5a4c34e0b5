"""Reads of the past, the history of a key, and ``/v1/compact``."""

from __future__ import annotations

import pytest
from fronts.fake_node import Server
from fronts.test_sessions import run

JSON = {"Accept": "application/json"}


async def written(http: Server) -> None:
    """Write revisions 2 to 5: two versions of a key, a delete, and another key."""
    for method, target, body in (("PUT", "k", b"one"), ("PUT", "k", b"two"), ("DELETE", "k", None), ("PUT", "l", b"x")):
        assert (await http(method, f"/v1/kv/{target}", body)).status == 200
    assert http.node.store.revision == 5


def test_a_key_is_read_as_it_was_with_the_headers_of_every_read() -> None:
    async def scenario(http: Server) -> None:
        await written(http)
        past = await http("GET", "/v1/kv/k?revision=3")
        assert (past.status, past.body, past.headers["ETag"]) == (200, b"two", '"3"')
        names = ("Revision", "Create-Revision", "Mod-Revision", "Version")
        assert [past.headers[f"X-Kvorum-{name}"] for name in names] == ["5", "2", "3", "2"]
        told = (await http("GET", "/v1/kv/k?revision=2&consistency=stale", headers=JSON)).json
        assert (told["value"], told["mod_revision"], told["revision"], told["staleness_ms"]) == ("one", 2, 5, 0)
        assert (await http("GET", "/v1/kv/k?revision=3", headers={"If-None-Match": '"3"'})).status == 304
        for revision in (1, 4, 5):
            gone = await http("GET", f"/v1/kv/k?revision={revision}")
            assert (gone.status, gone.json["code"], gone.json["revision"]) == (404, "not_found", 5)
            assert gone.json["detail"] == f"the key does not exist at revision {revision}; n1 is at revision 5"

    run(scenario)


def test_a_revision_that_is_compacted_or_not_yet_there_is_refused_with_what_can_be_read() -> None:
    async def scenario(http: Server) -> None:
        await written(http)
        assert (await http("POST", "/v1/compact", b'{"revision": 4}')).json == {"revision": 5, "floor": 4}
        for target in ("/v1/kv/k?revision=3", "/v1/kv/k?revision=3&history=true"):
            gone = await http("GET", target)
            assert (gone.status, gone.json["code"], gone.json["outcome"]) == (410, "compacted", "refused")
            assert (gone.json["floor"], gone.json["revision"]) == (4, 5)
            assert "Retry-After" not in gone.headers
        for target in (
            "/v1/kv/k?revision=6",
            "/v1/kv/k?revision=6&history=true",
            "/v1/kv/k?revision=6&consistency=stale",
        ):
            early = await http("GET", target)
            assert (early.status, early.json["code"], early.json["outcome"]) == (400, "future_revision", "refused")
            assert early.json["revision"] == 5
        assert (await http("GET", "/v1/kv/l?revision=5")).status == 200

    run(scenario)


def test_the_history_of_a_key_has_its_versions_and_deletes_newest_first() -> None:
    async def scenario(http: Server) -> None:
        await written(http)
        await http("PUT", "/v1/kv/k", b"\xff")
        answer = await http("GET", "/v1/kv/k?history=true")
        assert (answer.status, answer.headers["X-Kvorum-Revision"]) == (200, "6")
        assert answer.json == {
            "key": "k",
            "revision": 6,
            "floor": http.node.store.floor,
            "versions": [
                {"mod_revision": 6, "create_revision": 6, "version": 1, "value_base64": "/w=="},
                {"mod_revision": 4, "deleted": True},
                {"mod_revision": 3, "create_revision": 2, "version": 2, "value": "two"},
                {"mod_revision": 2, "create_revision": 2, "version": 1, "value": "one"},
            ],
        }
        page = (await http("GET", "/v1/kv/k?history=true&limit=2&revision=4")).json
        assert [version["mod_revision"] for version in page["versions"]] == [4, 3]
        assert page["truncated"]
        stale = await http("GET", "/v1/kv/%ff?history=true&consistency=stale")
        assert stale.headers["X-Kvorum-Staleness-Ms"] == "0"
        assert (stale.status, stale.json["versions"], stale.json["key_base64"]) == (200, [], "/w==")

    run(scenario)


def test_a_compaction_drops_the_versions_that_no_revision_above_it_needs() -> None:
    async def scenario(http: Server) -> None:
        await written(http)
        await http("PUT", "/v1/kv/k", b"three")
        await http("POST", "/v1/compact", b'{"revision": 3}')
        versions = (await http("GET", "/v1/kv/k?history=true")).json["versions"]
        assert [version["mod_revision"] for version in versions] == [6, 4, 3]

    run(scenario)


def test_a_compaction_is_done_once() -> None:
    async def scenario(http: Server) -> None:
        await written(http)
        answer = await http("POST", "/v1/compact", b'{"revision": 4}')
        assert (answer.status, answer.json) == (200, {"revision": 5, "floor": 4})
        assert http.node.store.floor == 4
        for revision in (3, 4):
            again = await http("POST", "/v1/compact", b'{"revision": %d}' % revision)
            assert (again.status, again.json["code"], again.json["floor"]) == (410, "compacted", 4)
            assert again.json["outcome"] == "refused"
        early = await http("POST", "/v1/compact", b'{"revision": 6}')
        assert (early.status, early.json["code"], early.json["revision"]) == (400, "future_revision", 5)
        assert http.node.counters.compactions == {"request": 1}

    run(scenario)


@pytest.mark.parametrize(
    "target",
    [
        *("k?revision=0", "k?revision=-1", "k?revision=1.5", "k?revision=", "k?revision=9223372036854775808"),
        *(
            "k?revision=1&revision=2",
            "k?history=perhaps",
            "k?history=true&limit=0",
            "k?history=true&limit=1001",
            "k?limit=5",
        ),
    ],
)
def test_numbers_that_are_no_revision_or_no_limit_are_refused(target: str) -> None:
    async def scenario(http: Server) -> None:
        await written(http)
        answer = await http("GET", f"/v1/kv/{target}")
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")

    run(scenario)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"revision": -1}', b'{"revision": "3"}', b'{"revision": 9223372036854775808}', b'{"floor": 3}'],
)
def test_what_is_no_compaction_is_refused(body: bytes) -> None:
    async def scenario(http: Server) -> None:
        await written(http)
        answer = await http("POST", "/v1/compact", body)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        assert http.node.proposed_keys == [b"k", b"k", b"k", b"l"]

    run(scenario)


def test_below_its_feature_level_there_is_no_past_and_the_answer_names_the_level() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"one")
        for method, target, body in (
            ("GET", "/v1/kv/k?revision=1", None),
            ("GET", "/v1/kv/k?history=true", None),
            ("POST", "/v1/compact", b'{"revision": 1}'),
        ):
            answer = await http(method, target, body)
            assert (answer.status, answer.json["code"]) == (409, "feature_unavailable")
            assert "needs feature level 4" in answer.json["detail"]
            assert "at level 1" in answer.json["detail"]

    run(scenario, is_raised=False)


def test_a_follower_reads_the_past_and_says_who_compacts() -> None:
    async def scenario(http: Server) -> None:
        await written(http)
        http.node.follow("n2", "http://leader:1")
        assert (await http("GET", "/v1/kv/k?revision=3")).body == b"two"
        answer = await http("POST", "/v1/compact?timeout_ms=100", b'{"revision": 4}')
        assert (answer.status, answer.headers["Location"]) == (307, "http://leader:1/v1/compact?timeout_ms=100")

    run(scenario)
