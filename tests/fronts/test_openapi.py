"""``/openapi.json`` says what the client port serves, all of it, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from fronts import lock_support
from fronts.fake_node import FakeNode, Server, run, serving
from openapi_spec_validator import OpenAPIV31SpecValidator

from kvorum.errors import (
    CallerError,
    FeatureUnavailableError,
    NoLeaderError,
    NoSpaceError,
    NotServingError,
    OutcomeUnknownError,
    OverloadedError,
    ReadTimeoutError,
    TooManyWatchersError,
)
from kvorum.fronts.http import dispatch
from kvorum.fronts.http.operations import Operation
from kvorum.fronts.http.problems import TABLE

METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH")
NOT_OF_AN_OPERATION = {"method_not_allowed"}
"""What only a request that is in no operation can meet."""


def fetch() -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        async with asyncio.timeout(20), serving(FakeNode()) as http:
            document: dict[str, Any] = (await http("GET", "/openapi.json")).json
            return document

    return asyncio.run(main())


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return fetch()


def codes_of(operation: dict[str, Any]) -> set[str]:
    """Return the codes that an operation may answer with."""
    return {
        code
        for answer in operation["responses"].values()
        for part in answer.get("content", {}).get("application/problem+json", {}).get("schema", {}).get("allOf", [])
        for code in part.get("properties", {}).get("code", {}).get("enum", ())
    }


def sample(template: str) -> str:
    return re.sub(r"{.*?}", "x", template)


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert not [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()]


def test_every_method_of_a_described_path_is_described_and_the_others_are_refused(document: dict[str, Any]) -> None:
    async def scenario(http: Server) -> None:
        for path, methods in document["paths"].items():
            if path == "/v1/watch":
                continue  # It does not end.
            for method in METHODS:
                status = (await http(method, sample(path), b"" if method in {"PUT", "POST"} else None)).status
                assert (status == 405) == (method.lower() not in methods), (method, path)

    run(scenario)


def test_head_of_a_key_by_parameter_needs_the_parameter() -> None:
    async def scenario(http: Server) -> None:
        assert (await http("HEAD", "/v1/kv?key=x")).status == 404
        assert (await http("HEAD", "/v1/kv?prefix=x")).status == 400

    run(scenario)


def test_every_registered_route_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, Operation]] = []
    new: Any = dispatch.Route.__new__

    def record(cls: Any, op: str, handler: Any, operation: Operation) -> Any:
        made.append((op, operation))
        return new(cls, op, handler, operation)

    monkeypatch.setattr(dispatch.Route, "__new__", record)
    summaries = {each["summary"] for methods in fetch()["paths"].values() for each in methods.values()}
    assert len(made) > 20
    assert not [op for op, operation in made if operation.summary not in summaries]


def test_every_error_is_of_some_operation(document: dict[str, Any]) -> None:
    described = {
        code for methods in document["paths"].values() for operation in methods.values() for code in codes_of(operation)
    }
    assert described == set(TABLE) - NOT_OF_AN_OPERATION


FAULTS: list[CallerError] = [
    TooManyWatchersError("full"),
    NotServingError("it ends"),
    NoLeaderError("nobody leads"),
    ReadTimeoutError("no quorum"),
    OverloadedError("full"),
    OutcomeUnknownError("no quorum"),
    NoSpaceError("full", reason="disk", limit=1, used=1),
    FeatureUnavailableError("too old"),
]
QUEUES = [
    ("POST", "/v1/{}/{{name}}", "/v1/{}/a?lease=2&wait_ms=5000"),
    ("POST", "/v1/{}/{{name}}", "/v1/{}/a?lease=2"),
    ("GET", "/v1/{}/{{name}}", "/v1/{}/a"),
    ("GET", "/v1/{}/{{name}}", "/v1/{}/free"),
    ("GET", "/v1/elections/{{name}}", "/v1/elections/a?watch=true"),
    ("PUT", "/v1/elections/{{name}}", "/v1/elections/a?lease=2"),
    ("DELETE", "/v1/{}/{{name}}", "/v1/{}/a?lease=2"),
    ("GET", "/v1/{}", "/v1/{}"),
]


@pytest.mark.parametrize("kind", ["locks", "elections"])
@pytest.mark.parametrize(("method", "path", "target"), QUEUES)
def test_every_code_that_locks_and_elections_answer_is_described(
    kind: str, method: str, path: str, target: str, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    described = codes_of(document["paths"][path.format(kind)][method.lower()])

    async def scenario(http: Server) -> None:
        node = http.node
        assert (await http("POST", f"/v1/{kind}/a?lease=1")).status == 200
        for fault in FAULTS:

            def fail(*_: object, fault: CallerError = fault) -> None:
                raise fault

            # Each of them where a node raises it: before a write or a read, or as a watch begins.
            is_read_fault = isinstance(fault, NotServingError | NoLeaderError | ReadTimeoutError | OverloadedError)
            if method == "DELETE" and isinstance(fault, NoSpaceError):
                continue  # Deletes go on.
            if method == "GET" and not is_read_fault and not isinstance(fault, TooManyWatchersError):
                continue
            with monkeypatch.context() as faulty:
                if is_read_fault or isinstance(fault, TooManyWatchersError):
                    faulty.setattr(node, "watch", fail)
                    faulty.setattr(node, "check_watchers", fail)
                if not isinstance(fault, TooManyWatchersError):
                    node.error = fault
                answer = await http(method, target.format(kind))
                node.error = None
            if answer.status >= 400:
                assert answer.json["code"] in described, (fault, answer)

    lock_support.run(scenario)


@pytest.mark.parametrize("kind", ["locks", "elections"])
def test_that_a_place_was_released_is_described(kind: str, document: dict[str, Any]) -> None:
    assert {"lock_held", "lock_not_held", "lease_not_found"} <= codes_of(
        document["paths"][f"/v1/{kind}/{{name}}"]["post"]
    )


def test_a_handler_knows_the_parameters_that_are_described_and_no_others(document: dict[str, Any]) -> None:
    async def known(http: Server, method: str, path: str, query: str) -> set[str]:
        """Return what the refusal of an unknown parameter names."""
        answer = await http(method.upper(), f"{sample(path)}?{query}", b"{}" if method in {"put", "post"} else None)
        found = re.search(r"this request takes: (.*)", answer.json["detail"])
        assert found, (method, path, answer)
        return set(found[1].split(", "))

    async def scenario(http: Server) -> None:
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if method == "head" or path == "/metrics":
                    continue
                described = {each["name"] for each in operation["parameters"] if each["in"] == "query"}
                assert "cluster" in described
                if path != "/v1/kv":
                    names = await known(http, method, path, "no_parameter=1")
                else:
                    names = await known(http, method, path, "key=x&no_parameter=1")
                    if method != "put":
                        names |= await known(http, method, path, "prefix=x&no_parameter=1")
                assert names == described, (method, path)

    run(scenario)


def test_the_document_is_revalidated_by_its_entity_tag() -> None:
    async def scenario(http: Server) -> None:
        first = await http("GET", "/openapi.json")
        assert first.json["info"]["version"] == (await http("GET", "/version")).json["version"]
        assert first.headers["Cache-Control"] == "no-cache"
        etag = first.headers["ETag"]
        for known in (etag, f'"x", W/{etag}', "*"):
            again = await http("GET", "/openapi.json", None, {"If-None-Match": known})
            assert (again.status, again.body) == (304, b"")
        assert (await http("GET", "/openapi.json", None, {"If-None-Match": '"x"'})).body == first.body
        assert (await http("GET", "/openapi.json?x=1")).status == 400

    run(scenario)


def test_a_parameter_has_one_row(document: dict[str, Any]) -> None:
    (timeout,) = (
        each for each in document["paths"]["/v1/kv/{key}"]["put"]["parameters"] if each["name"] == "timeout_ms"
    )
    assert timeout["schema"]["minimum"] == 1
    assert json.dumps(document).count('"timeout_ms"') > 10
