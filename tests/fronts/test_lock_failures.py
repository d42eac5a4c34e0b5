"""Attempts that fail after they have a place: they give it up, or say that they may have it still."""

from __future__ import annotations

import asyncio

import pytest
from fronts.fake_node import Server
from fronts.lock_support import held, lock, run, waiting

from kvorum.errors import CallerError, NoLeaderError, OverloadedError, ReadTimeoutError, TooManyWatchersError

BOTH = [b"_locks/a/1", b"_locks/a/2"]


@pytest.mark.parametrize("error", [TooManyWatchersError("full"), OverloadedError("full"), NoLeaderError("nobody")])
@pytest.mark.parametrize("can_write", [True, False])
def test_an_attempt_whose_wait_fails_gives_its_place_up_or_says_that_it_may_stay(
    error: CallerError, can_write: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)

        def fail(*_: object) -> None:
            http.node.error = None if can_write else NoLeaderError("nobody leads")
            raise error

        monkeypatch.setattr(http.node, "watch", fail)
        ended = await lock(http, 2, 9000)
        http.node.error = None
        if can_write:
            assert (ended.json["code"], ended.json["outcome"]) == (error.code, "refused")
            assert held(http) == BOTH[:1]
        else:
            assert (ended.status, ended.json["code"], ended.json["outcome"]) == (504, "outcome_unknown", "unknown")
            assert held(http) == BOTH

    run(scenario)


@pytest.mark.parametrize("hands_over", [True, False])
def test_an_attempt_whose_time_ends_at_a_node_that_leads_no_more_is_not_refused_unless_its_place_is_gone(
    hands_over: bool,
) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        attempt = asyncio.create_task(lock(http, 2, 500))
        await waiting(http, 2)
        http.node.hands_over = hands_over
        http.node.follow("n2", "http://n2:8001")
        ended = await attempt
        if hands_over:
            assert (ended.status, ended.json["code"]) == (409, "lock_held")
            assert held(http) == BOTH[:1]
        else:
            assert (ended.status, ended.json["code"]) == (504, "outcome_unknown")
            assert held(http) == BOTH

    run(scenario)


def test_a_place_that_is_the_first_one_when_the_quorum_is_lost_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        attempt = asyncio.create_task(lock(http, 2, 9000))
        await waiting(http, 2)

        async def fail(_: int) -> None:
            raise ReadTimeoutError("no quorum")

        monkeypatch.setattr(http.node, "read_barrier", fail)
        http.node.remove(b"_locks/a/1")
        ended = await attempt
        assert (ended.status, ended.json["code"]) == (504, "outcome_unknown")
        assert held(http) == BOTH[1:]

    run(scenario)


@pytest.mark.parametrize("release", [True, False])
def test_a_waiter_whose_place_is_released_keeps_its_lease(release: bool) -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        waiter = asyncio.create_task(lock(http, 2, 9000))
        await waiting(http, 2)
        if release:
            await http("DELETE", "/v1/locks/a?lease=2")
        else:
            http.node.remove(b"_locks/a/2")
        ended = await waiter
        assert (ended.status, ended.json["code"], ended.json["outcome"]) == (409, "lock_not_held", "refused")
        assert (await http("GET", "/v1/leases/2")).status == 200

    run(scenario)
