"""Clients: they put, delete, compare and read through any node, retry, follow redirects, give up, and keep a record."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec
from sim.history import Operation
from sim.invariants import Broken
from sim.node import Answer, SimNode

from kvorum.kv.commands import (
    ANY_REVISION,
    Command,
    CompareFailed,
    Delete,
    DeleteResult,
    EndSession,
    Put,
    PutResult,
    SessionEnded,
    SessionRefused,
)

if TYPE_CHECKING:
    from sim.world import World

END_SESSION_PER_MILLE = 150
"""How often a client that knows the outcome of its last write ends its session, and begins another one."""
END_ATTEMPTS_MAX = 4


class _Call:
    """One operation under way."""

    def __init__(self, operation: Operation, command: Command | bytes) -> None:
        self.operation = operation
        self.command = command
        self.attempts = 0
        self.open_attempts = 0
        """Attempts that may have been done, or may still be: never answered, or answered "unknown"."""
        self.is_done = False

    @property
    def is_safe_to_retry(self) -> bool:
        """A read, or a write of a session (applied once), or one that was certainly not done."""
        return isinstance(self.command, bytes) or self.command.sequence > 0 or self.open_attempts == 0


class Client:
    """One client with one operation at a time.

    Args:
        world: where it lives.
        number: which client it is.
        operations: how many operations it performs.
    """

    def __init__(self, world: World, number: int, operations: int) -> None:
        self.history: list[Operation] = []
        self.left = operations
        self._world = world
        self._plan = world.plan
        self._number = number
        self._draw = Random(f"{world.plan.seed}:client:{number}")
        self._ending = Random(f"{world.plan.seed}:client:{number}:ends")
        self._session = 0
        self._sequence = 0
        self._values = 0
        self._call: _Call | None = None
        self._known: dict[str, int] = {}  # key -> mod_revision as last seen
        world.clock.after(self._draw.randrange(world.plan.think_us), self._next)

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, and nothing is left to do."""
        return self._call is None and self.left <= 0

    def start_again(self, kind: str, key: str, prev_revision: int) -> None:
        """Begin a put without a session, or a read, of this key."""
        if kind == "put":
            self.start(*self.put(key, prev_revision, "", 0))
        else:
            self.start(Operation(kind="get", key=key, invoked=self._world.clock.now), key.encode())

    # --- What it asks -------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self.left <= 0:
            return
        self.left -= 1
        self.start(*self._draw_operation())

    def start(self, operation: Operation, command: Command | bytes) -> None:
        """Begin an operation."""
        self._call = call = _Call(operation, command)
        self._world.clock.after(self._plan.deadline_us, self._give_up, call)
        self._attempt(call, None)

    def _draw_operation(self) -> tuple[Operation, Command | bytes]:
        draw, plan = self._draw, self._plan
        key = f"k{min(draw.randrange(plan.keys), draw.randrange(plan.keys))}"
        now = self._world.clock.now
        if draw.random() * 1000 < plan.read_per_mille:
            return Operation(kind="get", key=key, invoked=now, client=self._name), key.encode()
        client, sequence = "", 0
        if draw.random() * 1000 < plan.session_per_mille:
            self._sequence += 1
            client, sequence = self._name, self._sequence
        prev_revision = ANY_REVISION
        if draw.random() * 1000 < plan.compare_per_mille:
            prev_revision = self._known.get(key, 0)
        if draw.random() * 1000 < plan.delete_per_mille:
            return self._delete(key, prev_revision, client, sequence)
        return self.put(key, prev_revision, client, sequence)

    @property
    def _name(self) -> str:
        return f"c{self._number}.{self._session}"

    def put(self, key: str, prev_revision: int, client: str, sequence: int) -> tuple[Operation, Command]:
        """Return a put of a value that nobody else writes."""
        self._values += 1
        value = f"c{self._number}v{self._values}".ljust(self._plan.value_bytes, ".")
        operation = Operation(
            kind="put", key=key, value=value, invoked=self._world.clock.now, prev_revision=prev_revision,
            client=client, sequence=sequence,
        )  # fmt: skip
        return operation, Put(key.encode(), value.encode(), prev_revision, client, sequence)

    def _delete(self, key: str, prev_revision: int, client: str, sequence: int) -> tuple[Operation, Command]:
        operation = Operation(
            kind="delete", key=key, invoked=self._world.clock.now, prev_revision=prev_revision, client=client,
            sequence=sequence,
        )  # fmt: skip
        return operation, Delete(key.encode(), prev_revision, client, sequence)

    # --- Attempts -----------------------------------------------------------------------------------------------

    def _attempt(self, call: _Call, node: SimNode | None) -> None:
        if call.is_done or call is not self._call:
            return
        # When the faults are over, nobody goes on asking those who are gone for good.
        nodes = (self._world.is_recovering and self._world.live()) or list(self._world.nodes.values())
        node = node or nodes[self._draw.randrange(len(nodes))]
        call.attempts += 1
        call.open_attempts += 1
        copies = 1
        if not isinstance(call.command, bytes) and call.command.sequence and self._world.network.is_faulty:
            copies += self._draw.random() * 1000 < self._plan.client_duplicate_per_mille
        for _ in range(copies):
            self._world.clock.after(self._latency(), self._arrive, call, node, call.attempts)
        self._world.clock.after(self._world.timeout_us, self._time_out, call, call.attempts)

    def _arrive(self, call: _Call, node: SimNode, attempt: int) -> None:
        if self._world.network.is_faulty and self._draw.random() * 1000 < self._plan.drop_per_mille:
            return

        def reply(answer: Answer) -> None:
            if self._world.network.is_faulty and self._draw.random() * 1000 < self._plan.drop_per_mille:
                return
            self._world.clock.after(self._latency(), self._on_answer, call, attempt, answer)

        node.ask(call.command, reply)

    def _latency(self) -> int:
        return self._plan.latency_us + int(self._draw.random() * self._plan.jitter_us)

    def _time_out(self, call: _Call, attempt: int) -> None:
        if call.is_done or call.attempts != attempt:
            return
        if call.is_safe_to_retry:
            self._attempt(call, None)
        else:
            self._finish(call, "unknown")

    def _give_up(self, call: _Call) -> None:
        if not call.is_done:
            self._finish(call, "unknown" if call.open_attempts else "refused")

    # --- Answers ------------------------------------------------------------------------------------------------

    def _on_answer(self, call: _Call, attempt: int, answer: Answer) -> None:
        if call.is_done or call is not self._call:
            return
        if answer.kind in ("result", "record"):
            self._on_result(call, answer)
            return
        if answer.kind != "unknown" and not self._may_have_copies(call):
            call.open_attempts -= 1
        if attempt != call.attempts:
            return
        if not call.is_safe_to_retry:
            self._finish(call, "unknown")
        elif answer.kind == "not_leader" and answer.leader in self._world.nodes:
            self._attempt(call, self._world.nodes[answer.leader])
        else:
            self._world.clock.after(self._plan.think_us, self._time_out, call, attempt)

    def _may_have_copies(self, call: _Call) -> bool:
        """One copy of a request that was sent twice may be refused and the other done."""
        is_write = not isinstance(call.command, bytes)
        return is_write and call.operation.sequence > 0 and self._plan.client_duplicate_per_mille > 0

    def _on_result(self, call: _Call, answer: Answer) -> None:
        result = answer.result
        match result:
            case None:
                self._on_record(call, answer)
            case PutResult():
                self._known[call.operation.key] = result.mod_revision
                self._finish(
                    call, "ok", revision=result.revision, mod_revision=result.mod_revision,
                    create_revision=result.create_revision, version=result.version,
                )  # fmt: skip
            case DeleteResult():
                self._known[call.operation.key] = 0
                self._finish(call, "ok", revision=result.revision, deleted=result.deleted)
            case CompareFailed():
                self._known[call.operation.key] = result.mod_revision
                self._finish(
                    call, "ok", revision=result.revision, mod_revision=result.mod_revision, compare_failed=True
                )
            case SessionRefused():
                self._on_session_refused(call, result)

    def _on_record(self, call: _Call, answer: Answer) -> None:
        record = answer.record
        if record is None:
            self._known[call.operation.key] = 0
            self._finish(call, "ok", revision=answer.revision)
            return
        self._known[call.operation.key] = record.mod_revision
        self._finish(
            call, "ok", revision=answer.revision, value=record.value.decode(), mod_revision=record.mod_revision,
            create_revision=record.create_revision, version=record.version,
        )  # fmt: skip

    def _on_session_refused(self, call: _Call, result: SessionRefused) -> None:
        if result.reason not in ("unknown", "stale", "ahead", "full"):
            raise Broken("a_session_is_refused_for_a_reason", f"{call.operation}: {result}")
        self._session += 1
        self._sequence = 0
        only_attempt = call.attempts == 1 and not self._may_have_copies(call)
        self._finish(call, "refused" if only_attempt else "unknown")

    def _finish(self, call: _Call, outcome: str, **answered: object) -> None:
        call.is_done = True
        self._call = None
        self._world.counts[f"{'read' if isinstance(call.command, bytes) else 'write'} {outcome}"] += 1
        operation = msgspec.structs.replace(
            call.operation,
            outcome=outcome,
            completed=None if outcome == "unknown" else self._world.clock.now,
            **answered,
        )
        self.history.append(operation)
        self._world.heard(operation)
        self._world.note(
            operation.client or f"c{self._number}",
            "{} {} {}: {}",
            operation.kind,
            operation.key,
            (operation.value or "").rstrip("."),
            _outcome(operation),
        )
        if outcome == "ok" and operation.client and not isinstance(call.command, bytes):
            self._perhaps_end_session(call.command)
        think_us = self._draw.randrange(self._plan.think_us)
        self._world.clock.after(think_us, self._next)

    # --- The end of a session -----------------------------------------------------------------------------------

    def _perhaps_end_session(self, last: Command) -> None:
        """Now and then end the session, of which ``last`` is the last write and has a known outcome."""
        if self._ending.random() * 1000 >= END_SESSION_PER_MILLE or last.client_id != self._name:
            return
        self._session += 1
        self._sequence = 0
        nodes = list(self._world.nodes.values())
        self._ask_to_end(last, nodes[self._ending.randrange(len(nodes))], END_ATTEMPTS_MAX)

    def _ask_to_end(self, last: Command, node: SimNode, attempts: int) -> None:
        def reply(answer: Answer) -> None:
            if isinstance(answer.result, SessionEnded):
                self._world.counts["sessions ended"] += 1
                # An attempt of the last write that was late arrives now.
                self._world.clock.after(self._ending.randrange(self._plan.think_us), self._repeat, last, node)
            elif attempts > 1 and answer.kind != "result":
                leader = self._world.nodes.get(answer.leader or "", node)
                pause_us = self._ending.randrange(self._plan.think_us)
                self._world.clock.after(pause_us, self._ask_to_end, last, leader, attempts - 1)

        node.ask(EndSession(last.client_id), reply)

    def _repeat(self, last: Command, node: SimNode) -> None:
        def reply(answer: Answer) -> None:
            if answer.kind != "result":
                return
            self._world.counts["late writes of an ended session"] += 1
            if not isinstance(answer.result, SessionRefused):
                raise Broken("an_ended_session_stays_ended", f"{last} was answered with {answer.result}")

        node.ask(last, reply)


def _outcome(operation: Operation) -> str:
    if operation.outcome != "ok":
        return operation.outcome
    return f"{'compare failed' if operation.compare_failed else 'ok'} at revision {operation.revision}"
