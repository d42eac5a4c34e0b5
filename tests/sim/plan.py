"""What one simulation is: a cluster, a workload and a list of faults, all drawn from one seed (swarm testing).

Each seed draws *which* kinds of faults it uses, and how hard, besides when they strike: a run in which everything
happens at once hides the bugs that need one thing to happen often. A plan is plain data, so a failing one can be made
smaller by taking things out of it (:mod:`sim.shrink`).
"""

from __future__ import annotations

from random import Random

import msgspec

MS = 1_000
S = 1_000_000

CRASH_POINTS = (
    "before_save",
    "save_lost",
    "save_durable_unanswered",
    "after_save_before_send",
    "between_sends",
    "before_apply",
    "after_apply",
    "during_fetch",
)
"""Where a process can die; each is named by what has just been, or has not been, done."""

CRASH_PASSES_MAX = 16
"""An armed crash point may be passed fewer times than this before it strikes."""

PORT_ERRORS = (
    "send", "save", "compact", "create", "write", "receive", "answer", "answer", "saved", "tick", "peer_unreachable",
)  # fmt: skip
"""What raises an exception that nobody expects, with ``port_error``: a call of a port, a port's answer before the node
hears of it, or the core when a callback brings it something (a save is durable, a timer fires, a stream breaks)."""

FAULT_KINDS = (
    "crash",
    "crash_point",
    "crash_all",
    "pause",
    "freeze",
    "isolate",
    "one_way",
    "split",
    "bridge",
    "disk_stall",
    "disk_fail",
    "disk_full",
    "disks_fill",
    "snapshot_damage",
    "clock_jump",
    "late_saves",
    "late_tasks",
    "stop_reading",
    "cut_fetches",
    "port_error",
    "stop",
    "state_damage",
    "backup",
    "finalize",
    "transfer",
    "add",
    "remove",
    "replace",
    "disk_copy",
    "disk_set_back",
)
"""``disks_fill`` leaves little room on the disks of all nodes, or of all but one, at the same time; ``late_saves`` are
durable long before they are answered; with ``stop_reading`` a peer's messages wait unread for a
while; ``cut_fetches`` breaks the connection behind every other piece of a snapshot; ``port_error`` is an exception that
nothing in the product expects; ``stop`` is a clean stop; ``state_damage`` changes a record in the memory of a
minority; with ``disk_set_back`` a machine is down for a while, and its disk's whole content is then the one that
``disk_copy`` saw (see :meth:`sim.nemesis.Nemesis._may_be_set_back` for when)."""

SET_BACK_KINDS = ("disk_copy", "disk_set_back")
"""These have a draw of their own."""
SET_BACK_ANYHOW, SET_BACK_OFF, SET_BACK_MOVES, SET_BACK_LATE = 1, 2, 4, 8
"""Bits of the argument of ``disk_set_back``: it strikes although nobody is up who remembers; the machine loses its
power, not only its process; the disk comes back at another address; and whoever remembers is cut off until late. How
late, the bits above say (see :data:`SET_BACK_LATE_MAX`)."""
SET_BACK_LATE_MAX = 16
"""It is late by a quarter of the longest election timeout, and by fewer quarters than this more."""
COMPACT = "compact"
"""Somebody gives up the history below a revision that exists, or not any more, or not yet. Drawn by itself."""
MOVE = "move"
"""The process is killed, and starts again at another address. The options that a process starts with say where the
first voters are then; those of a process that runs stay as they are. Drawn by itself, so that no other draw changes."""


class Fault(msgspec.Struct, frozen=True):
    """Something bad, or at least unusual, that happens at one moment. What a kind does not use is 0 or empty."""

    at_us: int
    kind: str
    target: int = 0
    """Which node: -1 for whoever leads then, else an ordinal, taken modulo the number of nodes."""
    duration_us: int = 0
    argument: int = 0
    point: str = ""


