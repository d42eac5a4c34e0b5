"""Reads of the past, from a store that holds what the read must see."""

from __future__ import annotations

from kvorum.kv.features import HISTORY_LEVEL, check_level
from kvorum.service.limits import HISTORY_BYTES_MAX
from kvorum.service.node_port import StoreView
from kvorum.service.requests import Get, GetHistory
from kvorum.service.results import GetResult, History


def read_past(request: Get | GetHistory, store: StoreView, staleness_ms: int | None) -> GetResult | History:
    """Return what the history says, at a moment at which the read may take it from the store.

    Raises:
        FeatureUnavailableError: there is no history below its feature level.
        RevisionCompactedError, RevisionInFutureError: it does not have the revision.
    """
    check_level("a read of the past", HISTORY_LEVEL, store.feature_level)
    if isinstance(request, Get):
        return GetResult(store.get(request.key, request.revision), store.revision, staleness_ms)
    found = store.history(request.key, request.limit + 1, request.revision)
    versions = found[: request.limit]
    size_bytes = 0
    for count, version in enumerate(versions):
        size_bytes += len(version.value)
        if count and size_bytes > HISTORY_BYTES_MAX:
            versions = versions[:count]
            break
    return History(tuple(versions), store.revision, store.floor, len(versions) < len(found), staleness_ms)
