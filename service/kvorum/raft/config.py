"""The limits and timeouts of one consensus server. Time is counted in ticks; what a tick lasts is the driver's."""

from __future__ import annotations

import msgspec

from kvorum.errors import ConfigError
from kvorum.raft.messages import NodeId


class RaftConfig(msgspec.Struct, frozen=True):
    """One server's settings.

    Raises:
        ConfigError: a value that could not work.
    """

    id: NodeId
    election_timeout_ticks: int = 10
    """A follower campaigns after this many ticks without a leader, up to twice as many, drawn at random (5.2)."""
    heartbeat_timeout_ticks: int = 2
    """A leader is heard of at least this often."""
    save_timeout_ticks: int = 0
    """A server whose save takes this long neither leads nor campaigns (bug B8); 0: the election timeout."""
    append_bytes_max: int = 1 << 20
    """Of entries in one AppendEntries (one entry is always sent, whatever its size)."""
    inflight_messages_max: int = 64
    """Unanswered AppendEntries per follower."""
    inflight_bytes_max: int = 16 << 20
    """Bytes in them."""
    committed_bytes_max: int = 1 << 20
    """Of committed entries in one Ready, so that applying never stops the loop for long."""
    uncommitted_bytes_max: int = 64 << 20
    """Of entries that wait for a quorum; further proposals are refused."""
    promote_lag_max: int = 64
    """A learner that is at most this many entries behind has caught up."""

    def __post_init__(self) -> None:
        if self.heartbeat_timeout_ticks < 1 or self.election_timeout_ticks <= self.heartbeat_timeout_ticks:
            raise ConfigError(
                f"the election timeout ({self.election_timeout_ticks} ticks) must be longer than the heartbeat "
                f"({self.heartbeat_timeout_ticks} ticks), which must be at least 1"
            )
        if self.inflight_messages_max < 1 or self.inflight_bytes_max < 1:
            raise ConfigError("with an empty window nothing could ever be sent to a follower")
