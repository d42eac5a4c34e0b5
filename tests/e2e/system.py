"""Kvorum installed in a cluster: install, look, wait; and the frame of a scenario."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from e2e.kube import Kube, eventually, run
from e2e.recording import POD, Recording, Verdict, deploy_recorder

CHART = Path(__file__).parents[2] / "deploy" / "helm"
REPLICAS_MAX = 5
READY_TIMEOUT_S = 180
SETTLE_TIMEOUT_S = 120
WRITES_OF_RECOVERY = 10
"""The service is back when this many writes were acknowledged."""
QUIET_S = 3.0
"""How long the load goes on before the fault, and after the recovery."""

Status = dict[str, Any]


class Row(msgspec.Struct):
    """One line of the report."""

    scenario: str
    passed: bool
    verdict: Verdict | None
    recovery_s: float | None
    """From the fault to the first writes acknowledged after it."""
    whole_s: float | None
    """Until every node was ready and held the same state."""
    detail: str = ""


class System:
    """The release under test.

    Args:
        kube: the cluster.
        release: the Helm release's name.
        image: ``REPOSITORY:TAG``.
        report: the folder for histories and diagnostics.
        say: shows progress.
    """

    def __init__(self, kube: Kube, release: str, image: str, report: Path, say: Callable[[str], None]) -> None:
        self.kube = kube
        self.release = release
        self.name = release if "kv" in release else f"{release}-kv"
        self.image = image
        self.report = report
        self.say = say
        self.rows: list[Row] = []
        self.histories: list[Path] = []
        """Of the scenarios since the cluster began."""

    @property
    def endpoints(self) -> list[str]:
        """The client URLs of all nodes that may be there."""
        domain = f"{self.name}-headless.{self.kube.namespace}.svc.cluster.local"
        return [f"http://{self.name}-{ordinal}.{domain}:8001" for ordinal in range(REPLICAS_MAX)]

    # --- Helm ---------------------------------------------------------------------------------------------------

    def install(self, **values: Any) -> None:
        """``helm upgrade --install`` with this image."""
        repository, _, tag = self.image.rpartition(":")
        settings = {"image": {"repository": repository, "tag": tag}, "leaderService": {"enabled": True}, **values}
        self.report.mkdir(parents=True, exist_ok=True)
        file = self.report / "values.json"
        file.write_text(json.dumps(settings))
        self.kube.helm("upgrade", "--install", self.release, str(CHART), "--values", str(file))

    def uninstall(self, *, claims: bool) -> None:
        """``helm uninstall``, and the claims too if told so; wait until the pods are gone."""
        self.kube.helm("uninstall", self.release, "--ignore-not-found", "--wait")
        eventually("the pods are gone", lambda: not self.kube.pods(self.release), 120)
        if claims:
            for claim in self.kube.claims(self.release):
                self.kube.delete_claim(claim)
            eventually("the claims are gone", lambda: not self.kube.claims(self.release), 60)

    # --- Looking ------------------------------------------------------------------------------------------------

    def pod(self, ordinal: int) -> str:
        """Return the name of a pod."""
        return f"{self.name}-{ordinal}"

    def statuses(self) -> dict[str, Status]:
        """Return what each node that answers says of itself, by name."""
        script = ["python3", "/recorder/recorder.py", "--status", "--endpoints", ",".join(self.endpoints)]
        answers = json.loads(self.kube.exec(POD, *script))
        return {status["name"]: status for status in answers.values() if status is not None}

    def leader(self) -> str:
        """Return the name of the leader that the most recent term's followers agree on."""
        found = ""

        def agreed() -> bool | str:
            nonlocal found
            statuses = self.statuses()
            latest = max((status["term"] for status in statuses.values()), default=0)
            names = {s["leader_name"] for s in statuses.values() if s["term"] == latest}
            found = next(iter(names)) or "" if len(names) == 1 else ""
            return bool(found) or f"leaders {names} of term {latest}"

        eventually("all nodes know one leader", agreed, 30)
        return found

    def follower(self) -> str:
        """Return the name of a node that does not lead."""
        leader = self.leader()
        return next(name for name in sorted(self.statuses(), reverse=True) if name != leader)

    def node_of(self, pod: str) -> str:
        """Return the Kubernetes node that a pod runs on."""
        node: str = self.kube.pods(self.release)[pod].spec.node_name
        return node

    # --- Waiting ------------------------------------------------------------------------------------------------

    def wait_ready(self, replicas: int, timeout_s: float = READY_TIMEOUT_S) -> float:
        """Wait until exactly these pods are there, and ready."""
        wanted = {self.pod(ordinal) for ordinal in range(replicas)}

        def all_ready() -> bool | str:
            pods = self.kube.pods(self.release)
            ready = {name for name, pod in pods.items() if is_ready(pod)}
            return (set(pods) == wanted and ready == wanted) or f"pods {sorted(pods)}, of them ready {sorted(ready)}"

        return eventually(f"{replicas} pods are ready", all_ready, timeout_s)

    def wait_settled(self, replicas: int, timeout_s: float = SETTLE_TIMEOUT_S) -> float:
        """Wait until all nodes are voters of one cluster, know one leader, and hold the same state."""
        return eventually(f"{replicas} nodes are settled", lambda: unsettled(self.statuses(), replicas), timeout_s)

    def ensure(self, replicas: int = 3) -> None:
        """Have a settled cluster of this size; begin anew if the last scenario left none."""
        try:
            self.kube.scale(self.name, replicas)
            self.wait_ready(replicas, 90)
            self.wait_settled(replicas, 60)
        except (AssertionError, OSError) as error:
            self.say(f"beginning anew, since the last scenario left no settled cluster: {first_line(error)}")
            self.uninstall(claims=True)
            self.histories.clear()
            self.install()
            self.wait_ready(replicas)
            self.wait_settled(replicas)

    # --- A scenario ---------------------------------------------------------------------------------------------

    @contextmanager
    def scenario(self, name: str, *, replicas: int = 3, terms_max: int = 3) -> Iterator[Scenario]:
        """Load the cluster, let the body do its worst, and judge.

        Args:
            name: for the report.
            replicas: how many nodes there are before and after.
            terms_max: how many new terms the body may cost.
        """
        self.ensure(replicas)
        scenario = Scenario(self, name)
        before = self.kube.pods(self.release)
        prefix = f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{int(time.time())}"
        history = self.report / f"{prefix}.ndjson"
        recording = Recording(self.kube, prefix, self.endpoints, history)
        row = Row(name, False, None, None, None)
        self.rows.append(row)
        self.say(f"{name} ...")
        try:
            with recording:
                scenario.recording = recording
                time.sleep(QUIET_S)
                yield scenario
                recording.wait_for_writes("writes go on at the end", WRITES_OF_RECOVERY, 60)
                time.sleep(QUIET_S)
            self.histories.append(history)
            row.verdict, row.recovery_s = recording.verdict, scenario.recovery_s
            self.wait_ready(replicas)
            self.wait_settled(replicas)
            row.whole_s = time.monotonic() - scenario.fault_at if scenario.fault_at else None
            self._judge(recording.verdict, before, scenario, terms_max)
        except BaseException as error:
            row.detail = first_line(error)
            raise
        row.passed = True
        verdict = recording.verdict
        self.say(
            f"{name}: none of {verdict.acknowledged} writes lost, longest gap {verdict.gap_ms} ms, "
            f"{verdict.terms} new terms"
        )

    def _judge(self, verdict: Verdict, before: dict[str, Any], scenario: Scenario, terms_max: int) -> None:
        assert verdict.violations == (), "\n".join(verdict.violations[:20])
        assert verdict.acknowledged > 0, "no write was acknowledged"
        assert verdict.terms <= terms_max, f"{verdict.terms} new terms, where {terms_max} would do"
        # A few writes are acknowledged between a polite deletion and the leader's end: the gap is what counts.
        within_s = scenario.within_s
        in_time = not within_s or verdict.gap_ms <= within_s * 1000
        assert in_time, f"no write for {verdict.gap_ms} ms, where {within_s} s would do"
        after = self.kube.pods(self.release)
        for name in sorted(set(before) - scenario.touched):
            assert name in after, f"{name} is gone, and nobody touched it"
            assert identity(after[name]) == identity(before[name]), f"{name} was restarted, and nobody touched it"


