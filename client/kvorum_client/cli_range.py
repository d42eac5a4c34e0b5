"""``kv get`` of a range, and ``kv ls``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from kvorum_client.cli_arguments import (
    KEY_BYTES_MAX,
    add_key,
    add_output,
    add_range,
    add_revision,
    keys_number,
    milliseconds,
    prefix,
    range_of,
    text_of_bytes,
)
from kvorum_client.cli_keys import get as get_key
from kvorum_client.cli_output import lease_field, print_table, printable, say, text_fields
from kvorum_client.client import Client
from kvorum_client.errors import InvalidArgumentError
from kvorum_client.leases import shown_id
from kvorum_client.ranges import SORTS
from kvorum_client.results import Record

PAGE_KEYS = 1000


delimiter = text_of_bytes("a delimiter", 1, KEY_BYTES_MAX)


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    getting = add("get", get, "read a key, or a range of keys")
    add_key(getting, optional=True)
    add_range(getting, "all keys that begin with P, a line each; '' is all keys")
    getting.add_argument("--limit", metavar="N", type=keys_number, help="of a range: show at most N keys")
    getting.add_argument("--keys-only", action="store_true", help="of a range: leave out the values")
    getting.add_argument("--count-only", action="store_true", help="of a range: print only how many keys it has")
    getting.add_argument("--sort", choices=SORTS, default="key", help="of a range of up to 10,000 keys [default key]")
    getting.add_argument("--reverse", action="store_true", help="of a range: in descending order")
    add_output(
        getting,
        choices=("raw", "table", "json"),
        default="raw",
        help="raw: the value's bytes; on a terminal with a newline, and escaped where not printable [default raw]",
    )
    getting.add_argument("--stale", action="store_true", help="read the local state of one node; do not ask a quorum")
    getting.add_argument(
        "--max-staleness-ms",
        metavar="MS",
        type=milliseconds,
        help="read only from a node that has applied everything committed this long ago (implies --stale)",
    )

    add_revision(getting, "read the key as it was at this revision of the cluster")
    listing = add("ls", ls, "list one level of keys, like a folder")
    listing.description = (
        "Prints the keys of a level, and what other keys begin with, up to and with the next delimiter."
    )
    listing.add_argument(
        "prefix", metavar="PREFIX", type=prefix, nargs="?", default="", help="what the keys begin with [default: all]"
    )
    listing.add_argument(
        "--delimiter", metavar="TEXT", type=delimiter, default="/", help="what ends a level [default /]"
    )
    add_revision(listing, "list the keys as they were at this revision of the cluster")
    listing.add_argument("--stale", action="store_true", help="read the local state of one node; do not ask a quorum")
    add_output(listing, choices=("text", "json"), default="text", help="json: an object a line [default text]")


async def get(client: Client, options: argparse.Namespace) -> int:
    """``kv get KEY``, ``kv get --prefix P``, ``kv get --from A --to B``."""
    bounds = range_of(options)
    only_ranges = [
        name
        for name, given in (
            ("--limit", options.limit is not None),
            ("--keys-only", options.keys_only),
            ("--count-only", options.count_only),
            ("--sort", options.sort != "key"),
            ("--reverse", options.reverse),
        )
        if given
    ]
    if options.key is not None:
        if only_ranges and not bounds:
            raise InvalidArgumentError(f"{only_ranges[0]} is for a range: --prefix, or --from and --to, and no KEY")
        if bounds:
            raise InvalidArgumentError("give a KEY, or a range (--prefix, or --from and --to), but not both")
        return await get_key(client, options)
    if not bounds:
        raise InvalidArgumentError("give a KEY, or a range: --prefix, or --from and --to; --prefix '' is all keys")
    reading: dict[str, Any] = {**bounds, "revision": options.revision, "stale": options.stale}
    reading["max_staleness_ms"] = options.max_staleness_ms
    if options.count_only:
        others = [name for name in only_ranges if name != "--count-only"]
        if others:
            raise InvalidArgumentError(f"--count-only counts all keys of the range, whatever {others[0]} says")
        print(await client.count(**reading))
        return 0
    reading |= {"keys_only": options.keys_only, "sort": options.sort, "reverse": options.reverse}
    return await _show_records(client, reading, options)


async def _show_records(client: Client, reading: dict[str, Any], options: argparse.Namespace) -> int:
    rows, left, cursor = [["KEY", "VALUE", "MOD-REVISION", "VERSION", "LEASE"]], options.limit, None
    while True:
        page = await client.page(**reading, cursor=cursor, limit=PAGE_KEYS if left is None else min(left, PAGE_KEYS))
        for record in page.records:
            if options.output == "table":
                numbers = (str(record.mod_revision), str(record.version))
                lease = shown_id(record.lease) if record.lease else "-"
                rows.append([_shown(record.key), _shown(record.value), *numbers, lease])
            else:
                _write(_json(record, options) if options.output == "json" else _text(record, options))
        sys.stdout.flush()
        cursor = page.cursor
        left = None if left is None else left - len(page.records)
        if cursor is None or left == 0:
            break
    if options.output == "table":
        print_table(rows)
    if cursor is not None:
        say(f"{page.count} keys are in the range; the rest is left out (--limit)")
    return 0


async def ls(client: Client, options: argparse.Namespace) -> int:
    """``kv ls [PREFIX]``."""
    reading = {"prefix": options.prefix, "delimiter": options.delimiter, "keys_only": True, "stale": options.stale}
    cursor = None
    while True:
        page = await client.page(**reading, revision=options.revision, cursor=cursor)
        level: list[tuple[bytes, int | None]] = [(each.prefix, each.count) for each in page.prefixes]
        level += [(record.key, None) for record in page.records]
        for name, count in sorted(level):
            if options.output == "json":
                fields = text_fields("key", name) if count is None else {**text_fields("prefix", name), "count": count}
                _write(msgspec.json.encode(fields))
            else:
                _write(_shown(name).encode("utf-8", "backslashreplace"))
        sys.stdout.flush()
        cursor = page.cursor
        if cursor is None:
            return 0


def _write(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")


def _json(record: Record, options: argparse.Namespace) -> bytes:
    fields: dict[str, object] = {**text_fields("key", record.key)}
    if not options.keys_only:
        fields |= text_fields("value", record.value)
    fields |= {name: getattr(record, name) for name in ("create_revision", "mod_revision", "version", "revision")}
    return msgspec.json.encode({**fields, **lease_field(record.lease)})


def _text(record: Record, options: argparse.Namespace) -> bytes:
    line = _shown(record.key) if options.keys_only else f"{_shown(record.key)} {_shown(record.value)}"
    return line.encode("utf-8", "backslashreplace")


def _shown(data: bytes) -> str:
    return printable(data.decode("utf-8", "backslashreplace"))
