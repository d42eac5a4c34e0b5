"""Transactions, as a program writes them down.

::

    result = await (
        kv.txn()
        .if_(Value("a") == "1", Version("b") == 0)
        .then(Put("a", "2"), Delete("c"))
        .otherwise(Get("a"))
        .commit()
    )

A transaction that was not committed can be an operation of another one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET

from kvorum_client.arguments import check_whole_number
from kvorum_client.errors import InvalidArgumentError
from kvorum_client.leases import Lease, id_of_lease, shown_id
from kvorum_client.results import Record
from kvorum_client.wire import encoded, id_of
from kvorum_wire import transactions as wire

T = TypeVar("T")
_Target = Literal["value", "version", "create_revision", "mod_revision", "lease"]
_Sign = Literal["=", "!=", "<", ">"]
_NUMBER_MIN = -(2**63)


FIRST_KEY = b"\0"
"""The first key that there may be: an empty start means that, as in :meth:`Client.range`."""


class Keys(msgspec.Struct, frozen=True):
    """One key, or a range of them: all that begin with a prefix, or those from ``start`` on and before ``end``."""

    key: bytes | str | None = None
    prefix: bytes | str | None = None
    start: bytes | str | None = None
    end: bytes | str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of the JSON.

        Raises:
            InvalidArgumentError: nothing, or more than one of them, is given.
        """
        given = {name: getattr(self, name) for name in ("key", "prefix", "start", "end")}
        given = {name: each for name, each in given.items() if each is not None}
        if set(given) not in ({"key"}, {"prefix"}, {"start"}, {"end"}, {"start", "end"}):
            raise InvalidArgumentError("say which keys by one of these: a key, a prefix, or start and end")
        fields: dict[str, Any] = {}
        for name, each in given.items():
            data = encoded(each, f"the {name}")
            if not data and name == "start":
                data = FIRST_KEY
            elif not data and name != "prefix":
                raise InvalidArgumentError(f"the {name} is empty")
            fields |= _field(name, data)
        return fields


class Condition(msgspec.Struct, frozen=True):
    """A compare of a transaction; make it with :class:`Value`, :class:`Version` and so on."""

    keys: Keys
    target: _Target
    sign: _Sign
    operand: bytes | str | int

    def body(self) -> wire.Compare:
        """Return its JSON.

        Raises:
            InvalidArgumentError: it cannot be meant.
        """
        fields = self.keys.fields()
        if self.target == "value":
            if isinstance(self.operand, int):
                raise InvalidArgumentError(f"a value is compared with bytes or text, not {self.operand!r:.80}")
            fields |= _field("value", encoded(self.operand, "the value"))
        elif self.target == "lease":
            if not isinstance(self.operand, int):
                raise InvalidArgumentError(f"a lease is compared with an id, a whole number, not {self.operand!r:.80}")
            fields["lease"] = shown_id(check_whole_number(self.operand, "the id of a lease", _NUMBER_MIN))
        else:
            what = f"what the {self.target} is compared with"
            if isinstance(self.operand, bytes | str):
                raise InvalidArgumentError(f"{what} must be a whole number, not {self.operand!r:.80}")
            fields["number"] = check_whole_number(self.operand, what, _NUMBER_MIN)
        return wire.Compare(target=self.target, result=self.sign, **fields)


class _Subject:
    """What a compare is about: ``Value("a") == "1"``. Of a range, all keys must satisfy it."""

    _target: _Target
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        key: bytes | str | None = None,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
    ) -> None:
        self._keys = Keys(key, prefix, start, end)

    def __eq__(self, operand: object) -> Condition:  # type: ignore[override]
        return self._compared("=", operand)

    def __ne__(self, operand: object) -> Condition:  # type: ignore[override]
        return self._compared("!=", operand)

    def __lt__(self, operand: bytes | str | int) -> Condition:
        return self._compared("<", operand)

    def __gt__(self, operand: bytes | str | int) -> Condition:
        return self._compared(">", operand)

    def _compared(self, sign: _Sign, operand: object) -> Condition:
        if not isinstance(operand, bytes | str | int):
            raise InvalidArgumentError(f"a compare is with bytes, text or a number, not {operand!r:.80}")
        return Condition(self._keys, self._target, sign, operand)


class Value(_Subject):
    """The value of a key. A compare of a key that does not exist is false."""

    _target = "value"


class Version(_Subject):
    """How many times a key was put since it was created; 0: it does not exist."""

    _target = "version"


