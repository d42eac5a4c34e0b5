"""Feature levels: what every node of a cluster is known to understand while its nodes run different versions.

The replicated state holds a level. It begins at 1, which is what version 0.1.0 speaks, and only the command
:class:`~kvorum.kv.commands.RaiseFeatureLevel` raises it, by one, once every member is known to support the next one.
Nothing that needs a level is proposed below it (:func:`check_command_level`), and every entry is applied by the level
in force at its index. So a log never holds a command that one of the members cannot apply, and until the level is
raised every node can go back to the version before.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kvorum import __version__
from kvorum.errors import FeatureUnavailableError, VersionTooOldError
from kvorum.kv.commands import (
    BatchCommand,
    Compact,
    Delete,
    EndSession,
    HandedOver,
    LeaseGrant,
    LeaseRenew,
    LeaseRevoke,
    OpenOrigin,
    Put,
    RaiseFeatureLevel,
    SetQuota,
    Txn,
)
from kvorum.kv.txn_check import has_lease
from kvorum.raft.messages import Configuration, NodeId


class Level(msgspec.Struct, frozen=True):
    """One feature level."""

    number: int
    version: str
    """The first version of Kvorum that supports it."""
    changes: tuple[str, ...]
    """What it changes, one sentence each."""


LEVELS = (
    Level(1, "0.1.0", ("The first level.",)),
    Level(
        2,
        "0.2.0",
        (
            "The state hash chains the changes of each entry, and a sum covers every live record.",
            "Snapshots have format 2: they carry the feature level and that sum.",
        ),
    ),
    Level(
        3,
        "0.3.0",
        (
            "A client can end its session.",
            "Snapshots list the sessions that were ended within the hour.",
            "A quota limits the data, and snapshots carry it.",
        ),
    ),
    Level(
        4,
        "0.4.0",
        (
            "Every version of a key is kept until it is compacted; the raise takes a revision, where history begins.",
            "The history below a revision can be compacted, and what is kept of it counts towards the quota.",
            "Snapshots carry the history: what was visible below the floor by key, then every change in order.",
            "Transactions: compares, and operations on several keys at one revision.",
        ),
    ),
    Level(
        5,
        "0.5.0",
        (
            "Leases: keys that are deleted when their lease ends, by the log's time.",
            "Versions of keys know their lease, puts in transactions set it, and compares may ask for it.",
            "Snapshots carry the leases, and the lease of each version.",
            "The bounds of a transaction count what its own earlier puts and deletes do.",
        ),
    ),
    Level(
        6,
        "0.6.0",
        (
            "A member hands writes to the leader between the nodes, and each of them is applied once.",
            "Snapshots say which of these writes were applied.",
        ),
    ),
)
"""Every level that this version supports, ascending."""

SUPPORTED_LEVELS = tuple(level.number for level in LEVELS)
FIRST_LEVEL = SUPPORTED_LEVELS[0]
HIGHEST_LEVEL = SUPPORTED_LEVELS[-1]
STATE_HASH_LEVEL = 2
"""From this level on the state hash covers changes and records (:mod:`kvorum.kv.state_hash`)."""
END_SESSION_LEVEL = 3
"""From this level on a session can be ended, and snapshots say which were."""
QUOTA_LEVEL = 3
"""From this level on there is a quota on data, and snapshots carry it."""
HISTORY_LEVEL = 4
"""From this level on old versions are kept until they are compacted, and snapshots carry them."""
LEASE_LEVEL = 5
"""From this level on there are leases, snapshots carry them, and a transaction's bounds count what it does itself."""
HANDOVER_LEVEL = 6
"""From this level on a member hands writes to the leader, and snapshots carry the origins."""

_LEVELS_OF_COMMANDS: Mapping[type[BatchCommand], int] = {
    Put: 1,
    Delete: 1,
    # The one command that comes before its level: it is proposed when nobody blocks that level.
    RaiseFeatureLevel: 1,
    EndSession: END_SESSION_LEVEL,
    SetQuota: QUOTA_LEVEL,
    Compact: HISTORY_LEVEL,
    Txn: HISTORY_LEVEL,
    LeaseGrant: LEASE_LEVEL,
    LeaseRenew: LEASE_LEVEL,
    LeaseRevoke: LEASE_LEVEL,
    OpenOrigin: HANDOVER_LEVEL,
    HandedOver: HANDOVER_LEVEL,
}
"""Every command, and the level from which on it may be proposed."""


def check_command_level(command: BatchCommand, level: int) -> None:
    """Refuse to propose what a member may not understand. ``level`` is the one in force in the proposer's state.

    The level never falls, so what passes here is known at whatever index the command gets.

    Raises:
        FeatureUnavailableError: the command needs a higher level; nothing was done.
    """
    check_level(type(command).__name__, _LEVELS_OF_COMMANDS[type(command)], level)
    if level < LEASE_LEVEL and isinstance(command, Txn) and has_lease(command):
        check_level("a transaction with leases", LEASE_LEVEL, level)


def check_level(what: str, needed: int, level: int) -> None:
    """Refuse what needs a higher level than the one that is in force.

    Raises:
        FeatureUnavailableError: ``level`` is below ``needed``; nothing was done.
    """
    if needed > level:
        raise FeatureUnavailableError(
            f"{what} needs feature level {needed}, and the cluster is at level {level}; "
            f"upgrade every member to version {LEVELS[needed - 1].version} or later, then raise the level"
        )


def blockers(level: int, configuration: Configuration, versions: Mapping[NodeId, int]) -> tuple[NodeId, ...]:
    """Return the members, learners included, that are not known to support ``level``, in the order of their ids.

    Args:
        level: the level that is to be raised to.
        configuration: the members.
        versions: member id -> the highest level that it says it supports. Ids of others are ignored.
    """
    return tuple(member.id for member in configuration.members if versions.get(member.id, 0) < level)


def check_supported(level: int, where: str) -> None:
    """Refuse data that a newer version wrote.

    Args:
        level: the level of the data.
        where: what holds it, for the error: ``"the snapshot"``.

    Raises:
        VersionTooOldError: this version does not support the level.
    """
    if level not in SUPPORTED_LEVELS:
        raise VersionTooOldError(
            f"{where} has feature level {level}, and version {__version__} supports levels {FIRST_LEVEL} to "
            f"{HIGHEST_LEVEL} only; start the newer version again: a raised level cannot be taken back"
        )
