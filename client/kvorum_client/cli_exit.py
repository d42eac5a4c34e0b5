"""The exit statuses of ``kv``, for its help and for docs/kv.md."""

from __future__ import annotations

import textwrap
from types import MappingProxyType

EXIT_DONE = 0
EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_UNKNOWN = 4
EXIT_OUTPUT = 5
EXIT_NO_SPACE = 6
EXIT_INTERRUPTED = 130

MEANINGS = MappingProxyType(
    {
        EXIT_DONE: "done; also if a range has no keys, or a list is empty",
        EXIT_NO: "no: the one key, version, lease or holder that was asked for does not exist, a compare failed, a "
        "lock is held or lost, or the cluster refused the request, which is certainly not done; or a check of the "
        "nodes found what a person must look at",
        EXIT_USAGE: "wrong usage, found before anything was sent",
        EXIT_UNAVAILABLE: "no node was reachable, or there was no leader or no quorum, until --timeout; nothing was "
        "done",
        EXIT_UNKNOWN: "a change may or may not be done, now or later: look before you try again",
        EXIT_OUTPUT: "done, but the answer could not be written (a full disk, say)",
        EXIT_NO_SPACE: "refused: the cluster has no room for more data; deletes and reads go on",
        EXIT_INTERRUPTED: "interrupted by Ctrl-C",
    }
)


def table() -> str:
    """Return the statuses as lines for a help."""
    lines = []
    for status, meaning in MEANINGS.items():
        lines += textwrap.wrap(meaning, 79, initial_indent=f"  {status:<3} ", subsequent_indent=" " * 6)
    return "\n".join(lines)
