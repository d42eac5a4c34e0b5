"""The stories that the transcripts tell. ``python -m raft.stories`` writes them anew: ``make transcripts``.

Read tests/raft/transcripts/ as prose: who says what to whom, what is saved before it is said, and what is applied.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raft.conversation import Conversation, Story

from kvorum.raft import AddLearner, Promote, Remove
from kvorum.raft.messages import Member

FOLDER = Path(__file__).parent / "transcripts"


def an_election() -> Conversation:
    story = Conversation(
        "An election",
        """
Three servers start with the same first entry, the configuration, and nobody leads. A log position is written
index/term. A server first asks whether it could win (pre-vote, thesis 9.6); only then does it enter a new term, and
its vote for itself is on disk before it asks for anybody else's. Likewise theirs, before they answer. The new leader
appends an entry of its own term at once: only that can commit what came before it (section 5.4.2).
""",
    )
    story.elect("a")
    story.say("From now on the leader is heard of; the followers learn what is committed from its heartbeats.")
    story.shows_heartbeats = True
    story.tick("a", 2)
    return story


def writes_in_a_pipeline() -> Conversation:
    story = Conversation(
        "Writes, one after the other, without waiting",
        """
The leader's AppendEntries leave before its own disk has answered (thesis 10.2.1). Each of the three disks is one voice:
an entry is committed when two have it. What is committed is told with the next message, whatever that is.
""",
    )
    story.begin_with_leader("a")
    story.say("Two clients write, and a third before anybody has answered.")
    story.propose("a", "x=1", "y=2")
    story.propose("a", "z=3")
    story.settle()
    return story


def a_conflict_repaired() -> Conversation:
    story = Conversation(
        "A conflicting log is repaired",
        """
A leader that is cut off goes on appending what it can never commit. Its successor, in a later term, has other entries
at those places. When they meet again, the old leader's entries give way: the consistency check of AppendEntries fails,
the hint in the refusal skips a whole term at once, and the follower replaces what conflicts (section 5.3).
""",
    )
    story.begin_with_leader("a")
    story.propose("a", "x=1")
    story.settle()
    story.say("a is cut off, and still takes two writes.")
    story.cut("a")
    story.propose("a", "x=2", "x=3")
    story.settle()
    story.say("The others elect b, and write something else.")
    story.elect("b")
    story.propose("b", "x=4")
    story.settle()
    story.say("a is back. It learns of the new term, and what it could not commit is gone.")
    story.heal()
    story.shows_heartbeats = True
    story.tick("b", 2)
    return story


def a_snapshot_sent() -> Conversation:
    story = Conversation(
        "A snapshot is sent",
        """
c misses some writes; meanwhile the leader has cut its log behind a snapshot (section 7). The entry before those that c
needs is gone, so there is nothing to compare: c fetches the snapshot, makes it durable, adopts it in place of its log,
and goes on from there.
""",
    )
    story.begin_with_leader("a")
    story.cut("c")
    story.propose("a", "x=1", "x=2", "x=3")
    story.settle()
    story.compact("a")
    story.say("c is back.")
    story.heal()
    story.tick("a", 2)
    story.tick("a", 2)
    story.propose("a", "x=4")
    story.settle()
    return story


def a_snapshot_fetched_slowly() -> Conversation:
    story = Conversation(
        "A snapshot is fetched slowly",
        """
c fetches a snapshot, and that takes longer than its leader takes to write the next one. The offers that arrive
meanwhile count as signs of life of the leader, and change nothing about the fetch: it is finished, and the next offer
after it starts the next fetch. So c gets there, however slow it is.
""",
    )
    _let_c_need_a_snapshot(story)
    story.fetches_take_long = True
    story.tick("a", 2)
    story.tick("a", 2)
    story.say("a writes on, and takes another snapshot. It offers that one; c goes on with the first.")
    story.propose("a", "x=4")
    story.settle()
    story.compact("a")
    _pass_an_election_timeout(story)
    story.say("The first has arrived: it is adopted. The entries after it are gone at the leader, which offers anew.")
    story.finish_fetch("c")
    _pass_an_election_timeout(story)
    story.finish_fetch("c")
    return story


def a_fetch_whose_leader_is_gone() -> Conversation:
    story = Conversation(
        "The leader whose snapshot is fetched is gone",
        """
c fetches a snapshot from a, which is cut off meanwhile; the others elect b, which has cut its log, too, and offers a
snapshot of its own. c finishes what it has begun: a snapshot covers committed entries only, and every later leader has
those. So what c fetched from a helps, and c tells the new leader where it stands.
""",
    )
    _let_c_need_a_snapshot(story)
    story.fetches_take_long = True
    story.tick("a", 2)
    story.tick("a", 2)
    story.compact("b")
    story.cut("a")
    story.elect("b")
    story.say("The file arrives all the same.")
    story.finish_fetch("c")
    story.propose("b", "x=4")
    story.settle()
    return story


def a_fetch_overtaken_by_the_log() -> Conversation:
    story = Conversation(
        "The log overtakes a fetch",
        """