class Scenario:
    """What the body of a scenario tells about itself."""

    recording: Recording

    def __init__(self, system: System, name: str) -> None:
        self.system = system
        self.name = name
        self.touched: set[str] = set()
        self.recovery_s: float | None = None
        self.fault_at = 0.0
        self.within_s = 0.0
        """The longest that the service may be away: the largest that the body gave :meth:`recovered`."""

    def fault(self, what: str, *touched: str) -> None:
        """Say what is done now, and to which pods."""
        self.touched.update(touched)
        self.recording.mark(what)
        self.fault_at = time.monotonic()

    def recovered(self, within_s: float) -> None:
        """Wait until writes are acknowledged again, and note how long that took since the fault."""
        self.within_s = max(self.within_s, within_s)
        self.recording.wait_for_writes("writes are acknowledged again", WRITES_OF_RECOVERY, within_s)
        self.recovery_s = time.monotonic() - self.fault_at


def is_ready(pod: Any) -> bool:
    """Tell whether a pod is ready, and not about to go."""
    conditions = pod.status.conditions or []
    return pod.metadata.deletion_timestamp is None and any(c.type == "Ready" and c.status == "True" for c in conditions)


def identity(pod: Any) -> tuple[str, int]:
    """Return what changes when a pod, or its container, is replaced."""
    return pod.metadata.uid, sum(status.restart_count for status in pod.status.container_statuses or [])


