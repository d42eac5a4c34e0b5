"""Write the values table of README.md anew from the comments in values.yaml: python deploy/values_table.py

A ``# --`` comment documents the value below it; values without one of their own belong to the documented value above.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "helm"
BEGIN, END = "<!-- values -->", "<!-- end of values -->"
_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")


def documented(text: str) -> list[tuple[str, str]]:
    """Return the dotted paths that have a comment, with it, in order."""
    found, path, comment = [], [], ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# --"):
            comment = stripped[4:].strip()
        elif stripped.startswith("#"):
            comment += " " + stripped[1:].strip() if comment else ""
        elif match := _KEY.match(line):
            path[len(match["indent"]) // 2 :] = [match["key"]]
            if comment:
                found.append((".".join(path), comment))
            comment = ""
    return found


def table(text: str) -> str:
    """Return the table in Markdown."""
    values = yaml.safe_load(text)
    rows = ["| value | default | what |", "| --- | --- | --- |"]
    for path, comment in documented(text):
        default: Any = values
        for key in path.split("."):
            default = default[key]
        shown = json.dumps(default)
        cell = comment.replace("|", r"\|")
        rows.append(f"| `{path}` | `{shown if len(shown) <= 60 else 'see values.yaml'}` | {cell} |")
    return "\n".join(rows)


def updated(readme: str, text: str) -> str:
    """Return the README with its table replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(text)}\n{END}{after}"


if __name__ == "__main__":
    path = CHART / "README.md"
    path.write_text(updated(path.read_text(), (CHART / "values.yaml").read_text()))
