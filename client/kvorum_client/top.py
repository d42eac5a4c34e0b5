"""``kv top``: a live view of a cluster in a terminal: who leads, who is behind, how much and how fast.

Each turn asks every node for ``/v1/cluster`` and ``/metrics`` and draws one frame from two turns. A node that does not
answer is a line of the frame, not the end of the view: nodes are remembered, so that it survives the death of any of
them, and the events below the table tell what happened. Drawing is a pure function of what was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

import msgspec

from kvorum_client.cli_output import size_text
from kvorum_client.client import Client
from kvorum_client.condition import state_of
from kvorum_client.errors import ClientError
from kvorum_client.exposition import Exposition, percentile, rate
from kvorum_client.results import NodeStatus

EVENTS_SHOWN = 8
ASK_TIMEOUT_S = 1.0
WRITES, READS, REQUESTS = "kvorum_writes_total", "kvorum_reads_total", "kvorum_requests_total"
PROBES = {"livez", "readyz", "metrics", "version"}
"""Of the requests' operations those that no client asks for: a node that says "not ready" is nobody's error."""
WRITE_DURATION, SAVE_DURATION = "kvorum_write_duration_seconds", "kvorum_storage_save_duration_seconds"
HEADINGS = (
    *("NAME", "STATE", "TERM", "CONTACT", "APPLIED", "LAG", "WRITES/S", "READS/S", "P50", "P99"),
    *("SAVE P99", "LOOP P99", "CPU", "MEMORY", "DISK FREE", "UP"),
)
LEFT_ALIGNED = {"NAME", "STATE"}
GREEN, RED, YELLOW, BOLD, DIM, RESET = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Observed(msgspec.Struct, frozen=True):
    """What one node said in one turn."""

    status: NodeStatus | None = None
    figures: Exposition | None = None
    problem: str = ""
    """Why there is no status."""


class Turn(msgspec.Struct, frozen=True):
    """What all nodes said in one turn, by name (a node that never answered: by its endpoint)."""

    at: datetime
    nodes: Mapping[str, Observed]

    def leader(self) -> NodeStatus | None:
        """Return the status of the leader of the highest term, if one answers."""
        leading = [s.status for s in self.nodes.values() if s.status is not None and s.status.state == "leader"]
        return max(leading, key=lambda status: status.term, default=None)

    def best(self) -> NodeStatus | None:
        """Return the status of whoever knows most: the leader, else the node of the highest term."""
        known = [s.status for s in self.nodes.values() if s.status is not None]
        return self.leader() or max(known, key=lambda status: (status.term, status.applied_index), default=None)


class Line(msgspec.Struct, frozen=True):
    """One line of a frame, and its colour."""

    text: str
    color: str = ""


async def top(client: Client, options: argparse.Namespace) -> int:
    """``kv top``: redraw until interrupted, or ``--count`` frames; ``--once`` is one frame."""
    frames = 1 if options.once else options.count
    watcher = Watcher(client)
    with _screen(is_live=sys.stdout.isatty() and not options.once) as screen:
        try:
            best = await _watch(watcher, screen, options.interval, frames)
        except asyncio.CancelledError:
            # Ctrl-C is how one leaves a live view.
            return 0
    return 0 if best is not None and best.leader_name else 3


async def _watch(watcher: Watcher, screen: Screen, interval_s: float, frames: int) -> NodeStatus | None:
    """Draw ``frames`` frames (0: until told to stop), and return what is known of the cluster in the end."""
    before = await watcher.turn()
    if screen.is_live:
        screen.draw(draw(before, before, ()))
    drawn = 0
    while not await screen.is_told_to_stop(interval_s):
        after = await watcher.turn()
        screen.draw(draw(before, after, watcher.events))
        drawn, before = drawn + 1, after
        if drawn == frames:
            break
    return before.best()


class Watcher:
    """Asks all nodes in turn, remembers those it has met, and notes what changes.

    Args:
        client: knows some nodes.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._names: dict[str, str] = {}  # endpoint -> name
        self._before: Turn | None = None
        self.events: deque[str] = deque(maxlen=EVENTS_SHOWN)

    async def turn(self) -> Turn:
        """Ask everybody once, nodes that were heard of just now included."""
        seen = await self._ask([*self._client.endpoints, *(e for e in self._names if e not in self._client.endpoints)])
        met = {m.client_url: m.name for s in seen.values() if s.status for m in s.status.members if m.client_url}
        names = {s.status.name for s in seen.values() if s.status}
        seen |= await self._ask([url for url, name in met.items() if url not in seen and name not in names])
        best = Turn(datetime.now(), {str(i): s for i, s in enumerate(seen.values())}).best()
        self._remember(seen, met)
        after = Turn(datetime.now(), self._by_name(seen, best))
        if self._before is not None:
            self.events.extend(f"{after.at:%H:%M:%S}  {event}" for event in changes(self._before, after))
        self._before = after
        return after

    def _remember(self, seen: Mapping[str, Observed], met: Mapping[str, str]) -> None:
        self._names |= met
        self._names |= {endpoint: s.status.name for endpoint, s in seen.items() if s.status}

    def _by_name(self, seen: Mapping[str, Observed], best: NodeStatus | None) -> dict[str, Observed]:
        """Join what several endpoints of one node said; leave out silent nodes that are members no more."""
        members = {member.name for member in best.members} if best else set()
        nodes: dict[str, Observed] = {}
        for endpoint, answer in seen.items():
            name = answer.status.name if answer.status else self._names.get(endpoint, endpoint)
            if answer.status is None and members and name not in members and endpoint in self._names:
                continue
            if name not in nodes or answer.status is not None:
                nodes[name] = answer
        return dict(sorted(nodes.items()))

    async def _ask(self, endpoints: list[str]) -> dict[str, Observed]:
        answers = await asyncio.gather(*(self._ask_one(endpoint) for endpoint in endpoints))
        return dict(zip(endpoints, answers, strict=True))

    async def _ask_one(self, endpoint: str) -> Observed:
        try:
            status = await self._client.status(endpoint, timeout_s=ASK_TIMEOUT_S)
            text = await self._client.metrics(endpoint, timeout_s=ASK_TIMEOUT_S)
        except ClientError as error:
            return Observed(problem=str(error).removeprefix(f"{endpoint}: "))
        return Observed(status, Exposition(text, time.monotonic()))


