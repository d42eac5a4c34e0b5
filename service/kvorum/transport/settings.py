"""What every link to a peer shares."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import aiohttp
import msgspec

from kvorum.identity import Identity
from kvorum.telemetry.counters import Counters


class Dialling(msgspec.Struct, frozen=True):
    """How we call: as whom, with what, counted where. ``identity`` is asked anew for each call."""

    identity: Callable[[], Identity]
    peer_url: str
    token: str
    session: Callable[[], aiohttp.ClientSession]
    counters: Counters
    random: Random
    answered: Callable[[str, str], None] = lambda host, address: None
    """Called with the host of a peer's URL and the address at which the right peer answered."""
