"""The question before something that cannot be undone."""

from __future__ import annotations

import signal
import sys

from kvorum.errors import ConfigError


def confirm(question: str, *, yes: bool) -> None:
    """Return if the user wants it: by ``--yes``, or in answer to the question. Blocking.

    Args:
        question: what is about to be done, as a question.
        yes: ``--yes`` was given.

    Raises:
        ConfigError: the user does not want it, or there is no terminal to ask at. Nothing may be done then.
        KeyboardInterrupt: Ctrl-C instead of an answer.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError("nothing was done: stdin is no terminal to ask at. Repeat the command with --yes to go on")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    # An event loop would take the first Ctrl-C for itself, and wait for the answer.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answer = sys.stdin.readline()
    finally:
        signal.signal(signal.SIGINT, handler)
    if answer.strip().lower() not in {"y", "yes"}:
        raise ConfigError("nothing was done: the answer was not yes")
