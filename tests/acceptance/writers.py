"""Clients that do every kind of write at any node of a cluster, and compare what they were told with the history."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any, NamedTuple

from acceptance.processes import Answer, Cluster
from waiting import eventually

CLIENTS = 6
WRITES = 40
"""Between two faults."""
REFUSED = frozenset({"overloaded", "no_leader", "not_leader", "not_serving", "lock_wait_timeout"})
UNKNOWN = "outcome_unknown"
FORWARD = "forward=true&timeout_ms=8000"


class Told(NamedTuple):
    """What a client asked for, and what it was told."""

    kind: str
    keys: tuple[str, ...]
    value: str
    """What the keys have after it; empty: they do not exist."""
    code: str
    """``done``, or the code of the error; ``outcome_unknown`` also if there was no answer."""
    revision: int = 0


class Client:
    """Does one thing after the other at any node, and remembers what it was told."""

    def __init__(self, cluster: Cluster, number: int, stop: threading.Event) -> None:
        self.told: list[Told] = []
        self.statuses: set[int] = set()
        self._cluster = cluster
        self._name = f"c{number}"
        self._random = Random(number)
        self._stop = stop
        self._count = 0
        self._sequence = 0
        self.thread = threading.Thread(target=self._run, name=self._name)

    def _run(self) -> None:
        kinds = (self._put, self._transact, self._delete, self._lease, self._lock, self._retry)
        while not self._stop.is_set():
            self._count += 1
            self._random.choice(kinds)()

    def _ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[str, dict[str, Any]]:
        name = self._random.choice(self._cluster.names)
        query = "&" if "?" in path else "?"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            answer: Answer = self._cluster.request(
                name,
                method,
                f"{path}{query}{FORWARD}",
                data,
                headers={k.replace("_", "-"): v for k, v in headers.items()},
            )
        except OSError:
            return UNKNOWN, {}
        self.statuses.add(answer.status)
        return ("done" if answer.status < 300 else str(answer.document["code"])), answer.document

    def _tell(self, kind: str, keys: tuple[str, ...], value: str, answer: tuple[str, dict[str, Any]]) -> bool:
        code, document = answer
        self.told.append(Told(kind, keys, value, code, document.get("revision", 0)))
        return code == "done"

    def _put(self) -> None:
        key, value = f"{self._name}/put", f"{self._name}-{self._count}"
        self._tell("put", (key,), value, self._ask("PUT", f"/v1/kv/{key}", value.encode()))

    def _transact(self) -> None:
        keys, value = (f"{self._name}/one", f"{self._name}/two"), f"{self._name}-{self._count}"
        then = [{"put": {"key": key, "value": value}} for key in keys]
        self._tell("txn", keys, value, self._ask("POST", "/v1/txn", {"then": then}))

    def _delete(self) -> None:
        key, value = f"{self._name}/gone", f"{self._name}-{self._count}"
        if self._tell("put", (key,), value, self._ask("PUT", f"/v1/kv/{key}", value.encode())):
            code, document = self._ask("DELETE", f"/v1/kv/{key}")
            if code != "done" or document["deleted"]:
                self._tell("delete", (key,), "", (code, document))

    def _lease(self) -> None:
        lease = self._grant()
        if lease is None:
            return
        key, value = f"{self._name}/leased", f"{self._name}-{self._count}"
        if self._tell("put", (key,), value, self._ask("PUT", f"/v1/kv/{key}?lease={lease}", value.encode())):
            code, document = self._ask("DELETE", f"/v1/leases/{lease}")
            if code != "lease_not_found":
                self._tell("revoke", (key,), "", (code, document))

    def _grant(self) -> str | None:
        code, document = self._ask("POST", "/v1/leases", {"ttl_s": 60})
        return document["id"] if code == "done" else None

    def _lock(self) -> None:
        lease = self._grant()
        if lease is None:
            return
        code, document = self._ask("POST", f"/v1/locks/a?lease={lease}&wait_ms=500")
        if code == "done":
            key = document["key"]
            self.told.append(Told("lock", (key,), lease, code, document["fencing_token"]))
        self._ask("DELETE", f"/v1/leases/{lease}")

    def _retry(self) -> None:
        """Send a write of a session until it is done, and then again, most often through another node."""
        self._sequence += 1
        key, value = f"{self._name}/session", f"{self._name}-{self._count}"
        headers = {"Idempotency_Key": f"{self._name}/{self._sequence}"}
        answers = [self._ask("PUT", f"/v1/kv/{key}", value.encode(), **headers)]
        while not self._stop.is_set() and sum(code == "done" for code, _ in answers) < 2:
            answers.append(self._ask("PUT", f"/v1/kv/{key}", value.encode(), **headers))
        done = [answer for answer in answers if answer[0] == "done"]
        assert len({document["revision"] for _, document in done}) <= 1, "a retry was told another revision"
        self._tell("put", (key,), value, done[0] if done else (UNKNOWN, {}))


@contextmanager
def clients(cluster: Cluster) -> Iterator[list[Client]]:
    """Let clients write, until the block ends."""
    stop = threading.Event()
    each = [Client(cluster, number, stop) for number in range(CLIENTS)]
    for client in each:
        client.thread.start()
    try:
        yield each
    finally:
        stop.set()
        for client in each:
            client.thread.join()


def done(each: list[Client]) -> int:
    """Return how many writes were done."""
    return sum(told.code == "done" for client in each for told in list(client.told))


def go_on(each: list[Client], writes: int = WRITES) -> None:
    """Wait until so many more writes are done."""
    goal = done(each) + writes
    eventually("writes", partial(_is_reached, each, goal), 60)


def _is_reached(each: list[Client], goal: int) -> bool:
    assert all(client.thread.is_alive() for client in each)
    return done(each) >= goal


def history(cluster: Cluster, key: str) -> dict[int, str]:
    """Return what a key was from each revision on that changed it; empty: it was deleted."""
    found: dict[int, str] = {}
    before = ""
    while True:
        answer = cluster.get(cluster.names[0], key, f"?history=true&limit=1000{before}").document
        found |= {each["mod_revision"]: each.get("value", "") for each in answer["versions"]}
        if not answer.get("truncated"):
            return found
        before = f"&revision={min(found) - 1}"


def check(cluster: Cluster, each: list[Client]) -> None:
    """Compare what was told with the history."""
    told = [told for client in each for told in client.told]
    histories = {key: history(cluster, key) for key in {key for each in told for key in each.keys}}
    values: defaultdict[str, list[str]] = defaultdict(list)
    for key, versions in histories.items():
        values[key] = [value for value in versions.values() if value]
        assert len(values[key]) == len(set(values[key])) or key.startswith("_locks/"), f"applied twice: {key}"
    for each_told in told:
        for key in each_told.keys:
            if each_told.code == "done":
                found = histories[key].get(each_told.revision)
                assert found is not None if each_told.kind == "lock" else found == each_told.value, (each_told, found)
            elif each_told.code != UNKNOWN:
                assert each_told.code in REFUSED, each_told
                assert not each_told.value or each_told.value not in values[key], each_told
        if each_told.kind == "txn":
            one, two = each_told.keys
            assert (each_told.value in values[one]) == (each_told.value in values[two]), each_told
    tokens = [each_told.revision for each_told in told if each_told.kind == "lock"]
    assert len(tokens) == len(set(tokens)), "a fencing token was granted twice"
    _check_deletes(told, histories)
    assert {each_told.kind for each_told in told if each_told.code == "done"} >= {"put", "txn", "delete", "revoke"}
    assert 500 not in set().union(*(client.statuses for client in each))


def end(cluster: Cluster, each: list[Client]) -> None:
    """Wait until all nodes agree, and compare what the clients were told with the history."""
    cluster.settled()
    cluster.converge()
    check(cluster, each)


def _check_deletes(told: list[Told], histories: dict[str, dict[int, str]]) -> None:
    """A key was not deleted more often than somebody asked for it."""
    for key, versions in histories.items():
        if key.startswith("_locks/"):
            continue
        deletes = [each for each in told if key in each.keys and not each.value]
        may_be_done = sum(each.code in ("done", UNKNOWN) for each in deletes)
        # A lease whose revocation was refused or lost ends by itself, or with the next write of the key.
        assert sum(not value for value in versions.values()) <= may_be_done or key.endswith("/leased"), key
