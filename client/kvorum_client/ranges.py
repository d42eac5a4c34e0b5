"""Ranges: the keys that begin with a prefix, or lie between two keys, a page at a time."""

from __future__ import annotations

from typing import Literal

from kvorum_client.arguments import check_text, check_whole_number
from kvorum_client.errors import InvalidArgumentError
from kvorum_client.results import CommonPrefix, Page, Record
from kvorum_client.wire import bytes_of, decode, encoded, id_of
from kvorum_wire import RangeAnswer

SortBy = Literal["key", "create", "mod", "version", "value"]
SORTS = ("key", "create", "mod", "version", "value")

Parameters = dict[str, str | bytes]


def bounds(prefix: bytes | str | None, start: bytes | str | None, end: bytes | str | None) -> Parameters:
    """Return which keys a range has: those with a prefix, those from ``start`` on and before ``end``, or all.

    Raises:
        InvalidArgumentError: the arguments contradict each other, or cannot be keys.
    """
    if prefix is not None and (start is not None or end is not None):
        raise InvalidArgumentError("give a prefix, or start and end, but not both")
    given = {"prefix": prefix, "start": start, "end": end}
    parameters: Parameters = {}
    for name, bound in given.items():
        # An empty prefix, or an empty start, is all keys.
        if bound is not None and ((data := encoded(bound, name)) or name == "end"):
            parameters[name] = data
    if parameters.get("end") == b"":
        raise InvalidArgumentError("end is empty: leave it out for a range without an end")
    return parameters


def page_parameters(
    parameters: Parameters,
    *,
    limit: int | None,
    cursor: str | None,
    revision: int | None,
    keys_only: bool,
    sort: SortBy,
    reverse: bool,
    delimiter: bytes | str | None,
) -> Parameters:
    """Return the parameters of a page of a range.

    Raises:
        InvalidArgumentError: one of the arguments is not what it must be.
    """
    if sort not in SORTS:
        raise InvalidArgumentError(f"sort is one of {', '.join(SORTS)}, not {sort!r:.80}")
    found = dict(parameters)
    if limit is not None:
        found["limit"] = str(check_whole_number(limit, "limit", 1))
    if cursor is not None:
        found["cursor"] = check_text(cursor, "cursor")
    if revision is not None:
        found["revision"] = str(check_whole_number(revision, "revision", 1))
    if keys_only:
        found["keys_only"] = "true"
    if sort != "key":
        found["sort"] = sort
    if reverse:
        found["reverse"] = "true"
    if delimiter is not None:
        if not (data := encoded(delimiter, "the delimiter")):
            raise InvalidArgumentError("the delimiter is empty")
        found["delimiter"] = data
    return found


def page_of(body: bytes) -> Page:
    """Return the page that answers a request for one.

    Raises:
        ClientError: the answer is not Kvorum's.
    """
    answer = decode(body, RangeAnswer)
    records = tuple(
        Record(
            bytes_of(each.key, each.key_base64),
            bytes_of(each.value, each.value_base64),
            each.create_revision,
            each.mod_revision,
            each.version,
            answer.revision,
            answer.staleness_ms,
            id_of(each.lease),
        )
        for each in answer.records
    )
    prefixes = answer.prefixes or ()
    return Page(
        records,
        tuple(CommonPrefix(bytes_of(each.prefix, each.prefix_base64), each.count) for each in prefixes),
        answer.revision,
        answer.count,
        answer.cursor if answer.more else None,
        answer.staleness_ms,
    )
