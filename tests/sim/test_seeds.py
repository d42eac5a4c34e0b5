"""Seeds: each a cluster of its own, with faults and a workload of its own, held against every invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from sim.plan import Plan, draw_plan
from sim.run import Verdict, simulate

from kvorum.errors import InvariantViolatedError
from kvorum.kv.state_hash import RecordSum
from kvorum.kv.store import Store
from kvorum.node.handover_leader import Attempts, Receiver
from kvorum.node.handover_messages import Frame
from kvorum.node.state import State as ServedState
from kvorum.raft.leader import Leader
from kvorum.raft.messages import HardState, NodeId
from kvorum.raft.progress import Progress, ReplicationState
from kvorum.raft.state import State

SEEDS = 500
BLOCK = 10
FOUND = Path(__file__).parent / "found"
"""Plans that show a bug which was once there (docs/bugs.md). A plan stays what it is when seeds come to mean others."""


def offers_without_end(patch: pytest.MonkeyPatch) -> None:
    """Whoever is offered a snapshot while its window is open is offered it again at once; here that is an error."""
    true = Leader._offer_snapshot

    def offer(self: Leader, node: NodeId, progress: Progress) -> None:
        was_replicating = progress.state is ReplicationState.REPLICATE
        true(self, node, progress)
        if was_replicating and progress.next_index <= self._log.last_index and not self._is_window_full(progress):
            raise InvariantViolatedError(f"{node} is offered the snapshot for ever")

    patch.setattr(Leader, "_offer_snapshot", offer)


def keeps_old_answers(patch: pytest.MonkeyPatch) -> None:
    """What waits for a save is kept when a new term begins."""

    def set_hard_state(self: State, current_term: int, voted_for: NodeId | None) -> None:
        self.current_term, self.voted_for = current_term, voted_for
        self._is_hard_state_durable = self._durable == HardState(current_term, voted_for)

    patch.setattr(State, "set_hard_state", set_hard_state)


def takes_copies(patch: pytest.MonkeyPatch) -> None:
    """A leader takes a copy of a message for another attempt, whatever it has led before."""
    true = Receiver.take

    def take(self: Receiver, sender: NodeId, term: int, frame: Frame) -> None:
        self._first_term = -1
        true(self, sender, term, frame)

    patch.setattr(Receiver, "take", take)
    patch.setattr(Attempts, "take", lambda _self, _attempt: True)


def sums_at_the_first_sweep(patch: pytest.MonkeyPatch) -> None:
    """The raise to level 2 leaves it to the first sweep to sum what is there."""
    patch.setattr(Store, "_first_sum", lambda self, cluster_id: RecordSum(cluster_id, is_counted=not len(self)))


def forgets_the_first_finding(patch: pytest.MonkeyPatch) -> None:
    """What a sweep finds replaces what was found before."""

    def suspect(self: ServedState, shift: int) -> None:
        self.suspected_shifts = (shift,)

    patch.setattr(ServedState, "suspect", suspect)


BUGS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, int]] = {
    "a_follower_behind_the_log_is_offered_the_snapshot_for_ever": (
        offers_without_end,
        "the_core_never_contradicts_itself",
        400,
    ),
    "an_answer_of_an_older_term_leaves_with_a_later_save": (
        keeps_old_answers,
        "only_saved_entries_are_acknowledged",
        100,
    ),
    "a_copy_of_an_attempt_is_refused_or_proposed": (takes_copies, "what_was_refused_is_not_applied", 100),
    "a_change_before_the_first_sweep_is_never_found": (sums_at_the_first_sweep, "a_damaged_state_is_rebuilt", 100),
    "a_second_change_makes_the_first_one_forgotten": (forgets_the_first_finding, "a_damaged_state_is_rebuilt", 20),
}
"""How to put each bug back, which promise it breaks, and in how many runs of its plan at the most."""


def load(name: str) -> Plan:
    """Return the plan that shows a bug."""
    return msgspec.json.decode((FOUND / f"{name}.json").read_bytes(), type=Plan, strict=True)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_promise_is_broken_under_faults(first: int) -> None:
    for seed in range(first, first + BLOCK):
        verdict = simulate(draw_plan(seed))
        assert verdict.violation is None, f"seed {seed}: {verdict.violation}; look at it with: make sim SEED={seed}"


def test_every_plan_that_was_found_names_its_bug() -> None:
    assert sorted(path.stem for path in FOUND.glob("*.json")) == sorted(BUGS)


def runs_of(name: str) -> Iterator[Verdict]:
    """Run the plan again and again, each time with other draws: every change of the product shifts its timing."""
    plan = load(name)
    for offset in range(BUGS[name][2]):
        yield simulate(msgspec.structs.replace(plan, seed=plan.seed + offset))


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_that_was_found_stays_fixed(name: str) -> None:
    for verdict in runs_of(name):
        assert verdict.violation is None, f"{name}, seed {verdict.seed}: {verdict.violation}"


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_that_was_found_is_found_again_when_it_is_put_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_back, check, _ = BUGS[name]
    put_back(monkeypatch)
    # It may show by another promise first, which is broken in its wake.
    found = (verdict.violation.check for verdict in runs_of(name) if verdict.violation is not None)

    assert check in found
