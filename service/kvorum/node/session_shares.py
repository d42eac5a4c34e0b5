"""How many sessions each address opened here: one client must not take the room that all of them need.

The replicated state knows no addresses. So this is an account of one node: of the sessions that were opened through it
while it led. A new leader begins with an empty one.
"""

from __future__ import annotations

from collections import OrderedDict

from kvorum.errors import SessionError
from kvorum.kv.limits import SESSIONS_MAX
from kvorum.node.ports import Clock
from kvorum.node.state import State

SHARED_FREELY = SESSIONS_MAX * 3 // 4
"""Up to so many sessions anybody may open one."""
SHARE_MAX = SESSIONS_MAX // 4
"""Above that, one address may hold so many."""
PENDING_MAX_S = 60.0
"""A session that does not exist so long after it was asked for was refused, or has gone."""


class SessionShares:
    """The sessions that were opened through this node, by address.

    Args:
        state: which sessions exist.
        clock: by which a session that was asked for has to exist.
    """

    def __init__(self, state: State, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._opened: OrderedDict[str, str] = OrderedDict()
        """Client id -> address, from the oldest on; at most :data:`SESSIONS_MAX`."""
        self._of_address: dict[str, dict[str, float]] = {}
        """Address -> client id -> when it was asked for."""

    def admit(self, address: str, client_id: str) -> None:
        """Let a client at ``address`` open a session. One that exists is another's affair: this is a retry.

        Raises:
            SessionError: the address holds its share of what is nearly full; nothing was done.
        """
        store = self._state.store
        if store.has_session(client_id):
            return
        held = self._of_address.get(address)
        if held is not None and client_id not in held and store.session_count >= SHARED_FREELY:
            if len(held) >= SHARE_MAX:
                self._forget_gone(held)
            if len(held) >= SHARE_MAX:
                raise SessionError(
                    "sessions_full",
                    f"there are {store.session_count} live sessions, and {address} opened {len(held)} of them; use one "
                    "client for many writes, try later, or write without an idempotency key",
                    "full",
                    store.revision,
                )
        self._forget(client_id)
        if len(self._opened) >= SESSIONS_MAX:
            self._forget(next(iter(self._opened)))
        self._opened[client_id] = address
        self._of_address.setdefault(address, {})[client_id] = self._clock.monotonic()

    def _forget_gone(self, held: dict[str, float]) -> None:
        store = self._state.store
        before_s = self._clock.monotonic() - PENDING_MAX_S
        for client_id, since_s in list(held.items()):
            if not store.has_session(client_id) and (since_s < before_s or store.has_ended_session(client_id)):
                self._forget(client_id)

    def _forget(self, client_id: str) -> None:
        address = self._opened.pop(client_id, None)
        if address is None:
            return
        held = self._of_address[address]
        del held[client_id]
        if not held:
            del self._of_address[address]
