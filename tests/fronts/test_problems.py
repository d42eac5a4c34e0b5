"""Every row of the errors table is reached through HTTP, and says what a program needs."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from fronts.fake_node import Answer, FakeNode, Server, make_config, serving
from serving import stream_server

from kvorum.errors import (
    CallerError,
    FeatureLevelBlockedError,
    FeatureUnavailableError,
    LeaseError,
    MembershipRefusedError,
    NoLeaderError,
    NoSpaceError,
    NotLeaderError,
    NotServingError,
    OutcomeUnknownError,
    OverloadedError,
    ReadTimeoutError,
    TransferFailedError,
    UnknownMemberError,
)
from kvorum.fronts.http.problems import TABLE
from kvorum.kv.commands import Put
from kvorum.service.outcomes import OUTCOMES

LEADER = "http://127.0.0.1:1"


class Case(NamedTuple):
    """How to meet one row."""

    code: str
    provoke: Callable[[Server], Awaitable[Answer]]
    fields: Mapping[str, Any] = MappingProxyType({})
    error: Exception | None = None


async def _follower(http: Server) -> Answer:
    http.node.follow("n2", LEADER)
    return await http("PUT", "/v1/kv/k", b"v")


async def _stale(http: Server) -> Answer:
    http.node.staleness, http.node.error = None, NoLeaderError("nobody leads")
    return await http("GET", "/v1/kv/k?consistency=stale&max_staleness_ms=1")


async def _session(http: Server, *keys: str) -> Answer:
    for key in keys:
        answer = await http("PUT", "/v1/kv/k", key.encode(), {"Idempotency-Key": key.rstrip("!")})
    return answer


async def _many_deletes(http: Server) -> Answer:
    for sequence in [*range(1, 260), 1]:
        answer = await http("DELETE", "/v1/kv/k", None, {"Idempotency-Key": f"c/{sequence}"})
    return answer


async def _too_many_watchers(http: Server) -> Answer:
    http.node.watches._watchers_max = 0
    return await http("GET", "/v1/watch?prefix=")


async def _sessions_full(http: Server) -> Answer:
    from kvorum.kv.commands import ClientCommand, Result, SessionRefused

    async def full(command: ClientCommand, timeout_ms: int, address: str = "", **_: object) -> Result:
        return SessionRefused(0, "full")

    http.node.propose = full  # type: ignore[method-assign]
    return await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "c/1"})


async def _revision(http: Server, revision: int) -> Answer:
    http.node.raise_feature_level()
    for _ in range(3):
        await _put(http)
    await http("POST", "/v1/compact", b'{"revision": 3}')
    return await http("GET", f"/v1/kv/k?revision={revision}")


async def _ignore_value(http: Server) -> Answer:
    http.node.raise_feature_level()
    return await http("PUT", "/v1/kv/k?ignore_value=true", b"")


async def _lease(http: Server, *steps: tuple[str, str, bytes]) -> Answer:
    """Grant lease 1 and take these steps; return the answer to the last one."""
    http.node.raise_feature_level()
    for step in (("POST", "/v1/leases", b'{"ttl_s": 9, "id": "1"}'), *steps):
        answer = await http(*step)
    return answer


async def _lock_held(http: Server) -> Answer:
    taken = ("POST", "/v1/locks/a?lease=1", b"")
    grant = ("POST", "/v1/leases", b'{"ttl_s": 9, "id": "2"}')
    return await _lease(http, taken, grant, ("POST", "/v1/locks/a?lease=2", b""))


async def _slow_body(http: Server) -> Answer:
    return _parse(await http.raw(b"PUT /v1/kv/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf"))


async def _no_http(http: Server) -> Answer:
    return _parse(await http.raw(b"\x16\x03\x01 this is TLS\r\n\r\n"))


def _parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return Answer(int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), body)


def _put(http: Server) -> Awaitable[Answer]:
    return http("PUT", "/v1/kv/k", b"v")


def _get(http: Server) -> Awaitable[Answer]:
    return http("GET", "/v1/kv/k")


def _delete_member(http: Server) -> Awaitable[Answer]:
    return http("DELETE", "/v1/cluster/members/n9")


def _raise(
    error: CallerError,
    provoke: Callable[[Server], Awaitable[Answer]] = _put,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> Case:
    return Case(error.code, provoke, fields, error=error)


CASES = [
    Case("not_leader", _follower, {"leader": "n2", "leader_url": LEADER}),
    Case("malformed_http", _no_http),
    Case("invalid_request", lambda http: http("PUT", "/v1/kv/%zz", b"v")),
    Case("cross_origin", lambda http: http("PUT", "/v1/kv/k", b"v", {"Origin": "http://evil.example"})),
    Case("unknown_host", lambda http: http("GET", "/v1/kv/k", headers={"Host": "evil.example"})),
    Case("wrong_cluster", lambda http: http("GET", "/v1/kv/k?cluster=" + "d" * 32)),
    Case("unknown_path", lambda http: http("GET", "/v2/nothing")),
    Case("not_found", _get, {"node": "n1", "revision": 0}),
    Case("compacted", lambda http: _revision(http, 2), {"floor": 3, "revision": 4}),
    Case("future_revision", lambda http: _revision(http, 5), {"revision": 4}),
    Case("key_not_found", _ignore_value, {"revision": 1}),
    Case("method_not_allowed", lambda http: http("POST", "/v1/kv/k", b"v")),
    Case("body_timeout", _slow_body),
    Case("head_too_large", lambda http: http("GET", "/v1/kv/" + "k" * 9000), {"limit": 8190}),
    Case("compare_failed", lambda http: http("PUT", "/v1/kv/k?prev_revision=3", b"v"), {"mod_revision": 0}),
    Case("precondition_failed", lambda http: http("PUT", "/v1/kv/k", b"v", {"If-Match": '"3"'}), {"mod_revision": 0}),
    Case("lease_not_found", lambda http: _lease(http, ("GET", "/v1/leases/2", b"")), {"revision": 1}),
    Case("not_elected", lambda http: _lease(http, ("GET", "/v1/elections/a", b"")), {"revision": 1}),
    Case("lease_exists", lambda http: _lease(http, ("POST", "/v1/leases", b'{"ttl_s": 5, "id": "1"}')), {"ttl_s": 9}),
    Case("lock_held", _lock_held, {"lease": "1", "fencing_token": 2, "revision": 2}),
    Case("lock_not_held", lambda http: _lease(http, ("DELETE", "/v1/locks/a?lease=1", b""))),
    Case(
        "too_many_leases",
        lambda http: _lease(http, ("POST", "/v1/leases", b'{"ttl_s": 9}')),
        {"limit": 100_000},
        error=LeaseError("too_many_leases", "there are 100,000 leases", limit=100_000),
    ),
    Case("session_unknown", lambda http: _session(http, "c/2"), {"reason": "unknown"}),
    Case("session_stale", _many_deletes, {"reason": "stale"}),
    Case("session_ahead", lambda http: _session(http, "c/1", "c/900"), {"reason": "ahead"}),
    Case("session_mismatch", lambda http: _session(http, "c/1", "c/1!"), {"reason": "mismatch"}),
    Case("sessions_full", _sessions_full, {"reason": "full"}),
    Case("membership_refused", _delete_member, error=MembershipRefusedError("a change is not committed yet")),
    Case("unknown_member", _delete_member, error=UnknownMemberError("n9 is not a member")),
    Case("too_large", lambda http: http("PUT", "/v1/kv/k", b"v" * (1024 * 1024 + 1)), {"limit": 1024 * 1024}),
    Case("unsupported_encoding", lambda http: http("PUT", "/v1/kv/k", b"v", {"Content-Encoding": "gzip"})),
    Case(
        "expectation_failed",
        lambda http: http("PUT", "/v1/kv/k", b"v" * 300_000, {"Expect": "a-miracle", "Content-Length": "600000"}),
    ),
    Case("internal", _put, error=RuntimeError("a bug")),
    _raise(NoLeaderError("nobody leads")),
    _raise(NotServingError("the node is stopping")),
    Case("no_leader", _put, error=NotLeaderError(None)),
    _raise(OverloadedError("too much")),
    Case("too_many_watchers", _too_many_watchers),
    _raise(ReadTimeoutError("no quorum"), _get),
    Case("too_stale", _stale, {"staleness_ms": None, "limit": 1}),
    _raise(TransferFailedError("it did not move"), lambda http: http("POST", "/v1/cluster/leader")),
    _raise(OutcomeUnknownError("who knows")),
    _raise(
        NoSpaceError("the data takes 9 of 8 bytes", reason="quota", limit=8, used=9),
        fields={"reason": "quota", "limit": 8, "used": 9},
    ),
    _raise(FeatureUnavailableError("it needs level 3")),
    _raise(FeatureLevelBlockedError("n2 runs 0.1.0"), lambda http: http("POST", "/v1/cluster/finalize")),
]


def test_every_row_of_the_table_has_a_case() -> None:
    assert {case.code for case in CASES} == set(TABLE)


def test_every_outcome_of_the_service_is_a_row_that_says_the_same() -> None:
    rows = {code: (TABLE[code].outcome, TABLE[code].retry_after_s) for code in OUTCOMES}
    assert rows == {code: (outcome.effect, outcome.retry_after_s) for code, outcome in OUTCOMES.items()}


def test_what_only_this_front_refuses_never_reached_the_service() -> None:
    own = {code: row for code, row in TABLE.items() if code not in OUTCOMES}
    assert {row.outcome for row in own.values()} == {"refused"}
    assert all(400 <= row.status < 500 for row in own.values())


def test_the_page_of_the_api_has_the_same_rows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (\w+) \| (?:(\d+) s)? *\| (.*) \|$", page, re.MULTILINE)
    assert rows == [
        (str(row.status), code, row.outcome, str(row.retry_after_s or ""), row.title) for code, row in TABLE.items()
    ]


@pytest.mark.parametrize("case", CASES, ids=[case.code for case in CASES])
def test_every_error_is_reached_and_says_what_its_row_says(case: Case) -> None:
    async def main() -> None:
        node = FakeNode(make_config(body_timeout_s=0.1))
        node.error = case.error
        if isinstance(case.error, NotLeaderError):
            node.leader = None
        async with asyncio.timeout(20), serving(node) as http:
            answer = await case.provoke(http)
        row = TABLE[case.code]
        assert answer.status == row.status
        assert answer.headers["Content-Type"] == "application/problem+json"
        body = answer.json
        assert body["type"] == f"urn:kvorum:error:{case.code}"
        assert (body["title"], body["status"], body["code"]) == (row.title, row.status, case.code)
        assert body["outcome"] == row.outcome
        assert body["detail"]
        assert ("Retry-After" in answer.headers) == (row.retry_after_s is not None)
        assert {name: body[name] for name in case.fields} == case.fields

    asyncio.run(main())


def test_a_page_that_the_node_itself_serves_may_write() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            own = {"Origin": http.url}
            assert (await http("PUT", "/v1/kv/k", b"v", own)).status == 200
            assert (await http("GET", "/v1/kv/k", None, {"Origin": "http://evil.example"})).status == 200
            for origin in ("null", "http://evil.example", "http://127.0.0.1"):
                assert (await http("POST", "/v1/cluster/leader", b"", {"Origin": origin})).status == 403
            assert http.node.calls == []

    asyncio.run(main())


def test_a_redirect_names_the_leader_and_keeps_path_and_query() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            http.node.follow("n2", LEADER)
            for target in ("/v1/kv/a%2Fb%25?prev_revision=3", "/v1/kv/%ff", "/v1/cluster/leader?timeout_ms=5"):
                method = "POST" if "leader" in target else "PUT"
                answer = await http(method, target, b"")
                assert answer.status == 307
                assert answer.headers["Location"] == LEADER + target
                assert answer.headers["X-Kvorum-Leader"] == "n2"
            assert http.node.counters.redirects == 3

    asyncio.run(main())


def test_a_node_that_is_told_of_itself_as_leader_does_not_redirect_to_itself() -> None:
    async def main() -> None:
        node = FakeNode()
        node.follow("n1", node.config.advertise_client_url)
        async with asyncio.timeout(20), serving(node) as http:
            assert (await http("PUT", "/v1/kv/k", b"v")).json["code"] == "no_leader"

    asyncio.run(main())


def test_a_wrong_method_is_told_the_right_ones() -> None:
    paths = {
        "/v1/kv/k": "GET, HEAD, PUT, DELETE",
        "/v1/cluster": "GET, HEAD",
        "/v1/cluster/members": "GET, HEAD, POST",
        "/v1/cluster/members/n1": "DELETE",
        "/v1/cluster/members/n1/promote": "POST",
        "/v1/cluster/leader": "GET, HEAD, POST",
        "/v1/cluster/finalize": "POST",
        "/livez": "GET, HEAD",
    }

    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            for path, allowed in paths.items():
                answer = await http("PATCH", path)
                assert (answer.status, answer.headers["Allow"]) == (405, allowed), path

    asyncio.run(main())


def test_a_leader_whose_address_is_not_known_is_named_all_the_same() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as http:
            http.node.follow("n2", "")
            answer = await http("PUT", "/v1/kv/k?forward=true", b"v")
            assert (answer.status, answer.json["code"], answer.json["leader"]) == (503, "no_leader", "n2")
            assert "Location" not in answer.headers

    asyncio.run(main())


def test_a_bug_is_answered_without_a_traceback_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        node = FakeNode()
        node.error = RuntimeError("the secret innards")
        async with asyncio.timeout(20), serving(node) as http:
            for _ in range(3):
                answer = await http("PUT", "/v1/kv/k", b"v")
                assert answer.status == 500
                assert b"innards" not in answer.body
                assert b"Traceback" not in answer.body
            assert node.counters.requests["put", 500] == 3

    asyncio.run(main())
    assert len([record for record in caplog.records if record.name.startswith("kvorum")]) == 1


def test_a_forwarded_write_reaches_the_leader_with_everything_that_matters() -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(asyncio.timeout(20))
            leader = await stack.enter_async_context(serving(FakeNode()))
            follower = await stack.enter_async_context(serving(FakeNode(make_config(name="n2", peers=()))))
            follower.node.follow("n1", leader.url)
            headers = {"Idempotency-Key": "c/1"}
            answer = await follower("PUT", "/v1/kv/a%2Fb?forward=true&prev_revision=0", b"value", headers)
            assert (answer.status, answer.headers["ETag"], answer.json["key"]) == (200, '"1"', "a/b")
            command = leader.node.proposed[0]
            assert isinstance(command, Put)
            assert (command.key, command.value, command.prev_revision) == (b"a/b", b"value", 0)
            assert (command.client_id, command.sequence) == ("c", 1)
            failed = await follower("PUT", "/v1/kv/a%2Fb?forward=true&prev_revision=0", b"value")
            assert failed.json["code"] == "compare_failed"
            missing = await follower("DELETE", "/v1/kv/none?forward")
            assert missing.json["deleted"] == 0
            moved = await follower("POST", "/v1/cluster/leader?forward=true", b'{"target": "n3"}')
            assert moved.json == {"leader": "n3"}

    asyncio.run(main())


@pytest.mark.parametrize("switch", ["forward", "forward=", "forward=1", "forward=TRUE", "forw%61rd=%74rue"])
def test_asking_to_forward_is_understood_however_it_is_written(switch: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), serving() as leader, serving(FakeNode(make_config(name="n2"))) as follower:
            follower.node.follow("n1", leader.url)
            assert (await follower("PUT", f"/v1/kv/k?{switch}", b"v")).status == 200
            assert (await follower("PUT", "/v1/kv/k?forward=0", b"v")).status == 307
            assert (await follower("POST", f"/v1/cluster/leader?{switch}")).status == 200

    asyncio.run(main())


def test_a_forwarded_write_waits_no_longer_than_the_client_wants() -> None:
    async def main() -> None:
        leader_node, follower_node = FakeNode(), FakeNode(make_config(request_timeout_ms=60_000))
        leader_node.gate = asyncio.Event()
        async with asyncio.timeout(20), serving(leader_node) as leader, serving(follower_node) as follower:
            follower.node.follow("n2", leader.url)
            # The fake leader waits for ever, whatever its own deadline is.
            answer = await follower("PUT", "/v1/kv/k?forward=true&timeout_ms=100", b"v")
            assert (answer.status, answer.json["outcome"]) == (504, "unknown")
            leader_node.gate.set()

    asyncio.run(main())


def test_what_is_no_kvorum_is_not_passed_on_as_an_answer() -> None:
    async def main() -> None:
        async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 799 Whatever\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with asyncio.timeout(20), stream_server(stranger) as address, serving() as http:
            http.node.follow("n2", f"http://{address}")
            answer = await http("PUT", "/v1/kv/k?forward=true", b"v")
            assert (answer.status, answer.json["outcome"]) == (504, "unknown")

    asyncio.run(main())


def test_a_node_that_forwards_by_configuration_needs_no_asking() -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(asyncio.timeout(20))
            leader = await stack.enter_async_context(serving(FakeNode(make_config(forward=True))))
            follower = await stack.enter_async_context(serving(FakeNode(make_config(name="n2", forward=True))))
            follower.node.follow("n1", leader.url)
            assert (await follower("PUT", "/v1/kv/k", b"v")).status == 200
            # The leadership moves while the request is under way: it is not passed on a second time.
            leader.node.follow("n2", follower.url)
            answer = await follower("PUT", "/v1/kv/k", b"v")
            assert (answer.status, answer.json["code"], answer.json["outcome"]) == (503, "no_leader", "refused")

    asyncio.run(main())


def test_a_leader_that_cannot_be_reached_did_nothing_and_one_that_does_not_answer_may_have() -> None:
    async def main() -> None:
        hits = []

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hits.append(await reader.readuntil(b"\r\n\r\n"))
            writer.close()

        async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hits.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(1)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            hits.append(await reader.readuntil(b"\r\n\r\n"))
            writer.close()

        async with asyncio.timeout(20), serving() as http:
            http.node.follow("n2", "http://127.0.0.1:1")
            answer = await http("PUT", "/v1/kv/k?forward=true", b"v")
            assert (answer.json["code"], answer.json["outcome"]) == ("no_leader", "refused")
            for behaviour, hit in ((hang_up, 1), (answer_once, 3)):
                async with stream_server(behaviour) as address:
                    http.node.follow("n2", f"http://{address}")
                    if behaviour is answer_once:
                        assert (await http("PUT", "/v1/kv/k?forward=true", b"v")).status == 200
                    answer = await http("PUT", "/v1/kv/k?forward=true", b"v")
                    assert (answer.json["code"], answer.json["outcome"]) == ("outcome_unknown", "unknown")
                    # aiohttp would have sent the write again on a fresh connection.
                    assert len(hits) == hit

    asyncio.run(main())
