"""Whether a cluster may begin where there is no API server to ask: everybody behind the headless Service is.

Pods that are not desired any more, and run all the same, are behind it too. Nothing is recorded, so that all volumes
were lost goes unnoticed, and so does what stopped pods hold.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from kvorum.cluster.record import BootstrapRefusedError
from kvorum.config import Config, join_address, split_address
from kvorum.identity import name_of
from kvorum.node.hellos import ask_all
from kvorum.node.ports import Peers
from kvorum.raft.messages import NodeId
from kvorum.resolver import Resolver, is_own_address
from kvorum.transport import Hello

RESOLVE_TIMEOUT_S = 5.0


def obstacle_behind(
    service: str, hellos: Mapping[str, Hello | None], own: Collection[str], node: NodeId, names: Collection[str]
) -> str | None:
    """Return why a new cluster must not begin now, in words; None when nothing behind the Service stands in the way.

    Args:
        service: the DNS name of the headless Service.
        hellos: what each address behind it said; None: no answer.
        own: addresses of this machine. Not every network lets a node reach itself.
        node: this node.
        names: the nodes that are empty, this one included; all of them must be behind the Service.
    """
    missing = set(names)
    for address, hello in sorted(hellos.items()):
        if hello is None:
            if address in own:
                missing.discard(name_of(node))
                continue
            return f"a pod behind {service}, {address}, does not answer, and may hold a cluster"
        if hello.cluster_id or not hello.empty:
            return (
                f"{hello.name}, at {address} behind {service}, is already in cluster {hello.cluster_id or 'unknown'}; "
                "waiting to be added to it"
            )
        missing.discard(hello.name)
    if missing:
        return f"{', '.join(sorted(missing))} answered, and {service} does not have the address yet"
    return None


class AddressGuard:
    """Lets a cluster begin only if everybody behind the headless Service is empty.

    Args:
        config: the node's.
        peers: how the others are asked.
        addresses: returns the addresses of a name.
        is_own: tells whether an address is this machine's.
    """

    def __init__(
        self,
        config: Config,
        peers: Peers,
        addresses: Callable[[str], Awaitable[Sequence[str]]] | None = None,
        is_own: Callable[[str], bool] = is_own_address,
    ) -> None:
        self._config = config
        self._peers = peers
        self._addresses = addresses or _addresses
        self._is_own = is_own

    async def permit(self, node: NodeId, names: Collection[str]) -> str:
        """Return the id under which ``node`` may begin a cluster.

        Args:
            node: who is about to begin.
            names: the nodes that are empty, by their own word.

        Raises:
            BootstrapRefusedError: it may not.
        """
        service = self._config.discovery_dns
        try:
            addresses = await self._addresses(service)
        except OSError as error:
            raise BootstrapRefusedError(f"the addresses behind {service} are unknown: {error}") from error
        port = self._config.dns_peer_port or split_address(self._config.listen_peer)[1]
        hellos = await ask_all(self._peers, {ip: f"http://{join_address(ip, port)}" for ip in addresses})
        own = {address for address in addresses if self._is_own(address)}
        reason = obstacle_behind(service, hellos, own, node, names)
        if reason is not None:
            raise BootstrapRefusedError(reason)
        return secrets.token_hex(16)


async def _addresses(name: str) -> Sequence[str]:
    """Return the addresses of a name.

    Raises:
        OSError: there are none, or the name server does not answer in time.
    """
    lookup = Resolver().look_up(name)
    await asyncio.wait([lookup], timeout=RESOLVE_TIMEOUT_S)
    if not lookup.done():
        raise TimeoutError("the name server does not answer")
    return list(dict.fromkeys(str(found[4][0]) for found in lookup.result()))
