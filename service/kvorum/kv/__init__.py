"""The replicated key-value state: a pure function from the log to answers.

Theory of operation. :class:`~kvorum.kv.store.Store` is what every node computes from the same committed entries: the
same results, the same records, the same sessions and the same ``state_hash``, whatever the node, process or hour. So
nothing here reads a clock, a random number or the environment, iterates over a set, or uses ``hash()``. Time is
``time_ms``, and it comes from the entries themselves.

::

    commands           the commands, their results, their encoding
    operations         what a transaction is made of, and its results
    txn_check          which transactions may be proposed
    txn                what a transaction does
    records            one version of a key
    keys               the keys in order
    event_log          every put and delete in order
    versions           the latest versions, and the history
    leases             keys that are deleted together when their lease ends
    lease_commands     what commands and time do to leases
    sessions           a retried write is applied once
    limits             how large anything may be
    quota              how much all of it may take
    store              apply(entry) -> results; get(key) -> record
    frames             the bytes of a snapshot
    cut                the records and the history of a snapshot
    snapshot_iterator  writes a snapshot while the store goes on
    snapshot_versions  reads its history back, and verifies it
    snapshot           reads all of it back, or refuses it
    features           what members of several versions all understand
    state_hash         what nodes compare
    sweep              finds what memory changed by itself

The revision model is etcd's: one ``revision`` for the cluster, one more with each mutation that changed something; a
record knows the revision that created it, the one that last changed it, and how many changes lie between. Old versions
are kept until they are compacted (docs/decisions/0013-versions-are-kept-until-compacted.md).
"""
