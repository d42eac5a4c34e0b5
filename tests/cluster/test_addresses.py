"""Where there is no API server to ask: no cluster begins while anybody behind the headless Service may hold one."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest

from kvorum.cluster import addresses
from kvorum.cluster.addresses import AddressGuard, obstacle_behind
from kvorum.cluster.record import BootstrapRefusedError
from kvorum.config import Config
from kvorum.errors import PeerError
from kvorum.resolver import Resolver, is_own_address
from kvorum.transport import Hello

SERVICE = "kv-headless.prod.svc.cluster.local"
NODE = f"kv-0@{'1' * 16}"
NAMES = ("kv-0", "kv-1")


def hello(name: str, **fields: object) -> Hello:
    url = f"http://{name}.{SERVICE}:9001"
    return msgspec.structs.replace(Hello(name, "1" * 16, "", NAMES, "", url, url, empty=True), **fields)


EMPTY: dict[str, Hello | None] = {"10.0.0.1": hello("kv-0"), "10.0.0.2": hello("kv-1")}


@pytest.mark.parametrize(
    ("more", "because"),
    [
        ({"10.0.0.3": None}, "10.0.0.3, does not answer"),
        ({"10.0.0.3": hello("kv-2", cluster_id="c1", empty=False)}, "kv-2, at 10.0.0.3 behind"),
        ({"10.0.0.3": hello("kv-2", cluster_id="c1")}, "is already in cluster c1"),
        ({"10.0.0.3": hello("kv-2", empty=False)}, "is already in cluster unknown"),
        ({"10.0.0.1": None}, "10.0.0.1, does not answer"),
        ({"10.0.0.2": hello("kv-2")}, "kv-1 answered, and"),
    ],
)
def test_a_cluster_does_not_begin_while_behind_the_service(more: dict[str, Hello | None], because: str) -> None:
    reason = obstacle_behind(SERVICE, EMPTY | more, (), NODE, NAMES)

    assert reason is not None
    assert because in reason


def test_a_cluster_begins_when_everybody_behind_the_service_is_empty() -> None:
    assert obstacle_behind(SERVICE, EMPTY, (), NODE, NAMES) is None
    assert obstacle_behind(SERVICE, EMPTY | {"10.0.0.3": hello("kv-2")}, (), NODE, NAMES) is None


def test_a_node_that_cannot_reach_its_own_address_begins_all_the_same() -> None:
    hellos: dict[str, Hello | None] = {"10.0.0.1": None, "10.0.0.2": hello("kv-1")}

    assert obstacle_behind(SERVICE, hellos, ("10.0.0.1",), NODE, NAMES) is None
    assert obstacle_behind(SERVICE, hellos, ("10.0.0.9",), NODE, NAMES) is not None


class FakePeers:
    def __init__(self, hellos: dict[str, Hello | None]) -> None:
        self._hellos = {f"http://{address}:9001": found for address, found in hellos.items()}

    async def hello(self, url: str, timeout_s: float = 2.0) -> Hello:
        found = self._hellos.get(url)
        if found is None:
            raise PeerError(url)
        return found


def permit(hellos: dict[str, Hello | None], error: OSError | None = None) -> str:
    config = Config(name="kv-0", discovery_dns=SERVICE, replicas=2)

    async def found(name: str) -> list[str]:
        assert name == SERVICE
        if error is not None:
            raise error
        return list(hellos)

    peers: Any = FakePeers(hellos)
    return asyncio.run(AddressGuard(config, peers, found, lambda address: False).permit(NODE, NAMES))


def test_every_address_behind_the_service_is_asked() -> None:
    assert len(permit(EMPTY)) == 32
    with pytest.raises(BootstrapRefusedError, match=r"10\.0\.0\.3, does not answer"):
        permit(EMPTY | {"10.0.0.3": None})


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "unknown name"), TimeoutError("silent")])
def test_nothing_begins_while_the_addresses_are_unknown(error: OSError) -> None:
    with pytest.raises(BootstrapRefusedError, match="the addresses behind"):
        permit(EMPTY, error)


def test_a_name_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "RESOLVE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(Resolver, "look_up", lambda self, name: asyncio.get_running_loop().create_future())
    config, peers = Config(name="kv-0", discovery_dns=SERVICE, replicas=2), FakePeers({})

    with pytest.raises(BootstrapRefusedError, match="the name server does not answer"):
        asyncio.run(AddressGuard(config, peers).permit(NODE, NAMES))  # type: ignore[arg-type]


def test_the_addresses_are_those_of_the_name() -> None:
    config = Config(name="kv-0", discovery_dns="localhost", replicas=1)
    peers: Any = FakePeers({"127.0.0.1": hello("kv-0"), "[::1]": hello("kv-0")})

    assert len(asyncio.run(AddressGuard(config, peers).permit(NODE, ("kv-0",)))) == 32


def test_an_address_of_this_machine_is_told_from_others() -> None:
    assert is_own_address("127.0.0.1")
    assert not is_own_address("192.0.2.1")
