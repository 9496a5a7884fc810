"""Faults in a venue's stream, through all processes, judged in the client's hands.

What a venue gives no means to notice, nobody downstream can. So, of the faults in `tests.support.mutations`:

- Noticed at every venue: a delta lost, late, or again after its successor, by the sequence (Coinbase: of the
  connection) or, at Kraken and OKX, whose captures have none, by the checksum; there an exact repetition changes
  nothing and is none.
- Exchanged sides, another size: by the checksum of Kraken and OKX before they are served; at Binance by the quote of
  the same sequence. Without such a quote (one delta in ten or so), Binance is noticed at the next one that has it.
- Bybit, Deribit and Coinbase: exchanged sides are flagged CROSSED when they cross the book, and a size that was changed
  on the way cannot be told from a right one. What is guaranteed there is that it ends with the next word of the venue
  on that price, or with the next snapshot.
"""

import asyncio
from dataclasses import dataclass

import pytest

from protos.messages import Channel
from services.client.events import StreamState
from services.feed.router import Router
from services.stack import Stack
from tests.support.kafka_server import RealBroker
from tests.support.mutations import MARGIN, MUTATIONS, VENUES, Quote, Stream, mutated, stream_of, target_of
from tests.support.watcher import ENVIRONMENT, Seen, Watcher, stack_settings

ROUND = 4
"""Messages of each stream that are sent before the client has confirmed."""
GAP, SUM, BBO, LOST = "sequence gap", "checksum mismatch", "bbo mismatch", "feed gap"
LIVE, CROSSED, UNSEEN = "", "crossed", "unseen"
"""Nothing wrong is served; it is flagged; nobody can know."""

FATES = {
    "binance.spot": {"DROP": GAP, "TWICE": LIVE, "AGAIN": LIVE, "REORDER": GAP, "SWAP": BBO, "FLIP": BBO},
    "binance.usdm": {"DROP": GAP, "TWICE": LIVE, "AGAIN": LIVE, "REORDER": GAP, "SWAP": BBO, "FLIP": BBO},
    "kraken": {"DROP": SUM, "TWICE": LIVE, "AGAIN": SUM, "REORDER": SUM, "SWAP": SUM, "FLIP": SUM},
    "okx": {"DROP": SUM, "TWICE": LIVE, "AGAIN": SUM, "REORDER": SUM, "SWAP": SUM, "FLIP": SUM},
    "bybit": {"DROP": GAP, "TWICE": LIVE, "AGAIN": GAP, "REORDER": GAP, "SWAP": CROSSED, "FLIP": UNSEEN},
    "deribit": {"DROP": GAP, "TWICE": LIVE, "AGAIN": GAP, "REORDER": GAP, "SWAP": UNSEEN, "FLIP": UNSEEN},
    "coinbase": {"DROP": LOST, "TWICE": LOST, "AGAIN": LOST, "REORDER": LOST, "SWAP": CROSSED, "FLIP": UNSEEN},
}


@dataclass
class Outcome:
    """One instrument: what the venue had said, and what the client made of it."""

    stream: Stream
    index: dict[int, int]  # by seq: the latest message of the unharmed stream until then
    seen: list[Seen]
    states: list[tuple[StreamState, str]]
    digests: tuple[int, int]  # passed, failed
    broken: int
    live: bool  # in the end
    levels: Quote  # in the end

    def is_wrong(self, seen: Seen) -> bool:
        return seen.live and not seen.crossed and seen.best != self.stream.best[self.index[seen.seq]]

    def wrong(self) -> list[int]:
        """Indexes of messages at which a wrong best bid or ask was served as if it were right."""
        return sorted({self.index[seen.seq] for seen in self.seen if self.is_wrong(seen)})

    def gaps(self) -> list[str]:
        return [why for state, why in self.states if state is StreamState.GAPPED]


