"""docs/api.md: the bodies of its examples are accepted, and do what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fronts.fake_node import FakeNode, Server, run

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
BLOCKS = [block.encode() for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


def test_the_examples_of_transactions_and_batches_are_done() -> None:
    transaction, batch = BLOCKS[:2]
    node = FakeNode()
    node.raise_feature_level()

    async def scenario(http: Server) -> None:
        first = await http("POST", "/v1/txn", transaction)
        assert (first.status, first.json["succeeded"]) == (200, True)
        second = await http("POST", "/v1/txn", transaction)
        assert (second.status, second.json["succeeded"]) == (200, False)
        assert second.json["results"][0]["range"]["records"][0]["value"] == "me"
        for replayed in (False, True):
            answer = json.loads((await http("POST", "/v1/batch", batch)).body)
            assert [each["status"] for each in answer["results"]] == [200, 200, 200]
            assert answer["results"][0].get("replayed", False) == replayed

    run(scenario, node)
