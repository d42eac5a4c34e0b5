"""The load and its history, recorded inside the cluster. Runs in a pod of the Kvorum image (see recording.py).

It writes, compares, deletes and reads for as long as standard input is open, and watches what every node says of
itself. Standard input carries one command a line: ``mark NAME`` or ``stop``. Standard output carries one JSON document
a line: ``{"second": ...}`` while it runs, and after ``stop``, when every key that was written has been read back, the
operations, the leaders, and a summary.

Writes go through kvorum_client, with its retries. Reads are plain requests to one node, so that what each node answers,
a stale leader or a follower that lags, is what the history holds. Imports nothing that is not in the image.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from kvorum_client import Client, ClientError, CompareFailedError, OutcomeUnknownError

SHARED_KEYS = 5
WRITE_TIMEOUT_S = 8.0
READ_TIMEOUT_S = 4.0
PACE_S = 0.01
"""Between two calls of one client: the point is the history, not the throughput."""
WATCH_S = 0.2
READ_BACK_AT_ONCE = 8
READ_BACK_ATTEMPTS = 20
RECORD_FIELDS = ("revision", "create_revision", "mod_revision", "version")

Row = dict[str, Any]


def now() -> int:
    """Return microseconds of a monotonic clock."""
    return time.monotonic_ns() // 1000


class Recorder:
    """One run.

    Args:
        prefix: of every key, so that runs do not meet.
        endpoints: of every node, present or not.
        writers: how many clients write.
    """

    def __init__(self, prefix: str, endpoints: list[str], writers: int) -> None:
        self.prefix = prefix
        self.endpoints = endpoints
        self.writers = writers
        self.operations: list[Row] = []
        self.observations: dict[tuple[int, str], int] = {}  # (term, leader) -> when it was first seen
        self.hashes: dict[tuple[str, int], set[str]] = {}  # (cluster, applied index) -> state hashes
        self.marks: list[tuple[str, int]] = []
        self.own_keys: list[str] = []
        self.unread: list[str] = []
        self.acknowledged: list[int] = []
        self.stopping = asyncio.Event()
        self._values = itertools.count(1)

    async def run(self) -> None:
        """Record until told to stop, then read everything back and print it all."""
        timeout = aiohttp.ClientTimeout(total=READ_TIMEOUT_S, connect=1.0)
        connector = aiohttp.TCPConnector(ttl_dns_cache=1, limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._session:
            await self._run()

    async def _run(self) -> None:
        started = now()
        tasks = [self._writer(number) for number in range(self.writers)]
        tasks += [self._reader(endpoint) for endpoint in self.endpoints]
        tasks += [self._watch(endpoint) for endpoint in self.endpoints]
        tasks += [self._progress(), self._commands()]
        await asyncio.gather(*tasks)
        stopped = now()
        await self._read_back()
        for operation in self.operations:
            _print({"operation": operation})
        for (term, leader), at in sorted(self.observations.items()):
            _print({"leader": [term, leader, at]})
        for (cluster, index), hashes in sorted(self.hashes.items()):
            if len(hashes) > 1:
                _print({"diverged": [cluster, index, sorted(hashes)]})
        _print({"clusters": sorted({cluster for cluster, _ in self.hashes if cluster})})
        _print({"summary": self._summary(started, stopped)})

    def _summary(self, started: int, stopped: int) -> Row:
        times = [at for at in self.acknowledged if at <= stopped]
        gap, gap_at = max(((b - a, a) for a, b in itertools.pairwise([started, *times, stopped])), default=(0, 0))
        return {
            "started": started,
            "stopped": stopped,
            "acknowledged": len(times),
            "operations": len(self.operations),
            "gap_us": gap,
            "gap_at_us": gap_at - started,
            "marks": self.marks,
            "unread": self.unread,
        }

    # --- The load -----------------------------------------------------------------------------------------------

    async def _writer(self, number: int) -> None:
        async with Client(self.endpoints, timeout_s=WRITE_TIMEOUT_S) as client:
            for turn in itertools.count():
                if self.stopping.is_set():
                    return
                key = f"{self.prefix}/shared/{(turn + number) % SHARED_KEYS}"
                match turn % 5:
                    case 0 | 1:
                        own = f"{self.prefix}/own/{number}/{turn}"
                        self.own_keys.append(own)
                        await self._put(client, own)
                    case 2:
                        await self._put(client, key)
                    case 3:
                        await self._compare_and_swap(client, key)
                    case _ if turn % 25 == 4:
                        await self._delete(client, key)
                    case _:
                        await self._look_up(client, key)
                await asyncio.sleep(PACE_S)

    async def _reader(self, endpoint: str) -> None:
        """Read through one node only: what a stale leader or a lagging follower answers shows here."""
        for turn in itertools.count():
            if self.stopping.is_set():
                return
            answered = await self._get(endpoint, f"{self.prefix}/shared/{turn % SHARED_KEYS}")
            await asyncio.sleep(50 * PACE_S if answered is None else 5 * PACE_S)

    async def _put(self, client: Client, key: str, prev_revision: int | None = None) -> None:
        value = f"{self.prefix}-{next(self._values)}"
        row: Row = {"kind": "put", "key": key, "value": value}
        if prev_revision is not None:
            row["prev_revision"] = prev_revision

        async def call() -> Row:
            result = await client.put(key, value, prev_revision=prev_revision)
            self.acknowledged.append(now())
            return {name: getattr(result, name) for name in RECORD_FIELDS}

        await self._record(row, call)

    async def _compare_and_swap(self, client: Client, key: str) -> None:
        mod_revision = await self._look_up(client, key)
        if mod_revision is not None:
            await self._put(client, key, prev_revision=mod_revision)

    async def _look_up(self, client: Client, key: str) -> int | None:
        """Return the key's mod_revision as the client finds it, failing over; 0: no such key; None: no answer."""
        invoked = now()
        try:
            record = await client.get(key)
        except ClientError:
            return None
        if record is None:
            # The client does not say at which revision that was, so it is of no use to the history.
            return 0
        row: Row = {name: getattr(record, name) for name in RECORD_FIELDS}
        row.update(kind="get", key=key, value=record.value.decode(), invoked=invoked, completed=now(), outcome="ok")
        self.operations.append(row)
        return record.mod_revision

    async def _delete(self, client: Client, key: str) -> None:
        async def call() -> Row:
            result = await client.delete(key)
            self.acknowledged.append(now())
            return {"revision": result.revision, "deleted": result.deleted}

        await self._record({"kind": "delete", "key": key}, call)

    async def _get(self, endpoint: str, key: str) -> Row | None:
        """Read the key, linearizably, from this node alone. Return None when it did not answer."""

        async def call() -> Row:
            url = f"{endpoint}/v1/kv/{key}"
            headers = {"Accept": "application/json"}
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                answer = await response.json(content_type=None)
                if response.status == 404 and answer.get("code") == "not_found":
                    return {"revision": answer["revision"]}
                if response.status == 307:
                    raise aiohttp.ClientError("a node that was removed leads its clients to the leader")
                response.raise_for_status()
                return {name: answer[name] for name in ("value", *RECORD_FIELDS)}

        row: Row = {"kind": "get", "key": key}
        return row if await self._record(row, call) else None

    async def _record(self, row: Row, call: Callable[[], Awaitable[Row]]) -> bool:
        """Make the call and keep what its caller knows. Return whether there was a definite answer."""
        row["invoked"] = now()
        self.operations.append(row)
        try:
            row.update(await call())
        except CompareFailedError as error:
            row.update(compare_failed=True, mod_revision=error.mod_revision, revision=error.revision)
        except OutcomeUnknownError:
            row["outcome"] = "unknown"
            return False
        except (ClientError, aiohttp.ClientError, TimeoutError, OSError):
            # Neither a write nor a read took place. When that was known is of no interest: no time, no order.
            row.update(outcome="refused", completed=now())
            return False
        row.update(outcome="ok", completed=now())
        return True

    async def _read_back(self) -> None:
        """Read every key that was written once, linearizably: a lost write shows here at the latest."""
        keys = iter([*self.own_keys, *(f"{self.prefix}/shared/{number}" for number in range(SHARED_KEYS))])

        async def read(reader: int) -> None:
            for key in keys:
                for attempt in range(READ_BACK_ATTEMPTS):
                    endpoint = self.endpoints[(reader + attempt) % len(self.endpoints)]
                    if await self._get(endpoint, key) is not None:
                        break
                    await asyncio.sleep(50 * PACE_S)
                else:
                    self.unread.append(key)

        await asyncio.gather(*(read(reader) for reader in range(READ_BACK_AT_ONCE)))

    # --- What the nodes say -------------------------------------------------------------------------------------

    async def _watch(self, endpoint: str) -> None:
        async with Client([endpoint], timeout_s=1.0) as client:
            while not self.stopping.is_set():
                try:
                    status = await client.status(endpoint)
                except ClientError:
                    await asyncio.sleep(WATCH_S)
                    continue
                if status.state == "leader":
                    self.observations.setdefault((status.term, status.id), now())
                self.hashes.setdefault((status.cluster_id, status.applied_index), set()).add(status.state_hash)
                await asyncio.sleep(WATCH_S)

    # --- The outside --------------------------------------------------------------------------------------------

    async def _progress(self) -> None:
        while not self.stopping.is_set():
            last = self.acknowledged[-1] if self.acknowledged else 0
            _print({"second": {"acknowledged": len(self.acknowledged), "last": last, "now": now()}})
            await asyncio.sleep(0.25)

    async def _commands(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while line := (await reader.readline()).decode().strip():
                if line == "stop":
                    break
                self.marks.append((line.removeprefix("mark "), now()))
        finally:
            self.stopping.set()
            transport.close()


def _print(document: Row) -> None:
    sys.stdout.write(json.dumps(document, separators=(",", ":")) + "\n")
    sys.stdout.flush()


async def _status(endpoints: list[str]) -> None:
    timeout = aiohttp.ClientTimeout(total=2.0)

    async def ask(session: aiohttp.ClientSession, endpoint: str) -> Row | None:
        try:
            async with session.get(f"{endpoint}/v1/cluster") as response:
                answer: Row = await response.json()
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async with aiohttp.ClientSession(timeout=timeout) as session:
        _print(dict(zip(endpoints, await asyncio.gather(*(ask(session, url) for url in endpoints)), strict=True)))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--status", action="store_true", help="print what every node says of itself, and end")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--endpoints", required=True, help="URLs, separated by commas")
    parser.add_argument("--writers", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.status:
        asyncio.run(_status(arguments.endpoints.split(",")))
        return
    asyncio.run(Recorder(arguments.prefix, arguments.endpoints.split(","), arguments.writers).run())


if __name__ == "__main__":
    main()
