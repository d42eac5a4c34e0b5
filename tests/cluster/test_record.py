"""Which cluster a release holds, as its record says: no second cluster begins, and the record stays right."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from node.local_cluster import running
from waiting import until

from kvorum import cluster as cluster_package
from kvorum.cluster import _Recorded, bootstrap_guard, join_and_reconcile
from kvorum.cluster.addresses import AddressGuard
from kvorum.cluster.kubernetes import ConfigMap, StatefulSet
from kvorum.cluster.record import (
    BOOTSTRAPPING,
    CLUSTER_ID,
    BootstrapRefusedError,
    ClusterRecord,
    Create,
    Foreign,
    Owner,
    RecordGuard,
    RecordKeeper,
    Refuse,
    Release,
    Replace,
    Resume,
    Write,
    bootstrap_verdict,
    next_change,
    replaceable_cluster,
)
from kvorum.config import Config
from kvorum.errors import KubernetesError
from kvorum.raft import Role
from kvorum.storage.datadir import ANY_CLUSTER

OLD, NEW = "a" * 32, "b" * 32
NODE, OTHER = f"kv-0@{'1' * 16}", f"kv-0@{'2' * 16}"
RECORD = "kv-cluster-id"
RELEASE = Release("kv", "kv-headless")

# --- The verdict --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replaceable", ["", OLD])
def test_the_first_cluster_of_a_release_begins(replaceable: str) -> None:
    assert bootstrap_verdict(None, NODE, replaceable, ()) == Create()


@pytest.mark.parametrize("replaceable", ["", NEW, OLD[:-1]])
def test_no_cluster_begins_where_one_is_recorded(replaceable: str) -> None:
    verdict = bootstrap_verdict(ClusterRecord(OLD), NODE, replaceable, (), RECORD)

    assert isinstance(verdict, Refuse)
    for hint in (OLD, RECORD, "restore a backup", f"replaceClusterId={OLD}"):
        assert hint in verdict.reason


def test_a_cluster_takes_the_place_of_the_one_that_the_operator_named() -> None:
    assert bootstrap_verdict(ClusterRecord(OLD), NODE, OLD, ()) == Replace()


def test_a_node_that_was_interrupted_begins_the_cluster_that_it_recorded_and_no_other_node_does() -> None:
    recorded = ClusterRecord(NEW, bootstrapping=NODE)

    assert bootstrap_verdict(recorded, NODE, "", ()) == Resume(NEW)
    assert isinstance(bootstrap_verdict(recorded, OTHER, "", ()), Refuse), "the disk that may hold it is lost"


@pytest.mark.parametrize("replaceable", ["", OLD])
def test_a_record_that_names_no_cluster_is_no_permission(replaceable: str) -> None:
    for record in (ClusterRecord(""), ClusterRecord("", bootstrapping=NODE)):
        assert isinstance(bootstrap_verdict(record, NODE, replaceable, ()), Refuse)


def test_claims_of_nodes_that_do_not_answer_may_hold_the_cluster_of_a_release_without_a_record() -> None:
    verdict = bootstrap_verdict(None, NODE, "", ("data-kv-2", "data-kv-1"))

    assert isinstance(verdict, Refuse)
    assert "data-kv-1, data-kv-2" in verdict.reason


@pytest.mark.parametrize(
    ("data", "record"),
    [
        ({CLUSTER_ID: OLD}, ClusterRecord(OLD)),
        ({CLUSTER_ID: OLD, BOOTSTRAPPING: NODE, "note": "x"}, ClusterRecord(OLD, NODE)),
        ({}, ClusterRecord("")),
        ({CLUSTER_ID: ""}, ClusterRecord("")),
        ({CLUSTER_ID: "two words"}, ClusterRecord("")),
        ({CLUSTER_ID: "a" * 100_000}, ClusterRecord("")),
    ],
)
def test_a_record_is_read_whoever_wrote_it(data: dict[str, str], record: ClusterRecord) -> None:
    assert ClusterRecord.of(ConfigMap({"name": RECORD}, data)) == record


@pytest.mark.parametrize("owners", [None, "x", [1], [{"kind": "Pod"}]])
def test_owners_that_are_none_are_nobody(owners: object) -> None:
    record = ClusterRecord.of(ConfigMap({"ownerReferences": owners}, {CLUSTER_ID: OLD}))

    assert not record.owners - {"None"}


# --- What the leader does -----------------------------------------------------------------------------------------

OWNERS = (Owner("apps/v1", "StatefulSet", "kv", "s"), Owner("v1", "PersistentVolumeClaim", "data-kv-0", "c0"))
UIDS = frozenset({"s", "c0"})


@pytest.mark.parametrize(
    ("record", "replaced", "change"),
    [
        (None, (), Write(OWNERS)),
        (ClusterRecord(NEW, owners=UIDS), (), None),
        (ClusterRecord(NEW, owners=UIDS | {"gone"}), (), None),
        (ClusterRecord(NEW, owners=frozenset({"s"})), (), Write(OWNERS[1:])),
        (ClusterRecord(NEW, bootstrapping=NODE, owners=UIDS), (), Write(())),
        (ClusterRecord("", owners=UIDS), (), Write(())),
        (ClusterRecord(OLD, owners=UIDS), (), Foreign(OLD)),
        (ClusterRecord(OLD, owners=UIDS), ("c" * 32,), Foreign(OLD)),
        (ClusterRecord(OLD, owners=UIDS), ("c" * 32, OLD), Write(())),
        (ClusterRecord(OLD, owners=UIDS), (ANY_CLUSTER,), Write(())),
    ],
    ids=[
        *("no record", "right", "an owner too many", "an owner too few", "a bootstrap that is over", "names nothing"),
        *("another cluster", "another than the replaced one", "the replaced one", "whichever was restored over"),
    ],
)
def test_the_leader_mends_what_is_its_own_and_leaves_another_cluster_alone(
    record: ClusterRecord | None, replaced: Collection[str], change: Write | Foreign | None
) -> None:
    assert next_change(record, NEW, OWNERS, replaced) == change


ALL = UIDS | {"h"}
"""The uids of all owners that :class:`FakeApi` has."""

# --- A fake API server ----------------------------------------------------------------------------------------------


class FakeApi:
    """An API server with one namespace; ``before`` is called before every request, and may raise or wait.

    What its controllers do is done by :meth:`collect_garbage` and :meth:`delete_and_orphan`.
    """

    def __init__(self, claims: dict[str, str] | None = None) -> None:
        self.claims = {"data-kv-0": "c0"} if claims is None else claims
        self.stateful_sets = {"kv": "s"}
        self.services = {"kv-headless": "h"}
        self.maps: dict[str, ConfigMap] = {}
        self.versions = itertools.count(1)
        self.is_silent = False
        self.requests: list[str] = []
        self.before: Callable[[str], Any] | None = None
        self.loses_answers = False

    async def _asked(self, request: str) -> None:
        self.requests.append(request)
        if self.is_silent:
            raise KubernetesError("the API server does not answer")
        if self.before is not None:
            await self.before(request)

    async def stateful_set(self, name: str) -> StatefulSet:
        await self._asked("GET StatefulSet")
        if name not in self.stateful_sets:
            raise KubernetesError("GET StatefulSet answers 404: not found", 404)
        return StatefulSet(self.stateful_sets[name], 1, 3)

    async def service_uid(self, name: str) -> str | None:
        await self._asked("GET Service")
        return self.services.get(name)

    async def claim_uid(self, name: str) -> str | None:
        await self._asked("GET claim")
        return self.claims.get(name)

    async def config_map(self, name: str) -> ConfigMap | None:
        await self._asked("GET")
        return self.maps.get(name)

    async def create_config_map(self, config_map: ConfigMap) -> bool:
        await self._asked("POST")
        name = config_map.metadata["name"]
        assert "resourceVersion" not in config_map.metadata
        if name in self.maps:
            return False
        return self._write(config_map)

    async def update_config_map(self, config_map: ConfigMap) -> bool:
        await self._asked("PUT")
        found = self.maps.get(config_map.metadata["name"])
        if found is None or found.metadata["resourceVersion"] != config_map.metadata["resourceVersion"]:
            return False
        return self._write(config_map)

    def _write(self, config_map: ConfigMap) -> bool:
        metadata = {**config_map.metadata, "resourceVersion": str(next(self.versions))}
        self.maps[metadata["name"]] = msgspec.structs.replace(config_map, metadata=metadata)
        if self.loses_answers:
            raise KubernetesError("the answer is lost")
        return True

    def collect_garbage(self) -> None:
        """Remove owners that are gone, and objects whose owners all are, as Kubernetes does."""
        there = {*self.claims.values(), *self.stateful_sets.values(), *self.services.values()}
        for name, found in list(self.maps.items()):
            owners = found.metadata.get("ownerReferences", [])
            left = [owner for owner in owners if owner["uid"] in there]
            if owners and not left:
                del self.maps[name]
            elif left != owners:
                self._write(msgspec.structs.replace(found, metadata={**found.metadata, "ownerReferences": left}))

    def delete_and_orphan(self, objects: dict[str, str]) -> None:
        """Delete them as `--cascade=orphan` does: they are taken out of the owners first, so nothing goes with them."""
        for found in list(self.maps.values()):
            left = [owner for owner in found.metadata["ownerReferences"] if owner["uid"] not in objects.values()]
            self._write(msgspec.structs.replace(found, metadata={**found.metadata, "ownerReferences": left}))
        objects.clear()

    def record(self) -> ClusterRecord | None:
        found = self.maps.get(RECORD)
        return None if found is None else ClusterRecord.of(found)


def nothing() -> Callable[[], Any]:
    return lost("")


def lost(cluster_id: str) -> Callable[[], Any]:
    async def replaceable() -> str:
        return cluster_id

    return replaceable


def permitted(api: FakeApi, node: str = NODE, replaceable: str = "", names: Collection[str] = ("kv-0",)) -> str:
    return asyncio.run(RecordGuard(api, RELEASE, lost(replaceable)).permit(node, names))


def test_a_bootstrap_records_its_cluster_with_the_objects_that_keep_the_record_alive() -> None:
    api = FakeApi({"data-kv-0": "c0", "data-kv-2": "c2"})

    cluster_id = permitted(api, names=("kv-0", "kv-1", "kv-2"))

    assert api.record() == ClusterRecord(cluster_id, NODE, frozenset({"h", "s", "c0", "c2"}))
    metadata = api.maps[RECORD].metadata
    assert set(metadata) == {"name", "ownerReferences", "resourceVersion"}, "a tool prunes what has its labels"
    assert metadata["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Service", "name": "kv-headless", "uid": "h"},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "kv", "uid": "s"},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "data-kv-0", "uid": "c0"},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "data-kv-2", "uid": "c2"},
    ]
    assert len(cluster_id) == 32


def test_a_bootstrap_never_changes_a_record() -> None:
    api = FakeApi()
    permitted(api, OTHER)
    before = api.maps[RECORD]

    with pytest.raises(BootstrapRefusedError, match="restore a backup"):
        permitted(api)

    assert api.maps[RECORD] is before


def test_a_bootstrap_whose_answer_was_lost_begins_the_cluster_that_it_recorded() -> None:
    api = FakeApi()
    api.loses_answers = True
    with pytest.raises(BootstrapRefusedError, match="the answer is lost"):
        permitted(api)
    recorded = api.record()
    assert recorded is not None

    assert permitted(api) == recorded.cluster_id


@pytest.mark.parametrize("refused", ["GET", "GET claim", "GET StatefulSet", "POST"])
def test_nothing_begins_while_the_api_server_is_silent_or_refuses(refused: str) -> None:
    api = FakeApi()

    async def before(request: str) -> None:
        if request == refused:
            raise KubernetesError(f"{request} answers 403: forbidden", 403)

    api.before = before
    with pytest.raises(BootstrapRefusedError, match=f"{refused} answers 403"):
        permitted(api)
    assert api.record() is None


def test_claims_beyond_the_nodes_that_answered_begin_nothing() -> None:
    """A release of an earlier version, without a record: its first volume is lost, and it starts with one replica."""
    api = FakeApi({"data-kv-0": "new", "data-kv-1": "c1", "data-kv-2": "c2"})

    with pytest.raises(BootstrapRefusedError, match="data-kv-1, data-kv-2 exist"):
        permitted(api)
    assert api.record() is None


def test_an_empty_cluster_takes_the_place_of_the_lost_one_that_is_named() -> None:
    api = FakeApi()
    old = permitted(api, OTHER)

    new = permitted(api, replaceable=old)

    assert new != old
    assert api.record() == ClusterRecord(new, NODE, ALL)


def test_of_two_bootstraps_one_begins_whatever_the_api_server_delays_or_loses() -> None:
    """Two pods of one name: the one that was deleted by force still runs. They are restarted, too, in between."""
    for seed in range(100):
        draw, api = Random(seed), FakeApi()
        begun: list[tuple[str, str]] = []

        async def before(request: str, draw: Random = draw, api: FakeApi = api) -> None:
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            api.loses_answers = draw.random() < 0.2
            if draw.random() < 0.03:
                raise KubernetesError("no answer")

        async def bootstrap(
            node: str, api: FakeApi = api, begun: list[tuple[str, str]] = begun, draw: Random = draw
        ) -> None:
            for _ in range(40):
                with contextlib.suppress(BootstrapRefusedError):
                    begun.append((node, await RecordGuard(api, RELEASE, nothing()).permit(node, ("kv-0",))))
                    if draw.random() < 0.5:
                        return

        async def both(bootstrap: Any = bootstrap) -> None:
            await asyncio.gather(bootstrap(NODE), bootstrap(OTHER))

        api.before = before
        asyncio.run(both())
        assert len(set(begun)) == 1, f"seed {seed}"
        record = api.record()
        assert record is not None
        assert (record.bootstrapping, record.cluster_id) == begun[0]


# --- The keeper -----------------------------------------------------------------------------------------------------


class FakeNode:
    def __init__(self, cluster_id: str = NEW, *, leads: bool = True, follows: bool = True) -> None:
        self.cluster_id = cluster_id
        self.is_leader, self.is_follower = leads, follows

    def leads(self) -> bool:
        return self.is_leader

    def follows(self) -> bool:
        return self.is_follower


class FakeReplacements:
    def __init__(self, *ids: str) -> None:
        self.ids = frozenset(ids)

    def load(self) -> frozenset[str]:
        return self.ids

    def forget(self) -> None:
        self.ids = frozenset()


class Enough(Exception):
    """As many seconds went by as the test wants to see."""


class Time:
    """Seconds that pass only while somebody sleeps; ``at`` is what happens when."""

    def __init__(self, seconds: float, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.now = 0.0
        self._seconds = seconds
        self._at = at or {}

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s
        self._at.pop(int(self.now), lambda: None)()
        if self.now > self._seconds:
            raise Enough


def keep(
    api: FakeApi,
    node: FakeNode | None = None,
    replacements: FakeReplacements | None = None,
    seconds: float = 0.5,
    at: dict[int, Callable[[], None]] | None = None,
    replaceable: str = "",
) -> None:
    """Let the keeper of a node run for so many seconds."""
    time: Any = Time(seconds, at)
    keeper = RecordKeeper(
        api, RELEASE, node or FakeNode(), replacements or FakeReplacements(), lost(replaceable), time, lambda: time.now
    )
    with pytest.raises(Enough):
        asyncio.run(keeper.run())


def test_the_leader_records_the_cluster_of_a_release_that_has_no_record() -> None:
    api = FakeApi()

    keep(api)

    assert api.record() == ClusterRecord(NEW, "", ALL)


def test_nobody_else_records_a_cluster_or_says_that_it_began() -> None:
    api = FakeApi()

    keep(api, FakeNode(leads=False), seconds=100)

    assert api.requests == ["GET"]
    cluster_id = permitted(api)
    api.requests.clear()
    keep(api, FakeNode(cluster_id, leads=False), seconds=100)
    assert "PUT" not in api.requests
    assert api.requests.count("GET") == 1, "once, when it starts"


def test_a_cluster_that_began_is_no_bootstrap_any_more() -> None:
    """A copy of the first node's disk from before the bootstrap must not begin it a second time."""
    api = FakeApi()
    cluster_id = permitted(api)

    keep(api, FakeNode(cluster_id))

    assert api.record() == ClusterRecord(cluster_id, "", ALL)
    with pytest.raises(BootstrapRefusedError):
        permitted(api)


