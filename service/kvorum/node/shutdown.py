"""Leaving well: what happens between SIGTERM and the end (docs/operations).

PodDisruptionBudgets do not govern rollouts, and the controller may stop a pod while another is not ready yet. So the
safety of the quorum lies here: a node that is still needed for a quorum stays as long as its grace period allows.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from kvorum.errors import CallerError, PeerError
from kvorum.raft import Role
from kvorum.telemetry.logs import RateLimit
from kvorum.transport import Hello

if TYPE_CHECKING:
    from kvorum.node.node import Node

log = logging.getLogger("kvorum.node")

POLL_S = 0.2
WRITES_POLL_S = 0.01


async def hand_over(node: Node, deadline: float) -> None:
    """Give the leadership to the furthest of the voters that serve, and let writes in flight be answered."""
    timeout_ms = 2 * node.config.election_timeout_ms
    limit = RateLimit()
    while node.raft.role is Role.LEADER and monotonic() < deadline:
        others = [voter for voter in node.raft.configuration.voters() if voter != node.raft.id]
        hellos = await _hellos(node, others)
        progress = node.raft.status().progress
        heirs = [hello.node_id for hello in hellos if hello and hello.is_serving and hello.node_id in progress]
        if not heirs:
            # Everybody stops, or nobody else is fit: an election will do once somebody is.
            break
        try:
            heir = max(heirs, key=lambda voter: progress[voter].match_index)
            log.info("handed the leadership to %s", await node.transfer_leadership(heir, timeout_ms))
        except CallerError as error:
            if limit.allow() is not None:
                log.warning("cannot hand over the leadership yet: %s", error)
            await asyncio.sleep(POLL_S)
    while node.driver.writes.is_awaited and monotonic() < deadline:  # noqa: ASYNC110 (a short, bounded wait)
        await asyncio.sleep(WRITES_POLL_S)


async def wait_for_quorum_without(node: Node, deadline: float) -> bool:
    """Return True once the others can do without us; False if our staying does not help them, or the grace is over."""
    patience_s = 2 * node.config.election_timeout_ms / 1000
    waited, hopeless_since = False, None
    while (now := monotonic()) < deadline:
        voters = node.raft.configuration.voters()
        quorum = node.raft.configuration.quorum()
        others = [voter for voter in voters if voter != node.raft.id]
        if node.raft.id not in voters or not others:
            return True
        serving = sum(hello is not None and hello.is_serving for hello in await _hellos(node, others))
        if serving >= quorum:
            return True
        if serving + 1 >= quorum:
            hopeless_since = None
        elif hopeless_since is None:
            # For the moment of an election nobody serves.
            hopeless_since = now
        elif now - hopeless_since >= patience_s:
            return False
        if not waited and hopeless_since is None:
            waited = True
            log.warning("only %d of the other voters serve; staying, since %d are a quorum", serving, quorum)
        await asyncio.sleep(POLL_S)
    return False


async def _hellos(node: Node, others: list[str]) -> list[Hello | None]:
    async def ask(other: str) -> Hello | None:
        url = node.transport.url_of(other)
        if url is None:
            return None
        try:
            hello = await node.transport.hello(url, timeout_s=1.0)
        except PeerError:
            return None
        return hello if hello.node_id == other else None

    return list(await asyncio.gather(*(ask(other) for other in others)))
