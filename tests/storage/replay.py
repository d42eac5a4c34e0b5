"""A file system that loses power: replays traced system calls, and makes the folders that a crash could leave.

What is durable is what was synced: a file's bytes by an fsync of the file, its name by an fsync of its folder. Of
everything else any part may be there or not: each write of its own, whole or torn at a sector; names in their order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.tracing import Call, strings

SECTOR_BYTES = 512
FOLDERS = ("", "snapshots")
"""Relative to the data folder."""


@dataclass(frozen=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    size: int


Change = Write | Truncate


def change(content: bytearray, what: Change) -> None:
    if isinstance(what, Truncate):
        del content[what.size :]
        content.extend(bytes(what.size - len(content)))
        return
    content.extend(bytes(max(0, what.offset - len(content))))
    content[what.offset : what.offset + len(what.data)] = what.data


@dataclass(eq=False)
class File:
    cache: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)

    def do(self, what: Change) -> None:
        change(self.cache, what)
        self.pending.append(what)

    def synced(self, count: int, *, failed: bool) -> None:
        """The first ``count`` pending changes are durable; after a failure they are lost, though the cache has them."""
        if not failed:
            for what in self.pending[:count]:
                change(self.durable, what)
        del self.pending[:count]

    def after_crash(self, random_: random.Random) -> bytes:
        content = bytearray(self.durable)
        kept = random_.choice((0.0, 0.5, 0.9, 1.0))
        for what in self.pending:
            if random_.random() >= kept:
                continue
            if isinstance(what, Write) and random_.random() < 0.1:
                size = random_.randrange(0, len(what.data) + 1, SECTOR_BYTES)
                what = Write(what.offset, what.data[:size])
            change(content, what)
        return bytes(content)


@dataclass
class Descriptor:
    file: File | None
    path: str
    offset: int = 0


class Disk:
    """The files below one folder, as the traced calls leave them."""

    def __init__(self) -> None:
        self.root = ""
        self.names: dict[str, File] = {}
        self.durable_names: dict[str, File] = {}
        self.pending_names: list[tuple[str, str, File | None]] = []
        """(folder, path, file; None: the name is gone)"""
        self.said: list[str] = []
        """The lines of output of all processes."""
        self._descriptors: dict[int, Descriptor] = {}
        self._begun: dict[int, tuple[str, int]] = {}

    def start(self, root: Path) -> None:
        """A process begins, which knows the folder as ``root``."""
        self.root = f"{root}/"
        self._descriptors.clear()
        self._begun.clear()

    def apply(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Apply the calls, and yield each when it is done."""
        for call in calls:
            if call.result is None:
                self._begin(call)
            else:
                arguments, count = call.arguments, -1
                if not arguments and call.thread in self._begun:
                    arguments, count = self._begun.pop(call.thread)
                self._finish(call.name, arguments, call.result, count)
            yield call

    def _begin(self, call: Call) -> None:
        """A call that another thread interrupts: a sync covers only what was written before it began."""
        descriptor = self._descriptor(call.arguments)
        count = len(descriptor.file.pending) if descriptor is not None and descriptor.file is not None else 0
        self._begun[call.thread] = (call.arguments, count)

    def _finish(self, name: str, arguments: str, result: int, count: int) -> None:
        match name:
            case "openat" | "open" if result >= 0:
                self._open(arguments, result)
            case "close":
                self._descriptors.pop(int(arguments), None)
            case "pwrite64" | "write" if result >= 0:
                self._write(name, arguments, result)
            case "ftruncate" if result == 0:
                descriptor = self._descriptor(arguments)
                if descriptor is not None and descriptor.file is not None:
                    descriptor.file.do(Truncate(int(arguments.split(", ")[1])))
            case "fsync" | "fdatasync":
                self._sync(arguments, result, count)
            case "rename" if result == 0:
                source, target = (path.decode() for path in strings(arguments))
                self._rename(source, target)
            case "unlink" if result == 0:
                self._unlink(strings(arguments)[0].decode())
            case "writev" | "pwritev" | "fallocate" | "renameat" | "renameat2" | "unlinkat" if result >= 0:
                raise NotImplementedError(f"{name}({arguments[:200]})")

    def _open(self, arguments: str, descriptor: int) -> None:
        path = strings(arguments)[0].decode()
        name = self._name(path)
        if name is None:
            self._descriptors.pop(descriptor, None)
            return
        flags = arguments.split('"')[2]
        if name in FOLDERS:  # SQLite opens them without O_DIRECTORY.
            self._descriptors[descriptor] = Descriptor(None, name)
            return
        file = self.names.get(name)
        if file is None:
            file = File()
            self._link(name, file)
        elif "O_TRUNC" in flags:
            file.do(Truncate(0))
        self._descriptors[descriptor] = Descriptor(file, name)

    def _write(self, name: str, arguments: str, result: int) -> None:
        data = strings(arguments)[0]
        if name == "write" and arguments.startswith("1, "):
            self.said.append(data.decode().strip())
        descriptor = self._descriptor(arguments)
        if descriptor is None or descriptor.file is None:
            return
        offset = int(arguments.rsplit(", ", 1)[1]) if name == "pwrite64" else descriptor.offset
        descriptor.file.do(Write(offset, data[:result]))
        if name == "write":
            descriptor.offset += result

    def _sync(self, arguments: str, result: int, count: int) -> None:
        descriptor = self._descriptor(arguments)
        if descriptor is None:
            return
        if descriptor.file is not None:
            count = len(descriptor.file.pending) if count < 0 else count
            descriptor.file.synced(count, failed=result != 0)
        elif result == 0:
            here = [change for change in self.pending_names if change[0] == descriptor.path]
            self.pending_names = [change for change in self.pending_names if change not in here]
            self._settle(self.durable_names, here)

    def _link(self, name: str, file: File | None) -> None:
        if file is None:
            del self.names[name]
        else:
            self.names[name] = file
        self.pending_names.append((os.path.dirname(name), name, file))

    def _rename(self, source: str, target: str) -> None:
        source_name, target_name = self._name(source), self._name(target)
        if source_name is not None and target_name is not None:
            self._link(target_name, self.names[source_name])
            self._link(source_name, None)

    def _unlink(self, path: str) -> None:
        name = self._name(path)
        if name is not None and name in self.names:
            self._link(name, None)

    def _settle(self, names: dict[str, File], changes: Iterable[tuple[str, str, File | None]]) -> None:
        for _, name, file in changes:
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file

    def _name(self, path: str) -> str | None:
        """The path below the root; None for what is elsewhere, and for -shm, which SQLite rebuilds."""
        if not f"{path}/".startswith(self.root) or path.endswith("-shm"):
            return None
        return path[len(self.root) :]

    def _descriptor(self, arguments: str) -> Descriptor | None:
        number = arguments.split(",", 1)[0]
        return self._descriptors.get(int(number)) if number.isdecimal() else None

    # --- What is left -------------------------------------------------------------------------------------------------

    def after_kill(self, folder: Path) -> None:
        """Make the folder that a killed process leaves: the kernel has everything."""
        _write_files(folder, {name: bytes(file.cache) for name, file in self.names.items()})

    def after_crash(self, folder: Path, random_: random.Random) -> None:
        """Make one of the folders that a loss of power could leave."""
        names = dict(self.durable_names)
        self._settle(names, self.pending_names[: random_.randint(0, len(self.pending_names))])
        contents: dict[File, bytes] = {}
        for file in names.values():
            if file not in contents:
                contents[file] = file.after_crash(random_)
        _write_files(folder, {name: contents[file] for name, file in names.items()})


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    (folder / "snapshots").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