def test_new_claims_and_a_new_stateful_set_become_owners_and_what_others_wrote_stays() -> None:
    api = FakeApi()
    keep(api)
    found = api.maps[RECORD]
    found.metadata["annotations"] = {"note": "theirs"}
    found.metadata["ownerReferences"][1]["uid"] = "a StatefulSet before"
    found.data["more"] = "theirs"
    api.claims["data-kv-6"] = "c6"

    keep(api)

    record = api.record()
    assert record is not None
    assert record.owners == {"h", "a StatefulSet before", "s", "c0", "c6"}
    assert api.maps[RECORD].metadata["annotations"] == {"note": "theirs"}
    assert api.maps[RECORD].data == {"more": "theirs", CLUSTER_ID: NEW}


def test_a_right_record_is_read_twice_a_minute_and_not_written() -> None:
    api = FakeApi()
    keep(api)
    api.requests.clear()

    keep(api, seconds=60)

    assert [request for request in api.requests if "claim" not in request] == [
        *("GET", "GET Service", "GET StatefulSet")
    ] * 3


def test_a_new_leader_looks_at_once() -> None:
    api, node = FakeApi(), FakeNode()

    def steps_down() -> None:
        node.is_leader = False

    def leads_again() -> None:
        del api.maps[RECORD]
        node.is_leader = True

    keep(api, node, seconds=6, at={3: steps_down, 5: leads_again})

    assert api.record() == ClusterRecord(NEW, "", ALL)


