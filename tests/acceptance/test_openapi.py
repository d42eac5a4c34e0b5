"""Requests made from ``/openapi.json`` are sent to a live node, and its answers must be those that it describes.

``KVORUM_FUZZ_EXAMPLES``: how many requests of each operation, in each of the two ways (valid, and invalid).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from acceptance.processes import Cluster
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

EXAMPLES = int(os.environ.get("KVORUM_FUZZ_EXAMPLES", "8"))
ENDLESS = {"/v1/watch"}
CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Cluster(Path(tmp_path_factory.mktemp("openapi")), size=1) as cluster:
        yield f"http://127.0.0.1:{cluster.client_ports['n1']}"


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_those_of_the_document(url: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    called = 0
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # An Err raises here, and fails the test.
        if operation.path in ENDLESS:
            continue
        called += 1

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            # Almost every request with one of them would be for another cluster.
            if case.query and len(case.query) > 1:
                case.query.pop("cluster", None)
            for endless in ("wait_ms", "watch"):
                if case.query:
                    case.query.pop(endless, None)
            if case.headers:
                case.headers.pop("X-Kvorum-Cluster", None)
            response = case.call(timeout=20)
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=CHECKS)

        check()
    assert called > 25
