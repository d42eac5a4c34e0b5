"""``Service.execute``: what each request means, whichever front it comes from."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from fronts.fake_node import FakeNode, make_config

import kvorum
import kvorum.errors
import kvorum.service.service as service_module
from kvorum.errors import (
    CallerError,
    CompareFailedError,
    InvalidRequestError,
    LeaseError,
    LockError,
    MembershipRefusedError,
    NoLeaderError,
    NoSpaceError,
    NotLeaderError,
    NotServingError,
    OutcomeUnknownError,
    OverloadedError,
    ReadTimeoutError,
    SessionError,
    TooLargeError,
    TooStaleError,
    TransferFailedError,
)
from kvorum.kv.commands import ClientCommand, Result, SessionRefused
from kvorum.kv.store import Store
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS, Principal, authorize
from kvorum.service.limits import HISTORY_VERSIONS_MAX, KEY_BYTES_MAX, STALENESS_MS_MAX, VALUE_BYTES_MAX
from kvorum.service.outcomes import OUTCOMES, SESSION_REASONS
from kvorum.service.requests import (
    AcquireLock,
    AddMember,
    Batch,
    BatchItem,
    CheckLiveness,
    CheckReadiness,
    Compact,
    Delete,
    EndSession,
    FinalizeUpgrade,
    Get,
    GetHistory,
    GetLeader,
    GetLease,
    GetLock,
    GetMetrics,
    GetQuota,
    GetStateHash,
    GetStatus,
    GetVersion,
    GrantLease,
    ListLeases,
    ListLocks,
    ListMembers,
    ProclaimLeader,
    PromoteMember,
    Put,
    PutOp,
    PutWithOptions,
    Range,
    RangeQuery,
    ReleaseLock,
    RemoveMember,
    RenewLease,
    Request,
    RevokeLease,
    SetQuota,
    Snapshot,
    TransferLeadership,
    Txn,
    Watch,
)
from kvorum.service.results import (
    Checks,
    DeleteResult,
    FeatureLevel,
    GetResult,
    Leader,
    Members,
    NewLeader,
    PutResult,
    Quota,
    StateHash,
)

LEADER = "http://127.0.0.1:1"
FOR_THE_LEADER: list[Request] = [
    Put(b"k", b"v"),
    Delete(b"k"),
    PutWithOptions(b"k", b"v", prev_value=True),
    Txn(then=(PutOp(b"k", b"v"),)),
    Batch((BatchItem(PutOp(b"k", b"v")),)),
    Compact(2),
    EndSession("c"),
    SetQuota(1 << 30),
    AddMember("n4", "http://h:1", "http://h:2"),
    PromoteMember("n3"),
    RemoveMember("n3"),
    TransferLeadership("n2"),
    FinalizeUpgrade(),
    GrantLease(10),
    RenewLease(1),
    RevokeLease(2),
    AcquireLock("lock", b"a", 1),
    ReleaseLock("lock", b"held", 1),
    ProclaimLeader(b"held", 1, b"me"),
]
WITH_A_BARRIER: list[Request] = [
    Get(b"k"),
    GetHistory(b"k"),
    Range(RangeQuery()),
    Watch(b"k", None),
    Snapshot(),
    GetLease(1),
    ListLeases(),
    GetLock("lock", b"held"),
    ListLocks("election"),
]
AT_ONCE: list[Request] = [
    Get(b"k", "stale"),
    GetStatus(),
    GetStateHash(),
    GetLeader(),
    GetQuota(),
    ListMembers(),
    CheckLiveness(),
    CheckReadiness(),
    GetMetrics(),
    GetVersion(),
]
REQUESTS = [*FOR_THE_LEADER, *WITH_A_BARRIER, *AT_ONCE]


class Clock:
    """A clock that moves by one second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def execute(node: FakeNode, *requests: Request, principal: Principal = ANONYMOUS) -> Any:
    """Execute the requests one after another; return the last one's result."""

    async def main() -> Any:
        run: Callable[[Principal, Any], Awaitable[Any]] = Service(node, Clock()).execute
        for request in requests:
            result = await run(principal, request)
        return result

    return asyncio.run(main())