def test_a_cluster_that_is_not_the_recorded_one_says_so_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    api, replacements = FakeApi(), FakeReplacements("c" * 32)
    keep(api, FakeNode(OLD))

    keep(api, FakeNode(NEW), replacements, seconds=70)

    record = api.record()
    assert record is not None
    assert record.cluster_id == OLD
    assert replacements.ids == {"c" * 32}, "what it replaced is not recorded"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2, "once a minute"
    assert OLD in errors[0]
    assert NEW in errors[0]


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("replaced", [OLD, ANY_CLUSTER])
def test_a_recovered_or_restored_cluster_is_recorded_by_the_node_whose_folder_says_so(
    leads: bool, replaced: str
) -> None:
    api, replacements = FakeApi(), FakeReplacements(replaced)
    keep(api, FakeNode(OLD))

    keep(api, FakeNode(leads=leads), replacements)

    record = api.record()
    assert record is not None
    assert record.cluster_id == NEW
    assert replacements.ids == frozenset(), "the next one needs a reason of its own"


def test_a_recovered_node_that_is_in_no_cluster_yet_records_nothing() -> None:
    api, replacements = FakeApi(), FakeReplacements(OLD)
    keep(api, FakeNode(OLD))

    keep(api, FakeNode(leads=False, follows=False), replacements, seconds=100)

    record = api.record()
    assert record is not None
    assert record.cluster_id == OLD
    assert replacements.ids == {OLD}


