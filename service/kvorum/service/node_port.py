"""What the service asks of a node. Two implementations: :class:`kvorum.node.Node`, and the tests' fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from kvorum.config import Config
from kvorum.kv.commands import (
    ClientCommand,
    Compacted,
    CompactRefused,
    Result,
    Txn,
    TxnRefused,
    TxnResult,
)
from kvorum.kv.leases import Leases
from kvorum.kv.quota import Quota
from kvorum.kv.versions import Pin, Versions
from kvorum.kv.watch import Interest, Sink
from kvorum.status import Check, NodeStatus
from kvorum.telemetry.counters import Counters


class RecordView(Protocol):
    """What is known of a key."""

    @property
    def key(self) -> bytes:
        """The key."""

    @property
    def value(self) -> bytes:
        """The bytes."""

    @property
    def create_revision(self) -> int:
        """The revision that created the key."""

    @property
    def mod_revision(self) -> int:
        """The revision that last changed it."""

    @property
    def version(self) -> int:
        """How many times it was put since it was created."""

    @property
    def lease(self) -> int:
        """The id of the lease with which it is deleted; 0: it has none."""


class StoreView(Protocol):
    """The applied state, to read from."""

    @property
    def revision(self) -> int:
        """The cluster-wide revision."""

    @property
    def quota(self) -> Quota:
        """The quota on data."""

    @property
    def counted_bytes(self) -> int:
        """What the state takes, as the quota counts it, without history that gives way to the next write."""

    @property
    def feature_level(self) -> int:
        """The feature level in force."""

    @property
    def floor(self) -> int:
        """The lowest revision that can be read."""

    @property
    def leases(self) -> Leases:
        """The leases, to read from."""

    @property
    def versions(self) -> Versions:
        """The versions of all keys, for ranges."""

    def check_revision(self, revision: int) -> None:
        """Refuse a revision that cannot be read.

        Raises:
            RevisionCompactedError, RevisionInFutureError: the history does not have the revision.
        """

    def pin(self, revision: int = 0, bytes_max: int | None = None) -> Pin:
        """Keep what is visible at a revision (0: the latest) until the pin is released. Raises as check_revision.

        A pin that holds back more than so many bytes of history is lost (``Pin.is_lost``).
        """

    def get(self, key: bytes, revision: int = 0) -> RecordView | None:
        """Return the key's record at a revision (0: the latest), or None.

        Raises:
            RevisionCompactedError, RevisionInFutureError: the history does not have the revision.
        """

    def history(self, key: bytes, limit: int, revision: int = 0) -> Sequence[RecordView]:
        """Return the key's versions that can be read, newest first, a delete as one of ``version`` 0.

        Args:
            key: the key.
            limit: at most so many.
            revision: none that is newer; 0: no bound.

        Raises:
            RevisionCompactedError, RevisionInFutureError: the history does not have the revision.
        """

    def read_transaction(self, txn: Txn) -> TxnResult | TxnRefused:
        """Return what a valid transaction that only reads answers, or why it cannot."""


class Backup(Protocol):
    """A backup that is being read: one file, which is not held in memory."""

    @property
    def size_bytes(self) -> int:
        """The size of the whole file."""

    @property
    def sha256(self) -> str:
        """The file's hash, 64 hex digits; also its last 32 bytes. Empty: known at the end only (a stale backup)."""

    @property
    def is_stale(self) -> bool:
        """Whether no quorum confirmed it."""

    @property
    def last_index(self) -> int:
        """The log index whose state it is."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes.

        Raises:
            ConnectionError: the rest cannot be read. The receiver must not take what it has for the whole file.
        """

    def close(self) -> None:
        """Let go of the file. Idempotent."""


class Watch(Protocol):
    """A watch that has begun."""

    def has_room(self) -> None:
        """Take note that the sink, which was full, takes events again."""

    def progress(self) -> int | None:
        """Return the revision up to which the sink was given all events; None: it has to catch up, or has ended."""

    def close(self, reason: str = ...) -> None:
        """End the watch; its sink is told nothing. Idempotent."""


