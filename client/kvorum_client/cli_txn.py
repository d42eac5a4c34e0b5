"""``kv txn``, and ``kv del`` of a range."""

from __future__ import annotations

import argparse
import difflib
import io
import shlex
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from kvorum_client.cli_arguments import (
    add_key,
    add_output,
    add_range,
    key,
    lease_id,
    prev_revision_number,
    range_of,
    whole_number,
)
from kvorum_client.cli_keys import delete as delete_key
from kvorum_client.cli_output import lease_field, print_json, printable, say, text_fields
from kvorum_client.client import Client
from kvorum_client.errors import InvalidArgumentError, RefusedError
from kvorum_client.results import Record
from kvorum_client.transactions import (
    Condition,
    Delete,
    DeleteDone,
    Get,
    GetDone,
    Keys,
    OperationDone,
    Put,
    PutDone,
    TxnDone,
    TxnResult,
)
from kvorum_wire import transactions as wire

FILE_BYTES_MAX = 4 * 1024 * 1024
PAGE_KEYS = 10_000
"""How many keys one request may delete."""
TXN_HELP = """\
The transaction is read from FILE, or from stdin. A line is a condition or an
operation; a word with spaces is quoted as in a shell; a # that begins a word
begins a comment, which ends with the line:

  if value a = 1          # the conditions: value, version, create_revision or
  if version b = 0        #   mod_revision, lease (an id in hex; 0: none), of a key
                          #   or --prefix P; =, !=, < or >
  then put a 2            # done if all of them hold
  then delete --prefix tmp/
  else get a              # done if one does not

put takes --prev-value, --lease ID, --ignore-lease, and --ignore-value in place of
a value; delete takes --prev-values; get takes --limit N, --revision N, --keys-only, --count-only and
--descending. Or the JSON of POST /v1/txn, which begins with {.

exit status 1: a condition did not hold (what "else" says was done).

example:
  printf 'if version lock = 0\\nthen put lock me\\nelse get lock\\n' | kv txn
"""
_TARGETS = ("value", "version", "create_revision", "mod_revision", "lease")
_SIGNS = ("=", "!=", "<", ">")
_FORMS = 'a line begins with "if", "then" or "else"; kv txn --help shows an example'


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    deleting = add("del", delete, "remove a key, or a range of keys", "delete")
    add_key(deleting, optional=True)
    deleting.add_argument(
        "--prev-revision", metavar="N", type=prev_revision_number, help="only if the key's mod_revision is N"
    )
    add_range(deleting, "all keys that begin with P; more than 10,000 in several steps")
    deleting.add_argument("--dry-run", action="store_true", help="only count the keys of the range")
    add_output(deleting)

    doing = add("txn", txn, "do several operations at one revision, if conditions hold")
    doing.description, doing.formatter_class = TXN_HELP, argparse.RawDescriptionHelpFormatter
    doing.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="where it is written; - is stdin [default -]"
    )
    add_output(doing)


