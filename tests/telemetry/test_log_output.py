"""The log's way out: nobody waits for who reads it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.processes import Cluster
from waiting import DEADLINE_S, eventually

from kvorum.telemetry import logs
from kvorum.telemetry.log_output import LogOutput, lines_dropped


@pytest.fixture(autouse=True)
def _keep_the_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def fill(write_end: int) -> None:
    """Leave no room in the pipe."""
    os.set_blocking(write_end, False)
    try:
        while True:
            os.write(write_end, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(write_end, True)


def test_a_node_whose_log_nobody_reads_serves_and_stops(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """It hung with the first line that did not fit into the pipe, and noticed SIGTERM only when somebody read."""
    read_end, write_end = pipe
    fill(write_end)
    cluster = Cluster(tmp_path, 1, ("--log-level", "debug"))
    node = subprocess.Popen(cluster.command("n1"), stdin=subprocess.DEVNULL, stdout=write_end)
    try:
        cluster.processes["n1"] = node
        assert cluster.leader() == "n1"
        node.send_signal(signal.SIGTERM)
        assert node.wait(DEADLINE_S) == 0
    finally:
        node.kill()
        node.wait()
    del read_end


def test_lines_without_a_reader_are_dropped_counted_and_told_when_it_reads_again(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    fill(write_end)
    before = lines_dropped()
    output = LogOutput(write_end, bytes_max=4000)
    logs.configure("n1", "text", "info", output)
    for number in range(1000):
        logging.getLogger("kvorum.test").info("line %d", number)
    dropped = lines_dropped() - before
    assert 850 < dropped < 1000
    text = bytearray()

    def told() -> bool:
        text.extend(os.read(read_end, 65536))
        return b"log lines were dropped" in text

    eventually("the log says what it dropped", told)
    (line,) = [line for line in text.decode().splitlines() if "dropped" in line]
    assert f"{dropped} log lines were dropped" in line
    assert b"line 0\n" in text
    output.close()


def test_all_that_was_logged_is_written_before_the_end(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    text = bytearray()

    def read() -> None:
        while chunk := os.read(read_end, 4096):
            text.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    output = LogOutput(write_end)
    for number in range(10_000):
        output.write(f"{number}\n")
    output.close(DEADLINE_S)
    os.close(write_end)
    reader.join(DEADLINE_S)
    assert text.decode().split() == [str(number) for number in range(10_000)]


def test_a_reader_that_went_away_harms_nobody(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    before = lines_dropped()
    output = LogOutput(write_end)
    os.close(read_end)
    for number in range(10):
        output.write(f"{number}\n")
    output.close(DEADLINE_S)
    assert lines_dropped() - before == 10


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    fill(write_end)
    os.set_blocking(write_end, False)
    output = LogOutput(write_end)
    output.write("the line\n")
    text = bytearray()

    def arrived() -> bool:
        text.extend(os.read(read_end, 65536))
        return text.endswith(b"the line\n")

    eventually("the line arrives", arrived)
    output.close()
