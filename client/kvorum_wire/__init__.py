"""The HTTP API, v1: its JSON bodies, and a header. One declaration for the nodes and the clients.

Both sides import this module, and it imports neither of them. A client of one version reads the answers of nodes of
other versions: unknown fields are ignored, and a field that is added later has a default.
"""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

CLUSTER_HEADER = "X-Kvorum-Cluster"
"""Of a request: the cluster that it is for. Of an answer: the cluster of the node."""

# Keys.


class PutResult(Struct, frozen=True):
    """The key after a put. ``revision`` is the cluster-wide revision that the put created."""

    revision: int
    create_revision: int
    mod_revision: int
    version: int


class PutAnswer(PutResult, frozen=True, omit_defaults=True):
    """The answer to a put. ``key_base64`` takes the place of ``key`` if the key is not UTF-8."""

    key: str | None = None
    key_base64: str | None = None
    prev_value: str | None = None
    """The value before, if it was asked for and there was one. ``prev_value_base64`` if it is not UTF-8."""
    prev_value_base64: str | None = None
    replayed: bool = False
    """An earlier attempt with this idempotency key did it, and the value before is not known any more."""


class DeleteResult(Struct, frozen=True):
    """``deleted`` is the number of keys that were removed: 1 or 0, and more of a range."""

    revision: int
    deleted: int


class DeleteAnswer(DeleteResult, frozen=True, omit_defaults=True):
    """The answer to a delete. ``key_base64`` takes the place of ``key`` if the key is not UTF-8."""

    key: str | None = None
    key_base64: str | None = None


class DeleteRangeAnswer(DeleteResult, frozen=True, omit_defaults=True):
    """The answer to a delete of a range. ``replayed``: an earlier attempt with this idempotency key did it."""

    replayed: bool = False


class GetAnswer(Struct, frozen=True, omit_defaults=True):
    """The answer to a get with ``Accept: application/json``. ``revision`` is the store's at the time of the read."""

    revision: int
    create_revision: int
    mod_revision: int
    version: int
    key: str | None = None
    key_base64: str | None = None
    value: str | None = None
    value_base64: str | None = None
    staleness_ms: int | None = None
    lease: str | None = None
    """The id of the lease with which the key is deleted, in hex; here and in the next ones."""


class Version(Struct, frozen=True, omit_defaults=True):
    """One version of a key. That of a delete says ``deleted``, and has ``mod_revision`` only."""

    mod_revision: int
    create_revision: int = 0
    version: int = 0
    deleted: bool = False
    value: str | None = None
    value_base64: str | None = None
    lease: str | None = None


class HistoryAnswer(Struct, frozen=True, omit_defaults=True):
    """The versions of a key that can still be read, newest first. ``revision`` is the store's at the time of the read.

    ``truncated``: older ones are left out, since there are too many or they are too large.
    """

    revision: int
    floor: int
    versions: tuple[Version, ...]
    truncated: bool = False
    key: str | None = None
    key_base64: str | None = None


