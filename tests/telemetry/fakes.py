"""A node that telemetry can observe: the surface of the driver, with figures that a test sets."""

from __future__ import annotations

import msgspec

from kvorum.config import Config
from kvorum.status import MemberStatus, NodeStatus
from kvorum.telemetry.counters import Counters


def member(name: str, **changes: object) -> MemberStatus:
    """Return a healthy voter as its leader sees it."""
    whole = MemberStatus(
        id=f"{name}@0123456789abcdef",
        name=name,
        voter=True,
        peer_url=f"http://{name}:9001",
        client_url=f"http://{name}:8001",
        match_index=120,
        lag=0,
        healthy=True,
        replication="replicate",
    )
    return msgspec.structs.replace(whole, **changes)


def leader_status(**changes: object) -> NodeStatus:
    """Return the status of n1, which leads n2 and n3."""
    members = (member("n1"), member("n2", lag=3), member("n3"))
    whole = NodeStatus(
        cluster_id="0" * 32,
        name="n1",
        id=members[0].id,
        version="1.2.3",
        state="leader",
        term=7,
        leader=members[0].id,
        leader_name="n1",
        leader_client_url="http://n1:8001",
        commit_index=120,
        applied_index=119,
        first_index=11,
        last_index=123,
        saved_index=122,
        snapshot_index=10,
        revision=100,
        state_hash="00000000deadbeef",
        keys=42,
        sessions=5,
        members=members,
        last_contact_ms=30,
        caught_up=True,
    )
    return msgspec.structs.replace(whole, **changes)


def follower_status(**changes: object) -> NodeStatus:
    """Return the status of n2, which follows n1 and knows nothing of the others' progress."""
    unknown = {"match_index": None, "lag": None, "healthy": None, "replication": None}
    members = tuple(member(name, **unknown) for name in ("n1", "n2", "n3"))
    status = leader_status(name="n2", id=members[1].id, state="follower", members=members)
    return msgspec.structs.replace(status, **changes)


class FakeNode:
    """Stands in for the driver."""

    def __init__(self, config: Config, status: NodeStatus | None = None) -> None:
        self.config = config
        self.counters = Counters()
        self.current_status = status or leader_status()

    def status(self) -> NodeStatus:
        """Return what the test has set."""
        return self.current_status
