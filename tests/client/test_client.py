"""The client against real HTTP front ends over fake nodes: redirects, failover, retries, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from fronts.fake_node import CLUSTER, FakeNode, Server, client_id_of, make_config, serving
from serving import stream_server
from waiting import until

from kvorum.errors import NoLeaderError, ReadTimeoutError
from kvorum.errors import NoSpaceError as ServerNoSpace
from kvorum.errors import OutcomeUnknownError as ServerOutcomeUnknown
from kvorum.kv.commands import ClientCommand, Put, Result
from kvorum.kv.store import Store
from kvorum_client import (
    BackupDamagedError,
    Client,
    CompareFailedError,
    InvalidArgumentError,
    NoSpaceError,
    OutcomeUnknownError,
    RefusedError,
    SyncClient,
    UnavailableError,
)
from kvorum_client.calls import Caller
from kvorum_client.cluster_calls import ClusterCalls
from kvorum_client.sessions import LANES_MAX, WINDOW, Sessions
from kvorum_client.streams import Streams
from kvorum_client.transport import Answer, NoAnswerError, Transport


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(main())


@contextlib.asynccontextmanager
async def cluster(count: int = 3) -> AsyncIterator[list[Server]]:
    """Serve fake nodes that share one store; the first leads."""
    async with contextlib.AsyncExitStack() as stack:
        store = Store()
        servers = []
        for i in range(1, count + 1):
            node = FakeNode(make_config(name=f"n{i}"))
            node.store = store
            servers.append(await stack.enter_async_context(serving(node)))
        elect(servers, 0)
        yield servers


def elect(servers: list[Server], leader: int) -> None:
    for i, server in enumerate(servers):
        server.node.follow(f"n{leader + 1}", servers[leader].url)
        server.node.leads = i == leader


def depose(servers: list[Server]) -> None:
    for server in servers:
        server.node.leads, server.node.leader = False, None


def test_put_get_delete_and_their_results() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            assert await kv.get("k") is None
            put = await kv.put("k", "é")
            assert (put.revision, put.create_revision, put.mod_revision, put.version) == (1, 1, 1, 1)
            record = await kv.get(b"k")
            assert record is not None
            assert (record.key, record.value, record.revision, record.staleness_ms) == (b"k", "é".encode(), 1, None)
            assert (await kv.delete("k")).deleted == 1
            assert (await kv.delete("k")).deleted == 0

    run(scenario)


@pytest.mark.parametrize(
    "key", [b"a/b", b"%2F", b".", b"..", b"\x00\xff", b"a?b#c", b" +&=", "é".encode(), b"x" * 1024]
)
def test_every_key_arrives_as_it_is(key: bytes) -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            await kv.put(key, b"v")
            assert servers[0].node.proposed_keys[0] == key
            record = await kv.get(key)
            assert record is not None and record.value == b"v"

    run(scenario)


def test_a_redirect_is_followed_and_remembered() -> None:
    async def scenario() -> None:
        async with cluster() as servers, Client([servers[2].url]) as kv:
            await kv.put("k", "1")
            await kv.put("k", "2")
            assert len(servers[0].node.proposed) == 2
            assert servers[2].node.counters.redirects == 1

    run(scenario)


def test_a_dead_endpoint_is_passed_over() -> None:
    async def scenario() -> None:
        async with cluster() as servers, Client(["127.0.0.1:1", servers[1].url]) as kv:
            assert (await kv.put("k", "v")).revision == 1
            record = await kv.get("k")
            assert record is not None

    run(scenario)


def test_a_write_during_an_election_waits_for_the_new_leader() -> None:
    async def scenario() -> None:
        async with cluster() as servers, Client([s.url for s in servers]) as kv:
            await kv.put("k", "1")
            depose(servers)
            for server in servers:
                server.node.error = NoLeaderError("no leader")
            writing = asyncio.create_task(kv.put("k", "2"))
            await until(
                "a node refused the write",
                lambda: any(status == 503 for s in servers for _, status in s.node.counters.requests),
            )
            for server in servers:
                server.node.error = None
            elect(servers, 2)
            assert (await writing).revision == 2

    run(scenario)


def test_a_write_whose_answer_was_lost_is_retried_and_applied_once() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            node = servers[0].node
            await kv.put("k", "0")
            apply = node.propose
            lost: list[ClientCommand] = []

            async def propose_and_lose_the_first_answer(command, timeout_ms, address="", **_):  # type: ignore[no-untyped-def]
                result = await apply(command, timeout_ms)
                if not lost:
                    lost.append(command)
                    raise ServerOutcomeUnknown("the leader lost its quorum")
                return result

            node.propose = propose_and_lose_the_first_answer  # type: ignore[method-assign]
            result = await kv.put("k", "1")
            assert result.revision == node.store.revision == 2
            assert node.proposed[-1] == node.proposed[-2] == lost[0]

    run(scenario)


@contextlib.asynccontextmanager
async def cutting_server(requests: list[bytes], cut_at: int, body: bytes) -> AsyncIterator[str]:
    """Serve ``body`` to every request but the one numbered ``cut_at``: there the connection ends without an answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                await reader.readexactly(int(length or b"0"))
                requests.append(head)
                if len(requests) == cut_at:
                    return
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with stream_server(serve) as address:
        yield address


