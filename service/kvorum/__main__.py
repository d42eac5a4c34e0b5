"""The ``kvorum`` command: the composition root. Arguments in, exit status out; the work is in the modules it names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import kvorum
from kvorum import config_sources, local, recover, serve
from kvorum.errors import ConfigError, StorageError

EXIT_STATUS = f"""\
exit status:
  0  stopped as told
  1  a bug (with a traceback; please report it)
  {serve.EXIT_CONFIG}  contradictory or malformed configuration
  {serve.EXIT_ADDRESS}  a port is in use, or an address is not this machine's
  {serve.EXIT_STORAGE}  the data folder is locked, another node's, damaged, or the disk failed
  {serve.EXIT_FATAL}  the node stopped itself, because going on could break a promise
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return serve.EXIT_CONFIG
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has had enough; do not complain while the interpreter flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvorum",
        description="A linearizable key-value store. `kv` is the command to read and write it.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kvorum {kvorum.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = _command(commands, "serve", "run one node of a cluster", _serve)
    config_sources.add_arguments(command)

    command = _command(commands, "local", "run a whole cluster on this machine, in this terminal", _local)
    local.add_arguments(command)

    command = _command(commands, "config", "print the configuration that `serve` would use", _config)
    command.add_argument("--markdown", action="store_true", help="Print docs/config.md instead: every knob there is.")
    config_sources.add_arguments(command)

    command = _command(commands, "recover", "begin a new cluster with what one survivor holds", _recover)
    command.add_argument("--data-dir", required=True, help="The survivor's data folder. Its node must not be running.")
    command.add_argument(
        "--force-new-cluster",
        action="store_true",
        required=True,
        help="Yes: a majority of the disks is lost, and what only they held may be lost with them.",
    )
    command.add_argument(
        "--at-next-start", action="store_true", help="The node is running (a pod): do it when it starts next."
    )

    _command(commands, "version", "print the version", _version)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: object,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _serve(options: argparse.Namespace) -> int:
    config, _ = config_sources.load(vars(options))
    path = getattr(options, "config", "") or os.environ.get(config_sources.CONFIG_FILE_ENV, "")
    return serve.run(config, path, config_sources.unknown_variables(os.environ))


def _local(options: argparse.Namespace) -> int:
    return local.run(options)


def _config(options: argparse.Namespace) -> int:
    if options.markdown:
        print(config_sources.markdown(), end="")
    else:
        print(config_sources.describe(*config_sources.load(vars(options))), end="")
    return 0


def _recover(options: argparse.Namespace) -> int:
    if options.at_next_start:
        recover.request(options.data_dir)
        print("The node will recover when it starts next: restart it now (in Kubernetes: delete its pod).")
        return 0
    try:
        identity = recover.force_new_cluster(options.data_dir)
    except StorageError as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return serve.EXIT_STORAGE
    print(f"{identity.node_id} is now cluster {identity.cluster_id}, alone. Start it, then empty the other disks.")
    return 0


def _version(options: argparse.Namespace) -> int:
    print(f"kvorum {kvorum.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
