"""Log time on whole nodes: it passes while nobody writes, and over changes of the leader."""

from __future__ import annotations

from sim.node import Answer, SimNode
from sim.plan import Plan, S
from sim.world import World

from kvorum.kv.commands import Put


def write(world: World, node: SimNode) -> int:
    """Write through the leader, and return the log time of the write."""
    answers: list[Answer] = []
    node.ask(Put(b"a", b"12345678"), answers.append)
    world.clock.run_until(world.clock.now + S)
    assert [answer.kind for answer in answers] == ["result"]
    return node.store.time_ms


def test_log_time_passes_while_nobody_writes() -> None:
    world = World(Plan(seed=7))
    world.clock.run_until(2 * S)
    leader = world.leaders()[0]
    before = write(world, leader)
    world.clock.run_until(62 * S)
    assert write(world, leader) - before == 59_400
    world.close()


def test_a_new_leader_with_another_wall_clock_goes_on_with_the_log_time() -> None:
    world = World(Plan(seed=7))
    world.clock.run_until(2 * S)
    leader = world.leaders()[0]
    before = write(world, leader)
    for node in world.live():
        node.clock_offset_ms = 7_200_000
    leader.crash("killed", durable=1)
    world.clock.run_until(10 * S)
    after = write(world, world.leaders()[0])
    assert 0 < after - before < 8000
    world.close()
