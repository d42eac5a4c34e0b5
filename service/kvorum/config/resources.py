"""What the system grants this process: memory and descriptors."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of the control group, version 2 and version 1, as a container sees them."""


def memory_limit_bytes() -> int | None:
    """Return the memory that the process's control group may use; None: there is no limit."""
    for path in _MEMORY_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def memory_bytes() -> int:
    """Return the memory that the process may use: what its control group allows, and no more than there is."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory_limit_bytes() or physical, physical)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one, as far as the system allows; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard


def descriptor_limit() -> int:
    """Return how many descriptors the process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
