"""Keys of locks that others write: no place is taken over with a revision that is not its own."""

from __future__ import annotations

import asyncio
import json

import pytest
from fronts.fake_node import Server
from fronts.lock_support import held, lock, run, waiting
from waiting import until

from kvorum.kv.watch import Interest, Sink


@pytest.mark.parametrize("wait_ms", [0, 5000])
def test_a_key_that_is_no_place_does_not_become_an_old_one(wait_ms: int) -> None:
    async def scenario(http: Server) -> None:
        await http("PUT", "/v1/kv/_locks%2Fa%2F2", b"note")
        first = await lock(http, 1, 5000)
        late = asyncio.create_task(lock(http, 2, wait_ms))
        if wait_ms:
            await waiting(http, 2)
            shown = (await http("GET", "/v1/locks/a")).json
            assert (shown["holder"]["lease"], [each["lease"] for each in shown["waiters"]]) == ("1", ["2"])
            await http("DELETE", "/v1/locks/a?lease=1")
            assert (await late).json["fencing_token"] > first.json["fencing_token"]
        else:
            assert (await late).json["code"] == "lock_held"

    run(scenario)


def test_a_holder_whose_key_was_put_without_its_lease_gets_a_new_place_behind_the_others() -> None:
    async def scenario(http: Server) -> None:
        first = await lock(http, 1)
        next_one = asyncio.create_task(lock(http, 2, 60_000))
        await waiting(http, 2)
        await http("PUT", "/v1/kv/_locks%2Fa%2F1", b"note")
        await until("the next one has the lock, long before its time is over", next_one.done)
        second = await next_one
        assert second.json["fencing_token"] > first.json["fencing_token"]
        third = asyncio.create_task(lock(http, 1, 9000))
        await waiting(http, 2)
        shown = (await http("GET", "/v1/locks/a")).json
        assert (shown["holder"]["lease"], [each["lease"] for each in shown["waiters"]]) == ("2", ["1"])
        await http("DELETE", "/v1/locks/a?lease=2")
        assert (await third).json["fencing_token"] > second.json["fencing_token"]

    run(scenario)


def test_a_waiter_whose_key_was_put_without_its_lease_is_told_at_once() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        waiter = asyncio.create_task(lock(http, 2, 60_000))
        await waiting(http, 2)
        await http("PUT", "/v1/kv/_locks%2Fa%2F2", b"note")
        await until("it is told, long before its time is over", waiter.done)
        assert (await waiter).status in (404, 409)

    run(scenario)


def test_a_waiter_is_not_woken_when_the_one_before_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        waiter = asyncio.create_task(lock(http, 2, 9000))
        await waiting(http, 2)
        watches, begin = http.node.watches.hub.size, http.node.watch
        begun: list[object] = []

        def watch(interest: Interest, sink: Sink, first: int) -> object:
            begun.append(interest)
            return begin(interest, sink, first)

        monkeypatch.setattr(http.node, "watch", watch)
        await lock(http, 1)
        await http("GET", "/v1/kv/k")
        assert (begun, http.node.watches.hub.size) == ([], watches)
        await http("DELETE", "/v1/locks/a?lease=1")
        assert (await waiter).status == 200

    run(scenario)


def test_a_leader_whose_key_was_put_without_its_lease_proclaims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1, kind="elections")
        propose = http.node.propose

        async def late(*args: object, **options: object) -> object:
            monkeypatch.setattr(http.node, "propose", propose)
            assert (await http("PUT", "/v1/kv/_elections%2Fa%2F1", b"note")).status == 200
            return await propose(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(http.node, "propose", late)
        refused = await http("PUT", "/v1/elections/a?lease=1", b"uno")
        assert (refused.status, refused.json["code"]) == (409, "lock_not_held")
        assert (await http("GET", "/v1/elections/a")).status == 404

    run(scenario)


def test_a_place_is_not_given_up_when_the_one_before_lost_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        waiter = asyncio.create_task(lock(http, 2, 300))
        await waiting(http, 2)
        propose = http.node.propose

        async def late(*args: object, **options: object) -> object:
            monkeypatch.setattr(http.node, "propose", propose)
            await http("PUT", "/v1/kv/_locks%2Fa%2F1", b"note")
            return await propose(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(http.node, "propose", late)
        assert (await waiter).status == 200
        assert b"_locks/a/2" in held(http)

    run(scenario)


def test_of_two_places_of_one_revision_one_holds_the_lock() -> None:
    """Somebody else has put both in one transaction."""

    async def scenario(http: Server) -> None:
        puts = [{"put": {"key": f"_locks/a/{lease}", "value": "", "lease": str(lease)}} for lease in (1, 2)]
        assert (await http("POST", "/v1/txn", json.dumps({"then": puts}).encode())).status == 200
        assert (await lock(http, 1)).status == 200
        assert (await lock(http, 2, 100)).json["code"] == "lock_held"
        assert held(http) == [b"_locks/a/1"]

    run(scenario)