def test_a_connection_cut_in_the_middle_of_a_write_is_not_two_writes() -> None:
    async def scenario() -> None:
        requests: list[bytes] = []
        body = b'{"revision":1,"create_revision":1,"mod_revision":1,"version":1}'
        async with cutting_server(requests, 2, body) as endpoint, Client([endpoint], cluster_id=CLUSTER) as kv:
            await kv.put("k", "1")
            await kv.put("k", "2")
            keys = [head.split(b"Idempotency-Key: ")[1].split(b"\r\n")[0] for head in requests]
            client_id = keys[0].split(b"/")[0]
            assert keys == [client_id + b"/1", client_id + b"/2", client_id + b"/2"]

    run(scenario)


def test_what_cannot_be_repeated_is_not_repeated_by_the_http_library_either() -> None:
    """Aiohttp repeats PUT and DELETE by itself when a kept-alive connection breaks, unless it is told not to."""

    async def scenario() -> None:
        requests: list[bytes] = []
        body = b'{"members":[]}'
        async with cutting_server(requests, 2, body) as endpoint, Client([endpoint], cluster_id=CLUSTER) as kv:
            await kv.members()
            with pytest.raises(OutcomeUnknownError):
                await kv.remove_member("n3")
            assert len(requests) == 2

    run(scenario)


def answering(status: int, code: str, detail: str, outcome: str) -> Callable[..., Awaitable[Answer]]:
    """Return an exchange that answers at once, so that no attempt is under way when the deadline passes."""

    async def exchange(*arguments: object) -> Answer:
        return Answer(status, {}, msgspec.json.encode({"code": code, "detail": detail, "outcome": outcome}))

    return exchange


def test_a_deadline_with_nothing_sent_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with Client(["127.0.0.1:1"], timeout_s=0.3) as kv:
            with pytest.raises(UnavailableError, match="refused"):
                await kv.put("k", "v")
            with pytest.raises(UnavailableError):
                await kv.get("k")
        monkeypatch.setattr(Transport, "exchange", answering(503, "no_leader", "nobody leads", "refused"))
        async with Client(["127.0.0.1:1"], timeout_s=0.3) as kv:
            with pytest.raises(UnavailableError, match="nobody leads"):
                await kv.put("k", "v")

    run(scenario)


def test_a_deadline_with_something_sent_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            # It has a connection, and knows the cluster: what it does in the short time of a call is to send it.
            await kv.put("k", "u")
            servers[0].node.gate = asyncio.Event()
            with pytest.raises(OutcomeUnknownError):
                await kv.put("k", "v", timeout_s=0.4)
            with pytest.raises(UnavailableError):
                await kv.get("k", timeout_s=0.4)
            servers[0].node.gate.set()
        monkeypatch.setattr(Transport, "exchange", answering(504, "outcome_unknown", "lost the quorum", "unknown"))
        async with Client(["127.0.0.1:1"], timeout_s=0.3) as kv:
            with pytest.raises(OutcomeUnknownError, match="lost the quorum"):
                await kv.put("k", "v")
            with pytest.raises(UnavailableError):
                await kv.get("k")

    run(scenario)


