"""How long each command waits, and what it says of that."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping

from kvorum_client import cli_backup, cli_lease, cli_lock, cli_status, cli_watch
from kvorum_client.cli_output import say
from kvorum_client.client import Client
from kvorum_client.streams import BACKUP_SILENCE_S
from kvorum_client.top import ASK_TIMEOUT_S, top

NO_LEADER = "there is no leader: nothing was done; a majority must be up (kv status)"
OR_STALE = "; add --stale to save what one node has applied, which may lack acknowledged writes"
NOTICE_S = 1.0
"""How long a command is silent before it says what it waits for."""

DEFAULT_TIMEOUTS_S: Mapping[object, float] = {
    cli_status.status: cli_status.PROBE_TIMEOUT_S * cli_status.STATUS_ROUNDS,
    cli_status.health: cli_status.PROBE_TIMEOUT_S * cli_status.HEALTH_ROUNDS,
}
_PROBES = "deadline for the whole command, at most {0:g} [default {0:g}]"
_HOLDS = "how long each request to the cluster may take; --wait says how long to wait for the others [default 10]"
TIMEOUT_HELPS: Mapping[object, str] = {
    cli_status.status: _PROBES.format(DEFAULT_TIMEOUTS_S[cli_status.status]),
    cli_status.health: _PROBES.format(DEFAULT_TIMEOUTS_S[cli_status.health]),
    cli_backup.save: "how long to look for a node that gives a backup, and to wait for a quorum to confirm it; the "
    f"node may then be silent for {BACKUP_SILENCE_S:g} s, or this long if it is more [default 10]",
    cli_backup.status: "ignored: it asks no node",
    cli_lock.lock: _HOLDS,
    cli_lock.elect: _HOLDS,
    cli_lease.keep: "how long the first renewal may take; then it lasts until it is interrupted [default 10]",
    cli_watch.watch: "how long to look for a node to begin at [default 10], and for another one each time that the "
    "connection is lost [default: for ever]; it exits with 3 when there is none",
    top: f"ignored: a node has {ASK_TIMEOUT_S:g} s for each answer",
}


def is_stream(options: argparse.Namespace) -> bool:
    """Tell whether a command reads what a node sends until it is interrupted."""
    return options.run is cli_watch.watch or (options.run is cli_lock.elect and options.listen)


class Notice:
    """Says what a command waits for, and how to start a cluster where nothing answers.

    A command that lasts sets ``options.has_begun``: from when it returns True, the command shows what it does. Of a
    stream of a node that has begun, the notice says when it is lost for longer than a second.

    Args:
        client: its client.
        options: the command.
        are_default: whether the endpoints are those of `kvorum local`, because nobody named any.
    """

    def __init__(self, client: Client, options: argparse.Namespace, are_default: bool) -> None:
        self._client = client
        self._options = options
        self._are_default = are_default
        self._is_lost = self._was_failing = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Notice:
        if self._options.run not in (top, cli_backup.status):  # One shows what it does, the other asks nobody.
            self._in_a_second(self._give)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _in_a_second(self, do: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(NOTICE_S, do)

    @property
    def has_begun(self) -> bool:
        """Whether a command that lasts has begun what it is for."""
        has_begun: Callable[[], bool] = getattr(self._options, "has_begun", bool)
        return has_begun()

    def _give(self) -> None:
        """Say what the command is waiting for."""
        if not self.has_begun:
            run, reason = self._options.run, self._client.last_failure
            timeout_s = getattr(self._options, "timeout", DEFAULT_TIMEOUTS_S.get(run, 10.0))
            if run in DEFAULT_TIMEOUTS_S:
                timeout_s = min(timeout_s, DEFAULT_TIMEOUTS_S[run])
            reason = reason or f"no answer yet from {', '.join(self._client.endpoints)}"
            what = ""
            if run is cli_backup.save:
                what = f" for a node{'' if self._options.stale else ' and a quorum'}, then for the backup"
            say(f"still waiting, for up to {timeout_s:g} s{what}: {reason}{self.hint()}")
        if is_stream(self._options):
            self._in_a_second(self._look)

    def _look(self) -> None:
        """Say that the stream is lost, or that it goes on."""
        reason = self._client.last_failure if self.has_begun else None
        if reason is None:
            if self._is_lost and self._options.run is not cli_watch.watch:  # A watch says where it goes on.
                say(f"{self._client.streams_from} answers; going on there")
            self._is_lost = False
        elif self._was_failing and not self._is_lost:
            self._is_lost = True
            limit_s = getattr(self._options, "timeout", None)
            until = "until a node answers, or Ctrl-C" if limit_s is None else f"for up to {limit_s:g} s"
            say(f"the connection is lost; trying to go on, {until}: {reason}")
        self._was_failing = reason is not None
        self._in_a_second(self._look)

    def hint(self) -> str:
        """Return what to do if there seems to be no cluster, to append to a message."""
        if not self._are_default or self._client.has_heard:
            return ""
        return "; start a cluster with `kvorum local`, or name its nodes with --endpoints"
