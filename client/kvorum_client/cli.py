"""The ``kv`` command: arguments in, exit status out. The commands are in :mod:`kvorum_client.cli_commands`."""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib.metadata
import io
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from kvorum_client import cli_backup, cli_history, cli_lease, cli_lock, cli_range, cli_txn, cli_watch
from kvorum_client import cli_commands as commands
from kvorum_client.cli_arguments import add_output, lease_id, seconds, whole_number
from kvorum_client.cli_output import give_up, say
from kvorum_client.client import BACKUP_SILENCE_S, Client
from kvorum_client.errors import (
    ClientError,
    InvalidArgumentError,
    NoSpaceError,
    OutcomeUnknownError,
    RefusedError,
    UnavailableError,
)
from kvorum_client.ranges import SORTS
from kvorum_client.top import ASK_TIMEOUT_S, top
from kvorum_client.transport import parse_endpoint
from kvorum_entry.parser import SubcommandParser

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

EXIT_DONE = 0
EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_UNKNOWN = 4
EXIT_OUTPUT = 5
EXIT_NO_SPACE = 6
EXIT_INTERRUPTED = 130

NO_LEADER = "there is no leader: nothing was done; a majority must be up (kv status)"
OR_STALE = "; add --stale to save what one node has applied, which may lack acknowledged writes"
NOTICE_S = 1.0
"""How long a command is silent before it says what it waits for."""
LOCAL_ENDPOINTS = "127.0.0.1:8001,127.0.0.1:8002,127.0.0.1:8003"
"""Where `kvorum local` and `make run` listen."""

