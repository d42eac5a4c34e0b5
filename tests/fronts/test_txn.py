"""``POST /v1/txn``, ``POST /v1/batch``, ``DELETE /v1/kv`` of a range, and puts with options."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fronts import fake_node
from fronts.fake_node import Answer, FakeNode, Server, make_config

from kvorum.kv.commands import Put, Txn
from kvorum.kv.limits import TXN_KEYS_MAX
from kvorum.kv.operations import NO_END, Compare, DeleteRangeOp, PutOp, RangeOp, TxnOp


def run(scenario: Callable[[Server], Awaitable[None]], level: int = 4) -> None:
    """Run the scenario against a server whose state is at the highest level (or at 1)."""
    node = FakeNode(make_config(body_bytes_max=4 * 1024 * 1024))
    if level > 1:
        node.raise_feature_level()
    fake_node.run(scenario, node)


async def post(http: Server, path: str, body: Any, key: str = "") -> Answer:
    """Post JSON."""
    return await http("POST", path, json.dumps(body).encode(), {"Idempotency-Key": key} if key else None)


def put(key: str, value: str = "v", **more: Any) -> dict[str, Any]:
    """Return the JSON of a put."""
    return {"put": {"key": key, "value": value, **more}}


# --- Transactions -------------------------------------------------------------------------------------------------


def test_a_transaction_is_what_its_json_says() -> None:
    body: dict[str, Any] = {
        "compare": [
            {"key": "a", "target": "value", "value": "1"},
            {"prefix": "p/", "target": "version", "result": ">", "number": 0},
            {"start": "s", "target": "mod_revision", "result": "!=", "number": 3},
            {"key_base64": "/w==", "target": "value", "result": "<", "value_base64": "/g=="},
        ],
        "then": [
            put("a", prev_value=True),
            {"put": {"key_base64": "/w==", "ignore_value": True}},
            {"delete": {"prefix_base64": "/w==", "prev_values": True}},
            {"delete": {"end": "z"}},
            {"txn": {"compare": [{"key": "n", "target": "create_revision", "number": 0}], "else": [put("n", "")]}},
        ],
        "else": [
            {"range": {"prefix": "", "limit": 3, "revision": 1, "keys_only": True, "sort": "descending"}},
            {"range": {"start": "a", "end": "b", "count_only": True}},
        ],
    }
    expected = Txn(
        (
            Compare(b"a", "value", "=", b"1"),
            Compare(b"p/", "version", ">", 0, b"p0"),
            Compare(b"s", "mod_revision", "!=", 3, NO_END),
            Compare(b"\xff", "value", "<", b"\xfe"),
        ),
        (PutOp(b"a", b"v", prev_value=True), PutOp(b"\xff", b"", True)),
        (
            RangeOp(b"\0", NO_END, 3, 1, True, False, True),
            RangeOp(b"a", b"b", count_only=True),
        ),
    )
    parts = body["then"]

    async def scenario(http: Server) -> None:
        body["then"] = parts[:2]
        assert (await post(http, "/v1/txn", body)).status == 200
        assert http.node.proposed[-1] == expected
        body["then"] = parts[2:]
        answer = await post(http, "/v1/txn", body)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        body["then"] = parts[2:4]
        assert (await post(http, "/v1/txn", body)).status == 200
        deletes = (DeleteRangeOp(b"\xff", NO_END, True), DeleteRangeOp(b"\0", b"z"))
        assert http.node.proposed[-1] == Txn(expected.compares, deletes, expected.otherwise)
        await post(http, "/v1/txn", {"then": parts[4:]})
        nested = TxnOp((Compare(b"n", "create_revision", "=", 0),), (), (PutOp(b"n", b""),))
        assert http.node.proposed[-1] == Txn((), (nested,))

    run(scenario)


def test_the_answer_has_the_branch_and_a_result_for_each_operation() -> None:
    async def scenario(http: Server) -> None:
        first = await post(http, "/v1/txn", {"then": [put("a", "1"), {"put": {"key_base64": "/w==", "value": ""}}]})
        done = {"create_revision": 2, "mod_revision": 2, "version": 1}
        assert first.json == {
            "revision": 2,
            "succeeded": True,
            "deleted": 0,
            "results": [{"put": done}, {"put": done}],
        }
        assert first.headers["X-Kvorum-Revision"] == "2"
        second = await post(
            http,
            "/v1/txn",
            {
                "compare": [{"key": "a", "target": "version", "number": 5}],
                "else": [
                    put("a", "2", prev_value=True),
                    {"range": {"start": "a", "limit": 1}},
                    {"range": {"start": "a", "keys_only": True}},
                    {"delete": {"key_base64": "/w==", "prev_values": True}},
                    {"delete": {"key": "gone"}},
                    {"txn": {"then": [{"range": {"prefix": "", "count_only": True}}]}},
                ],
            },
        )
        record = {"create_revision": 2, "mod_revision": 3, "version": 2}
        raw = {"key_base64": "/w==", **done}
        assert second.json == {
            "revision": 3,
            "succeeded": False,
            "deleted": 1,
            "results": [
                {"put": {**record, "previous": {"key": "a", "value": "1", **done}}},
                {"range": {"count": 2, "more": True, "records": [{"key": "a", "value": "2", **record}]}},
                {"range": {"count": 2, "more": False, "records": [{"key": "a", **record}, raw]}},
                {"delete": {"deleted": 1, "previous": [{**raw, "value": ""}]}},
                {"delete": {"deleted": 0}},
                {"txn": {"succeeded": True, "results": [{"range": {"count": 1, "more": False, "records": []}}]}},
            ],
        }

    run(scenario)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ([], "Expected `object`"),
        ({"than": []}, "unknown field `than`"),
        ({"compare": [{"key": "a", "target": "size", "number": 0}]}, "`$.compare[0].target`"),
        ({"compare": [{"key": "a", "number": 0}]}, "missing required field `target` - at `$.compare[0]`"),
        ({"compare": [{"key": "a", "target": "version", "result": "~", "number": 0}]}, "`$.compare[0].result`"),
        ({"compare": [{"key": "a", "target": "version", "number": "0"}]}, "`$.compare[0].number`"),
        ({"compare": [{"key": "a", "target": "version", "number": 1.5}]}, "`$.compare[0].number`"),
        ({"compare": [{"key": "a", "target": "version"}]}, "$.compare[0]: the target version is compared with number"),
        ({"compare": [{"key": "a", "target": "version", "value": ""}]}, "$.compare[0]"),
        ({"compare": [{"key": "a", "target": "value", "number": 0}]}, "$.compare[0]"),
        ({"compare": [{"target": "version", "number": 0}]}, "$.compare[0]: say which keys"),
        ({"compare": [{"key": "", "target": "version", "number": 0}]}, "compare[0]: the key is empty"),
        ({"then": [{}]}, "$.then[0]: an operation is one of"),
        ({"then": [{**put("a"), "range": {"key": "a"}}]}, "$.then[0]: an operation is one of"),
        ({"then": [{"get": {"key": "a"}}]}, "unknown field `get` - at `$.then[0]`"),
        ({"then": [{"put": {"key": 1}}]}, "`$.then[0].put.key`"),
        ({"then": [{"put": {"key": "a", "value": None}}]}, "`$.then[0].put.value`"),
        ({"then": [{"put": {"value": "a"}}]}, "$.then[0].put: the key is missing"),
        ({"then": [{"put": {"key": "a"}}]}, "$.then[0].put: give a value"),
        ({"then": [put("a", ignore_value=True)]}, "$.then[0].put: give a value"),
        ({"then": [put("a", colour=7)]}, "unknown field `colour` - at `$.then[0].put`"),
        ({"then": [put("a", key_base64="YQ==")]}, "$.then[0].put: key and key_base64 contradict"),
        ({"then": [{"put": {"key_base64": "?", "value": ""}}]}, "$.then[0].put.key_base64 is not base64"),
        ({"then": [{"put": {"key": "a", "value_base64": "YQ"}}]}, "$.then[0].put.value_base64 is not base64"),
        ({"then": [{"range": {"key": "a", "prefix": "b"}}]}, "$.then[0].range: say which keys"),
        ({"then": [{"range": {}}]}, "$.then[0].range: say which keys"),
        ({"then": [{"range": {"key": "a", "limit": -1}}]}, "then[0]: limit and revision"),
        ({"then": [{"range": {"key": "a", "sort": "up"}}]}, "`$.then[0].range.sort`"),
        ({"then": [{"delete": {"start": "a", "end": "\0"}}]}, "$.then[0].delete.end is a single zero byte"),
        ({"then": [{"txn": {"else": [{"txn": {"then": [{}]}}]}}]}, "$.then[0].txn.else[0].txn.then[0]"),
        ({"then": [put("a"), put("a")]}, "then[0] and then[1] would change the same key"),
    ],
)
def test_a_field_that_is_wrong_is_named(body: Any, path: str) -> None:
    async def scenario(http: Server) -> None:
        answer = await post(http, "/v1/txn", body)
        assert (answer.status, answer.json["code"], answer.json["outcome"]) == (400, "invalid_request", "refused")
        assert path in answer.json["detail"]
        assert http.node.proposed == []

    run(scenario)


@pytest.mark.parametrize("depth", [17, 65, 300, 50_000])
def test_what_is_nested_too_deep_is_refused(depth: int) -> None:
    async def scenario(http: Server) -> None:
        body = b'{"then": [{"txn": ' * (depth - 1) + b"{}" + b"}]}" * (depth - 1)
        answer = await http("POST", "/v1/txn", body)
        assert answer.status in (400, 413)
        assert "deep" in answer.json["detail"] or "recursion" in answer.json["detail"]
        for junk in (b"[" * 100_000, b'{"x": ' + b"[" * 100_000, b"", b"\xff", b'{"then": "\\ud800"}', b"null"):
            assert (await http("POST", "/v1/txn", junk)).status == 400
            assert (await http("POST", "/v1/batch", junk)).status == 400

    run(scenario)


def test_limits_are_413_and_what_the_history_lacks_is_410_or_400() -> None:
    async def scenario(http: Server) -> None:
        many = await post(http, "/v1/txn", {"then": [put(str(number)) for number in range(129)]})
        assert (many.status, many.json["code"], many.json["limit"]) == (413, "too_large", 128)
        await post(http, "/v1/txn", {"then": [put("a")]})
        future = await post(http, "/v1/txn", {"then": [put("b"), {"range": {"key": "a", "revision": 9}}]})
        assert (future.status, future.json["code"], future.json["revision"]) == (400, "future_revision", 2)
        await post(http, "/v1/compact", {"revision": 2})
        past = await post(http, "/v1/txn", {"then": [{"range": {"key": "a", "revision": 1}}]})
        assert (past.status, past.json["code"], past.json["floor"]) == (410, "compacted", 2)
        missing = await post(http, "/v1/txn", {"then": [{"put": {"key": "b", "ignore_value": True}}]})
        assert (missing.status, missing.json["code"], missing.json["revision"]) == (404, "key_not_found", 2)
        assert "'b'" in missing.json["detail"]
        assert http.node.store.revision == 2

    run(scenario)


def test_a_transaction_that_only_reads_makes_no_entry_and_any_node_answers_it() -> None:
    async def scenario(http: Server) -> None:
        await post(http, "/v1/txn", {"then": [put("a")]})
        http.node.follow("n2", "http://leader:1")
        read = {"compare": [{"key": "a", "target": "version", "number": 1}], "then": [{"range": {"key": "a"}}]}
        # A session would not count it, so that the next number would be refused as unknown.
        numbered = await post(http, "/v1/txn", read, key="c/1")
        assert (numbered.status, numbered.json["code"], http.node.barriers) == (400, "invalid_request", 0)
        assert "for the next write" in numbered.json["detail"]
        answer = await post(http, "/v1/txn", read)
        assert (answer.status, answer.json["results"][0]["range"]["count"], http.node.barriers) == (200, 1, 1)
        assert len(http.node.proposed) == 1
        written = await post(http, "/v1/txn?timeout_ms=5", {**read, "else": [put("b")]})
        assert (written.status, written.json["code"]) == (307, "not_leader")
        assert written.headers["Location"] == "http://leader:1/v1/txn?timeout_ms=5"

    run(scenario)


def test_a_retry_is_answered_without_doing_it_again() -> None:
    async def scenario(http: Server) -> None:
        body = {"then": [{"delete": {"prefix": "a"}}, put("b"), {"range": {"key": "b"}}]}
        await post(http, "/v1/txn", {"then": [put("a1"), put("a2")]})
        first = await post(http, "/v1/txn", body, key="c/1")
        again = await post(http, "/v1/txn", body, key="c/1")
        assert (len(first.json["results"]), first.json["deleted"]) == (3, 2)
        assert again.json == {"revision": 3, "succeeded": True, "deleted": 2, "replayed": True}
        other = await post(http, "/v1/txn", {"then": [put("c")]}, key="c/1")
        assert (other.status, other.json["code"]) == (422, "session_mismatch")
        assert http.node.addresses[-1] == "127.0.0.1"
        assert (await post(http, "/v1/txn", body, key="c")).status == 400
        assert (await post(http, "/v1/txn?x=1", body)).status == 400

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/txn", b'{"then": [{"put": {"key": "a", "value": ""}}]}'),
        ("POST", "/v1/txn", b'{"then": [{"range": {"key": "a"}}]}'),
        ("POST", "/v1/batch", b'{"operations": [{"put": {"key": "a", "value": ""}}]}'),
        ("DELETE", "/v1/kv?prefix=a", None),
        ("PUT", "/v1/kv/a?prev_value", b""),
    ],
)
def test_below_level_4_it_is_refused_with_advice(method: str, path: str, body: bytes | None) -> None:
    async def scenario(http: Server) -> None:
        answer = await http(method, path, body)
        assert (answer.status, answer.json["code"]) == (409, "feature_unavailable")
        assert "needs feature level 4" in answer.json["detail"]
        assert http.node.store.applied_index == 0

    run(scenario, level=1)


# --- Puts with options --------------------------------------------------------------------------------------------


def test_a_put_can_answer_with_the_value_before_and_keep_it() -> None:
    async def scenario(http: Server) -> None:
        new = await http("PUT", "/v1/kv/k?prev_value=true", b"\xff")
        assert new.json == {"revision": 2, "create_revision": 2, "mod_revision": 2, "version": 1, "key": "k"}
        kept = await http("PUT", "/v1/kv/k?ignore_value=true&prev_value", b"", {"Idempotency-Key": "c/1"})
        done = {"revision": 3, "create_revision": 2, "mod_revision": 3, "version": 2, "key": "k"}
        assert kept.json == {**done, "prev_value_base64": "/w=="}
        assert (kept.headers["ETag"], kept.headers["X-Kvorum-Revision"]) == ('"3"', "3")
        assert (await http("GET", "/v1/kv/k")).body == b"\xff"
        again = await http("PUT", "/v1/kv/k?ignore_value=true&prev_value", b"", {"Idempotency-Key": "c/1"})
        assert again.json == {**done, "replayed": True}
        text = await http("PUT", "/v1/kv/k?prev_value=false", b"text")
        assert isinstance(http.node.proposed[-1], Put)
        assert "prev_value" not in text.json
        assert (await http("PUT", "/v1/kv/k?prev_value", b"")).json["prev_value"] == "text"

    run(scenario)


def test_a_failed_put_with_options_tells_the_revision_of_the_moment_when_it_failed() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"1")
        propose = http.node.propose

        async def overtaken(command: Any, timeout_ms: int, address: str = "", **_: object) -> Any:
            result = await propose(command, timeout_ms, address)
            await propose(Put(b"k", b"later"), timeout_ms)
            return result

        http.node.propose = overtaken  # type: ignore[method-assign]
        failed = await http("PUT", "/v1/kv/k?prev_revision=9&prev_value", b"2", {"Idempotency-Key": "c/1"})
        assert (failed.json["revision"], failed.json["mod_revision"]) == (2, 2)
        missing = await http("PUT", "/v1/kv/other?prev_revision=9&prev_value", b"2")
        assert (missing.json["revision"], missing.json["mod_revision"]) == (3, 0)
        # What a session keeps of it has no records: it tells the present one.
        again = await http("PUT", "/v1/kv/k?prev_revision=9&prev_value", b"2", {"Idempotency-Key": "c/1"})
        assert (again.status, again.json["revision"], again.json["mod_revision"]) == (409, 2, 5)

    run(scenario)


def test_a_put_with_options_keeps_its_conditions_and_limits() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"1")
        failed = await http("PUT", "/v1/kv/k?prev_revision=9&prev_value", b"2")
        assert (failed.status, failed.json["code"], failed.json["mod_revision"]) == (409, "compare_failed", 2)
        matched = await http("PUT", "/v1/kv/k?prev_value", b"2", {"If-Match": '"9"'})
        assert (matched.status, matched.json["code"]) == (412, "precondition_failed")
        create = await http("PUT", "/v1/kv/k?prev_value", b"2", {"If-None-Match": "*"})
        assert create.status == 412
        assert (await http("PUT", "/v1/kv/k?prev_revision=2&prev_value", b"2")).json["prev_value"] == "1"
        assert (await http("PUT", "/v1/kv/k?ignore_value", b"x")).status == 400
        assert (await http("PUT", "/v1/kv/" + "k" * 1025 + "?prev_value", b"x")).status == 413
        assert (await http("PUT", "/v1/kv/k?prev_value=perhaps", b"x")).status == 400
        assert (await http("GET", "/v1/kv/k?prev_value", None)).status == 400
        http.node.follow("n2", "http://leader:1")
        moved = await http("PUT", "/v1/kv/k?prev_value", b"x")
        assert (moved.status, moved.headers["Location"]) == (307, "http://leader:1/v1/kv/k?prev_value")

    run(scenario)


# --- Deletes of ranges --------------------------------------------------------------------------------------------


def test_a_range_is_deleted_and_counted() -> None:
    async def scenario(http: Server) -> None:
        keys = ("a1", "a2", "b1", "c", "%ff1", "%ff2")
        for key in keys:
            await http("PUT", f"/v1/kv/{key}", b"")
        assert (await http("DELETE", "/v1/kv?prefix=a")).json == {"revision": 8, "deleted": 2}
        assert (await http("DELETE", "/v1/kv?prefix=a")).json == {"revision": 8, "deleted": 0}
        assert (await http("DELETE", "/v1/kv?start64=Yg&end64=Yw%3D%3D")).json["deleted"] == 1
        by_session = await http("DELETE", "/v1/kv/?prefix=%ff", None, {"Idempotency-Key": "c/1"})
        assert by_session.json == {"revision": 10, "deleted": 2}
        again = await http("DELETE", "/v1/kv/?prefix=%ff", None, {"Idempotency-Key": "c/1"})
        assert again.json == {"revision": 10, "deleted": 2, "replayed": True}
        await http("PUT", "/v1/kv/d", b"")
        assert (await http("DELETE", "/v1/kv?end=d")).json["deleted"] == 1
        assert (await http("DELETE", "/v1/kv?prefix=")).json["deleted"] == 1
        http.node.follow("n2", "http://leader:1")
        moved = await http("DELETE", "/v1/kv?prefix=a%2F")
        assert moved.headers["Location"] == "http://leader:1/v1/kv?prefix=a%2F"

    run(scenario)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?prefix=a&start=b",
        "?prefix=a&prefix=b",
        "?prefix=a&prefix64=YQ",
        "?prefix64=%21",
        "?start=",
        "?end=",
        "?end=%00",
        "?prefix=a&limit=3",
        "?prefix=a&key=b",
        "?prefix=a&prev_revision=3",
        "?prefix=%f",
        "?prefix=a&timeout_ms=x",
    ],
)
def test_a_range_that_cannot_be_meant_is_refused(query: str) -> None:
    async def scenario(http: Server) -> None:
        answer = await http("DELETE", "/v1/kv" + query)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        assert http.node.proposed == []

    run(scenario)


def test_more_keys_than_one_request_may_delete_are_refused_with_advice() -> None:
    async def scenario(http: Server) -> None:
        store = http.node.store
        for number in range(TXN_KEYS_MAX + 1):
            store.set_record(b"k%05d" % number, b"", 2, None)
        answer = await http("DELETE", "/v1/kv?prefix=k")
        assert (answer.status, answer.json["code"], answer.json["limit"]) == (413, "too_large", TXN_KEYS_MAX)
        assert "kv del --prefix" in answer.json["detail"]
        assert len(store) == TXN_KEYS_MAX + 1
        assert (await http("DELETE", "/v1/kv?start=k00001")).json["deleted"] == TXN_KEYS_MAX

    run(scenario)


# --- Batches ------------------------------------------------------------------------------------------------------


def test_each_operation_of_a_batch_has_its_own_result() -> None:
    async def scenario(http: Server) -> None:
        operations = [
            {"range": {"prefix": ""}},
            put("a", "1"),
            put("", "1"),
            {"put": {"key": "gone", "ignore_value": True}},
            put("a", "2", prev_value=True),
            {"delete": {"key": "b"}},
            {"txn": {"compare": [{"key": "a", "target": "value", "value": "0"}], "then": [put("a", "3")]}},
            {"range": {"key": "a", "revision": 99}},
        ]
        answer = await post(http, "/v1/batch", {"operations": operations})
        assert answer.status == 200
        results = answer.json["results"]
        assert [each["status"] for each in results] == [200, 200, 400, 404, 200, 200, 200, 400]
        [batch] = set(http.node.batches)
        assert batch is not None, "the node keeps their order"
        # Reads come after all changes.
        [record] = results[0]["range"]["records"]
        assert (record["value"], results[0]["revision"]) == ("2", 3)
        assert results[1] == {
            "status": 200,
            "revision": 2,
            "put": {"create_revision": 2, "mod_revision": 2, "version": 1},
        }
        assert results[2]["problem"]["code"] == "invalid_request"
        assert results[3]["problem"]["code"] == "key_not_found"
        assert results[4]["put"]["previous"]["value"] == "1"
        assert results[5]["delete"] == {"deleted": 0}
        assert results[6]["txn"] == {"succeeded": False, "results": []}
        assert results[7]["problem"]["code"] == "future_revision"

    run(scenario)


def test_the_answer_of_a_batch_is_bounded_and_what_is_done_is_told_all_the_same() -> None:
    async def scenario(http: Server) -> None:
        for number in range(3):
            http.node.store.set_record(b"k%d" % number, b"v" * (1024 * 1024), 2, None)
        reads = [{"range": {"prefix": "k"}}] * 2
        delete = {"delete": {"prefix": "k", "prev_values": True}}
        answer = await post(http, "/v1/batch", {"operations": reads})
        assert [each["status"] for each in answer.json["results"]] == [200, 413]
        assert answer.json["results"][1]["problem"]["limit"] == 4 * 1024 * 1024
        http.node.store.set_record(b"l", b"v" * (1024 * 1024), 2, None)
        first = {"put": {"key": "l", "value": "", "prev_value": True}}
        done = (await post(http, "/v1/batch", {"operations": [first, delete, first]})).json["results"]
        assert done[0]["put"]["previous"]["value"]
        assert done[1] == {"status": 200, "revision": 4, "deleted": 3}
        assert done[2]["put"]["version"] == 3

    run(scenario)


def test_an_operation_of_a_batch_has_a_session_of_its_own() -> None:
    async def scenario(http: Server) -> None:
        operations = [
            {**put("a", "1"), "idempotency_key": "c/1"},
            {"delete": {"key": "a"}, "idempotency_key": "c/2"},
            {**put("a", "3"), "idempotency_key": "d/7"},
        ]
        first = (await post(http, "/v1/batch", {"operations": operations})).json["results"]
        again = (await post(http, "/v1/batch", {"operations": operations})).json["results"]
        assert [each["status"] for each in first] == [each["status"] for each in again] == [200, 200, 409]
        assert again[0] == {"status": 200, "revision": 2, "replayed": True, "put": first[0]["put"]}
        assert again[1] == {"status": 200, "revision": 3, "replayed": True, "deleted": 1}
        assert again[2]["problem"]["outcome"] == "unknown"

    run(scenario)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "operations"),
        ({"operations": []}, "1 to 128"),
        ({"operations": [put("a")] * 129}, "1 to 128"),
        ({"operations": [put("a"), {}]}, "$.operations[1]: an operation is one of"),
        ({"operations": [{**put("a"), "idempotency_key": "x"}]}, "$.operations[0].idempotency_key is not"),
        ({"operations": [{**put("a"), "key": "x"}]}, "unknown field `key` - at `$.operations[0]`"),
        ({"operations": [put("a")], "atomic": True}, "unknown field `atomic`"),
    ],
)
def test_a_batch_that_is_malformed_is_refused_whole(body: Any, detail: str) -> None:
    async def scenario(http: Server) -> None:
        answer = await post(http, "/v1/batch", body)
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        assert detail in answer.json["detail"]
        assert (await post(http, "/v1/batch", {"operations": [put("a")]}, key="c/1")).status == 400
        assert http.node.proposed == []

    run(scenario)


def test_a_batch_with_a_change_is_for_the_leader_and_one_of_reads_for_any_node() -> None:
    async def scenario(http: Server) -> None:
        http.node.follow("n2", "http://leader:1")
        reads = await post(http, "/v1/batch", {"operations": [{"range": {"key": "a"}}] * 2})
        assert [each["status"] for each in reads.json["results"]] == [200, 200]
        moved = await post(http, "/v1/batch", {"operations": [{"range": {"key": "a"}}, put("a")]})
        assert (moved.status, moved.headers["Location"]) == (307, "http://leader:1/v1/batch")
        assert http.node.proposed == []

    run(scenario)
