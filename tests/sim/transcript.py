"""Messages as a person reads them."""

from __future__ import annotations

from kvorum.node.handover_messages import decode_handover
from kvorum.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HandOver,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)

_KINDS = {EntryKind.COMMAND: "", EntryKind.NOOP: " no-op", EntryKind.CONFIGURATION: " configuration"}


def describe_entries(entries: tuple[Entry, ...]) -> str:
    """Return entries as ``5..7 of term 3``, with what they are if they are not commands."""
    if not entries:
        return "no entries"
    parts: list[str] = []
    for entry in entries:
        parts.append(f"{entry.index}/{entry.term}{_KINDS[EntryKind(entry.kind)]}")
    return "entries " + ", ".join(parts) if len(parts) <= 6 else f"entries {parts[0]} .. {parts[-1]}"


def describe(message: Message) -> str:
    """Return one message as one line: who says what. Entries and log positions are written ``index/term``."""
    return f"{message.sender}: {phrase(message)} (term {message.term})"


def phrase(message: Message) -> str:
    """Return what a message says, without who says it and in which term."""
    match message:
        case RequestVote():
            kind = "PreVote" if message.pre_vote else "RequestVote"
            told = ", told to by the leader" if message.leadership_transfer else ""
            return f"{kind}, my log ends at {message.last_log_index}/{message.last_log_term}{told}"
        case RequestVoteResponse():
            kind = "pre-vote" if message.pre_vote else "vote"
            return f"{kind} {'granted' if message.vote_granted else 'refused'}"
        case AppendEntries():
            after = f"after {message.prev_log_index}/{message.prev_log_term}"
            return f"AppendEntries {after}: {describe_entries(message.entries)}; commit {message.leader_commit}"
        case AppendEntriesResponse():
            if message.success:
                return f"I hold everything up to {message.index}"
            return f"I do not hold {message.index}; try {message.hint_index}/{message.hint_term}"
        case Heartbeat():
            return f"Heartbeat, commit {message.commit_index}, round {message.round}"
        case HeartbeatResponse():
            return f"Heartbeat answered, round {message.round}"
        case ReadIndex():
            return f"ReadIndex {message.context & 0xFFFFFFFF}"
        case ReadIndexResponse():
            return f"ReadIndex {message.context & 0xFFFFFFFF}: {message.index or 'refused'}"
        case InstallSnapshot():
            return f"InstallSnapshot up to {message.snapshot.last_index}/{message.snapshot.last_term}"
        case InstallSnapshotResponse():
            return f"my log begins behind {message.index}"
        case TimeoutNow():
            return "TimeoutNow: campaign at once"
        case HandOver():
            return f"HandOver: {decode_handover(message.data, message.sender)}"