EPILOG = """\
where the cluster is:
  --endpoints, or KVORUM_ENDPOINTS, or inside a pod the pod's own node, or else
  127.0.0.1:8001, :8002 and :8003, where `kvorum local` listens. A few nodes are
  enough: kv follows the leader and fails over by itself.

A command that takes longer than a second says on stderr what it waits for.

exit status:
  0  done
  1  no such key or lease, a lock that is held or lost, an election without
     a leader, a compare that failed, a revision that is compacted or not yet
     there, or another refusal, also by nodes of another cluster; or `kv status`
     found nodes of another cluster than --cluster-id, or of more than one, or a
     node that takes no part since a disk was set back
  2  wrong usage
  3  no node reachable, or no leader; nothing was done
  4  the write, the compaction, the change of a lease, of the members or of the
     quota, or the transfer of the leadership may or may not be done, now or
     later: look before you try again
  5  done, but the answer could not be written (a full disk, say)
  6  refused: the cluster has no room for more data; deletes and reads go on
  130  interrupted

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
_WRITES = commands.WRITES | {cli_history.compact, cli_lease.grant, cli_lease.revoke, cli_txn.delete, cli_txn.txn}

_DEFAULT_TIMEOUTS_S: Mapping[object, float] = {
    commands.status: commands.PROBE_TIMEOUT_S * commands.STATUS_ROUNDS,
    commands.health: commands.PROBE_TIMEOUT_S * commands.HEALTH_ROUNDS,
}
_PROBES = "deadline for the whole command, at most {0:g} [default {0:g}]"
_HOLDS = "how long each request to the cluster may take; --wait says how long to wait for the others [default 10]"
_LASTING = (cli_backup.save, cli_watch.watch, cli_lock.lock, cli_lock.elect, cli_lease.keep)
"""They show what they do once a node has answered."""
_TIMEOUT_HELPS: Mapping[object, str] = {
    commands.status: _PROBES.format(_DEFAULT_TIMEOUTS_S[commands.status]),
    commands.health: _PROBES.format(_DEFAULT_TIMEOUTS_S[commands.health]),
    cli_backup.save: "how long to look for a node that gives a backup, and to wait for a quorum to confirm it; the "
    f"node may then be silent for {BACKUP_SILENCE_S:g} s, or this long if it is more [default 10]",
    cli_backup.status: "ignored: it asks no node",
    cli_lock.lock: _HOLDS,
    cli_lock.elect: _HOLDS,
    cli_lease.keep: "how long the first renewal may take; then it lasts until it is interrupted [default 10]",
    cli_watch.watch: "how long to look for a node to begin at; then it lasts until it is interrupted [default 10]",
    top: f"ignored: a node has {ASK_TIMEOUT_S:g} s for each answer",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    if sys.stdout is None:
        # Writing to it fails, as to a descriptor that is closed; and no socket takes its place.
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115 - for the rest of the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is no reason to end with a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    run: object = None
    try:
        try:
            options = _two_dashes(build_parser().parse_args(from_go(arguments)))
        except SystemExit:
            # The help, or the version, is an answer as well.
            sys.stdout.flush()
            raise
        run = options.run
        status = _carry_out(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has had enough.
        give_up(sys.stdout)
        return EXIT_DONE
    except OSError as error:
        give_up(sys.stdout)
        done = "done, but " if run in _WRITES else ""
        reason = "stdout is closed" if error.errno == errno.EBADF else error.strerror or error
        return _fail(f"{done}cannot write the output: {reason}", EXIT_OUTPUT)


def _carry_out(options: argparse.Namespace) -> int:
    """Do what the options say and return the exit status.

    Raises:
        OSError: it is done, but the answer cannot be written.
    """
    sent = _Sent()
    try:
        if options.run is commands.put:
            commands.read_value(options)
        elif options.run is cli_txn.txn:
            cli_txn.read_transaction(options)
        return asyncio.run(_run(options, sent))
    except InvalidArgumentError as error:
        return _fail(str(error), EXIT_USAGE)
    except OutcomeUnknownError as error:
        return _fail(str(error), EXIT_UNKNOWN)
    except UnavailableError as error:
        return _fail(str(error), EXIT_UNAVAILABLE)
    except NoSpaceError as error:
        return _fail(str(error), EXIT_NO_SPACE)
    except (RefusedError, ClientError) as error:
        return _fail(str(error), EXIT_NO)
    except KeyboardInterrupt:
        doubt = ""
        if options.run in _WRITES:
            doubt = "; it may or may not have been applied" if sent.writes else "; nothing was done"
        return _fail(f"interrupted{doubt}", EXIT_INTERRUPTED)


def _two_dashes(options: argparse.Namespace) -> argparse.Namespace:
    # argparse (until Python 3.13) takes a second "--" for a mark, too, and leaves an empty list in its place.
    for name, value in vars(options).items():
        if value == [] and name != "command":
            setattr(options, name, "--")
    return options


class _Sent:
    """What a command that is interrupted has sent."""

    writes = 0


async def _run(options: argparse.Namespace, sent: _Sent) -> int:
    endpoints, are_default = _endpoints(options, os.environ)
    async with Client(
        endpoints.split(","),
        timeout_s=getattr(options, "timeout", 10.0),
        cluster_id=getattr(options, "cluster_id", ""),
    ) as client:
        run: Command = options.run
        notice = _Notice(client, options, are_default)
        timer = asyncio.get_running_loop().call_later(NOTICE_S, notice.give)
        try:
            status = await run(client, options)
        except UnavailableError as error:
            reason = NO_LEADER if client.lacks_leader else f"{error}"
            stale = OR_STALE if run is cli_backup.save and client.has_heard and not options.stale else ""
            raise UnavailableError(f"{reason}{stale}{notice.hint()}") from None
        finally:
            timer.cancel()
            sent.writes = client.writes_perhaps_sent
        if status == EXIT_UNAVAILABLE and (hint := notice.hint()):
            say(f"no node answers{hint}")
        return status


class _Notice:
    """Says what a command waits for, and how to start a cluster where nothing answers.

    Args:
        client: its client.
        options: the command.
        are_default: whether the endpoints are those of `kvorum local`, because nobody named any.
    """

    def __init__(self, client: Client, options: argparse.Namespace, are_default: bool) -> None:
        self._client = client
        self._options = options
        self._are_default = are_default

    def give(self) -> None:
        """Say what the command is waiting for."""
        run, reason = self._options.run, self._client.last_failure
        is_arriving = run in _LASTING and self._client.has_heard and reason is None
        if run in (top, cli_backup.status) or is_arriving:
            # It shows what it does, or asks nobody; and a backup that arrives has its own progress.
            return
        timeout_s = getattr(self._options, "timeout", _DEFAULT_TIMEOUTS_S.get(run, 10.0))
        if run in (commands.status, commands.health):
            timeout_s = min(timeout_s, _DEFAULT_TIMEOUTS_S[run])
        reason = reason or f"no answer yet from {', '.join(self._client.endpoints)}"
        what = ""
        if run is cli_backup.save:
            what = f" for a node{'' if self._options.stale else ' and a quorum'}, then for the backup"
        say(f"still waiting, for up to {timeout_s:g} s{what}: {reason}{self.hint()}")

    def hint(self) -> str:
        """Return what to do if there seems to be no cluster, to append to a message."""
        if not self._are_default or self._client.has_heard:
            return ""
        return "; start a cluster with `kvorum local`, or name its nodes with --endpoints"


def _fail(message: str, status: int) -> int:
    say(message)
    return status


def _endpoints(options: argparse.Namespace, environ: Mapping[str, str]) -> tuple[str, bool]:
    """Return where the cluster is, and whether that is only where `kvorum local` would listen.

    Raises:
        InvalidArgumentError: the option or the variable is there and names no node. A script whose variable is empty
            must not write to another cluster than it means.
    """
    given: str | None = getattr(options, "endpoints", None)
    if given is not None and not given.strip(", "):
        raise InvalidArgumentError("--endpoints names no node")
    endpoints = given if given is not None else default_endpoints(environ)
    return endpoints, given is None and endpoints == LOCAL_ENDPOINTS


def default_endpoints(environ: Mapping[str, str]) -> str:
    """Return where the cluster is when the command line does not say.

    Raises:
        InvalidArgumentError: KVORUM_ENDPOINTS is set and names no node.
    """
    if (endpoints := environ.get("KVORUM_ENDPOINTS")) is not None:
        if not endpoints.strip(", "):
            raise InvalidArgumentError("KVORUM_ENDPOINTS is set and names no node")
        return endpoints
    port = environ.get("KVORUM_CLIENT_PORT") or _port_of(environ.get("KVORUM_LISTEN_CLIENT", ""))
    if port or "KUBERNETES_SERVICE_HOST" in environ:
        return f"127.0.0.1:{port or 8001}"
    return LOCAL_ENDPOINTS


def _port_of(address: str) -> str:
    try:
        return str(urlsplit(f"//{address}").port or "")
    except ValueError:
        return ""


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


class _Parser(SubcommandParser):
    """A parser that fails when the help or the version cannot be written, which argparse ignores."""

    takes_command = False
    """What follows ``--`` is a command, with options of its own."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; see there."""
        command: list[str] = []
        if self.takes_command and args is not None and "--" in args:
            place = list(args).index("--")
            args, command = args[:place], list(args[place + 1 :])
        known, unknown = super().parse_known_args(args, namespace)
        if self.takes_command:
            known.command = command
        return known, unknown

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

    _add_keys(add)
    _add_watch(add)
    cli_lock.add_commands(add)
    _add_cluster(add)
    _add_group(subparsers, "lease", "grant, renew, revoke or list leases", cli_lease.fill)
    _add_group(subparsers, "member", "list, add, promote or remove members", _member_commands)
    _add_group(subparsers, "snapshot", "save or inspect a backup", _snapshot_commands)
    _add_group(subparsers, "cluster", "finalize an upgrade", _cluster_commands)
    _add_group(subparsers, "quota", "show or set the quota on data", _quota_commands)
    _add_group(subparsers, "leader", "show or transfer the leadership", _leader_commands)
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
        default=argparse.SUPPRESS,
        help="the cluster that is meant; nodes of another one refuse (kv status -o json shows the id) [default: the "
        "cluster of the first node that answers; `top` ignores it]",
    )
    shared.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=argparse.SUPPRESS,
        help=_TIMEOUT_HELPS.get(run, "deadline for the whole command [default 10]"),
    )
    return shared


