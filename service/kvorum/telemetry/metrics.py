"""What a node tells of itself: its metrics, and one readable line in the log from time to time.

Theory of operation. The hot path adds to plain integers (:mod:`kvorum.telemetry.counters`), because one OpenTelemetry
call costs more than the operation that it counts. Once per scrape, :meth:`Telemetry.render` takes one :class:`Scrape`
of the node, and every instrument of :mod:`kvorum.telemetry.instruments` reads from it: so all figures of one scrape
agree with each other. The SDK's meter provider collects them, and its Prometheus exporter names and writes them. What
may block is sampled by :meth:`Telemetry.run` in a thread.

Nothing here is global: each :class:`Telemetry` has a meter provider and a registry of its own, so that three nodes in
one process (as in the tests) do not mix.
"""

from __future__ import annotations

import asyncio
import os
import time

from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kvorum.telemetry.bridge import SCOPE, ProducerReader, observe, produce_histograms
from kvorum.telemetry.instruments import Kind, all_instruments
from kvorum.telemetry.sampler import log_periodically, sample_disk
from kvorum.telemetry.scrape import DiskFacts, ObservedNode, Scrape

__all__ = ["ObservedNode", "Telemetry"]


class Telemetry:
    """The metrics of one node.

    Args:
        node: the node to observe; it does not know of us.
    """

    def __init__(self, node: ObservedNode) -> None:
        self._node = node
        self._disk: DiskFacts | None = None
        self._scrape: Scrape | None = None
        # Set by the image's build; a source tree has none.
        self._build_revision = os.environ.get("KVORUM_BUILD_REVISION", "unknown")
        self._started_unix_ns = time.time_ns()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._provider = self._open_provider()

    def _open_provider(self) -> MeterProvider:
        instruments = all_instruments()
        status = self._node.status()
        resource = Resource.create(
            {SERVICE_NAME: SCOPE, SERVICE_INSTANCE_ID: status.name, SERVICE_VERSION: status.version}
        )
        reader = ProducerReader(
            self._registry,
            resource,
            lambda: produce_histograms(instruments, self._scrape, self._started_unix_ns),
        )
        provider = MeterProvider(
            metric_readers=[reader],
            resource=resource,
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        meter = provider.get_meter(SCOPE)
        for instrument in instruments:
            if instrument.kind is not Kind.HISTOGRAM:
                observe(meter, instrument, lambda: self._scrape)
        return provider

    def render(self) -> tuple[bytes, str]:
        """Return the body and the content type of ``GET /metrics``. Call it on the node's event loop."""
        self._scrape = Scrape(
            status=self._node.status(),
            counters=self._node.counters,
            config=self._node.config,
            disk=self._disk,
            build_revision=self._build_revision,
        )
        try:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        finally:
            self._scrape = None

    async def run(self) -> None:
        """Look at the disk, and log a line now and then, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sample_disk(self._node.config.data_dir, self._store_disk))
            if self._node.config.metrics_log_interval_s > 0:
                tasks.create_task(log_periodically(self._node))

    def _store_disk(self, disk: DiskFacts | None) -> None:
        self._disk = disk

    def close(self) -> None:
        """Release the meter provider. Idempotent: a second call does nothing."""
        provider, self._provider = self._provider, MeterProvider(shutdown_on_exit=False)
        provider.shutdown()
