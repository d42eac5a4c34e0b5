"""``make calls``: how many Python functions the leader calls for one put and for one linearizable get.

Three nodes run as three processes on loopback, each under ``bench/counted.py``. One client asks the leader, on one
connection, and nobody else asks anything. It sends the next request a moment after the last answer, so that nothing
that belongs to one request is counted for the next.

**A call** is a ``call`` event of ``sys.setprofile`` in any thread of the leader's process: a Python function is
entered, or a coroutine or generator goes on after it was suspended. A function written in C (msgspec, sqlite3, uvloop,
aiohttp's parser) is no call.

**To the answer** counts from the moment at which the event loop hands the request's bytes to the server's protocol
(``data_received``, which parses them) until ``transport.write`` of the answer's last byte has returned. Each figure is
the median over the requests. If the machine is busy, a request takes long, and ticks and heartbeats of that time are
counted with it; the leanest tenth of the requests shows what a request itself needs.

**In all** counts from the same moment to the next request, less what an idle leader calls in that time. It includes
what the leader does after the answer, so that work which is merely put off does not look saved. This figure is the
mean over the requests, because an idle leader's work comes in bursts. It can be the lower one: the messages of a
request take the place of heartbeats.

Two kinds of calls in Kvorum's own code do no work and are counted apart:

- *forwards*: functions whose whole body is one call, or one attribute, of something else;
- *nothing found*: functions declared to return something that returned None, False, or something empty.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median

import msgspec

from bench.checkouts import OUT, Checkout, check_out, end_by_interrupt
from bench.clusters import Cluster, Kvorum
from bench.processes import BenchError
from bench.runs import retried, tell

COUNTED = Path(__file__).parent / "counted.py"
OPERATIONS = ("put", "get")
WARMUP = 20
"""Requests of each kind that are not counted: the first ones import modules and fill caches."""
PAUSE_S = 0.02
"""Between an answer and the next request; a follower's late acknowledgement takes less."""
IDLE_S = 2.0
ANSWER_WITHIN_S = 15.0
VALUE = b"v" * 200


class Called(msgspec.Struct, frozen=True, array_like=True):
    """How often one function was called in one thread."""

    on_loop: bool
    function: int
    calls: int
    nothing: int
    """So many of them returned None, False or something empty."""


class Request(msgspec.Struct, frozen=True):
    """What one request made the leader call."""

    answer_s: float
    """From the request to the written answer."""
    whole_s: float
    """From the request to the next."""
    answer: tuple[Called, ...]
    whole: tuple[Called, ...]


class Function(msgspec.Struct, frozen=True, array_like=True):
    """One Python function."""

    file: str
    name: str
    line: int


class Counted(msgspec.Struct, frozen=True):
    """What ``counted.py`` wrote of one connection."""

    functions: tuple[Function, ...]
    requests: tuple[Request, ...]


class Cost(msgspec.Struct, frozen=True):
    """The calls of one operation: medians over its requests, but for ``in_all``, which is a mean."""

    to_the_answer: float
    tenth_percentile: float
    """Of the calls to the answer."""
    answer_ms: float
    on_the_loops_thread: float
    in_kvorum: float
    forwards: float
    nothing_found: float
    forwards_or_nothing_found: float
    files: float
    kvorum_files: float
    in_all: float
    by_file: dict[str, float]
    """Calls to the answer, of the files that at least half of the requests touch."""


class Costs(msgspec.Struct, frozen=True):
    """What one version's leader calls."""

    by_operation: dict[str, Cost]
    idle_per_s: float
    """Calls a second when nobody asks anything."""


class Kinds(msgspec.Struct, frozen=True):
    """What a function's source says of it."""

    forwards: bool
    returns_something: bool


