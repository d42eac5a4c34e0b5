"""The ``kvorum`` command: the composition root. Arguments in, exit status out; the work is in the modules it names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import kvorum
from kvorum.commands import local, recover, restore, serve
from kvorum.commands.confirm import confirm
from kvorum.config import parse_peers
from kvorum.config import sources as config_sources
from kvorum.errors import ConfigError, NothingToRecoverError, StorageError, VersionTooOldError
from kvorum.storage import datadir
from kvorum_entry.parser import SubcommandParser

EXIT_STATUS = f"""\
exit status:
  0  done, or a clean shutdown
  1  `local` refused to start, stop, kill or wipe the node, or no cluster runs in its --data-dir; with a traceback: a
     bug, please report it
  {serve.EXIT_CONFIG}  invalid options; `recover` found no data, or a better log elsewhere, or was not confirmed;
     `restore` found data; the packages of the node are not installed
  {serve.EXIT_ADDRESS}  cannot listen: a port is in use, or an address does not belong to this machine
  {serve.EXIT_STORAGE}  the data folder is locked, damaged or belongs to another node, or the disk failed
  {serve.EXIT_FATAL}  the node stopped itself to protect its data; the log says why
  {local.EXIT_NODES}  all nodes of `local` ended by themselves; their lines say why
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is not _serve and (warning := config_sources.unknown_variables_warning(os.environ)):
        # A node logs it.
        print(f"kvorum: {warning}", file=sys.stderr)
    try:
        return int(options.run(options))
    except ConfigError as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return serve.EXIT_CONFIG
    except BrokenPipeError:
        # The reader (head, less) has had enough; do not complain while the interpreter flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = SubcommandParser(
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

    command = _command(commands, "recover", "start a new cluster from the data of one surviving node", _recover)
    command.add_argument(
        "--data-dir",
        required=True,
        help="Data folder of the surviving node. Unless --at-next-start is given, the node must be stopped.",
    )
    command.add_argument(
        "--force-new-cluster",
        action="store_true",
        required=True,
        help="Confirms that a majority of the disks is lost for good; writes that only those disks held are lost, too.",
    )
    command.add_argument(
        "--at-next-start",
        action="store_true",
        help="Recover at the next start of the node, which may be running now (as a pod). The other members are asked "
        "then; if one of them has a more up-to-date log, the node logs that and starts without recovering.",
    )
    command.add_argument(
        "--accept-older-log",
        action="store_true",
        help="Recover although another member that answers has a more up-to-date log, or although the node is the only "
        "member of its cluster already: a copy of its data becomes a cluster of its own.",
    )
    command.add_argument(
        "--yes",
        action="store_true",
        help="Do not ask before the data is changed. Without a terminal at stdin, as in a script or `kubectl exec` "
        "without -it, nothing is done unless this is given.",
    )
    command.add_argument(
        "--peers",
        metavar="NAME=HOST:PORT,...",
        default=os.environ.get("KVORUM_PEERS", ""),
        help="Where the peer ports of the other members are now, as in `serve`. They are asked there too, in addition "
        "to the addresses that the cluster last agreed on. With --at-next-start, the node's own options count "
        "[KVORUM_PEERS]",
    )

    command = _command(commands, "restore", "start a new cluster from a backup", _restore)
    command.add_argument(
        "--from",
        dest="backup",
        metavar="FILE",
        required=True,
        help="Backup written by `kv snapshot save`; - reads stdin.",
    )
    command.add_argument(
        "--replace",
        action="store_true",
        help=f"Replace the data in the data folder; the old data is moved to {datadir.REPLACED}/ in that folder.",
    )
    command.add_argument(
        "--at-next-start",
        action="store_true",
        help="Store the backup now and restore it at the next start of the node, which may be running now (as a pod).",
    )
    command.add_argument(
        "--bump-revision",
        metavar="N",
        type=_whole_number,
        default=restore.BUMP_REVISION,
        help="Added to the revision of the backup, so that no revision that clients saw after the backup is ever used "
        "again [default %(default)s]",
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
    return serve.run(config, path, config_sources.unknown_variables_warning(os.environ))


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
        confirm(
            f"Make the node of {options.data_dir} the only member of a new cluster at its next start? This cannot be "
            "undone.",
            yes=options.yes,
        )
        try:
            datadir.request_recovery(Path(options.data_dir), accept_older_log=options.accept_older_log)
        except StorageError as error:
            raise ConfigError(str(error)) from error
        print(
            "The node recovers at its next start, unless it is the only member already: its log says so then. "
            "Restart it now (in Kubernetes: delete its pod)."
        )
        return 0
    try:
        peers = parse_peers(options.peers) if options.peers else ()
    except ConfigError as error:
        raise ConfigError(f"--peers: {error}") from None
    try:
        identity = recover.force_new_cluster(
            options.data_dir,
            accept_older_log=options.accept_older_log,
            peer_urls={peer.name: peer.url for peer in peers},
            confirm=lambda: confirm("Go on? This cannot be undone.", yes=options.yes),
        )
    except NothingToRecoverError as error:
        print(error)
        return 0
    except StorageError as error:
        print(f"kvorum: {error}", file=sys.stderr)
        return serve.EXIT_STORAGE
    print(
        f"{identity.node_id} is now the only member of cluster {identity.cluster_id}. "
        "Start it, then empty the other disks."
    )
    return 0


def _restore(options: argparse.Namespace) -> int:
    config, _ = config_sources.load(vars(options))
    try:
        with sys.stdin.buffer if options.backup == "-" else open(options.backup, "rb") as stream:
            identity, store, is_stale = restore.stage(
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
            "kvorum: warning: the records of the backup do not match its state sum: the memory of the node that took "
            "it may be faulty; compare with another backup",
            file=sys.stderr,
        )
    if is_stale:
        print(
            "kvorum: warning: no quorum confirmed this backup (consistency=stale): writes that were acknowledged "
            "before it was taken may be missing",
            file=sys.stderr,
        )
    print(f"The backup holds {len(store)} keys; revisions continue from {store.revision}.")
    if options.at_next_start:
        print("The node restores it at its next start. Restart it now (in Kubernetes: delete its pod).")
    else:
        print(
            f"{identity.node_id} is the only member of cluster {identity.cluster_id}. "
            "Start it, then the others with empty disks."
        )
    return 0


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**62:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**62 - 1:,}, not {text!r}")
    return int(text)


def _version(options: argparse.Namespace) -> int:
    print(f"kvorum {kvorum.__version__}")
    return 0
