"""What the tests of the client share."""

from __future__ import annotations

import pytest

from kvorum_client import cli_waiting


@pytest.fixture(autouse=True)
def no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """``kv`` says after a second what it waits for. On a busy machine any call may take so long.

    It is not said here, but in the tests that take ``notice`` and by processes.
    """
    monkeypatch.setattr(cli_waiting, "NOTICE_S", 3600.0)


@pytest.fixture
def notice(no_notice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``kv`` say after a second what it waits for."""
    monkeypatch.setattr(cli_waiting, "NOTICE_S", 1.0)
