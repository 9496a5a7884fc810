"""Redis that is down, silent or emptied, under a streamer that asks for tokens."""

import asyncio
import time

import pytest

from services.stack import free_port
from tests.support.accounts import SETTINGS, token
from tests.support.invariants import STREAMS, check_latency, scene
from tests.support.kafka_server import RealBroker
from tests.support.redis_server import RedisServer
from tests.support.scenario import Wanted, Watcher, until

pytestmark = [pytest.mark.faults, pytest.mark.security, pytest.mark.kafka]


@pytest.mark.usefixtures("redis_process")
async def test_who_is_connected_does_not_notice_what_happens_to_redis(kafka_server: RealBroker) -> None:
    redis = RedisServer()
    redis.start()
    try:
        async with scene(kafka_server.bootstrap) as it:
            port = free_port()
            asking = {f"DEPTHCAST_{name.upper()}": str(value) for name, value in SETTINGS.items()}
            own = {"DEPTHCAST_HTTP_PORT": str(port), "DEPTHCAST_REDIS_URL": redis.url}
            streamer = await it.stack.spawn("streamer", free_port(), {**asking, **own})
            await streamer.ready()
            wanted: list[Wanted] = [(name, *stream) for name in it.feed.instruments for stream in STREAMS]
            async with Watcher(f"ws://127.0.0.1:{port}/v1/stream", wanted, token=token()) as client:
                await until(lambda: len(client.resumed) == len(wanted), "subscribed")

                async def updates() -> None:
                    seen = len(client.views)
                    await until(lambda: len(client.views) > seen + 150, "updates")

                async def failures() -> float:
                    return (await streamer.metrics())["depthcast_store_failures_total"]

                async def failed(more_than: float) -> None:
                    async def found() -> bool:
                        return await failures() > more_than

                    await until(found, "Redis is missed")

                it.feed.flow()
                await updates()
                began = time.monotonic()
                await updates()
                fault = time.monotonic()
                await asyncio.to_thread(redis.stop)
                await failed(await failures())
                await updates()
                await asyncio.to_thread(redis.start)
                await updates()
                redis.pause()
                await failed(await failures())
                await updates()
                redis.go_on()
                await asyncio.to_thread(redis.tell, "FLUSHALL")
                await updates()
                check_latency(began, fault, time.monotonic(), client, it.client)
                await it.feed.stop()
                await it.invariants.hold(client)
            assert [*client.faults, *it.client.faults] == []
            assert client.disconnects == 0
    finally:
        redis.close()
