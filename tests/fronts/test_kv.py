"""``/v1/kv/{key}``: what a person with curl relies on."""

from __future__ import annotations

import base64

import pytest
from fronts.fake_node import FakeNode, Server, make_config, run

from kvorum.errors import NoLeaderError, OverloadedError, ReadTimeoutError
from kvorum.kv.commands import Put


def test_a_put_answers_with_the_revisions_and_a_get_with_the_bytes() -> None:
    async def scenario(http: Server) -> None:
        put = await http("PUT", "/v1/kv/greeting", b"hello")
        assert put.status == 200
        assert put.json == {"key": "greeting", "revision": 1, "create_revision": 1, "mod_revision": 1, "version": 1}
        assert put.headers["ETag"] == '"1"'
        again = await http("PUT", "/v1/kv/greeting", b"hello again")
        assert again.json == {"key": "greeting", "revision": 2, "create_revision": 1, "mod_revision": 2, "version": 2}
        get = await http("GET", "/v1/kv/greeting")
        assert (get.status, get.body) == (200, b"hello again")
        assert get.headers["Content-Type"] == "application/octet-stream"
        assert get.headers["ETag"] == '"2"'
        assert get.headers["X-Kvorum-Revision"] == "2"
        assert get.headers["X-Kvorum-Create-Revision"] == "1"
        assert get.headers["X-Kvorum-Mod-Revision"] == "2"
        assert get.headers["X-Kvorum-Version"] == "2"

    run(scenario)


def test_any_bytes_are_a_value_and_so_are_none() -> None:
    async def scenario(http: Server) -> None:
        for value in (b"", b"\r\n\r\n", bytes(range(256)), b"x" * 1024 * 1024):
            assert (await http("PUT", "/v1/kv/k", value)).status == 200
            assert (await http("GET", "/v1/kv/k")).body == value

    run(scenario)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("a", b"a"),
        ("a/b", b"a/b"),
        ("a%2Fb", b"a/b"),
        ("a%252Fb", b"a%2Fb"),
        ("a+b", b"a+b"),
        ("a%20b", b"a b"),
        ("%00", b"\x00"),
        ("%ff%FE", b"\xff\xfe"),
        ("a%2F..%2Fb", b"a/../b"),
        (".../a..b/.c", b".../a..b/.c"),
        ("a//b/", b"a//b/"),
        ("%3F%23", b"?#"),
        ("caf%C3%A9", "café".encode()),
        ("x" * 1024, b"x" * 1024),
    ],
)
def test_a_key_is_decoded_exactly_once_from_the_raw_path(raw: str, key: bytes) -> None:
    async def scenario(http: Server) -> None:
        assert (await http("PUT", f"/v1/kv/{raw}", b"v")).status == 200
        command = http.node.proposed[0]
        assert isinstance(command, Put)
        assert command.key == key
        assert (await http("GET", f"/v1/kv/{raw}")).body == b"v"

    run(scenario)


@pytest.mark.parametrize(
    "raw",
    ["..", ".", "%2E", "%2e%2E", ".%2e", "g1/../u1", "g1/./u1", "../u1", "a/..", "a/%2e%2E/b", "a/.%2e", "a/%2E"],
)
def test_a_path_that_others_collapse_to_another_key_is_refused(raw: str) -> None:
    async def scenario(http: Server) -> None:
        for method in ("PUT", "GET", "DELETE"):
            answer = await http(method, f"/v1/kv/{raw}", b"v" if method == "PUT" else None)
            assert (answer.status, answer.json["code"]) == (400, "invalid_request")
            assert "/v1/kv?key=KEY" in answer.json["detail"]
        assert http.node.proposed == []

    run(scenario)


@pytest.mark.parametrize("path", ["/v1/kv", "/v1/kv/"])
def test_a_key_can_be_a_parameter_and_hold_any_bytes(path: str) -> None:
    async def scenario(http: Server) -> None:
        target = f"{path}?key=g1/../u%ff%26+1"
        key = b"g1/../u\xff&+1"
        assert (await http("PUT", target + "&prev_revision=0", b"v")).status == 200
        assert http.node.proposed_keys[0] == key
        assert (await http("PUT", target + "&prev_revision=0", b"v")).status == 409
        assert (await http("GET", target)).body == b"v"
        assert (await http("HEAD", target + "&consistency=stale")).status == 200
        assert (await http("DELETE", target)).json["deleted"] == 1
        for dots in (".", "..", "%2e"):
            assert (await http("PUT", f"{path}?key={dots}", b"v")).status == 200
        for wrong in ("?key=", "?key", "?key=a&key=b", "?key=%f", "?key=a&typo=1"):
            assert (await http("GET", path + wrong)).status == 400
        for nothing in ("", "?"):
            # Without a key and a slash it is a range.
            assert (await http("GET", path + nothing)).status == (400 if path.endswith("/") else 200)
        assert (await http("GET", "/v1/kv/a?key=b")).status == 400
        http.node.follow("n2", "http://leader:1")
        assert (await http("PUT", target, b"v")).headers["Location"] == "http://leader:1" + target

    run(scenario)