def test_a_node_that_hangs_leaves_time_for_another() -> None:
    async def scenario() -> None:
        async with cluster(2) as servers, Client([s.url for s in servers], timeout_s=2) as kv:
            servers[0].node.gate = asyncio.Event()
            elect(servers, 1)
            record = await kv.put("k", "v")
            assert record.revision == 1
            assert (await kv.get("k")) is not None
            servers[0].node.gate.set()

    run(scenario)


def test_a_failed_compare_tells_where_the_key_is() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            await kv.put("k", "1", prev_revision=0)
            with pytest.raises(CompareFailedError) as caught:
                await kv.put("k", "2", prev_revision=0)
            assert (caught.value.mod_revision, caught.value.revision) == (1, 1)
            await kv.put("k", "2", prev_revision=1)

    run(scenario)


def test_a_refusal_is_not_repeated() -> None:
    async def scenario() -> None:
        async with cluster(2) as servers, Client([s.url for s in servers], cluster_id=CLUSTER) as kv:
            with pytest.raises(RefusedError) as caught:
                await kv.put("k" * 1025, "v")
            assert (caught.value.status, caught.value.code) == (413, "too_large")
            assert sum(n for s in servers for n in s.node.counters.requests.values()) == 1

    run(scenario)


FULL = ServerNoSpace("the data takes 9 of 8 bytes", reason="quota", limit=8, used=9)


def test_a_cluster_without_room_is_asked_once_and_says_how_full_it_is() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url], cluster_id=CLUSTER) as kv:
            servers[0].node.error = FULL
            with pytest.raises(NoSpaceError) as caught:
                await kv.put("k", "v")
            error = caught.value
            assert (error.status, error.code, error.reason) == (507, "no_space", "quota")
            assert (error.limit, error.used, str(error)) == (8, 9, "the data takes 9 of 8 bytes")
            assert sum(servers[0].node.counters.requests.values()) == 1

    run(scenario)


def test_no_room_after_a_try_without_an_answer_makes_the_outcome_unknown() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            node = servers[0].node
            apply = node.propose

            async def lose_then_refuse(
                command: ClientCommand, timeout_ms: int, address: str = "", **_: object
            ) -> Result:
                await apply(command, timeout_ms, address)
                node.error = FULL
                raise ServerOutcomeUnknown("no quorum answered in time")

            node.propose = lose_then_refuse  # type: ignore[method-assign]
            with pytest.raises(OutcomeUnknownError):
                await kv.put("k", "v")

    run(scenario)


def test_the_first_write_of_a_session_goes_alone_and_the_others_follow() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            node = servers[0].node
            node.gate = asyncio.Event()
            writes = [asyncio.create_task(kv.put(f"k{i}", "v")) for i in range(50)]
            await until("the node has a request", lambda: bool(node.timeouts_ms))
            assert (len(node.timeouts_ms), node.counters.inflight) == (1, 1)
            node.gate.set()
            await asyncio.gather(*writes)
            assert {client_id_of(command) for command in node.proposed} == {client_id_of(node.proposed[0])}
            assert sorted(each.sequence for each in node.proposed if isinstance(each, Put)) == list(range(1, 51))

    run(scenario)


def test_no_lane_runs_further_ahead_than_the_cluster_remembers() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        async with contextlib.AsyncExitStack() as stack:
            async with sessions.ticket(1) as first:
                first.answered = True
            oldest = await stack.enter_async_context(sessions.ticket(1))
            for _ in range(WINDOW - 1):
                async with sessions.ticket(1) as ticket:
                    assert ticket.lane is oldest.lane
            async with sessions.ticket(1) as ticket:
                assert ticket.lane is not oldest.lane
                assert ticket.sequence == 1

    run(scenario)


def test_writes_beyond_every_lane_wait_for_room() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(LANES_MAX):
                async with sessions.ticket(1) as ticket:
                    ticket.answered = True
                held = [await stack.enter_async_context(sessions.ticket(1)) for _ in range(WINDOW)]
                assert {t.lane for t in held} == {ticket.lane}
            with pytest.raises(TimeoutError):
                async with sessions.ticket(0.01):
                    pass

    run(scenario)


