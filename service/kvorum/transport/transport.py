"""The outgoing side: one link a member, and plain requests to peers."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

import aiohttp
from aiohttp import web

from kvorum.bodies import read_bounded
from kvorum.errors import MalformedMessageError, PeerError
from kvorum.identity import name_of
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.messages import Message
from kvorum.transport.failures import reason_of
from kvorum.transport.handshake import HEADER_ENTRY, decode_hello, dialling_headers, parse_digest, parse_number
from kvorum.transport.interface import Hello, SnapshotChunk
from kvorum.transport.link import Link
from kvorum.transport.recipients import Recipients
from kvorum.transport.server import (
    HEADER_INDEX,
    HEADER_SHA256,
    HEADER_SIZE,
    SNAPSHOT_CHUNK_BYTES,
)
from kvorum.transport.settings import Dialling

log = logging.getLogger("kvorum.transport")

DNS_CACHE_S = 1
"""A pod's address changes with every restart; a stale one costs a failed dial each time."""
REQUEST_TIMEOUT_S = 5.0
REPLACE_LINK_S = 1.0
"""A link that ended unexpectedly is replaced after so long."""
HELLO_BYTES_MAX = 64 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Transport:
    """Calls the members, and those who called us lately if somebody we trust says where they are.

    Args:
        dialling: how we call.
        on_broken: called with a member id when our stream to it breaks.
        configured: the base URLs of the peer ports that our options name, by name of the node.
    """

    def __init__(
        self, dialling: Dialling, on_broken: Callable[[str], None], configured: Mapping[str, str] | None = None
    ) -> None:
        self._dialling = dialling
        self._on_broken = on_broken
        self._links: dict[str, Link] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._recipients = recipients = Recipients(self._ensure, self._drop, configured)
        # Handed on as they are.
        self.remove_stranger = recipients.remove_stranger

    def set_members(self, urls: Mapping[str, str], callers: Container[str] = ()) -> None:
        """Keep a stream to each of these members (:meth:`Recipients.set_members`), and figures of nobody else."""
        self._dialling.counters.keep_peers(map(name_of, urls))
        self._recipients.set_members(urls, callers)

    def set_alternatives(self, node: str, urls: Sequence[str]) -> None:
        """Try a member also at these URLs, when it is not reached at the one of :meth:`set_members`."""
        if node in self._links:
            self._links[node].urls.set_alternatives(urls)

    def url_of(self, node: str) -> str | None:
        """Return where a member or a stranger is reached, as far as is known."""
        link = self._links.get(node)
        return link.url if link is not None else self._recipients.url_of(node)

    def add_stranger(self, node: str, url: str, *, takes_answers: bool = False, start: str = "") -> None:
        """A server called: keep a way to it if it is not a member (:meth:`Recipients.add_stranger`); dial it now.

        ``start``: which start of its process it called by; empty: its version does not tell.
        """
        if node in self._links:
            self._links[node].hurry(start)
        self._recipients.add_stranger(node, url, takes_answers=takes_answers)

    def is_connected(self, node: str) -> bool:
        """Tell whether our stream to this server is open."""
        link = self._links.get(node)
        return link is not None and link.connected

    def send(self, messages: Iterable[Message]) -> list[Message]:
        """Write the messages to those whom we call, and return the others."""
        links: dict[str, Link] = {}
        others: list[Message] = []
        for message in messages:
            link = self._links.get(message.recipient)
            if link is not None:
                links[message.recipient] = link
                link.send(message)
            else:
                others.append(message)
        for link in links.values():
            link.flush()
        return others

    async def close(self) -> None:
        """Close every stream."""
        tasks = list(self._tasks.values())
        for node in list(self._links):
            self._drop(node)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ensure(self, node: str, url: str) -> None:
        link = self._links.get(node)
        if link is not None:
            link.urls.set_first(url)
            return
        self._links[node] = Link(node, url, self._dialling, self._on_broken)
        self._tasks[node] = asyncio.create_task(self._run(node), name=f"link to {node}")

    async def _run(self, node: str) -> None:
        """Run the link to a node; one that ends is reported, and a new one takes its place after a pause."""
        while True:
            link = self._links[node]
            try:
                await link.run()
            except Exception as error:  # noqa: BLE001 (a bug in one link must not cut a member off)
                _report_failure(node, error)
            await asyncio.sleep(REPLACE_LINK_S)
            self._links[node] = successor = Link(node, link.url, self._dialling, self._on_broken)
            successor.urls = link.urls

    def _drop(self, node: str) -> None:
        if self._links.pop(node, None) is not None:
            self._tasks.pop(node).cancel()

    # --- Requests -----------------------------------------------------------------------------------------------

    async def hello(self, url: str, timeout_s: float = 2.0) -> Hello:
        """Ask who answers at this peer port.

        Raises:
            PeerError: no answer, or not a valid hello.
        """
        _, body = await self._request("GET", f"{url}/raft/v1/hello", {}, timeout_s, HELLO_BYTES_MAX)
        return decode_hello(body)

    async def snapshot_chunk(self, node: str, last_index: int, offset_bytes: int, at_least: int = 0) -> SnapshotChunk:
        """Fetch a piece of a member's snapshot file (``last_index`` 0: its newest, at ``at_least`` or later).

        Raises:
            PeerError: it has none, or does not answer.
        """
        path = f"/raft/v1/snapshots/{last_index}?offset={offset_bytes}&at_least={at_least}"
        timeout_s = 4 * REQUEST_TIMEOUT_S
        if last_index:
            headers, body = await self._call("GET", node, path, timeout_s)
        else:
            try:
                headers, body = await self._call("POST", node, path, timeout_s)
            except _MethodNotAllowedError:
                # Version 0.1.0 takes a new snapshot for a GET.
                headers, body = await self._call("GET", node, path, timeout_s)
        index, size = (parse_number(headers.get(name, "")) for name in (HEADER_INDEX, HEADER_SIZE))
        sha256 = headers.get(HEADER_SHA256, "")
        if not index or size is None or last_index not in (0, index) or not _SHA256.fullmatch(sha256):
            raise MalformedMessageError(f"{node} sent a piece of a snapshot that it does not describe")
        return SnapshotChunk(body, index, size, sha256)

    async def state_hash(self, node: str, index: int) -> StateDigest | None:
        """Ask a member for its digest after applying ``index``; None: it does not remember it, or does not answer."""
        try:
            headers, body = await self._call("GET", node, f"/raft/v1/state-hash/{index}", REQUEST_TIMEOUT_S)
            return parse_digest(body.decode(), headers.get(HEADER_ENTRY, ""))
        except (PeerError, ValueError):
            return None

    async def suspect(self, node: str, index: int) -> None:
        """Tell a member that its state differs from others' at ``index``.

        Raises:
            PeerError: it does not answer.
        """
        await self._call("POST", node, f"/raft/v1/suspect/{index}", REQUEST_TIMEOUT_S)

    async def _call(self, method: str, node: str, path: str, timeout_s: float) -> tuple[Mapping[str, str], bytes]:
        url = self.url_of(node) or await self._ask_for_url(node)
        dialling = self._dialling
        headers = dialling_headers(dialling.identity(), node, dialling.peer_url, dialling.token)
        return await self._request(method, url + path, headers, timeout_s)

    async def _ask_for_url(self, node: str) -> str:
        """Return where a stranger is, as members say, or the nodes that our options name.

        Raises:
            PeerError: none of them knows it.
        """
        cluster_id = self._dialling.identity().cluster_id
        hellos = map(self.hello, self._recipients.trusted_urls())
        for hello in await asyncio.gather(*hellos, return_exceptions=True):
            if isinstance(hello, Hello) and hello.cluster_id == cluster_id:
                url = dict(zip(hello.members, hello.member_urls, strict=False)).get(node)
                if url:
                    return url
        raise PeerError(f"no address of {node} is known")

    async def _request(
        self, method: str, url: str, headers: dict[str, str], timeout_s: float, bytes_max: int = SNAPSHOT_CHUNK_BYTES
    ) -> tuple[Mapping[str, str], bytes]:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._dialling.session().request(
                method, url, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                body = await read_bounded(response, bytes_max)
                if response.status == web.HTTPMethodNotAllowed.status_code:
                    raise _MethodNotAllowedError(f"{url} does not know {method}")
                if response.status >= 300:
                    raise PeerError(f"{url} answers {response.status}: {body[:200].decode(errors='replace').strip()}")
                return response.headers, body
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # ValueError: the URL is none that the library can dial.
            raise PeerError(f"{url}: {reason_of(error)}") from error


class _MethodNotAllowedError(PeerError):
    """A peer of an older version, which answers this path for another method only."""


def _report_failure(node: str, error: Exception) -> None:
    """A link never ends by itself: whatever ended it is a bug, and must not pass in silence."""
    log.error("link to %s ended unexpectedly: %r", node, error, exc_info=error)
