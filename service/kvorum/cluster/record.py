"""Which cluster a release holds: recorded outside of its volumes, so that no second cluster begins beside a first.

In Kubernetes the record is a ConfigMap, ``STATEFULSET-cluster-id``. A bootstrap *creates* it and never updates one, so
of two bootstraps at most one begins, and after a cluster has begun no other does, whichever volumes are lost. It is
owned by the headless Service, the StatefulSet and every claim, and goes when all of them are gone: an uninstall that
keeps the claims keeps the record, and a fresh install after the claims were deleted begins afresh. The Service is an
owner because a StatefulSet is replaced to resize its volumes (``kubectl delete --cascade=orphan``), which takes it out
of the owners until somebody adds the new one. The record has no labels, by which a tool might prune it. The leader
keeps it right, and every node sees to its owners when it starts (:class:`RecordKeeper`).

:func:`bootstrap_verdict` and :func:`next_change` are pure and decide; everything else carries out.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import tomllib
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

import msgspec

from kvorum.cluster.kubernetes import ConfigMap, StatefulSet
from kvorum.config import Config, split_ordinal
from kvorum.errors import KubernetesError, KvorumError
from kvorum.node.ports import Tasks
from kvorum.raft.messages import NodeId
from kvorum.storage.datadir import ANY_CLUSTER
from kvorum.telemetry.logs import RateLimit

logger = logging.getLogger("kvorum.cluster")

CLUSTER_ID = "cluster-id"
BOOTSTRAPPING = "bootstrapping-node"
CLAIMS_MAX = 7
"""Claims that are looked for, by ordinal: as many as the chart's Role names."""
PAGE = "docs/operations/cluster-id.md"

LOOK_S = 1.0
"""How often a node looks whether it is to keep the record."""
KEEP_S = 30.0
"""How often the leader compares the record with what is there."""
FOREIGN_LOGGED_EVERY_S = 60.0

_IS_CLUSTER_ID = re.compile(r"[0-9a-f]{1,64}")


class BootstrapRefusedError(KvorumError):
    """No cluster may begin now; the text says why, and what to do."""


