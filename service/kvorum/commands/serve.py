"""One node as a process: configuration -> logging -> node -> metrics and API -> until a signal -> exit status."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import kvorum
from kvorum.cluster import (
    KubernetesApi,
    MembershipSpecSource,
    RemovedError,
    StatefulSets,
    Unanswered,
    join_and_reconcile,
    leave_if_surplus,
    membership_spec_source,
)
from kvorum.commands.node import running_node
from kvorum.commands.recover import recover_if_requested
from kvorum.config import Config
from kvorum.config.resources import raise_descriptor_limit
from kvorum.errors import ConfigError, FatalError, KubernetesError, StorageError
from kvorum.fronts.http import ApiServer
from kvorum.node import Node
from kvorum.service import Service
from kvorum.storage import datadir
from kvorum.telemetry import logs
from kvorum.telemetry.log_output import LogOutput
from kvorum.telemetry.logs import RateLimit
from kvorum.telemetry.metrics import Telemetry

if TYPE_CHECKING:
    from kvorum.telemetry.tracing import Tracer

EXIT_CONFIG = 2
EXIT_ADDRESS = 3
EXIT_STORAGE = 4
EXIT_FATAL = 5
LOOK_AGAIN_S = 1.0
"""Between two looks at data that belongs elsewhere."""
ELSEWHERE_LOGGED_EVERY_S = 60.0

logger = logging.getLogger(__name__)


def run(config: Config, config_path: str = "", warning: str = "") -> int:
    """Run a node until a signal ends it, and return the exit status.

    Args:
        config: as resolved.
        config_path: the file that it came from, if any; in a pod, where the replica count may change while we run.
        warning: of the environment, to be logged; empty: nothing is wrong with it.
    """
    # Files of the data folder are nobody else's business.
    os.umask(0o077)
    output = LogOutput(sys.stdout.fileno() if sys.stdout is not None else os.open(os.devnull, os.O_WRONLY))
    logs.configure(config.name, config.log_format, config.log_level, output)
    try:
        return _run(config, config_path, warning)
    finally:
        output.close()


def _run(config: Config, config_path: str, warning: str) -> int:
    raise_descriptor_limit()
    if warning:
        logger.warning("%s", warning)
    try:
        with asyncio.Runner(loop_factory=_loop_factory(config.uvloop)) as runner:
            return runner.run(_serve(config, config_path))
    except asyncio.CancelledError:
        logger.warning("Stopped immediately: the node was still starting, or got a second signal")
        return 0
    except StorageError as error:
        logger.error("Cannot use the storage: %s", error)
        return EXIT_STORAGE
    except FatalError as error:
        logger.error("The node stopped itself: %s", error)
        return EXIT_FATAL
    except OSError as error:
        logger.error("Cannot listen: %s", error.strerror or error)
        return EXIT_ADDRESS


def _loop_factory(choice: str) -> type[asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop if it is wanted and there (twice the requests a second), or None: asyncio's own."""
    if choice == "off":
        return None
    if importlib.util.find_spec("uvloop") is None:
        if choice == "on":
            raise ConfigError("uvloop is on but not installed (pip install uvloop)")
        return None
    import uvloop

    loop: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return loop


async def _serve(config: Config, config_path: str) -> int:
    """Compose the node and live with it. What is opened last is closed first."""
    stopping = _Stopping()
    logger.info("Kvorum %s starts as %s with its data in %s", kvorum.__version__, config.name, config.data_dir)
    while True:
        await _prepare_data(config)
        try:
            await _live(config, config_path, stopping)
        except RemovedError as error:
            logger.warning(
                "This node was removed (%s). Its data was moved aside; it restarts with an empty disk", error
            )
            await asyncio.to_thread(datadir.set_aside, Path(config.data_dir))
        else:
            logger.info("Stopped")
            return 0


async def _prepare_data(config: Config) -> None:
    """Complete what was begun with the data folder, and wait while its data belongs elsewhere.

    A clone of the volumes has the identity of the original: its redirects would lead there. It must not end either, so
    that ``kvorum recover`` and ``kvorum restore`` can be run beside it, as in a pod.

    Raises:
        StorageError: the folder cannot be used, or what was asked for could not be done.
    """
    folder = Path(config.data_dir)
    limit = RateLimit(ELSEWHERE_LOGGED_EVERY_S)
    while True:
        await asyncio.to_thread(datadir.finish_interrupted, folder)
        await asyncio.to_thread(recover_if_requested, config.data_dir, config.expected_urls())
        recorded, place = await asyncio.to_thread(datadir.place_of_data, folder), config.place()
        if not is_elsewhere(recorded, place):
            return
        if limit.allow() is not None:
            logger.error(
                "Not started: the data in %s belongs to %s, and this is %s. If it was copied on purpose, make it a "
                "cluster of its own: run `kvorum recover --data-dir %s --force-new-cluster --at-next-start "
                "--accept-older-log --yes` here, for one node only, and give the others new volumes. This node goes on "
                "by itself then",
                config.data_dir,
                recorded,
                place,
                config.data_dir,
            )
        await asyncio.sleep(LOOK_AGAIN_S)