def changes(before: Turn, after: Turn) -> Iterator[str]:
    """Yield what happened between two turns, a sentence each."""
    old, new = before.best(), after.best()
    if new is not None and (old is None or (old.leader_name, old.term) != (new.leader_name, new.term)):
        if new.leader_name:
            yield f"{new.leader_name} leads in term {new.term}"
        elif old is not None and old.leader_name:
            yield f"{old.leader_name} no longer leads, and there is no new leader yet (term {new.term})"
    for name, now in after.nodes.items():
        then = before.nodes.get(name)
        if now.status is None and (then is None or then.status is not None):
            yield f"{name} does not answer: {now.problem}"
        elif now.status is not None and then is not None and then.status is None:
            yield f"{name} answers again"
    if old is not None and new is not None:
        was, now_are = {m.name: m.voter for m in old.members}, {m.name: m.voter for m in new.members}
        for name in sorted(was.keys() | now_are.keys()):
            if was.get(name) != now_are.get(name):
                yield f"{name} {_membership(was.get(name), now_are.get(name))}"


def _membership(was: bool | None, now: bool | None) -> str:
    if now is None:
        return "was removed from the cluster"
    if was is None:
        return f"was added to the cluster as a {'voter' if now else 'learner'}"
    return "is a voter now" if now else "is a learner now"


