"""Changes of the membership, one server at a time (thesis chapter 4).

A configuration takes effect on every server the moment it is appended, committed or not, and is taken back when its
entry is truncated (thesis 4.1). Two majorities of configurations that differ in one voter overlap; so at most one
change may be uncommitted, and a leader starts none before an entry of its own term is committed (the bug that the
author announced in 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from kvorum.errors import InvariantViolatedError, MembershipRefusedError
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member, NodeId

MEMBERS_MAX = 64
"""Voters and learners together."""


class AddLearner(msgspec.Struct, frozen=True, tag="add_learner"):
    """Begin to replicate to a new member, which does not vote yet (thesis 4.2.1)."""

    member: Member


class Promote(msgspec.Struct, frozen=True, tag="promote"):
    """Make a learner that has caught up a voter."""

    id: NodeId


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    """Remove a voter or a learner; a leader that removes itself steps down when that is committed (thesis 4.2.2)."""

    id: NodeId


class UpdateAddresses(msgspec.Struct, frozen=True, tag="update_addresses"):
    """Say where a member is reached now; neither who votes nor who counts changes."""

    id: NodeId
    peer_url: str
    client_url: str


Change = AddLearner | Promote | Remove | UpdateAddresses

_configuration_decoder = msgspec.msgpack.Decoder(Configuration)


def encode_configuration(configuration: Configuration) -> bytes:
    """Return the data of a CONFIGURATION entry."""
    return msgspec.msgpack.encode(configuration)


def decode_configuration(data: bytes) -> Configuration:
    """Return the configuration in a CONFIGURATION entry's data.

    Raises:
        msgspec.DecodeError: the data is not a configuration, or not a sound one.
    """
    try:
        configuration = _configuration_decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"not a configuration: {error}") from error
    if not is_sound(configuration):
        raise msgspec.DecodeError("a configuration that names a member twice, or no voter")
    return configuration


def is_sound(configuration: Configuration) -> bool:
    """Return whether every member is named once, and at least one can vote."""
    members = configuration.members
    return len({member.id for member in members}) == len(members) and any(member.voter for member in members)


def bootstrap_entry(configuration: Configuration) -> Entry:
    """Return the first entry of a new cluster, the same on each of its first voters: index 1, term 1."""
    return Entry(1, 1, EntryKind.CONFIGURATION, encode_configuration(configuration))


def changed(configuration: Configuration, change: Change) -> Configuration:
    """Return the configuration after the change.

    Raises:
        MembershipRefusedError: the change makes no sense here.
    """
    members = {member.id: member for member in configuration.members}
    match change:
        case AddLearner(member):
            if member.id in members:
                raise MembershipRefusedError(f"{member.id} is a member already")
            if len(members) >= MEMBERS_MAX:
                raise MembershipRefusedError(f"there are {len(members)} members already (limit {MEMBERS_MAX})")
            members[member.id] = msgspec.structs.replace(member, voter=False)
        case Promote(node) | Remove(node) | UpdateAddresses(node) if node not in members:
            raise MembershipRefusedError(f"{node} is not a member")
        case Promote(node):
            if members[node].voter:
                raise MembershipRefusedError(f"{node} is a voter already")
            members[node] = msgspec.structs.replace(members[node], voter=True)
        case Remove(node):
            if configuration.voters() == (node,):
                raise MembershipRefusedError(f"{node} is the last voter")
            del members[node]
        case UpdateAddresses(node, peer_url, client_url):
            members[node] = msgspec.structs.replace(members[node], peer_url=peer_url, client_url=client_url)
        case _:
            assert_never(change)
    return Configuration(tuple(members[node] for node in sorted(members)))


class Configurations:
    """The configurations in the log: the one in force, and those to return to on truncation.

    Args:
        index: the index at which ``configuration`` was in force (a snapshot's, or 0).
        configuration: the one in force there.
    """

    def __init__(self, index: int, configuration: Configuration) -> None:
        self._history = [(index, configuration)]

    @property
    def latest(self) -> Configuration:
        """The one in force: the last in the log, committed or not (thesis 4.1)."""
        return self._history[-1][1]

    @property
    def latest_index(self) -> int:
        """The index of the one in force."""
        return self._history[-1][0]

    def has_voter(self, node: NodeId, commit_index: int) -> bool:
        """Return whether ``node`` is a voter: in the configuration in force, or before it while that is not committed.

        A server whose removal is not committed may still be needed to commit it (thesis 4.2.2, Figure 4.6). The
        configurations before the last two are superseded: one change at a time.
        """
        return any(node in configuration.voters() for configuration in self.possible(commit_index))

    def possible(self, commit_index: int) -> tuple[Configuration, ...]:
        """Return the configurations that other servers may have in force.

        They are the last one and, while that is not committed, the one before it.
        """
        possible = self._history[-2:] if self.latest_index > commit_index else self._history[-1:]
        return tuple(configuration for _, configuration in possible)

    def restore(self, index: int, configuration: Configuration) -> None:
        """Replace them all by the one in force at ``index``, a snapshot's (section 7)."""
        self._history = [(index, configuration)]

    def append(self, index: int, configuration: Configuration) -> None:
        """Put a configuration in force that was appended at ``index``."""
        self._history.append((index, configuration))

    def note(self, entries: Sequence[Entry]) -> None:
        """Put in force what entries carry that were appended to the log.

        Raises:
            InvariantViolatedError: a configuration does not decode.
        """
        for entry in entries:
            if entry.kind is EntryKind.CONFIGURATION:
                try:
                    configuration = decode_configuration(entry.data)
                except msgspec.DecodeError as error:
                    raise InvariantViolatedError(f"entry {entry.index} is not a configuration: {error}") from error
                self.append(entry.index, configuration)

    def truncate(self, index: int) -> None:
        """Return to what was in force before ``index``."""
        while len(self._history) > 1 and self._history[-1][0] >= index:
            self._history.pop()

    def at(self, index: int) -> Configuration:
        """Return the configuration in force at ``index``, which must not be compacted away."""
        return next((known for since, known in reversed(self._history) if since <= index), self._history[0][1])

    def compact(self, index: int) -> None:
        """Forget what nothing after ``index`` can return to."""
        while len(self._history) > 1 and self._history[1][0] <= index:
            self._history.pop(0)
