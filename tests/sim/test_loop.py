"""The simulated event loop: asyncio as it is, in virtual time, and nothing of a process that was killed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
from sim.clock import Clock
from sim.loop import LoopSpins, ProcessKilled, SimLoop
from sim.plan import MS, S


class Process:
    """A loop, what it has said, and what it failed to catch."""

    def __init__(self, clock: Clock | None = None, **arguments: Any) -> None:
        self.clock = clock or Clock()
        self.said: list[tuple[int, str]] = []
        self.errors: list[BaseException] = []
        self.loop = SimLoop(self.clock, on_error=self.errors.append, **arguments)

    def say(self, what: str) -> None:
        """Say something, unless the process is dead: then it is a port that refuses."""
        if self.loop.is_dead:
            raise ProcessKilled
        self.said.append((self.clock.now // MS, what))

    def run(self, coroutine: Callable[[], Awaitable[object]], until_us: int = 60 * S) -> asyncio.Task[object]:
        """Run a coroutine function as a task."""

        async def main() -> object:
            return await coroutine()

        task = self.loop.create_task(main())
        self.clock.run_until(until_us)
        return task


async def use_asyncio(process: Process) -> None:
    """Use what the product uses of asyncio, and more."""
    say, loop = process.say, asyncio.get_running_loop()
    assert loop is process.loop
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
    event, lock = asyncio.Event(), asyncio.Lock()

    async def worker(name: str, delay_s: float) -> str:
        async with lock:
            await asyncio.sleep(delay_s)
            say(f"{name} worked")
        await queue.put(name)
        return name

    async with asyncio.TaskGroup() as group:
        group.create_task(worker("a", 0.2))
        group.create_task(worker("b", 0.1))
        say(f"took {await queue.get()} {await queue.get()}")
    say(" ".join(await asyncio.gather(worker("c", 0.1), asyncio.to_thread(lambda: "from a thread"))))
    assert await queue.get() == "c"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await event.wait()
    say("timed out")
    shielded = asyncio.ensure_future(worker("d", 0.3))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(shielded), 0.1)
    say("lost patience")
    await shielded
    loop.call_later(0.1, event.set)
    done, _ = await asyncio.wait([asyncio.ensure_future(event.wait())])
    say(f"{len(done)} waited")
    with pytest.raises(ValueError, match="of the thread"):
        await asyncio.to_thread(fail, "of the thread")


def fail(why: str) -> None:
    raise ValueError(why)


TOLD = [
    (200, "a worked"),
    (300, "b worked"),
    (300, "took a b"),
    (400, "c worked"),
    (400, "c from a thread"),
    (900, "timed out"),
    (1000, "lost patience"),
    (1200, "d worked"),
    (1300, "1 waited"),
]


def test_asyncio_works_in_virtual_time() -> None:
    process = Process()
    process.run(lambda: use_asyncio(process)).result()

    assert process.said == TOLD
    assert process.errors == []


def test_two_processes_take_turns_on_one_clock() -> None:
    clock = Clock()
    one, other = Process(clock), Process(clock)
    tasks = [process.loop.create_task(use_asyncio(process)) for process in (one, other)]
    clock.run_until(2 * S)

    assert one.said == other.said == TOLD
    assert [task.result() for task in tasks] == [None, None]


def test_a_process_whose_clock_is_slow_takes_longer() -> None:
    process = Process(rate_per_mille=1250)
    process.run(lambda: use_asyncio(process)).result()

    assert process.said[-1] == (1625, "1 waited")


async def tick(process: Process) -> None:
    while True:
        await asyncio.sleep(0.1)
        process.say(f"{asyncio.get_running_loop().time():.2f}")


def test_a_paused_process_does_nothing_and_then_what_waited() -> None:
    process = Process()
    process.clock.after(150 * MS, setattr, process.loop, "paused_until", 450 * MS)
    process.clock.after(250 * MS, process.loop.enter, process.say, "a message")
    process.run(lambda: tick(process), 600 * MS)

    assert process.said == [(100, "0.10"), (450, "a message"), (450, "0.45"), (550, "0.55")]


def test_a_paused_process_has_paused_threads() -> None:
    process = Process()
    process.loop.paused_until = 300 * MS
    process.loop.run_in_executor(None, process.say, "in a thread")
    process.clock.run_until(1 * S)

    assert process.said == [(300, "in a thread")]


def test_turns_that_take_time_make_batches() -> None:
    process = Process(turn_us=lambda: 10 * MS)

    def ask() -> None:
        process.say("asked")
        process.loop.call_soon(process.say, "done")

    process.clock.after(0, process.loop.enter, ask)
    process.clock.after(5 * MS, process.loop.enter, ask)
    process.clock.run_until(1 * S)

    assert process.said == [(10, "asked"), (10, "asked"), (20, "done"), (20, "done")]


def test_a_late_task_begins_late_and_nothing_else_does() -> None:
    process = Process(task_us=lambda: 70 * MS)

    async def main() -> None:
        process.say("a task")

    process.loop.create_task(main())
    process.loop.call_soon(process.say, "a callback")
    process.clock.run_until(1 * S)

    assert process.said == [(0, "a callback"), (70, "a task")]


def test_a_job_takes_time_and_waits_for_a_disk_that_stands_still() -> None:
    process = Process(job_us=lambda: 20 * MS)
    process.loop.jobs_held_until = 100 * MS

    async def main() -> None:
        await asyncio.to_thread(process.say, "in the thread")
        process.say("back")

    process.run(main).result()

    assert process.said == [(100, "in the thread"), (120, "back")]


def test_a_thread_has_no_running_loop() -> None:
    process = Process()

    def job() -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        process.say("no loop")

    process.run(lambda: asyncio.to_thread(job)).result()

    assert process.said == [(0, "no loop")]


# --- Death ----------------------------------------------------------------------------------------------------------


def kill_after(process: Process, coroutine: Callable[[], Awaitable[object]]) -> None:
    """Run a coroutine for a second, kill the process, let more time pass, and collect the garbage."""
    process.run(coroutine, 1 * S)
    process.loop.kill()
    gc.collect()
    process.clock.run_until(60 * S)
    gc.collect()


@pytest.mark.filterwarnings("error")
def test_nothing_of_a_dead_process_runs(capsys: pytest.CaptureFixture[str]) -> None:
    process = Process()
    ran: list[str] = []

    async def waits(kind: str) -> None:
        try:
            match kind:
                case "sleep":
                    await asyncio.sleep(5)
                case "thread":
                    await asyncio.to_thread(process.say, "in a thread")
                    await asyncio.sleep(5)
                case "group":
                    async with asyncio.TaskGroup() as group:
                        group.create_task(waits("sleep"))
                case _:
                    async with asyncio.timeout(9):
                        await asyncio.get_running_loop().create_future()
        finally:
            ran.append(kind)
            process.say("must not be said")
            ran.append("must not run")

    async def main() -> None:
        tasks = [asyncio.create_task(waits(kind)) for kind in ("sleep", "thread", "group", "timeout")]
        tasks[0].add_done_callback(lambda _: process.say("must not be called"))
        await asyncio.gather(*tasks)

    kill_after(process, main)

    assert process.said == [(0, "in a thread")]
    assert sorted(ran) == ["group", "sleep", "sleep", "thread", "timeout"], "closed, each at its first port"
    assert process.errors == []
    assert capsys.readouterr().err == ""


def test_a_coroutine_that_waits_on_its_way_out_is_closed_all_the_same() -> None:
    process = Process()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            await asyncio.sleep(5)
            process.say("must not be said")

    kill_after(process, stubborn)

    assert process.said == []
    assert process.errors == []


def test_a_process_that_is_killed_by_its_own_call_stops_there() -> None:
    process = Process()

    async def main() -> None:
        process.say("before")
        try:
            process.loop.kill()
            process.say("a port")
        finally:
            process.said.append((0, "unwound"))
        process.said.append((0, "must not run"))

    process.loop.call_later(1.0, process.say, "later")
    process.loop.create_task(main())
    process.loop.call_soon(process.say, "next")
    process.clock.run_until(2 * S)

    assert process.said == [(0, "before"), (0, "unwound")]
    assert process.errors == []


def test_a_job_that_was_under_way_is_lost_with_its_process() -> None:
    process = Process(job_us=lambda: 100 * MS)
    process.clock.after(50 * MS, process.loop.kill)
    process.run(lambda: asyncio.to_thread(process.say, "never"), 1 * S)

    assert process.said == []


# --- Errors ---------------------------------------------------------------------------------------------------------


def test_what_nobody_catches_is_reported_and_the_loop_goes_on() -> None:
    process = Process()

    async def fails() -> None:
        fail("of a task")

    process.loop.call_soon(fail, "of a callback")
    process.loop.create_task(fails())
    process.loop.call_later(1.0, process.say, "still here")
    process.clock.run_until(2 * S)
    process.loop.sweep()

    assert [str(error) for error in process.errors] == ["of a callback", "of a task"]
    assert process.said == [(1000, "still here")]


def test_a_loop_that_spins_is_noticed() -> None:
    process = Process()

    def again() -> None:
        process.loop.call_soon(again)

    process.loop.call_soon(again)
    with pytest.raises(LoopSpins):
        process.clock.run_until(1)


def test_a_simulation_that_is_aborted_ends_whatever_the_product_catches() -> None:
    process = Process()

    async def catches_everything() -> None:
        try:
            process.clock.abort(LookupError("broken"))
            raise RuntimeError
        except RuntimeError:
            process.said.append((0, "caught"))

    with pytest.raises(LookupError, match="broken"):
        process.run(catches_everything, 1)
    assert process.said == [(0, "caught")]


def test_the_same_seed_gives_the_same_order() -> None:
    def run(seed: int) -> list[tuple[int, str]]:
        draw = Random(seed)
        process = Process(job_us=lambda: draw.randrange(50 * MS), turn_us=lambda: draw.randrange(10 * MS))

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(50):
                    group.create_task(asyncio.to_thread(process.say, f"job {number}"))

        process.run(main).result()
        return process.said

    assert run(1) == run(1)
    assert run(1) != run(2)
