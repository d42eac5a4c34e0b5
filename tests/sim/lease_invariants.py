"""What must always hold of leases, and what has been seen of them: none ends early, and its keys go with it, whole."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sim.invariants import Broken
from sim.plan import MS, S

from kvorum.kv.commands import (
    LeaseGrant,
    LeaseGranted,
    LeaseRefused,
    LeaseRenew,
    LeaseRenewed,
    LeaseRevoke,
    LeaseRevoked,
    Result,
    TxnRefused,
    decode_batch,
)
from kvorum.kv.leases import NOT_FOUND
from kvorum.kv.store import Store
from kvorum.kv.txn import LEASE_NOT_FOUND
from kvorum.raft.messages import Entry, EntryKind

if TYPE_CHECKING:
    from sim.node import SimNode
    from sim.watchers import Truth
    from sim.world import World

RATE_PER_MILLE = 990
"""Log time passes so fast by the leader's clock."""


class Promise(NamedTuple):
    """What a grant or a renewal that was applied promises."""

    since_us: int
    """When its entry was proposed, which is after it was sent."""
    ttl_s: int
    delay_s: int
    term: int


class Picture(NamedTuple):
    """The leases before an entry."""

    ids: frozenset[int]
    attached: Mapping[bytes, int]
    """Key -> its lease, of the keys that have one."""
    revision: int


def picture(model: Store) -> Picture:
    """Return the leases as they are now."""
    ids = frozenset(lease.id for lease in model.leases)
    records = model.versions.records
    attached = {key: record.lease for key, record in records.items() if record.lease} if ids else {}
    return Picture(ids, attached, model.revision)


class LeaseTruth:
    """What follows for the leases from the committed log, and when it was."""

    def __init__(self) -> None:
        self.proposed_us: dict[tuple[int, int], int] = {}
        """(index, term) of an entry -> when it was proposed."""
        self.promises: dict[int, Promise] = {}
        """Of every lease that nobody has revoked."""
        self.ended_us: dict[int, int] = {}
        """When a lease expired."""
        self.revoked: set[int] = set()

    def proposed(self, node: SimNode, last_index: int, payloads: Sequence[bytes]) -> None:
        """A leader proposed entries, of which the last one is at ``last_index``."""
        assert node.raft is not None
        for offset in range(len(payloads)):
            self.proposed_us[last_index - offset, node.raft.current_term] = node.world.clock.now

    def applied(
        self, world: World, entry: Entry, results: Sequence[Result], before: Picture, model: Store, truth: Truth
    ) -> None:
        """Look at what a committed entry did."""
        granted: set[int] = set()
        revoked: set[int] = set()
        if entry.kind is EntryKind.COMMAND:
            since_us = self.proposed_us.get((entry.index, entry.term), world.clock.now)
            for command, result in zip(decode_batch(entry.data).commands, results, strict=True):
                match command, result:
                    case LeaseGrant(), LeaseGranted():
                        self.promises[command.id] = Promise(since_us, result.ttl_s, command.delay_s, entry.term)
                        self.revoked.discard(command.id)
                        granted.add(command.id)
                        revoked.discard(command.id)
                        world.counts["leases granted"] += 1
                    case LeaseRenew(), LeaseRenewed():
                        before_it = self.promises[command.id]
                        self.promises[command.id] = before_it._replace(since_us=since_us, term=entry.term)
                        world.counts["leases renewed"] += 1
                        world.counts["leases renewed under another leader"] += before_it.term != entry.term
                    case LeaseRevoke(), LeaseRevoked():
                        self.promises.pop(command.id, None)
                        self.revoked.add(command.id)
                        revoked.add(command.id)
                        world.counts["leases revoked"] += 1
                    case LeaseRenew(), LeaseRefused(_, reason) if reason == NOT_FOUND:
                        world.counts["renewals of leases that are over"] += 1
                        a_lease_never_ends_early(self, world, command.id)
                    case _, TxnRefused() if result.reason == LEASE_NOT_FOUND:
                        world.counts["puts onto leases that are over"] += 1
                        a_lease_never_ends_early(self, world, result.number)
        after = picture(model)
        for lease in sorted((before.ids | granted) - after.ids - revoked):
            self._expired(world, entry, lease)
        if before.attached or after.attached:
            keys_of_a_living_lease_stay(before, after, model)
            keys_of_an_ended_lease_go_in_one_revision(before, after, truth)
            world.counts["keys that went with a lease"] += sum(
                key not in after.attached and lease not in after.ids for key, lease in before.attached.items()
            )

    def _expired(self, world: World, entry: Entry, lease: int) -> None:
        a_lease_never_ends_early(self, world, lease, is_expiry=True)
        promise = self.promises.pop(lease)
        self.ended_us[lease] = world.clock.now
        world.counts["leases expired"] += 1
        world.counts["leases expired under another leader"] += promise.term != entry.term


