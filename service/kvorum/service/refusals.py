"""What the answers to a proposal mean for the client, where they are no result."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kvorum.errors import CallerError, NoLeaderError, NoSpaceError, NotLeaderError, SessionError
from kvorum.kv.commands import NoSpace
from kvorum.kv.quota import quota_error
from kvorum.service.node_port import NodePort
from kvorum.service.outcomes import SESSION_REASONS


class Refusals:
    """The errors of one node's clients for what was not proposed, or not applied.

    Args:
        node: the node. What has no room is counted there.
    """

    def __init__(self, node: NodePort) -> None:
        self._node = node
        self._counters = node.counters

    def of_proposal(self, error: NotLeaderError | NoSpaceError) -> CallerError:
        """Return the error for a command that was not proposed, and count it if it has no room."""
        if isinstance(error, NotLeaderError):
            return self.elsewhere(error)
        self._counters.no_space[error.reason] += 1
        return error

    def no_space(self, refused: NoSpace) -> NoSpaceError:
        """Return the error for a command that was applied while the data was above its quota, and count it."""
        self._counters.no_space["quota"] += 1
        return quota_error(refused.limit_bytes, refused.used_bytes)

    def elsewhere(self, error: NotLeaderError) -> CallerError:
        """Return the error for a request that only the leader can execute: where to go, or that nobody leads."""
        name, url = self._node.leader_name(), self._node.leader_client_url()
        if not url or url == self._node.config.advertise_client_url:
            # There is nowhere to go; or this node has been elected since, and the client finds it leading next time.
            return NoLeaderError(str(error), leader=name or None)
        return NotLeaderError(
            error.leader,
            leader_name=name or "",
            leader_client_url=url,
            cluster_id=self._node.cluster_id if self._node.leader_checks_cluster() else "",
        )


def session_error(revision: int, reason: str, details: Mapping[str, str] = MappingProxyType({})) -> SessionError:
    """Return the error for a session that cannot take a write; ``details`` has better sentences for some reasons."""
    code, detail = SESSION_REASONS.get(reason, ("session_unknown", reason))
    return SessionError(code, details.get(reason, detail), reason, revision)
