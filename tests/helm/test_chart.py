"""What the chart renders, for many values: the rules of Kubernetes that cost clusters, one test each."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import kvorum
from kvorum.cluster.kubernetes import ROLE_LABEL
from kvorum.cluster.record import CLAIMS_MAX, Release, record_name
from kvorum.config import REPLICAS_MAX, Config, resolve
from kvorum.config.options import MIB
from kvorum.config.sources import _convert, load, options
from kvorum.errors import ConfigError

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm"
HELM = shutil.which("helm")

pytestmark = pytest.mark.skipif(HELM is None, reason="helm is not installed")

Document = dict[str, Any]
ON = {"enabled": True}
VALUE_SETS: dict[str, Document] = {
    "defaults": {},
    "one": {"replicaCount": 1},
    "five": {"replicaCount": 5},
    "seven": {"replicaCount": 7, "podAntiAffinity": "hard", "zoneSpread": "hard"},
    "bare": {
        "persistence": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "podAntiAffinity": "none",
        "zoneSpread": "none",
        "kubernetesApi": {"enabled": False},
        "serviceAccount": {"create": False},
    },
    "monitored": {"monitoring": {"podMonitor": ON, "prometheusRule": ON, "dashboard": ON}},
    "service monitor": {"monitoring": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}},
    "everything": {
        "replicaCount": 5,
        "image": {"repository": "registry.example/kvorum", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "fullnameOverride": "store",
        "clusterDomain": "corp.example",
        "listenHost": "[::]",
        "commonLabels": {"team": "storage"},
        "config": {"election_timeout_ms": 1000, "snapshot_bytes": 268435456, "forward": True, "body_timeout_s": 2.5},
        "serviceAccount": {"name": "store-account", "annotations": {"a": "b"}},
        "service": {"type": "NodePort", "port": 80, "nodePort": 30080, "annotations": {"a": "b"}},
        "leaderService": ON,
        "persistence": {
            "storageClass": "fast",
            "size": "100Gi",
            "annotations": {"a": "b"},
            "retentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
        },
        "terminationGracePeriodSeconds": 90,
        "minReadySeconds": 5,
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "db", "operator": "Exists"}],
        "priorityClassName": "high",
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"app": "x"}}}],
            "metrics": [{"namespaceSelector": {}}],
        },
        "monitoring": {"podMonitor": ON, "prometheusRule": ON, "dashboard": ON},
        "podLabels": {"sidecar.istio.io/inject": "false"},
        "podAnnotations": {"a": "b"},
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "initContainers": [{"name": "first", "image": "busybox"}],
        "sidecars": [{"name": "side", "image": "busybox"}],
        "tests": {"annotations": {"a": "b"}},
    },
}


def helm(*arguments: str, values: Document | None = None) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    return subprocess.run(
        [HELM, *arguments, "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def render(values: Document | None = None, release: str = "kv") -> list[Document]:
    return copy.deepcopy(_rendered(json.dumps(values or {}), release))


@functools.cache
def _rendered(values: str, release: str) -> list[Document]:
    """Render once for each set of values: helm takes a third of a second."""
    result = helm(
        "template", release, str(CHART), "--namespace", "prod", "--kube-version", "1.34", values=json.loads(values)
    )
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def the(documents: list[Document], kind: str, name: str = "") -> Document:
    found = [d for d in documents if d["kind"] == kind and name in ("", d["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} documents of kind {kind} {name}"
    return found[0]


def kinds(documents: list[Document]) -> list[str]:
    return [document["kind"] for document in documents]


def pod_spec(documents: list[Document]) -> Document:
    spec: Document = the(documents, "StatefulSet")["spec"]["template"]["spec"]
    return spec


def environment(documents: list[Document]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in pod_spec(documents)["containers"][0]["env"]}


ALL = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())


@ALL
def test_lint_is_strict_and_clean(values: Document) -> None:
    result = helm("lint", "--strict", str(CHART), "--kube-version", "1.34", values=values)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[WARNING]" not in result.stdout


@ALL
def test_no_object_is_rendered_twice_and_all_are_in_the_namespace(values: Document) -> None:
    documents = render(values)
    names = [(d["apiVersion"], d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(names) == len(set(names))
    assert {d["metadata"].get("namespace") for d in documents} == {"prod"}


@ALL
def test_no_environment_variable_is_named_twice(values: Document) -> None:
    names = [entry["name"] for entry in pod_spec(render(values))["containers"][0]["env"]]
    assert len(names) == len(set(names))


@ALL
def test_the_environment_is_a_configuration_that_the_node_accepts(values: Document) -> None:
    documents = render(values)
    given = environment(documents)
    given["KVORUM_NAME"] = "kv-0"
    by_env = {option.env: option for option in options()}
    unknown = [name for name in given if name.startswith("KVORUM_") and name not in by_env and name != "KVORUM_CONFIG"]
    assert unknown == []
    config = loaded(given, documents)
    assert config.replicas == values.get("replicaCount", 3)
    assert config.advertise_peer_url.startswith("http://kv-0.")


def loaded(given: dict[str, str], documents: list[Document]) -> Config:
    """Load the configuration as the node would: from the environment and from the mounted file."""
    name = the(documents, "StatefulSet")["metadata"]["name"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kvorum.toml"
        path.write_text(the(documents, "ConfigMap", f"{name}-cluster")["data"]["kvorum.toml"])
        environ = {**given, "KVORUM_CONFIG": str(path)}
        return load({}, environ, host_name="unused")[0]


@ALL
def test_pods_pass_pod_security_restricted(values: Document) -> None:
    documents = render(values)
    for spec in (pod_spec(documents), the(documents, "Pod")["spec"]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        container = spec["containers"][0]["securityContext"]
        assert container["allowPrivilegeEscalation"] is False
        assert container["capabilities"] == {"drop": ["ALL"]}
        assert container["readOnlyRootFilesystem"] is True
        assert not any(volume.get("hostPath") for volume in spec.get("volumes", []))


@ALL
def test_service_links_are_off_since_they_would_inject_kv_port(values: Document) -> None:
    documents = render(values)
    assert pod_spec(documents)["enableServiceLinks"] is False
    assert the(documents, "Pod")["spec"]["enableServiceLinks"] is False


@ALL
def test_all_pods_start_and_stop_at_once(values: Document) -> None:
    assert the(render(values), "StatefulSet")["spec"]["podManagementPolicy"] == "Parallel"


def test_the_pod_template_does_not_change_with_the_replica_count() -> None:
    sets = [the(render({"replicaCount": count}), "StatefulSet")["spec"] for count in (1, 3, 5, 7)]
    assert [spec.pop("replicas") for spec in sets] == [1, 3, 5, 7]
    assert all(one == other for one, other in itertools.pairwise(sets))


def test_the_pod_template_does_not_change_with_the_charts_version() -> None:
    assert "helm.sh/chart" not in the(render(), "StatefulSet")["spec"]["template"]["metadata"]["labels"]


def test_the_claims_carry_the_selector_labels_only_since_they_can_never_change() -> None:
    spec = the(render({"commonLabels": {"team": "x"}}), "StatefulSet")["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert claim["metadata"]["labels"] == spec["selector"]["matchLabels"]


@ALL
def test_the_claims_are_kept_unless_told_otherwise(values: Document) -> None:
    spec = the(render(values), "StatefulSet")["spec"]
    policy = values.get("persistence", {}).get("retentionPolicy", {"whenDeleted": "Retain", "whenScaled": "Retain"})
    if values.get("persistence", {}).get("enabled", True):
        assert spec["persistentVolumeClaimRetentionPolicy"] == policy
    else:
        assert "volumeClaimTemplates" not in spec


@ALL
def test_liveness_never_asks_for_a_quorum_and_startup_has_ten_minutes(values: Document) -> None:
    container = pod_spec(render(values))["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    startup = container["startupProbe"]
    assert startup["httpGet"]["path"] == "/livez"
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listening = environment(render(values))["KVORUM_LISTEN_METRICS"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert listening.endswith(f":{ports[container[probe]['httpGet']['port']]}")


@ALL
def test_stopping_is_the_processs_own_business_and_ends_before_the_kubelets_patience(values: Document) -> None:
    documents = render(values)
    spec = pod_spec(documents)
    assert "lifecycle" not in spec["containers"][0]
    assert float(environment(documents)["KVORUM_SHUTDOWN_GRACE_S"]) + 5 <= spec["terminationGracePeriodSeconds"]
    assert "command" not in spec["containers"][0], "a shell in between would not pass SIGTERM on"


@ALL
def test_nodes_are_found_before_they_are_ready(values: Document) -> None:
    documents = render(values)
    stateful_set = the(documents, "StatefulSet")
    service = the(documents, "Service", stateful_set["spec"]["serviceName"])
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["clusterIP"] == "None"
    domain = values.get("clusterDomain", "cluster.local")
    found_at = environment(documents)["KVORUM_DISCOVERY_DNS"]
    assert found_at == f"{service['metadata']['name']}.prod.svc.{domain}"


@ALL
def test_every_selector_selects_the_nodes_and_not_the_test(values: Document) -> None:
    documents = render(values)
    labels = the(documents, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    test_labels = the(documents, "Pod")["metadata"]["labels"]
    selectors = [d["spec"]["selector"] for d in documents if d["kind"] == "Service"]
    selectors += [d["spec"]["selector"]["matchLabels"] for d in documents if d["kind"] == "PodDisruptionBudget"]
    selectors += [d["spec"]["podSelector"]["matchLabels"] for d in documents if d["kind"] == "NetworkPolicy"]
    for selector in selectors:
        selector = {key: value for key, value in selector.items() if key != "kvorum.io/role"}
        assert selector.items() <= labels.items()
        assert not selector.items() <= test_labels.items()


@ALL
def test_a_disruption_budget_is_there_before_kubectl_scale_adds_nodes_and_never_holds_up_a_single_one(
    values: Document,
) -> None:
    documents = render(values)
    wanted = values.get("podDisruptionBudget", ON)["enabled"]
    assert ("PodDisruptionBudget" in kinds(documents)) == wanted
    if wanted:
        assert the(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_peer_port_is_open_to_peers_only() -> None:
    documents = render()
    policy = the(documents, "NetworkPolicy")["spec"]
    selector = the(documents, "StatefulSet")["spec"]["selector"]
    rules = [rule for rule in policy["ingress"] if {"port": "peer"} in rule["ports"]]
    assert [rule["from"] for rule in rules] == [[{"podSelector": selector}]]
    open_to_all = [rule["ports"] for rule in policy["ingress"] if not rule.get("from")]
    assert open_to_all == [[{"port": "metrics"}]]


@ALL
def test_the_pod_of_helm_test_reaches_the_client_port_whoever_else_may(values: Document) -> None:
    documents = render(values)
    if "NetworkPolicy" not in kinds(documents):
        return
    labels = the(documents, "Pod")["metadata"]["labels"]
    peers = [
        peer
        for rule in the(documents, "NetworkPolicy")["spec"]["ingress"]
        if {"port": "client"} in rule["ports"] and {"port": "peer"} not in rule["ports"]
        for peer in rule["from"]
    ]
    assert {"podSelector": {"matchLabels": labels}} in peers
    clients = values.get("networkPolicy", {}).get("clients", [{"podSelector": {}}])
    assert peers[1:] == clients


@ALL
def test_the_role_allows_what_the_nodes_ask_of_their_own_objects_and_nothing_else(
    values: Document,
) -> None:
    documents = render(values)
    spec = pod_spec(documents)
    if not values.get("kubernetesApi", ON)["enabled"]:
        assert "Role" not in kinds(documents)
        assert spec["automountServiceAccountToken"] is False
        return
    assert spec["automountServiceAccountToken"] is True
    name = the(documents, "StatefulSet")["metadata"]["name"]
    # As the node derives it, which owns the record of the cluster.
    headless = Release.of(loaded({**environment(documents), "KVORUM_NAME": f"{name}-0"}, documents)).service
    assert headless in [document["metadata"]["name"] for document in documents if document["kind"] == "Service"]
    assert the(documents, "Role")["rules"] == [
        {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": [name], "verbs": ["get"]},
        {
            "apiGroups": [""],
            "resources": ["pods"],
            # `kubectl scale` knows no schema: a leader beyond the seventh pod must be able to say that it leads.
            "resourceNames": [f"{name}-{ordinal}" for ordinal in range(REPLICAS_MAX)],
            "verbs": ["patch"],
        },
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [record_name(name)],
            "verbs": ["get", "update"],
        },
        {"apiGroups": [""], "resources": ["services"], "resourceNames": [headless], "verbs": ["get"]},
        {
            "apiGroups": [""],
            "resources": ["persistentvolumeclaims"],
            "resourceNames": [f"data-{name}-{ordinal}" for ordinal in range(CLAIMS_MAX)],
            "verbs": ["get"],
        },
    ]
    (subject,) = the(documents, "RoleBinding")["subjects"]
    assert subject["name"] == spec["serviceAccountName"]


def test_a_lost_cluster_is_named_in_the_file_that_pods_read_while_they_run() -> None:
    """In the pod template it would reach the pods one after another, each waiting until the one before is ready."""
    lost = {"replaceClusterId": "0123456789abcdef" * 2}
    documents = render(lost)
    assert (
        loaded({**environment(documents), "KVORUM_NAME": "kv-0"}, documents).replace_cluster_id
        == lost["replaceClusterId"]
    )
    assert the(documents, "StatefulSet") == the(render(), "StatefulSet")
    # An image of an earlier version refuses what it does not know.
    assert "replace_cluster_id" not in the(render(), "ConfigMap", "kv-cluster")["data"]["kvorum.toml"]


@ALL
def test_the_chart_does_not_manage_the_record_of_the_cluster(values: Document) -> None:
    documents = render(values)
    name = the(documents, "StatefulSet")["metadata"]["name"]
    assert record_name(name) not in [document["metadata"]["name"] for document in documents]


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("kv", {}, "kv"),
        ("prod-kv", {}, "prod-kv"),
        ("prod", {}, "prod-kv"),
        ("prod", {"nameOverride": "store"}, "prod-store"),
        ("prod", {"fullnameOverride": "store"}, "store"),
        ("a" * 53, {}, "a" * 52),
    ],
)
def test_pods_are_named_after_the_release(release: str, values: Document, name: str) -> None:
    documents = render(values, release=release)
    assert the(documents, "StatefulSet")["metadata"]["name"] == name
    assert all(len(document["metadata"]["name"]) <= 63 for document in documents)


def test_knobs_become_environment_variables_with_numbers_as_they_were_written() -> None:
    found = environment(render(VALUE_SETS["everything"]))
    assert found["KVORUM_SNAPSHOT_BYTES"] == "268435456"
    assert found["KVORUM_ELECTION_TIMEOUT_MS"] == "1000"
    assert found["KVORUM_FORWARD"] == "true"
    assert found["KVORUM_BODY_TIMEOUT_S"] == "2.5"


def test_nodes_know_the_names_of_their_services_and_those_that_the_user_adds() -> None:
    documents = render({"config": {"hosts": "keys.example.com"}})
    names = {document["metadata"]["name"] for document in documents if document["kind"] == "Service"}
    hosts = environment(documents)["KVORUM_HOSTS"].split(",")
    assert names <= set(hosts)
    assert hosts[-1] == "keys.example.com"
    assert "keys.example.com" not in environment(render())["KVORUM_HOSTS"]


@ALL
def test_a_node_serves_on_while_kube_proxy_learns_that_it_stops_and_then_has_time_to_hand_over(
    values: Document,
) -> None:
    given = environment(render(values))
    assert float(given["KVORUM_SHUTDOWN_DELAY_S"]) == 4
    assert float(given["KVORUM_SHUTDOWN_GRACE_S"]) >= 10


@pytest.mark.parametrize(
    ("config", "delay_s"),
    [
        ({"shutdown_grace_s": 5}, 2.5),
        ({"shutdown_grace_s": 0}, 0),
        ({"shutdown_delay_s": 0}, 0),
        ({"shutdown_delay_s": 10.5}, 10.5),
    ],
)
def test_the_time_for_which_a_node_serves_on_fits_into_its_grace_period(config: Document, delay_s: float) -> None:
    documents = render({"config": config})
    given = environment(documents)
    assert float(given["KVORUM_SHUTDOWN_DELAY_S"]) == delay_s
    given["KVORUM_NAME"] = "kv-0"
    assert loaded(given, documents).shutdown_delay_s == delay_s


@ALL
def test_a_version_that_dies_within_fifteen_seconds_stops_the_rollout_at_its_first_pod(values: Document) -> None:
    """A pod that was never ready for so long is not available, and the controller waits for it."""
    assert the(render(values), "StatefulSet")["spec"]["minReadySeconds"] == values.get("minReadySeconds", 15)


@pytest.mark.parametrize(
    ("resources", "request_", "limit"),
    [
        ({}, "1Gi", "1Gi"),
        ({"limits": {"memory": "4Gi"}}, "4Gi", "4Gi"),
        ({"requests": {"memory": "2Gi"}, "limits": {"memory": "4Gi"}}, "2Gi", "4Gi"),
        ({"limits": {"memory": None}}, None, None),
    ],
)
def test_a_node_asks_for_the_memory_that_it_may_use_since_others_are_evicted_first(
    resources: Document, request_: str | None, limit: str | None
) -> None:
    found = pod_spec(render({"resources": resources}))["containers"][0]["resources"]
    assert found["requests"].get("memory") == request_
    assert (found.get("limits") or {}).get("memory") == limit
    assert found["requests"]["cpu"] == "250m"


def test_without_volumes_no_limit_evicts_all_nodes_at_once_and_their_disks_are_asked_for() -> None:
    spec = pod_spec(render({"persistence": {"enabled": False, "size": "5Gi"}}))
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "data")
    assert volume == {"name": "data", "emptyDir": {}}
    resources = spec["containers"][0]["resources"]
    assert resources["requests"]["ephemeral-storage"] == "5Gi"
    assert "ephemeral-storage" not in resources["limits"]
    with_volumes = pod_spec(render())["containers"][0]["resources"]
    assert "ephemeral-storage" not in with_volumes["requests"]


def test_a_release_without_volumes_is_told_what_it_loses(tmp_path: Path) -> None:
    for enabled in (True, False):
        values = {"persistence": {"enabled": enabled}}
        assert ("WARNING: Nothing is stored on volumes" in notes(tmp_path, values)) is not enabled


def notes(folder: Path, values: Document) -> str:
    """Return what `helm install` would print; without a cluster, helm renders templates only."""
    chart = folder / "chart"
    if not chart.exists():
        shutil.copytree(CHART, chart)
        (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
        (chart / "templates" / "notes.yaml").write_text('notes: |{{ tpl (.Files.Get "notes.txt") . | nindent 2 }}\n')
    result = helm(
        "template", "kv", str(chart), "--kube-version", "1.34", "--show-only", "templates/notes.yaml", values=values
    )
    assert result.returncode == 0, result.stderr
    text: str = yaml.safe_load(result.stdout)["notes"]
    return text


CLIENTS = [{"ipBlock": {"cidr": "192.0.2.0/24"}}]


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_clients_outside_of_the_cluster_are_forwarded_since_they_cannot_follow_a_redirect_to_a_pod(
    tmp_path: Path, kind: str
) -> None:
    exposed = {"service": {"type": kind}, "networkPolicy": {"clients": CLIENTS}}
    documents = render(exposed)
    assert environment(documents)["KVORUM_FORWARD"] == "true"
    rules = the(documents, "NetworkPolicy")["spec"]["ingress"]
    assert any(peer == CLIENTS[0] for rule in rules for peer in rule.get("from", []))
    own = environment(render({**exposed, "config": {"forward": False}}))
    assert own["KVORUM_FORWARD"] == "false"
    assert environment(render())["KVORUM_FORWARD"] == "", "unset"
    assert "The nodes forward writes to the leader" in notes(tmp_path, exposed)
    assert "config.hosts" in notes(tmp_path, exposed)


@pytest.mark.parametrize("grace_s", [40, 0.5, 30, 0])
def test_a_grace_period_that_fits_is_taken(grace_s: float) -> None:
    assert environment(render({"config": {"shutdown_grace_s": grace_s}}))["KVORUM_SHUTDOWN_GRACE_S"] == str(grace_s)


def test_a_digest_wins_over_the_tag() -> None:
    image = pod_spec(render({"image": {"tag": "x", "digest": "sha256:" + "a" * 64}}))["containers"][0]["image"]
    assert image == "kvorum@sha256:" + "a" * 64


def test_the_leader_service_selects_by_the_label_that_the_leader_gives_itself() -> None:
    selector = the(render({"leaderService": ON}), "Service", "kv-leader")["spec"]["selector"]
    assert selector[ROLE_LABEL] == "leader"
    assert [d["metadata"]["name"] for d in render() if d["kind"] == "Service"] == ["kv", "kv-headless"]


def test_the_dashboard_and_the_alerts_arrive_untouched() -> None:
    documents = render(VALUE_SETS["monitored"])
    board = the(documents, "ConfigMap", "kv-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["kvorum.json"]) == json.loads((CHART / "dashboards/kvorum.json").read_text())
    rules = yaml.safe_load((CHART / "rules/kvorum-alerts.yaml").read_text())
    assert the(documents, "PrometheusRule")["spec"] == rules


@pytest.mark.parametrize("base", ["https://git.example/kvorum/docs/runbooks", "http://runbooks.example/kv/"])
def test_the_runbook_of_an_alert_is_a_link_where_its_readers_have_the_pages(base: str) -> None:
    rule = {"enabled": True, "runbookBaseUrl": base}
    rules = the(render({"monitoring": {"prometheusRule": rule}}), "PrometheusRule")["spec"]["groups"]
    urls = [alert["annotations"]["runbook_url"] for group in rules for alert in group["rules"]]
    pages = [url.removeprefix(f"{base.rstrip('/')}/") for url in urls]
    assert len(pages) > 20
    assert all((ROOT / "docs" / "runbooks" / page).is_file() and "/" not in page for page in pages), urls


def test_the_service_monitor_scrapes_each_node_once() -> None:
    documents = render(VALUE_SETS["service monitor"])
    monitor = the(documents, "ServiceMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"]
    selected = [d for d in documents if d["kind"] == "Service" and selector.items() <= d["metadata"]["labels"].items()]
    assert [service["metadata"]["name"] for service in selected] == ["kv-headless"]
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in selected[0]["spec"]["ports"]]


REFUSED = {
    "even replicas": ({"replicaCount": 4}, "replicaCount"),
    "no replicas": ({"replicaCount": 0}, "replicaCount"),
    "nine replicas": ({"replicaCount": 9}, "replicaCount"),
    "an unknown value": ({"replicas": 3}, "replicas"),
    "a misspelt nested value": ({"persistence": {"storageclass": "x"}}, "storageclass"),
    "a option that the chart sets": ({"config": {"listen_client": "0.0.0.0:1"}}, "listen_client"),
    "our variables among extraEnv": ({"extraEnv": [{"name": "KVORUM_TICK_MS", "value": "1"}]}, "extraEnv"),
    "a sidecar named like the node": ({"sidecars": [{"name": "kvorum"}]}, "sidecars"),
    "a volume named like ours": ({"extraVolumes": [{"name": "data"}]}, "extraVolumes"),
    "clients empty, which would admit everybody": ({"networkPolicy": {"clients": []}}, "clients"),
    "a digest that is none": ({"image": {"digest": "abc"}}, "digest"),
    "a grace too short to drain": ({"terminationGracePeriodSeconds": 5}, "terminationGracePeriodSeconds"),
    "a grace that the kubelet cuts short": ({"config": {"shutdown_grace_s": 41}}, "shutdown_grace_s is 41"),
    "an option that is misspelt": ({"config": {"electon_timeout_ms": 1000}}, "electon_timeout_ms"),
    "an option beyond its limits": ({"config": {"election_timeout_ms": 10}}, "election_timeout_ms"),
    "an option of another type": ({"config": {"forward": 3}}, "forward"),
    "serving on through the whole grace": ({"config": {"shutdown_delay_s": 40}}, "shutdown_delay_s is 40"),
    "a leader that nobody labels": (
        {"kubernetesApi": {"enabled": False}, "leaderService": ON},
        "leaderService.enabled needs kubernetesApi.enabled",
    ),
    "a load balancer that nobody may use": ({"service": {"type": "LoadBalancer"}}, "List your clients there"),
    "the number that is there, where there is none": ({"replicaCount": None}, "set replicaCount"),
    "a cluster id that is none": ({"replaceClusterId": "kv"}, "replaceClusterId"),
    "a lost cluster among the options": ({"config": {"replace_cluster_id": "0" * 32}}, "replace_cluster_id"),
    "runbooks at no URL": ({"monitoring": {"prometheusRule": {"runbookBaseUrl": "docs/x"}}}, "runbookBaseUrl"),
    "two monitors": ({"monitoring": {"podMonitor": ON, "serviceMonitor": ON}}, "scrape every node twice"),
}


@pytest.mark.parametrize(("values", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_values_are_refused_with_their_name(values: Document, says: str) -> None:
    result = helm("template", "kv", str(CHART), "--kube-version", "1.34", values=values)
    assert result.returncode != 0
    assert says in result.stderr


def test_the_schema_has_every_option_of_a_node_but_those_that_the_chart_sets_itself() -> None:
    script = _script("config_schema")
    text = (CHART / "values.schema.json").read_text()
    assert text == script.updated(text), "run python deploy/config_schema.py"
    assert (CHART / "options.txt").read_text().split() == script.option_names(), "run python deploy/config_schema.py"
    allowed = set(json.loads(text)["properties"]["config"]["properties"])
    names = {field.name for field in options()}
    assert allowed <= names
    reserved = names - allowed
    rendered = environment(render())
    set_by_the_chart = {name.removeprefix("KVORUM_").lower() for name in rendered if rendered[name]} - {"config"}
    # The value of this one comes from the pod.
    set_by_the_chart.add("name")
    # These may be set as well: the chart takes the value, or adds it to its own.
    assert set_by_the_chart - {"shutdown_grace_s", "shutdown_delay_s", "hosts"} <= reserved
    own = environment(render({"config": {"hosts": "keys.example.com"}}))["KVORUM_HOSTS"].split(",")
    assert own == [*environment(render())["KVORUM_HOSTS"].split(","), "keys.example.com"]


SCHEMA = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
NUMBERS = {name: field for name, field in SCHEMA.items() if field["type"] in ("integer", "number")}
SWITCHES = [name for name, field in SCHEMA.items() if field["type"] == "boolean"]
ROOMY = {"terminationGracePeriodSeconds": 3600}
"""So that the grace period leaves room for any ``shutdown_delay_s``."""


@pytest.mark.parametrize("limit", ["minimum", "maximum"])
def test_every_option_may_have_its_lowest_and_its_highest_value_and_the_node_takes_it(limit: str) -> None:
    config = {name: field[limit] for name, field in NUMBERS.items()} | dict.fromkeys(SWITCHES, limit == "maximum")
    config["shutdown_grace_s"] = min(config["shutdown_grace_s"], ROOMY["terminationGracePeriodSeconds"] - 5)
    found = environment(render({"config": config, **ROOMY}))
    for option in options():
        if option.name in config:
            # By itself: the node also refuses options that contradict each other.
            assert _convert(option, found[option.env], "") == config[option.name]


def test_the_quota_of_a_node_is_none_or_at_least_a_mebibyte() -> None:
    for quota_bytes in (0, MIB):
        documents = render({"config": {"quota_bytes": quota_bytes}})
        config = loaded({**environment(documents), "KVORUM_NAME": "kv-0"}, documents)
        assert config.quota_bytes == quota_bytes
    for quota_bytes in (1, MIB - 1):
        with pytest.raises(ConfigError, match="less than 1 MiB"):
            resolve(Config(quota_bytes=quota_bytes), host_name="n1")


def refused(config: Document) -> set[str]:
    """Return the options of the value ``config`` that the schema refuses."""
    result = helm("template", "kv", str(CHART), "--kube-version", "1.34", values={"config": config, **ROOMY})
    assert result.returncode != 0
    return set(re.findall("at '/config/([a-z_]+)'", result.stderr))


@pytest.mark.parametrize(
    "config",
    [
        dict.fromkeys((*NUMBERS, *SWITCHES), "abc"),
        {name: str(field["minimum"]) for name, field in NUMBERS.items()} | dict.fromkeys(SWITCHES, "true"),
        {name: field["minimum"] - 1 for name, field in NUMBERS.items()},
        # Helm reads 2**53 + 1 as 2**53.
        {name: field["maximum"] + 2 for name, field in NUMBERS.items()},
        {name: field["minimum"] + 0.5 for name, field in NUMBERS.items() if field["type"] == "integer"},
        dict.fromkeys(NUMBERS, True),
        dict.fromkeys(SWITCHES, 1),
        {"quota_bytes": 1},
        {"quota_bytes": MIB - 1},
        {"history_age_s": 359, "history_bytes_max": MIB - 1},
        {"finalize_after": "soon"},
        {"log_level": "loud", "log_format": "xml", "uvloop": "perhaps"},
        {name: 3 for name, field in SCHEMA.items() if field["type"] == "string"},
    ],
    ids=[
        *("words", "numbers as texts", "too low", "too high", "fractions", "switches", "a number for a switch"),
        *("a quota of a byte", "almost a quota", "too little history", "no time", "no choice", "numbers for texts"),
    ],
)
def test_an_option_of_another_type_or_beyond_its_limits_is_refused(config: Document) -> None:
    assert refused(config) == set(config)


def test_numbers_and_switches_are_what_they_look_like_on_the_command_line() -> None:
    given = {
        "--set": "config.election_timeout_ms=1000,config.forward=true",
        "--set-json": "config.trace_ratio=0.5",
        "--set-string": "config.finalize_after=0",
    }
    arguments = [part for flag in given.items() for part in flag]
    result = helm("template", "kv", str(CHART), "--kube-version", "1.34", *arguments)
    assert result.returncode == 0, result.stderr
    found = environment([document for document in yaml.safe_load_all(result.stdout) if document])
    names = ("ELECTION_TIMEOUT_MS", "FORWARD", "TRACE_RATIO", "FINALIZE_AFTER")
    assert [found[f"KVORUM_{name}"] for name in names] == ["1000", "true", "0.5", "0"]
    text = helm("template", "kv", str(CHART), "--kube-version", "1.34", "--set-string", "config.tick_ms=5")
    assert "at '/config/tick_ms': got string, want integer" in text.stderr


def merged(live: dict[str, str], before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Return the environment of a pod template after Helm applied a release: it compares by name.

    Args:
        live: what is there.
        before: of the manifest of the release before, which may have failed.
        after: of the manifest of this one.
    """
    return {name: value for name, value in live.items() if name not in before.keys() - after.keys()} | after