def effects(node: FakeNode) -> tuple[object, ...]:
    """Return everything that a request leaves behind in a node."""
    counters = node.counters
    counted = (counters.writes, counters.reads, counters.stale_reads, counters.write_duration.count)
    waits = (list(node.timeouts_ms), node.barriers, len(node.backups))
    return (list(node.proposed), list(node.calls), dict(node.members), *waits, *counted)


def test_the_lists_of_these_tests_have_every_request() -> None:
    assert {type(request) for request in REQUESTS} == set(typing.get_args(Request))


# Access.


@pytest.mark.parametrize("request_", REQUESTS, ids=repr)
def test_everybody_may_make_every_request(request_: Request) -> None:
    authorize(ANONYMOUS, request_)
    authorize(Principal("somebody"), request_)


def test_a_request_without_a_row_is_not_authorized() -> None:
    class Unknown(msgspec.Struct, frozen=True):
        pass

    with pytest.raises(AssertionError):
        authorize(ANONYMOUS, Unknown())  # type: ignore[arg-type]


@pytest.mark.parametrize("request_", REQUESTS, ids=repr)
def test_access_is_checked_once_and_before_any_effect(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Principal, Request]] = []

    class DeniedError(Exception):
        pass

    def deny(principal: Principal, request: Request) -> None:
        asked.append((principal, request))
        raise DeniedError

    monkeypatch.setattr(service_module, "authorize", deny)
    node, somebody = FakeNode(), Principal("somebody")
    untouched = effects(node)
    with pytest.raises(DeniedError):
        execute(node, request_, principal=somebody)
    assert asked == [(somebody, request_)]
    assert effects(node) == untouched


def test_access_is_checked_once_for_a_request_that_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []
    node = _with_a_session(FakeNode())
    monkeypatch.setattr(service_module, "authorize", lambda principal, request: asked.append(request))
    execute(node, *REQUESTS)
    assert asked == REQUESTS


def _with_a_session(node: FakeNode) -> FakeNode:
    """Let the state be at the highest level, and have the session, the lease and the locks that the requests need."""
    node.raise_feature_level()
    execute(node, Put(b"k", b"v", client_id="c", sequence=1))
    execute(
        node,
        GrantLease(10, 1),
        GrantLease(10, 2),
        AcquireLock("lock", b"held", 1),
        AcquireLock("election", b"held", 1, b"me"),
    )
    node.timeouts_ms.clear()
    return node


# Results.


def test_a_write_answers_with_the_revisions_and_a_read_with_the_record() -> None:
    node = FakeNode()
    assert execute(node, Put(b"k", b"v")) == PutResult(1, 1, 1, 1)
    assert execute(node, Put(b"k", b"w")) == PutResult(2, 1, 2, 2)
    result = execute(node, Get(b"k"))
    assert (result.record.value, result.record.mod_revision, result.revision) == (b"w", 2, 2)
    assert result.staleness_ms is None
    assert execute(node, Delete(b"k")) == DeleteResult(3, 1)
    assert execute(node, Delete(b"k")) == DeleteResult(3, 0)
    assert execute(node, Get(b"k")) == GetResult(None, 3)


def test_what_a_node_says_of_the_cluster() -> None:
    node = FakeNode()
    execute(node, Put(b"k", b"v"))
    assert execute(node, GetStatus()) == node.status()
    assert execute(node, GetStateHash()) == StateHash("n1", 1, 1, f"{node.store.state_hash:016x}")
    assert execute(node, GetLeader()) == Leader("n1", node.config.advertise_client_url)
    assert execute(node, ListMembers()) == Members(node.status().members)
    assert execute(node, CheckLiveness()) == Checks(tuple(node.live))
    assert execute(node, CheckReadiness()) == Checks(tuple(node.ready))
    assert execute(node, GetVersion()).version == kvorum.__version__
    node.leader = None
    assert execute(node, GetLeader()) == Leader(None, None)


def test_a_change_of_members_answers_with_all_members() -> None:
    node = FakeNode()
    added = execute(node, AddMember("n4", "http://h:1", "http://h:2")).members
    assert [(member.name, member.voter) for member in added][2:] == [("n3", True), ("n4", False)]
    assert execute(node, PromoteMember("n4")).members[-1].voter
    assert [member.name for member in execute(node, RemoveMember("n4")).members] == ["n1", "n2", "n3"]


