"""Who is let in, decided by the headers alone."""

from __future__ import annotations

import pytest

from kvorum.errors import IdentityRejectedError
from kvorum.identity import Identity
from kvorum.transport.handshake import check_greeting, dialling_headers

US = Identity("n1", "1" * 16)
CALLER = Identity("n2", "2" * 16, "c" * 32)


def test_a_node_without_a_cluster_is_called_into_one_but_not_by_another_that_has_none() -> None:
    greeting = check_greeting(dialling_headers(CALLER, US.node_id, "http://n2", ""), US, "")
    assert (greeting.sender, greeting.cluster_id) == (CALLER.node_id, CALLER.cluster_id)

    homeless = Identity(CALLER.name, CALLER.incarnation)
    with pytest.raises(IdentityRejectedError) as refused:
        check_greeting(dialling_headers(homeless, US.node_id, "http://n2", ""), US, "")
    assert refused.value.reason == "cluster"
