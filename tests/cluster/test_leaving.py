"""From the signal to the end of the process: in time, and not past a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest
from node.local_cluster import running

from kvorum.cluster import KubernetesApi
from kvorum.cluster.membership_spec import Unanswered
from kvorum.cluster.reconcile import MembershipSpec
from kvorum.commands import serve
from kvorum.config import Config
from kvorum.errors import KubernetesError, StorageError
from kvorum.node import Node

GRACE_S = 4.0


class Source:
    """Says that of nodes n-0, n-1, ... the first one is to stay."""

    async def desired(self) -> MembershipSpec | None:
        return MembershipSpec(("n-0",), "n")


def with_grace(node: Node) -> Node:
    node.config = msgspec.structs.replace(node.config, name="n-2", shutdown_grace_s=GRACE_S)
    return node


@pytest.mark.parametrize("delay_s", [0, 1])
def test_serving_on_and_waiting_to_be_removed_and_for_a_quorum_share_one_grace_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay_s: int
) -> None:
    """The kubelet's patience begins with the signal, and ends with SIGKILL."""

    async def scenario() -> None:
        async with running(tmp_path, shutdown_delay_s=delay_s) as cluster:
            leader = await cluster.leader()
            node, gone = cluster.others(leader)
            await cluster.stop(gone.config.name)
            ends_s = list[float]()
            began_s = list[float]()

            def noted(act: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
                def begin(*arguments: Any) -> Awaitable[None]:
                    began_s.append(monotonic())
                    ends_s.append(arguments[-1])
                    return act(*arguments)

                return begin

            for owner, name in ((node, "serve_on"), (serve, "leave_if_surplus"), (node, "drain")):
                monkeypatch.setattr(owner, name, noted(getattr(owner, name)))

            # It is surplus, nobody removes it, and with one of three gone the others need it for a quorum.
            signal_s = monotonic()
            await asyncio.wait_for(serve._leave(with_grace(node), Source()), 30)

            served_on, removed, drained = ends_s
            assert signal_s + GRACE_S <= served_on <= began_s[0] + GRACE_S
            assert served_on == drained <= monotonic()
            assert began_s[1] < removed < drained, "there is time for both"

    asyncio.run(scenario())


def test_a_node_that_fails_while_it_leaves_ends_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            node, gone = cluster.others(leader)
            await cluster.stop(gone.config.name)
            leaving = asyncio.create_task(serve._first_of(node.run(), serve._leave(with_grace(node), Source())))
            node.ports.supervisor.fail(StorageError("the disk is gone"))

            with pytest.raises(StorageError, match="the disk is gone"):
                await asyncio.wait_for(leaving, GRACE_S / 2)

    asyncio.run(scenario())


def test_a_service_account_that_cannot_be_read_is_no_reason_to_follow_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KubernetesError("ca.crt cannot be read")

    monkeypatch.setattr(KubernetesApi, "in_pod", broken)
    config = Config(name="kv-0", discovery_dns="kv-headless", replicas=3)

    api, stateful_sets = asyncio.run(serve._kubernetes_api(config))

    assert api is None
    assert isinstance(stateful_sets, Unanswered)
