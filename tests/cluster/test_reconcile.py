"""Every rule by which the leader changes the membership, as a table of views and the one step that follows."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, cast

import msgspec
import pytest

from kvorum.cluster.reconcile import (
    PROMOTE_LAG_MAX,
    Decision,
    Health,
    MembershipSpec,
    Observed,
    Reconciler,
    Step,
    Transfer,
    View,
    decide,
)
from kvorum.errors import CallerError, MembershipRefusedError, NotLeaderError, TransferFailedError
from kvorum.identity import name_of
from kvorum.node.ports import Clock, Tasks
from kvorum.raft.membership import AddLearner, Promote, Remove, changed
from kvorum.raft.messages import Configuration, Member, NodeId

URL = "http://{}.kv-headless:9001"


def view(
    members: str,
    *,
    leader: str = "kv-0@a",
    desired: int | MembershipSpec | None = 3,
    seen: str = "",
    down: str = "",
    unheard: str = "",
    lag: dict[str, int] | None = None,
    settled: bool = True,
    successor: str | None = None,
) -> View:
    """Build a view.

    Args:
        members: ids separated by spaces; a learner's ends in ``?``.
        leader: the id of the leader.
        desired: the replicas of StatefulSet ``kv``.
        seen: ids that answer although they are no members, in words of their own; an empty disk's ends in ``!``.
        down: ids of members that do not answer.
        unheard: ids of members of which the leader, which is new, has not heard yet; they may be down or not.
        lag: entries behind, by id.
        settled: no change is under way.
        successor: who should lead next.
    """
    configuration = Configuration(
        tuple(
            sorted((Member(m.rstrip("?"), not m.endswith("?")) for m in members.split()), key=lambda member: member.id)
        )
    )
    silent = down.split()
    hellos = {
        name_of(m.id): Observed(m.id, False, URL.format(name_of(m.id)))
        for m in configuration.members
        if m.id not in silent
    }
    for newcomer in seen.split():
        node = newcomer.rstrip("!")
        hellos[name_of(node)] = Observed(node, newcomer.endswith("!"), URL.format(name_of(node)))
    health = {
        m.id: Health(m.id not in silent + unheard.split(), (lag or {}).get(m.id, 0), m.id in silent)
        for m in configuration.members
        if m.id != leader
    }
    wanted = MembershipSpec.stateful_set("kv", desired) if isinstance(desired, int) else desired
    return View(leader, configuration, settled, hellos, health, wanted, successor)


def learner(node: NodeId) -> AddLearner:
    return AddLearner(Member(node, False, URL.format(name_of(node))))


class Case(NamedTuple):
    rule: str
    view: View
    step: Step | None


THREE = "kv-0@a kv-1@b kv-2@c"
FIVE = THREE + " kv-3@d kv-4@e"
CASES = [
    # Rule 1: one step at a time.
    Case("nothing to do", view(THREE), None),
    Case("nothing while a change is under way", view(THREE, desired=5, seen="kv-3@d!", settled=False), None),
    Case("nothing is removed while a change is under way", view(FIVE, desired=3, settled=False), None),
    # Rule 2: silence never changes the membership.
    Case("a pod that is down stays a member", view(THREE, down="kv-2@c"), None),
    Case(
        "a pod that is down stays a member, also with a desired count unknown",
        view(THREE, down="kv-2@c", desired=None),
        None,
    ),
    Case("two of five down stay members", view(FIVE, desired=5, down="kv-1@b kv-4@e"), None),
    Case("a restarted pod with its disk stays a member", view(THREE, seen="kv-2@c"), None),
    Case("a member that says it is empty under its own incarnation stays", view(THREE, seen="kv-2@c!"), None),
    # Rule 3: a lost disk.
    Case("a new incarnation removes the silent old one", view(THREE, down="kv-2@c", seen="kv-2@x!"), Remove("kv-2@c")),
    Case("then it is a newcomer", view("kv-0@a kv-1@b", seen="kv-2@x!"), learner("kv-2@x")),
    Case("then it is promoted", view("kv-0@a kv-1@b kv-2@x?"), Promote("kv-2@x")),
    Case(
        "a learner that an operator added is promoted, too, though --peers does not name it",
        view("n1@a n2@b n4@d?", leader="n1@a", desired=MembershipSpec(("n1", "n2"))),
        Promote("n4@d"),
    ),
    Case("not while the old one still answers", view(THREE, seen="kv-2@x!"), None),
    Case("not when the new one has a log", view(THREE, down="kv-2@c", seen="kv-2@x"), None),
    Case("not while a third is down as well", view(THREE, down="kv-1@b kv-2@c", seen="kv-2@x!"), None),
    Case("two lost disks of three: not automatic", view(THREE, down="kv-1@b kv-2@c", seen="kv-1@y! kv-2@x!"), None),
    Case("one lost disk of two: not automatic", view("kv-0@a kv-1@b", desired=2, down="kv-1@b", seen="kv-1@y!"), None),
    Case(
        "two lost disks of five: the first goes",
        view(FIVE, desired=5, down="kv-1@b kv-4@e", seen="kv-1@y! kv-4@x!"),
        Remove("kv-1@b"),
    ),
    Case(
        "a lost disk among four, one more down: the rest is no majority of the four",
        view(THREE + " kv-3@d", desired=4, down="kv-2@c kv-3@d", seen="kv-2@x!"),
        None,
    ),
    Case(
        "not when nobody knows who should be a member", view(THREE, down="kv-2@c", seen="kv-2@x!", desired=None), None
    ),
    Case(
        "a learner that lost its disk is replaced",
        view(THREE + " kv-3@d?", desired=4, down="kv-3@d", seen="kv-3@x!"),
        Remove("kv-3@d"),
    ),
    Case(
        "a replacement goes before a newcomer",
        view(THREE, desired=5, down="kv-2@c", seen="kv-2@x! kv-3@d!"),
        Remove("kv-2@c"),
    ),
    Case(
        "a static member's lost disk is replaced",
        view("n1@a n2@b n3@c", leader="n1@a", desired=MembershipSpec(("n1", "n2", "n3")), down="n3@c", seen="n3@x!"),
        Remove("n3@c"),
    ),
    # Rule 4: newcomers.
    Case("a new ordinal becomes a learner", view(THREE, desired=5, seen="kv-3@d! kv-4@e!"), learner("kv-3@d")),
    Case("the next one waits for it", view(THREE + " kv-3@d?", desired=5, seen="kv-4@e!", lag={"kv-3@d": 5000}), None),
    Case(
        "it is promoted when it has caught up",
        view(THREE + " kv-3@d?", desired=5, seen="kv-4@e!", lag={"kv-3@d": PROMOTE_LAG_MAX}),
        Promote("kv-3@d"),
    ),
    Case("not one entry earlier", view(THREE + " kv-3@d?", desired=5, lag={"kv-3@d": PROMOTE_LAG_MAX + 1}), None),
    Case("then the next one is added", view(THREE + " kv-3@d", desired=5, seen="kv-4@e!"), learner("kv-4@e")),
    Case("nobody is promoted while two answer to its name", view(THREE + " kv-3@d?", desired=4, seen="kv-3@x!"), None),
    Case("a silent learner is not promoted", view(THREE + " kv-3@d?", desired=5, down="kv-3@d"), None),
    Case(
        "a silent learner does not hold up the next",
        view(THREE + " kv-3@d?", desired=5, down="kv-3@d", seen="kv-4@e!"),
        learner("kv-4@e"),
    ),
    Case(
        "no promotion that would leave no healthy majority",
        view(FIVE + " kv-5@f?", desired=6, down="kv-1@b kv-2@c kv-3@d"),
        None,
    ),
    Case(
        "a promotion with one of three down keeps a majority",
        view(THREE + " kv-3@d?", desired=5, down="kv-1@b"),
        Promote("kv-3@d"),
    ),
    Case("an unknown log is never a member", view(THREE, desired=5, seen="kv-3@old"), None),
    Case("and does not hold up the others", view(THREE, desired=5, seen="kv-3@old kv-4@e!"), learner("kv-4@e")),
    Case("a name that nobody desires is not added", view(THREE, seen="kv-3@d! stranger-0@q!"), None),
    Case("nobody is added while the desired count is unknown", view(THREE, desired=None, seen="kv-3@d!"), None),
    Case(
        "a learner is promoted although the desired count is unknown",
        view(THREE + " kv-3@d?", desired=None),
        Promote("kv-3@d"),
    ),
    # Rule 5: scale-in.
    Case("the highest ordinal goes first", view(FIVE, desired=3), Remove("kv-4@e")),
    Case("then the next", view(THREE + " kv-3@d", desired=3), Remove("kv-3@d")),
    Case("by number, not by letter", view(THREE + " kv-9@d kv-10@e", desired=3), Remove("kv-10@e")),
    Case(
        "a surplus pod that is gone already is removed as well",
        view(FIVE, desired=3, down="kv-3@d kv-4@e"),
        Remove("kv-4@e"),
    ),
    Case("not when the rest would have no healthy majority", view(FIVE, desired=3, down="kv-1@b kv-2@c"), None),
    Case(
        "a surplus learner goes, whatever the rest",
        view(FIVE + " kv-5@f?", desired=5, down="kv-1@b kv-2@c"),
        Remove("kv-5@f"),
    ),
    Case("a surplus learner is not promoted", view(THREE + " kv-3@d? kv-4@e", desired=3, down="kv-1@b kv-2@c"), None),
    Case("from two to one", view("kv-0@a kv-1@b", desired=1), Remove("kv-1@b")),
    Case("a surplus leader removes the others first", view(FIVE, desired=3, leader="kv-4@e"), Remove("kv-3@d")),
    Case(
        "then hands over to whom consensus names",
        view(THREE + " kv-4@e", desired=3, leader="kv-4@e", successor="kv-1@b", lag={"kv-1@b": 9}),
        Transfer("kv-1@b"),
    ),
    Case("to nobody when it names nobody", view(THREE + " kv-4@e", desired=3, leader="kv-4@e"), None),
    Case(
        "a surplus member with a lost disk is removed, not replaced",
        view(THREE + " kv-3@d", desired=3, down="kv-3@d", seen="kv-3@x!"),
        Remove("kv-3@d"),
    ),
    Case(
        "a new leader does not count on whom it has not heard",
        view(FIVE, desired=3, unheard="kv-1@b kv-2@c"),
        None,
    ),
    Case(
        "a new leader hands over to nobody that it has not heard",
        view("kv-0@a kv-1@b kv-4@e", desired=2, leader="kv-4@e", unheard="kv-0@a", successor="kv-0@a"),
        None,
    ),
    Case(
        "a new leader does not take whom it has not heard for gone",
        view(THREE, unheard="kv-2@c", seen="kv-2@x!"),
        None,
    ),
    Case(
        "a new leader promotes nobody whom it has not heard",
        view(THREE + " kv-3@d?", desired=4, unheard="kv-3@d"),
        None,
    ),
    Case(
        "a learner that was just added holds up the next",
        view(THREE + " kv-3@d?", desired=5, unheard="kv-3@d", seen="kv-4@e!"),
        None,
    ),
    # Rule 6: zero is a stop.
    Case("zero desired replicas remove nobody", view(THREE, desired=0), None),
    Case("not even those that are down", view(THREE, desired=0, down="kv-1@b"), None),
    # Rule 7: unknown, and the operator's own members.
    Case("an unknown desired count removes nobody", view(FIVE, desired=None), None),
    Case("members of another base are the operator's", view(THREE + " other-7@z", desired=3), None),
    Case("members without an ordinal are the operator's", view(THREE + " backup@z", desired=3), None),
    Case(
        "static members are never surplus",
        view("n-1@a n-2@b n-9@c", leader="n-1@a", desired=MembershipSpec(("n-1", "n-2"))),
        None,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.rule.replace(" ", "_") for case in CASES])
def test_the_next_step_is(case: Case) -> None:
    assert decide(case.view).step == case.step


WAITING = [
    (view(THREE, seen="kv-2@x!"), "kv-2@c should be gone, but it still answers"),
    (view(THREE, down="kv-1@b kv-2@c", seen="kv-2@x!"), "the other voters do not form a majority"),
    (
        view(FIVE, desired=3, down="kv-1@b kv-2@c"),
        "kv-4@e is surplus (3 replicas are desired), but the other voters would have no",
    ),
    (view(THREE, desired=5, seen="kv-3@old"), "kv-3@old is not a member but has a log"),
    (view(THREE + " kv-3@d?", desired=5, lag={"kv-3@d": 5000}), "kv-3@d, a learner, is 5000 entries behind"),
    (view(THREE + " kv-3@d?", desired=5, down="kv-3@d"), "kv-3@d, a learner, does not answer"),
    (view(THREE + " kv-3@d?", desired=5, unheard="kv-3@d"), "kv-3@d, a learner, has not answered yet"),
]


@pytest.mark.parametrize(("waiting", "reason"), WAITING, ids=[reason.split(",")[0] for _, reason in WAITING])
def test_a_step_that_must_wait_says_why(waiting: View, reason: str) -> None:
    decision = decide(waiting)
    assert decision.step is None
    assert reason in decision.reason


def test_a_newcomer_that_does_not_support_the_feature_level_is_not_added() -> None:
    """It could not read the snapshot that it would be sent, nor apply the log."""
    able = view(THREE, desired=5, seen="kv-3@new!")
    newcomer = msgspec.structs.replace(able.observed["kv-3"], is_too_old=True)
    unable = msgspec.structs.replace(able, observed={**able.observed, "kv-3": newcomer})

    assert isinstance(decide(able).step, AddLearner)
    assert decide(unable).step is None
    assert "kv-3@new does not support the feature level" in decide(unable).reason


class FakeCluster:
    """A leader whose changes take effect at once, unless told to refuse."""

    def __init__(self, start: View | None) -> None:
        self.now = start
        self.steps: list[Step] = []
        self.refuse: CallerError | None = None

    def membership_view(self, desired: MembershipSpec | None) -> View | None:
        if self.now is None:
            return None
        return msgspec.structs.replace(self.now, desired=desired)

    async def change_membership(self, change: AddLearner | Promote | Remove, timeout_ms: int) -> None:
        self._refuse()
        assert self.now is not None
        self.steps.append(change)
        configuration = changed(self.now.configuration, change)
        health = {member.id: self.now.health.get(member.id, Health(True, 0, False)) for member in configuration.members}
        self.now = View(self.now.leader, configuration, True, self.now.observed, health, None, self.now.successor)

    async def transfer_leadership(self, target_name: str | None, timeout_ms: int) -> str:
        self._refuse()
        assert self.now is not None
        assert target_name is not None
        target = next(m.id for m in self.now.configuration.members if name_of(m.id) == target_name)
        self.steps.append(Transfer(target))
        health = {member.id: Health(True, 0, False) for member in self.now.configuration.members}
        self.now = View(target, self.now.configuration, True, self.now.observed, health, None)
        return target_name

    def _refuse(self) -> None:
        if self.refuse is not None:
            raise self.refuse


class FixedSource:
    def __init__(self, desired: MembershipSpec | None) -> None:
        self.answer = desired
        self.asked = 0

    async def desired(self) -> MembershipSpec | None:
        self.asked += 1
        return self.answer


class FakeTime:
    """A clock that only waiting moves; after a minute whoever waits is cancelled."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s
        if self.now > 60:
            raise asyncio.CancelledError


