"""Which test killed each mutant the last time it was remembered: only a hint, tried first because it is quick.

``python -m mutants --remember`` writes the file. A wrong or missing hint costs time, never a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mutants.runner import Outcome

FILE = Path(__file__).with_name("killers.json")


def load() -> dict[str, str]:
    """Return the test that killed each mutant, by the mutant's name."""
    if not FILE.exists():
        return {}
    killers: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8"))
    return killers


def remember(outcomes: Iterable[Outcome], names: Iterable[str]) -> None:
    """Write what killed these mutants; forget those that are not in ``names``, the table."""
    killers = load() | {outcome.mutant.name: outcome.by_test for outcome in outcomes if "::" in outcome.by_test}
    kept = {name: killers[name] for name in names if name in killers}
    FILE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
