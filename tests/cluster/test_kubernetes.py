"""The node as a client of the Kubernetes API server, against a server that answers, refuses, hangs and lies."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from aiohttp import web
from serving import stop_server
from waiting import until

from kvorum.cluster import kubernetes
from kvorum.cluster.kubernetes import ROLE_LABEL, ConfigMap, KubernetesApi, RoleLabel, StatefulSet
from kvorum.errors import KubernetesError
from kvorum.node import Supervisor
from kvorum.node.ports import Tasks
from kvorum.node.runtime import LoopTasks

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
STATEFUL_SET = {
    "kind": "StatefulSet",
    "metadata": {"uid": "u", "generation": 7, "name": "kv", "namespace": "prod"},
    "spec": {"replicas": 5, "serviceName": "x"},
}


def stateful_set(**spec: object) -> dict[str, object]:
    """Return the StatefulSet with another spec, or without what is None."""
    changed = {**STATEFUL_SET["spec"], **spec}  # type: ignore[dict-item]
    return {**STATEFUL_SET, "spec": {name: value for name, value in changed.items() if value is not None}}


@contextlib.asynccontextmanager
async def api_server(handler: Handler, token: Callable[[], str] = lambda: "secret") -> AsyncIterator[KubernetesApi]:
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with KubernetesApi(f"http://127.0.0.1:{port}", "prod", token, None) as api:
            yield api
    finally:
        await stop_server(runner)


def answering(document: object, status: int = 200) -> Handler:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        text = msgspec.json.encode(document)
        return web.Response(body=text, status=status, content_type="application/json")

    return handler


def nested(depth: int) -> msgspec.Raw:
    """Return an array in an array in an array..."""
    return msgspec.Raw(b"[" * depth + b"]" * depth)


def ask(handler: Handler, token: Callable[[], str] = lambda: "secret") -> StatefulSet:
    async def scenario() -> StatefulSet:
        async with api_server(handler, token) as api:
            return await api.stateful_set("kv")

    return asyncio.run(scenario())


def test_the_desired_replicas_are_read_from_our_own_stateful_set() -> None:
    asked = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        asked.append((request.method, request.path, request.headers["Authorization"]))
        return web.json_response(STATEFUL_SET)

    assert ask(handler) == StatefulSet("u", 7, 5)
    assert asked == [("GET", "/apis/apps/v1/namespaces/prod/statefulsets/kv", "Bearer secret")]


def test_the_token_is_read_again_for_every_request_since_the_kubelet_renews_it() -> None:
    seen = []
    tokens = iter(["first", "second"])

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        return web.json_response(STATEFUL_SET)

    async def scenario() -> None:
        async with api_server(handler, lambda: next(tokens)) as api:
            await api.stateful_set("kv")
            await api.stateful_set("kv")

    asyncio.run(scenario())
    assert seen == ["Bearer first", "Bearer second"]


def missing_token() -> str:
    raise FileNotFoundError("no token")


def damaged_token() -> str:
    return b"\xff".decode()


def token_of_two_lines() -> str:
    return "secret\r\nX-Other: header"


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (answering({"message": "statefulsets is forbidden"}, 403), "403: statefulsets is forbidden"),
        (answering("x", 500), "500"),
        (answering([], 302), "302"),
        (answering({"kind": "Pod"}), "answers no StatefulSet"),
        (answering({"message": "statefulsets not found"}, 404), "404: statefulsets not found"),
        (answering(stateful_set(replicas="many")), "answers no StatefulSet"),
        (answering(stateful_set(replicas=None)), "answers no StatefulSet"),
        (answering(stateful_set(replicas=-1)), "answers no StatefulSet"),
        (answering(stateful_set(replicas=102)), "answers no StatefulSet"),
        (answering(stateful_set(ordinals={"start": 5})), "first ordinal is 5"),
        (answering({**STATEFUL_SET, "kind": "Deployment"}), "answers with a Deployment"),
        (answering({**STATEFUL_SET, "metadata": {"uid": "u", "generation": 1, "name": "other"}}), "answers with"),
        (answering({**STATEFUL_SET, "metadata": {"uid": "u", "name": "kv"}}), "answers no StatefulSet"),
        (answering({**STATEFUL_SET, "extra": nested(100_000)}), "answers no StatefulSet"),
        (answering(nested(100_000), 500), "500"),
    ],
    ids=[
        *("forbidden", "server error", "redirect", "another document", "not found", "replicas that are no number"),
        *("no replicas", "fewer replicas than none", "replicas without end", "another first ordinal"),
        *("another kind", "another name", "no generation", "too deep", "too deep an error"),
    ],
)
def test_a_refusal_or_nonsense_is_one_typed_error(handler: Handler, says: str) -> None:
    """In particular, what lacks a field never passes for a small number of replicas: nodes would be removed."""
    with pytest.raises(KubernetesError, match=says):
        ask(handler)


def test_pods_that_are_counted_from_zero_explicitly_are_the_same() -> None:
    assert ask(answering(stateful_set(ordinals={"start": 0}))) == StatefulSet("u", 7, 5)


@pytest.mark.parametrize("token", [missing_token, damaged_token, token_of_two_lines])
def test_a_token_that_cannot_be_used_is_the_same_error(token: Callable[[], str]) -> None:
    with pytest.raises(KubernetesError, match="ServiceAccount token"):
        ask(answering(STATEFUL_SET), token)


def test_a_server_that_is_not_there_is_the_same_error() -> None:
    async def scenario() -> None:
        async with KubernetesApi("http://127.0.0.1:1", "prod", lambda: "t", None) as api:
            await api.stateful_set("kv")

    with pytest.raises(KubernetesError):
        asyncio.run(scenario())


def test_an_answer_is_read_up_to_its_limit_only() -> None:
    with pytest.raises(KubernetesError, match="answers no StatefulSet"):
        ask(answering({**STATEFUL_SET, "padding": "x" * (5 << 20)}))


def test_the_token_is_sent_nowhere_else() -> None:
    asked = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/elsewhere":
            return web.json_response(STATEFUL_SET)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    with pytest.raises(KubernetesError, match="307"):
        ask(handler)
    assert asked == ["/apis/apps/v1/namespaces/prod/statefulsets/kv"]


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "REQUEST_TIMEOUT_S", 0.1)

    async def scenario() -> None:
        released = asyncio.Event()

        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            await released.wait()
            return web.Response()

        async with api_server(handler) as api:
            try:
                with pytest.raises(KubernetesError):
                    await api.stateful_set("kv")
            finally:
                released.set()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_outside_of_a_pod_there_is_no_api_server(tmp_path: Path) -> None:
    assert KubernetesApi.in_pod({}, tmp_path) is None
    assert KubernetesApi.in_pod({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path) is None


def test_a_token_without_an_authority_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "namespace").write_text("prod")
    with pytest.raises(KubernetesError, match="cannot read the ServiceAccount files"):
        KubernetesApi.in_pod({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path)


# --- The ConfigMap that records the cluster -----------------------------------------------------------------------

CONFIG_MAP = {
    "kind": "ConfigMap",
    "apiVersion": "v1",
    "metadata": {"name": "kv-cluster-id", "resourceVersion": "7", "uid": "u"},
    "data": {"cluster-id": "c"},
}
CLAIM = {"kind": "PersistentVolumeClaim", "metadata": {"name": "data-kv-0", "uid": "c0"}}
SERVICE = {"kind": "Service", "metadata": {"name": "kv-headless", "uid": "h"}}


def call(handler: Handler, act: Callable[[KubernetesApi], Awaitable[object]]) -> object:
    async def scenario() -> object:
        async with api_server(handler) as api:
            return await act(api)

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("act", "method", "path", "answer"),
    [
        (lambda api: api.config_map("kv-cluster-id"), "GET", "configmaps/kv-cluster-id", CONFIG_MAP),
        (lambda api: api.create_config_map(ConfigMap({"name": "x"})), "POST", "configmaps", CONFIG_MAP),
        (lambda api: api.update_config_map(ConfigMap({"name": "x"})), "PUT", "configmaps/x", CONFIG_MAP),
        (lambda api: api.claim_uid("data-kv-0"), "GET", "persistentvolumeclaims/data-kv-0", CLAIM),
        (lambda api: api.service_uid("kv-headless"), "GET", "services/kv-headless", SERVICE),
    ],
    ids=["read", "create", "update", "claim", "service"],
)
def test_objects_of_our_namespace_are_read_created_and_updated(
    act: Callable[[KubernetesApi], Awaitable[object]], method: str, path: str, answer: object
) -> None:
    asked = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        asked.append((request.method, request.path))
        return web.json_response(answer, status=201 if request.method == "POST" else 200)

    found = call(handler, act)

    assert asked == [(method, f"/api/v1/namespaces/prod/{path}")]
    metadata, data = {"name": "kv-cluster-id", "resourceVersion": "7", "uid": "u"}, {"cluster-id": "c"}
    assert found in (True, "c0", "h", ConfigMap(metadata, data))


def test_an_update_says_of_which_version_it_is() -> None:
    sent = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        sent.append((request.content_type, json.loads(await request.read())))
        return web.json_response(CONFIG_MAP)

    config_map = ConfigMap({"name": "kv-cluster-id", "resourceVersion": "7", "uid": "u"}, {"cluster-id": "c"})
    assert call(handler, lambda api: api.update_config_map(config_map)) is True
    assert sent == [("application/json", CONFIG_MAP)]


@pytest.mark.parametrize("status", [403, 404, 409, 500])
def test_what_is_missing_or_in_the_way_is_told_from_a_refusal(status: int) -> None:
    refusing = answering({"message": "no"}, status)
    reads: tuple[Callable[[KubernetesApi], Awaitable[object]], ...] = (
        lambda api: api.config_map("kv-cluster-id"),
        lambda api: api.claim_uid("data-kv-0"),
        lambda api: api.service_uid("kv-headless"),
    )
    writes: tuple[Callable[[KubernetesApi], Awaitable[object]], ...] = (
        lambda api: api.create_config_map(ConfigMap({"name": "x"})),
        lambda api: api.update_config_map(ConfigMap({"name": "x"})),
    )
    for acts, telling, answer in ((reads, 404, None), (writes, 409, False)):
        for act in acts:
            if status == telling:
                assert call(refusing, act) is answer
            else:
                with pytest.raises(KubernetesError, match=f"answers {status}: no"):
                    call(refusing, act)


@pytest.mark.parametrize(
    "document",
    [
        STATEFUL_SET,
        {**CONFIG_MAP, "metadata": {"name": "other"}},
        {**CONFIG_MAP, "metadata": None},
        {**CONFIG_MAP, "data": {"cluster-id": 1}},
        [],
        nested(100_000),
    ],
)
def test_another_document_is_no_record_and_no_claim(document: object) -> None:
    with pytest.raises(KubernetesError):
        call(answering(document), lambda api: api.config_map("kv-cluster-id"))
    with pytest.raises(KubernetesError):
        call(answering(document), lambda api: api.claim_uid("data-kv-0"))
    with pytest.raises(KubernetesError):
        call(answering(document), lambda api: api.service_uid("kv-headless"))


@contextlib.asynccontextmanager
async def labelling(api: KubernetesApi, role: Callable[[], str]) -> AsyncIterator[None]:
    task = asyncio.create_task(
        RoleLabel(api, "kv-1", role, LoopTasks(Supervisor()), interval_s=0.005, retry_max_s=0.02).run()
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_the_pod_carries_its_role_and_is_patched_only_when_it_changes() -> None:
    patches: list[tuple[str, str, str, object]] = []
    looks = 0
    role = "follower"

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        body = json.loads(await request.read())
        patches.append((request.method, request.path, request.content_type, body))
        return web.json_response({})

    def current() -> str:
        nonlocal looks
        looks += 1
        return role

    async def scenario() -> None:
        nonlocal role
        async with api_server(handler) as api, labelling(api, current):
            await until("the first patch", lambda: len(patches) == 1)
            seen = looks
            await until("five more looks", lambda: looks > seen + 5)
            role = "leader"
            await until("the second patch", lambda: len(patches) == 2)
            seen = looks
            await until("five more looks", lambda: looks > seen + 5)

    asyncio.run(scenario())
    path = "/api/v1/namespaces/prod/pods/kv-1"
    assert patches == [
        ("PATCH", path, "application/merge-patch+json", {"metadata": {"labels": {ROLE_LABEL: value}}})
        for value in ("follower", "leader")
    ]


def test_a_refused_label_is_tried_again_and_complained_about_once(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([403, 500, 403, 200])
    done = False

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal done
        status = next(answers)
        done = status == 200
        return web.json_response({"message": "no"}, status=status)

    async def scenario() -> None:
        async with api_server(handler) as api, labelling(api, lambda: "leader"):
            await until("a patch is accepted", lambda: done)

    asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records if record.name == "kvorum.cluster.kubernetes"] == [
        "cannot label this pod kvorum.io/role=leader: PATCH /api/v1/namespaces/prod/pods/kv-1 answers 403: no"
    ]


def test_a_label_whose_patch_may_have_been_applied_is_set_again() -> None:
    """A patch that is not answered in time may be done all the same: what the label says then is not known."""
    labels: list[str] = []
    failing = True
    role = "follower"

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        label = json.loads(await request.read())["metadata"]["labels"][ROLE_LABEL]
        labels.append(label)
        if label == "leader" and failing:
            return web.json_response({"message": "timed out"}, status=504)
        return web.json_response({})

    async def scenario() -> None:
        nonlocal role
        async with api_server(handler) as api, labelling(api, lambda: role):
            await until("the label is follower", lambda: labels == ["follower"])
            role = "leader"
            await until("the label leader is sent", lambda: "leader" in labels)
            role = "follower"
            await until("the label is follower again", lambda: labels[-1] == "follower" and len(labels) > 2)

    asyncio.run(scenario())


class Enough(Exception):
    """The test has seen what it wants to see."""


class Refusing:
    """An API server that refuses every label."""

    async def label_pod(self, pod: str, labels: dict[str, str]) -> None:
        raise KubernetesError("no")


def test_the_wait_for_the_next_try_doubles_up_to_its_limit() -> None:
    waits: list[float] = []

    async def sleep(delay_s: float) -> None:
        waits.append(delay_s)
        if len(waits) == 5:
            raise Enough

    api, tasks = cast(KubernetesApi, Refusing()), cast(Tasks, SimpleNamespace(sleep=sleep))
    label = RoleLabel(api, "kv-1", lambda: "leader", tasks, interval_s=1.0, retry_max_s=5.0)
    with pytest.raises(Enough):
        asyncio.run(label.run())
    assert waits == [2.0, 4.0, 5.0, 5.0, 5.0]
