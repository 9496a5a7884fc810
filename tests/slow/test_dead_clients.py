"""Clients that never read: what each costs the server, and how it ends.

``FAULTS_LONG=1`` has a client stand still for a minute, with the streamer's own limits, instead of until it is closed.
"""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from protos.messages import Channel
from tests.support.invariants import check_latency
from tests.support.scenario import until
from tests.support.slow_market import Market
from tests.support.slow_reader import Reader, Want

DEAD = 24
WARM_UP = 2_470
"""Updates of each instrument before there is a client: what the process keeps of Kafka and of books is no client's. Its
rings are at their fullest then, which they are again every 103 updates of 40 prices."""
MEMORY_MAX = 256 << 10
"""Bytes of server memory for a client that does not read."""
ESTABLISHED = "01"
LONG = bool(os.environ.get("FAULTS_LONG"))
STOPPED_S = 60.0 if LONG else 0.0
RATE_PER_S = 10 if LONG else 100
"""Not more than a streamer can merge to one delta afterwards."""
SEEN = 120
"""Updates that another client gets before the fault."""
SOON: dict[str, object] = {} if LONG else {"outbox_stall_ms": 1_000, "heartbeat_interval_ms": 1_000}


def closed(metrics: dict[str, float]) -> float:
    return metrics["depthcast_disconnects_total{code=4008}"]


def rss(pid: int) -> int:
    """Bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def state_of(pid: int) -> str:
    """One letter; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def sockets(port: int, readers: list[Reader]) -> dict[str, list[int]]:
    """The server's ends of these connections: by state, the bytes that the kernel holds until they are acknowledged."""
    theirs = {reader.local_port for reader in readers}
    found: dict[str, list[int]] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues = line.split()[:5]
        if int(local.partition(":")[2], 16) == port and int(remote.partition(":")[2], 16) in theirs:
            found.setdefault(state, []).append(int(queues.partition(":")[0], 16))
    return found


@pytest.mark.parametrize("channel", [Channel.BOOK, Channel.RAW])
async def test_a_client_that_never_reads_is_bounded_closed_and_aborted(channel: Channel) -> None:
    """Each on an instrument of its own: nobody shares what waits for it. `book` collapses at the soft mark, and is
    closed for the time; `raw` for the hard mark. What they do not take of the close frame is aborted after 2 s."""
    async with Market(DEAD, outbox_stall_ms=4_000) as market, AsyncExitStack() as stack:
        for _ in range(WARM_UP):
            for index in range(DEAD):
                market.publish_wide(index)
            await asyncio.sleep(0.001)
        applied = "depthcast_updates_received_total"
        await market.until(lambda found: found[applied] >= WARM_UP * DEAD, 60)
        readers = [Reader(market.port, [Want(name, channel)], 4096) for name in market.names]
        for reader in readers:
            await stack.enter_async_context(reader)
            await reader.start()
        alive, costs, grown = rss(market.pid), [0.0], 0
        async with asyncio.timeout(60):
            while not closed(metrics := await market.metrics()):
                for _ in range(20):
                    for index in range(DEAD):
                        market.publish_wide(index)
                await asyncio.sleep(0.02)
                held = sockets(market.port, readers).get(ESTABLISHED, [])
                costs.append((metrics["depthcast_outbox_bytes"] + sum(held)) / DEAD)
                grown = max(grown, (rss(market.pid) - alive) // DEAD)
        await market.until(lambda found: closed(found) == DEAD and found["depthcast_connections"] == 0)
        await until(lambda: not sockets(market.port, readers), "all aborted, though nobody read")
        metrics = await market.metrics()
    print(f"{channel.name}: {max(costs) / 1024:.0f} KiB queued, {grown / 1024:.0f} KiB resident, each")
    assert max(costs) <= MEMORY_MAX
    assert grown <= MEMORY_MAX
    name = channel.name.lower()
    assert metrics[f"depthcast_lost_total{{channel={name}}}"] > 0
    assert metrics["depthcast_outbox_bytes"] == 0


async def test_clients_that_never_read_delay_nobody() -> None:
    """From the first unread byte until all are closed."""
    async with Market(4, outbox_stall_ms=3_000) as market, AsyncExitStack() as stack:
        wants = [Want(name, Channel.RAW) for name in market.names]
        other = await stack.enter_async_context(Reader(market.port, wants))
        await other.start()
        other.flow(1e9)
        market.flow(800)
        began = time.monotonic()
        await asyncio.sleep(1.5)
        came = time.monotonic()
        for _ in range(DEAD):
            dead = await stack.enter_async_context(Reader(market.port, wants, 4096))
            await dead.start()
        await market.until(lambda found: closed(found) == DEAD and found["depthcast_connections"] == 1, 30)
        check_latency(began, came, time.monotonic(), other)
        assert other.accounts.faults == []


@pytest.mark.faults
async def test_a_stopped_client_is_closed_and_resumes_when_it_goes_on() -> None:
    async with (
        Market(1, digest_interval_ms=300, **SOON) as market,
        Reader(market.port, [Want(name) for name in market.names]) as other,
    ):
        url = f"ws://127.0.0.1:{market.port}/v1/stream"
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.stalled_client", url, market.names[0]),
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdout is not None
        try:
            other.flow(1e9)
            market.flow(RATE_PER_S)
            began = time.monotonic()
            before = await lines_until(client.stdout, "digest", 2)
            await until(lambda: len(other.latencies) > SEEN, "updates")
            stood = time.monotonic()
            client.send_signal(signal.SIGSTOP)
            stopped = asyncio.create_task(asyncio.sleep(STOPPED_S))
            gone = await market.until(lambda found: found["depthcast_connections"] == 1, 30 + STOPPED_S)
            await stopped
            state = state_of(client.pid)
            client.send_signal(signal.SIGCONT)
            after = await lines_until(client.stdout, "started", 1)
            after += await lines_until(client.stdout, "digest", 3)
            check_latency(began, stood, time.monotonic(), other)
            metrics = await market.metrics()
        finally:
            client.kill()
            await client.wait()
    assert state == "T", "closed while it was stopped"
    assert other.accounts.faults == []
    assert closed(gone) + gone["depthcast_disconnects_total{code=4009}"] == 1
    assert [line["resumed"] for line in after if line["event"] == "started"] == [True]
    digests = [line for line in before + after if line["event"] == "digest"]
    assert all(line["passed"] for line in digests)
    assert digests[-1]["live"]
    assert "brokenchain" not in {line["event"] for line in after}
    assert metrics["depthcast_resumes_total{served=delta}"] == 1


async def lines_until(stdout: asyncio.StreamReader, event: str, count: int) -> list[dict[str, object]]:
    """What the client says, up to that event for the ``count``-th time."""
    seen: list[dict[str, object]] = []
    async with asyncio.timeout(40):
        while sum(line["event"] == event for line in seen) < count:
            seen.append(json.loads(await stdout.readline()))
    return seen