def main() -> int:
    """Count from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.calls", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", metavar="COMMIT", help="a commit to compare with (default: none)")
    parser.add_argument("--head", metavar="COMMIT", help="the commit to count (default: the working tree)")
    parser.add_argument("--requests", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--uvloop", choices=("auto", "on", "off"), default="auto", help="default: the node's")
    options = parser.parse_args()
    if options.requests < 2:
        parser.error("--requests must be 2 or more")
    end_by_interrupt()
    scratch = Path(tempfile.mkdtemp(prefix="kvorum-calls-"))
    try:
        sides = [check_out("base", options.base, scratch)] if options.base else []
        sides.append(check_out("head", options.head, scratch))
        costs = []
        for side in sides:
            tell(f"counting {side.label}: {side.revision}")
            costs.append(retried(partial(count, side, options.requests, options.uvloop)))
        print("\n".join(report(sides, costs, options.requests)))
    except BenchError as error:
        print(f"calls: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def count(side: Checkout, requests: int, uvloop: str = "auto") -> Costs:
    """Run a cluster of one version and return what each operation costs its leader.

    Raises:
        BenchError: an operation failed, or the leader changed.
    """
    OUT.mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="calls-", dir=OUT))

    def command(port: int) -> list[str]:
        return [side.python, str(COUNTED), str(port), str(data)]

    kvorum = Kvorum(["--uvloop", uvloop], name=side.label, command=command, environment=side.environment)
    try:
        with Cluster(kvorum, data / "nodes") as cluster:
            leader = cluster.wait_until_ready()
            counted = ask_all(cluster.client_ports[leader], requests, data)
            cluster.check()
            if cluster.wait_until_ready() != leader:
                raise BenchError(f"{side.label}: the leader changed; the figures mean nothing")
    finally:
        shutil.rmtree(data, ignore_errors=True)
    return costs_of(counted, requests, Labels(side))


def ask_all(port: int, requests: int, folder: Path) -> Counted:
    """Put and get, one request at a time, and return what the node at this port counted meanwhile."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_WITHIN_S) as connection:
        client_port = connection.getsockname()[1]
        for operation in OPERATIONS:
            for number in range(WARMUP + requests):
                ask(connection, operation, number)
                time.sleep(PAUSE_S)
        time.sleep(IDLE_S)
    written = folder / f"{client_port}.json"
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while not written.exists():
        if time.monotonic() > deadline:
            raise BenchError("the leader left no counts: it does not serve clients by loop.create_server")
        time.sleep(PAUSE_S)
    counted = msgspec.json.decode(written.read_bytes(), type=Counted)
    if len(counted.requests) != len(OPERATIONS) * (WARMUP + requests):
        raise BenchError(f"the leader counted {len(counted.requests)} requests, and was asked {requests} of each kind")
    return counted


def ask(connection: socket.socket, operation: str, number: int) -> None:
    """Ask for one operation and read its answer to the end.

    Raises:
        BenchError: it is not a 200 with a Content-Length.
    """
    body = VALUE if operation == "put" else b""
    head = f"{operation.upper()} /v1/kv/key-{number:08d} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n" if body else "\r\n"
    connection.sendall(head.encode() + body)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _more(connection)
    headers, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = headers.decode("latin-1").split("\r\n")
    lengths = [
        value for name, _, value in (field.partition(":") for field in fields) if name.lower() == "content-length"
    ]
    if status.split(" ")[1] != "200" or not lengths:
        raise BenchError(f"{operation}: {status}")
    while len(rest) < int(lengths[0]):
        rest += _more(connection)


def _more(connection: socket.socket) -> bytes:
    try:
        received = connection.recv(65536)
    except TimeoutError:
        raise BenchError(f"no answer within {ANSWER_WITHIN_S:.0f} s") from None
    if not received:
        raise BenchError("the leader closed the connection")
    return received


def costs_of(counted: Counted, requests: int, labels: Labels) -> Costs:
    """Return what each operation costs, over the requests that come after its warm-up."""
    by_operation = {}
    for i, operation in enumerate(OPERATIONS):
        first = i * (WARMUP + requests) + WARMUP
        by_operation[operation] = counted.requests[first : first + requests]
    # A long pause followed the last request: what was called in it beyond the others is what an idle leader calls.
    *usual, last = by_operation[OPERATIONS[-1]]
    longer_s = last.whole_s - mean(request.whole_s for request in usual)
    idle_per_s = max(0.0, (_total(last.whole) - mean(_total(request.whole) for request in usual)) / longer_s)
    return Costs(
        {name: _cost(of, counted.functions, labels, idle_per_s) for name, of in by_operation.items()}, idle_per_s
    )


