"""The little that a node asks of the Kubernetes API server.

It asks for its StatefulSet's desired replicas, for the ConfigMap that says which cluster the release holds and for the
objects that own it, and it labels its own pod. Through aiohttp, which is here anyway: the official client is
synchronous, takes half a second to import and would be two thirds of the image. Everything has a deadline. Without the
API server the membership stays as it is, and no cluster begins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import aiohttp
import msgspec
from msgspec import Meta

from kvorum.config import REPLICAS_MAX
from kvorum.errors import KubernetesError
from kvorum.node.ports import Tasks
from kvorum.transport.failures import reason_of

ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ROLE_LABEL = "kvorum.io/role"
REQUEST_TIMEOUT_S = 3.0
RESPONSE_BYTES_MAX = 4 * 1024 * 1024

logger = logging.getLogger(__name__)


class StatefulSet(msgspec.Struct, frozen=True):
    """What matters of a StatefulSet."""

    uid: str
    generation: int
    """Raised by the API server with every change of the spec."""
    replicas: int
    """Desired, not actual."""


class ConfigMap(msgspec.Struct, frozen=True):
    """A ConfigMap.

    ``metadata`` is that of the API server's document: an update sends back what it does not change, with the
    ``resourceVersion``, so that nobody else's update is undone.
    """

    metadata: dict[str, Any]
    data: dict[str, str] = {}
    kind: str = "ConfigMap"
    api_version: str = msgspec.field(default="v1", name="apiVersion")


class _ObjectMetadata(msgspec.Struct, frozen=True):
    uid: str


class _ObjectBody(msgspec.Struct, frozen=True):
    kind: str
    metadata: _ObjectMetadata


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    uid: str
    generation: int


class _Ordinals(msgspec.Struct, frozen=True):
    start: int = 0


class _Spec(msgspec.Struct, frozen=True):
    # No default: the API server always says it, and nodes would be removed if a document without it passed for "one".
    replicas: Annotated[int, Meta(ge=0, le=REPLICAS_MAX)]
    ordinals: _Ordinals = _Ordinals()


class _StatefulSetBody(msgspec.Struct, frozen=True):
    kind: str
    metadata: _Metadata
    spec: _Spec


_KINDS = {_StatefulSetBody: "StatefulSet", ConfigMap: "ConfigMap", _ObjectBody: "object"}
_Body = TypeVar("_Body", _StatefulSetBody, ConfigMap, _ObjectBody)


class KubernetesApi:
    """The API server, as this pod's ServiceAccount sees it. An async context manager.

    Args:
        base_url: e.g. ``https://10.96.0.1:443``.
        namespace: the pod's.
        token: returns the bearer token; called per request, since the kubelet renews it. Blocking: run in a thread.
        tls: trusts the cluster's authority; None for plain HTTP (tests).
    """

    def __init__(self, base_url: str, namespace: str, token: Callable[[], str], tls: ssl.SSLContext | None) -> None:
        self._namespace = namespace
        self._core = f"/api/v1/namespaces/{namespace}"
        self._token = token
        connector = aiohttp.TCPConnector(limit=2, ssl=tls if tls is not None else True)
        self._session = aiohttp.ClientSession(
            base_url,
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            # The API server is never behind the proxy that the environment may name.
            trust_env=False,
        )

    @classmethod
    def in_pod(cls, environ: Mapping[str, str] = os.environ, account: Path = ACCOUNT_DIR) -> KubernetesApi | None:
        """Return the API server of the cluster that this pod runs in; None without a ServiceAccount's token.

        Blocking: reads three small files. Call it inside a running loop.

        Raises:
            KubernetesError: there is a token, but what belongs to it cannot be read.
        """
        token_file = account / "token"
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not token_file.exists():
            return None
        try:
            namespace = (account / "namespace").read_text().strip()
            tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except (OSError, ValueError) as error:
            raise KubernetesError(f"cannot read the ServiceAccount files: {error}") from error
        address = f"[{host}]" if ":" in host else host
        return cls(f"https://{address}:{port}", namespace, lambda: token_file.read_text().strip(), tls)

    async def __aenter__(self) -> Self:
        """Return the API server."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._session.close()

    async def stateful_set(self, name: str) -> StatefulSet:
        """Return the StatefulSet ``name`` of our namespace.

        Raises:
            KubernetesError: the API server does not answer in time, refuses, or answers nonsense.
        """
        path = f"/apis/apps/v1/namespaces/{self._namespace}/statefulsets/{name}"
        parsed = _decoded(path, await self._request("GET", path), _StatefulSetBody)
        if (parsed.kind, parsed.metadata.name) != ("StatefulSet", name):
            raise KubernetesError(f"GET {path} answers with a {parsed.kind} named {parsed.metadata.name}")
        if parsed.spec.ordinals.start:
            raise KubernetesError(f"GET {path}: the first ordinal is {parsed.spec.ordinals.start}, which must be 0")
        return StatefulSet(parsed.metadata.uid, parsed.metadata.generation, parsed.spec.replicas)

    async def config_map(self, name: str) -> ConfigMap | None:
        """Return the ConfigMap ``name`` of our namespace; None: there is none.

        Raises:
            KubernetesError: as :meth:`stateful_set`.
        """
        path = f"{self._core}/configmaps/{name}"
        body = await self._request_if_there("GET", path)
        if body is None:
            return None
        found = _decoded(path, body, ConfigMap)
        if (found.kind, found.metadata.get("name")) != ("ConfigMap", name):
            raise KubernetesError(f"GET {path} answers with a {found.kind} named {found.metadata.get('name')}")
        return found

    async def create_config_map(self, config_map: ConfigMap) -> bool:
        """Create a ConfigMap in our namespace, and never change one; return whether it was created.

        Raises:
            KubernetesError: as :meth:`stateful_set`; it may be created all the same.
        """
        return await self._write("POST", f"{self._core}/configmaps", config_map)

    async def update_config_map(self, config_map: ConfigMap) -> bool:
        """Replace a ConfigMap of our namespace; return whether it was: it is not if somebody else changed it.

        Raises:
            KubernetesError: as :meth:`stateful_set`; it may be replaced all the same.
        """
        return await self._write("PUT", f"{self._core}/configmaps/{config_map.metadata['name']}", config_map)

    async def claim_uid(self, name: str) -> str | None:
        """Return the uid of a PersistentVolumeClaim of our namespace; None: there is none of this name.

        Raises:
            KubernetesError: as :meth:`stateful_set`.
        """
        return await self._uid("PersistentVolumeClaim", f"{self._core}/persistentvolumeclaims/{name}")

    async def service_uid(self, name: str) -> str | None:
        """Return the uid of a Service of our namespace; None: there is none of this name.

        Raises:
            KubernetesError: as :meth:`stateful_set`.
        """
        return await self._uid("Service", f"{self._core}/services/{name}")

    async def label_pod(self, name: str, labels: Mapping[str, str | None]) -> None:
        """Set labels of a pod of our namespace; None removes one.

        Raises:
            KubernetesError: as :meth:`stateful_set`.
        """
        path = f"{self._core}/pods/{name}"
        patch = msgspec.json.encode({"metadata": {"labels": dict(labels)}})
        await self._request("PATCH", path, data=patch, headers={"Content-Type": "application/merge-patch+json"})

    async def _write(self, method: str, path: str, config_map: ConfigMap) -> bool:
        """Send a ConfigMap; return False if the API server says that another one is in the way."""
        headers = {"Content-Type": "application/json"}
        try:
            await self._request(method, path, data=msgspec.json.encode(config_map), headers=headers)
        except KubernetesError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return False
        return True

    async def _uid(self, kind: str, path: str) -> str | None:
        body = await self._request_if_there("GET", path)
        if body is None:
            return None
        found = _decoded(path, body, _ObjectBody)
        if found.kind != kind:
            raise KubernetesError(f"GET {path} answers with a {found.kind}")
        return found.metadata.uid

    async def _request_if_there(self, method: str, path: str) -> bytes | None:
        try:
            return await self._request(method, path)
        except KubernetesError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def _request(self, method: str, path: str, **options: Any) -> bytes:
        try:
            token = await asyncio.to_thread(self._token)
        except (OSError, ValueError) as error:
            raise KubernetesError(f"cannot read the ServiceAccount token: {error}") from error
        if not (token.isascii() and token.isprintable()):
            raise KubernetesError("the ServiceAccount token is not one line of ASCII characters")
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        try:
            async with self._session.request(
                method, path, headers=headers, allow_redirects=False, **options
            ) as response:
                body = await response.content.read(RESPONSE_BYTES_MAX)
                while not response.content.at_eof() and len(body) < RESPONSE_BYTES_MAX:
                    body += await response.content.read(RESPONSE_BYTES_MAX - len(body))
                if response.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
                    status = response.status
                    raise KubernetesError(f"{method} {path} answers {status}: {_message(body)}", status)
                return body
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise KubernetesError(f"{method} {path}: {reason_of(error)}") from error