@pytest.mark.parametrize(("target", "asked", "leader"), [("n3", "n3", "n3"), (None, None, "n2")])
def test_the_leadership_moves_to_the_target_or_to_any_voter(target: str | None, asked: str | None, leader: str) -> None:
    node = FakeNode()
    assert execute(node, TransferLeadership(target)) == NewLeader(leader)
    assert node.calls == [("transfer", asked)]


def test_a_transfer_to_nobody_is_a_mistake() -> None:
    node = FakeNode()
    with pytest.raises(InvalidRequestError, match="the target is empty"):
        execute(node, TransferLeadership(""))
    assert node.calls == []


def test_an_upgrade_is_finalized_within_the_clients_time_and_answers_with_the_level() -> None:
    node = FakeNode()
    assert execute(node, FinalizeUpgrade(700)) == FeatureLevel(2)
    assert (node.calls, node.timeouts_ms) == ([("finalize",)], [700])


def test_a_snapshot_is_begun_after_a_quorum_confirmed_it() -> None:
    node = FakeNode()
    backup = execute(node, Snapshot())
    assert backup is node.backups[0]
    assert node.barriers == 1
    node.error = ReadTimeoutError("no quorum")
    with pytest.raises(ReadTimeoutError):
        execute(node, Snapshot())
    assert len(node.backups) == 1


def test_a_stale_snapshot_needs_no_quorum_but_a_state_that_may_be_served() -> None:
    node = FakeNode()
    node.error = ReadTimeoutError("no quorum")
    assert execute(node, Snapshot(stale=True)).is_stale
    assert node.barriers == 0
    node.quarantined = "the state is wrong"
    with pytest.raises(NotServingError):
        execute(node, Snapshot(stale=True))


# Errors.


def _codes() -> set[str]:
    """Return the code of every error of a caller; those of sessions, leases and locks have one each."""
    kinds = [each for each in vars(kvorum.errors).values() if isinstance(each, type) and issubclass(each, CallerError)]
    codes = {kind.code for kind in kinds if kind not in (CallerError, SessionError, LeaseError, LockError)}
    return codes | {code for code, _ in SESSION_REASONS.values()} | {*LeaseError.CODES, *LockError.CODES}


def test_every_code_has_an_outcome_and_no_other() -> None:
    assert _codes() | {"internal"} == set(OUTCOMES)


def test_what_may_be_done_is_unknown_and_never_worth_a_blind_retry() -> None:
    unknown = {code for code, outcome in OUTCOMES.items() if outcome.effect == "unknown"}
    assert unknown == {"outcome_unknown", "internal", "session_unknown", "session_stale"}
    assert not any(OUTCOMES[code].retry_after_s for code in unknown)


@pytest.mark.parametrize(
    "error",
    [
        NoLeaderError("nobody"),
        NotServingError("quarantine"),
        OverloadedError("too much"),
        OutcomeUnknownError("who knows"),
        MembershipRefusedError("not now"),
        TransferFailedError("it stayed"),
        ReadTimeoutError("no quorum"),
    ],
    ids=repr,
)
def test_an_error_of_the_node_is_the_callers(error: CallerError) -> None:
    node = FakeNode()
    node.error = error
    for request in (*FOR_THE_LEADER, *WITH_A_BARRIER):
        if isinstance(request, Batch):
            continue  # Each of its operations has its own.
        with pytest.raises(type(error)) as caught:
            execute(node, request)
        assert caught.value is error
    assert (node.counters.writes, node.counters.reads, node.counters.write_duration.count) == (0, 0, 0)


@pytest.mark.parametrize("request_", FOR_THE_LEADER, ids=repr)
def test_what_only_a_leader_can_do_is_told_where_the_leader_is(request_: Request) -> None:
    node = FakeNode()
    node.follow("n2", LEADER)
    with pytest.raises(NotLeaderError) as caught:
        execute(node, request_)
    assert (caught.value.leader, caught.value.leader_name, caught.value.leader_client_url) == ("n2", "n2", LEADER)


