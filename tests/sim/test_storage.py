"""The disk as one process has it: when a save is durable, when it is answered, and what is left of a dead process."""

from __future__ import annotations

import pytest
from sim.loop import ProcessKilled, SimLoop
from sim.node import CLUSTER, PortError, SimNode
from sim.plan import MS, Plan, S
from sim.storage import SimStorage
from sim.world import World, identity_of

from kvorum.errors import SnapshotFailedError, StorageError
from kvorum.raft.messages import Configuration, Entry, EntryKind, HardState, Member, Save, Snapshot

NODE = "n9@1"
SNAPSHOT = Snapshot(1, 1, Configuration((Member(NODE, True),)))


class Machine:
    """A machine whose process is the test."""

    def __init__(self) -> None:
        self.world = World(Plan(seed=3, disk_us=10 * MS, disk_jitter_us=0))
        self.node: SimNode = self.world.add_node(NODE)
        self.node.crash("the test takes its place")
        self.node.disk.write_identity(identity_of(NODE, CLUSTER), replace=True)
        self.said: list[tuple[int, object]] = []
        self.storage = self.start()

    def start(self) -> SimStorage:
        """Start a process of the test's own."""
        errors = self.world.clock.abort
        self.node.loop = SimLoop(self.world.clock, on_error=errors, job_us=lambda: 0)
        self.storage = SimStorage(self.node, self.node.loop, self.say)
        self.storage.load()
        return self.storage

    def say(self, what: object) -> None:
        """Note what is heard, in milliseconds since the beginning."""
        self.said.append(((self.world.clock.now - self.began) // MS, what))

    def save(self, term: int = 7) -> None:
        """Ask for a save."""
        self.began = self.world.clock.now
        save = Save(term, HardState(term, None), (Entry(1, 7, EntryKind.NOOP, b""),))
        self.storage.save(save, lambda: self.say("saved"))

    def wait(self, us: int = 1 * S) -> None:
        """Let time pass."""
        self.world.clock.run_until(self.world.clock.now + us)

    def durable_term(self) -> int:
        """What the next process finds."""
        return self.node.disk.load().hard_state.current_term


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_save_is_durable_after_a_while_and_then_answered(machine: Machine) -> None:
    machine.save()
    assert machine.node.durable.hard_state.current_term == 0
    machine.wait()

    assert machine.said == [(10, "saved")]
    assert machine.node.durable.hard_state.current_term == 7
    assert machine.durable_term() == 7


def test_a_save_waits_while_the_disk_stands_still(machine: Machine) -> None:
    machine.save()
    machine.node.stall(machine.world.clock.now + 300 * MS)
    machine.wait()

    assert machine.said == [(300, "saved")]


def test_a_late_answer_comes_long_after_the_save_is_durable(machine: Machine) -> None:
    machine.node.late_saves_until = machine.world.clock.now + 1 * S
    machine.save()
    machine.wait(11 * MS)
    assert machine.node.durable.hard_state.current_term == 7
    assert machine.said == []
    machine.wait(3 * S)

    assert [what for _, what in machine.said] == ["saved"]


def test_a_process_that_dies_loses_its_save_and_hears_nothing(machine: Machine) -> None:
    machine.save()
    machine.node.crash("killed")
    machine.wait()

    assert machine.said == []
    assert machine.durable_term() == 0


def test_a_process_that_dies_may_have_saved(machine: Machine) -> None:
    machine.save()
    machine.node.crash("killed", durable=1)

    assert machine.said == []
    assert machine.durable_term() == 7


@pytest.mark.parametrize(("point", "term"), [("before_save", 0), ("save_lost", 0), ("save_durable_unanswered", 7)])
def test_a_process_dies_at_a_crash_point(machine: Machine, point: str, term: int) -> None:
    machine.node.armed = (point, 0, 1 * S)
    with pytest.raises(ProcessKilled):
        machine.save()

    assert not machine.node.is_up
    assert machine.durable_term() == term


def test_a_dead_process_reaches_nothing(machine: Machine) -> None:
    storage, writer = machine.storage, machine.storage.snapshots.create(SNAPSHOT)
    machine.node.crash("killed")
    machine.start()

    for act in (
        storage.load,
        lambda: storage.save(Save(1, HardState(1, None)), lambda: None),
        lambda: storage.compact(1, lambda: None),
        lambda: storage.write_identity(identity_of(NODE, "another")),
        storage.snapshots.kept,
        lambda: storage.snapshots.receive(SNAPSHOT),
        lambda: writer.write(b"x"),
        writer.commit,
        writer.abort,
    ):
        with pytest.raises(ProcessKilled):
            act()
    assert machine.node.disk.load().identity == identity_of(NODE, CLUSTER)


def test_a_full_disk_is_told_once_and_answers_nothing_more(machine: Machine) -> None:
    machine.node.full_until = machine.world.clock.now + 100 * MS
    machine.save()
    machine.wait(50 * MS)
    machine.save(term=8)
    machine.wait(50 * MS)

    assert [type(what) for _, what in machine.said] == [StorageError]
    assert machine.durable_term() == 0


def test_without_room_a_snapshot_fails_and_what_arrived_of_another_is_thrown_away(machine: Machine) -> None:
    snapshots = machine.storage.snapshots
    snapshots.receive(SNAPSHOT, "a").write(b"part")
    writer, receiver = snapshots.create(SNAPSHOT), snapshots.receive(SNAPSHOT, "a")
    machine.node.no_files_until = machine.world.clock.now + 1 * S

    for act in (lambda: snapshots.create(SNAPSHOT), lambda: writer.write(b"x"), lambda: receiver.write(b"more")):
        with pytest.raises(SnapshotFailedError):
            act()
    machine.node.no_files_until = 0
    assert snapshots.receive(SNAPSHOT, "a").offset_bytes == 0


def test_what_arrived_survives_the_process(machine: Machine) -> None:
    machine.storage.snapshots.receive(SNAPSHOT, "a").write(b"part")
    machine.node.loop = None

    assert machine.start().snapshots.receive(SNAPSHOT, "a").offset_bytes == 4


def test_a_port_that_fails_raises_once_what_nobody_expects(machine: Machine) -> None:
    machine.node.port_error = "create"
    with pytest.raises(PortError):
        machine.storage.snapshots.create(SNAPSHOT)

    machine.storage.snapshots.create(SNAPSHOT)


def test_a_process_that_outlives_a_failed_port_is_noticed(machine: Machine) -> None:
    machine.node.port_error = "save"
    with pytest.raises(PortError):
        machine.save()

    with pytest.raises(BaseException, match="a_failure_ends_the_process"):
        machine.wait(10 * S)
