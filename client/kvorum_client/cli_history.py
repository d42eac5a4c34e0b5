"""``kv history`` and ``kv compact``: what keys were, and for how long that is kept."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from kvorum_client.cli_arguments import (
    HISTORY_VERSIONS_MAX,
    add_key,
    add_output,
    add_revision,
    revision_number,
    whole_number,
)
from kvorum_client.cli_output import lease_field, print_json, print_table, printable, say, text_fields
from kvorum_client.client import Client
from kvorum_client.results import Compacted, History, KeyVersion

VALUE_CHARS_MAX = 60
"""Of a value in the table; `kv get --revision` prints all of it."""


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    showing = add("history", history, "show the versions of a key that can still be read, newest first")
    add_key(showing)
    showing.add_argument(
        "--limit",
        metavar="N",
        type=whole_number("a whole number of versions", 1, HISTORY_VERSIONS_MAX),
        help="show at most N versions [default 100]",
    )
    add_revision(showing, "leave out versions that are newer than this revision of the cluster")
    showing.add_argument("--stale", action="store_true", help="read the local state of one node; do not ask a quorum")
    add_output(showing)

    compacting = add("compact", compact, "give up the history below a revision; it cannot be brought back")
    which = compacting.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "revision",
        metavar="REVISION",
        nargs="?",
        type=revision_number,
        help="the lowest one that can be read afterwards",
    )
    which.add_argument(
        "--keep", metavar="N", type=whole_number("a whole number of revisions", 1), help="keep the last N revisions"
    )
    add_output(compacting)


async def history(client: Client, options: argparse.Namespace) -> int:
    """``kv history KEY``."""
    found = await client.history(options.key, limit=options.limit, revision=options.revision, stale=options.stale)
    if options.output == "json":
        print_json(_fields(found))
    elif found.versions:
        _print(found)
    if not found.versions:
        say(f"no such key, and no version of it in the history, which begins at revision {found.floor}: {options.key}")
        return 1
    if found.truncated:
        say(f"older versions are left out; they begin at --revision {found.versions[-1].mod_revision - 1}")
    return 0


def _fields(found: History) -> dict[str, object]:
    versions = [_version_fields(version) for version in found.versions]
    fields = {**text_fields("key", found.key), "revision": found.revision, "floor": found.floor, "versions": versions}
    return {**fields, "truncated": found.truncated}


def _version_fields(version: KeyVersion) -> dict[str, object]:
    if version.deleted:
        return {"mod_revision": version.mod_revision, "deleted": True}
    fields = {name: getattr(version, name) for name in ("mod_revision", "create_revision", "version")}
    return {**fields, **text_fields("value", version.value), **lease_field(version.lease)}


def _print(found: History) -> None:
    rows = [["MOD-REVISION", "CREATE-REVISION", "VERSION", "VALUE"]]
    for version in found.versions:
        if version.deleted:
            rows.append([str(version.mod_revision), "-", "-", "(deleted)"])
        else:
            figures = (version.mod_revision, version.create_revision, version.version)
            rows.append([*map(str, figures), _short(version.value)])
    print_table(rows)


def _short(value: bytes) -> str:
    text = printable(value[: 4 * VALUE_CHARS_MAX].decode("utf-8", "backslashreplace"))
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 3] + "..."


async def compact(client: Client, options: argparse.Namespace) -> int:
    """``kv compact REVISION``, ``kv compact --keep N``."""
    revision, timeout_s = options.revision, getattr(options, "timeout", 10.0)
    if revision is None:
        ends = time.monotonic() + timeout_s
        revision = max((await client.page(limit=1, keys_only=True)).revision - options.keep + 1, 1)
        timeout_s = max(ends - time.monotonic(), 0.1)
    return _show(await client.compact(revision, timeout_s=timeout_s), options)


def _show(result: Compacted, options: argparse.Namespace) -> int:
    if options.output == "json":
        print_json(result)
    else:
        print(f"the history begins at revision {result.floor}; the cluster is at revision {result.revision}")
    return 0
