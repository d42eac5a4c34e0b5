"""Limits: what the API refuses, and what the state machine makes of what got past it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kv.kv_support import apply, examples

from kvorum.errors import InvalidRequestError, TooLargeError
from kvorum.kv.commands import Command, Delete, Put, PutResult, SessionRefused
from kvorum.kv.limits import BATCH_COMMANDS_MAX, CLIENT_ID_CHARS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX, check_command
from kvorum.kv.store import Store

LARGEST: list[Command] = [
    Put(b"k", b""),
    Put(b"k" * KEY_BYTES_MAX, b"v"),
    Delete(b"k" * KEY_BYTES_MAX),
    Put(b"k", b"v" * VALUE_BYTES_MAX),
    Put(b"k", b"v", 2**63 - 1),
    Put(b"k", b"v", -1, "c" * CLIENT_ID_CHARS_MAX, 1),
    Delete(b"k", 0, "c", 2**63 - 1),
]
TOO_LARGE: list[Command] = [
    Put(b"k" * (KEY_BYTES_MAX + 1), b"v"),
    Delete(b"k" * (KEY_BYTES_MAX + 1)),
    Put(b"k", b"v" * (VALUE_BYTES_MAX + 1)),
]
MALFORMED: list[Command] = [
    Put(b"k", b"v", -1, "c" * (CLIENT_ID_CHARS_MAX + 1), 1),
    Put(b"", b"v"),
    Delete(b""),
    Put(b"k", b"v", -1, "c", 0),
    Put(b"k", b"v", -1, "c", -1),
]
ONLY_THE_API_REFUSES: list[Command] = [
    Put(b"k", b"v", -2),
    Put(b"k", b"v", 2**63),
    Put(b"k", b"v", -1, "", 1),
    Put(b"k", b"v", -1, "c", 2**63),
    Put(b"k", b"v", -1, "c\n", 1),
    Put(b"k", b"v", -1, "a/b", 1),
    Put(b"k", b"v", -1, "a b", 1),
    Put(b"k", b"v", -1, "\u00fc", 1),
    Put(b"k", b"v", -1, "\ud800", 1),
]


@pytest.mark.parametrize("command", LARGEST)
def test_the_largest_of_everything_is_accepted_and_applied(command: Command) -> None:
    store = Store()

    check_command(command)

    [result] = apply(store, command)
    assert not (isinstance(result, SessionRefused) and result.reason == "invalid")


@pytest.mark.parametrize("command", TOO_LARGE)
def test_one_more_is_too_large_and_names_the_limit(command: Command) -> None:
    with pytest.raises(TooLargeError, match=r"limit \d+"):
        check_command(command)


@pytest.mark.parametrize("command", MALFORMED + ONLY_THE_API_REFUSES)
def test_what_is_malformed_is_refused_by_the_api(command: Command) -> None:
    with pytest.raises(InvalidRequestError):
        check_command(command)


@pytest.mark.parametrize("command", TOO_LARGE + MALFORMED)
def test_an_over_limit_command_in_the_log_is_refused_and_changes_nothing_else(command: Command) -> None:
    store = Store()

    results = apply(store, Put(b"a", b"1"), command, Put(b"a", b"2"))

    assert results == [PutResult(1, 1, 1, 1), SessionRefused(1, "invalid"), PutResult(2, 1, 2, 2)]
    assert (len(store), store.session_count) == (1, 0)


def test_an_over_limit_command_does_not_use_up_its_sequence() -> None:
    store = Store()
    apply(store, Put(b"a", b"1", -1, "ann", 1), Put(b"a", b"v" * (VALUE_BYTES_MAX + 1), -1, "ann", 2))

    assert apply(store, Put(b"a", b"2", -1, "ann", 2)) == [PutResult(2, 1, 2, 2)]


def test_a_batch_of_too_many_commands_is_refused_command_by_command() -> None:
    store = Store()

    assert len(set(map(type, apply(store, *[Put(b"a", b"v")] * BATCH_COMMANDS_MAX)))) == 1
    revision = store.revision
    results = apply(store, *[Put(b"a", b"v", -1, "ann", 1)] * (BATCH_COMMANDS_MAX + 1))

    assert revision == BATCH_COMMANDS_MAX
    assert results == [SessionRefused(revision, "invalid")] * (BATCH_COMMANDS_MAX + 1)
    assert (store.revision, store.session_count) == (revision, 0)


_any_command = st.one_of(
    st.builds(
        Put, st.binary(max_size=3), st.binary(max_size=3), st.integers(-3, 3), st.text(max_size=2), st.integers(-1, 2)
    ),
    st.builds(Delete, st.binary(max_size=3), st.integers(-3, 3), st.text(max_size=2), st.integers(-1, 2)),
)


@examples
@given(_any_command)
def test_what_the_api_accepts_is_never_invalid_when_it_is_applied(command: Command) -> None:
    try:
        check_command(command)
    except (InvalidRequestError, TooLargeError):
        return
    [result] = apply(Store(), command)
    assert not (isinstance(result, SessionRefused) and result.reason == "invalid")
