"""``GET /openapi.json``: the description of this API, made of the routes that are registered."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import hdrs
from aiohttp.web import BaseRequest

from kvorum.fronts.http import operations, parameters
from kvorum.fronts.http.operations import ANSWER_HEADERS, BODY_ERRORS, ERRORS, Answer, Field, Operation
from kvorum.fronts.http.problems import TABLE
from kvorum.fronts.http.request import Query, combined
from kvorum.fronts.http.response import Response
from kvorum.service import Service
from kvorum.service.access import ANONYMOUS
from kvorum.service.requests import GetVersion
from kvorum_wire import CLUSTER_HEADER, Problem

PATH = "/openapi.json"
DOCUMENT = Operation(
    summary="This description, in OpenAPI 3.1",
    headers=(operations.IF_NONE_MATCH,),
    answers=(
        Answer("The description.", {operations.JSON: {"type": "object"}}, ("ETag", "Cache-Control")),
        Answer("It has not changed.", {}, ("ETag", "Cache-Control"), status=304),
    ),
)

Routes = Callable[[], Iterable[tuple[str, str, Operation]]]
_REFERENCE = "#/components/schemas/{name}"
_CLUSTER = Field(CLUSTER_HEADER, parameters.CLUSTER.description, operations.STRING)
_DESCRIPTION = (
    "A linearizable key-value store. Errors are application/problem+json; programs use the member code, and outcome "
    "says whether a write was certainly not done (refused) or may have been done (unknown). A path that is not listed "
    "answers 404 unknown_path, and a method that is not listed 405 method_not_allowed. An unknown or repeated "
    "parameter is refused with 400."
)


class DocumentHandler:
    """The handler of the description, which is made when it is first asked for.

    Args:
        service: knows the version.
        routes: what is registered.
    """

    def __init__(self, service: Service, routes: Routes) -> None:
        self._execute = service.execute
        self._routes = routes
        self._body = b""
        self._etag = ""

    async def get(self, request: BaseRequest, name: str, raw_query: str) -> Response:
        """``GET /openapi.json``."""
        Query(raw_query, DOCUMENT.parameters)
        if not self._body:
            result = await self._execute(ANONYMOUS, GetVersion())
            self._body = msgspec.json.encode(document(self._routes(), result.version)) + b"\n"
            self._etag = f'"{hashlib.sha256(self._body).hexdigest()[:16]}"'
        # It changes with the version of the node only, and a client cannot know when that is.
        headers = f"ETag: {self._etag}\r\nCache-Control: no-cache\r\n"
        known = combined(request.headers, hdrs.IF_NONE_MATCH) or ""
        if known.strip() == "*" or self._etag in {each.strip().removeprefix("W/") for each in known.split(",")}:
            return Response(304, content_type="", headers=headers)
        return Response(200, self._body, operations.JSON, headers)


def document(routes: Iterable[tuple[str, str, Operation]], version: str) -> dict[str, Any]:
    """Return the description of these routes: path, method and operation of each."""
    listed = sorted(routes, key=lambda route: route[:2])
    shapes = {shape: None for _, _, operation in listed for shape in _structs(operation)} | {Problem: None}
    found, components = msgspec.json.schema_components(tuple(shapes), ref_template=_REFERENCE)
    schemas = dict(zip(shapes, found, strict=True))
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for path, method, operation in listed:
        paths[path][method.lower()] = _operation(path, method, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kvorum",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }


def _structs(operation: Operation) -> Iterable[type]:
    shapes = [shape for answer in operation.answers for shape in answer.content.values()]
    if operation.body is not None:
        shapes.append(operation.body.shape)
    for shape in shapes:
        yield from (each for each in (shape if isinstance(shape, tuple) else (shape,)) if isinstance(each, type))


def _operation(path: str, method: str, operation: Operation, schemas: Mapping[type, Any]) -> dict[str, Any]:
    is_head = method == "HEAD"
    described: dict[str, Any] = {
        "operationId": method.lower() + path.translate({ord(mark): "_" for mark in "/{}."}),
        "summary": operation.summary,
        "parameters": [*_parameters(operation)],
        "responses": {},
    }
    if (body := operation.body) is not None:
        described["requestBody"] = {
            "required": body.required,
            "content": {body.media_type: _media(body.shape, schemas)},
        }
    for answer in operation.answers:
        described["responses"][str(answer.status)] = _answer(answer, schemas, is_head=is_head)
    codes = operation.errors | ERRORS | (BODY_ERRORS if operation.body else frozenset())
    for status, error in _errors(codes, schemas, is_head=is_head).items():
        present = described["responses"].setdefault(status, error)
        if present is not error:  # A probe's own 503 beside that of an error.
            present["description"] += " " + error["description"]
            present.setdefault("content", {}).update(error.get("content", {}))
            present["headers"] |= error["headers"]
    return described


def _parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    if operation.name is not None:
        yield _field(operation.name, "path")
    for parameter in sorted(operation.parameters | {parameters.CLUSTER}):
        yield {
            "name": str(parameter),
            "in": "query",
            "required": parameter in operation.required,
            "description": parameter.description,
            "schema": parameter.schema,
        }
    for field in (*operation.headers, _CLUSTER):
        yield _field(field, "header")


def _field(field: Field, where: str) -> dict[str, Any]:
    return {
        "name": field.name,
        "in": where,
        "required": where == "path",
        "description": field.description,
        "schema": field.schema,
    }


def _media(shape: Any, schemas: Mapping[type, Any]) -> dict[str, Any]:
    if isinstance(shape, tuple):
        return {"schema": {"anyOf": [schemas[each] for each in shape]}}
    return {"schema": schemas[shape]} if isinstance(shape, type) else {"schema": shape} if shape else {}


def _answer(answer: Answer, schemas: Mapping[type, Any], *, is_head: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": answer.description,
        "headers": _headers((*answer.headers, CLUSTER_HEADER)),
    }
    if not is_head and answer.content:
        described["content"] = {media_type: _media(shape, schemas) for media_type, shape in answer.content.items()}
    return described


def _headers(names: Iterable[str]) -> dict[str, Any]:
    facts = ANSWER_HEADERS
    return {name: {"description": facts[name][0], "schema": facts[name][1]} for name in names}


def _errors(codes: Iterable[str], schemas: Mapping[type, Any], *, is_head: bool) -> dict[str, dict[str, Any]]:
    """Return the answers to errors by status. Those of one status differ in ``code``."""
    by_status: dict[int, list[str]] = defaultdict(list)
    for code in sorted(codes):
        by_status[TABLE[code].status].append(code)
    found: dict[str, dict[str, Any]] = {}
    for status, names in sorted(by_status.items()):
        headers = [CLUSTER_HEADER]
        if any(TABLE[code].retry_after_s is not None for code in names):
            headers.append("Retry-After")
        if status == 307:
            headers += ["Location", "X-Kvorum-Leader"]
        found[str(status)] = {
            "description": " ".join(f"{code}: {TABLE[code].title}." for code in names),
            "headers": _headers(headers),
        }
        if not is_head:
            coded = {"properties": {"code": {"enum": names}, "status": {"const": status}}}
            found[str(status)]["content"] = {
                "application/problem+json": {"schema": {"allOf": [schemas[Problem], coded]}}
            }
    return found
