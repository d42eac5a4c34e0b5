"""Messages as bytes: round trips, what is refused, and fuzz."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from raft.harness import (
    ELECTION,
    Server,
    answer_read,
    append,
    appended,
    ask_read,
    candidate,
    command,
    commands,
    configuration,
    configuration_entry,
    follower,
    heard,
    heartbeat,
    install,
    installed,
    leader,
    pre_candidate,
    pre_vote,
    refused,
    request_pre_vote,
    request_vote,
    timeout_now,
    vote,
)

from kvorum.errors import ContradictionError, InvariantViolatedError, MalformedMessageError
from kvorum.raft.codec import decode, decode_frame, encode
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import (
    INDEX_MAX,
    AppendEntries,
    AppendEntriesResponse,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Member,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    Snapshot,
    TimeoutNow,
)

NUMBERS = st.one_of(st.integers(0, 6), st.integers(0, INDEX_MAX - 1))
NODES = st.sampled_from(["a", "b", "c", "d", "", "ü@1"])
MEMBERS = st.builds(Member, NODES, st.booleans(), st.text(max_size=3), st.text(max_size=3))
CONFIGURATIONS = st.lists(MEMBERS, max_size=4).map(lambda members: Configuration(tuple(members)))
DATA = st.one_of(st.binary(max_size=8), CONFIGURATIONS.map(encode_configuration))
ENTRIES = st.builds(Entry, NUMBERS, NUMBERS, st.sampled_from(EntryKind), DATA)
TERMS = st.lists(st.tuples(NUMBERS, NUMBERS)).map(tuple)
COMMON = {"term": NUMBERS, "sender": NODES, "recipient": NODES}


@st.composite
def append_entries(draw: st.DrawFn) -> AppendEntries:
    """One whose entries follow each other, more often than chance would have it."""
    message = draw(
        st.builds(
            AppendEntries,
            **COMMON,
            prev_log_index=NUMBERS,
            prev_log_term=NUMBERS,
            entries=st.lists(ENTRIES, max_size=4).map(tuple),
            leader_commit=NUMBERS,
        )
    )
    if draw(st.booleans()):
        return message
    entries = tuple(
        msgspec.structs.replace(entry, index=message.prev_log_index + 1 + offset, term=message.term)
        for offset, entry in enumerate(message.entries)
    )
    return msgspec.structs.replace(message, entries=entries, prev_log_term=min(message.prev_log_term, message.term))


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        RequestVote,
        **COMMON,
        last_log_index=NUMBERS,
        last_log_term=NUMBERS,
        pre_vote=st.booleans(),
        leadership_transfer=st.booleans(),
    ),
    st.builds(RequestVoteResponse, **COMMON, vote_granted=st.booleans(), pre_vote=st.booleans()),
    append_entries(),
    st.builds(
        AppendEntriesResponse, **COMMON, success=st.booleans(), index=NUMBERS, hint_index=NUMBERS, hint_term=NUMBERS
    ),
    st.builds(Heartbeat, **COMMON, commit_index=NUMBERS, round=NUMBERS, state_index=NUMBERS, state_hash=NUMBERS),
    st.builds(
        Heartbeat,
        **COMMON,
        commit_index=NUMBERS,
        round=NUMBERS,
        state_index=NUMBERS,
        state_hash=NUMBERS,
        state_hash_version=st.integers(0, 3),
        state_sum=st.binary(max_size=16),
        saved_index=NUMBERS,
    ),
    st.builds(HeartbeatResponse, **COMMON, round=NUMBERS),
    st.builds(ReadIndex, **COMMON, context=st.integers(-(2**63), 2**63)),
    st.builds(ReadIndexResponse, **COMMON, context=st.integers(-(2**63), 2**63), index=NUMBERS),
    st.builds(
        InstallSnapshot,
        **COMMON,
        snapshot=st.builds(Snapshot, NUMBERS, NUMBERS, CONFIGURATIONS, TERMS),
    ),
    st.builds(InstallSnapshotResponse, **COMMON, index=NUMBERS),
    st.builds(TimeoutNow, **COMMON),
)

EXAMPLES: tuple[Message, ...] = (
    request_vote("a", "b", 3, (5, 2), transfer=True),
    vote("b", "a", 3),
    append("a", "b", 3, (5, 2), [*commands(6, "23"), configuration_entry(8, 3, "abc", "d")], 4),
    appended("b", "a", 3, 7),
    refused("b", "a", 3, 7, (4, 2)),
    heartbeat("a", "b", 3, 7, 9),
    heard("b", "a", 3, 9),
    install("a", "b", 3, Snapshot(5, 2, configuration("abc", "d"))),
    installed("b", "a", 3, 5),
)


def test_every_message_survives_the_wire() -> None:
    assert decode(encode(EXAMPLES)) == EXAMPLES
    assert decode(encode(())) == ()


def test_the_wire_format_is_that_of_version_0_1_0() -> None:
    """Nodes of two versions run side by side during a rollout: fields may only be appended, with a default."""
    frames: dict[str, Message] = {
        "9198a2727603a161a1620502c2c3": request_vote("a", "b", 3, (5, 2), transfer=True),
        "9198a2727603a161a1620101c3c2": request_pre_vote("a", "b", 3, (1, 1)),
        "9196a372767203a162a161c3c2": vote("b", "a", 3),
        "9196a372767203a162a161c3c3": pre_vote("b", "a", 3),
        "9198a2616503a161a16205029294060200c403362f3294070300c403372f3304": append(
            "a", "b", 3, (5, 2), commands(6, "23"), 4
        ),
        "9198a361657203a162a161c3070000": appended("b", "a", 3, 7),
        "9198a361657203a162a161c2070402": refused("b", "a", 3, 7, (4, 2)),
        "9198a2686203a161a16207090000": heartbeat("a", "b", 3, 7, 9),
        "9195a368627203a162a16109": heard("b", "a", 3, 9),
        "9195a2697303a161a162930502919494a161c3a0a094a162c3a0a094a163c3a0a094a164c2a0a0": install(
            "a", "b", 3, Snapshot(5, 2, configuration("abc", "d"))
        ),
        "9195a369737203a162a16105": installed("b", "a", 3, 5),
        "9195a2726903a162a16107": ask_read("b", "a", 3, 7),
        "9196a372697203a161a1620703": answer_read("a", "b", 3, 7, 3),
        "9194a2746e03a161a162": timeout_now("a", "b", 3),
    }
    assert {frame: decode(bytes.fromhex(frame)) for frame in frames} == {
        frame: (message,) for frame, message in frames.items()
    }
    # Version 0.2.0 appended three fields to the heartbeat, and one to its answer, the AppendEntries and the ReadIndex;
    # version 0.3.0 the terms to a snapshot.
    longer = {
        "9198a2686203a161a16207090000": "919ba2686203a161a1620709000001c40000",
        "9198a2616503a161a16205029294060200c403362f3294070300c403372f3304": (
            "9199a2616503a161a16205029294060200c403362f3294070300c403372f330400"
        ),
        "9195a368627203a162a16109": "9196a368627203a162a16109ff",
        "9195a2726903a162a16107": "9196a2726903a162a16107c2",
        "9195a2697303a161a162930502919494a161c3a0a094a162c3a0a094a163c3a0a094a164c2a0a0": (
            "9195a2697303a161a162940502919494a161c3a0a094a162c3a0a094a163c3a0a094a164c2a0a090"
        ),
    }
    assert [encode([message]).hex() for message in frames.values()] == [longer.get(frame, frame) for frame in frames]


def test_every_entry_of_a_frame_is_of_its_own_bytes() -> None:
    """The payload is opaque, empty or not."""
    entries = [Entry(1, 1, EntryKind.COMMAND, b""), Entry(2, 1, EntryKind.COMMAND, bytes(range(256)))]
    message = append("a", "b", 1, (0, 0), entries)
    assert decode(encode([message])) == (message,)


@pytest.mark.parametrize(
    "message",
    [
        append("a", "b", 3, (5, 2), [command(7, 3)]),  # a gap
        append("a", "b", 3, (5, 2), [command(6, 3), command(6, 3)]),  # twice
        append("a", "b", 3, (5, 2), [command(6, 1)]),  # the terms go back
        append("a", "b", 3, (5, 2), [command(6, 4)]),  # an entry of a term that has not begun
        append("a", "b", 3, (5, 4)),  # likewise, the one before
        append("a", "b", 3, (0, 2)),  # nothing is before the first entry
        append("a", "b", 3, (5, 0)),  # terms begin at 1
        append("a", "b", 3, (0, 0), [command(1, 0)]),
        request_vote("a", "b", 3, (0, 2)),
        request_vote("a", "b", 3, (5, 0)),
        install("a", "b", 3, Snapshot(0, 2, configuration())),
        install("a", "b", 3, Snapshot(5, 0, configuration())),
        append("a", "b", 3, (-1, 2)),
        append("a", "b", 3, (5, 2), [], -1),
        append("a", "b", 3, (INDEX_MAX, 2)),
        heartbeat("a", "b", -1),
        heartbeat("a", "b", INDEX_MAX),
        heartbeat("a", "b", 3, INDEX_MAX),
        request_vote("a", "b", 3, (5, 4)),  # a log that is ahead of its candidate's term
        appended("a", "b", 3, -1),
        refused("a", "b", 3, 5, (-1, 2)),
        install("a", "b", 3, Snapshot(5, 4, configuration())),
        install("a", "b", 3, Snapshot(-5, 2, configuration())),
        install("a", "b", 3, Snapshot(5, 2, Configuration())),  # nobody would be a member
        install("a", "b", 3, Snapshot(5, 2, configuration("", "ab"))),  # nobody could vote
        install("a", "b", 3, Snapshot(5, 2, Configuration((Member("a", True), Member("a", True))))),
        append("a", "b", 3, (5, 2), [Entry(6, 3, EntryKind.CONFIGURATION, b"")]),
        append("a", "b", 3, (5, 2), [Entry(6, 3, EntryKind.CONFIGURATION, b"\x91\x91\x94\xa1\xff\xc3\xa0\xa0")]),
        append("a", "b", 3, (5, 2), [configuration_entry(6, 3, "", "ab")]),
    ],
)
def test_a_message_that_contradicts_itself_is_refused(message: Message) -> None:
    """Consensus relies on these; a peer's fault must not end this process."""
    with pytest.raises(MalformedMessageError):
        decode(encode([heard("b", "a", 1), message]))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\x90\x00",
        encode(EXAMPLES)[:-1],
        encode(EXAMPLES) + b"\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\x98\xa2ae\x01\xa1a\xa1b\x01\x01\xdd\xff\xff\xff\xff",
        b"\x91\x98\xa2hb\x01\xa1\xff\xa1b\x00\x00\x00\x00",
        b"\x91\x99\xa2hb\x01\xa1a\xa1b\x00\x00\x00\x00" + b"\x91" * 100_000 + b"\x00",
        msgspec.msgpack.encode([["hb", 1, "a", "b", 0.5, 0, 0, 0]]),
        msgspec.msgpack.encode([["hb", 1, "a", "b", "0", 0, 0, 0]]),
        msgspec.msgpack.encode([["ae", 1, "a", "b", 0, 0, [[1, 1, 7, b""]], 0]]),
        msgspec.msgpack.encode([["later", 1], []]),
        msgspec.msgpack.encode([["later", 1], 7]),
        msgspec.msgpack.encode([["later", 1], [7]]),
        msgspec.msgpack.encode([["later", 1], ["hbr", 1, "a", "b"]]),
        msgspec.msgpack.encode([["later", 1], ["hbr", 1, "a", "b", -1]]),
        msgspec.msgpack.encode([["hb", 1, "a", "b", 0, 0, 0, 0, 2, bytes(17)]]),
        msgspec.msgpack.encode({"later": 1}),
    ],
)
def test_bytes_that_are_no_frame_are_refused(frame: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode(frame)


def _with_later_messages(known: Sequence[Message], later: Sequence[object]) -> bytes:
    frame: list[object] = [msgspec.msgpack.decode(encode([message]))[0] for message in known]
    for at, message in enumerate(later):
        frame.insert(2 * at, message)
    return msgspec.msgpack.encode(frame)


LATER: tuple[object, ...] = (["later"], ["propose", 7, "a", "b", [b"x", {"k": [1.5, None]}]], ["", "\xfc"])


def test_a_message_of_a_later_version_is_skipped_and_the_others_are_taken() -> None:
    assert decode_frame(_with_later_messages(EXAMPLES, LATER)) == (EXAMPLES, 3)
    assert decode_frame(_with_later_messages((), LATER)) == ((), 3)
    assert decode_frame(encode(EXAMPLES)) == (EXAMPLES, 0)
    assert decode(_with_later_messages(EXAMPLES, LATER)) == EXAMPLES


def test_a_field_that_a_later_version_appended_is_skipped() -> None:
    frame = [[*msgspec.msgpack.decode(encode([message]))[0], ["later"]] for message in EXAMPLES]

    assert decode_frame(msgspec.msgpack.encode(frame)) == (EXAMPLES, 0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
@example(b"\x91")
def test_any_bytes_decode_or_are_refused(frame: bytes) -> None:
    """Never another exception."""
    with contextlib.suppress(MalformedMessageError):
        decode(frame)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_frame_decodes_or_is_refused(data: st.DataObject) -> None:
    """Never another exception: bit flips, cuts and insertions in a real frame."""
    frame = bytearray(encode(EXAMPLES))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                frame[position] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del frame[position : position + data.draw(st.integers(1, 3))]
            case _:
                frame[position:position] = data.draw(st.binary(max_size=3))
        if not frame:
            break
    with contextlib.suppress(MalformedMessageError):
        decode(bytes(frame))


def servers() -> list[Server]:
    """One of each role, with a log, one with a snapshot, and an empty one."""
    return [
        follower("112", leader="b", commit=2),
        pre_candidate("112"),
        candidate("112", term=3),
        leader("112", term=3, matched="b", learners="d"),
        leader("1", term=2, voters="ab"),
        Server(commands(4, "22"), term=3, snapshot=Snapshot(3, 2, configuration())),
        Server(),
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(MESSAGES, st.just(None)), max_size=8))
def test_no_decoded_message_makes_a_server_raise_anything_but_an_invariant(messages: list[Message | None]) -> None:
    """A peer may lie; consensus then notices, or goes on. None: half an election timeout passes."""
    for server in servers():
        try:
            for message in messages:
                if message is None:
                    server.tick(ELECTION // 2)
                    continue
                for received in decode(encode([msgspec.structs.replace(message, recipient="a")])):
                    server.raft.step(received)
                server.drain()
        except (MalformedMessageError, InvariantViolatedError, ContradictionError):
            pass
