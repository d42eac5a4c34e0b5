"""Writes that a member handed over: applied once, however often they come; what of it is in snapshots and hashes."""

from __future__ import annotations

import pytest
from kv.kv_support import CONFIGURATION, MEMBERS, apply, configured, entry_of, raise_to

from kvorum.errors import StorageCorruptError
from kvorum.kv.commands import (
    Batch,
    BatchCommand,
    Delete,
    HandedOver,
    HandedOverDone,
    OpenOrigin,
    OriginOpened,
    OriginRefused,
    Put,
    PutResult,
    RaiseFeatureLevel,
    Result,
    encode_batch,
    unknown_part,
)
from kvorum.kv.features import HANDOVER_LEVEL
from kvorum.kv.frames import Frame, FrameReader, FrameWriter, OriginsFrame
from kvorum.kv.limits import BATCH_COMMANDS_MAX, ORIGIN_WINDOW
from kvorum.kv.origins import Origin, OriginRow
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member

ONE, TWO, THREE = MEMBERS
PUT = Put(b"a", b"v")


class Log:
    """A store, and the log that made it."""

    def __init__(self) -> None:
        self.store = Store()

    def configure(self, configuration: Configuration) -> None:
        """Change the members."""
        self.store.apply(configured(configuration, self.store.applied_index + 1))

    def entry(self, *commands: BatchCommand) -> Entry:
        """Return the next entry, with these commands."""
        return entry_of(self.store.applied_index + 1, Batch(0, commands))

    def apply(self, *commands: BatchCommand) -> list[Result]:
        """Apply commands as one entry."""
        return apply(self.store, *commands)

    def one(self, command: BatchCommand) -> Result:
        """Apply a command as an entry of its own."""
        [result] = self.apply(command)
        return result


def log_at(level: int) -> Log:
    log = Log()
    log.configure(CONFIGURATION)
    for each in range(2, level + 1):
        log.apply(raise_to(each))
    return log


@pytest.fixture
def log() -> Log:
    """A log at the level, with the nonce 7 open for the first member."""
    made = log_at(HANDOVER_LEVEL)
    assert made.one(OpenOrigin(ONE, 7, 0)) == OriginOpened(made.store.revision, 7)
    return made


def refusal(result: object) -> str:
    assert isinstance(result, OriginRefused)
    return result.reason


def test_a_frame_is_applied_once(log: Log) -> None:
    before = log.store.revision
    done = log.one(HandedOver(7, 1, (PUT, Put(b"b", b"w"))))
    assert isinstance(done, HandedOverDone)
    assert [each.revision for each in done.results if isinstance(each, PutResult)] == [before + 1, before + 2]
    assert refusal(log.one(HandedOver(7, 1, (PUT, Put(b"b", b"w"))))) == "applied"
    assert log.store.revision == before + 2


def test_what_was_handed_over_is_told_until_the_next_entry(log: Log) -> None:
    frame = HandedOver(7, 1, (PUT,))
    done = log.one(frame)
    assert log.store.handed_over == [(frame, done)]
    log.one(frame)
    assert log.store.handed_over == []
    for kind, data in ((EntryKind.NOOP, b""), (EntryKind.CONFIGURATION, encode_configuration(CONFIGURATION))):
        frame = HandedOver(7, log.store.applied_index, (PUT,))
        assert log.store.handed_over == [(frame, log.one(frame))]
        log.store.apply(Entry(log.store.applied_index + 1, log.store.applied_term, kind, data))
        assert log.store.handed_over == [], "also by an entry without commands"


def test_an_empty_frame_uses_the_number_up(log: Log) -> None:
    assert log.one(HandedOver(7, 1)) == HandedOverDone(log.store.revision, ())
    assert refusal(log.one(HandedOver(7, 1, (PUT,)))) == "applied"
    assert log.store.get(b"a") is None


def test_numbers_may_come_in_any_order_within_the_window(log: Log) -> None:
    for number in (3, 1, ORIGIN_WINDOW, 2):
        assert isinstance(log.one(HandedOver(7, number, (PUT,))), HandedOverDone)
    for number in (1, 2, 3, ORIGIN_WINDOW):
        assert refusal(log.one(HandedOver(7, number, (PUT,)))) == "applied"
    assert isinstance(log.one(HandedOver(7, 4, (PUT,))), HandedOverDone)


def test_a_number_below_the_window_is_taken_for_applied(log: Log) -> None:
    log.one(HandedOver(7, ORIGIN_WINDOW))
    log.one(HandedOver(7, ORIGIN_WINDOW + 2))
    assert refusal(log.one(HandedOver(7, 1, (PUT,)))) == "applied"
    assert refusal(log.one(HandedOver(7, 2, (PUT,)))) == "applied"
    assert isinstance(log.one(HandedOver(7, 3, (PUT,))), HandedOverDone)


