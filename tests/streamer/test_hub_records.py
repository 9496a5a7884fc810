"""A record that the hub advances by is worth its message: to clients, to the book and to whoever counts."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from protos.codec import Codec
from protos.messages import BookState, Channel, MarketMessage
from protos.records import encode_market
from streamer.counters import Counters
from streamer.streams import StreamKey
from tests.support.shortcuts import shortcuts
from tests.support.world import BBO, BOOK, MS, NAME, RAW, TIER, TRADES, World

EVERY_UPDATE = StreamKey(NAME, Channel.BOOK, 10)


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    with shortcuts("native"):
        yield


def counted(counters: Counters) -> dict[str, int]:
    return {name: getattr(counters, name) for name in dir(counters) if not name.startswith("_")}


def test_all_clients_get_the_same_and_all_is_counted_as_of_its_message(maker: Callable[..., Any], codec: Codec) -> None:
    messages, records = World(maker, codec), World(maker, codec)
    for world in (messages, records):
        world.apply(world.maker.snapshot(), world.maker.status(BookState.SYNCED))
    keys = (BOOK, RAW, BBO, TRADES, TIER, EVERY_UPDATE)
    by_message, by_record = messages.join(*keys), records.join(*keys)
    for i in range(200):
        now_ns = (1 + i) * 20 * MS
        assert messages.hub.apply(NAME, messages.maker.delta(), now_ns)
        assert records.hub.advance(NAME, encode_market(records.maker.delta()), now_ns) == 0, "ts_received_ns"
        for world in (messages, records):
            world.hub.tick(now_ns)
            world.hub.flush(now_ns)
        if i % 3 == 0:
            assert records.hub.payload(by_record, 1 << 20) == messages.hub.payload(by_message, 1 << 20)
    assert counted(records.hub.counters) == counted(messages.hub.counters)
    assert records.hub.counters.digests > 0


@pytest.mark.parametrize(
    "other",
    [
        lambda maker: maker.snapshot(),
        lambda maker: maker.snapshot(new_epoch=False),
        lambda maker: maker.status(BookState.STALE),
        lambda maker: maker.trade(),
        lambda maker: maker.quote(),
        lambda maker: (maker.delta(), maker.delta())[1],
    ],
    ids=["snapshot", "snapshot-of-the-epoch", "status", "trade", "quote", "hole"],
)
def test_what_is_no_next_delta_is_left_and_can_be_applied(world: World, other: Callable[[Any], MarketMessage]) -> None:
    world.apply(world.maker.snapshot())
    outbox = world.join(BOOK, BBO, TRADES)
    before = counted(world.hub.counters)
    message = other(world.maker)
    assert world.hub.advance(NAME, encode_market(message), MS) == -1
    assert (counted(world.hub.counters), world.read(outbox)) == (before, [])
    world.apply(message)


def test_a_gapped_book_and_an_unknown_one_are_not_advanced(world: World) -> None:
    assert world.hub.advance("x:spot:B", encode_market(world.maker.delta()), MS) == -1
    world.apply(world.maker.snapshot(), world.maker.status(BookState.GAPPED))
    assert world.hub.advance(NAME, encode_market(world.maker.delta()), MS) == -1
