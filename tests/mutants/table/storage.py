"""Mutants of the durable log and the snapshot files."""

from __future__ import annotations

from mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        "B1",
        "A vote is written, but not read back.",
        "storage.records:LogState.apply",
        "HardState(record.term, record.vote)",
        "HardState(record.term, None)",
        tests="tests/storage/test_memory.py tests/storage/test_log.py",
        simulated=True,
    ),
    Mutant(
        "B26",
        "A snapshot file is renamed before it is synced.",
        "storage.snapshots:Writer.commit",
        "os.fsync(self._file.fileno())",
        "pass",
        tests="tests/storage/test_snapshots.py -k synced_before",
    ),
    Mutant(
        "B29",
        "The data folder of another node is opened.",
        "storage.records:check_identity",
        "stored is None or stored == identity",
        "True",
        tests="tests/storage/test_memory.py",
    ),
    Mutant(
        "B30",
        "A log that lost its end is opened, and its node votes.",
        "storage.folder:check_mark",
        "seq > last_seq",
        "False",
        tests="tests/storage/test_corruption.py -k older_than",
    ),
    Mutant(
        "B31",
        "A save that failed is acknowledged.",
        "storage.log:SqliteStorage._saved",
        'self._fail(f"record {saved.record.seq} could not be written: {error}")',
        "saved.done()",
        tests="tests/storage/test_log.py -k fails",
    ),
    Mutant(
        "B31",
        "A snapshot whose sync failed is retried.",
        "storage.snapshots:_NO_ROOM",
        "(errno.ENOSPC, errno.EDQUOT)",
        "(errno.ENOSPC, errno.EDQUOT, errno.EIO)",
        tests="tests/storage/test_snapshots.py -k disk_that_fails",
    ),
    Mutant(
        "B32",
        "A snapshot that finds no room ends the node, which has room for its log.",
        "storage.snapshots:_NO_ROOM",
        "(errno.ENOSPC, errno.EDQUOT)",
        "()",
        tests="tests/storage/test_snapshots.py -k room",
    ),
    Mutant(
        "B33",
        "A row that was lost from the middle of the log is not missed.",
        "storage.verify:_add",
        "(log.last_seq or record.seq == 1) and record.prev_crc != log.last_crc",
        "False",
        tests="tests/storage/test_corruption.py -k changed_log",
    ),
    Mutant(
        "B36",
        "A copy of a folder without its mark is taken for a new folder, and its node votes.",
        "storage.log:SqliteStorage._check",
        "log.identity is not None or self._snapshots.exist()",
        "False",
        tests="tests/storage/test_corruption.py -k missing",
    ),
    Mutant(
        "B33",
        "The checksum of a row is not compared.",
        "storage.records:_unseal",
        "crc != int.from_bytes(value[:_CRC_BYTES], 'little')",
        "False",
        tests="tests/storage/test_corruption.py -k changed_log",
    ),
    Mutant(
        "B34",
        "Saves are not synced.",
        "storage.table:Table._make_safe",
        'self.run("PRAGMA synchronous=FULL")',
        'self.run("PRAGMA synchronous=NORMAL")',
        tests="tests/storage/test_log.py -k synced",
    ),
)
