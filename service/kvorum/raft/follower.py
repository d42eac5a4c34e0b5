"""How a follower takes AppendEntries (section 5.3; Figure 2, "Receiver implementation")."""

from __future__ import annotations

from kvorum.errors import InvariantViolated
from kvorum.raft.log import RaftLog
from kvorum.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    Heartbeat,
    HeartbeatResponse,
    Message,
    NodeId,
)


def answer_append_entries(
    node: NodeId, current_term: int, log: RaftLog, message: AppendEntries
) -> tuple[AppendEntriesResponse, tuple[Entry, ...]]:
    """Bring the log in line with the leader's; return the answer and what was appended.

    Entries that are already there are skipped; the log is truncated only at the first real conflict, never at or below
    the commit index, so that a late message undoes nothing (bug B14). The answer claims only what this message proves
    to match, never the log's own length (bug B13).

    Raises:
        InvariantViolated: the message contradicts a committed entry, or its entries leave a gap.
    """

    def answer(success: bool, index: int, hint_index: int = 0, hint_term: int = 0) -> AppendEntriesResponse:
        return AppendEntriesResponse(
            term=current_term,
            sender=node,
            recipient=message.sender,
            success=success,
            index=index,
            hint_index=hint_index,
            hint_term=hint_term,
        )

    last_new_index = message.prev_log_index + len(message.entries)
    _check_committed(log, message)
    if last_new_index <= log.commit_index:
        return answer(True, log.commit_index), ()
    entries = message.entries
    if message.prev_log_index < log.commit_index:
        # Committed here, so equal there (Leader Completeness); the term may be compacted away.
        entries = entries[log.commit_index - message.prev_log_index :]
    elif not log.matches(message.prev_log_index, message.prev_log_term):
        hint_index, hint_term = log.last_not_above(message.prev_log_index, message.prev_log_term)
        return answer(False, message.prev_log_index, hint_index, hint_term), ()
    appended: tuple[Entry, ...] = ()
    for position, entry in enumerate(entries):
        if not log.matches(entry.index, entry.term):
            appended = entries[position:]
            if entry.index <= log.last_index:
                log.truncate(entry.index)
            log.append(appended)
            break
    log.commit_to(min(message.leader_commit, last_new_index))
    return answer(True, last_new_index), appended


def answer_an_old_leader(
    node: NodeId, current_term: int, message: Message
) -> tuple[AppendEntriesResponse | HeartbeatResponse, ...]:
    """A deposed leader learns of the new term from the answer (section 5.1); others need none."""
    match message:
        case Heartbeat():
            return (HeartbeatResponse(term=current_term, sender=node, recipient=message.sender, round=0),)
        case AppendEntries():
            refusal = AppendEntriesResponse(
                term=current_term, sender=node, recipient=message.sender, success=False, index=message.prev_log_index
            )
            return (refusal,)
        case _:
            return ()


def _check_committed(log: RaftLog, message: AppendEntries) -> None:
    """What is committed here is in the log of every later leader (Leader Completeness, section 5.4.3)."""
    known = [(message.prev_log_index, message.prev_log_term)]
    known += [(entry.index, entry.term) for entry in message.entries[: max(0, log.commit_index - known[0][0])]]
    for index, term in known:
        if index <= log.commit_index and log.term(index) not in (None, term):
            raise InvariantViolated(
                f"{message.sender} has an entry {index} of term {term}, yet one of term {log.term(index)} is committed"
            )
