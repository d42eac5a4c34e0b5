"""What the store keeps of one version of a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from kvorum.kv.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX

Key = Annotated[bytes, msgspec.Meta(min_length=1, max_length=KEY_BYTES_MAX)]
"""A key; the bounds hold where it is decoded."""
Value = Annotated[bytes, msgspec.Meta(max_length=VALUE_BYTES_MAX)]
"""A value; the bounds hold where it is decoded."""


class Record(msgspec.Struct, gc=False):
    """One version of a key; a *tombstone*, which stands for its deletion, has version 0 and no value.

    It is never changed but for ``older``, which belongs to :mod:`kvorum.kv.versions`: whoever reads a record may keep
    it. Records are equal if they are the same version, whatever is kept of older ones.
    """

    key: bytes
    value: bytes
    create_revision: int
    """The revision that created the key (again, if it had been deleted); 0: a tombstone."""
    mod_revision: int
    """The revision of this version."""
    version: int
    """How many puts since the key was created; 1 for a new key, 0: a tombstone."""
    older: Record | Sequence[Record] | None = None
    """Of the newest version of a key: the older ones that are kept, oldest first."""
    lease: int = 0
    """The id of the lease whose end deletes the key (:mod:`kvorum.kv.leases`); 0: none."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]

    def _identity(self) -> tuple[bytes, bytes, int, int, int, int]:
        return self.key, self.value, self.create_revision, self.mod_revision, self.version, self.lease
