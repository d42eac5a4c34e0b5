"""Bugs outside the core, and a few more in it, a line each; the core's own are in :mod:`raft.mutation_list`.

``bug`` is B1 to B40 of the bug list. ``old`` is in ``file`` (below service/kvorum) exactly once; ``tests`` are what
pytest is given; ``simulated``: the bug is in the simulator's world, so a seed should notice it too.
"""

from __future__ import annotations

from typing import NamedTuple

from raft.mutation_list import MUTATIONS


class Mutant(NamedTuple):
    """Replace ``old`` by ``new`` in ``file``."""

    bug: str
    file: str
    old: str
    new: str
    tests: str = "tests/raft"
    simulated: bool = True


_VOTE_LATER = "self.current_term == self._outbox.durable.current_term"

CORE = (
    # A term is saved first, and its vote with the next save.
    Mutant(
        "B2",
        "raft/raft.py",
        "return self._saves.begin(self._outbox.current,",
        f"return self._saves.begin(HardState(self.current_term, self.voted_for if {_VOTE_LATER} else None),",
    ),
    # A vote is saved, its term is not.
    Mutant(
        "B1",
        "raft/raft.py",
        "return self._saves.begin(self._outbox.current,",
        "return self._saves.begin(HardState(self._outbox.durable.current_term, self.voted_for),",
    ),
    # An entry is committed by half of the voters.
    Mutant(
        "5.3",
        "raft/leader.py",
        "index = matches[len(voters) // 2]",
        "index = matches[(len(voters) - 1) // 2]",
    ),
    # What was lost is never sent again.
    Mutant(
        "B15",
        "raft/leader.py",
        "if progress.quiet_ticks >= self._config.heartbeat_timeout_ticks:",
        "if progress.quiet_ticks < 0:",
    ),
    # A follower does not put an appended configuration in force.
    Mutant("B28", "raft/raft.py", "self.configurations.note(appended)", "self.configurations.note(())"),
    # A leader that was heard lately answers reads by itself: a lease, on a clock that a pause stops.
    Mutant(
        "B22",
        "raft/leader.py",
        "return self._reads.number if node == self._config.id else",
        "return self._reads.number if node == self._config.id or self._is_active(node) else",
    ),
    # Every partitioned server inflates its term: no pre-vote.
    Mutant(
        "B7",
        "raft/roles.py",
        "                self.campaign_softly()\n            else:",
        "                self._campaign(leadership_transfer=False)\n            else:",
    ),
)

STATE_MACHINE = (
    # The revision goes back when a snapshot is restored.
    Mutant("B23", "kv/store.py", "store.revision = header.revision", "store.revision = 0", "tests/kv"),
    # What a snapshot says it is of, and what is in it, are two things.
    Mutant(
        "B17", "kv/store.py", "applied_index=self.applied_index,", "applied_index=self.applied_index + 1,", "tests/kv"
    ),
    # The log's time goes back with the clock of a new leader.
    Mutant("B24", "kv/store.py", "if batch.time_ms > self.time_ms:", "if batch.time_ms:", "tests/kv"),
    # A session is thrown out that somebody may still retry in.
    Mutant(
        "B24",
        "kv/sessions.py",
        "if time_ms - oldest.last_used_ms <= SESSION_IDLE_MS:",
        "if False:",
        "tests/kv",
        simulated=False,
    ),
    # A retried write is applied again.
    Mutant(
        "B24", "kv/sessions.py", "return result if first == fingerprint else MISMATCH", "return session", "tests/kv"
    ),
    # A snapshot forgets the answers of the sessions.
    Mutant(
        "B24",
        "kv/sessions.py",
        "session._ring[offset : offset + ANSWER_BYTES] = slot",
        "session._ring[offset : offset + ANSWER_BYTES] = bytes(ANSWER_BYTES)",
        "tests/kv",
    ),
    # A comparison that does not hold is done all the same.
    Mutant(
        "6.3",
        "kv/store.py",
        "if prev_revision != ANY_REVISION and prev_revision != mod_revision:",
        "if prev_revision > mod_revision:",
        "tests/kv",
    ),
    # A record that changes while a snapshot is written appears in it as it is later.
    Mutant("B26", "kv/store.py", "        self._cut_revision = self.revision\n", "", "tests/kv"),
    # Applying depends on who applies: the hash leaves out what was answered.
    Mutant(
        "B40", "kv/store.py", "        digest.update(_results_encoder.encode(results))\n", "        pass\n", "tests/kv"
    ),
)