def test_a_key_of_raw_bytes_beyond_ascii_is_taken_as_it_is() -> None:
    async def scenario(http: Server) -> None:
        answer = await http.raw(
            b"PUT /v1/kv/caf\xc3\xa9 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\nv"
        )
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
        if answer.startswith(b"HTTP/1.1 200"):
            assert http.node.proposed_keys[0] == "café".encode()

    run(scenario)


def test_a_key_that_is_not_utf8_is_shown_as_base64() -> None:
    async def scenario(http: Server) -> None:
        put = await http("PUT", "/v1/kv/%ff", b"\xfe")
        assert put.json["key_base64"] == base64.b64encode(b"\xff").decode()
        assert "key" not in put.json
        get = await http("GET", "/v1/kv/%ff", headers={"Accept": "application/json"})
        assert get.json["value_base64"] == base64.b64encode(b"\xfe").decode()
        assert "value" not in get.json

    run(scenario)


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("application/json", True),
        ("Application/JSON;charset=utf-8", True),
        ("*/*, application/json ; q=0.001", True),
        ("application/json;q=0", False),
        ("application/json; Q=0.000, */*", False),
        ("application/jsonp", False),
        ("text/html", False),
        ("", False),
    ],
)
def test_json_is_for_those_who_accept_it(accept: str, is_json: bool) -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"value")
        answer = await http("GET", "/v1/kv/k", headers={"Accept": accept})
        assert (answer.headers["Content-Type"] == "application/json") is is_json

    run(scenario)


def test_a_weak_tag_does_not_match_in_a_write() -> None:
    """RFC 9110, 13.1.1. What a proxy has changed on the way is not known to be the same any more."""

    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"1")
        for method in ("PUT", "DELETE"):
            answer = await http(method, "/v1/kv/k", b"2" if method == "PUT" else None, {"If-Match": 'W/"1"'})
            assert (answer.status, answer.json["outcome"]) == (400, "refused")
            assert "weak" in answer.json["detail"]
        assert (await http("GET", "/v1/kv/k")).body == b"1"

    run(scenario)


@pytest.mark.parametrize("timeout_ms", ["-1", "0", "x", "1.5", ""])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/kv/k"),
        ("GET", "/v1/kv/k"),
        ("DELETE", "/v1/kv/k"),
        ("POST", "/v1/cluster/leader"),
        ("DELETE", "/v1/sessions/c"),
        ("GET", "/v1/snapshot"),
    ],
)
def test_a_timeout_that_is_none_is_refused_with_the_same_words_everywhere(
    method: str, path: str, timeout_ms: str
) -> None:
    async def scenario(http: Server) -> None:
        answer = await http(method, f"{path}?timeout_ms={timeout_ms}", b"v" if method == "PUT" else None)
        assert answer.status == 400
        assert answer.json["detail"] == "timeout_ms must be a whole number from 1 to 9,223,372,036,854,775,807"

    run(scenario)


def test_json_is_given_to_who_accepts_it() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", "é".encode())
        get = await http("GET", "/v1/kv/k", headers={"Accept": "text/html, application/json;q=0.9"})
        assert get.headers["Content-Type"] == "application/json"
        assert get.json == {
            "key": "k",
            "value": "é",
            "revision": 1,
            "create_revision": 1,
            "mod_revision": 1,
            "version": 1,
        }

    run(scenario)


def test_a_missing_key_says_who_looked_and_at_which_revision() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/other", b"v")
        get = await http("GET", "/v1/kv/k")
        assert get.status == 404
        assert get.headers["Content-Type"] == "application/problem+json"
        assert (get.json["code"], get.json["node"], get.json["revision"]) == ("not_found", "n1", 1)
        assert get.headers["X-Kvorum-Revision"] == "1"

    run(scenario)


