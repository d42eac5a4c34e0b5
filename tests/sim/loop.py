"""An asyncio event loop in virtual time: one for each simulated process, all of them on the clock of one world.

Theory of operation. Every loop puts two kinds of events on the world's clock: its timers, and its *turns*. A callback
that becomes ready waits in the loop's queue; the first one asks for a turn, and the turn runs the whole queue. While it
runs, this loop is the running loop, so that asyncio's futures, tasks, timeouts and task groups work as they are. There
is one thread, no socket and no real time: the same events in the same order give the same run, whatever
PYTHONHASHSEED says.

Threads become jobs: a function that is given to :meth:`SimLoop.run_in_executor` runs at a later virtual time, outside
of any loop, and its result reaches the loop later still.

A process that is killed runs nothing more. :class:`ProcessKilled` unwinds the callback that was running; no other
callback, timer, job or task step runs afterwards. The coroutines that were suspended are closed, so that no garbage
collector runs their ``finally`` blocks at a time of its own. What such a block asks of the loop is ignored; what it
asks of a disk or a peer must be refused by these, which know from :attr:`SimLoop.is_dead` that their process is gone.
"""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop, _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sim.clock import Clock

T = TypeVar("T")

CALLBACKS_A_TURN_MAX = 100_000
"""More in one turn, while nothing can arrive, means that the process spins."""


class ProcessKilled(BaseException):
    """The process that called is dead. Only a simulated port raises it, to unwind what was running."""


class LoopSpins(Exception):
    """The callbacks of one turn keep asking for more, without an end."""


