"""Who is calling whom, and what each understands: checked on every connection between peers.

Each side dials the other, so each learns of the other what it announces: the protocols that it speaks, the feature
levels that it supports, and its version. Two nodes talk if they have a protocol in common. Version 0.1.0 announces
protocol 1 and nothing else, and refuses every other first header; so that header holds the lowest protocol that we
speak, and a header that 0.1.0 does not look at holds the range (docs/internals/identity.md).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence

import msgspec

from kvorum import __version__
from kvorum.config import is_base_url
from kvorum.errors import IdentityRejectedError, MalformedMessageError
from kvorum.identity import Identity, is_node_id, name_of
from kvorum.kv.features import FIRST_LEVEL, HIGHEST_LEVEL
from kvorum.kv.limits import CLUSTER_ID_BYTES_MAX
from kvorum.kv.state_hash import StateDigest
from kvorum.raft.messages import INDEX_MAX, PeerMark
from kvorum.transport.interface import (
    FIRST_VERSION,
    PROTOCOLS,
    URL_CHARS_MAX,
    VERSION_CHARS_MAX,
    Answer,
    Greeting,
    Hello,
)
from kvorum_wire import CLUSTER_HEADER

HEADER_PROTOCOL = "X-Kvorum-Protocol"
HEADER_PROTOCOLS = "X-Kvorum-Protocols"
HEADER_LEVELS = "X-Kvorum-Feature-Levels"
HEADER_VERSION = "X-Kvorum-Version"
HEADER_CLUSTER = CLUSTER_HEADER
HEADER_FROM = "X-Kvorum-From"
HEADER_TO = "X-Kvorum-To"
HEADER_URL = "X-Kvorum-Peer-Url"
HEADER_START = "X-Kvorum-Start"
HEADER_MARKS = "X-Kvorum-Marks"
HEADER_CLIENT_URL = "X-Kvorum-Client-Url"
HEADER_ENTRY = "X-Kvorum-Entry"
HEADER_TOKEN = "X-Kvorum-Token"  # noqa: S105 (a header's name)
_FIELD_CHARS_MAX = 512
_DIGEST = re.compile(
    r"(?:(?P<version>[0-9]{1,9}) )?(?P<chain>[0-9a-f]{1,16})(?(version) (?P<records>-|[0-9a-f]{1,32}))", re.ASCII
)
_DIGITS = re.compile(r"[0-9]{1,19}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{1,16}", re.ASCII)
_MARK = re.compile(
    r"(?P<start>-|[0-9a-f]{1,16}) (?P<term>[0-9]{1,19}) (?P<vote>\S{1,80}) "
    r"(?P<index>[0-9]{1,19}) (?P<index_term>[0-9]{1,19})",
    re.ASCII,
)
MARKS_MAX = 2
"""Of the present process of a server, and of all before it."""
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)


def token_digest(token: str) -> str:
    """Return what is sent of a token: its SHA-256, hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def dialling_headers(
    identity: Identity,
    recipient: str,
    peer_url: str,
    token: str,
    *,
    client_url: str = "",
    start: str = "",
    marks: Sequence[PeerMark] = (),
) -> dict[str, str]:
    """Return the headers with which ``identity``, which is reached at these URLs, calls ``recipient`` (a member id).

    ``start``: which start of our process this is; ``marks``: what is known of the recipient's disk. Version 0.1.0 looks
    at neither, nor at ``client_url``.
    """
    return {
        HEADER_PROTOCOL: str(PROTOCOLS[0]),
        HEADER_PROTOCOLS: f"{PROTOCOLS[0]}-{PROTOCOLS[1]}",
        HEADER_LEVELS: f"{FIRST_LEVEL}-{HIGHEST_LEVEL}",
        HEADER_VERSION: __version__,
        HEADER_CLUSTER: identity.cluster_id,
        HEADER_FROM: identity.node_id,
        HEADER_TO: recipient,
        HEADER_URL: peer_url,
        HEADER_CLIENT_URL: client_url,
        HEADER_TOKEN: token_digest(token),
        HEADER_START: start,
        HEADER_MARKS: ",".join(map(_mark_text, marks)),
    }


