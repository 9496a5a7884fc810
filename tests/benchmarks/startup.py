"""How soon a new streamer serves 200 instruments, and how soon a client that joins late has its snapshot."""

import asyncio
import time
from statistics import median

import httpx

from protos.messages import Channel
from services.client.aio import connect
from services.client.events import Updated
from services.config import load_settings
from services.stack import Stack, free_port
from tests.benchmarks.common import Row, kafka

SYMBOLS, JOINS = 200, 40
READY_S, JOIN_MS = 5, 20


async def known(stack: Stack) -> list[str]:
    """The instruments, once all are there."""
    async with httpx.AsyncClient() as http:
        while True:
            items = (await http.get(f"{stack.http_url}/v1/instruments")).json()["instruments"]
            if len(items) >= SYMBOLS:
                return [item["instrument"] for item in items]
            await asyncio.sleep(0.1)


async def join_ms(url: str, instrument: str) -> float:
    """Milliseconds from the subscribe command to the snapshot in the client's book."""
    async with connect(url) as client:
        await anext(client)
        start = time.perf_counter()
        await client.subscribe(instrument, Channel.BOOK)
        async for event in client:
            if isinstance(event, Updated):
                return 1e3 * (time.perf_counter() - start)
    raise RuntimeError("no snapshot")


async def run(bootstrap: str) -> tuple[float, float]:
    """(median seconds to readiness of three streamers, median milliseconds of late joins)."""
    settings = load_settings().model_copy(update={"topic_prefix": "startup", "http_port": 0, "admin_port": 0})
    async with Stack(settings, bootstrap, {"DEPTHCAST_CHECKPOINT_INTERVAL_MS": "2000"}) as stack:
        await stack.spawn(f"feed simulate --symbols {SYMBOLS} --rate 2000", free_port())
        instruments = await known(stack)
        await asyncio.sleep(10)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            port = free_port()
            child = await stack.spawn("streamer", free_port(), {"DEPTHCAST_HTTP_PORT": str(port)})
            await child.ready()
            times.append(time.perf_counter() - start)
            await child.stop()
        joins = [await join_ms(stack.url, name) for name in instruments[:JOINS]]
    return median(times), median(joins)


def measure() -> list[Row]:
    with kafka() as bootstrap:
        ready_s, joined_ms = asyncio.run(run(bootstrap))
    return [
        Row(
            f"a new streamer is ready, {SYMBOLS} instruments", f"{ready_s:.1f} s", f"<= {READY_S} s", ready_s <= READY_S
        ),
        Row("a late client has its snapshot", f"{joined_ms:.1f} ms", f"<= {JOIN_MS} ms", joined_ms <= JOIN_MS),
    ]