def unsettled(statuses: dict[str, Status], replicas: int) -> bool | str:
    """Return True when the nodes are settled, else why they are not."""
    if len(statuses) != replicas:
        return f"{sorted(statuses)} answer"
    clusters = {status["cluster_id"] for status in statuses.values()}
    leaders = {(status["term"], status["leader"]) for status in statuses.values()}
    if len(clusters) != 1 or len(leaders) != 1 or None in next(iter(leaders)):
        return f"clusters {clusters}, leaders {leaders}"
    wanted = {status["id"] for status in statuses.values()}
    for name, status in statuses.items():
        members = {member["id"]: member["voter"] for member in status["members"]}
        if set(members) != wanted or not all(members.values()):
            return f"{name} has the members {members}"
        if status.get("quarantined"):
            return f"{name} is quarantined: {status['quarantined']}"
    states = {(status["applied_index"], status["revision"], status["state_hash"]) for status in statuses.values()}
    return len(states) == 1 or f"states {sorted(states)}"


def first_line(error: BaseException) -> str:
    """Return an error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def collect(system: System, folder: Path) -> None:
    """Keep what helps to understand a failure: pods, events, logs with those before a restart, status and metrics."""
    kube = system.kube
    folder.mkdir(parents=True, exist_ok=True)

    def keep(name: str, *arguments: str) -> None:
        # What cannot be had, say from a paused node, must not hide the rest.
        try:
            (folder / name).write_text(kube.kubectl(*arguments, timeout_s=30, check=False))
        except subprocess.TimeoutExpired as error:
            (folder / name).write_text(f"{error}\n")

    keep("pods.txt", "get", "pods,pvc,statefulset,pdb,endpointslices", "-o", "wide")
    keep("pods.yaml", "get", "pods", "-o", "yaml")
    keep("describe.txt", "describe", "pods")
    keep("events.txt", "get", "events", "--sort-by=.lastTimestamp")
    keep("nodes.txt", "get", "nodes", "-o", "wide")
    for pod in kube.pods(system.release):
        keep(f"{pod}.log", "logs", pod, "--tail=20000")
        keep(f"{pod}.previous.log", "logs", pod, "--previous", "--tail=20000")
        for path, port in (("v1/cluster", 8001), ("metrics", 8002), ("readyz?verbose", 8002)):
            url = f"http://127.0.0.1:{port}/{path}"
            code = f"import urllib.request as u; print(u.urlopen('{url}', timeout=5).read().decode())"
            keep(f"{pod}.{path.split('?')[0].replace('/', '-')}.txt", "exec", pod, "--", "python3", "-c", code)


def prepare(system: System) -> None:
    """Install everything for the first time in this run."""
    system.kube.ensure_namespace()
    deploy_recorder(system.kube, system.image)
    if run(system.kube.kubectl_command("get", "statefulset", system.name, "--ignore-not-found", "-o", "name")):
        system.say("an earlier run's release is removed")
    system.uninstall(claims=True)
    system.install()
    system.wait_ready(3)
    system.wait_settled(3)
