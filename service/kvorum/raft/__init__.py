"""Consensus."""

from kvorum.raft.config import RaftConfig
from kvorum.raft.membership import AddLearner, Change, Promote, Remove, bootstrap_entry
from kvorum.raft.raft import Raft
from kvorum.raft.status import PeerStatus, RaftStatus, Role

__all__ = [
    "AddLearner",
    "Change",
    "PeerStatus",
    "Promote",
    "Raft",
    "RaftConfig",
    "RaftStatus",
    "Remove",
    "Role",
    "bootstrap_entry",
]
