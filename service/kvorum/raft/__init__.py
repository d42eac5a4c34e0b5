"""Consensus: Raft as a synchronous, deterministic state machine that returns values.

Theory of operation
===================

The sources are the extended Raft paper (Ongaro and Ousterhout, "section" and "Figure" below) and Ongaro's thesis of
2014 ("thesis"). One :class:`Raft` is one server. It has no clock, no thread, no file and no socket: its driver has
them all. An input (a tick, a message, a proposal, "save n is durable") changes the state at once and never waits.
:meth:`Raft.ready` hands over everything there is to do now, exactly once. ::

    tick() step(message) propose() read_index() propose_change() ...    fetched(snapshot)     saved(number)
        |                                                                      ^                  ^
        v                                                                      |                  |
      Raft  -->  Ready:  save  ------------------------------------------------|---> the disk, one write
                         fetch  -----------------------------------------> from a peer            |
                         messages             to the peers, at once                               |
                         messages_after_save  to the peers, when this save is durable  <----------+
                         restore, committed   to the state machine, in this order
                         reads, reads_refused to the waiting readers

Modules
-------
The shape is that of Figure 2. :mod:`~kvorum.raft.state` has what every server has; :mod:`~kvorum.raft.follower`,
:mod:`~kvorum.raft.candidate` and :mod:`~kvorum.raft.leader` have what each role does with its messages; a role object
lives as long as the role, so nothing of one leadership leaks into the next. :mod:`~kvorum.raft.raft` is the server: it
dispatches, and makes every change of role. A learner, and a server that no configuration names yet, is a follower that
never campaigns. The parts: :mod:`~kvorum.raft.log`, :mod:`~kvorum.raft.election`, :mod:`~kvorum.raft.progress`,
:mod:`~kvorum.raft.reads`, :mod:`~kvorum.raft.marks`, :mod:`~kvorum.raft.membership`; the values:
:mod:`~kvorum.raft.messages`, :mod:`~kvorum.raft.config`, :mod:`~kvorum.raft.status`; bytes: :mod:`~kvorum.raft.codec`.

Term, vote, the save in flight and the gate for outgoing messages are in one class, ``State``. A separate module for
persistence would need copies of the term and vote, and then two places would decide what is durable.

One save in flight
------------------
At most one save is on its way to the disk; later changes fill the next one. A save holds the term, the vote, the
entries that no save was given yet (they replace the log from the first of them on) and an adopted snapshot. All of it
becomes durable together, or none. To the core the local disk is one more voter: a leader's own log counts towards a
quorum as far as it is *saved* (thesis 10.2.1), and a server applies only what is committed *and* saved on it. So
``applied <= saved`` everywhere, and after a crash a server never has less log than its state machine had seen.

A truncation takes back what counts as saved: entries of the save in flight that were replaced meanwhile are not saved
by its answer, and their replacements are in the next save.

When a message may leave
------------------------
A message must not reveal what a crash could undo.

- Every message carries the term, and most follow from the vote. So *nothing* leaves while the term or the vote in
  memory is not the one on disk.
- "I hold entries up to n" waits until they are saved. It may leave with a later save than the one it needs: by then a
  later leader may have replaced those entries, but the answer is of an older term, and was true when the entries were
  accepted; whoever elected the later leader had not accepted them before it voted.
- A leader's AppendEntries leaves while its own save runs: its own copy counts only once it is durable, and a leader
  that crashes and forgets it cannot lead that term again.
- Heartbeats and their answers, pre-votes, refusals and read barriers say nothing about the disk and never wait for
  entries: a slow disk does not look like a dead server. A disk without progress for an election timeout (or as long as
  configured) does: its server steps down in favour of another, and does not campaign.

Elections
---------
A follower that hears no leader for its timeout, drawn anew each time from T to 2T-1 ticks, first asks whether it could
win (pre-vote, thesis 9.6); only a majority of yes makes it enter a new term. A server that heard a leader within T does
not answer a candidate at all (section 6, thesis 4.2.3), and a leader that hears no majority for T steps down (thesis
6.2): a server that is cut off, removed or restarted disturbs nobody, and a leader that is cut off does not linger. A
server whose term is ahead of its leader's answers that leader's heartbeat with its term, so that neither is stuck.

Replication
-----------
The leader tracks each member as *probe*, *replicate* or *snapshot* (:mod:`~kvorum.raft.progress`). A refusal names the
follower's last entry whose term is no later than the one asked about, which skips a whole term at a time. When nothing
was sent for a heartbeat's time and something is unanswered, the leader asks with an empty AppendEntries; a refusal
leads back to probe. An answer claims what its message proved to match, never the length of the follower's log. Entries
are committed by counting only in the leader's own term (section 5.4.2), which begins with an empty entry.

A change marks the followers it concerns, and :meth:`Raft.ready` looks at those only: it costs what changed.

Reads
-----
ReadIndex (thesis 6.4): the leader notes its commit index, begins a *numbered round* of heartbeats after the read has
arrived, and answers the read when a majority answered that round. The server that asked releases it when it has applied
that index. One round is out at a time, and reads that arrive meanwhile share the next; two overlapping rounds were
measured to be slower, since each serves fewer reads. A late answer to an earlier round proves nothing. An answer to a
request answers every earlier one of the same server, so only the latest waits on the leader, and only the latest is
repeated. A server that no longer leads says so. Nothing rests on clocks; there is no lease for reads.

Snapshots by pull
-----------------
The core knows a snapshot as (last index, last term, configuration). ``InstallSnapshot`` is an offer that carries only
that, and counts as contact with the leader. A follower whose log holds what it covers answers at once. Another one says
``Ready.fetch``: its driver fetches the file from the leader, in chunks that resume, makes it durable and calls
:meth:`Raft.fetched`. The core then adopts it with the next save, and hands it over as ``restore`` when that is durable.

There is one fetch at a time, and no offer cancels it: a follower that fetches more slowly than its leader takes
snapshots finishes the one it began, then takes the next offer. The leader repeats its offer every election timeout
while the follower answers. A fetch helps even if its leader is gone, since a snapshot covers only committed entries,
and is dropped if the log has passed it. After :meth:`Raft.fetch_failed`, or a restart, the next offer starts a fetch.

Disks that were set back
------------------------
Every server remembers what the others' messages showed of their disks (:mod:`~kvorum.raft.marks`), and what it knows to
be committed. Its saves carry both, and after a time without a save a save of its own does. What it remembers of a
server, the driver tells that server in the handshake. A server whose disk lacks some of it takes no part in consensus.
What is known to be committed is where the commit index starts after a restart. So that followers remember their leader
as well, its entries and heartbeats say how much of its own log is saved. A message that contradicts a committed entry
is refused with an error of its own: other servers lost that entry, and the driver takes this one out.

Membership
----------
One server at a time, through a learner (thesis chapter 4). A configuration is in force when it is appended, and is
taken back with a truncation. A leader starts no change before an entry of its own term is committed (the bug announced
in 2015), nor while another change is not. It promotes only a learner that answers and has nearly everything, and
removes nobody without whom no quorum would answer. A leader that removes itself leaves when that is committed. A member
is a name *and* an incarnation of its disk: an empty disk is a new member, so nobody votes twice by forgetting.

Divergences from the paper, and why
===================================

1. *A server applies only what is saved on it* (the paper: what is committed). The followers may commit an entry while
   the leader's own disk still writes it. This costs a little latency then, and no applied index is ever beyond the log.
2. *No answer under the lease*, where the paper refuses: an answer would carry a term or invite another try.
3. *Heartbeat is a message of its own*, not an empty AppendEntries: its answer says nothing of the log and need not
   wait for the disk. It carries a commit index no higher than what the recipient is known to hold.
4. *A hint with one index and term* in place of the conflicting term and its first index: the same number of round
   trips, and one rule for both sides.
5. *A follower that has committed more than it is sent* answers with its commit index, which matches by Leader
   Completeness.
6. *A refused vote in a higher term restarts the election timeout* (as in etcd; the paper: only a granted one does).
   A candidate needs a majority of pre-votes first, so one with an old log cannot hold the others back for long.
7. *A candidate that a majority refused* becomes a follower at once, and so does a pre-candidate that grants a vote:
   neither could do anything useful before its timeout.
8. *TimeoutNow* is obeyed from any server that names our term or a later one: it can only cause an election, and the
   handshake keeps strangers out. It skips the pre-vote; its candidate's requests say so, because of the lease.
9. *A leader that is removed, or whose disk makes no progress,* tells the most caught-up voter to campaign when it
   steps down, so that nobody waits for a timeout.
10. *A server whose own removal is not committed* campaigns and does not vote for itself (thesis 4.2.2). Once it knows
    its removal to be committed it does neither.
11. *A removed member is sent nothing more*, not even the entry that removes it; its driver learns of it by asking.
12. *Snapshots are pulled*, not pushed in chunks (section 7): flow control, resuming and checksums are the file's, and
    consensus never holds its bytes.
13. *Leases protect elections only.* The lease reads of thesis 6.4.1 need clocks that can be trusted.
14. *A broken connection to the leader* brings the election forward to a few ticks. This is safe when wrong: the
    pre-vote fails while others hear the leader.
"""

from kvorum.raft.config import RaftConfig
from kvorum.raft.membership import AddLearner, Change, Promote, Remove, UpdateAddresses, bootstrap_entry
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
    "UpdateAddresses",
    "bootstrap_entry",
]
