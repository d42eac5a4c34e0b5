"""``kv watch``: every event of some keys, a line each, until it is interrupted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import msgspec

from kvorum_client.cli_arguments import add_key, add_output, add_range, range_of, revision_number
from kvorum_client.cli_output import lease_field, printable, say, text_fields
from kvorum_client.client import Client
from kvorum_client.errors import InvalidArgumentError, UnavailableError
from kvorum_client.results import WatchEvent


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    watching = add("watch", watch, "show every change of a key, or of a range of keys, a line each")
    add_key(watching, optional=True)
    add_range(watching, "all keys that begin with P; '' is all keys")
    watching.add_argument(
        "--from-revision",
        *("--rev",),
        metavar="N",
        type=revision_number,
        help="begin with this revision of the cluster, if it is still in the history [default: the next one]",
    )
    watching.add_argument("--prev-value", action="store_true", help="show what each change replaced, too")
    watching.add_argument("--only", choices=("put", "delete"), help="leave out the others")
    add_output(watching, choices=("text", "json"), default="text", help="json: an object a line [default text]")


async def watch(client: Client, options: argparse.Namespace) -> int:
    """``kv watch KEY``, ``--prefix PREFIX``, or ``--from A --to B``."""
    bounds = range_of(options)
    if (options.key is None) != bool(bounds):
        raise InvalidArgumentError(
            "watch a KEY, a --prefix, or a range by --from and --to, one of them; --prefix '' watches all keys"
        )
    watching = client.watch(
        options.key,
        **bounds,
        from_revision=options.from_revision,
        prev_value=options.prev_value,
        only=options.only,
        timeout_s=getattr(options, "timeout", None),
        on_resume=lambda revision, reason: _say_resumed(client.streams_from, revision, reason),
    )
    options.has_begun = lambda: watching.has_begun
    try:
        async with watching:
            async for event in watching:
                line = _json(event) if options.output == "json" else _text(event)
                sys.stdout.buffer.write(line + b"\n")
                sys.stdout.buffer.flush()
    except UnavailableError as error:
        if not watching.has_begun:
            raise
        where = f"to go on, watch --from-revision {watching.revision + 1}"
        raise UnavailableError(f"the watch is lost, and no node goes on with it in time; {where}: {error}") from None
    return 0


def _say_resumed(node: str, revision: int, reason: str) -> None:
    say(f"the watch goes on at {node} from revision {revision}, without a gap; why it was interrupted: {reason}")


def _json(event: WatchEvent) -> bytes:
    fields: dict[str, object] = {
        "type": event.type,
        "mod_revision": event.mod_revision,
        **text_fields("key", event.key),
    }
    if event.is_put:
        fields |= {"create_revision": event.create_revision, "version": event.version}
        fields |= {**text_fields("value", event.value), **lease_field(event.lease)}
    if event.prev_value is not None:
        fields |= text_fields("prev_value", event.prev_value)
    return msgspec.json.encode(fields)


def _text(event: WatchEvent) -> bytes:
    line = f"{event.mod_revision} {event.type} {_shown(event.key)}"
    if event.is_put:
        line += f" {_shown(event.value)}"
    if event.prev_value is not None:
        line += f" (was {_shown(event.prev_value)})"
    return line.encode("utf-8", "backslashreplace")


def _shown(data: bytes) -> str:
    return printable(data.decode("utf-8", "backslashreplace"))