class _Play:
    """All mutations of one venue side by side, and the unharmed stream as the first of them."""

    def __init__(self, watcher: Watcher, capture: str) -> None:
        self.watcher, self.stream = watcher, stream_of(capture)
        self.messages = {mutation: mutated(self.stream, mutation) for mutation in ("", *MUTATIONS)}
        self.routers = {mutation: Router(self.stream.venue.feed) for mutation in self.messages}
        self.index: dict[str, dict[int, int]] = {mutation: {} for mutation in self.messages}

    def feeds(self) -> dict[str, str]:
        return {self.stream.venue.instrument(mutation): self.stream.venue.feed for mutation in self.messages}

    async def run(self) -> None:
        longest = max(map(len, self.messages.values()))
        for start in range(0, longest, ROUND):
            await asyncio.gather(*(self._send(mutation, start) for mutation in self.messages))
            await self._seen("", set(self.stream.deltas))
        for mutation in self.messages:
            await self._seen(mutation, {len(self.stream.messages) - 1})

    async def _seen(self, mutation: str, messages: set[int]) -> None:
        """Wait for the client's book as of the last of ``messages`` that was sent."""
        last = max((seq for seq, i in self.index[mutation].items() if i in messages), default=0)
        await self.watcher.until_at(self.stream.venue.instrument(mutation), last)

    async def _send(self, mutation: str, start: int) -> None:
        index, router = self.index[mutation], self.routers[mutation]
        hint = mutation + self.stream.venue.symbol
        for message in self.messages[mutation][start : start + ROUND]:
            latest = max(message.index, max(index.values(), default=0))
            for tick in router.route(message.value, 0, hint):
                index[await self.watcher.tick(tick)] = latest

    def outcome(self, mutation: str) -> Outcome:
        watcher, name, index = self.watcher, self.stream.venue.instrument(mutation), self.index[mutation]
        seen = [seen for seen in watcher.seen[name] if seen.seq in index]  # not of the announcement before the stream
        states, digests = watcher.states[name], watcher.checked(name)
        levels, live = watcher.levels(name), watcher.raw(name).live
        return Outcome(self.stream, index, seen, states, digests, watcher.broken[name], live, levels)


async def _play(kafka: str | None) -> dict[tuple[str, str], Outcome]:
    async with Stack(stack_settings(), kafka, ENVIRONMENT) as stack, Watcher(stack) as watcher:
        plays = {capture: _Play(watcher, capture) for capture in VENUES}
        feeds = {name: feed for play in plays.values() for name, feed in play.feeds().items()}
        await watcher.subscribe(feeds, ((Channel.RAW, 0), (Channel.BOOK, 1), (Channel.BBO, 0)))
        await asyncio.gather(*(play.run() for play in plays.values()))
        await watcher.until_digests(feeds)
        return {(c, mutation): play.outcome(mutation) for c, play in plays.items() for mutation in play.messages}


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def outcomes(request: pytest.FixtureRequest) -> dict[tuple[str, str], Outcome]:
    """One run of all venues and mutations, in one partition."""
    kafka: RealBroker | None = request.getfixturevalue("kafka_server") if request.param == "kafka" else None
    return asyncio.run(_play(kafka.bootstrap if kafka else None))


@pytest.mark.parametrize("capture", VENUES)
def test_the_neighbour_of_faults_stays_live_and_right(capture: str, outcomes: dict[tuple[str, str], Outcome]) -> None:
    outcome = outcomes[capture, ""]
    assert outcome.wrong() == []
    assert outcome.gaps() == []
    assert {outcome.index[seen.seq] for seen in outcome.seen if seen.live} >= set(outcome.stream.deltas[MARGIN:])
    assert outcome.broken == 0
    assert outcome.digests[0] > 0
    assert outcome.digests[1] == 0


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("capture", VENUES)
def test_a_fault_is_noticed_before_a_wrong_price_is_served(
    capture: str, mutation: str, outcomes: dict[tuple[str, str], Outcome]
) -> None:
    outcome, fate = outcomes[capture, mutation], FATES[capture][mutation]
    assert outcome.gaps() == ([fate] if fate not in (LIVE, CROSSED, UNSEEN) else [])
    if fate is UNSEEN:
        until = outcome.stream.deltas[-1]  # the snapshot comes next
        assert outcome.wrong()
        assert outcome.wrong() == [i for i in outcome.wrong() if target_of(outcome.stream, mutation) <= i <= until]
    else:
        assert outcome.wrong() == []
    assert any(seen.crossed for seen in outcome.seen) == (fate is CROSSED)


@pytest.mark.parametrize("mutation", ["", *MUTATIONS])
@pytest.mark.parametrize("capture", VENUES)
def test_the_next_snapshot_heals(capture: str, mutation: str, outcomes: dict[tuple[str, str], Outcome]) -> None:
    outcome = outcomes[capture, mutation]
    assert outcome.live
    assert outcome.levels == outcome.stream.final.levels()
    assert outcome.broken == 0
    assert outcome.digests[1] == 0