def _revision(text: str) -> int:
    return whole_number(text, "a revision, a whole number")


def _milliseconds(text: str) -> int:
    return whole_number(text, "a whole number of milliseconds")


def _versions(text: str) -> int:
    return whole_number(text, "a whole number of versions")


def _changes(text: str) -> int:
    return whole_number(text, "a whole number of revisions")


def _frames(text: str) -> int:
    return whole_number(text, "a whole number of frames")


def _base_url(text: str) -> str:
    """Return ``http://HOST:PORT``, of which HOST:PORT alone is given often."""
    url = text if "://" in text else f"http://{text}"
    try:
        if urlsplit(parse_endpoint(url)).netloc == urlsplit(url).netloc:
            return url
    except InvalidArgumentError:
        pass
    raise argparse.ArgumentTypeError(f"must be HOST:PORT or http://HOST:PORT, not {text!r}")


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


def _add_keys(add: Callable[..., argparse.ArgumentParser]) -> None:
    put = add("put", commands.put, "set a key")
    put.add_argument("key", metavar="KEY", help="1 to 1024 bytes; text is UTF-8")
    put.add_argument(
        "value",
        metavar="VALUE",
        help="up to 1 MiB; - reads stdin, @FILE a file; after -- it may begin with -",
    )
    put.add_argument("--literal", action="store_true", help="take VALUE literally, even - and @FILE")
    put.add_argument(
        "--prev-revision",
        *("--prev_revision",),
        metavar="N",
        type=_revision,
        help="write only if the key's mod_revision is N; 0: only if the key does not exist",
    )
    put.add_argument(
        "--lease", metavar="ID", type=lease_id, help="delete the key with this lease; without it, it has none"
    )
    add_output(put)

    get = add("get", cli_range.get, "read a key, or a range of keys")
    get.add_argument("key", metavar="KEY", nargs="?", help="1 to 1024 bytes; text is UTF-8")
    get.add_argument("--prefix", metavar="P", help="all keys that begin with P, a line each; '' is all keys")
    get.add_argument("--from", metavar="KEY", help="all keys from this one on")
    get.add_argument("--to", metavar="KEY", help="all keys before this one")
    get.add_argument("--limit", metavar="N", type=_versions, help="of a range: show at most N keys")
    get.add_argument("--keys-only", action="store_true", help="of a range: leave out the values")
    get.add_argument("--count-only", action="store_true", help="of a range: print only how many keys it has")
    get.add_argument("--sort", choices=SORTS, default="key", help="of a range of up to 10,000 keys [default key]")
    get.add_argument("--reverse", action="store_true", help="of a range: in descending order")
    add_output(
        get,
        choices=("raw", "table", "json"),
        default="raw",
        help="raw: the value's bytes; on a terminal with a newline, and escaped where not printable [default raw]",
    )
    get.add_argument("--stale", action="store_true", help="read the local state of one node; do not ask a quorum")
    get.add_argument(
        "--max-staleness-ms",
        metavar="MS",
        type=_milliseconds,
        help="read only from a node that has applied everything committed this long ago (implies --stale)",
    )

    _add_revision(get, "read the key as it was at this revision of the cluster")
    history = add("history", cli_history.history, "show the versions of a key that can still be read, newest first")
    history.add_argument("key", metavar="KEY", help="1 to 1024 bytes; text is UTF-8")
    history.add_argument("--limit", metavar="N", type=_versions, help="show at most N versions [default 100]")
    _add_revision(history, "leave out versions that are newer than this revision of the cluster")
    history.add_argument("--stale", action="store_true", help="read the local state of one node; do not ask a quorum")
    add_output(history)

    ls = add("ls", cli_range.ls, "list one level of keys, like a folder")
    ls.description = "Prints the keys of a level, and what other keys begin with, up to and with the next delimiter."
    ls.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="what the keys begin with [default: all]")
    ls.add_argument("--delimiter", metavar="TEXT", default="/", help="what ends a level [default /]")
    _add_revision(ls, "list the keys as they were at this revision of the cluster")
    ls.add_argument("--stale", action="store_true", help="read the local state of one node; do not ask a quorum")
    add_output(ls, choices=("text", "json"), default="text", help="json: an object a line [default text]")

    delete = add("del", cli_txn.delete, "remove a key, or a range of keys", "delete")
    delete.add_argument("key", metavar="KEY", nargs="?", help="1 to 1024 bytes; text is UTF-8")
    delete.add_argument("--prev-revision", metavar="N", type=_revision, help="only if the key's mod_revision is N")
    delete.add_argument("--prefix", metavar="P", help="all keys that begin with P; more than 10,000 in several steps")
    delete.add_argument("--from", metavar="KEY", help="all keys from this one on")
    delete.add_argument("--to", metavar="KEY", help="all keys before this one")
    delete.add_argument("--dry-run", action="store_true", help="only count the keys of the range")
    add_output(delete)

    txn = add("txn", cli_txn.txn, "do several operations at one revision, if conditions hold")
    txn.description, txn.formatter_class = cli_txn.TXN_HELP, argparse.RawDescriptionHelpFormatter
    txn.add_argument("file", metavar="FILE", nargs="?", default="-", help="where it is written; - is stdin [default -]")
    add_output(txn)


