"""What a follower does with what its leader sends (section 5.3 and 7; Figures 2 and 13, "Receiver implementation")."""

from __future__ import annotations

from typing import assert_never

from kvorum.errors import CommitsLostError, DiskSetBackError
from kvorum.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Fetch,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    LeaderMessage,
    Message,
    NodeId,
)
from kvorum.raft.state import State
from kvorum.raft.status import Role


class Follower:
    """A server that follows the leader of its term, or waits for one.

    Args:
        state: what the roles of this server share.
    """

    role = Role.FOLLOWER

    def __init__(self, state: State) -> None:
        self._state = state
        self._leader_saved_index = -1
        """How much of the leader's log is known to be on its disk; a leader also voted for itself."""

    def on_message(self, message: LeaderMessage) -> None:
        """Take a message from the leader of this term."""
        match message:
            case AppendEntries():
                self._on_append_entries(message)
            case Heartbeat():
                self._on_heartbeat(message)
            case InstallSnapshot():
                self._on_install_snapshot(message)
            case _:
                assert_never(message)

    def _on_append_entries(self, message: AppendEntries) -> None:
        """Bring the log in line with the leader's, and answer.

        Entries that are already there are skipped. The log is truncated only at the first real conflict, never at or
        below the commit index, so that a late message undoes nothing. The answer claims what this message proves to
        match, never the log's own length.

        Raises:
            CommitsLostError: the message contradicts a committed entry.
        """
        log, entries = self._state.log, message.entries
        last_new_index = message.prev_log_index + len(entries)
        if message.prev_log_index <= log.commit_index:
            self._check_committed(message)
        if last_new_index <= log.commit_index:
            self._answer(message, True, log.commit_index)
            return
        if message.prev_log_index < log.commit_index:
            # Committed here, so equal there (Leader Completeness); the term may be compacted away.
            entries = entries[log.commit_index - message.prev_log_index :]
        elif not log.matches(message.prev_log_index, message.prev_log_term):
            hint = log.find_conflict_by_term(message.prev_log_index, message.prev_log_term)
            self._answer(message, False, message.prev_log_index, hint)
            return
        for position, entry in enumerate(entries):
            if not log.matches(entry.index, entry.term):
                if entry.index <= log.last_index:
                    log.truncate(entry.index)
                    self._state.configurations.truncate(entry.index)
                log.append(entries[position:])
                self._state.configurations.note(entries[position:])
                break
        log.commit_to(min(message.leader_commit, last_new_index))
        self._answer(message, True, last_new_index)
        if message.saved_index > self._leader_saved_index:
            self._note_saved(message.sender, min(message.saved_index, last_new_index))

    def _check_committed(self, message: AppendEntries) -> None:
        """What is committed here is in the log of every later leader (Leader Completeness, section 5.4.3)."""
        log = self._state.log
        known = [(message.prev_log_index, message.prev_log_term)]
        known += [(entry.index, entry.term) for entry in message.entries[: log.commit_index - message.prev_log_index]]
        for index, term in known:
            if log.term(index) not in (None, term):
                raise CommitsLostError(
                    f"{message.sender} has an entry {index} of term {term}, "
                    f"yet one of term {log.term(index)} is committed"
                )

    def _answer(self, message: AppendEntries, success: bool, index: int, hint: tuple[int, int] = (0, 0)) -> None:
        state = self._state
        term, hint_index, hint_term = state.current_term, *hint
        response = AppendEntriesResponse(
            term, state.id, message.sender, success=success, index=index, hint_index=hint_index, hint_term=hint_term
        )
        state.send(response, after_save=success and index > state.log.saved_index)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        """Answer at once: the answer says nothing about the log.

        Raises:
            DiskSetBackError: the leader knows this server to hold an entry that is not here.
        """
        state = self._state
        if message.commit_index > state.log.last_index:
            raise DiskSetBackError(
                f"{message.sender} says that this node acknowledged entry {message.commit_index} in term "
                f"{message.term}, and the log ends at {state.log.last_index}"
            )
        state.log.commit_to(message.commit_index)
        if message.saved_index > self._leader_saved_index and message.commit_index > self._leader_saved_index:
            self._note_saved(message.sender, min(message.saved_index, message.commit_index))
        response = HeartbeatResponse(
            state.current_term, state.id, message.sender, round=message.round, free_bytes=state.free_bytes
        )
        state.send(response)

    def _note_saved(self, leader: NodeId, index: int) -> None:
        """Remember that the leader's disk holds what is equal here up to ``index``."""
        if index > self._leader_saved_index:
            state, self._leader_saved_index = self._state, index
            state.marks.note(leader, state.current_term, leader, index, state.log.term(index))

    def _on_install_snapshot(self, message: InstallSnapshot) -> None:
        """Have the offered snapshot fetched, or answer at once if the log holds what it covers."""
        if self._state.commit_covered(message.snapshot):
            self.answer_snapshot()
        else:
            self._state.begin_fetch(Fetch(message.sender, message.snapshot))

    def answer_snapshot(self) -> None:
        """Tell the leader, if there is one, where the log stands: it may go on from there."""
        state, index = self._state, self._state.log.commit_index
        if state.leader is not None:
            response = InstallSnapshotResponse(state.current_term, state.id, state.leader, index=index)
            state.send(response, after_save=index > state.log.saved_index)


def answer_old_leader(state: State, message: Message) -> None:
    """Let a deposed leader learn of the new term (section 5.1). Other messages of an old term need no answer."""
    match message:
        case Heartbeat():
            state.send(HeartbeatResponse(state.current_term, state.id, message.sender, round=0))
        case AppendEntries(sender=leader, prev_log_index=index):
            state.send(AppendEntriesResponse(state.current_term, state.id, leader, success=False, index=index))
        case _:
            pass
