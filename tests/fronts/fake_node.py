"""A node without consensus: the real state machine behind the service's port, with faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any, NamedTuple

import msgspec

from kvorum.config import Config, resolve
from kvorum.errors import (
    KvorumError,
    MembershipRefusedError,
    NotLeaderError,
    NotServingError,
    UnknownMemberError,
)
from kvorum.fronts.http import ApiServer
from kvorum.kv.commands import (
    ClientCommand,
    Compact,
    Compacted,
    CompactRefused,
    Delete,
    LeaseRevoke,
    Put,
    RaiseFeatureLevel,
    Result,
    SetQuota,
    Txn,
    encode_batch,
)
from kvorum.kv.features import SUPPORTED_LEVELS, check_command_level
from kvorum.kv.operations import LeasedPutOp
from kvorum.kv.quota import OPERATOR
from kvorum.kv.store import Store
from kvorum.kv.watch import Interest, Sink
from kvorum.node.state import State
from kvorum.node.watches import Watch, Watches
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import Configuration, Entry, EntryKind, Member
from kvorum.service import Service
from kvorum.status import Check, MemberStatus, NodeStatus
from kvorum.telemetry.counters import Counters


def client_id_of(command: ClientCommand) -> str:
    """Return the id of the session of a command; empty: it has none."""
    return getattr(command, "client_id", "")


def make_config(**options: Any) -> Config:
    """Return a configuration whose client port the system chooses, and that knows the host ``x``."""
    config = resolve(Config(**{"name": "n1", "hosts": "x", **options}), host_name="n1")
    return msgspec.structs.replace(config, listen_client="127.0.0.1:0")


class FakeBackup:
    """The chunks, or an error where one of them should be."""

    sha256 = "5" * 64
    last_index = 7
    is_stale = False

    def __init__(self, chunks: list[bytes | ConnectionError]) -> None:
        self.parts = chunks
        self.size_bytes = sum(len(part) if isinstance(part, bytes) else 1 for part in chunks)
        self.closed = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            await asyncio.sleep(0)
            if isinstance(part, ConnectionError):
                raise part
            yield part

    def close(self) -> None:
        self.closed += 1


CLUSTER = "c" * 32
"""The cluster of the nodes. A client that is given it does not ask for it before it writes."""


class FakeNode:
    """Applies what is proposed at once, or raises ``error`` if it is set."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or make_config()
        self.counters = Counters()
        self.state = State(Store())
        self.watches = Watches(self.config, self.state, self._advance_soon, self.counters, lambda: True)
        self.leads = True
        self.hands_over = False
        """As a follower it hands over what it is asked to: the cluster is at the feature level for it."""
        self.leader: tuple[str, str] | None = ("n1", self.config.advertise_client_url)
        self.error: KvorumError | Exception | None = None
        self.gate: asyncio.Event | None = None
        self.staleness: int | None = 0
        self.quarantined = ""
        self.cluster = CLUSTER
        self.leader_is_new = False
        """The leader understands `?cluster=`."""
        self.proposed: list[ClientCommand] = []
        self.addresses: list[str] = []
        self.batches: list[object | None] = []
        self.timeouts_ms: list[int] = []
        self.barriers = 0
        self.calls: list[tuple[Any, ...]] = []
        self.backup_chunks: list[bytes | ConnectionError] = []
        self.backups: list[FakeBackup] = []
        self.members: dict[str, MemberStatus] = {
            name: MemberStatus(f"{name}@00", name, True, f"http://{name}:9001", f"http://{name}:8001")
            for name in ("n1", "n2", "n3")
        }
        self.live = [Check("loop", True), Check("storage", True)]
        self.ready = [Check("leader", True), Check("caught_up", True), Check("storage", True)]

    @property
    def store(self) -> Store:
        return self.state.store

    @store.setter
    def store(self, store: Store) -> None:
        self.state.store = store

    def _advance_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        if self.watches.advance():
            self._advance_soon()

    def check_watchers(self) -> None:
        self.watches.check_room()

    def watch(self, interest: Interest, sink: Sink, first: int) -> Watch:
        self.check_serves()
        return self.watches.open(interest, sink, first)

    def follow(self, name: str, url: str) -> None:
        """Become a follower of this leader."""
        self.leads, self.leader = False, (name, url)

    async def _admit(self, timeout_ms: int, *, leaders_only: bool = True) -> None:
        self.timeouts_ms.append(timeout_ms)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if leaders_only and not self.leads:
            raise NotLeaderError(self.leader[0] if self.leader else None)

    @property
    def proposed_keys(self) -> list[bytes]:
        """The keys of the writes that were proposed."""
        return [each.key for each in self.proposed if isinstance(each, Put | Delete)]

    def raise_feature_level(self) -> None:
        """Raise the level of the state to the highest."""
        voter = Configuration((Member("n1@00", True),))
        self._apply(EntryKind.CONFIGURATION, encode_configuration(voter))
        for level in SUPPORTED_LEVELS[1:]:
            raised = RaiseFeatureLevel(level, {"n1@00": level}, CLUSTER)
            self._apply(EntryKind.COMMAND, encode_batch(0, [raised]))

    def _apply(self, kind: EntryKind, data: bytes) -> list[Result]:
        results = self.store.apply(Entry(self.store.applied_index + 1, 1, kind, data))
        if self.watches.hub.size:
            self._advance_soon()
        return results

    def now_ms(self) -> int:
        return self.store.time_ms

    def pass_time(self, duration_ms: int) -> None:
        """Let log time pass."""
        self._apply(EntryKind.COMMAND, encode_batch(self.store.time_ms + duration_ms, []))

    def put_all(self, keys: Iterable[bytes]) -> None:
        """Set all of these keys, with an empty value."""
        puts = [Put(key, b"") for key in keys]
        for at in range(0, len(puts), 100):
            self._apply(EntryKind.COMMAND, encode_batch(self.store.time_ms, puts[at : at + 100]))

    def remove(self, key: bytes) -> None:
        """Delete a key, as somebody else does."""
        self._apply(EntryKind.COMMAND, encode_batch(self.store.time_ms, [Delete(key)]))

    def set(self, key: bytes, lease: int) -> None:
        """Set a key that has a lease, as somebody else does."""
        txn = Txn(then=(LeasedPutOp(key, b"", lease=lease),))
        self._apply(EntryKind.COMMAND, encode_batch(self.store.time_ms, [txn]))

    def revoke(self, lease: int) -> None:
        """End a lease, as somebody else does."""
        self._apply(EntryKind.COMMAND, encode_batch(self.store.time_ms, [LeaseRevoke(lease)]))

    def check_leads(self, *, hand_over: bool = False) -> None:
        if not self.leads and not (hand_over and self.hands_over):
            raise NotLeaderError(self.leader[0] if self.leader else None)

    async def propose(
        self,
        command: ClientCommand,
        timeout_ms: int,
        address: str = "",
        *,
        hand_over: bool = False,
        batch: object | None = None,
    ) -> Result:
        await self._admit(timeout_ms, leaders_only=not (hand_over and self.hands_over))
        check_command_level(command, self.store.feature_level)
        self.proposed.append(command)
        self.addresses.append(address)
        self.batches.append(batch)
        return self._apply(EntryKind.COMMAND, encode_batch(self.store.applied_index + 1, [command]))[0]

    async def set_quota(self, limit_bytes: int, timeout_ms: int, *, hand_over: bool = False) -> None:
        await self._admit(timeout_ms, leaders_only=not (hand_over and self.hands_over))
        command = SetQuota(limit_bytes, OPERATOR)
        check_command_level(command, self.store.feature_level)
        self._apply(EntryKind.COMMAND, encode_batch(0, [command]))

    async def compact(self, revision: int, timeout_ms: int, *, hand_over: bool = False) -> Compacted | CompactRefused:
        await self._admit(timeout_ms, leaders_only=not (hand_over and self.hands_over))
        command = Compact(revision)
        check_command_level(command, self.store.feature_level)
        result = self._apply(EntryKind.COMMAND, encode_batch(0, [command]))[0]
        assert isinstance(result, Compacted | CompactRefused)
        return result

    async def read_barrier(self, timeout_ms: int) -> None:
        self.barriers += 1
        await self._admit(timeout_ms, leaders_only=False)

    async def begin_backup(self, *, stale: bool = False) -> FakeBackup:
        self.backups.append(FakeBackup(self.backup_chunks))
        self.backups[-1].is_stale = stale
        return self.backups[-1]

    def check_serves(self) -> None:
        if self.quarantined:
            raise NotServingError(self.quarantined)

    def staleness_ms(self) -> int | None:
        return self.staleness

    @property
    def cluster_id(self) -> str:
        return self.cluster

    def leader_checks_cluster(self) -> bool:
        return self.leader_is_new

    def leader_name(self) -> str | None:
        return self.leader[0] if self.leader else None

    def leader_client_url(self) -> str | None:
        return self.leader[1] if self.leader else None

    async def transfer_leadership(self, target_name: str | None, timeout_ms: int) -> str:
        await self._admit(timeout_ms)
        self.calls.append(("transfer", target_name))
        return target_name or "n2"

    async def finalize(self, timeout_ms: int) -> int:
        await self._admit(timeout_ms)
        self.calls.append(("finalize",))
        return 2

    async def add_member(self, name: str, peer_url: str, client_url: str, timeout_ms: int) -> None:
        await self._admit(timeout_ms)
        if name in self.members:
            raise MembershipRefusedError(f"{name} is a member already")
        self.members[name] = MemberStatus(f"{name}@00", name, False, peer_url, client_url)

    async def promote_member(self, name: str, timeout_ms: int) -> None:
        await self._admit(timeout_ms)
        if name not in self.members:
            raise UnknownMemberError(f"{name} is not a member")
        self.members[name] = msgspec.structs.replace(self.members[name], voter=True)

    async def remove_member(self, name: str, timeout_ms: int) -> None:
        await self._admit(timeout_ms)
        if self.members.pop(name, None) is None:
            raise UnknownMemberError(f"{name} is not a member")

    def liveness(self) -> list[Check]:
        return self.live

    def readiness(self) -> list[Check]:
        return self.ready

    def status(self) -> NodeStatus:
        return NodeStatus(
            cluster_id=self.cluster,
            name=self.config.name,
            id=f"{self.config.name}@00",
            version="0",
            state="leader" if self.leads else "follower",
            term=1,
            leader=f"{self.leader[0]}@00" if self.leader else None,
            leader_name=self.leader_name(),
            leader_client_url=self.leader_client_url(),
            commit_index=self.store.applied_index,
            applied_index=self.store.applied_index,
            first_index=1,
            last_index=self.store.applied_index,
            saved_index=self.store.applied_index,
            snapshot_index=0,
            revision=self.store.revision,
            state_hash=f"{self.store.state_hash:016x}",
            keys=len(self.store),
            sessions=0,
            used_bytes=self.store.counted_bytes,
            floor=self.store.floor,
            leases=len(self.store.leases),
            history_events=self.store.history_events,
            history_bytes=self.store.history_bytes,
            quota_bytes=self.store.quota.limit_bytes,
            quota_exceeded=self.store.quota.is_full,
            members=tuple(self.members.values()),
            last_contact_ms=0,
            caught_up=True,
        )


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running API over a fake node, and a raw HTTP client that adds nothing of its own to what it is told to send."""

    def __init__(self, node: FakeNode, port: int, api: ApiServer | None = None) -> None:
        self.node = node
        self.port = port
        self.api = api
        self.url = f"http://127.0.0.1:{port}"

    async def __call__(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        return await asyncio.to_thread(self._request, method, target, body, headers or {})

    def _request(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body is not None and "Transfer-Encoding" not in headers and "Content-Length" not in headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    @property
    def body_bytes(self) -> int:
        """How many bytes of bodies the server counts as in memory."""
        assert self.api is not None
        return self.api.bodies.used_bytes

    async def raw(self, data: bytes) -> bytes:
        """Send these bytes on a connection of their own and return everything that comes back until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            answer = bytearray()
            # A reset after the answer is the kernel's way to say that the rest of our request was not read.
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(10):
                    while chunk := await reader.read(65536):
                        answer += chunk
            return bytes(answer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def _no_metrics() -> tuple[bytes, str]:
    return b"", "text/plain"


def api_of(
    node: FakeNode,
    render_metrics: Callable[[], tuple[bytes, str]] = _no_metrics,
    now: Callable[[], float] = perf_counter,
) -> ApiServer:
    """Return the HTTP front of a fake node, not started yet."""
    return ApiServer(Service(node, now, render_metrics), node.config, node.counters)


@contextlib.asynccontextmanager
async def serving(
    node: FakeNode | None = None,
    render_metrics: Callable[[], tuple[bytes, str]] = _no_metrics,
    now: Callable[[], float] = perf_counter,
) -> AsyncIterator[Server]:
    """Serve a fake node on a free port of loopback."""
    node = node or FakeNode()
    server = api_of(node, render_metrics, now)
    await server.start()
    try:
        yield Server(node, server.addresses[0][1], server)
    finally:
        await server.stop()


def run(scenario: Callable[[Server], Awaitable[None]], node: FakeNode | None = None) -> None:
    """Run the scenario against a server of its own."""

    async def main() -> None:
        async with asyncio.timeout(30), serving(node) as server:
            await scenario(server)

    asyncio.run(main())
