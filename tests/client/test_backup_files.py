"""Where ``kv snapshot save`` writes to."""

from __future__ import annotations

import hashlib
import io
import stat
from pathlib import Path

import msgspec
import pytest

from kvorum_client import cli_backup
from kvorum_client.backup import MAGIC, describe


def test_a_link_at_a_name_that_can_be_guessed_is_not_followed(tmp_path: Path) -> None:
    """In a folder such as /tmp, FILE.part was a link of somebody else: the backup truncated what it led to."""
    victim, target = tmp_path / "victim", tmp_path / "kv.backup"
    victim.write_bytes(b"precious")
    (tmp_path / "kv.backup.part").symlink_to(victim)
    with cli_backup._target(str(target), force=False) as file:
        file.write(b"backup")
    assert victim.read_bytes() == b"precious"
    assert target.read_bytes() == b"backup"
    assert not target.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["kv.backup", "n" * 250, "é" * 120], ids=["short", "long", "long in bytes"])
def test_a_backup_that_fails_leaves_no_file(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with pytest.raises(ZeroDivisionError), cli_backup._target(str(target), force=False) as file:
        file.write(b"half a backup")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with cli_backup._target(str(target), force=False) as file:
        file.write(b"backup")
    assert list(tmp_path.iterdir()) == [target]


def test_a_backup_of_a_later_version_is_described() -> None:
    """Later versions may add fields anywhere at the end."""
    description = msgspec.msgpack.encode([1, [7, 3, [], "more"], False, "more"])
    header = msgspec.msgpack.encode(["h", 3, 50, 7, 3, 0, 9, 40, 2, "more"])
    body = MAGIC + len(description).to_bytes(4, "little") + description
    body += len(header).to_bytes(4, "big") + bytes(4) + header
    backup = describe(io.BytesIO(body + hashlib.sha256(body).digest()))
    assert (backup.last_index, backup.last_term, backup.revision, backup.keys, backup.sessions) == (7, 3, 50, 40, 2)
