"""The command line of ``kv``: its commands and their options."""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from kvorum_client import (
    cli_backup,
    cli_cluster,
    cli_history,
    cli_keys,
    cli_lease,
    cli_lock,
    cli_range,
    cli_status,
    cli_txn,
    cli_watch,
)
from kvorum_client.cli_arguments import cluster_id, seconds, whole_number
from kvorum_client.cli_exit import EXIT_USAGE, table
from kvorum_client.cli_output import say
from kvorum_client.cli_waiting import TIMEOUT_HELPS
from kvorum_client.client import Client
from kvorum_client.top import top
from kvorum_entry.parser import SubcommandParser

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

EPILOG = f"""\
where the cluster is:
  --endpoints, or KVORUM_ENDPOINTS, or inside a pod the pod's own node, or else
  127.0.0.1:8001, :8002 and :8003, where `kvorum local` listens. A few nodes are
  enough: kv follows the leader and fails over by itself.

A command that takes longer than a second says on stderr what it waits for.

exit status (docs/kv.md says what each command exits with):
{table()}

examples:
  kv put greeting hello
  kv get greeting
  date | kv put now -
  kv put logo @logo.png
  kv put lock me --prev-revision 0      # only if it does not exist
  kv watch --prefix job/                # every change, until it is interrupted
  kv lock backup -- ./backup.sh         # one at a time; kv lock --help
  kv get greeting --revision 7          # as it was at revision 7 of the cluster
  kv -addr 127.0.0.1:8001 -op put -key foo -val bar
"""

Command = Callable[[Client, argparse.Namespace], Awaitable[int]]


class _Parser(SubcommandParser):
    """A parser that fails when the help or the version cannot be written, which argparse ignores."""

    takes_command = False
    """What follows ``--`` is a command, with options of its own."""
    _has_command = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; see there."""
        command: list[str] = []
        self._has_command = False
        if self.takes_command and args is not None and "--" in args:
            place = list(args).index("--")
            args, command = args[:place], list(args[place + 1 :])
            self._has_command = True
            if not command:
                self.error("there is no COMMAND after --: leave out the -- to hold it until interrupted")
        known, unknown = super().parse_known_args(args, namespace)
        if self.takes_command:
            known.command = command
        return known, unknown

    def hint(self) -> str:
        """See there."""
        hint = super().hint()
        if (
            not self.takes_command
            or self._has_command
            or "--listen" in self._given
            or "did you mean" in hint
            or not self._unknown
        ):
            return hint
        place = list(self._given).index(self._unknown[0])
        before, after = shlex.join(self._given[:place]), shlex.join(self._given[place:])
        return f"; put -- before the COMMAND: {self.prog} {before} -- {after}"

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser: argparse.ArgumentParser = _Parser(
        prog="kv",
        description="Read and write a Kvorum cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_shared_options()],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kv {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Command, summary: str, *aliases: str) -> argparse.ArgumentParser:
        return _add(subparsers, name, run, summary, aliases)

    for module in (cli_keys, cli_range, cli_txn, cli_history, cli_watch, cli_lock, cli_status):
        module.add_commands(add)
    _add_top(add)
    _add_group(subparsers, "lease", "grant, renew, revoke or list leases", cli_lease.fill)
    _add_group(subparsers, "member", "list, add, promote or remove members", cli_cluster.fill_member)
    _add_group(subparsers, "leader", "show or transfer the leadership", cli_cluster.fill_leader)
    _add_group(subparsers, "quota", "show or set the quota on data", cli_cluster.fill_quota)
    _add_group(subparsers, "cluster", "finalize an upgrade", cli_cluster.fill_cluster)
    _add_group(subparsers, "snapshot", "save or inspect a backup", cli_backup.fill)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("kvorum")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _shared_options(run: object = None) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument(
        "--endpoints",
        *("--addr", "-addr"),
        metavar="HOST:PORT,...",
        default=argparse.SUPPRESS,
        help="client addresses of some nodes, or the name of a headless Service",
    )
    shared.add_argument(
        "--cluster-id",
        metavar="ID",
        type=cluster_id,
        default=argparse.SUPPRESS,
        help="the cluster that is meant; nodes of another one refuse (kv status -o json shows the id) [default: the "
        "cluster of the first node that answers; `top` ignores it]",
    )
    shared.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=argparse.SUPPRESS,
        help=TIMEOUT_HELPS.get(run, "deadline for the whole command [default 10]"),
    )
    return shared


def _add(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Command,
    summary: str,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        aliases=aliases,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="Exit status and defaults: kv --help.",
        parents=[_shared_options(run)],
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_group(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    fill: Callable[[Callable[..., argparse.ArgumentParser]], None],
) -> None:
    group = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    inner = group.add_subparsers(metavar="COMMAND", required=True)
    fill(lambda name, run, summary: _add(inner, name, run, summary))


def _add_top(add: Callable[..., argparse.ArgumentParser]) -> None:
    live = add("top", top, "watch every node live: roles, lag, rates, latencies and events")
    live.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=1.0, help="time between frames [default 1]"
    )
    live.add_argument(
        "--count",
        metavar="N",
        type=whole_number("a whole number of frames", 1),
        default=0,
        help="stop after N frames [default: never]",
    )
    live.add_argument("--once", action="store_true", help="print one frame after one interval and exit; for scripts")


def from_go(arguments: list[str]) -> list[str]:
    """Translate ``-op put -key foo -val bar`` to ``put foo bar``; leave everything else alone."""
    flags, rest = _split_go_flags(arguments)
    if "op" not in flags:
        return arguments
    operation = {"put": "put", "get": "get", "del": "del", "delete": "del"}.get(flags["op"] or "")
    if operation is None:
        _usage(f"-op is put, get or del, not {flags['op']!r}")
    if flags.get("key") is None:
        _usage(f"-op {operation} needs -key KEY")
    if (operation == "put") != (flags.get("val") is not None):
        _usage("-op put needs -val VALUE" if operation == "put" else f"-op {operation} takes no -val")
    # A value is a value here: neither a file's name nor an option.
    tail = ["--literal", "--", flags["key"], flags["val"]] if operation == "put" else ["--", flags["key"]]
    return [*rest, str(operation), *map(str, tail)]


def _split_go_flags(arguments: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """Take out -op, -key and -val as Go reads flags: one dash or two, ``=`` or the next argument, whatever it is."""
    flags: dict[str, str | None] = {}
    rest = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
            break
        flag, equals, value = argument.partition("=")
        if flag.lstrip("-") in {"op", "key", "val"} and flag.startswith("-") and not flag.startswith("---"):
            flags[flag.lstrip("-")] = value if equals else next(remaining, None)
        else:
            rest.append(argument)
    return flags, rest


def _usage(message: str) -> NoReturn:
    say(message)
    raise SystemExit(EXIT_USAGE)
