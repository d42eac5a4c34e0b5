"""The exceptions of the client: their names, old and new."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kvorum_client
from kvorum_client import errors


@pytest.mark.parametrize("module", [kvorum_client, errors])
@pytest.mark.parametrize("name", errors.RENAMED)
def test_an_old_name_is_still_the_same_class_and_warns(module: object, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"kvorum_client.{name} is now {errors.RENAMED[name].__name__}"):
        assert getattr(module, name) is errors.RENAMED[name]


def test_the_warning_names_the_line_that_imports_the_old_name() -> None:
    code = "x = 1\nfrom kvorum_client import RefusedError\n"
    command = [sys.executable, "-W", "always", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert "<string>:2: DeprecationWarning: kvorum_client.RefusedError is now RefusedError" in result.stderr


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'kvorum_client' has no attribute 'Refusal'"):
        _ = kvorum_client.Refusal  # type: ignore[attr-defined]


def test_every_exception_ends_in_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 7
    assert all(kind.__name__.endswith("Error") for kind in kinds)
