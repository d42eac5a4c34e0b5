"""``ready()`` costs what changed: how many Python functions are called, which is the same in every run.

The bounds are what was counted on Python 3.11. Before the leader marked whom a change concerns they were
25, 388, 218, 46 and 86.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

from raft.harness import Server, append, appended, command, follower, heard, heartbeat, leader

IDLE_MAX = 4
WRITE_MAX = 147
READ_MAX = 79
HEARTBEAT_MAX = 20
APPEND_MAX = 41


def calls(act: Callable[[], object]) -> int:
    """Return how many Python functions this calls, itself excluded."""
    count = -1

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def ready_until_none(server: Server) -> None:
    while server.raft.ready() is not None:
        pass


def write(server: Server) -> None:
    """Propose, commit and apply an entry, as a driver does that asks until there is nothing to do."""
    index, _ = server.raft.propose([b"x"])
    ready = server.raft.ready()
    assert ready is not None and ready.save is not None
    ready_until_none(server)
    server.raft.step(appended("b", "a", 2, index))
    ready_until_none(server)
    server.raft.saved(ready.save.number)
    ready_until_none(server)
    server.raft.step(appended("c", "a", 2, index))
    ready_until_none(server)
    for node in "bc":
        server.raft.step(heard(node, "a", 2))
        ready_until_none(server)
    assert server.raft.log.applied_index == index


def read(server: Server, number: int) -> None:
    """Begin a read barrier and release it, likewise; it is the leader's round ``number``."""
    server.raft.read_index(number)
    ready_until_none(server)
    server.raft.step(heard("b", "a", 2, number))
    ready = server.raft.ready()
    assert ready is not None and ready.reads
    ready_until_none(server)
    server.raft.step(heard("c", "a", 2, number))
    ready_until_none(server)


def test_an_idle_server_finds_that_out_in_a_handful_of_calls() -> None:
    """However many followers a leader has, and whatever the role."""
    many = leader("1", term=2, voters="abcdefg", matched="bcdefg")
    for server in (leader("1", term=2, matched="bc"), many, follower("1", leader="b", commit=1)):
        ready_until_none(server)
        assert calls(server.raft.ready) <= IDLE_MAX


def test_an_answer_without_news_costs_no_look_at_the_followers() -> None:
    """A heartbeat's answer changes what was heard, and nothing that is to be sent."""
    few, many = leader("1", term=2, matched="bc"), leader("1", term=2, voters="abcdefg", matched="bcdefg")
    for server in (few, many):
        ready_until_none(server)
        server.raft.step(heard("b", "a", 2))
        assert calls(server.raft.ready) <= IDLE_MAX
    assert calls(lambda: few.raft.step(heard("b", "a", 2))) == calls(lambda: many.raft.step(heard("b", "a", 2)))


def test_a_write_costs_the_leader_a_bounded_number_of_calls() -> None:
    server = leader("1", term=2, matched="bc")
    for _ in range(3):
        write(server)
    assert calls(lambda: write(server)) <= WRITE_MAX


def test_a_read_costs_the_leader_a_bounded_number_of_calls() -> None:
    server = leader("1", term=2, matched="bc")
    for number in range(1, 4):
        read(server, number)
    assert calls(lambda: read(server, 4)) <= READ_MAX


def test_a_heartbeat_costs_a_follower_a_bounded_number_of_calls() -> None:
    server = follower("1", leader="b", commit=1)
    message = heartbeat("b", "a", 1, 1)

    def take() -> None:
        server.raft.step(message)
        ready_until_none(server)

    take()
    assert calls(take) <= HEARTBEAT_MAX


def test_an_append_costs_a_follower_a_bounded_number_of_calls() -> None:
    server = follower("1", leader="b", commit=1)

    def take(index: int) -> None:
        server.raft.step(append("b", "a", 1, (index - 1, 1), [command(index, 1)], index - 1))
        ready = server.raft.ready()
        assert ready is not None and ready.save is not None
        ready_until_none(server)
        server.raft.saved(ready.save.number)
        ready_until_none(server)

    take(2)
    take(3)
    assert calls(lambda: take(4)) <= APPEND_MAX
