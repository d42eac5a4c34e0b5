"""Logging: readable lines on a terminal, one JSON object a line elsewhere. Never values, keys or tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Protocol

import msgspec

LIBRARY_INTERVAL_S = 60.0
"""A library says the same again after this long."""

_encoder = msgspec.json.Encoder()


class Stream(Protocol):
    """Where lines go to."""

    def write(self, text: str, /) -> object:
        """Take a line."""

    def flush(self) -> None:
        """Pass on what was taken."""

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""


class TextFormatter(logging.Formatter):
    """``12:34:56.789 warning kvorum.node: sentence``, followed by a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, tz=UTC).astimezone()
        line = (
            f"{moment:%H:%M:%S}.{int(record.msecs):03d} {record.levelname.lower():7} {record.name}: {_message(record)}"
        )
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ``node``, perhaps ``traceback``.

    Args:
        node: this node's name.
    """

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, tz=UTC)
        fields = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            "node": self._node,
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _encoder.encode(fields).decode()


def _message(record: logging.LogRecord) -> str:
    # What a peer or a client sent may have found its way into a sentence: keep a line a line, and valid UTF-8.
    text = record.getMessage().encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def configure(node: str, log_format: str, log_level: str, stream: Stream) -> None:
    """Send everything that is logged to one stream in one format, replacing what was configured before.

    Args:
        node: this node's name.
        log_format: ``auto`` (text on a terminal, else JSON), ``json`` or ``text``.
        log_level: the least level that is logged.
        stream: where to.
    """
    handler = logging.StreamHandler(stream)
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter(node))
    handler.addFilter(LibraryRepeats())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(log_level.upper())
    # Libraries speak for themselves only when something is wrong.
    for library in ("aiohttp", "asyncio", "urllib3", "kubernetes", "opentelemetry"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    # A statement that fails ends the node, which says why in one line. The library would say it in six, with its stack.
    logging.getLogger("sqlitedict").setLevel(logging.CRITICAL)


class RateLimit:
    """Lets one line through per interval, and says how many were held back.

    Args:
        interval_s: at least this long between two lines.
        clock: monotonic seconds.
    """

    def __init__(self, interval_s: float = 10.0, clock: Callable[[], float] = monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next = float("-inf")
        self._held_back = 0

    def allow(self) -> int | None:
        """Return how many lines were held back since the last one, or None: hold this one back too."""
        now = self._clock()
        if now < self._next:
            self._held_back += 1
            return None
        held_back, self._held_back = self._held_back, 0
        self._next = now + self._interval_s
        return held_back


class LibraryRepeats(logging.Filter):
    """Limits the rate of what libraries log: one place of their code says one thing. Ours knows its own measure."""

    def __init__(self) -> None:
        super().__init__()
        self._limits: dict[tuple[str, int], RateLimit] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether this record is logged; if others were held back before it, let it say how many."""
        if record.name.partition(".")[0] == "kvorum":
            return True
        place = (record.pathname, record.lineno)
        limit = self._limits.get(place)
        if limit is None:
            limit = self._limits[place] = RateLimit(LIBRARY_INTERVAL_S, monotonic)
        held_back = limit.allow()
        if held_back:
            record.msg, record.args = f"{record.getMessage()} ({held_back} more since the last such line)", None
        return held_back is not None
