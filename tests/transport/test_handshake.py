"""Who is let in, decided by the headers alone."""

from __future__ import annotations

import pytest

from kvorum.errors import IdentityRejectedError
from kvorum.identity import Identity
from kvorum.raft.messages import PeerMark
from kvorum.transport.handshake import (
    HEADER_CLIENT_URL,
    HEADER_MARKS,
    HEADER_START,
    answer_headers,
    check_answer,
    check_greeting,
    dialling_headers,
)

US = Identity("n1", "1" * 16)
CALLER = Identity("n2", "2" * 16, "c" * 32)


def test_a_node_without_a_cluster_is_called_into_one_but_not_by_another_that_has_none() -> None:
    greeting = check_greeting(dialling_headers(CALLER, US.node_id, "http://n2", ""), US, "")
    assert (greeting.sender, greeting.cluster_id) == (CALLER.node_id, CALLER.cluster_id)

    homeless = Identity(CALLER.name, CALLER.incarnation)
    with pytest.raises(IdentityRejectedError) as refused:
        check_greeting(dialling_headers(homeless, US.node_id, "http://n2", ""), US, "")
    assert refused.value.reason == "cluster"


def test_a_caller_says_by_which_start_of_its_process_it_speaks_and_what_it_knows_of_our_disk() -> None:
    marks = (
        PeerMark(US.node_id, "", 3),
        PeerMark(US.node_id, "0a" * 8, 2**61, "n2@" + "2" * 16, 2**62 - 1, 2**60),
    )
    headers = dialling_headers(CALLER, US.node_id, "http://n2", "", start="1f", marks=marks)
    greeting = check_greeting(headers, US, "")
    assert (greeting.start, greeting.marks) == ("1f", marks)


def test_a_caller_of_version_0_1_0_remembers_nothing() -> None:
    headers = dialling_headers(CALLER, US.node_id, "http://n2", "")
    del headers[HEADER_START], headers[HEADER_MARKS]
    greeting = check_greeting(headers, US, "")
    assert (greeting.start, greeting.marks) == ("", ())


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (HEADER_START, "g"),
        (HEADER_START, "1" * 17),
        (HEADER_MARKS, "-"),
        (HEADER_MARKS, "- 1 - 1"),
        (HEADER_MARKS, "- x - 1 1"),
        (HEADER_MARKS, "- 1 nobody 1 1"),
        (HEADER_MARKS, f"- {2**62} - 1 1"),
        (HEADER_MARKS, "- 1 - 1 1,- 1 - 1 1,- 1 - 1 1"),
        (HEADER_MARKS, "- 1 - 1 1,"),
    ],
)
def test_what_a_caller_says_of_disks_is_checked(header: str, text: str) -> None:
    headers = dialling_headers(CALLER, US.node_id, "http://n2", "") | {header: text}
    with pytest.raises(IdentityRejectedError) as refused:
        check_greeting(headers, US, "")
    assert refused.value.reason == "malformed"


def test_who_accepts_a_stream_says_so_as_well_and_an_older_version_does_not() -> None:
    marks = (PeerMark(US.node_id, "2", 3, CALLER.node_id, 7, 3),)
    answer = check_answer(answer_headers("1f", marks), CALLER.node_id, US.node_id)
    assert (answer.start, answer.marks) == ("1f", marks)
    answer = check_answer(answer_headers("1f", ()), CALLER.node_id, US.node_id)
    assert (answer.start, answer.marks) == ("1f", ())
    answer = check_answer({}, CALLER.node_id, US.node_id)
    assert (answer.start, answer.marks) == ("", None)


@pytest.mark.parametrize("headers", [{HEADER_START: "g"}, {HEADER_MARKS: "- 1 - 1"}])
def test_what_who_accepts_a_stream_says_is_checked(headers: dict[str, str]) -> None:
    with pytest.raises(IdentityRejectedError) as refused:
        check_answer(headers, CALLER.node_id, US.node_id)
    assert refused.value.reason == "malformed"


def test_a_caller_says_where_it_is_reached_and_an_older_one_does_not() -> None:
    headers = dialling_headers(CALLER, US.node_id, "http://n2:9001", "", client_url="http://n2:8001")
    greeting = check_greeting(headers, US, "")
    assert (greeting.peer_url, greeting.client_url) == ("http://n2:9001", "http://n2:8001")
    del headers[HEADER_CLIENT_URL]
    assert check_greeting(headers, US, "").client_url == ""
    for nonsense in ("ftp://n2", "http://n2:8001/path?x", "http://user@n2:1"):
        assert check_greeting(headers | {HEADER_CLIENT_URL: nonsense}, US, "").client_url == ""
    with pytest.raises(IdentityRejectedError) as refused:
        check_greeting(headers | {HEADER_CLIENT_URL: "http://n2" + "2" * 600}, US, "")
    assert refused.value.reason == "malformed"