def test_a_replacement_is_remembered_until_the_api_server_has_it(caplog: pytest.LogCaptureFixture) -> None:
    api, replacements = FakeApi(), FakeReplacements(OLD)
    keep(api, FakeNode(OLD))
    api.is_silent = True

    def answers() -> None:
        assert replacements.ids == {OLD}
        api.is_silent = False

    keep(api, FakeNode(), replacements, seconds=100, at={50: answers})

    record = api.record()
    assert record is not None
    assert record.cluster_id == NEW
    assert replacements.ids == frozenset()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "cannot keep the ConfigMap kv-cluster-id, which names the cluster: the API server does not answer"
    ]


def test_a_leader_takes_over_a_record_that_the_operator_gave_up() -> None:
    api = FakeApi()
    keep(api, FakeNode(OLD))

    keep(api, FakeNode(NEW), replaceable=OLD)

    record = api.record()
    assert record is not None
    assert record.cluster_id == NEW


def test_a_change_of_somebody_else_in_between_is_not_undone() -> None:
    api = FakeApi()
    keep(api, FakeNode(OLD))

    async def before(request: str) -> None:
        if request == "PUT":
            found = api.maps[RECORD]
            api.maps[RECORD] = msgspec.structs.replace(
                found, metadata={**found.metadata, "resourceVersion": "theirs"}, data={CLUSTER_ID: "c" * 32}
            )

    api.before = before
    keep(api, FakeNode(), FakeReplacements(OLD), seconds=100)

    record = api.record()
    assert record is not None
    assert record.cluster_id == "c" * 32