def read_transaction(options: argparse.Namespace) -> None:
    """Put the transaction that ``FILE`` or stdin has in the place of its name.

    Called before there is an event loop, whose handler of Ctrl-C a blocked read would not notice.

    Raises:
        InvalidArgumentError: it cannot be read, or is none.
    """
    name = "stdin" if options.file == "-" else options.file
    try:
        if options.file == "-" and sys.stdin is None:
            raise InvalidArgumentError("stdin is closed")
        with sys.stdin.buffer if options.file == "-" else open(options.file, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > FILE_BYTES_MAX:
        raise InvalidArgumentError(f"{name} is longer than a transaction may be (limit {FILE_BYTES_MAX} bytes)")
    options.file = parse_transaction(data, name)


def parse_transaction(data: bytes, name: str) -> wire.Txn:
    """Return the transaction that is written here, in lines or in JSON; ``name`` is for errors.

    Raises:
        InvalidArgumentError: it is none; the text names the line or the field.
    """
    if data.lstrip().startswith(b"{"):
        try:
            return msgspec.json.decode(data, type=wire.Txn)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgumentError(f"{name}: {error}") from None
    compares: list[wire.Compare] = []
    branches: dict[str, list[wire.Operation]] = {"then": [], "else": []}
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        try:
            words = _words(line)
            if not words:
                continue
            if words[0] == "if":
                compares.append(_condition(words[1:]).body())
            elif words[0] in branches:
                branches[words[0]].append(_operation(words[1:]))
            else:
                raise InvalidArgumentError(_FORMS)
        except ValueError as error:  # InvalidArgumentError is one.
            raise InvalidArgumentError(f"{name}, line {number}: {error}") from None
    if not (compares or branches["then"] or branches["else"]):
        raise InvalidArgumentError(f"{name} has no transaction: {_FORMS}")
    return wire.Txn(compare=tuple(compares), then=tuple(branches["then"]), otherwise=tuple(branches["else"]))


def _words(line: str) -> list[str]:
    """Return the words of a line, as a shell reads them.

    Raises:
        ValueError: a quotation does not end.
    """
    text = io.StringIO(line)
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""  # Its comments begin within words, too.
    words: list[str] = []
    begin = 0
    while True:
        while begin < len(line) and line[begin] in lexer.whitespace:
            begin += 1
        if begin == len(line) or line[begin] == "#":
            return words
        text.seek(begin)
        word = lexer.get_token()
        if word is None:
            return words
        words.append(word)
        begin = text.tell()


class _Words(argparse.ArgumentParser):
    """Reads one line, and says what is wrong with it."""

    def parse(self, words: list[str]) -> argparse.Namespace:
        """Return what the words of a line say; options may stand anywhere before a ``--``."""
        # The other parser does not take a -- in front of positional words.
        return self.parse_args(words) if "--" in words else self.parse_intermixed_args(words)

    def error(self, message: str) -> Any:
        raise InvalidArgumentError(message)


def _line(kind: str) -> _Words:
    return _Words(prog=kind, add_help=False, allow_abbrev=False)


def _condition(words: list[str]) -> Condition:
    parser = _line("if")
    parser.add_argument("target", metavar="WHAT")
    parser.add_argument("--prefix")
    parser.add_argument("rest", nargs="*")
    options = parser.parse(words)
    rest = options.rest if options.prefix is not None else options.rest[1:]
    if options.target not in _TARGETS:
        near = difflib.get_close_matches(options.target, _TARGETS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InvalidArgumentError(
            f"a condition is on {', '.join(_TARGETS)} of a key, not {options.target!r:.80}{meant}"
        )
    if len(rest) != 2 or rest[0] not in _SIGNS or (options.prefix is None and not options.rest):
        raise InvalidArgumentError(f"a condition is: if {'|'.join(_TARGETS)} KEY =|!=|<|> WHAT")
    keys = Keys(prefix=options.prefix) if options.prefix is not None else Keys(options.rest[0])
    sign, text = rest
    if options.target == "lease":
        return Condition(keys, "lease", sign, 0 if text == "0" else _lease(text))
    return Condition(keys, options.target, sign, text if options.target == "value" else _number(text))


def _lease(text: str) -> int:
    try:
        return lease_id(text)
    except argparse.ArgumentTypeError as error:
        raise InvalidArgumentError(f"a lease {error}") from None


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidArgumentError(f"{text!r:.80} is not a whole number") from None


def _operation(words: list[str]) -> wire.Operation:
    kind = words[0] if words else ""
    if kind not in ("put", "delete", "get"):
        raise InvalidArgumentError("an operation is put, delete or get")
    parser = _line(kind)
    if kind == "put":
        parser.add_argument("key", metavar="KEY", type=key)
        parser.add_argument("value", metavar="VALUE", nargs="?")
        parser.add_argument("--ignore-value", action="store_true")
        parser.add_argument("--prev-value", action="store_true")
        parser.add_argument("--ignore-lease", action="store_true")
        parser.add_argument("--lease", type=lease_id)
        options = parser.parse(words[1:])
        if (options.value is None) != options.ignore_value:
            raise InvalidArgumentError("put takes a value, or --ignore-value, and not both")
        return Put(options.key, options.value, options.prev_value, options.lease, options.ignore_lease).body()
    parser.add_argument("key", metavar="KEY", type=key, nargs="?")
    add_range(parser, "")
    if kind == "delete":
        parser.add_argument("--prev-values", action="store_true")
        options = parser.parse(words[1:])
        _check_keys(options)
        return Delete(*_bounds(options), prev_values=options.prev_values).body()
    parser.add_argument("--limit", type=whole_number("a whole number of keys"), default=0)
    parser.add_argument("--revision", type=whole_number("a revision, a whole number"), default=0)
    for switch in ("--keys-only", "--count-only", "--descending"):
        parser.add_argument(switch, action="store_true")
    options = parser.parse(words[1:])
    _check_keys(options)
    return Get(
        *_bounds(options),
        options.limit,
        options.revision,
        options.keys_only,
        options.count_only,
        options.descending,
    ).body()


def _check_keys(options: argparse.Namespace) -> None:
    if (options.key is not None) == bool(range_of(options)):
        raise InvalidArgumentError("say which keys by one of these: a KEY, --prefix, or --from and --to")


def _bounds(options: argparse.Namespace) -> tuple[str | None, str | None, str | None, str | None]:
    return options.key, options.prefix, getattr(options, "from"), options.to


async def txn(client: Client, options: argparse.Namespace) -> int:
    """``kv txn [FILE]``."""
    result = await client.txn().send(options.file, None)
    if options.output == "json":
        print_json(_fields(result))
    else:
        _print(result)
    return 0 if result.succeeded else 1


def _fields(result: TxnResult) -> dict[str, Any]:
    fields = {name: getattr(result, name) for name in ("revision", "succeeded", "deleted")}
    if result.results is None:
        return {**fields, "replayed": True}
    return {**fields, "results": [_done_fields(each) for each in result.results]}


def _done_fields(done: OperationDone) -> dict[str, Any]:
    match done:
        case PutDone(create_revision, mod_revision, version, previous):
            put = {"create_revision": create_revision, "mod_revision": mod_revision, "version": version}
            return {"put": put if previous is None else {**put, "previous": _record_fields(previous)}}
        case DeleteDone(deleted, gone):
            return {"delete": {"deleted": deleted, "previous": [_record_fields(each) for each in gone]}}
        case GetDone(count, more, records):
            return {"range": {"count": count, "more": more, "records": [_record_fields(each) for each in records]}}
        case TxnDone(succeeded, results):
            return {"txn": {"succeeded": succeeded, "results": [_done_fields(each) for each in results]}}


def _record_fields(record: Record) -> dict[str, Any]:
    numbers = {name: getattr(record, name) for name in ("create_revision", "mod_revision", "version")}
    return {
        **text_fields("key", record.key),
        **text_fields("value", record.value),
        **numbers,
        **lease_field(record.lease),
    }


def _print(result: TxnResult) -> None:
    branch = "then" if result.succeeded else "else"
    print(f'"{branch}" was done; the cluster is at revision {result.revision}')
    if result.results is None:
        print(f"the answer of the first attempt was lost; {result.deleted} keys were deleted")
        return
    _print_done(result.results, "")


def _print_done(results: tuple[OperationDone, ...], indent: str) -> None:
    for done in results:
        match done:
            case PutDone(_, mod_revision, version, previous):
                print(f"{indent}put: version {version}, at revision {mod_revision}")
                _print_records(() if previous is None else (previous,), f"{indent}  before: ")
            case DeleteDone(deleted, gone):
                print(f"{indent}delete: {deleted} keys")
                _print_records(gone, f"{indent}  before: ")
            case GetDone(count, more, records):
                print(f"{indent}get: {count} keys{', not all shown' if more else ''}")
                _print_records(records, f"{indent}  ")
            case TxnDone(succeeded, inner):
                print(f'{indent}txn: "{"then" if succeeded else "else"}" was done')
                _print_done(inner, f"{indent}  ")


def _print_records(records: tuple[Record, ...], indent: str) -> None:
    for each in records:
        key, value = (printable(part.decode("utf-8", "surrogateescape")) for part in (each.key, each.value))
        print(f"{indent}{key} = {value}")


async def delete_range(client: Client, options: argparse.Namespace) -> int:
    """``kv del --prefix P``, ``kv del --from A --to B``: in pages, if there are many keys."""
    keys = Keys(None, *_bounds(options)[1:])
    if options.dry_run:
        done = (await client.txn().then(_get(keys, count_only=True)).commit()).results
        count = done[0].count if done and isinstance(done[0], GetDone) else 0
        return _show(count, "would be deleted", options)
    deleted, page, start = 0, PAGE_KEYS, None
    try:
        deleted = (await client.delete_range(prefix=keys.prefix, start=keys.start, end=keys.end)).deleted
        return _show(deleted, "deleted", options)
    except RefusedError as error:
        if error.code != "too_large":
            raise
    while True:
        try:
            found = await _page(client, keys, page)
            if found is None:
                return _show(deleted, "deleted", options)
            start, last = found
            deleted += (await client.delete_range(start=start, end=last + b"\0")).deleted
            say(f"{deleted} keys deleted so far")
        except RefusedError as error:
            # Long keys, whose list is too large for one answer; or others add keys meanwhile.
            if error.code != "too_large" or page == 1:
                raise
            page //= 2


async def _page(client: Client, keys: Keys, limit: int) -> tuple[bytes, bytes] | None:
    """Return the first and the last of the next keys; None: there are no more."""
    result = await client.txn().then(_get(keys, limit=limit, keys_only=True)).commit()
    done = result.results[0] if result.results else None
    if not isinstance(done, GetDone) or not done.records:
        return None
    return done.records[0].key, done.records[-1].key


def _get(keys: Keys, **options: Any) -> Get:
    return Get(keys.key, keys.prefix, keys.start, keys.end, **options)


def _show(count: int, what: str, options: argparse.Namespace) -> int:
    if options.output == "json":
        print_json({"keys" if options.dry_run else "deleted": count})
    else:
        print(f"{count} keys {what}")
    return 0


async def delete(client: Client, options: argparse.Namespace) -> int:
    """``kv del KEY``, or of a range."""
    bounds = range_of(options)
    if (options.key is None) != bool(bounds):
        raise InvalidArgumentError("name one KEY, or a range by --prefix, or by --from and --to; and not both")
    if not bounds:
        if options.dry_run:
            raise InvalidArgumentError("--dry-run counts the keys of a range: --prefix, or --from and --to")
        return await delete_key(client, options)
    if options.prev_revision is not None:
        raise InvalidArgumentError("--prev-revision is of one key, and not of a range")
    return await delete_range(client, options)
