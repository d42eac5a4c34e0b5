"""What must always hold of ranges: they are the state at one revision, whole and in order, and not too old."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from sim.damage import DAMAGE
from sim.invariants import Broken
from sim.watchers import Event

from kvorum.kv.ranges import RangeQuery
from kvorum.service.requests import CommonPrefix
from kvorum.service.results import RangeItem

if TYPE_CHECKING:
    from sim.facts import Facts
    from sim.node import SimNode

State = Mapping[bytes, Event]
Shown = tuple[bytes, bytes | int, int, int, int]
"""A key, its value, create revision, mod revision and version; of a common prefix: it, how many keys, and zeros."""


def a_range_is_the_state_at_its_revision(
    facts: Facts, node: SimNode, query: RangeQuery, revision: int, done: int, items: Sequence[RangeItem],
    *, is_complete: bool,
) -> None:  # fmt: skip
    """What a range finds is what there was at its revision: nothing is missing, double, or of another revision.

    Args:
        facts: the truth.
        node: who answered.
        query: what was asked.
        revision: the one that the answer names.
        done: so many items came in earlier pages.
        items: those of this page.
        is_complete: the answer says that nothing follows.
    """
    state = facts.truth.state(revision)
    if state is None:
        return
    due = expected_items(state, query)[done:]
    found = [_shown(item) for item in items]
    if not is_complete:
        due = due[: len(found)]
    if len(found) != len(due) or not all(map(_are_alike, found, due)):
        raise Broken(
            "a_range_is_the_state_at_its_revision",
            f"{node.id} finds {found} at revision {revision} after {done} items; there was {due} ({query})",
        )


def a_count_is_that_of_its_revision(facts: Facts, node: SimNode, query: RangeQuery, revision: int, count: int) -> None:
    """The count is that of the whole range at its revision, whatever was left out of the answer."""
    state = facts.truth.state(revision)
    if state is not None and count != len(_keys(state, query)):
        raise Broken(
            "a_count_is_that_of_its_revision",
            f"{node.id} counts {count} keys at revision {revision}; there were {len(_keys(state, query))} ({query})",
        )


def a_page_is_within_its_limit(node: SimNode, query: RangeQuery, items: Sequence[RangeItem]) -> None:
    """An answer has no more than was asked for."""
    if query.limit and len(items) > query.limit:
        raise Broken("a_page_is_within_its_limit", f"{node.id} answers {len(items)} items to {query}")


def a_range_is_at_the_revision_that_was_asked_for(node: SimNode, asked: int, revision: int) -> None:
    """A query that names a revision, or goes on from a cursor, is answered at that revision."""
    if asked and revision != asked:
        raise Broken(
            "a_range_is_at_the_revision_that_was_asked_for", f"{node.id} answers at {revision}; {asked} was asked for"
        )


def a_linearizable_range_has_all_that_was_acknowledged(node: SimNode, acknowledged: int, revision: int) -> None:
    """A linearizable range at the latest revision has every write that was acknowledged before it was asked for."""
    if revision < acknowledged:
        raise Broken(
            "a_linearizable_range_has_all_that_was_acknowledged",
            f"{node.id} answers at revision {revision}; {acknowledged} was acknowledged when it was asked",
        )


def expected_items(state: State, query: RangeQuery) -> list[Shown]:
    """Return all items of a range at a state, found by looking at every key; its limit is not looked at."""
    if query.count_only:
        return []
    events = [state[key] for key in _keys(state, query)]
    events = [event for event in events if _is_admitted(event, query)]
    if query.sort != "key":
        place = {"create": 4, "mod": 0, "version": 3, "value": 2}[query.sort]
        events.sort(key=itemgetter(place), reverse=query.reverse)
        return [_record(event, query) for event in events]
    items: dict[bytes, Shown] = {}
    for event in events:
        prefix = _common_prefix(event.key, query)
        if prefix:
            _, count, *_ = items.get(prefix, (prefix, 0))
            assert isinstance(count, int)
            items[prefix] = (prefix, count + 1, 0, 0, 0)
        else:
            items[event.key] = _record(event, query)
    return [items[key] for key in sorted(items, reverse=query.reverse)]


def _keys(state: State, query: RangeQuery) -> list[bytes]:
    bound = query.bound
    return sorted(key for key in state if query.start <= key and (bound is None or key < bound))


def _is_admitted(event: Event, query: RangeQuery) -> bool:
    lowest_mod, highest_mod = query.min_mod_revision, query.max_mod_revision or event.revision
    lowest, highest = query.min_create_revision, query.max_create_revision or event.create_revision
    return lowest_mod <= event.revision <= highest_mod and lowest <= event.create_revision <= highest


def _common_prefix(key: bytes, query: RangeQuery) -> bytes:
    if not query.delimiter:
        return b""
    stem, delimiter, _ = key[len(query.start) :].partition(query.delimiter)
    return query.start + stem + delimiter if delimiter else b""


def _record(event: Event, query: RangeQuery) -> Shown:
    value = b"" if query.keys_only else event.value or b""
    return event.key, value, event.create_revision, event.revision, event.version


def _shown(item: RangeItem) -> Shown:
    if isinstance(item, CommonPrefix):
        return item.prefix, item.count, 0, 0, 0
    return item.key, item.value, item.create_revision, item.mod_revision, item.version


def _are_alike(found: Shown, due: Shown) -> bool:
    if isinstance(found[1], bytes) and found[1].startswith(DAMAGE):
        return found[0] == due[0] and found[2:] == due[2:]  # The fault's own doing, until the product has noticed.
    return found == due
