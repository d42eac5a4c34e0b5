"""Every error of the API, in one table: its code, HTTP status, title, outcome and when to try again.

Bodies are ``application/problem+json`` (RFC 9457) with ``type``, ``title``, ``status``, ``detail``, ``code``,
``outcome`` and fields of their own (``leader``, ``revision``, ``limit``, ...). ``code`` is stable; programs switch on
it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from kvorum.errors import CallerError, NotLeader, TooLarge
from kvorum.fronts.http.response import Response, header

Outcome = Literal["refused", "unknown"]


class Row(msgspec.Struct, frozen=True):
    """One kind of error."""

    status: int
    title: str
    outcome: Outcome = "refused"
    retry_after_s: int | None = None


TABLE: dict[str, Row] = {
    "not_leader": Row(307, "This node does not lead the cluster"),
    "malformed_http": Row(400, "This is not HTTP"),
    "invalid_request": Row(400, "The request is malformed"),
    "cross_origin": Row(403, "A web page of another origin may not do this"),
    "unknown_path": Row(404, "There is nothing at this path"),
    "not_found": Row(404, "There is no such key"),
    "method_not_allowed": Row(405, "This path does not take this method"),
    "body_timeout": Row(408, "The body did not arrive in time"),
    "compare_failed": Row(409, "The key is at another revision"),
    "session_unknown": Row(409, "The session is not known (any more)", "unknown"),
    "session_stale": Row(409, "The sequence's answer is no longer remembered", "unknown"),
    "session_ahead": Row(409, "The sequence is too far ahead of the session"),
    "membership_refused": Row(409, "The membership change would not be safe now"),
    "precondition_failed": Row(412, "The key is at another revision"),
    "too_large": Row(413, "A limit was passed"),
    "unsupported_encoding": Row(415, "Bodies are taken as they are, without Content-Encoding"),
    "expectation_failed": Row(417, "The only expectation that can be met is 100-continue"),
    "session_mismatch": Row(422, "The sequence was used by another request"),
    "sessions_full": Row(429, "There are too many live sessions", retry_after_s=60),
    "head_too_large": Row(431, "The request line or a header is too long, or there are too many headers"),
    "internal": Row(500, "A bug in Kvorum", "unknown"),
    "no_leader": Row(503, "There is no leader", retry_after_s=1),
    "overloaded": Row(503, "Too much is in flight", retry_after_s=1),
    "read_timeout": Row(503, "No quorum confirmed the read in time", retry_after_s=1),
    "too_stale": Row(503, "This node's data may be older than asked for", retry_after_s=1),
    "transfer_failed": Row(503, "The leadership did not move", retry_after_s=1),
    "outcome_unknown": Row(504, "The request may or may not be done", "unknown"),
}

_encoder = msgspec.json.Encoder()


class Refusal(CallerError):
    """An error that only the API knows.

    Args:
        code: a row of :data:`TABLE`.
        detail: one readable sentence.
        headers: further header lines.
        fields: machine-readable fields of the body.
    """

    def __init__(self, code: str, detail: str, *, headers: str = "", **fields: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.headers = headers
        self.fields = fields


def problem(code: str, detail: str, *, headers: str = "", close: bool = False, **fields: Any) -> Response:
    """Return the answer for the table's row ``code``."""
    row = TABLE[code]
    body = {
        "type": f"urn:kvorum:error:{code}",
        "title": row.title,
        "status": row.status,
        "detail": detail.encode("utf-8", "backslashreplace").decode(),
        "code": code,
        "outcome": row.outcome,
        **fields,
    }
    if row.retry_after_s is not None:
        headers += header("Retry-After", str(row.retry_after_s))
        body["retry_after_s"] = row.retry_after_s
    return Response(row.status, _encoder.encode(body) + b"\n", "application/problem+json", headers, close=close)


def from_error(error: CallerError) -> Response:
    """Return the answer for an error that the node or a handler raised (a redirect needs the request too)."""
    if isinstance(error, Refusal):
        return problem(error.code, str(error), headers=error.headers, **error.fields)
    if isinstance(error, TooLarge):
        return problem("too_large", str(error), limit=error.limit)
    if isinstance(error, NotLeader):
        # Nobody to send the client to.
        return problem("no_leader", str(error))
    code = error.code if error.code in TABLE else "internal"
    return problem(code, str(error) or TABLE[code].title)
