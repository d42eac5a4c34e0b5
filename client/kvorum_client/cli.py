"""The ``kv`` command: arguments in, exit status out. The commands are in :mod:`kvorum_client.cli_parser`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from kvorum_client import cli_backup, cli_cluster, cli_history, cli_keys, cli_lease, cli_txn
from kvorum_client.cli_endpoints import endpoints_of, misspelt_warning
from kvorum_client.cli_exit import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NO,
    EXIT_NO_SPACE,
    EXIT_OUTPUT,
    EXIT_UNAVAILABLE,
    EXIT_UNKNOWN,
    EXIT_USAGE,
)
from kvorum_client.cli_output import give_up, say, warn
from kvorum_client.cli_parser import Command, build_parser, from_go
from kvorum_client.cli_threads import use_daemon_threads
from kvorum_client.cli_waiting import NO_LEADER, OR_STALE, Notice, is_stream
from kvorum_client.client import Client, logger
from kvorum_client.errors import (
    ClientError,
    InvalidArgumentError,
    NoSpaceError,
    OutcomeUnknownError,
    RefusedError,
    UnavailableError,
    WrongClusterError,
)

_WRITES = cli_cluster.WRITES | {
    cli_keys.put,
    cli_keys.delete,
    cli_history.compact,
    cli_lease.grant,
    cli_lease.revoke,
    cli_txn.delete,
    cli_txn.txn,
}
"""The commands that may be done, or not, when they are interrupted."""
_DESCRIPTORS_MIN = 4
"""What an event loop takes, and one connection."""


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
    sent = _Sent()
    try:
        try:
            options = _two_dashes(build_parser().parse_args(from_go(arguments)))
        except SystemExit:
            # The help, or the version, is an answer as well.
            sys.stdout.flush()
            raise
        status = _carry_out(options, sent)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has had enough.
        give_up(sys.stdout)
        return EXIT_DONE
    except OSError as error:
        give_up(sys.stdout)
        done = "done, but " if sent.is_change else ""
        reason = "stdout is closed" if error.errno == errno.EBADF else error.strerror or error
        return _fail(f"{done}cannot write the output: {reason}", EXIT_OUTPUT)


def _carry_out(options: argparse.Namespace, sent: _Sent) -> int:
    """Do what the options say and return the exit status.

    Raises:
        OSError: the answer cannot be written; it is done, if it is a change.
    """
    try:
        if options.run is cli_keys.put:
            cli_keys.read_value(options)
        elif options.run is cli_txn.txn:
            cli_txn.read_transaction(options)
        with _warnings(), _runner() as runner:
            return runner.run(_run(options, sent))
    except InvalidArgumentError as error:
        return _fail(str(error), EXIT_USAGE)
    except WrongClusterError as error:
        return _fail(_wrong_cluster(error, options), EXIT_NO)
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
            doubt = "; it may or may not have been applied" if sent.is_change else "; nothing was done"
        return _fail(f"interrupted{doubt}", EXIT_INTERRUPTED)


def _runner() -> asyncio.Runner:
    """Return what runs the command, with an event loop.

    Raises:
        UnavailableError: the system gives too few descriptors.
    """
    runner = asyncio.Runner()
    try:
        with contextlib.ExitStack() as probed:
            # Of an event loop that is made in part, the interpreter complains.
            for _ in range(_DESCRIPTORS_MIN):
                probed.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        use_daemon_threads(runner.get_loop())
    except OSError as error:
        raise UnavailableError(
            f"cannot begin, and nothing was done: {(error.strerror or str(error)).lower()} (ulimit -n)"
        ) from None
    return runner


def _wrong_cluster(error: WrongClusterError, options: argparse.Namespace) -> str:
    if hasattr(options, "cluster_id"):
        return (
            f"--cluster-id names the cluster {error.expected}, and the nodes belong to {error.cluster_id:.64}; nothing "
            "was done. Check --endpoints, or give the id that `kv status -o json` shows: a cluster that was recovered "
            "or restored has a new one"
        )
    if is_stream(options):
        return (
            f"the nodes belong to the cluster {error.cluster_id:.64} now, and not to {error.expected}: that one was "
            "recovered or restored, and its revisions mean nothing here; run the command again, without --from-revision"
        )
    return (
        f"the nodes belong to more than one cluster, {error.expected} and {error.cluster_id:.64}; nothing was done. "
        "Check --endpoints (`kv status` shows the clusters), and name the one that is meant with --cluster-id"
    )


class _Warnings(logging.Handler):
    """Says what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        warn(text[:1].lower() + text[1:])


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    handler = _Warnings()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _two_dashes(options: argparse.Namespace) -> argparse.Namespace:
    # argparse (until Python 3.13) takes a second "--" for a mark, too, and leaves an empty list in its place.
    for name, value in vars(options).items():
        if value == [] and name != "command":
            setattr(options, name, "--")
    return options


class _Sent:
    """What a command that ends otherwise than meant has sent."""

    is_change = False
    """Whether it may have changed something: it is a command that does, and was sent."""


async def _run(options: argparse.Namespace, sent: _Sent) -> int:
    if not hasattr(options, "endpoints") and (warning := misspelt_warning(os.environ)):
        warn(warning)
    endpoints, are_default = endpoints_of(options, os.environ)
    async with Client(
        endpoints.split(","),
        timeout_s=getattr(options, "timeout", 10.0),
        cluster_id=getattr(options, "cluster_id", ""),
    ) as client:
        run: Command = options.run
        notice = Notice(client, options, are_default)
        try:
            with notice:
                status = await run(client, options)
        except UnavailableError as error:
            if notice.has_begun:
                raise
            reason = NO_LEADER if client.lacks_leader else f"{error}"
            stale = OR_STALE if run is cli_backup.save and client.has_heard and not options.stale else ""
            raise UnavailableError(f"{reason}{stale}{notice.hint()}") from None
        finally:
            sent.is_change = run in _WRITES and client.writes_perhaps_sent > 0
        if status == EXIT_UNAVAILABLE and (hint := notice.hint()):
            say(f"no node answers{hint}")
        return status


def _fail(message: str, status: int) -> int:
    say(message)
    return status


if __name__ == "__main__":
    sys.exit(main())
