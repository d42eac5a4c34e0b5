"""The ports of the processes that benchmark and tests start."""

from __future__ import annotations

import subprocess
import sys

from bench.processes import free_ports, reserve

IN_ANOTHER_PROCESS = "import sys; from bench.processes import reserve; sys.exit(0 if reserve(int(sys.argv[1])) else 9)"


def status_of_reserving(port: int) -> int:
    return subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS, str(port)], check=False).returncode


def test_a_port_belongs_to_one_process_although_nobody_listens_on_it() -> None:
    """A server that was killed for a moment found its port taken by that of a test in another process."""
    [port] = free_ports(1)
    assert not reserve(port), "this process uses it already"
    assert status_of_reserving(port) == 9


def test_a_port_is_free_again_when_its_process_has_ended() -> None:
    never_ours = next(port for port in range(9_000, 10_000) if status_of_reserving(port) == 0)
    assert status_of_reserving(never_ours) == 0