def draw(before: Turn, after: Turn, events: Iterable[str]) -> list[Line]:
    """Return a frame: the cluster in two lines, the nodes in a table, the latest events."""
    lines = [*_summary(before, after), Line("")]
    rows = [HEADINGS, *(_row(name, before, after) for name in after.nodes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    colors = [BOLD, *(_color(seen) for seen in after.nodes.values())]
    for row, color in zip(rows, colors, strict=True):
        cells = (
            cell.ljust(width) if heading in LEFT_ALIGNED else cell.rjust(width)
            for cell, width, heading in zip(row, widths, HEADINGS, strict=True)
        )
        lines.append(Line("  ".join(cells).rstrip(), color))
    silent = [Line(f"{name}: {seen.problem}", RED) for name, seen in after.nodes.items() if seen.status is None]
    return [*lines, *silent, Line(""), *(Line(event, DIM) for event in events)]


def _summary(before: Turn, after: Turn) -> Iterator[Line]:
    best, leader = after.best(), after.leader()
    if best is None:
        yield Line("no node answers", RED)
        return
    voters = [member.name for member in best.members if member.voter]
    up = sum(name in after.nodes and after.nodes[name].status is not None for name in voters)
    spare = up - (len(voters) // 2 + 1)
    tolerance = f"{spare or 'no'} more may fail" if spare >= 0 else "no quorum"
    led = f"{leader.name} leads in term {leader.term}" if leader else f"no leader seen (term {best.term})"
    healthy = leader is not None and spare > 0
    yield Line(
        f"{after.at:%H:%M:%S}  {led}   {up} of {len(voters)} voters up, {tolerance}   "
        f"revision {best.revision}   {best.keys} keys   cluster {best.cluster_id[:8] or '-'}",
        GREEN if healthy else YELLOW if leader else RED,
    )
    totals = {name: _sum_of_rates(before, after, metric) for name, metric in (("writes", WRITES), ("reads", READS))}
    ratio = _error_ratio(before, after)
    errors = "-" if ratio is None else f"{_figure(100 * ratio)}%"
    yield Line(
        "          "
        + "   ".join(f"{name} {_figure(value)}/s" for name, value in totals.items())
        + f"   errors {errors}"
    )


def _pairs(before: Turn, after: Turn) -> Iterator[tuple[Exposition | None, Exposition]]:
    for name, seen in after.nodes.items():
        if seen.figures is not None:
            then = before.nodes.get(name)
            yield (then.figures if then else None), seen.figures


def _sum_of_rates(before: Turn, after: Turn, metric: str) -> float | None:
    known = [value for then, now in _pairs(before, after) if (value := rate(then, now, metric)) is not None]
    return sum(known) if known else None


def _error_ratio(before: Turn, after: Turn) -> float | None:
    """Return the part of all requests, but for probes and scrapes, that was answered with a 5xx status."""
    errors = requests = 0.0
    for then, now in _pairs(before, after):
        for op in now.by(REQUESTS, "op").keys() - PROBES:
            for code in now.by(REQUESTS, "code"):
                value = rate(then, now, REQUESTS, op=op, code=code) or 0.0
                requests += value
                errors += value if code.startswith("5") else 0.0
    return errors / requests if requests else None


def _row(name: str, before: Turn, after: Turn) -> tuple[str, ...]:
    seen = after.nodes[name]
    status, now = seen.status, seen.figures
    if status is None or now is None:
        return (_printable(name), "down", *("-" for _ in HEADINGS[2:]))
    earlier = before.nodes.get(name)
    then = earlier.figures if earlier else None
    leader = after.leader()
    lag = next((m.lag for m in leader.members if m.id == status.id), None) if leader else None
    contact = None if status.last_contact_ms is None else status.last_contact_ms / 1000
    free, size = now.total("kvorum_storage_disk_free_bytes"), now.total("kvorum_storage_disk_size_bytes")
    started = now.total("process_start_time_seconds")
    memory = now.total("process_resident_memory_bytes")
    cpu = rate(then, now, "process_cpu_seconds_total")
    return (
        _printable(name),
        state_of(status),
        str(status.term),
        _duration(contact),
        str(status.applied_index),
        "-" if lag is None else str(lag),
        _figure(rate(then, now, WRITES)),
        _figure(rate(then, now, READS)),
        _duration(percentile(then, now, WRITE_DURATION, 0.5)),
        _duration(percentile(then, now, WRITE_DURATION, 0.99)),
        _duration(percentile(then, now, SAVE_DURATION, 0.99)),
        _duration(percentile(then, now, "kvorum_loop_lag_seconds", 0.99)),
        "-" if cpu is None else f"{100 * cpu:.0f}%",
        "-" if memory is None else size_text(memory, ""),
        f"{100 * free / size:.0f}%" if free is not None and size else "-",
        _duration(None if started is None else max(after.at.timestamp() - started, 0.0)),
    )


def _color(seen: Observed) -> str:
    if seen.status is None or seen.status.quarantined or seen.status.distrusted:
        return RED
    if seen.status.state == "leader":
        return GREEN
    return "" if seen.status.caught_up else YELLOW


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 10_000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f}ms" if seconds < 0.1 else f"{seconds * 1000:.0f}ms"
    for limit, factor, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / factor:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def _printable(text: str) -> str:
    # What a node says must not move this terminal's cursor.
    return "".join(char if char.isprintable() else "?" for char in text)


class Screen:
    """Where frames go: the whole terminal, redrawn in place, or one frame after the other.

    Args:
        is_live: redraw in place.
    """

    def __init__(self, *, is_live: bool) -> None:
        self.is_live = is_live
        self._stop = asyncio.Event()
        self._colored = is_live and "NO_COLOR" not in os.environ

    def draw(self, lines: list[Line]) -> None:
        """Show a frame."""
        size = shutil.get_terminal_size()
        shown = lines[: size.lines - 1] if self.is_live else lines
        texts = [self._text(line, size.columns) for line in shown]
        if self.is_live:
            sys.stdout.write("\x1b[H" + "".join(f"{text}\x1b[K\n" for text in texts) + "\x1b[J")
        else:
            sys.stdout.write("\n".join(texts).rstrip("\n") + "\n\n")
        sys.stdout.flush()

    def _text(self, line: Line, columns: int) -> str:
        text = _printable(line.text)
        if self.is_live:
            text = text[:columns]
        return f"{line.color}{text}{RESET}" if self._colored and line.color else text

    def on_key(self) -> None:
        """Take what was typed: q ends the view."""
        typed = os.read(sys.stdin.fileno(), 64)
        if b"q" in typed or b"\x03" in typed or not typed:
            self._stop.set()

    async def is_told_to_stop(self, within_s: float) -> bool:
        """Wait for the next turn; tell whether the user wants no more of them."""
        try:
            await asyncio.wait_for(self._stop.wait(), within_s)
        except TimeoutError:
            return False
        return True


@contextmanager
def _screen(*, is_live: bool) -> Iterator[Screen]:
    """Take the terminal over, and give it back as it was."""
    screen = Screen(is_live=is_live)
    if not is_live:
        yield screen
        return
    import termios
    import tty

    keys = sys.stdin.isatty()
    descriptor = sys.stdin.fileno() if keys else -1
    settings = termios.tcgetattr(descriptor) if keys else None
    # The alternate screen, cleared, without a cursor.
    sys.stdout.write("\x1b[?1049h\x1b[2J\x1b[?25l")
    try:
        if keys:
            tty.setcbreak(descriptor)
            asyncio.get_running_loop().add_reader(descriptor, screen.on_key)
        yield screen
    finally:
        if settings is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
