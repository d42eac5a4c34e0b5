"""What locks and elections take of a node is bounded, whoever waits for them and for how long."""

from __future__ import annotations

import asyncio
import gc
import sys
from time import perf_counter
from typing import Any
from weakref import ref

import pytest
from fronts.fake_node import FakeNode, Server, make_config
from fronts.lock_support import held, lock, run, waiting
from waiting import until

from kvorum.kv.commands import LeaseGrant, Txn, encode_batch
from kvorum.kv.operations import LeasedPutOp
from kvorum.kv.store import Store
from kvorum.raft.messages import EntryKind
from kvorum.service import Service, locks, queues
from kvorum.service.access import ANONYMOUS
from kvorum.service.limits import ELECTION_VALUE_BYTES_MAX as VALUE_BYTES
from kvorum.service.limits import LOCK_PLACES_MAX
from kvorum.service.queues import Queues
from kvorum.service.requests import AcquireLock, ListLocks

MIB = 1024 * 1024


async def campaign_slowly(http: Server, lease: int) -> asyncio.StreamWriter:
    """Campaign with a value of two bytes, which arrives later and in a chunk: its length is not known before."""
    _, writer = await asyncio.open_connection("127.0.0.1", http.port)
    head = f"POST /v1/elections/a?lease={lease}&wait_ms=60000 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    await until("the body is awaited", lambda: http.body_bytes > 0)
    writer.write(b"2\r\nhi\r\n0\r\n\r\n")
    return writer


def test_a_campaign_that_waits_takes_nothing_of_what_bodies_may_take() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1, kind="elections")
        writers = []
        for count, lease in enumerate((2, 3, 4), start=2):
            writers.append(await campaign_slowly(http, lease))
            await waiting(http, count, "_elections")
            assert http.body_bytes == 0
        assert (await http("PUT", "/v1/kv/k", b"v" * MIB)).status == 200
        for writer in writers:
            writer.close()

    run(scenario, FakeNode(make_config(inflight_bytes_max=2 * MIB)))


def test_of_those_whose_time_ends_together_each_gives_its_place_up_in_one_step() -> None:
    """Those before it have just done so: it is not the first one while the holder's place stands."""

    async def scenario(http: Server) -> None:
        await lock(http, 1)
        propose, count = http.node.propose, 0
        batch: list[tuple[Any, Any, asyncio.Future[Any]]] = []

        async def propose_in_batches(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > 6:
                return await propose(*args, **options)
            batch.append((args, options, asyncio.get_running_loop().create_future()))
            answer = batch[-1][2]
            if len(batch) == 3:
                results = [await propose(*each, **its_options) for each, its_options, _ in batch]
                for (_, _, waiter), result in zip(batch, results, strict=True):
                    waiter.set_result(result)
                batch.clear()
            return await answer

        http.node.propose = propose_in_batches  # type: ignore[method-assign]
        service = Service(http.node, perf_counter)
        attempts = [
            service.execute(ANONYMOUS, AcquireLock("lock", b"a", each, wait_ms=20 * each)) for each in (2, 3, 4)
        ]
        errors = await asyncio.gather(*attempts, return_exceptions=True)
        assert [getattr(each, "code", each) for each in errors] == ["lock_held"] * 3
        assert held(http) == [b"_locks/a/1"]
        assert count == 6, "three puts, three deletions"

    run(scenario)


def test_a_body_without_a_length_keeps_what_it_has_and_no_more() -> None:
    async def scenario(http: Server) -> None:
        http.node.gate = asyncio.Event()
        writer = await campaign_slowly(http, 1)
        await until("only the value counts", lambda: http.body_bytes == 2)
        http.node.gate.set()
        await until("it is elected", lambda: held(http, kind="_elections") != [])
        await until("it is answered", lambda: http.body_bytes == 0)
        writer.close()

    run(scenario)


def test_a_campaign_that_waits_does_not_keep_its_value() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1, kind="elections")
        value = b"v" * 1000 + b"%d" % http.port
        before = sys.getrefcount(value)
        service = Service(http.node, perf_counter)
        attempt = asyncio.ensure_future(
            service.execute(ANONYMOUS, AcquireLock("election", b"a", 2, value, wait_ms=60_000))
        )
        await waiting(http, 2, "_elections")
        http.node.proposed.clear()
        assert sys.getrefcount(value) == before
        attempt.cancel()
        await asyncio.wait({attempt})

    run(scenario)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_the_value_of_an_election_is_bounded(method: str) -> None:
    async def scenario(http: Server) -> None:
        if method == "PUT":
            await lock(http, 1, kind="elections")
        revision = http.node.store.revision
        refused = await http(method, "/v1/elections/a?lease=1", b"v" * (VALUE_BYTES + 1))
        assert (refused.status, refused.json["code"], refused.json["limit"]) == (413, "too_large", VALUE_BYTES)
        assert "the value of an election" in refused.json["detail"]
        assert http.node.store.revision == revision
        assert (await http(method, "/v1/elections/a?lease=1", b"v" * VALUE_BYTES)).status == 200

    run(scenario)


