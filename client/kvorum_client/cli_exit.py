"""The exit statuses of ``kv``."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_UNKNOWN = 4
EXIT_OUTPUT = 5
EXIT_NO_SPACE = 6
EXIT_INTERRUPTED = 130
