"""A million keys in whole clusters: filling them, the memory of a node, its restart, and puts, of Kvorum and of etcd.

Run as ``.venv/bin/python -m bench.million``, or by ``make bench BENCH=--million``: about four minutes. It prints a
table in Markdown and writes the raw figures to a file. It needs etcd (``$ETCD``, or on the PATH) and Go, and says so.

Each system gets two clusters of three nodes: one of 1,000 keys, and one that is filled to a million. The large clusters
of both run at the same time, and the systems are measured in turns, one idle while the other works: what drifts on the
machine meets both. In this order: the fill, memory, puts of single keys, transactions, restarts.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import fmean, median

import msgspec

from bench.cells import Cell, Measured, Settings, fill, measure
from bench.clusters import Cluster, Etcd, Kvorum, System
from bench.generators import Generator, build, etcd_generator, http_generator
from bench.processes import BenchError, resident_bytes
from bench.runs import machine, retried, tell

KEYS = 1_000_000
FEW_KEYS = 1_000
VALUE_BYTES = 128
CLIENTS = 64
BATCH = 64
PUT = Cell("http", "put", CLIENTS)
TXN = Cell("http", "put", CLIENTS, BATCH)
SETTLE_S = 2.0
"""Between the fill and the reading of memory."""
WITHIN_S = 60.0
"""How long a node may take to end, and to serve again."""
PROBE_EVERY_S = 0.01


class Memory(msgspec.Struct, frozen=True):
    """The memory of one process, in MiB."""

    resident: float
    """VmRSS: with what is mapped of files, as etcd's database."""
    anonymous: float
    """RssAnon: without it."""


class Restart(msgspec.Struct, frozen=True):
    """One restart of a follower, in seconds."""

    end: float
    """From SIGTERM to its end."""
    serve: float
    """From its start to its first answer to a linearizable get."""


class Figures(msgspec.Struct, frozen=True):
    """What one system did."""

    system: str
    version: str
    filled_keys_per_s: float
    leader: Memory
    followers: tuple[Memory, ...]
    few: Measured
    """Puts of single keys, of a few keys; the next: of all of them."""
    many: Measured
    txn: Measured
    """Transactions of puts, of all keys."""
    txn_grpc: Measured | None
    """The same through etcd's own client."""
    restarts: tuple[Restart, ...]

    @property
    def kept(self) -> float:
        """The throughput of puts on a million keys, by that on a thousand."""
        return self.many.ops_per_second / self.few.ops_per_second

    @property
    def noise_cores(self) -> float:
        """What other programs used during the noisiest measurement."""
        return max(each.others_cores for each in (self.few, self.many, self.txn))


class Row(msgspec.Struct, frozen=True):
    """One line of the table."""

    name: str
    etcd: float
    kvorum: float
    unit: str
    at_least: float | None = None
    """The ratio of Kvorum's figure to etcd's that the project wants."""
    at_most: float | None = None
    itself_at_least: float | None = None
    """What Kvorum's own figure should be."""

    def __str__(self) -> str:
        ratio = self.kvorum / self.etcd if self.etcd else float("inf")
        goal, is_met = "-", None
        if self.at_least is not None:
            goal, is_met = f">= {self.at_least:g}x", ratio >= self.at_least
        elif self.at_most is not None:
            goal, is_met = f"<= {self.at_most:g}x", ratio <= self.at_most
        elif self.itself_at_least is not None:
            goal, is_met = f"Kvorum's >= {self.itself_at_least:g}", self.kvorum >= self.itself_at_least
        verdict = {None: "", True: "met", False: "NOT met"}[is_met]
        figures = f"{_shown(self.etcd)} | {_shown(self.kvorum)} | {self.unit} | {ratio:.2f}x"
        return f"| {self.name} | {figures} | {goal} | {verdict} |"


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"


