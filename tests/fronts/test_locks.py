"""``/v1/locks`` and ``/v1/elections``."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from typing import Any

import pytest
from fronts.fake_node import Answer, Server
from fronts.lock_support import held, lock, run, waiting
from waiting import until

from kvorum.errors import NotServingError
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS, Principal
from kvorum.service.locks import Locks
from kvorum.service.requests import AcquireLock


def test_a_free_lock_is_granted_with_a_token() -> None:
    async def scenario(http: Server) -> None:
        got = await lock(http, 1)
        token = http.node.store.revision
        assert (got.status, got.json) == (
            200,
            {"lease": "1", "fencing_token": token, "revision": token, "name": "a", "key": "_locks/a/1"},
        )
        shown = (await http("GET", "/v1/locks/a")).json
        assert 9000 < shown["holder"].pop("remaining_ms") <= 10_000
        assert shown == {
            "holder": {"lease": "1", "fencing_token": token},
            "waiter_count": 0,
            "name": "a",
            "revision": token,
        }

    run(scenario)


def test_a_lock_that_another_one_holds_is_refused_at_once_and_nothing_is_written() -> None:
    async def scenario(http: Server) -> None:
        token = (await lock(http, 1)).json["fencing_token"]
        refused = await lock(http, 2)
        assert (refused.status, refused.json["code"], refused.json["outcome"]) == (409, "lock_held", "refused")
        assert (refused.json["lease"], refused.json["fencing_token"]) == ("1", token)
        assert "the lease 1 holds the lock 'a'" in refused.json["detail"]
        assert http.node.store.revision == token

    run(scenario)


def test_asked_again_the_holder_keeps_its_token() -> None:
    async def scenario(http: Server) -> None:
        first = (await lock(http, 1)).json["fencing_token"]
        for wait_ms in (0, 5000):
            assert (await lock(http, 1, wait_ms)).json["fencing_token"] == first

    run(scenario)


def test_waiters_get_the_lock_in_their_order_and_each_token_is_higher() -> None:
    async def scenario(http: Server) -> None:
        first = await lock(http, 1)
        tasks = []
        for lease in (2, 3):
            tasks.append(asyncio.create_task(lock(http, lease, 9000)))
            await waiting(http, lease)
        shown = (await http("GET", "/v1/locks/a")).json
        assert [each["lease"] for each in shown["waiters"]] == ["2", "3"]
        assert shown["waiter_count"] == 2
        assert (await http("DELETE", "/v1/locks/a?lease=1")).status == 200
        second = await tasks[0]
        assert not tasks[1].done()
        assert (await http("DELETE", "/v1/locks/a?lease=2")).status == 200
        third = await tasks[1]
        tokens = [each.json["fencing_token"] for each in (first, second, third)]
        assert tokens == sorted(set(tokens))
        await until("the watches are closed", lambda: http.node.watches.hub.size == 0)

    run(scenario)


def test_a_lock_whose_lease_ends_goes_to_the_next_and_after_the_lock_delay_only() -> None:
    async def scenario(http: Server) -> None:
        await http("POST", "/v1/leases", b'{"ttl_s": 10, "id": "d", "lock_delay_s": 3}')
        assert (await http("POST", "/v1/locks/a?lease=d")).status == 200
        waiter = asyncio.create_task(lock(http, 1, 9000))
        await waiting(http, 2)
        http.node.pass_time(5000)
        await http("POST", "/v1/leases/1/keepalive")
        http.node.pass_time(5100)
        refused = await http("POST", "/v1/locks/a?lease=d")
        assert (refused.status, refused.json["code"]) == (404, "lease_not_found")
        assert not waiter.done()
        assert held(http) == [b"_locks/a/1", b"_locks/a/d"]
        http.node.pass_time(3000)
        assert (await waiter).status == 200

    run(scenario)


def test_a_waiter_whose_own_lease_ends_is_told_so() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        waiter = asyncio.create_task(lock(http, 2, 9000))
        await waiting(http, 2)
        await http("DELETE", "/v1/leases/2")
        ended = await waiter
        assert (ended.status, ended.json["code"]) == (404, "lease_not_found")

    run(scenario)


def test_a_waiter_whose_lease_is_over_gets_no_lock_while_its_place_is_kept() -> None:
    async def scenario(http: Server) -> None:
        await http("POST", "/v1/leases", b'{"ttl_s": 10, "id": "d", "lock_delay_s": 30}')
        await lock(http, 1)
        waiter = asyncio.create_task(http("POST", "/v1/locks/a?lease=d&wait_ms=9000"))
        await waiting(http, 2)
        http.node.pass_time(11_000)
        assert held(http) == [b"_locks/a/d"]
        ended = await waiter
        assert (ended.status, ended.json["code"]) == (404, "lease_not_found")

    run(scenario)


def test_a_single_waiter_wakes_up_when_the_lock_is_free() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        waiter = asyncio.create_task(lock(http, 2, 60_000))
        await waiting(http, 2)
        await http("DELETE", "/v1/locks/a?lease=1")
        await until("the waiter has the lock, long before its time is over", waiter.done)
        assert (await waiter).status == 200

    run(scenario)


def test_a_holder_that_asks_again_stays_before_those_who_wait() -> None:
    async def scenario(http: Server) -> None:
        first = (await lock(http, 1)).json["fencing_token"]
        waiter = asyncio.create_task(lock(http, 2, 9000))
        await waiting(http, 2)
        again = await lock(http, 1, 500)
        assert (again.status, again.json.get("fencing_token")) == (200, first)
        assert not waiter.done()
        await http("DELETE", "/v1/locks/a?lease=1")
        assert (await waiter).status == 200

    run(scenario)


def test_a_leader_that_was_replaced_meanwhile_does_not_proclaim(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1, name="e", kind="elections")
        propose = http.node.propose

        async def late(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(http.node, "propose", propose)
            http.node.remove(b"_elections/e/1")
            await lock(http, 2, name="e", kind="elections")
            waiter = asyncio.create_task(lock(http, 1, 9000, "e", "elections"))
            await until("it has a new place", lambda: len(held(http, "e", "_elections")) == 2)
            waiters.append(waiter)
            return await propose(*arguments, **options)

        waiters: list[asyncio.Task[Answer]] = []
        monkeypatch.setattr(http.node, "propose", late)
        refused = await http("PUT", "/v1/elections/e?lease=1", b"too late")
        assert (refused.status, refused.json["code"]) == (409, "lock_not_held")
        await http("DELETE", "/v1/elections/e?lease=2")
        assert (await waiters[0]).status == 200

    run(scenario)


def test_a_waiter_that_gives_up_leaves_the_queue() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        ended = await lock(http, 2, 50)
        assert (ended.status, ended.json["code"]) == (409, "lock_held")
        assert held(http) == [b"_locks/a/1"]

    run(scenario)


def test_a_waiter_whose_client_is_gone_leaves_the_queue() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        _, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"POST /v1/locks/a?lease=2&wait_ms=60000 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await waiting(http, 2)
        writer.transport.abort()
        await until("the place is given up", lambda: held(http) == [b"_locks/a/1"])
        assert not http.node.watches.hub.size

    run(scenario)


def test_an_attempt_that_another_one_took_over_does_not_remove_the_place() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        early = asyncio.create_task(lock(http, 2, 300))
        await waiting(http, 2)
        late = asyncio.create_task(lock(http, 2, 9000))
        await until("both wait", lambda: http.node.watches.hub.size >= 4)
        assert (await early).status == 409
        assert held(http) == [b"_locks/a/1", b"_locks/a/2"]
        await http("DELETE", "/v1/locks/a?lease=1")
        assert (await late).status == 200

    run(scenario)


def test_a_place_that_is_the_first_one_by_then_is_not_given_up() -> None:
    """Another attempt of the same lease may have been told already that it holds the lock."""

    async def scenario(http: Server) -> None:
        await lock(http, 1)
        service = Service(http.node, perf_counter)
        attempt = asyncio.ensure_future(service.execute(ANONYMOUS, AcquireLock("lock", b"a", 2, wait_ms=9000)))
        await waiting(http, 2)
        http.node.remove(b"_locks/a/1")
        attempt.cancel()
        await asyncio.wait({attempt})
        assert attempt.cancelled()
        assert held(http) == [b"_locks/a/2"]

    run(scenario)


def test_a_lock_that_becomes_free_as_the_time_ends_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        withdraw = Locks._withdraw

        async def too_late(self: Locks, principal: Principal, attempt: Any) -> Any:
            http.node.remove(b"_locks/a/1")
            return await withdraw(self, principal, attempt)

        monkeypatch.setattr(Locks, "_withdraw", too_late)
        assert (await lock(http, 2, 30)).status == 200

    run(scenario)


def test_a_node_that_serves_nobody_any_more_leaves_the_place_for_an_attempt_elsewhere() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        waiter = asyncio.create_task(lock(http, 2, 9000))
        await waiting(http, 2)
        http.node.watches.end_all(NotServingError("n1 stops"))
        ended = await waiter
        assert (ended.status, ended.json["code"]) == (504, "outcome_unknown")
        assert "n1 stops" in ended.json["detail"]
        assert held(http) == [b"_locks/a/1", b"_locks/a/2"]

    run(scenario)


def test_after_a_wait_a_lock_is_granted_by_what_a_quorum_confirms() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        waiter = asyncio.create_task(lock(http, 2, 9000))
        await waiting(http, 2)
        http.node.gate = asyncio.Event()
        barriers = http.node.barriers
        http.node.remove(b"_locks/a/1")
        await until("the quorum is asked", lambda: http.node.barriers > barriers)
        # Meanwhile the lease of the waiter ends: it must not be told that it holds the lock.
        http.node.revoke(2)
        http.node.gate.set()
        ended = await waiter
        assert (ended.status, ended.json["code"]) == (404, "lease_not_found")

    run(scenario)


def test_a_lock_does_not_wait_for_one_whose_name_begins_with_its_own() -> None:
    async def scenario(http: Server) -> None:
        assert (await lock(http, 1, name="a%2Fb")).status == 200
        await http("PUT", "/v1/kv/_locks%2Fa%2Fno-place", b"")
        await http("PUT", "/v1/kv/_locks%2Fa%2F9", b"")
        assert (await lock(http, 2)).status == 200
        assert (await http("GET", "/v1/locks/a")).json["holder"]["lease"] == "2"
        listed = (await http("GET", "/v1/locks")).json["locks"]
        assert [(each["name"], each["holder"]["lease"]) for each in listed] == [("a", "2"), ("a/b", "1")]

    run(scenario)


def test_releasing_what_is_not_held_is_refused() -> None:
    async def scenario(http: Server) -> None:
        refused = await http("DELETE", "/v1/locks/a?lease=1")
        assert (refused.status, refused.json["code"]) == (409, "lock_not_held")

    run(scenario)


def test_an_election_has_a_value_which_only_its_winner_changes() -> None:
    async def scenario(http: Server) -> None:
        nobody = await http("GET", "/v1/elections/e")
        assert (nobody.status, nobody.json["code"]) == (404, "not_elected")
        won = await http("POST", "/v1/elections/e?lease=1", b"one")
        assert won.status == 200
        assert (await http("POST", "/v1/elections/e?lease=2", b"two")).json["code"] == "lock_held"
        refused = await http("PUT", "/v1/elections/e?lease=2", b"two")
        assert (refused.status, refused.json["code"]) == (409, "lock_not_held")
        changed = await http("PUT", "/v1/elections/e?lease=1", b"uno")
        assert changed.json["fencing_token"] == won.json["fencing_token"]
        leader = (await http("GET", "/v1/elections/e")).json["holder"]
        assert (leader["lease"], leader["value"]) == ("1", "uno")
        listed = (await http("GET", "/v1/elections")).json["elections"]
        assert [each["name"] for each in listed] == ["e"]
        assert (await http("DELETE", "/v1/elections/e?lease=1")).status == 200
        assert (await http("GET", "/v1/elections/e")).status == 404

    run(scenario)


def test_an_election_is_observed_line_by_line() -> None:
    async def scenario(http: Server) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(b"GET /v1/elections/e?watch=true HTTP/1.1\r\nHost: x\r\n\r\n")

        async def line() -> Any:
            while True:
                text = (await reader.readline()).strip()
                if text.startswith(b"{"):
                    return json.loads(text)

        assert (await line())["leader"] is None
        await http("POST", "/v1/elections/e?lease=1", b"one")
        first = (await line())["leader"]
        assert (first["lease"], first["value"]) == ("1", "one")
        await http("PUT", "/v1/elections/e?lease=1", b"uno")
        assert (await line())["leader"]["value"] == "uno"
        await http("DELETE", "/v1/leases/1")
        assert (await line())["leader"] is None
        http.node.watches.end_all(NotServingError("n1 stops"))
        assert (await line())["error"]["code"] == "not_serving"
        writer.close()

    run(scenario)


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "words"),
    [
        ("POST", "/v1/locks/a", None, 400, "the parameter lease is missing"),
        ("POST", "/v1/locks/a?lease=zz", None, 400, "not the id of a lease"),
        ("POST", "/v1/locks/a?lease=1&wait_ms=600001", None, 400, "wait_ms must be"),
        ("POST", "/v1/locks/a?lease=1", b"value", 400, "a lock has no value"),
        ("POST", "/v1/locks/" + "n" * 1000 + "?lease=1", None, 413, "the name has 1000 bytes"),
        ("POST", "/v1/locks/a?lease=99", None, 404, "the lease 99"),
        ("PUT", "/v1/locks/a?lease=1", b"", 405, "this path supports"),
        ("GET", "/v1/locks/a?watch=true", None, 400, "unknown parameter"),
        ("DELETE", "/v1/locks/a", None, 400, "the parameter lease is missing"),
    ],
)
def test_what_is_malformed_is_refused(method: str, target: str, body: bytes | None, status: int, words: str) -> None:
    async def scenario(http: Server) -> None:
        refused = await http(method, target, body)
        assert refused.status == status
        assert words in refused.json["detail"]

    run(scenario)


def test_a_follower_redirects_and_never_forwards_a_wait() -> None:
    async def scenario(http: Server) -> None:
        http.node.follow("n2", "http://n2:8001")
        moved = await http("POST", "/v1/locks/a?lease=1&wait_ms=9000&forward=true")
        assert (moved.status, moved.headers["Location"]) == (
            307,
            "http://n2:8001/v1/locks/a?lease=1&wait_ms=9000&forward=true",
        )

    run(scenario)
