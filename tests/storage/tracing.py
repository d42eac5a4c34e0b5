"""Running the workload under strace, and reading what strace wrote."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: system calls can be neither counted nor failed"
)

FILE_CALLS = (
    "openat,open,close,pwrite64,write,writev,pwritev,ftruncate,fallocate,fsync,fdatasync,sync_file_range,rename,renameat,"
    "renameat2,unlink,unlinkat,mkdir,mkdirat,mmap"
)

_STRINGS_MAX = 64 * 1024 * 1024


@dataclass(frozen=True)
class Call:
    """One system call, or the first half of one that another thread's calls interrupted."""

    thread: int
    name: str
    arguments: str
    result: int | None
    """None: the call had begun, and its end is a later item with the same thread and name, and no arguments."""


def command(folder: Path, operations: int, seed: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "storage.workload", str(folder), str(operations), str(seed), *more]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def run_child(arguments: Sequence[str], timeout_s: float = 120) -> tuple[int, list[str]]:
    """Run to the end, and return the exit status and the lines of output; those of stderr are shown with a failure."""
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=timeout_s)
    sys.stderr.write(done.stderr)
    return done.returncode, done.stdout.splitlines()


def acknowledged(lines: Sequence[str], word: str = "ack") -> int:
    """The last operation that was acknowledged (or begun)."""
    return max((int(line.split()[1]) for line in lines if line.startswith(f"{word} ")), default=0)


def trace(target: Path, calls: str, arguments: Sequence[str]) -> list[str]:
    """Run under strace, with the calls going to ``target``; returns the lines of output."""
    options = ["strace", "-f", "-qq", "-e", "signal=none", "-e", f"trace={calls}", "-s", str(_STRINGS_MAX), "-xx"]
    status, lines = run_child([*options, "-o", str(target), *arguments])
    assert status == 0, lines
    return lines


_WHOLE = re.compile(r"^(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+|\?).*$")
_BEGUN = re.compile(r"^(\d+)\s+(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. (\w+) resumed>(.*)\)\s+= (-?\d+|0x[0-9a-f]+|\?).*$")


def read_trace(path: Path) -> Iterator[Call]:
    """Yield the calls in the order in which they happened."""
    with open(path) as lines:
        for line in lines:
            if found := _BEGUN.match(line):
                yield Call(int(found[1]), found[2], found[3], None)
            elif found := _RESUMED.match(line) or _WHOLE.match(line):
                resumed = "resumed>" in line[:80]
                yield Call(int(found[1]), found[2], "" if resumed else found[3], _number(found[4]))


def strings(arguments: str) -> list[bytes]:
    """Return the quoted strings among the arguments, which strace has written in hexadecimal."""
    return [bytes.fromhex(text.replace("\\x", "")) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)]


def _number(text: str) -> int:
    return -1 if text == "?" else int(text, 0)
