"""``kv status`` and ``kv health``: what every node says of itself."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from kvorum_client.cli_arguments import add_output
from kvorum_client.cli_output import print_json, print_table, printable, say, size_text, warn
from kvorum_client.client import Client
from kvorum_client.condition import APART, Condition, condition_of, health_of, state_of
from kvorum_client.errors import ClientError
from kvorum_client.results import Member, NodeHealth, NodeStatus
from kvorum_client.transport import base_of

PROBE_TIMEOUT_S = 2.0
"""What a dead node may cost `kv status`."""
STATUS_ROUNDS = 2
"""How many times `kv status` waits for nodes: the endpoints, and what they know of."""
HEALTH_ROUNDS = 3


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    add_output(add("status", status, "show every node: role, term, progress, revision, feature level, version"))
    asking = add("health", health, "ask every node whether it is ready, and why not")
    asking.description = (
        "Asks every node whether it is ready, and why not. Exit status 0: the cluster serves, since a node is ready, "
        "which takes a quorum; a warning names the others. 3: no node is ready. 1: with --all, a node is not ready; or "
        "nodes belong to another cluster than --cluster-id."
    )
    asking.add_argument(
        "--all", action="store_true", help="exit with 1 unless every node is ready: before you restart the next one"
    )
    add_output(asking)


_LAST_COLUMNS = ("KEYS", "FLOOR", "HISTORY", "LEVEL", "VERSION", "HEALTH")
"""HISTORY: events / bytes. LEVEL: in force / the highest that the node supports."""


async def status(client: Client, options: argparse.Namespace) -> int:
    """``kv status``: every node that can be found through the endpoints."""
    found = await _ask_everybody(client, _probe_s(options, STATUS_ROUNDS))
    names = _names(found)
    if options.output == "json":
        rows_of_json = []
        for endpoint, answer in found.items():
            told = isinstance(answer, NodeStatus)
            status, error = (answer, None) if told else (None, answer)
            rows_of_json.append({"name": names.get(endpoint), "endpoint": endpoint, "status": status, "error": error})
        print_json(rows_of_json)
    else:
        leader = next((s for s in found.values() if isinstance(s, NodeStatus) and s.state == "leader"), None)
        rows = [["NAME", "ENDPOINT", "STATE", "TERM", "LEADER", "APPLIED", "LAG", "REVISION", *_LAST_COLUMNS]]
        for endpoint, answer in found.items():
            name = names.get(endpoint) or urlsplit(endpoint).netloc
            rows.append([name, endpoint, *_status_cells(answer, leader, client.cluster_id)])
        print_table(rows)
    statuses = [answer for answer in found.values() if isinstance(answer, NodeStatus)]
    led = any(answer.leader_name for answer in statuses)
    mismatches = sorted({text for answer in statuses for text in answer.address_mismatches})
    for mismatch in mismatches:
        say(f"addresses differ: {mismatch}")
    if mismatches:
        say(
            "the leader corrects the members list within seconds; correct the options of the nodes yourself, and "
            "restart one node at a time; see docs/operations/without-kubernetes.md"
        )
    others = _strangers(statuses, client.cluster_id)
    if others:
        say(others)
    if full := _fullness(statuses, client.cluster_id):
        warn(full)
    if clusters := _clusters(statuses):
        say(clusters)
    if others or clusters:
        return 1
    if not led and (logs := _ends_of_logs(statuses)):
        say(logs)
    if any(answer.distrusted for answer in statuses):
        return 1
    return 0 if led else 3


def _strangers(statuses: Sequence[NodeStatus], cluster_id: str) -> str:
    """Return which nodes are not of the cluster that is meant; empty: none, or none is meant."""
    found = [f"{answer.name} belongs to {answer.cluster_id}" for answer in statuses if _is_stranger(answer, cluster_id)]
    return f"not of cluster {cluster_id}: {'; '.join(found)}" if found else ""


def _is_stranger(answer: NodeStatus, cluster_id: str) -> bool:
    return condition_of(answer, cluster_id) is Condition.FOREIGN


def _fullness(statuses: Sequence[NodeStatus], cluster_id: str) -> str:
    """Return why puts are refused, and what to do; empty: there is room."""
    known = [answer for answer in statuses if condition_of(answer, cluster_id) in (Condition.FULL, Condition.OK)]
    if disks := next((answer.disks_full for answer in known if answer.disks_full), None):
        return f"puts are refused: {disks}; make room on the disks, see docs/operations/full-disks.md"
    latest = max(known, key=lambda answer: answer.applied_index, default=None)
    if latest is None or not latest.quota_exceeded:
        return ""
    used, quota = size_text(latest.used_bytes), size_text(latest.quota_bytes)
    return (
        f"puts are refused: the data takes {used}, and the quota is {quota}; delete keys until it takes less than 95 % "
        "of it, or raise the quota (kv quota set SIZE), see docs/operations/quota.md"
    )


def _clusters(statuses: Sequence[NodeStatus]) -> str:
    """Return what to do with nodes of more than one cluster, found here or by the nodes; empty: they are of one."""
    clusters: dict[str, set[str]] = {}
    for answer in statuses:
        if answer.cluster_id:
            clusters.setdefault(answer.cluster_id, set()).add(answer.name)
        for peer in answer.foreign_peers:
            clusters.setdefault(peer.cluster_id, set()).add(peer.name)
    if len(clusters) < 2:
        return ""
    found = "; ".join(f"{cluster} ({', '.join(sorted(names))})" for cluster, names in sorted(clusters.items()))
    return (
        f"these nodes belong to {len(clusters)} clusters, and no node can join another cluster: {found}. If one of "
        "them was recovered or restored, empty the data folders of the other's nodes and start them again. Otherwise "
        "correct the addresses; see docs/operations/two-clusters.md"
    )


def _ends_of_logs(statuses: Sequence[NodeStatus]) -> str:
    """Return where the log of each node ends, and which one is the most up-to-date; empty: no node has any."""
    ends = [((answer.last_term, answer.last_index), answer.name) for answer in statuses if answer.last_index]
    if not ends:
        return ""
    if any(term == 0 for (term, _), _ in ends):
        return "no leader; a node of version 0.1.0 does not tell the term of its last entry: logs cannot be compared"
    best = max(end for end, _ in ends)
    names = sorted(name for end, name in ends if end == best)
    logs = ", ".join(f"{name} ({term}, {index})" for (term, index), name in sorted(ends, key=lambda end: end[1]))
    if any(answer.distrusted for answer in statuses):
        # The disk to keep may be the one whose log ends first.
        return (
            f"no leader; the logs end at (term, index): {logs}; some nodes take no part: see what they say, and "
            "docs/operations/a-volume-was-set-back.md, before you choose one or empty a disk"
        )
    return f"no leader; the logs end at (term, index): {logs}; most up-to-date: {' and '.join(names)}"


def _names(found: dict[str, NodeStatus | str]) -> dict[str, str]:
    """Return the name of every node by its endpoint, as far as it, or another member, tells it."""
    statuses = [answer for answer in found.values() if isinstance(answer, NodeStatus)]
    names = {_endpoint_of(m): m.name for status in statuses for m in status.members if m.client_url}
    return names | {endpoint: answer.name for endpoint, answer in found.items() if isinstance(answer, NodeStatus)}


def _endpoint_of(member: Member) -> str:
    return base_of(member.client_url) or member.client_url


def _status_cells(answer: NodeStatus | str, leader: NodeStatus | None, cluster_id: str) -> list[str]:
    if isinstance(answer, str):
        return ["unreachable", *["-"] * 10, answer]
    condition = condition_of(answer, cluster_id)
    led = condition not in (*APART, Condition.LEADERLESS)
    members = leader.members if leader and led else ()
    lag = next((str(m.lag) for m in members if m.id == answer.id and m.lag is not None), "-")
    leads = answer.leader_name or "none" if led else "none"
    figures = (answer.term, leads, answer.applied_index, lag, answer.revision, answer.keys)
    history = f"{answer.history_events}/{size_text(answer.history_bytes, '')}"
    levels = f"{answer.feature_level}/{answer.highest_feature_level}"
    health = health_of(answer, cluster_id)
    return [state_of(answer), *map(str, figures), str(answer.floor), history, levels, answer.version, health]


def _probe_s(options: argparse.Namespace, rounds: int) -> float:
    """Return what one of so many rounds may cost, so that the command keeps to ``--timeout``."""
    return float(min(PROBE_TIMEOUT_S, getattr(options, "timeout", PROBE_TIMEOUT_S * rounds) / rounds))


async def _ask_everybody(client: Client, timeout_s: float) -> dict[str, NodeStatus | str]:
    """Ask the endpoints, then the members they know of and that have not answered yet; each once."""
    found = dict(zip(client.endpoints, await _ask(client, client.endpoints, timeout_s), strict=True))
    statuses = [answer for answer in found.values() if isinstance(answer, NodeStatus)]
    names = {answer.name for answer in statuses}
    others = {m.name: _endpoint_of(m) for s in statuses for m in s.members if m.name not in names and m.client_url}
    urls = [url for url in others.values() if url not in found]
    return found | dict(zip(urls, await _ask(client, urls, timeout_s), strict=True))


async def _ask(client: Client, endpoints: Sequence[str], timeout_s: float) -> list[NodeStatus | str]:
    async def one(endpoint: str) -> NodeStatus | str:
        try:
            return await client.status(endpoint, timeout_s=timeout_s)
        except ClientError as error:
            return str(error).removeprefix(f"{endpoint}: ")

    return list(await asyncio.gather(*(one(endpoint) for endpoint in endpoints)))


async def health(client: Client, options: argparse.Namespace) -> int:
    """``kv health``: every node's ``/readyz``. The cluster serves if one node is ready, which takes a quorum."""
    timeout_s = _probe_s(options, HEALTH_ROUNDS)
    found = await _ask_everybody(client, timeout_s)
    endpoints = list(found)
    answers = await asyncio.gather(*(client.health(endpoint, timeout_s=timeout_s) for endpoint in endpoints))
    if options.output == "json":
        print_json(answers)
    else:
        for answer in answers:
            _print_health(answer)
    statuses = [answer for answer in found.values() if isinstance(answer, NodeStatus)]
    if others := _strangers(statuses, client.cluster_id):
        say(others)
        return 1
    if not any(answer.ready for answer in answers):
        say("the cluster does not serve: no node is ready")
        return 3
    names = _names(found)
    missing = [names.get(each.endpoint, each.endpoint) for each in answers if not each.ready]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        warn(f"the cluster serves, but {', '.join(missing)} {are} not ready")
    if full := _fullness(statuses, client.cluster_id):
        warn(full)
    return 1 if missing and options.all else 0


def _print_health(answer: NodeHealth) -> None:
    print(f"{answer.endpoint} is {'ready' if answer.ready else 'NOT ready'}")
    for line in answer.detail.splitlines():
        print(f"  {printable(line)}")
