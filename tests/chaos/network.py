"""Partitions between real processes: a network namespace of our own, and a rule for each direction of each pair.

A node's process runs under a group of its own, so that a rule can say "from this node to that peer port". Each stream
between peers carries the messages of the side that dialled it, so a rule cuts one direction only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

FIRST_GROUP = 21_000
INSIDE = "CHAOS_NETNS"
TOOLS = ("unshare", "ip", "iptables")


def enter_namespace(module: str, arguments: Sequence[str]) -> bool:  # noqa: RET503 (exec does not return)
    """Start this program again inside a network namespace of its own, where that is possible; it ends with it.

    Returns:
        Whether it is inside one now. False: there is no permission, and partitions are left out.
    """
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return True
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in TOOLS):
        return False
    probe = ["unshare", "-n", "iptables", "-A", "OUTPUT", "-m", "owner", "--gid-owner", "1", "-j", "DROP"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return False
    command = ["unshare", "-n", sys.executable, "-m", module, *arguments]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})  # noqa: S606 (no shell is wanted)


class Network:
    """Which messages are lost.

    Args:
        peer_ports: by node; the order gives each node its group.
    """

    def __init__(self, peer_ports: dict[str, int]) -> None:
        self._ports = peer_ports
        self._groups = {name: FIRST_GROUP + number for number, name in enumerate(peer_ports)}
        self._cut: set[tuple[str, str]] = set()

    def group_of(self, name: str) -> int:
        """Return the group that the node's process must run under."""
        return self._groups[name]

    def cut(self, sender: str, recipient: str) -> None:
        """Lose whatever this node sends on streams and requests of its own to that one."""
        if (sender, recipient) not in self._cut:
            self._cut.add((sender, recipient))
            self._rule("-A", sender, recipient)

    def heal(self) -> None:
        """Let everything through."""
        for sender, recipient in sorted(self._cut):
            self._rule("-D", sender, recipient)
        self._cut.clear()

    def _rule(self, action: str, sender: str, recipient: str) -> None:
        match = ["-p", "tcp", "--dport", str(self._ports[recipient])]
        owner = ["-m", "owner", "--gid-owner", str(self._groups[sender])]
        subprocess.run(["iptables", "-w", action, "OUTPUT", *match, *owner, "-j", "DROP"], check=True)
