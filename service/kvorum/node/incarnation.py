"""Who a node is: its name, the incarnation that lives with its log, and the cluster that it joined."""

from __future__ import annotations

import asyncio
import logging
from random import Random

import msgspec

from kvorum.errors import IdentityRejectedError, MembershipRefusedError, StorageError
from kvorum.identity import Identity
from kvorum.node.ports import Threads
from kvorum.node.supervisor import Supervisor
from kvorum.storage.interface import Loaded, Storage
from kvorum.transport.interface import Greeting

log = logging.getLogger("kvorum.node")


def identity_at_start(name: str, loaded: Loaded, random: Random) -> Identity:
    """Return who we are.

    A node that was killed after its cluster's id was durable, and before anything else was, promised nothing to
    anybody: it forgets that cluster, so that one which never began can begin.
    """
    if loaded.identity is None:
        return Identity(name, f"{random.getrandbits(64):016x}")
    if loaded.hard_state.current_term or loaded.entries or loaded.snapshot is not None:
        return loaded.identity
    return msgspec.structs.replace(loaded.identity, cluster_id="")


class ClusterIdentity:
    """Who this node is, and the one moment at which it becomes part of a cluster.

    Args:
        identity: as it is durable now.
        storage: where a change of it is made durable.
        threads: where that is done.
        supervisor: who hears that it could not be done.
    """

    def __init__(self, identity: Identity, storage: Storage, threads: Threads, supervisor: Supervisor) -> None:
        self.current = identity
        self._storage = storage
        self._threads = threads
        self._supervisor = supervisor
        self._joining = asyncio.Lock()

    @property
    def is_joining(self) -> bool:
        """Whether a cluster is being joined now: no other may begin meanwhile."""
        return self._joining.locked()

    def begin(self, cluster_id: str) -> None:
        """Begin a new cluster.

        Raises:
            MembershipRefusedError: this node is in one already, or about to be.
            StorageError: the cluster's id could not be made durable.
        """
        if self.current.cluster_id or self.is_joining:
            raise MembershipRefusedError(
                f"this node is already in cluster {self.current.cluster_id or 'that is calling it'}"
            )
        identity = msgspec.structs.replace(self.current, cluster_id=cluster_id)
        self._storage.write_identity(identity)
        self.current = identity

    async def join(self, greeting: Greeting) -> None:
        """Make the caller's cluster ours: it called this very incarnation, so its leader knows that we are empty.

        Raises:
            IdentityRejectedError: we have joined another one meanwhile.
        """
        async with self._joining:
            if not self.current.cluster_id:
                identity = msgspec.structs.replace(self.current, cluster_id=greeting.cluster_id)
                try:
                    await self._threads.run(self._storage.write_identity, identity)
                except StorageError as error:
                    self._supervisor.fail(error)
                    raise IdentityRejectedError("cluster", f"{identity.node_id} is stopping: {error}") from error
                self.current = identity
                log.info("%s joined cluster %s through %s", identity.node_id, identity.cluster_id, greeting.sender)
            elif self.current.cluster_id != greeting.cluster_id:
                raise IdentityRejectedError("cluster", f"{greeting.sender} belongs to cluster {greeting.cluster_id}")
