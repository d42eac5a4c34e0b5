"""What is measured: the cells, the goals, and one cell's measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from bench.clusters import Cluster
from bench.generators import Generator, Load, finish
from bench.processes import BenchError, cpu_seconds, machine_busy_seconds, resident_bytes

CLIENTS = (1, 64, 256)
IDLE_SECONDS = 3.0


class Settings(msgspec.Struct, frozen=True):
    """How a run is done; written into its JSON."""

    seconds: float = 5.0
    """Of each cell, after its warm-up."""
    warmup_seconds: float = 1.0
    rounds: int = 3
    failovers: int = 10
    """Of each system."""
    keys: int = 100_000
    value_bytes: int = 200
    clients: tuple[int, ...] = CLIENTS


class Cell(msgspec.Struct, frozen=True):
    """One kind of load."""

    transport: str
    """``http`` or ``grpc``."""
    op: str
    clients: int
    batch: int = 1
    """Puts of one transaction, which is one operation; 1: no transactions. Only the generators in Go can do more."""

    @property
    def name(self) -> str:
        """What the table and the JSON call it."""
        return f"{self.op} {self.transport} {self.clients}" + (f" x{self.batch}" if self.batch > 1 else "")


class Measured(msgspec.Struct, frozen=True):
    """One cell of one round."""

    system: str
    round: int
    cell: Cell
    load: Load
    leader_cores: float
    """Processor seconds a second; the same for the next three."""
    followers_cores: float
    generator_cores: float
    others_cores: float
    """Everything else on the machine: on a quiet one this is near 0, and when it is not, the figures are noisy."""
    server_us_per_op: float
    """Processor time of the three nodes, in microseconds an operation: what noise moves least."""

    @property
    def ops_per_second(self) -> float:
        """The throughput."""
        return self.load.ops / self.load.seconds

    @property
    def leader_us_per_op(self) -> float:
        """Processor time of the leader alone, in microseconds an operation."""
        return self.leader_cores / self.ops_per_second * 1e6 if self.load.ops else 0.0


class Idle(msgspec.Struct, frozen=True):
    """A cluster after its load."""

    system: str
    round: int
    resident_mib: tuple[float, ...]
    """Of each node, leader first."""
    idle_cores: tuple[float, ...]
    """Processor seconds a second of each node that nobody asks anything."""


class CpuSample(msgspec.Struct, frozen=True):
    """The processor time of everything at one moment."""

    at: float
    servers: tuple[float, ...]
    machine: float

    @classmethod
    def take(cls, cluster: Cluster) -> CpuSample:
        """Read the clocks."""
        servers = tuple(cpu_seconds(server.pid) for server in cluster.servers)
        return cls(time.monotonic(), servers, machine_busy_seconds())


def fill(cluster: Cluster, generator: Generator, settings: Settings, batch: int = 1) -> Load:
    """Put every key once, so that every later get finds one; in transactions of so many."""
    leader = cluster.wait_until_ready()
    options = ["-api", cluster.system.api, "-op", "fill", "-clients", "64", *_batch(batch)]
    return finish(generator.run(f"127.0.0.1:{cluster.client_ports[leader]}", [*options, *_shape(settings)]), 300)


def measure(cluster: Cluster, generator: Generator, cell: Cell, settings: Settings, round_: int) -> Measured:
    """Put one cell's load on the leader and return what it did."""
    leader = cluster.wait_until_ready()
    options = ["-op", cell.op, "-clients", str(cell.clients), "-seed", str(1 + round_)]
    options += ["-seconds", str(settings.seconds), "-warmup", str(settings.warmup_seconds), *_shape(settings)]
    options += _batch(cell.batch)
    if cell.transport == "http":
        options += ["-api", cluster.system.api]
    process = generator.run(f"127.0.0.1:{cluster.client_ports[leader]}", options)
    try:
        # The processor clocks are read inside the measured time, so that neither warm-up nor connecting counts.
        time.sleep(settings.warmup_seconds + 0.05 * settings.seconds)
        before = CpuSample.take(cluster)
        time.sleep(0.85 * settings.seconds)
        after = CpuSample.take(cluster)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    load = finish(process, settings.seconds + 30)
    cluster.check()
    if cluster.leader() != leader:
        raise BenchError(f"{cluster.system.name}: the leader changed during {cell.name}; the figures mean nothing")
    return _measured(cluster.system.name, round_, cell, load, leader, before, after)


def _measured(
    system: str, round_: int, cell: Cell, load: Load, leader: int, before: CpuSample, after: CpuSample
) -> Measured:
    elapsed = after.at - before.at
    cores = [(b - a) / elapsed for a, b in zip(before.servers, after.servers, strict=True)]
    generator = load.cpu_seconds / load.seconds
    rate = load.ops / load.seconds
    return Measured(
        system=system,
        round=round_,
        cell=cell,
        load=load,
        leader_cores=cores[leader],
        followers_cores=sum(cores) - cores[leader],
        generator_cores=generator,
        others_cores=max(0.0, (after.machine - before.machine) / elapsed - sum(cores) - generator),
        server_us_per_op=sum(cores) / rate * 1e6 if rate else 0.0,
    )


def measure_idle(cluster: Cluster, round_: int) -> Idle:
    """Return the memory of the nodes, and what they use when nobody asks anything."""
    leader = cluster.wait_until_ready()
    time.sleep(1.0)  # what the last load left behind: answers to followers, a write-ahead log's checkpoint
    before = CpuSample.take(cluster)
    time.sleep(IDLE_SECONDS)
    after = CpuSample.take(cluster)
    elapsed = after.at - before.at
    order = [leader, *(i for i in range(len(cluster.servers)) if i != leader)]
    cores = [(b - a) / elapsed for a, b in zip(before.servers, after.servers, strict=True)]
    return Idle(
        system=cluster.system.name,
        round=round_,
        resident_mib=tuple(resident_bytes(cluster.servers[i].pid) / 2**20 for i in order),
        idle_cores=tuple(cores[i] for i in order),
    )


def http_cells(clients: Sequence[int]) -> list[Cell]:
    """The cells that both systems run."""
    return [Cell("http", op, n) for op in ("put", "get") for n in clients]


def grpc_cells(clients: Sequence[int]) -> list[Cell]:
    """The cells that etcd runs through its own client, as a second reference."""
    return [Cell("grpc", op, n) for op in ("put", "get") for n in clients]


def _batch(batch: int) -> list[str]:
    return ["-batch", str(batch)] if batch > 1 else []


def _shape(settings: Settings) -> list[str]:
    return ["-keys", str(settings.keys), "-value-bytes", str(settings.value_bytes)]
