"""Draw the dashboard from the data of a run: ``make picture`` after ``make observe``.

Grafana is not needed: the panels, their places, units, colours and legends are read from the committed dashboard, and
the series are what Prometheus answered to its queries while a leader was killed (tests/telemetry/test_contract.py).
Needs matplotlib, which is no dependency of the product.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "helm" / "dashboards" / "kvorum.json"
ROW_INCHES, WIDTH_INCHES = 0.30, 17.0
BACKGROUND, PANEL, TEXT, FAINT = "#111217", "#181b1f", "#d0d1d4", "#3a3d42"
COLORS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ca95e5", "#96d98d", "#ffb357")
NAMED = {
    "green": "#73bf69",
    "blue": "#5794f2",
    "red": "#f2495c",
    "orange": "#ff9830",
    "yellow": "#f2cc0c",
    "purple": "#b877d9",
}
LEGEND_ENTRIES_MAX = 9
DOTS_PER_INCH = 110

Series = list[dict[str, Any]]
Line = tuple[str, list[float], list[float]]
"""A legend, the times and the values."""


def human(value: float, unit: str) -> str:
    """Return a figure as Grafana would show it."""
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s":
        for limit, factor, name in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (120, 1, "s"), (math.inf, 1 / 60, "min")):
            if abs(value) < limit:
                return f"{value * factor:.3g} {name}" if value else "0"
    suffix = {"bytes": "B", "Bps": "B/s"}.get(unit)
    if suffix:
        power = min(int(math.log(abs(value), 1024)), 3) if abs(value) >= 1 else 0
        return f"{value / 1024**power:.3g} {('', 'Ki', 'Mi', 'Gi')[power]}{suffix}"
    return f"{value / 1000:.3g} k" if abs(value) >= 10_000 else f"{value:.4g}"


def legend_of(target: dict[str, Any], labels: dict[str, str]) -> str:
    """Fill in a legend's labels."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), target["legendFormat"])


def points(series: dict[str, Any], started: float) -> tuple[list[float], list[float]]:
    """Return times since the start and values; a gap is a NaN, so that no line is drawn over it."""
    times: list[float] = []
    values: list[float] = []
    for moment, text in series["values"]:
        if times and moment - started - times[-1] > 1.5:
            times.append(times[-1] + 1)
            values.append(math.nan)
        times.append(moment - started)
        values.append(float(text))
    return times, values


def stack(axes: Axes, lines: list[Line], colors: list[str]) -> None:
    """Draw the lines upon each other; where one has no figure it adds nothing."""
    moments = sorted({moment for _, times, _ in lines for moment in times})
    below = [0.0] * len(moments)
    for (_, times, values), color in zip(lines, colors, strict=True):
        known = {moment: value for moment, value in zip(times, values, strict=True) if math.isfinite(value)}
        above = [low + known.get(moment, 0.0) for low, moment in zip(below, moments, strict=True)]
        axes.fill_between(moments, below, above, color=color, alpha=0.45, linewidth=0)
        axes.plot(moments, above, color=color, linewidth=0.7)
        below = above


