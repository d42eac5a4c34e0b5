"""Cursors: where a page of a range ended, in a form that any node can go on from.

A cursor is opaque to clients: URL-safe base64 of msgpack and a checksum. It carries the revision and the count of the
first page, the position of the next one, and a digest of the query, so that all pages are at one revision and of one
query. It is bound to nothing in memory: whichever node gets it goes on, as long as it keeps the revision.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Annotated

import msgspec

from kvorum.errors import InvalidRequestError
from kvorum.kv.limits import INTEGER_MAX
from kvorum.kv.ranges import BOUND_BYTES_MAX, RangeQuery

FORMAT = 1
CURSOR_CHARS_MAX = 4096
_CHECKSUM_BYTES = 8
_DIGEST_BYTES = 16
_BEGIN_ANEW = "begin again without a cursor"

_Number = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=_DIGEST_BYTES, max_length=_DIGEST_BYTES)]
_Position = Annotated[bytes, msgspec.Meta(max_length=BOUND_BYTES_MAX)]


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page ended."""

    revision: Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)]
    """That of all pages."""
    count: _Number
    """Of the whole range at that revision."""
    position: _Position | _Number
    """A bound of the keys that are left; if they are sorted otherwise, how many records are done."""
    query: _Digest
    format: int = FORMAT


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Cursor)


def digest(query: RangeQuery) -> bytes:
    """Return a digest of what a query asks for; its limit may differ from page to page."""
    return blake2b(_encoder.encode(msgspec.structs.replace(query, limit=0)), digest_size=_DIGEST_BYTES).digest()


def encode_cursor(cursor: Cursor) -> str:
    """Return the cursor as text."""
    body = _encoder.encode(cursor)
    return urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode()


def decode_cursor(text: str, query: RangeQuery) -> Cursor:
    """Return the cursor of this query.

    Raises:
        InvalidRequestError: it is damaged, of another version, or of another query.
    """
    cursor = _decode(text)
    if cursor.format != FORMAT:
        raise InvalidRequestError(f"the cursor was made by another version of Kvorum; {_BEGIN_ANEW}")
    if cursor.query != digest(query):
        raise InvalidRequestError(
            "the cursor belongs to another range: all parameters but limit must be those of the first page"
        )
    if isinstance(cursor.position, bytes) != (query.sort == "key"):
        raise InvalidRequestError(f"the cursor is damaged; {_BEGIN_ANEW}")
    return cursor


def _decode(text: str) -> Cursor:
    try:
        if len(text) > CURSOR_CHARS_MAX:
            raise ValueError(text)
        # The decoder skips what is not of its alphabet.
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if checksum != _checksum(body) or urlsafe_b64encode(data).rstrip(b"=") != text.encode():
            raise ValueError(text)
        return _decoder.decode(body)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise InvalidRequestError(f"the cursor is damaged; {_BEGIN_ANEW}") from None


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
