"""``kv member``, ``kv leader``, ``kv cluster`` and ``kv quota``."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from kvorum_client.arguments import INTEGER_MAX
from kvorum_client.cli_arguments import QUOTA_BYTES_MIN, add_output, node_name
from kvorum_client.cli_output import print_json, print_table, printable, say, size_text, warn
from kvorum_client.cli_status import PROBE_TIMEOUT_S
from kvorum_client.client import Client
from kvorum_client.errors import InvalidArgumentError, UnavailableError
from kvorum_client.results import Member, NodeStatus, Quota
from kvorum_client.transport import parse_endpoint


def fill_member(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands of the group."""
    listing = add("list", member_list, "list the members, as the leader sees them")
    add_output(listing)
    adding = add("add", member_add, "add a learner; the leader promotes it when it has caught up")
    adding.add_argument("name", metavar="NAME", type=node_name)
    adding.add_argument(
        "peer_url", metavar="PEER-URL", type=_base_url, help="where its peers reach it: HOST:PORT or http://HOST:PORT"
    )
    adding.add_argument(
        "client_url",
        metavar="CLIENT-URL",
        type=_base_url,
        nargs="?",
        help="where clients reach it; refused if its advertise_client_url differs [default: what it announces]",
    )
    promoting = add("promote", member_promote, "make a learner a voter now; the leader does it when it has caught up")
    promoting.add_argument("name", metavar="NAME", type=node_name)
    removing = add("remove", member_remove, "remove a member; stop it first to keep it out")
    removing.add_argument("name", metavar="NAME", type=node_name)
    for command in (adding, promoting, removing):
        add_output(command)


