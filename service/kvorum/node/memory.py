"""Memory of the process that Python has freed, and that the C library keeps."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def release_freed_memory() -> None:
    """Give what the C library keeps of freed memory back to the system. Blocks; does nothing unless that is glibc.

    glibc keeps the memory of large values once one of them was freed, and often cannot use it for others.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
