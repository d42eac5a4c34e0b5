"""Who is calling whom: checked on every connection between peers (docs/internals/identity.md)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

import msgspec

from kvorum.errors import IdentityRejected
from kvorum.identity import Identity, is_node_id, name_of, node_id

PROTOCOL = "1"
"""Raised when messages change so that an older server would misread them."""

HEADER_PROTOCOL = "X-Kvorum-Protocol"
HEADER_CLUSTER = "X-Kvorum-Cluster"
HEADER_FROM = "X-Kvorum-From"
HEADER_TO = "X-Kvorum-To"
HEADER_URL = "X-Kvorum-Peer-Url"
HEADER_TOKEN = "X-Kvorum-Token"  # noqa: S105 (a header's name)
_FIELD_CHARS_MAX = 512


class Greeting(msgspec.Struct, frozen=True):
    """What the dialling side says of itself, once checked."""

    cluster_id: str
    sender: str
    """Its member id, ``name@incarnation``."""
    peer_url: str


class Hello(msgspec.Struct, frozen=True):
    """A node's answer to ``GET /raft/v1/hello``: who it is, before anybody trusts it with anything."""

    name: str
    incarnation: str
    cluster_id: str
    """Empty: it has never been in a cluster."""
    expected: tuple[str, ...]
    """The names of the first members, as this node was told."""
    token: str
    """SHA-256 of the bootstrap token, hex."""
    peer_url: str
    client_url: str
    term: int = 0
    is_leader: bool = False
    members: tuple[str, ...] = ()
    """The member ids of its configuration in force; empty: it has none."""
    configuration_index: int = 0
    configuration_committed: bool = False
    is_serving: bool = False
    """It is ready: a voter, with a leader, caught up, and not stopping."""
    empty: bool = False
    """Its log is empty, and always was."""

    @property
    def node_id(self) -> str:
        """``name@incarnation``."""
        return node_id(self.name, self.incarnation)


def token_digest(token: str) -> str:
    """Return what is sent of a token: its SHA-256, hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def dialling_headers(identity: Identity, recipient: str, peer_url: str, token: str) -> dict[str, str]:
    """Return the headers with which ``identity`` calls ``recipient`` (a member id)."""
    return {
        HEADER_PROTOCOL: PROTOCOL,
        HEADER_CLUSTER: identity.cluster_id,
        HEADER_FROM: identity.node_id,
        HEADER_TO: recipient,
        HEADER_URL: peer_url,
        HEADER_TOKEN: token_digest(token),
    }


def check_greeting(headers: Mapping[str, str], identity: Identity, token: str) -> Greeting:
    """Return who calls. Its cluster may be one that we have yet to join: the caller of this function decides that.

    Raises:
        IdentityRejected: another protocol, another cluster, a call for somebody else, or another token.
    """
    fields = {name: headers.get(name, "")[:_FIELD_CHARS_MAX] for name in (HEADER_CLUSTER, HEADER_FROM, HEADER_TO)}
    sender, recipient = fields[HEADER_FROM], fields[HEADER_TO]
    if headers.get(HEADER_PROTOCOL) != PROTOCOL:
        raise IdentityRejected(
            "version", f"{sender!r} speaks protocol {headers.get(HEADER_PROTOCOL)!r}, not {PROTOCOL}"
        )
    if not hmac.compare_digest(headers.get(HEADER_TOKEN, "").encode(), token_digest(token).encode()):
        raise IdentityRejected("token", f"{sender!r} has another bootstrap token")
    if recipient != identity.node_id:
        reason = "incarnation" if name_of(recipient) == identity.name else "name"
        raise IdentityRejected(reason, f"{sender!r} calls {recipient!r}; this is {identity.node_id}")
    cluster_id = fields[HEADER_CLUSTER]
    if not cluster_id or (identity.cluster_id and cluster_id != identity.cluster_id):
        raise IdentityRejected("cluster", f"{sender!r} is of cluster {cluster_id!r}, this of {identity.cluster_id!r}")
    if not is_node_id(sender) or sender == identity.node_id:
        raise IdentityRejected("name", f"{sender!r} is no other member's id")
    return Greeting(cluster_id, sender, headers.get(HEADER_URL, "")[:_FIELD_CHARS_MAX])
