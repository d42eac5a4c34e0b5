"""Names to addresses, in threads that nobody waits for.

``getaddrinfo`` cannot be cancelled, and may take half a minute while the name server does not answer. In the event
loop's thread pool a few such calls keep the disk's work waiting, and the end of the process as well.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

log = logging.getLogger(__name__)

PATIENCE_S = 0.5
"""How long a name server may take before the last known address is used, if there is one."""
LOG_INTERVAL_S = 60.0
LOOKUPS_MAX = 128
"""Names that are being looked up at a time; each has a thread."""
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

AddressInfo = tuple[int, int, int, str, Any]


class Resolver(AbstractResolver):
    """What aiohttp's connectors ask for addresses. Made for one event loop.

    Args:
        last_known: returns the last address at which the right peer answered under a name, if any. It is used when the
            name server does not answer or fails, and not when it says that there is no such name.
    """

    def __init__(self, last_known: Callable[[str], str | None] = lambda host: None) -> None:
        self._last_known = last_known
        self._lookups: dict[tuple[str, int, int], asyncio.Future[Sequence[AddressInfo]]] = {}
        self._silent_until = 0.0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        Raises:
            OSError: there are none, or none can be found out now.
        """
        known = self._last_known(host)
        lookup = self.look_up(host, family)
        await asyncio.wait([lookup], timeout=PATIENCE_S if known is not None else None)
        if not lookup.done():
            return [self._instead(host, known, port, "the name server does not answer")]
        try:
            found = lookup.result()
        except OSError as error:
            if known is None or error.errno in _NO_SUCH_NAME:
                raise
            return [self._instead(host, known, port, error.strerror or str(error))]
        return [_result(host, address[0], port, kind) for kind, _, _, _, address in found]

    def look_up(
        self, host: str, family: int = socket.AF_UNSPEC, flags: int = socket.AI_ADDRCONFIG
    ) -> asyncio.Future[Sequence[AddressInfo]]:
        """Begin to look a name up, or take part in a look-up under way; cancelling the future is not allowed."""
        key = (host, family, flags)
        future = self._lookups.get(key)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda done: self._ended(key, done))
            if len(self._lookups) >= LOOKUPS_MAX:
                future.set_exception(socket.gaierror(socket.EAI_AGAIN, "too many names are being looked up"))
                return future
            self._lookups[key] = future
            # A daemon: the process does not wait for it.
            arguments = (asyncio.get_running_loop(), future, *key)
            threading.Thread(target=_look_up, args=arguments, name="look-up", daemon=True).start()
        return future

    def _ended(self, key: tuple[str, int, int], future: asyncio.Future[Sequence[AddressInfo]]) -> None:
        if self._lookups.get(key) is future:
            del self._lookups[key]
        if not future.cancelled():
            # Whoever asked may have gone away; then nobody else looks at the exception.
            future.exception()

    def _instead(self, host: str, known: str | None, port: int, why: str) -> ResolveResult:
        if known is None:
            raise socket.gaierror(socket.EAI_AGAIN, why)
        if monotonic() >= self._silent_until:
            self._silent_until = monotonic() + LOG_INTERVAL_S
            log.warning("cannot resolve %s: %s; using its last known address %s", host, why, known)
        kind = socket.AF_INET6 if ":" in known else socket.AF_INET
        return _result(host, known, port, kind)

    async def close(self) -> None:
        """Leave behind what is under way."""
        self._lookups.clear()


async def addresses_to_bind(host: str) -> list[str]:
    """Return the addresses of a host of this machine; a literal address is returned as it is, without a look-up.

    Raises:
        OSError: there are none.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.shield(Resolver().look_up(host, flags=socket.AI_PASSIVE))
        return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))
    return [host]


def is_own_address(address: str) -> bool:
    """Tell whether a literal address is one of this machine's."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _look_up(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Sequence[AddressInfo]], host: str, family: int, flags: int
) -> None:
    """Runs on a thread of its own."""
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        problem = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, str(error))
        _deliver(loop, future, lambda: future.set_exception(problem))
    else:
        _deliver(loop, future, lambda: future.set_result(found))


def _deliver(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], act: Callable[[], None]) -> None:
    def act_if_wanted() -> None:
        if not future.done():
            act()

    try:
        loop.call_soon_threadsafe(act_if_wanted)
    except RuntimeError:
        # The loop has ended, and so has everybody who asked.
        return


def _result(host: str, address: str, port: int, family: int) -> ResolveResult:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)
