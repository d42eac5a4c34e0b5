"""What the routes promise: for each operation its parameters, body, answers and errors.

Handlers parse by the same parameters and structs, and ``openapi`` writes these rows down. A route cannot be registered
without its operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from kvorum.fronts.http.parameters import FORWARD, TIMEOUT_MS, Parameter
from kvorum.identity import NAME_CHARS_MAX
from kvorum.service.limits import KEY_BYTES_MAX
from kvorum_wire import CLUSTER_HEADER

JSON = "application/json"
BYTES = "application/octet-stream"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TEXT = "text/plain; charset=utf-8"

BINARY: dict[str, Any] = {}
"""The schema of a body that is bytes: OpenAPI 3.1 has none for it."""
STRING = {"type": "string"}
NUMBER = {"type": "integer", "format": "int64", "minimum": 0}


class Field(msgspec.Struct, frozen=True):
    """A header of a request, or the last part of a path."""

    name: str
    description: str
    schema: Mapping[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """An answer that is no error. ``content``: media type -> struct, or several of them, or a JSON schema."""

    description: str
    content: Mapping[str, Any]
    headers: tuple[str, ...] = ()
    """Names of :data:`ANSWER_HEADERS`; any may be absent."""
    status: int = 200


class Body(msgspec.Struct, frozen=True):
    """The body of a request. ``shape``: a struct, or a JSON schema."""

    shape: Any
    media_type: str = JSON
    required: bool = True


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What one method of one path does."""

    summary: str
    answers: tuple[Answer, ...]
    name: Field | None = None
    """The last part of the path."""
    parameters: frozenset[Parameter] = frozenset()
    required: frozenset[Parameter] = frozenset()
    headers: tuple[Field, ...] = ()
    body: Body | None = None
    errors: frozenset[str] = frozenset()
    """Codes of :data:`kvorum.fronts.http.problems.TABLE`, beside :data:`ERRORS` and, with a body, BODY_ERRORS."""


ERRORS = frozenset(
    {
        *("malformed_http", "invalid_request", "cross_origin", "too_large", "unknown_host", "wrong_cluster"),
        *("head_too_large", "internal", "not_serving", "overloaded"),
    }
)
"""What every request may meet."""
BODY_ERRORS = frozenset({"body_timeout", "unsupported_encoding", "expectation_failed"})
LEADER_ERRORS = frozenset({"not_leader", "no_leader"})
READ_ERRORS = LEADER_ERRORS | {"read_timeout", "feature_unavailable"}
PAST_ERRORS = READ_ERRORS | {"too_stale", "compacted", "future_revision"}
WRITE_ERRORS = READ_ERRORS | {"outcome_unknown"}
SESSION_ERRORS = frozenset(
    {"session_unknown", "session_stale", "session_ahead", "session_mismatch", "sessions_full", "no_space"}
)

WRITE_PARAMETERS: frozenset[Parameter] = frozenset({TIMEOUT_MS, FORWARD})
"""Of every request that is for the leader only."""

KEY_NAME = Field(
    "key",
    f"The key, 1 to {KEY_BYTES_MAX:,} bytes, percent-encoded once; a slash may stay as it is. The segments '.' and "
    "'..' are refused: send such a key to /v1/kv as the parameter key.",
    {"type": "string", "minLength": 1},
)
MEMBER_NAME = Field("name", "The name of the member.", {"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX})
CHECK_NAME = Field("check", "The name of the check.", {"type": "string", "minLength": 1})
CLIENT_ID = Field("client_id", "The client id of the session.", {"type": "string", "minLength": 1, "maxLength": 64})

LEASE_ID = Field(
    "id",
    "The id of the lease, in hex: a signed 64-bit number, and not 0.",
    {"type": "string", "pattern": "^-?0*[0-9a-fA-F]{1,16}$"},
)
LOCK_NAME = Field("name", "The name, percent-encoded once, a slash as well.", {"type": "string", "minLength": 1})

IDEMPOTENCY_KEY = Field(
    "Idempotency-Key",
    "CLIENT-ID/SEQUENCE: a retry with the same key is applied once.",
    {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}/[0-9]{1,19}$"},
)
IF_MATCH = Field("If-Match", 'Do it only if the key is at this revision: "REVISION".', STRING)
IF_NONE_MATCH = Field("If-None-Match", "Of a write: *, only if the key does not exist. Of a read: entity tags.", STRING)
LAST_EVENT_ID = Field("Last-Event-ID", "The revision of the last event that the client has.", NUMBER)

ANSWER_HEADERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ETag": ("The entity tag.", STRING),
    "Cache-Control": ("How long the answer may be kept.", STRING),
    "X-Kvorum-Revision": ("The revision of the store.", NUMBER),
    "X-Kvorum-Create-Revision": ("The revision that created the key.", NUMBER),
    "X-Kvorum-Mod-Revision": ("The revision of the last change of the key.", NUMBER),
    "X-Kvorum-Version": ("The number of changes of the key since it was created.", NUMBER),
    "X-Kvorum-Staleness-Ms": ("How far a stale read may be behind, in milliseconds.", NUMBER),
    "X-Kvorum-Lease": ("The id of the lease of the key, in hex.", STRING),
    "X-Kvorum-Snapshot-Index": ("The log index of the state.", NUMBER),
    "X-Kvorum-Snapshot-Consistency": ("linearizable or stale.", STRING),
    "X-Kvorum-Snapshot-Sha256": ("The SHA-256 of the file without its last 32 bytes, in hex.", STRING),
    CLUSTER_HEADER: ("The id of the node's cluster; absent while it is in none.", STRING),
    "Retry-After": ("How long to wait before the next attempt, in seconds.", NUMBER),
    "Location": ("The same request at the leader.", STRING),
    "X-Kvorum-Leader": ("The name of the leader.", STRING),
    "Content-Disposition": ("The name of the file.", STRING),
}


def json_answer(shape: Any, description: str = "Done.", *headers: str) -> tuple[Answer, ...]:
    """Return the answers of an operation that answers with one JSON body."""
    return (Answer(description, {JSON: shape}, headers),)
