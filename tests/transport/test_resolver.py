"""Names and addresses: what happens while a name server fails, lies dead or denies a name."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import DEADLINE_S, until

from kvorum import resolver as resolver_module
from kvorum.resolver import Resolver, addresses_to_bind
from kvorum.transport import addresses as addresses_module
from kvorum.transport.addresses import Addresses

KNOWN = {"n2.test": "192.0.2.7"}


def failing(code: int) -> Callable[..., Any]:
    def getaddrinfo(*_: object, **__: object) -> Any:
        raise socket.gaierror(code, "Temporary failure in name resolution")

    return getaddrinfo


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A name server that does not answer, until the test is over."""
    over = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> Any:
        over.wait(DEADLINE_S)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    over.set()


async def resolved(host: str) -> str:
    (found,) = await Resolver(KNOWN.get).resolve(host, 9001)
    assert (found["hostname"], found["port"]) == (host, 9001)
    return found["host"]


def test_a_name_is_resolved_as_long_as_the_name_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.9", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    assert asyncio.run(resolved("n2.test")) == "192.0.2.9"


def test_the_last_known_address_is_used_while_the_name_server_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", failing(socket.EAI_AGAIN))
    assert asyncio.run(resolved("n2.test")) == "192.0.2.7"
    with pytest.raises(socket.gaierror, match="Temporary failure"):
        asyncio.run(resolved("n3.test"))


def test_a_name_that_does_not_exist_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name server answers, and its answer is what the log should say."""
    monkeypatch.setattr(socket, "getaddrinfo", failing(socket.EAI_NONAME))
    with pytest.raises(socket.gaierror):
        asyncio.run(resolved("n2.test"))


@pytest.mark.usefixtures("silent")
def test_the_last_known_address_is_used_while_the_name_server_is_silent() -> None:
    assert asyncio.run(asyncio.wait_for(resolved("n2.test"), DEADLINE_S / 2)) == "192.0.2.7"


@pytest.mark.usefixtures("silent")
def test_who_waits_for_a_name_can_be_cancelled_and_the_end_does_not_wait() -> None:
    """The fixture keeps the thread in its call until this test has ended."""

    async def run() -> None:
        waiting = asyncio.create_task(resolved("n3.test"))
        binding = asyncio.create_task(addresses_to_bind("n3.test"))
        await until("two look-ups", lambda: _lookups() == 2)
        waiting.cancel()
        binding.cancel()
        await asyncio.gather(waiting, binding, return_exceptions=True)
        assert waiting.cancelled()
        assert binding.cancelled()

    asyncio.run(run())
    assert _lookups() == 2


def _lookups() -> int:
    return sum(thread.name == "look-up" for thread in threading.enumerate())


@pytest.mark.usefixtures("silent")
def test_the_number_of_look_ups_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "LOOKUPS_MAX", 2)

    async def run() -> None:
        resolver = Resolver()
        first = resolver.look_up("a.test")
        assert resolver.look_up("a.test") is first
        resolver.look_up("b.test")
        with pytest.raises(OSError, match="too many"):
            await resolver.look_up("c.test")

    asyncio.run(run())


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1"])
def test_an_address_to_bind_is_not_looked_up(host: str) -> None:
    assert asyncio.run(addresses_to_bind(host)) == [host]


def test_addresses_survive_a_restart_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses_module, "NAMES_MAX", 3)

    async def run() -> None:
        addresses = Addresses(tmp_path / "addresses")
        for number in range(5):
            addresses.remember(f"n{number}.test", f"192.0.2.{number}")
        addresses.remember("192.0.2.1", "192.0.2.1")
        addresses.remember("n9.test", "no address")
        await addresses.close()

    asyncio.run(run())
    addresses = Addresses(tmp_path / "addresses")
    addresses.load()
    found = [addresses.get(f"n{number}.test") for number in range(5)]
    assert found == [None, None, "192.0.2.2", "192.0.2.3", "192.0.2.4"]
    assert addresses.get("192.0.2.1") is None
    assert addresses.get("n9.test") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"n2.test": 7}', b'{"n2.test": "http://elsewhere"}', b"[" * 1000, b"\xff"]
)
def test_a_damaged_file_of_addresses_is_as_good_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "addresses").write_bytes(content)
    addresses = Addresses(tmp_path / "addresses")
    addresses.load()
    assert addresses.get("n2.test") is None
    assert "cannot read" in caplog.text