def _decoded(path: str, body: bytes, kind: type[_Body]) -> _Body:
    """Return what a document of the API server says.

    Raises:
        KubernetesError: it is another document.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise KubernetesError(f"GET {path} answers no {_KINDS[kind]}: {error}") from error


def _message(body: bytes) -> str:
    """Return the one readable field of the API server's error document."""
    try:
        status = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return body[:200].decode(errors="replace").strip()
    return str(status.get("message", ""))[:300] if isinstance(status, dict) else ""


class RoleLabel:
    """Keeps the label ``kvorum.io/role`` of our own pod right, for a Service that selects the leader.

    The label is advice: it is late by up to ``interval_s``, and a paused leader keeps it. Nodes redirect whoever
    follows it in vain.

    Args:
        api: the API server.
        pod: our pod's name.
        role: returns what the label should say now.
        tasks: how to wait.
        interval_s: how often that is looked at.
        retry_max_s: the longest wait after a failure.
    """

    def __init__(
        self,
        api: KubernetesApi,
        pod: str,
        role: Callable[[], str],
        tasks: Tasks,
        *,
        interval_s: float = 0.5,
        retry_max_s: float = 30.0,
    ) -> None:
        self._api = api
        self._pod = pod
        self._role = role
        self._tasks = tasks
        self._interval_s = interval_s
        self._retry_max_s = retry_max_s

    async def run(self) -> None:
        """Keep it right until cancelled. A failure is logged once and tried again ever more rarely."""
        labelled: str | None = None
        wait_s = self._interval_s
        while True:
            role = self._role()
            if role != labelled:
                try:
                    await self._api.label_pod(self._pod, {ROLE_LABEL: role})
                except KubernetesError as error:
                    if wait_s == self._interval_s:
                        logger.warning("cannot label this pod %s=%s: %s", ROLE_LABEL, role, error)
                    # What was not answered may be done all the same.
                    labelled, wait_s = None, min(2 * wait_s, self._retry_max_s)
                else:
                    labelled, wait_s = role, self._interval_s
            await self._tasks.sleep(wait_s)
