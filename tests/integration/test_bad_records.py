"""Records that nobody can use, in the midst of good ones: each in the dead letter topic with its reason, counted, and
nothing else affected."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import pytest

from protos.messages import Channel
from protos.topics import HEADER_FEED, HEADER_REASON, HEADER_SOURCE, Topics
from services.client.events import StreamState
from services.feed.router import Router
from services.kafka import Reader, Record
from services.stack import Stack
from tests.support.bad_records import BAD, Bad
from tests.support.kafka_server import RealBroker
from tests.support.mutations import VENUES, Quote, Venue, stream_of
from tests.support.watcher import ENVIRONMENT, WAIT_S, Watcher, stack_settings

GOOD = ("binance.spot", "okx", "deribit")
"""Their sequence or checksum shows whether an unusable record was one of theirs, so it does not shake their books."""
SHAKEN = "kraken"
"""Without either a delta may be lost in it: a live book must not go on as if nothing had been."""

FIRST = 6
"""Messages of each stream after which every book is live."""

SHAKING = Bad("bad-json", b"[1,{", VENUES[SHAKEN].instrument().encode(), {HEADER_FEED: b"kraken"})
DEAD = {**BAD, "a message of a book that cannot tell": SHAKING}


@dataclass
class Outcome:
    ticks: str  # name of the topic
    offsets: dict[str, int]  # of each bad record
    dead: dict[str, Record]  # by source header
    metrics: dict[str, float]  # of ingest
    gaps: dict[str, list[str]]  # that the client was told
    digests: dict[str, tuple[int, int]]  # passed, failed
    live: dict[str, bool]  # in the end
    levels: dict[str, Quote]  # in the end


async def _play(kafka: str | None) -> Outcome:
    venues = [VENUES[capture] for capture in (*GOOD, SHAKEN)]
    names = [venue.instrument() for venue in venues]
    async with Stack(stack_settings(), kafka, ENVIRONMENT) as stack, Watcher(stack) as watcher:
        await watcher.subscribe({venue.instrument(): venue.feed for venue in venues}, [(Channel.RAW, 0)])
        offsets, last = await _mix(watcher, venues)
        for name, seq in last.items():
            await watcher.until_at(name, seq)
        await watcher.until_digests(names)
        return Outcome(
            Topics(stack.settings.topic_prefix).ticks,
            offsets,
            {record.headers[HEADER_SOURCE].decode(): record for record in await _dead(stack, len(DEAD))},
            await stack.ingest.metrics(),
            {name: [why for state, why in watcher.states[name] if state is StreamState.GAPPED] for name in names},
            {name: watcher.checked(name) for name in names},
            {name: watcher.raw(name).live for name in names},
            {name: watcher.levels(name) for name in names},
        )


async def _mix(watcher: Watcher, venues: list[Venue]) -> tuple[dict[str, int], dict[str, int]]:
    """One message of each stream in turn, and from where all books are live, a bad record; the last one harms a book.

    Returns:
        Offsets of the bad records by name, and the last seq of each instrument.
    """
    offsets: dict[str, int] = {}
    last: dict[str, int] = {}
    routers = {venue.feed: Router(venue.feed) for venue in venues}
    longest = max(len(stream_of(venue.capture).messages) for venue in venues)
    bad = iter(DEAD.items())
    for i in range(longest):
        for venue in venues:
            for value in stream_of(venue.capture).messages[i : i + 1]:
                for tick in routers[venue.feed].route(value, 0, venue.symbol):
                    last[tick.instrument] = await watcher.tick(tick)
        for name, record in islice(bad, 2 if i >= FIRST else 0):
            offsets[name] = await watcher.put(record.key, record.value, record.headers, 0) - 1
    assert offsets.keys() == DEAD.keys()
    return offsets, last


async def _dead(stack: Stack, count: int) -> list[Record]:
    """All records of the dead letter topic."""
    reader = Reader(stack.settings)
    topic = Topics(stack.settings.topic_prefix).dlq
    await reader.start()
    try:
        await reader.assign({(topic, 0): 0})
        records: list[Record] = []
        async with asyncio.timeout(WAIT_S):
            while len(records) < count:
                records += await reader.poll(100)
        return records + await reader.poll(100)
    finally:
        await reader.stop()


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def outcome(request: pytest.FixtureRequest) -> Outcome:
    """One run, all in one partition."""
    kafka: RealBroker | None = request.getfixturevalue("kafka_server") if request.param == "kafka" else None
    return asyncio.run(_play(kafka.bootstrap if kafka else None))


@pytest.mark.parametrize("name", DEAD)
def test_a_bad_record_is_a_dead_letter(name: str, outcome: Outcome) -> None:
    """As it came, with why and from where."""
    bad = DEAD[name]
    source = f"{outcome.ticks}/0/{outcome.offsets[name]}"
    letter = outcome.dead[source]
    assert (letter.key, letter.value) == (bad.key, bad.value)
    assert letter.headers == {**bad.headers, HEADER_REASON: bad.reason.encode(), HEADER_SOURCE: source.encode()}


def test_only_bad_records_are_dead_letters_and_each_is_counted(outcome: Outcome) -> None:
    assert len(outcome.dead) == len(DEAD)
    name = "depthcast_dead_letters_total"
    assert outcome.metrics[name] == len(DEAD)
    counted = {key: count for key, count in outcome.metrics.items() if key.startswith(f"{name}{{reason=")}
    assert counted == {f"{name}{{reason={why}}}": n for why, n in Counter(bad.reason for bad in DEAD.values()).items()}


@pytest.mark.parametrize("capture", [*GOOD, SHAKEN])
def test_good_records_beside_them_count(capture: str, outcome: Outcome) -> None:
    """A book gaps only where the unusable record may have been one of its deltas, and then until the snapshot."""
    name = VENUES[capture].instrument()
    assert outcome.gaps[name] == (["feed gap"] if capture == SHAKEN else [])
    assert outcome.live[name]
    assert outcome.levels[name] == stream_of(capture).final.levels()
    passed, failed = outcome.digests[name]
    assert passed > 0
    assert failed == 0