def test_a_number_too_far_ahead_is_refused_and_moves_no_window(log: Log) -> None:
    assert refusal(log.one(HandedOver(7, ORIGIN_WINDOW + 1, (PUT,)))) == "ahead"
    assert isinstance(log.one(HandedOver(7, 1, (PUT,))), HandedOverDone)


def test_an_unknown_nonce_is_refused(log: Log) -> None:
    assert refusal(log.one(HandedOver(8, 1, (PUT,)))) == "unknown"


def test_an_opening_counts_once(log: Log) -> None:
    log.one(HandedOver(7, 1, (PUT,)))
    assert refusal(log.one(OpenOrigin(ONE, 7, 0))) == "in_use"
    assert refusal(log.one(HandedOver(7, 1, (PUT,)))) == "applied"


def test_an_opening_replaces_what_it_names_and_nothing_else(log: Log) -> None:
    assert refusal(log.one(OpenOrigin(ONE, 9, 0))) == "replaced"
    assert refusal(log.one(OpenOrigin(ONE, 9, 8))) == "replaced"
    assert isinstance(log.one(OpenOrigin(ONE, 9, 7)), OriginOpened)
    assert refusal(log.one(HandedOver(7, 1, (PUT,)))) == "unknown"
    # The opening of the process before, late.
    assert refusal(log.one(OpenOrigin(ONE, 7, 0))) == "replaced"
    assert isinstance(log.one(HandedOver(9, 1, (PUT,))), HandedOverDone)


def test_each_member_has_its_own(log: Log) -> None:
    assert refusal(log.one(OpenOrigin(TWO, 7, 0))) == "in_use"
    assert isinstance(log.one(OpenOrigin(TWO, 8, 0)), OriginOpened)
    assert isinstance(log.one(HandedOver(7, 1, (PUT,))), HandedOverDone)
    assert isinstance(log.one(HandedOver(8, 1, (PUT,))), HandedOverDone)


def test_only_a_member_opens_and_a_removed_one_is_forgotten(log: Log) -> None:
    assert refusal(log.one(OpenOrigin("stranger@1", 9, 0))) == "no_member"
    log.configure(Configuration((Member(TWO, True),)))
    assert len(log.store.origins) == 0
    assert refusal(log.one(HandedOver(7, 1, (PUT,)))) == "unknown"


@pytest.mark.parametrize("nonce", [0, -1, 2**63])
def test_an_impossible_nonce_is_refused(log: Log, nonce: int) -> None:
    assert refusal(log.one(OpenOrigin(TWO, nonce, 0))) == "invalid"


@pytest.mark.parametrize("number", [0, -1, 2**63])
def test_an_impossible_number_is_refused(log: Log, number: int) -> None:
    assert refusal(log.one(HandedOver(7, number, (PUT,)))) == "invalid"


def test_too_many_commands_are_refused(log: Log) -> None:
    assert refusal(log.one(HandedOver(7, 1, (Delete(b"x"),) * (BATCH_COMMANDS_MAX + 1)))) == "invalid"
    assert isinstance(log.one(HandedOver(7, 1, (Delete(b"x"),) * BATCH_COMMANDS_MAX)), HandedOverDone)


def test_below_the_level_nothing_is_handed_over() -> None:
    log = log_at(HANDOVER_LEVEL - 1)
    assert refusal(log.one(OpenOrigin(ONE, 7, 0))) == "invalid"
    assert refusal(log.one(HandedOver(7, 1, (PUT,)))) == "invalid"
    assert len(log.store.origins) == 0


def test_it_shares_an_entry_with_other_commands(log: Log) -> None:
    results = log.apply(PUT, HandedOver(7, 1, (PUT,)), Put(b"b", b"w"))
    assert isinstance(results[1], HandedOverDone)
    assert isinstance(results[2], PutResult)
    assert log.store.get(b"a").version == 2  # type: ignore[union-attr]


def test_the_hash_tells_what_was_applied() -> None:
    hashes = set()
    for commands in (
        [],
        [OpenOrigin(ONE, 7, 0)],
        [OpenOrigin(ONE, 8, 0)],
        [OpenOrigin(TWO, 7, 0)],
        [OpenOrigin(ONE, 7, 0), HandedOver(7, 1)],
        [OpenOrigin(ONE, 7, 0), HandedOver(7, 2)],
    ):
        log = log_at(HANDOVER_LEVEL)
        log.apply(*commands)
        hashes.add(log.store.state_hash)
    assert len(hashes) == 6


# --- Snapshots ----------------------------------------------------------------------------------------------------


def snapshot_of(store: Store) -> list[Frame]:
    iterator, reader = store.begin_snapshot(), FrameReader()
    frames: list[Frame] = []
    while (chunk := iterator.next_chunk()) is not None:
        frames.extend(reader.feed(chunk))
    iterator.close()
    return frames


def restored(frames: list[Frame], configuration: Configuration = CONFIGURATION) -> Store:
    writer, restorer = FrameWriter(), Restorer(configuration)
    for frame in frames:
        restorer.feed(writer.encode(frame))
    return restorer.finish()