def _add_watch(add: Callable[..., argparse.ArgumentParser]) -> None:
    watch = add("watch", cli_watch.watch, "show every change of a key, or of a range of keys, a line each")
    watch.add_argument("key", metavar="KEY", nargs="?", help="1 to 1024 bytes; text is UTF-8")
    watch.add_argument("--prefix", metavar="PREFIX", help="all keys that begin with this; '' is all keys")
    watch.add_argument("--from", metavar="KEY", help="all keys from this one on")
    watch.add_argument("--to", metavar="KEY", help="all keys before this one")
    watch.add_argument(
        "--from-revision",
        *("--rev",),
        metavar="N",
        type=_revision,
        help="begin with this revision of the cluster, if it is still in the history [default: the next one]",
    )
    watch.add_argument("--prev-value", action="store_true", help="show what each change replaced, too")
    watch.add_argument("--only", choices=("put", "delete"), help="leave out the others")
    add_output(watch, choices=("text", "json"), default="text", help="json: an object a line [default text]")


def _add_revision(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("--revision", *("--rev",), metavar="N", type=_revision, help=help)


def _add_cluster(add: Callable[..., argparse.ArgumentParser]) -> None:
    status = add("status", commands.status, "show every node: role, term, progress, revision, feature level, version")
    add_output(status)
    live = add("top", top, "watch every node live: roles, lag, rates, latencies and events")
    live.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=1.0, help="time between frames [default 1]"
    )
    live.add_argument("--count", metavar="N", type=_frames, default=0, help="stop after N frames [default: never]")
    live.add_argument("--once", action="store_true", help="print one frame after one interval and exit; for scripts")
    compact = add("compact", cli_history.compact, "give up the history below a revision; it cannot be brought back")
    which = compact.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "revision", metavar="REVISION", nargs="?", type=_revision, help="the lowest one that can be read afterwards"
    )
    which.add_argument("--keep", metavar="N", type=_changes, help="keep the last N revisions")
    add_output(compact)
    health = add("health", commands.health, "ask every node whether it is ready, and why not")
    add_output(health)