@pytest.mark.parametrize("request_", FOR_THE_LEADER, ids=repr)
@pytest.mark.parametrize("leader_is", ["without an address", "this node"])
def test_a_leader_without_an_address_or_that_is_this_node_is_nowhere_to_go(request_: Request, leader_is: str) -> None:
    node = FakeNode()
    node.follow("n1", node.config.advertise_client_url if leader_is == "this node" else "")
    with pytest.raises(NoLeaderError) as caught:
        execute(node, request_)
    assert caught.value.facts == {"leader": "n1"}


def test_without_a_leader_nobody_is_named() -> None:
    node = FakeNode()
    node.leads, node.leader = False, None
    with pytest.raises(NoLeaderError) as caught:
        execute(node, Put(b"k", b"v"))
    assert caught.value.facts == {"leader": None}


def test_a_put_without_room_is_refused_and_counted_and_the_quota_says_so() -> None:
    node = FakeNode()
    node.raise_feature_level()
    assert execute(node, GetQuota()) == Quota(0, 0, is_full=False)
    assert execute(node, SetQuota(1 << 20)) == Quota(1 << 20, 0, is_full=False)
    execute(node, Put(b"k", bytes(1 << 20)))
    used = node.store.used_bytes
    assert execute(node, GetQuota()) == Quota(1 << 20, used, is_full=True)
    with pytest.raises(NoSpaceError) as caught:
        execute(node, Put(b"k", b""))
    assert caught.value.facts == {"reason": "quota", "limit": 1 << 20, "used": used}
    assert node.counters.no_space == {"quota": 1}
    assert execute(node, Delete(b"k")) == DeleteResult(3, 1)


def test_a_put_that_the_node_refuses_for_lack_of_room_is_counted_by_what_is_full() -> None:
    node = FakeNode()
    node.error = NoSpaceError("the disks are full", reason="disk", limit=8, used=9)
    with pytest.raises(NoSpaceError):
        execute(node, Put(b"k", b""))
    assert node.counters.no_space == {"disk": 1}


@pytest.mark.parametrize("limit_bytes", [0, (1 << 20) - 1, 2**63, -1])
def test_what_can_not_be_a_quota_is_not_proposed(limit_bytes: int) -> None:
    node = FakeNode()
    node.raise_feature_level()
    with pytest.raises(InvalidRequestError, match="from 1,048,576"):
        execute(node, SetQuota(limit_bytes))
    assert node.timeouts_ms == []


