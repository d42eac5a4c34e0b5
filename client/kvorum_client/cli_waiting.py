"""How long each command waits, and what it says of that."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from kvorum_client import cli_backup, cli_lease, cli_lock, cli_status, cli_watch
from kvorum_client.cli_output import say
from kvorum_client.client import BACKUP_SILENCE_S, Client
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
_LASTING = (cli_backup.save, cli_watch.watch, cli_lock.lock, cli_lock.elect, cli_lease.keep)
"""They show what they do once a node has answered."""
TIMEOUT_HELPS: Mapping[object, str] = {
    cli_status.status: _PROBES.format(DEFAULT_TIMEOUTS_S[cli_status.status]),
    cli_status.health: _PROBES.format(DEFAULT_TIMEOUTS_S[cli_status.health]),
    cli_backup.save: "how long to look for a node that gives a backup, and to wait for a quorum to confirm it; the "
    f"node may then be silent for {BACKUP_SILENCE_S:g} s, or this long if it is more [default 10]",
    cli_backup.status: "ignored: it asks no node",
    cli_lock.lock: _HOLDS,
    cli_lock.elect: _HOLDS,
    cli_lease.keep: "how long the first renewal may take; then it lasts until it is interrupted [default 10]",
    cli_watch.watch: "how long to look for a node to begin at; then it lasts until it is interrupted [default 10]",
    top: f"ignored: a node has {ASK_TIMEOUT_S:g} s for each answer",
}


class Notice:
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
        timeout_s = getattr(self._options, "timeout", DEFAULT_TIMEOUTS_S.get(run, 10.0))
        if run in (cli_status.status, cli_status.health):
            timeout_s = min(timeout_s, DEFAULT_TIMEOUTS_S[run])
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