def test_values_and_other_keys_do_not_make_an_election_unusable() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1, kind="elections")
        for number in range(5):
            await http("PUT", f"/v1/kv/_elections%2Fa%2Fjunk{number}", b"v" * MIB)
        for lease in (2, 3, 4):
            await http("POST", "/v1/leases", b'{"ttl_s": 10, "id": "%x"}' % lease)
            await http("PUT", f"/v1/kv/_elections%2Fa%2F{lease:x}?lease={lease:x}", b"v" * MIB)
        got = await http("GET", "/v1/elections/a")
        # The waiters are as many as their values leave room for; their number is that of all.
        assert (got.status, got.json["waiter_count"], got.json.get("waiters")) == (200, 3, [got.json["waiters"][0]])
        assert (await http("GET", "/v1/elections")).json["elections"][0]["waiter_count"] == 3
        assert (await http("PUT", "/v1/elections/a?lease=1", b"uno")).status == 200
        assert (await lock(http, 4, kind="elections")).json["code"] == "lock_held"

    run(scenario)


def put_places(http: Server, prefix: str, count: int) -> None:
    """Put places of as many leases, in a few entries."""
    for first in range(100, 100 + count, 1000):
        leases = range(first, min(first + 1000, 100 + count))
        commands: list[Any] = [LeaseGrant(each, 1000, 0) for each in leases]
        commands += [Txn(then=(LeasedPutOp(f"{prefix}/{each:x}".encode(), b"", lease=each),)) for each in leases]
        http.node._apply(EntryKind.COMMAND, encode_batch(http.node.store.time_ms, commands))


def test_a_lock_has_so_many_places_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        put_places(http, "_locks/a", 3)
        monkeypatch.setattr(locks, "LOCK_PLACES_MAX", 3)
        refused = await lock(http, 1, 9000)
        assert (refused.status, refused.json["code"], refused.json["outcome"]) == (413, "too_large", "refused")
        assert len(held(http)) == 3
        http.node.revoke(100)
        waiter = asyncio.create_task(lock(http, 1, 9000))
        await until("it has a place", lambda: len(held(http)) == 3)
        # Who has a place keeps it, also if there is none left.
        again = asyncio.create_task(lock(http, 1, 9000))
        http.node.revoke(101)
        http.node.revoke(102)
        assert (await waiter).status == (await again).status == 200

    run(scenario)


def test_a_lock_can_be_had_however_many_there_are_below_its_name() -> None:
    async def scenario(http: Server) -> None:
        put_places(http, "_locks/a/b", 2 * queues.SLICE_KEYS)
        assert (await lock(http, 1)).status == 200
        assert (await http("GET", "/v1/locks/a")).json["holder"]["lease"] == "1"
        listed = (await http("GET", "/v1/locks")).json["locks"]
        assert [(each["name"], each["waiter_count"]) for each in listed] == [
            ("a", 0),
            ("a/b", 2 * queues.SLICE_KEYS - 1),
        ]

    run(scenario)


def test_too_many_keys_that_are_no_places_are_refused_before_a_place_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        monkeypatch.setattr(queues, "SLICE_KEYS", 2)
        monkeypatch.setattr(queues, "QUEUE_KEYS_MAX", 4)
        for number in range(5):
            await http("PUT", f"/v1/kv/_locks%2Fa%2Fjunk{number}", b"")
        revision = http.node.store.revision
        refused = await lock(http, 1, 9000)
        assert (refused.status, refused.json["code"], refused.json["outcome"]) == (413, "too_large", "refused")
        assert http.node.store.revision == revision

    run(scenario)