c fetches a snapshot from a, which is cut off; the new leader b still has the entries that c lacks, and sends them. When
the fetch ends, it is of no use any more: it is dropped, and nothing that c has is undone.
""",
    )
    _let_c_need_a_snapshot(story)
    story.fetches_take_long = True
    story.tick("a", 2)
    story.tick("a", 2)
    story.cut("a")
    story.elect("b")
    story.propose("b", "x=4")
    story.settle()
    story.tick("b", 2)
    story.say("Now the fetch ends.")
    story.finish_fetch("c")
    return story


def a_fetch_that_fails() -> Conversation:
    story = Conversation(
        "A fetch fails",
        """
c cannot get the file and gives up; then it is restarted during the next try. Each time it has forgotten the fetch, and
the leader's next offer, an election timeout after the one before, starts it again.
""",
    )
    _let_c_need_a_snapshot(story)
    story.fetches_take_long = True
    story.tick("a", 2)
    story.tick("a", 2)
    story.fail_fetch("c")
    _pass_an_election_timeout(story)
    story.restart("c")
    _pass_an_election_timeout(story)
    story.finish_fetch("c")
    return story


def _let_c_need_a_snapshot(story: Conversation) -> None:
    story.begin_with_leader("a")
    story.cut("c")
    story.propose("a", "x=1", "x=2", "x=3")
    story.settle()
    story.compact("a")
    story.say("c is back.")
    story.heal()


def _pass_an_election_timeout(story: Conversation) -> None:
    for _ in range(5):
        story.tick("a", 2)


def a_member_replaced() -> Conversation:
    story = Conversation(
        "A member is replaced",
        """
c has lost its disk: it may have voted and cannot know, so it must never vote again under that name. d comes in its
place, first as a learner that counts for nothing, then as a voter; c goes. One server at a time, each change in force
from the moment it is appended (thesis chapter 4), and none before the one before it is committed.
""",
    )
    story.begin_with_leader("a")
    story.stop("c")
    story.join("d")
    story.change("a", AddLearner(Member("d", voter=False)))
    story.tick("a", 2)
    story.say("d has caught up.")
    story.change("a", Promote("d"))
    story.change("a", Remove("c"))
    story.say("a, b and d are the voters now: two of them commit.")
    story.propose("a", "x=1")
    story.settle()
    return story


def a_transfer() -> Conversation:
    story = Conversation(
        "The leadership is handed over",
        """
The leader brings its successor up to date, takes no more writes, and tells it to campaign at once (thesis 3.10): no
pre-vote, and no lease in the way, for the leader itself has asked for it. Nobody waits for an election timeout.
""",
    )
    story.begin_with_leader("a")
    story.propose("a", "x=1")
    story.settle()
    story.transfer("a", "b")
    return story


def a_partition_healed() -> Conversation:
    story = Conversation(
        "A partition heals",
        """
c is cut off and hears nothing. It asks again and again whether it could win, and enters no new term, since nobody
says yes: so it does not depose the leader when it is back (pre-vote, thesis 9.6). A leader that is cut off steps down
when no quorum has answered for an election timeout (thesis 6.2).
""",
    )
    story.begin_with_leader("a")
    story.say("c is cut off for a long time; the others write.")
    story.cut("c")
    story.tick("c", 10)
    story.propose("a", "x=1")
    story.settle()
    story.tick("c", 10)
    story.say("c is back, and is simply brought up to date, in the same term.")
    story.heal()
    story.shows_heartbeats = True
    story.tick("a", 2)
    story.shows_heartbeats = False
    story.say("Now the leader is cut off.")
    story.cut("a")
    story.tick("a", 10)
    story.say("The others elect another; back again, a follows it.")
    story.elect("b")
    story.heal()
    story.shows_heartbeats = True
    story.tick("b", 2)
    return story


def a_read_at_a_follower() -> Conversation:
    story = Conversation(
        "A linearizable read at a follower",
        """
A follower asks the leader up to where it must have applied (thesis 6.4). The leader answers with its commit index once
a quorum has answered a round of heartbeats that began after the question: so it still led when it was asked.
""",
    )
    story.begin_with_leader("a")
    story.propose("a", "x=1")
    story.settle()
    story.shows_heartbeats = True
    story.read("b", 7)
    return story


STORIES: tuple[Story, ...] = (
    an_election,
    writes_in_a_pipeline,
    a_conflict_repaired,
    a_snapshot_sent,
    a_snapshot_fetched_slowly,
    a_fetch_whose_leader_is_gone,
    a_fetch_overtaken_by_the_log,
    a_fetch_that_fails,
    a_member_replaced,
    a_transfer,
    a_partition_healed,
    a_read_at_a_follower,
)


def main() -> int:
    """Write every transcript anew."""
    FOLDER.mkdir(exist_ok=True)
    for story in STORIES:
        (FOLDER / f"{story.__name__}.txt").write_text(story().text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
