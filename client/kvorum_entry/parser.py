"""What the parsers of ``kv`` and ``kvorum`` share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


class SubcommandParser(argparse.ArgumentParser):
    """A parser that names what it does not know with the usage of the subcommand."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and exit with status 2 if an argument is unknown.

        argparse itself has the outermost parser complain of what a subcommand does not know.
        """
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown
