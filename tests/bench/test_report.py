"""The benchmark's arithmetic: what it calls a ratio, a goal that is met, and a figure that means nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import msgspec
import pytest
from bench.cells import Cell, Idle, Measured, Settings
from bench.failover import Failover
from bench.generators import Load
from bench.plot import svg
from bench.report import Goal, Run, paired_ratios, print_report, rows

PUT_1, PUT_64, GET_64 = Cell("http", "put", 1), Cell("http", "put", 64), Cell("http", "get", 64)
GRPC_64 = Cell("grpc", "put", 64)


def load(ops: int, p50_ms: float = 1.0, errors: int = 0) -> Load:
    return Load(ops, errors, 1.0, p50_ms, p50_ms, 2 * p50_ms, 2 * p50_ms, 3 * p50_ms, 0.1, "refused" if errors else "")


def measured(system: str, round_: int, cell: Cell, figures: Load, others: float = 0.0) -> Measured:
    return Measured(system, round_, cell, figures, 0.8, 0.5, 0.1, others, 200.0)


def run(*cells: Measured, failovers: tuple[Failover, ...] = (), idle: tuple[Idle, ...] = ()) -> Run:
    return Run(Settings(), {"cores": "2"}, {"etcd": "3.6.0"}, {"HTTP": "loadgen"}, (), cells, failovers, idle)


def printed(of: Run) -> str:
    lines: list[str] = []
    print_report(of, lines.append)
    return "\n".join(lines)


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    # The machine is slower in round 1, for both: the ratio of the medians would be 2.2; of the rounds they are 2, 2, 3.
    of = run(
        *(measured("etcd", i, PUT_64, load(ops)) for i, ops in enumerate((1000, 500, 900))),
        *(measured("kvorum", i, PUT_64, load(ops)) for i, ops in enumerate((2000, 1000, 2700))),
    )
    row = rows(of)[0]
    assert row.ratio == 2.0
    assert row.ratio_range == (2.0, 3.0)


def test_a_round_that_only_one_system_has_gives_no_ratio() -> None:
    etcd = [measured("etcd", 0, PUT_64, load(100))]
    kvorum = [measured("kvorum", 1, PUT_64, load(900))]
    assert paired_ratios(etcd, kvorum, lambda m: m.ops_per_second) == []


def test_the_figures_of_a_row_come_from_one_round() -> None:
    loads = [load(300, 1.0), load(100, 9.0), load(200, 5.0)]
    of = run(*(measured("kvorum", i, PUT_64, each) for i, each in enumerate(loads)))
    row = rows(of)[0]
    assert row.kvorum is not None
    assert (row.kvorum.load.ops, row.kvorum.load.p50_ms) == (200, 5.0)
    assert row.etcd is None
    assert row.ratio is None
    assert row.verdict == "-"


@pytest.mark.parametrize(("ops", "verdict"), [(1999, "NOT MET"), (2000, "met")])
def test_a_goal_of_throughput_is_met_from_its_ratio_on(ops: int, verdict: str) -> None:
    of = run(measured("etcd", 0, PUT_64, load(1000)), measured("kvorum", 0, PUT_64, load(ops)))
    assert rows(of)[0].verdict == verdict


@pytest.mark.parametrize(("p50_ms", "verdict"), [(0.61, "NOT MET"), (0.60, "met")])
def test_a_goal_of_latency_compares_the_median_and_not_the_throughput(p50_ms: float, verdict: str) -> None:
    of = run(measured("etcd", 0, PUT_1, load(1, 1.0)), measured("kvorum", 0, PUT_1, load(1000, p50_ms)))
    assert rows(of)[0].verdict == verdict


def test_kvorums_http_figures_stand_against_etcds_own_client_too() -> None:
    of = run(measured("etcd", 0, GRPC_64, load(1000)), measured("kvorum", 0, PUT_64, load(1500)))
    by_cell = {row.cell: row for row in rows(of)}
    assert by_cell[GRPC_64].ratio == 1.5
    assert by_cell[PUT_64].ratio is None


def test_errors_noise_and_skipped_parts_are_printed() -> None:
    of = run(measured("kvorum", 0, PUT_64, load(10, errors=3)), measured("kvorum", 0, GET_64, load(10), others=0.5))
    text = printed(msgspec.structs.replace(of, skipped=("etcd: not found",)))
    assert "ERRORS: kvorum, put http 64, round 0: 3, first: refused" in text
    assert "NOISY: in 1 of 2 measurements" in text
    assert "SKIPPED: etcd: not found" in text


def test_failover_is_judged_by_the_ratio_of_the_medians_and_by_the_worst() -> None:
    seconds = {"etcd": (2.0, 2.0, 2.0), "kvorum": (0.9, 1.0, 1.6)}
    failovers = tuple(Failover(name, i, s) for name, values in seconds.items() for i, s in enumerate(values))
    text = printed(run(failovers=failovers))
    assert "ratio of the medians 0.50x, goal <= 0.5x: met" in text
    assert "goal: p99 <= 1.5 s: NOT MET" in text


def test_idle_processor_is_judged_by_the_busiest_node() -> None:
    text = printed(run(idle=(Idle("kvorum", 0, (50.0, 40.0, 40.0), (0.019, 0.021, 0.001)),)))
    assert "goal <= 2 % each: NOT MET" in text


def test_a_goal_says_its_direction() -> None:
    assert str(Goal("ops", at_least=2.0)) == ">= 2x"
    assert str(Goal("p50", at_most=0.6)) == "<= 0.6x"


def test_the_json_and_the_plot_hold_every_measurement() -> None:
    of = run(measured("etcd", 0, PUT_64, load(1234)), measured("kvorum", 0, PUT_64, load(4321)))
    assert msgspec.json.decode(msgspec.json.encode(of), type=Run) == of
    picture = ElementTree.fromstring(svg(of))  # noqa: S314 - our own output
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"1,234", "4,321"} <= set(texts)


def test_processor_time_an_operation_is_compared_with_etcds() -> None:
    etcd = msgspec.structs.replace(measured("etcd", 0, PUT_64, load(1000)), server_us_per_op=400.0)
    kvorum = msgspec.structs.replace(measured("kvorum", 0, PUT_64, load(1000)), server_us_per_op=140.0)
    [line] = [line for line in printed(run(etcd, kvorum)).splitlines() if line.endswith("0.35x")]
    assert line.split()[:5] == ["put,", "64,", "HTTP", "kvorum", "0.80"]