def test_a_session_that_was_never_answered_is_not_built_upon() -> None:
    async def scenario() -> None:
        sessions = Sessions()
        async with sessions.ticket(1) as first:
            pass
        async with sessions.ticket(1) as second:
            assert second.lane is not first.lane
            assert second.sequence == 1

    run(scenario)


def test_a_session_that_the_cluster_forgot_is_replaced_without_the_caller_noticing() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            await kv.put("k", "1")
            servers[0].node.store = Store()
            assert (await kv.put("k", "2")).revision == 1
            ids = [client_id_of(command) for command in servers[0].node.proposed]
            assert ids[0] == ids[1] != ids[2]

    run(scenario)


def test_a_session_lost_after_a_try_makes_the_outcome_unknown() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            node = servers[0].node
            await kv.put("k", "1")
            apply, tries = node.propose, []

            async def forget_after_the_first_try(command, timeout_ms, address="", **_):  # type: ignore[no-untyped-def]
                tries.append(command)
                if len(tries) == 1:
                    node.store = Store()
                    raise ServerOutcomeUnknown("the answer is lost")
                return await apply(command, timeout_ms)

            node.propose = forget_after_the_first_try  # type: ignore[method-assign]
            with pytest.raises(OutcomeUnknownError):
                await kv.put("k", "2")

    run(scenario)


def test_a_stale_read_takes_what_the_node_at_hand_has() -> None:
    async def scenario() -> None:
        async with cluster() as servers, Client([servers[1].url]) as kv:
            await kv.put("k", "v")
            servers[1].node.staleness = 7
            record = await kv.get("k", stale=True)
            assert record is not None and record.staleness_ms == 7
            assert servers[1].node.barriers == servers[0].node.barriers == 0

    run(scenario)


def test_a_read_too_stale_at_one_node_is_asked_of_another() -> None:
    async def scenario() -> None:
        async with cluster(2) as servers, Client([s.url for s in servers]) as kv:
            await kv.put("k", "v")
            servers[0].node.staleness, servers[1].node.staleness = 5000, 3
            servers[0].node.error = ReadTimeoutError("no quorum")
            record = await kv.get("k", max_staleness_ms=100)
            assert record is not None and record.staleness_ms == 3

    run(scenario)


def test_a_leader_that_only_its_peers_can_reach_is_reached_through_them() -> None:
    async def scenario() -> None:
        async with cluster(2) as servers, Client([servers[1].url]) as kv:
            # As through a port-forward: the hint names a host that means nothing here...
            servers[1].node.follow("n1", "http://127.0.0.1:1")
            forward = servers[1].node.leader_client_url
            answers = iter(["http://127.0.0.1:1"])
            # ... and the node itself can reach its leader.
            servers[1].node.leader_client_url = lambda: next(answers, servers[0].url)  # type: ignore[method-assign]
            assert forward() == "http://127.0.0.1:1"
            assert (await kv.put("k", "v")).revision == 1

    run(scenario)


def test_two_nodes_that_name_each_other_do_not_make_the_client_spin() -> None:
    async def scenario() -> None:
        async with cluster(2) as servers, Client([servers[0].url], timeout_s=0.4) as kv:
            servers[0].node.follow("n2", servers[1].url)
            servers[1].node.follow("n1", servers[0].url)
            # Unknown, if the deadline fell into an attempt.
            with pytest.raises((UnavailableError, OutcomeUnknownError)):
                await kv.put("k", "v")
            assert sum(s.node.counters.redirects for s in servers) < 100

    run(scenario)


def test_a_node_behind_a_name_that_cannot_help_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            healthy = await stack.enter_async_context(serving(FakeNode()))
            isolated = FakeNode(msgspec.structs.replace(make_config(), listen_client=f"127.0.0.2:{healthy.port}"))
            isolated.error = NoLeaderError("cut off from the others")
            await stack.enter_async_context(serving(isolated))
            loop = asyncio.get_running_loop()
            real = loop.getaddrinfo

            async def getaddrinfo(host, port, **options):  # type: ignore[no-untyped-def]
                if host != "kv-headless":
                    return await real(host, port, **options)
                return await real("127.0.0.2", port, **options) + await real("127.0.0.1", port, **options)

            monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
            async with Client([f"kv-headless:{healthy.port}"], timeout_s=5) as kv:
                assert (await kv.put("k", "v")).revision == 1
                assert isolated.counters.requests["put", 503] == 1

    run(scenario)


