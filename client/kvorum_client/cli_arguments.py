"""Arguments that several commands of ``kv`` take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from kvorum_client.arguments import INTEGER_MAX, TIMEOUT_S_MAX, check_cluster_id
from kvorum_client.errors import InvalidArgumentError

KEY_BYTES_MAX = 1024
NAME_BYTES_MAX = 995
"""Of a lock or an election."""
STALENESS_MS_MAX = 86_400_000
HISTORY_VERSIONS_MAX = 1000
QUOTA_BYTES_MIN = 1024 * 1024


def seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= TIMEOUT_S_MAX:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, up to {TIMEOUT_S_MAX:,}, not {text!r}")
    return seconds


def whole_number(what: str, minimum: int = 0, maximum: int = INTEGER_MAX, note: str = "") -> Callable[[str], int]:
    """Return what reads a whole number within limits; ``what`` names it in the error, ``note`` says more."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or len(text) > 19 or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"must be {what} from {minimum:,} to {maximum:,}{note}, not {text!r:.80}")
        return int(text)

    return read


def text_of_bytes(what: str, minimum: int, maximum: int) -> Callable[[str], str]:
    """Return what reads a text that has so many bytes in UTF-8; ``what`` names it in the error."""

    def read(text: str) -> str:
        size_bytes = len(text.encode("utf-8", "surrogateescape"))
        if not minimum <= size_bytes <= maximum:
            has = f"has {size_bytes:,} bytes" if size_bytes else "is empty"
            raise argparse.ArgumentTypeError(f"{has}; {what} has {minimum:,} to {maximum:,}")
        return text

    return read


def lease_id(text: str) -> int:
    """Return the id of a lease, in hex as ``kv`` prints it."""
    digits = text.removeprefix("-")
    number = int(text, 16) if digits.isalnum() and digits.isascii() and _is_hex(digits) else 0
    if number == 0 or not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(
            f"must be the id of a lease, a signed 64-bit number in hex and not 0, not {text!r}"
        )
    return number


def _is_hex(digits: str) -> bool:
    return len(digits) <= 16 and all(digit in "0123456789abcdefABCDEF" for digit in digits)


def add_key(command: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the argument ``KEY``."""
    command.add_argument(
        "key", metavar="KEY", type=key, nargs="?" if optional else None, help="1 to 1024 bytes; text is UTF-8"
    )


def add_output(
    command: argparse.ArgumentParser,
    choices: Sequence[str] = ("table", "json"),
    default: str = "table",
    help: str = "[default table]",
) -> None:
    """Add the option for how to print the answer."""
    command.add_argument("-o", "--output", choices=choices, default=default, help=help)


def cluster_id(text: str) -> str:
    """Return the id of a cluster."""
    try:
        return check_cluster_id(text)
    except InvalidArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


key = text_of_bytes("a key", 1, KEY_BYTES_MAX)
prefix = text_of_bytes("a prefix", 0, KEY_BYTES_MAX)
start = text_of_bytes("the first key of a range", 0, KEY_BYTES_MAX)
end = text_of_bytes("the key behind a range", 1, KEY_BYTES_MAX)
name = text_of_bytes("a name", 1, NAME_BYTES_MAX)
node_name = text_of_bytes("the name of a node", 1, KEY_BYTES_MAX)
revision_number = whole_number("a revision, a whole number", 1)
prev_revision_number = whole_number("a revision, a whole number")
milliseconds = whole_number("a whole number of milliseconds", 0, STALENESS_MS_MAX)
keys_number = whole_number("a whole number of keys", 1)


def add_revision(command: argparse.ArgumentParser, help: str) -> None:
    """Add the option for the revision at which to read."""
    command.add_argument("--revision", *("--rev",), metavar="N", type=revision_number, help=help)


def add_range(command: argparse.ArgumentParser, prefix_help: str) -> None:
    """Add the options that say which keys a range has."""
    command.add_argument("--prefix", metavar="P", type=prefix, help=prefix_help)
    command.add_argument("--from", metavar="KEY", type=start, help="all keys from this one on")
    command.add_argument("--to", metavar="KEY", type=end, help="all keys before this one")


def range_of(options: argparse.Namespace) -> dict[str, str]:
    """Return which keys a range has, in the words of the client; empty: no range is given.

    Raises:
        InvalidArgumentError: the options contradict each other.
    """
    bounds = {"prefix": options.prefix, "start": getattr(options, "from"), "end": options.to}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if "prefix" in given and len(given) > 1:
        raise InvalidArgumentError("give --prefix, or --from and --to, but not both")
    return given
