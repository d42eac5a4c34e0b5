"""What peers say to this node, and what they ask of it."""

from __future__ import annotations

from kvorum import __version__
from kvorum.config import Config
from kvorum.identity import Identity
from kvorum.kv.features import FIRST_LEVEL, HIGHEST_LEVEL
from kvorum.node.driver import Driver
from kvorum.node.incarnation import ClusterIdentity
from kvorum.node.integrity import Integrity
from kvorum.node.levels import FeatureLevels
from kvorum.node.membership import Membership
from kvorum.node.ports import Peers
from kvorum.node.report import Report
from kvorum.node.set_back import Participation
from kvorum.node.snapshots import Snapshots
from kvorum.raft import Raft, Role
from kvorum.raft.messages import NodeId, PeerMark
from kvorum.transport.handshake import token_digest
from kvorum.transport.interface import PROTOCOLS, Greeting, Hello


class PeerRequests:
    """Answers the peer port (:class:`~kvorum.transport.interface.NodeHandler`).

    Args:
        config: the node's configuration.
        identity: who it is.
        raft: the consensus server.
        driver: what takes the messages.
        peers: who is answered although it is no member.
        report: whether this node is ready.
        snapshots: what is served to members that need one.
        integrity: what knows the hashes of the state, and finds out whose is wrong.
        participation: what hears from peers what they remember of our disk.
        levels: what peers announce to.
        membership: what calls the members where they are.
    """

    def __init__(
        self,
        config: Config,
        identity: ClusterIdentity,
        raft: Raft,
        driver: Driver,
        peers: Peers,
        report: Report,
        snapshots: Snapshots,
        integrity: Integrity,
        participation: Participation,
        levels: FeatureLevels,
        membership: Membership,
    ) -> None:
        self._config = config
        self._identity = identity
        self._raft = raft
        self._driver = driver
        self._peers = peers
        self._report = report
        self._participation = participation
        self._levels = levels
        self._membership = membership
        # Handed on as they are.
        self.join = identity.join
        self.on_messages = driver.on_messages
        self.snapshot_chunk = snapshots.chunk
        self.state_hash_at = integrity.digest_at
        self.suspect_state = integrity.investigate
        self.on_marks = participation.heard

    @property
    def identity(self) -> Identity:
        """Who we are now."""
        return self._identity.current

    @property
    def start_id(self) -> str:
        """Which start of our process this is."""
        return self._participation.start

    def marks_of(self, node: NodeId) -> tuple[PeerMark, ...]:
        """Return what we know of a peer's disk."""
        return self._raft.marks.of(node)

    def hello(self) -> Hello:
        """Return what we say of ourselves to anybody on the peer port."""
        raft, config, identity = self._raft, self._config, self._identity.current
        configurations = raft.configurations
        return Hello(
            name=identity.name,
            incarnation=identity.incarnation,
            cluster_id=identity.cluster_id,
            expected=tuple(peer.name for peer in config.expected_members()),
            token=token_digest(config.bootstrap_token),
            peer_url=config.advertise_peer_url,
            client_url=config.advertise_client_url,
            term=raft.current_term,
            is_leader=raft.role is Role.LEADER,
            members=tuple(member.id for member in raft.configuration.members),
            member_urls=tuple(member.peer_url for member in raft.configuration.members),
            configuration_index=configurations.latest_index,
            configuration_committed=configurations.latest_index <= raft.log.commit_index,
            is_serving=all(check.ok for check in self._report.readiness()),
            version=__version__,
            protocols=PROTOCOLS,
            levels=(FIRST_LEVEL, HIGHEST_LEVEL),
            # A node that is just being called into a cluster must not begin another meanwhile.
            empty=not raft.current_term and not raft.log.last_index and not self._identity.is_joining,
        )

    def is_member(self, node: NodeId) -> bool:
        """Tell whether a caller is a member of our configuration in force."""
        return self._raft.configuration.get(node) is not None

    def on_connected(self, greeting: Greeting) -> None:
        """A peer called: answer it even if our configuration does not know it yet.

        Anybody may call, and no stranger chooses where we call. A member may: it is called at the address that it
        announces when it is not reached elsewhere. Only a node that has no configuration goes where its
        caller says: it knows nobody else, and is about to take its whole state from there.
        """
        self._raft.peer_started(greeting.sender, greeting.start)
        self._participation.heard(greeting.sender, greeting.marks, greeting.address)
        self._levels.announced(
            greeting.sender, greeting.highest_level, greeting.version, greeting.peer_url, greeting.client_url
        )
        self._membership.follow()
        self._peers.add_stranger(greeting.sender, "" if self._raft.configuration.members else greeting.peer_url)

    def on_disconnected(self, sender: NodeId) -> None:
        """A peer's stream to us broke."""
        self._raft.marks.ended(sender)
        self._peers.remove_stranger(sender)
        self._driver.peer_unreachable(sender)

    def on_broken(self, recipient: NodeId) -> None:
        """Our stream to a peer broke; one that calls us is answered until it hangs up."""
        if not self._peers.is_calling(recipient):
            self._peers.remove_stranger(recipient)
        self._driver.peer_unreachable(recipient)
