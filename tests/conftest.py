"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# On a busy machine any example may take long, and a test says nothing by the time that it takes.
settings.register_profile("kvorum", deadline=None)
settings.load_profile("kvorum")
