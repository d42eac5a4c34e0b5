"""The ``kvorum`` command, from its first moment on: everything else is imported under its protection."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import kvorum_entry

EXIT_CONFIG = 2
"""Also in :mod:`kvorum.commands.serve`, which cannot be imported without those packages."""
OUR_PACKAGES = frozenset({"kvorum", "kvorum_client", "kvorum_wire"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        return kvorum_entry.run("kvorum.cli", arguments)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OUR_PACKAGES:
            raise
        print(
            f"kvorum: {error}: the packages of the node are not installed here, only those of the client. For `kv` "
            "they are not needed; to run a node install them: pip install --require-hashes -r requirements.lock "
            "(docs/install.md)",
            file=sys.stderr,
        )
        return EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main())