class SimHandle(asyncio.TimerHandle):
    """A callback that is ready, or will be."""

    __slots__ = ("arguments", "callback", "context", "is_cancelled", "when_s")

    def __init__(
        self, when_s: float, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context | None
    ) -> None:
        # The base class is for type checks only: its constructor asks the loop whether it debugs.
        self.when_s = when_s
        self.callback = callback
        self.arguments = arguments
        self.context = context
        """None: none of its own. The product keeps nothing in context variables but in tasks, which bring theirs."""
        self.is_cancelled = False

    def cancel(self) -> None:
        """Do not call."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return self.is_cancelled

    def when(self) -> float:
        """Return the time of the loop at which it is due."""
        return self.when_s

    def __repr__(self) -> str:
        """Return what would be called."""
        return f"<SimHandle {self.callback!r} at {self.when_s}>"


def _no_time() -> int:
    return 0


if TYPE_CHECKING:
    _Base: Any
else:
    _Base = asyncio.AbstractEventLoop


class SimLoop(_Base):  # type: ignore[misc]  # What it leaves out, sockets for one, raises NotImplementedError.
    """The event loop of one simulated process.

    Args:
        clock: the clock of the world.
        rate_per_mille: how long a second of this process is: 1,000 is a true second, 2,000 two seconds.
        name: whose loop it is.
        on_error: called with what nobody caught: the exception of a callback, of a job whose caller is gone, or of a
            task that nobody asked for its result.
        turn_us: draws how long the loop takes to come to its next turn; None: no time passes, and a turn goes on
            until nothing is ready.
        job_us: draws how long a job waits for its thread, and again how long its result takes to reach the loop.
        task_us: draws how late a new task begins.
        after_turn: called after every turn, outside of the loop.

    Attributes:
        paused_until: no callback and no job runs before this time of the world (SIGSTOP); they wait.
        jobs_held_until: no job begins before this time of the world: the disk stands still.
        is_dead: the process was killed.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        rate_per_mille: int = 1000,
        name: str = "",
        on_error: Callable[[BaseException], None],
        turn_us: Callable[[], int] | None = None,
        job_us: Callable[[], int] = _no_time,
        task_us: Callable[[], int] = _no_time,
        after_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self.paused_until = 0
        self.jobs_held_until = 0
        self.is_dead = False
        self.name = name
        self._clock = clock
        self._rate = rate_per_mille
        self._us_per_s = 1000 * rate_per_mille
        self._on_error = on_error
        self._turn_us = turn_us or _no_time
        self._job_us = job_us
        self._task_us = task_us
        self._after_turn = after_turn
        self._ready: deque[SimHandle] = deque()
        self._is_turn_due = False
        self._is_running = False
        self._late_us = 0
        """How late the callback begins that is asked for next: the first step of a task that is being made."""
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_swept = 64

    # --- Time ---------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the seconds that have passed for this process since the world began."""
        return self._clock.now / self._us_per_s

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> SimHandle:
        """Call in the next turn, in the order of the calls of this method."""
        handle = SimHandle(0.0, callback, args, context)
        if self.is_dead:
            return handle
        if self._late_us:
            self._clock.after(self._late_us, self._fire, handle)
            return handle
        self._ready.append(handle)
        if not self._is_turn_due:
            self._is_turn_due = True
            self._clock.after(self._turn_us(), self._turn)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimHandle:
        """Call in the next turn."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimHandle:
        """Call in ``delay`` seconds of this process."""
        handle = SimHandle(self.time() + delay, callback, args, context)
        if not self.is_dead:
            # Rounded up: when it is called, the time that it asked for has come.
            delay_us = int(delay * 1000 * self._rate) + 1 if delay > 0 else 0
            self._clock.after(delay_us, self._fire, handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimHandle:
        """Call at this time of :meth:`time`."""
        return self.call_later(when - self.time(), callback, *args, context=context)

    def enter(self, callback: Callable[..., object], *args: Any) -> None:
        """Call now, or as soon as the process runs: the way in for what the world brings to it."""
        self._fire(SimHandle(0.0, callback, args, None))

    def start_task(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        """Call a coroutine function as a task."""
        self.create_task(function(*arguments))

    def pause(self, until_us: int) -> None:
        """Run nothing before this time of the world (SIGSTOP); what becomes ready waits."""
        self.paused_until = until_us
        if self._ready and not self._is_running:
            self._clock.after(max(until_us - self._clock.now, 0), self._turn)

    def _fire(self, handle: SimHandle) -> None:
        if self.is_dead or handle.is_cancelled:
            return
        self._ready.append(handle)
        if not self._is_turn_due:
            self._is_turn_due = True
            delay_us = self._turn_us()
            if delay_us:
                self._clock.after(delay_us, self._turn)
            else:
                self._turn()

    # --- Turns --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        if self.is_dead:
            return
        now = self._clock.now
        if self.paused_until > now:
            self._is_turn_due = True
            self._clock.after(self.paused_until - now, self._turn)
            return
        # What becomes ready while the turn runs needs no event of its own.
        self._is_turn_due = self._is_running = True
        try:
            _set_running_loop(self)
            self._run_ready()
        finally:
            _set_running_loop(None)
            self._is_running = False
            self._is_turn_due = bool(self._ready)
            if self.is_dead:
                self._bury()
        if self.is_dead:
            return
        if self._is_turn_due:
            self._clock.after(self._turn_us(), self._turn)
        self._after_turn()

    def _run_ready(self) -> None:
        ready = self._ready
        # With turns that take time, what a callback asks for comes in the next one.
        left = CALLBACKS_A_TURN_MAX if self._turn_us is _no_time else len(ready)
        while ready and left:
            left -= 1
            handle = ready.popleft()
            if handle.is_cancelled:
                continue
            try:
                if handle.context is None:
                    handle.callback(*handle.arguments)
                else:
                    handle.context.run(handle.callback, *handle.arguments)
            except ProcessKilled:
                pass
            except Exception as error:  # noqa: BLE001 (what a callback raises, the loop must survive)
                self._on_error(error)
            if self.is_dead or self._clock.error is not None:
                return
            # The frames of an error that is kept must not keep alive what was called last.
            del handle
        if not left and self._turn_us is _no_time and ready:
            raise LoopSpins(f"after {CALLBACKS_A_TURN_MAX} callbacks {ready[0].callback!r} is next")

    # --- Death --------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End the process: nothing of it runs any more. A port that is being called raises :class:`ProcessKilled`."""
        if self.is_dead:
            return
        self.is_dead = True
        self._ready.clear()
        if not self._is_running:
            self._bury()

    def _bury(self) -> None:
        """Close what is suspended now, while everything that it could reach ignores or refuses it."""
        tasks, self._tasks = self._tasks, []
        before = _get_running_loop()
        _set_running_loop(self)
        try:
            for task in tasks:
                coroutine = task.get_coro()
                if not task.done() and isinstance(coroutine, Coroutine):
                    _close(coroutine)
        finally:
            _set_running_loop(before)

    # --- Futures, tasks, threads --------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Return a task that runs the coroutine, perhaps late."""
        self._late_us = self._task_us()
        try:
            task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=str(name) if name else None, context=context)
        finally:
            self._late_us = 0
        if self.is_dead:
            # Only what is being closed asks for more.
            _close(coro)
            return task
        self._tasks.append(task)
        if len(self._tasks) >= self._tasks_swept:
            self.sweep()
        return task

    def sweep(self) -> None:
        """Let go of tasks that are done; one that failed, and that nobody asked for its result, is reported now."""
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks_swept = 2 * len(self._tasks) + 64

    def run_in_executor(self, executor: object, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run a function in a thread: somewhat later, outside of the loop; its result arrives later still."""
        future: asyncio.Future[T] = self.create_future()
        if not self.is_dead:
            self._clock.after(self._job_us(), self._run_job, future, func, args)
        return future

    def _run_job(self, future: asyncio.Future[T], function: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        if self.is_dead:
            return
        wait_us = max(self.paused_until, self.jobs_held_until) - self._clock.now
        if wait_us > 0:
            self._clock.after(wait_us, self._run_job, future, function, arguments)
            return
        try:
            result = function(*arguments)
        except ProcessKilled:
            pass
        except Exception as error:  # noqa: BLE001 (it is the caller's, who waits for the future)
            self._clock.after(self._job_us(), self.enter, self._answer, future, None, error)
        else:
            self._clock.after(self._job_us(), self.enter, self._answer, future, result, None)

    def _answer(self, future: asyncio.Future[T], result: T, error: Exception | None) -> None:
        if future.done():
            # Its caller was cancelled.
            if error is not None:
                self._on_error(error)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    # --- What asyncio asks besides ------------------------------------------------------------------------------

    def get_debug(self) -> bool:
        """Return False."""
        return False

    def is_running(self) -> bool:
        """Tell whether a callback of this loop is running."""
        return self._is_running

    def is_closed(self) -> bool:
        """Tell whether the process is dead."""
        return self.is_dead

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report what nobody caught; a dead process has nothing to report."""
        if not self.is_dead:
            self._on_error(context.get("exception") or RuntimeError(str(context.get("message"))))

    async def shutdown_asyncgens(self) -> None:
        """Do nothing: a loop that ends does not run on."""

    async def shutdown_default_executor(self) -> None:
        """Do nothing: there are no threads."""

    def run_forever(self) -> NoReturn:
        """Refuse: the world's clock runs the loops."""
        raise NotImplementedError("the clock of the world runs this loop")


def _close(coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any]) -> None:
    """Close a coroutine, although its ``finally`` blocks may wait for something, or call a port that refuses."""
    for _ in range(8):
        try:
            coroutine.close()
        except ProcessKilled:
            return
        except (Exception, asyncio.CancelledError):  # noqa: BLE001, S112 (nobody is left who could be told)
            continue
        return
