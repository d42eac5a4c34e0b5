"""The synchronous twin of the client: the same methods, without ``await``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from kvorum_client import forking
from kvorum_client.backup import Backup
from kvorum_client.calls import CONCURRENT_CALLS_MAX
from kvorum_client.client import Client
from kvorum_client.errors import ClientError, InvalidArgumentError, OutcomeUnknownError, UnavailableError
from kvorum_client.ranges import SortBy
from kvorum_client.results import (
    Compacted,
    DeleteResult,
    History,
    Member,
    NodeHealth,
    NodeStatus,
    Page,
    PutResult,
    Quota,
    Record,
)
from kvorum_client.sync_coordination import SyncCoordination, SyncLease, id_of
from kvorum_client.transactions import Operation, OperationDone, Transaction, TxnResult
from kvorum_client.transport import CLOSED, UNCLOSED
from kvorum_client.watch import Resumed, SyncWatch

T = TypeVar("T")

CLOSING_S = 2.0
"""How long calls under way have to end by themselves when the client is closed."""


class SyncClient(SyncCoordination):
    """A client for programs without an event loop; any number of threads may share it.

    It runs an event loop in a thread of its own, from the first call on. In the child of a fork it begins anew, with a
    thread, sessions and connections of its own.

    Arguments, results and errors are those of :class:`kvorum_client.Client`. Close it, or use it in a ``with``.
    """

    _client: Client
    _thread: _LoopThread | None = None
    """None: not started yet."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_s: float = 10.0,
        concurrent_calls_max: int = CONCURRENT_CALLS_MAX,
        require_session: bool = False,
        cluster_id: str = "",
    ) -> None:
        self._client = Client(
            endpoints,
            timeout_s=timeout_s,
            concurrent_calls_max=concurrent_calls_max,
            require_session=require_session,
            cluster_id=cluster_id,
        )
        self._lock = threading.Lock()
        self._closed = False
        forking.watch(self)

    def after_fork(self) -> None:
        """Begin anew in the child of a fork, which has no other thread; called by itself."""
        self._lock = threading.Lock()
        thread, self._thread = self._thread, None
        if thread is not None:
            forking.keep_for_ever(thread.loop)

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        thread = self._thread
        if thread is None or self._closed:
            return
        warnings.warn(UNCLOSED, ResourceWarning, 1, self)
        if not sys.is_finalizing():
            asyncio.run_coroutine_threadsafe(_shut_down(self._client), thread.loop).add_done_callback(thread.stop)

    def close(self) -> None:
        """Close the connections and end the thread; other threads' calls end with an error. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            if thread is None:
                return
            # After this nothing is handed to the loop any more.
            closing = asyncio.run_coroutine_threadsafe(_shut_down(self._client), thread.loop)
        closing.result()
        thread.stop()
        thread.join()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            call.close()
            raise InvalidArgumentError("this is the client's own thread: what it calls must not call the client")
        with self._lock:
            if self._closed:
                call.close()
                raise UnavailableError(CLOSED)
            if self._thread is None:
                self._thread = _LoopThread()
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(call, self._thread.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise OutcomeUnknownError(
                "the client was closed: what was under way may or may not have been applied"
            ) from None
        except BaseException:
            # Ctrl-C in this thread; the call's own errors come when it has ended.
            future.cancel()
            raise

    def put(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        prev_revision: int | None = None,
        lease: SyncLease | int | None = None,
        timeout_s: float | None = None,
    ) -> PutResult:
        """See :meth:`kvorum_client.Client.put`."""
        which = None if lease is None else id_of(lease)
        return self._run(self._client.put(key, value, prev_revision=prev_revision, lease=which, timeout_s=timeout_s))

    def delete(
        self, key: bytes | str, *, prev_revision: int | None = None, timeout_s: float | None = None
    ) -> DeleteResult:
        """See :meth:`kvorum_client.Client.delete`."""
        return self._run(self._client.delete(key, prev_revision=prev_revision, timeout_s=timeout_s))

    def page(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        revision: int | None = None,
        keys_only: bool = False,
        sort: SortBy = "key",
        reverse: bool = False,
        delimiter: bytes | str | None = None,
        stale: bool = False,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Page:
        """See :meth:`kvorum_client.Client.page`."""
        return self._run(
            self._client.page(
                prefix=prefix, start=start, end=end, limit=limit, cursor=cursor, revision=revision,
                keys_only=keys_only, sort=sort, reverse=reverse, delimiter=delimiter, stale=stale,
                max_staleness_ms=max_staleness_ms, timeout_s=timeout_s,
            )
        )  # fmt: skip

    def range(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        revision: int | None = None,
        keys_only: bool = False,
        sort: SortBy = "key",
        reverse: bool = False,
        stale: bool = False,
        page_limit: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Record]:
        """See :meth:`kvorum_client.Client.range`."""
        cursor = None
        while True:
            page = self.page(
                prefix=prefix, start=start, end=end, limit=page_limit, cursor=cursor, revision=revision,
                keys_only=keys_only, sort=sort, reverse=reverse, stale=stale, timeout_s=timeout_s,
            )  # fmt: skip
            yield from page.records
            cursor = page.cursor
            if cursor is None:
                return

    def count(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        revision: int | None = None,
        stale: bool = False,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """See :meth:`kvorum_client.Client.count`."""
        return self._run(
            self._client.count(
                prefix=prefix,
                start=start,
                end=end,
                revision=revision,
                stale=stale,
                max_staleness_ms=max_staleness_ms,
                timeout_s=timeout_s,
            )
        )

    def txn(self) -> Transaction[TxnResult]:
        """See :meth:`kvorum_client.Client.txn`; its ``commit`` returns the result."""
        unsent = self._client.txn()
        return Transaction(lambda body, timeout_s: self._run(unsent.send(body, timeout_s)))

    def delete_range(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        timeout_s: float | None = None,
    ) -> DeleteResult:
        """See :meth:`kvorum_client.Client.delete_range`."""
        return self._run(self._client.delete_range(prefix=prefix, start=start, end=end, timeout_s=timeout_s))

    def batch(
        self, *operations: Operation, timeout_s: float | None = None
    ) -> tuple[OperationDone | TxnResult | ClientError, ...]:
        """See :meth:`kvorum_client.Client.batch`."""
        return self._run(self._client.batch(*operations, timeout_s=timeout_s))

    def get(
        self,
        key: bytes | str,
        *,
        revision: int | None = None,
        stale: bool = False,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Record | None:
        """See :meth:`kvorum_client.Client.get`."""
        return self._run(
            self._client.get(
                key, revision=revision, stale=stale, max_staleness_ms=max_staleness_ms, timeout_s=timeout_s
            )
        )

    def history(
        self,
        key: bytes | str,
        *,
        limit: int | None = None,
        revision: int | None = None,
        stale: bool = False,
        timeout_s: float | None = None,
    ) -> History:
        """See :meth:`kvorum_client.Client.history`."""
        return self._run(self._client.history(key, limit=limit, revision=revision, stale=stale, timeout_s=timeout_s))

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
        self, name: str, peer_url: str, client_url: str = "", *, timeout_s: float | None = None
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

    def quota(self, *, timeout_s: float | None = None) -> Quota:
        """See :meth:`kvorum_client.Client.quota`."""
        return self._run(self._client.quota(timeout_s=timeout_s))

    def set_quota(self, quota_bytes: int, *, timeout_s: float | None = None) -> Quota:
        """See :meth:`kvorum_client.Client.set_quota`."""
        return self._run(self._client.set_quota(quota_bytes, timeout_s=timeout_s))

    def compact(self, revision: int, *, timeout_s: float | None = None) -> Compacted:
        """See :meth:`kvorum_client.Client.compact`."""
        return self._run(self._client.compact(revision, timeout_s=timeout_s))

    def watch(
        self,
        key: bytes | str | None = None,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        from_revision: int | None = None,
        prev_value: bool = False,
        only: str | None = None,
        timeout_s: float | None = None,
        on_resume: Resumed | None = None,
    ) -> SyncWatch:
        """See :meth:`kvorum_client.Client.watch`; ``on_resume`` is called on the client's own thread."""
        watch = self._client.watch(
            key,
            prefix=prefix,
            start=start,
            end=end,
            from_revision=from_revision,
            prev_value=prev_value,
            only=only,
            timeout_s=timeout_s,
            on_resume=on_resume,
        )
        return SyncWatch(self._run, watch)

    def backup(
        self, write: Callable[[bytes, int], object], *, stale: bool = False, timeout_s: float | None = None
    ) -> Backup:
        """See :meth:`kvorum_client.Client.backup`; ``write`` is called on the client's own thread."""
        return self._run(self._client.backup(write, stale=stale, timeout_s=timeout_s))


class _LoopThread(threading.Thread):
    """The thread in which a client's event loop runs until it is stopped."""

    def __init__(self) -> None:
        super().__init__(name="kvorum-client", daemon=True)
        self.loop = asyncio.new_event_loop()

    def stop(self, *_: object) -> None:
        """Have the loop stop, and the thread end."""
        self.loop.call_soon_threadsafe(self.loop.stop)

    def run(self) -> None:
        """Run the loop and close it."""
        self.loop.run_forever()
        self.loop.close()


async def _shut_down(client: Client) -> None:
    await client.close()
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, late = await asyncio.wait(others, timeout=CLOSING_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
