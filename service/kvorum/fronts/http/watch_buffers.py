"""What all watches of a front hold for clients that have not read it yet, together."""

from __future__ import annotations

import asyncio
from typing import Protocol

BUFFERED_BYTES_MAX = 256 * 1024 * 1024
"""When all watches together hold so much, only those get more whose clients have read everything; at twice as much,
nobody does."""
RECOUNT_S = 0.05


class Buffer(Protocol):
    """The write buffer of one watch."""

    @property
    def unread_bytes(self) -> int:
        """How many bytes wait to be sent."""

    def has_room(self) -> None:
        """The buffers have room again."""


class Buffers:
    """The write buffers of all watches.

    Args:
        bytes_max: their bound, in bytes.

    Attributes:
        unread_bytes: what they held when each was looked at last.
    """

    def __init__(self, bytes_max: int = BUFFERED_BYTES_MAX) -> None:
        self.unread_bytes = 0
        self._bytes_max = bytes_max
        self._buffers: dict[Buffer, int] = {}
        self._waiting: dict[Buffer, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, buffer: Buffer) -> None:
        """Take note of what a buffer holds now."""
        unread_bytes = buffer.unread_bytes
        self.unread_bytes += unread_bytes - self._buffers.get(buffer, 0)
        self._buffers[buffer] = unread_bytes

    def remove(self, buffer: Buffer) -> None:
        """Forget a buffer. Idempotent."""
        self.unread_bytes -= self._buffers.pop(buffer, 0)
        self._waiting.pop(buffer, None)

    def is_full_for(self, buffer: Buffer) -> bool:
        """Tell whether a buffer may take no more now; if so, its ``has_room`` is called when it may."""
        if self._has_room_for(buffer):
            return False
        self._waiting[buffer] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECOUNT_S, self._recount)
        return True

    def _has_room_for(self, buffer: Buffer) -> bool:
        if self.unread_bytes < self._bytes_max:
            return True
        return not buffer.unread_bytes and self.unread_bytes < 2 * self._bytes_max

    def _recount(self) -> None:
        self._timer = None
        for buffer in self._buffers:
            self.note(buffer)
        for buffer in [each for each in self._waiting if self._has_room_for(each)]:
            del self._waiting[buffer]
            buffer.has_room()
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECOUNT_S, self._recount)
