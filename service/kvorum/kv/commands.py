"""The commands of the replicated state, their results, and their encoding.

One log entry carries one :class:`Batch`: everything that was asked in one turn of the leader's loop. A field that this
version does not know is refused (``forbid_unknown_fields``): a node that applied a command without its newer half would
silently go its own way.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

ANY_REVISION = -1
"""``prev_revision``: do not compare."""
MUST_NOT_EXIST = 0
"""``prev_revision``: create only."""


class Put(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="p", gc=False):
    """Set a key. With ``prev_revision`` only if the key's mod_revision is that (0: only if it does not exist).

    ``client_id`` and ``sequence`` (from 1) make a retry safe: it is applied once (thesis 6.3). Empty: no session.
    """

    key: bytes
    value: bytes
    prev_revision: int = ANY_REVISION
    client_id: str = ""
    sequence: int = 0


class Delete(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="d", gc=False):
    """Remove a key; otherwise as :class:`Put`."""

    key: bytes
    prev_revision: int = ANY_REVISION
    client_id: str = ""
    sequence: int = 0


Command = Put | Delete


class Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One log entry's commands, in order; ``time_ms`` is the leader's wall clock (Unix, ms) when it proposed them."""

    time_ms: int
    commands: tuple[Command, ...]


class PutResult(msgspec.Struct, frozen=True, array_like=True, tag="p", gc=False):
    """The key's record after the put; ``revision`` is the cluster-wide revision that the put created."""

    revision: int
    create_revision: int
    mod_revision: int
    version: int


class DeleteResult(msgspec.Struct, frozen=True, array_like=True, tag="d", gc=False):
    """``deleted`` is 1 or 0; a delete that found nothing creates no revision."""

    revision: int
    deleted: int


class CompareFailed(msgspec.Struct, frozen=True, array_like=True, tag="c", gc=False):
    """Nothing was done: the key's ``mod_revision`` (0: it does not exist) is not the one that was asked for."""

    revision: int
    mod_revision: int


class SessionRefused(msgspec.Struct, frozen=True, array_like=True, tag="s", gc=False):
    """Nothing was done now; ``reason`` says why.

    ``unknown``: no such session, and the sequence is not 1 (it expired, or never was: whether an earlier try of this
    request was applied cannot be known). ``stale``: the sequence is below the window of remembered answers.
    ``ahead``: more than a window above the highest sequence seen. ``mismatch``: this sequence was used by another
    request. ``full``: too many live sessions; try later. ``invalid``: the command or its batch passes a limit of
    :mod:`kvorum.kv.limits` (with or without a session); only a node that does not check proposes such a command.
    """

    revision: int
    reason: str


Result = PutResult | DeleteResult | CompareFailed | SessionRefused

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode_batch(time_ms: int, commands: Sequence[Command]) -> bytes:
    """Return the bytes of a log entry's data."""
    return _encoder.encode(Batch(time_ms, tuple(commands)))


def decode_batch(data: bytes) -> Batch:
    """Return the batch that these bytes are.

    Raises:
        msgspec.DecodeError: they are not a batch.
    """
    try:
        return _decoder.decode(data)
    except UnicodeDecodeError as error:  # msgspec lets it through as it is
        raise msgspec.DecodeError(f"a string is not UTF-8: {error}") from error
