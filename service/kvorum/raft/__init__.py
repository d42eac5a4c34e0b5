"""Consensus: Raft as a synchronous, deterministic state machine that returns values.

Theory of operation
===================

The sources are the extended Raft paper (Ongaro and Ousterhout, "section" and "Figure" below) and Ongaro's thesis of
2014 ("thesis"). One :class:`Raft` is one server. It has no clock, no thread, no file and no socket; its driver has
them all.

What goes in: a tick, a message from a peer, a proposal, "save number n is durable". Each changes the state at once
and never waits. What comes out: :meth:`Raft.ready`, everything there is to do now, handed over exactly once. ::

    tick() step(message) propose() read_index() transfer_leadership() propose_change()        saved(number)
        |                                                                                           ^
        v                                                                                           |
      Raft  -->  Ready:  save  ----------------------------------------------------------->  the disk, one write
                         messages             to the peers, at once                                 |
                         messages_after_save  to the peers, when this save is durable  <------------+
                         restore, committed   to the state machine, in this order
                         reads, reads_refused to those who wait

Roles
-----
A server is a follower, a pre-candidate, a candidate or a leader (:class:`Role`). A learner, and a server that no
configuration names yet, is a follower that never campaigns. What a leader knows lives in a
:class:`~kvorum.raft.leader.Leader`, which exists for one term of one leadership and is thrown away with it: nothing
of one term can leak into another.

One save in flight
------------------
At most one save is on its way to the disk; what comes meanwhile fills the next one. A save holds the term, the vote,
the entries that no save was given yet (they replace the log from the first of them on) and an adopted snapshot: all
of it becomes durable together, or none. To the core the local disk is one more voter: a leader's own log counts
towards a quorum as far as it is *saved* (thesis 10.2.1), and only what is committed *and* saved here is handed over
for applying. So on every server ``applied <= saved``, and after a crash a server never has less log than its state
machine had seen.

A truncation takes back what counts as saved (:class:`~kvorum.raft.log.RaftLog`): entries that a save in flight
carries and that were replaced meanwhile are not saved by its answer; those that replaced them are in the next save.

What may leave before a save, and why
-------------------------------------
A message must not reveal what a crash could make undone.

- Every message carries the term, and most of them follow from the vote. So *nothing* leaves while the term or the
  vote in memory is not the one on disk: one rule, in :class:`~kvorum.raft.outbox.Outbox`. Votes, refusals in a new
  term and a candidate's requests all fall under it.
- "I hold entries up to n" waits until they are saved. It may leave with a later save than the one it needs: by then
  those entries may have been replaced by a later leader's, and the answer, of an older term, is still safe to send.
  (It was true when the entries were accepted; whoever elected the later leader had not accepted them before it
  voted.)
- A leader's AppendEntries leaves while its own save runs: the entries are the followers' to save, and its own copy is
  not counted before it is durable. A leader that crashes and forgets them cannot lead that term again.
- Heartbeats and their answers, pre-votes, refusals and read barriers say nothing about what is on disk. They never
  wait for entries; a slow disk does not look like a dead server. A disk that makes no progress for an election
  timeout (or as long as configured) does: its server steps down in favour of another, and does not campaign.

Elections
---------
A follower that hears no leader for its timeout, drawn anew each time from T to 2T-1 ticks, first asks whether it
could win (pre-vote, thesis 9.6); only a majority of yes makes it enter a new term. A server that heard a leader
within T does not answer a candidate at all (section 6, thesis 4.2.3), and a leader that hears no majority for T steps
down (thesis 6.2): so a server that is cut off, removed or restarted disturbs nobody, and a leader that is cut off
does not linger. A server whose term is ahead of its leader's answers that leader's heartbeat with it, so that nothing
is stuck.

Replication
-----------
The leader tracks each member as *probe* (where do our logs agree? one message at a time), *replicate* (entries are
sent ahead of the answers, within a window) or *snapshot* (:mod:`~kvorum.raft.progress`). A refusal names the last
entry of the follower whose term is no later than the one that was asked about, which skips a whole term at a time.
When nothing was sent for a heartbeat's time and something is unanswered, the leader asks with an empty AppendEntries;
a refusal leads back to probe. An answer claims what its message proved to match, never the length of the follower's
log.

Entries are committed by counting only in the leader's own term (section 5.4.2); it begins with an empty entry, so
that this comes soon, and so that its commit index is known to be current.

Reads
-----
ReadIndex (thesis 6.4): the leader notes its commit index, begins a *numbered round* of heartbeats after the read has
arrived, and lets the read go when a majority answered that round or a later one; the server that asked releases it
when it has applied that index. A late answer to an earlier round proves nothing. Any server can ask; the answer to a
question answers every earlier one of the same server, so only the latest waits on the leader, and only the latest is
repeated when nothing comes back. A server that no longer leads says so, and whoever asked it knows that nobody leads.
Nothing rests on clocks; there is no lease for reads.

Snapshots by pull
-----------------
The core knows a snapshot as (last index, last term, configuration). ``InstallSnapshot`` carries that only. The
follower's driver fetches the file from the leader, in chunks that resume, makes it durable, and *then* steps the
message; the core adopts it with the next save, and hands it over as ``restore`` when that is durable. Meanwhile the
follower follows. Of two that overlap only the newer is restored.

Membership
----------
One server at a time, through a learner (thesis chapter 4). A configuration is in force when it is appended, and is
taken back with a truncation. A leader starts no change before an entry of its own term is committed (the bug
announced in 2015), nor while another is not. It promotes only a learner that answers and has nearly everything, and
removes nobody without whom no quorum would answer. A leader that removes itself leaves when that is committed. A
member is a name *and* an incarnation of its disk: an empty disk is a new member, so nobody votes twice by forgetting.

Divergences from the paper, and why
===================================

1. *Only what is saved here is applied here* (the paper applies what is committed). An entry may be committed by the
   followers while the leader's own disk still writes it; it is applied, and so acknowledged, when that is done. It
   costs a little latency in that case, and spares us the question what an applied index beyond the log means.
2. *No answer under the lease*, where the paper refuses: an answer would carry a term or invite another try.
3. *Heartbeat is a message of its own*, not an empty AppendEntries: its answer says nothing of the log and need not
   wait for the disk. It carries a commit index no higher than what the recipient is known to hold.
4. *A hint with one index and term* in place of the conflicting term and its first index: the same number of round
   trips, and one rule for both sides.
5. *A follower that has committed more than it is sent* answers with its commit index, which matches by Leader
   Completeness. What contradicts a committed entry ends the process: it proves a bug.
6. *A refused vote in a higher term starts the election timeout again* (as in etcd; the paper: only a granted one
   does). A candidate needs a majority of pre-votes for that first, so one with an old log cannot hold the others back
   for long.
7. *A candidate that was refused by a majority* becomes a follower at once, and so does a pre-candidate that grants a
   vote: neither could do anything before its timeout but harm.
8. *TimeoutNow* is obeyed from any server that names our term or a later one, not from the leader only: it can only
   cause an election, and the handshake keeps strangers out. It skips the pre-vote; its candidate's requests say that
   the leader sent it, because of the lease.
9. *A leader that is removed, or whose disk makes no progress,* tells the furthest voter to campaign when it steps
   down, so that nobody waits for a timeout.
10. *A server whose own removal is not committed* campaigns and does not vote for itself (thesis 4.2.2). Once it knows
    its removal to be committed it does neither.
11. *A removed member is sent nothing more*, not even the entry that removes it; its driver learns of it by asking.
12. *Snapshots are pulled*, not pushed in AppendEntries-like chunks (section 7): flow control, resuming and checksums
    are the file's, and consensus never holds its bytes.
13. *Leases protect elections only.* The lease reads of thesis 6.4.1 need clocks that one can trust; we do not have
    them.
14. *A broken connection to the leader* brings the election forward to a few ticks. Safe when wrong: the pre-vote
    fails while others hear the leader.

Modules: :mod:`~kvorum.raft.messages` (all values), :mod:`~kvorum.raft.raft` (the server),
:mod:`~kvorum.raft.roles`, :mod:`~kvorum.raft.leader`, :mod:`~kvorum.raft.follower`, :mod:`~kvorum.raft.election`,
:mod:`~kvorum.raft.log`, :mod:`~kvorum.raft.saves`, :mod:`~kvorum.raft.outbox`, :mod:`~kvorum.raft.progress`,
:mod:`~kvorum.raft.reads`, :mod:`~kvorum.raft.membership`, :mod:`~kvorum.raft.codec` (bytes, and the checks of what
comes from outside).
"""

from kvorum.raft.config import RaftConfig
from kvorum.raft.membership import AddLearner, Change, Promote, Remove, bootstrap_entry
from kvorum.raft.raft import Raft
from kvorum.raft.status import PeerStatus, RaftStatus, Role

__all__ = [
    "AddLearner",
    "Change",
    "PeerStatus",
    "Promote",
    "Raft",
    "RaftConfig",
    "RaftStatus",
    "Remove",
    "Role",
    "bootstrap_entry",
]