def test_many_locks_with_longer_names_keep_nobody_from_a_lock() -> None:
    async def scenario(http: Server) -> None:
        http.node.put_all(b"_locks/a/%d/1" % number for number in range(2 * LOCK_PLACES_MAX + 1))
        assert (await lock(http, 1)).status == 200
        assert (await lock(http, 2)).json["code"] == "lock_held"
        shown = (await http("GET", "/v1/locks/a")).json
        assert (shown["holder"]["lease"], shown["waiter_count"]) == ("1", 0)

    run(scenario)


def test_a_queue_is_read_once_for_all_who_look_at_it_at_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else thousands whose time is over at once stop the node for seconds."""

    async def scenario(http: Server) -> None:
        read: list[bytes] = []
        places = Queues._places

        def counted(self: Queues, prefix: bytes) -> Any:
            read.append(prefix)
            return places(self, prefix)

        await lock(http, 1)
        monkeypatch.setattr(Queues, "_places", counted)
        for path in 2 * ["/v1/locks/a", "/v1/locks/a?forward=true"]:
            assert (await http("GET", path)).json["holder"]["lease"] == "1"
        assert read == [b"_locks/a/"]
        http.node.remove(b"_locks/a/1")
        assert (await http("GET", "/v1/locks/a")).json["holder"] is None
        assert (await http("GET", "/v1/locks/b")).json["holder"] is None
        assert read == [b"_locks/a/", b"_locks/a/", b"_locks/b/"]

    run(scenario)


def test_a_queue_that_was_read_does_not_keep_a_state_that_was_replaced() -> None:
    async def scenario(http: Server) -> None:
        await lock(http, 1)
        assert (await http("GET", "/v1/locks/a")).json["holder"]["lease"] == "1"
        left = http.node.store.give_up()
        before, http.node.store = ref(http.node.store), left
        # It has the same revision, and no places.
        assert (await http("GET", "/v1/locks/a")).json["holder"] is None
        gc.collect()
        assert before() is None

    run(scenario)


def test_a_list_comes_in_pages_by_name() -> None:
    async def scenario(http: Server) -> None:
        for name in ("a", "a%2Fb", "a0", "%FF", "b"):
            await lock(http, 1, name=name)
        whole = (await http("GET", "/v1/locks")).json
        names = [each.get("name", each.get("name_base64")) for each in whole["locks"]]
        assert (names, whole["more"]) == (["a", "a/b", "a0", "b", "/w=="], False)
        first = (await http("GET", "/v1/locks?limit=2")).json
        assert ([each["name"] for each in first["locks"]], first["more"]) == (["a", "a/b"], True)
        second = (await http("GET", "/v1/locks?limit=3&after=a/b")).json
        assert ([each.get("name") for each in second["locks"]], second["more"]) == (["a0", "b", None], False)
        assert (await http("GET", "/v1/locks?after64=/w==")).json["locks"] == []
        assert (await http("GET", "/v1/locks?limit=0")).status == 400

    run(scenario)


def test_a_page_of_elections_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        monkeypatch.setattr(queues, "LOCK_LIST_BYTES_MAX", 30)
        for name in ("a", "b", "c"):
            await http("POST", f"/v1/elections/{name}?lease=1", b"v" * 20)
        page = (await http("GET", "/v1/elections")).json
        assert ([each["name"] for each in page["elections"]], page["more"]) == (["a"], True)

    run(scenario)


def test_a_list_is_at_one_revision_and_lets_others_have_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(http: Server) -> None:
        monkeypatch.setattr(queues, "SLICE_KEYS", 1)
        monkeypatch.setattr(queues, "LIST_KEYS_MAX", 10)
        await lock(http, 1)
        await lock(http, 2, name="b")
        pin = Store.pin

        def pin_and_remove(store: Store, **options: Any) -> Any:
            asyncio.get_running_loop().call_soon(http.node.remove, b"_locks/b/2")
            return pin(store, **options)

        monkeypatch.setattr(Store, "pin", pin_and_remove)
        service = Service(http.node, perf_counter)
        listed = await service.execute(ANONYMOUS, ListLocks("lock"))
        assert held(http, "b") == []
        assert [each.name for each in listed.locks] == [b"a", b"b"]
        monkeypatch.setattr(queues, "LIST_KEYS_MAX", 1)
        assert (await http("GET", "/v1/locks")).json["code"] == "too_large"

    run(scenario)
