"""The synchronous twin of the client: the same methods, without ``await``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar

from kvorum_client.backup import Backup
from kvorum_client.client import CONCURRENT_CALLS_MAX, Client
from kvorum_client.errors import OutcomeUnknownError, UnavailableError
from kvorum_client.results import DeleteResult, Member, NodeHealth, NodeStatus, PutResult, Record
from kvorum_client.transport import CLOSED

T = TypeVar("T")

CLOSING_S = 2.0
"""How long calls under way have to end by themselves when the client is closed."""


class SyncClient:
    """A client for programs without an event loop; any number of threads may share it.

    Arguments, results and errors are those of :class:`kvorum_client.Client`. Close it, or use it in a ``with``.
    """

    def __init__(
        self, endpoints: Sequence[str], *, timeout_s: float = 10.0, concurrent_calls_max: int = CONCURRENT_CALLS_MAX
    ) -> None:
        self._client = Client(endpoints, timeout_s=timeout_s, concurrent_calls_max=concurrent_calls_max)
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvorum-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread; other threads' calls end with an error. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # After this nothing is handed to the loop any more.
            closing = asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        closing.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        await self._client.close()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            _, late = await asyncio.wait(others, timeout=CLOSING_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._closed:
                call.close()
                raise UnavailableError(CLOSED)
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise OutcomeUnknownError(f"{CLOSED}: what was under way may or may not have been applied") from None
        except BaseException:
            # Ctrl-C in this thread; the call's own errors come when it has ended.
            future.cancel()
            raise

    def put(
        self, key: bytes | str, value: bytes | str, *, prev_revision: int | None = None, timeout_s: float | None = None
    ) -> PutResult:
        """See :meth:`kvorum_client.Client.put`."""
        return self._run(self._client.put(key, value, prev_revision=prev_revision, timeout_s=timeout_s))

    def delete(
        self, key: bytes | str, *, prev_revision: int | None = None, timeout_s: float | None = None
    ) -> DeleteResult:
        """See :meth:`kvorum_client.Client.delete`."""
        return self._run(self._client.delete(key, prev_revision=prev_revision, timeout_s=timeout_s))

    def get(
        self,
        key: bytes | str,
        *,
        stale: bool = False,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Record | None:
        """See :meth:`kvorum_client.Client.get`."""
        return self._run(self._client.get(key, stale=stale, max_staleness_ms=max_staleness_ms, timeout_s=timeout_s))

    def status(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> NodeStatus:
        """See :meth:`kvorum_client.Client.status`."""
        return self._run(self._client.status(endpoint, timeout_s=timeout_s))

    def health(self, endpoint: str, *, timeout_s: float | None = None) -> NodeHealth:
        """See :meth:`kvorum_client.Client.health`."""
        return self._run(self._client.health(endpoint, timeout_s=timeout_s))

    def metrics(self, endpoint: str, *, timeout_s: float | None = None) -> str:
        """See :meth:`kvorum_client.Client.metrics`."""
        return self._run(self._client.metrics(endpoint, timeout_s=timeout_s))

    def members(self, *, timeout_s: float | None = None) -> tuple[Member, ...]:
        """See :meth:`kvorum_client.Client.members`."""
        return self._run(self._client.members(timeout_s=timeout_s))

    def add_member(
        self, name: str, peer_url: str, client_url: str, *, timeout_s: float | None = None
    ) -> tuple[Member, ...]:
        """See :meth:`kvorum_client.Client.add_member`."""
        return self._run(self._client.add_member(name, peer_url, client_url, timeout_s=timeout_s))

    def promote_member(self, name: str, *, timeout_s: float | None = None) -> tuple[Member, ...]:
        """See :meth:`kvorum_client.Client.promote_member`."""
        return self._run(self._client.promote_member(name, timeout_s=timeout_s))

    def remove_member(self, name: str, *, timeout_s: float | None = None) -> tuple[Member, ...]:
        """See :meth:`kvorum_client.Client.remove_member`."""
        return self._run(self._client.remove_member(name, timeout_s=timeout_s))

    def move_leader(self, target: str | None = None, *, timeout_s: float | None = None) -> str:
        """See :meth:`kvorum_client.Client.move_leader`."""
        return self._run(self._client.move_leader(target, timeout_s=timeout_s))

    def finalize(self, *, timeout_s: float | None = None) -> int:
        """See :meth:`kvorum_client.Client.finalize`."""
        return self._run(self._client.finalize(timeout_s=timeout_s))

    def backup(self, write: Callable[[bytes, int], object], *, timeout_s: float | None = None) -> Backup:
        """See :meth:`kvorum_client.Client.backup`; ``write`` is called on the client's own thread."""
        return self._run(self._client.backup(write, timeout_s=timeout_s))
