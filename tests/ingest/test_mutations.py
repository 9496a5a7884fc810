"""Faults in a venue's stream: no wrong best bid or ask is published as live where the venue gives the means to know.

The means: a chain of numbers (Binance, OKX now, Bybit, Deribit) shows what is missing, doubled or out of order; a
checksum (Kraken, OKX) shows wrong contents too; Binance's own quotes show a wrong best price at their sequence.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ingest.pipeline import Pipeline, TickRecord
from protos.fixed import to_text
from protos.messages import BookState, BookUpdate, InstrumentState, Levels, QuoteUpdate
from tests.support.ticklog import Follower, Followers, encoded, log_of

pytestmark = pytest.mark.captures

LENGTH = {"binance.spot": 1_200, "binance.usdm": 900, "bybit": 900, "deribit": 135, "kraken": 700, "okx": 392}
CHECKSUMMED = ("kraken", "okx")
CHAINED = ("binance.spot", "binance.usdm", "bybit", "deribit")

Best = tuple[Levels, Levels]


@cache
def log(name: str) -> list[TickRecord]:
    """With every other offset free, to put a record between two."""
    return [tick._replace(offset=2 * tick.offset) for tick in log_of(name, LENGTH[name])]


def best(reader: Follower) -> Best:
    return reader.book.top(1)


@cache
def truth(name: str) -> tuple[list[Best], dict[bytes, list[bytes]]]:
    """Best bid and ask of its instrument after each record; and all that is published, by instrument."""
    ours, readers, bests = Pipeline(0), Followers(), []
    published: dict[bytes, list[bytes]] = {}
    for tick in log(name):
        outputs = ours.process(tick)
        readers.apply(outputs)
        bests.append(best(readers[(tick.key or b"").decode()]))
        for key, value in encoded(outputs):
            published.setdefault(key, []).append(value)
    return bests, published


@cache
def deltas(name: str) -> list[int]:
    """Positions of book deltas."""
    ours, found = Pipeline(0), []
    for i, tick in enumerate(log(name)):
        if any(isinstance(update, BookUpdate) and update.prev_seq for _, update in ours.process(tick).market):
            found.append(i)
    return found


def contents(name: str, message: Any) -> list[tuple[dict[str, Any], str, str]]:  # noqa: ANN401 JSON
    """Where a message keeps its bids and asks."""
    if name == "kraken":
        return [(part, "b", "a") for part in message[1:-2]]
    if name == "okx":
        return [(message["data"][0], "bids", "asks")]
    if name == "deribit":
        return [(message["params"]["data"], "bids", "asks")]
    return [(message["data"], "b", "a")]


def swap_sides(name: str, value: bytes) -> bytes:
    message = orjson.loads(value)
    for part, bids, asks in contents(name, message):
        sides = {bids: part.pop(asks, []), asks: part.pop(bids, [])}
        part.update({key: levels for key, levels in sides.items() if levels or name != "kraken"})
    return orjson.dumps(message)


def flip_size(name: str, value: bytes) -> bytes:
    """Of the first level: a removal becomes a size, a size doubles its first digit."""
    message = orjson.loads(value)
    levels = [level for part, *sides in contents(name, message) for side in sides for level in part.get(side, [])]
    if levels:
        text = str(levels[0][1])
        levels[0][1] = "1" + text if text[0] != "1" else "2" + text[1:]
    return orjson.dumps(message)


Mutant = list[tuple[TickRecord, int]]
"""Records, each with its position in the unchanged log."""


def mutate(name: str, kind: str, at: int) -> Mutant:
    numbered = [(tick, i) for i, tick in enumerate(log(name))]
    tick, key = numbered[at][0], numbered[at][0].key
    after = next((i for i in deltas(name) if i > at and numbered[i][0].key == key), None)
    if kind == "drop":
        del numbered[at]
    elif kind == "duplicate":
        numbered.insert(at + 1, (tick._replace(offset=tick.offset + 1), at))
    elif kind == "late duplicate" and after is not None:
        numbered.insert(after + 1, (tick._replace(offset=2 * after + 1), at))
    elif kind == "reorder" and after is not None:
        later = numbered[after][0]
        numbered[at] = (later._replace(offset=tick.offset), after)
        numbered[after] = (tick._replace(offset=later.offset), at)
    elif kind in CONTENTS:
        assert tick.value is not None
        numbered[at] = (tick._replace(value=CONTENTS[kind](name, tick.value)), at)
    return numbered


CONTENTS: dict[str, Callable[[str, bytes], bytes]] = {"swap sides": swap_sides, "flip a size": flip_size}
ORDER = ["drop", "duplicate", "late duplicate", "reorder"]


def check(name: str, kind: str, at: int, *, never_wrong: bool) -> tuple[Pipeline, Followers]:
    bests, published = truth(name)
    key = log(name)[at].key or b""
    ours, readers = Pipeline(0), Followers()
    others: dict[bytes, list[bytes]] = {}
    for tick, position in mutate(name, kind, at):
        outputs = ours.process(tick)
        readers.apply(outputs)
        for other, value in encoded(outputs):
            others.setdefault(other, []).append(value)
        if never_wrong and tick.key == key and any(isinstance(update, BookUpdate) for _, update in outputs.market):
            assert best(readers[key.decode()]) == bests[position], "a wrong best price was published as live"
    for other in published.keys() - {key}:
        assert others[other] == published[other], "another instrument was touched"
    return ours, readers


quickly = settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", [*ORDER, *CONTENTS])
@pytest.mark.parametrize("name", CHECKSUMMED)
@quickly
@given(data=st.data())
def test_with_checksums_nothing_wrong_is_live(name: str, kind: str, data: st.DataObject) -> None:
    check(name, kind, data.draw(st.sampled_from(deltas(name))), never_wrong=True)


@pytest.mark.parametrize("kind", ORDER)
@pytest.mark.parametrize("name", CHAINED)
@quickly
@given(data=st.data())
def test_with_chains_nothing_missing_doubled_or_moved_is_live(name: str, kind: str, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from(deltas(name)))
    check(name, kind, at, never_wrong=True)


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", CHAINED)
@quickly
@given(data=st.data())
def test_wrong_contents_touch_no_other_instrument(name: str, kind: str, data: st.DataObject) -> None:
    check(name, kind, data.draw(st.sampled_from(deltas(name))), never_wrong=False)


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", ["binance.spot", "binance.usdm"])
@quickly
@given(data=st.data())
def test_with_quotes_no_wrong_best_is_live_at_their_sequence(name: str, kind: str, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from(deltas(name)))
    ours, readers = Pipeline(0), Followers()
    quotes: dict[int, QuoteUpdate] = {}
    compared = 0
    for tick, _ in mutate(name, kind, at):
        outputs = ours.process(tick)
        readers.apply(outputs)
        assert tick.value is not None
        said = orjson.loads(tick.value)
        for _, update in outputs.market:
            if isinstance(update, QuoteUpdate):
                quotes[said["data"]["u"]] = update
            elif isinstance(update, BookUpdate) and "data" in said and (quote := quotes.get(said["data"]["u"])):
                bids, asks = best(readers[(tick.key or b"").decode()])
                assert (*bids[0], *asks[0]) == (quote.bid_ticks, quote.bid_lots, quote.ask_ticks, quote.ask_lots)
                compared += 1
    (reader,) = readers.values()
    assert compared > 0 or reader.state is BookState.GAPPED


# ---- and back


def rest_snapshot(state: InstrumentState, last: int) -> bytes:
    """The book as Binance's REST API gives it."""
    book = state.book
    assert book is not None
    assert book.scale is not None
    scale = book.scale

    def texts(levels: Levels) -> list[list[str]]:
        return [[to_text(p, scale.price_exponent), to_text(s, scale.size_exponent)] for p, s in levels]

    return orjson.dumps({"lastUpdateId": last, "bids": texts(book.bids), "asks": texts(book.asks)})