def test_status_health_and_members() -> None:
    async def scenario() -> None:
        async with cluster() as servers, Client([servers[1].url]) as kv:
            status = await kv.status()
            assert (status.name, status.state, status.leader_name) == ("n2", "follower", "n1")
            assert (await kv.status(servers[0].url)).state == "leader"
            health = await kv.health(servers[0].url)
            assert health.ready and "[+]leader ok" in health.detail
            assert not (await kv.health("127.0.0.1:1")).ready
            assert [m.name for m in await kv.members()] == ["n1", "n2", "n3"]
            added = await kv.add_member("n4", "http://127.0.0.1:9004", "http://127.0.0.1:8004")
            assert [(m.name, m.voter) for m in added][-1] == ("n4", False)
            assert (await kv.promote_member("n4"))[-1].voter
            assert [m.name for m in await kv.remove_member("n4")] == ["n1", "n2", "n3"]
            assert (await kv.add_member("n5", "http://127.0.0.1:9005"))[-1].name == "n5"
            with pytest.raises(RefusedError):
                await kv.remove_member("n9")
            assert await kv.move_leader("n3") == "n3"
            assert servers[0].node.calls == [("transfer", "n3")]

    run(scenario)


def test_a_membership_change_without_an_answer_is_unknown_and_not_repeated() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            servers[0].node.error = ServerOutcomeUnknown("who knows")
            with pytest.raises(OutcomeUnknownError):
                await kv.remove_member("n3")
            assert len(servers[0].node.timeouts_ms) == 1

    run(scenario)


@pytest.mark.parametrize("endpoint", ["", "http://", "ftp://x:1", "http://u@h:1", "http://h:1/path", "h:99999", "h:x"])
def test_a_malformed_endpoint_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Client([endpoint])


def test_mistakes_are_found_before_anything_is_sent() -> None:
    async def scenario() -> None:
        async with Client(["127.0.0.1:1"]) as kv:
            with pytest.raises(InvalidArgumentError):
                await kv.put("", "v")
            with pytest.raises(InvalidArgumentError):
                await kv.put("k", 3)  # type: ignore[arg-type]
            with pytest.raises(InvalidArgumentError):
                await kv.get("k", timeout_s=0)

    run(scenario)


def test_the_synchronous_twin_has_the_same_methods_and_does_the_same() -> None:
    kinds = (Client, ClusterCalls, Streams, Caller)
    public = {name for kind in kinds for name in vars(kind) if not name.startswith("_")} - {"endpoints"}
    assert public == {name for name in vars(SyncClient) if not name.startswith("_")}

    async def scenario() -> None:
        async with cluster(1) as servers:

            def use() -> None:
                with SyncClient([servers[0].url]) as kv:
                    kv.put("k", "v")
                    record = kv.get("k")
                    assert record is not None and record.value == b"v"
                    with pytest.raises(CompareFailedError):
                        kv.delete("k", prev_revision=9)
                    assert kv.delete("k").deleted == 1
                    assert kv.status().name == "n1"
                kv.close()

            await asyncio.to_thread(use)

    run(scenario)


def test_a_backup_that_broke_off_is_not_one_and_nothing_else_is_asked_for_the_rest() -> None:
    async def scenario() -> None:
        async with cluster(2) as servers, Client([servers[0].url, servers[1].url]) as kv:
            servers[0].node.backup_chunks = [b"KVORSNAP", ConnectionAbortedError("the disk is gone")]
            pieces: list[bytes] = []
            with pytest.raises(BackupDamagedError, match="broke off after 8 bytes"):
                await kv.backup(lambda chunk, size: pieces.append(chunk))
            assert pieces == [b"KVORSNAP"]
            assert servers[1].node.backups == []

    run(scenario)


def test_a_backup_is_taken_from_the_next_node_when_one_cannot_give_it() -> None:
    async def scenario() -> None:
        async with cluster(2) as servers, Client([servers[0].url, servers[1].url]) as kv:
            servers[0].node.error = NoLeaderError("no quorum")
            servers[1].node.backup_chunks = [b"not a backup"]
            with pytest.raises(BackupDamagedError, match="not a backup"):
                await kv.backup(lambda chunk, size: None)
            assert len(servers[1].node.backups) == 1

    run(scenario)


