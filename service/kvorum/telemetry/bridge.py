"""From plain numbers to OpenTelemetry, and from there to Prometheus.

Counters and gauges are the SDK's observable instruments. Histograms are recorded by the hot path into plain arrays
(:class:`kvorum.telemetry.counters.Histogram`); the OpenTelemetry specification calls the bridge for such a source a
*MetricProducer*, which the Python SDK does not have yet. :class:`ProducerReader` is that bridge: it adds our
histograms to the data of each collection as genuine histogram data points.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry

from kvorum.telemetry.counters import Histogram
from kvorum.telemetry.instruments import Instrument, Kind
from kvorum.telemetry.scrape import Scrape

SCOPE = "kvorum"

CurrentScrape = Callable[[], Scrape | None]


class ProducerReader(PrometheusMetricReader):
    """A Prometheus reader whose collections also hold the metrics of ``produce``."""

    def __init__(
        self, registry: CollectorRegistry, resource: Resource, produce: Callable[[], Sequence[Metric]]
    ) -> None:
        # The scope's labels would be the same on each of our series; the resource is shown as target_info.
        super().__init__(scope_info_enabled=False, registry=registry)
        self._resource = resource
        self._produce = produce

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        produced = ScopeMetrics(InstrumentationScope(SCOPE), self._produce(), "")
        ours = ResourceMetrics(self._resource, [produced], "")
        both = MetricsData([*metrics_data.resource_metrics, ours])
        super()._receive_metrics(both, timeout_millis, **kwargs)


def observe(meter: Meter, instrument: Instrument, current: CurrentScrape) -> None:
    """Register a counter or a gauge, read from the ``current`` scrape."""
    create = meter.create_observable_counter if instrument.kind is Kind.COUNTER else meter.create_observable_gauge
    read = instrument.read
    labels = instrument.labels

    def callback(_options: CallbackOptions) -> Iterable[Observation]:
        scrape = current()
        if scrape is None or read is None:
            return []
        return [Observation(value, dict(zip(labels, values, strict=True))) for values, value in read(scrape)]

    create(instrument.name, callbacks=[callback], unit=instrument.unit, description=instrument.description)


def produce_histograms(
    instruments: Sequence[Instrument], scrape: Scrape | None, started_unix_ns: int
) -> Sequence[Metric]:
    """Return the histograms of this scrape in OpenTelemetry's data model."""
    if scrape is None:
        return []
    now = time.time_ns()
    return [
        Metric(
            instrument.name,
            instrument.description,
            instrument.unit,
            HistogramData(
                [
                    _point(dict(zip(instrument.labels, values, strict=True)), histogram, started_unix_ns, now)
                    for values, histogram in instrument.histograms(scrape)
                ],
                AggregationTemporality.CUMULATIVE,
            ),
        )
        for instrument in instruments
        if instrument.histograms is not None
    ]


def _point(attributes: dict[str, str], histogram: Histogram, started_unix_ns: int, now: int) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=started_unix_ns,
        time_unix_nano=now,
        count=histogram.count,
        sum=histogram.sum,
        bucket_counts=tuple(histogram.counts),
        explicit_bounds=histogram.boundaries,
        min=histogram.min,
        max=histogram.max,
    )


def prometheus_name(instrument: Instrument) -> str:
    """Return the name under which the exporter shows this instrument (a histogram: without ``_bucket`` and so on)."""
    name = instrument.name.replace(".", "_")
    unit = {"s": "seconds", "By": "bytes"}.get(instrument.unit, "")
    if unit and not name.endswith(f"_{unit}"):
        name = f"{name}_{unit}"
    return f"{name}_total" if instrument.kind is Kind.COUNTER else name
