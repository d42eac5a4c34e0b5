"""What the store keeps of one key."""

from __future__ import annotations

from typing import Annotated

import msgspec

from kvorum.kv.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX

Key = Annotated[bytes, msgspec.Meta(min_length=1, max_length=KEY_BYTES_MAX)]
"""A key; the bounds hold where it is decoded."""
_Value = Annotated[bytes, msgspec.Meta(max_length=VALUE_BYTES_MAX)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The latest version of a key. Never changed in place: a snapshot being written may still hold it."""

    value: _Value
    create_revision: _Positive
    """The revision that created the key (again, if it had been deleted)."""
    mod_revision: _Positive
    """The revision that last changed it."""
    version: _Positive
    """How many puts since it was created; 1 for a new key."""
