"""The configuration of a node: its options, where their values come from, and the addresses of members."""

from kvorum.config.addresses import (
    PeerAddress,
    is_base_url,
    join_address,
    ordinal_of,
    parse_peers,
    split_address,
    split_ordinal,
)
from kvorum.config.hosts import KnownHosts
from kvorum.config.options import REPLICAS_MAX, Config, resolve

__all__ = [
    "REPLICAS_MAX",
    "Config",
    "KnownHosts",
    "PeerAddress",
    "is_base_url",
    "join_address",
    "ordinal_of",
    "parse_peers",
    "resolve",
    "split_address",
    "split_ordinal",
]
