"""One call over all its attempts: which node to ask, when to try again, and what an answer means."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from urllib.parse import urlencode

import msgspec

from kvorum_client import forking
from kvorum_client.arguments import check_cluster_id, check_endpoints, check_timeout
from kvorum_client.concurrency import Turns
from kvorum_client.errors import (
    ClientError,
    CompactedError,
    CompareFailedError,
    InvalidArgumentError,
    OutcomeUnknownError,
    UnavailableError,
    WrongClusterError,
)
from kvorum_client.leases import Lease
from kvorum_client.ranges import Parameters
from kvorum_client.refusals import refusal_of
from kvorum_client.sessions import Sessions, Ticket
from kvorum_client.transport import CLOSED, Answer, NoAnswerError, NotSentError, Router, Transport, base_of
from kvorum_client.wire import decode, is_hello, problem_of
from kvorum_wire import CLUSTER_HEADER, Leader, Problem

CONCURRENT_CALLS_MAX = 64
"""3,000 calls at once take about as long with any limit from 32 to 256, several times as long with 512, and end in
timeouts without one (docs/performance.md). 64 leaves the writes of one client room in one session."""
PROBE_S = 2.0
"""How often a node is probed that does not begin to send a backup, and how long it has to answer."""
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
SESSION_REFUSALS = frozenset({"session_unknown", "session_stale", "session_ahead", "session_mismatch"})
"""This attempt is not applied. The session is of no use any more: it expired, the cluster was restored from a backup,
or somebody else writes in it."""


class SessionLostError(Exception):
    """The session is of no use any more, and no attempt of this write is pending: make it in another session."""


class SessionsFullError(Exception):
    """The cluster takes no further session now: write without one."""


class Call(msgspec.Struct):
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
        """Whether another attempt does no harm, though an earlier one may be done."""
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


class Caller:
    """The part of a client that makes calls, whatever they are. Arguments: as of the client."""

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
        self._foreign: dict[str, str] = {}
        """The endpoints that refused a stream since they belong to another cluster, and which one."""
        self.streams_from = ""
        """The node that sent the latest piece of a watch or an election; empty: none has."""
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

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints, as base URLs."""
        return self._router.endpoints

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

    async def _call(self, call: Call) -> Answer:
        """Make the call when its turn has come."""
        async with (self._any_node_turns if call.any_node else self._turns).turn(call.deadline):
            return await self._try(call)

    async def _try(self, call: Call) -> Answer:
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
        self._check_cluster(call)
        raise UnavailableError(call.reason)

    def _check_cluster(self, call: Call) -> None:
        """Check that not every node belongs to another cluster.

        Raises:
            WrongClusterError: every one does.
        """
        if self._router.are_endpoints(call.foreign):
            advice = "; if the cluster was recovered or restored, make a new client"
            raise WrongClusterError(call.reason + advice, list(call.foreign.values())[-1], self.cluster_id)

    @property
    def _attempt_timeout_s(self) -> float:
        """How long one attempt may take. A node that hangs must leave time to ask another one."""
        return max(self._timeout_s / 4, 0.25)

    def _cluster_header(self) -> dict[str, str]:
        return {CLUSTER_HEADER: self.cluster_id} if self.cluster_id else {}

    def _may_attempt(self, call: Call, base: str) -> bool:
        """Tell whether a call may be sent to this node now. A write names its cluster, unless the node names none.

        Raises:
            OutcomeUnknownError: the write may be done already, where the node did not say in which cluster.
        """
        if call.is_write and call.perhaps_elsewhere and self.cluster_id:
            raise OutcomeUnknownError(f"the write may have been applied in another cluster: {call.reason}")
        return not call.is_write or bool(self.cluster_id) or base == self._nameless

    async def _learn_cluster(self, call: Call, base: str, timeout_s: float) -> bool:
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

    def _is_ours(self, call: Call, answer: Answer) -> bool:
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

    def _check_not_done(self, call: Call, answer: Answer) -> None:
        """Check that a node of another cluster refused a write.

        It does not refuse an attempt that named no cluster, which is sent to a node that named none when it was asked.

        Raises:
            OutcomeUnknownError: the write may be done there. Making it here as well could be a second write.
        """
        if call.is_write and (answer.status < 300 or problem_of(answer).outcome != "refused"):
            raise OutcomeUnknownError(f"the write may have been applied in another cluster: {call.reason}")

    async def _attempt(self, call: Call, base: str, remaining_s: float) -> Answer | None:
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

    async def _exchange(self, call: Call, base: str, timeout_s: float) -> Answer:
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

    async def _is_peer_port(self, call: Call, answer: Answer) -> bool:
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

    def _judge(self, call: Call, answer: Answer) -> Answer | None:
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
        if problem.code in SESSION_REFUSALS and call.ticket is not None:
            call.ticket.lost = True
            if call.perhaps_done:
                # In another session, an attempt that is still pending would be a second write.
                raise OutcomeUnknownError(f"the write may or may not have been applied: {call.reason}")
            if not call.ticket.opens:
                raise SessionLostError
        if (
            problem.code == "sessions_full"
            and call.ticket is not None
            and not (call.perhaps_done or self._require_session)
        ):
            raise SessionsFullError
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

    def _note_refusal(self, call: Call, problem: Problem) -> None:
        if problem.outcome == "refused":
            return
        call.note_unknown()
        if not call.may_repeat:
            raise OutcomeUnknownError(f"it may or may not have been applied: {call.reason}")

    def _note_answered(self, call: Call) -> None:
        if call.ticket is not None:
            call.ticket.answered = True

    async def _pause(self, call: Call, pause_s: float) -> None:
        remaining_s = call.deadline - time.monotonic()
        await asyncio.sleep(max(0.0, min(pause_s * self._random.uniform(0.5, 1.5), remaining_s)))
