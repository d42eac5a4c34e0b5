"""A plugin of pytest: property tests run last, since each takes as long as a hundred others."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("hypothesis") is not None)
