"""Kvorum: a linearizable key-value store that operates itself on Kubernetes.

The layers, each of which imports only those below it (``pyproject.toml`` enforces it)::

    __main__, cli                 composition root: configuration, signals, exit codes
    api | cluster | telemetry     HTTP, Kubernetes, metrics
    node                          the driver: the one module that knows the others
    storage | transport | kv      the disk, the peers, the replicated state
    raft                          consensus, pure and synchronous
    config | errors               what everything may know
"""

__version__ = "0.6.0"