def test_a_delete_says_whether_there_was_a_key() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v")
        assert (await http("DELETE", "/v1/kv/k")).json == {"key": "k", "revision": 2, "deleted": 1}
        assert (await http("DELETE", "/v1/kv/k")).json == {"key": "k", "revision": 2, "deleted": 0}
        assert (await http("GET", "/v1/kv/k")).status == 404

    run(scenario)


def test_prev_revision_writes_only_what_was_seen() -> None:
    async def scenario(http: Server) -> None:
        assert (await http("PUT", "/v1/kv/k?prev_revision=0", b"1")).status == 200
        failed = await http("PUT", "/v1/kv/k?prev_revision=0", b"2")
        assert failed.status == 409
        assert (failed.json["code"], failed.json["mod_revision"], failed.json["outcome"]) == (
            "compare_failed",
            1,
            "refused",
        )
        assert (await http("PUT", "/v1/kv/k?prev_revision=1", b"3")).status == 200
        assert (await http("DELETE", "/v1/kv/k?prev_revision=1")).status == 409
        assert (await http("DELETE", "/v1/kv/k?prev_revision=2")).status == 200
        assert len(http.node.store) == 0

    run(scenario)


def test_conditional_headers_write_only_what_was_seen() -> None:
    async def scenario(http: Server) -> None:
        create = {"If-None-Match": "*"}
        assert (await http("PUT", "/v1/kv/k", b"1", create)).status == 200
        failed = await http("PUT", "/v1/kv/k", b"2", create)
        assert (failed.status, failed.json["code"]) == (412, "precondition_failed")
        assert (await http("PUT", "/v1/kv/k", b"3", {"If-Match": '"1"'})).status == 200
        assert (await http("DELETE", "/v1/kv/k", None, {"If-Match": '"1"'})).status == 412
        assert (await http("DELETE", "/v1/kv/k", None, {"If-Match": '"2"'})).status == 200

    run(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        {"If-Match": "*"},
        {"If-Match": '"1", "2"'},
        {"If-Match": "1"},
        {"If-Match": '"0"'},
        {"If-Match": 'W/"1"'},
        {"If-None-Match": '"1"'},
        {"If-Match": '"1"', "If-None-Match": "*"},
    ],
)
def test_a_condition_that_cannot_be_checked_is_refused_rather_than_ignored(headers: dict[str, str]) -> None:
    async def scenario(http: Server) -> None:
        assert (await http("PUT", "/v1/kv/k", b"v", headers)).status == 400
        assert (await http("PUT", "/v1/kv/k?prev_revision=3", b"v", {"If-Match": '"1"'})).status == 400
        assert http.node.proposed == []

    run(scenario)


@pytest.mark.parametrize(
    ("tag", "status"), [('"1"', 304), ('"a,b", "1"', 304), ('W/"1"', 304), ('"7", "1"', 304), ("*", 304), ('"2"', 200)]
)
def test_a_get_of_what_is_known_has_no_body(tag: str, status: int) -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"value")
        get = await http("GET", "/v1/kv/k", headers={"If-None-Match": tag})
        assert (get.status, get.body) == (status, b"" if status == 304 else b"value")
        assert get.headers["ETag"] == '"1"'

    run(scenario)


def test_a_head_tells_the_length_without_the_bytes() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"value")
        head = await http("HEAD", "/v1/kv/k")
        assert (head.status, head.headers["Content-Length"], head.body) == (200, "5", b"")
        assert (await http("HEAD", "/v1/kv/none")).status == 404

    run(scenario)


def test_a_linearizable_read_waits_for_the_barrier_and_a_stale_one_does_not() -> None:
    async def scenario(http: Server) -> None:
        await http("GET", "/v1/kv/k")
        assert http.node.barriers == 1
        await http("GET", "/v1/kv/k?consistency=linearizable")
        assert http.node.barriers == 2
        http.node.staleness = 40
        stale = await http("GET", "/v1/kv/k?consistency=stale")
        assert http.node.barriers == 2
        assert stale.json["staleness_ms"] == 40
        assert (http.node.counters.reads, http.node.counters.stale_reads) == (2, 1)

    run(scenario)


def test_a_node_whose_state_is_wrong_serves_no_stale_read_either() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v")
        http.node.quarantined = "the state differs from the majority's"
        get = await http("GET", "/v1/kv/k?consistency=stale")
        assert (get.status, get.json["code"]) == (503, "not_serving")

    run(scenario)


