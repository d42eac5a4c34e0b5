"""What judges the scenarios, shown what it must not let pass. Needs no cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from e2e.kube import Kube
from e2e.recording import Recording, Verdict, judge
from e2e.system import Scenario, System, unsettled

PUT = {"kind": "put", "key": "k", "value": "v", "invoked": 1, "completed": 2, "outcome": "ok"} | {
    "revision": 1,
    "create_revision": 1,
    "mod_revision": 1,
    "version": 1,
}
GET = {**PUT, "kind": "get", "invoked": 3, "completed": 4}
LOST = {"kind": "get", "key": "k", "invoked": 3, "completed": 4, "outcome": "ok", "revision": 1}
SUMMARY = {"started": 0, "stopped": 5, "acknowledged": 1, "operations": 2, "gap_us": 3, "gap_at_us": 0, "unread": []}


def lines(*more: dict[str, Any], read: dict[str, Any] = GET, **summary: Any) -> list[dict[str, Any]]:
    return [{"operation": PUT}, {"operation": read}, *more, {"summary": {**SUMMARY, **summary}}]


def test_a_sound_history_passes() -> None:
    verdict = judge(lines({"leader": [2, "kv-0@a", 1]}, {"leader": [700, "kv-1@b", 2]}, {"clusters": ["c"]}))
    assert verdict.violations == ()
    assert verdict.terms == 1


@pytest.mark.parametrize(
    ("recorded", "says"),
    [
        (lines(read=LOST), ""),
        (lines({"leader": [2, "kv-0@a", 1]}, {"leader": [2, "kv-1@b", 2]}), "term 2 had the leaders"),
        (lines({"diverged": ["c", 7, ["x", "y"]]}), "differ in their state"),
        (lines({"clusters": ["c", "d"]}), "more than one cluster"),
        (lines(unread=["k"]), "k could not be read back"),
    ],
    ids=["a lost write", "two leaders of a term", "states that differ", "two clusters", "a key that is not answered"],
)
def test_what_must_not_be_is_a_violation(recorded: list[dict[str, Any]], says: str) -> None:
    violations = judge(recorded).violations
    assert len(violations) >= 1
    assert says in violations[0]


def pod(uid: str = "u", restarts: int = 0) -> Any:
    status = SimpleNamespace(container_statuses=[SimpleNamespace(restart_count=restarts)])
    return SimpleNamespace(metadata=SimpleNamespace(uid=uid), status=status)


VERDICT = Verdict(10, 20, 0, 60.0, 4000, 1.0, 1, ())


@pytest.mark.parametrize(
    ("verdict", "after", "says"),
    [
        ({}, {"kv-0": pod(), "kv-1": pod("new")}, ""),
        ({"violations": ("lost",)}, {"kv-0": pod(), "kv-1": pod()}, "lost"),
        ({"acknowledged": 0}, {"kv-0": pod(), "kv-1": pod()}, "no write was acknowledged"),
        ({"terms": 3}, {"kv-0": pod(), "kv-1": pod()}, "3 new terms"),
        ({"gap_ms": 5001}, {"kv-0": pod(), "kv-1": pod()}, "no write for 5001 ms, where 5 s would do"),
        ({}, {"kv-1": pod()}, "kv-0 is gone"),
        ({}, {"kv-0": pod("new"), "kv-1": pod()}, "kv-0 was restarted"),
        ({}, {"kv-0": pod(restarts=1), "kv-1": pod()}, "kv-0 was restarted"),
    ],
    ids=["all is well", "violation", "no writes", "terms", "gap", "gone", "replaced", "restarted"],
)
def test_a_scenario_fails_when_it_should(verdict: dict[str, Any], after: dict[str, Any], says: str) -> None:
    kube = SimpleNamespace(pods=lambda release: after)
    system = System(cast(Kube, kube), "kv", "kvorum:t", Path(), print)
    scenario = Scenario(system, "a scenario")
    scenario.touched.add("kv-1")
    scenario.within_s = 5
    judged = msgspec.structs.replace(VERDICT, **verdict)
    before = {"kv-0": pod(), "kv-1": pod()}
    if not says:
        system._judge(judged, before, scenario, 2)
        return
    with pytest.raises(AssertionError) as failure:
        system._judge(judged, before, scenario, 2)
    assert says in str(failure.value)


class Speaking(Recording):
    """A recorder that says every time how much later it is."""

    def __init__(self, later_us: int) -> None:
        self._later_us, self._now_us = later_us, 0

    @property
    def last(self) -> dict[str, int]:  # type: ignore[override]
        self._now_us += self._later_us
        return {"acknowledged": 5, "last": 0, "now": self._now_us}


def test_silence_counts_only_while_the_recorder_speaks() -> None:
    Speaking(later_us=1_000_000).watch_silence(0.2)
    with pytest.raises(AssertionError, match="silent itself"):
        Speaking(later_us=0).watch_silence(0.2)


def node(name: str, **changes: Any) -> dict[str, Any]:
    members = [{"id": f"kv-{ordinal}@x", "voter": True} for ordinal in range(3)]
    status = {"name": name, "id": f"{name}@x", "cluster_id": "c", "term": 2, "leader": "kv-0@x", "members": members}
    return {**status, "applied_index": 9, "revision": 5, "state_hash": "h", **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_id": "d"},
        {"term": 3},
        {"leader": None},
        {"state_hash": "other"},
        {"applied_index": 8},
        {"quarantined": "wrong state"},
        {"members": [{"id": "kv-0@x", "voter": True}]},
        {"members": [{"id": f"kv-{ordinal}@x", "voter": ordinal > 0} for ordinal in range(3)]},
    ],
)
def test_nodes_that_differ_in_anything_are_not_settled(changes: dict[str, Any]) -> None:
    names = ("kv-0", "kv-1", "kv-2")
    assert unsettled({name: node(name) for name in names}, 3) is True
    assert unsettled({name: node(name, **(changes if name == "kv-2" else {})) for name in names}, 3) is not True
    assert unsettled({name: node(name) for name in names[:2]}, 3) is not True
