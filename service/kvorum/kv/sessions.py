"""Exactly-once writes: a retried command is applied once, and answered as it was the first time (thesis 6.3).

A client names itself and numbers its commands from 1. For each client the state remembers the answers of the last
:data:`~kvorum.kv.limits.SESSION_WINDOW` sequences, so that several may be in flight and arrive in any order. A command
whose answer is remembered is not applied again. One that lies below the window is refused, because nobody can know
any more whether it was applied; to stay clear of that, a client keeps its oldest unanswered sequence less than a window
behind its newest.

A client may end its session once it knows the outcome of every write. The id of an ended session stays refused for an
hour of the log's time, so that a write that is still on its way cannot open the session anew.

Sessions are never closed by a clock. Only when there are too many does a new one take the place of the least recently
used, and only if that has been idle for an hour of the *log's* time, which is the same on every node (B24). A client
therefore gives up retrying, and reports an unknown outcome, well within that hour.
"""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct
from typing import Annotated
from zlib import crc32

import msgspec

from kvorum.kv.commands import (
    ANY_REVISION,
    CompareFailed,
    Delete,
    DeleteResult,
    Put,
    PutResult,
    Txn,
    TxnResult,
    Write,
)
from kvorum.kv.limits import (
    ENDED_SESSION_OVERHEAD_BYTES,
    SESSION_IDLE_MS,
    SESSION_OVERHEAD_BYTES,
    SESSION_WINDOW,
    SESSIONS_ENDED_MAX,
    SESSIONS_MAX,
)
from kvorum.kv.operations import PutOpResult

UNKNOWN = "unknown"
STALE = "stale"
AHEAD = "ahead"
MISMATCH = "mismatch"
FULL = "full"

Remembered = PutResult | DeleteResult | CompareFailed | TxnResult
"""What a session remembers: answers to commands that were applied, and never a refusal."""

_PUT, _DELETE, _COMPARE_FAILED, _TXN, _TXN_OF_ONE_PUT = 1, 2, 3, 4, 5
_KINDS = (_PUT, _DELETE, _COMPARE_FAILED, _TXN, _TXN_OF_ONE_PUT)
# Sequence, fingerprint, kind, revision, and two numbers more: of a put create_revision and version, of a delete
# whether it deleted, of a failed compare the mod_revision, of a transaction whether its compares held and how many keys
# it deleted. A transaction whose compares held, and that did a single put, is remembered as that put.
_ANSWER = Struct(">QIBQQQ")
_pack_answer = _ANSWER.pack_into
ANSWER_BYTES = _ANSWER.size
_FORGOTTEN_AT_ONCE = 8
"""Ended sessions of more than an hour ago that the end of another one forgets: more than one, so that the table empties
again, and few, so that no entry takes long to apply."""


