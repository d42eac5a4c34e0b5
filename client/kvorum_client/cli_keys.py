"""``kv put``, and ``kv get`` and ``kv del`` of one key."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from kvorum_client.cli_arguments import add_key, add_output, lease_id, prev_revision_number
from kvorum_client.cli_output import for_terminal, lease_field, print_json, print_table, printable, say, text_fields
from kvorum_client.client import Client
from kvorum_client.errors import InvalidArgumentError

VALUE_BYTES_MAX = 1024 * 1024


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command that puts a key."""
    adding = add("put", put, "set a key")
    add_key(adding)
    adding.add_argument(
        "value",
        metavar="VALUE",
        help="up to 1 MiB; - reads stdin, @FILE a file; after -- it may begin with -",
    )
    adding.add_argument("--literal", action="store_true", help="take VALUE literally, even - and @FILE")
    adding.add_argument(
        "--prev-revision",
        *("--prev_revision",),
        metavar="N",
        type=prev_revision_number,
        help="write only if the key's mod_revision is N; 0: only if the key does not exist",
    )
    adding.add_argument(
        "--lease", metavar="ID", type=lease_id, help="delete the key with this lease; without it, it has none"
    )
    add_output(adding)


async def put(client: Client, options: argparse.Namespace) -> int:
    """``kv put KEY VALUE|-|@FILE``."""
    result = await client.put(options.key, options.value, prev_revision=options.prev_revision, lease=options.lease)
    if options.output == "json":
        print_json(result)
    else:
        print(f"{printable(options.key)}: revision {result.revision}, version {result.version}")
    return 0


def read_value(options: argparse.Namespace) -> None:
    """Put the bytes that ``VALUE|-|@FILE`` stands for in the place of it; no more than make a value.

    Called before there is an event loop, whose handler of Ctrl-C a blocked read would not notice.
    """
    argument: str = options.value
    if options.literal or not (argument == "-" or argument.startswith("@")):
        options.value = argument.encode("utf-8", "surrogateescape")
        return
    name = "stdin" if argument == "-" else argument[1:]
    if not name:
        raise InvalidArgumentError("@ names no file: write @FILE, or add --literal to store the value '@'")
    if argument == "-" and sys.stdin is None:
        raise InvalidArgumentError("stdin is closed")
    try:
        with sys.stdin.buffer if argument == "-" else open(name, "rb") as file:
            options.value = file.read(VALUE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if argument == "-" and not options.value:
        # A shell in a pod has no stdin unless it is asked for.
        say("stdin is empty: the value has 0 bytes")
    if len(options.value) > VALUE_BYTES_MAX:
        raise InvalidArgumentError(f"{name} is longer than a value may be (limit {VALUE_BYTES_MAX:,} bytes)")


async def get(client: Client, options: argparse.Namespace) -> int:
    """``kv get KEY``."""
    revision = options.revision
    record = await client.get(
        options.key, revision=revision, stale=options.stale, max_staleness_ms=options.max_staleness_ms
    )
    if record is None:
        say(f"no such key{'' if revision is None else f' at revision {revision}'}: {options.key}")
        return 1
    if options.output == "raw":
        if sys.stdout.isatty():
            print(for_terminal(record.value))
        else:
            sys.stdout.buffer.write(record.value)
        return 0
    fields: dict[str, object] = {**text_fields("key", record.key), **text_fields("value", record.value)}
    fields |= {name: getattr(record, name) for name in ("create_revision", "mod_revision", "version", "revision")}
    if record.staleness_ms is not None:
        fields["staleness_ms"] = record.staleness_ms
    fields |= lease_field(record.lease)
    if options.output == "json":
        print_json(fields)
    else:
        print_table([list(fields), [str(value) for value in fields.values()]])
    return 0


async def delete(client: Client, options: argparse.Namespace) -> int:
    """``kv del KEY``."""
    result = await client.delete(options.key, prev_revision=options.prev_revision)
    if options.output == "json":
        print_json(result)
    elif result.deleted:
        print(f"{printable(options.key)}: deleted at revision {result.revision}")
    else:
        say(f"no such key: {options.key}")
    return 0 if result.deleted else 1
