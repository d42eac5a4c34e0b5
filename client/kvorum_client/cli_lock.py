"""``kv lock`` and ``kv elect``: hold a lock or lead while a command runs; and who does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from kvorum_client.cli_arguments import add_output, name, seconds
from kvorum_client.cli_guard import EXIT_LOST, Signals, run_command
from kvorum_client.cli_lease import add_delay, ttl
from kvorum_client.cli_output import print_json, print_json_line, print_table, printable, say, text_fields
from kvorum_client.client import Client
from kvorum_client.elections import Election
from kvorum_client.errors import ClientError, InvalidArgumentError, LockLostError, UnavailableError
from kvorum_client.leases import shown_id
from kvorum_client.locks import TTL_S, Lock, LockHolder, LockInfo

NOTICE_S = 1.0
GRACE_S = 10.0
LOCK_HELP = """\
Holds the lock NAME while COMMAND runs, and exits with its status; without a
COMMAND, until interrupted. COMMAND finds the fencing token in KVORUM_LOCK_TOKEN
and the name in KVORUM_LOCK_NAME. It must pass the token on to whatever it
changes, which refuses a lower token than it has seen: a command that stood
still may go on when another one holds the lock.

If the lock is lost, COMMAND gets SIGTERM, and after --grace SIGKILL; the status
is then never 0. Signals are passed on to COMMAND. On a terminal COMMAND stays
in the process group of kv; otherwise it has one of its own, all of which is
signalled.
"""
ELECT_HELP = """\
Campaigns in the election NAME, and leads while COMMAND runs; without a COMMAND,
until interrupted. COMMAND finds the fencing token in KVORUM_ELECTION_TOKEN and
the name in KVORUM_ELECTION_NAME. Everything else is as of `kv lock`.