class Plan(msgspec.Struct, frozen=True):
    """One simulation. Times are in microseconds of the virtual clock, rates per mille."""

    seed: int
    voters: int = 3
    # Consensus.
    tick_us: int = 50 * MS
    election_timeout_ticks: int = 10
    heartbeat_timeout_ticks: int = 2
    append_bytes_max: int = 1 << 20
    inflight_messages_max: int = 64
    committed_bytes_max: int = 1 << 20
    promote_lag_max: int = 64
    save_bytes_max: int = 8 << 20
    load_bytes_max: int = 4 << 20
    log_memory_bytes: int = 64 << 20
    """Applied entries stay in memory up to so many bytes; an older one is read back from the disk."""
    tick_skew_per_mille: int = 0
    # The node.
    turn_us: int = 0
    """The event loop takes as long, at most, to come to its next turn."""
    snapshot_every: int = 0
    """Entries between two snapshots; 0: none."""
    retain: int = 8
    unreachable_hints: bool = False
    shutdown_grace_s: float = 2.0
    shutdown_delay_s: float = 0.0
    sweep_us: int = 0
    """The state in memory is swept as a whole so often, besides what the product does; 0: never."""
    finalize_after_s: int = -1
    """The leader raises the feature level when every member has announced it for so long; -1: it does not."""
    history_age_s: float = 0.0
    history_bytes_max: int = 0
    """How much history the leader keeps; 0: there is no such limit. What operators may ask for is much more."""
    upgraded_at_us: int = 0
    """Until then every process announces only the first feature level, as one of the version before does."""
    # The network.
    latency_us: int = 500
    jitter_us: int = 500
    drop_per_mille: int = 0
    duplicate_per_mille: int = 0
    slow_per_mille: int = 0
    slow_us: int = 0
    # The disks.
    disk_us: int = 300
    disk_jitter_us: int = 300
    # The clients.
    clients: int = 3
    operations: int = 60
    """Per client."""
    keys: int = 4
    think_us: int = 20 * MS
    value_bytes: int = 16
    timeout_us: int = 1 * S
    deadline_us: int = 4 * S
    session_per_mille: int = 700
    read_per_mille: int = 400
    delete_per_mille: int = 100
    compare_per_mille: int = 300
    client_duplicate_per_mille: int = 0
    handing_per_mille: int = 0
    """How often a client asks a node to hand its write to the leader."""
    tellers: int = 0
    """Clients that move money between accounts."""
    watchers: int = 0
    holders: int = 0
    """Clients that hold leases."""
    readers: int = 0
    """Clients that read ranges."""
    slice_keys: int = 512
    """Of a range, so many keys are examined in one turn of the loop."""
    # Time.
    duration_us: int = 12 * S
    """Of the safety phase; then the faults end."""
    removed_keep_running: bool = False
    crash_at: int = 0
    """Whoever comes to the so-many-th crash point, counted over all nodes, dies there; 0: nobody."""
    faults: tuple[Fault, ...] = ()

    @property
    def timely_us(self) -> int:
        """The longest delay of anything in the liveness phase: much less than an election timeout (section 5.6)."""
        return self.election_timeout_ticks * self.tick_us // 20

    @property
    def election_timeout_us(self) -> int:
        """The longest a follower waits before it campaigns."""
        return 2 * self.election_timeout_ticks * self.tick_us * (1000 + self.tick_skew_per_mille) // 1000