class Compact(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/compact``."""

    revision: int


class Compacted(Struct, frozen=True):
    """The answer to a compaction: revisions below ``floor`` can no longer be read. ``revision`` is the store's."""

    revision: int
    floor: int


class WatchEvent(Struct, frozen=True, omit_defaults=True):
    """One event of a watch. ``type`` is ``put`` or ``delete``; a delete has neither value nor create_revision.

    ``prev_value`` is there if it was asked for and the key existed. Fields that end in ``_base64`` take the place of
    the others if the bytes are not UTF-8.
    """

    type: str
    mod_revision: int
    create_revision: int = 0
    version: int = 0
    key: str | None = None
    key_base64: str | None = None
    value: str | None = None
    value_base64: str | None = None
    prev_value: str | None = None
    prev_value_base64: str | None = None
    lease: str | None = None


class WatchRevision(Struct, frozen=True, omit_defaults=True):
    """A line of ``GET /v1/watch``: all events of one revision, in the order of its operations.

    ``more``: the revision has more events, which come with the next line; only if fragments were asked for.
    """

    revision: int
    events: tuple[WatchEvent, ...]
    more: bool = False


class WatchProgress(Struct, frozen=True):
    """A line of ``GET /v1/watch``: all events up to this revision were sent."""

    revision: int
    progress: bool = True


class RangeRecord(Struct, frozen=True, omit_defaults=True):
    """A record of a range; with ``keys_only`` it has no value."""

    create_revision: int
    mod_revision: int
    version: int
    key: str | None = None
    key_base64: str | None = None
    value: str | None = None
    value_base64: str | None = None
    lease: str | None = None


class CommonPrefix(Struct, frozen=True, omit_defaults=True):
    """What ``count`` keys of a range have in common up to the delimiter, which ends it."""

    count: int
    prefix: str | None = None
    prefix_base64: str | None = None


class RangeAnswer(Struct, frozen=True, omit_defaults=True):
    """A page of a range. ``revision`` is that of all its pages, and ``count`` the number of keys of the whole range.

    ``more``: something was left out, and ``cursor`` is where to go on. ``prefixes`` is there if a delimiter was given.
    """

    revision: int
    count: int
    more: bool
    records: tuple[RangeRecord, ...]
    prefixes: tuple[CommonPrefix, ...] | UnsetType = UNSET
    cursor: str | None = None
    staleness_ms: int | None = None


class RangeBegin(Struct, frozen=True, omit_defaults=True):
    """The first line of a range that is streamed. The next lines are records and common prefixes, in order."""

    revision: int
    count: int
    staleness_ms: int | None = None


class RangeEnd(Struct, frozen=True):
    """The last line, without which the range is not complete. ``items`` is the number of lines between the two."""

    items: int
    more: bool
    """The limit left something out."""
    cursor: str | None = None
    complete: bool = True


class SessionEnded(Struct, frozen=True):
    """The answer to the end of a session."""

    revision: int


# The cluster.


class MemberStatus(Struct, frozen=True):
    """A member as one node sees it. ``match_index`` to ``replication`` are None everywhere but on the leader."""

    id: str
    name: str
    voter: bool
    peer_url: str
    client_url: str
    match_index: int | None = None
    lag: int | None = None
    """The number of entries that the member is behind the leader's log."""
    healthy: bool | None = None
    """Whether the leader has heard from the member within the last election timeout."""
    replication: str | None = None
    """``probe``, ``replicate`` or ``snapshot``."""
    version: str | None = None
    """What the member announced to this node last; None: nothing since this node started."""
    highest_feature_level: int | None = None
    """Likewise: the highest feature level that it supports."""
    free_bytes: int | None = None
    """How much its disk can still store besides the reserve. Known of the node itself, and of all on the leader."""


class ForeignPeer(Struct, frozen=True):
    """A peer that the node lists, and that belongs to another cluster."""

    name: str
    """Of the peer, as the node lists it."""
    id: str
    """The member id of the node that answers there."""
    cluster_id: str
    url: str = ""
    """Where it answers."""


class NodeStatus(Struct, frozen=True, kw_only=True):
    """What one node says of itself. Indexes count log entries; ``revision`` counts changes of the store."""

    cluster_id: str
    name: str
    id: str
    version: str
    state: str
    """``leader``, ``follower``, ``candidate``, ``pre_candidate``, ``learner`` or ``joining`` (no configuration yet)."""
    term: int
    leader: str | None = None
    leader_name: str | None
    leader_client_url: str | None
    commit_index: int
    applied_index: int
    first_index: int = 0
    last_index: int
    last_term: int = 0
    """The term of the entry at ``last_index``. Logs compare by (last_term, last_index). 0 from version 0.1.0."""
    saved_index: int = 0
    snapshot_index: int = 0
    revision: int
    state_hash: str
    """16 hex digits; the hash of the state after ``applied_index``."""
    keys: int
    sessions: int = 0
    leases: int = 0
    """How many leases there are; 0 from versions before 0.5.0."""
    used_bytes: int = 0
    """What keys, values, their history, leases and sessions take, as the quota counts it."""
    quota_bytes: int = 0
    """The quota on data; 0: there is none (yet)."""
    floor: int = 0
    """The lowest revision that can be read; below feature level 4 it is ``revision``. 0 from versions before 0.4.0."""
    history_events: int = 0
    """How many changes of keys the history holds."""
    history_bytes: int = 0
    """What superseded and deleted versions take, as the quota counts them; a part of ``used_bytes``."""
    quota_exceeded: bool = False
    """Puts are refused, since the data took more than the quota and has not yet fallen below 95 % of it."""
    members: tuple[MemberStatus, ...]
    last_contact_ms: int | None = None
    """Milliseconds since this node last heard from its leader (on a leader: from a quorum). None: never."""
    caught_up: bool = False
    """A quorum has confirmed within the last two election timeouts that all committed entries are applied here."""
    quarantined: str | None = None
    """Why this node serves nothing: its state differs from the leader's at the same index."""
    disks_full: str | None = None
    """Why this node, the leader, refuses puts: the disks of a majority are nearly full. Deletes and reads go on."""
    distrusted: str | None = None
    """Why this node takes no part in consensus, and what to do: its disk was set back, or alone holds what is
    committed. It serves its status, stale reads and a stale backup."""
    feature_level: int = 1
    """The feature level of the cluster, as far as this node has applied the log."""
    highest_feature_level: int = 1
    """The highest feature level that this node supports."""
    peer_url: str = ""
    """Where this node says that its peers reach it. ``members`` says what the cluster has agreed on."""
    client_url: str = ""
    """Likewise for clients."""
    address_mismatches: tuple[str, ...] = ()
    """Where a member's address, this node's own options and what the member says differ: one sentence each."""
    foreign_peers: tuple[ForeignPeer, ...] = ()
    """The peers in this node's list that were seen lately in another cluster."""


class Quota(Struct, frozen=True):
    """The quota on data, what is used of it, and whether puts are refused. ``quota_bytes`` 0: there is none (yet)."""

    quota_bytes: int
    used_bytes: int
    no_space: bool


class SetQuota(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``PUT /v1/cluster/quota``."""

    quota_bytes: int


class Members(Struct, frozen=True):
    """The answer to every request about members: all members."""

    members: tuple[MemberStatus, ...]


class AddMember(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/cluster/members``."""

    name: str
    peer_url: str
    client_url: str = ""
    """Refused unless the node announces this URL; empty: whatever it announces. Required before version 0.3.0."""


class Leader(Struct, frozen=True):
    """The answer to ``GET /v1/cluster/leader``: the leader as far as the node knows."""

    leader: str | None = None
    leader_url: str | None = None


class TransferLeadership(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/cluster/leader``, which may be left out. No target: the most caught-up voter."""

    target: str | None = None


class NewLeader(Struct, frozen=True):
    """The answer to ``POST /v1/cluster/leader``: the name of the new leader."""

    leader: str


class FeatureLevel(Struct, frozen=True):
    """The answer to ``POST /v1/cluster/finalize``: the feature level of the cluster now."""

    feature_level: int


class Versions(Struct, frozen=True):
    """The answer to ``GET /version``: of the node, of the HTTP API, and of Python."""

    version: str
    api: tuple[str, ...]
    python: str


# Errors.


class Problem(Struct, frozen=True):
    """The body of an error (``application/problem+json``, RFC 9457). Programs switch on ``code``.

    ``outcome`` is ``refused`` (certainly not done) or ``unknown``. The fields below it are set by some codes only.
    """

    code: str
    type: str = ""
    title: str = ""
    status: int = 0
    detail: str = ""
    outcome: str = "unknown"
    node: str | UnsetType = UNSET
    """The name of the node that answered."""
    leader: str | UnsetType | None = UNSET
    leader_url: str | UnsetType = UNSET
    revision: int | UnsetType = UNSET
    """The store's revision when the request was refused."""
    floor: int | UnsetType = UNSET
    """The lowest revision that can be read."""
    mod_revision: int | UnsetType = UNSET
    """The key's revision; 0: the key does not exist."""
    prev_revision: int | UnsetType = UNSET
    """The revision that the request expected."""
    reason: str | UnsetType = UNSET
    staleness_ms: int | UnsetType | None = UNSET
    limit: int | UnsetType = UNSET
    """The limit that was exceeded, in the unit that ``detail`` names."""
    used: int | UnsetType = UNSET
    """How much of the limit was in use, in the same unit."""
    ttl_s: int | UnsetType = UNSET
    """Of a lease that exists already."""
    lease: str | UnsetType = UNSET
    """The id of the lease that holds a lock, in hex."""
    fencing_token: int | UnsetType = UNSET
    """Likewise its fencing token."""
    remaining_ms: int | UnsetType = UNSET
    """Likewise for how long it lives unless it is renewed."""
    cluster_id: str | UnsetType = UNSET
    """The cluster of the node that answered."""
    retry_after_s: int | UnsetType = UNSET


class WatchEnd(Struct, frozen=True):
    """The last line of ``GET /v1/watch``: why it ends."""

    error: Problem


class WatchLine(Struct, frozen=True):
    """Any line of ``GET /v1/watch``, as a client reads it."""

    revision: int = 0
    events: tuple[WatchEvent, ...] = ()
    progress: bool = False
    more: bool = False
    error: Problem | None = None


class RangeBroken(Struct, frozen=True):
    """The last line of a range that is streamed and ends early: why."""

    error: Problem