# --- What keeps the record alive ------------------------------------------------------------------------------------


def starts(api: FakeApi, node: FakeNode | None = None) -> None:
    """Let a node start and not lead, in a cluster or in none."""
    keep(api, node or FakeNode("", leads=False, follows=False), seconds=10)


def test_no_cluster_begins_when_all_claims_are_lost_after_the_stateful_set_was_replaced() -> None:
    """As docs/operations/resize.md replaces it; nobody has had the time to record the new one."""
    api = FakeApi({f"data-kv-{ordinal}": f"c{ordinal}" for ordinal in range(3)})
    cluster_id = permitted(api, OTHER, names=("kv-0", "kv-1", "kv-2"))
    keep(api, FakeNode(cluster_id))

    api.delete_and_orphan(api.stateful_sets)
    api.stateful_sets = {"kv": "s of the new size"}
    api.claims.clear()
    api.collect_garbage()

    with pytest.raises(BootstrapRefusedError, match="restore a backup"):
        permitted(api)
    record = api.record()
    assert record is not None
    assert record.cluster_id == cluster_id


def test_a_starting_node_adds_the_owners_that_a_record_of_an_earlier_version_lacks_and_changes_nothing_else() -> None:
    """There may be no leader of the new version for long."""
    api = FakeApi()
    cluster_id = permitted(api)
    api.delete_and_orphan(api.services)
    api.delete_and_orphan(api.stateful_sets)
    api.services, api.stateful_sets = {"kv-headless": "h"}, {"kv": "s of the new size"}
    before = api.maps[RECORD]

    starts(api)

    assert api.record() == ClusterRecord(cluster_id, NODE, frozenset({"c0", "h", "s of the new size"}))
    assert api.maps[RECORD].data == before.data
    assert api.requests.count("PUT") == 1


