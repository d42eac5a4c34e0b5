"""The asynchronous client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from types import TracebackType
from typing import Any

import msgspec
from msgspec import UNSET

from kvorum_client.arguments import check_whole_number
from kvorum_client.batches import Batch
from kvorum_client.calls import SESSION_REFUSALS, Call, SessionLostError, SessionsFullError
from kvorum_client.cluster_calls import ClusterCalls
from kvorum_client.coordination import Coordination
from kvorum_client.errors import ClientError, OutcomeUnknownError, UnavailableError
from kvorum_client.leases import Lease, id_of_lease, shown_id
from kvorum_client.ranges import Parameters, SortBy, bounds, page_of, page_parameters
from kvorum_client.results import DeleteResult, History, Page, PutResult, Record
from kvorum_client.sessions import Ticket
from kvorum_client.streams import Streams
from kvorum_client.transactions import (
    Delete,
    Operation,
    OperationDone,
    Transaction,
    TxnResult,
    body_of,
    only_reads,
    result_of,
)
from kvorum_client.transport import Answer
from kvorum_client.wire import decode, decode_write, encoded, history_of, key_parameters, key_path, record_of
from kvorum_wire import transactions as wire

logger = logging.getLogger("kvorum_client")

TXN_PATH = "/v1/txn"
BATCH_PATH = "/v1/batch"
END_SESSIONS_S = 1.0
"""How long closing a client waits for the cluster to end its sessions."""
WARNING_INTERVAL_S = 60.0


class Client(ClusterCalls, Streams, Coordination):
    """A client of one cluster; for one event loop. Use it as an asynchronous context manager, or call :meth:`close`.

    In the child of a fork it begins anew, with sessions and connections of its own, and in another event loop.

    Args:
        endpoints: some nodes' client addresses, ``HOST:PORT`` or ``http://HOST:PORT``; the name of a headless Service,
            which stands for several addresses, is enough.
        timeout_s: the deadline of each call that is not given one of its own; up to a day.
        concurrent_calls_max: how many calls are in progress at once; the others wait for their turn, which counts
            towards their deadlines. Stale reads have as many turns of their own.
        require_session: what a write does when the cluster has no room for another session. False: it goes on without
            one and says so in the log; it is not retried when its answer is lost. True: it is refused
            (``sessions_full``).
        cluster_id: the cluster that is meant, 32 hex digits. Empty: the cluster of the first node that answers; a write
            asks for it first. Either way the client keeps to it, and nodes of another cluster refuse its calls.

    Raises:
        InvalidArgumentError: no endpoints, or a malformed one; an impossible number; no id of a cluster. Every method
            raises it too, before anything is sent, for an argument that cannot be meant.
    """

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the sessions and close the connections. What is under way and every later call end with an error.

        Leases are not renewed any more: they are lost now, and the cluster ends them after their time.

        A session whose writes all have a known outcome makes room in the cluster for another client's. If the cluster
        does not answer within a second, it keeps the session for an hour.

        Raises:
            InvalidArgumentError: this is not the event loop in which it was used; that one still runs.
        """
        is_in_use = self._loop is not None and not self._loop.is_closed()
        if is_in_use:
            self._check_loop()
        try:
            for lease in list(self.leases_kept):
                lease.lose("the client is closed, and renews no lease any more")
            if is_in_use:
                await self._end_sessions()
        finally:
            await self._transport.close()

    async def _end_sessions(self) -> None:
        deadline = time.monotonic() + END_SESSIONS_S
        await asyncio.gather(*(self._end_session(each, deadline) for each in self._sessions.take_ended()))

    async def _end_session(self, client_id: str, deadline: float) -> None:
        # Whether it succeeds makes no difference to this client.
        with contextlib.suppress(ClientError):
            await self._try(Call("DELETE", f"/v1/sessions/{client_id}", deadline))

    # Keys.

    async def put(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        prev_revision: int | None = None,
        lease: Lease | int | None = None,
        timeout_s: float | None = None,
    ) -> PutResult:
        """Set the key.

        Args:
            key: 1 to 1024 bytes; text is encoded as UTF-8.
            value: up to 1 MiB; text is encoded as UTF-8.
            prev_revision: only if the key's mod_revision is this; 0: only if it does not exist.
            lease: the lease, or its id, with which the key is deleted. None: the key has none afterwards.
            timeout_s: the deadline.

        Raises:
            CompareFailedError: the key is at another revision.
            LeaseNotFoundError: the lease does not exist, or its time is over.
            RefusedError, UnavailableError: not done.
            OutcomeUnknownError: perhaps done.
        """
        data = encoded(value, "the value")
        parameters: Parameters = {} if lease is None else {"lease": shown_id(id_of_lease(lease))}
        answer = await self._write("PUT", key, data, prev_revision, timeout_s, parameters)
        return decode_write(answer.body, PutResult)

    async def delete(
        self, key: bytes | str, *, prev_revision: int | None = None, timeout_s: float | None = None
    ) -> DeleteResult:
        """Remove the key. Arguments and errors as :meth:`put`."""
        return decode_write((await self._write("DELETE", key, b"", prev_revision, timeout_s)).body, DeleteResult)

    async def get(
        self,
        key: bytes | str,
        *,
        revision: int | None = None,
        stale: bool = False,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Record | None:
        """Return the key's record, or None if it does not exist.

        Args:
            key: as in :meth:`put`.
            revision: from 1: as the key was at this revision of the cluster. None: as it is.
            stale: take what the node at hand has applied, without asking a quorum.
            max_staleness_ms: (implies ``stale``) only from a node that has applied everything committed this long ago.
            timeout_s: the deadline.

        Raises:
            CompactedError: the revision is no longer in the history.
            FutureRevisionError: the cluster has not reached the revision.
            RefusedError, UnavailableError: there is no answer.
        """
        name = encoded(key, "the key")
        answer = await self._call(self._read(name, revision, stale, max_staleness_ms, timeout_s))
        return None if answer.status == 404 else record_of(name, answer)

    async def history(
        self,
        key: bytes | str,
        *,
        limit: int | None = None,
        revision: int | None = None,
        stale: bool = False,
        timeout_s: float | None = None,
    ) -> History:
        """Return the versions of the key that can still be read, newest first; none if there is none.

        Args:
            key: as in :meth:`put`.
            limit: how many versions, from 1; a node returns fewer if they are large. None: 100.
            revision: leave out newer versions than those of this revision.
            stale: take what the node at hand has applied, without asking a quorum.
            timeout_s: the deadline.

        Raises:
            CompactedError: ``revision`` is no longer in the history.
            FutureRevisionError: the cluster has not reached ``revision``.
            RefusedError, UnavailableError: there is no answer.
        """
        name = encoded(key, "the key")
        call = self._read(name, revision, stale, None, timeout_s)
        call.parameters["history"] = "true"
        if limit is not None:
            call.parameters["limit"] = str(check_whole_number(limit, "limit", 1))
        return history_of(name, (await self._call(call)).body)

    async def page(
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
        """Return a page of the keys that begin with ``prefix``, or of those from ``start`` on and before ``end``.

        Without any of them the range is all keys. It needs feature level 4.

        Args:
            prefix: as a key of :meth:`put`; empty: all keys.
            start: the first key that may be in the range.
            end: the first key that may not.
            limit: how many records and prefixes, from 1. A page also ends at about 1 MiB. None: 1,000.
            cursor: of the page before; the other arguments but ``limit`` must be the same.
            revision: read the range as it was at this revision. All pages are at the revision of the first.
            keys_only: leave out the values.
            sort: by ``key``, or by ``create``, ``mod``, ``version`` or ``value``, of a range of up to 10,000 keys.
            reverse: descending.
            delimiter: with a prefix, or all keys: one level. Keys that have it after the prefix are not returned, but
                what they have in common up to it is, as :attr:`Page.prefixes`.
            stale: take what the node at hand has applied, without asking a quorum.
            max_staleness_ms: as ``stale``, of a node that has applied everything that was committed this long ago.
            timeout_s: the deadline.

        Raises:
            CompactedError: the revision, or that of the cursor, is no longer in the history.
            FutureRevisionError: the cluster has not reached ``revision``.
            RefusedError, UnavailableError: there is no answer.
        """
        parameters = page_parameters(
            bounds(prefix, start, end),
            limit=limit,
            cursor=cursor,
            revision=revision,
            keys_only=keys_only,
            sort=sort,
            reverse=reverse,
            delimiter=delimiter,
        )
        call = Call("GET", "/v1/kv", self._deadline(timeout_s), parameters=parameters)
        _read_stale(call, stale, max_staleness_ms)
        return page_of((await self._call(call)).body)

    async def range(
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
    ) -> AsyncGenerator[Record, None]:
        """Yield all records of a range, as they were at one revision; see :meth:`page`.

        Args:
            prefix: as of :meth:`page`, and likewise the others.
            start: likewise.
            end: likewise.
            revision: likewise.
            keys_only: likewise.
            sort: likewise.
            reverse: likewise.
            stale: likewise.
            page_limit: how many records are asked for at a time.
            timeout_s: the deadline of each page.
        """
        cursor = None
        while True:
            page = await self.page(
                prefix=prefix, start=start, end=end, limit=page_limit, cursor=cursor, revision=revision,
                keys_only=keys_only, sort=sort, reverse=reverse, stale=stale, timeout_s=timeout_s,
            )  # fmt: skip
            for record in page.records:
                yield record
            cursor = page.cursor
            if cursor is None:
                return

    async def count(
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
        """Return how many keys a range has; arguments and errors are those of :meth:`page`."""
        parameters: Parameters = {**bounds(prefix, start, end), "count_only": "true"}
        if revision is not None:
            parameters["revision"] = str(check_whole_number(revision, "revision", 1))
        call = Call("GET", "/v1/kv", self._deadline(timeout_s), parameters=parameters)
        _read_stale(call, stale, max_staleness_ms)
        return page_of((await self._call(call)).body).count

    def _read(
        self, name: bytes, revision: int | None, stale: bool, max_staleness_ms: int | None, timeout_s: float | None
    ) -> Call:
        parameters: Parameters = {**key_parameters(name)}
        call = Call("GET", key_path(name), self._deadline(timeout_s), parameters=parameters)
        if revision is not None:
            call.parameters["revision"] = str(check_whole_number(revision, "revision", 1))
        _read_stale(call, stale, max_staleness_ms)
        return call

    def txn(self) -> Transaction[Coroutine[Any, Any, TxnResult]]:
        """Return an empty transaction, to be filled and committed: see :mod:`kvorum_client.transactions`."""
        return Transaction(self._commit)

    async def delete_range(
        self,
        *,
        prefix: bytes | str | None = None,
        start: bytes | str | None = None,
        end: bytes | str | None = None,
        timeout_s: float | None = None,
    ) -> DeleteResult:
        """Remove all keys that begin with ``prefix``, or those from ``start`` on and before ``end``, at one revision.

        Raises:
            RefusedError: there are more than 10,000 of them (``too_large``): remove them in parts.
            UnavailableError: not done.
            OutcomeUnknownError: perhaps done.
        """
        result = await self.txn().then(Delete(prefix=prefix, start=start, end=end)).commit(timeout_s=timeout_s)
        return DeleteResult(result.revision, result.deleted)

    async def batch(
        self, *operations: Operation, timeout_s: float | None = None
    ) -> tuple[OperationDone | TxnResult | ClientError, ...]:
        """Do up to 128 operations in one request, each by itself: it is no transaction.

        The changes are made in their order, and the reads after all of them.

        Returns:
            For each operation what came of it, or the error that :meth:`Transaction.commit` would raise; a TxnResult
            if the answer of the attempt that did it was lost.

        Raises:
            RefusedError, UnavailableError: nothing was done.
        """
        batch = Batch(tuple(map(body_of, operations)))
        deadline = self._deadline(timeout_s)
        async with self._turns.turn(deadline):
            while batch.changes or batch.reads:
                sent = list(batch.changes or batch.reads)
                try:
                    await (self._change_batch(batch, deadline) if batch.changes else self._read_batch(batch, deadline))
                except ClientError as error:
                    if not batch.has_results:
                        raise
                    batch.fail(sent, error)
        return batch.results()

    async def _read_batch(self, batch: Batch, deadline: float) -> None:
        reads = list(batch.reads)
        answer = await self._try(Call("POST", BATCH_PATH, deadline, batch.body(reads)))
        for number, done in batch.answers(reads, answer.body):
            batch.finish(number, done, perhaps_done=False)

    async def _change_batch(self, batch: Batch, deadline: float) -> None:
        """Send all changes, and the reads with them; or the first change alone, if it opens a session.

        What the session does not take is left, for another session.
        """
        try:
            async with self._sessions.tickets(len(batch.changes), deadline - time.monotonic()) as tickets:
                sent = batch.changes[: len(tickets)]
                sent += batch.reads if len(sent) == len(batch.changes) else []
                call = Call("POST", BATCH_PATH, deadline, is_write=True, ticket=tickets[0])
                call.body = batch.body(sent, [ticket.idempotency_key for ticket in tickets])
                answer = await self._try(call)
                answers = _batch_answers(batch, sent, answer)
                for place, (number, done) in enumerate(answers):
                    ticket = tickets[place] if place < len(tickets) else None
                    self._finish(batch, number, done, ticket, perhaps_done=call.perhaps_done)
        except TimeoutError:
            raise UnavailableError("too many writes are in flight already; nothing was sent") from None
        except SessionsFullError:
            self._warn_of_no_session()
            sent = [*batch.changes, *batch.reads]
            answer = await self._try(Call("POST", BATCH_PATH, deadline, batch.body(sent), is_write=True))
            for number, done in _batch_answers(batch, sent, answer):
                batch.finish(number, done, perhaps_done=False)

    def _finish(
        self, batch: Batch, number: int, done: wire.BatchDone, ticket: Ticket | None, *, perhaps_done: bool
    ) -> None:
        """Take what came of an operation of a batch, unless another session may take it.

        Raises:
            SessionsFullError: there is no room for a session, and the operations can be done without one.
        """
        code = "" if done.problem is UNSET else done.problem.code
        if ticket is not None:
            ticket.answered = done.problem is UNSET
            ticket.lost = code in SESSION_REFUSALS
            if ticket.lost and not (perhaps_done or ticket.opens):
                return
            if code == "sessions_full" and not (perhaps_done or self._require_session):
                raise SessionsFullError
            if done.problem is not UNSET and (done.problem.outcome != "refused" or perhaps_done):
                ticket.lane.is_in_doubt = True
        batch.finish(number, done, perhaps_done=perhaps_done)

    async def _commit(self, body: wire.Txn, timeout_s: float | None) -> TxnResult:
        data, deadline = msgspec.json.encode(body), self._deadline(timeout_s)
        if only_reads((*body.then, *body.otherwise)):
            answer = await self._call(Call("POST", TXN_PATH, deadline, data))
            return result_of(decode(answer.body, wire.TxnAnswer))
        async with self._turns.turn(deadline):
            answer = await self._write_in_session("POST", TXN_PATH, data, {}, deadline)
        return result_of(decode_write(answer.body, wire.TxnAnswer))

    async def _write(
        self,
        method: str,
        key: bytes | str,
        body: bytes,
        prev_revision: int | None,
        timeout_s: float | None,
        parameters: Parameters | None = None,
    ) -> Answer:
        parameters = {**key_parameters(name := encoded(key, "the key")), **(parameters or {})}
        if prev_revision is not None:
            parameters["prev_revision"] = str(check_whole_number(prev_revision, "prev_revision"))
        path, deadline = key_path(name), self._deadline(timeout_s)
        # The turn comes before the place in a session: writes that only wait need none.
        async with self._turns.turn(deadline):
            return await self._write_in_session(method, path, body, parameters, deadline)

    async def _write_in_session(
        self, method: str, path: str, body: bytes, parameters: Parameters, deadline: float
    ) -> Answer:
        while True:
            call = Call(method, path, deadline, body, parameters=parameters, is_write=True)
            try:
                async with self._sessions.ticket(deadline - time.monotonic()) as ticket:
                    call.ticket, call.headers = ticket, {"Idempotency-Key": ticket.idempotency_key}
                    return await self._try(call)
            except TimeoutError:
                raise UnavailableError("too many writes are in flight already; nothing was sent") from None
            except SessionLostError:
                continue
            except SessionsFullError:
                self._warn_of_no_session()
                return await self._try(Call(method, path, deadline, body, parameters=parameters, is_write=True))

    def _warn_of_no_session(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            logger.warning(
                "The cluster has no room for another client session; a write without an answer is not retried"
            )

    async def _coordinate(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        parameters: Parameters | None = None,
        timeout_s: float | None = None,
        attempt_s: float | None = None,
        wait_until: float = 0.0,
        settled_by: frozenset[str] = frozenset(),
    ) -> Answer:
        call = Call(
            method,
            path,
            max(wait_until - time.monotonic(), 0.0) + self._deadline(timeout_s),
            body,
            parameters=parameters or {},
            is_write=method != "GET",
            is_idempotent=True,
            settled_by=settled_by,
            attempt_s=attempt_s,
            wait_until=wait_until,
        )
        # It takes no turn: a renewal must not wait for other calls, nor these for a call that waits for a lock.
        return await self._try(call)


def _read_stale(call: Call, stale: bool, max_staleness_ms: int | None) -> None:
    if not stale and max_staleness_ms is None:
        return
    call.any_node = True
    call.parameters["consistency"] = "stale"
    if max_staleness_ms is not None:
        call.parameters["max_staleness_ms"] = str(check_whole_number(max_staleness_ms, "max_staleness_ms"))


def _batch_answers(batch: Batch, sent: Sequence[int], answer: Answer) -> list[tuple[int, wire.BatchDone]]:
    try:
        return batch.answers(sent, answer.body)
    except ClientError as error:
        raise OutcomeUnknownError(f"the writes may or may not have been applied: {error}") from None