class NodePort(Protocol):
    """A node. The exceptions are those of :mod:`kvorum.errors`; a request with a ``timeout_ms`` ends within it."""

    config: Config
    """The resolved configuration."""
    counters: Counters
    """Where requests are counted."""

    @property
    def store(self) -> StoreView:
        """The applied state; a new object after a snapshot was installed."""

    def now_ms(self) -> int:
        """Return the log time (Unix, ms) by which the leases of ``store`` live: what remains is as of this time.

        On the leader it passes all the time. On others it is that of the last entry that was applied: what remains of
        a lease is up to a second less than it seems there, or more where the node lags behind.
        """

    @property
    def cluster_id(self) -> str:
        """The id of the node's cluster; empty: it is in none yet."""

    async def propose(
        self,
        command: ClientCommand,
        timeout_ms: int,
        address: str = "",
        *,
        hand_over: bool = False,
        batch: object | None = None,
    ) -> Result:
        """Replicate a command within the limits (:func:`kvorum.kv.limits.check_command`); return what applying it gave.

        ``address``: the client's; empty: not known. ``hand_over``: a node that does not lead hands it to the leader, if
        the feature level allows it. ``batch``: the commands of one batch, proposed in one turn of the loop, are applied
        in their order.

        Raises:
            NotLeaderError, NotServingError, OverloadedError, FeatureUnavailableError, SessionError: certainly not
                done.
            OutcomeUnknownError: it may be done, now or later.
        """

    def check_leads(self, *, hand_over: bool = False) -> None:
        """Check that the node can propose commands, or with ``hand_over`` can have them proposed.

        Raises:
            NotLeaderError: it does not lead.
        """

    async def set_quota(self, limit_bytes: int, timeout_ms: int, *, hand_over: bool = False) -> None:
        """Set the quota on data, from 1 MiB on; return when it is in force here.

        Raises:
            NotLeaderError, NotServingError, OverloadedError, FeatureUnavailableError: not set.
            OutcomeUnknownError: it may be.
        """

    async def compact(self, revision: int, timeout_ms: int, *, hand_over: bool = False) -> Compacted | CompactRefused:
        """Give up the history below a revision, from 0 on; return what applying it gave.

        Raises:
            NotLeaderError, NotServingError, OverloadedError, FeatureUnavailableError: not done.
            OutcomeUnknownError: it may be.
        """

    async def read_barrier(self, timeout_ms: int) -> None:
        """Return when ``store`` holds everything that was acknowledged before the call.

        Raises:
            NoLeaderError, ReadTimeoutError: no quorum said so in time.
            NotServingError: the node serves nobody.
            NotLeaderError: the node was removed; it says who leads.
            OverloadedError: too many reads wait.
        """

    def check_watchers(self) -> None:
        """Check that another watch may begin.

        Raises:
            TooManyWatchersError: there are as many as there may be.
        """

    def watch(self, interest: Interest, sink: Sink, first: int) -> Watch:
        """Deliver all events from a revision on to a sink, until the watch is closed or its sink is told of its end.

        Raises:
            NotServingError, NotLeaderError: as :meth:`check_serves`; or the node is about to stop.
            FeatureUnavailableError: there is no history below its feature level.
            RevisionCompactedError: the history begins above that revision.
            TooManyWatchersError: there are too many watchers.
        """

    async def begin_backup(self, *, stale: bool = False) -> Backup:
        """Return the state as a file, to be read and closed; call it after :meth:`read_barrier`, or with ``stale``.

        Raises:
            NoLeaderError, OverloadedError: there is none to be had now.
        """

    def check_serves(self) -> None:
        """Check that the node may answer from its state, stale or not.

        Raises:
            NotServingError: it may not, or it has none yet.
            NotLeaderError: the node was removed; it says who leads.
        """

    def staleness_ms(self) -> int | None:
        """Return a bound on the age of ``store``: all that was committed so long ago is in it. None: not known."""

    def status(self) -> NodeStatus:
        """Return what the node says of itself."""

    def leader_client_url(self) -> str | None:
        """Return the leader's client URL if a leader is known."""

    def leader_checks_cluster(self) -> bool:
        """Tell whether the leader understands a request that names its cluster (``?cluster=``)."""

    def leader_name(self) -> str | None:
        """Return the leader's name if one is known."""

    async def transfer_leadership(self, target_name: str | None, timeout_ms: int) -> str:
        """Hand the leadership to the target (None: the most caught-up voter) and return the new leader's name.

        Raises:
            NotLeaderError, MembershipRefusedError, TransferFailedError: the leadership stays; nothing was begun.
            OutcomeUnknownError: it left, or may still leave.
        """

    async def finalize(self, timeout_ms: int) -> int:
        """Raise the feature level as far as this version goes and return it.

        Raises:
            NotLeaderError, OverloadedError, FeatureLevelBlockedError: not raised.
            OutcomeUnknownError: it may be.
        """

    async def add_member(self, name: str, peer_url: str, client_url: str, timeout_ms: int) -> None:
        """Add a learner.

        Raises:
            NotLeaderError, MembershipRefusedError: not done.
            OutcomeUnknownError: it may be.
        """

    async def promote_member(self, name: str, timeout_ms: int) -> None:
        """Make a learner a voter. Raises as :meth:`add_member`."""

    async def remove_member(self, name: str, timeout_ms: int) -> None:
        """Remove a member. Raises as :meth:`add_member`."""

    def liveness(self) -> Sequence[Check]:
        """Return the checks of ``/livez``: nothing about quorum, peers or disk space."""

    def readiness(self) -> Sequence[Check]:
        """Return the checks of ``/readyz``."""
