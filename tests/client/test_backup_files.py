"""Where ``kv snapshot save`` writes to."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kvorum_client import cli_backup


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
