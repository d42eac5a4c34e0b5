"""The feature level of the cluster: what each member announces, and when the leader raises the level.

A member announces the highest level that it supports, and where it is reached, when it opens its stream to this node;
its last word counts, also while it is down. Nothing is written before every member, learners included, has announced
the next level, so until then each of them can go back to its version. Then the level is raised by hand, or by the
leader after ``finalize_after``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

import msgspec

from kvorum import __version__
from kvorum.config import Config
from kvorum.config.options import finalize_after_s
from kvorum.errors import CallerError, FeatureLevelBlockedError, NotLeaderError
from kvorum.kv.commands import RaiseFeatureLevel, decode_batch, encode_batch
from kvorum.kv.features import FIRST_LEVEL, HIGHEST_LEVEL, LEVELS, blockers
from kvorum.node.incarnation import ClusterIdentity
from kvorum.node.log_time import LogTime
from kvorum.node.ports import Clock
from kvorum.node.state import State
from kvorum.node.turns import Turns
from kvorum.node.waits import Waits
from kvorum.raft import Raft, Role
from kvorum.raft.membership import MEMBERS_MAX
from kvorum.raft.messages import Configuration, Entry, EntryKind, NodeId

log = logging.getLogger("kvorum.cluster")

ANNOUNCEMENTS_MAX = 4 * MEMBERS_MAX


class Announcement(msgspec.Struct, frozen=True):
    """What a node said of itself last."""

    highest_level: int
    version: str
    peer_url: str = ""
    """Where its peers reach it; empty: it did not say."""
    client_url: str = ""
    """Where its clients reach it; empty: its version does not announce it."""


class FeatureLevels:
    """Raises the level on the leader, and knows on every node what the members announced to it.

    Args:
        config: when the level is raised.
        raft: the consensus server.
        state: whose level it is.
        identity: who we are, and of which cluster.
        waits: completes when the entry of a raise is applied or replaced.
        clock: by which ``finalize_after`` passes; its wall time is where a new cluster's log time begins.
        log_time: the time that entries carry.
        turns: the driver's.
    """

    def __init__(
        self,
        config: Config,
        raft: Raft,
        state: State,
        identity: ClusterIdentity,
        waits: Waits,
        clock: Clock,
        log_time: LogTime,
        turns: Turns,
    ) -> None:
        self._finalize_after_s = finalize_after_s(config.finalize_after)
        self._own = Announcement(HIGHEST_LEVEL, __version__, config.advertise_peer_url, config.advertise_client_url)
        self._raft = raft
        self._state = state
        self._identity = identity
        self._waits = waits
        self._clock = clock
        self._log_time = log_time
        self._turns = turns
        self._announced: dict[NodeId, Announcement] = {}
        self._unblocked_since_s: float | None = None
        self._proposed: tuple[int, int] | None = None
        """(index, term) of the raise that was proposed last."""
        self._logged_level = state.store.feature_level

    # --- What is known ------------------------------------------------------------------------------------------

    @property
    def level(self) -> int:
        """The level in force here."""
        return self._state.store.feature_level

    def needed_level(self) -> int:
        """Return the level that a new member has to support: the one in force, or the one that the log raises it to.

        A raise counts from the moment at which it is in the log, whoever proposed it: a member that is added behind it
        would have to apply it.
        """
        level, raft = self.level, self._raft
        if level < HIGHEST_LEVEL:
            first_index = self._state.store.applied_index + 1
            if first_index <= raft.log.memory_base_index:
                return HIGHEST_LEVEL  # Just after a start: entries that are only on the disk may raise it.
            for entry in raft.log.slice(max(first_index, raft.log.first_index), sys.maxsize):
                level = max(level, _level_raised_by(entry))
        return level

    def announced(
        self, node: NodeId, highest_level: int, version: str, peer_url: str = "", client_url: str = ""
    ) -> None:
        """A node said what it supports, and where it is reached."""
        if node not in self._announced and len(self._announced) >= ANNOUNCEMENTS_MAX:
            members = self._raft.configuration
            self._announced = {each: said for each, said in self._announced.items() if members.get(each) is not None}
        self._announced[node] = Announcement(highest_level, version, peer_url, client_url)

    def announcement(self, node: NodeId) -> Announcement | None:
        """Return what a node announced last; None: it has not opened a stream to this node since this one started."""
        if node == self._raft.id:
            return self._own
        return self._announced.get(node)

    def blockers(self, level: int) -> dict[NodeId, str]:
        """Return the members because of which the level cannot be raised to ``level``, and why, in words."""
        reasons = {}
        for node in blockers(level, self._raft.configuration, self._versions()):
            said = self.announcement(node)
            reasons[node] = (
                f"{node} has not announced its version to this leader (is it down?)"
                if said is None
                else f"{node} runs {said.version}, which supports feature level {said.highest_level}"
            )
        return reasons

    # --- Raising it ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Raise the level when it is time. Called once a tick; costs nothing where there is nothing to raise."""
        if self._logged_level != self.level:
            self._logged_level = self.level
            version = LEVELS[self.level - 1].version
            log.info("the cluster is at feature level %d: versions before %s can no longer start", self.level, version)
        if self._raft.role is not Role.LEADER or self.level >= HIGHEST_LEVEL or self._finalize_after_s is None:
            self._unblocked_since_s = None
            return
        level = self.level + 1
        if not self._raft.configuration.members or blockers(level, self._raft.configuration, self._versions()):
            self._unblocked_since_s = None
            return
        now_s = self._clock.monotonic()
        if self._unblocked_since_s is None:
            if self.needed_level() >= level:
                return  # The log raises it already: a new cluster's begins so.
            self._unblocked_since_s = now_s
            if self._finalize_after_s:
                log.info(
                    "every member supports feature level %d; raising it in %.0f s unless one is rolled back",
                    level,
                    self._finalize_after_s,
                )
        if now_s - self._unblocked_since_s >= self._finalize_after_s and not self._is_under_way():
            try:
                self._propose(level)
            except CallerError as error:
                log.debug("cannot raise the feature level now: %s", error)

    async def finalize(self, timeout_ms: int) -> int:
        """Raise the level as far as this version goes, now, and return it once it is applied here.

        Raises:
            NotLeaderError, OverloadedError: not raised.
            FeatureLevelBlockedError: not raised, or not all the way: a member does not support the next level.
            OutcomeUnknownError: it may be raised.
        """
        deadline_s = self._clock.monotonic() + timeout_ms / 1000
        while self.level < HIGHEST_LEVEL:
            level = self.level + 1
            reasons = self.blockers(level)
            if self._raft.role is not Role.LEADER:
                leader = self._raft.leader
                if leader is None or leader not in reasons or leader not in self._announced:
                    raise NotLeaderError(leader)
                # It would not know what is asked of it.
                reasons = {leader: reasons[leader]}
            if reasons:
                raise FeatureLevelBlockedError(
                    f"the cluster stays at feature level {self.level}; level {level} needs version "
                    f"{LEVELS[level - 1].version} on every member: {'; '.join(reasons.values())}"
                )
            index, term = self._proposed if self._proposed and self._is_under_way() else self._propose(level)
            await self._waits.entry(index, term, deadline_s - self._clock.monotonic())
            if self.level < level:
                # It was refused: the members changed before it was applied.
                raise FeatureLevelBlockedError(f"the cluster stays at feature level {self.level}: try again")
        return self.level

    def first_entries(self, configuration: Configuration, levels: Mapping[NodeId, int]) -> list[bytes]:
        """Return what a new cluster's log begins with, so that it begins at the highest level that all support."""
        highest = min((levels.get(member.id, FIRST_LEVEL) for member in configuration.members), default=FIRST_LEVEL)
        raised = range(FIRST_LEVEL + 1, min(highest, HIGHEST_LEVEL) + 1)
        return [self._raise(level, levels, self._clock.wall_ms()) for level in raised]

    def _versions(self) -> Mapping[NodeId, int]:
        return {
            member.id: said.highest_level
            for member in self._raft.configuration.members
            if (said := self.announcement(member.id)) is not None
        }

    def _is_under_way(self) -> bool:
        if self._proposed is None:
            return False
        index, term = self._proposed
        return term == self._raft.current_term and self._state.store.applied_index < index

    def _propose(self, level: int) -> tuple[int, int]:
        """Propose the raise. The configuration that was just checked is the one in force at the entry's index."""
        self._proposed = self._raft.propose([self._raise(level, self._versions(), self._log_time.now_ms())])
        self._turns.schedule()
        log.info("raising the feature level to %d: every member supports it", level)
        return self._proposed

    def _raise(self, level: int, versions: Mapping[NodeId, int], time_ms: int) -> bytes:
        command = RaiseFeatureLevel(level, dict(sorted(versions.items())), self._identity.current.cluster_id)
        return encode_batch(time_ms, [command])


def _level_raised_by(entry: Entry) -> int:
    """Return the level to which applying this entry would raise the cluster's, or 0."""
    if entry.kind is not EntryKind.COMMAND:
        return 0
    try:
        commands = decode_batch(entry.data).commands
    except msgspec.DecodeError:  # Of a newer version, if anything: this one ends when it is committed.
        return 0
    return max((command.level for command in commands if isinstance(command, RaiseFeatureLevel)), default=0)
