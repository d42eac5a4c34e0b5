"""Checks of what a caller gives: a mistake is found before anything is sent."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from numbers import Real

from kvorum_client.errors import InvalidArgumentError

TIMEOUT_S_MAX = 86_400
"""A longer deadline is a mistake, milliseconds for example."""
INTEGER_MAX = 2**63 - 1
_CLUSTER_ID = re.compile(r"[0-9a-f]{32}")


def check_timeout(timeout_s: float) -> float:
    """Return the timeout.

    Raises:
        InvalidArgumentError: it is not a number of seconds above 0, up to a day.
    """
    if not isinstance(timeout_s, Real) or not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise InvalidArgumentError(
            f"timeout_s must be a number of seconds above 0, up to {TIMEOUT_S_MAX:,}, not {timeout_s!r:.80}"
        )
    return float(timeout_s)


def check_whole_number(number: int, what: str, minimum: int = 0, maximum: int = INTEGER_MAX) -> int:
    """Return the number as an int.

    Raises:
        InvalidArgumentError: it is no whole number, or beyond the limits.
    """
    try:
        # A truth value counts as a number in Python only.
        whole = minimum - 1 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        whole = minimum - 1
    if not minimum <= whole <= maximum:
        raise InvalidArgumentError(f"{what} must be a whole number from {minimum:,} to {maximum:,}, not {number!r:.80}")
    return whole


def check_text(text: str, what: str) -> str:
    """Return the text.

    Raises:
        InvalidArgumentError: it is no text, is empty, or cannot be sent.
    """
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{what} must be text, not {text!r:.80}")
    if not text:
        raise InvalidArgumentError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what} is text that cannot be encoded") from None
    return text


def check_cluster_id(cluster_id: str) -> str:
    """Return the id; empty: none is meant.

    Raises:
        InvalidArgumentError: it is none.
    """
    if cluster_id != "" and not (isinstance(cluster_id, str) and _CLUSTER_ID.fullmatch(cluster_id)):
        raise InvalidArgumentError(f"{cluster_id!r:.80} is not the id of a cluster: 32 of the digits 0-9 a-f")
    return cluster_id


def check_endpoints(endpoints: Sequence[str]) -> Sequence[str]:
    """Return the endpoints, of a text its parts between commas.

    Raises:
        InvalidArgumentError: it is no sequence of texts.
    """
    if isinstance(endpoints, str):
        return endpoints.split(",")
    try:
        listed = tuple(endpoints)
    except TypeError:
        raise InvalidArgumentError(f"endpoints is a sequence of texts, not {endpoints!r:.80}") from None
    for endpoint in listed:
        if not isinstance(endpoint, str):
            raise InvalidArgumentError(f"endpoints are texts, HOST:PORT or http://HOST:PORT, not {endpoint!r:.80}")
    return listed
