"""Messages as bytes, and the checks that every message from outside must pass before consensus sees it.

A frame is a msgpack array of messages. The decoder checks the types and ranges of the fields; the checks here cover
what the fields of one message say together. Consensus relies on both.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kvorum.errors import MalformedMessage
from kvorum.raft.membership import decode_configuration, is_sound
from kvorum.raft.messages import AppendEntries, EntryKind, InstallSnapshot, Message, RequestVote

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Message, ...])


def encode(messages: Sequence[Message]) -> bytes:
    """Return one frame."""
    return _encoder.encode(messages)


def decode(frame: bytes) -> tuple[Message, ...]:
    """Return the messages in a frame, each of them checked.

    Raises:
        MalformedMessage: the bytes are no frame, or a message contradicts itself.
    """
    try:
        messages = _decoder.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not a frame of messages: {error}") from error
    for message in messages:
        _check(message)
    return messages


def _check(message: Message) -> None:
    match message:
        case RequestVote():
            _check_position(message, message.last_log_index, message.last_log_term)
        case AppendEntries():
            _check_entries(message)
        case InstallSnapshot(snapshot=snapshot):
            _check_position(message, snapshot.last_index, snapshot.last_term)
            if not is_sound(snapshot.configuration):
                raise _malformed(message, "not a sound configuration")
        case _:
            pass


def _malformed(message: Message, reason: str) -> MalformedMessage:
    return MalformedMessage(f"{type(message).__name__} from {message.sender}: {reason}")


def _check_position(message: Message, index: int, log_term: int) -> None:
    """A log never is ahead of its server's term, and every entry has a term but the one before the first."""
    if log_term > message.term:
        raise _malformed(message, f"a log of term {log_term} in term {message.term}")
    if (index == 0) != (log_term == 0):
        raise _malformed(message, f"no entry {index} has term {log_term}")


def _check_entries(message: AppendEntries) -> None:
    index, term = message.prev_log_index, message.prev_log_term
    _check_position(message, index, term)
    for entry in message.entries:
        if entry.index != index + 1 or not max(term, 1) <= entry.term <= message.term:
            reason = f"entry {entry.index} of term {entry.term} cannot follow entry {index} of term {term}"
            raise _malformed(message, reason)
        index, term = entry.index, entry.term
        if entry.kind is EntryKind.CONFIGURATION:
            try:
                decode_configuration(entry.data)
            except msgspec.DecodeError as error:
                raise _malformed(message, f"entry {entry.index}: {error}") from error