def rows(etcd: Figures, kvorum: Figures) -> list[Row]:
    """Return the lines of the table."""

    def row(name: str, figure: Callable[[Figures], float], unit: str, **goal: float) -> Row:
        return Row(name, figure(etcd), figure(kvorum), unit, **goal)

    puts = f"put, {CLIENTS} connections"
    txns = f"transactions of {BATCH} puts"
    made = [
        row(f"fill of {KEYS:,} keys by {txns}", lambda f: f.filled_keys_per_s, "keys/s", at_least=3.0),
        row(f"{txns} of present keys", lambda f: BATCH * f.txn.ops_per_second, "keys/s", at_least=3.0),
    ]
    if etcd.txn_grpc is not None:
        grpc = BATCH * etcd.txn_grpc.ops_per_second
        made.append(Row("the same, etcd over gRPC", grpc, BATCH * kvorum.txn.ops_per_second, "keys/s"))
    return [
        *made,
        row(f"processor of the three nodes a key, {txns} over HTTP", lambda f: f.txn.server_us_per_op / BATCH, "us"),
        row("resident memory after the fill, leader", lambda f: f.leader.resident, "MiB", at_most=0.8),
        row(
            "the same, mean of the followers",
            lambda f: fmean(each.resident for each in f.followers),
            "MiB",
            at_most=0.8,
        ),
        row("of it not mapped from files, leader", lambda f: f.leader.anonymous, "MiB"),
        row("the same, mean of the followers", lambda f: fmean(each.anonymous for each in f.followers), "MiB"),
        row(
            "restart of a follower until it serves",
            lambda f: median(each.serve for each in f.restarts),
            "s",
            at_most=1.0,
        ),
        row("its end after SIGTERM", lambda f: median(each.end for each in f.restarts), "s"),
        row(f"{puts}, {FEW_KEYS:,} keys", lambda f: f.few.ops_per_second, "ops/s"),
        row(f"{puts}, {KEYS:,} keys", lambda f: f.many.ops_per_second, "ops/s"),
        row(f"processor of the three nodes a put, {KEYS:,} keys", lambda f: f.many.server_us_per_op, "us"),
        row("the throughput of many keys by that of few", lambda f: f.kept, "", itself_at_least=0.9),
    ]


