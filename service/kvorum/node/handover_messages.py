"""What a node that hands writes over says to the leader, and what the leader answers.

They travel as the data of a :class:`~kvorum.raft.messages.HandOver`, on the streams of consensus. What is lost with a
stream is sent again by whoever handed it over, as another attempt.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from kvorum.errors import (
    CallerError,
    FeatureUnavailableError,
    MalformedMessageError,
    NoSpaceError,
    NotLeaderError,
    NotServingError,
    OverloadedError,
    SessionError,
)
from kvorum.kv.commands import QueuedCommand
from kvorum.kv.limits import BATCH_COMMANDS_MAX, INTEGER_MAX

WHOLE_FRAME = -1
"""The position of an error that concerns all commands."""

_Number = Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)]


class Opening(msgspec.Struct, frozen=True, array_like=True, tag="o"):
    """Open this nonce of the sender in the place of that one (0: none)."""

    nonce: _Number
    replaces: Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


class Frame(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """Apply these commands under this number."""

    nonce: _Number
    number: _Number
    attempt: _Number
    """Counts what this origin has sent: no two messages have the same, unless one is a copy."""
    commands: Annotated[tuple[QueuedCommand, ...], msgspec.Meta(max_length=BATCH_COMMANDS_MAX)] = ()
    addresses: tuple[str, ...] = ()
    """Of each command the client's address; empty: it is not known."""


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """Why a command was not proposed."""

    position: int
    """In its frame; -1: all of the frame."""
    code: str
    detail: str
    facts: dict[str, str | int] = {}


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Nothing of these attempts was proposed, nor will be."""

    nonce: _Number
    number: _Number
    attempts: tuple[_Number, ...]
    errors: tuple[Refused, ...] = ()
    fits: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Not 0: nothing is wrong with the commands, but one entry may carry only so many of them, from the first on.

    Then ``errors`` are of the others, for an origin of Kvorum 0.5.0, which does not know this field."""


HandoverMessage = Opening | Frame | Refusal

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[HandoverMessage] = msgspec.msgpack.Decoder(HandoverMessage)


def encode_handover(message: HandoverMessage) -> bytes:
    """Return the bytes of a message."""
    return _encoder.encode(message)


def decode_handover(data: bytes, sender: str) -> HandoverMessage:
    """Return the message that these bytes are.

    Raises:
        MalformedMessageError: they are none.
    """
    try:
        message = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessageError(f"HandOver from {sender}: {error}") from error
    if isinstance(message, Frame) and len(message.addresses) != len(message.commands):
        raise MalformedMessageError(f"HandOver from {sender}: {len(message.addresses)} addresses of clients")
    return message


def refused(position: int, error: CallerError) -> Refused:
    """Return what to say of an error."""
    facts = {name: value for name, value in error.facts.items() if isinstance(value, str | int)}
    return Refused(position, error.code, str(error), facts)


def error_of(said: Refused) -> CallerError:
    """Return the error that the leader met."""
    facts = said.facts
    try:
        match said.code:
            case NotLeaderError.code:
                return NotLeaderError(None)
            case NoSpaceError.code:
                return NoSpaceError(
                    said.detail, reason=str(facts["reason"]), limit=int(facts["limit"]), used=int(facts["used"])
                )
            case FeatureUnavailableError.code:
                return FeatureUnavailableError(said.detail)
            case NotServingError.code:
                return NotServingError(said.detail)
            case "sessions_full":
                return SessionError(said.code, said.detail, str(facts["reason"]), int(facts["revision"]))
    except (KeyError, ValueError):
        pass
    return OverloadedError(said.detail)
