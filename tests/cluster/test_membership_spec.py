"""Where the desired members are known from, and what holds while nobody says so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kvorum.cluster.kubernetes import StatefulSet
from kvorum.cluster.membership_spec import (
    ASK_EVERY_S,
    ASK_RARELY_S,
    TRUSTED_FOR_S,
    FixedMembers,
    ReplicasInFile,
    ReplicasOfStatefulSet,
    Unanswered,
    membership_spec_source,
)
from kvorum.cluster.reconcile import MembershipSpec
from kvorum.config import Config, PeerAddress
from kvorum.errors import KubernetesError


class FakeApi:
    """Answers with ``replicas``, or fails while it is None; counts how often it is asked."""

    def __init__(self, replicas: int | None, generation: int = 1) -> None:
        self.replicas = replicas
        self.generation = generation
        self.uid = "u"
        self.asked: list[str] = []

    async def stateful_set(self, name: str) -> StatefulSet:
        self.asked.append(name)
        if self.replicas is None:
            raise KubernetesError("forbidden")
        return StatefulSet(self.uid, self.generation, self.replicas)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def looked_up(source: ReplicasOfStatefulSet | ReplicasInFile | FixedMembers) -> MembershipSpec | None:
    return asyncio.run(source.desired())


def three() -> MembershipSpec:
    return MembershipSpec(("kv-0", "kv-1", "kv-2"), "kv")


def test_the_desired_members_are_those_of_the_stateful_set() -> None:
    api = FakeApi(3)
    assert looked_up(ReplicasOfStatefulSet(api, "kv", Clock())) == three()
    assert api.asked == ["kv"]


def test_the_api_server_is_asked_once_an_interval() -> None:
    api, clock = FakeApi(3), Clock()
    source = ReplicasOfStatefulSet(api, "kv", clock)
    for _ in range(10):
        looked_up(source)
    assert len(api.asked) == 1
    clock.now += ASK_EVERY_S
    api.replicas = 1
    assert looked_up(source) == MembershipSpec(("kv-0",), "kv")


def test_a_silent_api_server_leaves_the_last_answer_standing_for_a_while_only() -> None:
    api, clock = FakeApi(3), Clock()
    source = ReplicasOfStatefulSet(api, "kv", clock)
    looked_up(source)
    api.replicas = None
    clock.now = TRUSTED_FOR_S
    assert looked_up(source) == three()
    clock.now = TRUSTED_FOR_S + 0.1
    assert looked_up(source) is None


def test_nothing_is_known_before_the_first_answer() -> None:
    assert looked_up(ReplicasOfStatefulSet(FakeApi(None), "kv", Clock())) is None


def test_a_failing_api_server_is_asked_ever_more_rarely_and_its_recovery_is_noticed() -> None:
    api, clock = FakeApi(None), Clock()
    source = ReplicasOfStatefulSet(api, "kv", clock)
    for second in range(300):
        clock.now = float(second)
        assert looked_up(source) is None
    assert 9 <= len(api.asked) <= 300 / ASK_RARELY_S + 6
    api.replicas = 3
    clock.now += ASK_RARELY_S
    assert looked_up(source) == three()


def test_an_api_server_that_lags_does_not_undo_what_was_scaled_since() -> None:
    api, clock = FakeApi(5, generation=9), Clock()
    source = ReplicasOfStatefulSet(api, "kv", clock)
    looked_up(source)
    api.replicas, api.generation = 3, 8
    clock.now += ASK_EVERY_S
    assert looked_up(source) == MembershipSpec.stateful_set("kv", 5)
    # A StatefulSet that was deleted and made again counts its generations from the beginning.
    api.uid, api.generation = "another", 1
    clock.now += ASK_EVERY_S
    assert looked_up(source) == three()


def test_the_configuration_file_is_read_again_since_a_config_map_may_change(tmp_path: Path) -> None:
    path = tmp_path / "kvorum.toml"
    path.write_text("replicas = 3\n")
    source = ReplicasInFile("kv", 3, str(path))
    assert looked_up(source) == three()
    path.write_text("replicas = 5\n")
    assert looked_up(source) == MembershipSpec.stateful_set("kv", 5)


@pytest.mark.parametrize(
    "text", ["replicas = ", "replicas = 'x'", "replicas = true", "replicas = -1", "replicas = 102", "\xff"]
)
def test_a_broken_configuration_file_scales_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kvorum.toml"
    path.write_text(text, encoding="latin-1")
    assert looked_up(ReplicasInFile("kv", 3, str(path))) is None


def test_a_configuration_file_that_is_gone_scales_nothing(tmp_path: Path) -> None:
    assert looked_up(ReplicasInFile("kv", 3, str(tmp_path / "gone"))) is None


def test_without_a_file_the_configured_replicas_are_desired(tmp_path: Path) -> None:
    assert looked_up(ReplicasInFile("kv", 3, "")) == three()
    path = tmp_path / "kvorum.toml"
    path.write_text("tick_ms = 20\n")
    assert looked_up(ReplicasInFile("kv", 3, str(path))) == three()


def test_the_source_follows_from_the_configuration() -> None:
    static = Config(name="n1", peers=(PeerAddress("n1", "h", 1), PeerAddress("n2", "h", 2)))
    assert looked_up(membership_spec_source(static, "", FakeApi(7), Clock())) == MembershipSpec(("n1", "n2"))
    discovered = Config(name="kv-1", discovery_dns="kv-headless", replicas=3)
    assert looked_up(membership_spec_source(discovered, "", None, Clock())) == three()
    assert looked_up(membership_spec_source(discovered, "", FakeApi(1), Clock())) == MembershipSpec(("kv-0",), "kv")


def test_an_api_server_that_cannot_be_asked_is_not_replaced_by_the_configuration(tmp_path: Path) -> None:
    """The file says what was installed: after a `kubectl scale` it would remove nodes."""
    path = tmp_path / "kvorum.toml"
    path.write_text("replicas = 3\n")
    config = Config(name="kv-1", discovery_dns="kv-headless", replicas=3)
    unreadable = Unanswered(KubernetesError("ca.crt cannot be read"))
    assert looked_up(membership_spec_source(config, str(path), unreadable, Clock())) is None
