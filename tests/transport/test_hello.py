"""What anybody may answer to a hello: it is a hello within bounds, or no answer."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any, cast

import pytest
from aiohttp import web
from transport.test_members import answering

from kvorum.errors import MalformedMessageError, PeerError
from kvorum.kv.commands import RaiseFeatureLevel, encode_batch
from kvorum.node.hellos import ask_all
from kvorum.node.ports import Peers
from kvorum.raft.messages import INDEX_MAX
from kvorum.transport import Hello
from kvorum.transport.handshake import decode_hello, parse_digest

FINE: dict[str, Any] = {
    "name": "n1",
    "incarnation": "1" * 16,
    "cluster_id": "c" * 32,
    "expected": ["n1", "n2"],
    "token": "a" * 64,
    "peer_url": "http://n1:9001",
    "client_url": "http://n1:8001",
    "term": 7,
    "members": ["n1@1"],
    "configuration_index": 3,
    "version": "0.2.0",
    "protocols": [1, 1],
    "levels": [1, 2],
}
NESTED = b'{"x":' + b"[" * 400_000
REFUSED = {
    "nothing": b"",
    "nested too deep": NESTED,
    "nested too deep, and whole": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"name":"\xff"}',
    **{
        f"{field}={value!r:.30}": json.dumps(FINE | {field: value}).encode()
        for field, value in [
            ("levels", [1, 10**23]),
            ("levels", [1, -1]),
            ("levels", [1, 10**9]),
            ("protocols", [1, 2**64]),
            ("term", -1),
            ("term", INDEX_MAX),
            ("term", 10**400),
            ("term", "7"),
            ("configuration_index", INDEX_MAX),
            ("name", "n" * 1_000_000),
            ("name", "n" * 64),
            ("name", "n1@1"),
            ("name", "n\udcff"),
            ("name", "n\n1"),
            ("name", 1),
            ("incarnation", "x"),
            ("incarnation", "1" * 17),
            ("cluster_id", "c" * 65),
            ("cluster_id", "c\n"),
            ("expected", ["n" * 64]),
            ("members", ["n" * 100]),
            ("token", "a" * 65),
            ("client_url", "http://a..b:1"),
            ("client_url", "http://h:1\r\nX: y"),
            ("client_url", "http://" + "h" * 600),
            ("peer_url", "file:///etc/passwd"),
            ("version", "9\u00ff"),
            ("version", "9" * 65),
        ]
    },
}


def test_a_hello_within_bounds_is_taken_and_later_fields_are_skipped() -> None:
    hello = decode_hello(json.dumps(FINE | {"later": [1]}).encode())
    assert (hello.node_id, hello.levels, hello.client_url) == ("n1@" + "1" * 16, (1, 2), "http://n1:8001")


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_a_hello_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode_hello(body)


@pytest.mark.parametrize("seed", range(20))
def test_no_damage_of_a_hello_raises_anything_else_or_passes_a_bound(seed: int) -> None:
    draw = Random(seed)
    whole = json.dumps(FINE).encode()
    pieces = [b"[" * 2000, b"9" * 5000, b"1e999", b'"\\ud800"', b"null", b"\xff", b"-1", b"{", b'""']
    for _ in range(200):
        start = draw.randrange(len(whole))
        body = whole[:start] + draw.choice(pieces) + whole[start + draw.randrange(20) :]
        try:
            hello = decode_hello(body)
        except MalformedMessageError:
            continue
        # What the first entry of a cluster is made of.
        assert encode_batch(0, [RaiseFeatureLevel(2, {hello.node_id: hello.levels[1]}, hello.cluster_id)])
        assert 0 <= hello.term < INDEX_MAX


@pytest.mark.parametrize("body", [NESTED[:60_000], b"x" * 70_000, NESTED], ids=["deep", "long", "both"])
def test_who_answers_nonsense_is_a_peer_that_does_not_answer(body: bytes) -> None:
    async def run() -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=body)

        async with answering(answer) as (transport, url):
            with pytest.raises(PeerError):
                await transport.hello(url)
            assert await ask_all(cast("Peers", transport), {"n1": url}) == {"n1": None}

    asyncio.run(run())


def test_a_hello_of_64_kib_and_more_is_not_read() -> None:
    async def run() -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=json.dumps(FINE | {"later": "x" * 65_536}).encode())

        async with answering(answer) as (transport, url):
            with pytest.raises(PeerError, match="more than 65536 bytes"):
                await transport.hello(url)

    asyncio.run(run())


@pytest.mark.parametrize(
    "url", ["http://a..b:9004", "http://" + "a" * 64 + ":1", "http://h:99999", "//", "http://[::x]:1"]
)
def test_a_url_that_cannot_be_dialled_is_a_peer_that_does_not_answer(url: str) -> None:
    async def run() -> None:
        async def answer(_: web.Request) -> web.Response:
            raise AssertionError

        async with answering(answer) as (transport, _):
            with pytest.raises(PeerError):
                await transport.hello(url)

    asyncio.run(run())


@pytest.mark.parametrize("error", [RecursionError, OverflowError, LookupError, UnicodeError])
def test_one_hello_that_fails_unexpectedly_takes_no_other_with_it(error: type[Exception]) -> None:
    class OneFails:
        async def hello(self, url: str, timeout_s: float) -> Hello:
            if url == "http://n1":
                raise error
            return decode_hello(json.dumps(FINE).encode())

    answers = asyncio.run(ask_all(cast("Peers", OneFails()), {"n1": "http://n1", "n2": "http://n2"}))
    assert answers["n1"] is None
    assert answers["n2"] is not None


@pytest.mark.parametrize(
    "text", ["", "xyz", "-1", "1 2", "1 -", "2 abc " + "f" * 33, "2 abc def 0", "9" * 5000, "2 0x1 -", "2 abc  -"]
)
def test_a_digest_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a digest"):
        parse_digest(text)
