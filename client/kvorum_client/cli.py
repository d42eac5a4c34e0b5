"""The ``kv`` command: arguments in, exit status out. The commands are in :mod:`kvorum_client.cli_commands`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import io
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn
from urllib.parse import urlsplit

from kvorum_client import cli_backup
from kvorum_client import cli_commands as commands
from kvorum_client.cli_output import printable
from kvorum_client.client import Client
from kvorum_client.errors import ClientError, InvalidArgumentError, OutcomeUnknownError, RefusedError, UnavailableError
from kvorum_client.top import top

EXIT_DONE = 0
EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_UNKNOWN = 4
EXIT_OUTPUT = 5
EXIT_INTERRUPTED = 130

LOCAL_ENDPOINTS = "127.0.0.1:8001,127.0.0.1:8002,127.0.0.1:8003"
"""Where `kvorum local` and `make run` listen."""

EPILOG = """\
where the cluster is:
  --endpoints, or KVORUM_ENDPOINTS, or inside a pod the pod's own node, or else
  127.0.0.1:8001, :8002 and :8003, where `kvorum local` listens. A few nodes are
  enough: kv follows the leader and fails over by itself.

exit status:
  0  done
  1  no such key, a compare that failed, or a refusal
  2  wrong usage
  3  no node reachable, or no leader; nothing was done
  4  the write may or may not have been applied: read before you write again
  5  done, but the output could not be written (a full disk, say)
  130  interrupted

examples:
  kv put greeting hello
  kv get greeting
  date | kv put now -
  kv put logo @logo.png
  kv put lock me --prev-revision 0      # only if it does not exist
  kv -addr 127.0.0.1:8001 -op put -key foo -val bar
"""

Command = Callable[[Client, argparse.Namespace], Awaitable[int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    if sys.stdout is None:
        return _fail("stdout is closed", EXIT_OUTPUT)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is no reason to end with a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _two_dashes(build_parser().parse_args(from_seed(arguments)))
    try:
        status = _carry_out(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has had enough.
        _give_up_stdout()
        return EXIT_DONE
    except OSError as error:
        _give_up_stdout()
        return _fail(f"cannot write the output: {error.strerror or error}", EXIT_OUTPUT)


def _carry_out(options: argparse.Namespace) -> int:
    """Do what the options say and return the exit status.

    Raises:
        OSError: it is done, but the answer cannot be written.
    """
    is_under_way = False
    try:
        if options.run is commands.put:
            commands.read_value(options)
        is_under_way = options.run in commands.WRITES
        return asyncio.run(_run(options))
    except InvalidArgumentError as error:
        return _fail(str(error), EXIT_USAGE)
    except OutcomeUnknownError as error:
        return _fail(str(error), EXIT_UNKNOWN)
    except UnavailableError as error:
        return _fail(str(error), EXIT_UNAVAILABLE)
    except (RefusedError, ClientError) as error:
        return _fail(str(error), EXIT_NO)
    except KeyboardInterrupt:
        doubt = "; it may or may not have been applied" if is_under_way else ""
        return _fail(f"interrupted{doubt}", EXIT_INTERRUPTED)


def _give_up_stdout() -> None:
    """Let what is left in the buffer go nowhere, so that the interpreter does not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _two_dashes(options: argparse.Namespace) -> argparse.Namespace:
    # argparse (until Python 3.13) takes a second "--" for a mark, too, and leaves an empty list in its place.
    for name, value in vars(options).items():
        if value == []:
            setattr(options, name, "--")
    return options


async def _run(options: argparse.Namespace) -> int:
    endpoints = getattr(options, "endpoints", None) or default_endpoints(os.environ)
    async with Client(endpoints.split(","), timeout_s=getattr(options, "timeout", 10.0)) as client:
        run: Command = options.run
        return await run(client, options)


def _fail(message: str, status: int) -> int:
    print("kv: " + printable(message.replace("\n", " ")), file=sys.stderr)
    return status


def default_endpoints(environ: Mapping[str, str]) -> str:
    """Return where the cluster is when the command line does not say."""
    if endpoints := environ.get("KVORUM_ENDPOINTS"):
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


def from_seed(arguments: list[str]) -> list[str]:
    """Translate ``-op put -key foo -val bar`` to ``put foo bar``; leave everything else alone."""
    seed, rest = _split_seed_flags(arguments)
    if "op" not in seed:
        return arguments
    operation = {"put": "put", "get": "get", "del": "del", "delete": "del"}.get(seed["op"] or "")
    if operation is None:
        _usage(f"-op is put, get or del, not {seed['op']!r}")
    if seed.get("key") is None:
        _usage(f"-op {operation} needs -key KEY")
    if (operation == "put") != (seed.get("val") is not None):
        _usage("-op put needs -val VALUE" if operation == "put" else f"-op {operation} takes no -val")
    # A value is a value here: neither a file's name nor an option.
    tail = ["--literal", "--", seed["key"], seed["val"]] if operation == "put" else ["--", seed["key"]]
    return [*rest, str(operation), *map(str, tail)]


