"""The durable log and the snapshots of one node.

The log is a table of SQLite, written through sqlitedict, which is unsafe as shipped; :mod:`kvorum.storage.log` says how
it is made safe. The layers:

- :mod:`~kvorum.storage.interface`: what the driver asks for;
- :mod:`~kvorum.storage.records`: what one row is, and how rows make a log (pure);
- :mod:`~kvorum.storage.log`: the table, the high-water mark, the lock; ``SqliteStorage``;
- :mod:`~kvorum.storage.verify`: reading a folder before anything opens it for writing;
- :mod:`~kvorum.storage.snapshot_format`, :mod:`~kvorum.storage.snapshots`: snapshot files;
- :mod:`~kvorum.storage.memory`: the twin in memory, for tests and the simulator.

A log is trusted whole or not at all: nothing here cuts off a damaged end and goes on. What SQLite
itself drops after a crash, because it was never synced, was never acknowledged, and the mark shows that it was not.
"""
