"""One HTTP exchange with one node; and which node to ask next."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from types import SimpleNamespace
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL

from kvorum_client import forking
from kvorum_client.errors import InvalidArgumentError

CONNECT_TIMEOUT_S = 1.0
RESOLVE_INTERVAL_S = 2.0
"""A name is resolved again after this long, when a node did not answer."""
_CONNECTIONS_MAX = 1024
_PLAIN = re.compile(r"[^\s\\\x00-\x1f\x7f]+")
_DOWNLOAD_BYTES = 256 * 1024
_WHOLE_BODY_BYTES_MAX = 1024 * 1024
"""aiohttp warns of a longer body of bytes, since it is written in one piece."""
_ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""Of an answer that is kept in memory; the longest of a node's own is a value, in base64."""


CLOSED = "the client is closed; make a new one"
UNCLOSED = "a client of Kvorum was not closed: call close(), or use it in a `with`"


class NotSentError(Exception):
    """No connection: the request has certainly not reached the node."""


class NoAnswerError(Exception):
    """The request may have reached the node; no answer came."""


class DownloadInterruptedError(Exception):
    """Some of the answer came, and then no more."""


class Answer(msgspec.Struct, frozen=True):
    """What a node answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    base: str = ""
    """Who."""


class DownloadDeclinedError(Exception):
    """Another answer came instead of what was to be downloaded."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP status {answer.status}")
        self.answer = answer


class _Progress:
    """Whether anything of a request was written."""

    begun = False


