"""``kvorum recover --force-new-cluster``: what is left when a majority of the disks is lost. Never automatic.

The survivor becomes a cluster of one, with all that is in its own log, committed or not, and under a new cluster id, so
that no member of the old cluster can ever be mistaken for one of the new. Writes that only the lost members held are
gone. Other survivors are refused as foreign; empty their disks, and the new cluster adds them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import aiohttp
import msgspec

from kvorum.bodies import read_bounded
from kvorum.errors import BetterLogError, ConfigError, MalformedMessageError, NothingToRecoverError
from kvorum.identity import Identity, name_of
from kvorum.raft import Raft, RaftConfig
from kvorum.raft.membership import encode_configuration
from kvorum.raft.messages import (
    INDEX_MAX,
    TERM_JUMP_MAX,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Member,
    NodeId,
    Save,
)
from kvorum.resolver import Resolver
from kvorum.storage.datadir import (
    accepts_older_log,
    forget_place,
    holds_data,
    is_recovery_requested,
    note_replaced_cluster,
    withdraw_recovery_request,
)
from kvorum.storage.interface import Loaded
from kvorum.storage.offline import offline
from kvorum.transport import Hello
from kvorum.transport.addresses import FILE, Addresses
from kvorum.transport.handshake import decode_hello
from kvorum_wire import NodeStatus

log = logging.getLogger("kvorum.recover")

_TERM_MAX = INDEX_MAX - TERM_JUMP_MAX
"""A log of such a term leaves hardly any for elections."""

ASK_TIMEOUT_S = 2.0
"""How long another member has for each answer: who it is, and where its log ends."""
ANSWER_BYTES_MAX = 1 << 20

WARNING = """\
{node} becomes the only member of a new cluster that holds entries 1 to {last_index} of its log (last term {last_term}).
Anything that the other members acknowledged beyond that is lost, and they can rejoin only with empty disks:
{others}
Continue only if a majority of the disks is lost for good."""


class _Node(Protocol):
    """What an answer says of the node that gave it."""

    @property
    def cluster_id(self) -> str: ...

    @property
    def name(self) -> str: ...


Report = Callable[[str], None]
"""Takes a text that a person should read, of one or more lines."""
Confirm = Callable[[], None]
"""Returns if it is to be done; raises ConfigError or KeyboardInterrupt if not."""


def to_stderr(text: str) -> None:
    """Show it to whoever runs the command."""
    sys.stderr.write(f"{text}\n")


def go_on() -> None:
    """Ask nobody: who calls this has asked, or was asked to do it."""


def to_log(text: str) -> None:
    """Log it in one line, as a node does that recovers when it starts."""
    log.warning("%s", " ".join(text.splitlines()))


def force_new_cluster(
    data_dir: str,
    *,
    accept_older_log: bool = True,
    peer_urls: Mapping[str, str] | None = None,
    report: Report = to_stderr,
    confirm: Confirm = go_on,
) -> Identity:
    """Make the folder's node the only member of a new cluster; return its new identity. Blocking.

    Args:
        data_dir: the node's.
        accept_older_log: do not ask the other members for the ends of their logs, and recover also the only member of a
            cluster: a copy becomes a cluster of its own.
        peer_urls: where the options say that the peer ports of members are, by name. These are asked in addition to
            the addresses that the log names: a member may have moved when there was no leader to publish it.
        report: where the warning goes, and the names of members that did not answer.
        confirm: is called after the warning, and before anything is changed.

    Raises:
        ConfigError: the folder holds no member of a cluster, or it was not confirmed.
        BetterLogError: another member has a more up-to-date log.
        NothingToRecoverError: it is the only member of its cluster already.
        StorageError: the folder is in use, or cannot be trusted.
    """
    if not Path(data_dir).is_dir():
        raise ConfigError(f"{data_dir} is not a data folder")
    if not holds_data(Path(data_dir)):
        # Opening the storage would make one of it.
        raise ConfigError(f"{data_dir} does not hold the data of a node")
    identity = asyncio.run(_force_new_cluster(data_dir, accept_older_log, peer_urls or {}, report, confirm))
    # A cluster of its own may be at home wherever it starts next.
    forget_place(Path(data_dir))
    return identity


async def _force_new_cluster(
    data_dir: str, accept_older_log: bool, peer_urls: Mapping[str, str], report: Report, confirm: Confirm
) -> Identity:
    async with offline(data_dir) as folder:
        if folder.loaded.identity is not None and not accept_older_log:
            await _check_no_better_log(folder.loaded.identity, folder.loaded, Path(data_dir), peer_urls, report)
            _check_not_alone(folder.loaded.identity, folder.loaded)
        identity, save = plan(folder.loaded, data_dir, report)
        confirm()
        if folder.loaded.identity is not None and folder.loaded.identity.cluster_id:
            note_replaced_cluster(Path(data_dir), folder.loaded.identity.cluster_id)
        # The new cluster id first: after a crash in between, the node can reach nobody, and this can be done again.
        folder.storage.write_identity(identity, replace=True)
        await folder.save(save)
    return identity


def plan(loaded: Loaded, data_dir: str, report: Report = to_stderr) -> tuple[Identity, Save]:
    """Return the identity and the save that make what was loaded a cluster of one, and report what that means.

    Raises:
        ConfigError: it was never a member of a cluster.
    """
    if loaded.identity is None:
        raise ConfigError(f"{data_dir} does not hold the data of a node")
    node = loaded.identity.node_id
    raft = _raft_of(node, loaded)
    member = raft.configuration.get(node)
    if member is None:
        raise ConfigError(f"{node} is not a member of the cluster that it last knew; nothing to recover")
    others = [other.id for other in raft.configuration.members if other.id != node]
    log_end = {"last_index": raft.log.last_index, "last_term": raft.log.last_term}
    report(WARNING.format(node=node, others=", ".join(others) or "(none)", **log_end))
    entries = _with_room_for_terms(loaded, data_dir)
    # Nobody of the new cluster has voted, whatever term the old one had reached: its terms go on from the log's.
    term = (entries[-1].term if entries else raft.log.last_term) + 1
    alone = Configuration((msgspec.structs.replace(member, voter=True),))
    entry = Entry(raft.log.last_index + 1, term, EntryKind.CONFIGURATION, encode_configuration(alone))
    identity = msgspec.structs.replace(loaded.identity, cluster_id=secrets.token_hex(16))
    return identity, Save(1, HardState(term, None), (*entries, entry))


def _raft_of(node: NodeId, loaded: Loaded) -> Raft:
    return Raft(
        RaftConfig(id=node),
        random=secrets.SystemRandom(),
        hard_state=loaded.hard_state,
        snapshot=loaded.snapshot,
        entries=loaded.entries,
        on_disk=loaded.on_disk,
    )


def _check_not_alone(identity: Identity, loaded: Loaded) -> None:
    """Check that the node needs others, or lower terms, to have a leader.

    Raises:
        NothingToRecoverError: it needs neither.
    """
    raft = _raft_of(identity.node_id, loaded)
    member = raft.configuration.get(identity.node_id)
    is_alone = member is not None and member.voter and len(raft.configuration.members) == 1
    if is_alone and max(loaded.hard_state.current_term, raft.log.last_term) < _TERM_MAX:
        raise NothingToRecoverError(
            f"there is nothing to recover: {identity.node_id} is the only member of cluster {identity.cluster_id} "
            "already, and needs no other to lead it; nothing was changed. To make a copy of its data a cluster of its "
            "own, or if it runs and takes no part (`kv status`), repeat the command with --accept-older-log"
        )


def _with_room_for_terms(loaded: Loaded, data_dir: str) -> tuple[Entry, ...]:
    """Return the log's entries with lower terms if theirs leave hardly any for elections; empty: they may stay.

    Raises:
        ConfigError: what stands before them (the snapshot, or entries that are not loaded) is of such a term.
    """
    lowest = loaded.snapshot.last_term if loaded.snapshot else 0
    if loaded.on_disk.terms:
        lowest = loaded.on_disk.terms[-1][1]
    if lowest >= _TERM_MAX:
        raise ConfigError(
            f"the log in {data_dir} is of term {lowest}, which leaves none for elections: restore a backup"
        )
    if not loaded.entries or loaded.entries[-1].term < _TERM_MAX:
        return ()
    distinct = sorted({lowest, *(entry.term for entry in loaded.entries)})
    terms = {term: lowest + number for number, term in enumerate(distinct)}
    return tuple(msgspec.structs.replace(entry, term=terms[entry.term]) for entry in loaded.entries)


async def _check_no_better_log(
    identity: Identity, loaded: Loaded, folder: Path, peer_urls: Mapping[str, str], report: Report
) -> None:
    """Ask the other members where their logs end, and report those that did not answer.

    Raises:
        BetterLogError: one of them has a more up-to-date log.
    """
    raft = _raft_of(identity.node_id, loaded)
    ours = (raft.log.last_term, raft.log.last_index)
    members = {name_of(member.id): member for member in raft.configuration.members}
    names = sorted({*members, *peer_urls} - {identity.name})
    addresses = Addresses(folder / FILE)
    addresses.load()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=Resolver(addresses.get)),
        timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S),
    ) as session:
        answers = await asyncio.gather(
            *(_ask(session, identity.cluster_id, name, members.get(name), peer_urls.get(name)) for name in names)
        )
    for silence, _ in answers:
        if silence:
            report(silence)
    for status in (status for _, statuses in answers for status in statuses):
        theirs = (status.last_term, status.last_index)
        if theirs > ours:
            advice = (
                f"But {status.name} takes no part: {status.distrusted}. See docs/operations/a-volume-was-set-back.md; "
                "to go on with the log here, repeat the command with --accept-older-log"
                if status.distrusted
                else f"Recover {status.name} instead, or repeat the command with --accept-older-log"
            )
            raise BetterLogError(
                f"{status.name} answers and has a more up-to-date log, which ends at (term, index) {theirs}; the one "
                f"here ends at {ours}. {advice}"
            )


async def _ask(
    session: aiohttp.ClientSession, cluster_id: str, name: str, member: Member | None, peer_url: str | None
) -> tuple[str, list[NodeStatus]]:
    """Ask one member, wherever it may be, where its log ends.

    Returns:
        In words that it did not answer, empty if it did; and every status that nodes of this cluster gave.
    """
    agreed_peer_url, agreed_client_url = (member.peer_url, member.client_url) if member is not None else ("", "")
    peer_urls = _distinct(peer_url, agreed_peer_url)
    hellos = await asyncio.gather(*(_hello_of(session, url) for url in peer_urls))
    here = [hello.client_url for hello in hellos if hello is not None and hello.cluster_id == cluster_id]
    client_urls = _distinct(agreed_client_url, *here)
    statuses = await asyncio.gather(*(_status_of(session, url) for url in client_urls))
    ours = [status for status in statuses if status is not None and status.cluster_id == cluster_id]
    if any(status.name == name for status in ours):
        return "", ours
    others: list[_Node] = [node for node in (*statuses, *hellos) if node is not None]
    found = _distinct(*(f"{node.name} of {node.cluster_id or 'no cluster'}" for node in others))
    there = f" ({', '.join(found)} is there)" if found else ""
    where = ", ".join(_distinct(*client_urls, *peer_urls)) or "at an unknown URL"
    return f"{name} ({where}) did not answer{there}: its log was not compared", ours


def _distinct(*texts: str | None) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


async def _status_of(session: aiohttp.ClientSession, client_url: str) -> NodeStatus | None:
    body = await _get(session, f"{client_url.rstrip('/')}/v1/cluster")
    try:
        return msgspec.json.decode(body, type=NodeStatus)
    except ValueError:
        return None


async def _hello_of(session: aiohttp.ClientSession, peer_url: str) -> Hello | None:
    body = await _get(session, f"{peer_url.rstrip('/')}/raft/v1/hello")
    try:
        return decode_hello(body)
    except MalformedMessageError:
        return None


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    """Return what answers; empty: nothing does."""
    try:
        async with session.get(url, allow_redirects=False) as response:
            return await read_bounded(response, ANSWER_BYTES_MAX)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        # ValueError: it is no URL.
        return b""


def recover_if_requested(data_dir: str, peer_urls: Mapping[str, str] | None = None) -> None:
    """Do what :func:`kvorum.storage.datadir.request_recovery` asked for, once. Blocking; before the folder is opened.

    If another member that answers has a more up-to-date log, or the node is the only member already, the request is
    withdrawn, and the node starts as it was: to end instead would be a crash loop, in which nobody can withdraw it.

    Args:
        data_dir: the node's.
        peer_urls: as in :func:`force_new_cluster`.

    Raises:
        ConfigError, StorageError: it could not be done; it is tried again at the next start.
    """
    folder = Path(data_dir)
    if is_recovery_requested(folder):
        try:
            identity = force_new_cluster(
                data_dir, accept_older_log=accepts_older_log(folder), peer_urls=peer_urls, report=to_log
            )
        except BetterLogError as error:
            log.error("not recovered, starting as before: %s", error)
            withdraw_recovery_request(folder)
            return
        except NothingToRecoverError as error:
            log.warning("not recovered, starting as before: %s", error)
            withdraw_recovery_request(folder)
            return
        log.warning("recovered: %s is now the only member of cluster %s", identity.node_id, identity.cluster_id)
        withdraw_recovery_request(folder)