class Owner(msgspec.Struct, frozen=True):
    """An object that keeps the record alive."""

    api_version: str
    kind: str
    name: str
    uid: str

    def reference(self) -> dict[str, str]:
        """Return it as an owner reference. It blocks no deletion: to say so would need rights on the owner."""
        return {"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid}


class ClusterRecord(msgspec.Struct, frozen=True):
    """What the ConfigMap says."""

    cluster_id: str
    """Empty: nothing that could be a cluster's id."""
    bootstrapping: NodeId = ""
    """The node that recorded the id and may not have begun the cluster yet; empty once a leader has seen to that."""
    owners: frozenset[str] = frozenset()
    """Their uids."""

    @classmethod
    def of(cls, config_map: ConfigMap) -> ClusterRecord:
        """Return what a ConfigMap says, whoever wrote it."""
        cluster_id = config_map.data.get(CLUSTER_ID, "")
        references = config_map.metadata.get("ownerReferences")
        owners = references if isinstance(references, list) else []
        return cls(
            cluster_id if _IS_CLUSTER_ID.fullmatch(cluster_id) else "",
            config_map.data.get(BOOTSTRAPPING, ""),
            frozenset(str(owner.get("uid")) for owner in owners if isinstance(owner, dict)),
        )


# --- Whether a cluster may begin ----------------------------------------------------------------------------------


class Create(msgspec.Struct, frozen=True, tag="create"):
    """Record a new cluster, and begin it if the record could be created."""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Begin the cluster that this node recorded before it was interrupted."""

    cluster_id: str


class Replace(msgspec.Struct, frozen=True, tag="replace"):
    """Record a new cluster in the place of the lost one that the operator named, and begin it."""


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """Begin nothing."""

    reason: str


def bootstrap_verdict(
    record: ClusterRecord | None, node: NodeId, replaceable: str, unaccounted: Collection[str], name: str = ""
) -> Create | Resume | Replace | Refuse:
    """Return whether a node may begin a cluster, when all that it knows of are empty.

    Args:
        record: what is recorded; None: nothing.
        node: who asks. Its incarnation is as old as its disk, which is empty: what it recorded was never begun, or
            at least nobody has begun it for longer than the leader needs to say so in the record.
        replaceable: the id of the cluster that the operator gave up; empty: none.
        unaccounted: claims of nodes that did not say that they are empty.
        name: of the ConfigMap, for the reason.
    """
    if record is None:
        if unaccounted:
            return Refuse(
                f"the claims {', '.join(sorted(unaccounted))} exist, and may hold the data of an earlier cluster: "
                f"start their pods (replicaCount), or delete the claims if they hold nothing that you need ({PAGE})"
            )
        return Create()
    if not record.cluster_id:
        return Refuse(f"the ConfigMap {name} names no cluster; delete it if this release never held data ({PAGE})")
    if record.bootstrapping == node:
        return Resume(record.cluster_id)
    if record.cluster_id == replaceable:
        return Replace()
    return Refuse(
        f"the ConfigMap {name} says that this release holds cluster {record.cluster_id}, and no node that answers has "
        "its data. Start the nodes whose volumes have it, or restore a backup. If its data is lost for good, begin an "
        f"empty cluster with the chart's value replaceClusterId={record.cluster_id} ({PAGE})"
    )


# --- What the leader does about the record ------------------------------------------------------------------------


class Write(msgspec.Struct, frozen=True, tag="write"):
    """Record this cluster, for these additional owners."""

    missing: tuple[Owner, ...]


class Foreign(msgspec.Struct, frozen=True, tag="foreign"):
    """The record names another cluster, and nobody said that this one takes its place."""

    cluster_id: str


def next_change(
    record: ClusterRecord | None, cluster_id: str, owners: Collection[Owner], replaced: Collection[str]
) -> Write | Foreign | None:
    """Return what a member of the cluster has to do about the record, or None if it is right.

    Args:
        record: what is recorded; None: nothing.
        cluster_id: the member's cluster.
        owners: the objects that must own the record.
        replaced: the clusters that this one takes the place of; ``ANY_CLUSTER`` among them: of every other.
    """
    if record is None:
        return Write(tuple(owners))
    if record.cluster_id not in ("", cluster_id, *replaced) and ANY_CLUSTER not in replaced:
        return Foreign(record.cluster_id)
    # Owners that are gone are removed by Kubernetes.
    missing = tuple(owner for owner in owners if owner.uid not in record.owners)
    if record.cluster_id == cluster_id and not record.bootstrapping and not missing:
        return None
    return Write(missing)


def _changed(
    config_map: ConfigMap | None, name: str, cluster_id: str, owners: Collection[Owner], bootstrapping: NodeId = ""
) -> ConfigMap:
    """Return the ConfigMap with this cluster recorded, and everything else in it as it was."""
    owned = _owned(config_map if config_map is not None else ConfigMap({"name": name}), owners)
    data = {**owned.data, CLUSTER_ID: cluster_id}
    data.pop(BOOTSTRAPPING, None)
    if bootstrapping:
        data[BOOTSTRAPPING] = bootstrapping
    return ConfigMap(owned.metadata, data)


def _owned(config_map: ConfigMap, owners: Collection[Owner]) -> ConfigMap:
    """Return the ConfigMap with these owners as well, and everything else in it as it was."""
    found = config_map.metadata.get("ownerReferences")
    references = [owner for owner in found if isinstance(owner, dict)] if isinstance(found, list) else []
    uids = {owner.get("uid") for owner in references}
    references += [owner.reference() for owner in owners if owner.uid not in uids]
    return ConfigMap({**config_map.metadata, "ownerReferences": references}, config_map.data)


# --- The API server -----------------------------------------------------------------------------------------------


class Api(Protocol):
    """The part of :class:`kvorum.cluster.kubernetes.KubernetesApi` that is needed here."""

    async def stateful_set(self, name: str) -> StatefulSet:
        """Return the StatefulSet. Raises: KubernetesError."""

    async def claim_uid(self, name: str) -> str | None:
        """Return the uid of a claim, or None. Raises: KubernetesError."""

    async def service_uid(self, name: str) -> str | None:
        """Return the uid of a Service, or None. Raises: KubernetesError."""

    async def config_map(self, name: str) -> ConfigMap | None:
        """Return a ConfigMap, or None. Raises: KubernetesError."""

    async def create_config_map(self, config_map: ConfigMap) -> bool:
        """Create it; False: it is there already. Raises: KubernetesError."""

    async def update_config_map(self, config_map: ConfigMap) -> bool:
        """Replace it; False: somebody else did. Raises: KubernetesError."""


def record_name(base: str) -> str:
    """Return the name of the ConfigMap of a StatefulSet."""
    return f"{base}-cluster-id"


class Release(msgspec.Struct, frozen=True):
    """The names of a release's objects."""

    base: str
    """Of the StatefulSet."""
    service: str
    """Of the headless Service."""

    @classmethod
    def of(cls, config: Config) -> Release:
        """Return the release that a node finds its peers in."""
        return cls(split_ordinal(config.name)[0], config.discovery_dns.partition(".")[0])


class _Owners:
    """Looks up the objects that own the record."""

    def __init__(self, api: Api, release: Release) -> None:
        self._api = api
        self._release = release
        self._is_refused = False

    async def claims(self) -> dict[str, str]:
        """Return the uid of each claim that there is, by the name of its pod.

        Raises:
            KubernetesError: the API server does not answer, or refuses.
        """
        pods = [f"{self._release.base}-{ordinal}" for ordinal in range(CLAIMS_MAX)]
        found = {pod: await self._api.claim_uid(f"data-{pod}") for pod in pods}
        return {pod: uid for pod, uid in found.items() if uid is not None}

    async def all(self, claims: Mapping[str, str], *, allow_no_stateful_set: bool) -> tuple[Owner, ...]:
        """Return every owner that there is.

        Args:
            claims: as :meth:`claims` returned them.
            allow_no_stateful_set: it may be missing, as while an operator replaces it.

        Raises:
            KubernetesError: as :meth:`claims`.
        """
        owners = []
        if (uid := await self._service_uid()) is not None:
            owners.append(Owner("v1", "Service", self._release.service, uid))
        if (uid := await self._stateful_set_uid(allow_no_stateful_set)) is not None:
            owners.append(Owner("apps/v1", "StatefulSet", self._release.base, uid))
        owners += [Owner("v1", "PersistentVolumeClaim", f"data-{pod}", uid) for pod, uid in claims.items()]
        return tuple(owners)

    async def _service_uid(self) -> str | None:
        """Return None if we may not read it, too: a Role of the user's own may be from before it was needed."""
        try:
            uid = await self._api.service_uid(self._release.service)
        except KubernetesError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            if not self._is_refused:
                logger.warning(
                    "the Service %s does not own the ConfigMap %s, which names the cluster: %s. The ConfigMap may be "
                    "lost while the StatefulSet is replaced. Allow this in your Role (%s)",
                    self._release.service,
                    record_name(self._release.base),
                    error,
                    PAGE,
                )
            self._is_refused = True
            return None
        self._is_refused = False
        return uid

    async def _stateful_set_uid(self, may_be_missing: bool) -> str | None:
        try:
            return (await self._api.stateful_set(self._release.base)).uid
        except KubernetesError as error:
            if not may_be_missing or error.status != HTTPStatus.NOT_FOUND:
                raise
            return None


class RecordGuard:
    """Lets a cluster begin only if it is the first of its release, by the word of the API server.

    Args:
        api: the API server.
        release: the names of the objects that own the record.
        replaceable: returns the id of the cluster that the operator gave up; empty: none.
    """

    def __init__(self, api: Api, release: Release, replaceable: Callable[[], Awaitable[str]]) -> None:
        self._api = api
        self._name = record_name(release.base)
        self._owners = _Owners(api, release)
        self._replaceable = replaceable

    async def permit(self, node: NodeId, names: Collection[str]) -> str:
        """Record a new cluster and return its id, under which ``node`` may begin it.

        Args:
            node: who is about to begin.
            names: the nodes that are empty, by their own word.

        Raises:
            BootstrapRefusedError: it may not.
        """
        try:
            return await self._permit(node, names)
        except KubernetesError as error:
            raise BootstrapRefusedError(
                f"the API server cannot tell whether this release holds a cluster already: {error}"
            ) from error

    async def _permit(self, node: NodeId, names: Collection[str]) -> str:
        config_map = await self._api.config_map(self._name)
        claims = await self._owners.claims()
        record = None if config_map is None else ClusterRecord.of(config_map)
        unaccounted = [f"data-{pod}" for pod in claims if pod not in names]
        verdict = bootstrap_verdict(record, node, await self._replaceable(), unaccounted, self._name)
        match verdict:
            case Refuse(reason):
                raise BootstrapRefusedError(reason)
            case Resume(cluster_id):
                return cluster_id
            case Create() | Replace():
                cluster_id = secrets.token_hex(16)
                owners = await self._owners.all(claims, allow_no_stateful_set=False)
                recorded = _changed(config_map, self._name, cluster_id, owners, bootstrapping=node)
                write = self._api.create_config_map if config_map is None else self._api.update_config_map
                if not await write(recorded):
                    raise BootstrapRefusedError(f"another node changed the ConfigMap {self._name} at the same time")
                if record is not None:
                    logger.warning("replaced the lost cluster %s by %s, a new one", record.cluster_id, cluster_id)
                return cluster_id


class RecordedNode(Protocol):
    """What :class:`RecordKeeper` asks of a node."""

    @property
    def cluster_id(self) -> str:
        """Its cluster."""

    def leads(self) -> bool:
        """Tell whether it leads, and a quorum has confirmed that in this term."""

    def follows(self) -> bool:
        """Tell whether it is a member and knows a leader, itself or another."""


class Replacements(Protocol):
    """The clusters whose place this node's cluster took by recover or restore; kept until that is recorded. Blocks."""

    def load(self) -> frozenset[str]:
        """Return their ids."""

    def forget(self) -> None:
        """It is recorded."""


class RecordKeeper:
    """Keeps the record right, while this node leads: its owners, and the id if the release has no record yet.

    Every node, whether it is in a cluster or not, first adds the owners that a record lacks, once: the objects of a
    release that was installed again are new, and the record must not depend on the volumes until there is a leader.

    A node that was recovered or restored also puts its cluster's id in the place of the one that it replaced, leader or
    not: only its own data folder says so.

    Args:
        api: the API server.
        release: the names of the objects that own the record.
        node: this node.
        replacements: what its data folder says.
        replaceable: as for :class:`RecordGuard`.
        tasks: how to wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        api: Api,
        release: Release,
        node: RecordedNode,
        replacements: Replacements,
        replaceable: Callable[[], Awaitable[str]],
        tasks: Tasks,
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._name = record_name(release.base)
        self._owners = _Owners(api, release)
        self._node = node
        self._replacements = replacements
        self._replaceable = replaceable
        self._tasks = tasks
        self._clock = clock
        self._foreign_limit = RateLimit(FOREIGN_LOGGED_EVERY_S, clock)
        self._failures = 0

    async def run(self) -> None:
        """Keep it right until cancelled. A failure is logged once and tried again ever more rarely."""
        replaced = await asyncio.to_thread(self._replacements.load)
        did_lead = False
        is_owned = False
        due = self._clock()
        while True:
            leads = self._node.leads()
            keeps = bool(leads or (replaced and self._node.follows()))
            if (keeps or not is_owned) and (self._clock() >= due or leads > did_lead):
                try:
                    is_right = await self.keep(replaced) if keeps else False
                    is_owned = is_owned or keeps or await self.own()
                except KubernetesError as error:
                    if self._failures == 0:
                        logger.warning("cannot keep the ConfigMap %s, which names the cluster: %s", self._name, error)
                    self._failures += 1
                    due = self._clock() + min(LOOK_S * 2**self._failures, KEEP_S)
                else:
                    self._failures = 0
                    due = self._clock() + (KEEP_S if keeps else 0.0)
                    if is_right and replaced:
                        await asyncio.to_thread(self._replacements.forget)
                        replaced = frozenset()
            did_lead = leads
            await self._tasks.sleep(LOOK_S)

    async def own(self) -> bool:
        """Add the owners that the record lacks, and change nothing that it says; return whether it lacks none now.

        Raises:
            KubernetesError: it cannot be read or written.
        """
        config_map = await self._api.config_map(self._name)
        if config_map is None:
            return True
        owners = await self._owners.all(await self._owners.claims(), allow_no_stateful_set=True)
        uids = ClusterRecord.of(config_map).owners
        missing = [owner for owner in owners if owner.uid not in uids]
        # Of several nodes that start at the same time, one is first; the others look again.
        return not missing or await self._api.update_config_map(_owned(config_map, missing))

    async def keep(self, replaced: Collection[str]) -> bool:
        """Look once, and change what is wrong; return whether the record names our cluster.

        Raises:
            KubernetesError: it cannot be read or written.
        """
        cluster_id = self._node.cluster_id
        config_map = await self._api.config_map(self._name)
        owners = await self._owners.all(await self._owners.claims(), allow_no_stateful_set=True)
        if not owners:
            # The release and its volumes are gone. Nothing would remove a record without an owner.
            return False
        record = None if config_map is None else ClusterRecord.of(config_map)
        change = next_change(record, cluster_id, owners, {*replaced, await self._replaceable()} - {""})
        match change:
            case None:
                return True
            case Foreign(other):
                if self._foreign_limit.allow() is not None:
                    logger.error(
                        "the ConfigMap %s says that this release holds cluster %s, and this node is in cluster %s: "
                        "there may be two clusters. Find out which one has your data (%s)",
                        self._name,
                        other,
                        cluster_id,
                        PAGE,
                    )
                return False
            case Write(missing):
                changed = _changed(config_map, self._name, cluster_id, missing)
                write = self._api.create_config_map if config_map is None else self._api.update_config_map
                if not await write(changed):
                    raise KubernetesError(f"the ConfigMap {self._name} was changed at the same time")
                if record is None or record.cluster_id != cluster_id:
                    logger.info("recorded cluster %s in the ConfigMap %s", cluster_id, self._name)
                return True


async def replaceable_cluster(config: Config, config_path: str) -> str:
    """Return the id of the cluster that the operator gave up: by the configuration file as it is now, if there is one.

    Args:
        config: as the node was started with.
        config_path: the file that it came from, which a ConfigMap may change meanwhile; empty: there is none.
    """
    if not config_path:
        return config.replace_cluster_id
    try:
        document = tomllib.loads(await asyncio.to_thread(Path(config_path).read_text))
    except (OSError, ValueError):
        return ""
    named = document.get("replace_cluster_id", config.replace_cluster_id)
    return named if isinstance(named, str) else ""
