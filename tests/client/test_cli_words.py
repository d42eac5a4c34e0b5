"""The words of ``kv``: its errors name options and say what to do, and its exit statuses follow one table."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import msgspec
import pytest
from client.test_cli import Kv, run
from fronts.fake_node import CLUSTER, Server

from kvorum.errors import NoLeaderError
from kvorum.kv import limits
from kvorum.service.limits import HISTORY_VERSIONS_MAX, STALENESS_MS_MAX
from kvorum_client import Client, NodeStatus, cli, cli_arguments, cli_exit, cli_keys, leases
from kvorum_client.cli_output import size_text
from kvorum_client.condition import health_of, state_of

PAGE = Path(__file__).parents[2] / "docs/kv.md"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the last line of stderr of a command that is wrong usage."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# What is wrong, and what is meant.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("lock l1 sh -c x", "put -- before the COMMAND: kv lock l1 -- sh -c x"),
        ("lock --ttl 5 l1 ls -l", "put -- before the COMMAND: kv lock --ttl 5 l1 -- ls -l"),
        ("elect e v true", "put -- before the COMMAND: kv elect e v -- true"),
        ("lock l1 --tttl 5 -- true", "did you mean --ttl?"),
        ("lock l1 --tttl 5 true", "did you mean --ttl?"),
        ("elect e --listen v", "unrecognized arguments: v"),
        ("del -dash", "put -- before an argument that begins with -, as in: kv del -- -dash"),
        ("put k -v", "put -- before an argument that begins with -, as in: kv put -- k -v"),
        ("lock n --", "there is no COMMAND after --"),
        ("put -dash v", "put -- before an argument that begins with -, as in: kv put -- -dash"),
        ("get --prefx a", "did you mean --prefix?"),
        ("status -x", "unrecognized arguments: -x"),
        ("leader transfer n2", "no such command: 'transfer'; did you mean 'move'? (commands: show, move)"),
        ("leader", "the following arguments are required: COMMAND, one of: show, move"),
        ("gett k", "no such command: 'gett'; did you mean 'get'?"),
        ("finalize", "did you mean 'cluster finalize'?"),
        ("list", "did you mean 'ls'?"),
        ("frobnicate", "no such command: 'frobnicate' (commands: put, get,"),
    ],
)
def test_what_is_not_known_comes_with_what_is_meant(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in said(capsys, *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("lease grant 0", "argument TTL: must be a whole number of seconds from 1 to 9,000,000,000 (1 is taken as 2)"),
        ("lock l --delay 61 -- true", "argument --delay: must be a whole number of seconds from 0 to 60, not '61'"),
        ("lock l --ttl 0 -- true", "argument --ttl: must be a whole number of seconds from 1 to 9,000,000,000"),
        ("get k --revision 0", "argument --revision/--rev: must be a revision, a whole number from 1 to"),
        ("get --prefix k --limit 0", "argument --limit: must be a whole number of keys from 1 to"),
        ("watch k --from-revision 0", "argument --from-revision/--rev: must be a revision, a whole number from 1 to"),
        ("quota set 5", "argument SIZE: must be from 1MiB to"),
        ("--cluster-id xyz get k", "argument --cluster-id: 'xyz' is not the id of a cluster"),
        (f"get {'k' * 1025}", "argument KEY: has 1,025 bytes; a key has 1 to 1,024"),
    ],
)
def test_a_limit_is_told_in_the_words_of_the_command_line(
    arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in said(capsys, *arguments.split())


@pytest.mark.parametrize("command", ["get", "del", "watch"])
def test_a_range_that_contradicts_itself_is_told_in_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--prefix", "a", "--to", "b"]) == 2
    assert capsys.readouterr().err == "kv: give --prefix, or --from and --to, but not both\n"


def test_the_limits_of_the_command_are_those_of_the_cluster() -> None:
    assert (cli_arguments.KEY_BYTES_MAX, cli_keys.VALUE_BYTES_MAX) == (limits.KEY_BYTES_MAX, limits.VALUE_BYTES_MAX)
    assert cli_arguments.QUOTA_BYTES_MIN == limits.QUOTA_BYTES_MIN
    assert (leases.TTL_S_MAX, leases.LOCK_DELAY_S_MAX) == (limits.LEASE_TTL_S_MAX, limits.LEASE_DELAY_S_MAX)
    assert cli_arguments.STALENESS_MS_MAX == STALENESS_MS_MAX
    assert cli_arguments.HISTORY_VERSIONS_MAX == HISTORY_VERSIONS_MAX


def test_a_name_of_a_lock_may_be_as_long_as_the_cluster_takes(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.raise_feature_level()
        assert await kv("lock", "l" * cli_arguments.NAME_BYTES_MAX, "--", "true") == 0

    run(scenario)


def test_the_wrong_cluster_is_told_with_the_option_and_both_ids(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("--cluster-id", "d" * 32, "put", "k", "v") == 1
        told = capsys.readouterr().err
        assert f"--cluster-id names the cluster {'d' * 32}, and the nodes belong to {CLUSTER}; nothing was done" in told
        assert "Check --endpoints" in told
        assert "client" not in told

    run(scenario)


def test_a_warning_of_the_library_is_marked_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        status = Client.status

        async def warn(self: Client) -> NodeStatus:
            logging.getLogger("kvorum_client").warning("The cluster has no room for another client session")
            return await status(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Client, "status", warn)
            assert await kv("leader", "show") == 0
        assert capsys.readouterr().err == "kv: warning: the cluster has no room for another client session\n"

    run(scenario)


# Whether the cluster serves, and who says so.


def test_health_tells_a_cluster_that_serves_from_one_that_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        assert await kv("health") == 0, "another node is down"
        assert capsys.readouterr().err == "kv: warning: the cluster serves, but n3 is not ready\n"
        assert await kv("health", "--all") == 1
        server.node.ready = [server.node.ready[0]._replace(ok=False, detail="none is known")]
        capsys.readouterr()
        for options in ((), ("--all",)):
            assert await kv("health", *options) == 3
            assert capsys.readouterr().err == "kv: the cluster does not serve: no node is ready\n"

    run(scenario)


@pytest.mark.parametrize("command", [("status",), ("status", "-o", "json"), ("health",)])
def test_a_cluster_that_refuses_puts_says_why_and_what_to_do(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        status, facts = server.node.status, dict[str, object]()
        server.node.status = lambda: msgspec.structs.replace(status(), **facts)  # type: ignore[method-assign]

        async def told() -> str:
            assert await kv(*command) == 0
            return "".join(line for line in capsys.readouterr().err.splitlines() if "not ready" not in line)

        facts.update(caught_up=True, used_bytes=2 << 20, quota_bytes=1 << 20)
        assert await told() == ""
        facts.update(quota_exceeded=True)
        full = await told()
        assert full.startswith(
            "kv: warning: puts are refused: the data takes 2.0 MiB, and the quota is 1.0 MiB; delete "
        )
        assert "kv quota set SIZE" in full
        facts.update(disks_full="n1 and n2 have no room")
        assert (await told()).startswith(
            "kv: warning: puts are refused: n1 and n2 have no room; make room on the disks"
        )
        facts.update(leader_name=None, state="candidate")
        assert await kv(*command) in (0, 3)
        assert "puts are refused" not in capsys.readouterr().err, "a node without a leader does not know"

    run(scenario)


def test_what_no_quorum_confirms_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        for command in (("quota", "get"), ("member", "list", "-o", "json")):
            assert await kv(*command) == 0
            assert capsys.readouterr().err == ""
        status = server.node.status
        server.node.status = lambda: msgspec.structs.replace(status(), caught_up=False)  # type: ignore[method-assign]
        for command in (("quota", "get"), ("quota", "get", "-o", "json"), ("member", "list")):
            assert await kv(*command) == 0
            assert capsys.readouterr().err.startswith("kv: warning: no quorum confirms this: it is what n1 has applied")

    run(scenario)


@pytest.mark.parametrize("command", [("cluster", "finalize"), ("compact", "--keep", "1000")])
def test_a_change_that_may_be_done_already_asks_a_quorum_all_the_same(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.raise_feature_level()
        server.node.error = NoLeaderError("no leader is known")

        async def finalize(timeout_ms: int) -> int:
            return 6

        server.node.finalize = finalize  # type: ignore[method-assign]
        assert await kv(*command, "--timeout", "0.9") == 3
        assert "there is no leader" in capsys.readouterr().err

    run(scenario)


def node_status(**fields: object) -> NodeStatus:
    return NodeStatus(
        **{
            "cluster_id": "c",
            "name": "n1",
            "id": "n1@0",
            "version": "1",
            "state": "follower",
            "term": 3,
            "leader_name": "n2",
            "leader_client_url": "",
            "commit_index": 5,
            "applied_index": 5,
            "last_index": 5,
            "revision": 5,
            "state_hash": "",
            "keys": 1,
            "members": (),
            "caught_up": True,
            **fields,
        }  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("fields", "state", "health"),
    [
        ({}, "follower", "ok"),
        ({"caught_up": False}, "follower", "behind"),
        ({"caught_up": False, "leader_name": None, "state": "pre_candidate"}, "pre_candidate", "no leader"),
        ({"caught_up": False, "leader_name": None, "state": "joining"}, "joining", "joining"),
        ({"caught_up": True, "state": "leader", "distrusted": "set back"}, "distrusted", "set back"),
        ({"caught_up": True, "quarantined": "differs"}, "quarantined", "differs"),
        ({"quota_exceeded": True}, "follower", "the data takes more than the quota"),
    ],
)
def test_a_row_of_the_status_says_one_thing(fields: dict[str, object], state: str, health: str) -> None:
    status = node_status(**fields)
    assert (state_of(status), health_of(status)) == (state, health)


def test_a_node_that_takes_no_part_shows_no_leader_and_no_lag(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        status, members = server.node.status, server.node.members
        members["n1"] = msgspec.structs.replace(members["n1"], lag=0)
        server.node.status = lambda: msgspec.structs.replace(status(), distrusted="its disk was set back")  # type: ignore[method-assign]
        assert await kv("status") == 1
        heading, row, *_ = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
        cells = dict(zip(heading, row, strict=True))
        assert (cells["STATE"], cells["LEADER"], cells["LAG"]) == ("distrusted", "none", "-")
        assert cells["HEALTH"] == "its disk was set back"

    run(scenario)


def test_a_range_that_may_be_stale_is_not_staler_than_it_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.raise_feature_level()
        server.node.staleness = 5_000
        for count, options in enumerate(((), ("--count-only",))):
            assert await kv("get", "--prefix", "", *options, "--max-staleness-ms", "6000") == 0
            assert server.node.barriers == count
            assert await kv("get", "--prefix", "", *options, "--max-staleness-ms", "4000") == 0
            assert server.node.barriers == count + 1, "a quorum was asked how current the state is"

    run(scenario)


# Numbers and statuses.


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1364, "1.3 KiB"), (8_425_503_402, "7.8 GiB"), (1 << 50, "1024.0 TiB")],
)
def test_bytes_are_shown_in_units(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


def test_the_table_of_exit_statuses_is_that_of_the_page_and_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE))
    assert rows == {
        str(status): meaning.replace("--timeout", "`--timeout`") for status, meaning in cli_exit.MEANINGS.items()
    }
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    helped = " ".join(capsys.readouterr().out.split())
    assert all(f"{status} {meaning}" in helped for status, meaning in cli_exit.MEANINGS.items())


def test_a_range_that_matches_nothing_is_success_and_a_key_that_is_not_there_is_not() -> None:
    async def scenario(server: Server, kv: Kv) -> None:
        server.node.raise_feature_level()
        for command in ("get", "del"):
            assert await kv(command, "--prefix", "none/") == 0
            assert await kv(command, "none") == 1
        assert await kv("ls", "none/") == 0
        assert await kv("history", "none") == 1
        assert await kv("locks") == 0
        assert await kv("locks", "none") == 1
        assert await kv("lease", "show", "1") == 1

    run(scenario)
