"""A Kubernetes cluster as the suite uses it: objects through the official client, commands in pods through kubectl."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from kubernetes import client
from kubernetes import config as kubernetes_config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

STATEFUL_SET_LABELS = "app.kubernetes.io/name=kv"
POLL_S = 0.3
REACHABLE_S = 5


class Unfit(Exception):
    """The suite must not run against this cluster, or cannot."""


class Kube:
    """One namespace of one cluster.

    Args:
        context: of the kubeconfig.
        kubeconfig: its path; empty: kubectl's default.
        namespace: the suite's own.
        forced: run against a context that does not start with ``kind-``, too.

    Raises:
        Unfit: see above.
    """

    def __init__(self, context: str, kubeconfig: str, namespace: str, forced: bool) -> None:
        if not context.startswith("kind-") and not forced:
            raise Unfit(
                f"context {context!r} does not start with kind-: this suite deletes pods, volumes and nodes; "
                "say --force-context if that is what you want"
            )
        self.context = context
        self.kubeconfig = kubeconfig
        self.namespace = namespace
        try:
            load: Any = kubernetes_config.new_client_from_config
            self._api = load(config_file=kubeconfig or None, context=context)
        except kubernetes_config.ConfigException as error:
            raise Unfit(f"context {context!r} cannot be used: {error}") from error
        missing = [program for program in ("kubectl", "helm") if shutil.which(program) is None]
        if missing:
            raise Unfit(f"the e2e suite needs {' and '.join(missing)} on the PATH")
        try:
            client.VersionApi(self._api).get_code(_request_timeout=REACHABLE_S)
        except (ApiException, HTTPError) as error:
            reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2]
            raise Unfit(f"the API server of context {context!r} does not answer: {reason}") from error
        self.core: Any = client.CoreV1Api(self._api)
        self.apps: Any = client.AppsV1Api(self._api)

    @property
    def is_kind(self) -> bool:
        """Whether the nodes are containers of kind, which can be paused and cut off."""
        return self.context.startswith("kind-")

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    # --- Programs -----------------------------------------------------------------------------------------------

    def kubectl_command(self, *arguments: str) -> list[str]:
        """Return the kubectl command with context and namespace."""
        config_file = ["--kubeconfig", self.kubeconfig] if self.kubeconfig else []
        return ["kubectl", "--context", self.context, *config_file, "-n", self.namespace, *arguments]

    def kubectl(self, *arguments: str, stdin: str = "", timeout_s: float = 60, check: bool = True) -> str:
        """Run kubectl and return what it printed."""
        return run(self.kubectl_command(*arguments), stdin=stdin, timeout_s=timeout_s, check=check)

    def helm(self, *arguments: str, timeout_s: float = 240, check: bool = True) -> str:
        """Run helm and return what it printed."""
        config_file = ["--kubeconfig", self.kubeconfig] if self.kubeconfig else []
        where = ["--kube-context", self.context, *config_file, "-n", self.namespace]
        return run(["helm", *where, *arguments], timeout_s=timeout_s, check=check)

    def exec(self, pod: str, *command: str, timeout_s: float = 30, check: bool = True, container: str = "") -> str:
        """Run a command in a pod and return what it printed."""
        which = ["-c", container] if container else []
        return self.kubectl("exec", pod, *which, "--", *command, timeout_s=timeout_s, check=check)

    # --- Objects ------------------------------------------------------------------------------------------------

    def ensure_namespace(self) -> None:
        """Make the namespace if it is not there; it enforces Pod Security ``restricted``."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = client.V1ObjectMeta(name=self.namespace, labels=labels)
        try:
            self.core.create_namespace(client.V1Namespace(metadata=metadata))
        except ApiException as error:
            if error.status != 409:
                raise

    def delete_namespace(self) -> None:
        """Delete the namespace and wait until it is gone."""
        try:
            self.core.delete_namespace(self.namespace)
        except ApiException as error:
            if error.status == 404:
                return
            raise

        def is_gone() -> bool:
            return all(item.metadata.name != self.namespace for item in self.core.list_namespace().items)

        eventually("the namespace is gone", is_gone, 120)

    def pods(self, release: str) -> dict[str, Any]:
        """Return the release's pods by name."""
        selector = f"{STATEFUL_SET_LABELS},app.kubernetes.io/instance={release}"
        found = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return {pod.metadata.name: pod for pod in found}

    def delete_pod(self, name: str, grace_s: int | None = None) -> None:
        """Delete a pod; ``grace_s`` 0 is ``--force``."""
        options = {} if grace_s is None else {"grace_period_seconds": grace_s}
        try:
            self.core.delete_namespaced_pod(name, self.namespace, **options)
        except ApiException as error:
            if error.status != 404:
                raise

    def delete_claim(self, name: str) -> None:
        """Delete a PersistentVolumeClaim; it goes when its pod has gone."""
        self.core.delete_namespaced_persistent_volume_claim(name, self.namespace)

    def claims(self, release: str) -> list[str]:
        """Return the names of the release's claims."""
        selector = f"app.kubernetes.io/instance={release}"
        found = self.core.list_namespaced_persistent_volume_claim(self.namespace, label_selector=selector).items
        return sorted(claim.metadata.name for claim in found)

    def scale(self, name: str, replicas: int) -> None:
        """What ``kubectl scale`` does."""
        self.apps.patch_namespaced_stateful_set_scale(name, self.namespace, {"spec": {"replicas": replicas}})


def run(command: Sequence[str], *, stdin: str = "", timeout_s: float = 60, check: bool = True) -> str:
    """Run a program, bounded in time; its failure is an AssertionError that says what it said."""
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(command)} exited with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


def run_json(command: Sequence[str], timeout_s: float = 60) -> Any:
    """Run a program that prints one JSON document."""
    return json.loads(run(command, timeout_s=timeout_s))


def eventually(what: str, condition: Callable[[], object], timeout_s: float) -> float:
    """Poll until the condition holds; return how long that took.

    Raises:
        AssertionError: it did not in time; with what the condition last said, if it is text.
    """
    started = time.monotonic()
    while True:
        answer = condition()
        passed = time.monotonic() - started
        if answer is True:
            return passed
        if passed > timeout_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}{f' ({answer})' if answer else ''}")
        time.sleep(POLL_S)