def report(etcd: Figures, kvorum: Figures) -> list[str]:
    """Return the table in Markdown, and what is to be known of it."""
    lines = ["| what | etcd | Kvorum | | ratio | goal | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    lines += map(str, rows(etcd, kvorum))
    lines += ["", f"etcd {etcd.version}; Kvorum {kvorum.version}; values of {VALUE_BYTES} B; resident memory is VmRSS."]
    noise = max(etcd.noise_cores, kvorum.noise_cores)
    if noise > 0.15:
        lines.append(f"NOISY: other programs used up to {noise:.2f} cores during a measurement.")
    for each in (etcd, kvorum):
        for m in (each.few, each.many, each.txn, each.txn_grpc):
            if m is not None and m.load.errors:
                lines.append(f"ERRORS: {each.system}, {m.cell.name}: {m.load.errors}, first: {m.load.first_error}")
    return lines


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure_all(
    systems: Sequence[System],
    generator: Generator,
    grpc: Generator | None,
    settings: Settings,
    restarts: int,
    folder: Path,
) -> list[Figures]:
    """Measure the systems in turns. ``grpc``: etcd's own client, if there is one."""
    few_settings = msgspec.structs.replace(settings, keys=FEW_KEYS)
    few: list[Measured] = []
    for system in systems:
        with Cluster(system, folder / f"{system.name}-few") as cluster:
            retried(partial(fill, cluster, generator, few_settings))
            few.append(_load(cluster, generator, PUT, few_settings))
    with ExitStack() as stack:
        clusters = [stack.enter_context(Cluster(system, folder / system.name)) for system in systems]
        filled = [_fill(cluster, generator, settings) for cluster in clusters]
        many = [_load(cluster, generator, PUT, settings) for cluster in clusters]
        txn = [_load(cluster, generator, TXN, settings) for cluster in clusters]
        over_grpc = [
            _load(cluster, grpc, msgspec.structs.replace(TXN, transport="grpc"), settings)
            if grpc is not None and cluster.system.name == "etcd"
            else None
            for cluster in clusters
        ]
        # In turns, too: the first of each, then the second of each.
        restarted = [[_restart(cluster, number) for cluster in clusters] for number in range(restarts)]
    return [
        Figures(
            system=system.name,
            version=system.version(),
            filled_keys_per_s=filled[number][0],
            leader=filled[number][1],
            followers=filled[number][2],
            few=few[number],
            many=many[number],
            txn=txn[number],
            txn_grpc=over_grpc[number],
            restarts=tuple(each[number] for each in restarted),
        )
        for number, system in enumerate(systems)
    ]


def _fill(cluster: Cluster, generator: Generator, settings: Settings) -> tuple[float, Memory, tuple[Memory, ...]]:
    """Return keys a second, and the memory of the leader and of the followers."""
    filled = retried(partial(fill, cluster, generator, settings, BATCH))
    keys_per_s = BATCH * filled.ops / filled.seconds
    tell(f"{cluster.system.name}: filled {settings.keys:,} keys, {keys_per_s:,.0f} keys/s")
    time.sleep(SETTLE_S)
    leader = cluster.wait_until_ready()
    memory = [_memory(server.pid) for server in cluster.servers]
    tell(f"{cluster.system.name}: resident {', '.join(f'{each.resident:,.0f}' for each in memory)} MiB")
    return keys_per_s, memory[leader], tuple(each for number, each in enumerate(memory) if number != leader)


def _load(cluster: Cluster, generator: Generator, cell: Cell, settings: Settings) -> Measured:
    measured = retried(partial(measure, cluster, generator, cell, settings, 0))
    what = f"{cluster.system.name}: {cell.name}, {settings.keys:,} keys"
    tell(f"{what}: {cell.batch * measured.ops_per_second:,.0f} keys/s, {measured.server_us_per_op:,.0f} us/op")
    return measured


def _memory(pid: int) -> Memory:
    return Memory(resident_bytes(pid) / 2**20, resident_bytes(pid, "RssAnon") / 2**20)


def _restart(cluster: Cluster, number: int) -> Restart:
    """Restart a follower, in turns."""
    leader = cluster.wait_until_ready(WITHIN_S)
    time.sleep(SETTLE_S)
    followers = [each for each in range(len(cluster.servers)) if each != leader]
    chosen = followers[number % len(followers)]
    server, port = cluster.servers[chosen], cluster.client_ports[chosen]
    begin = time.monotonic()
    server.terminate(WITHIN_S)
    ended = time.monotonic()
    server.start()
    while not serves(cluster.system, port, "key-00000000"):
        server.check()
        if time.monotonic() - ended > WITHIN_S:
            raise BenchError(f"{server.name} does not serve within {WITHIN_S:.0f} s; see {server.log}")
        time.sleep(PROBE_EVERY_S)
    restart = Restart(ended - begin, time.monotonic() - ended)
    tell(
        f"{cluster.system.name}: a follower ended in {restart.end:.2f} s, and served {restart.serve:.2f} s after its"
        " start"
    )
    return restart


def serves(system: System, port: int, key: str) -> bool:
    """Say whether a node itself answers a linearizable get of a key that the load generator has put."""
    method, path, body = system.get(key)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN_S)
    try:
        connection.request(method, path, body=body)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    # A value begins with its key; etcd's JSON has both in base64.
    return response.status == 200 and (key.encode() in content or base64.b64encode(key.encode()) in content)


def missing() -> str | None:
    """Say what is not there that is needed; None: nothing."""
    if Etcd.find() is None:
        return "etcd: neither $ETCD nor etcd on the PATH"
    if build("loadgen") is None:
        return "bench/loadgen: it is not built, and go, which builds it, is not on the PATH"
    return None


def run(seconds: float, restarts: int, out: Path) -> int:
    """Measure both systems, print the table, and return the status of the process."""
    if (reason := missing()) is not None:
        tell(f"SKIPPED: a million keys: {reason}")
        return 0
    etcd = Etcd.find()
    assert etcd is not None
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(seconds=seconds, rounds=1, failovers=0, keys=KEYS, value_bytes=VALUE_BYTES)
    folder = Path(tempfile.mkdtemp(prefix="million-", dir=out))
    try:
        measured = measure_all((etcd, Kvorum()), http_generator(), etcd_generator(), settings, restarts, folder)
    except BenchError as error:
        tell(f"bench: {error}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lines = report(*measured)
    lines.append(", ".join(f"{key} {value}" for key, value in machine(out).items()))
    name = time.strftime("million-%Y%m%d-%H%M%S")
    (out / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(measured)))
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 1 if any(line.startswith("ERRORS") for line in lines) else 0


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.million", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=3, help="of a follower of each system (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder of data and results")
    options = parser.parse_args()
    if options.seconds <= 0 or options.restarts < 1:
        parser.error("--seconds and --restarts must be positive")
    return run(options.seconds, options.restarts, options.out.resolve())


if __name__ == "__main__":
    sys.exit(main())
