"""Mutants of the service: what a request means, for every front."""

from __future__ import annotations

from mutants.mutant import Mutant

_WAIT = """\
if request.consistency == 'stale':
    staleness_ms = self._staleness_ms(request.max_staleness_ms)
    self._counters.stale_reads += 1
else:
    await self._node.read_barrier(timeout_ms)
    self._counters.reads += 1"""

MUTANTS = (
    Mutant(
        "access",
        "Nobody asks whether the principal may make the request.",
        "service.service:Service.execute",
        "authorize(principal, request)",
        "pass",
    ),
    Mutant(
        "linearizable",
        "A linearizable read does not wait for a quorum.",
        "service.service:Service._get",
        "await self._node.read_barrier(timeout_ms)",
        "pass",
    ),
    Mutant(
        "linearizable",
        "A read gives the loop a turn between the barrier and the store.",
        "service.service:Service._get",
        "store = self._node.store",
        "import asyncio; await asyncio.sleep(0); store = self._node.store",
    ),
    Mutant(
        "linearizable",
        "A read takes the store of the moment before the barrier.",
        "service.service:Service._get",
        f"{_WAIT}\nstore = self._node.store",
        f"store = self._node.store\n{_WAIT}",
    ),
    Mutant(
        "K10",
        "A stale read may be staler than the client accepts.",
        "service.service:Service._staleness_ms",
        "staleness_ms > limit_ms",
        "False",
    ),
    Mutant(
        "K10",
        "A stale read refuses data of exactly the age that the client accepts.",
        "service.service:Service._staleness_ms",
        "staleness_ms > limit_ms",
        "staleness_ms >= limit_ms",
    ),
    Mutant(
        "K10",
        "A node that does not know how old its state is serves bounded stale reads.",
        "service.service:Service._staleness_ms",
        "staleness_ms is None or staleness_ms > limit_ms",
        "staleness_ms is not None and staleness_ms > limit_ms",
    ),
    Mutant(
        "quarantine",
        "A quarantined node serves stale reads.",
        "service.service:Service._staleness_ms",
        "self._node.check_serves()",
        "pass",
    ),
    Mutant(
        "deadline",
        "A client can wait longer than the node allows.",
        "service.limits:bounded_timeout_ms",
        "min(wanted_ms, limit_ms)",
        "wanted_ms",
    ),
    Mutant(
        "deadline",
        "A client cannot shorten the deadline.",
        "service.limits:bounded_timeout_ms",
        "min(wanted_ms, limit_ms)",
        "limit_ms",
    ),
    Mutant(
        "deadline",
        "A deadline of no time at all is taken.",
        "service.limits:bounded_timeout_ms",
        "wanted_ms < 1",
        "wanted_ms < 0",
    ),
    Mutant(
        "limits",
        "A write over a limit is proposed.",
        "service.service:Service._write",
        "check_command(command)",
        "pass",
    ),
    Mutant(
        "limits",
        "A linearizable read with a staleness bound is taken.",
        "service.limits:check_staleness",
        "consistency != 'stale'",
        "False",
    ),
    Mutant(
        "limits",
        "A member can have any name.",
        "service.service:Service._change_members",
        "limits.check_member_name(request.name)",
        "pass",
    ),
    Mutant(
        "limits",
        "The peer URL of a new member is not checked.",
        "service.service:Service._change_members",
        "limits.check_member_url(peer_url, 'peer_url')",
        "pass",
    ),
    Mutant(
        "limits",
        "A member can have a URL whose host has an empty label.",
        "config.addresses:is_base_url",
        "is_host(match['host'])",
        "True",
        "tests/service",
    ),
    Mutant(
        "limits",
        "A member can have a URL whose port is over 65535.",
        "config.addresses:is_base_url",
        "match['port'] is not None and not 1 <= int(match['port']) <= 65535",
        "False",
        "tests/service",
    ),
    Mutant(
        "limits",
        "The client URL of a new member is not checked.",
        "service.service:Service._change_members",
        "limits.check_member_url(client_url, 'client_url')",
        "pass",
    ),
    Mutant(
        "outcomes",
        "A client is sent to this very node as the leader.",
        "service.service:Service._elsewhere",
        "url == self._node.config.advertise_client_url",
        "False",
    ),
    Mutant(
        "outcomes",
        "A client is sent to a leader whose address is not known.",
        "service.service:Service._elsewhere",
        "not url or url == self._node.config.advertise_client_url",
        "url == self._node.config.advertise_client_url",
    ),
    Mutant(
        "outcomes",
        "A session's reason that this version does not know is reported as certainly not done.",
        "service.service:Service._write",
        "('session_unknown', reason)",
        "('session_ahead', reason)",
    ),
    Mutant(
        "backup",
        "A backup is begun without a quorum's confirmation.",
        "service.service:Service._snapshot",
        "await self._node.read_barrier(timeout_ms)",
        "pass",
    ),
    Mutant(
        "counters",
        "A read that no quorum confirmed is counted as served.",
        "service.service:Service._get",
        "await self._node.read_barrier(timeout_ms)\nself._counters.reads += 1",
        "self._counters.reads += 1\nawait self._node.read_barrier(timeout_ms)",
    ),
    Mutant(
        "B25",
        "The front reports a write that may be done as certainly not done.",
        "fronts.http.problems:_row",
        "Row(status, title, outcome.effect, outcome.retry_after_s)",
        "Row(status, title, 'refused', outcome.retry_after_s)",
        tests="tests/fronts/test_problems.py",
    ),
    Mutant(
        "forwarding",
        "A forwarded request is forwarded again.",
        "fronts.http.dispatch:Dispatcher._to_leader",
        "FORWARDED_BY not in request.headers",
        "True",
        tests="tests/fronts/test_problems.py",
    ),
    Mutant(
        "forwarding",
        "A put is forwarded without its value.",
        "fronts.http.kv:KeyValueHandlers.put",
        "request[BODY] = value",
        "pass",
        tests="tests/fronts/test_problems.py",
    ),
    Mutant(
        "K9",
        "A key in the path ends at a #, where a library or a redirect would cut it off.",
        "fronts.http.request:split_target",
        "'#' in target",
        "False",
        tests="tests/fronts/test_kv.py tests/fronts/test_http.py",
    ),
    Mutant(
        "K7",
        "The event loop writes the log itself, and waits for whoever reads it.",
        "telemetry.log_output:LogOutput.write",
        """
self._lines.append(line)
self._bytes += len(line)
self._changed.notify_all()
""",
        "self._write_all(line)",
        tests="tests/telemetry/test_log_output.py -k nobody_reads",
        simulated=False,
    ),
    Mutant(
        "K7",
        "Log lines that nobody reads fill the memory.",
        "telemetry.log_output:LogOutput.write",
        "self._bytes + len(line) > self._bytes_max",
        "False",
        tests="tests/telemetry/test_log_output.py -k dropped_counted",
        simulated=False,
    ),
    Mutant(
        "backups",
        "A backup that no quorum confirmed does not say so.",
        "storage.snapshot_format:marked_stale",
        "encode_header(snapshot, is_stale=True)",
        "encode_header(snapshot)",
        tests="tests/storage/test_snapshots.py -k stale",
        simulated=False,
    ),
    Mutant(
        "backups",
        "A damaged snapshot becomes a valid stale backup.",
        "storage.snapshot_format:read_payload",
        "remaining != 0 or stream.read(HASH_BYTES) != digest.digest()",
        "remaining != 0",
        tests="tests/storage/test_snapshots.py -k stale",
        simulated=False,
    ),
)