@pytest.mark.parametrize(
    ("reason", "code", "text"),
    [
        ("unknown", "session_unknown", "it was never opened"),
        ("full", "sessions_full", "too many sessions were ended within the hour"),
    ],
)
def test_a_session_that_is_not_ended_says_why(
    reason: str, code: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = FakeNode()

    async def refuse(command: ClientCommand, timeout_ms: int, address: str = "", **_: object) -> Result:
        return SessionRefused(3, reason)

    monkeypatch.setattr(node, "propose", refuse)
    with pytest.raises(SessionError, match=text) as caught:
        execute(node, EndSession("c"))
    assert (caught.value.code, caught.value.facts) == (code, {"reason": reason, "revision": 3})


@pytest.mark.parametrize("client_id", ["", "a/b", "x" * 65])
def test_what_is_no_client_id_ends_no_session(client_id: str) -> None:
    node = FakeNode()
    node.raise_feature_level()
    with pytest.raises(InvalidRequestError):
        execute(node, EndSession(client_id))
    assert node.proposed == []


@pytest.mark.parametrize("write", [Put(b"k", b"w", 7), Delete(b"k", 7)], ids=repr)
def test_a_write_that_expects_another_revision_is_refused(write: Request) -> None:
    node = FakeNode()
    with pytest.raises(CompareFailedError) as caught:
        execute(node, Put(b"k", b"v"), write)
    assert caught.value.facts == {"revision": 1, "mod_revision": 1, "prev_revision": 7}
    assert node.store.revision == 1
    assert node.counters.writes == 2, "it went through the log like every other write"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("unknown", "session_unknown"),
        ("stale", "session_stale"),
        ("ahead", "session_ahead"),
        ("mismatch", "session_mismatch"),
        ("full", "sessions_full"),
        ("invalid", "invalid_request"),
        ("a reason of a newer version", "session_unknown"),
    ],
)
def test_a_session_that_is_refused_says_why(reason: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode()

    async def refuse(command: ClientCommand, timeout_ms: int, address: str = "", **_: object) -> Result:
        return SessionRefused(3, reason)

    monkeypatch.setattr(node, "propose", refuse)
    with pytest.raises(SessionError) as caught:
        execute(node, Put(b"k", b"v", client_id="c", sequence=1))
    assert (caught.value.code, caught.value.facts) == (code, {"reason": reason, "revision": 3})


def test_a_retried_write_is_applied_once() -> None:
    node = FakeNode()
    write = Put(b"k", b"v", client_id="c", sequence=1)
    assert execute(node, write) == execute(node, write) == PutResult(1, 1, 1, 1)
    assert node.store.revision == 1


TIMED = [request for request in REQUESTS if "timeout_ms" in request.__struct_fields__]
MALFORMED: list[Request] = [
    Put(b"", b"v"),
    Delete(b""),
    Get(b""),
    Get(b"", "stale"),
    Put(b"k", b"v", -2),
    Put(b"k", b"v", sequence=1),
    Put(b"k", b"v", client_id="c"),
    Get(b"k", "linearizable", 5),
    Get(b"k", "stale", -1),
    Get(b"k", "stale", STALENESS_MS_MAX + 1),
    AddMember("n/4", "http://h:1", "http://h:2"),
    AddMember("n4", "ftp://h:1", "http://h:2"),
    AddMember("n4", "http://h:1", "http://h:2/path"),
    AddMember("n4", "http://a..b:1", "http://h:2"),
    AddMember("n4", "http://" + "a" * 64 + ":1", "http://h:2"),
    AddMember("n4", "http://h:1?", "http://h:2"),
    AddMember("n4", "http://h:1", "http://h:2/"),
    AddMember("n4", "http://h:70000", "http://h:2"),
    AddMember("n4", "http://[::x]:1", "http://h:2"),
    PromoteMember(""),
    RemoveMember("n" * 64),
    Get(b"k", revision=-1),
    Get(b"k", "stale", revision=2**63),
    GetHistory(b"k", revision=-1),
    GetHistory(b"k", limit=0),
    GetHistory(b"k", limit=HISTORY_VERSIONS_MAX + 1),
    GetHistory(b""),
    Compact(-1),
    Compact(2**63),
    *(msgspec.structs.replace(request, timeout_ms=timeout_ms) for request in TIMED for timeout_ms in (0, -1)),
]


@pytest.mark.parametrize("request_", MALFORMED, ids=repr)
def test_a_malformed_request_is_refused_before_any_effect(request_: Request) -> None:
    node = FakeNode()
    untouched = effects(node)
    with pytest.raises(InvalidRequestError):
        execute(node, request_)
    assert effects(node) == untouched


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        (Put(b"k" * (KEY_BYTES_MAX + 1), b"v"), KEY_BYTES_MAX),
        (Delete(b"k" * (KEY_BYTES_MAX + 1)), KEY_BYTES_MAX),
        (Put(b"k", b"v" * (VALUE_BYTES_MAX + 1)), VALUE_BYTES_MAX),
    ],
    ids=["put key", "delete key", "put value"],
)
def test_a_request_over_a_limit_names_the_limit(request_: Request, limit: int) -> None:
    node = FakeNode()
    with pytest.raises(TooLargeError) as caught:
        execute(node, request_)
    assert caught.value.facts == {"limit": limit}
    assert node.proposed == []


# Deadlines.


@pytest.mark.parametrize("request_", [*FOR_THE_LEADER, *WITH_A_BARRIER], ids=repr)
@pytest.mark.parametrize(
    ("timeout_ms", "expected_ms"), [(None, 700), (1, 1), (699, 699), (700, 700), (701, 700), (2**63 - 1, 700)]
)
def test_a_client_can_shorten_the_deadline_and_not_extend_it(
    request_: Request, timeout_ms: int | None, expected_ms: int
) -> None:
    node = _with_a_session(FakeNode(make_config(request_timeout_ms=700)))
    execute(node, msgspec.structs.replace(request_, timeout_ms=timeout_ms))
    assert set(node.timeouts_ms) == {expected_ms}