def reconciler_of(cluster: FakeCluster, source: FixedSource, time: FakeTime | None = None) -> Reconciler:
    time = time or FakeTime()
    return Reconciler(cluster, source, cast("Clock", time), cast("Tasks", time))


async def settle(cluster: FakeCluster, source: FixedSource) -> list[Step]:
    """Reconcile until there is nothing to do; fail if that never comes."""
    reconciler = reconciler_of(cluster, source)
    for _ in range(50):
        if not await reconciler.reconcile():
            return cluster.steps
    raise AssertionError(f"still changing the membership after {cluster.steps}")


def test_scaling_out_adds_and_promotes_one_after_the_other() -> None:
    cluster = FakeCluster(view(THREE, seen="kv-3@d! kv-4@e!"))
    steps = asyncio.run(settle(cluster, FixedSource(MembershipSpec.stateful_set("kv", 5))))
    assert steps == [learner("kv-3@d"), Promote("kv-3@d"), learner("kv-4@e"), Promote("kv-4@e")]


def test_scaling_in_below_the_leader_ends_with_the_desired_members() -> None:
    cluster = FakeCluster(view(FIVE, leader="kv-4@e", successor="kv-0@a"))
    steps = asyncio.run(settle(cluster, FixedSource(MembershipSpec.stateful_set("kv", 3))))
    assert steps == [Remove("kv-3@d"), Transfer("kv-0@a"), Remove("kv-4@e")]
    assert cluster.now is not None
    assert cluster.now.configuration.voters() == ("kv-0@a", "kv-1@b", "kv-2@c")


