"""The table of a million keys: its ratios and goals, and what it says of figures that mean little."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench import million
from bench.cells import Cell, Measured
from bench.clusters import Etcd, Kvorum, System
from bench.generators import Load
from bench.million import Figures, Memory, Restart, Row, report, rows, serves

KEY = "key-00000000"


def measured(ops: int, *, others: float = 0.0, errors: int = 0) -> Measured:
    load = Load(ops, errors, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1, "refused" if errors else "")
    return Measured("kvorum", 0, Cell("http", "put", 64), load, 0.8, 0.5, 0.1, others, 200.0)


def figures(system: str, *, scale: int = 1, many: Measured | None = None, memory: float = 500.0) -> Figures:
    return Figures(
        system=system,
        version="1",
        filled_keys_per_s=1000.0 * scale,
        leader=Memory(memory, memory / 2),
        followers=(Memory(memory, memory / 2), Memory(memory + 20, memory / 2)),
        few=measured(1000),
        many=many or measured(900),
        txn=measured(10 * scale),
        txn_grpc=measured(20) if system == "etcd" else None,
        restarts=(Restart(0.1, 1.0), Restart(0.1, 9.0), Restart(0.1, 2.0)),
    )


def verdicts(etcd: Figures, kvorum: Figures) -> dict[str, str]:
    lines = [line.split(" | ") for line in map(str, rows(etcd, kvorum))]
    return {line[0].removeprefix("| "): line[-1].removesuffix("|").strip() for line in lines}


def test_each_goal_is_judged_by_the_ratio_to_etcd() -> None:
    found = verdicts(figures("etcd"), figures("kvorum", scale=3, memory=400.0))
    assert found["fill of 1,000,000 keys by transactions of 64 puts"] == "met"
    assert found["transactions of 64 puts of present keys"] == "met"
    assert found["resident memory after the fill, leader"] == "met"
    assert found["the same, mean of the followers"] == ""  # of what is not mapped: for information
    assert found["restart of a follower until it serves"] == "met"
    found = verdicts(figures("etcd"), figures("kvorum", scale=2, memory=410.0))
    assert found["fill of 1,000,000 keys by transactions of 64 puts"] == "NOT met"
    assert found["resident memory after the fill, leader"] == "NOT met"


@pytest.mark.parametrize(("ops", "verdict"), [(899, "NOT met"), (900, "met")])
def test_the_throughput_that_a_large_store_keeps_is_judged_by_itself(ops: int, verdict: str) -> None:
    assert (
        verdicts(figures("etcd", many=measured(1)), figures("kvorum", many=measured(ops)))[
            "the throughput of many keys by that of few"
        ]
        == verdict
    )


def test_a_restart_is_the_median_one() -> None:
    by_name = {row.name: row for row in rows(figures("etcd"), figures("kvorum"))}
    assert by_name["restart of a follower until it serves"].kvorum == 2.0


def test_transactions_are_told_in_keys_and_stand_against_etcds_own_client_too() -> None:
    by_name = {row.name: row for row in rows(figures("etcd"), figures("kvorum"))}
    assert by_name["transactions of 64 puts of present keys"].kvorum == 640
    assert by_name["the same, etcd over gRPC"].etcd == 1280


def test_processor_time_of_a_transaction_is_told_by_key() -> None:
    by_name = {row.name: row for row in rows(figures("etcd"), figures("kvorum"))}
    assert by_name["processor of the three nodes a key, transactions of 64 puts over HTTP"].kvorum == 200.0 / 64


def test_a_line_of_the_table_is_markdown() -> None:
    assert str(Row("what", 1000.0, 2.5, "s", at_most=1.0)) == "| what | 1,000 | 2.50 | s | 0.00x | <= 1x | met |"


def test_noise_and_errors_are_said() -> None:
    quiet = report(figures("etcd"), figures("kvorum"))
    assert not any(line.startswith(("NOISY", "ERRORS")) for line in quiet)
    noisy = report(figures("etcd"), figures("kvorum", many=measured(900, others=0.5, errors=2)))
    assert "NOISY: other programs used up to 0.50 cores during a measurement." in noisy
    assert any(line.startswith("ERRORS: kvorum") and "refused" in line for line in noisy)


def test_without_etcd_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Etcd, "find", lambda: None)
    assert million.run(1.0, 1, Path("unused")) == 0
    assert capsys.readouterr().err == "SKIPPED: a million keys: etcd: neither $ETCD nor etcd on the PATH\n"


def test_without_go_it_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Etcd, "find", lambda: Etcd("etcd"))
    monkeypatch.setattr(million, "build", lambda _name: None)
    reason = million.missing()
    assert reason is not None and "go" in reason


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Be silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("system", "body"), [(Kvorum(), KEY.encode()), (Etcd("etcd"), b'{"kvs":[{"key":"' + base64.b64encode(KEY.encode()))]
)
def test_a_node_serves_when_it_answers_with_the_key(system: System, body: bytes) -> None:
    with answering(200, body) as port:
        assert serves(system, port, KEY)
    assert not serves(system, port, KEY)
    for status, other in ((503, body), (200, b'{"header":{}}')):
        with answering(status, other) as port:
            assert not serves(system, port, KEY)