@pytest.mark.parametrize("request_", AT_ONCE, ids=repr)
def test_what_one_node_can_answer_alone_waits_for_nothing(request_: Request) -> None:
    node = FakeNode()
    node.error = NoLeaderError("nobody leads")
    execute(node, request_)
    assert (node.timeouts_ms, node.barriers, node.proposed) == ([], 0, [])


# Reads.


def test_a_linearizable_read_reads_the_store_of_the_moment_after_the_barrier() -> None:
    async def main() -> None:
        node = FakeNode()
        service = Service(node, Clock())
        await service.execute(ANONYMOUS, Put(b"k", b"old"))
        node.gate = asyncio.Event()
        reading = asyncio.ensure_future(service.execute(ANONYMOUS, Get(b"k")))
        await asyncio.sleep(0)
        assert node.barriers == 1 and not reading.done()
        # A snapshot is installed while the read waits: another store takes the place of the old one.
        node.store = Store()
        node.gate.set()
        assert await reading == GetResult(None, 0)

    asyncio.run(main())


def test_nothing_runs_between_the_barrier_and_the_read(monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode()
    execute(node, Put(b"k", b"v"))

    async def barrier(timeout_ms: int) -> None:
        # This runs before the read if the read gives the loop another turn.
        asyncio.get_running_loop().call_soon(setattr, node, "store", Store())

    monkeypatch.setattr(node, "read_barrier", barrier)
    assert execute(node, Get(b"k")).record.value == b"v"


def test_a_read_that_no_quorum_confirmed_answers_nothing() -> None:
    node = FakeNode()
    execute(node, Put(b"k", b"v"))
    node.error = ReadTimeoutError("no quorum")
    with pytest.raises(ReadTimeoutError):
        execute(node, Get(b"k"))
    assert node.counters.reads == 0


def test_a_stale_read_takes_what_this_node_has() -> None:
    node = FakeNode()
    execute(node, Put(b"k", b"v"))
    node.staleness = 40
    result = execute(node, Get(b"k", "stale"))
    assert (result.record.value, result.staleness_ms) == (b"v", 40)


@pytest.mark.parametrize(
    ("staleness_ms", "limit_ms", "served"),
    [
        (0, 0, True),
        (1, 0, False),
        (100, 100, True),
        (101, 100, False),
        (None, 100, False),
        (None, STALENESS_MS_MAX, False),
        (STALENESS_MS_MAX, STALENESS_MS_MAX, True),
        (None, None, True),
        (10**9, None, True),
    ],
)
def test_a_stale_read_is_never_staler_than_it_accepts(
    staleness_ms: int | None, limit_ms: int | None, served: bool
) -> None:
    node = FakeNode()
    node.staleness = staleness_ms
    read = Get(b"k", "stale", limit_ms)
    if served:
        assert execute(node, read) == GetResult(None, 0, staleness_ms)
    else:
        node.error = ReadTimeoutError("no quorum")
        with pytest.raises(TooStaleError) as caught:
            execute(node, read)
        assert caught.value.facts == {"staleness_ms": staleness_ms, "limit": limit_ms}
    assert node.counters.stale_reads == served


def test_a_quarantined_node_serves_no_stale_read() -> None:
    node = FakeNode()
    node.quarantined = "the state differs from the leader's"
    with pytest.raises(NotServingError):
        execute(node, Get(b"k", "stale"))
    assert node.counters.stale_reads == 0


# Counters.


def test_writes_and_reads_are_counted_with_the_time_that_a_write_took() -> None:
    node = FakeNode()
    execute(node, Put(b"k", b"v"), Delete(b"k"), Get(b"k"), Get(b"k", "stale"), GetStatus())
    counters = node.counters
    assert (counters.writes, counters.reads, counters.stale_reads) == (2, 1, 1)
    assert (counters.write_duration.count, counters.write_duration.sum) == (2, 2.0)
