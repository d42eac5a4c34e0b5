"""Transactions and batches on their way into the log: their level, room and size, and the entries that they take."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kv.kv_support import apply, raise_to, store_at_level_3, store_at_level_4
from node.local_cluster import running

from kvorum.errors import FeatureUnavailableError, NoSpaceError, OverloadedError, TooLargeError
from kvorum.kv.commands import (
    EndSession,
    HandedOver,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    Put,
    QueuedCommand,
    Txn,
    TxnResult,
)
from kvorum.kv.limits import TXN_KEYS_MAX
from kvorum.kv.operations import DeleteRangeOp, Operation, PutOp, RangeOp, RangeOpResult, TxnOp
from kvorum.kv.quota import Quota
from kvorum.kv.store import Store
from kvorum.node.proposals import DoesNotFitError, Proposals
from kvorum.node.runtime import SystemClock
from kvorum.node.state import State
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import Batch, BatchItem
from kvorum.service.requests import Txn as TxnRequest
from kvorum.telemetry.counters import Counters

PUT, DELETE = PutOp(b"k", b"v" * 1000), DeleteRangeOp(b"k")


def store_at_level_5() -> Store:
    """Return an empty store in which there may be leases."""
    store = store_at_level_4()
    apply(store, raise_to(5))
    return store


class Leading:
    """The proposals of a leader, who has asked for room, and who has asked for a session."""

    def __init__(self, store: Store) -> None:
        self.room_bytes: list[int] = []
        self.is_full = False
        self.admitted: list[tuple[str, str]] = []
        self.proposals = Proposals(
            cast(Any, SimpleNamespace(id="n1@1", leader="n1@1", current_term=3)),
            State(store),
            Counters(),
            100,
            1 << 20,
            SystemClock(),
            cast(Any, None),
            cast(Any, SimpleNamespace(admit=lambda *asked: self.admitted.append(asked))),
            cast(Any, SimpleNamespace(check=self._check)),
        )

    def _check(self, size_bytes: int) -> None:
        if self.is_full:
            raise NoSpaceError("full", reason="disk", limit=0, used=0)
        self.room_bytes.append(size_bytes)

    def submit(self, command: QueuedCommand, address: str = "") -> int:
        """Submit a command; return how many bytes it counts."""

        async def main() -> int:
            self.proposals.submit(command, 1, address)
            return self.proposals.queue[-1][2]

        return asyncio.run(main())


def test_a_transaction_is_not_proposed_below_its_level() -> None:
    with pytest.raises(FeatureUnavailableError, match="Txn needs feature level 4"):
        Leading(store_at_level_3()).submit(Txn((), (PUT,)))


def test_below_level_5_a_transaction_is_not_proposed_whose_ranges_see_too_much_of_its_own_puts() -> None:
    wide = Txn((), (PutOp(b"k", b"v" * (1 << 20)), *(RangeOp(b"k"),) * 5))
    with pytest.raises(TooLargeError, match="raise the feature level"):
        Leading(store_at_level_4()).submit(wide)
    Leading(store_at_level_5()).submit(wide)  # There every node refuses it.


def test_a_transaction_with_a_put_in_any_branch_needs_room_on_the_disks_and_a_delete_does_not() -> None:
    leading = Leading(store_at_level_4())
    leading.is_full = True
    for txn in (Txn((), (PUT,)), Txn((), (), (PUT,)), Txn((), (TxnOp((), (), (PUT,)),))):
        with pytest.raises(NoSpaceError):
            leading.submit(txn)
    leading.submit(Txn((), (DELETE, RangeOp(b"k")), (TxnOp((), (DELETE,)),)))
    leading.is_full = False
    size_bytes = leading.submit(Txn((), (PUT,)))

    assert leading.room_bytes == [size_bytes]


def test_a_transaction_counts_the_bytes_of_all_its_branches() -> None:
    leading = Leading(store_at_level_4())
    one = leading.submit(Txn((), (PUT,)))

    assert one > 1000
    assert leading.submit(Txn((), (PUT,), (PUT, TxnOp((), (PUT,))))) > 3000


def test_a_transaction_that_opens_a_session_has_its_share_checked() -> None:
    leading = Leading(store_at_level_4())
    leading.submit(Txn((), (PUT,), (), "ann", 1), "10.0.0.1")
    leading.submit(Txn((), (PUT,), (), "ann", 2), "10.0.0.1")

    assert leading.admitted == [("10.0.0.1", "ann")]


def test_transactions_that_visit_many_keys_wait_until_others_are_applied() -> None:
    """A turn of the loop may apply all that is proposed: its transactions visit ten thousand keys together."""
    leading = Leading(store_at_level_4())
    for number in range(TXN_KEYS_MAX - 1):
        leading.proposals._state.store.set_record(b"k%05d" % number, b"", 2, None)
    many, none = DeleteRangeOp(b"k", b"l"), DeleteRangeOp(b"x")
    taken = []
    for operation in (none, many, none, many, many):
        leading.submit(Txn((), (operation,)))
    while leading.proposals.queue:
        commands, _, keys = leading.proposals._take_batch()
        taken.append((len(commands), keys))
        if not commands:
            leading.proposals._visited.clear()  # They are applied.
        elif keys:
            leading.proposals._visited[len(taken)] = (3, keys)

    most = TXN_KEYS_MAX
    assert taken == [(2, most), (0, 0), (2, most), (0, 0), (1, most - 1)]


def test_what_was_proposed_in_an_earlier_term_holds_nothing_back() -> None:
    leading = Leading(store_at_level_4())
    leading.proposals._visited[9] = (2, TXN_KEYS_MAX)
    leading.submit(Txn((), (PUT,)))

    assert len(leading.proposals._take_batch()[0]) == 1


def test_what_waits_for_others_is_proposed_when_they_are_applied(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, 1) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"warm", b"up")
            # No tick comes to its help.
            leader.parts.ticker.stop()
            put = TxnRequest((), tuple(PutOp(b"%d" % n, b"") for n in range(128)))
            service = Service(leader, asyncio.get_running_loop().time)
            done = await asyncio.gather(*(service.execute(ANONYMOUS, put) for _ in range(200)))

            assert len({each.revision for each in done}) == 200
            assert leader.parts.proposals._visited == {}

    asyncio.run(scenario())


def test_the_changes_of_a_batch_share_an_entry_and_are_made_in_their_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"warm", b"up")
            assert leader.store.feature_level >= 4
            service = Service(leader, asyncio.get_running_loop().time)
            index, revision = leader.raft.log.last_index, leader.store.revision
            operations: list[Operation] = [RangeOp(b"a", b"b"), *(PutOp(b"a%d" % n, b"") for n in range(10)), DELETE]
            batch = await service.execute(ANONYMOUS, Batch(tuple(map(BatchItem, operations))))

            assert leader.raft.log.last_index == index + 1
            done = [each for each in batch.results if isinstance(each, TxnResult)]
            assert [each.revision for each in done[1:]] == [*(revision + n for n in range(1, 11)), revision + 10]
            [read] = done[0].results or ()
            assert isinstance(read, RangeOpResult)
            assert read.count == 10

    asyncio.run(scenario())


def test_every_member_does_the_same_and_a_follower_reads_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"warm", b"up")
            service = Service(leader, asyncio.get_running_loop().time)
            done = await service.execute(ANONYMOUS, TxnRequest((), (PutOp(b"a", b"1"), PutOp(b"b", b"2"))))
            follower = cluster.others(leader)[0]
            index = leader.raft.log.last_index
            read = await Service(follower, asyncio.get_running_loop().time).execute(
                ANONYMOUS, TxnRequest((), (RangeOp(b"a", b"c"),))
            )
            [found] = read.results or ()
            assert isinstance(found, RangeOpResult)
            assert [each.mod_revision for each in found.records] == [done.revision, done.revision]
            assert leader.raft.log.last_index == index
            await cluster.converge()

    asyncio.run(scenario())


def test_a_full_queue_does_not_refuse_renewals_and_revocations() -> None:
    leading = Leading(store_at_level_5())
    for _ in range(100):
        leading.submit(EndSession("ann"))
    for command in (Put(b"k", b"v"), LeaseGrant(1, 10)):
        with pytest.raises(OverloadedError):
            leading.submit(command)
    for _ in range(50):
        leading.submit(LeaseRenew(1))
        leading.submit(LeaseRevoke(1))
    with pytest.raises(OverloadedError):
        leading.submit(LeaseRenew(1))


def test_full_disks_refuse_grants_and_neither_renewals_nor_revocations() -> None:
    leading = Leading(store_at_level_5())
    leading.is_full = True
    with pytest.raises(NoSpaceError):
        leading.submit(LeaseGrant(1, 10))
    leading.submit(LeaseRenew(1))
    leading.submit(LeaseRevoke(1))


def test_a_full_quota_refuses_grants_and_neither_renewals_nor_revocations() -> None:
    leading = Leading(store_at_level_5())
    leading.proposals._state.store.quota = Quota(1, 1, is_full=True)
    with pytest.raises(NoSpaceError):
        leading.submit(LeaseGrant(1, 10))
    leading.submit(LeaseRenew(1))
    leading.submit(LeaseRevoke(1))


def test_leases_are_not_proposed_below_their_level() -> None:
    for command in (LeaseGrant(1, 10), LeaseRenew(1), LeaseRevoke(1)):
        with pytest.raises(FeatureUnavailableError, match="needs feature level 5"):
            Leading(store_at_level_4()).submit(command)


def test_revocations_that_delete_many_keys_do_not_share_an_entry() -> None:
    leading = Leading(store_at_level_5())
    store = leading.proposals._state.store
    for lease in (1, 2):
        apply(store, LeaseGrant(lease, 10))
        for number in range(TXN_KEYS_MAX // 2 + 1):
            store.leases.attach(b"%d/%05d" % (lease, number), lease)
        leading.submit(LeaseRevoke(lease))

    assert [leading.proposals._take_batch()[2] for _ in range(2)] == [TXN_KEYS_MAX // 2 + 1] * 2


def test_a_frame_of_an_origin_that_lags_is_not_proposed_as_one_entry_if_it_visits_more_keys_than_one_may() -> None:
    leading = Leading(store_at_level_5())
    proposals = leading.proposals
    for lease in range(1, 6):
        apply(proposals._state.store, LeaseGrant(lease, 10))
        for number in range(TXN_KEYS_MAX // 2):
            proposals._state.store.leases.attach(b"%d/%05d" % (lease, number), lease)
    revocations = tuple(LeaseRevoke(lease) for lease in range(1, 6))

    async def scenario() -> None:
        frame = proposals.enqueue(HandedOver(7, 1, revocations), 100, 10)
        later = proposals.enqueue(HandedOver(7, 2, revocations[:2]), 100, 10)
        commands, waiters, keys = proposals._take_batch()
        assert (commands, waiters, keys) == ([HandedOver(7, 2, revocations[:2])], [later], TXN_KEYS_MAX)
        error = frame.exception()
        assert isinstance(error, DoesNotFitError)
        assert (error.fits, proposals.pending) == (2, 1)

    asyncio.run(scenario())


def test_one_command_is_proposed_whatever_it_visits() -> None:
    leading = Leading(store_at_level_5())
    apply(leading.proposals._state.store, LeaseGrant(1, 10))
    for number in range(TXN_KEYS_MAX + 1):
        leading.proposals._state.store.leases.attach(b"%05d" % number, 1)

    async def scenario() -> None:
        alone = HandedOver(7, 1, (LeaseRevoke(1),))
        leading.proposals.enqueue(alone, 100, 10)
        waiter = leading.proposals.enqueue(HandedOver(7, 2, (LeaseRevoke(1), LeaseRenew(1))), 100, 10)
        assert leading.proposals._take_batch()[0] == [alone]
        error = waiter.exception()
        assert isinstance(error, DoesNotFitError)
        assert error.fits == 1

    asyncio.run(scenario())
