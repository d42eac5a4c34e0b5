"""The pages written by hand: their links, the decision records, and the list of known faults."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from kvorum.kv.limits import (
    ENDED_SESSION_OVERHEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    SESSION_OVERHEAD_BYTES,
    TOMBSTONE_OVERHEAD_BYTES,
    VERSION_OVERHEAD_BYTES,
)
from kvorum_wire import MemberStatus, NodeStatus

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for folder in ("", "docs/**", "deploy/helm", "bench") for path in ROOT.glob(f"{folder}/*.md".removeprefix("/"))
)
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
KNOWN_FAULTS = ROOT / "docs" / "known-faults.md"


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def outside_of_code(text: str) -> str:
    """Return the text without its code blocks and spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", outside_of_code(page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_the_page_on_the_quota_says_what_counts() -> None:
    page = (ROOT / "docs/operations/quota.md").read_text()
    rows = [int(number) for number in re.findall(r"and (\d+) \|$", page, re.MULTILINE)]
    assert rows == [
        RECORD_OVERHEAD_BYTES,
        SESSION_OVERHEAD_BYTES,
        VERSION_OVERHEAD_BYTES,
        TOMBSTONE_OVERHEAD_BYTES,
        ENDED_SESSION_OVERHEAD_BYTES,
    ]


def test_decisions_are_numbered_without_gaps() -> None:
    assert [path.name[:4] for path in DECISIONS] == [f"{number:04}" for number in range(1, len(DECISIONS) + 1)]


def test_the_index_of_the_decisions_lists_each_with_its_title() -> None:
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.*) \| ", (ROOT / "docs/decisions/README.md").read_text(), re.M)
    titles = [path.read_text().partition("\n")[0] for path in DECISIONS]
    assert [(f"# {number}: {title}", name) for number, name, title in rows] == [
        (title, path.name) for title, path in zip(titles, DECISIONS, strict=True)
    ]


@pytest.mark.parametrize("page", DECISIONS, ids=id_of)
def test_every_decision_has_the_same_parts(page: Path) -> None:
    text = page.read_text()
    assert re.match(
        r"# \d{4}: [^\n]+\n\nStatus: (proposed|accepted|replaced by \d{4})[^\n]*\. Date: \d{4}-\d\d\.\n", text
    )
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_every_decision_that_a_source_names_exists() -> None:
    folders = ("service", "client", "tests", "deploy", "bench", "docs")
    numbers = {path.name[:4] for path in DECISIONS}
    named = {
        (number, id_of(path))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".yaml", ".tpl"}
        for number in re.findall(r"\bdecisions?[ /](\d{4})\b", path.read_text())
    }
    assert len(named) > 5
    assert {each for each in named if each[0] not in numbers} == set()


def test_the_table_of_the_core_names_its_modules() -> None:
    text = (ROOT / "docs" / "internals" / "raft.md").read_text()
    table = text.partition("| module | contents |")[2].partition("\n\n")[0]
    named = [
        name for cell in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(named) == sorted(
        path.stem for path in (ROOT / "service/kvorum/raft").glob("*.py") if path.stem != "__init__"
    )


def test_the_page_of_the_api_lists_the_fields_of_the_status() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    tables = [part.partition("\n\n")[0] for part in text.split("| field | meaning |")[1:]]
    for table, kind in zip(tables, (NodeStatus, MemberStatus), strict=True):
        cells = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
        named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
        assert sorted(named) == sorted(kind.__struct_fields__)


def test_the_storage_package_lists_its_modules() -> None:
    folder = ROOT / "service" / "kvorum" / "storage"
    named = set(re.findall(r"^(?:- |  ).*", (folder / "__init__.py").read_text(), re.MULTILINE))
    listed = {name for line in named for name in re.findall(r":mod:`~kvorum\.storage\.(\w+)`", line)}
    assert listed == {path.stem for path in folder.glob("*.py")} - {"__init__"}


def test_everybody_describes_kvorum_with_the_same_sentence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["description"]
    sentence = project[0].lower() + project[1:]
    for name in ("README.md", "Dockerfile", "service/kvorum/__init__.py"):
        assert sentence in (ROOT / name).read_text().replace(project, sentence), name


def test_every_known_fault_has_one_row() -> None:
    numbers = re.findall(r"^\| ([BK]\d+) \|", KNOWN_FAULTS.read_text(), re.MULTILINE)
    assert numbers[:40] == [f"B{number}" for number in range(1, 41)]
    assert numbers[40:] == [f"K{number}" for number in range(1, len(numbers) - 39)]


def test_every_test_and_invariant_that_a_known_fault_names_exists() -> None:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    defined = {name for source in sources for name in re.findall(r"^\s*(?:async )?def (\w+)\(", source, re.MULTILINE)}
    text = KNOWN_FAULTS.read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    for last_column in re.findall(r"^\| B\d+ \|.*\| (.*) \|$", text, re.MULTILINE):
        named.update(re.findall(r"`(\w+)`", last_column))
    assert len(named) > 100
    assert named <= defined


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_the_pages_delete_and_kill_nothing_by_pattern(page: Path) -> None:
    commands = "\n".join(re.findall(r"^```.*?^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL))
    assert not re.search(r"\b(pkill|killall)\b", commands)
    # An unset variable must not turn it into the removal of everything beside it.
    assert not re.search(r"\brm -r\w* [^\n]*\$(?!\{\w+:\?)", commands)


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_no_page_reuses_the_defaults_of_an_older_chart(page: Path) -> None:
    """With --reuse-values a new value of the chart is missing, and its templates fail or are wrong."""
    commands = re.findall(r"helm upgrade kv [^`\n]*", page.read_text())
    assert [command for command in commands if " --reuse-values" in command] == []


def test_every_test_that_the_table_of_unusual_cases_names_exists() -> None:
    sources = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    defined = {name for source in sources for name in re.findall(r"^\s*def (\w+)\(", source, re.MULTILINE)}
    page = (ROOT / "docs" / "operations" / "unusual-cases.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) >= 12
    assert named <= defined