class Picture:
    """The dashboard on one page.

    Args:
        kept: what the run has left: the queries' series, when it started and ended.
    """

    def __init__(self, kept: dict[str, Any]) -> None:
        self._kept = kept
        self._started: float = kept["started"]
        self._length: float = kept["ended"] - kept["started"]
        self._model = json.loads(DASHBOARD.read_text())
        self._rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in self._model["panels"])

    def draw(self) -> Figure:
        """Return the whole page."""
        plt.rcParams.update({"font.size": 7, "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": FAINT})
        plt.rcParams.update({"xtick.color": TEXT, "ytick.color": TEXT, "font.family": "DejaVu Sans"})
        figure = plt.figure(figsize=(WIDTH_INCHES, self._rows * ROW_INCHES), facecolor=BACKGROUND)
        for panel in self._model["panels"]:
            self._draw_panel(figure, panel)
        return figure

    def _draw_panel(self, figure: Figure, panel: dict[str, Any]) -> None:
        place = panel["gridPos"]
        x, y = place["x"] / 24, 1 - (place["y"] + place["h"]) / self._rows
        width, height = place["w"] / 24, place["h"] / self._rows
        if panel["type"] == "row":
            figure.text(x + 0.004, y + height * 0.3, panel["title"], fontsize=11, weight="bold")
            return
        margin = 0.0015
        frame = figure.add_axes((x + margin, y + margin / 3, width - 2 * margin, height - margin), facecolor=PANEL)
        frame.set_xticks([])
        frame.set_yticks([])
        title_y = y + height - 0.5 / self._rows
        figure.text(x + 0.006, title_y, panel["title"], fontsize=8, weight="bold", va="center")
        if panel["type"] == "stat":
            self._draw_stat(figure, panel, x + width / 2, y + height * 0.42)
            return
        left, bottom, top = (0.033, 2.6, 1.1) if panel["type"] == "timeseries" else (0.02, 1.3, 1.0)
        inner = (
            x + left,
            y + bottom / self._rows,
            width - left - 0.008,
            height - (bottom + top) / self._rows,
        )
        axes = figure.add_axes(inner, facecolor=PANEL)
        axes.set_xlim(0, self._length)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2, labelsize=6.5)
        axes.xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds // 60)}:{int(seconds % 60):02d}")
        axes.xaxis.set_major_locator(plt.MultipleLocator(20))
        if panel["type"] == "state-timeline":
            self._draw_timeline(axes, panel)
        else:
            self._draw_graph(axes, panel)

    def _series(self, panel: dict[str, Any], target: dict[str, Any]) -> Series:
        series: Series = self._kept["panels"][f"{panel['title']} {target['refId']}"]
        return series

    def _draw_stat(self, figure: Figure, panel: dict[str, Any], x: float, y: float) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        texts, color = [], TEXT
        for target in panel["targets"]:
            for series in self._series(panel, target):
                last, text = series["values"][-1]
                if self._started + self._length - last > 2:
                    continue  # The query is one of the last moment, and this was gone by then.
                value = float(text)
                named = panel["options"]["textMode"] == "name"
                texts.append(legend_of(target, series["metric"]) if named else human(value, defaults["unit"]))
                for step in defaults.get("thresholds", {}).get("steps", []):
                    if step["value"] is None or value >= step["value"]:
                        color = NAMED.get(step["color"], step["color"])
        figure.text(x, y, ", ".join(texts) or "no data", fontsize=18, ha="center", va="center", color=color)

    def _draw_timeline(self, axes: Axes, panel: dict[str, Any]) -> None:
        (target,) = panel["targets"]
        mapping = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
        everything = sorted(self._series(panel, target), key=lambda one: str(one["metric"]["pod"]), reverse=True)
        for height, series in enumerate(everything):
            for moment, text in series["values"]:
                state = mapping[str(int(float(text)))]
                color = NAMED.get(state["color"], state["color"])
                axes.broken_barh([(moment - self._started - 0.5, 1.02)], (height - 0.4, 0.8), facecolor=color)
        axes.set_yticks(range(len(everything)), [one["metric"]["pod"] for one in everything], fontsize=9)
        self._mark_leader_changes(axes, with_names=True)
        patches = [
            Patch(color=NAMED.get(state["color"], state["color"]), label=state["text"]) for state in mapping.values()
        ]
        axes.legend(handles=patches, ncol=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False, fontsize=8)

    def _draw_graph(self, axes: Axes, panel: dict[str, Any]) -> None:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        custom = panel["fieldConfig"]["defaults"]["custom"]
        lines = [
            (legend_of(target, series["metric"]), *points(series, self._started))
            for target in panel["targets"]
            for series in self._series(panel, target)
        ]
        colors = [COLORS[number % len(COLORS)] for number in range(len(lines))]
        if custom["stacking"]["mode"] == "normal":
            stack(axes, lines, colors)
        for (_, times, values), color in zip(lines, colors, strict=True):
            if custom["drawStyle"] == "bars":
                axes.bar(times, values, width=1.0, color=color, alpha=0.8)
            elif custom["stacking"]["mode"] == "none":
                axes.plot(times, values, color=color, linewidth=0.9)
        axes.set_ylim(0, None if any(value > 0 for _, _, values in lines for value in values) else 1)
        axes.yaxis.set_major_formatter(lambda value, _: human(value, unit))
        axes.yaxis.set_major_locator(plt.MaxNLocator(4))
        axes.grid(visible=True, color=FAINT, linewidth=0.3)
        self._mark_leader_changes(axes, with_names=False)
        self._draw_legend(axes, panel, lines, colors)

    def _draw_legend(self, axes: Axes, panel: dict[str, Any], lines: list[Line], colors: list[str]) -> None:
        """Below the graph, as in Grafana, each name with its highest figure."""
        unit = panel["fieldConfig"]["defaults"]["unit"]
        patches = [
            Patch(color=color, label=f"{name}  {human(max(filter(math.isfinite, values), default=0), unit)}")
            for (name, _, values), color in zip(lines, colors, strict=True)
        ]
        if len(patches) > LEGEND_ENTRIES_MAX:
            more = f"and {len(patches) - LEGEND_ENTRIES_MAX + 1} more"
            patches = [*patches[: LEGEND_ENTRIES_MAX - 1], Patch(alpha=0, label=more)]
        axes.legend(
            handles=patches,
            ncol=2 if panel["gridPos"]["w"] < 8 else 3,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.12),
            frameon=False,
            fontsize=6,
            handlelength=1.0,
            handleheight=0.5,
            columnspacing=1.2,
            labelspacing=0.25,
            borderaxespad=0.2,
        )

    def _mark_leader_changes(self, axes: Axes, *, with_names: bool) -> None:
        for series in self._kept["annotations"]:
            before = -math.inf
            for moment, _ in series["values"]:
                if moment - before > 10:
                    axes.axvline(moment - self._started, color=NAMED["orange"], linewidth=0.7, linestyle=(0, (4, 3)))
                    if with_names:
                        said = f" {series['metric']['pod']} leads"
                        axes.text(moment - self._started, axes.get_ylim()[1], said, fontsize=7, va="top")
                before = moment


def main(source: str, target: str) -> None:
    """Read the run's data and write the picture, of 256 colours to keep it small."""
    figure = Picture(json.loads(Path(source).read_text())).draw()
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=DOTS_PER_INCH, facecolor=BACKGROUND)
    from PIL import Image

    Image.open(target).convert("RGB").quantize(200).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
