"""The ``kvorum`` command: the composition root. Arguments in, exit status out; the work is in the modules it names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import kvorum
from kvorum import config_sources, local, serve
from kvorum.errors import ConfigError

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
    return serve.run(config, config_sources.unknown_variables(os.environ))


def _local(options: argparse.Namespace) -> int:
    return local.run(options)


def _config(options: argparse.Namespace) -> int:
    if options.markdown:
        print(config_sources.markdown(), end="")
    else:
        print(config_sources.describe(*config_sources.load(vars(options))), end="")
    return 0


def _version(options: argparse.Namespace) -> int:
    print(f"kvorum {kvorum.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