def is_elsewhere(recorded: str, place: str) -> bool:
    """Tell whether data that belongs to the ``recorded`` place must not be served at this one; empty: not known."""
    return bool(recorded and place) and recorded != place


class _Replacements:
    """The clusters whose place that of this data folder took."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> frozenset[str]:
        return datadir.replaced_clusters(self._folder)

    def forget(self) -> None:
        datadir.forget_replaced_clusters(self._folder)


async def _live(config: Config, config_path: str, stopping: _Stopping) -> None:
    """Live with one incarnation of the node, from its start to its end.

    Raises:
        RemovedError: the cluster goes on without it.
        FatalError: it must end.
        OSError: a port cannot be had.
    """
    tracer = _tracer(config)
    async with contextlib.AsyncExitStack() as stack:
        if tracer is not None:
            stack.push_async_callback(asyncio.to_thread, tracer.close)
        api, stateful_sets = await _kubernetes_api(config)
        if api is not None:
            await stack.enter_async_context(api)
        node = await stack.enter_async_context(running_node(config, tracer))
        await asyncio.to_thread(datadir.record_place, Path(config.data_dir), config.place())
        telemetry = Telemetry(node)
        stack.callback(telemetry.close)
        service = Service(node, perf_counter, telemetry.render)
        server = ApiServer(service, config, node.counters, tracer.wrap if tracer is not None else None)
        stack.push_async_callback(server.stop)
        await server.start()
        logger.info("Serving clients at %s", config.advertise_client_url)
        stopping.gently = True
        cluster = join_and_reconcile(
            node,
            membership_spec_source(config, config_path, stateful_sets, node.clock.monotonic),
            api,
            in_kubernetes=bool(config.place()) or "KUBERNETES_SERVICE_HOST" in os.environ,
            config_path=config_path,
            replacements=_Replacements(Path(config.data_dir)),
        )
        await _first_of(stopping.event.wait(), telemetry.run(), node.run(), cluster)
        logger.info("Stopping")
        server.close_after_answers()
        # A new source: what the API server said a second ago may be from before the scale-in that stops us.
        await _first_of(
            node.run(), _leave(node, membership_spec_source(config, config_path, stateful_sets, node.clock.monotonic))
        )


def _tracer(config: Config) -> Tracer | None:
    """Return what traces requests if that is asked for; else nothing of it is loaded."""
    if not config.trace_endpoint:
        return None
    from kvorum.telemetry.tracing import open_tracer

    return open_tracer(config)


async def _kubernetes_api(config: Config) -> tuple[KubernetesApi | None, StatefulSets | None]:
    """Return the API server if this node is a pod of a StatefulSet and may ask it; and what stands for it if not."""
    if not config.discovery_dns:
        return None, None
    try:
        api = KubernetesApi.in_pod()
    except KubernetesError as error:
        logger.warning("Automatic scaling and disk replacement are off while this node leads: %s", error)
        return None, Unanswered(error)
    return api, api


async def _leave(node: Node, source: MembershipSpecSource) -> None:
    """Do all that a node does between the signal and its end, within ``shutdown_grace_s``; it goes on being driven."""
    deadline_s = node.clock.monotonic() + node.config.shutdown_grace_s
    await node.serve_on(deadline_s)
    await leave_if_surplus(node, source, (node.clock.monotonic() + deadline_s) / 2)
    await node.drain(deadline_s)


async def _first_of(*parts: Coroutine[None, None, object]) -> None:
    """Run all of them until one has ended, and cancel the others.

    Raises:
        FatalError: the node must end first.
        RemovedError: its data must be put aside first.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Stopping:
    """SIGTERM, SIGINT and SIGHUP: the first sets ``event``; before ``gently``, or the second time, it ends everything.

    SIGHUP (the terminal was closed) stays ignored if whoever started the node ignores it, as nohup does.
    """

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.gently = False
        self._main = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._main is not None and (self.event.is_set() or not self.gently):
            self._main.cancel()
        self.event.set()
