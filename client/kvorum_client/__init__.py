"""The Python client of Kvorum and the ``kv`` command."""
