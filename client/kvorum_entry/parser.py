"""What the parsers of ``kv`` and ``kvorum`` share."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_MEANT = {
    "ls": ("list", "ls"),
    "list": ("ls", "list"),
    "rm": ("del", "remove", "revoke"),
    "remove": ("del",),
    "set": ("put",),
    "transfer": ("move",),
    "who": ("show",),
}
"""What others call it, and what it may be called here."""
_NEAR = 0.6


class SubcommandParser(argparse.ArgumentParser):
    """A parser that names what it does not know with the usage of the subcommand, and says what may be meant."""

    _given: Sequence[str] = ()
    _unknown: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and exit with status 2 if an argument is unknown.

        argparse itself has the outermost parser complain of what a subcommand does not know.
        """
        self._given, self._unknown = list(sys.argv[1:] if args is None else args), ()
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._unknown = unknown
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage, the message and what to do, and exit with status 2."""
        is_about_arguments = bool(self._unknown) or message.startswith("the following arguments are required")
        super().error(message + (self.hint() if is_about_arguments else ""))

    def hint(self) -> str:
        """Return what to do about arguments that are missing or unknown, to append to a message."""
        commands = next((each for each in self._actions if isinstance(each, argparse._SubParsersAction)), None)
        dashed = self._unknown_options()
        if dashed and (near := _nearest(dashed[0].partition("=")[0], self._option_string_actions)):
            return f"; did you mean {near}?"
        if commands is not None:
            return "" if self._unknown else f", one of: {', '.join(commands.choices)}"
        if dashed and any(not each.option_strings for each in self._actions):
            # Where there are options as well, they come before the --, and which argument is whose cannot be told here.
            has_options = len(dashed) < sum(each.startswith("-") for each in self._given)
            example = shlex.join(dashed[:1] if has_options else self._given)
            return f"; put -- before an argument that begins with -, as in: {self.prog} -- {example}"
        return ""

    def _unknown_options(self) -> list[str]:
        """Return what looks like an option and is none."""
        end = self._given.index("--") if "--" in self._given else len(self._given)
        found = [each for each in self._given[:end] if each.startswith("-") and each != "-"]
        known = self._option_string_actions
        unknown = [each for each in found if each.partition("=")[0] not in known and each[:2] not in known]
        return [each for each in unknown if each in self._unknown] or unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            near = _command_meant(str(value), action)
            meant = f"; did you mean {near!r}?" if near else ""
            commands = ", ".join(action.choices)
            raise argparse.ArgumentError(None, f"no such command: {value!r}{meant} (commands: {commands})")
        super()._check_value(action, value)


def _nearest(text: str, names: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(text, names, 1, _NEAR)), "") if text.startswith("--") else ""


def _command_meant(text: str, commands: argparse._SubParsersAction[Any]) -> str:
    """Return the command that is meant by a word that is none; empty: it could be any."""
    for meant in _MEANT.get(text, ()):
        if meant in commands.choices:
            return meant
    for name, parser in commands.choices.items():
        for inner in parser._actions:
            if isinstance(inner, argparse._SubParsersAction) and text in inner.choices:
                return f"{name} {text}"
    return next(iter(difflib.get_close_matches(text, commands.choices, 1, _NEAR)), "")