class SessionRow(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A session as a snapshot holds it: only the answers in the window, packed, in the order of their sequences."""

    client_id: str
    highest: Annotated[int, msgspec.Meta(ge=1)]
    last_used_ms: Annotated[int, msgspec.Meta(ge=0)]
    answers: bytes

    @property
    def answer_count(self) -> int:
        """How many answers are remembered."""
        return len(self.answers) // ANSWER_BYTES

    def is_possible(self) -> bool:
        """Tell whether these answers can be a session's: in the window, sorted, up to the highest sequence."""
        if len(self.answers) % ANSWER_BYTES:
            return False
        previous = max(self.highest - SESSION_WINDOW, 0)
        for sequence, _, kind, *_ in _ANSWER.iter_unpack(self.answers):
            if sequence <= previous or kind not in _KINDS:
                return False
            previous = sequence
        return previous == self.highest


class Session:
    """One client's remembered answers.

    They lie packed in a ring of fixed slots, which grows to :data:`SESSION_WINDOW` of them: a fifth of the memory that
    objects would take, and 10,000 sessions are many. A sequence's slot is its remainder by the window, so a new answer
    takes the place of the one that falls out of ``(highest - SESSION_WINDOW, highest]``, and a slot may hold an answer
    from below the window, or none (sequence 0).
    """

    __slots__ = ("_ring", "highest", "iterator_number", "last_used_ms")

    def __init__(self, highest: int, last_used_ms: int, iterator_number: int) -> None:
        self.highest = highest
        self.last_used_ms = last_used_ms
        self.iterator_number = iterator_number
        """The last iterator for which this session was preserved, or that the session is younger than."""
        self._ring = bytearray()

    def remember(self, sequence: int, fingerprint: int, result: Remembered) -> None:
        """Keep the answer to a sequence in the window."""
        # Not `match`: it costs three times as much here, and every write of a session passes.
        if isinstance(result, PutResult):
            kind, second, third = _PUT, result.create_revision, result.version
        elif isinstance(result, DeleteResult):
            kind, second, third = _DELETE, result.deleted, 0
        elif isinstance(result, CompareFailed):
            kind, second, third = _COMPARE_FAILED, result.mod_revision, 0
        elif (put := _only_put(result)) is not None:
            kind, second, third = _TXN_OF_ONE_PUT, put.create_revision, put.version
        else:
            kind, second, third = _TXN, int(result.succeeded), result.deleted
        slot = self._slot(sequence)
        _pack_answer(self._ring, slot, sequence, fingerprint, kind, result.revision, second, third)

    def recall(self, sequence: int) -> tuple[int, Remembered] | None:
        """Return the fingerprint and the answer of a sequence in the window, or None if it had none yet."""
        stored, fingerprint, kind, revision, second, third = _ANSWER.unpack_from(self._ring, self._slot(sequence))
        if stored != sequence:
            return None
        if kind == _PUT:
            return fingerprint, PutResult(revision, second, revision, third)
        if kind == _DELETE:
            return fingerprint, DeleteResult(revision, second)
        if kind == _COMPARE_FAILED:
            return fingerprint, CompareFailed(revision, second)
        if kind == _TXN_OF_ONE_PUT:
            return fingerprint, TxnResult(revision, True, 0, (PutOpResult(revision, second, third),), replayed=True)
        return fingerprint, TxnResult(revision, bool(second), third, None, replayed=True)

    def answer(self, sequence: int) -> bytes:
        """Return the answer to a sequence in the window as it is stored, packed."""
        slot = self._slot(sequence)
        return bytes(self._ring[slot : slot + ANSWER_BYTES])

    def row(self, client_id: str) -> SessionRow:
        """Return the session as it is now; two sessions that answer alike have equal rows."""
        ring = self._ring
        lowest = max(self.highest - SESSION_WINDOW + 1, 1).to_bytes(8)
        # A slot begins with its sequence, big-endian: slots sort as their sequences do.
        slots = [bytes(ring[offset : offset + ANSWER_BYTES]) for offset in range(0, len(ring), ANSWER_BYTES)]
        answers = b"".join(sorted(slot for slot in slots if slot >= lowest))
        return SessionRow(client_id, self.highest, self.last_used_ms, answers)

    @classmethod
    def restored(cls, row: SessionRow, iterator_number: int) -> Session:
        """Return the session that a row describes."""
        session = cls(row.highest, row.last_used_ms, iterator_number)
        for start in range(0, len(row.answers), ANSWER_BYTES):
            slot = row.answers[start : start + ANSWER_BYTES]
            offset = session._slot(int.from_bytes(slot[:8]))
            session._ring[offset : offset + ANSWER_BYTES] = slot
        return session

    def _slot(self, sequence: int) -> int:
        """Return the offset of a sequence's slot, which exists afterwards."""
        offset = sequence % SESSION_WINDOW * ANSWER_BYTES
        missing = offset + ANSWER_BYTES - len(self._ring)
        if missing > 0:
            self._ring.extend(bytes(missing))
        return offset


class Sessions:
    """All sessions, from the least to the most recently used in log order.

    Attributes:
        evicted: the last session that gave way to a new one, until somebody has taken note of it.
        used_bytes: what all of them take, ended ones included, as the quota counts it.
    """

    __slots__ = ("_ended", "_iterator_number", "_latest", "_preserved", "_sessions", "evicted", "used_bytes")

    def __init__(self) -> None:
        self.used_bytes = 0
        self.evicted: str | None = None
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._ended: OrderedDict[str, int] = OrderedDict()
        """Client id -> when it ended its session (log time, ms), in the order of these times."""
        self._latest: Session | None = None  # the last in the order: it need not be moved there again
        self._iterator_number = 0
        self._preserved: dict[str, SessionRow] | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._sessions

    def find(self, client_id: str, sequence: int, fingerprint: int, time_ms: int) -> Session | Remembered | str:
        """Decide what becomes of a command.

        Returns:
            The session that must remember the answer: apply the command. Or the answer of the first time. Or the
            reason of a refusal: one of ``unknown``, ``stale``, ``ahead``, ``mismatch``, ``full``.
        """
        session = self._sessions.get(client_id)
        if session is None:
            if sequence != 1 or self._is_ended(client_id, time_ms):
                return UNKNOWN
            return self._open(client_id, time_ms)
        if session is not self._latest:
            self._sessions.move_to_end(client_id)
            self._latest = session
        if session.iterator_number != self._iterator_number:
            self._preserve(client_id, session)
        session.last_used_ms = time_ms
        ahead = sequence - session.highest
        if ahead > 0:
            if ahead > SESSION_WINDOW:
                return AHEAD
            if session.highest < SESSION_WINDOW:
                self.used_bytes += ANSWER_BYTES * (min(sequence, SESSION_WINDOW) - session.highest)
            session.highest = sequence
            return session
        if ahead <= -SESSION_WINDOW:
            return STALE
        recalled = session.recall(sequence)
        if recalled is None:
            return session
        first, result = recalled
        return result if first == fingerprint else MISMATCH

    def is_new(self, client_id: str, sequence: int, time_ms: int) -> bool:
        """Tell whether a command would be applied, or refused for a reason that says that it never was.

        It is not new if its answer is remembered, or if it may have been applied and forgotten.
        """
        session = self._sessions.get(client_id)
        if session is None:
            return sequence == 1 and not self._is_ended(client_id, time_ms)
        if sequence > session.highest:
            return True
        return sequence > session.highest - SESSION_WINDOW and session.recall(sequence) is None

    def end(self, client_id: str, time_ms: int) -> bool | str:
        """End a session.

        Returns:
            True: it is ended. False: an earlier attempt ended it. Or the reason of a refusal: ``unknown``, ``full``.
        """
        session = self._sessions.get(client_id)
        if session is None:
            return False if self._is_ended(client_id, time_ms) else UNKNOWN
        ended = self._ended
        for _ in range(_FORGOTTEN_AT_ONCE):
            if not ended or time_ms - next(iter(ended.values())) <= SESSION_IDLE_MS:
                break
            forgotten_id, _ = ended.popitem(last=False)
            self.used_bytes -= _ended_bytes(forgotten_id)
        if len(ended) >= SESSIONS_ENDED_MAX:
            return FULL
        if session.iterator_number != self._iterator_number:
            self._preserve(client_id, session)
        del self._sessions[client_id]
        if session is self._latest:
            self._latest = None
        ended[client_id] = time_ms
        self.used_bytes += _ended_bytes(client_id) - _session_bytes(client_id, session.highest)
        return True

    def ended(self) -> list[tuple[str, int]]:
        """Return the client ids of the sessions that were ended, and when, in that order."""
        return list(self._ended.items())

    def has_ended(self, client_id: str) -> bool:
        """Tell whether this session is on the list of those that were ended."""
        return client_id in self._ended

    def restore_ended(self, client_id: str, ended_ms: int) -> None:
        """Add an ended session from a snapshot, as the last one so far."""
        self._ended[client_id] = ended_ms
        self.used_bytes += _ended_bytes(client_id)

    def row(self, client_id: str) -> SessionRow:
        """Return a session as it is now."""
        return self._sessions[client_id].row(client_id)

    def restore(self, row: SessionRow) -> None:
        """Add a session from a snapshot, as the most recently used one so far."""
        session = Session.restored(row, self._iterator_number)
        self._sessions[row.client_id] = session
        self._latest = session
        self.used_bytes += _session_bytes(row.client_id, row.highest)

    def begin_iteration(self) -> tuple[list[str], dict[str, SessionRow]]:
        """Return all client ids in order, and a dict that gets each session's row just before its first change."""
        self._iterator_number += 1
        self._preserved = {}
        return list(self._sessions), self._preserved

    def end_iteration(self) -> None:
        """Stop preserving."""
        self._preserved = None

    def _open(self, client_id: str, time_ms: int) -> Session | str:
        if len(self._sessions) >= SESSIONS_MAX:
            oldest_id, oldest = next(iter(self._sessions.items()))
            if time_ms - oldest.last_used_ms <= SESSION_IDLE_MS:
                return FULL
            if oldest.iterator_number != self._iterator_number:
                self._preserve(oldest_id, oldest)
            del self._sessions[oldest_id]
            self.evicted = oldest_id
            self.used_bytes -= _session_bytes(oldest_id, oldest.highest)
        if self._ended.pop(client_id, None) is not None:
            self.used_bytes -= _ended_bytes(client_id)
        self.used_bytes += _session_bytes(client_id, 1)
        session = Session(1, time_ms, self._iterator_number)
        self._sessions[client_id] = session
        self._latest = session
        return session

    def _is_ended(self, client_id: str, time_ms: int) -> bool:
        ended_ms = self._ended.get(client_id)
        return ended_ms is not None and time_ms - ended_ms <= SESSION_IDLE_MS

    def _preserve(self, client_id: str, session: Session) -> None:
        """Note the session's state for the iterator that is open, once per iterator."""
        session.iterator_number = self._iterator_number
        if self._preserved is not None:
            self._preserved[client_id] = session.row(client_id)


def _session_bytes(client_id: str, highest: int) -> int:
    """Return what a session takes: its answers by the highest sequence, whatever size its ring has on this node."""
    return SESSION_OVERHEAD_BYTES + len(client_id) + ANSWER_BYTES * min(highest, SESSION_WINDOW)


def _ended_bytes(client_id: str) -> int:
    return ENDED_SESSION_OVERHEAD_BYTES + len(client_id)


def _only_put(result: TxnResult) -> PutOpResult | None:
    """Return the result of a put, if the compares held and that is all that was done."""
    if not result.succeeded or result.results is None or len(result.results) != 1:
        return None
    [only] = result.results
    return only if isinstance(only, PutOpResult) else None


def fingerprint(command: Write) -> int:
    """Return 32 bits that differ, but for chance, between two commands with one client id and sequence.

    It tells a client's mistake from a retry, and protects nobody but that client, so a checksum is enough. It begins
    with the key's length: ``("ab", "c")`` and ``("a", "bc")`` are two commands. Of a transaction it covers all that is
    asked for.
    """
    if isinstance(command, Txn):
        return crc32(_encode_transaction((command.compares, command.then, command.otherwise)))
    return _fingerprint_of_one_key(command)


_encode_transaction = msgspec.msgpack.Encoder().encode


def _fingerprint_of_one_key(command: Put | Delete) -> int:
    key = command.key
    mark = crc32(key, len(key))
    if isinstance(command, Put):
        mark = crc32(command.value, mark)
    else:
        mark ^= 0xFFFFFFFF
    if command.prev_revision != ANY_REVISION:
        mark = crc32(b"%d" % command.prev_revision, mark)
    return mark
