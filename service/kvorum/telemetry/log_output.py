"""Log lines on their way out of the process: a bounded queue and a thread, so that nobody waits for who reads them.

A pipe that nobody reads takes 64 KiB, and then the writer waits: a node that wrote its log on the event loop hung.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from time import monotonic

log = logging.getLogger(__name__)

QUEUE_BYTES_MAX = 1024 * 1024
CLOSE_DEADLINE_S = 2.0
"""How long the end of the process waits for a reader."""

_dropped_total = 0
"""A process has one log."""


def lines_dropped() -> int:
    """Return how many lines this process has dropped."""
    return _dropped_total


class LogOutput:
    """A stream for :class:`logging.StreamHandler` that a thread writes to a file descriptor.

    When the queue is full, lines are dropped and counted; a line says so once there is room again.

    Args:
        descriptor: where to; it is not closed.
        bytes_max: of the lines that wait.
    """

    def __init__(self, descriptor: int, bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._descriptor = descriptor
        self._bytes_max = bytes_max
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        """Since the log said so."""
        self._is_writing = False
        self._is_closing = False
        self._changed = threading.Condition()
        # A thread that waits for a reader must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="log output", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Queue text, or drop it. Never waits."""
        global _dropped_total
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._bytes + len(line) > self._bytes_max:
                self._dropped += 1
                _dropped_total += 1
            else:
                self._lines.append(line)
                self._bytes += len(line)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread writes at once."""

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return os.isatty(self._descriptor)

    def close(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Wait until all is written, but not longer than ``deadline_s``; what is queued then is lost."""
        until = monotonic() + deadline_s
        with self._changed:
            while (self._lines or self._is_writing) and (left_s := until - monotonic()) > 0:
                self._changed.wait(left_s)
            self._is_closing = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (line := self._next()) is not None:
            try:
                self._write_all(line)
            except OSError:
                self._lost()
                continue
            self._tell_what_was_dropped()

    def _next(self) -> bytes | None:
        """Wait for the next line, or for the end."""
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()
            while not self._lines and not self._is_closing:
                self._changed.wait()
            if self._is_closing:
                return None
            line = self._lines.popleft()
            self._bytes -= len(line)
            self._is_writing = True
            return line

    def _write_all(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Another process made our end of the pipe non-blocking.
                select.select((), (self._descriptor,), ())

    def _lost(self) -> None:
        """Count a line that could not be written: the reader is gone, or the disk is full."""
        global _dropped_total
        with self._changed:
            self._dropped += 1
            _dropped_total += 1

    def _tell_what_was_dropped(self) -> None:
        """Say so, once half of the queue is free again."""
        with self._changed:
            if not self._dropped or 2 * self._bytes > self._bytes_max:
                return
            dropped, self._dropped = self._dropped, 0
        log.warning("%d log lines were dropped: nobody read them in time", dropped)