kv elect --listen NAME prints a line whenever the leader, or its value, changes.
"""
HOLD_EPILOG = """\
exit status: that of COMMAND (128 + N if signal N ended it); 1 if the lock is
held by another one after --wait, or was lost; 126 or 127 if COMMAND cannot be
run; 130 or 143 if a signal ended kv, which has released the lock then. Others,
and defaults: kv --help.
"""


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    locking = add("lock", lock, "hold a lock while a command runs, or until interrupted")
    locking.description, locking.epilog = LOCK_HELP, HOLD_EPILOG
    locking.add_argument("name", metavar="NAME", type=name, help="of the lock")
    electing = add("elect", elect, "lead an election while a command runs, or see who leads")
    electing.description, electing.epilog = ELECT_HELP, HOLD_EPILOG
    electing.add_argument("name", metavar="NAME", type=name, help="of the election")
    electing.add_argument(
        "value", metavar="VALUE", nargs="?", help="what the leader says of itself, such as its address"
    )
    electing.add_argument("--listen", action="store_true", help="print who leads, until interrupted; do not campaign")
    for command in (locking, electing):
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.usage = f"{command.prog} [options] NAME{' VALUE' if command is electing else ''} [-- COMMAND...]"
        command.set_defaults(command=[])
        vars(command)["takes_command"] = True  # of cli._Parser
        command.add_argument(
            "--ttl", metavar="SECONDS", type=ttl, default=TTL_S,
            help=f"how long it is held without an answer of the cluster [default {TTL_S}]",
        )  # fmt: skip
        command.add_argument(
            "--wait", metavar="SECONDS", type=_wait, help="give up after so long; 0: at once [default: never]"
        )
        add_delay(command, "how much longer nobody else gets it after it was lost")
        command.add_argument(
            "--grace", metavar="SECONDS", type=seconds, default=GRACE_S,
            help=f"from SIGTERM to SIGKILL, if it is lost [default {GRACE_S:g}]",
        )  # fmt: skip
        add_output(command, help="of the line that says that it is held, or who leads [default table]")
    listing = add("locks", locks, "list all locks, or show who holds a lock and who waits for it")
    elections_ = add("elections", elections, "list all elections, or show who leads and who waits")
    for command in (listing, elections_):
        command.add_argument("name", metavar="NAME", type=name, nargs="?", help="show this one [default: list all]")
        add_output(command)


def _wait(text: str) -> float:
    if text.strip("0.") == "" and text.strip("."):
        return 0.0
    try:
        return seconds(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; 0: at once") from None


async def lock(client: Client, options: argparse.Namespace) -> int:
    """``kv lock NAME [-- COMMAND...]``."""
    holding = client.lock(options.name, ttl_s=options.ttl, wait_s=options.wait, lock_delay_s=options.delay)
    return await _hold(client, holding, "lock", options)


async def elect(client: Client, options: argparse.Namespace) -> int:
    """``kv elect NAME VALUE [-- COMMAND...]``, ``kv elect --listen NAME``."""
    if options.listen:
        if options.value is not None or options.command:
            raise InvalidArgumentError("--listen only shows who leads: it takes a NAME, and no VALUE or COMMAND")
        return await _listen(client, options)
    if options.value is None:
        raise InvalidArgumentError("say with which VALUE to campaign, or --listen to see who leads")
    holding = client.election(
        options.name, options.value, ttl_s=options.ttl, wait_s=options.wait, lock_delay_s=options.delay
    )
    return await _hold(client, holding, "election", options)


def _status_without(command: list[str], what: str) -> int:
    """Return the exit status if there is no such command, before the lock is taken for it; 0: there is, or none."""
    if not command or shutil.which(command[0]) is not None:
        return 0
    exists = os.path.exists(command[0])
    say(f"{command[0]}: {'cannot be executed' if exists else 'no such command'}; the {what} was not taken")
    return 126 if exists else 127


async def _hold(client: Client, holding: Lock | Election, what: str, options: argparse.Namespace) -> int:
    if status := _status_without(options.command, what):
        return status
    options.has_begun = lambda: holding.lease.is_alive
    with Signals() as signals:
        try:
            notice = asyncio.create_task(_say_who_holds(client, what, options.name))
            try:
                await holding.__aenter__()
            finally:
                notice.cancel()
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(holding.__aexit__)
                return await _while_held(holding, what, options, signals)
        except LockLostError as error:
            say(f"the {what} {options.name} is lost: {error}")
            return EXIT_LOST
        except asyncio.CancelledError:
            if not signals.ended_by:
                raise
            return 128 + signals.ended_by


async def _while_held(holding: Lock | Election, what: str, options: argparse.Namespace, signals: Signals) -> int:
    token = holding.fencing_token
    if not options.command:
        if options.output == "json":
            fields = {"fencing_token": token, "lease": shown_id(holding.lease.id)}
            print_json_line({**text_fields("name", holding.name), **fields})
        else:
            print(token, flush=True)
        await holding.lost.wait()
        return EXIT_LOST
    prefix = f"KVORUM_{what.upper()}"
    environment = {**os.environ, f"{prefix}_TOKEN": str(token), f"{prefix}_NAME": options.name}
    return await run_command(options.command, environment, holding.lost, options.grace, signals)


async def _say_who_holds(client: Client, what: str, name: str) -> None:
    await asyncio.sleep(NOTICE_S)
    with contextlib.suppress(ClientError):
        info = await (client.lock_info(name) if what == "lock" else client.election_info(name))
        if info is not None and info.holder is not None:
            does = "holds" if what == "lock" else "leads"
            before = f", and {info.waiter_count - 1} others wait" if info.waiter_count > 1 else ""
            say(f"waiting for the {what} {name}: the lease {shown_id(info.holder.lease)} {does} it{before}")


async def _listen(client: Client, options: argparse.Namespace) -> int:
    observing = client.election(options.name).observe(timeout_s=getattr(options, "timeout", None))
    try:
        await _show_leaders(observing, options)
    except UnavailableError as error:
        if not hasattr(options, "has_begun"):
            raise
        raise UnavailableError(f"the election is out of sight, and no node answers in time: {error}") from None
    return 0


async def _show_leaders(observing: AsyncGenerator[LockHolder | None, None], options: argparse.Namespace) -> None:
    async with contextlib.aclosing(observing) as leaders:
        async for leader in leaders:
            options.has_begun = lambda: True
            if options.output == "json":
                line = msgspec.json.encode(None if leader is None else _holder_fields(leader, with_value=True))
            elif leader is None:
                line = b"no leader"
            else:
                line = f"{leader.fencing_token} {_shown(leader.value)}".encode("utf-8", "backslashreplace")
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()


async def locks(client: Client, options: argparse.Namespace) -> int:
    """``kv locks [NAME]``."""
    if options.name is None:
        return _show_all(await client.locks(), options, "HOLDER", with_value=False)
    return _show_one(await client.lock_info(options.name), options, "holds it", with_value=False)


async def elections(client: Client, options: argparse.Namespace) -> int:
    """``kv elections [NAME]``."""
    if options.name is None:
        return _show_all(await client.elections(), options, "LEADER", with_value=True)
    return _show_one(await client.election_info(options.name), options, "leads", with_value=True)


def _show_all(found: tuple[LockInfo, ...], options: argparse.Namespace, who: str, *, with_value: bool) -> int:
    if options.output == "json":
        print_json([_fields(each, with_value=with_value) for each in found])
        return 0
    rows = [["NAME", who, "TOKEN", "REMAINING", "WAITERS", *(["VALUE"] if with_value else [])]]
    rows += [
        [_shown(each.name), *_cells(each.holder)[:3], str(each.waiter_count), *_cells(each.holder)[3 : 3 + with_value]]
        for each in found
        if each.holder is not None
    ]
    print_table(rows)
    return 0


def _show_one(found: LockInfo | None, options: argparse.Namespace, does: str, *, with_value: bool) -> int:
    if options.output == "json" and found is not None:
        print_json(_fields(found, with_value=with_value))
    if found is None or found.holder is None:
        say(f"nobody {does}: {options.name}")
        return 1
    if options.output != "json":
        rows = [["", "LEASE", "TOKEN", "REMAINING", *(["VALUE"] if with_value else [])]]
        for number, each in enumerate((found.holder, *found.waiters)):
            rows.append([does if number == 0 else "waits", *_cells(each)[: 3 + with_value]])
        print_table(rows)
        if (left := found.waiter_count - len(found.waiters)) > 0:
            say(f"{left} more wait")
    return 0


def _cells(holder: LockHolder | None) -> list[str]:
    if holder is None:
        return ["-"] * 4
    remaining = f"{holder.remaining_ms / 1000:.1f} s"
    return [shown_id(holder.lease), str(holder.fencing_token), remaining, _shown(holder.value)]


def _fields(info: LockInfo, *, with_value: bool) -> dict[str, Any]:
    holder = None if info.holder is None else _holder_fields(info.holder, with_value=with_value)
    waiters = [_holder_fields(each, with_value=with_value) for each in info.waiters]
    counts = {"waiter_count": info.waiter_count, "revision": info.revision}
    return {**text_fields("name", info.name), "holder": holder, "waiters": waiters, **counts}


def _holder_fields(holder: LockHolder, *, with_value: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"lease": shown_id(holder.lease)}
    fields |= {"fencing_token": holder.fencing_token, "remaining_ms": holder.remaining_ms}
    return {**fields, **text_fields("value", holder.value)} if with_value else fields


def _shown(data: bytes) -> str:
    return printable(data.decode("utf-8", "backslashreplace"))