DRIVER = (
    # A write that may still be done is reported as certainly not done.
    Mutant(
        "B25", "node/proposals.py", "if waiter in queued:", "if True:", "tests/node/test_proposals.py", simulated=False
    ),
    # Whoever waits at an index gets the answer of whatever is applied there.
    Mutant("B25", "node/proposals.py", "if term != entry.term:", "if False:", "tests/node", simulated=False),
)

STORAGE = (
    # A vote is written, but not read back.
    Mutant(
        "B1",
        "storage/records.py",
        "self.hard_state = HardState(record.term, record.vote)",
        "self.hard_state = HardState(record.term, None)",
        "tests/storage/test_memory.py tests/storage/test_log.py",
    ),
    # A snapshot file is renamed before it is synced.
    Mutant(
        "B26",
        "storage/snapshots.py",
        "            os.fsync(self._file.fileno())\n            self._file.close()",
        "            self._file.close()",
        "tests/storage/test_snapshots.py -k synced_before",
        simulated=False,
    ),
    # Another node's data folder is taken over.
    Mutant(
        "B29",
        "storage/records.py",
        "if stored is None or stored == identity:",
        "if True:",
        "tests/storage/test_memory.py",
        simulated=False,
    ),
    # A disk that lost the end of its log goes on voting.
    Mutant(
        "B30",
        "storage/high_water_mark.py",
        "if seq > last_seq:",
        "if False:",
        "tests/storage/test_corruption.py -k older_than",
        simulated=False,
    ),
    # A save that failed is acknowledged.
    Mutant(
        "B31",
        "storage/log.py",
        'self._fail(f"record {saved.record.seq} could not be written: {error}")',
        "saved.done()",
        "tests/storage/test_log.py -k fails",
        simulated=False,
    ),
    # A snapshot whose sync failed is tried again.
    Mutant(
        "B31",
        "storage/snapshots.py",
        "_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)",
        "_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)",
        "tests/storage/test_snapshots.py -k disk_that_fails",
        simulated=False,
    ),
    # A snapshot that finds no room ends the node, which has room for its log.
    Mutant(
        "B32",
        "storage/snapshots.py",
        "_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)",
        "_NO_ROOM: tuple[int, ...] = ()",
        "tests/storage/test_snapshots.py -k room",
        simulated=False,
    ),
    # A row that was lost from the middle is not missed.
    Mutant(
        "B33",
        "storage/verify.py",
        "if (log.last_seq or record.seq == 1) and record.prev_crc != log.last_crc:",
        "if False:",
        "tests/storage/test_corruption.py -k changed_log",
        simulated=False,
    ),
    # A copy without its mark is taken for a new folder, and votes.
    Mutant(
        "B36",
        "storage/log.py",
        "if log.identity is not None or self._snapshots.exist():",
        "if False:",
        "tests/storage/test_corruption.py -k missing",
        simulated=False,
    ),
    # A row's checksum is not compared.
    Mutant(
        "B33",
        "storage/records.py",
        'or crc != int.from_bytes(value[:_CRC_BYTES], "little")',
        "",
        "tests/storage/test_corruption.py -k changed_log",
        simulated=False,
    ),
    # Saves are not synced.
    Mutant(
        "B34",
        "storage/table.py",
        'self.run("PRAGMA synchronous=FULL")',
        'self.run("PRAGMA synchronous=NORMAL")',
        "tests/storage/test_log.py -k synced",
        simulated=False,
    ),
)

MUTANTS: tuple[Mutant, ...] = (
    *(Mutant(m.bug, f"raft/{m.file}", m.old, m.new) for m in MUTATIONS),
    *CORE,
    *STATE_MACHINE,
    *DRIVER,
    *STORAGE,
)
