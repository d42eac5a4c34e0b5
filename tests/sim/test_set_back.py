"""A disk that is set back while other faults strike: what is found, what is forgiven, and what never is."""

from __future__ import annotations

import msgspec
import pytest
from sim import peers
from sim.plan import MS, SET_BACK_ANYHOW, SET_BACK_LATE, SET_BACK_MOVES, SET_BACK_OFF, Fault, Plan, S
from sim.run import Verdict, simulate

from kvorum.node import set_back
from kvorum.node.fetch import Fetcher

CALM = Plan(
    seed=2,
    voters=5,
    snapshot_every=3,
    duration_us=5 * S,
    clients=2,
    operations=60,
    think_us=40 * MS,
    keys=12,
    value_bytes=120,
    read_per_mille=100,
)


def set_back_with(argument: int, *faults: Fault, seed: int = CALM.seed) -> Verdict:
    """Set the disk of n1 back, which has taken part in much since it was copied."""
    given = (
        Fault(500 * MS, "disk_copy", target=0),
        Fault(2500 * MS, "disk_set_back", target=0, duration_us=200 * MS, argument=argument),
        *faults,
    )
    faults = tuple(sorted(given, key=lambda fault: fault.at_us))
    return simulate(msgspec.structs.replace(CALM, seed=seed, faults=faults))


def late(quarters: int) -> int:
    """The argument of a set-back whose witnesses are late by so many quarters of an election timeout."""
    return SET_BACK_LATE | (quarters - 4) * 2 * SET_BACK_LATE


@pytest.mark.parametrize("argument", [0, SET_BACK_OFF, SET_BACK_MOVES, SET_BACK_OFF | SET_BACK_MOVES])
def test_it_is_found_wherever_the_disk_comes_back(argument: int) -> None:
    verdict = set_back_with(argument)

    assert verdict.violation is None
    assert verdict.counts["disks set back"] == verdict.counts["disks found set back"] == 1
    assert verdict.counts.get("nodes moved", 0) == bool(argument & SET_BACK_MOVES)


def test_what_nobody_remembers_who_is_up_is_not_set_back() -> None:
    crash = Fault(2600 * MS, "crash_all", duration_us=1 * S)

    assert "disks set back" not in set_back_with(0, crash).counts
    assert set_back_with(SET_BACK_ANYHOW, crash).counts["disks set back"] == 1


def test_nobody_is_to_blame_when_whoever_remembers_is_late_and_then_the_disk_is_kept() -> None:
    verdict = set_back_with(SET_BACK_OFF | late(6))

    assert verdict.violation is None
    assert verdict.counts["forks"] == verdict.counts["nodes that keep their disks"] == 1


def test_a_node_that_is_found_during_a_fetch_keeps_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [(quarters, seed) for quarters in (5, 6) for seed in (2, 5)]
    verdicts = [set_back_with(SET_BACK_OFF | late(quarters), seed=seed) for quarters, seed in plans]

    assert all(verdict.violation is None for verdict in verdicts)
    assert any(verdict.counts.get("nodes that keep their disks during a fetch") for verdict in verdicts)
    monkeypatch.setattr(Fetcher, "stop", lambda self: None)
    verdicts = [set_back_with(SET_BACK_OFF | late(quarters), seed=seed) for quarters, seed in plans]
    violations = {verdict.violation.check for verdict in verdicts if verdict.violation is not None}
    assert violations == {"a_node_that_takes_no_part_keeps_its_log"}


def test_a_wait_that_is_shorter_than_a_dial_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ANSWERS_SAY_MARKS_LEVEL", 99)
    assert set_back_with(SET_BACK_OFF | SET_BACK_MOVES).violation is None, "whoever accepts our call is waited for"
    monkeypatch.setattr(set_back, "CONNECTED_WAITED_S", 0.0)
    violation = set_back_with(SET_BACK_OFF | SET_BACK_MOVES).violation

    assert violation is not None
    assert violation.check == "a_disk_that_was_set_back_is_noticed_in_time"