def test_a_lost_disk_heals_without_a_human() -> None:
    cluster = FakeCluster(view(THREE, down="kv-2@c", seen="kv-2@x!"))
    steps = asyncio.run(settle(cluster, FixedSource(MembershipSpec.stateful_set("kv", 3))))
    assert steps == [Remove("kv-2@c"), learner("kv-2@x"), Promote("kv-2@x")]


@pytest.mark.parametrize(
    "error", [MembershipRefusedError("not now"), NotLeaderError("kv-1@b"), TransferFailedError("no answer")]
)
def test_a_refused_step_is_tried_again_at_the_next_look(error: CallerError) -> None:
    cluster = FakeCluster(view(THREE, seen="kv-3@d!"))
    source = FixedSource(MembershipSpec.stateful_set("kv", 4))

    async def scenario() -> list[Step]:
        reconciler = reconciler_of(cluster, source)
        cluster.refuse = error
        assert not await reconciler.reconcile()
        cluster.refuse = None
        assert await reconciler.reconcile()
        return cluster.steps

    assert asyncio.run(scenario()) == [learner("kv-3@d")]


def test_only_the_leader_asks_and_acts() -> None:
    source = FixedSource(MembershipSpec.stateful_set("kv", 5))
    assert not asyncio.run(reconciler_of(FakeCluster(None), source).reconcile())
    assert source.asked == 0