def check_greeting(headers: Mapping[str, str], identity: Identity, token: str, address: str = "") -> Greeting:
    """Return who calls from this address.

    Its cluster may be one that we have yet to join: the caller of this function decides that.

    Raises:
        IdentityRejectedError: no common protocol, another cluster, a call for somebody else, another token, or headers
            that are malformed.
    """
    fields = {name: headers.get(name, "")[:_FIELD_CHARS_MAX] for name in (HEADER_CLUSTER, HEADER_FROM, HEADER_TO)}
    sender, recipient = fields[HEADER_FROM], fields[HEADER_TO]
    lowest, highest = _range(headers, HEADER_PROTOCOLS, headers.get(HEADER_PROTOCOL, ""), sender)
    if lowest > PROTOCOLS[1] or highest < PROTOCOLS[0]:
        raise IdentityRejectedError(
            "version",
            f"{sender!r} speaks protocols {lowest} to {highest}, and this version {PROTOCOLS[0]} to {PROTOCOLS[1]}",
        )
    _, highest_level = _range(headers, HEADER_LEVELS, str(FIRST_LEVEL), sender)
    if not hmac.compare_digest(_bytes(headers.get(HEADER_TOKEN, "")), token_digest(token).encode()):
        raise IdentityRejectedError("token", f"{sender!r} has another bootstrap token")
    if recipient != identity.node_id:
        reason = "incarnation" if name_of(recipient) == identity.name else "name"
        raise IdentityRejectedError(reason, f"{sender!r} expects {recipient!r} here, but this is {identity.node_id}")
    cluster_id = fields[HEADER_CLUSTER]
    if not cluster_id or (identity.cluster_id and cluster_id != identity.cluster_id):
        raise IdentityRejectedError(
            "cluster", f"{sender!r} belongs to cluster {cluster_id!r}, this node to {identity.cluster_id!r}"
        )
    if not is_node_id(sender) or not is_plain(cluster_id, CLUSTER_ID_BYTES_MAX):
        raise IdentityRejectedError("malformed", f"{sender!r} of cluster {cluster_id!r} is not a member id")
    if sender == identity.node_id:
        raise IdentityRejectedError("name", f"{sender!r} is not the id of another member")
    peer_url = _plain(headers, HEADER_URL, "", URL_CHARS_MAX, sender)
    client_url = _plain(headers, HEADER_CLIENT_URL, "", URL_CHARS_MAX, sender)
    version = _plain(headers, HEADER_VERSION, FIRST_VERSION, VERSION_CHARS_MAX, sender)
    return Greeting(
        cluster_id,
        sender,
        peer_url if is_base_url(peer_url) else "",
        min(highest, PROTOCOLS[1]),
        highest_level,
        version,
        _start(headers, sender),
        _marks(headers, sender, identity.node_id),
        client_url if is_base_url(client_url) else "",
        address,
    )


def answer_headers(start: str, marks: Sequence[PeerMark]) -> dict[str, str]:
    """Return what the called side says of itself when it accepts a stream.

    ``start``: which start of our process this is; ``marks``: what is known of the caller's disk. Versions before 0.3.0
    do not look at them.
    """
    return {HEADER_START: start, HEADER_MARKS: ",".join(map(_mark_text, marks))}


def check_answer(headers: Mapping[str, str], sender: str, recipient: str) -> Answer:
    """Return what ``sender``, which ``recipient`` called, says when it accepts the stream.

    Raises:
        IdentityRejectedError: the headers are malformed.
    """
    marks = _marks(headers, sender, recipient) if HEADER_MARKS in headers else None
    return Answer(_start(headers, sender), marks)


def _bytes(header: str) -> bytes:
    """Return the bytes of a header; the library decodes those that are not UTF-8 as lone surrogates."""
    return header.encode("utf-8", "surrogateescape")


def _plain(headers: Mapping[str, str], name: str, default: str, chars_max: int, sender: str) -> str:
    """Return a header that is printable ASCII of bounded length.

    Raises:
        IdentityRejectedError: it is something else.
    """
    text = headers.get(name, default)
    if not is_plain(text, chars_max):
        raise IdentityRejectedError(
            "malformed",
            f"{sender!r} announces {name}: {text[:VERSION_CHARS_MAX]!r}, which is not up to {chars_max} "
            "printable ASCII characters",
        )
    return text


def _range(headers: Mapping[str, str], name: str, default: str, sender: str) -> tuple[int, int]:
    """Return the two numbers of a header ``LOWEST-HIGHEST``; one number is both.

    Raises:
        IdentityRejectedError: it is something else.
    """
    text = headers.get(name, default)
    match = _RANGE.fullmatch(text)
    if match is None or int(match[1]) > int(match[2] or match[1]):
        raise IdentityRejectedError(
            "version", f"{sender!r} announces {name}: {text[:VERSION_CHARS_MAX]!r}, which is not a range"
        )
    return int(match[1]), int(match[2] or match[1])


