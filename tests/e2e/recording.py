"""The load on the cluster while something is done to it, and the judgement of what its clients were told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from e2e.kube import Kube, eventually
from e2e.pod_process import PodProcess
from sim.history import Operation
from sim.linearizability import check_history

POD = "recorder"
RECORDER = Path(__file__).with_name("recorder.py")
WRITER = Path(__file__).with_name("writer.py")
FORWARDER = Path(__file__).with_name("forwarder.py")
READ_BACK_TIMEOUT_S = 120
UNRETRIED_WRITES_MIN = 200


class Verdict(msgspec.Struct, frozen=True):
    """What a recording showed."""

    acknowledged: int
    operations: int
    unknown: int
    """Writes whose outcome their client never learned."""
    seconds: float
    gap_ms: int
    """The longest time without an acknowledged write."""
    gap_at_s: float
    """When it began, from the start of the recording."""
    terms: int
    """Terms in which a leader was seen while it ran, beyond the first. Their numbers have gaps."""
    violations: tuple[str, ...]


def deploy_recorder(kube: Kube, image: str) -> None:
    """Start the pod that recorders run in; on a control plane node if it can, since the others will suffer."""
    files = [f"--from-file={file}" for file in (RECORDER, WRITER, FORWARDER)]
    script = kube.kubectl("create", "configmap", POD, *files, "--dry-run=client", "-o", "json")
    kube.kubectl("apply", "-f", "-", stdin=script)
    container = {
        "name": POD,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "script", "mountPath": "/recorder"}],
    }
    preference = {"matchExpressions": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "labels": {"app": POD}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "affinity": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": preference}]
                }
            },
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "script", "configMap": {"name": POD}}],
        },
    }
    kube.kubectl("delete", "pod", POD, "--ignore-not-found", "--wait", "--now")
    kube.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    kube.kubectl("wait", "--for=condition=Ready", f"pod/{POD}", "--timeout=60s", timeout_s=70)


@contextmanager
def unretried_writes(kube: Kube, url: str, prefix: str) -> Iterator[list[str]]:
    """Write through the Service on new connections while the body runs; the list then holds why writes failed."""
    script = ["python3", "/recorder/writer.py", "--url", url, "--prefix", prefix]
    answers: list[dict[str, Any]] = []
    process = PodProcess(kube, POD, script, answers.append)
    failures: list[str] = []
    try:
        yield failures
        process.tell("stop")
        process.wait(60)
    finally:
        process.kill()
    assert len(answers) == 1, f"the writer did not end well: {process.errors}"
    [answer] = answers
    assert answer["writes"] > UNRETRIED_WRITES_MIN, "too few writes to show anything"
    failures += [f"after {second} s: {reason}" for second, reason in answer["failures"]]


class Recording:
    """A recorder at work. A context manager; leaving it stops the load and judges the history.

    Args:
        kube: the cluster.
        prefix: of its keys, unique in the run.
        endpoints: of all nodes that may be there.
        keep: where to keep the history.
    """

    verdict: Verdict

    def __init__(self, kube: Kube, prefix: str, endpoints: list[str], keep: Path) -> None:
        self._kube = kube
        self._prefix = prefix
        self._endpoints = endpoints
        self._keep = keep
        self._lines: list[dict[str, Any]] = []
        self.last: dict[str, int] = {"acknowledged": 0, "last": 0, "now": 0}

    def __enter__(self) -> Self:
        """Start the load, and wait until writes are acknowledged."""
        script = ["python3", "/recorder/recorder.py", "--prefix", self._prefix]
        script += ["--endpoints", ",".join(self._endpoints)]
        self._process = PodProcess(self._kube, POD, script, self._take)
        try:
            self.wait_for_writes("the load has begun", 20, 60)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, read everything back, judge."""
        try:
            if error is None:
                self._process.tell("stop")
                self._process.wait(READ_BACK_TIMEOUT_S)
        finally:
            self._process.kill()
        if error is None:
            self.verdict = self._judge()

    def mark(self, name: str) -> None:
        """Note in the history that something happens now."""
        self._process.tell(f"mark {name}")

    def wait_for_writes(self, what: str, count: int, timeout_s: float) -> float:
        """Wait until ``count`` further writes are acknowledged; return how long that took."""
        before = self.last["acknowledged"]

        def enough() -> bool | str:
            if self._process.has_ended:
                raise AssertionError(f"the recorder died: {self._process.errors}")
            done = self.last["acknowledged"] - before
            return done >= count or f"{done} of {count} writes"

        return eventually(what, enough, timeout_s)

    def wait_for_silence(self, seconds: float, timeout_s: float) -> None:
        """Wait until no write has been acknowledged for so long."""

        def silent() -> bool:
            return self.last["now"] - self.last["last"] > seconds * 1e6

        eventually(f"no writes for {seconds} s", silent, timeout_s)

    def watch_silence(self, seconds: float) -> None:
        """Fail if any write is acknowledged within this time."""
        first = self.last
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.last["acknowledged"] == first["acknowledged"], "a write was acknowledged without a quorum"
            time.sleep(0.1)
        # A recorder that is paused itself would see nothing.
        watched_s = (self.last["now"] - first["now"]) / 1e6
        assert watched_s > seconds / 2, f"the recorder was silent itself: it reported {watched_s:.1f} of {seconds} s"

    def _take(self, document: dict[str, Any]) -> None:
        if "second" in document:
            self.last = document["second"]
        else:
            self._lines.append(document)

    def _judge(self) -> Verdict:
        self._keep.parent.mkdir(parents=True, exist_ok=True)
        self._keep.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
        if not self._lines or "summary" not in self._lines[-1]:
            raise AssertionError(f"the recorder printed no summary: {self._process.errors}")
        return judge(self._lines)


def judge(lines: list[dict[str, Any]]) -> Verdict:
    """Return the verdict on a recorder's output."""
    operations = [msgspec.convert(line["operation"], Operation) for line in lines if "operation" in line]
    # A read without an answer says nothing.
    history = [op for op in operations if op.kind != "get" or op.outcome == "ok"]
    violations = [f"{violation.check}: {violation.detail}" for violation in check_history(history)]
    leaders: dict[int, set[str]] = {}
    for line in lines:
        if "leader" in line:
            leaders.setdefault(line["leader"][0], set()).add(line["leader"][1])
        if len(line.get("clusters", ())) > 1:
            violations.append(f"nodes were of more than one cluster: {line['clusters']}")
        if "diverged" in line:
            violations.append(f"nodes differ in their state: {line['diverged']}")
    violations += [f"term {term} had the leaders {sorted(ids)}" for term, ids in leaders.items() if len(ids) > 1]
    summary = lines[-1]["summary"]
    violations += [f"{key} could not be read back" for key in summary["unread"]]
    return Verdict(
        acknowledged=summary["acknowledged"],
        operations=summary["operations"],
        unknown=sum(op.kind != "get" and op.outcome == "unknown" for op in operations),
        seconds=(summary["stopped"] - summary["started"]) / 1e6,
        gap_ms=summary["gap_us"] // 1000,
        gap_at_s=summary["gap_at_us"] / 1e6,
        terms=max(len(leaders) - 1, 0),
        violations=tuple(violations),
    )