async def _begun(session: aiohttp.ClientSession, context: SimpleNamespace, parameters: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.begun = True


class Transport:
    """The connections of one client."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self.is_closed = False

    async def close(self) -> None:
        """Close the connections, for good."""
        self.is_closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def __del__(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        warnings.warn(UNCLOSED, ResourceWarning, 1, self)
        # Instead of the library, which would log two errors that do not say whose connections these are.
        connector = session.connector
        session.detach()
        if connector is not None:
            loop = connector._loop
            if loop.is_running() and not sys.is_finalizing():
                loop.call_soon_threadsafe(connector._close)
            else:
                connector._close()

    def after_fork(self) -> None:
        """Forget the connections, which are the parent's."""
        session, self._session = self._session, None
        if session is not None:
            forking.keep_for_ever(session)

    async def exchange(
        self, base: str, method: str, target: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> Answer:
        """Send one request and return the answer, whatever its status.

        Raises:
            NotSentError: certainly not sent.
            NoAnswerError: perhaps sent.
        """
        timeout = aiohttp.ClientTimeout(
            total=timeout_s,
            sock_connect=min(CONNECT_TIMEOUT_S, timeout_s / 2),
            ceil_threshold=float("inf"),  # Otherwise aiohttp rounds up to whole seconds from 5 s on.
        )
        progress = _Progress()
        try:
            async with self._open().request(
                method,
                # Encoded already: a key is decoded once, by the node.
                URL(base + target, encoded=True),
                data=io.BytesIO(body) if len(body) > _WHOLE_BODY_BYTES_MAX else body or None,
                headers=headers,
                allow_redirects=False,
                timeout=timeout,
                trace_request_ctx=progress,
            ) as response:
                return Answer(response.status, response.headers, await _read(response), base)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSentError(_reason(base, error)) from None
        except aiohttp.InvalidURL as error:
            raise InvalidArgumentError(f"{base} is not an endpoint: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            # Which of the two deadlines passed first says nothing when the loop was late for both.
            raise (NoAnswerError if progress.begun else NotSentError)(_reason(base, error)) from None

    async def download(
        self, base: str, target: str, headers: Mapping[str, str], silence_s: float
    ) -> AsyncGenerator[tuple[bytes, int], None]:
        """Get something large; yield its pieces, each with the size of the whole.

        Args:
            base: the node.
            target: path and query.
            headers: of the request.
            silence_s: how long the node may say nothing.

        Raises:
            NotSentError: no node is there.
            NoAnswerError: nothing came.
            DownloadDeclinedError: what came is another answer.
            DownloadInterruptedError: some came, and not all.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_TIMEOUT_S, silence_s), sock_read=silence_s)
        began = False
        try:
            async with self._open().request(
                "GET", URL(base + target, encoded=True), headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                if response.status != 200:
                    raise DownloadDeclinedError(Answer(response.status, response.headers, await _read(response), base))
                async for chunk in response.content.iter_chunked(_DOWNLOAD_BYTES):
                    began = True
                    yield chunk, response.content_length or 0
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotSentError(_reason(base, error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise (DownloadInterruptedError if began else NoAnswerError)(_reason(base, error)) from None

    def _open(self) -> aiohttp.ClientSession:
        if self.is_closed:
            raise NotSentError(CLOSED)
        if self._session is None:
            writing = aiohttp.TraceConfig()
            writing.on_request_headers_sent.append(_begun)
            self._session = aiohttp.ClientSession(
                trace_configs=[writing],
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS_MAX, ttl_dns_cache=1, keepalive_timeout=10),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            )
            # aiohttp would send a PUT or DELETE a second time when a kept-alive connection breaks. Whether to try
            # again, and where, is for the client to decide, which knows whether it may.
            self._session._retry_connection = False
        return self._session


async def _read(response: aiohttp.ClientResponse) -> bytes:
    length = response.content_length
    if length is not None and length <= _ANSWER_BYTES_MAX:
        return await response.read()
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError("the answer is longer than any of Kvorum's")
    return bytes(body)


def _reason(base: str, error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        # aiohttp's own strerror repeats the address; a resolver's numbers are negative, and not the system's.
        text = os.strerror(error.errno).lower() if error.errno > 0 else str(error.strerror).lower()
    else:
        text = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    return f"{base}: {text or type(error).__name__}"


def parse_endpoint(text: str) -> str:
    """Return the base URL of ``HOST:PORT`` or ``http://HOST:PORT``.

    Raises:
        InvalidArgumentError: it is neither.
    """
    url = text.strip()
    url = (url if "://" in url else f"http://{url}").removesuffix("/")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        host.encode("idna")  # What resolving it would begin with.
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is not an endpoint: {error}") from None
    # What urlsplit sees and what it leaves out in silence: user, path, query, fragment, spaces.
    if (
        not host
        or parts.username is not None
        or not _PLAIN.fullmatch(url)
        or url.lower() != f"http://{parts.netloc.lower()}"
    ):
        raise InvalidArgumentError(f"{text!r} is not an endpoint: write HOST:PORT or http://HOST:PORT")
    return f"http://{parts.netloc}" if port is not None else f"http://{parts.netloc.removesuffix(':')}:8001"


def base_of(location: str) -> str | None:
    """Return the base URL of a redirect's target; None: it has none that we could ask."""
    try:
        parts = urlsplit(location)
        return parse_endpoint(
            f"{parts.scheme}://{parts.netloc.removesuffix(':')}" + (":80" if parts.port is None else "")
        )
    except ValueError:
        return None


class Router:
    """Which node to ask: the leader if it is known, else the endpoints in turn, each of a name's addresses by itself.

    Args:
        endpoints: ``HOST:PORT`` or ``http://HOST:PORT``; a host may be a name with several addresses.

    Raises:
        InvalidArgumentError: there is none, or one is malformed.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.endpoints = tuple(dict.fromkeys(parse_endpoint(endpoint) for endpoint in endpoints if endpoint.strip()))
        if not self.endpoints:
            raise InvalidArgumentError("no endpoints")
        self._bases: list[str] = []
        self._resolved_at = float("-inf")
        self._turn = 0
        self.leader: str | None = None

    async def pick(self, within_s: float) -> str:
        """Return the base URL to ask next."""
        return self.leader or await self.pick_any(within_s)

    async def pick_any(self, within_s: float) -> str:
        """Return the base URL of the endpoint whose turn it is."""
        if not self._bases:
            await self._resolve(within_s)
        return self._bases[self._turn % len(self._bases)]

    def others(self, base: str) -> list[str]:
        """Return the base URLs of the endpoints but this one."""
        return [other for other in self._bases if other != base]

    async def failed(self, base: str, within_s: float) -> None:
        """Take note that this node did not answer, or could not help."""
        if base == self.leader:
            self.leader = None
        self.skip(base)
        if time.monotonic() - self._resolved_at > RESOLVE_INTERVAL_S:
            await self._resolve(within_s)

    def skip(self, base: str) -> None:
        """Ask another endpoint next than this one, if it is the one whose turn it is."""
        if self._bases and base == self._bases[self._turn % len(self._bases)]:
            self._turn += 1

    def are_endpoints(self, bases: Collection[str]) -> bool:
        """Tell whether every endpoint is among these."""
        return bool(self._bases) and all(base in bases for base in self._bases)

    @property
    def count(self) -> int:
        """How many nodes there are to ask."""
        return max(1, len(self._bases))

    async def _resolve(self, within_s: float) -> None:
        """Expand names to their addresses: a node behind a name must not hide the others."""
        lists = await asyncio.gather(*(_addresses(endpoint, within_s) for endpoint in self.endpoints))
        self._bases = list(dict.fromkeys(base for bases in lists for base in bases))
        self._resolved_at = time.monotonic()


async def _addresses(endpoint: str, within_s: float) -> list[str]:
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [endpoint]
    try:
        async with asyncio.timeout(within_s):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        # The attempt to connect will say what is wrong, and the name may be there the next time.
        return [endpoint]
    hosts = dict.fromkeys(str(address[0]) for *_, address in found)
    if len(hosts) < 2:
        return [endpoint]
    return [f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts]
