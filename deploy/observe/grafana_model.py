"""Grafana's classic JSON model (schema version 39, for Grafana 10.4 and later), as far as the dashboard needs it."""

from __future__ import annotations

from typing import Any, NamedTuple

SCHEMA_VERSION = 39
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
NAMESPACE = 'namespace=~"$namespace"'
CLUSTER = f'{NAMESPACE}, job=~"$job"'
SELECTOR = f'{CLUSTER}, pod=~"$pod"'
COLUMNS = 24

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#808080"


class Query(NamedTuple):
    """One PromQL query and the name of its series."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """One panel. ``width`` of 24 columns, ``height`` in rows of 30 pixels."""

    kind: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 7
    options: dict[str, Any] = {}  # noqa: RUF012 - Read only.
    defaults: dict[str, Any] = {}  # noqa: RUF012 - Read only.


def stat(title: str, description: str, unit: str, query: Query, steps: Any = None, name: bool = False) -> Panel:
    """Return one large figure of this moment; ``steps`` are (from, colour), the first from None."""
    thresholds = {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps or []]}
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value" if steps else "none",
        "graphMode": "none",
        "textMode": "name" if name else "value",
        "justifyMode": "center",
        "orientation": "auto",
    }
    defaults: dict[str, Any] = {"noValue": "-"}
    if steps:
        defaults |= {"thresholds": thresholds, "color": {"mode": "thresholds"}}
    return Panel("stat", title, description, unit, (query,), 3, 4, options, defaults)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    bars: bool = False,
) -> Panel:
    """Return lines over time, or bars for events that are few."""
    custom: dict[str, Any] = {
        "drawStyle": "bars" if bars else "line",
        "lineWidth": 1,
        "fillOpacity": 80 if bars else 25 if stacked else 5,
        # A value between two gaps would be no line at all.
        "showPoints": "auto",
        "spanNulls": False,
    }
    custom["stacking"] = {"mode": "normal" if stacked else "none", "group": "A"}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel("timeseries", title, description, unit, queries, 8, 8, options, {"custom": custom, "min": 0})


def timeline(title: str, description: str, query: Query, states: tuple[tuple[int, str, str], ...]) -> Panel:
    """Return a band per pod, coloured by state; ``states`` are (value, text, colour)."""
    mapping = {str(value): {"text": text, "color": color, "index": value} for value, text, color in states}
    options = {
        "showValue": "auto",
        "mergeValues": True,
        "alignValue": "left",
        "rowHeight": 0.85,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    defaults = {
        "mappings": [{"type": "value", "options": mapping}],
        "custom": {"lineWidth": 0, "fillOpacity": 80, "spanNulls": False},
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": [{"value": None, "color": GREY}]},
    }
    return Panel("state-timeline", title, description, "none", (query,), COLUMNS, 7, options, defaults)


def rate(metric: str, by: str, where: str = "") -> str:
    """Return a counter's rate, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{where}$S}}[$__rate_interval]))"


def quantile(fraction: float, metric: str, by: str = "", where: str = "") -> str:
    """Return a histogram's quantile, by labels."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({fraction}, {rate(f'{metric}_bucket', labels, where)})"


def p50_p99(metric: str, by: str = "pod", where: str = "") -> tuple[Query, Query]:
    """Return the median and the 99th percentile of a histogram, by one label."""
    return (
        Query(quantile(0.5, metric, by, where), f"p50 {{{{{by}}}}}"),
        Query(quantile(0.99, metric, by, where), f"p99 {{{{{by}}}}}"),
    )


def expand(expr: str) -> str:
    """Put the selector of the dashboard's variables where ``$S`` stands."""
    return expr.replace("$S", SELECTOR)


def render_panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """Return a panel in Grafana's model."""
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": {"unit": panel.unit, **panel.defaults}, "overrides": []},
        "options": panel.options,
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": expand(query.expr),
                "legendFormat": query.legend,
                # A figure is of this moment: over a time it would name all who led within it as the leader.
                "range": panel.kind != "stat",
                "instant": panel.kind == "stat",
            }
            for position, query in enumerate(panel.queries)
        ],
    }


def render_panels(rows: dict[str, list[Panel]]) -> list[dict[str, Any]]:
    """Return all rows and panels, laid out from left to right and from top to bottom."""
    rendered: list[dict[str, Any]] = []
    y = 0
    for title, panels in rows.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        rendered.append(
            {"id": len(rendered) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        x, y, height = 0, y + 1, 0
        for panel in without_a_lonely_one(panels):
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            rendered.append(render_panel(panel, len(rendered) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return rendered


def without_a_lonely_one(panels: list[Panel]) -> list[Panel]:
    """Put four graphs beside each other where three would leave one alone in the last line."""
    graphs = [panel for panel in panels if panel.kind == "timeseries"]
    if len(graphs) % 3 != 1:
        return panels
    narrow = {panel.title for panel in graphs[:4]}
    return [panel._replace(width=COLUMNS // 4) if panel.title in narrow else panel for panel in panels]


def variable(name: str, label: str, query: str, *, many: bool) -> dict[str, Any]:
    """Return a variable that lists a label's values: one of them to choose, or many."""
    found: dict[str, Any] = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": many,
        "includeAll": many,
        "current": {},
    }
    if many:
        # All: also series without the label.
        found |= {"allValue": ".*", "current": {"selected": True, "text": ["All"], "value": ["$__all"]}}
    return found
