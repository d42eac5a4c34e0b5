"""A command that runs in a pod, speaks in lines of JSON, and is told by lines on its standard input."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from e2e.kube import Kube


class PodProcess:
    """``kubectl exec -i`` of a command, with threads that read what it prints.

    Args:
        kube: the cluster.
        pod: where it runs.
        command: and its arguments.
        on_line: called with each object that it prints, from a thread.
    """

    def __init__(self, kube: Kube, pod: str, command: list[str], on_line: Callable[[dict[str, Any]], None]) -> None:
        self._errors: list[str] = []
        self._on_line = on_line
        self._process = subprocess.Popen(
            kube.kubectl_command("exec", "-i", pod, "--", *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether ``kubectl`` has ended."""
        return self._process.poll() is not None

    @property
    def errors(self) -> str:
        """The end of what it printed as errors."""
        return "".join(self._errors[-20:])

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait(self, within_s: float) -> None:
        """Wait until it has ended, and all that it printed is read."""
        self._process.wait(within_s)
        for thread in self._threads:
            thread.join()

    def kill(self) -> None:
        """End ``kubectl`` if it still runs, which leaves the command in the pod, and close the pipes."""
        if not self.has_ended:
            self._process.kill()
            self._process.wait(10)
        for thread in self._threads:
            thread.join(10)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._on_line(json.loads(line))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(self._process.stderr)
