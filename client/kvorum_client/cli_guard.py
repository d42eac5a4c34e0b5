"""Runs a command for as long as something is held: passes signals on, and stops the command when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

from kvorum_client.cli_output import say

EXIT_LOST = 1
PASSED_ON = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What ends `kv` before there is a command, after it has released what it holds. SIGINT is asyncio's matter."""


class Signals:
    """What becomes of signals: they end the current task, or go to a command.

    Attributes:
        ended_by: the signal that ended the task; 0: none.
    """

    def __init__(self) -> None:
        self.ended_by = 0
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._set: list[signal.Signals] = []

    def __enter__(self) -> Signals:
        self.end_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in self._set:
            self._loop.remove_signal_handler(number)

    def end_on(self) -> None:
        """Let the signals that end a program end the task: there is no command, or none any more."""
        for number in self._set:
            self._loop.remove_signal_handler(number)
        self._set.clear()
        for number in _ENDING:
            self._handle(number, self._end)

    def pass_on(self, send: Callable[[signal.Signals], None]) -> None:
        """Let signals go to a command from now on."""
        for number in PASSED_ON:
            self._handle(number, send)

    def _handle(self, number: signal.Signals, handler: Callable[[signal.Signals], None]) -> None:
        if threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(number, handler, number)
            self._set.append(number)

    def _end(self, number: signal.Signals) -> None:
        self.ended_by = int(number)
        if self._task is not None:
            self._task.cancel()


@contextlib.contextmanager
def _watching_by_descriptor() -> Iterator[None]:
    """Learn of the end of a command by a descriptor (Linux), as Python does from 3.12 on.

    Before, it starts a thread once the command runs. Where no more threads can be had, the command would be left alone.
    """
    if sys.version_info >= (3, 12) or sys.platform != "linux" or not _has_process_descriptors():
        yield
        return
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(asyncio.get_running_loop())
    asyncio.set_child_watcher(watcher)
    try:
        yield
    finally:
        asyncio.set_child_watcher(None)  # type: ignore[arg-type]  # Python makes its own again.


def _has_process_descriptors() -> bool:
    """Tell whether the kernel gives descriptors of processes: Linux from 5.3 on."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


async def run_command(
    command: Sequence[str], environment: Mapping[str, str], lost: asyncio.Event, grace_s: float, signals: Signals
) -> int:
    """Run a command to its end, and return its exit status: 128 + N if signal N ended it.

    Args:
        command: and its arguments.
        environment: of the command.
        lost: when it is set, the command must end: SIGTERM, and SIGKILL after ``grace_s``.
        grace_s: see there; in seconds.
        signals: what becomes of those that this process gets.
    """
    with _watching_by_descriptor():
        return await _run(command, environment, lost, grace_s, signals)


async def _run(
    command: Sequence[str], environment: Mapping[str, str], lost: asyncio.Event, grace_s: float, signals: Signals
) -> int:
    has_terminal = sys.stdin is not None and sys.stdin.isatty()
    # One that ended this task now would have the command killed that has just begun.
    early: list[signal.Signals] = []
    signals.pass_on(early.append)
    try:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, process_group=None if has_terminal else 0
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        signals.end_on()
        say(f"{command[0]}: {getattr(error, 'strerror', None) or error}")
        return 127 if isinstance(error, FileNotFoundError) else 126

    def send(number: signal.Signals) -> None:
        if has_terminal and number in (signal.SIGINT, signal.SIGQUIT):
            return  # The terminal has sent it to the command as well.
        _send(process.pid, number, to_group=not has_terminal)

    signals.pass_on(send)
    for number in early:  # From the terminal as well: it may have come before the command was there.
        _send(process.pid, number, to_group=not has_terminal)
    ended, losing = asyncio.create_task(process.wait()), asyncio.create_task(lost.wait())
    try:
        await asyncio.wait({ended, losing}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            say(f"{command[0]} is stopped, since what it ran under is lost")
            for number in (signal.SIGTERM, signal.SIGCONT):
                _send(process.pid, number, to_group=not has_terminal)
            await asyncio.wait({ended}, timeout=grace_s)
            if not ended.done():  # Afterwards its number may be another process's.
                _send(process.pid, signal.SIGKILL, to_group=not has_terminal)
        status = await ended
    finally:
        losing.cancel()
        if not ended.done():
            _send(process.pid, signal.SIGKILL, to_group=not has_terminal)
            await ended
    return 128 - status if status < 0 else status


def _send(pid: int, number: signal.Signals, *, to_group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if to_group else os.kill)(pid, number)
