"""`depthcast dev`: a broker, a feed, ingest and a streamer on this machine, and a client that watches them."""

import asyncio
import gc
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from protos.messages import Channel
from protos.topics import Topics
from services.config import Settings
from services.errors import UserError
from services.feed.files import Captured, read_capture
from services.feed.replay import Replay, check_found
from services.kafka import Producer
from services.probe import Probe, Seen
from services.serving import bind
from services.stack import Stack, free_port, local_http

Feeding = asyncio.Future[None]
"""The feed, while it feeds."""
WATCHED_MAX = 8
"""Instruments that the built-in client watches, all channels of each."""
DEPTH = 10
BEGINNING_MESSAGES = 60
"""Of a capture: names its instruments (the captures at hand need 54), and is little of even a short one."""
POLL_S = 0.1
FIRST_TICK_POLLS = 300
GC_OBJECTS = 50_000
"""Updates hold no cycles. A full collection, which looks for some, stopped the client for 136 ms on busy cores, and
the client tells that as latency."""
_DEMO_ENVIRONMENT = {
    "DEPTHCAST_AUTH": "none",  # the client that watches has no token
    "DEPTHCAST_CHECKPOINT_INTERVAL_MS": "2000",  # the embedded broker forgets after 5 MB
    "DEPTHCAST_DIGEST_INTERVAL_MS": "1000",
}


async def run_dev(
    settings: Settings,
    kafka: str,
    replay: Path | None,
    feed: str,
    speed: float,
    *,
    symbols: int,
    rate: float,
    seed: int,
    seconds: float,
) -> None:
    """Run until interrupted, or for ``seconds`` and then print one JSON object as the last line.

    Args:
        kafka: ``HOST:PORT`` of a real Kafka; "" starts the embedded broker.
        replay: A capture to replay, of ``feed``, at ``speed`` (0: as fast as it goes); None simulates ``symbols``
            instruments with ``rate`` ticks per second in all.

    Raises:
        UserError: A part could not start, or ended.
    """
    capture = read_capture(replay, feed) if replay else iter(())
    _check_ports(settings)
    _say(f"starting ingest and a streamer on {f'Kafka at {kafka}' if kafka else 'an embedded Kafka broker'} ...")
    async with Stack(settings, kafka or None, _DEMO_ENVIRONMENT) as stack:
        watched = asyncio.Event()
        if replay is None:
            await stack.spawn(f"feed simulate --symbols {symbols} --rate {rate} --seed {seed}", free_port())
            feeding = asyncio.get_running_loop().create_future()  # never ends by itself
        else:
            feeding = asyncio.ensure_future(_replay(stack, replay, feed, capture, speed, watched))
        try:
            result = await follow(stack, seconds, feeding, watched)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)  # while there is a broker to say goodbye to
    print(json.dumps(result))  # noqa: T201 - the command's result


async def follow(
    stack: Stack, seconds: float, feeding: Feeding, watched: asyncio.Event, seen: Seen | None = None
) -> dict[str, Any]:
    """Watch what is fed, to the end; sets ``watched`` when all is subscribed to. Returns the result.

    Args:
        seen: Called with each subscription and update, see `Probe`.
    """
    instruments = await _instruments(stack, feeding)
    probe = Probe(stack.url, seen)
    channels = ((Channel.RAW, 0), (Channel.BOOK, DEPTH), (Channel.TRADES, 0), (Channel.BBO, 0))
    try:
        await probe.start([(name, channel, depth) for name in instruments for channel, depth in channels])
        gc.freeze()
        gc.set_threshold(GC_OBJECTS)
        watched.set()
        _banner(stack, instruments)
        await _watch(stack, probe, seconds, feeding)
        return await _result(stack, probe)
    finally:
        await probe.stop()


async def _replay(
    stack: Stack, path: Path, feed: str, capture: Iterator[Captured], speed: float, watched: asyncio.Event
) -> None:
    """Feed a capture of ``feed`` at ``path``: its beginning, and the rest once it is watched; never further ahead of
    ingest than the embedded broker remembers."""
    settings, topics = stack.settings, Topics(stack.settings.topic_prefix)
    name = f"depthcast_kafka_records_total{{topic={topics.ticks}}}"
    before = (await stack.ingest.metrics()).get(name, 0.0)

    async def processed() -> int:
        return int((await stack.ingest.metrics()).get(name, 0.0) - before)

    producer = Producer(settings)
    await producer.start()
    try:
        replay = Replay(
            producer, topics.ticks, settings.partitions, speed=speed, clock_ns=time.time_ns, processed=processed
        )
        read = -1
        while not replay.counts.records and read < replay.counts.messages:
            read = replay.counts.messages
            await replay.run(islice(capture, BEGINNING_MESSAGES))
        check_found(replay.counts, path, feed)
        await watched.wait()
        await replay.run(capture)
    finally:
        await producer.stop()


