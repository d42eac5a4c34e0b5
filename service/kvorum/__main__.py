"""The ``kvorum`` command: the composition root. Arguments in, exit status out; the work is in the modules it names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import kvorum
from kvorum.commands import local, recover, restore, serve
from kvorum.config import sources as config_sources
from kvorum.errors import ConfigError, StorageError, VersionTooOldError
from kvorum.storage import datadir

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
    command.add_argument("--markdown", action="store_true", help="Print docs/config.md instead: every option there is.")
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

    command = _command(commands, "restore", "begin a new cluster with what a backup holds", _restore)
    command.add_argument(
        "--from", dest="backup", metavar="FILE", required=True, help="What `kv snapshot save` wrote; - reads stdin."
    )
    command.add_argument(
        "--replace",
        action="store_true",
        help=f"Go on although the data folder holds a node's data: it is put aside there, in {datadir.REPLACED}/.",
    )
    command.add_argument(
        "--at-next-start",
        action="store_true",
        help="The node is running (a pod): prepare it now, and do it when it starts next.",
    )
    command.add_argument(
        "--bump-revision",
        metavar="N",
        type=_whole_number,
        default=restore.BUMP_REVISION,
        help="How much further the revision goes on, so that none that clients saw after the backup was taken is ever "
        "given to another write [default %(default)s]",
    )
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
        try:
            datadir.request_recovery(Path(options.data_dir))
        except StorageError as error:
            raise ConfigError(str(error)) from error
        print("The node will recover when it starts next: restart it now (in Kubernetes: delete its pod).")
        return 0
    try:
        identity = recover.force_new_cluster(options.data_dir)
    except StorageError as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return serve.EXIT_STORAGE
    print(f"{identity.node_id} is now cluster {identity.cluster_id}, alone. Start it, then empty the other disks.")
    return 0


def _restore(options: argparse.Namespace) -> int:
    config, _ = config_sources.load(vars(options))
    try:
        with sys.stdin.buffer if options.backup == "-" else open(options.backup, "rb") as stream:
            identity, store = restore.stage(
                stream,
                config,
                bump_revision=options.bump_revision,
                replace=options.replace,
                running=options.at_next_start,
            )
        if not options.at_next_start:
            datadir.install_staged(Path(config.data_dir))
    except (StorageError, VersionTooOldError) as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return serve.EXIT_STORAGE
    except OSError as error:
        raise ConfigError(f"{options.backup}: {error.strerror}") from None
    if store.mismatch is not None:
        print(
            "kvorum: the records of the backup do not have the sum that it carries: the node that made it may have had "
            "a fault of its memory; compare with another backup",
            file=sys.stderr,
        )
    print(f"The backup holds {len(store)} keys; the revision goes on from {store.revision}.")
    if options.at_next_start:
        print("The node will hold it when it starts next: restart it now (in Kubernetes: delete its pod).")
    else:
        print(
            f"{identity.node_id} is cluster {identity.cluster_id}, alone. Start it, then the others with empty disks."
        )
    return 0


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**62:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _version(options: argparse.Namespace) -> int:
    print(f"kvorum {kvorum.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
