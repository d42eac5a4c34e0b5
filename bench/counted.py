"""A node that counts its Python calls: ``python counted.py PORT FOLDER ARGUMENT...`` runs ``kvorum ARGUMENT...``.

``PORT`` is the node's client port. For each connection to it, a file ``FOLDER/<the client's port>.json`` appears when
the connection closes, with one record a request; ``bench.calls`` reads it and defines what is counted.

This program imports nothing of Kvorum, knows none of its names, and needs nothing but the standard library, so it
counts any version. It stands at one place that asyncio guarantees: ``loop.create_server`` gets a factory of protocols,
and each protocol gets a transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, NoneType
from typing import Any

THIS_FILE = sys._getframe().f_code.co_filename
MAY_BE_EMPTY = (NoneType, bool, tuple, list, dict, set, frozenset, str, bytes)
SUSPENDS = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Tally:
    """The calls of one thread: for each code object, how often it was entered, and how often it returned nothing."""

    def __init__(self) -> None:
        self.on_loop = threading.current_thread() is threading.main_thread()
        # By identity: equal code objects of two files must not be added up.
        self.counts: dict[int, list[Any]] = {}

    def profile(self, frame: FrameType, event: str, result: object) -> None:
        """Count one event of ``sys.setprofile``."""
        if event == "call":
            code = frame.f_code
            if code.co_filename != THIS_FILE:
                self.counts.setdefault(id(code), [code, 0, 0])[1] += 1
        elif event == "return" and type(result) in MAY_BE_EMPTY and not result:
            code = frame.f_code
            if code.co_filename != THIS_FILE and not code.co_flags & SUSPENDS:
                self.counts.setdefault(id(code), [code, 0, 0])[2] += 1


tallies: list[Tally] = []


def profile_this_thread(_frame: FrameType, _event: str, _result: object) -> None:
    """Give the calling thread a tally of its own; the first event of every thread."""
    tally = Tally()
    tallies.append(tally)
    sys.setprofile(tally.profile)


Calls = list[tuple[bool, CodeType, int, int]]
"""On the loop's thread, what was called, calls, calls that returned nothing."""


def counted() -> Calls:
    """Return what was called since the last ``forget``."""
    return [(tally.on_loop, *entry) for tally in list(tallies) for entry in list(tally.counts.values())]


def forget() -> None:
    """Begin to count anew."""
    for tally in list(tallies):
        tally.counts.clear()


class Requests:
    """The requests of one connection, one after the other.

    Args:
        folder: where they are written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[str] = []
        self.functions: dict[int, tuple[int, CodeType]] = {}
        self.started = 0.0
        self.answered = 0.0
        self.at_answer: Calls | None = []
        """What was called up to the latest write of an answer; None as long as nothing was written."""

    def received(self) -> None:
        """Note that bytes came: a new request, if the last one has an answer."""
        if self.at_answer is None:
            return
        self.close()
        self.at_answer = None
        self.started = time.monotonic()
        forget()

    def wrote(self) -> None:
        """Note that a part of the answer, which may be all of it, was written."""
        self.answered = time.monotonic()
        self.at_answer = counted()

    def close(self) -> None:
        """End the record of the request that is answered. It becomes text now: all at once would hold up the loop."""
        if self.started and self.at_answer is not None:
            record = {
                "answer_s": self.answered - self.started,
                "whole_s": time.monotonic() - self.started,
                "answer": self.numbered(self.at_answer),
                "whole": self.numbered(counted()),
            }
            self.records.append(json.dumps(record))

    def numbered(self, calls: Calls) -> list[tuple[bool, int, int, int]]:
        """Return the calls with each code object replaced by its number in ``functions``."""
        return [
            (on_loop, self.functions.setdefault(id(code), (len(self.functions), code))[0], entered, nothing)
            for on_loop, code, entered, nothing in calls
        ]

    def write(self, client_port: int) -> None:
        """Leave the records in their file, which is complete when it appears."""
        self.close()
        functions = [(code.co_filename, code.co_name, code.co_firstlineno) for _, code in self.functions.values()]
        partial = self.folder / f"{client_port}.partial"
        partial.write_text(f'{{"functions": {json.dumps(functions)}, "requests": [{", ".join(self.records)}]}}')
        partial.rename(self.folder / f"{client_port}.json")


class Transport(asyncio.Transport):
    """A server's transport that tells of each write; in all else the one that it was made from."""

    def __init__(self, transport: asyncio.BaseTransport, requests: Requests) -> None:
        self.real = transport
        self.requests = requests

    def __getattribute__(self, name: str) -> Any:
        if name in ("write", "writelines"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "real"), name)

    def write(self, data: Any) -> None:
        """Write."""
        object.__getattribute__(self, "real").write(data)
        object.__getattribute__(self, "requests").wrote()

    def writelines(self, list_of_data: Any) -> None:
        """Write several pieces."""
        object.__getattribute__(self, "real").writelines(list_of_data)
        object.__getattribute__(self, "requests").wrote()


class Tap(asyncio.Protocol):
    """Stands between the loop and a server's protocol of one connection."""

    def __init__(self, protocol: asyncio.Protocol, folder: Path) -> None:
        self.protocol = protocol
        self.requests = Requests(folder)
        self.client_port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand on a transport that notices writes."""
        self.client_port = transport.get_extra_info("peername")[1]
        self.protocol.connection_made(Transport(transport, self.requests))

    def data_received(self, data: bytes) -> None:
        """Begin a record, and hand on."""
        self.requests.received()
        self.protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Hand on."""
        return self.protocol.eof_received()

    def pause_writing(self) -> None:
        """Hand on."""
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        """Hand on."""
        self.protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Write the records, and hand on."""
        self.requests.write(self.client_port)
        self.protocol.connection_lost(error)


def tap(loop_type: type[Any], client_port: int, folder: Path) -> None:
    """Make the loops of this type stand a ``Tap`` before each protocol that serves the client port."""
    create_server = loop_type.create_server

    async def tapped(
        self: Any, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        sock = options.get("sock")
        factory = protocol_factory
        if (sock.getsockname()[1] if sock is not None else port) == client_port:

            def factory() -> Tap:
                return Tap(protocol_factory(), folder)

        return await create_server(self, factory, host, port, **options)

    loop_type.create_server = tapped


def main() -> None:
    """Run a node, counted."""
    client_port, folder = int(sys.argv[1]), Path(sys.argv[2])
    sys.argv = ["kvorum", *sys.argv[3:]]
    tap(asyncio.BaseEventLoop, client_port, folder)
    with contextlib.suppress(ModuleNotFoundError):  # without uvloop the node uses asyncio's own loop
        tap(importlib.import_module("uvloop").Loop, client_port, folder)
    threading.setprofile(profile_this_thread)
    sys.setprofile(profile_this_thread)
    runpy.run_module("kvorum", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    os.umask(0o077)
    main()
