"""What a fault makes of a record in a process's memory."""

from __future__ import annotations

from kvorum.service.node_port import RecordView

DAMAGE = b"#"
"""What a damaged value consists of; no client writes such a value."""
DAMAGED_BYTES = 8
"""A value is at least so long."""


def is_damaged(record: RecordView | None) -> bool:
    """Tell whether a fault changed this record in a process's memory."""
    return record is not None and record.value.startswith(DAMAGE)
