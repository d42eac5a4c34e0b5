"""Mutants of watches: every event once and in order, whoever is slow, and an end that is never silent."""

from __future__ import annotations

from mutants.mutant import Mutant

_HUB = "tests/kv/test_watch.py"
_SERVICE = "tests/service/test_watch.py"
_FRONT = "tests/fronts/test_watch.py"
_CLIENT = "tests/client/test_watch.py"


def _hub(fault: str, where: str, old: str, new: str) -> Mutant:
    return Mutant("watch", fault, f"kv.watch:{where}", old, new, tests=_HUB, simulated=False)


MUTANTS = (
    _hub("Progress is told ahead of an event.", "Hub.progress", "self._next - 1", "self._next"),
    _hub(
        "Progress is told to a watcher that has to catch up.",
        "Hub.progress",
        "watcher.place is watcher.group.in_step",
        "watcher.cursor",
    ),
    _hub(
        "A slice splits a revision.",
        "Hub._scan",
        "revision != last and (count >= SLICE_EVENTS or slice_bytes >= SLICE_BYTES "
        "or delivered_bytes >= DELIVERED_BYTES)",
        "count >= SLICE_EVENTS",
    ),
    _hub("A slice has no bound in bytes.", "Hub._scan", "slice_bytes >= SLICE_BYTES", "False"),
    _hub("What all receivers together get has no bound.", "Hub._scan", "delivered_bytes >= DELIVERED_BYTES", "False"),
    _hub(
        "A slice is delivered again in the next turn.",
        "Hub._deliver_old",
        "watcher.cursor = end",
        "watcher.cursor = max(end - 1, first)",
    ),
    _hub(
        "A watcher that shares a scan gets what it has seen already.",
        "Hub._deliver_old",
        "bisect_left(events, watcher.cursor, key=_revision_of) if watcher.cursor > first else 0",
        "0",
    ),
    _hub(
        "A watcher that did not get its slice, since there were too many, goes on after it.",
        "Hub._deliver_old",
        "waiting.add(watcher)",
        "pass",
    ),
    _hub(
        "A full watcher is written to all the same.",
        "Hub._deliver_new",
        "left and not watcher.sink.is_full",
        "left",
    ),
    _hub(
        "A watcher that falls behind misses the slice that it did not take.",
        "Hub._deliver_new",
        "watcher.cursor = first",
        "watcher.cursor = self._next",
    ),
    _hub("A turn serves any number of watchers.", "Hub._deliver_new", "left -= 1", "pass"),
    _hub(
        "The floor passes a watcher that is behind, in silence.",
        "Hub._end_below_floor",
        "self.end(watcher, RevisionCompactedError(watcher.cursor, floor, store.revision))",
        "pass",
    ),
    _hub(
        "A watcher that falls behind below the floor is not told.",
        "Hub._place",
        "self._is_below_floor = True",
        "pass",
    ),
    _hub("What those in step have not seen is reclaimed.", "Hub._hold", "self._pin.revision = self._next", "pass"),
    _hub(
        "The history is kept for those in step for ever.",
        "Hub._hold",
        "self._pin.revision = self._next",
        "self._pin.revision = 1",
    ),
    _hub(
        "A watch below the floor begins at what is left.",
        "Hub.add",
        "if first < store.floor: ...",
        "pass",
    ),
    _hub(
        "Another state that is not as far makes watchers see revisions twice.",
        "Hub._adopt",
        "if store.revision + 1 < self._next: ...",
        "pass",
    ),
    _hub(
        "Who is in step and below the floor of another state is not told.",
        "Hub._adopt",
        "if store is not self._store and self._in_step and self._next < store.floor: ...",
        "pass",
    ),
    _hub(
        "The filter is ignored.",
        "Hub._scan",
        "not receivers or not (interest.puts if event.version else interest.deletes)",
        "not receivers",
    ),
    _hub(
        "The previous value is that of the event.",
        "Hub._scan",
        "versions.previous(event)",
        "event",
    ),
    _hub(
        "A previous value is shown to those who did not ask.",
        "Hub._scan",
        "interest.prev_value and with_previous is not None",
        "with_previous is not None",
    ),
    _hub(
        "Those in step hold back any amount of history.",
        "Hub._hold",
        "store.versions.pin(self._next, bytes_max=PINNED_BYTES_MAX)",
        "store.versions.pin(self._next)",
    ),
    _hub("Those in step who lost their pin miss events in silence.", "Hub.turn", "self._end_in_step(store)", "pass"),
    _hub("Those in step who come late are not counted.", "Hub.behind", "self._in_step if self._is_late else 0", "0"),
    _hub("A group is encoded for each of its watchers.", "EventBatch.encoded", "encoded is None", "True"),
    _hub(
        "A watcher that ended in the future counts when its revision comes.",
        "Hub.remove",
        "watcher.cursor = 0",
        "pass",
    ),
    *(
        Mutant("watch", fault, f"kv.matcher:{where}", old, new, tests=f"{_HUB} -k matcher", simulated=False)
        for fault, where, old, new in (
            (
                "The key behind a range is in it.",
                "_Ranges.find",
                "key < member.end",
                "key <= member.end",
            ),
            ("Segments that are no longer needed stay.", "Matcher._disuse", "if key: ...", "pass"),
            ("A range that comes later is not found by events.", "Matcher.add", "self._forget(member)", "pass"),
            ("What nested ranges keep has no bound.", "Matcher._look_up", "self._kept > self._kept_max", "False"),
            ("Every event scans all ranges.", "Matcher._look_up", "self._cover[number] = found", "pass"),
        )
    ),
    Mutant(
        "watch",
        "A wrong state is delivered.",
        "node.watches:Watches.advance",
        "if state.is_wrong: ...",
        "pass",
        tests=_SERVICE,
        simulated=False,
    ),
    Mutant(
        "watch",
        "A state that was given up is taken for one in which nothing happened.",
        "node.watches:Watches.advance",
        "if state.is_given_up: ...",
        "pass",
        tests=_SERVICE,
        simulated=False,
    ),
    Mutant(
        "watch",
        "A node that is cut off keeps its watches.",
        "node.watches:Watches.tick",
        "self._leaderless_ticks += 1",
        "pass",
        tests=_SERVICE,
        simulated=False,
    ),
    Mutant(
        "watch",
        "An old leaderless moment counts towards the next one.",
        "node.watches:Watches.tick",
        "self._leaderless_ticks = 0",
        "pass",
        tests=_SERVICE,
        simulated=False,
    ),
    Mutant(
        "watch",
        "There is no limit to the watchers of a node.",
        "node.watches:Watches.check_room",
        "self.hub.size >= self._watchers_max",
        "False",
        tests=_SERVICE,
        simulated=False,
    ),
    Mutant(
        "watch",
        "One watcher too many is told so in the last line of a 200.",
        "service.service:Service._watch",
        "self._node.check_watchers()",
        "pass",
        tests=f"{_FRONT} -k one_watcher_too_many",
    ),
    Mutant(
        "watch",
        "A watch begins with what a node that is behind has applied, and shows writes of before as new.",
        "service.service:Service._watch",
        "await self._node.read_barrier(self._bounded(request.timeout_ms))",
        "pass",
        tests=_SERVICE,
        simulated=False,
    ),
    Mutant(
        "watch",
        "A watch from now on repeats the latest revision.",
        "service.service:Service._watch",
        "request.from_revision or store.revision + 1",
        "request.from_revision or store.revision",
        tests=_SERVICE,
        simulated=False,
    ),
    Mutant(
        "watch",
        "A browser that resumes sees its last event again.",
        "fronts.http.watch:_watch",
        'parse_integer(resumed, "Last-Event-ID", 0, INTEGER_MAX - 1) + 1',
        'max(parse_integer(resumed, "Last-Event-ID", 0, INTEGER_MAX - 1), 1)',
        tests=_FRONT,
    ),
    *(
        Mutant("watch", fault, f"fronts.http.{where}", old, new, tests=f"{_FRONT} -k '{which}'", simulated=False)
        for fault, where, old, new, which in (
            (
                "A client that does not read is never disconnected.",
                "watch:Feed._judge_stall",
                "now_s - self._unread_since_s >= STALL_S",
                "False",
                "reads_nothing",
            ),
            (
                "A client that reads a byte in half a minute keeps a megabyte for ever.",
                "watch:Feed._judge_stall",
                "min(STALL_BYTES, self._unread_bytes)",
                "1",
                "drips",
            ),
            (
                "The buffers of all watches together have no bound.",
                "watch_buffers:Buffers._has_room_for",
                "self.unread_bytes < self._bytes_max",
                "True",
                "together",
            ),
            (
                "One slow client stops all watches once the buffers are full.",
                "watch_buffers:Buffers._has_room_for",
                "not buffer.unread_bytes and self.unread_bytes < 2 * self._bytes_max",
                "False",
                "together",
            ),
            (
                "A watch that had to wait for others gets nothing more.",
                "watch_buffers:Buffers._recount",
                "buffer.has_room()",
                "pass",
                "together",
            ),
            (
                "The buffers of watches that ended count for ever.",
                "watch:Feed.run",
                "self._buffers.remove(self)",
                "pass",
                "count_until",
            ),
            (
                "A revision of 10 GB is one line.",
                "watch:Feed.take",
                "not self._is_fragmented and batch.size_bytes > REVISION_BYTES_MAX",
                "False",
                "without_fragments",
            ),
            (
                "A part of a revision looks like the whole.",
                "watch_lines:fragments",
                "not is_last and events[number][0].mod_revision == event[0].mod_revision",
                "False",
                "fragments",
            ),
            (
                "A browser takes a part of a revision for the whole when it resumes.",
                "watch_lines:_sse",
                "revision.more",
                "False",
                "fragments",
            ),
            (
                "Fragments do not wait for the client.",
                "watch:Feed._write_rest",
                "self._rest is None or self._is_blocked or self._watch is None",
                "self._rest is None or self._watch is None",
                "fragments",
            ),
        )
    ),
    Mutant(
        "watch",
        "A slow client that reads again gets nothing more.",
        "fronts.http.watch:Feed.has_room",
        "self._watch.has_room()",
        "pass",
        tests=f"{_FRONT} -k does_not_read",
    ),
    Mutant(
        "watch",
        "A client that hung up stays a watcher until something happens.",
        "fronts.http.server:_Connection.eof_received",
        "if self.feed is not None: ...",
        "pass",
        tests=f"{_FRONT} -k hangs_up",
    ),
    Mutant(
        "watch",
        "A server that stops waits for its watches.",
        "fronts.http.server:ApiServer.close_after_answers",
        "self._end_watches()",
        "pass",
        tests=f"{_FRONT} -k stops",
    ),
    Mutant(
        "watch",
        "A watch ends without a word.",
        "fronts.http.watch:Feed.end",
        "self._write(self._lines.end(error))",
        "pass",
        tests=f"{_FRONT} -k says_why",
    ),
)
