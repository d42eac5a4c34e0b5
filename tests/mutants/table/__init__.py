"""The table of mutants: one file for each package of ``kvorum``, one format.

A row names a function, and the piece of its code that is replaced::

    Mutant(
        "B12",
        "The commit index goes back.",
        "raft.log:RaftLog.commit_to",
        "index <= self.commit_index",
        "False",
    )

``if index <= self.commit_index:`` then reads ``if False:``. :class:`~mutants.mutant.Mutant` explains the fields.

A change to the code may need a change here: ``pytest tests/mutants/test_table.py`` lists every row that does not apply
any more, with the code that is there now. Keep the fault, and adapt the code. A row may go only with the code whose bug
it is.
"""

from __future__ import annotations

from mutants.table import (
    client,
    cluster,
    compactions,
    handover,
    history,
    kv,
    lease_ticks,
    leases,
    locks,
    node,
    openapi,
    outsider,
    raft,
    ranges,
    service,
    storage,
    transport,
    txn,
    watches,
)

MUTANTS = (
    *raft.MUTANTS,
    *kv.MUTANTS,
    *history.MUTANTS,
    *openapi.MUTANTS,
    *leases.MUTANTS,
    *locks.MUTANTS,
    *ranges.MUTANTS,
    *node.MUTANTS,
    *storage.MUTANTS,
    *transport.MUTANTS,
    *cluster.MUTANTS,
    *client.MUTANTS,
    *service.MUTANTS,
    *compactions.MUTANTS,
    *handover.MUTANTS,
    *txn.MUTANTS,
    *watches.MUTANTS,
    *lease_ticks.MUTANTS,
    *outsider.MUTANTS,
)
