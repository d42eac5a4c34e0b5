"""The limits and timeouts of one consensus server. Time is counted in ticks; what a tick lasts is the driver's."""

from __future__ import annotations

import msgspec

from kvorum.errors import ConfigError
from kvorum.raft.messages import TERM_JUMP_MAX, NodeId


class RaftConfig(msgspec.Struct, frozen=True):
    """One server's settings.

    Raises:
        ConfigError: a value is out of range, or the timeouts contradict each other.
    """

    id: NodeId
    election_timeout_ticks: int = 10
    """Base election timeout; each follower draws 1-2x of it (section 5.2)."""
    heartbeat_timeout_ticks: int = 2
    """Interval between the heartbeats of a leader."""
    save_timeout_ticks: int = 0
    """A server whose save takes this long neither leads nor campaigns; 0: the election timeout."""
    quiet_save_ticks: int = 0
    """After so many ticks without a save, one says what none has said yet: what is committed, and what is known of the
    others' disks. 0: that waits for the next save."""
    append_bytes_max: int = 1 << 20
    """Upper bound for the entries of one AppendEntries (one entry is always sent, whatever its size)."""
    inflight_messages_max: int = 64
    """Upper bound for the unanswered AppendEntries of one follower."""
    inflight_bytes_max: int = 16 << 20
    """Upper bound for the bytes in them."""
    committed_bytes_max: int = 1 << 20
    """Upper bound for the committed entries of one Ready, so that applying never blocks the loop for long."""
    uncommitted_bytes_max: int = 64 << 20
    """Proposals are refused while the entries that wait for a quorum exceed this."""
    save_bytes_max: int = 8 << 20
    """Upper bound for the entries of one save (or one entry)."""
    log_memory_bytes_max: int = 64 << 20
    """Entries that are applied stay in memory up to so many bytes; older ones are read back from the disk if needed."""
    load_bytes_max: int = 4 << 20
    """Upper bound for the entries that one load reads back (or one entry)."""
    term_step_max: int = 1
    """A campaign raises the term by 1 to so many, drawn. Above 1, a term number that was used and forgotten (by a disk
    that was set back) is hardly drawn again, and what two leaders wrote in it cannot pass for the same."""
    promote_lag_max: int = 64
    """A learner has caught up when it is at most this many entries behind."""

    def __post_init__(self) -> None:
        if self.heartbeat_timeout_ticks < 1 or self.election_timeout_ticks <= self.heartbeat_timeout_ticks:
            raise ConfigError(
                f"the election timeout ({self.election_timeout_ticks} ticks) must be longer than the heartbeat "
                f"({self.heartbeat_timeout_ticks} ticks), which must be at least 1"
            )
        if not 1 <= self.term_step_max <= TERM_JUMP_MAX:
            raise ConfigError(f"a campaign raises the term by at least 1 and at most {TERM_JUMP_MAX}")
        if self.inflight_messages_max < 1 or self.inflight_bytes_max < 1:
            raise ConfigError("with an empty window nothing could ever be sent to a follower")
