"""What every link to a peer shares."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import aiohttp
import msgspec

from kvorum.identity import Identity
from kvorum.raft.messages import Message, NodeId, PeerMark
from kvorum.telemetry.counters import Counters


class Dialling(msgspec.Struct, frozen=True):
    """How we call: as whom, with what, counted where. ``identity`` is asked anew for each call.

    ``on_messages`` takes what a peer sends on a stream that we dialled.
    """

    identity: Callable[[], Identity]
    peer_url: str
    token: str
    session: Callable[[], aiohttp.ClientSession]
    counters: Counters
    random: Random
    on_messages: Callable[[NodeId, tuple[Message, ...]], None] = lambda _sender, _messages: None
    answered: Callable[[str, str], None] = lambda host, address: None
    """Called with the host of a peer's URL and the address at which the right peer answered."""
    start: Callable[[], str] = lambda: ""
    """Which start of our process this is."""
    marks_of: Callable[[NodeId], tuple[PeerMark, ...]] = lambda _: ()
    """What we know of a peer's disk: said whenever a stream to it is opened."""
    on_marks: Callable[[NodeId, tuple[PeerMark, ...], str], None] = lambda _node, _marks, _url: None
    """Called with what a peer that accepts our stream at this URL knows of our disk."""
    client_url: str = ""
    """Where our clients reach us."""
