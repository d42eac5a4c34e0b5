"""Taking a request apart: target, query, headers and body, each within limits, each decoded exactly once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import HttpVersion11, hdrs
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest, PayloadAccessError, RequestKey, RequestPayloadError
from multidict import CIMultiDictProxy, istr

from kvorum.errors import InvalidRequestError, OverloadedError, TooLargeError
from kvorum.fronts.http.parameters import CLUSTER, Choice, Integer, Parameter, Switch
from kvorum.fronts.http.problems import RefusalError
from kvorum.service.limits import INTEGER_MAX

T = TypeVar("T")
C = TypeVar("C", bound=str)

BODY = RequestKey("body", bytes)
"""Where a handler leaves the body of a request that may have to be forwarded."""

IDEMPOTENCY_KEY = istr("Idempotency-Key")
SEC_FETCH_SITE = istr("Sec-Fetch-Site")

_AUTHORITY = re.compile(r"\A[^/?]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ETAG = re.compile(r'(W/)?"([^"]*)"')
_ETAGS_MAX = 64
_REFUSED = re.compile(r"q=0(?:\.0*)?")
"""A media type of this weight is not acceptable (RFC 9110, 12.4.2)."""
_ETAGS = re.compile(rf"{_ETAG.pattern}(?:[ \t]*,[ \t]*{_ETAG.pattern})*")


def split_target(target: str) -> tuple[str, str]:
    """Return the raw path and the raw query of a request target in origin form or (RFC 9112, 3.2.2) absolute form.

    Raises:
        InvalidRequestError: it is in neither, or it has a fragment.
    """
    if "#" in target:
        # Whoever passes it on or follows a redirect with it would leave out what follows: another key.
        raise InvalidRequestError("a request target must not contain '#': write %23")
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        if not separator or scheme.lower() not in {"http", "https"}:
            raise InvalidRequestError("the request target is neither a path nor an http URL")
        target = "/" + _AUTHORITY.sub("", rest).removeprefix("/")
    path, _, query = target.partition("?")
    return path, query


def decode_bytes(text: str) -> bytes:
    """Return the bytes that a percent-encoded text stands for, decoded once.

    Raises:
        InvalidRequestError: a percent sign without two hex digits.
    """
    if "%" not in text:
        return text.encode("utf-8", "surrogateescape")
    if _BAD_ESCAPE.search(text):
        raise InvalidRequestError("two hex digits must follow '%': write %25 for a percent sign")
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


def decode_text(text: str, what: str) -> str:
    """Return the percent-decoded text.

    Raises:
        InvalidRequestError: it is malformed, or not UTF-8.
    """
    try:
        return decode_bytes(text).decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{what} is not UTF-8") from None


class Query(dict[str, str]):
    """The query's parameters, each named at most once but for repeatable ones, joined by commas.

    Args:
        text: the raw query.
        known: the parameters that this request takes. Others are refused: a misspelt condition must not be ignored.
        taken: what it takes besides, and the caller has taken from the query already.
    """

    def __init__(self, text: str, known: frozenset[Parameter], taken: frozenset[Parameter] = frozenset()) -> None:
        super().__init__()
        for part in filter(None, text.split("&")):
            raw_name, _, raw_value = part.partition("=")
            name = decode_text(raw_name, "a parameter's name")
            if name not in known:
                # The dispatcher takes the cluster from every query.
                names = ", ".join(sorted({*known, *taken, CLUSTER}))
                raise InvalidRequestError(f"unknown parameter {name!r}; this request takes: {names}")
            value = decode_text(raw_value, f"the parameter {name}")
            if name not in self:
                self[name] = value
            elif any(each.repeatable for each in known if each == name):
                self[name] += "," + value
            else:
                raise InvalidRequestError(f"the parameter {name} is given twice")

    def integer(self, name: Integer) -> int | None:
        """Return the parameter as a whole number, or None if it is absent."""
        text = self.get(name)
        return None if text is None else parse_integer(text, name, name.minimum, name.maximum)

    def switch(self, name: Switch, *, default: bool = False) -> bool:
        """Return whether the parameter is true; ``?name`` alone is true, and without it the default counts."""
        text = self.get(name)
        if text is None:
            return default
        if text.lower() not in {"", "1", "true", "0", "false"}:
            raise InvalidRequestError(f"the parameter {name} must be true or false")
        return text.lower() in {"", "1", "true"}

    def choice(self, name: Choice[C]) -> C:
        """Return the parameter, by default the first choice."""
        text = self.get(name, name.choices[0])
        for choice in name.choices:
            if choice == text:
                return choice
        raise InvalidRequestError(f"the parameter {name} is one of: {', '.join(filter(None, name.choices))}")


def parse_integer(text: str, what: str, minimum: int, maximum: int) -> int:
    """Return the whole number.

    Raises:
        InvalidRequestError: it is none, or beyond the limits.
    """
    digits = text.removeprefix("-")
    if len(digits) > 19 or not (digits.isascii() and digits.isdigit()) or not minimum <= int(text) <= maximum:
        raise InvalidRequestError(f"{what} must be a whole number from {minimum:,} to {maximum:,}")
    return int(text)


def parse_idempotency_key(text: str, what: str = "Idempotency-Key") -> tuple[str, int]:
    """Return the client id and the sequence of ``CLIENT-ID/SEQUENCE``; ``what`` names it in an error.

    Raises:
        InvalidRequestError: it is malformed.
    """
    client_id, separator, sequence = text.partition("/")
    if not client_id or not separator:
        raise InvalidRequestError(f"{what} is not CLIENT-ID/SEQUENCE")
    return client_id, parse_integer(sequence, f"the sequence of {what}", 1, INTEGER_MAX)


def parse_etags(text: str, what: str, *, strong: bool = False) -> tuple[int, ...] | None:
    """Return the revisions of an ``If-Match`` or ``If-None-Match``, or None for ``*``.

    A tag that is no revision of ours matches nothing and is left out. So is a weak tag if the comparison is ``strong``
    (RFC 9110, 8.8.3.2), as that of If-Match is.

    Raises:
        InvalidRequestError: it is not a list of entity tags, or there are more than 64.
    """
    text = text.strip()
    if text == "*":
        return None
    if text.count('"') > 2 * _ETAGS_MAX:
        raise InvalidRequestError(f"{what} lists more than {_ETAGS_MAX} entity tags")
    if not _ETAGS.fullmatch(text):
        raise InvalidRequestError(f'{what} is neither * nor a list of "REVISION"')
    tags = [tag for weak, tag in _ETAG.findall(text) if not (weak and strong)]
    return tuple(int(tag) for tag in tags if tag.isascii() and tag.isdigit() and len(tag) <= 19)


class Bodies:
    """Reads the bodies of requests, within one budget for all that are in memory at a time.

    A body takes its share before it is read, gives back what it turns out not to need, and keeps the rest until its
    request is answered, or has let go of the body. Bodies that are still arriving can take three quarters: what arrives
    at once, as small bodies do, still finds room while others arrive slowly.

    Args:
        budget_bytes: the most that all bodies may take.
        timeout_s: how long a body may take to arrive.
    """

    def __init__(self, budget_bytes: int, timeout_s: float) -> None:
        self._budget_bytes = budget_bytes
        self._timeout_s = timeout_s
        self.used_bytes = 0
        self._taken: dict[int, int] = {}
        """What each request in hand has taken, by its ``id``: a request is no key of a dict."""

    async def read(self, request: BaseRequest, bytes_max: int) -> bytes:
        """Return the request's whole body; :meth:`release` it when the request is answered, or the body dropped.

        Raises:
            RefusalError: it is encoded, or did not arrive in time, or the client expects what we cannot do.
            TooLargeError: it is over the limit.
            OverloadedError: there is no room for it.
            InvalidRequestError: it is malformed.
            ConnectionError: the client is gone.
        """
        headers = request.headers
        if hdrs.CONTENT_ENCODING in headers or hdrs.TRANSFER_ENCODING in headers:
            _check_codings(headers)
        if (expect := headers.get(hdrs.EXPECT)) is not None and expect.lower() != "100-continue":
            raise RefusalError("expectation_failed", "the only supported expectation is 100-continue")
        length = headers.get(hdrs.CONTENT_LENGTH)
        if length is not None and (len(length) > 19 or int(length) > bytes_max):
            raise TooLargeError(f"the body has {length:.19} bytes", bytes_max)
        try:
            if request.content.is_eof():
                body = request.content.read_nowait(-1)
                if len(body) > bytes_max:
                    raise TooLargeError("the body is too long", bytes_max)
                self._take(request, len(body), self._budget_bytes)
                return body
            self._take(request, bytes_max if length is None else int(length), self._budget_bytes * 3 // 4)
            if expect is not None and request.version >= HttpVersion11 and request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            async with asyncio.timeout(self._timeout_s):
                body = await _read_slowly(request, bytes_max)
            self._keep(request, len(body))
            return body
        except TimeoutError:
            raise RefusalError("body_timeout", f"the body did not arrive within {self._timeout_s:g} s") from None
        except (RequestPayloadError, PayloadAccessError, HttpProcessingError) as error:
            raise InvalidRequestError(f"the body is malformed: {type(error).__name__}") from None

    def _take(self, request: BaseRequest, size_bytes: int, limit_bytes: int) -> None:
        if size_bytes == 0:
            return
        if self.used_bytes + size_bytes > limit_bytes:
            raise OverloadedError("the request bodies that this node reads take all the memory that they may")
        self.used_bytes += size_bytes
        self._taken[id(request)] = size_bytes

    def _keep(self, request: BaseRequest, size_bytes: int) -> None:
        """Give back what the body did not need: one without a Content-Length took as much as it may have."""
        self.used_bytes += size_bytes - self._taken.get(id(request), 0)
        self._taken[id(request)] = size_bytes

    def release(self, request: BaseRequest) -> None:
        """Give back what the body of a request took, if it took anything. Idempotent.

        Call it when the request is answered, or when nothing keeps its body any more.
        """
        self.used_bytes -= self._taken.pop(id(request), 0)


def _check_codings(headers: CIMultiDictProxy[str]) -> None:
    """Refuse a body that is packed in whatever: it would be stored as it came, and read as if it were the value."""
    encodings = headers.getall(hdrs.CONTENT_ENCODING, [])
    if any(encoding.strip().lower() != "identity" for encoding in encodings):
        raise RefusalError("unsupported_encoding", "Content-Encoding is not supported: send the body unencoded")
    transfer = headers.getall(hdrs.TRANSFER_ENCODING, ["chunked"])
    if len(transfer) != 1 or transfer[0].strip().lower() != "chunked":
        raise RefusalError("unsupported_encoding", "the only supported Transfer-Encoding is chunked")


async def _read_slowly(request: BaseRequest, bytes_max: int) -> bytes:
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > bytes_max:
            raise TooLargeError("the body is too long", bytes_max)
    return bytes(body)


def decode_json(body: bytes, decoder: Callable[[bytes], T], example: str) -> T:
    """Return the decoded body.

    Raises:
        InvalidRequestError: it is not what the decoder wants.
    """
    try:
        return decoder(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the body is not JSON like {example}: {error}") from None
    except RecursionError:
        raise InvalidRequestError(f"the body is not JSON like {example}: it is nested too deep") from None


def combined(headers: CIMultiDictProxy[str], name: str) -> str | None:
    """Return a header that is a list, or None: given several times means the same as given once (RFC 9110, 5.3)."""
    return ", ".join(headers.getall(name)) if name in headers else None


def wants_json(headers: CIMultiDictProxy[str]) -> bool:
    """Tell whether the client asked for JSON rather than for the raw value."""
    return accepts(headers, "application/json")


def accepts(headers: CIMultiDictProxy[str], wanted: str) -> bool:
    """Tell whether the client named this media type as one that it accepts."""
    for media_range in (combined(headers, hdrs.ACCEPT) or "").lower().split(","):
        media_type, *parameters = media_range.split(";")
        if media_type.strip() == wanted:
            return not any(_REFUSED.fullmatch(parameter.strip()) for parameter in parameters)
    return False