def _cost(requests: Sequence[Request], functions: Sequence[Function], labels: Labels, idle_per_s: float) -> Cost:
    names = [labels.file(function.file) for function in functions]
    kinds = [labels.kinds(function) for function in functions]
    ours = [name.startswith("kvorum/") for name in names]
    files = [Counter[str]() for _ in requests]
    for request, count_of in zip(requests, files, strict=True):
        for called in request.answer:
            count_of[names[called.function]] += called.calls

    def middle(of: Callable[[Called], int]) -> float:
        return median(sum(of(called) for called in request.answer) for request in requests)

    def idle(called: Called) -> int:
        return called.calls if kinds[called.function].forwards else nothing(called)

    def nothing(called: Called) -> int:
        return called.nothing if kinds[called.function].returns_something else 0

    every_file = {name for count_of in files for name in count_of}
    by_file = {name: median(count_of[name] for count_of in files) for name in every_file}
    return Cost(
        to_the_answer=middle(lambda called: called.calls),
        tenth_percentile=sorted(_total(request.answer) for request in requests)[len(requests) // 10],
        answer_ms=1000 * median(request.answer_s for request in requests),
        on_the_loops_thread=middle(lambda called: called.calls if called.on_loop else 0),
        in_kvorum=middle(lambda called: called.calls if ours[called.function] else 0),
        forwards=middle(lambda called: called.calls if kinds[called.function].forwards else 0),
        nothing_found=middle(nothing),
        forwards_or_nothing_found=middle(idle),
        files=median(sum(calls > 0 for calls in count_of.values()) for count_of in files),
        kvorum_files=median(
            sum(calls > 0 and name.startswith("kvorum/") for name, calls in count_of.items()) for count_of in files
        ),
        in_all=mean(_total(request.whole) - idle_per_s * request.whole_s for request in requests),
        by_file={name: calls for name, calls in by_file.items() if calls},
    )


def _total(called: Sequence[Called]) -> int:
    return sum(each.calls for each in called)


class Labels:
    """Names files briefly, and reads a version's own code to tell kinds of functions apart.

    Args:
        side: the version.
    """

    def __init__(self, side: Checkout) -> None:
        self.service = Path(side.service).resolve()
        self._sources: dict[str, dict[tuple[str, int], Kinds]] = {}

    def file(self, path: str) -> str:
        """Return the path from the folder in which its package or module lies."""
        if self._is_ours(path):
            return str(Path(path).resolve().relative_to(self.service))
        _, packaged, rest = path.rpartition("/site-packages/")
        if packaged:
            return rest
        _, standard, rest = path.rpartition(f"/python{sys.version_info[0]}.{sys.version_info[1]}/")
        return rest if standard else path

    def kinds(self, function: Function) -> Kinds:
        """Return what the source says of a function; nothing of one that is not Kvorum's."""
        if not self._is_ours(function.file):
            return Kinds(False, False)
        if function.file not in self._sources:
            self._sources[function.file] = kinds_in(Path(function.file).read_text())
        return self._sources[function.file].get((function.name, function.line), Kinds(False, False))

    def _is_ours(self, path: str) -> bool:
        return path.startswith("/") and Path(path).resolve().is_relative_to(self.service)


def kinds_in(source: str) -> dict[tuple[str, int], Kinds]:
    """Return the kinds of one file's functions, by name and by the first line of definition or decorators."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            nothing = node.returns is None or (isinstance(node.returns, ast.Constant) and node.returns.value is None)
            found[node.name, line] = Kinds(_forwards(node), not nothing)
    return found


def _forwards(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if len(body) != 1 or not isinstance(body[0], ast.Return | ast.Expr) or body[0].value is None:
        return False
    value = body[0].value.value if isinstance(body[0].value, ast.Await) else body[0].value
    if isinstance(value, ast.Call):
        arguments = [*value.args, *(keyword.value for keyword in value.keywords)]
        return all(_is_plain(part) for part in (value.func, *arguments))
    return isinstance(value, ast.Attribute) and _is_plain(value)


def _is_plain(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute | ast.Starred):
        node = node.value
    return isinstance(node, ast.Name | ast.Constant)


FIGURES: tuple[tuple[str, Callable[[Cost], float]], ...] = (
    ("to the answer", lambda cost: cost.to_the_answer),
    ("  in the leanest tenth of the requests, at most", lambda cost: cost.tenth_percentile),
    ("  of these, on the event loop's thread", lambda cost: cost.on_the_loops_thread),
    ("  of these, in Kvorum's own code", lambda cost: cost.in_kvorum),
    ("    forwards", lambda cost: cost.forwards),
    ("    nothing found", lambda cost: cost.nothing_found),
    ("    forwards, or nothing found", lambda cost: cost.forwards_or_nothing_found),
    ("files", lambda cost: cost.files),
    ("  of these, Kvorum's own", lambda cost: cost.kvorum_files),
    ("in all, with what comes after the answer", lambda cost: cost.in_all),
    ("milliseconds to the answer, while counting", lambda cost: cost.answer_ms),
)


def report(sides: Sequence[Checkout], costs: Sequence[Costs], requests: int) -> list[str]:
    """Return the printed report, line by line."""
    lines = [
        "",
        *map(str, sides),
        f"Calls of Python functions in the leader's process, {requests} requests of each kind:",
        "",
    ]
    columns = [f"{op}, {side.label}" for op in OPERATIONS for side in sides]
    if len(sides) > 1:
        columns = [*columns[:2], "ratio", *columns[2:], "ratio"]
    lines.append(f"{'':<48}" + "".join(f"{column:>11}" for column in columns))
    lines += [_line(title, costs, figure) for title, figure in FIGURES]
    lines += ["", "To the answer, by file:"]
    by_file = [cost.by_operation[op].by_file for cost in costs for op in OPERATIONS]
    names = sorted({name for files in by_file for name in files}, key=lambda n: (-max(f.get(n, 0) for f in by_file), n))
    lines += [_line(name, costs, partial(_calls_in, name)) for name in names]
    idle = ", ".join(f"{side.label} {cost.idle_per_s:,.0f}" for side, cost in zip(sides, costs, strict=True))
    return [*lines, "", f"Calls a second of an idle leader: {idle}"]


def _calls_in(name: str, cost: Cost) -> float:
    return cost.by_file.get(name, 0.0)


def _line(title: str, costs: Sequence[Costs], figure: Callable[[Cost], float]) -> str:
    cells = ""
    for operation in OPERATIONS:
        values = [figure(cost.by_operation[operation]) for cost in costs]
        cells += "".join(f"{value:>11.0f}" for value in values)
        if len(values) > 1:
            cells += f"{values[-1] / values[0]:>11.2f}" if values[0] else f"{'-':>11}"
    return f"{title:<48}{cells}"


if __name__ == "__main__":
    sys.exit(main())
