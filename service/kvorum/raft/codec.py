"""Messages as bytes, and the checks that every message from outside must pass before consensus sees it.

A frame is a msgpack array of messages. The decoder checks the types and ranges of the fields; the checks here cover
what the fields of one message say together. Consensus relies on both. A message whose tag is unknown is a later
version's. It is skipped, and the others of its frame are taken: consensus sends again what matters, and a lost message
is something that it survives. Fields that a later version appended to a known message are skipped likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import msgspec

from kvorum.errors import MalformedMessageError
from kvorum.raft.membership import decode_configuration, is_sound
from kvorum.raft.messages import AppendEntries, EntryKind, InstallSnapshot, Message, RequestVote

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Message, ...])


class _Tagged(msgspec.Struct, frozen=True, array_like=True):
    """The beginning of any message, known or not."""

    tag: str


# Used when a frame holds something that the decoder above refuses.
_raw_decoder = msgspec.msgpack.Decoder(tuple[msgspec.Raw, ...])
_tag_decoder = msgspec.msgpack.Decoder(_Tagged)
_message_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_TAGS = frozenset(kind.__struct_config__.tag for kind in get_args(Message))


class Frame(NamedTuple):
    """What a frame holds."""

    messages: tuple[Message, ...]
    """Those that this version knows, each of them checked."""
    unknown: int
    """How many messages of other versions were skipped."""


def encode(messages: Sequence[Message]) -> bytes:
    """Return one frame."""
    return _encoder.encode(messages)


def decode(frame: bytes) -> tuple[Message, ...]:
    """Return the messages in a frame that this version knows, each of them checked.

    Raises:
        MalformedMessageError: the bytes are no frame, or a message contradicts itself.
    """
    return decode_frame(frame).messages


def decode_frame(frame: bytes) -> Frame:
    """Return what a frame holds, and how much of it is unknown.

    Raises:
        MalformedMessageError: the bytes are no frame, or a message contradicts itself.
    """
    unknown = 0
    try:
        messages = _decoder.decode(frame)
    except (msgspec.DecodeError, ValueError, RecursionError):
        # Either a later version's message, or damage: one by one, the messages tell.
        messages, unknown = _decode_one_by_one(frame)
    for message in messages:
        _check(message)
    return Frame(messages, unknown)


def _decode_one_by_one(frame: bytes) -> Frame:
    try:
        raws = _raw_decoder.decode(frame)
        known = [raw for raw in raws if _tag_decoder.decode(raw).tag in _TAGS]
        return Frame(tuple([_message_decoder.decode(raw) for raw in known]), len(raws) - len(known))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessageError(f"not a frame of messages: {error}") from error


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


def _malformed(message: Message, reason: str) -> MalformedMessageError:
    return MalformedMessageError(f"{type(message).__name__} from {message.sender}: {reason}")


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