def test_a_release_that_is_installed_again_on_kept_claims_owns_the_record_again_when_its_first_node_starts() -> None:
    api = FakeApi()
    cluster_id = permitted(api, OTHER)
    api.services, api.stateful_sets = {}, {}
    api.collect_garbage()
    assert api.record() == ClusterRecord(cluster_id, OTHER, frozenset({"c0"})), "the claims keep it"
    api.services, api.stateful_sets = {"kv-headless": "h2"}, {"kv": "s2"}

    starts(api)
    api.claims.clear()
    api.collect_garbage()

    with pytest.raises(BootstrapRefusedError, match="restore a backup"):
        permitted(api)


@pytest.mark.parametrize("cascade", ["background", "orphan"])
def test_the_record_goes_with_the_last_claim_of_a_release_that_was_uninstalled(cascade: str) -> None:
    api = FakeApi()
    cluster_id = permitted(api)
    for objects in (api.services, api.stateful_sets):
        if cascade == "orphan":
            api.delete_and_orphan(objects)
        objects.clear()
    # Pods that were orphaned run on, and one of them leads.
    keep(api, FakeNode(cluster_id), seconds=100)
    api.collect_garbage()
    assert api.record() == ClusterRecord(cluster_id, "", frozenset({"c0"}))

    api.claims.clear()
    api.collect_garbage()

    assert api.record() is None
    keep(api, FakeNode(cluster_id), seconds=100)
    assert api.record() is None, "nothing would remove it"


def test_a_leader_keeps_the_record_while_the_stateful_set_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """It looks again half a minute after the one before, and not ever more rarely."""
    api = FakeApi()
    keep(api)
    api.delete_and_orphan(api.stateful_sets)

    def replaced() -> None:
        api.stateful_sets = {"kv": "s2"}

    keep(api, seconds=31, at={5: replaced})

    assert api.record() == ClusterRecord(NEW, "", frozenset({"h", "c0", "s2"}))
    assert caplog.records == []


def test_a_role_that_does_not_allow_to_read_the_service_leaves_it_out_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = FakeApi()

    async def before(request: str) -> None:
        if request == "GET Service":
            raise KubernetesError("services is forbidden", 403)

    api.before = before
    cluster_id = permitted(api)
    caplog.clear()
    keep(api, FakeNode(cluster_id), seconds=100)

    assert api.record() == ClusterRecord(cluster_id, "", UIDS)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "the Service kv-headless does not own the ConfigMap kv-cluster-id" in warning
    assert "services is forbidden" in warning