def _start(headers: Mapping[str, str], sender: str) -> str:
    """Return which start of its process the sender speaks for; empty: it does not tell.

    Raises:
        IdentityRejectedError: it is not a number of up to 16 hex digits.
    """
    text = headers.get(HEADER_START, "")
    if text and _HEX.fullmatch(text) is None:
        raise IdentityRejectedError("malformed", f"{sender!r} announces {HEADER_START}: {text[:16]!r}")
    return text


def _mark_text(mark: PeerMark) -> str:
    return f"{mark.start or '-'} {mark.term} {mark.vote or '-'} {mark.index} {mark.index_term}"


def _marks(headers: Mapping[str, str], sender: str, recipient: str) -> tuple[PeerMark, ...]:
    """Return what the sender knows of the recipient's disk.

    Raises:
        IdentityRejectedError: it is something else.
    """
    text = headers.get(HEADER_MARKS, "")
    matches = [_MARK.fullmatch(part) for part in text.split(",", MARKS_MAX)] if text else []
    marks: list[PeerMark] = []
    for match in matches:
        numbers = [parse_number(match[name]) for name in ("term", "index", "index_term")] if match else [None]
        if (
            len(matches) > MARKS_MAX
            or match is None
            or None in numbers
            or not (match["vote"] == "-" or is_node_id(match["vote"]))
        ):
            raise IdentityRejectedError("malformed", f"{sender!r} announces {HEADER_MARKS}: {text[:64]!r}")
        term, index, index_term = (number or 0 for number in numbers)
        start, vote = ("" if match[name] == "-" else match[name] for name in ("start", "vote"))
        marks.append(PeerMark(recipient, start, term, vote or None, index, index_term))
    return tuple(marks)


def decode_hello(body: bytes) -> Hello:
    """Return the hello that somebody answered.

    Raises:
        MalformedMessageError: it is none.
    """
    try:
        hello = msgspec.json.decode(body, type=Hello)
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError(f"not a hello: {error}") from error
    if not is_node_id(hello.node_id):
        raise MalformedMessageError(f"not a hello: {hello.node_id!r} is not a member id")
    for url in (hello.peer_url, hello.client_url, *hello.member_urls):
        if url and not is_base_url(url):
            raise MalformedMessageError(f"not a hello: {url!r} is not the URL of a node")
    if not is_plain(hello.version, VERSION_CHARS_MAX) or not is_plain(hello.cluster_id, CLUSTER_ID_BYTES_MAX):
        raise MalformedMessageError(f"not a hello: version {hello.version!r}, cluster {hello.cluster_id!r}")
    return hello


def parse_number(text: str) -> int | None:
    """Return an index or a size that somebody sent in digits, or None: it is neither."""
    number = int(text) if _DIGITS.fullmatch(text) else INDEX_MAX
    return number if number < INDEX_MAX else None


def is_plain(text: str, chars_max: int) -> bool:
    """Tell whether this is printable ASCII of bounded length: fit for a log line, a header, JSON and a metric."""
    return len(text) <= chars_max and text.isascii() and text.isprintable()


def digest_text(digest: StateDigest) -> str:
    """Return a digest as peers send it. Version 0.1.0 knows the first form, and takes the other for no answer."""
    if digest.version == 1:
        return f"{digest.chain:016x}"
    records = "-" if digest.records is None else f"{digest.records:032x}"
    return f"{digest.version} {digest.chain:016x} {records}"


def entry_text(digest: StateDigest) -> str:
    """Return the hash of the entry that belongs to a digest, as peers send it beside the digest; empty: unknown.

    Versions before 0.3.0 do not look at it.
    """
    return "" if digest.entry is None else f"{digest.entry:016x}"


def parse_digest(text: str, entry: str = "") -> StateDigest:
    """Return the digest that a peer sent, and beside it the hash of an entry.

    Raises:
        ValueError: it is none.
    """
    match = _DIGEST.fullmatch(text)
    if match is None or (entry and _HEX.fullmatch(entry) is None):
        raise ValueError(f"{text[:64]!r}, {entry[:64]!r} is not a digest")
    records = match["records"]
    return StateDigest(
        int(match["version"] or 1),
        int(match["chain"], 16),
        None if records in (None, "-") else int(records, 16),
        int(entry, 16) if entry else None,
    )
