"""The durable log and the snapshots of one node.

The log is a table of SQLite, written through sqlitedict, which is unsafe as shipped; :mod:`kvorum.storage.log` says how
it is made safe. The layers:

- :mod:`~kvorum.storage.interface`: what the driver asks for;
- :mod:`~kvorum.storage.records`: what one row is, and how rows make a log (pure);
- :mod:`~kvorum.storage.log`: the table, the high-water mark, the lock; ``SqliteStorage``;
- :mod:`~kvorum.storage.verify`: reading a folder before anything opens it for writing;
- :mod:`~kvorum.storage.table`: the table of SQLite under the log;
- :mod:`~kvorum.storage.high_water_mark`: how far the log was once durable, in a file beside it;
- :mod:`~kvorum.storage.snapshot_format`, :mod:`~kvorum.storage.snapshots`, :mod:`~kvorum.storage.retention`: snapshot
  files, and which of them are kept;
- :mod:`~kvorum.storage.datadir`: the data folder: its lock, and what is set aside, restored or recovered in it;
- :mod:`~kvorum.storage.room`: the room that is left on the disk, and a reserve for when there is none;
- :mod:`~kvorum.storage.offline`: a folder that is changed while no node runs on it;
- :mod:`~kvorum.storage.files`: files that are durable when a function returns;
- :mod:`~kvorum.storage.memory`: the twin in memory, for tests and the simulator.

A log is trusted whole or not at all: nothing here cuts off a damaged end and goes on. What SQLite
itself drops after a crash, because it was never synced, was never acknowledged, and the mark shows that it was not.
"""
