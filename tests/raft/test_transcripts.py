"""The golden transcripts: what the servers say to each other today is what somebody has read and found right.

A difference is either a bug, or a change of behaviour to be reviewed: ``make transcripts``, then read the diff.
"""

from __future__ import annotations

import pytest
from raft.conversation import Story
from raft.stories import FOLDER, STORIES


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_servers_say_what_the_transcript_says(story: Story) -> None:
    written = (FOLDER / f"{story.__name__}.txt").read_text(encoding="utf-8")
    assert story().text() == written, "it differs from the transcript; if that is right: make transcripts"


def test_every_transcript_has_its_story() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == sorted(story.__name__ for story in STORIES)
