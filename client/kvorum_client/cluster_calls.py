"""The calls about the cluster: its nodes, its members, its leader, its level, its quota and its history."""

from __future__ import annotations

import msgspec

from kvorum_client.arguments import check_text, check_whole_number
from kvorum_client.calls import Call, Caller
from kvorum_client.errors import CompactedError, UnavailableError
from kvorum_client.results import Compacted, Member, NodeHealth, NodeStatus, Quota
from kvorum_client.wire import decode, decode_write, problem_of, quote
from kvorum_wire import AddMember, Compact, FeatureLevel, Members, NewLeader, SetQuota, TransferLeadership


class ClusterCalls(Caller):
    """The calls of a client about its cluster."""

    async def status(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> NodeStatus:
        """Return what one node says of itself and the cluster: the given one, or any that answers.

        Raises:
            UnavailableError: it, or none, answers.
        """
        deadline = self._deadline(timeout_s)
        if endpoint is None:
            call = Call("GET", "/v1/cluster", deadline, any_node=True, waits=False)
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

    async def members(self, *, timeout_s: float | None = None) -> tuple[Member, ...]:
        """Return the members, as the leader sees them if one is known, else as any node does."""
        call = Call("GET", "/v1/cluster/members", self._deadline(timeout_s), waits=False)
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
        call = Call("POST", "/v1/cluster/leader", self._deadline(timeout_s), body, is_write=True)
        return decode_write((await self._call(call)).body, NewLeader).leader

    async def finalize(self, *, timeout_s: float | None = None) -> int:
        """Raise the cluster's feature level as far as its version goes, for good, and return it.

        Raises:
            RefusedError: a member does not support the next level; the text names it.
            UnavailableError: not raised.
            OutcomeUnknownError: it may be.
        """
        call = Call("POST", "/v1/cluster/finalize", self._deadline(timeout_s), b"", is_write=True)
        return decode_write((await self._call(call)).body, FeatureLevel).feature_level

    async def quota(self, *, timeout_s: float | None = None) -> Quota:
        """Return the quota on data and what is used of it: the leader's view if one is known, else any node's.

        Raises:
            RefusedError: no node knows a quota (before version 0.3.0).
            UnavailableError: no node answers.
        """
        call = Call("GET", "/v1/cluster/quota", self._deadline(timeout_s), waits=False)
        return decode((await self._call(call)).body, Quota)

    async def set_quota(self, quota_bytes: int, *, timeout_s: float | None = None) -> Quota:
        """Set the quota on data and return it. It may be below what is used: puts are refused then.

        Raises:
            RefusedError: less than 1 MiB; or the feature level of the cluster is below 3.
            UnavailableError: not set.
            OutcomeUnknownError: it may be.
        """
        body = msgspec.json.encode(SetQuota(check_whole_number(quota_bytes, "quota_bytes")))
        call = Call("PUT", "/v1/cluster/quota", self._deadline(timeout_s), body, is_write=True)
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
        call = Call("POST", "/v1/compact", self._deadline(timeout_s), body, is_write=True, is_idempotent=True)
        try:
            return decode_write((await self._call(call)).body, Compacted)
        except CompactedError as error:
            # Whether an attempt whose answer was lost did it, or the leader by itself: what was asked for holds.
            return Compacted(error.revision, error.floor)

    async def _change_members(self, method: str, path: str, body: bytes, timeout_s: float | None) -> tuple[Member, ...]:
        call = Call(method, "/v1/cluster/members" + path, self._deadline(timeout_s), body, is_write=True)
        return decode_write((await self._call(call)).body, Members).members


def _member(name: str) -> str:
    return quote(check_text(name, "the member's name").encode())
