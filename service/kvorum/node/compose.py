"""A node from its parts: the same composition in production, in the tests and in the simulator, on other ports."""

from __future__ import annotations

from kvorum.config import Config
from kvorum.identity import Identity
from kvorum.kv.store import Store
from kvorum.node.backup import Backups
from kvorum.node.compactions import Compactions
from kvorum.node.driver import Driver
from kvorum.node.fetch import Fetcher
from kvorum.node.foreign import ForeignPeers
from kvorum.node.handover_port import HandOverPort
from kvorum.node.incarnation import ClusterIdentity, identity_at_start
from kvorum.node.integrity import Integrity
from kvorum.node.leader_proposals import LeaderProposals
from kvorum.node.leases import LeaseTicks
from kvorum.node.levels import FeatureLevels
from kvorum.node.loader import Loader
from kvorum.node.log_time import LogTime
from kvorum.node.membership import Membership
from kvorum.node.node import Node, Parts
from kvorum.node.peer_requests import PeerRequests
from kvorum.node.ports import Ports
from kvorum.node.proposals import Proposals
from kvorum.node.quota import QuotaProposals
from kvorum.node.reads import Reads
from kvorum.node.report import Report
from kvorum.node.session_shares import SessionShares
from kvorum.node.set_back import Participation
from kvorum.node.shutdown import Shutdown
from kvorum.node.snapshots import Snapshots, load_store
from kvorum.node.space import DiskSpace
from kvorum.node.staleness import Staleness
from kvorum.node.state import State
from kvorum.node.sweeps import Sweeps
from kvorum.node.ticker import Ticker
from kvorum.node.turns import Turns
from kvorum.node.waits import Waits
from kvorum.node.watches import Watches
from kvorum.raft import RaftConfig
from kvorum.storage.interface import Loaded

TERM_STEP_MAX = 1024
"""Elections are rare: 2^62 terms last for ever, and a step of 1,024 leaves little to chance."""
QUIET_SAVE_MS = 1000
PROBES_PER_ELECTION_TIMEOUT = 3
"""How often a node asks whether its state is current, while no client asks."""


async def start_node(config: Config, ports: Ports) -> Node:
    """Read the disk, compose a node, and start it. :meth:`Node.close` ends it; the storage is the caller's to close.

    Args:
        config: resolved.
        ports: what the node is handed; the storage is made, and not yet loaded.

    Raises:
        StorageError: the data folder cannot be trusted.
        OSError: the peer port cannot be had.
    """
    storage, run = ports.storage, ports.threads.run
    loaded = await run(storage.load)
    identity = identity_at_start(config.name, loaded, ports.random)
    await run(_write_identity, ports, identity)
    store = ports.make_store()
    if loaded.snapshot is not None:
        store = await run(load_store, storage.snapshots, loaded.snapshot)
    node = compose(config, identity, loaded, store, ports)
    try:
        await node.start()
    except BaseException:
        await node.close()
        raise
    return node


def _write_identity(ports: Ports, identity: Identity) -> None:
    ports.storage.write_identity(identity, replace=True)


