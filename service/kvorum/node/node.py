"""One node: what the API, the peers and the cluster logic ask of it. The work is the driver's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from random import Random, SystemRandom
from time import monotonic

import aiohttp
import msgspec
from aiohttp import web

from kvorum.config import Config, split_address
from kvorum.errors import (
    FatalError,
    IdentityRejected,
    MembershipRefused,
    NoLeader,
    NotLeader,
    OutcomeUnknown,
    PeerError,
    StorageError,
    TransferFailed,
)
from kvorum.kv.commands import Command, Result
from kvorum.kv.store import Store
from kvorum.node.backup import Backup, Backups
from kvorum.node.driver import Driver
from kvorum.node.incarnation import identity_at_start
from kvorum.node.rebuild import Rebuilder
from kvorum.node.report import name_of, node_status
from kvorum.node.shutdown import hand_over, wait_for_quorum_without
from kvorum.node.snapshots import load_store, read_chunk
from kvorum.raft import AddLearner, Change, Promote, Raft, Remove, Role
from kvorum.raft.messages import Configuration, Member, Message
from kvorum.status import Check, NodeStatus
from kvorum.storage.log import SqliteStorage
from kvorum.telemetry.counters import Counters
from kvorum.transport import Greeting, Hello, PeerServer, Transport
from kvorum.transport.handshake import token_digest
from kvorum.transport.server import SnapshotChunk
from kvorum.transport.settings import Dialling
from kvorum.transport.transport import DNS_CACHE_S

log = logging.getLogger("kvorum.node")

LOOP_STALLED_S = 30.0
"""The liveness probe fails when the loop has not ticked for this long."""
POLL_S = 0.01
SAVE_DEADLINE_MIN_MS = 10_000
"""A save that has no answer for this long, or 20 times save_timeout_ms, ends the process."""


class Node:
    """A node, from :meth:`start` to :meth:`close`. Made inside a running loop.

    Args:
        config: resolved.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.counters = Counters()
        self.stopping = False
        self._failure: asyncio.Future[FatalError] = asyncio.get_running_loop().create_future()
        self._last_tick = monotonic()
        self._join_lock = asyncio.Lock()
        self._closing = contextlib.AsyncExitStack()
        self._ticker: asyncio.TimerHandle | None = None
        self._peer_server: PeerServer | None = None

    # --- Life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the disk, open the peer port, begin to take part. What is opened last is closed first.

        Raises:
            StorageError: the data folder cannot be trusted.
            OSError: the peer port cannot be had.
        """
        config, closing = self.config, self._closing
        self._storage = await asyncio.to_thread(self._open_storage)
        closing.push_async_callback(asyncio.to_thread, self._storage.close)
        loaded = await asyncio.to_thread(self._storage.load)
        self.identity = identity_at_start(config.name, loaded)
        await asyncio.to_thread(self._storage.write_identity, self.identity, replace=True)
        store = Store()
        if loaded.snapshot is not None:
            store = await asyncio.to_thread(load_store, self._storage.snapshots, loaded.snapshot.last_index)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ttl_dns_cache=DNS_CACHE_S, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, connect=5.0),
        )
        closing.push_async_callback(self._session.close)
        self.transport = Transport(self._dialling(), self._on_broken)
        closing.push_async_callback(self.transport.close)
        self.driver = Driver(
            config, self.identity, loaded, store, self._storage, self.transport, self.counters, self._fail
        )
        closing.push_async_callback(self.driver.close)
        self._failure.add_done_callback(lambda _: self.driver.halt())
        self._rebuilder = Rebuilder(self.driver, self.transport)
        closing.push_async_callback(self._rebuilder.close)
        self._backups = Backups(self.driver, self._storage.snapshots)
        self.driver.on_membership = self._follow_membership
        self.driver.on_contradiction = self._rebuilder.investigate
        self._follow_membership()
        await self._open_peer_port()
        self._last_tick = monotonic()
        self._tick()
        log.info(
            "%s is up: cluster %s, term %d, %d entries in the log, snapshot at %d",
            self.identity.node_id,
            self.identity.cluster_id or "none yet",
            self.driver.raft.current_term,
            len(loaded.entries),
            loaded.snapshot.last_index if loaded.snapshot else 0,
        )

    def _open_storage(self) -> SqliteStorage:
        return SqliteStorage(
            self.config.data_dir,
            self._fail,
            save_deadline_ms=max(20 * self.config.save_timeout_ms, SAVE_DEADLINE_MIN_MS),
            counters=self.counters,
            name=self.config.name,
        )

    def _dialling(self) -> Dialling:
        return Dialling(
            lambda: self.identity,
            self.config.advertise_peer_url,
            self.config.bootstrap_token,
            lambda: self._session,
            self.counters,
            Random(SystemRandom().getrandbits(64)),  # noqa: S311 (spreads out reconnections)
        )

    async def _open_peer_port(self) -> None:
        host, port = split_address(self.config.listen_peer)
        silence_s = max(10 * self.config.election_timeout_ms / 1000, 10.0)
        self._peer_server = server = PeerServer(self, self.counters, self.config.bootstrap_token, silence_s)
        runner = web.AppRunner(server.app, access_log=None, keepalive_timeout=20, shutdown_timeout=2)
        self._closing.push_async_callback(runner.cleanup)
        self._closing.push_async_callback(server.close)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        await site.start()
        self._closing.push_async_callback(_stop_listening, site)

    async def run(self) -> None:
        """Return never: raise what ends the node. Cancelling it does not stop the node; :meth:`close` does.

        Raises:
            FatalError: it must end.
        """
        raise await asyncio.shield(self._failure)

    async def drain(self, deadline: float) -> None:
        """Stop being ready, hand over the leadership, finish what is in flight; the API still answers and redirects.

        Then wait, until ``deadline`` on the monotonic clock, while the others would have no quorum without us.
        """
        self.stopping = True
        await hand_over(self, deadline)
        if await wait_for_quorum_without(self, deadline):
            # Whoever stays that long may be elected meanwhile.
            await hand_over(self, deadline)

    async def close(self) -> None:
        """Close the peers' connections and the storage. Safe at any time after :meth:`start` was called."""
        self.stopping = True
        if self._ticker is not None:
            self._ticker.cancel()
        await self._closing.aclose()

    def _tick(self) -> None:
        now = monotonic()
        self.counters.loop_lag.record(max(now - self._last_tick - self.config.tick_ms / 1000, 0.0))
        self._last_tick = now
        self.driver.tick()
        self._ticker = asyncio.get_running_loop().call_later(self.config.tick_ms / 1000, self._tick)

    def _fail(self, error: FatalError) -> None:
        if not self._failure.done():
            self._failure.set_result(error)

    # --- What the API asks --------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The applied state; a new object after a snapshot was installed."""
        return self.driver.store

    @property
    def raft(self) -> Raft:
        """The consensus server; to be read, not written."""
        return self.driver.raft

    @property
    def quarantined(self) -> str | None:
        """Why this node serves nothing, or None."""
        return self._rebuilder.quarantined

    def check_serves(self) -> None:
        """Check that this node may answer from its state, stale or not.

        Raises:
            NoLeader: it may not, since its state is wrong or it is about to end; nothing was done.
        """
        if self._failure.done():
            raise NoLeader("the node is ending")
        if self.quarantined:
            raise NoLeader(self.quarantined)

    async def propose(self, command: Command, timeout_ms: int) -> Result:
        """Replicate the command and return what applying it gave.

        Raises:
            NotLeader, Overloaded, TooLarge, InvalidRequest: certainly not done.
            OutcomeUnknown: it may be done, now or later.
        """
        self.check_serves()
        waiter = self.driver.writes.submit(command, timeout_ms / 1000)
        if self.driver.tracer is not None:
            self.driver.tracer.submitted(waiter)
        self.driver.schedule()
        return await waiter

    async def read_barrier(self, timeout_ms: int) -> None:
        """Return when ``store`` holds everything that was acknowledged, anywhere, before the call.

        Raises:
            NoLeader, ReadTimeout, Overloaded: it could not be confirmed in time.
        """
        self.check_serves()
        waiter = self.driver.barriers.submit(timeout_ms / 1000)
        if self.driver.tracer is not None:
            self.driver.tracer.waits("kvorum.read_barrier", waiter)
        self.driver.schedule()
        await waiter

    async def begin_backup(self) -> Backup:
        """Return the state as a file, to be read and closed; call it after :meth:`read_barrier`.

        Raises:
            Overloaded: there is none to be had now.
        """
        return await self._backups.begin()

    def staleness_ms(self) -> int | None:
        """Return the milliseconds since this node last heard of a leader (a leader: 0), or None."""
        if self.driver.raft.role is Role.LEADER:
            return 0
        contact = self.driver.last_contact
        return None if contact is None else int((monotonic() - contact) * 1000)

    def status(self) -> NodeStatus:
        """Return what the node says of itself."""
        return node_status(
            self.identity,
            self.driver.raft.status(),
            self.store,
            last_contact_ms=self.staleness_ms(),
            caught_up=self._is_caught_up(),
            quarantined=self.quarantined,
        )

    def _is_caught_up(self) -> bool:
        raft = self.driver.raft
        return raft.leader is not None and self.store.applied_index >= raft.log.commit_index

    def leader_client_url(self) -> str | None:
        """Return the leader's client URL if a leader is known."""
        raft = self.driver.raft
        member = raft.configuration.get(raft.leader) if raft.leader else None
        return member.client_url if member else None

    def leader_name(self) -> str | None:
        """Return the leader's name if one is known."""
        leader = self.driver.raft.leader
        return name_of(leader) if leader else None

    def liveness(self) -> list[Check]:
        """Return the checks of ``/livez``: this process works; nothing about quorum, peers or disk space."""
        silent_s = monotonic() - self._last_tick
        return [
            Check("loop", silent_s < LOOP_STALLED_S, f"the event loop last ticked {silent_s:.0f} s ago"),
            Check("storage", not self._failure.done(), "storage failed; the process is ending"),
        ]

    def readiness(self) -> list[Check]:
        """Return the checks of ``/readyz``: this node can serve its clients, as leader or not."""
        raft = self.driver.raft
        member = raft.configuration.get(raft.id)
        return [
            Check("leader", raft.leader is not None, "no leader is known"),
            Check("member", member is not None and member.voter, "not a voter (joining, a learner, or removed)"),
            Check("caught-up", self._is_caught_up(), "committed entries are still to be applied"),
            Check("storage", not raft.is_disk_stalled, "the disk makes no progress"),
            Check("state", self.quarantined is None, self.quarantined or ""),
            Check("serving", not self.stopping, "the node is stopping"),
        ]

    # --- Membership ---------------------------------------------------------------------------------------------

    def bootstrap(self, cluster_id: str, members: tuple[Member, ...]) -> None:
        """Begin a new cluster with these voters; only ever on one node, with an empty disk (docs/internals).

        Raises:
            MembershipRefused: this node is not empty.
            StorageError: the cluster's id could not be made durable.
        """
        if self.identity.cluster_id or self._join_lock.locked():
            raise MembershipRefused(f"this node is already of cluster {self.identity.cluster_id or 'that calls it'}")
        self.identity = msgspec.structs.replace(self.identity, cluster_id=cluster_id)
        self._storage.write_identity(self.identity)
        self.driver.raft.bootstrap(Configuration(tuple(sorted(members, key=lambda member: member.id))))
        self.driver.schedule()
        log.info("began cluster %s with %s", cluster_id, ", ".join(member.id for member in members))

    async def add_member(self, name: str, peer_url: str, client_url: str, timeout_ms: int) -> None:
        """Add the node that answers at ``peer_url`` as a learner.

        Raises:
            NotLeader, MembershipRefused: not done.
            OutcomeUnknown: it may be.
        """
        try:
            hello = await self.transport.hello(peer_url)
        except PeerError as error:
            raise MembershipRefused(f"{name} does not answer at {peer_url}: {error}") from error
        if hello.name != name:
            raise MembershipRefused(f"{hello.name} answers at {peer_url}, not {name}")
        if hello.cluster_id and hello.cluster_id != self.identity.cluster_id:
            raise MembershipRefused(f"{name} belongs to another cluster, {hello.cluster_id}")
        member = Member(hello.node_id, voter=False, peer_url=peer_url, client_url=client_url or hello.client_url)
        await self.change_membership(AddLearner(member), timeout_ms)

    async def promote_member(self, name: str, timeout_ms: int) -> None:
        """Make a learner a voter. Raises as :meth:`add_member`."""
        await self.change_membership(Promote(self._member_named(name)), timeout_ms)

    async def remove_member(self, name: str, timeout_ms: int) -> None:
        """Remove a member. Raises as :meth:`add_member`."""
        await self.change_membership(Remove(self._member_named(name)), timeout_ms)

    def _member_named(self, name: str) -> str:
        """Return the id of the member with this name or id; of two incarnations, neither."""
        members = [m.id for m in self.driver.raft.configuration.members if name in (m.id, name_of(m.id))]
        if len(members) != 1:
            raise MembershipRefused(f"{len(members)} members are named {name}: {', '.join(members) or 'none'}")
        return members[0]

    async def change_membership(self, change: Change, timeout_ms: int) -> None:
        """Make one membership change and wait until it is committed.

        Raises:
            NotLeader, MembershipRefused: not done.
            OutcomeUnknown: it may be.
        """
        raft = self.driver.raft
        index, term = raft.propose_change(change)
        self._follow_membership()
        self.driver.schedule()
        deadline = monotonic() + timeout_ms / 1000
        while raft.log.commit_index < index:
            if monotonic() > deadline or raft.current_term != term:
                raise OutcomeUnknown("no quorum confirmed the membership change in time; it may still happen")
            await asyncio.sleep(POLL_S)
        if raft.current_term != term and raft.log.term(index) != term:
            # What is committed there is another leader's; or a snapshot covers it, and nobody can tell.
            raise OutcomeUnknown("another leader took over; the membership change may or may not be done")

    def _follow_membership(self) -> None:
        """Keep a stream to every member; where it is said in our configuration, at the address given there."""
        expected = {peer.name: peer.url for peer in self.config.expected_members()}
        members = self.driver.raft.configuration.members
        self.transport.set_members(
            {m.id: expected.get(name_of(m.id), m.peer_url) for m in members if m.id != self.identity.node_id},
            self._peer_server.callers if self._peer_server is not None else (),
        )

    async def transfer_leadership(self, target_name: str | None, timeout_ms: int) -> str:
        """Hand the leadership to the target (None: the most caught-up voter) and return the new leader's name.

        Raises:
            NotLeader, MembershipRefused, TransferFailed: the leadership stays.
            OutcomeUnknown: it left, or may still leave.
        """
        raft = self.driver.raft
        if raft.role is not Role.LEADER:
            raise NotLeader(raft.leader)
        target = self._member_named(target_name) if target_name else None
        if target == raft.id:
            return name_of(target)
        target = raft.transfer_leadership(target)
        self.driver.schedule()
        deadline = monotonic() + timeout_ms / 1000
        while monotonic() < deadline and not self._failure.done():
            if raft.role is not Role.LEADER and raft.leader is not None:
                return name_of(raft.leader)
            if raft.role is Role.LEADER and not raft.is_transferring:
                raise TransferFailed(f"{target} did not take the leadership in time")
            await asyncio.sleep(POLL_S)
        raise OutcomeUnknown(f"{target} was to take the leadership; whether anybody has it is not known yet")

    # --- What peers ask -----------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """Return what we say of ourselves to anybody on the peer port."""
        raft = self.driver.raft
        return Hello(
            name=self.identity.name,
            incarnation=self.identity.incarnation,
            cluster_id=self.identity.cluster_id,
            expected=tuple(peer.name for peer in self.config.expected_members()),
            token=token_digest(self.config.bootstrap_token),
            peer_url=self.config.advertise_peer_url,
            client_url=self.config.advertise_client_url,
            term=raft.current_term,
            is_leader=raft.role is Role.LEADER,
            members=tuple(member.id for member in raft.configuration.members),
            configuration_index=raft.configurations.latest_index,
            configuration_committed=raft.configurations.latest_index <= raft.log.commit_index,
            is_serving=all(check.ok for check in self.readiness()),
            # Who is just being called into a cluster must not begin another meanwhile.
            empty=not raft.current_term and not raft.log.last_index and not self._join_lock.locked(),
        )

    async def join(self, greeting: Greeting) -> None:
        """Make the caller's cluster ours: it called this very incarnation, so its leader knows that we are empty.

        Raises:
            IdentityRejected: we have joined another one meanwhile.
        """
        async with self._join_lock:
            if not self.identity.cluster_id:
                identity = msgspec.structs.replace(self.identity, cluster_id=greeting.cluster_id)
                try:
                    await asyncio.to_thread(self._storage.write_identity, identity)
                except StorageError as error:
                    self._fail(error)
                    raise IdentityRejected("cluster", f"{identity.node_id} ends: {error}") from error
                self.identity = identity
                log.info("%s joined cluster %s, called by %s", identity.node_id, identity.cluster_id, greeting.sender)
            elif self.identity.cluster_id != greeting.cluster_id:
                raise IdentityRejected("cluster", f"{greeting.sender} is of cluster {greeting.cluster_id}")

    def on_messages(self, sender: str, messages: tuple[Message, ...]) -> None:
        """Take checked messages, all from ``sender``."""
        self.driver.on_messages(messages)

    def on_connected(self, greeting: Greeting) -> None:
        """A peer called: answer it even if our configuration does not know it yet."""
        self.transport.add_stranger(greeting.sender, greeting.peer_url)

    def on_disconnected(self, sender: str) -> None:
        """A peer's stream to us broke."""
        self.transport.remove_stranger(sender)
        self.driver.peer_unreachable(sender)

    def _on_broken(self, recipient: str) -> None:
        """Our stream to a peer broke; one that calls us is answered until it hangs up."""
        if self._peer_server is None or recipient not in self._peer_server.callers:
            self.transport.remove_stranger(recipient)
        self.driver.peer_unreachable(recipient)

    async def snapshot_chunk(self, last_index: int, offset_bytes: int, size_bytes: int, at_least: int) -> SnapshotChunk:
        """Return a piece of our snapshot at ``last_index``; 0: the newest, taken now if it is older than ``at_least``.

        Raises:
            StorageError: there is none.
        """
        if last_index == 0:
            kept = self._storage.snapshots.kept()
            if self.store.applied_index and (not kept or kept[0].snapshot.last_index < at_least):
                # Who asks may go away; the snapshot is the node's.
                await asyncio.shield(self.driver.begin_snapshot())
        return await asyncio.to_thread(read_chunk, self._storage.snapshots, last_index, offset_bytes, size_bytes)

    def state_hash_at(self, index: int) -> int | None:
        """Return the state hash after applying ``index``, if it is remembered."""
        return self.driver.digests.at(index)

    def suspect_state(self, index: int) -> None:
        """A peer's state differs from ours at ``index``."""
        self._rebuilder.investigate(index)


async def _stop_listening(site: web.TCPSite) -> None:
    """Take no more calls. One that was accepted already becomes a connection within a few turns; cleanup closes it."""
    await site.stop()
    for _ in range(5):
        await asyncio.sleep(0)
