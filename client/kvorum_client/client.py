"""The asynchronous client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET

from kvorum_client import forking
from kvorum_client.arguments import (
    check_cluster_id,
    check_endpoints,
    check_text,
    check_timeout,
    check_whole_number,
)
from kvorum_client.backup import Backup, Verifier
from kvorum_client.batches import Batch
from kvorum_client.concurrency import Turns
from kvorum_client.coordination import Coordination
from kvorum_client.errors import (
    BackupDamagedError,
    ClientError,
    CompactedError,
    CompareFailedError,
    InvalidArgumentError,
    OutcomeUnknownError,
    UnavailableError,
    WrongClusterError,
)
from kvorum_client.leases import Lease, id_of_lease, shown_id
from kvorum_client.ranges import Parameters, SortBy, bounds, page_of, page_parameters
from kvorum_client.refusals import refusal_of
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
from kvorum_client.sessions import Sessions, Ticket
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
from kvorum_client.transport import (
    CLOSED,
    Answer,
    DownloadDeclinedError,
    DownloadInterruptedError,
    NoAnswerError,
    NotSentError,
    Router,
    Transport,
    base_of,
)
from kvorum_client.watch import AttemptEndedError, Resumed, Watch, target_of
from kvorum_client.wire import (
    decode,
    decode_write,
    encoded,
    history_of,
    is_hello,
    key_parameters,
    key_path,
    problem_of,
    quote,
    record_of,
)
from kvorum_wire import (
    CLUSTER_HEADER,
    AddMember,
    Compact,
    FeatureLevel,
    Leader,
    Members,
    NewLeader,
    Problem,
    SetQuota,
    TransferLeadership,
)
from kvorum_wire import transactions as wire

logger = logging.getLogger("kvorum_client")

TXN_PATH = "/v1/txn"
BATCH_PATH = "/v1/batch"
CONCURRENT_CALLS_MAX = 64
"""3,000 calls at once take about as long with any limit from 32 to 256, several times as long with 512, and end in
timeouts without one (docs/performance.md). 64 leaves the writes of one client room in one session."""
END_SESSIONS_S = 1.0
"""How long closing a client waits for the cluster to end its sessions."""
WATCH_PROGRESS_S = 5
"""How often a node shows that a watch lives on which nothing happens."""
WATCH_SILENCE_S = 15.0
"""After so long without a sign of life a watch goes on at another node."""
BACKUP_SILENCE_S = 60.0
"""How long a node may take to write a backup, or its next piece."""
PROBE_S = 2.0
"""How often a node is probed that does not begin to send a backup, and how long it has to answer."""
WARNING_INTERVAL_S = 60.0
BACKOFF_MIN_S = 0.02
BACKOFF_MAX_S = 0.5
SUSPECT_S = 0.5
"""A node that has not answered for this long may be no use any more: the others are asked who leads."""
SUSPECT_WAIT_S = 4.0
"""Likewise a node that waits for a lock."""
CLUSTER_ID_CHARS_MAX = 64
REDIRECTS_MAX = 4
"""Redirects in a row before a pause: two nodes that name each other are in the middle of an election."""
_TRY_AGAIN = frozenset(
    {"no_leader", "overloaded", "read_timeout", "too_stale", "outcome_unknown", "internal", "too_many_watchers"}
)
_SESSION_REFUSALS = frozenset({"session_unknown", "session_stale", "session_ahead", "session_mismatch"})
"""This attempt is not applied. The session is of no use any more: it expired, the cluster was restored from a backup,
or somebody else writes in it."""


class _SessionLostError(Exception):
    """The session is of no use any more, and no attempt of this write is pending: make it in another session."""


class _SessionsFullError(Exception):
    """The cluster takes no further session now: write without one."""


class _Call(msgspec.Struct):
    """One call, over all its attempts."""

    method: str
    path: str
    deadline: float
    body: bytes = b""
    headers: dict[str, str] = {}
    parameters: Parameters = {}
    ticket: Ticket | None = None
    is_write: bool = False
    is_idempotent: bool = False
    """A write that makes no difference when it is done again."""
    any_node: bool = False
    """Any node's own answer will do: do not go to the leader for it."""
    waits: bool = True
    """The node waits for the cluster: tell it for how long."""
    perhaps_done: bool = False
    perhaps_elsewhere: bool = False
    """It was perhaps done by an attempt that named no cluster."""
    names_cluster: bool = False
    """The latest attempt named the cluster of the client."""
    foreign: dict[str, str] = {}
    """The nodes that refused since they belong to another cluster, and which one."""
    is_peer_port: bool = False
    """The latest answer came from the peer port of a node, which takes no request of a client."""
    reason: str = "no node was asked in time"
    has_failed: bool = False
    """An attempt failed, and ``reason`` says why."""
    settled_by: frozenset[str] = frozenset()
    """Refusals that say all there is to know, whatever became of earlier attempts."""
    attempt_s: float | None = None
    """How long one attempt may take; None: as the client's calls do."""
    wait_until: float = 0.0
    """Until when a node may wait for a lock, on top of that; 0: it is no such call."""

    @property
    def wait_s(self) -> float:
        """For how long a node may wait for a lock."""
        return max(0.0, self.wait_until - time.monotonic())

    def target(self, timeout_s: float) -> str:
        """Return path and query of an attempt that takes this long, besides the wait for a lock."""
        parameters = self.parameters
        if self.wait_until:
            parameters = {**parameters, "wait_ms": str(int(1000 * self.wait_s))}
        if self.waits:
            # The node should give up first, since it knows more about why.
            parameters = {**parameters, "timeout_ms": str(max(1, int(900 * timeout_s)))}
        return self.path + ("?" + urlencode(parameters) if parameters else "")

    def remaining_s(self) -> float:
        """Return the time that is left, never less than 0."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def may_repeat(self) -> bool:
        return not self.is_write or self.is_idempotent or self.ticket is not None

    def note_failure(self, error: Exception, timeout_s: float, usual_s: float) -> None:
        """Take note why the latest attempt failed, unless the end of the call cut it short and an earlier one says."""
        if self.remaining_s() > 0 or timeout_s >= usual_s or not self.has_failed:
            self.reason = str(error)
        self.has_failed = True

    def note_unknown(self) -> None:
        """Take note that the outcome of the latest attempt is not known."""
        self.perhaps_done = True
        self.perhaps_elsewhere = self.perhaps_elsewhere or not self.names_cluster


class Client(Coordination):
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

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_s: float = 10.0,
        concurrent_calls_max: int = CONCURRENT_CALLS_MAX,
        require_session: bool = False,
        cluster_id: str = "",
    ) -> None:
        self._router = Router(check_endpoints(endpoints))
        self._timeout_s = check_timeout(timeout_s)
        self._concurrent_calls_max = concurrent_calls_max
        self._require_session = require_session
        self.cluster_id = check_cluster_id(cluster_id)
        """The cluster of this client; empty until a node has answered."""
        self._nameless = ""
        """The node that was asked for its cluster last and named none."""
        self._warned_at = float("-inf")
        self._transport = Transport()
        self.last_failure: str | None = None
        """Why the latest attempt of any call did not end it."""
        self.has_heard = False
        """Whether any node has answered anything."""
        self.writes_perhaps_sent = 0
        """How many attempts to write were made, without those of which certainly nothing was sent."""
        self.lacks_leader = False
        """Whether the latest answer was that there is no leader."""
        self._begin_anew()
        forking.watch(self)

    def _begin_anew(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions = Sessions()
        self._turns = Turns(self._concurrent_calls_max)
        self._any_node_turns = Turns(self._concurrent_calls_max)
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self.leases_kept: set[Lease] = set()
        """Those that are kept alive in the background."""

    def after_fork(self) -> None:
        """Begin anew in the child of a fork; called by itself."""
        self._transport.after_fork()
        self._begin_anew()

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
            await self._try(_Call("DELETE", f"/v1/sessions/{client_id}", deadline))

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
        call = _Call("GET", "/v1/kv", self._deadline(timeout_s), parameters=parameters)
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
        call = _Call("GET", "/v1/kv", self._deadline(timeout_s), parameters=parameters)
        _read_stale(call, stale, max_staleness_ms)
        return page_of((await self._call(call)).body).count

    def _read(
        self, name: bytes, revision: int | None, stale: bool, max_staleness_ms: int | None, timeout_s: float | None
    ) -> _Call:
        parameters: Parameters = {**key_parameters(name)}
        call = _Call("GET", key_path(name), self._deadline(timeout_s), parameters=parameters)
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
        answer = await self._try(_Call("POST", BATCH_PATH, deadline, batch.body(reads)))
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
                call = _Call("POST", BATCH_PATH, deadline, is_write=True, ticket=tickets[0])
                call.body = batch.body(sent, [ticket.idempotency_key for ticket in tickets])
                answer = await self._try(call)
                answers = _batch_answers(batch, sent, answer)
                for place, (number, done) in enumerate(answers):
                    ticket = tickets[place] if place < len(tickets) else None
                    self._finish(batch, number, done, ticket, perhaps_done=call.perhaps_done)
        except TimeoutError:
            raise UnavailableError("too many writes are in flight already; nothing was sent") from None
        except _SessionsFullError:
            self._warn_of_no_session()
            sent = [*batch.changes, *batch.reads]
            answer = await self._try(_Call("POST", BATCH_PATH, deadline, batch.body(sent), is_write=True))
            for number, done in _batch_answers(batch, sent, answer):
                batch.finish(number, done, perhaps_done=False)

    def _finish(
        self, batch: Batch, number: int, done: wire.BatchDone, ticket: Ticket | None, *, perhaps_done: bool
    ) -> None:
        """Take what came of an operation of a batch, unless another session may take it.

        Raises:
            _SessionsFullError: there is no room for a session, and the operations can be done without one.
        """
        code = "" if done.problem is UNSET else done.problem.code
        if ticket is not None:
            ticket.answered = done.problem is UNSET
            ticket.lost = code in _SESSION_REFUSALS
            if ticket.lost and not (perhaps_done or ticket.opens):
                return
            if code == "sessions_full" and not (perhaps_done or self._require_session):
                raise _SessionsFullError
            if done.problem is not UNSET and (done.problem.outcome != "refused" or perhaps_done):
                ticket.lane.is_in_doubt = True
        batch.finish(number, done, perhaps_done=perhaps_done)

    async def _commit(self, body: wire.Txn, timeout_s: float | None) -> TxnResult:
        data, deadline = msgspec.json.encode(body), self._deadline(timeout_s)
        if only_reads((*body.then, *body.otherwise)):
            answer = await self._call(_Call("POST", TXN_PATH, deadline, data))
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
            call = _Call(method, path, deadline, body, parameters=parameters, is_write=True)
            try:
                async with self._sessions.ticket(deadline - time.monotonic()) as ticket:
                    call.ticket, call.headers = ticket, {"Idempotency-Key": ticket.idempotency_key}
                    return await self._try(call)
            except TimeoutError:
                raise UnavailableError("too many writes are in flight already; nothing was sent") from None
            except _SessionLostError:
                continue
            except _SessionsFullError:
                self._warn_of_no_session()
                return await self._try(_Call(method, path, deadline, body, parameters=parameters, is_write=True))

    def _warn_of_no_session(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            logger.warning(
                "The cluster has no room for another client session; a write without an answer is not retried"
            )

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
    ) -> Watch:
        """Return the events of a key, of all keys with a prefix, or of those from ``start`` on and before ``end``.

        Each event comes once, in the order of revisions. When a node stops or fails, the watch goes on at another one.

        Args:
            key: one key.
            prefix: the beginning of keys; empty: all keys.
            start: the first key of a range.
            end: the first key behind it.
            from_revision: the first revision to see, from 1. By default the watch begins when it is entered, or when
                its first event is asked for.
            prev_value: tell what each event replaced.
            only: ``put`` or ``delete``.
            timeout_s: how long to look for a node, to begin and then each time the watch has to resume. By default the
                client's deadline to begin, and no limit to resume.
            on_resume: called with a revision and a reason when the watch goes on at another node.
        """
        target = target_of(key, prefix, start, end, only, prev_value=prev_value) + f"&progress_s={WATCH_PROGRESS_S}"
        begin_timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return Watch(self._stream, target, from_revision, begin_timeout_s, timeout_s, on_resume)

    async def _stream(self, target: str, within_s: float) -> AsyncGenerator[bytes, None]:
        """Yield what one node sends of a watch, or of an election; see :class:`kvorum_client.watch.Connect`."""
        deadline = time.monotonic() + within_s
        call = _Call("GET", "/v1/watch", self._deadline(min(within_s, self._attempt_timeout_s)), any_node=True)
        base = await self._router.pick_any(call.remaining_s())
        if self._transport.is_closed:
            raise UnavailableError(CLOSED)
        try:
            if self.cluster_id or await self._learn_cluster(call, base, call.remaining_s()):
                target += f"&timeout_ms={max(1, int(900 * call.remaining_s()))}"
                pieces = self._transport.download(base, target, self._cluster_header(), WATCH_SILENCE_S)
                async with contextlib.aclosing(pieces):
                    async with asyncio.timeout(call.remaining_s()):
                        piece = await anext(pieces, None)
                    while piece is not None:
                        self.has_heard, self.last_failure = True, None
                        yield piece[0]
                        piece = await anext(pieces, None)
                call.reason = f"{base}: the connection ended"
        except (NotSentError, NoAnswerError, DownloadInterruptedError) as error:
            call.reason = str(error)
        except TimeoutError:
            call.reason = f"{base}: no answer in time"
        except DownloadDeclinedError as error:
            self.has_heard = True
            if self._is_ours(call, error.answer) and error.answer.status != 307:
                self._judge(call, error.answer)
        except GeneratorExit:
            # The node said that it ends the watch, or nobody wants more of it.
            self._router.skip(base)
            raise
        self.last_failure = call.reason
        await self._router.failed(base, max(0.0, min(deadline - time.monotonic(), self._attempt_timeout_s)))
        raise AttemptEndedError(call.reason)

    # The cluster.

    async def status(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> NodeStatus:
        """Return what one node says of itself and the cluster: the given one, or any that answers.

        Raises:
            UnavailableError: it, or none, answers.
        """
        deadline = self._deadline(timeout_s)
        if endpoint is None:
            call = _Call("GET", "/v1/cluster", deadline, any_node=True, waits=False)
            return decode((await self._call(call)).body, NodeStatus)
        answer = await self._ask(endpoint, "/v1/cluster", deadline)
        if answer.status != 200:
            reason = problem_of(answer).detail if answer.status == 404 else f"HTTP status {answer.status}"
            raise UnavailableError(f"{endpoint}: {reason}")
        return decode(answer.body, NodeStatus)

    async def health(self, endpoint: str, *, timeout_s: float | None = None) -> NodeHealth:
        """Return whether one node is ready, and why not."""
        try:
            answer = await self._ask(endpoint, "/readyz?verbose", self._deadline(timeout_s))
        except UnavailableError as error:
            return NodeHealth(endpoint, False, str(error))
        return NodeHealth(endpoint, answer.status == 200, answer.body.decode("utf-8", "replace").strip())

    async def metrics(self, endpoint: str, *, timeout_s: float | None = None) -> str:
        """Return one node's ``/metrics``, in the Prometheus text format.

        Raises:
            UnavailableError: it does not answer.
        """
        answer = await self._ask(endpoint, "/metrics", self._deadline(timeout_s))
        if answer.status != 200:
            raise UnavailableError(f"{endpoint}: HTTP status {answer.status}")
        return answer.body.decode("utf-8", "replace")

    async def backup(
        self, write: Callable[[bytes, int], object], *, stale: bool = False, timeout_s: float | None = None
    ) -> Backup:
        """Fetch a backup of all that was acknowledged before the call, from any node; return what it is.

        Args:
            write: called with each piece and the size of the whole; it may block for as long as a disk does. What it
                was given is a backup only once this returns.
            stale: what the node has applied is enough. It works without a quorum, may lack acknowledged writes, and the
                file says so.
            timeout_s: how long to look for a node that gives one, and how long a quorum may take to confirm it. The
                node may then be silent for a minute (or this long, if it is more) while it writes the backup.

        Raises:
            RefusedError, UnavailableError: there is none; ``write`` was not called.
            BackupDamagedError: it broke off, or is not what the node meant to send.
        """
        timeout_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        silence_s = max(timeout_s, BACKUP_SILENCE_S)
        parameters: Parameters = {"consistency": "stale"} if stale else {}
        call = _Call("GET", "/v1/snapshot", self._deadline(timeout_s), parameters=parameters, any_node=True)
        verifier = Verifier()
        while (remaining_s := call.remaining_s()) > 0:
            base = await self._router.pick_any(remaining_s)
            if self._transport.is_closed:
                raise UnavailableError(CLOSED)
            try:
                pieces = self._transport.download(base, call.target(remaining_s), self._cluster_header(), silence_s)
                async with contextlib.aclosing(self._while_alive(pieces, base)) as living:
                    async for chunk, size_bytes in living:
                        self.has_heard, self.last_failure = True, None
                        verifier.feed(chunk)
                        write(chunk, size_bytes)
                return verifier.finish()
            except (NotSentError, NoAnswerError) as error:
                call.reason = str(error)
            except DownloadDeclinedError as error:
                self.has_heard = True
                if self._is_ours(call, error.answer):
                    self._judge(call, error.answer)
            except DownloadInterruptedError as error:
                raise BackupDamagedError(f"the backup broke off after {verifier.size_bytes} bytes: {error}") from None
            self.last_failure = call.reason
            await self._router.failed(base, call.remaining_s())
            await self._pause(call, BACKOFF_MAX_S)
        raise UnavailableError(call.reason)

    async def _while_alive(
        self, pieces: AsyncGenerator[tuple[bytes, int], None], base: str
    ) -> AsyncGenerator[tuple[bytes, int], None]:
        """Yield the pieces. Until the first is there, a node that does not answer its probe either is given up.

        A large snapshot takes a while; a node that is gone, paused or cut off should not be waited for as long.

        Raises:
            NoAnswerError: it does not answer.
        """
        async with contextlib.aclosing(pieces):
            first = asyncio.ensure_future(anext(pieces, None))
            try:
                while not (await asyncio.wait([first], timeout=PROBE_S))[0]:
                    try:
                        await self._transport.exchange(base, "GET", "/livez", b"", {}, PROBE_S)
                    except (NotSentError, NoAnswerError):
                        if not first.done():
                            raise
            finally:
                if not first.done():
                    first.cancel()
                    await asyncio.wait([first])
            if (piece := first.result()) is None:
                return
            yield piece
            async for piece in pieces:
                yield piece

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints, as base URLs."""
        return self._router.endpoints

    async def members(self, *, timeout_s: float | None = None) -> tuple[Member, ...]:
        """Return the members, as the leader sees them if one is known, else as any node does."""
        call = _Call("GET", "/v1/cluster/members", self._deadline(timeout_s), waits=False)
        return decode((await self._call(call)).body, Members).members

    async def add_member(
        self, name: str, peer_url: str, client_url: str = "", *, timeout_s: float | None = None
    ) -> tuple[Member, ...]:
        """Add a learner and return the members.

        Args:
            name: the node's.
            peer_url: where its peers reach it, ``http://HOST:PORT``.
            client_url: where you expect that clients reach it; refused if the node announces another URL
                (``advertise_client_url``). Empty: whatever it announces; nodes before version 0.3.0 refuse that.
            timeout_s: the deadline.

        Raises:
            RefusedError, UnavailableError: not done.
            OutcomeUnknownError: perhaps done; look at :meth:`members`.
        """
        check_text(name, "the member's name")
        check_text(peer_url, "peer_url")
        if client_url != "":
            check_text(client_url, "client_url")
        body = msgspec.json.encode(AddMember(name, peer_url, client_url))
        return await self._change_members("POST", "", body, timeout_s)

    async def promote_member(self, name: str, *, timeout_s: float | None = None) -> tuple[Member, ...]:
        """Make a learner a voter and return the members. Errors as :meth:`add_member`."""
        return await self._change_members("POST", f"/{_member(name)}/promote", b"", timeout_s)

    async def remove_member(self, name: str, *, timeout_s: float | None = None) -> tuple[Member, ...]:
        """Remove a member and return the members. Errors as :meth:`add_member`."""
        return await self._change_members("DELETE", f"/{_member(name)}", b"", timeout_s)

    async def move_leader(self, target: str | None = None, *, timeout_s: float | None = None) -> str:
        """Hand the leadership to the target, by default to the most caught-up voter, and return the new leader's name.

        Raises:
            RefusedError, UnavailableError: the leadership stays where it is.
            OutcomeUnknownError: it may have moved.
        """
        if target is not None:
            check_text(target, "the target")
        body = msgspec.json.encode(TransferLeadership(target))
        call = _Call("POST", "/v1/cluster/leader", self._deadline(timeout_s), body, is_write=True)
        return decode_write((await self._call(call)).body, NewLeader).leader

    async def finalize(self, *, timeout_s: float | None = None) -> int:
        """Raise the cluster's feature level as far as its version goes, for good, and return it.

        Raises:
            RefusedError: a member does not support the next level; the text names it.
            UnavailableError: not raised.
            OutcomeUnknownError: it may be.
        """
        call = _Call("POST", "/v1/cluster/finalize", self._deadline(timeout_s), b"", is_write=True)
        return decode_write((await self._call(call)).body, FeatureLevel).feature_level

    async def quota(self, *, timeout_s: float | None = None) -> Quota:
        """Return the quota on data and what is used of it: the leader's view if one is known, else any node's.

        Raises:
            RefusedError: no node knows a quota (before version 0.3.0).
            UnavailableError: no node answers.
        """
        call = _Call("GET", "/v1/cluster/quota", self._deadline(timeout_s), waits=False)
        return decode((await self._call(call)).body, Quota)

    async def set_quota(self, quota_bytes: int, *, timeout_s: float | None = None) -> Quota:
        """Set the quota on data and return it. It may be below what is used: puts are refused then.

        Raises:
            RefusedError: less than 1 MiB; or the feature level of the cluster is below 3.
            UnavailableError: not set.
            OutcomeUnknownError: it may be.
        """
        body = msgspec.json.encode(SetQuota(check_whole_number(quota_bytes, "quota_bytes")))
        call = _Call("PUT", "/v1/cluster/quota", self._deadline(timeout_s), body, is_write=True)
        return decode_write((await self._call(call)).body, Quota)

    async def compact(self, revision: int, *, timeout_s: float | None = None) -> Compacted:
        """Give up the history below a revision, for good, and return the revision and the floor of the cluster.

        It is done if the floor is there already, or higher: by an earlier attempt, or by somebody else.

        Args:
            revision: from 1; the lowest revision that can be read from then on.
            timeout_s: the deadline.

        Raises:
            FutureRevisionError: the cluster has not reached ``revision``.
            RefusedError: the feature level of the cluster is below 4.
            UnavailableError: not done.
            OutcomeUnknownError: it may be.
        """
        body = msgspec.json.encode(Compact(check_whole_number(revision, "revision", 1)))
        call = _Call("POST", "/v1/compact", self._deadline(timeout_s), body, is_write=True, is_idempotent=True)
        try:
            return decode_write((await self._call(call)).body, Compacted)
        except CompactedError as error:
            # Whether an attempt whose answer was lost did it, or the leader by itself: what was asked for holds.
            return Compacted(error.revision, error.floor)

    async def _change_members(self, method: str, path: str, body: bytes, timeout_s: float | None) -> tuple[Member, ...]:
        call = _Call(method, "/v1/cluster/members" + path, self._deadline(timeout_s), body, is_write=True)
        return decode_write((await self._call(call)).body, Members).members

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
        call = _Call(
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

    async def _ask(self, endpoint: str, target: str, deadline: float) -> Answer:
        """Ask this one node, once."""
        base = Router(check_endpoints([endpoint])).endpoints[0]
        try:
            timeout_s = max(0.001, deadline - time.monotonic())
            answer = await self._transport.exchange(base, "GET", target, b"", {}, timeout_s)
            self.has_heard = True
            return answer
        except (NotSentError, NoAnswerError) as error:
            self.last_failure = str(error)
            raise UnavailableError(str(error)) from None

    # One call: attempt after attempt.

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            which = "an event loop that is closed" if self._loop.is_closed() else "another event loop"
            raise InvalidArgumentError(
                f"this client was used in {which}: make a Client inside of each asyncio.run, or use SyncClient"
            )

    def _deadline(self, timeout_s: float | None) -> float:
        self._check_loop()
        return time.monotonic() + (self._timeout_s if timeout_s is None else check_timeout(timeout_s))

    async def _call(self, call: _Call) -> Answer:
        """Make the call when its turn has come."""
        async with (self._any_node_turns if call.any_node else self._turns).turn(call.deadline):
            return await self._try(call)

    async def _try(self, call: _Call) -> Answer:
        """Try node after node until one answers for good, or the deadline passes."""
        pause_s, redirects, failures = BACKOFF_MIN_S, 0, 0
        while (remaining_s := call.remaining_s()) > 0:
            base = await (self._router.pick_any(remaining_s) if call.any_node else self._router.pick(remaining_s))
            if self._transport.is_closed:
                call.reason = CLOSED
                break
            if (remaining_s := call.remaining_s()) <= 0:
                break
            answer = None
            if self._may_attempt(call, base):
                answer = await self._attempt(call, base, remaining_s)
            elif await self._learn_cluster(call, base, SUSPECT_S if failures < self._router.count else remaining_s):
                continue
            self.has_heard = self.has_heard or answer is not None
            if answer is not None and not self._is_ours(call, answer):
                self._check_not_done(call, answer)
                answer = None
                if self._router.are_endpoints(call.foreign):
                    break
            if answer is not None and answer.status == 307 and redirects < REDIRECTS_MAX:
                redirects += 1
                if self._redirected(answer, base):
                    continue
            elif answer is not None and answer.status != 307:
                if call.is_write and answer.status == 404 and await self._is_peer_port(call, answer):
                    call.is_peer_port = True
                if (done := self._judge(call, answer)) is not None:
                    return done
            self.last_failure = call.reason
            redirects, failures = 0, failures + 1
            await self._router.failed(base, call.remaining_s())
            if failures % self._router.count == 0:
                # Everybody was asked once more: give them time for an election.
                await self._pause(call, pause_s)
                pause_s = min(2 * pause_s, BACKOFF_MAX_S)
        if call.is_write and call.perhaps_done:
            raise OutcomeUnknownError(f"the write may or may not have been applied: {call.reason}")
        if self._router.are_endpoints(call.foreign):
            advice = "; if the cluster was recovered or restored, make a new client"
            raise WrongClusterError(call.reason + advice, list(call.foreign.values())[-1], self.cluster_id)
        raise UnavailableError(call.reason)

    @property
    def _attempt_timeout_s(self) -> float:
        """How long one attempt may take. A node that hangs must leave time to ask another one."""
        return max(self._timeout_s / 4, 0.25)

    def _cluster_header(self) -> dict[str, str]:
        return {CLUSTER_HEADER: self.cluster_id} if self.cluster_id else {}

    def _may_attempt(self, call: _Call, base: str) -> bool:
        """Tell whether a call may be sent to this node now. A write names its cluster, unless the node names none.

        Raises:
            OutcomeUnknownError: the write may be done already, where the node did not say in which cluster.
        """
        if call.is_write and call.perhaps_elsewhere and self.cluster_id:
            raise OutcomeUnknownError(f"the write may have been applied in another cluster: {call.reason}")
        return not call.is_write or bool(self.cluster_id) or base == self._nameless

    async def _learn_cluster(self, call: _Call, base: str, timeout_s: float) -> bool:
        """Ask a node for its cluster before the first write. False: it does not answer.

        A write whose answer is lost is made again at another node. That one may belong to another cluster, and takes
        the write unless the write names its own.
        """
        timeout_s = min(timeout_s, call.remaining_s(), self._attempt_timeout_s)
        try:
            answer = await self._transport.exchange(base, "GET", "/v1/cluster/leader", b"", {}, timeout_s)
        except (NotSentError, NoAnswerError) as error:
            call.note_failure(error, timeout_s, self._attempt_timeout_s)
            return False
        self.has_heard = True
        if self._is_ours(call, answer) and not self.cluster_id:
            self._nameless = base
        return True

    def _is_ours(self, call: _Call, answer: Answer) -> bool:
        """Tell whether a node of this client's cluster answered; the first one to answer says which that is.

        A node that does not say so is of a version that does not know the header, or is no node: others judge that.
        """
        theirs = answer.headers.get(CLUSTER_HEADER, "")
        if theirs and not self.cluster_id and len(theirs) <= CLUSTER_ID_CHARS_MAX:
            self.cluster_id = theirs
        if theirs in ("", self.cluster_id):
            call.foreign = {base: cluster for base, cluster in call.foreign.items() if base != answer.base}
            return True
        call.foreign = {**call.foreign, answer.base: theirs}
        call.reason = f"{answer.base} belongs to cluster {theirs:.64}, and not to {self.cluster_id}, which is meant"
        return False

    def _check_not_done(self, call: _Call, answer: Answer) -> None:
        """Check that a node of another cluster refused a write.

        It does not refuse an attempt that named no cluster, which is sent to a node that named none when it was asked.

        Raises:
            OutcomeUnknownError: the write may be done there. Making it here as well could be a second write.
        """
        if call.is_write and (answer.status < 300 or problem_of(answer).outcome != "refused"):
            raise OutcomeUnknownError(f"the write may have been applied in another cluster: {call.reason}")

    async def _attempt(self, call: _Call, base: str, remaining_s: float) -> Answer | None:
        """Ask one node once. None: no answer came.

        Raises:
            OutcomeUnknownError: none came, and the call may not be repeated.
        """
        usual_s = (call.attempt_s or self._attempt_timeout_s) + call.wait_s
        timeout_s = min(remaining_s, usual_s)
        call.names_cluster = bool(self.cluster_id)
        self.writes_perhaps_sent += call.is_write
        try:
            return await self._exchange(call, base, timeout_s)
        except NotSentError as error:
            self.writes_perhaps_sent -= call.is_write
            call.note_failure(error, timeout_s, usual_s)
            if base == self._router.leader and call.waits:
                # The leader is dead, or cannot be reached from here (a port-forward): its peers may reach it.
                call.parameters = {**call.parameters, "forward": "true"}
            return None
        except NoAnswerError as error:
            call.note_failure(error, timeout_s, usual_s)
            call.note_unknown()
            if not call.may_repeat:
                raise OutcomeUnknownError(f"it may or may not have been applied: {error}") from None
            return None

    async def _exchange(self, call: _Call, base: str, timeout_s: float) -> Answer:
        """Ask one node once, and give up early when it is silent and the others say that somebody else leads.

        A node that froze, or was cut off, neither answers nor hangs up; if it led, the others have elected another one
        long before the time is over.
        """
        headers = {**call.headers, **self._cluster_header()}
        target = call.target(timeout_s - min(call.wait_s, timeout_s))
        asking = self._transport.exchange(base, call.method, target, call.body, headers, timeout_s)
        if call.any_node or not call.may_repeat or timeout_s <= SUSPECT_S:
            return await asking
        doubting: asyncio.Task[None] | None = None

        def doubt() -> None:
            nonlocal doubting
            doubting = asyncio.create_task(
                self._find_successor(base, patience, suspect_s / 2), name=f"who leads instead of {base}?"
            )

        # Of a call that waits for a lock, silence says little.
        suspect_s = SUSPECT_WAIT_S if call.wait_until else SUSPECT_S
        timer = asyncio.get_running_loop().call_later(suspect_s, doubt)
        try:
            async with asyncio.timeout(None) as patience:
                return await asking
        except TimeoutError:
            raise NoAnswerError(f"{base}: no answer, and {self._router.leader} leads now") from None
        finally:
            timer.cancel()
            if doubting is not None:
                doubting.cancel()
                await asyncio.gather(doubting, return_exceptions=True)

    async def _find_successor(self, base: str, patience: asyncio.Timeout, pause_s: float) -> None:
        """Ask the others who leads, until one names another than ``base``; then end the patience with it."""
        while True:
            asking = (self._leader_according_to(other) for other in self._router.others(base))
            leaders = [leader for leader in await asyncio.gather(*asking) if leader not in (None, base)]
            if leaders:
                self._router.leader = leaders[0]
                patience.reschedule(asyncio.get_running_loop().time())
                return
            await asyncio.sleep(pause_s)

    async def _leader_according_to(self, base: str) -> str | None:
        try:
            headers = self._cluster_header()
            answer = await self._transport.exchange(base, "GET", "/v1/cluster/leader", b"", headers, SUSPECT_S)
            return base_of(decode(answer.body, Leader).leader_url or "") if answer.status == 200 else None
        except (NotSentError, NoAnswerError, ClientError):
            return None

    async def _is_peer_port(self, call: _Call, answer: Answer) -> bool:
        """Tell whether a 404 that is not of a client port came from the peer port of a node of Kvorum."""
        if problem_of(answer).code != "unexpected":
            return False
        timeout_s = max(0.001, min(call.remaining_s(), PROBE_S))
        try:
            hello = await self._transport.exchange(answer.base, "GET", "/raft/v1/hello", b"", {}, timeout_s)
        except (NotSentError, NoAnswerError):
            return False
        return hello.status == 200 and is_hello(hello.body)

    def _redirected(self, answer: Answer, base: str) -> bool:
        """Follow the hint to the leader. False: it leads nowhere new."""
        leader = base_of(answer.headers.get("Location", ""))
        if leader is None or leader == base:
            return False
        self._router.leader = leader
        return True

    def _judge(self, call: _Call, answer: Answer) -> Answer | None:
        """Return the answer if it is the last word; None: try again.

        Raises:
            ClientError: it is the last word, and it is no.
        """
        if answer.status < 300:
            self._note_answered(call)
            return answer
        problem = problem_of(answer)
        call.reason = problem.detail or f"HTTP status {answer.status}"
        self.lacks_leader = problem.code == "no_leader"
        if problem.code == "not_found" and call.method == "GET":
            return answer
        if problem.code in _SESSION_REFUSALS and call.ticket is not None:
            call.ticket.lost = True
            if call.perhaps_done:
                # In another session, an attempt that is still pending would be a second write.
                raise OutcomeUnknownError(f"the write may or may not have been applied: {call.reason}")
            if not call.ticket.opens:
                raise _SessionLostError
        if (
            problem.code == "sessions_full"
            and call.ticket is not None
            and not (call.perhaps_done or self._require_session)
        ):
            raise _SessionsFullError
        is_full = problem.code == "no_space" and problem.outcome == "refused"
        if problem.code in _TRY_AGAIN or (answer.status >= 500 and not is_full):
            self._note_refusal(call, problem)
            return None
        if problem.code == "compare_failed":
            self._note_answered(call)
            raise CompareFailedError(problem.detail, problem.mod_revision or 0, problem.revision or 0)
        if problem.code == "compacted":
            # Of a compaction: it was done, whatever became of an earlier attempt.
            raise CompactedError(call.reason, problem.floor or 0, problem.revision or 0)
        if problem.code in call.settled_by and problem.outcome == "refused":
            raise refusal_of(answer.status, problem, call.reason, perhaps_done=call.perhaps_done)
        if call.is_write and problem.outcome != "refused" and not call.is_peer_port:
            # Only Kvorum says that nothing was done; a proxy's word is not enough.
            raise OutcomeUnknownError(f"the write may or may not have been applied: {call.reason}")
        if call.is_write and call.perhaps_done:
            # An earlier attempt went into the dark, and this one was refused before it reached the log.
            raise OutcomeUnknownError(f"an earlier attempt may be done; this one was refused: {call.reason}")
        raise refusal_of(answer.status, problem, call.reason, perhaps_done=False)

    def _note_refusal(self, call: _Call, problem: Problem) -> None:
        if problem.outcome == "refused":
            return
        call.note_unknown()
        if not call.may_repeat:
            raise OutcomeUnknownError(f"it may or may not have been applied: {call.reason}")

    def _note_answered(self, call: _Call) -> None:
        if call.ticket is not None:
            call.ticket.answered = True

    async def _pause(self, call: _Call, pause_s: float) -> None:
        remaining_s = call.deadline - time.monotonic()
        await asyncio.sleep(max(0.0, min(pause_s * self._random.uniform(0.5, 1.5), remaining_s)))


def _read_stale(call: _Call, stale: bool, max_staleness_ms: int | None) -> None:
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


def _member(name: str) -> str:
    return quote(check_text(name, "the member's name").encode())