def test_a_snapshot_carries_the_origins_of_its_moment(log: Log) -> None:
    log.one(OpenOrigin(TWO, 8, 0))
    for number in (1, 3, ORIGIN_WINDOW + 3):
        log.one(HandedOver(7, number, (PUT,)))
    iterator = log.store.begin_snapshot()
    log.one(HandedOver(7, 4))
    restorer = Restorer(CONFIGURATION)
    while (chunk := iterator.next_chunk()) is not None:
        restorer.feed(chunk)
    iterator.close()
    store = restorer.finish()
    rows = {row.member: row for row in store.origins.rows()}
    assert rows[TWO].highest == 0
    origin = store.origins.find(7)
    assert origin is not None
    assert [number for number in range(1, ORIGIN_WINDOW + 5) if origin.is_applied(number)] == [
        1, 2, 3, ORIGIN_WINDOW + 3
    ]  # fmt: skip


def test_a_restored_store_goes_on_as_the_first_one(log: Log) -> None:
    log.one(HandedOver(7, 2, (PUT,)))
    store = restored(snapshot_of(log.store))
    for command in (HandedOver(7, 2, (PUT,)), HandedOver(7, 1, (PUT,)), OpenOrigin(ONE, 9, 7)):
        entry = log.entry(command)
        assert store.apply(entry) == log.store.apply(entry)
        assert store.state_hash == log.store.state_hash


def test_a_store_that_is_given_up_holds_none(log: Log) -> None:
    log.one(HandedOver(7, 1, (PUT,)))
    left = log.store.give_up()
    assert len(left.origins) == 0
    assert left.handed_over == []


@pytest.mark.parametrize(
    "rows",
    [
        (OriginRow("stranger@1", 7, 0, bytes(ORIGIN_WINDOW // 8)),),
        (OriginRow(ONE, 7, 0, bytes(ORIGIN_WINDOW // 8)), OriginRow(ONE, 8, 0, bytes(ORIGIN_WINDOW // 8))),
        (OriginRow(ONE, 7, 0, bytes(ORIGIN_WINDOW // 8)), OriginRow(TWO, 7, 0, bytes(ORIGIN_WINDOW // 8))),
        (OriginRow(ONE, 7, 0, (1).to_bytes(ORIGIN_WINDOW // 8)),),
        (OriginRow(ONE, 7, 1, bytes(ORIGIN_WINDOW // 8)),),
        (OriginRow(ONE, 7, 2, (5).to_bytes(ORIGIN_WINDOW // 8)),),
    ],
    ids=["stranger", "member twice", "nonce twice", "no highest", "highest not applied", "below one"],
)
def test_impossible_origins_are_refused(log: Log, rows: tuple[OriginRow, ...]) -> None:
    frames = [OriginsFrame(rows) if isinstance(frame, OriginsFrame) else frame for frame in snapshot_of(log.store)]
    with pytest.raises(StorageCorruptError, match="origin"):
        restored(frames)


def test_a_snapshot_of_the_level_has_origins_once_and_one_below_has_none(log: Log) -> None:
    frames = snapshot_of(log.store)
    [origins] = [frame for frame in frames if isinstance(frame, OriginsFrame)]
    with pytest.raises(StorageCorruptError, match="origins"):
        restored([frame for frame in frames if frame is not origins])
    at = frames.index(origins)
    with pytest.raises(StorageCorruptError, match="twice"):
        restored([*frames[:at], origins, *frames[at:]])
    below = snapshot_of(log_at(HANDOVER_LEVEL - 1).store)
    assert not any(isinstance(frame, OriginsFrame) for frame in below)
    with pytest.raises(StorageCorruptError, match="should not"):
        restored([*below[:3], OriginsFrame(()), *below[3:]])


# --- The rest -----------------------------------------------------------------------------------------------------


def test_a_window_forgets_nothing_that_it_holds() -> None:
    origin = Origin(ONE, 7)
    taken = [number for number in range(1, 5 * ORIGIN_WINDOW) if number % 3]
    for number in taken:
        assert origin.take(number) is None
    last = taken[-1]
    for number in range(last - ORIGIN_WINDOW + 1, last + 1):
        assert origin.is_applied(number) == bool(number % 3)
    assert origin.is_applied(last - ORIGIN_WINDOW)
    again = Origin(ONE, 7, origin.highest, int.from_bytes(origin.row().applied))
    assert again.row() == origin.row()
    assert origin.row().is_possible()


def test_a_raise_cannot_be_handed_over() -> None:
    data = encode_batch(1, [HandedOver(7, 1, (RaiseFeatureLevel(9, {}, "c"),))])  # type: ignore[arg-type]
    assert unknown_part(data) == "a command 'f'"


def test_what_a_newer_version_hands_over_is_named() -> None:
    assert unknown_part(encode_batch(1, [HandedOver(7, 1, (PUT,))])) is None
