"""Who should be a member: from the API server where there is one, else from the configuration."""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kvorum.cluster.kubernetes import StatefulSet
from kvorum.cluster.reconcile import MembershipSpec
from kvorum.config import REPLICAS_MAX, Config, split_ordinal
from kvorum.errors import KubernetesError

ASK_EVERY_S = 1.0
"""How often the API server is asked while it answers."""
ASK_RARELY_S = 30.0
"""How often when it keeps failing."""
TRUSTED_FOR_S = 30.0
"""For how long the last answer holds when the API server is silent. After that nothing is known."""

logger = logging.getLogger(__name__)


class StatefulSets(Protocol):
    """The part of :class:`kvorum.cluster.kubernetes.KubernetesApi` that is needed here."""

    async def stateful_set(self, name: str) -> StatefulSet:
        """Return the StatefulSet.

        Raises:
            KubernetesError: it cannot be had.
        """


class Unanswered:
    """An API server that is there and cannot be asked. The configuration does not stand in for it (decision 0007).

    Args:
        reason: why not.
    """

    def __init__(self, reason: KubernetesError) -> None:
        self._reason = reason

    async def stateful_set(self, name: str) -> StatefulSet:
        """Return never."""
        raise self._reason


class ReplicasOfStatefulSet:
    """The ``spec.replicas`` of the StatefulSet that our pod belongs to.

    Args:
        api: the API server.
        name: of the StatefulSet.
        clock: monotonic seconds.
    """

    def __init__(self, api: StatefulSets, name: str, clock: Callable[[], float]) -> None:
        self._api = api
        self._name = name
        self._clock = clock
        self._last: StatefulSet | None = None
        self._last_at = 0.0
        self._ask_at = float("-inf")
        self._failures = 0

    async def desired(self) -> MembershipSpec | None:
        """Return the desired members; None when the API server has not said so lately."""
        if self._clock() >= self._ask_at:
            await self._ask()
        if self._last is None or self._clock() - self._last_at > TRUSTED_FOR_S:
            return None
        return MembershipSpec.stateful_set(self._name, self._last.replicas)

    async def _ask(self) -> None:
        try:
            answer = await self._api.stateful_set(self._name)
        except KubernetesError as error:
            if self._failures == 0:
                logger.warning("cannot read the desired replica count: %s", error)
            self._failures += 1
            self._ask_at = self._clock() + min(ASK_EVERY_S * 2**self._failures, ASK_RARELY_S)
            return
        if self._failures:
            logger.info("can read the desired replica count again: %d", answer.replicas)
        self._failures = 0
        self._ask_at = self._clock() + ASK_EVERY_S
        # An API server that lags behind another one must not undo what was scaled since.
        if self._last is None or answer.uid != self._last.uid or answer.generation >= self._last.generation:
            self._last, self._last_at = answer, self._clock()


class ReplicasInFile:
    """The ``replicas`` of the configuration file, which a ConfigMap may change while we run; else those we began with.

    Args:
        base: of the pods' names.
        replicas: as configured when the process started.
        path: the configuration file; empty: there is none.
    """

    def __init__(self, base: str, replicas: int, path: str) -> None:
        self._base = base
        self._replicas = replicas
        self._path = path

    async def desired(self) -> MembershipSpec | None:
        """Return the desired members; None while the file cannot be read or says nothing sensible."""
        if not self._path:
            return MembershipSpec.stateful_set(self._base, self._replicas)
        try:
            document = tomllib.loads(await asyncio.to_thread(Path(self._path).read_text))
        except (OSError, ValueError):
            return None
        replicas = document.get("replicas", self._replicas)
        if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= REPLICAS_MAX:
            return None
        return MembershipSpec.stateful_set(self._base, replicas)


class FixedMembers:
    """The members that the configuration names: a lost disk among them is replaced, and nobody is ever removed.

    Args:
        names: of the members.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._desired = MembershipSpec(names)

    async def desired(self) -> MembershipSpec | None:
        """Return them."""
        return self._desired


def membership_spec_source(
    config: Config, config_path: str, api: StatefulSets | None, clock: Callable[[], float]
) -> ReplicasOfStatefulSet | ReplicasInFile | FixedMembers:
    """Return where this node knows the desired members from.

    Args:
        config: resolved.
        config_path: the file that it came from, if any.
        api: the API server; None: not in a pod, or without a ServiceAccount.
        clock: monotonic seconds.
    """
    if not config.discovery_dns:
        return FixedMembers(tuple(member.name for member in config.expected_members()))
    base, _ = split_ordinal(config.name)
    if api is not None:
        return ReplicasOfStatefulSet(api, base, clock)
    return ReplicasInFile(base, config.replicas, config_path)