def _check_ports(settings: Settings) -> None:
    """Before anything starts: else another one, which answers there, would be taken for ours.

    Raises:
        UserError: A port is taken.
    """
    bind(settings.http_host, settings.http_port, "DEPTHCAST_HTTP_PORT").close()
    bind(settings.admin_host, settings.admin_port, "DEPTHCAST_ADMIN_PORT").close()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - progress, for the person at the terminal


async def _instruments(stack: Stack, feeding: Feeding) -> list[str]:
    """Instruments that the streamer knows; waits for the feed's first ticks, and a moment for more instruments."""
    names: list[str] = []
    async with local_http() as http:
        for _ in range(FIRST_TICK_POLLS):
            _check(stack, feeding)
            answer = (await http.get(f"{stack.http_url}/v1/instruments")).json()
            before, names = names, [item["instrument"] for item in answer["instruments"]]
            if names and (len(names) >= WATCHED_MAX or names == before):
                return sorted(names, key=lambda name: "BTC" not in name)[:WATCHED_MAX]
            await asyncio.sleep(POLL_S)
    raise UserError(f"no tick came through in {FIRST_TICK_POLLS * POLL_S:.0f} s; the logs are in {stack.directory}")


def _banner(stack: Stack, instruments: list[str]) -> None:
    name = shlex.quote(instruments[0])
    command = own_name()
    port = "" if stack.settings.http_port == 8080 else f" --url {stack.url}"
    _say(
        f"\n  Live order books:  {stack.http_url}/\n\n"
        f"  Try next:\n"
        f"    {command} watch {name}{port}\n"
        f"    curl '{stack.http_url}/v1/instruments/{instruments[0]}/book?depth=5'\n"
        f"    curl http://127.0.0.1:{stack.streamer.admin_port}/metrics | grep depthcast_end_to_end\n\n"
        f"  Logs: {stack.directory}    Stop: Ctrl-C\n"
    )


def own_name() -> str:
    """What to type to run this program again: it is often not on the PATH."""
    program = Path(sys.argv[0])
    if program.name != "depthcast":
        return "python -m services"
    found = shutil.which("depthcast")
    return "depthcast" if found and program.exists() and Path(found).samefile(program) else str(program)


def _check(stack: Stack, feeding: Feeding) -> None:
    if feeding.done():
        feeding.result()
    for child in stack.children:
        if child.ended:
            raise UserError(f"{child.ended} (logs: {stack.directory})")


async def _watch(stack: Stack, probe: Probe, seconds: float, feeding: Feeding) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds if seconds else float("inf")
    live = sys.stderr.isatty()
    before = 0
    while (left := end - loop.time()) > 0:
        await asyncio.sleep(min(1.0, left))
        _check(stack, feeding)
        if live:
            p50, p99 = probe.percentiles_ms()
            line = f"  {probe.updates - before:6,} updates/s   tick to client p50 {p50:.1f} ms  p99 {p99:.1f} ms"
            print(f"\r{line}   digests {probe.digests_passed} ok, {probe.digests_failed} bad ", end="", file=sys.stderr)  # noqa: T201
            before = probe.updates


async def _result(stack: Stack, probe: Probe) -> dict[str, Any]:
    ingest, streamer = await asyncio.gather(stack.ingest.metrics(), stack.streamer.metrics())
    p50, p99 = probe.percentiles_ms()

    def count(metrics: dict[str, float], name: str) -> int:
        return int(metrics.get(f"depthcast_{name}", 0))

    return {
        "ticks": count(ingest, "kafka_records_total"),
        "updates": count(ingest, "updates_published_total"),
        "deliveries": count(streamer, "updates_sent_total"),
        "p50_ms": p50,
        "p99_ms": p99,
        "gaps": count(ingest, "gaps_total") + probe.gaps,
        "checksums_passed": count(ingest, "checksums_total{result=passed}"),
        "checksums_failed": count(ingest, "checksums_total{result=failed}"),
        "digests_passed": probe.digests_passed,
        "digests_failed": probe.digests_failed,
        "dlq": count(ingest, "dead_letters_total"),
    }
