"""What a node needs of the world is handed in: nothing in ``kvorum.node`` asks for it behind its ports' back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvorum.node
from kvorum.identity import incarnation_of, is_node_id, name_of, node_id

FOLDER = Path(kvorum.node.__file__).parent
RUNTIME = "runtime.py"
"""The real ports are the one place that may."""

MODULES = {"time", "threading", "socket", "os", "secrets", "aiohttp", "sqlite3", "subprocess", "tempfile", "datetime"}
OF_ASYNCIO = {
    "all_tasks",
    "create_task",
    "current_task",
    "ensure_future",
    "get_event_loop",
    "get_running_loop",
    "open_connection",
    "run",
    "sleep",
    "start_server",
    "timeout",
    "timeout_at",
    "to_thread",
    "wait_for",
    "TaskGroup",
}


def asked_behind_the_ports(source: str) -> list[str]:
    """Return what a module asks of the world by itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                found += [alias.name for alias in names if alias.name.partition(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in MODULES | {"asyncio"}:
                    found.append(module)
                found += [alias.name for alias in names if alias.name == "SystemRandom"]
            case ast.Attribute(value=ast.Name("asyncio"), attr=attribute) if attribute in OF_ASYNCIO:
                found.append(f"asyncio.{attribute}")
            case ast.Call(func=ast.Name("open")):
                found.append("open")
    return found


@pytest.mark.parametrize("module", sorted(path.name for path in FOLDER.glob("*.py") if path.name != RUNTIME))
def test_a_module_asks_only_its_ports_for_the_time_tasks_threads_and_sockets(module: str) -> None:
    assert asked_behind_the_ports((FOLDER / module).read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from time import monotonic",
        "from random import SystemRandom",
        "import asyncio\nasyncio.get_running_loop()",
        "import asyncio\nasync def f(): await asyncio.sleep(1)",
        "from asyncio import sleep",
        "open('file')",
    ],
)
def test_the_check_finds_what_it_is_for(source: str) -> None:
    assert asked_behind_the_ports(source)


def test_a_member_id_is_a_name_and_an_incarnation() -> None:
    member = node_id("kv-0", "0123456789abcdef")

    assert name_of(member) == "kv-0"
    assert incarnation_of(member) == "0123456789abcdef"
    assert is_node_id(member)


@pytest.mark.parametrize(
    "text",
    ["kv-0", "kv-0@", "@1", "kv-0@1@1", "kv-0@g", "kv-0@A", "kv-0@" + "1" * 17, "n\udcff@1", "n\n@1", "n@1\n"],
)
def test_anything_else_is_no_member_id(text: str) -> None:
    assert not is_node_id(text)
