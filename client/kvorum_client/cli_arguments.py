"""Arguments that several commands of ``kv`` take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kvorum_client.arguments import TIMEOUT_S_MAX


def seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= TIMEOUT_S_MAX:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, up to {TIMEOUT_S_MAX:,}, not {text!r}")
    return seconds


def whole_number(text: str, what: str) -> int:
    """Return a whole number from 0 on; ``what`` names it."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be {what} from 0 to {2**63 - 1:,}, not {text!r}")
    return int(text)


def lease_id(text: str) -> int:
    """Return the id of a lease, in hex as ``kv`` prints it."""
    digits = text.removeprefix("-")
    number = int(text, 16) if digits.isalnum() and digits.isascii() and _is_hex(digits) else 0
    if number == 0 or not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must be the id of a lease, up to 16 hex digits and not 0, not {text!r}")
    return number


def _is_hex(digits: str) -> bool:
    return len(digits) <= 16 and all(digit in "0123456789abcdefABCDEF" for digit in digits)


def add_output(
    command: argparse.ArgumentParser,
    choices: Sequence[str] = ("table", "json"),
    default: str = "table",
    help: str = "[default table]",
) -> None:
    """Add the option for how to print the answer."""
    command.add_argument("-o", "--output", choices=choices, default=default, help=help)


def revision_number(text: str) -> int:
    """Return a revision."""
    return whole_number(text, "a revision, a whole number")


def versions_number(text: str) -> int:
    """Return how many versions, or keys."""
    return whole_number(text, "a whole number of versions")


def milliseconds(text: str) -> int:
    """Return a number of milliseconds."""
    return whole_number(text, "a whole number of milliseconds")


def add_revision(command: argparse.ArgumentParser, help: str) -> None:
    """Add the option for the revision at which to read."""
    command.add_argument("--revision", *("--rev",), metavar="N", type=revision_number, help=help)