def lasts_us(world: World, seconds: int) -> int:
    """Return for how long at least so many seconds of log time last: they are true ones where clocks are right.

    Log time counts whole milliseconds: that is, one may be lost.
    """
    fastest = min(node.rate_per_mille for node in world.nodes.values())
    return seconds * S * min(fastest, RATE_PER_MILLE) // RATE_PER_MILLE - MS


def a_lease_never_ends_early(truth: LeaseTruth, world: World, lease: int, *, is_expiry: bool = False) -> None:
    """A lease that is over was not granted or renewed within its time to live; its keys stay for its delay, too."""
    promise = truth.promises.get(lease)
    if promise is None:
        return
    seconds = promise.ttl_s + (promise.delay_s if is_expiry else 0)
    early_us = promise.since_us + lasts_us(world, seconds) - world.clock.now
    if early_us > 0:
        raise Broken("a_lease_never_ends_early", f"lease {lease} is over {early_us} us before its time: {promise}")


def an_answered_grant_or_renewal_counts(truth: LeaseTruth, world: World, lease: int, sent_us: int, ttl_s: int) -> None:
    """A client that was told that its lease lives has it for its time to live after it asked."""
    if lease in truth.promises or lease in truth.revoked:
        return
    ended_us = truth.ended_us.get(lease, 0)
    if ended_us < sent_us + lasts_us(world, ttl_s):
        raise Broken(
            "an_answered_grant_or_renewal_counts",
            f"lease {lease} of {ttl_s} s, asked for at {sent_us} us, ended at {ended_us} us",
        )


def keys_of_a_living_lease_stay(before: Picture, after: Picture, model: Store) -> None:
    """No key goes but with its lease (nobody deletes such a key here), and no key has a lease that is gone."""
    for key, lease in before.attached.items():
        if lease in after.ids and key not in model.versions.records:
            raise Broken("keys_of_a_living_lease_stay", f"{key!r} is gone, and its lease {lease} is not")
    for key, lease in after.attached.items():
        if lease not in after.ids:
            raise Broken("keys_of_a_living_lease_stay", f"{key!r} has the lease {lease}, which is gone")


def keys_of_an_ended_lease_go_in_one_revision(before: Picture, after: Picture, truth: Truth) -> None:
    """All keys of a lease are deleted at one revision, in their order, and no others with them.

    A key that was put in the same entry may have got the lease there.
    """
    events = truth.events[bisect_left(truth.events, (before.revision + 1,)) :]
    deleted = {event.key: event.revision for event in events if event.value is None}
    put = {event.key for event in events if event.value is not None}
    for lease in before.ids - after.ids:
        keys = sorted(key for key, of in before.attached.items() if of == lease and key in deleted)
        for revision in {deleted[key] for key in keys}:
            at_once = [event.key for event in events if event.revision == revision]
            if [key for key in at_once if key in keys or key not in put] != keys or at_once != sorted(at_once):
                raise Broken(
                    "keys_of_an_ended_lease_go_in_one_revision",
                    f"with lease {lease} went {keys}, at revision {revision} {at_once}",
                )


def leases_agree(node: SimNode, store: Store, model: Store) -> None:
    """Every node has the leases that follow from the log, with their deadlines and keys."""
    if not len(store.leases) and not len(model.leases):
        return
    ours, theirs = ([(each.row(), sorted(each.keys)) for each in state.leases] for state in (store, model))
    if ours != theirs:
        raise Broken("leases_agree", f"{node.id} has {ours} after entry {store.applied_index}: {theirs}")


def a_lease_ends_in_time(world: World, lease: int, limit_us: int) -> None:
    """Without faults, a lease that nobody renews is gone soon after its time to live."""
    if world.clock.now > limit_us and world.facts.model.leases.get(lease) is not None:
        raise Broken("a_lease_ends_in_time", f"lease {lease} was to end by {limit_us} us; now is {world.clock.now} us")


def a_lease_has_at_most_its_ttl_left(lease: int, remaining_ms: int, ttl_s: int) -> None:
    """No node says that a lease has more left than a renewal would give it."""
    if not 0 <= remaining_ms <= 1000 * ttl_s:
        raise Broken("a_lease_has_at_most_its_ttl_left", f"{remaining_ms} ms of lease {lease} of {ttl_s} s")
