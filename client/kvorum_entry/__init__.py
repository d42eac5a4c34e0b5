"""Where the commands ``kv`` and ``kvorum`` begin.

Their imports take half a second, or longer on a busy machine. Ctrl-C during that time ends the process with status 130
and without a traceback. A KeyboardInterrupt would not do: the interpreter swallows one that is raised in a callback of
the garbage collector or of a weak reference, which imports run often, and the command would go on.

This package imports nothing large.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130


def kv() -> int:
    """Run the command ``kv`` and return its exit status."""
    return run("kvorum_client.cli", None)


def run(module: str, arguments: Sequence[str] | None) -> int:
    """Import a module and return the exit status of its ``main``.

    Args:
        module: its name.
        arguments: of the command; None: those of the process.
    """
    try:
        with _interrupts_end_the_process():
            main = importlib.import_module(module).main
        return int(main(arguments))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


@contextmanager
def _interrupts_end_the_process() -> Iterator[None]:
    # SIGINT may be ignored, or be handled by a program that calls this; and only the main thread sets handlers.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(EXIT_INTERRUPTED)
