"""What applying costs: nanoseconds an operation in batches of 64, and a snapshot of a large store.

Run as ``.venv/bin/python bench/apply.py [KEYS]``. Every figure is the best of a few rounds in one process: it shows
what the code costs in CPU time, not what waiting on a loaded machine adds to it.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
import time
from collections.abc import Callable

from kvorum.kv.commands import Command, Delete, Put, encode_batch
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.messages import Configuration, Entry, EntryKind

BATCH = 64
ROUNDS = 5
VALUE_BYTES = 200


def key_of(number: int) -> bytes:
    return b"key-%08d" % number


def batches(make: Callable[[int], Command], count: int) -> list[bytes]:
    return [
        encode_batch(1_700_000_000_000 + batch, [make(batch * BATCH + i) for i in range(BATCH)])
        for batch in range(count)
    ]


def apply_all(store: Store, datas: list[bytes]) -> float:
    """Apply; return nanoseconds an operation."""
    index = store.applied_index
    entries = [Entry(index + 1 + i, 1, EntryKind.COMMAND, data) for i, data in enumerate(datas)]
    begin = time.process_time_ns()
    for entry in entries:
        store.apply(entry)
    return (time.process_time_ns() - begin) / (len(datas) * BATCH)


def bare_dict() -> float:
    """Overwrite random keys of a plain dict: what the machine itself charges for the memory; nanoseconds each."""
    rng = random.Random(2)
    table = {key_of(number): number for number in range(100_000)}
    keys = [key_of(rng.randrange(100_000)) for _ in range(400 * BATCH)]
    begin = time.process_time_ns()
    for key in keys:
        table[key] = 0
    return (time.process_time_ns() - begin) / len(keys)


def bench_operations() -> None:
    rng = random.Random(1)
    value = rng.randbytes(VALUE_BYTES)
    sequences = [0] * 64

    def put_in_session(number: int) -> Command:
        client = number // BATCH % 64
        sequences[client] += 1
        return Put(key_of(rng.randrange(100_000)), value, -1, f"client-{client:016x}", sequences[client])

    kinds: list[tuple[str, Callable[[int], Command]]] = [
        ("put, new key", lambda n: Put(key_of(n), value)),
        ("put, random of 100,000 keys", lambda n: Put(key_of(rng.randrange(100_000)), value)),
        ("put in a session", put_in_session),
        ("put, compare fails", lambda n: Put(key_of(rng.randrange(100_000)), value, 1_000_000_000)),
        ("delete, finds nothing", lambda n: Delete(b"none")),
    ]
    store = Store()
    for name, make in kinds:
        best = min(apply_all(store, batches(make, 400)) for _ in range(ROUNDS))
        print(f"{name:32} {best:8.0f} ns/op")
    best = min(bare_dict() for _ in range(ROUNDS))
    print(f"{'for scale: a bare dict, random':32} {best:8.0f} ns/op")


def bench_snapshot(keys: int) -> None:
    store = Store()
    step = 400 * BATCH
    for first in range(0, keys, step):
        apply_all(store, batches(lambda n, first=first: Put(key_of(first + n), b"v" * 128), 400))  # type: ignore[misc]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(store):,} keys x 128 B; peak resident {peak / 1024:.0f} MiB")
    begin = time.process_time_ns()
    gc.collect()
    print(f"{'gc.collect':32} {(time.process_time_ns() - begin) / 1e6:8.2f} ms")
    begins = []
    for _ in range(ROUNDS):
        begin = time.process_time_ns()
        cut = store.begin_snapshot()
        begins.append(time.process_time_ns() - begin)
        cut.close()
    print(f"{'begin_snapshot, best and worst':32} {min(begins) / 1e6:8.2f} {max(begins) / 1e6:.2f} ms")
    cut = store.begin_snapshot()
    chunks, slices = [], []
    while True:
        begin = time.process_time_ns()
        chunk = cut.next_chunk()
        slices.append(time.process_time_ns() - begin)
        if chunk is None:
            break
        chunks.append(chunk)
    cut.close()
    size = sum(len(chunk) for chunk in chunks)
    print(
        f"{'writing it':32} {sum(slices) / 1e6:8.0f} ms, {size / 2**20:.0f} MiB; "
        f"slowest slice {max(slices) / 1e6:.2f} ms"
    )
    begin = time.process_time_ns()
    restorer = Restorer(Configuration())
    for chunk in chunks:
        restorer.feed(chunk)
    restored = restorer.finish()
    print(f"{'restoring it':32} {(time.process_time_ns() - begin) / 1e6:8.0f} ms")
    if (restored.state_hash, len(restored)) != (store.state_hash, len(store)):
        raise SystemExit("the restored store differs")


if __name__ == "__main__":
    bench_operations()
    bench_snapshot(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
