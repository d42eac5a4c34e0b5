"""Turns arguments into requests, and answers into results. The bodies are declared in :mod:`kvorum_wire`."""

from __future__ import annotations

import base64
from typing import TypeVar
from urllib.parse import quote_from_bytes

import msgspec

import kvorum_wire as wire
from kvorum_client.errors import ClientError, InvalidArgumentError, OutcomeUnknownError
from kvorum_client.results import History, KeyVersion, Record, WatchEvent
from kvorum_client.transport import Answer
from kvorum_wire import HistoryAnswer, Problem

T = TypeVar("T")

_DOTS = (b".", b"..")


def encoded(data: bytes | str, what: str) -> bytes:
    """Return bytes, of text its UTF-8.

    Raises:
        InvalidArgumentError: ``data`` is neither; ``what`` names it.
    """
    if isinstance(data, str):
        try:
            return data.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise InvalidArgumentError(f"{what} is text that cannot be encoded") from None
    if not isinstance(data, bytes):
        raise InvalidArgumentError(f"{what} is neither bytes nor text")
    return data


def quote(data: bytes) -> str:
    """Return bytes as one segment of a path."""
    quoted = quote_from_bytes(data, safe="")
    # A path of dots alone would be taken for a folder by whatever lies between.
    return quoted if data.strip(b".") else quoted.replace(".", "%2E")


def key_path(key: bytes) -> str:
    """Return the path of a key; :func:`key_parameters` belong to it.

    Raises:
        InvalidArgumentError: the key is empty.
    """
    if not key:
        raise InvalidArgumentError("the key is empty")
    return "/v1/kv" if key in _DOTS else f"/v1/kv/{quote(key)}"


def key_parameters(key: bytes) -> dict[str, str]:
    """Return the key as a parameter, if whatever lies between may take it for a folder of the path."""
    return {"key": key.decode()} if key in _DOTS else {}


def record_of(key: bytes, answer: Answer) -> Record:
    """Return the record that answers a get.

    Raises:
        ClientError: the answer is not Kvorum's.
    """
    headers = answer.headers
    try:
        staleness = headers.get("X-Kvorum-Staleness-Ms")
        return Record(
            key,
            answer.body,
            int(headers["X-Kvorum-Create-Revision"]),
            int(headers["X-Kvorum-Mod-Revision"]),
            int(headers["X-Kvorum-Version"]),
            int(headers["X-Kvorum-Revision"]),
            int(staleness) if staleness is not None else None,
            id_of(headers.get("X-Kvorum-Lease")),
        )
    except (KeyError, ValueError):
        raise ClientError("the answer is not Kvorum's: it lacks the revisions") from None


def history_of(key: bytes, body: bytes) -> History:
    """Return the history that answers a request for one.

    Raises:
        ClientError: the answer is not Kvorum's.
    """
    answer = decode(body, HistoryAnswer)
    versions = []
    for each in answer.versions:
        value = bytes_of(each.value, each.value_base64)
        lease = id_of(each.lease)
        versions.append(KeyVersion(value, each.create_revision, each.mod_revision, each.version, each.deleted, lease))
    return History(key, tuple(versions), answer.revision, answer.floor, answer.truncated)


def watch_event_of(event: wire.WatchEvent) -> WatchEvent:
    """Return an event of a watch.

    Raises:
        ClientError: it is not Kvorum's.
    """
    if event.type not in ("put", "delete"):
        raise ClientError(f"the answer is not Kvorum's, or of a later version: an event of type {event.type!r:.100}")
    prev_value = None
    if event.prev_value is not None or event.prev_value_base64 is not None:
        prev_value = bytes_of(event.prev_value, event.prev_value_base64)
    return WatchEvent(
        event.type == "put",
        bytes_of(event.key, event.key_base64),
        bytes_of(event.value, event.value_base64),
        event.mod_revision,
        event.create_revision,
        event.version,
        prev_value,
        id_of(event.lease),
    )


def bytes_of(text: str | None, text_base64: str | None) -> bytes:
    """Return bytes that came as text or as base64.

    Raises:
        ClientError: they are not Kvorum's.
    """
    try:
        return base64.b64decode(text_base64 or "", validate=True) or (text or "").encode()
    except ValueError:
        raise ClientError("the answer is not Kvorum's: a key or a value is not base64") from None


def id_of(text: str | None) -> int:
    """Return the id of a lease that the API wrote; 0: there is none.

    Raises:
        ClientError: it is not Kvorum's.
    """
    try:
        return int(text or "0", 16)
    except ValueError:
        raise ClientError(f"the answer is not Kvorum's: the id of a lease is {text!r:.80}") from None


def decode(body: bytes, kind: type[T]) -> T:
    """Return what a body says.

    Raises:
        ClientError: it is not Kvorum's.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(f"the answer is not Kvorum's: {error}") from None


def decode_write(body: bytes, kind: type[T]) -> T:
    """Decode what answers a write: if it makes no sense, nobody knows what was done."""
    try:
        return decode(body, kind)
    except ClientError as error:
        raise OutcomeUnknownError(f"the write may or may not have been applied: {error}") from None


def problem_of(answer: Answer) -> Problem:
    """Return why the answer is no; never fails."""
    try:
        return msgspec.json.decode(answer.body, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        detail = f"HTTP status {answer.status} without a known reason"
        if answer.status == 404:
            detail = f"{answer.base} is not a client port of Kvorum (is it the peer port?)"
        return Problem(code="unexpected", detail=detail)


class _Hello(msgspec.Struct, frozen=True):
    """What every node says at its peer port, as far as it matters here."""

    name: str
    incarnation: str
    peer_url: str


def is_hello(body: bytes) -> bool:
    """Tell whether this is what a node of Kvorum says of itself at its peer port."""
    try:
        msgspec.json.decode(body, type=_Hello)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True
