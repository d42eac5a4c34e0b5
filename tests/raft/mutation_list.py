"""One-line bugs, each of which the paper tests must notice.

``bug`` is B1 to B40 of the bug list, or the section of the paper or the thesis that is broken. ``old`` occurs exactly
once in ``file`` (below service/kvorum/raft).
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """Replace ``old`` by ``new`` in ``file``."""

    bug: str
    file: str
    old: str
    new: str


MUTATIONS: tuple[Mutation, ...] = (
    Mutation("B1", "roles.py", "self._outbox.enter(HardState(current_term, voted_for))", "pass"),
    Mutation("B3", "outbox.py", "self._after_save.clear()", "pass"),
    Mutation("B1", "roles.py", "self._set_hard_state(self.current_term, message.sender)", "pass"),
    Mutation("B2", "roles.py", "self._set_hard_state(term, None)", "self.current_term = term"),
    Mutation("B3", "outbox.py", "if after_save or self.durable != self.current:", "if after_save:"),
    Mutation(
        "B3",
        "raft.py",
        "self._outbox.send(response, after_save=response.success and response.index > self.log.saved_index)",
        "self._outbox.send(response)",
    ),
    Mutation("B3", "raft.py", "after_save=self.log.commit_index > self.log.saved_index,", "after_save=False,"),
    Mutation(
        "B3",
        "raft.py",
        "self._outbox.durable = self._saves.done(number)",
        "self._saves.done(number)\n        self._outbox.durable = self._outbox.current",
    ),
    Mutation(
        "B4", "roles.py", "elif self.role is not Role.CANDIDATE or message.term != self.current_term:", "elif False:"
    ),
    Mutation("B4", "roles.py", "if self.role is not Role.PRE_CANDIDATE or message.term != asked_term:", "if False:"),
    Mutation("B4", "roles.py", "self._ballot = Ballot(self._config.id)\n        for voter", "for voter"),
    Mutation(
        "B5", "log.py", "return (last_log_term, last_log_index) >= (self.last_term, self.last_index)", "return True"
    ),
    Mutation(
        "B5",
        "log.py",
        "return (last_log_term, last_log_index) >= (self.last_term, self.last_index)",
        "return last_log_index >= self.last_index",
    ),
    Mutation(
        "B5", "roles.py", "return is_voter and not self._saves.is_restoring", "return not self._saves.is_restoring"
    ),
    Mutation("B6", "roles.py", "term=message.term if granted else self.current_term,", "term=self.current_term,"),
    Mutation(
        "B6",
        "raft.py",
        "if message.term > self.current_term and not self._is_granted_pre_vote(message):",
        "if message.term > self.current_term and not isinstance(message, RequestVoteResponse):",
    ),
    Mutation("B6", "leader.py", "if len(self._active_voters()) < self._configurations.latest.quorum():", "if False:"),
    Mutation("B6", "raft.py", "self._outbox.send(answer)", "pass"),
    Mutation(
        "B7",
        "roles.py",
        "if not message.leadership_transfer and self._hears_leader() and message.term > self.current_term:",
        "if False:",
    ),
    Mutation(
        "B7",
        "roles.py",
        "term=self.current_term + 1 if pre_vote else self.current_term,",
        "term=self.current_term + 1,",
    ),
    Mutation(
        "B8",
        "roles.py",
        "if self.is_disk_stalled:\n                self.leader_state",
        "if False:\n                self.leader_state",
    ),
    Mutation("B8", "roles.py", "self.leader_state.send_timeout_now_to_the_furthest()", "pass"),
    Mutation("B9", "leader.py", "if not self._is_active(target):", "if False:"),
    Mutation("B8", "roles.py", "and not self.is_disk_stalled", ""),
    Mutation(
        "B8", "saves.py", "self._elapsed = 0\n        self._in_flight = hard_state", "self._in_flight = hard_state"
    ),
    Mutation("5.2", "election.py", "voted_for in (None, message.sender)", "True"),
    Mutation("5.2", "election.py", "self._timeout = ticks + self._random.randrange(ticks)", "self._timeout = ticks"),
    Mutation("5.2", "messages.py", "return len(self.voters()) // 2 + 1", "return (len(self.voters()) + 1) // 2"),
    Mutation(
        "5.2",
        "election.py",
        "sum(self._votes.get(voter, False) for voter in configuration.voters())",
        "sum(self._votes.values())",
    ),
    Mutation("5.2", "roles.py", "self.leader_state.broadcast_heartbeat()", "pass"),
    Mutation("5.2", "roles.py", "self._timer.restart()\n\n    def on_request_vote", "\n\n    def on_request_vote"),
    Mutation(
        "5.2", "roles.py", "self.role = Role.FOLLOWER  # A pre-candidate gives way", "pass  # A pre-candidate gives way"
    ),
    Mutation("5.2", "election.py", "return refused > len(voters) - configuration.quorum()", "return False"),
    Mutation("5.2", "election.py", "self._votes.setdefault(node, granted)", "self._votes[node] = granted"),
    Mutation("B6", "election.py", "return message.term > current_term\n", "return True\n"),
    Mutation(
        "B7",
        "election.py",
        "return self._elapsed < self._config.election_timeout_ticks and not self.is_leader_suspected",
        "return not self.is_leader_suspected",
    ),
    Mutation("hint", "election.py", "self._timeout = min(self._timeout, soon)", "pass"),
    Mutation("5.2", "roles.py", "if self.leader not in (None, leader):", "if False:"),
    Mutation("B34", "raft.py", "if self.log.last_term > hard_state.current_term:", "if False:"),
    Mutation(
        "B9",
        "leader.py",
        "if self.transfer_target is not None:\n            raise Overloaded",
        "if False:\n            raise Overloaded",
    ),
    Mutation("B9", "leader.py", "if self._transfer_elapsed >= self._config.election_timeout_ticks:", "if False:"),
    Mutation(
        "B9",
        "leader.py",
        "if node == self.transfer_target and progress.match_index == self._log.last_index:",
        "if node == self.transfer_target:",
    ),
    Mutation("B9", "leader.py", "if self.progress[target].match_index == self._log.last_index:", "if True:"),
    Mutation(
        "B10",
        "leader.py",
        "if index <= self._log.commit_index or self._log.term(index) != self.term:",
        "if index <= self._log.commit_index:",
    ),
    Mutation("B10", "roles.py", 'self.leader_state.append(EntryKind.NOOP, [b""])', "pass"),
    Mutation(
        "B11",
        "follower.py",
        "log.commit_to(min(message.leader_commit, last_new_index))",
        "log.commit_to(min(message.leader_commit, log.last_index))",
    ),
    Mutation(
        "B11",
        "leader.py",
        "progress.commit_sent = min(progress.match_index, self._log.commit_index)\n",
        "progress.commit_sent = self._log.commit_index\n",
    ),
    Mutation(
        "B12",
        "log.py",
        "if index <= self.commit_index:\n            return False",
        "if False:\n            return False",
    ),
    Mutation(
        "B12",
        "progress.py",
        "if index <= self.match_index:\n            return False",
        "if False:\n            return False",
    ),
    Mutation(
        "B13",
        "follower.py",
        "return answer(True, last_new_index), appended",
        "return answer(True, log.last_index), appended",
    ),
    Mutation("B13", "log.py", "self._in_flight_index = min(self._in_flight_index, index - 1)", "pass"),
    Mutation("B13", "log.py", "self.saved_index = min(self.saved_index, index - 1)", "pass"),
    Mutation("B14", "follower.py", "if not log.matches(entry.index, entry.term):", "if True:"),
    Mutation("B14", "follower.py", "if last_new_index <= log.commit_index:", "if False:"),
    Mutation("B14", "follower.py", "if message.prev_log_index < log.commit_index:", "if False:"),
    Mutation(
        "B14", "follower.py", "if index <= log.commit_index and log.term(index) not in (None, term):", "if False:"
    ),
    Mutation(
        "5.3",
        "follower.py",
        "elif not log.matches(message.prev_log_index, message.prev_log_term):",
        "elif message.prev_log_index > log.last_index:",
    ),
    Mutation("5.3", "follower.py", "log.truncate(entry.index)", "pass"),
    Mutation("B15", "leader.py", "if full or progress.next_index > self._log.last_index:", "if False:"),
    Mutation("B15", "leader.py", "progress.become_probe()  # The log was compacted", "pass  # The log was compacted"),
    Mutation(
        "B15",
        "leader.py",
        "progress.probe_sent = False\n        if progress.state is not ReplicationState.REPLICATE or",
        "if progress.state is not ReplicationState.REPLICATE or",
    ),
    Mutation(
        "B15",
        "leader.py",
        "progress.next_index = max(progress.match_index, min(agreed, message.index - 1)) + 1",
        "pass",
    ),
    Mutation(
        "B15",
        "leader.py",
        "if message.index > progress.match_index:\n                progress.become_probe()",
        "if False:\n                progress.become_probe()",
    ),
    Mutation(
        "B16",
        "log.py",
        "entries = self.slice(self.applied_index + 1, bytes_max, min(self.commit_index, self.saved_index))",
        "entries = self.slice(self.applied_index + 1, bytes_max, self.commit_index)",
    ),
    Mutation("B16", "leader.py", "return self._log.saved_index", "return self._log.last_index"),
    Mutation("B18", "leader.py", "if progress.quiet_ticks >= self._config.heartbeat_timeout_ticks:", "if True:"),
    Mutation(
        "B18",
        "leader.py",
        "if progress.state is not ReplicationState.PROBE or message.index != progress.next_index - 1:",
        "if progress.state is not ReplicationState.PROBE:",
    ),
    Mutation(
        "B18",
        "leader.py",
        "or progress.state is not ReplicationState.REPLICATE:\n                return",
        ":\n                return",
    ),
    Mutation(
        "flow",
        "progress.py",
        "return len(self._inflight) >= messages_max or self._inflight_bytes >= bytes_max",
        "return False",
    ),
    Mutation("flow", "leader.py", "if self._uncommitted_bytes > self._config.uncommitted_bytes_max:", "if False:"),
    Mutation(
        "flow", "leader.py", "self._uncommitted_bytes -= self._uncommitted.popleft()[1]", "self._uncommitted.popleft()"
    ),
    Mutation(
        "garbage", "leader.py", "if index > self._log.last_index:\n            return", "if False:\n            return"
    ),
    Mutation(
        "B15",
        "progress.py",
        "self.next_index = self.match_index + 1\n        self._reset()\n\n    def become_replicate",
        "self._reset()\n\n    def become_replicate",
    ),
    Mutation(
        "B11",
        "leader.py",
        "if progress.commit_sent < min(progress.match_index, self._log.commit_index) and not progress.has_inflight():",
        "if False:",
    ),
    Mutation("5.3", "log.py", "if found <= term:", "if found < term:"),
    Mutation(
        "B19",
        "leader.py",
        "if self._reads.can_start() and self.has_committed_in_term():",
        "if self._reads.can_start():",
    ),
    Mutation(
        "B20",
        "leader.py",
        "for released in self._reads.confirmed(rounds[len(voters) // 2]):",
        "for released in self._reads.confirmed(rounds[0]):",
    ),
    Mutation(
        "B21", "leader.py", "acknowledged = min(message.round, self._reads.number)", "acknowledged = self._reads.number"
    ),
    Mutation(
        "B21", "leader.py", "acknowledged = min(message.round, self._reads.number)", "acknowledged = message.round"
    ),
    Mutation("B21", "reads.py", "self.number += 1", "self.number = self.number or 1"),
    Mutation("B21", "reads.py", "while self._rounds and self._rounds[0][0] <= number:", "while self._rounds:"),
    Mutation(
        "6.4", "reads.py", "tuple(read for read in self._passed if read.index <= applied_index)", "tuple(self._passed)"
    ),
    Mutation(
        "6.4",
        "roles.py",
        "self._reads.refused(self.leader_state.abandon_reads())",
        "self.leader_state.abandon_reads()",
    ),
    Mutation(
        "6.4",
        "raft.py",
        "if message.sender != self.leader:\n            return",
        "if False:\n            return",
    ),
    Mutation(
        "6.4",
        "roles.py",
        "if leader != self.leader:\n            self._reads.leader_changed()",
        "if False:\n            pass",
    ),
    Mutation("6.4", "roles.py", "self.leader = None\n        self._reads", "self._reads"),
    Mutation("B21", "reads.py", "if asked == context:\n                return", "pass"),
    Mutation("6.4", "reads.py", "for asked in list(self._asked):", "for asked in [context]:"),
    Mutation("B18", "reads.py", "self._quiet_ticks = 0\n        return next", "return next"),
    Mutation("flow", "reads.py", "self._latest[read.origin] = read", "self._own[read] = None"),
    Mutation("flow", "raft.py", "self._leader_state.abandon_read(context)", "pass"),
    Mutation("B26", "raft.py", "if snapshot.last_index > self.log.commit_index:", "if True:"),
    Mutation(
        "B26", "raft.py", "elif self.log.term(snapshot.last_index) not in (None, snapshot.last_term):", "elif False:"
    ),
    Mutation(
        "B26",
        "raft.py",
        "if self.log.matches(snapshot.last_index, snapshot.last_term):",
        "if self.log.last_index >= snapshot.last_index:",
    ),
    Mutation("B26", "raft.py", "self.log.applied_index = restore.last_index", "pass"),
    Mutation("B26", "raft.py", "self._saves.adopt(snapshot)", "pass"),
    Mutation(
        "B26",
        "saves.py",
        "self._snapshot_to_save = snapshot\n        self._snapshot_to_restore = None",
        "self._snapshot_to_save = snapshot",
    ),
    Mutation("B26", "saves.py", "if not self.has_snapshot:", "if True:"),
    Mutation("B26", "roles.py", "and not self._saves.is_restoring", ""),
    Mutation(
        "B26", "raft.py", "return min(self.log.first_index, snapshot.last_index + 1)", "return self.log.first_index"
    ),
    Mutation("B26", "log.py", "if index > self.applied_index:\n            raise", "if False:\n            raise"),
    Mutation(
        "7",
        "raft.py",
        "return Snapshot(index, term, self.configurations.at(index))",
        "return Snapshot(index, term, self.configuration)",
    ),
    Mutation("7", "raft.py", "self.configurations.restore(snapshot.last_index, snapshot.configuration)\n", "pass\n"),
    Mutation(
        "7",
        "leader.py",
        "if progress.snapshot_ticks >= self._config.election_timeout_ticks and self._is_active(node):",
        "if False:",
    ),
    Mutation("7", "leader.py", "progress.become_snapshot()", "pass"),
    Mutation(
        "B26",
        "saves.py",
        "return self.has_snapshot or self._snapshot_saving is not None",
        "return self.has_snapshot",
    ),
    Mutation("B26", "log.py", "self.saved_index = 0\n", "self.saved_index = index\n"),
    Mutation(
        "B26",
        "log.py",
        "self.saved_index = 0\n        self._handed_index = index\n        self._in_flight_index = 0",
        "self.saved_index = 0\n        self._handed_index = index",
    ),
    Mutation("B27", "leader.py", "if not self.has_committed_in_term():", "if False:"),
    Mutation("B27", "leader.py", "if self._configurations.latest_index > self._log.commit_index:", "if False:"),
    Mutation("B28", "raft.py", "self.configurations.truncate(appended[0].index)", "pass"),
    Mutation("B28", "leader.py", "self._configurations.append(index, configuration)", "pass"),
    Mutation("4.2.1", "leader.py", "is_here = self._is_active(node) and progress.match_index > 0", "is_here = True"),
    Mutation(
        "4.2.1",
        "leader.py",
        "is_here = self._is_active(node) and progress.match_index > 0",
        "is_here = self._is_active(node)",
    ),
    Mutation("4.2.1", "leader.py", "if not is_here or lag > self._config.promote_lag_max:", "if not is_here:"),
    Mutation(
        "4.2.1",
        "membership.py",
        "members[member.id] = msgspec.structs.replace(member, voter=False)",
        "members[member.id] = member",
    ),
    Mutation("4.2.2", "roles.py", "if state is None or (member is not None and member.voter):", "if True:"),
    Mutation(
        "4.2.2",
        "roles.py",
        "state.broadcast_heartbeat()\n            state.send_timeout_now_to_the_furthest()",
        "state.broadcast_heartbeat()",
    ),
    Mutation(
        "4.2.2",
        "membership.py",
        "possible = self._history[-2:] if self.latest_index > commit_index else self._history[-1:]",
        "possible = self._history[-1:]",
    ),
    Mutation(
        "4.2.2",
        "membership.py",
        "possible = self._history[-2:] if self.latest_index > commit_index else self._history[-1:]",
        "possible = self._history[-2:]",
    ),
    Mutation("4.2.2", "leader.py", "if len(live) < configuration.quorum():", "if False:"),
    Mutation("4.2.2", "leader.py", "or self._has_answered(v)]", "or self._is_active(v)]"),
    Mutation("6.4", "leader.py", "self._release_reads()  # A smaller quorum", "pass  # A smaller quorum"),
    Mutation(
        "4.2.2",
        "leader.py",
        "if progress is None:\n            return\n        progress.silent_ticks = 0\n        if message.success:",
        "progress = progress or Progress(1)\n        if message.success:",
    ),
    Mutation(
        "codec",
        "codec.py",
        "if entry.index != index + 1 or not max(term, 1) <= entry.term <= message.term:",
        "if False:",
    ),
    Mutation("codec", "codec.py", "if min(numbers) < 0 or max(numbers) >= INDEX_MAX:", "if min(numbers) < 0:"),
    Mutation("codec", "codec.py", "if log_term > message.term:", "if False:"),
    Mutation("codec", "codec.py", "if (index == 0) != (log_term == 0):", "if False:"),
    Mutation(
        "identity",
        "raft.py",
        "if message.recipient != self.id or message.sender == self.id:",
        "if message.recipient != self.id:",
    ),
    Mutation(
        "identity",
        "raft.py",
        "if message.recipient != self.id or message.sender == self.id:",
        "if message.sender == self.id:",
    ),
)
