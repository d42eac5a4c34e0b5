"""Logs: one line a record, whoever reads them, and not too many of them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from kvorum.telemetry import logs


@pytest.fixture(autouse=True)
def _keep_the_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_text_on_a_terminal_and_json_elsewhere() -> None:
    for stream, log_format, is_json in (
        (Terminal(), "auto", False),
        (io.StringIO(), "auto", True),
        (Terminal(), "json", True),
        (io.StringIO(), "text", False),
    ):
        logs.configure("n1", log_format, "info", stream)
        logging.getLogger("kvorum.test").info("elected in term %d", 3)
        line = stream.getvalue()
        assert line.endswith("\n") and line.count("\n") == 1
        if is_json:
            record = json.loads(line)
            assert (record["level"], record["logger"], record["message"], record["node"]) == (
                "info",
                "kvorum.test",
                "elected in term 3",
                "n1",
            )
            assert record["time"].endswith("Z")
        else:
            assert line.endswith("info    kvorum.test: elected in term 3\n")


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_what_came_from_outside_cannot_forge_a_line(log_format: str) -> None:
    stream = io.StringIO()
    logs.configure("n1", log_format, "info", stream)
    logging.getLogger("kvorum.test").warning("peer said %s", "a\nb\x1b[31m\udce9\u2028")
    line = stream.getvalue()
    assert line.count("\n") == 1 and "\x1b" not in line and "\u2028" not in line
    assert "\\n" in line


def test_a_traceback_is_kept() -> None:
    stream = io.StringIO()
    logs.configure("n1", "json", "info", stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("kvorum.test").exception("it failed")
    assert "ValueError: broken" in json.loads(stream.getvalue())["traceback"]


def test_the_level_is_a_threshold_and_libraries_speak_of_trouble_only() -> None:
    stream = io.StringIO()
    logs.configure("n1", "text", "debug", stream)
    logging.getLogger("kvorum.test").debug("detail")
    logging.getLogger("aiohttp.access").info("GET /")
    assert "detail" in stream.getvalue() and "GET" not in stream.getvalue()
    logs.configure("n1", "text", "error", stream)
    logging.getLogger("kvorum.test").warning("quiet")
    assert "quiet" not in stream.getvalue()


def test_a_rate_limit_lets_one_through_and_counts_the_rest() -> None:
    now = [0.0]
    limit = logs.RateLimit(10, lambda: now[0])
    assert limit.allow() == 0
    assert [limit.allow() for _ in range(3)] == [None] * 3
    now[0] = 10.0
    assert limit.allow() == 3
    assert limit.allow() is None
    now[0] = 20.0
    assert limit.allow() == 1
