"""Transactions, batches and deletes of ranges by the Python client, and ``kv txn`` and ``kv del``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from fronts.fake_node import CLUSTER, FakeNode, serving

from kvorum.kv.commands import ClientCommand, Result, Txn
from kvorum.kv.limits import TXN_KEYS_MAX
from kvorum_client import (
    Client,
    CreateRevision,
    Delete,
    DeleteDone,
    FutureRevisionError,
    Get,
    GetDone,
    InvalidArgumentError,
    ModRevision,
    OutcomeUnknownError,
    Put,
    PutDone,
    Record,
    RefusedError,
    SyncClient,
    TxnDone,
    TxnResult,
    UnavailableError,
    Value,
    Version,
)
from kvorum_client.cli import main
from kvorum_client.cli_txn import parse_transaction
from kvorum_client.transactions import Condition, Keys


def new_node() -> FakeNode:
    """Return a node at the highest feature level, at revision 1."""
    node = FakeNode()
    node.raise_feature_level()
    return node


def run(scenario: Callable[[Client, FakeNode], Awaitable[None]], node: FakeNode | None = None) -> None:
    """Run the scenario with a client of its own."""

    async def main() -> None:
        async with (
            asyncio.timeout(30),
            serving(node or new_node()) as http,
            Client([http.url], timeout_s=5, cluster_id=CLUSTER) as client,
        ):
            await scenario(client, http.node)

    asyncio.run(main())


def lose_answers(node: FakeNode, count: int) -> None:
    """Apply the next writes, and answer that nobody knows."""
    propose = node.propose
    left = [count]

    async def lossy(command: ClientCommand, timeout_ms: int, address: str = "", **_: object) -> Result:
        result = await propose(command, timeout_ms, address)
        if left[0] > 0:
            left[0] -= 1
            from kvorum.errors import OutcomeUnknownError as Unknown

            raise Unknown("lost")
        return result

    node.propose = lossy  # type: ignore[method-assign]


# --- Transactions -------------------------------------------------------------------------------------------------


def test_a_transaction_is_written_down_and_done() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        await kv.txn().then(Put("a", "1"), Put(b"\xff", b"\xfe")).commit()
        result = await (
            kv.txn()
            .if_(Value("a") == "1", Version("b") == 0, ModRevision(prefix="a") < 3, CreateRevision(start="a") != 9)
            .then(Put("a", "2", prev_value=True), Get("a"), Delete(b"\xff", prev_values=True))
            .then(kv.txn().if_(Version("a") > 5).otherwise(Get(prefix="", keys_only=True, descending=True, limit=1)))
            .otherwise(Get("a"))
            .commit()
        )
        before = Record(b"a", b"1", 2, 2, 1, 3)
        now = Record(b"a", b"2", 2, 3, 2, 3)
        assert result == TxnResult(
            3,
            True,
            1,
            (
                PutDone(2, 3, 2, before),
                GetDone(1, False, (now,)),
                DeleteDone(1, (Record(b"\xff", b"\xfe", 2, 2, 1, 3),)),
                TxnDone(False, (GetDone(1, False, (Record(b"a", b"", 2, 3, 2, 3),)),)),
            ),
        )
        failed = await kv.txn().if_(Value("a") == b"1").then(Put("a", "3")).otherwise(Get("a")).commit()
        assert (failed.succeeded, failed.results) == (False, (GetDone(1, False, (now,)),))
        kept = await kv.txn().then(Put("a", prev_value=True), Get(end="b", count_only=True)).commit()
        assert kept.results == (PutDone(2, 4, 3, Record(b"a", b"2", 2, 3, 2, 4)), GetDone(1, False, ()))

    run(scenario)


def test_a_builder_is_not_changed_by_what_is_added() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        base = kv.txn().then(Put("a", "1"))
        base.then(Put("b", "1"))
        assert len((await base.commit()).results or ()) == 1

    run(scenario)


def test_a_transaction_whose_answer_was_lost_is_done_once() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        await kv.put("a", "1")
        lose_answers(node, 2)
        result = await kv.txn().then(Delete(prefix="a", prev_values=True), Put("b", "1")).commit()
        assert result == TxnResult(3, True, 1, None)
        assert result.is_replayed
        assert len([each for each in node.proposed if isinstance(each, Txn)]) == 3
        assert node.store.revision == 3
        lose_answers(node, 1)
        assert (await kv.delete_range(prefix="b")).deleted == 1

    run(scenario)


def test_one_that_only_reads_takes_no_place_in_a_session() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        for _ in range(300):
            await kv.txn().if_(Version("a") == 0).then(Get("a"), kv.txn().then(Get("b"))).commit()
        await kv.txn().then(Put("a", "1")).commit()
        [command] = node.proposed
        assert isinstance(command, Txn)
        assert command.sequence == 1

    run(scenario)


def test_what_the_cluster_refuses_is_an_error() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        with pytest.raises(FutureRevisionError):
            await kv.txn().then(Put("a", "1"), Get("a", revision=9)).commit()
        with pytest.raises(RefusedError) as refused:
            await kv.txn().then(Put("a")).commit()
        assert (refused.value.status, refused.value.code) == (404, "key_not_found")
        with pytest.raises(RefusedError, match=r"then\[0\] and then\[1\]"):
            await kv.txn().then(Put("a", "1"), Delete("a")).commit()

    run(scenario)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda kv: kv.txn().if_(True),
        lambda kv: kv.txn().if_(Version("a") == "1"),
        lambda kv: kv.txn().if_(Version("a") == 2**63),
        lambda kv: kv.txn().if_(Value("a") == 1),
        lambda kv: kv.txn().if_(Value("a") == None),  # noqa: E711
        lambda kv: kv.txn().if_(Value() == "1"),
        lambda kv: kv.txn().if_(Value("a", prefix="b") == "1"),
        lambda kv: kv.txn().then("put"),
        lambda kv: kv.txn().then(Put("", "1")),
        lambda kv: kv.txn().then(Put("a", cast("str", 1))),
        lambda kv: kv.txn().then(Delete()),
        lambda kv: kv.txn().then(Delete("a", end="b")),
        lambda kv: kv.txn().then(Delete(end="")),
        lambda kv: kv.txn().then(Get("a", limit=-1)),
        lambda kv: kv.txn().otherwise(Get("a", revision=cast("int", "1"))),
    ],
)
def test_what_cannot_be_meant_is_found_before_anything_is_sent(wrong: Callable[[Client], Any]) -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        with pytest.raises(InvalidArgumentError):
            wrong(kv)
        assert node.barriers == 0

    run(scenario)


def test_the_synchronous_twin_does_the_same() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        def work() -> None:
            with SyncClient(kv.endpoints, cluster_id=CLUSTER) as sync:
                assert sync.txn().if_(Version("a") == 0).then(Put("a", "1"), Put("b", "1")).commit().succeeded
                assert sync.txn().then(sync.txn().then(Get("a"))).commit().revision == 2
                assert sync.batch(Get("a", count_only=True)) == (GetDone(1, False, ()),)
                assert sync.delete_range(start="a", end="c").deleted == 2

        await asyncio.to_thread(work)

    run(scenario)


# --- Batches ------------------------------------------------------------------------------------------------------


def test_a_batch_does_each_operation_by_itself() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        results = await kv.batch(
            Get("a"),
            Put("a", "1"),
            Put("gone"),
            Put("b", "2", prev_value=True),
            Delete("x"),
            kv.txn().if_(Version("a") == 1).then(Put("c", "3")),
        )
        assert results[0] == GetDone(1, False, (Record(b"a", b"1", 2, 2, 1, 4),))
        assert results[1] == PutDone(2, 2, 1)
        assert isinstance(results[2], RefusedError)
        assert results[2].code == "key_not_found"
        assert results[3:] == (PutDone(3, 3, 1), DeleteDone(0), TxnDone(True, (PutDone(4, 4, 1),)))
        # The first change opened a session, and the rest went in one request.
        assert [getattr(each, "sequence", 0) for each in node.proposed] == [1, 2, 3, 4, 5]
        again = await kv.batch(Put("a", "2"), Get("a"))
        assert again[0] == PutDone(2, 5, 2)

    run(scenario)


def test_a_batch_whose_answer_was_lost_is_done_once() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        await kv.put("warm", "up")
        exchange = kv._transport.exchange
        lost: list[str] = []

        async def lossy(base: str, method: str, target: str, *rest: Any) -> Any:
            answer = await exchange(base, method, target, *rest)
            if target.startswith("/v1/batch") and len(lost) < 2:
                from kvorum_client.transport import NoAnswerError

                lost.append(target)
                raise NoAnswerError("lost")
            return answer

        kv._transport.exchange = lossy  # type: ignore[assignment, method-assign]
        results = await kv.batch(Put("a", "1", prev_value=True), Delete("warm"), Put("gone"))
        assert len(lost) == 2
        assert node.store.revision == 4
        assert results[:2] == (PutDone(3, 3, 1), TxnResult(4, True, 1, None))
        # The earlier attempt of this one may still be on its way.
        assert isinstance(results[2], OutcomeUnknownError)
        assert await kv.batch(Put("a", "2")) == (PutDone(3, 5, 2),)

    run(scenario)


def test_an_operation_of_a_batch_that_nobody_knows_of_is_told_apart() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        await kv.put("warm", "up")
        lose_answers(node, 1)
        results = await kv.batch(Put("a", "1"), Put("b", "1"))
        assert isinstance(results[0], OutcomeUnknownError)
        assert results[1] == PutDone(4, 4, 1)

    run(scenario)


def test_a_batch_finds_another_session_when_its_own_is_gone() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        await kv.put("warm", "up")
        node.store._sessions = type(node.store._sessions)()
        assert await kv.batch(Put("a", "1"), Put("b", "1")) == (PutDone(3, 3, 1), PutDone(4, 4, 1))

    run(scenario)


def test_a_batch_that_is_refused_whole_is_an_error() -> None:
    async def scenario(kv: Client, node: FakeNode) -> None:
        for operations in ((), [Put("a", "1")] * 129):
            with pytest.raises(InvalidArgumentError, match="1 to 128"):
                await kv.batch(*operations)
        node.leads, node.leader = False, None
        with pytest.raises(UnavailableError):
            await kv.batch(Put("a", "1"), timeout_s=0.2)

    run(scenario)


# --- The command line ---------------------------------------------------------------------------------------------


def kv(node: FakeNode, *arguments: str) -> int:
    """Run ``kv`` against this node; return its exit status."""

    async def scenario() -> int:
        async with asyncio.timeout(30), serving(node) as http:
            return await asyncio.to_thread(main, [*arguments, "--endpoints", http.url])

    return asyncio.run(scenario())


LINES = """
# a comment
if value a = 'one word'   # and another
if version --prefix p/ > 0
if create_revision a != -1
then put a 2 --prev-value
then put -- -b --c
then put k --ignore-value
then delete --prefix tmp/ --prev-values
then delete x
else get --from a --to b --limit 3 --keys-only --descending
else get a --revision 7
else get --prefix '' --count-only
"""


def test_the_lines_of_a_transaction_are_what_they_say() -> None:
    parsed = parse_transaction(LINES.encode(), "stdin")

    assert parsed.compare == tuple(
        each.body()
        for each in (
            Condition(Keys("a"), "value", "=", "one word"),
            Condition(Keys(prefix="p/"), "version", ">", 0),
            Condition(Keys("a"), "create_revision", "!=", -1),
        )
    )
    assert parsed.then == tuple(
        each.body()
        for each in (
            Put("a", "2", True),
            Put("-b", "--c"),
            Put("k"),
            Delete(prefix="tmp/", prev_values=True),
            Delete("x"),
        )
    )
    assert parsed.otherwise == tuple(
        each.body()
        for each in (
            Get(start="a", end="b", limit=3, keys_only=True, descending=True),
            Get("a", revision=7),
            Get(prefix="", count_only=True),
        )
    )


def test_an_empty_start_is_the_first_key_as_in_ranges() -> None:
    assert Delete(start="").body() == Delete(start=b"\0").body()
    assert parse_transaction(b"then get --from '' --to b", "stdin").then == (Get(start=b"\0", end="b").body(),)


@pytest.mark.parametrize(
    ("line", "operation"),
    [
        ("delete --prefix tmp/#1", Delete(prefix="tmp/#1")),
        ("put url http://x/#frag", Put("url", "http://x/#frag")),
        ("put a b# # it's a comment", Put("a", "b#")),
        ("put a '# b' #don't", Put("a", "# b")),
        ("put a '' \t#", Put("a", "")),
        ("put a b\r", Put("a", "b")),
        ("put a 'b\u2028\u0085\f\v c'", Put("a", "b\u2028\u0085\f\v c")),
        ("put a --prev-value 2", Put("a", "2", True)),
    ],
)
def test_a_word_of_a_line_is_what_a_shell_would_read(line: str, operation: Put | Delete) -> None:
    parsed = parse_transaction(f"# first\nthen {line}\n#".encode(), "stdin")

    assert parsed.then == (operation.body(),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no transaction"),
        ("# nothing", "has no transaction"),
        ("do put a 1", 'line 1: a line begins with "if"'),
        ("\nthen put a", "line 2: put takes a value"),
        ("then put a 1 --ignore-value", "put takes a value"),
        ("then put a 1 2", "line 1: unrecognized arguments: 2"),
        ("then put", "line 1: the following arguments are required: key"),
        ("then swap a", "line 1: an operation is put, delete or get"),
        ("then", "line 1: an operation is"),
        ("then delete", "line 1: say which keys"),
        ("then get a --prefix b", "line 1: say which keys"),
        ("then put 'a", "line 1: No closing quotation"),
        ("if value a", "line 1: a condition is"),
        ("if value a == 1", "line 1: a condition is"),
        ("if size a = 1", "line 1: argument target"),
        ("if version a = one", "line 1: 'one' is not a whole number"),
        ("if version --prefix a b = 1", "line 1: a condition is"),
        ('{"then": [{"put": {"key": 1}}]}', "`$.then[0].put.key`"),
        ('{"then": [', "stdin: "),
    ],
)
def test_a_line_that_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        parse_transaction(text.encode(), "stdin")
    assert message in str(error.value)


def test_kv_txn_reads_a_file_and_prints_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = new_node()
    path = tmp_path / "txn"
    path.write_text("if version lock = 0\nthen put lock me\nthen get --prefix ''\nelse put lock you --prev-value")

    assert kv(node, "txn", str(path)) == 0
    assert capsys.readouterr().out == (
        '"then" was done; the cluster is at revision 2\nput: version 1, at revision 2\nget: 1 keys\n  lock = me\n'
    )
    assert kv(node, "txn", str(path)) == 1
    assert capsys.readouterr().out == (
        '"else" was done; the cluster is at revision 3\nput: version 2, at revision 3\n  before: lock = me\n'
    )
    path.write_text('{"then": [{"delete": {"key": "lock", "prev_values": true}}, {"txn": {"then": []}}]}')
    assert kv(node, "txn", str(path), "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "revision": 4,
        "succeeded": True,
        "deleted": 1,
        "results": [
            {
                "delete": {
                    "deleted": 1,
                    "previous": [
                        {"key": "lock", "value": "you", "create_revision": 2, "mod_revision": 3, "version": 2}
                    ],
                }
            },
            {"txn": {"succeeded": True, "results": []}},
        ],
    }
    assert kv(node, "txn", str(tmp_path / "none")) == 2
    path.write_text("then put")
    assert kv(node, "txn", str(path)) == 2
    assert "line 1" in capsys.readouterr().err


def test_kv_del_counts_and_deletes_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    node = new_node()
    for key in (b"a1", b"a2", b"b1", b"c"):
        node.store.set_record(key, b"", 2, None)

    def said(*arguments: str) -> tuple[int, str]:
        status = kv(node, "del", *arguments)
        return status, capsys.readouterr().out

    assert said("--prefix", "a", "--dry-run") == (0, "2 keys would be deleted\n")
    assert said("--prefix", "a") == (0, "2 keys deleted\n")
    assert said("--prefix", "a") == (1, "0 keys deleted\n")
    assert said("--from", "b", "--to", "c", "-o", "json") == (0, '{\n  "deleted": 1\n}\n')
    assert said("c")[0] == 0
    assert len(node.store) == 0
    wrong: Sequence[tuple[str, ...]] = (
        (),
        ("a", "--prefix", "b"),
        ("--prefix", "a", "--to", "b"),
        ("a", "--dry-run"),
        ("--prefix", "a", "--prev-revision", "3"),
    )
    for arguments in wrong:
        assert said(*arguments)[0] == 2


def test_kv_del_deletes_many_keys_in_pages_and_tells_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    node = new_node()
    count = TXN_KEYS_MAX * 2 + 5
    for number in range(count):
        node.store.set_record(b"k%06d" % number, b"", 2, None)
    node.store.set_record(b"l", b"", 2, None)

    assert kv(node, "del", "--prefix", "k") == 0
    output = capsys.readouterr()
    assert output.out == f"{count} keys deleted\n"
    assert (
        output.err == f"kv: 10000 keys deleted so far\nkv: 20000 keys deleted so far\nkv: {count} keys deleted so far\n"
    )
    assert len(node.store) == 1


def test_kv_del_takes_smaller_pages_of_long_keys(capsys: pytest.CaptureFixture[str]) -> None:
    node = new_node()
    count = TXN_KEYS_MAX + 1
    for number in range(count):
        node.store.set_record(b"k%06d" % number + b"." * 500, b"", 2, None)

    assert kv(node, "del", "--prefix", "k") == 0
    assert capsys.readouterr().out == f"{count} keys deleted\n"
    assert len(node.store) == 0
