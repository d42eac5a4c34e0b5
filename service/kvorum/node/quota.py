"""The quota on data: the leader proposes what its configuration says, and every node says what is in force.

The quota is part of the replicated state (:mod:`kvorum.kv.quota`). The first leader proposes a share of its memory, so
that no cluster is without one. A configured quota is proposed when the configuration said something else before: an
operator's value stays until somebody changes one of the two.
"""

from __future__ import annotations

import logging

from kvorum.config import Config
from kvorum.kv.commands import SetQuota
from kvorum.kv.features import QUOTA_LEVEL
from kvorum.kv.limits import QUOTA_BYTES_MIN
from kvorum.kv.quota import CONFIGURATION, FIRST, resume_bytes
from kvorum.node.leader_proposals import LeaderProposals
from kvorum.node.state import State

log = logging.getLogger("kvorum.cluster")

MEMORY_SHARE = 3
"""The first quota is one of so many parts of the first leader's memory: a snapshot that is being installed takes as
much as the data again, and the log, the queues and the program need room."""


class QuotaProposals:
    """Proposes the quota on the leader, and logs on every node what it is.

    Args:
        config: the configured quota.
        memory_bytes: the memory that this process may use.
        state: whose quota it is.
        proposals: by which the leader proposes it.
    """

    def __init__(self, config: Config, memory_bytes: int, state: State, proposals: LeaderProposals) -> None:
        self._configured_bytes = config.quota_bytes
        self._first_bytes = max(memory_bytes // MEMORY_SHARE, QUOTA_BYTES_MIN)
        self._state = state
        self._proposals = proposals
        self._logged = (0, False)
        """The quota, and whether the state was full, in the last log line."""

    def tick(self) -> None:
        """Propose a quota if there should be another one. Called once a tick; costs nothing where nothing is to do."""
        self._log_changes()
        if self._proposals.are_possible and (command := self._wanted()) is not None:
            self._proposals.propose(command)

    def _wanted(self) -> SetQuota | None:
        store = self._state.store
        if store.feature_level < QUOTA_LEVEL:
            return None
        if self._configured_bytes and self._configured_bytes != store.quota.configured_bytes:
            return SetQuota(self._configured_bytes, CONFIGURATION)
        return None if store.quota.limit_bytes else SetQuota(self._first_bytes, FIRST)

    def _log_changes(self) -> None:
        store = self._state.store
        quota, (limit_bytes, was_full) = store.quota, self._logged
        if quota.limit_bytes != limit_bytes:
            log.info("the quota on data is %d bytes, of which %d are used", quota.limit_bytes, store.counted_bytes)
        if quota.is_full and not was_full:
            log.warning(
                "no space: the data takes %d of %d bytes (the quota); puts are refused until it takes less than %d",
                store.kept_bytes,
                quota.limit_bytes,
                resume_bytes(quota.limit_bytes),
            )
        elif was_full and not quota.is_full:
            log.info("puts are accepted again: the data takes %d of %d bytes", store.kept_bytes, quota.limit_bytes)
        self._logged = (quota.limit_bytes, quota.is_full)