def fill_leader(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands of the group."""
    show = add("show", leader_show, "show who leads")
    move = add("move", leader_move, "transfer the leadership")
    move.add_argument(
        "target", metavar="NAME", type=node_name, nargs="?", help="the new leader [default: the most caught-up voter]"
    )
    for command in (show, move):
        add_output(command)


def fill_cluster(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands of the group."""
    add_output(
        add(
            "finalize",
            finalize,
            "raise the feature level to that of the new version; rolling back is impossible afterwards",
        )
    )


def fill_quota(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands of the group."""
    show = add("get", quota_get, "show the quota on data, and what is used of it")
    change = add("set", quota_set, "set the quota on data; above it puts are refused")
    change.add_argument("quota_bytes", metavar="SIZE", type=_size, help="bytes, or for example 512MiB or 2GiB")
    for command in (show, change):
        add_output(command)


def _size(text: str) -> int:
    try:
        size = size_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not QUOTA_BYTES_MIN <= size <= INTEGER_MAX:
        raise argparse.ArgumentTypeError(f"must be from 1MiB to {INTEGER_MAX:,} bytes, not {text!r:.80}")
    return size


def _base_url(text: str) -> str:
    """Return ``http://HOST:PORT``, of which HOST:PORT alone is given often."""
    url = text if "://" in text else f"http://{text}"
    try:
        if urlsplit(parse_endpoint(url)).netloc == urlsplit(url).netloc:
            return url
    except InvalidArgumentError:
        pass
    raise argparse.ArgumentTypeError(f"must be HOST:PORT or http://HOST:PORT, not {text!r}")


async def member_list(client: Client, options: argparse.Namespace) -> int:
    """``kv member list``."""
    answer = await _leader_status(client)
    _show_members(answer.members, options)
    _warn_without_quorum(answer)
    return 0


def _warn_without_quorum(answer: NodeStatus) -> None:
    """Say it if what a node answered is its own state, which no quorum confirms."""
    if not answer.caught_up:
        warn(f"no quorum confirms this: it is what {answer.name} has applied, and may be old (kv status)")


async def _leader_status(client: Client) -> NodeStatus:
    """Return the leader's view, or any node's if the leader cannot be reached from here."""
    answer = await client.status()
    if answer.leader_client_url and answer.state != "leader":
        try:
            return await client.status(answer.leader_client_url, timeout_s=PROBE_TIMEOUT_S)
        except UnavailableError:
            return answer
    return answer


def _show_members(members: Sequence[Member], options: argparse.Namespace) -> None:
    if options.output == "json":
        print_json(members)
        return
    rows = [["NAME", "ROLE", "CLIENT-URL", "PEER-URL", "LAG", "HEALTHY", "ID"]]
    for m in members:
        lag = "-" if m.lag is None else str(m.lag)
        healthy = {None: "-", True: "yes", False: "NO"}[m.healthy]
        rows.append([m.name, "voter" if m.voter else "learner", m.client_url, m.peer_url, lag, healthy, m.id])
    print_table(rows)


async def member_add(client: Client, options: argparse.Namespace) -> int:
    """``kv member add NAME PEER-URL [CLIENT-URL]``."""
    _show_members(await client.add_member(options.name, options.peer_url, options.client_url or ""), options)
    return 0


async def member_promote(client: Client, options: argparse.Namespace) -> int:
    """``kv member promote NAME``."""
    _show_members(await client.promote_member(options.name), options)
    return 0


async def member_remove(client: Client, options: argparse.Namespace) -> int:
    """``kv member remove NAME``."""
    _show_members(await client.remove_member(options.name), options)
    say(
        f"{options.name} is removed; if it runs and is one of the configured peers, it is soon added again, as a new "
        "member with an empty disk: to keep it out, stop it first"
    )
    return 0


async def leader_show(client: Client, options: argparse.Namespace) -> int:
    """``kv leader show``."""
    answer = await client.status()
    if not answer.leader_name:
        say(f"{answer.name} knows no leader")
        return 3
    if options.output == "json":
        url = answer.leader_client_url
        print_json({"leader": answer.leader_name, "term": answer.term, "client_url": url, "according_to": answer.name})
        return 0
    where = answer.leader_client_url or "an unknown address"
    print(printable(f"{answer.leader_name} leads term {answer.term}, at {where}, says {answer.name}"))
    return 0


async def leader_move(client: Client, options: argparse.Namespace) -> int:
    """``kv leader move [NAME]``."""
    leader = await client.move_leader(options.target)
    if options.output == "json":
        print_json({"leader": leader})
    else:
        print(printable(f"{leader} leads now"))
    return 0


async def finalize(client: Client, options: argparse.Namespace) -> int:
    """``kv cluster finalize``."""
    # A node that is at the highest level says so without asking anybody.
    ends = time.monotonic() + getattr(options, "timeout", 10.0)
    await _ask_quorum(client)
    level = await client.finalize(timeout_s=max(ends - time.monotonic(), 0.1))
    if options.output == "json":
        print_json({"feature_level": level})
    else:
        print(f"the cluster is at feature level {level}")
    return 0


async def _ask_quorum(client: Client) -> None:
    """Return when a quorum has answered.

    Raises:
        UnavailableError: none did until the deadline.
    """
    await client.get("-")  # Any linearizable read will do.


_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"([0-9]{1,19})([A-Za-z]*)", re.ASCII)


def size_bytes(text: str) -> int:
    """Return the bytes that ``512MiB``, ``2GiB`` or a plain number of bytes stands for.

    Raises:
        ValueError: it is none of these.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write a number of bytes, or for example 512MiB or 2GiB")
    return int(match[1]) * _UNITS[match[2].upper()]


async def quota_get(client: Client, options: argparse.Namespace) -> int:
    """``kv quota get``."""
    answer = await _leader_status(client)
    status = _show_quota(Quota(answer.quota_bytes, answer.used_bytes, answer.quota_exceeded), options)
    _warn_without_quorum(answer)
    return status


async def quota_set(client: Client, options: argparse.Namespace) -> int:
    """``kv quota set SIZE``."""
    return _show_quota(await client.set_quota(options.quota_bytes), options)


def _show_quota(quota: Quota, options: argparse.Namespace) -> int:
    if options.output == "json":
        print_json(quota)
    elif not quota.quota_bytes:
        print(f"there is no quota yet; the data takes {size_text(quota.used_bytes)}")
    else:
        share = 100 * quota.used_bytes // quota.quota_bytes
        full = "; puts are refused" if quota.no_space else ""
        print(f"the data takes {size_text(quota.used_bytes)} of {size_text(quota.quota_bytes)} ({share} %){full}")
    return 0


WRITES = frozenset({member_add, member_promote, member_remove, leader_move, finalize, quota_set})
"""The commands that may be done, or not, when they are interrupted."""
