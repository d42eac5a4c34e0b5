"""A round of hellos: ask several nodes at once who they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, MutableMapping

from kvorum.errors import PeerError
from kvorum.node.ports import Peers
from kvorum.transport.interface import Hello

log = logging.getLogger("kvorum.node")

TIMEOUT_S = 2.0


async def ask_all(
    peers: Peers,
    urls: Mapping[str, str | None],
    timeout_s: float = TIMEOUT_S,
    failures: MutableMapping[str, str] | None = None,
) -> dict[str, Hello | None]:
    """Return each node's hello under the key of its URL; None where none answers in time, or no URL is known.

    Args:
        peers: what asks.
        urls: whom to ask.
        timeout_s: for each of them.
        failures: takes the reason, under the same key, if a node does not answer.
    """

    async def ask(node: str, url: str | None) -> Hello | None:
        if url is None:
            return None
        try:
            return await peers.hello(url, timeout_s)
        except PeerError as error:
            log.debug("%s does not answer: %s", node, error)
            if failures is not None:
                failures[node] = str(error)
            return None
        except Exception as error:  # noqa: BLE001 (one answer from outside must not end those who ask)
            log.warning("the hello of %s failed unexpectedly: %r", node, error)
            return None

    answers = await asyncio.gather(*(ask(node, url) for node, url in urls.items()))
    return dict(zip(urls, answers, strict=True))


def excludes(ours: Hello, leader: Hello) -> bool:
    """Tell whether this answer proves that we were removed."""
    return (
        leader.is_leader
        and leader.cluster_id == ours.cluster_id
        and leader.configuration_committed
        and leader.configuration_index >= ours.configuration_index
        and bool(ours.members)
        and ours.node_id not in leader.members
    )