def test_what_the_writer_of_a_backup_raises_is_its_own() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            servers[0].node.backup_chunks = [b"KVORSNAP", b"more"]

            def write(chunk: bytes, size: int) -> None:
                raise BrokenPipeError

            with pytest.raises(BrokenPipeError):
                await kv.backup(write)
            await until("the backup is closed", lambda: servers[0].node.backups[0].closed == 1)

    run(scenario)


def test_a_leader_that_froze_is_given_up_once_the_others_have_another() -> None:
    async def scenario() -> None:
        # An attempt may take 50 s, which is longer than this test.
        async with cluster() as servers, Client([s.url for s in servers], timeout_s=200) as kv:
            await kv.put("k", "1")
            frozen = servers[0].node.gate = asyncio.Event()
            writing, reading = asyncio.create_task(kv.put("k", "2")), asyncio.create_task(kv.get("k"))
            await until("the node has both requests", lambda: len(servers[0].node.timeouts_ms) == 3)
            for server in servers[1:]:
                server.node.follow("n2", servers[1].url)
                server.node.leads = server is servers[1]
            assert (await writing).version == 2
            assert (await reading) is not None
            frozen.set()

    run(scenario)


def test_a_leader_that_is_slow_is_waited_for_while_nobody_names_another() -> None:
    async def scenario() -> None:
        async with cluster() as servers, Client([s.url for s in servers], timeout_s=200) as kv:
            await kv.put("k", "1")
            slow = servers[0].node.gate = asyncio.Event()
            writing = asyncio.create_task(kv.put("k", "2"))
            await until("the client asks for the leader", lambda: servers[1].node.counters.requests["leader", 200] >= 3)
            slow.set()
            assert (await writing).version == 2
            assert len(servers[0].node.proposed) == 2, "the write was sent twice"

    run(scenario)


@pytest.mark.parametrize("size_bytes", [1024 * 1024, 1024 * 1024 + 1, 3 * 1024 * 1024])
def test_a_large_value_is_sent_without_a_warning(size_bytes: int) -> None:
    """Warnings are errors in these tests. A value that is too large is the node's to refuse."""

    async def scenario() -> None:
        async with cluster(1) as servers, Client([servers[0].url]) as kv:
            value = b"v" * size_bytes
            if size_bytes > 1024 * 1024:
                with pytest.raises(RefusedError) as caught:
                    await kv.put("k", value)
                assert caught.value.code == "too_large"
            else:
                await kv.put("k", value)
                record = await kv.get("k")
                assert record is not None and record.value == value

    run(scenario)


def test_a_closed_client_says_that_another_one_is_needed() -> None:
    async def scenario() -> None:
        async with cluster(1) as servers:
            kv = Client([servers[0].url])
            await kv.close()
            with pytest.raises(UnavailableError, match=r"^the client is closed; make a new one$"):
                await kv.put("k", "v")
            with pytest.raises(UnavailableError, match=r"^the client is closed; make a new one$"):
                await kv.backup(lambda chunk, size_bytes: None)
            sync = SyncClient([servers[0].url])
            sync.close()
            with pytest.raises(UnavailableError, match=r"^the client is closed; make a new one$"):
                sync.get("k")

    run(scenario)


def test_an_attempt_that_the_end_of_the_call_cuts_short_does_not_hide_why_an_earlier_one_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last attempt has milliseconds, and a machine that is busy makes nothing of them."""
    reasons = iter(["connection refused"])

    async def exchange(self: Transport, *call: Any) -> Answer:
        reason = next(reasons, None)
        await asyncio.sleep(0.2 if reason else call[-1])
        raise NoAnswerError(reason or "no answer in time")

    monkeypatch.setattr(Transport, "exchange", exchange)

    async def scenario() -> None:
        async with Client(["127.0.0.1:1"], timeout_s=0.3) as client:
            with pytest.raises(UnavailableError, match="connection refused"):
                await client.get("k")
        async with Client(["127.0.0.1:1"], timeout_s=0.3) as client:
            with pytest.raises(UnavailableError, match="no answer in time"):
                await client.get("k")

    run(scenario)
