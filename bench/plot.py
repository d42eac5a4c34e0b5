"""The table as a picture: an SVG made by hand, so that nothing needs to be installed to see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from bench.cells import Measured
from bench.report import Row, Run, describe, rows

BAR_HEIGHT = 14
GROUP_HEIGHT = 44
LABEL_WIDTH = 215
BARS_WIDTH = 330
PANEL_WIDTH = LABEL_WIDTH + BARS_WIDTH + 110
HEADER_HEIGHT = 74
COLOURS = {"etcd": "#7a8793", "kvorum": "#2f6fde"}


def svg(run: Run) -> str:
    """Return the picture of a run: throughput on the left, median latency on the right."""
    lines = rows(run)
    height = HEADER_HEIGHT + GROUP_HEIGHT * len(lines) + 20
    width = 2 * PANEL_WIDTH
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    where = ", ".join(f"{key} {value}" for key, value in run.machine.items() if key in ("cores", "cpu"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="600">{escape(versions)}: three nodes, default durability'
        f" ({escape(where)}, shared with the load generator)</text>",
        _legend(12, 40),
        _panel(lines, 0, "operations a second (longer is better)", lambda m: m.ops_per_second, "{:,.0f}"),
        _panel(lines, PANEL_WIDTH, "median latency, ms (shorter is better)", lambda m: m.load.p50_ms, "{:.2f}"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend(x: int, y: int) -> str:
    parts = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        left = x + 90 * i
        parts.append(f'<rect x="{left}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + 18}" y="{y}">{name}</text>')
    return "\n".join(parts)


def _panel(lines: Sequence[Row], left: int, title: str, figure: Callable[[Measured], float], form: str) -> str:
    values = [figure(m) for row in lines for m in (row.etcd, row.kvorum) if m is not None]
    scale = BARS_WIDTH / max(values, default=1.0) if max(values, default=0.0) > 0 else 0.0
    parts = [f'<text x="{left + LABEL_WIDTH}" y="{HEADER_HEIGHT - 12}" font-weight="600">{escape(title)}</text>']
    for i, row in enumerate(lines):
        top = HEADER_HEIGHT + GROUP_HEIGHT * i
        middle = top + BAR_HEIGHT + 5
        parts.append(
            f'<text x="{left + LABEL_WIDTH - 8}" y="{middle}" text-anchor="end">{escape(describe(row.cell))}</text>'
        )
        for j, m in enumerate((row.etcd, row.kvorum)):
            if m is None:
                continue
            value = figure(m)
            bar, y = max(1.0, value * scale), top + j * (BAR_HEIGHT + 2)
            parts.append(
                f'<rect x="{left + LABEL_WIDTH}" y="{y}" width="{bar:.1f}" height="{BAR_HEIGHT}" '
                f'fill="{COLOURS[m.system]}"/>'
            )
            text = form.format(value)
            parts.append(f'<text x="{left + LABEL_WIDTH + bar + 5:.1f}" y="{y + 11}" font-size="11">{text}</text>')
    return "\n".join(parts)
