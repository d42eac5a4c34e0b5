"""A round of hellos: ask several nodes at once who they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from kvorum.errors import PeerError
from kvorum.node.ports import Peers
from kvorum.transport.interface import Hello

log = logging.getLogger("kvorum.node")

TIMEOUT_S = 2.0


async def ask_all(
    peers: Peers, urls: Mapping[str, str | None], timeout_s: float = TIMEOUT_S
) -> dict[str, Hello | None]:
    """Return each node's hello under the key of its URL; None where none answers in time, or no URL is known."""

    async def ask(node: str, url: str | None) -> Hello | None:
        if url is None:
            return None
        try:
            return await peers.hello(url, timeout_s)
        except PeerError as error:
            log.debug("%s does not answer: %s", node, error)
            return None
        except Exception as error:  # noqa: BLE001 (one answer from outside must not end those who ask)
            log.warning("the hello of %s failed unexpectedly: %r", node, error)
            return None

    answers = await asyncio.gather(*(ask(node, url) for node, url in urls.items()))
    return dict(zip(urls, answers, strict=True))
