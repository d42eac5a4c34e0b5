"""Writes at any node of three real processes, while leaders are killed: each is applied once, and no answer lies."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from pathlib import Path

from acceptance.processes import Cluster
from waiting import eventually

KEYS = 4
KILLS = 4
CLIENTS = 6
WRITES = 60
"""Between two kills."""
DONE, UNKNOWN = "done", "outcome_unknown"


def put(cluster: Cluster, name: str, key: str, value: str) -> str:
    """Put at a node that hands it over if it does not lead; return what came of it."""
    try:
        answer = cluster.put(name, key, value.encode(), timeout_s=30.0)
    except OSError:
        return UNKNOWN
    return DONE if answer.status == 200 else str(answer.document["code"])


def written(cluster: Cluster, name: str) -> Counter[str]:
    """Return how often each value was put."""
    found: Counter[str] = Counter()
    for key in range(KEYS):
        answer = cluster.get(name, f"k{key}", "?history=true&limit=1000")
        found.update(each["value"] for each in answer.document["versions"])
    return found


def done(outcomes: dict[str, str]) -> int:
    """Return how many writes were done."""
    return list(outcomes.copy().values()).count(DONE)


def is_reached(outcomes: dict[str, str], goal: int) -> bool:
    """Tell whether so many writes were done."""
    return done(outcomes) >= goal


def test_writes_at_every_node_while_leaders_are_killed_are_applied_once_and_no_answer_lies(tmp_path: Path) -> None:
    """No value is put twice by a client, and there are no sessions: the history has each value once, or not at all."""
    with Cluster(tmp_path, flags=("--forward",)) as cluster:
        cluster.settled()
        outcomes: dict[str, str] = {}
        stop = threading.Event()

        def write(client: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                value = f"c{client}-{number}"
                name = cluster.names[(client + number) % len(cluster.names)]
                outcomes[value] = put(cluster, name, f"k{client % KEYS}", value)

        threads = [threading.Thread(target=write, args=(client,)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            for kill in range(KILLS + 1):
                goal = done(outcomes) + WRITES
                eventually("writes", partial(is_reached, outcomes, goal))
                if kill < KILLS:
                    leader = cluster.leader()
                    cluster.kill(leader)
                    cluster.start(leader)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        cluster.settled()
        cluster.converge()
        found = written(cluster, cluster.names[0])
        assert max(found.values()) == 1, "nothing was applied twice"
        assert "not_leader" not in outcomes.values(), "nothing was redirected"
        for value, outcome in outcomes.items():
            if outcome != UNKNOWN:
                assert found[value] == (outcome == DONE), (value, outcome)