@pytest.mark.parametrize("refused", ["GET Service", "GET StatefulSet"])
def test_an_owner_that_cannot_be_looked_up_is_looked_up_again(refused: str) -> None:
    api = FakeApi()
    cluster_id = permitted(api)
    api.services = {"kv-headless": "h2"}
    failures = iter([500, 503])

    async def before(request: str) -> None:
        if request == refused and (status := next(failures, 0)):
            raise KubernetesError("no answer", status)

    api.before = before
    starts(api)

    assert api.record() == ClusterRecord(cluster_id, NODE, ALL | {"h2"})


def test_of_nodes_that_start_together_each_adds_what_the_others_have_not() -> None:
    api = FakeApi()
    cluster_id = permitted(api)
    api.stateful_sets = {"kv": "s2"}
    conflicts = iter([True])

    async def before(request: str) -> None:
        if request == "PUT" and next(conflicts, False):
            found = api.maps[RECORD]
            api.maps[RECORD] = msgspec.structs.replace(found, metadata={**found.metadata, "resourceVersion": "theirs"})

    api.before = before
    starts(api)

    assert api.record() == ClusterRecord(cluster_id, NODE, ALL | {"s2"})


def test_a_node_sees_to_the_owners_before_it_is_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi()
    permitted(api)
    api.services = {"kv-headless": "h2"}

    async def waits_for_ever(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(cluster_package, "bootstrap", waits_for_ever)

    async def scenario() -> None:
        node: Any = SimpleNamespace(
            config=Config(name="kv-1", discovery_dns="kv-headless.prod.svc.cluster.local"),
            raft=SimpleNamespace(role=Role.FOLLOWER),
            clock=SimpleNamespace(monotonic=lambda: 0.0),
            tasks=SimpleNamespace(sleep=asyncio.sleep),
        )
        source: Any = None
        fake: Any = api
        joining = asyncio.create_task(
            join_and_reconcile(node, source, fake, in_kubernetes=True, config_path="", replacements=FakeReplacements())
        )
        try:
            await until("the Service owns the record", lambda: "h2" in getattr(api.record(), "owners", ()))
        finally:
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)

    asyncio.run(scenario())


# --- The value that names a lost cluster ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f'replicas = 3\nreplace_cluster_id = "{OLD}"\n', OLD),
        ("replicas = 3\n", ""),
        ("replace_cluster_id = 3\n", ""),
        ("replace_cluster_id = \n", ""),
        (None, ""),
    ],
)
def test_the_lost_cluster_is_named_by_the_file_as_it_is_now(tmp_path: Path, text: str | None, named: str) -> None:
    path = tmp_path / "kvorum.toml"
    if text is not None:
        path.write_text(text)

    assert asyncio.run(replaceable_cluster(Config(), str(path))) == named


def test_without_a_file_the_option_names_the_lost_cluster() -> None:
    assert asyncio.run(replaceable_cluster(Config(replace_cluster_id=OLD), "")) == OLD


# --- A node ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dns", "api", "in_kubernetes", "guard"),
    [
        ("kv-headless", FakeApi(), True, RecordGuard),
        ("kv-headless", None, True, AddressGuard),
        ("nodes.example", None, False, type(None)),
        ("", None, True, type(None)),
    ],
    ids=["with the API server", "without it", "elsewhere, by DNS", "elsewhere"],
)
def test_who_has_the_last_word_follows_from_where_the_node_runs(
    dns: str, api: Any, in_kubernetes: bool, guard: type
) -> None:
    node: Any = SimpleNamespace(config=Config(name="kv-0", discovery_dns=dns), peers=None)

    assert isinstance(bootstrap_guard(node, api, nothing(), in_kubernetes=in_kubernetes), guard)


def test_a_leader_of_a_quorum_keeps_the_record_and_members_know_that_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as cluster:
            leader = await cluster.leader()
            await cluster.put(b"a", b"1")
            await cluster.converge()
            views = {name: _Recorded(node) for name, node in cluster.nodes.items()}
            assert {name for name, view in views.items() if view.leads()} == {leader.config.name}
            assert all(view.follows() for view in views.values())
            assert {view.cluster_id for view in views.values()} == {leader.identity.cluster_id}
            await cluster.stop(*(name for name in cluster.names if name != leader.config.name))
            await until("without a quorum nobody leads", lambda: not views[leader.config.name].leads())
            assert not views[leader.config.name].follows()

    asyncio.run(scenario())
