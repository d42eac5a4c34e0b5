"""The parameters of queries: each a name and what may be given. Parsing and ``/openapi.json`` both use these rows.

A parameter is a ``str``, its name, so a set of parameters is what :class:`kvorum.fronts.http.request.Query` knows.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, get_args

from kvorum.service.limits import (
    HISTORY_VERSIONS,
    HISTORY_VERSIONS_MAX,
    INTEGER_MAX,
    LEASES_LISTED_MAX,
    LOCK_WAIT_MS_MAX,
    LOCKS_LISTED_MAX,
    STALENESS_MS_MAX,
    TIMEOUT_MS_MIN,
)
from kvorum.service.requests import SortBy

C = TypeVar("C", bound=str)


class Parameter(str):
    """A parameter of a query.

    Args:
        name: its name.
        description: what it does, and its default.
    """

    description: str
    repeatable = False
    """It may come several times."""

    def __new__(cls, name: str, description: str) -> Parameter:
        """Return the row."""
        made = super().__new__(cls, name)
        made.description = description
        return made

    @property
    def schema(self) -> dict[str, Any]:
        """What may be given, as a JSON schema."""
        return {"type": "string"}


class Text(Parameter):
    """Text, or bytes that are percent-encoded."""


class Base64(Parameter):
    """Bytes as base64, with or without padding, of either alphabet."""

    @property
    def schema(self) -> dict[str, Any]:
        """What may be given, as a JSON schema."""
        return {"type": "string", "contentEncoding": "base64"}


class TextList(Parameter):
    """Text that may come several times."""

    repeatable = True

    @property
    def schema(self) -> dict[str, Any]:
        """What may be given, as a JSON schema."""
        return {"type": "array", "items": {"type": "string"}}


class Switch(Parameter):
    """True or false; the name alone means true."""

    @property
    def schema(self) -> dict[str, Any]:
        """What may be given, as a JSON schema."""
        return {"type": "boolean", "default": False}


class Integer(Parameter):
    """A whole number.

    Args:
        name: its name.
        description: what it does, and its default.
        minimum: the least that may be given.
        maximum: the most.
    """

    minimum: int
    maximum: int

    def __new__(cls, name: str, description: str, minimum: int, maximum: int = INTEGER_MAX) -> Integer:
        """Return the row."""
        made = str.__new__(cls, name)
        made.description, made.minimum, made.maximum = description, minimum, maximum
        return made

    @property
    def schema(self) -> dict[str, Any]:
        """What may be given, as a JSON schema."""
        return {"type": "integer", "format": "int64", "minimum": self.minimum, "maximum": self.maximum}


class Choice(Parameter, Generic[C]):
    """One of a few words; the first is the default, and is not written if it is empty.

    Args:
        name: its name.
        description: what it does.
        choices: what may be given.
    """

    choices: tuple[C, ...]

    def __new__(cls, name: str, description: str, choices: tuple[C, ...]) -> Choice[C]:
        """Return the row."""
        made = str.__new__(cls, name)
        made.description, made.choices = description, choices
        return made

    @property
    def schema(self) -> dict[str, Any]:
        """What may be given, as a JSON schema."""
        named = [choice for choice in self.choices if choice]
        return {"type": "string", "enum": named} | ({"default": named[0]} if self.choices[0] else {})


CLUSTER = Text("cluster", "The id of the cluster that the request is for. A node of another cluster refuses it (421).")
FORWARD = Switch("forward", "A node that is not the leader forwards the request, instead of redirecting the client.")
TIMEOUT_MS = Integer(
    "timeout_ms",
    "Shortens the deadline of the request; the node's request_timeout_ms is the upper bound.",
    TIMEOUT_MS_MIN,
)
Consistency = Literal["linearizable", "stale"]
CONSISTENCY: Choice[Consistency] = Choice(
    "consistency", "linearizable: a quorum confirms the read. stale: what this node has applied.", get_args(Consistency)
)
MAX_STALENESS_MS = Integer(
    "max_staleness_ms",
    "The most that a stale read may be behind, in milliseconds. Needs consistency=stale.",
    0,
    STALENESS_MS_MAX,
)
REVISION = Integer("revision", "Read at this revision of the past. Default: the latest.", 1)
PREV_REVISION = Integer(
    "prev_revision", "Do it only if the key's mod_revision is this one; 0: only if the key does not exist.", 0
)
IGNORE_VALUE = Switch("ignore_value", "Keep the value that the key has; the body must be empty.")
PREV_VALUE = Switch("prev_value", "Answer with the value before as well.")
LEASE = Text("lease", "The id of a lease, in hex: a signed 64-bit number, and not 0.")
IGNORE_LEASE = Switch("ignore_lease", "Keep the lease that the key has.")
LEASE_KEYS = Switch("keys", "Also which keys the lease has.")
AFTER = Text("after", "Only leases above this id.")
LOCKS_AFTER = Text("after", "Only names above this one.")
LOCKS_LIMIT = Integer("limit", "The most names of the answer. Default 1,000.", 1, LOCKS_LISTED_MAX)
LEASES_LIMIT = Integer("limit", "The most leases of the answer. Default 1,000.", 1, LEASES_LISTED_MAX)
WAIT_MS = Integer(
    "wait_ms", "How long to wait for the lock. 0, the default: not at all if it is held.", 0, LOCK_WAIT_MS_MAX
)
OBSERVE = Switch("watch", "A line of JSON whenever somebody else is elected, or the value changes, without end.")
HISTORY = Switch("history", "Answer with the versions of the key that can still be read, newest first.")
HISTORY_LIMIT = Integer(
    "limit",
    f"The most versions in the answer, with history=true. Default {HISTORY_VERSIONS}.",
    1,
    HISTORY_VERSIONS_MAX,
)

KEY = Text("key", "The key, as bytes that are percent-encoded.")
PREFIX = Text("prefix", "All keys that begin with this. Empty: all keys.")
START = Text("start", "The first key of the range.")
END = Text("end", "The key behind the last one of the range. Left out: no end.")
DELIMITER = Text("delimiter", "One level of a tree: keys with this after the prefix are counted as common prefixes.")

LIMIT = Integer("limit", "The most items of the answer. Default: 1,000 of a page, all of a stream.", 1)
CURSOR = Text("cursor", "Where to go on: the cursor of the page before.")
SORT: Choice[SortBy] = Choice("sort", "What the records are sorted by.", get_args(SortBy))
REVERSE = Switch("reverse", "Descending.")
KEYS_ONLY = Switch("keys_only", "Leave out the values.")
COUNT_ONLY = Switch("count_only", "Leave out the records.")
MIN_MOD_REVISION = Integer("min_mod_revision", "Leave out records with a lower mod_revision.", 1)
MAX_MOD_REVISION = Integer("max_mod_revision", "Leave out records with a higher mod_revision.", 1)
MIN_CREATE_REVISION = Integer("min_create_revision", "Leave out records with a lower create_revision.", 1)
MAX_CREATE_REVISION = Integer("max_create_revision", "Leave out records with a higher create_revision.", 1)

VERBOSE = Switch("verbose", "List all checks.")
EXCLUDE = TextList("exclude", "A check that is left out; may be repeated. A name that is no check is ignored.")


def base64_twin(parameter: Parameter) -> Base64:
    """Return the parameter that takes the same bytes as base64."""
    return Base64(parameter + "64", f"{parameter} as base64; give one of the two.")