class CreateRevision(_Subject):
    """The revision that created a key; 0: it does not exist."""

    _target = "create_revision"


class ModRevision(_Subject):
    """The revision that last changed a key; 0: it does not exist."""

    _target = "mod_revision"


class LeaseId(_Subject):
    """The id of the lease of a key; 0: it has none, or does not exist."""

    _target = "lease"


class Put(msgspec.Struct, frozen=True):
    """Set a key."""

    key: bytes | str
    value: bytes | str | None = None
    """None: keep the value that the key has, which must exist."""
    prev_value: bool = False
    """Answer with the record before."""
    lease: Lease | int | None = None
    """The lease, or its id, with which the key is deleted. None: the key has none afterwards."""
    ignore_lease: bool = False
    """Keep the lease that the key has, which must exist."""

    def body(self) -> wire.Operation:
        """Return its JSON. Raises as :meth:`Condition.body`."""
        fields = Keys(self.key).fields()
        if self.value is not None:
            fields |= _field("value", encoded(self.value, "the value"))
        if self.lease is not None:
            fields["lease"] = shown_id(id_of_lease(self.lease))
        return wire.Operation(
            put=wire.Put(
                **fields,
                ignore_value=self.value is None,
                prev_value=bool(self.prev_value),
                ignore_lease=bool(self.ignore_lease),
            )
        )


class Delete(msgspec.Struct, frozen=True):
    """Remove a key, or a range of keys."""

    key: bytes | str | None = None
    prefix: bytes | str | None = None
    start: bytes | str | None = None
    end: bytes | str | None = None
    prev_values: bool = False
    """Answer with the records before."""

    def body(self) -> wire.Operation:
        """Return its JSON. Raises as :meth:`Condition.body`."""
        fields = Keys(self.key, self.prefix, self.start, self.end).fields()
        return wire.Operation(delete=wire.Delete(**fields, prev_values=bool(self.prev_values)))


class Get(msgspec.Struct, frozen=True):
    """Read a key, or a range of keys in their order."""

    key: bytes | str | None = None
    prefix: bytes | str | None = None
    start: bytes | str | None = None
    end: bytes | str | None = None
    limit: int = 0
    """How many records to answer with, at most; 0: all."""
    revision: int = 0
    """Read at this revision; 0: at the latest one, with what came before in the same transaction."""
    keys_only: bool = False
    """The values of the records are empty."""
    count_only: bool = False
    """No records, only how many there are."""
    descending: bool = False
    """From the last key on."""

    def body(self) -> wire.Operation:
        """Return its JSON. Raises as :meth:`Condition.body`."""
        fields = Keys(self.key, self.prefix, self.start, self.end).fields()
        return wire.Operation(
            range=wire.Read(
                **fields,
                limit=check_whole_number(self.limit, "limit"),
                revision=check_whole_number(self.revision, "revision"),
                keys_only=bool(self.keys_only),
                count_only=bool(self.count_only),
                sort="descending" if self.descending else "ascending",
            )
        )


class Transaction(Generic[T]):
    """A transaction: ``if_`` all conditions hold, ``then`` these operations, ``otherwise`` those.

    Each method returns a new transaction with more in it, but for :meth:`commit`.

    Args:
        send: does the transaction that a body of JSON is, within a deadline (None: the client's).
        body: what is in it so far.
    """

    def __init__(self, send: Callable[[wire.Txn, float | None], T], body: wire.Txn | None = None) -> None:
        self.send = send
        self._body = wire.Txn() if body is None else body

    def if_(self, *conditions: Condition) -> Transaction[T]:
        """Add conditions; without any, ``then`` is done."""
        for each in conditions:
            if not isinstance(each, Condition):
                raise InvalidArgumentError(f'a condition is like Value("a") == "1", not {each!r:.80}')
        return self._with(compare=(*self._body.compare, *(each.body() for each in conditions)))

    def then(self, *operations: Operation) -> Transaction[T]:
        """Add operations that are done if all conditions hold."""
        return self._with(then=(*self._body.then, *map(body_of, operations)))

    def otherwise(self, *operations: Operation) -> Transaction[T]:
        """Add operations that are done if a condition does not hold."""
        return self._with(otherwise=(*self._body.otherwise, *map(body_of, operations)))

    def _with(self, **parts: Any) -> Transaction[T]:
        return Transaction(self.send, msgspec.structs.replace(self._body, **parts))

    def body(self) -> wire.Operation:
        """Return the JSON of this transaction as an operation of another one."""
        return wire.Operation(txn=self._body)

    def commit(self, *, timeout_s: float | None = None) -> T:
        """Do it, all at one revision, or nothing.

        Raises:
            CompactedError, FutureRevisionError: a revision that is to be read is not in the history.
            NoSpaceError: it has a put, and there is no room.
            RefusedError, UnavailableError: not done.
            OutcomeUnknownError: perhaps done.
        """
        return self.send(self._body, timeout_s)


