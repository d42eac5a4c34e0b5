"""Mutants of writes that one node hands to the leader."""

from __future__ import annotations

from mutants.mutant import Mutant

_STATE = "tests/kv/test_origins.py"
_NODE = "tests/node/test_handover.py"
_LEADER = "tests/node/test_handover_leader.py"
_PROPOSALS = "tests/node/test_txn_proposals.py"
_NODES = "tests/node/test_handover_nodes.py"
_FRONT = "tests/fronts/test_forward.py"
_TXN_FRONT = "tests/fronts/test_txn.py -k own_result"


def _row(fault: str, where: str, old: str, new: str, tests: str) -> Mutant:
    return Mutant("handing over", fault, where, old, new, tests=tests, simulated=False)


MUTANTS = (
    _row(
        "What was handed over is told again after an entry without commands.",
        "kv.store:Store.apply",
        "self._handed_over = []",
        "self._handed_over = self._handed_over if entry.kind is not EntryKind.COMMAND else []",
        _STATE,
    ),
    # A full queue does not end leases.
    _row(
        "A node whose queue is full hands no renewals over.",
        "node.handover:HandOvers.submit",
        "times = share(command)",
        "times = 1",
        _NODE,
    ),
    _row(
        "Renewals wait behind all writes that are queued.",
        "node.handover:HandOvers.submit",
        "self.queue.append if times == 1 else self.queue.appendleft",
        "self.queue.append",
        _NODE,
    ),
    _row(
        "Any number of renewals waits to be handed over.",
        "node.handover:HandOvers.submit",
        "self._pending >= times * self._pending_max",
        "times == 1 and self._pending >= self._pending_max",
        _NODE,
    ),
    _row(
        "A leader where many frames wait refuses renewals.",
        "node.handover_leader:Receiver._errors",
        "self._is_full(share(command))",
        "self._is_full()",
        _LEADER,
    ),
    # Rule 6: the order of a batch.
    _row(
        "The next frame of a batch is sent while the one before may be lost.",
        "node.handover:HandOvers.flush",
        "self._batches |= frame.all_batches",
        "pass",
        _NODE,
    ),
    _row(
        "What is split off a frame is sent before the rest of the frame was applied.",
        "node.handover:HandOvers._take_frame",
        "self.queue and self.queue[0].batch not in self._batches and (len(writes) < FRAME_COMMANDS_MAX)",
        "self.queue and len(writes) < FRAME_COMMANDS_MAX",
        _NODE,
    ),
    _row(
        "The changes of a batch are handed over as if they had nothing to do with one another.",
        "service.transactions:Transactions._outcome",
        "self._do(principal, command, timeout_ms, batch)",
        "self._do(principal, command, timeout_ms)",
        _TXN_FRONT,
    ),
    # One entry visits a bounded number of keys, whatever the origin of a frame knew.
    _row(
        "A frame of a node that lags is proposed as one entry, whatever it visits.",
        "node.proposals:Proposals._take_batch",
        "visited > TXN_KEYS_MAX and isinstance(command, HandedOver) and len(command.commands) > 1",
        "False",
        _PROPOSALS,
    ),
    _row(
        "A frame that is split has more commands than fit.",
        "node.proposals:fitting",
        "return number",
        "return number + 1",
        _PROPOSALS,
    ),
    _row(
        "A frame that is too much for an entry is refused as it is, and sent again as it is.",
        "node.handover:HandOvers.refused",
        "self._split(frame, refusal.fits)",
        "pass",
        _NODE,
    ),
    _row(
        "The commands that are split off have no caller any more.",
        "node.handover:HandOvers._split",
        "self.queue.extendleft(reversed(others))",
        "pass",
        _NODE,
    ),
    # Rule 1: the nonce.
    _row(
        "An opening that is sent again makes the state forget what it applied.",
        "kv.origins:Origins.open",
        "nonce in self._by_nonce",
        "False",
        _STATE,
    ),
    _row(
        "An opening replaces whatever nonce is open: that of the process before comes late, and counts.",
        "kv.origins:Origins.open",
        "replaces != self.nonce_of(member)",
        "False",
        _STATE,
    ),
    _row(
        "The nonce of the process before stays open.",
        "kv.origins:Origins.open",
        "self._forget(member)",
        "pass",
        _STATE,
    ),
    _row(
        "A nonce that the cluster forgot is opened again, with an empty window.",
        "node.handover:HandOvers._follow_state",
        "self._was_open and not is_open",
        "False",
        _NODE,
    ),
    _row(
        "A node opens its nonce in the place of none, whatever its last process opened.",
        "node.handover:HandOvers._is_open",
        "replaces = self._state.store.origins.nonce_of(self._raft.id)",
        "replaces = 0",
        _NODE,
    ),
    _row(
        "A member that was removed goes on handing over.",
        "kv.store:Store.keep_members",
        "self._origins.keep(frozenset(member.id for member in configuration.members))",
        "pass",
        _STATE,
    ),
    # Rule 2: the window.
    _row(
        "A number is applied twice.",
        "kv.origins:Origin.take",
        "self.is_applied(number)",
        "False",
        _STATE,
    ),
    _row(
        "A number below the window is taken for new.",
        "kv.origins:Origin.is_applied",
        "below >= ORIGIN_WINDOW or (below >= 0 and bool(self._applied >> below & 1))",
        "0 <= below < ORIGIN_WINDOW and bool(self._applied >> below & 1)",
        _STATE,
    ),
    _row(
        "A number far ahead moves the window over what is outstanding.",
        "kv.origins:Origin.take",
        "ahead > ORIGIN_WINDOW",
        "False",
        _STATE,
    ),
    _row(
        "The state hash does not tell which numbers were applied.",
        "kv.store:Store._apply_handed_over",
        "self._changes.handed_over(command.nonce, command.number)",
        "pass",
        _STATE,
    ),
    _row(
        "Below its feature level a frame is applied.",
        "kv.store:Store._apply_handed_over",
        "self.feature_level < HANDOVER_LEVEL",
        "False",
        _STATE,
    ),
    # Rule 3: numbers stay outstanding.
    _row(
        "A frame whose callers have gone is never sent again without its commands.",
        "node.handover:HandOvers._send",
        "frame.commands and all(waiter.done() for waiter in frame.waiters)",
        "False",
        _NODE,
    ),
    _row(
        "Numbers run away from the lowest outstanding one.",
        "node.handover:HandOvers._has_room",
        "self._next_number < lowest + ORIGIN_WINDOW",
        "True",
        _NODE,
    ),
    _row(
        "A new leader is not told of what the last one may have lost.",
        "node.handover:HandOvers.tick",
        "is_other_leader or now_s - frame.sent_s >= frame.resend_s",
        "now_s - frame.sent_s >= frame.resend_s",
        _NODE,
    ),
    _row(
        "A frame that got lost is sent again to a new leader only.",
        "node.handover:HandOvers.tick",
        "is_other_leader or now_s - frame.sent_s >= frame.resend_s",
        "is_other_leader",
        _NODE,
    ),
    _row(
        "A frame that waits in the queue of a slow stream is sent again every second.",
        "node.handover:HandOvers.tick",
        "min(2 * frame.resend_s, RESEND_MAX_S)",
        "RESEND_S",
        _NODE,
    ),
    _row(
        "A frame that an earlier leader was sent often is sent again late to the next one.",
        "node.handover:HandOvers.tick",
        "RESEND_S if is_other_leader else min(2 * frame.resend_s, RESEND_MAX_S)",
        "min(2 * frame.resend_s, RESEND_MAX_S)",
        _NODE,
    ),
    # Rule 4: what is told.
    _row(
        "A refusal of one attempt is told as one of all.",
        "node.handover:HandOvers.refused",
        "frame.may_be_done or isinstance(whole, NotLeaderError)",
        "isinstance(whole, NotLeaderError)",
        _NODE,
    ),
    _row(
        "Attempts beyond those that are remembered count as refused.",
        "node.handover:HandOvers._send",
        "frame.is_lost = True",
        "pass",
        _NODE,
    ),
    _row(
        "A write that may be done is called refused at its deadline.",
        "node.handover:HandOvers._expire",
        "waiter in refused",
        "True",
        _NODE,
    ),
    _row(
        "A write that was called refused at its deadline is done with the others of its frame.",
        "node.handover:HandOvers._expire",
        "self._keep_waiting(frame)",
        "pass",
        _NODE,
    ),
    _row(
        "A member refuses what was sent to another one.",
        "node.handover:HandOvers.refused",
        "frame.attempts.get(attempt) == sender",
        "attempt in frame.attempts",
        _NODE,
    ),
    _row(
        "A frame that a snapshot holds is waited for for ever.",
        "node.handover:HandOvers._follow_state",
        "origin is not None and origin.is_applied(number)",
        "False",
        _NODE,
    ),
    _row(
        "A frame that a snapshot does not hold is given up.",
        "node.handover:HandOvers._follow_state",
        "origin is not None and origin.is_applied(number)",
        "True",
        _NODE,
    ),
    _row(
        "When the node stops, a write that may be applied is called refused.",
        "node.handover:HandOvers.stop",
        "frame.may_be_done",
        "False",
        _NODE,
    ),
    _row(
        "A leader that does not lead in the term of an attempt proposes it.",
        "node.handover_leader:Receiver._leads",
        "self._raft.current_term == term",
        "True",
        _LEADER,
    ),
    _row(
        "The leader calls refused what may still be applied.",
        "node.handover_leader:Receiver.settle",
        "not isinstance(error, OutcomeUnknownError)",
        "True",
        _LEADER,
    ),
    _row(
        "A frame is proposed again while it is under way.",
        "node.handover_leader:Receiver.take",
        "attempts is not None",
        "False",
        _LEADER,
    ),
    _row(
        "What the leader refuses is sent again with the rest.",
        "node.handover:HandOvers.refused",
        "self._keep_waiting(frame)",
        "pass",
        _NODE,
    ),
    # Copies of messages.
    _row(
        "A copy of an attempt that was refused is proposed; a copy of one that was proposed is refused.",
        "node.handover_leader:Attempts.take",
        "ahead <= -ORIGIN_WINDOW or self._arrived >> -ahead & 1",
        "False",
        _LEADER,
    ),
    _row(
        "A higher attempt makes the leader forget which lower ones have arrived.",
        "node.handover_leader:Attempts.take",
        "(self._arrived << min(ahead, ORIGIN_WINDOW) | 1) & _ARRIVED",
        "1",
        _LEADER,
    ),
    _row(
        "What an earlier start of the leader's process may have proposed is refused.",
        "node.handover_leader:Receiver._why_ignored",
        "term <= self._first_term",
        "False",
        _LEADER,
    ),
    _row(
        "A refusal has the term of its sender, which may not be durable.",
        "node.handover_leader:Receiver._refuse",
        "self._answer(sender, term, refusal)",
        "self._answer(sender, self._raft.current_term, refusal)",
        _LEADER,
    ),
    _row(
        "A leader proposes again what it has applied.",
        "node.handover_leader:Receiver._why_ignored",
        "origin.is_applied(frame.number)",
        "False",
        _LEADER,
    ),
    _row(
        "A member uses up the numbers of another one.",
        "node.handover_leader:Receiver._why_ignored",
        "origin.member != sender",
        "False",
        _LEADER,
    ),
    _row(
        "A node that is no member hands writes over.",
        "node.handover_leader:Receiver._why_ignored",
        "self._raft.configuration.get(sender) is None",
        "False",
        _LEADER,
    ),
    _row(
        "A frame that comes below the feature level is proposed.",
        "node.handover_leader:Receiver._why_ignored",
        "not self._is_possible",
        "False",
        _LEADER,
    ),
    _row(
        "An opening that comes below the feature level is proposed.",
        "node.handover_leader:Receiver.open",
        "not self._is_possible",
        "False",
        _LEADER,
    ),
    _row(
        "A refusal is sent from the event loop's call, which swallows an error.",
        "node.handover_leader:Receiver._done",
        "self._schedule()",
        "self.settle()",
        _NODES,
    ),
    # Rule 5: snapshots.
    _row(
        "A restored store knows no origins.",
        "kv.store:Store.restored",
        "store._origins = origins",
        "pass",
        _STATE,
    ),
    _row(
        "A snapshot with an impossible window is taken.",
        "kv.origins:Origins.restore",
        "is_known or not row.is_possible()",
        "is_known",
        _STATE,
    ),
    _row(
        "A snapshot of the level without origins is taken.",
        "kv.snapshot:Restorer._take_trailer",
        "self._features is not None and self._features.level >= HANDOVER_LEVEL and self._origins is None",
        "False",
        _STATE,
    ),
    # Bounds, and the front.
    _row(
        "Any number of bytes waits to be handed over.",
        "node.handover:HandOvers.submit",
        "self._queued_bytes + size_bytes > times * QUEUED_BYTES_MAX",
        "False",
        _NODE,
    ),
    _row(
        "Any number of frames without commands waits at the leader.",
        "node.handover_leader:Receiver._is_full",
        "len(self._under_way) >= times * FRAMES_MAX",
        "False",
        _LEADER,
    ),
    _row(
        "Any number of bytes waits at the leader.",
        "node.handover_leader:Receiver._is_full",
        "self._bytes >= times * BYTES_MAX",
        "False",
        _LEADER,
    ),
    _row(
        "Bytes that wait no more at the leader are counted for ever.",
        "node.handover_leader:Receiver.settle",
        "self._bytes -= size_bytes",
        "pass",
        _LEADER,
    ),
    _row(
        "Any number of attempts waits for a frame.",
        "node.handover_leader:Receiver.take",
        "len(attempts) < ATTEMPTS_MAX",
        "True",
        _LEADER,
    ),
    _row(
        "The attempts of any number of origins are remembered.",
        "node.handover_leader:Receiver._is_first",
        "len(self._attempts) >= ORIGINS_MAX",
        "False",
        _LEADER,
    ),
    _row(
        "With many origins, what arrived of an open one is forgotten.",
        "node.handover_leader:Receiver._is_first",
        "nonce_of(key[0]) == key[1]",
        "False",
        _LEADER,
    ),
    _row(
        "A request that was forwarded once is handed over again.",
        "fronts.http.forward:is_handing_over",
        "FORWARDED_BY not in request.headers",
        "True",
        _FRONT,
    ),
    _row(
        "?forward=false does not override the option.",
        "fronts.http.forward:is_handing_over",
        "unquote(value).lower() in {'', '1', 'true'}",
        "True",
        _FRONT,
    ),
    # What is counted.
    _row(
        "A frame that is sent again is counted as a new one.",
        "node.handover:HandOvers.tick",
        "self._counters.handover_frames['resent'] += 1",
        "self._counters.handover_frames['sent'] += 1",
        _NODE,
    ),
    _row(
        "A refusal is not counted.",
        "node.handover_leader:Receiver._refuse",
        "self._counters.handover_refused['split' if refusal.fits else refusal.errors[0].code] += 1",
        "pass",
        _LEADER,
    ),
)
