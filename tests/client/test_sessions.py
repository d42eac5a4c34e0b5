"""Sessions that outlive outages, and what becomes of a write whose session the cluster no longer takes."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from client.test_client import cluster, run
from fronts.fake_node import Server, client_id_of

from kvorum.errors import OutcomeUnknownError as ServerOutcomeUnknown
from kvorum.kv.commands import ClientCommand, Delete, EndSession, Put, Result, SessionRefused, encode_batch
from kvorum.kv.limits import RECORD_OVERHEAD_BYTES, SESSION_WINDOW
from kvorum.kv.store import Store
from kvorum.raft.messages import Entry, EntryKind
from kvorum_client import Client, OutcomeUnknownError, RefusedError, SyncClient, UnavailableError
from kvorum_client import client as client_module
from kvorum_client.sessions import WINDOW, Sessions
from kvorum_client.transport import NotSentError, Transport


@pytest.mark.parametrize("together", [1, 30])
def test_an_outage_of_any_length_does_not_leave_a_client_ahead_of_its_session(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            await kv.put("k", "before")
            with monkeypatch.context() as patch:
                patch.setattr(Transport, "exchange", _refuse_connection)
                for _ in range(300 // together):
                    puts = (kv.put("k", "during", timeout_s=0.001) for _ in range(together))
                    ends = await asyncio.gather(*puts, return_exceptions=True)
                    assert {type(end) for end in ends} == {UnavailableError}
            for number in range(3):
                assert (await kv.put("k", f"after {number}")).version == number + 2

    run(scenario)


async def _refuse_connection(*arguments: object) -> None:
    raise NotSentError("connection refused")


def test_no_sequence_is_further_from_the_last_answered_one_than_the_cluster_allows() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        answered: dict[str, int] = {}
        for attempt in range(2000):
            async with sessions.ticket(1) as ticket:
                client_id, _, sequence = ticket.idempotency_key.partition("/")
                assert int(sequence) == 1 or int(sequence) - answered[client_id] <= SESSION_WINDOW
                if attempt % 300 == 0 or client_id not in answered:
                    ticket.answered = True
                    answered[client_id] = int(sequence)
        assert len(answered) > 1

    run(scenario)


def test_a_session_without_room_is_used_again_once_a_write_under_way_is_answered() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        async with sessions.ticket(1) as first:
            first.answered = True
        async with contextlib.AsyncExitStack() as stack:
            under_way = [await stack.enter_async_context(sessions.ticket(1)) for _ in range(WINDOW)]
            under_way[-1].answered = True
        async with sessions.ticket(1) as ticket:
            assert (ticket.lane, ticket.sequence) == (first.lane, WINDOW + 2)

    run(scenario)


def _go_back(server: Server, client_id: str) -> None:
    """Give the node the state of an older backup: it knows the session, from its first write only."""
    store = Store()
    store.apply(Entry(1, 1, EntryKind.COMMAND, encode_batch(1, [Put(b"k", b"old", -1, client_id, 1)])))
    server.node.store = store


def test_a_session_that_went_back_with_the_cluster_is_replaced() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            for _ in range(SESSION_WINDOW + 3):
                await kv.put("k", "v")
            _go_back(servers[0], client_id_of(servers[0].node.proposed[0]))
            assert (await kv.put("k", "new")).version == 2
            assert (await kv.put("k", "new")).version == 3

    run(scenario)


@pytest.mark.parametrize("reason", ["unknown", "stale", "ahead", "mismatch"])
def test_a_write_that_a_session_refuses_is_made_once_in_another(reason: str) -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            node = servers[0].node
            await kv.put("k", "0")
            apply, refused_id = node.propose, client_id_of(node.proposed[0])

            async def refuse_the_old_session(
                command: ClientCommand, timeout_ms: int, address: str = "", **_: object
            ) -> Result:
                return (
                    SessionRefused(1, reason)
                    if client_id_of(command) == refused_id
                    else await apply(command, timeout_ms)
                )

            node.propose = refuse_the_old_session  # type: ignore[method-assign]
            results = await asyncio.gather(*(kv.put("k", "1") for _ in range(20)))
            assert sorted(result.revision for result in results) == list(range(2, 22))

    run(scenario)


@pytest.mark.parametrize("reason", ["unknown", "stale", "ahead", "mismatch"])
def test_a_write_that_may_be_pending_is_not_made_again_in_another_session(reason: str) -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            node = servers[0].node
            await kv.put("k", "0")
            apply, tries = node.propose, []

            async def first_unknown_then_refused(
                command: ClientCommand, timeout_ms: int, address: str = "", **_: object
            ) -> Result:
                tries.append(command)
                if len(tries) == 1:
                    raise ServerOutcomeUnknown("the answer is lost")
                return SessionRefused(1, reason) if len(tries) == 2 else await apply(command, timeout_ms)

            node.propose = first_unknown_then_refused  # type: ignore[method-assign]
            with pytest.raises(OutcomeUnknownError, match="may or may not have been applied"):
                await kv.put("k", "1")
            assert len(tries) == 2
            assert (await kv.put("k", "2")).revision == 2
            assert client_id_of(tries[2]) != client_id_of(tries[1])

    run(scenario)


@pytest.mark.parametrize("reason", ["unknown", "stale", "ahead", "mismatch"])
def test_a_node_that_refuses_every_session_is_not_asked_without_end(reason: str) -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            tries = []

            async def refuse(command: ClientCommand, timeout_ms: int, address: str = "", **_: object) -> Result:
                tries.append(command)
                return SessionRefused(1, reason)

            servers[0].node.propose = refuse  # type: ignore[method-assign]
            with pytest.raises((RefusedError, OutcomeUnknownError)):
                await kv.put("k", "1")
            assert len(tries) == 1

    run(scenario)


def _without_room(server: Server) -> list[ClientCommand]:
    """Have the node refuse every session, and take what comes without one; return what was asked."""
    apply, asked = server.node.propose, []

    async def refuse_sessions(command: ClientCommand, timeout_ms: int, address: str = "", **_: object) -> Result:
        asked.append(command)
        return await apply(command, timeout_ms) if not client_id_of(command) else SessionRefused(0, "full")

    server.node.propose = refuse_sessions  # type: ignore[method-assign]
    return asked


def test_a_cluster_without_room_for_a_session_is_written_to_without_one_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            _without_room(servers[0])
            for revision in (1, 2, 3):
                assert (await kv.put("k", "v")).revision == revision
            assert [record.message for record in caplog.records if record.name == "kvorum_client"] == [
                "The cluster has no room for another client session; a write without an answer is not retried"
            ]

    run(scenario)


def test_a_delete_frees_what_its_key_took_when_the_data_is_above_the_quota() -> None:
    """As `kv delete` does: each left a session, ended or not, that took as much as a small key for an hour."""

    async def scenario() -> None:
        async with cluster(1) as servers:
            node = servers[0].node
            node.raise_feature_level()
            await node.set_quota(1 << 20, 1000)
            for key, value in ((b"a", b"1"), (b"b", b"2"), (b"large", bytes(1 << 20))):
                await node.propose(Put(key, value), 1000)
            assert node.store.quota.is_full
            apply = node.propose

            async def check_room(command: ClientCommand, timeout_ms: int, address: str = "", **_: object) -> Result:
                if isinstance(command, Put | Delete):
                    node.store.check_room(command)
                return await apply(command, timeout_ms)

            node.propose = check_room  # type: ignore[method-assign]
            for name in ("a", "b"):
                before = node.store.kept_bytes
                async with Client([servers[0].url]) as kv:
                    assert (await kv.delete(name)).deleted == 1
                assert before - node.store.kept_bytes == RECORD_OVERHEAD_BYTES + 2
            async with Client([servers[0].url], require_session=True) as kv:
                with pytest.raises(RefusedError, match="above its quota") as caught:
                    await kv.delete("large")
                assert caught.value.code == "sessions_full"
            assert node.store.session_count == 0

    run(scenario)


@pytest.mark.parametrize("make", [Client, SyncClient])
def test_a_client_that_needs_a_session_is_refused_where_there_is_no_room(make: type) -> None:
    async def scenario() -> None:
        async with cluster(1) as servers:
            asked = _without_room(servers[0])
            kv = make([servers[0].url], require_session=True)
            with pytest.raises(RefusedError) as caught:
                await (kv.put("k", "v") if make is Client else asyncio.to_thread(kv.put, "k", "v"))
            assert (caught.value.status, caught.value.code) == (429, "sessions_full")
            assert [bool(client_id_of(command)) for command in asked] == [True]
            await (kv.close() if make is Client else asyncio.to_thread(kv.close))

    run(scenario)


def test_a_client_that_is_closed_ends_its_sessions() -> None:
    async def scenario() -> None:
        async with cluster(2) as servers:
            store = servers[0].node.store
            servers[0].node.raise_feature_level()
            async with Client([servers[1].url]) as kv:
                await kv.put("k", "v")
                with pytest.raises(RefusedError):
                    await kv.put("k" * 1025, "v")
                assert store.session_count == 1
            assert store.session_count == 0
            ended = servers[0].node.proposed[-1]
            assert isinstance(ended, EndSession) and store.has_ended_session(ended.client_id)

    run(scenario)


def test_a_session_with_a_write_of_unknown_outcome_is_not_ended() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers:
            node = servers[0].node
            node.raise_feature_level()
            async with Client([servers[0].url]) as kv:
                await kv.put("k", "v")
                node.error = ServerOutcomeUnknown("no quorum answered in time")
                with pytest.raises(OutcomeUnknownError):
                    await kv.put("k", "w", timeout_s=0.3)
                node.error = None
            assert node.store.session_count == 1

    run(scenario)


def test_a_session_with_a_write_that_was_cancelled_is_not_ended() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        async with sessions.ticket(1) as first:
            first.answered = True
        with contextlib.suppress(asyncio.CancelledError):
            async with sessions.ticket(1):
                raise asyncio.CancelledError
        assert sessions.take_ended() == []

    run(scenario)


def test_a_session_with_a_write_under_way_is_not_ended_and_an_ended_one_is_not_used_again() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        async with sessions.ticket(1) as first:
            first.answered = True
        async with sessions.ticket(1):
            assert sessions.take_ended() == []
        assert sessions.take_ended() == [first.lane.client_id]
        assert sessions.take_ended() == []
        async with sessions.ticket(1) as ticket:
            assert ticket.opens

    run(scenario)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_cluster_that_ends_no_session_does_not_keep_a_client_from_closing(
    is_gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is at a feature level below that of the command, or it does not answer."""

    async def scenario() -> None:
        async with cluster(1) as servers:
            async with Client([servers[0].url]) as kv:
                await kv.put("k", "v")
                if is_gone:
                    monkeypatch.setattr(client_module, "END_SESSIONS_S", 0.1)
                    monkeypatch.setattr(Transport, "exchange", _refuse_connection)
            assert kv._transport.is_closed
            assert servers[0].node.store.session_count == 1

    run(scenario)


def test_the_synchronous_client_ends_its_sessions_too() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers:
            servers[0].node.raise_feature_level()

            def write() -> int:
                with SyncClient([servers[0].url]) as kv:
                    kv.put("k", "v")
                    return servers[0].node.store.session_count

            assert await asyncio.to_thread(write) == 1
            assert servers[0].node.store.session_count == 0

    run(scenario)
