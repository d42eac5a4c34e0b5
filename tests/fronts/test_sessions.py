"""``/v1/sessions/{id}``: a client ends its session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fronts.fake_node import FakeNode, Server, serving


def run(scenario: Callable[[Server], Awaitable[None]], *, is_raised: bool = True) -> None:
    async def main() -> None:
        node = FakeNode()
        if is_raised:
            node.raise_feature_level()
        async with asyncio.timeout(20), serving(node) as http:
            await scenario(http)

    asyncio.run(main())


def test_a_session_is_ended_and_its_late_writes_are_refused() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "c/1"})
        for _ in range(2):  # The second one is a retry.
            answer = await http("DELETE", "/v1/sessions/c")
            assert (answer.status, answer.json) == (200, {"revision": 2})
        assert http.node.store.session_count == 0
        late = await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "c/1"})
        assert (late.status, late.json["code"], late.json["outcome"]) == (409, "session_unknown", "unknown")
        assert http.node.store.revision == 2

    run(scenario)


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/v1/sessions/nobody", 409, "session_unknown"),
        ("/v1/sessions/", 404, "unknown_path"),
        ("/v1/sessions/a/b", 404, "unknown_path"),
        ("/v1/sessions/%41", 409, "session_unknown"),
        ("/v1/sessions/%2F", 400, "invalid_request"),
        ("/v1/sessions/%ff", 400, "invalid_request"),
        ("/v1/sessions/%6", 400, "invalid_request"),
        ("/v1/sessions/c?typo=1", 400, "invalid_request"),
        ("/v1/sessions/c?timeout_ms=-1", 400, "invalid_request"),
    ],
)
def test_what_is_no_session_is_not_ended(target: str, status: int, code: str) -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "c/1"})
        answer = await http("DELETE", target)
        assert (answer.status, answer.json["code"]) == (status, code)
        assert http.node.store.session_count == 1

    run(scenario)


def test_the_id_of_a_session_is_decoded_as_a_key_is() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "a-b/1"})
        assert (await http("DELETE", "/v1/sessions/%61%2Db")).status == 200
        assert http.node.store.session_count == 0

    run(scenario)


@pytest.mark.parametrize("client_id", [".", ".."])
def test_a_session_that_no_library_could_end_is_not_opened(client_id: str) -> None:
    async def scenario(http: Server) -> None:
        for method in ("PUT", "DELETE"):
            answer = await http(method, "/v1/kv/k", b"v" if method == "PUT" else None, _key(client_id, 1))
            assert (answer.status, answer.json["code"]) == (400, "invalid_request")
            assert "could not be ended" in answer.json["detail"]
        assert http.node.store.session_count == 0
        # One that an earlier version opened goes on, and can be ended.
        assert (await http("PUT", "/v1/kv/k", b"v", _key(client_id, 2))).json["code"] == "session_unknown"
        ended = await http("DELETE", f"/v1/sessions/{client_id.replace('.', '%2E')}")
        assert ended.json["code"] == "session_unknown"

    run(scenario)


def _key(client_id: str, sequence: int) -> dict[str, str]:
    return {"Idempotency-Key": f"{client_id}/{sequence}"}


def test_below_its_feature_level_the_end_of_a_session_is_refused_and_never_proposed() -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/k", b"v", {"Idempotency-Key": "c/1"})
        answer = await http("DELETE", "/v1/sessions/c")
        assert (answer.status, answer.json["code"]) == (409, "feature_unavailable")
        assert len(http.node.proposed) == 1

    run(scenario, is_raised=False)


def test_a_follower_says_who_ends_sessions() -> None:
    async def scenario(http: Server) -> None:
        http.node.follow("n2", "http://leader:1")
        answer = await http("DELETE", "/v1/sessions/c?timeout_ms=5")
        assert (answer.status, answer.headers["Location"]) == (307, "http://leader:1/v1/sessions/c?timeout_ms=5")
        assert (await http("GET", "/v1/sessions/c")).status == 405

    run(scenario)