def compose(config: Config, identity: Identity, loaded: Loaded, store: Store, ports: Ports) -> Node:
    """Make every part of a node and hand each to those that use it.

    Args:
        config: resolved.
        identity: who the node is, as it is durable.
        loaded: what else was durable.
        store: the state at ``loaded.snapshot``.
        ports: what the node is handed.
    """
    clock, tasks, threads, peers, storage = ports.clock, ports.tasks, ports.threads, ports.peers, ports.storage
    supervisor, counters, random = ports.supervisor, ports.counters, ports.random
    raft = ports.make_raft(
        raft_config(config, identity.node_id),
        random,
        hard_state=loaded.hard_state,
        snapshot=loaded.snapshot,
        entries=loaded.entries,
        on_disk=loaded.on_disk,
        marks=loaded.marks,
        commit_index=loaded.commit_index,
    )
    own = ClusterIdentity(identity, storage, threads, supervisor)
    state = State(store)
    # The parts ask for turns, and the driver, which is made of the parts, takes them.
    turns = Turns(tasks, lambda: driver.take_turn())
    waits = Waits(clock)
    log_time = LogTime(raft, state, clock, config.tick_ms)
    space = DiskSpace(config, raft, state, storage, clock, tasks, threads)
    proposals = Proposals(
        raft,
        state,
        counters,
        config.pending_max,
        config.batch_bytes_max,
        clock,
        log_time,
        SessionShares(state, clock),
        space,
        ports.tracer,
    )
    handover = HandOverPort(
        raft,
        state,
        proposals,
        peers,
        counters,
        config.pending_max,
        config.request_timeout_ms / 1000,
        clock,
        random,
        turns,
    )
    # The numbers of reads must never repeat, restarts included: a late answer would pass for a new one.
    start = random.getrandbits(40)
    reads = Reads(
        raft,
        counters,
        clock,
        state,
        probe_s=config.election_timeout_ms / 1000 / PROBES_PER_ELECTION_TIMEOUT,
        first_context=start << 21,
    )
    levels = FeatureLevels(config, raft, state, own, waits, clock, log_time, turns)
    quota = QuotaProposals(config, ports.memory_bytes, state, LeaderProposals(raft, state, log_time, turns))
    compactions = Compactions(config, state, log_time, LeaderProposals(raft, state, log_time, turns), space, counters)
    leases = LeaseTicks(state, log_time, LeaderProposals(raft, state, log_time, turns), counters)
    membership = Membership(config, raft, own, levels, peers, waits, clock, turns)
    snapshots = Snapshots(config, raft, state, storage, clock, tasks, threads, supervisor, counters, space)
    loader = Loader(raft, state, snapshots, threads)

    def stopped(reason: str) -> None:
        proposals.stop(reason)
        handover.origin.stop(reason)
        reads.stop(reason)
        fetcher.stop()

    expected = [peer.name for peer in config.expected_members()]
    participation = Participation(raft, loaded, f"{start:010x}", peers, tasks, stopped, config.tick_ms, expected)
    fetcher = Fetcher(raft, state, loader, storage, peers, clock, tasks, threads, turns, counters, participation)
    integrity = Integrity(
        raft,
        state,
        proposals,
        handover,
        reads,
        snapshots,
        loader,
        storage.snapshots,
        peers,
        clock,
        tasks,
        threads,
        turns,
        participation,
    )
    staleness = Staleness(state, clock)
    watches = Watches(config, state, turns.schedule, counters, lambda: raft.leader is not None)
    driver = Driver(
        raft,
        state,
        storage,
        peers,
        clock,
        turns,
        supervisor,
        counters,
        proposals=proposals,
        handover=handover,
        reads=reads,
        waits=waits,
        membership=membership,
        snapshots=snapshots,
        fetcher=fetcher,
        integrity=integrity,
        staleness=staleness,
        levels=levels,
        quota=quota,
        compactions=compactions,
        leases=leases,
        watches=watches,
        log_time=log_time,
        space=space,
        participation=participation,
        tracer=ports.tracer,
    )
    ticker = Ticker(config.tick_ms, driver.tick, clock, tasks, counters)
    foreign = ForeignPeers(own, clock)
    report = Report(
        config, own, raft, state, integrity, participation, staleness, levels, ticker, supervisor, space, foreign
    )
    peer_requests = PeerRequests(
        config,
        own,
        raft,
        driver,
        peers,
        report,
        snapshots,
        integrity,
        participation,
        levels,
        membership,
    )
    parts = Parts(
        identity=own,
        raft=raft,
        state=state,
        turns=turns,
        proposals=proposals,
        handover=handover,
        reads=reads,
        membership=membership,
        snapshots=snapshots,
        fetcher=fetcher,
        integrity=integrity,
        participation=participation,
        staleness=staleness,
        levels=levels,
        log_time=log_time,
        space=space,
        sweeps=Sweeps(state, integrity, tasks),
        watches=watches,
        driver=driver,
        ticker=ticker,
        report=report,
        backups=Backups(state, snapshots, storage.snapshots, threads),
        shutdown=Shutdown(
            config, raft, membership, proposals, handover, report, peer_requests.hello, peers, clock, tasks
        ),
        foreign=foreign,
        peer_requests=peer_requests,
    )
    return Node(config, ports, parts)


def raft_config(config: Config, node: str) -> RaftConfig:
    """Return consensus's configuration: times in ticks."""
    return RaftConfig(
        id=node,
        election_timeout_ticks=max(config.election_timeout_ms // config.tick_ms, 2),
        heartbeat_timeout_ticks=max(config.heartbeat_ms // config.tick_ms, 1),
        save_timeout_ticks=-(-config.save_timeout_ms // config.tick_ms),
        append_bytes_max=config.batch_bytes_max,
        committed_bytes_max=config.batch_bytes_max,
        log_memory_bytes_max=config.log_memory_bytes,
        term_step_max=TERM_STEP_MAX,
        quiet_save_ticks=max(QUIET_SAVE_MS // config.tick_ms, 1),
    )
