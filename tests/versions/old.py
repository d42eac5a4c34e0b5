"""Earlier versions, built from git by their commits, and a child process that runs the pure parts of one."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
COMMITS = {"0.1.0": "a91d484", "0.2.0": "50d66c6", "0.3.0": "3fec5b2", "0.4.0": "7729c71", "0.5.0": "18edf5c"}
"""Version -> a commit of it, the last one before the next version."""

CHILD = """
import sys
import msgspec, kvorum
from kvorum.errors import KvorumError
from kvorum.kv import sessions, snapshot, store
from kvorum.kv.snapshot import Restorer
from kvorum.kv.store import Store
from kvorum.raft import codec
from kvorum.raft.messages import Configuration, Entry

assert kvorum.__version__ == sys.argv[2] and kvorum.__file__.startswith(sys.argv[1]), kvorum.__file__
SMALL = {
    sessions: {"SESSION_WINDOW": 4, "SESSIONS_MAX": 3, "SESSIONS_ENDED_MAX": 2, "_FORGOTTEN_AT_ONCE": 1},
    snapshot: {"SESSIONS_MAX": 3, "SESSIONS_ENDED_MAX": 2},
    store: {"QUOTA_BYTES_MIN": 1},
}
LARGE = {module: {name: getattr(module, name, None) for name in names} for module, names in SMALL.items()}

def limits(small):
    for module, values in (SMALL if small else LARGE).items():
        for name, value in values.items():
            if hasattr(module, name):
                setattr(module, name, value)

def snapshot_of(store):
    cut = store.begin_snapshot()
    chunks = []
    while (chunk := cut.next_chunk(2)) is not None:
        chunks.append(chunk)
    cut.close()
    return b"".join(chunks)

def restore(data, members):
    restorer = Restorer() if sys.argv[2] == "0.1.0" else Restorer(msgspec.convert(members, Configuration))
    restorer.feed(data)
    return restorer.finish()

def apply(data, entries, members, small):
    limits(small)
    store = restore(data, members) if data else Store()
    outcomes = []
    for entry in msgspec.convert(entries, list[Entry]):
        results = store.apply(entry)
        outcomes.append([store.state_hash, msgspec.msgpack.encode(results)])
    return [outcomes, snapshot_of(store)]

def decode(frame):
    return codec.encode(codec.decode(frame))

while True:
    request = sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(4)))
    if not request:
        break
    name, arguments = msgspec.msgpack.decode(request)
    try:
        answer = ["ok", {"apply": apply, "decode": decode}[name](*arguments)]
    except (KvorumError, msgspec.DecodeError) as error:
        answer = [type(error).__name__, str(error)]
    encoded = msgspec.msgpack.encode(answer)
    sys.stdout.buffer.write(len(encoded).to_bytes(4) + encoded)
    sys.stdout.buffer.flush()
"""


@cache
def sources(version: str) -> Path:
    """Return a folder with the sources of a version; skip the test if the history does not have them."""
    commit = COMMITS[version]
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "service", "client"],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        pytest.skip(f"no commit {commit} here (a shallow clone?): {archive.stderr.decode().strip()}")
    folder = Path(tempfile.mkdtemp(prefix=f"kvorum-{version}-"))
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def environment(version: str) -> dict[str, str]:
    """Return an environment in which ``import kvorum`` finds a version."""
    folder = sources(version)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "service"), str(folder / "client")])}


class OldVersionError(Exception):
    """What the old version raised: the name of its exception, and its text."""


class OldVersion:
    """The pure parts of an old version, in a process of their own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def apply(
        self, snapshot: bytes, entries: list[list[Any]], members: object = None, *, small: bool
    ) -> tuple[list[list[Any]], bytes]:
        """Apply entries to a snapshot (empty: to nothing).

        Args:
            snapshot: what 0.1.0 reads alone, and later versions with the members.
            entries: as builtin types.
            members: the configuration at the snapshot, as builtin types.
            small: with the limits of ``small_sessions``.

        Returns:
            For each entry the state hash after it, and its results (msgpack); and a snapshot of the last state.

        Raises:
            OldVersionError: it refuses.
        """
        outcomes, snapshot = self._ask("apply", snapshot, entries, members, small)
        return outcomes, snapshot

    def decode(self, frame: bytes) -> bytes:
        """Decode a frame of messages; return what it understood, encoded again.

        Raises:
            OldVersionError: it refuses.
        """
        understood: bytes = self._ask("decode", frame)
        return understood

    def _ask(self, name: str, *arguments: object) -> Any:
        request = msgspec.msgpack.encode([name, arguments])
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(len(request).to_bytes(4) + request)
        stdin.flush()
        outcome, answer = msgspec.msgpack.decode(stdout.read(int.from_bytes(stdout.read(4))))
        if outcome != "ok":
            raise OldVersionError(f"{outcome}: {answer}")
        return answer


@contextmanager
def old_version(version: str = "0.1.0") -> Iterator[OldVersion]:
    """Run an old version beside this one."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(sources(version)), version],
        env=environment(version),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield OldVersion(process)
        finally:
            process.kill()