def test_a_leadership_lost_while_asking_takes_no_step() -> None:
    cluster = FakeCluster(view(THREE, seen="kv-3@d!"))

    class Deposing(FixedSource):
        async def desired(self) -> MembershipSpec | None:
            cluster.now = None
            return await super().desired()

    assert not asyncio.run(reconciler_of(cluster, Deposing(MembershipSpec.stateful_set("kv", 5))).reconcile())
    assert cluster.steps == []


def test_a_decision_is_logged_once_and_again_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    cluster = FakeCluster(view(THREE + " kv-3@d?", lag={"kv-3@d": 500}))
    reconciler = reconciler_of(cluster, FixedSource(MembershipSpec.stateful_set("kv", 4)))

    async def scenario() -> None:
        for _ in range(3):
            await reconciler.reconcile()
        cluster.now = view(THREE + " kv-3@d?", lag={"kv-3@d": 400})
        await reconciler.reconcile()

    with caplog.at_level("INFO", logger="kvorum.cluster.reconcile"):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        "membership: waiting: kv-3@d, a learner, is 500 entries behind",
        "membership: waiting: kv-3@d, a learner, is 400 entries behind",
    ]


def test_no_decision_without_something_to_do_or_to_wait_for() -> None:
    assert decide(view(THREE)) == Decision(None, "")


def test_a_step_that_fails_is_tried_every_second_and_logged_every_ten(caplog: pytest.LogCaptureFixture) -> None:
    """By the clock that it is handed: a simulator's minute takes no time."""
    cluster = FakeCluster(view(THREE, seen="kv-3@d!"))
    cluster.refuse = MembershipRefusedError("not now")
    source, time = FixedSource(MembershipSpec.stateful_set("kv", 4)), FakeTime()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(reconciler_of(cluster, source, time).run())

    assert source.asked == 61
    assert len([line for line in caplog.messages if "failed" in line]) == 7
