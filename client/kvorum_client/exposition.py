"""Just enough of the Prometheus text format to show a node's figures: totals, rates and percentiles of an interval."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

_SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? (\S+)(?: \S+)?')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Sample(msgspec.Struct, frozen=True):
    """One line of an exposition."""

    name: str
    labels: Mapping[str, str]
    value: float


class Exposition:
    """The samples of one scrape, at one moment.

    Args:
        text: a node's ``/metrics``; lines that are not understood are left out.
        at: when it was taken, in monotonic seconds.
    """

    def __init__(self, text: str, at: float) -> None:
        self.at = at
        self._samples: dict[str, list[Sample]] = {}
        for sample in _parse(text):
            self._samples.setdefault(sample.name, []).append(sample)

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum of the samples with these labels; None: there are none."""
        found = [s.value for s in self._samples.get(name, []) if labels.items() <= s.labels.items()]
        return sum(found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sum of the samples for each value of a label."""
        totals: dict[str, float] = {}
        for sample in self._samples.get(name, []):
            key = sample.labels.get(label, "")
            totals[key] = totals.get(key, 0.0) + sample.value
        return totals


def _parse(text: str) -> Iterator[Sample]:
    for line in text.splitlines():
        match = None if line.startswith("#") else _SAMPLE.fullmatch(line.strip())
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        yield Sample(match[1], dict(_LABEL.findall(match[2] or "")), value)


def rate(before: Exposition | None, after: Exposition, name: str, **labels: str) -> float | None:
    """Return how much a counter grew a second; None: unknown. A counter that fell began again at 0."""
    now = after.total(name, **labels)
    if before is None or now is None or after.at <= before.at:
        return None
    then = before.total(name, **labels) or 0.0
    return (now - then if now >= then else now) / (after.at - before.at)


def percentile(before: Exposition | None, after: Exposition, name: str, fraction: float) -> float | None:
    """Return a percentile of what a histogram recorded in between; None: it recorded nothing.

    Prometheus's rule: linear within a bucket; what is above the last boundary counts as the last boundary.
    """
    now = _buckets(after, name)
    then = _buckets(before, name) if before is not None else {}
    if any(now.get(bound, 0.0) < count for bound, count in then.items()):
        then = {}  # The node was started anew.
    counts = [(bound, count - then.get(bound, 0.0)) for bound, count in sorted(now.items())]
    if before is None or not counts or counts[-1][1] <= 0:
        return None
    rank = fraction * counts[-1][1]
    lower, below = 0.0, 0.0
    for bound, cumulative in counts:
        if cumulative >= rank and cumulative > below:
            return lower if bound == float("inf") else lower + (bound - lower) * (rank - below) / (cumulative - below)
        lower, below = bound, cumulative
    return lower


def _buckets(exposition: Exposition, name: str) -> dict[float, float]:
    buckets: dict[float, float] = {}
    for text, count in exposition.by(f"{name}_bucket", "le").items():
        try:
            buckets[float(text)] = count
        except ValueError:
            continue
    return buckets
