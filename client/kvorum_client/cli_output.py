"""What ``kv`` prints."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import BinaryIO, TextIO

import msgspec

from kvorum_client.leases import shown_id


def print_json(data: object, stream: BinaryIO | None = None) -> None:
    """Print data as JSON, to stdout unless told otherwise."""
    stream = sys.stdout.buffer if stream is None else stream
    stream.write(msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")
    stream.flush()


def print_json_line(data: object) -> None:
    """Print data as JSON in one line at once, as commands do that go on: a program reads them line by line."""
    sys.stdout.buffer.write(msgspec.json.encode(data) + b"\n")
    sys.stdout.buffer.flush()


def text_fields(name: str, data: bytes) -> dict[str, str]:
    """Return bytes as a field of JSON: as text, or, if they are not UTF-8, as base64 under another name."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def lease_field(lease: int) -> dict[str, str]:
    """Return the id of a lease as a field of JSON; without a lease there is none."""
    return {"lease": shown_id(lease)} if lease else {}


def printable(value: object) -> str:
    r"""Return a value as text that cannot move this terminal's cursor, whatever somebody stored.

    A byte that is not UTF-8, which arguments of a process hold as a surrogate, is written as in ``\xff``.
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in str(value))


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return repr(char)[1:-1]


def for_terminal(value: bytes) -> str:
    """Return a value as lines for a terminal: what is not printable is escaped, but for tabs and newlines."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(char if char in "\n\t" else printable(char) for char in text)


def say(message: str) -> None:
    """Print one line to stderr. What cannot be said there changes nothing: the exit status says it."""
    try:
        print("kv: " + printable(message.replace("\n", " ")), file=sys.stderr, flush=True)
    except OSError:
        give_up(sys.stderr)


def warn(message: str) -> None:
    """Print a warning on stderr: the command goes on."""
    say(f"warning: {message}")


def size_text(size_bytes: float, space: str = " ") -> str:
    """Return a number of bytes for people; the JSON has the exact one. In a table there is no space before the unit."""
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{size_bytes:.0f}{space}B" if unit == "B" else f"{amount:.1f}{space}{unit}"


def give_up(stream: TextIO) -> None:
    """Let what is left in the buffer go nowhere, so that the interpreter does not complain at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; the first row is the heading."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
