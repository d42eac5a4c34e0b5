"""Which keys a query names: one way for reads of ranges, deletes of ranges, and watches.

``prefix`` is all keys that begin with it, and an empty one all keys; or ``start``, which is included, and ``end``,
which is not, one or both of them. Each may come as base64 as well (``prefix64``), with or without its padding, in
either alphabet.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Collection

from kvorum.errors import InvalidRequestError
from kvorum.fronts.http import parameters
from kvorum.fronts.http.request import decode_bytes
from kvorum.service.requests import NO_END, prefix_end

PARAMETERS: tuple[parameters.Parameter, ...] = (parameters.PREFIX, parameters.START, parameters.END)
"""They are bytes, and need not be text."""

_TO_PLAIN = bytes.maketrans(b"-_", b"+/")


def with_twins(names: Collection[parameters.Parameter]) -> frozenset[parameters.Parameter]:
    """Return these parameters, and those that take the same bytes as base64."""
    return frozenset({*names, *map(parameters.base64_twin, names)})


def names_range(raw_query: str) -> bool:
    """Tell whether a query names a range of keys."""
    return any(part.partition("=")[0] in ALL for part in raw_query.split("&"))


ALL = with_twins(PARAMETERS)
"""All ways to name a range."""


def take_bytes(raw_query: str, names: Collection[str]) -> tuple[dict[str, bytes], str]:
    """Return the parameters of these names, as they are or from base64, and the rest of the query.

    Raises:
        InvalidRequestError: one is given twice, or is malformed.
    """
    found: dict[str, bytes] = {}
    rest = []
    for part in raw_query.split("&"):
        raw_name, _, raw_value = part.partition("=")
        name = raw_name.removesuffix("64")
        if name not in names:
            rest.append(part)
        elif name in found:
            raise InvalidRequestError(f"the parameter {name} is given twice (also {name}64 counts)")
        else:
            data = decode_bytes(raw_value)
            found[name] = data if name == raw_name else _decode_base64(data, raw_name)
    return found, "&".join(rest)


def range_of(given: dict[str, bytes]) -> tuple[bytes, bytes]:
    """Return the start of a range and its end, ``NO_END`` if there is none; without parameters it is all keys.

    Raises:
        InvalidRequestError: they contradict each other, or a bound cannot be meant.
    """
    for name in ("start", "end"):
        if given.get(name) == b"":
            raise InvalidRequestError(f"the parameter {name} is empty: leave it out")
        if name in given and "prefix" in given:
            raise InvalidRequestError(f"the parameters prefix and {name} contradict each other: give one of them")
    if given.get("end") == NO_END:
        raise InvalidRequestError("end is a single zero byte: no key is below it; leave it out for no end")
    if "prefix" in given:
        return given["prefix"], prefix_end(given["prefix"])
    return given.get("start", b""), given.get("end", NO_END)


def _decode_base64(data: bytes, name: str) -> bytes:
    plain = data.rstrip(b"=").translate(_TO_PLAIN)
    try:
        return b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        raise InvalidRequestError(f"the parameter {name} is not base64 (write %2B for a plus sign)") from None
