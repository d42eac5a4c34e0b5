"""Mutants of ranges: scans in slices and cursors, their places and bounds, and their HTTP."""

from __future__ import annotations

from mutants.mutant import Mutant

_ROWS = (
    (
        "A range at an old revision misses keys that are deleted by now.",
        "kv.scan:Scan._next_keys",
        "has_dead = latest != self.revision",
        "has_dead = False",
    ),
    (
        "The count of a range in the past has keys that were created since.",
        "kv.scan:_Changes.count",
        "self._born.count(start, end)",
        "0",
    ),
    (
        "The count of a range in the past lacks keys that were deleted since.",
        "kv.scan:_Changes.count",
        "self._gone.count(start, end)",
        "0",
    ),
    (
        "The page after a cursor lacks its first key.",
        "kv.scan:Scan._stop_before",
        "self._low = key",
        "self._low = key + bytes(1)",
    ),
    (
        "A page has no bound in bytes.",
        "kv.scan:Scan._take",
        "self._bytes + size_bytes > self._bytes_max",
        "False",
    ),
    (
        "A page of records that are wanted as they are has no bound in bytes.",
        "kv.scan:Scan._scan_plain",
        "size_bytes > bytes_left",
        "False",
    ),
    (
        "A slice takes as many large records as small ones.",
        "kv.scan:Scan._scan_plain",
        "steps -= size_bytes // _BYTES_PER_STEP",
        "pass",
    ),
    (
        "A range at an old revision has the latest versions.",
        "kv.versions:Versions.each_at",
        "revision == latest",
        "True",
    ),
    ("A sorted range has no bound.", "kv.scan:Scan.step", "self.count > SORTED_KEYS_MAX", "False"),
    (
        "A page that ran out of time before its first key is empty, and so is the next one, for ever.",
        "kv.scan:Scan.may_stop",
        "self._position != self._begins_at",
        "True",
    ),
    ("A cursor of another query is taken.", "kv.cursors:decode_cursor", "cursor.query != digest(query)", "False"),
    ("A damaged cursor is taken.", "kv.cursors:_decode", "checksum != _checksum(body)", "False"),
    (
        "What was counted of a store goes on to be counted of the next one.",
        "kv.scan:Scan.step",
        "versions is not self._versions",
        "self._versions is None",
    ),
)

_SCANS = (
    (
        "A page at a revision that was compacted is answered.",
        "service.scans:RangeScan.begin",
        "store.check_revision(self.revision)",
        "pass",
    ),
    (
        "A range in the past pins the latest revision.",
        "service.scans:RangeScan.begin",
        "store.pin(self.revision, HISTORY_BYTES_MAX)",
        "store.pin(0, HISTORY_BYTES_MAX)",
    ),
    (
        "A range goes on with a store that nobody pins.",
        "service.scans:RangeScan._slice",
        "store is not self._store",
        "False",
    ),
    (
        "A reader holds back history without a bound.",
        "kv.versions:Versions._lose_pins",
        "self.held_bytes(pin.revision) > pin.bytes_max",
        "False",
    ),
    (
        "A reader whose revision was given up goes on.",
        "service.scans:RangeScan._slice",
        "self._pin.is_lost",
        "False",
    ),
    (
        "What is above the floor is held against a reader.",
        "kv.versions:Versions.held_bytes",
        "self._floor_bytes if self.floor else log.total_bytes",
        "log.total_bytes",
    ),
    (
        "A range that is closed keeps its place.",
        "service.scans:RangeScan.close",
        "self._scans.leave(is_whole=self._is_whole)",
        "pass",
    ),
    (
        "A range that could not begin keeps its place and its pin.",
        "service.scans:Scans.begin",
        "reading.close()",
        "pass",
    ),
    (
        "All slices of a range follow each other without a turn of the loop.",
        "service.scans:RangeScan._next_slice",
        "await asyncio.sleep(0)",
        "pass",
    ),
    (
        "A range has no deadline.",
        "service.scans:RangeScan._slice",
        "scans.now() < self._deadline_s",
        "True",
    ),
    (
        "A stream that runs out of time says that it is complete.",
        "service.scans:RangeScan._slice",
        "self._is_whole",
        "False",
    ),
    (
        "Pages that wait for slow clients have no bound in bytes.",
        "service.scans:Scans.enter",
        "self.unread_bytes >= UNREAD_BYTES_MAX",
        "False",
    ),
    (
        "Every page is at the latest revision.",
        "service.service:Service._range",
        "revision or store.revision",
        "store.revision",
    ),
)
_FRONT = (
    (
        "A linearizable range asks nobody.",
        "fronts.http.ranges:parse_range",
        'query.choice(parameters.CONSISTENCY) == "stale"',
        "True",
    ),
    (
        "A page gives up its place before the client has read it.",
        "fronts.http.ranges:RangeHandlers.read",
        "scan.wait_for_client(len(body))",
        "scan.close()",
    ),
    (
        "A page that was written keeps its place.",
        "fronts.http.ranges:_Body.close",
        "self._scan.close()",
        "pass",
    ),
    (
        "A stream that was written keeps its revision.",
        "fronts.http.ranges:_Lines.close",
        "self._scan.close()",
        "pass",
    ),
    (
        "A parameter that is given twice counts once.",
        "fronts.http.key_ranges:take_bytes",
        "name in found",
        "False",
    ),
    (
        "A prefix and an end are taken together, and the end is ignored.",
        "fronts.http.key_ranges:range_of",
        "name in given and 'prefix' in given",
        "False",
    ),
    (
        "A count of a part of a range is answered with that of all of it.",
        "fronts.http.ranges:parse_range",
        "_check_count_only(query, given)",
        "pass",
    ),
    (
        "A page of keys says that all of them are empty.",
        "fronts.http.ranges:_shown",
        "(None, None) if keys_only else text_or_base64(item.value)",
        "text_or_base64(item.value)",
    ),
    (
        "A page does not say where the next one begins.",
        "fronts.http.ranges:_page",
        "scan.cursor",
        "None",
    ),
    (
        "A stream that was broken off ends without a word.",
        "fronts.http.ranges:_Lines.chunks",
        "yield _encoder.encode_lines([wire.RangeBroken(problem_of(error))])",
        "pass",
    ),
)

_KEYS = (
    (
        "After mass deletes, each chunk of keys that are left has a few.",
        "kv.keys:Keys.remove",
        "len(chunk) < CHUNK_KEYS // _SMALL_PARTS or not chunk",
        "not chunk",
    ),
)

MUTANTS = tuple(
    Mutant("range", fault, where, old, new, tests=tests, simulated=False)
    for rows, tests in (
        (_ROWS, "tests/kv/test_ranges.py"),
        (_SCANS, "tests/service/test_scans.py"),
        (_KEYS, "tests/kv/test_keys.py"),
        (_FRONT, "tests/fronts/test_ranges.py"),
    )
    for fault, where, old, new in rows
)
