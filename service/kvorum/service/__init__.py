"""What the store does for its clients: the one way in, which every front uses.

Theory of operation. A front turns bytes into one of the typed requests, calls :meth:`Service.execute
<kvorum.service.service.Service.execute>`, and turns the result or the error into bytes again. What a request means is
decided here and nowhere else: who may do it, how large and how long it may be, when a read waits for a quorum, how
stale it may be, what a session's answer means. So a second front speaks another protocol and has the same semantics.

::

    requests   the closed union of what can be asked       results    what comes back
    access     who asks, and whether they may              limits     sizes, names and deadlines
    outcomes   every error code: refused or unknown, and when to try again
    service    execute(principal, request)                 node_port  what is asked of a node
    transactions  transactions, batches, and the puts that need a transaction
    refusals   the errors for what is not proposed or not applied
    past       reads of the past                           scans      ranges, read in slices

Three outcomes. A result means that it is done. An error is a :class:`~kvorum.errors.CallerError`, whose code
:data:`~kvorum.service.outcomes.OUTCOMES` calls ``refused`` (certainly not done) or ``unknown``. Any other exception is
a bug in Kvorum, and its outcome is unknown.
"""

from kvorum.service.node_port import NodePort
from kvorum.service.service import Service

__all__ = ["NodePort", "Service"]
