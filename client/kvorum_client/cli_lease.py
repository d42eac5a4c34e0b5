"""``kv lease``: grant leases, keep them alive, end them, and see which there are."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any

from kvorum_client.arguments import TIMEOUT_S_MAX
from kvorum_client.cli_arguments import add_output, lease_id, whole_number
from kvorum_client.cli_output import print_json, print_json_line, print_table, printable, say, text_fields
from kvorum_client.client import Client
from kvorum_client.errors import OutcomeUnknownError, UnavailableError
from kvorum_client.leases import LOCK_DELAY_S_MAX, RENEWALS, TTL_S_MAX, LeaseInfo, now, shown_id


def fill(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands of the group."""
    granting = add("grant", grant, "grant a lease and print its id")
    granting.add_argument(
        "ttl", metavar="TTL", type=ttl, help="how long it lives without a renewal, in seconds: 2 to 9,000,000,000"
    )
    granting.add_argument("--id", metavar="ID", type=lease_id, help="in hex [default: drawn at random]")
    add_delay(granting, "how much longer its keys stay if it was not renewed in time")
    keeping = add("keep", keep, "keep a lease alive until interrupted; a line for each renewal")
    keeping.add_argument("id", metavar="ID", type=lease_id, help="as `kv lease grant` prints it")
    keeping.add_argument("--once", action="store_true", help="renew it once and exit")
    revoking = add("revoke", revoke, "end a lease and delete its keys")
    revoking.add_argument("id", metavar="ID", type=lease_id, help="as `kv lease grant` prints it")
    showing = add("show", show, "show for how long a lease lives")
    showing.add_argument("id", metavar="ID", type=lease_id, help="as `kv lease grant` prints it")
    showing.add_argument("--keys", action="store_true", help="show its keys, too")
    listing = add("ls", ls, "list all leases")
    for command in (granting, keeping, revoking, showing, listing):
        add_output(command)


def add_delay(command: argparse.ArgumentParser, what: str) -> None:
    """Add the option for the lock-delay."""
    command.add_argument(
        "--delay", metavar="SECONDS", type=delay, default=0, help=f"{what}; 0 to {LOCK_DELAY_S_MAX} [default 0]"
    )


ttl = whole_number("a whole number of seconds", 1, TTL_S_MAX, note=" (1 is taken as 2)")
delay = whole_number("a whole number of seconds", 0, LOCK_DELAY_S_MAX)


async def grant(client: Client, options: argparse.Namespace) -> int:
    """``kv lease grant TTL``."""
    granted = await client.grant_lease(options.ttl, id=options.id, lock_delay_s=options.delay)
    if options.output == "json":
        fields = {"ttl_s": granted.ttl_s, "lock_delay_s": granted.lock_delay_s, "revision": granted.revision}
        print_json({"id": shown_id(granted.id), **fields})
    else:
        print(shown_id(granted.id))
    return 0


async def keep(client: Client, options: argparse.Namespace) -> int:
    """``kv lease keep ID``."""
    sent = now()
    ttl_s = await client.keep_lease_alive(options.id)
    options.has_begun = lambda: True
    while True:
        if options.output == "json":
            print_json_line({"id": shown_id(options.id), "ttl_s": ttl_s})
        else:
            print(f"lease {shown_id(options.id)} lives for {ttl_s} s", flush=True)
        if options.once:
            return 0
        await asyncio.sleep(max(0.0, sent + ttl_s / RENEWALS - now()))
        sent, ttl_s = await _renew(client, options.id, sent + ttl_s)


async def _renew(client: Client, id: int, deadline: float) -> tuple[float, int]:
    """Return when the renewal was sent that succeeded, and the time to live."""
    while True:
        sent = now()
        try:
            return sent, await client.keep_lease_alive(id, timeout_s=min(max(0.5, deadline - sent), TIMEOUT_S_MAX))
        except (UnavailableError, OutcomeUnknownError) as error:
            if now() >= deadline:
                raise
            say(f"not renewed yet: {error}")


async def revoke(client: Client, options: argparse.Namespace) -> int:
    """``kv lease revoke ID``."""
    deleted = await client.revoke_lease(options.id)
    if options.output == "json":
        print_json({"id": shown_id(options.id), "deleted": deleted})
    else:
        print(f"lease {shown_id(options.id)} is revoked; {deleted} keys deleted")
    return 0


async def show(client: Client, options: argparse.Namespace) -> int:
    """``kv lease show ID``."""
    lease = await client.lease_info(options.id, keys=options.keys)
    if lease is None:
        say(f"no such lease: {shown_id(options.id)}")
        return 1
    if options.output == "json":
        print_json(_fields(lease))
        return 0
    _print([lease])
    for key in lease.keys or ():
        print(f"  {printable(key.decode('utf-8', 'backslashreplace'))}")
    return 0


async def ls(client: Client, options: argparse.Namespace) -> int:
    """``kv lease ls``."""
    found = await client.leases()
    if options.output == "json":
        print_json([_fields(each) for each in found])
    else:
        _print(list(found))
    return 0


def _fields(lease: LeaseInfo) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": shown_id(lease.id)}
    fields |= {name: getattr(lease, name) for name in ("ttl_s", "remaining_ms", "key_count", "lock_delay_s")}
    return fields if lease.keys is None else {**fields, "keys": [text_fields("key", key) for key in lease.keys]}


def _print(found: list[LeaseInfo]) -> None:
    rows = [["ID", "TTL", "REMAINING", "KEYS", "LOCK-DELAY"]]
    for each in found:
        remaining = f"{each.remaining_ms / 1000:.1f} s" if each.remaining_ms else "over"
        rows.append([shown_id(each.id), f"{each.ttl_s} s", remaining, str(each.key_count), f"{each.lock_delay_s} s"])
    print_table(rows)
