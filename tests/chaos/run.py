"""One run: a cluster under a recorded load, faults drawn by a seed, then peace, and the judgement."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from chaos.faults import Faults, Nodes
from chaos.network import Network
from e2e import recorder
from e2e.recording import judge
from waiting import eventually

RECOVERY_S = 30.0
"""Within this time after the last fault writes are acknowledged again, and all nodes agree."""
READ_BACK_S = 180.0
LOAD_BEGINS_S = 60.0
FLAGS = ("--request-timeout-ms", "2000", "--snapshot-entries", "400", "--log-retain-entries", "100")
"""Small snapshots: whoever was away for long needs one."""

_ELECTED = re.compile(r"(\S+@[0-9a-f]+) was elected leader of term (\d+)")


class Report(msgspec.Struct, frozen=True):
    """What a run showed; an empty ``violations`` means that no promise was broken."""

    seed: int
    size: int
    seconds: float
    faults: dict[str, int]
    partitions: bool
    acknowledged: int
    operations: int
    unknown: int
    longest_gap_ms: int
    recovery_s: float
    terms: int
    violations: tuple[str, ...]


class Load:
    """The recorder of the e2e suite, as a child: kvorum_client's writes, plain reads at every node.

    Args:
        endpoints: of all nodes.
        seed: names the keys.
        writers: how many clients write.
    """

    def __init__(self, endpoints: list[str], seed: int, writers: int) -> None:
        script = [sys.executable, recorder.__file__, "--prefix", f"chaos-{seed}", "--writers", str(writers)]
        self._process = subprocess.Popen(
            [*script, "--endpoints", ",".join(endpoints)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines: list[dict[str, Any]] = []
        self.acknowledged = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            document = json.loads(line)
            if "second" in document:
                self.acknowledged = document["second"]["acknowledged"]
            else:
                self.lines.append(document)

    def wait_for_writes(self, count: int, timeout_s: float) -> float:
        """Wait until so many more writes are acknowledged; return how long that took."""
        since, goal = time.monotonic(), self.acknowledged + count

        def enough() -> bool:
            if self._process.poll() is not None:
                raise AssertionError(f"the load ended with {self._process.returncode}")
            return self.acknowledged >= goal

        eventually(f"{count} writes are acknowledged", enough, timeout_s)
        return time.monotonic() - since

    def stop(self) -> None:
        """Let it read everything back and print its history."""
        assert self._process.stdin is not None
        self._process.stdin.write("stop\n")
        self._process.stdin.flush()
        self._process.wait(READ_BACK_S)
        self._reader.join()

    def close(self) -> None:
        """End it in any case."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def run(
    folder: Path,
    *,
    seed: int,
    size: int,
    seconds: float,
    partitions: bool,
    say: Callable[[str], None],
    writers: int = 3,
) -> Report:
    """Run once; ``folder`` keeps data, logs and the history."""
    random = Random(seed)
    nodes = Nodes(folder, size, FLAGS)
    if partitions:
        nodes.network = Network(nodes.peer_ports)
    violations: list[str] = []
    done: Counter[str] = Counter()
    recovery_s = RECOVERY_S
    began = time.monotonic()
    with nodes:
        load = Load([f"http://{address}" for address in nodes.addresses.values()], seed, writers)
        try:
            load.wait_for_writes(20, LOAD_BEGINS_S)
            _disturb(nodes, load, random, began + seconds, done, violations, say)
            violations += [f"{name} died by itself" for name, p in nodes.processes.items() if p.poll() is not None]
            since = time.monotonic()
            try:
                load.wait_for_writes(10, RECOVERY_S)
                recovery_s = time.monotonic() - since
                say(f"  writes again after {recovery_s:.1f} s; reading everything back")
                load.stop()
                nodes.converge()
            except (AssertionError, subprocess.TimeoutExpired) as error:
                violations.append(f"no recovery: {error}")
        finally:
            load.close()
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in load.lines))
    violations += _what_the_logs_say(nodes)
    if not load.lines or "summary" not in load.lines[-1]:
        return Report(seed, size, 0, dict(done), partitions, 0, 0, 0, 0, recovery_s, 0, (*violations, "no history"))
    verdict = judge(load.lines)
    return Report(
        seed=seed,
        size=size,
        seconds=round(time.monotonic() - began, 1),
        faults=dict(sorted(done.items())),
        partitions=partitions,
        acknowledged=verdict.acknowledged,
        operations=verdict.operations,
        unknown=verdict.unknown,
        longest_gap_ms=verdict.gap_ms,
        recovery_s=round(recovery_s, 2),
        terms=verdict.terms,
        violations=(*violations, *verdict.violations),
    )


def _disturb(
    nodes: Nodes,
    load: Load,
    random: Random,
    until: float,
    done: Counter[str],
    violations: list[str],
    say: Callable[[str], None],
) -> None:
    faults = Faults(nodes, random)
    names = sorted(faults.by_name)
    deck: list[str] = []
    while time.monotonic() < until:
        if not deck:  # Every fault once before any comes again.
            deck = random.sample(names, len(names))
        name = deck.pop()
        say(f"  {max(until - time.monotonic(), 0):4.0f} s to go, {load.acknowledged:6} writes: {name}")
        try:
            faults.by_name[name]()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            violations.append(f"{name}: {error}")
            return
        done[name] += 1
        ended = {victim: p.returncode for victim, p in nodes.processes.items() if p.poll() is not None}
        if ended:
            violations.append(f"after {name} some nodes had ended: {ended}")
            return
        time.sleep(random.uniform(0.0, 1.5))


def _what_the_logs_say(nodes: Nodes) -> list[str]:
    """One leader a term, by the nodes' own words, and no traceback."""
    leaders: dict[int, set[str]] = defaultdict(set)
    found = []
    for name in nodes.names:
        text = nodes.log_file(name).read_text(errors="replace")
        if "Traceback" in text:
            found.append(f"the log of {name} has a traceback: {nodes.log_file(name)}")
        for match in _ELECTED.finditer(text):
            leaders[int(match[2])].add(match[1])
    found += [f"term {term} had the leaders {sorted(ids)}" for term, ids in leaders.items() if len(ids) > 1]
    if not leaders:
        found.append(f"no log in {os.fspath(nodes.folder)} tells of a leader: the check means nothing")
    return found