def _member_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    listing = add("list", commands.member_list, "list the members, as the leader sees them")
    add_output(listing)
    adding = add("add", commands.member_add, "add a learner; the leader promotes it when it has caught up")
    adding.add_argument("name", metavar="NAME")
    adding.add_argument(
        "peer_url", metavar="PEER-URL", type=_base_url, help="where its peers reach it: HOST:PORT or http://HOST:PORT"
    )
    adding.add_argument(
        "client_url",
        metavar="CLIENT-URL",
        type=_base_url,
        nargs="?",
        help="where clients reach it; refused if its advertise_client_url differs [default: what it announces]",
    )
    promoting = add(
        "promote", commands.member_promote, "make a learner a voter now; the leader does it when it has caught up"
    )
    promoting.add_argument("name", metavar="NAME")
    removing = add("remove", commands.member_remove, "remove a member; stop it first to keep it out")
    removing.add_argument("name", metavar="NAME")
    for command in (adding, promoting, removing):
        add_output(command)


def _snapshot_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    save = add("save", cli_backup.save, "save all acknowledged writes to a file for `kvorum restore`")
    save.add_argument("file", metavar="FILE", help="file to write; - is stdout")
    save.add_argument("--force", action="store_true", help="overwrite an existing file")
    save.add_argument(
        "--stale",
        action="store_true",
        help="save what one node has applied, also without a quorum; acknowledged writes may be missing",
    )
    add_output(save)
    status = add("status", cli_backup.status, "check a backup's hash and show what it holds; asks no node")
    status.add_argument("file", metavar="FILE", help="file to read; - is stdin")
    add_output(status)


def _cluster_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    add_output(
        add(
            "finalize",
            commands.finalize,
            "raise the feature level to that of the new version; rolling back is impossible afterwards",
        )
    )


def _quota_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    show = add("get", commands.quota_get, "show the quota on data, and what is used of it")
    change = add("set", commands.quota_set, "set the quota on data; above it puts are refused")
    change.add_argument("quota_bytes", metavar="SIZE", type=_size, help="bytes, or for example 512MiB or 2GiB")
    for command in (show, change):
        add_output(command)


def _size(text: str) -> int:
    try:
        return commands.size_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _leader_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    show = add("show", commands.leader_show, "show who leads")
    move = add("move", commands.leader_move, "transfer the leadership")
    move.add_argument("target", metavar="NAME", nargs="?", help="the new leader [default: the most caught-up voter]")
    for command in (show, move):
        add_output(command)


if __name__ == "__main__":
    sys.exit(main())
