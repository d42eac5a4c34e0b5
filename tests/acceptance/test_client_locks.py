"""The client's leases, locks and elections on real processes: nodes are killed, and holders stand still."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.processes import Cluster
from waiting import eventually, until

from kvorum_client import Client, Lease, SyncClient, leases

WORKERS = 5
TURNS = 3
COUNT_UP = """
set -e
mkdir {folder}/inside  # Fails if another one is there.
echo $KVORUM_LOCK_TOKEN >> {folder}/tokens
sleep 0.05
rmdir {folder}/inside
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        with SyncClient(list(cluster.addresses.values()), timeout_s=10) as kv:
            eventually("the feature level is raised", lambda: kv.status().feature_level >= 5)
        yield cluster


def spawn(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    """Start `kv` with all nodes as endpoints."""
    endpoints = ",".join(cluster.addresses.values())
    return subprocess.Popen(
        [sys.executable, "-m", "kvorum_client.cli", "--endpoints", endpoints, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


async def kill_the_leader(cluster: Cluster) -> str:
    leader = await asyncio.to_thread(cluster.leader)
    cluster.kill(leader)
    await asyncio.to_thread(cluster.leader, cluster.others(leader))
    return leader


async def renewed(lease: Lease) -> None:
    """Wait for the next renewal."""
    before = lease._renewed_at
    await until("renewed", lambda: lease._renewed_at > before)


def test_a_lease_outlives_its_leaders_and_is_over_when_nobody_renews_it(cluster: Cluster) -> None:
    async def scenario() -> None:
        addresses = list(cluster.addresses.values())
        async with Client(addresses, timeout_s=20) as kv:
            async with kv.lease(6) as lease:
                await kv.put("k", "v", lease=lease)
                for _ in range(2):
                    killed = await kill_the_leader(cluster)
                    await renewed(lease)
                    assert lease.is_alive
                    cluster.start(killed)
                    await asyncio.to_thread(cluster.settled)
                record = await kv.get("k")
                assert record is not None and record.lease == lease.id
            assert await kv.get("k") is None
            left = await kv.grant_lease(2)
            await kv.put("left", "v", lease=left.id)

            async def is_gone() -> bool:
                return await kv.get("left") is None

            await until("the lease that nobody renews is over", is_gone)

    asyncio.run(scenario())


def test_a_lease_is_lost_in_time_when_the_cluster_has_no_majority(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with Client(list(cluster.addresses.values()), timeout_s=20) as kv:
            lease = await kv.lease(3)
            cluster.kill("n1", "n2")
            while not lease.lost.is_set():
                now = leases.now()
                assert now < lease._deadline or not lease.is_alive
                await asyncio.sleep(0.01)
            assert not lease.is_alive

    asyncio.run(scenario())


def test_processes_hold_a_lock_one_at_a_time_while_a_leader_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    command = ("sh", "-c", COUNT_UP.format(folder=tmp_path))
    waves = []
    try:
        for turn in range(TURNS):
            running = [spawn(cluster, "lock", "job", "--ttl", "10", "--", *command) for _ in range(WORKERS)]
            waves += running
            if turn == 1:
                cluster.kill(cluster.leader())
            for process in running:
                _, err = process.communicate(timeout=60)
                assert process.returncode == 0, err
    finally:
        for process in waves:
            end(process)
    tokens = [int(line) for line in (tmp_path / "tokens").read_text().split()]
    assert len(tokens) == WORKERS * TURNS and tokens == sorted(set(tokens))


def test_a_waiter_keeps_its_place_when_nodes_are_killed(cluster: Cluster) -> None:
    async def scenario() -> None:
        addresses = list(cluster.addresses.values())
        order: list[int] = []

        async def wait(kv: Client, number: int) -> None:
            async with kv.lock("a", ttl_s=15):
                order.append(number)

        async with Client(addresses, timeout_s=20) as kv, kv.lock("a", ttl_s=15) as lock:
            tasks = []
            for number in range(3):
                tasks.append(asyncio.create_task(wait(kv, number)))

                async def waits(number: int = number) -> bool:
                    return (await kv.lock_info("a")).waiter_count == number + 1

                await until(f"{number + 1} wait", waits)
            places = [each.fencing_token for each in (await kv.lock_info("a")).waiters]
            for _ in range(2):
                killed = await kill_the_leader(cluster)
                cluster.start(killed)
                await asyncio.to_thread(cluster.settled)
            assert [each.fencing_token for each in (await kv.lock_info("a")).waiters] == places
            assert lock.is_held and order == []
            await lock.release()
            await asyncio.gather(*tasks)
        assert order == [0, 1, 2]

    asyncio.run(scenario())


def test_a_waiter_leaves_a_node_that_stands_still_and_keeps_its_place(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with Client(list(cluster.addresses.values()), timeout_s=20) as kv:
            first = await kv.lock("a", ttl_s=20).acquire()
            second = asyncio.create_task(kv.lock("a", ttl_s=20).acquire())

            async def waits() -> bool:
                return (await kv.lock_info("a")).waiter_count == 1

            await until("the second one waits", waits)
            place = (await kv.lock_info("a")).waiters[0].fencing_token
            leader = await asyncio.to_thread(cluster.leader)
            cluster.pause(leader)
            await asyncio.to_thread(cluster.leader, cluster.others(leader))
            await first.release()
            async with asyncio.timeout(30):
                assert (await second).fencing_token == place
            await (await second).release()
            cluster.resume(leader)

    asyncio.run(scenario())


def test_a_holder_that_stood_still_has_lost_the_lock_and_its_command_is_stopped(cluster: Cluster) -> None:
    holder = spawn(cluster, "lock", "a", "--ttl", "2", "--", "sh", "-c", "echo $$; exec sleep 600")
    try:
        assert holder.stdout is not None
        command = int(holder.stdout.readline())
        holder.send_signal(signal.SIGSTOP)
        successor = spawn(cluster, "lock", "a", "--", "sh", "-c", "echo $KVORUM_LOCK_TOKEN")
        try:
            out, err = successor.communicate(timeout=60)
            assert successor.returncode == 0 and int(out) > 0, err
        finally:
            end(successor)
        os.kill(command, 0)  # Nobody could stop it.
        holder.send_signal(signal.SIGCONT)
        _, err = holder.communicate(timeout=60)
        assert holder.returncode == 1
        assert "the lock a is lost" in err
        with pytest.raises(ProcessLookupError):
            os.kill(command, 0)
    finally:
        if holder.poll() is None:
            holder.send_signal(signal.SIGCONT)
        end(holder)


def test_an_election_is_handed_over_when_the_leader_is_killed_and_observers_see_it(cluster: Cluster) -> None:
    first = spawn(cluster, "elect", "e", "first", "--ttl", "2")
    try:
        assert first.stdout is not None
        token = int(first.stdout.readline())

        async def scenario() -> None:
            async with Client(list(cluster.addresses.values()), timeout_s=20) as kv:
                seen: list[bytes | None] = []

                async def observe() -> None:
                    async for leader in kv.election("e").observe():
                        seen.append(None if leader is None else leader.value)

                observer = asyncio.create_task(observe())
                await until("the first leader is seen", lambda: seen == [b"first"])
                campaign = asyncio.create_task(kv.election("e", "second").campaign())
                await kill_the_leader(cluster)
                first.kill()
                election = await campaign
                assert election.fencing_token > token
                await until("the second leader is seen", lambda: seen[-1] == b"second")
                await election.proclaim("still second")
                await until("what it proclaims is seen", lambda: seen[-1] == b"still second")
                await election.resign()
                await until("that nobody leads is seen", lambda: seen[-1] is None)
                assert [each for each in seen if each] == [b"first", b"second", b"still second"]
                observer.cancel()
                await asyncio.gather(observer, return_exceptions=True)

        asyncio.run(scenario())
    finally:
        end(first)
