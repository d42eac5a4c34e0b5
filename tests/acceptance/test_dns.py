"""Names that do not resolve, and a name server that does not answer; real processes, with a name server of the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from acceptance.processes import Cluster
from waiting import DEADLINE_S, eventually

NAME_SERVER = """
import os, socket, time

real = socket.getaddrinfo

def getaddrinfo(host, port, *args, **options):
    if isinstance(host, str) and host.endswith(".test"):
        with open(os.environ["NAME_SERVER"]) as file:
            state = file.read()
        if state == "down":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if state == "silent":
            time.sleep(600)
        host = "127.0.0.1"
    return real(host, port, *args, **options)

socket.getaddrinfo = getaddrinfo
"""


class NamedCluster(Cluster):
    """Three nodes that know each other by name; ``state`` says what the name server does: up, down, silent."""

    def __init__(self, folder: Path) -> None:
        # uvloop has a getaddrinfo of its own.
        super().__init__(folder, 3, ("--uvloop", "off"))
        (folder / "python").mkdir()
        (folder / "python" / "sitecustomize.py").write_text(NAME_SERVER)
        self._state = folder / "name-server"
        self.state("up")

    def state(self, state: str) -> None:
        """Change what the name server does."""
        self._state.write_text(state)

    def command(self, name: str, *flags: str) -> list[str]:
        """Return the command line of a node."""
        peers = ",".join(f"{each}={each}.test:{port}" for each, port in self.peer_ports.items())
        command = super().command(name, *flags)
        command[command.index("--peers") + 1] = peers
        return command

    def start(
        self,
        name: str,
        *flags: str,
        preexec: Callable[[], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a node with this name server."""
        path = os.pathsep.join((str(self.folder / "python"), os.environ.get("PYTHONPATH", "")))
        ours = {**(environment or os.environ), "PYTHONPATH": path, "NAME_SERVER": str(self._state)}
        return super().start(name, *flags, preexec=preexec, environment=ours)

    def answers_ok(self, name: str, path: str) -> bool:
        """Tell whether a probe of a node succeeds."""
        answer = self.try_request(name, "GET", path)
        return answer is not None and answer.status == 200


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NamedCluster]:
    cluster = NamedCluster(tmp_path)
    with cluster:
        eventually(
            "every node knows the addresses of the others",
            lambda: all(_knows_all(cluster.data_dir(name)) for name in cluster.names),
        )
        yield cluster


def _knows_all(folder: Path) -> bool:
    file = folder / "addresses"
    return file.exists() and file.read_text().count("127.0.0.1") == 2


@pytest.mark.parametrize("state", ["down", "silent"])
def test_a_node_rejoins_and_stops_without_a_name_server(cluster: NamedCluster, state: str) -> None:
    """No address had changed, but no node could be reached; and what waited for names held up the end."""
    cluster.state(state)
    assert cluster.stop("n3") == 0
    cluster.start("n3")
    eventually("n3 is ready", lambda: cluster.answers_ok("n3", "/readyz"))
    assert cluster.stop("n3", DEADLINE_S) == 0


def test_a_node_that_knows_no_address_is_alive_and_stops_while_the_name_server_is_silent(cluster: NamedCluster) -> None:
    cluster.stop("n3")
    (cluster.data_dir("n3") / "addresses").unlink()
    cluster.state("silent")
    cluster.start("n3")
    eventually("n3 answers", lambda: cluster.answers_ok("n3", "/livez"))
    assert cluster.stop("n3", DEADLINE_S) == 0