@pytest.mark.parametrize("name", ["binance.spot", "binance.usdm"])
def test_binance_recovers_with_a_snapshot_and_what_it_buffered(name: str) -> None:
    """The snapshot is of a moment between the gap and now: what came since is merged into it."""
    at, between = deltas(name)[5], deltas(name)[40]
    clean = Pipeline(0)
    for tick in log(name)[: between + 1]:
        clean.process(tick)
    (state,) = clean.changed().values()
    value = log(name)[between].value
    assert value is not None
    snapshot = rest_snapshot(state, orjson.loads(value)["data"]["u"])
    now = deltas(name)[60]
    mutant = [tick for tick, _ in mutate(name, "drop", at)]
    ours, readers = Pipeline(0), Followers()
    for tick in mutant[:now]:
        readers.apply(ours.process(tick))
    (reader,) = readers.values()
    assert reader.state is BookState.GAPPED
    back = mutant[now - 1]._replace(offset=mutant[now - 1].offset + 1, value=snapshot)
    readers.apply(ours.process(back))
    bests, _ = truth(name)
    assert reader.state is BookState.SYNCED
    assert best(reader) == bests[now]
    for tick in mutant[now:]:
        readers.apply(ours.process(tick))
    assert reader.state is BookState.SYNCED
    assert best(reader) == bests[-1]


@pytest.mark.parametrize("name", ["bybit", "deribit", "kraken", "okx"])
def test_others_recover_with_the_next_snapshot_in_the_stream(name: str) -> None:
    """As after subscribing anew: here the whole stream comes again."""
    kind = "flip a size" if name in CHECKSUMMED else "drop"
    for at in deltas(name)[len(deltas(name)) // 4 :]:
        key = (log(name)[at].key or b"").decode()
        ours, readers = check(name, kind, at, never_wrong=True)
        if readers[key].state is BookState.GAPPED:  # not one that is the last of its instrument, or too deep to matter
            break
    else:
        pytest.fail("no mutation broke a book")
    again = len(log(name)) * 2
    for tick in log(name):
        readers.apply(ours.process(tick._replace(offset=tick.offset + again)))
    whole = Followers()
    clean = Pipeline(0)
    for tick in log(name):
        whole.apply(clean.process(tick))
    assert {it: reader.state for it, reader in readers.items()} == {it: reader.state for it, reader in whole.items()}
    assert readers[key].state is BookState.SYNCED
    assert readers[key].book.top(0) == whole[key].book.top(0)