@pytest.mark.parametrize(("staleness", "status"), [(0, 200), (100, 200), (101, 503), (None, 503)])
def test_a_stale_read_is_never_staler_than_asked_for(staleness: int | None, status: int) -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v")
        http.node.staleness = staleness
        for error in (NoLeaderError("nobody leads"), ReadTimeoutError("no quorum")):
            http.node.error = error
            get = await http("GET", "/v1/kv/k?consistency=stale&max_staleness_ms=100")
            assert get.status == status
            if status == 503:
                assert get.json["code"] == "too_stale"
                assert get.headers["Retry-After"]

    run(scenario)


@pytest.mark.parametrize(("staleness", "barriers"), [(0, 0), (100, 0), (101, 1), (None, 1)])
def test_a_stale_read_whose_bound_is_not_met_asks_a_quorum_before_it_is_refused(
    staleness: int | None, barriers: int
) -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v")
        http.node.staleness = staleness
        get = await http("GET", "/v1/kv/k?consistency=stale&max_staleness_ms=100&timeout_ms=70")
        assert (get.status, get.body, http.node.barriers) == (200, b"v", barriers)
        assert get.headers["X-Kvorum-Staleness-Ms"] == str(0 if barriers else staleness)
        if barriers:
            assert http.node.timeouts_ms[-1] == 70
        http.node.error = OverloadedError("too many reads wait")
        get = await http("GET", "/v1/kv/k?consistency=stale&max_staleness_ms=100")
        assert get.status == (503 if barriers else 200)
        if barriers:
            assert get.json["code"] == "overloaded"

    run(scenario)


def test_a_retried_write_is_applied_once_and_answers_the_same() -> None:
    async def scenario(http: Server) -> None:
        headers = {"Idempotency-Key": "client-1/1"}
        first = await http("PUT", "/v1/kv/k", b"v", headers)
        again = await http("PUT", "/v1/kv/k", b"v", headers)
        assert (first.status, first.body) == (again.status, again.body)
        assert http.node.store.revision == 1

    run(scenario)


def test_the_address_of_a_client_that_opens_a_session_is_passed_on() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "c/1"})
        await http("DELETE", "/v1/kv/k", None, {"Idempotency-Key": "d/1"})
        await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "c/2"})
        await http("PUT", "/v1/kv/k", b"v")
        assert http.node.addresses == ["127.0.0.1", "127.0.0.1", "", ""]

    run(scenario)


@pytest.mark.parametrize(
    ("keys", "status", "code", "outcome"),
    [
        (["c/2"], 409, "session_unknown", "unknown"),
        (["c/1", "c/900"], 409, "session_ahead", "refused"),
        (["c/1", "c/1!"], 422, "session_mismatch", "refused"),
    ],
)
def test_a_refused_session_says_why(keys: list[str], status: int, code: str, outcome: str) -> None:
    async def scenario(http: Server) -> None:
        for key in keys:
            body = b"other" if key.endswith("!") else b"v"
            answer = await http("PUT", "/v1/kv/k", body, {"Idempotency-Key": key.rstrip("!")})
        assert (answer.status, answer.json["code"], answer.json["outcome"]) == (status, code, outcome)

    run(scenario)


def test_a_sequence_below_the_window_has_an_unknown_outcome() -> None:
    async def scenario(http: Server) -> None:
        for sequence in range(1, 260):
            await http("DELETE", "/v1/kv/k", None, {"Idempotency-Key": f"c/{sequence}"})
        answer = await http("DELETE", "/v1/kv/k", None, {"Idempotency-Key": "c/1"})
        assert (answer.status, answer.json["code"], answer.json["outcome"]) == (409, "session_stale", "unknown")

    run(scenario)


def test_the_client_may_ask_for_less_patience_but_not_for_more() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k?timeout_ms=100", b"v")
        await http("PUT", "/v1/kv/k?timeout_ms=999999", b"v")
        await http("GET", "/v1/kv/k?timeout_ms=200")
        assert http.node.timeouts_ms == [100, 5000, 200]

    run(scenario)


def test_reads_writes_and_durations_are_counted() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v")
        await http("DELETE", "/v1/kv/k")
        await http("GET", "/v1/kv/k")
        await http("GET", "/nowhere")
        counters = http.node.counters
        assert (counters.writes, counters.reads, counters.inflight) == (2, 1, 0)
        assert counters.write_duration.count == 2
        assert dict(counters.requests) == {
            ("put", 200): 1,
            ("delete", 200): 1,
            ("get", 404): 1,
            ("other", 404): 1,
        }
        assert counters.request_duration["put"].count == 1

    run(scenario, FakeNode(make_config()))
