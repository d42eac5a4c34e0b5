"""Bodies whose text is no text."""

from __future__ import annotations

import asyncio

from fronts.fake_node import serving


def test_json_that_is_not_utf8_is_the_callers_mistake() -> None:
    """Msgspec raises UnicodeDecodeError then, which is no MsgspecError."""

    async def main() -> None:
        async with serving() as http:
            answer = await http("POST", "/v1/cluster/members", b'{"name":"\xff\xfe","peer_url":"http://x"}')
            assert answer.status == 400
            assert b"invalid_request" in answer.body

    asyncio.run(main())
