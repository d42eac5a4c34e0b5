"""Write the schema of the chart's value ``config`` anew from a node's options: python deploy/config_schema.py

A misspelt option would otherwise be an environment variable that nobody reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from kvorum.config import Config

SCHEMA = Path(__file__).parent / "helm" / "values.schema.json"
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


def config_schema() -> dict[str, Any]:
    """Return the schema of ``config``: every option with its type and limits, and no other."""
    fields = msgspec.json.schema(Config)["$defs"]["Config"]["properties"]
    properties = {}
    for name, field in fields.items():
        if name not in SET_BY_THE_CHART:
            # Numbers and switches may be given as texts, as `--set-string` does.
            types = {field["type"], "string"} if "type" in field else {"string"}
            limits = {limit: field[limit] for limit in _LIMITS if limit in field}
            properties[name] = {"type": sorted(types), **limits}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def updated(text: str) -> str:
    """Return the chart's schema with that of ``config`` written anew."""
    schema = json.loads(text)
    schema["properties"]["config"] = config_schema()
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(updated(SCHEMA.read_text()))