Operation = Put | Delete | Get | Transaction[Any]


class PutDone(msgspec.Struct, frozen=True):
    """What came of a :class:`Put`."""

    create_revision: int
    mod_revision: int
    version: int
    previous: Record | None = None
    """The record before, if it was asked for and there was one."""


class DeleteDone(msgspec.Struct, frozen=True):
    """What came of a :class:`Delete`."""

    deleted: int
    previous: tuple[Record, ...] = ()
    """The records before, if they were asked for."""


class GetDone(msgspec.Struct, frozen=True):
    """What came of a :class:`Get`."""

    count: int
    """How many keys there are, whatever the limit."""
    more: bool
    """Whether the limit left some of them out."""
    records: tuple[Record, ...]


class TxnDone(msgspec.Struct, frozen=True):
    """What came of a transaction in another one."""

    succeeded: bool
    results: tuple[OperationDone, ...]


OperationDone = PutDone | DeleteDone | GetDone | TxnDone


class TxnResult(msgspec.Struct, frozen=True):
    """What came of a transaction."""

    revision: int
    """The store's revision afterwards."""
    succeeded: bool
    """Whether all conditions held, so that ``then`` was done."""
    deleted: int
    """How many keys were removed in all."""
    results: tuple[OperationDone, ...] | None
    """One for each operation of the branch. None: the answer of the attempt that did it was lost, and the cluster keeps
    only which branch was taken, the revision and the number of deleted keys."""

    @property
    def is_replayed(self) -> bool:
        """Whether the answer of the attempt that did it was lost."""
        return self.results is None


def body_of(operation: Operation) -> wire.Operation:
    """Return the JSON of an operation.

    Raises:
        InvalidArgumentError: it is none, or cannot be meant.
    """
    if not isinstance(operation, Put | Delete | Get | Transaction):
        raise InvalidArgumentError(f"an operation is a Put, Get, Delete or transaction, not {operation!r:.80}")
    return operation.body()


def only_reads(operations: Sequence[wire.Operation]) -> bool:
    """Tell whether these operations change nothing, in whichever branch."""
    for each in operations:
        if each.put is not UNSET or each.delete is not UNSET:
            return False
        if each.txn is not UNSET and not (only_reads(each.txn.then) and only_reads(each.txn.otherwise)):
            return False
    return True


def result_of(answer: wire.TxnAnswer) -> TxnResult:
    """Return what the answer to a transaction says."""
    results = None if answer.results is None else tuple(done_of(each, answer.revision) for each in answer.results)
    return TxnResult(answer.revision, answer.succeeded, answer.deleted, results)


def done_of(done: wire.OperationDone, revision: int) -> OperationDone:
    """Return what the result of an operation says; ``revision``: the store's.

    Raises:
        ValueError: it says nothing.
    """
    if (put := done.put) is not UNSET:
        previous = None if put.previous is None else _record(put.previous, revision)
        return PutDone(put.create_revision, put.mod_revision, put.version, previous)
    if (delete := done.delete) is not UNSET:
        return DeleteDone(delete.deleted, tuple(_record(each, revision) for each in delete.previous or ()))
    if (read := done.range) is not UNSET:
        return GetDone(read.count, read.more, tuple(_record(each, revision) for each in read.records))
    if (txn := done.txn) is not UNSET:
        return TxnDone(txn.succeeded, tuple(done_of(each, revision) for each in txn.results))
    raise ValueError("a result without an operation")


def _record(record: wire.Record, revision: int) -> Record:
    return Record(
        _bytes(record.key, record.key_base64),
        _bytes(record.value, record.value_base64),
        record.create_revision,
        record.mod_revision,
        record.version,
        revision,
        lease=id_of(record.lease),
    )


def _bytes(text: str | None, encoded_text: str | None) -> bytes:
    return base64.b64decode(encoded_text) if encoded_text is not None else (text or "").encode()


def _field(name: str, data: bytes) -> dict[str, str]:
    """Return bytes as a field of JSON."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
