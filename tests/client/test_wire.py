"""The shared bodies: data only, and readable by a client of another version than the node."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

import kvorum_wire as wire

STATUS_OF_0_1_0 = {
    "cluster_id": "c" * 32,
    "name": "n1",
    "id": "n1@00",
    "version": "0.1.0",
    "state": "leader",
    "term": 3,
    "leader": "n1@00",
    "leader_name": "n1",
    "leader_client_url": "http://127.0.0.1:8001",
    "commit_index": 9,
    "applied_index": 9,
    "first_index": 1,
    "last_index": 9,
    "saved_index": 9,
    "snapshot_index": 0,
    "revision": 7,
    "state_hash": "0" * 16,
    "keys": 2,
    "sessions": 1,
    "members": [{"id": "n1@00", "name": "n1", "voter": True, "peer_url": "http://p", "client_url": "http://c"}],
    "last_contact_ms": None,
    "caught_up": True,
    "quarantined": None,
    "distrusted": None,
}


def test_the_schema_loads_nothing_of_either_side() -> None:
    code = (
        "import sys, kvorum_wire\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('kvorum', 'kvorum_client', 'aiohttp', 'asyncio')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("more", [{}, {"a_field_of_a_newer_node": {"x": 1}}])
def test_a_status_of_an_older_or_newer_node_is_read(more: dict[str, object]) -> None:
    status = msgspec.json.decode(msgspec.json.encode(STATUS_OF_0_1_0 | more), type=wire.NodeStatus)
    assert msgspec.to_builtins(status)["members"][0]["name"] == "n1"
    written = msgspec.json.decode(msgspec.json.encode(status))
    assert {name: written[name] for name in STATUS_OF_0_1_0 if name != "members"} == {
        name: value for name, value in STATUS_OF_0_1_0.items() if name != "members"
    }


def test_an_answer_to_a_write_is_read_as_its_result() -> None:
    put = msgspec.json.encode(wire.PutAnswer(4, 1, 4, 2, "k"))
    assert msgspec.json.decode(put, type=wire.PutResult) == wire.PutResult(4, 1, 4, 2)
    assert msgspec.json.decode(put) == {
        "revision": 4,
        "create_revision": 1,
        "mod_revision": 4,
        "version": 2,
        "key": "k",
    }
    delete = msgspec.json.encode(wire.DeleteAnswer(5, 0, None, "/w=="))
    assert msgspec.json.decode(delete, type=wire.DeleteResult) == wire.DeleteResult(5, 0)
    assert msgspec.json.decode(delete) == {"revision": 5, "deleted": 0, "key_base64": "/w=="}


def test_a_problem_has_only_the_fields_that_were_given_even_if_they_are_zero_or_null() -> None:
    problem = wire.Problem("c", "urn:x", "t", 409, "d", "refused", mod_revision=0, staleness_ms=None)
    assert msgspec.json.decode(msgspec.json.encode(problem)) == {
        "code": "c",
        "type": "urn:x",
        "title": "t",
        "status": 409,
        "detail": "d",
        "outcome": "refused",
        "mod_revision": 0,
        "staleness_ms": None,
    }


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (wire.AddMember, b'{"name": "n4", "peer_url": "http://p", "client_url": "http://c", "voter": true}'),
        (wire.TransferLeadership, b'{"to": "n2"}'),
    ],
)
def test_a_field_that_a_node_does_not_know_is_not_ignored_in_a_request(kind: type, body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=kind)