def _split_seed_flags(arguments: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """Take out the seed's flags as Go does: one dash or two, ``=`` or the next argument, whatever it is."""
    seed: dict[str, str | None] = {}
    rest = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
            break
        flag, equals, value = argument.partition("=")
        if flag.lstrip("-") in {"op", "key", "val"} and flag.startswith("-") and not flag.startswith("---"):
            seed[flag.lstrip("-")] = value if equals else next(remaining, None)
        else:
            rest.append(argument)
    return seed, rest


def _usage(message: str) -> NoReturn:
    print(f"kv: {message}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    shared = _shared_options()
    parser = argparse.ArgumentParser(
        prog="kv",
        description="Read and write a Kvorum cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kv {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Command, summary: str, **options: object) -> argparse.ArgumentParser:
        return _add(subparsers, name, run, summary, shared)

    _add_keys(add)
    _add_cluster(add)
    _add_group(subparsers, "member", "list, add, promote or remove members", shared, _member_commands)
    _add_group(subparsers, "snapshot", "save or inspect a backup", shared, _snapshot_commands)
    _add_group(subparsers, "cluster", "finalize an upgrade", shared, _cluster_commands)
    _add_group(subparsers, "leader", "show or transfer the leadership", shared, _leader_commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("kvorum")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _shared_options() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument(
        "--endpoints",
        *("--addr", "-addr"),
        metavar="HOST:PORT,...",
        default=argparse.SUPPRESS,
        help="client addresses of some nodes, or the name of a headless Service",
    )
    shared.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=argparse.SUPPRESS,
        help="deadline for the whole command [default 10]",
    )
    return shared


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _revision(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a revision")
    return int(text)


def _add(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Command,
    summary: str,
    shared: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="Exit status and defaults: kv --help.",
        parents=[shared],
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_group(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    shared: argparse.ArgumentParser,
    fill: Callable[[Callable[..., argparse.ArgumentParser]], None],
) -> None:
    group = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    inner = group.add_subparsers(metavar="COMMAND", required=True)
    fill(lambda name, run, summary: _add(inner, name, run, summary, shared))


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
    put.add_argument("-o", dest="output", choices=("table", "json"), default="table", help="[default table]")

    get = add("get", commands.get, "read a key")
    get.add_argument("key", metavar="KEY", help="1 to 1024 bytes; text is UTF-8")
    get.add_argument(
        "-o",
        dest="output",
        choices=("raw", "table", "json"),
        default="raw",
        help="raw: the value's bytes; on a terminal with a newline, and escaped where not printable [default raw]",
    )
    get.add_argument("--stale", action="store_true", help="read the local state of one node; do not ask a quorum")
    get.add_argument(
        "--max-staleness-ms",
        metavar="MS",
        type=_revision,
        help="read only from a node that has applied everything committed this long ago (implies --stale)",
    )

    delete = add("del", commands.delete, "remove a key")
    delete.add_argument("key", metavar="KEY", help="1 to 1024 bytes; text is UTF-8")
    delete.add_argument("--prev-revision", metavar="N", type=_revision, help="only if the key's mod_revision is N")
    delete.add_argument("-o", dest="output", choices=("table", "json"), default="table", help="[default table]")


def _add_cluster(add: Callable[..., argparse.ArgumentParser]) -> None:
    status = add("status", commands.status, "show every node: role, term, progress, revision, feature level, version")
    status.add_argument("-o", dest="output", choices=("table", "json"), default="table", help="[default table]")
    live = add("top", top, "watch every node live: roles, lag, rates, latencies and events")
    live.add_argument(
        "--interval", metavar="SECONDS", type=_seconds, default=1.0, help="time between frames [default 1]"
    )
    live.add_argument("--count", metavar="N", type=_revision, default=0, help="stop after N frames [default: never]")
    live.add_argument("--once", action="store_true", help="print one frame after one interval and exit; for scripts")
    health = add("health", commands.health, "ask every node whether it is ready, and why not")
    health.add_argument("-o", dest="output", choices=("table", "json"), default="table", help="[default table]")


def _member_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    listing = add("list", commands.member_list, "list the members, as the leader sees them")
    listing.add_argument("-o", dest="output", choices=("table", "json"), default="table", help="[default table]")
    adding = add("add", commands.member_add, "add a learner; promote it when it has caught up")
    adding.add_argument("name", metavar="NAME")
    adding.add_argument("peer_url", metavar="PEER-URL", help="where its peers reach it: http://HOST:PORT")
    adding.add_argument("client_url", metavar="CLIENT-URL", help="where clients reach it: http://HOST:PORT")
    add("promote", commands.member_promote, "make a learner a voter").add_argument("name", metavar="NAME")
    add("remove", commands.member_remove, "remove a member").add_argument("name", metavar="NAME")


def _snapshot_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    save = add("save", cli_backup.save, "save all acknowledged writes to a file for `kvorum restore`")
    save.add_argument("file", metavar="FILE", help="file to write; - is stdout")
    save.add_argument("--force", action="store_true", help="overwrite an existing file")
    save.add_argument("-o", dest="output", choices=("table", "json"), default="table", help="[default table]")
    status = add("status", cli_backup.status, "check a backup's hash and show what it holds; asks no node")
    status.add_argument("file", metavar="FILE", help="file to read; - is stdin")
    status.add_argument("-o", dest="output", choices=("table", "json"), default="table", help="[default table]")


def _cluster_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    add(
        "finalize",
        commands.finalize,
        "raise the feature level to that of the new version; rolling back is impossible afterwards",
    )


def _leader_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    add("show", commands.leader_show, "show who leads")
    move = add("move", commands.leader_move, "transfer the leadership")
    move.add_argument("target", metavar="NAME", nargs="?", help="the new leader [default: the most caught-up voter]")


if __name__ == "__main__":
    sys.exit(main())