def test_a_rollback_sets_every_option_back_whatever_failed_in_between() -> None:
    good = environment(render({"config": {"election_timeout_ms": 1000}}))
    # The API server refused this one: its manifest is that of a release, and nothing of it is there.
    failed = environment(render({"config": {"election_timeout_ms": 1000}, "resources": {"limits": {"memory": "foo"}}}))
    bad = environment(render({"config": {"quota_bytes": MIB, "forward": True}}))
    live = merged(good, good, bad)
    assert live["KVORUM_QUOTA_BYTES"] == str(MIB)

    # `helm rollback` goes to the release before, which is refused again; the next one goes to the good release.
    live = merged(live, failed, good)

    assert live == good


@ALL
def test_every_release_names_every_option_of_a_node(values: Document) -> None:
    assert environment(render(values)).keys() >= {option.env for option in options() if option.name in SCHEMA}


def test_every_value_is_in_the_schema_and_documented() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    table = _script("values_table")
    readme = (CHART / "README.md").read_text()
    assert readme == table.updated(readme, (CHART / "values.yaml").read_text()), "run python deploy/values_table.py"
    for key in values:
        assert re.search(rf"^\| `{key}[.`]", readme, re.MULTILINE), f"{key} is not documented"


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_chart_the_image_and_the_package_have_the_same_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == kvorum.__version__
    assert f"ARG VERSION={kvorum.__version__}\n" in (ROOT / "Dockerfile").read_text()
