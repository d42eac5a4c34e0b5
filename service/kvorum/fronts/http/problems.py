"""Every error of the HTTP API: what each code of the service, and of this front, is in HTTP.

Bodies are ``application/problem+json`` (RFC 9457), see :class:`kvorum_wire.Problem`. Whether an error means refused or
unknown, and when to try again, is the service's decision (:mod:`kvorum.service.outcomes`). The codes that only this
front has are all of requests that never reached the service: refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from kvorum.errors import CallerError
from kvorum.fronts.http.response import Response, header
from kvorum.service.outcomes import OUTCOMES, REFUSED
from kvorum_wire import Problem


class Row(msgspec.Struct, frozen=True):
    """One kind of error."""

    status: int
    title: str
    outcome: Literal["refused", "unknown"]
    retry_after_s: int | None


_STATUSES = {
    "not_leader": (307, "This node is not the leader"),
    "malformed_http": (400, "The request is not well-formed HTTP"),
    "invalid_request": (400, "The request is malformed"),
    "future_revision": (400, "The cluster has not reached the revision"),
    "cross_origin": (403, "A web page of another origin may not do this"),
    "unknown_path": (404, "The path does not exist"),
    "not_found": (404, "The key does not exist"),
    "key_not_found": (404, "The key whose value is to be kept does not exist"),
    "lease_not_found": (404, "The lease does not exist, or its time is over"),
    "not_elected": (404, "Nobody is elected"),
    "unknown_member": (404, "There is no such member"),
    "method_not_allowed": (405, "The path does not support this method"),
    "body_timeout": (408, "The body did not arrive in time"),
    "compare_failed": (409, "The key is not at the expected revision"),
    "lease_exists": (409, "There is a lease with this id already"),
    "lock_held": (409, "Another lease holds the lock"),
    "lock_not_held": (409, "The lease does not hold the lock"),
    "session_unknown": (409, "The session is unknown or has expired"),
    "session_stale": (409, "The answer to this sequence is no longer remembered"),
    "session_ahead": (409, "The sequence is too far ahead of the session"),
    "feature_unavailable": (409, "The feature level of the cluster is too low"),
    "feature_level_blocked": (409, "A member does not support the next feature level"),
    "membership_refused": (409, "The membership change is not safe now"),
    "compacted": (410, "The revision is no longer in the history"),
    "precondition_failed": (412, "The key is not at the expected revision"),
    "too_large": (413, "A limit was exceeded"),
    "unsupported_encoding": (415, "The encoding of the body is not supported"),
    "expectation_failed": (417, "The only supported expectation is 100-continue"),
    "unknown_host": (421, "This node is not known under this host name"),
    "wrong_cluster": (421, "This node belongs to another cluster"),
    "session_mismatch": (422, "The sequence was used by another request"),
    "too_many_leases": (429, "There are too many leases"),
    "sessions_full": (429, "There are too many live sessions"),
    "too_many_watchers": (429, "This node has too many watchers; another one may have room"),
    "head_too_large": (431, "The request line or the headers are too large"),
    "internal": (500, "Internal error: a bug in Kvorum"),
    "no_leader": (503, "There is no leader"),
    "not_serving": (503, "This node serves nobody now; another one may"),
    "overloaded": (503, "The server is overloaded"),
    "read_timeout": (503, "No quorum confirmed the read in time"),
    "too_stale": (503, "The data of this node may be older than the read accepts"),
    "transfer_failed": (503, "There is no voter that can take the leadership"),
    "outcome_unknown": (504, "The request may or may not be done"),
    "no_space": (507, "There is no room for more data"),
}
"""Code -> HTTP status and title."""


def _row(code: str) -> Row:
    status, title = _STATUSES[code]
    outcome = OUTCOMES.get(code, REFUSED)
    return Row(status, title, outcome.effect, outcome.retry_after_s)


TABLE = {code: _row(code) for code in _STATUSES}
"""Code -> everything that HTTP says of it."""

_encode = msgspec.json.Encoder().encode


class RefusalError(CallerError):
    """An error that only this front knows, or knows more of.

    Args:
        code: a row of :data:`TABLE`.
        detail: one readable sentence.
        headers: further header lines.
        facts: fields of :class:`kvorum_wire.Problem`.
    """

    def __init__(self, code: str, detail: str, *, headers: str = "", **facts: Any) -> None:
        super().__init__(detail, **facts)
        self.code = code
        self.headers = headers


def problem(code: str, detail: str, *, headers: str = "", close: bool = False, **facts: Any) -> Response:
    """Return the answer for the table's row ``code``."""
    body = _body(code, detail, facts)
    if body.retry_after_s is not msgspec.UNSET:
        headers += header("Retry-After", str(body.retry_after_s))
    return Response(body.status, _encode(body) + b"\n", "application/problem+json", headers, close=close)


def problem_of(error: CallerError) -> Problem:
    """Return what the answer for an error says, for a place in an answer that has begun already."""
    code = error.code if error.code in TABLE else "internal"
    return _body(code, str(error) or TABLE[code].title, error.facts)


def _body(code: str, detail: str, facts: Mapping[str, Any]) -> Problem:
    row = TABLE[code]
    return Problem(
        code=code,
        type=f"urn:kvorum:error:{code}",
        title=row.title,
        status=row.status,
        detail=detail.encode("utf-8", "backslashreplace").decode(),
        outcome=row.outcome,
        retry_after_s=msgspec.UNSET if row.retry_after_s is None else row.retry_after_s,
        **facts,
    )


def from_error(error: CallerError) -> Response:
    """Return the answer for an error of the service or of this front (a redirect needs the request too)."""
    code = error.code if error.code in TABLE else "internal"
    headers = error.headers if isinstance(error, RefusalError) else ""
    # Nobody knows where the next request would begin.
    close = code == "malformed_http"
    return problem(code, str(error) or TABLE[code].title, headers=headers, close=close, **error.facts)
