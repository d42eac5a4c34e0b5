"""How the body of ``GET /v1/watch`` is written: lines of JSON, or server-sent events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import msgspec

import kvorum_wire as wire
from kvorum.errors import CallerError
from kvorum.fronts.http import operations
from kvorum.fronts.http.history import shown_lease, text_or_base64
from kvorum.fronts.http.problems import problem_of
from kvorum.service.results import Event, event_bytes

_encode = msgspec.json.Encoder().encode


class Lines(msgspec.Struct, frozen=True):
    """How a body is written."""

    content_type: str
    events: Callable[[list[Event]], bytes]
    """Writes whole revisions."""
    fragment: Callable[[Fragment], bytes]
    progress: Callable[[int], bytes]
    end: Callable[[CallerError], bytes]
    heartbeat: bytes


class Fragment(msgspec.Struct, frozen=True):
    """Some events: whole revisions, but that the last one may go on in the next fragment."""

    events: list[Event]
    has_more: bool
    """Whether it does."""


def fragments(events: list[Event], fragment_bytes: int) -> Iterator[Fragment]:
    """Yield events in fragments, each of which ends with the event that makes it so long."""
    begin, size_bytes = 0, 0
    for number, event in enumerate(events, 1):
        size_bytes += event_bytes(event)
        is_last = number == len(events)
        if is_last or size_bytes >= fragment_bytes:
            has_more = not is_last and events[number][0].mod_revision == event[0].mod_revision
            yield Fragment(events[begin:number], has_more)
            begin, size_bytes = number, 0


def _revisions(events: list[Event], *, has_more: bool = False) -> list[wire.WatchRevision]:
    grouped = groupby(events, key=lambda event: event[0].mod_revision)
    found = [wire.WatchRevision(revision, tuple(map(_event, group))) for revision, group in grouped]
    if has_more:
        found[-1] = wire.WatchRevision(found[-1].revision, found[-1].events, more=True)
    return found


def _event(event: Event) -> wire.WatchEvent:
    record, previous = event
    is_put = record.version > 0
    return wire.WatchEvent(
        "put" if is_put else "delete",
        record.mod_revision,
        record.create_revision,
        record.version,
        *text_or_base64(record.key),
        *(text_or_base64(record.value) if is_put else (None, None)),
        *(text_or_base64(previous.value) if previous is not None else (None, None)),
        shown_lease(record),
    )


def _ndjson(revision: wire.WatchRevision) -> bytes:
    return _encode(revision) + b"\n"


def _sse(revision: wire.WatchRevision) -> bytes:
    # A browser resumes after the last id that it got: a revision that is not whole has none.
    head = b"" if revision.more else b"id: %d\n" % revision.revision
    return b"%bdata: %b\n\n" % (head, _encode(revision))


def _events(encode: Callable[[wire.WatchRevision], bytes]) -> Callable[[list[Event]], bytes]:
    return lambda events: b"".join(map(encode, _revisions(events)))


def _fragment(encode: Callable[[wire.WatchRevision], bytes]) -> Callable[[Fragment], bytes]:
    return lambda fragment: b"".join(map(encode, _revisions(fragment.events, has_more=fragment.has_more)))


NDJSON_LINES = Lines(
    operations.NDJSON,
    _events(_ndjson),
    _fragment(_ndjson),
    lambda revision: _encode(wire.WatchProgress(revision)) + b"\n",
    lambda error: _encode(wire.WatchEnd(problem_of(error))) + b"\n",
    b"\n",
)
SSE_LINES = Lines(
    operations.SSE,
    _events(_sse),
    _fragment(_sse),
    lambda revision: b"event: progress\nid: %d\ndata: %b\n\n" % (revision, _encode(wire.WatchProgress(revision))),
    lambda error: b"event: end\ndata: %b\n\n" % _encode(wire.WatchEnd(problem_of(error))),
    b":\n\n",
)
