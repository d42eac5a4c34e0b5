"""The Prometheus operator's own definitions of its kinds, against which what the chart renders for it is checked.

They are fetched once as a Go module (the operator ships them inside), by version and checksum, and kept under build/.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

MODULE, VERSION = "github.com/prometheus-operator/prometheus-operator", "v0.86.1"
CHECKSUM = "h1:pHUuiRErcFb3nFDox7RxoxpEN0FyT24GtYOkr2GBu04="
PLURALS = {"PodMonitor": "podmonitors", "ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"}
CACHE = Path(__file__).parents[2] / "build" / "operator-crds" / VERSION

Schema = dict[str, Any]


def definition(kind: str) -> Path:
    """Return the file with the CustomResourceDefinition of a kind; skip the test if it cannot be had."""
    if not CACHE.is_dir():
        _fetch()
    return CACHE / f"monitoring.coreos.com_{PLURALS[kind]}.yaml"


def _fetch() -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed: it fetches the Prometheus operator's CRDs (go mod download)")
    with tempfile.TemporaryDirectory() as folder:
        # The checksum is ours to compare: no other server is asked for it.
        settings = {"GOMODCACHE": folder, "GOFLAGS": "-modcacherw", "GONOSUMDB": MODULE, "GOTOOLCHAIN": "local"}
        result = subprocess.run(
            [go, "mod", "download", "-json", f"{MODULE}@{VERSION}"],
            cwd=folder,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        answer = json.loads(result.stdout) if result.stdout.startswith("{") else {"Error": result.stderr.strip()}
        if "Error" in answer:
            pytest.skip(f"the Prometheus operator's CRDs cannot be fetched: {answer['Error']}")
        assert answer["Sum"] == CHECKSUM, f"{MODULE}@{VERSION} is not what it was"
        _keep(Path(answer["Dir"]) / "example" / "prometheus-operator-crd")


def _keep(source: Path) -> None:
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another run may be looking.
    fresh = Path(tempfile.mkdtemp(dir=CACHE.parent))
    for plural in PLURALS.values():
        shutil.copy(source / f"monitoring.coreos.com_{plural}.yaml", fresh)
    if not CACHE.is_dir():
        fresh.rename(CACHE)


def complaints(document: dict[str, Any]) -> list[str]:
    """Return what the operator's definition has against a document: unknown fields, missing ones, wrong types."""
    found = yaml.safe_load(definition(document["kind"]).read_text())["spec"]
    group, _, version = document["apiVersion"].partition("/")
    assert group == found["group"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in found["versions"] if v["name"] == version and v["served"]]
    errors = Draft202012Validator(_closed(schema)).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def _closed(schema: Schema) -> Schema:
    """Forbid unknown fields, as ``kubectl apply --validate=strict`` does; the API server would drop them silently."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            closed[inner] = _closed(schema[inner])
    return closed
