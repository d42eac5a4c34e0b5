"""Write what the chart knows of a node's options anew: python deploy/config_schema.py

The schema of the value ``config`` refuses what a node refuses: a misspelt option would be an environment variable that
nobody reads, and a wrong value would end every pod. The list of all options is for the pod template, which names each
of them, given or not: in a rollback Helm takes back only what a release named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from kvorum.config import Config
from kvorum.config.options import HISTORY_AGE_S_MIN, HISTORY_BYTES_MIN
from kvorum.kv.limits import QUOTA_BYTES_MIN

CHART = Path(__file__).parent / "helm"
SCHEMA = CHART / "values.schema.json"
OPTIONS = CHART / "options.txt"
SET_BY_THE_CHART = frozenset(
    {
        "advertise_client_url",
        "advertise_peer_url",
        "data_dir",
        "discovery_dns",
        "dns_peer_port",
        "insecure",
        "listen_client",
        "listen_metrics",
        "listen_peer",
        "name",
        "peers",
        "replace_cluster_id",
        "replicas",
    }
)
"""Options that are not for the user of the chart."""
_LIMITS = ("minimum", "maximum", "maxLength", "enum")
_INTEGER_MAX = 2**53
"""Helm reads the numbers of a file as floats, which hold larger ones inexactly."""
_FURTHER_LIMITS: dict[str, dict[str, Any]] = {
    "finalize_after": {"pattern": "^(manual|[0-9]{1,6}[smhd]?)$"},
    "history_age_s": {"anyOf": [{"enum": [0]}, {"minimum": HISTORY_AGE_S_MIN}]},
    "history_bytes_max": {"anyOf": [{"enum": [0]}, {"minimum": HISTORY_BYTES_MIN}]},
    "quota_bytes": {"anyOf": [{"enum": [0]}, {"minimum": QUOTA_BYTES_MIN}]},
}
"""What the type of an option does not say."""


def config_schema() -> dict[str, Any]:
    """Return the schema of ``config``: every option with its type and limits, and no other."""
    properties = {}
    for name, field in _options().items():
        limits = {limit: field[limit] for limit in _LIMITS if limit in field}
        if "maximum" in limits:
            limits["maximum"] = min(limits["maximum"], _INTEGER_MAX)
        properties[name] = {"type": field.get("type", "string"), **limits, **_FURTHER_LIMITS.get(name, {})}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def option_names() -> list[str]:
    """Return the options that are for the user of the chart."""
    return list(_options())


def _options() -> dict[str, dict[str, Any]]:
    fields = msgspec.json.schema(Config)["$defs"]["Config"]["properties"]
    return {name: field for name, field in fields.items() if name not in SET_BY_THE_CHART}


def updated(text: str) -> str:
    """Return the chart's schema with that of ``config`` written anew."""
    schema = json.loads(text)
    schema["properties"]["config"] = config_schema()
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(updated(SCHEMA.read_text()))
    OPTIONS.write_text("\n".join(option_names()) + "\n")