def draw_plan(seed: int) -> Plan:
    """Return the plan of this seed."""
    draw = Random(f"{seed}:plan")
    tick_us = draw.choice((10, 20, 50, 100)) * MS
    election_timeout_ticks = draw.choice((4, 6, 10, 10, 15))
    plan = Plan(
        seed=seed,
        voters=draw.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 7)),
        tick_us=tick_us,
        election_timeout_ticks=election_timeout_ticks,
        heartbeat_timeout_ticks=draw.randrange(1, max(2, election_timeout_ticks // 3)),
        append_bytes_max=draw.choice((1, 100, 300, 1000, 1 << 20)),
        inflight_messages_max=draw.choice((1, 2, 4, 64)),
        committed_bytes_max=draw.choice((1, 200, 1 << 20)),
        promote_lag_max=draw.choice((0, 4, 64)),
        tick_skew_per_mille=draw.choice((0, 10, 50, 250)),
        turn_us=draw.choice((0, 0, 200, 2000, 10 * MS)),
        snapshot_every=draw.choice((0, 3, 6, 12, 40)),
        retain=draw.choice((0, 0, 0, 1, 10)),
        unreachable_hints=draw.random() < 0.5,
    )
    plan = _draw_environment(draw, plan)
    upgrade = Random(f"{seed}:upgrade")
    plan = msgspec.structs.replace(
        plan,
        finalize_after_s=upgrade.choice((-1, 0, 0, 1)),
        upgraded_at_us=upgrade.choice((0, upgrade.randrange(plan.duration_us))),
    )
    memory = Random(f"{seed}:memory")
    plan = msgspec.structs.replace(
        plan,
        save_bytes_max=memory.choice((1, 200, 8 << 20, 8 << 20)),
        load_bytes_max=memory.choice((1, 100, 300, 4 << 20)),
        log_memory_bytes=memory.choice((0, 100, 500, 64 << 20)),
    )
    shell = Random(f"{seed}:shell")
    plan = msgspec.structs.replace(
        plan, shutdown_grace_s=shell.choice((0.0, 0.5, 2.0, 10.0)), sweep_us=shell.randrange(300, 3000) * MS
    )
    delay_s = Random(f"{seed}:delay").choice((0.0, 0.0, 0.3, 1.5))
    plan = msgspec.structs.replace(plan, shutdown_delay_s=min(delay_s, plan.shutdown_grace_s))
    history = Random(f"{seed}:history")
    plan = msgspec.structs.replace(
        plan, history_age_s=history.choice((0, 0, 1, 3)), history_bytes_max=history.choice((0, 0, 1000, 20_000))
    )
    handing = Random(f"{seed}:handing").choice((0, 300, 1000, 1000))
    plan = msgspec.structs.replace(plan, handing_per_mille=handing)
    plan = msgspec.structs.replace(plan, tellers=Random(f"{seed}:tellers").choice((0, 0, 1, 2)))
    plan = msgspec.structs.replace(plan, watchers=Random(f"{seed}:watchers").choice((0, 1, 2, 4)))
    plan = msgspec.structs.replace(plan, holders=Random(f"{seed}:holders").choice((1, 1, 2, 3)))
    ranges = Random(f"{seed}:ranges")
    plan = msgspec.structs.replace(plan, readers=ranges.choice((0, 0, 1, 2)), slice_keys=ranges.choice((1, 2, 3, 512)))
    faults = (
        *_draw_faults(draw, plan),
        *_draw_full_disks(Random(f"{seed}:space"), plan),
        *_draw_set_backs(Random(f"{seed}:set_back"), plan),
        *_draw_moves(Random(f"{seed}:move"), plan),
        *_draw_compactions(history, plan),
    )
    plan = msgspec.structs.replace(plan, faults=tuple(sorted(faults, key=lambda fault: fault.at_us)))
    if any(fault.kind == "state_damage" for fault in plan.faults) and shell.random() < 0.8:
        # Below level 2 nobody could notice it.
        plan = msgspec.structs.replace(plan, finalize_after_s=0, upgraded_at_us=0)
    return plan


def _draw_environment(draw: Random, plan: Plan) -> Plan:
    def sometimes(*values: int) -> int:
        return draw.choice(values) if draw.random() < 0.5 else 0

    duration_us = draw.choice((8, 12, 20, 32)) * S
    operations = draw.choice((20, 40, 60, 80))
    # Either a burst, and then faults that find the cluster idle, or operations all through the faults.
    spread_us = 2 * duration_us // operations
    latency_us = draw.choice((100, 500, 500, 2 * MS, 10 * MS))
    disk_us = draw.choice((50, 300, 300, 3 * MS, 20 * MS))
    return msgspec.structs.replace(
        plan,
        latency_us=latency_us,
        jitter_us=draw.choice((1, latency_us, 10 * latency_us)),
        drop_per_mille=sometimes(5, 20, 50, 150),
        duplicate_per_mille=sometimes(5, 20, 100),
        slow_per_mille=sometimes(2, 10, 30),
        slow_us=draw.choice((50 * MS, 500 * MS, 3 * S)),
        disk_us=disk_us,
        disk_jitter_us=draw.choice((1, disk_us, 10 * disk_us)),
        clients=draw.randrange(1, 7),
        operations=operations,
        keys=draw.choice((1, 2, 3, 6, 12)),
        think_us=draw.choice((1 * MS, 20 * MS, 100 * MS, spread_us, spread_us, spread_us)),
        value_bytes=draw.choice((8, 16, 120)),
        timeout_us=draw.choice((150, 500, 1500)) * MS,
        deadline_us=draw.choice((1, 3, 8)) * S,
        session_per_mille=draw.choice((0, 500, 800, 1000)),
        read_per_mille=draw.choice((100, 300, 500, 700)),
        delete_per_mille=draw.choice((0, 50, 200)),
        compare_per_mille=draw.choice((0, 200, 500)),
        client_duplicate_per_mille=sometimes(20, 100),
        duration_us=duration_us,
        removed_keep_running=draw.random() < 0.5,
    )


def _draw_faults(draw: Random, plan: Plan) -> tuple[Fault, ...]:
    """Draw which kinds of faults this seed uses, how many of each, and when."""
    apart = ("disks_fill", *SET_BACK_KINDS)
    kinds = [kind for kind in FAULT_KINDS if kind not in apart and draw.random() < 0.4]
    busy = draw.choice((0, 3, 8, 20, 36))
    faults = []
    for _ in range(busy if kinds else 0):
        kind = draw.choice(kinds)
        timeout = plan.election_timeout_ticks * plan.tick_us
        faults.append(
            Fault(
                at_us=draw.randrange(200 * MS, plan.duration_us),
                kind=kind,
                target=-1 if draw.random() < 0.4 else draw.randrange(7),
                duration_us=draw.choice((timeout // 4, timeout, 2 * timeout, 5 * timeout))
                * draw.randrange(50, 150)
                // 100,
                argument=draw.randrange(1 << 16),
                point=draw.choice(CRASH_POINTS) if kind == "crash_point" else "",
            )
        )
    return tuple(sorted(faults, key=lambda fault: fault.at_us))


def _draw_full_disks(draw: Random, plan: Plan) -> tuple[Fault, ...]:
    if draw.random() < 0.8:
        return ()
    return tuple(
        Fault(
            at_us=draw.randrange(200 * MS, plan.duration_us),
            kind="disks_fill",
            target=draw.randrange(7),
            duration_us=draw.randrange(2 * S, 8 * S),
            argument=draw.randrange(1 << 16),
        )
        for _ in range(draw.choice((1, 1, 2)))
    )


def _draw_set_backs(draw: Random, plan: Plan) -> list[Fault]:
    """Draw copies of disks, and when each takes the place of the disk that it was taken of."""
    faults: list[Fault] = []
    if draw.random() < 0.6:
        return faults
    for _ in range(draw.choice((1, 2, 4, 8))):
        target = draw.randrange(7)
        copied_us = draw.randrange(200 * MS, plan.duration_us)
        back_us = draw.randrange(copied_us, plan.duration_us)
        faults.append(Fault(copied_us, "disk_copy", target))
        faults.append(
            Fault(
                back_us,
                "disk_set_back",
                target,
                duration_us=draw.randrange(1, 4) * plan.election_timeout_us,
                argument=draw.choice((0, 0, SET_BACK_ANYHOW))
                | draw.choice((0, SET_BACK_OFF))
                | draw.choice((0, 0, SET_BACK_MOVES))
                | draw.choice((0, 0, SET_BACK_LATE))
                | draw.randrange(SET_BACK_LATE_MAX) * 2 * SET_BACK_LATE,
            )
        )
    return faults


def _draw_compactions(draw: Random, plan: Plan) -> tuple[Fault, ...]:
    """Draw when somebody compacts, and at which part of the history that there is then (per mille)."""
    return tuple(
        Fault(
            at_us=draw.randrange(200 * MS, plan.duration_us),
            kind=COMPACT,
            target=draw.randrange(7),
            argument=draw.randrange(1100),
        )
        for _ in range(draw.choice((0, 0, 1, 3, 10)))
    )


def _draw_moves(draw: Random, plan: Plan) -> tuple[Fault, ...]:
    """Draw who moves to another address, and when; in most seeds nobody does."""
    timeout = plan.election_timeout_ticks * plan.tick_us
    return tuple(
        Fault(
            at_us=draw.randrange(200 * MS, plan.duration_us),
            kind=MOVE,
            target=-1 if draw.random() < 0.3 else draw.randrange(7),
            duration_us=draw.choice((timeout // 4, timeout, 5 * timeout)),
            argument=draw.randrange(1 << 16),
        )
        for _ in range(draw.choice((0, 0, 0, 1, 2, 5)))
    )
