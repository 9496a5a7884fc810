"""What a capture says the client's books must be, and what they were. Used by `depthcast verify` and the tests.

Everything expected comes from the capture; everything observed comes from a client's own levels. The two meet only in
`Referee.report`, so it does not matter which is known first.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import NamedTuple

from ingest.checksum import CHECKSUMS
from ingest.events import BookEvent, QuoteEvent, TextLevel
from ingest.mappers import mapper_for
from protos.book import Book
from protos.messages import DEPTHS, Channel, Levels, Scale

Best = tuple[Decimal, Decimal] | None
"""(price, size) of a side's best level, exact; None for an empty side."""
Quote = tuple[Best, Best]
"""Of the bids and of the asks."""
Texts = tuple[Sequence[str], Sequence[str]]
"""The same as the venue wrote it."""

TIER_DEPTHS = tuple(depth for depth in DEPTHS if depth)
"""The full book is left to its digests: hashing thousands of levels at each of its updates would take minutes."""

OMISSIONS_MAX, OMISSIONS_OF = 2, 110_000
"""Binance leaves out a bookTicker now and then: 2 in 110,000 were counted. More are our fault."""


class _Kept(NamedTuple):
    """What one update of the venue leaves possible, on one side, for a quote between the book before it and its own."""

    best: Best  # of the client's levels that the update does not change: so they were there all the time
    better: frozenset[Decimal]  # prices better than that which it changes: these may have come and gone


@dataclass
class Report:
    """What `verify` counts."""

    messages: int = 0  # records put into Kafka
    updates: int = 0  # raw book updates that reached the client
    lost: int = 0  # messages of a book that never did, once it had begun
    checksums_passed: int = 0
    checksums_failed: int = 0  # differ, or never reached the client
    bbo_checked: int = 0
    bbo_exact: int = 0  # of these, with a quote at exactly the book's sequence
    bbo_failed: int = 0  # the venue's quote at exactly the book's sequence differs
    bbo_omitted: int = 0  # its latest quote before the book's sequence differs
    quotes_checked: int = 0  # quotes of the venue between two books that the client had
    quotes_failed: int = 0  # of these, with a best that neither stayed from one to the other nor was changed between
    gaps: int = 0  # broken chains in the client, and gaps that the server announced
    crossed: int = 0
    digests_passed: int = 0
    digests_failed: int = 0
    tiers_checked: int = 0  # messages of depth-limited streams held against the full book at their sequence
    tiers_failed: int = 0
    dlq: int = 0

    def holds(self) -> bool:
        """Nothing failed, and there was something that could."""
        failed = (self.checksums_failed, self.bbo_failed, self.quotes_failed, self.digests_failed, self.tiers_failed)
        missing = (self.lost, self.gaps, self.dlq)
        seen = (self.updates, self.digests_passed, self.tiers_checked)
        omissions = max(OMISSIONS_MAX, OMISSIONS_MAX * self.bbo_checked // OMISSIONS_OF)
        return not any(failed + missing) and all(seen) and self.bbo_omitted <= omissions

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Referee:
    """Collects both sides, by (instrument, seq)."""

    def __init__(self) -> None:
        self.counted = Report()
        self._checksums: dict[tuple[str, int], int] = {}
        self._seen_checksums: dict[tuple[str, int], int] = {}
        self._venue: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # (seq, venue sequence), ascending
        self._sent: defaultdict[str, list[int]] = defaultdict(list)  # seq of each message of a book, ascending
        self._quotes: defaultdict[str, dict[int, Texts]] = defaultdict(dict)  # by venue sequence
        self._seen_quotes: dict[tuple[str, int], Quote] = {}
        self._changes: dict[tuple[str, int], BookEvent] = {}  # until the client has it
        self._seen_levels: dict[tuple[str, int], tuple[Levels, Levels, Scale]] = {}  # until it is known what changed
        self._kept: dict[tuple[str, int], tuple[_Kept, _Kept]] = {}
        self._tops: dict[tuple[str, int], dict[int, int]] = {}  # hash of the top levels, by depth
        self._seen_tops: list[tuple[str, int, int, int]] = []

    def sent(self, feed: str, instrument: str, seq: int, value: bytes) -> bool:
        """A record went into Kafka that will have this ``seq``. Returns whether it speaks of the book."""
        self.counted.messages += 1
        has_book = False
        for event in mapper_for(feed).parse(feed, instrument, value):
            if isinstance(event, BookEvent):
                has_book = True
                if event.checksum is not None:
                    self._checksums[instrument, seq] = event.checksum
                if event.last is not None:
                    venue = self._venue[instrument]
                    venue.append((seq, max(event.last, venue[-1][1] if venue else 0)))
                    if not event.snapshot:
                        self._changes[instrument, seq] = event
                        self._compare(instrument, seq)
            elif isinstance(event, QuoteEvent) and event.last is not None:
                self._quotes[instrument][event.last] = (event.bid, event.ask)
        if has_book:
            self._sent[instrument].append(seq)
        return has_book

    def saw(self, instrument: str, channel: Channel, depth: int, seq: int, book: Book, scale: Scale) -> None:
        """The client applied an update: its book at ``seq``, on a raw stream or a depth-limited one."""
        if channel is Channel.BOOK:
            self._seen_tops.append((instrument, depth, seq, _hash(book, depth)))
            return
        self.counted.updates += 1
        self.counted.crossed += book.crossed
        checksum = CHECKSUMS.get(instrument.partition(":")[0])
        if checksum is not None:
            self._seen_checksums[instrument, seq] = checksum(book, scale)
        self._tops[instrument, seq] = {depth: _hash(book, depth) for depth in TIER_DEPTHS}
        bids, asks = book.top(max(TIER_DEPTHS))
        self._seen_quotes[instrument, seq] = (_best(bids, scale), _best(asks, scale))
        if checksum is None:
            self._seen_levels[instrument, seq] = (bids, asks, scale)
            self._compare(instrument, seq)

    def _compare(self, instrument: str, seq: int) -> None:
        """Keep of an update, once it is known on both sides, what the quotes before it are judged by."""
        if (instrument, seq) in self._changes and (instrument, seq) in self._seen_levels:
            event = self._changes.pop((instrument, seq))
            bids, asks, scale = self._seen_levels.pop((instrument, seq))
            self._kept[instrument, seq] = (_kept(event.bids, bids, scale, 1), _kept(event.asks, asks, scale, -1))

    def report(self) -> Report:
        """Hold one side against the other."""
        report = Report(**self.counted.as_dict())
        for key, expected in self._checksums.items():
            if self._seen_checksums.get(key) == expected:
                report.checksums_passed += 1
            else:
                report.checksums_failed += 1
        for instrument, sent in self._sent.items():
            seen = [seq for seq in sent if (instrument, seq) in self._tops]
            report.lost += len(sent) - sent.index(seen[0]) - len(seen) if seen else len(sent)
        for instrument, depth, seq, have in self._seen_tops:
            report.tiers_checked += 1
            report.tiers_failed += self._tops.get((instrument, seq), {}).get(depth) != have
        for instrument, quotes in self._quotes.items():
            self._judge_books(report, instrument, quotes)
            self._judge_quotes(report, instrument, quotes)
        return report

    def _judge_books(self, report: Report, instrument: str, quotes: dict[int, Texts]) -> None:
        sequences = sorted(quotes)
        for seq, last in self._venue[instrument]:
            seen = self._seen_quotes.get((instrument, seq))
            index = bisect_right(sequences, last) - 1
            if seen is None or index < 0:
                continue
            bid, ask = quotes[sequences[index]]
            differs = seen != (_side(*bid), _side(*ask))
            report.bbo_checked += 1
            if sequences[index] == last:
                report.bbo_exact += 1
                report.bbo_failed += differs
            else:
                report.bbo_omitted += differs

    def _judge_quotes(self, report: Report, instrument: str, quotes: dict[int, Texts]) -> None:
        """Each quote against the books around it, since quotes tell of every change and books of many at once."""
        venue = self._venue[instrument]
        for sequence, (bid, ask) in quotes.items():
            index = bisect_left(venue, sequence, key=lambda it: it[1])
            if not 0 < index < len(venue) or (instrument, venue[index - 1][0]) not in self._tops:
                continue
            kept = self._kept.get((instrument, venue[index][0]))
            if kept is not None:
                report.quotes_checked += 1
                report.quotes_failed += not (_possible(_side(*bid), kept[0]) and _possible(_side(*ask), kept[1]))


def _kept(changes: Sequence[TextLevel], levels: Levels, scale: Scale, sign: int) -> _Kept:
    changed = {Decimal(price) for price, _ in changes}
    unchanged = (level for level in (_best([it], scale) for it in levels) if level is None or level[0] not in changed)
    best = next(unchanged, None)
    return _Kept(best, frozenset(it for it in changed if best is None or it * sign > best[0] * sign))


def _possible(best: Best, kept: _Kept) -> bool:
    return best == kept.best or (best is not None and best[0] in kept.better)


def _hash(book: Book, depth: int) -> int:
    bids, asks = book.top(depth)
    return hash((tuple(bids), tuple(asks)))


def _side(price: str, size: str) -> Best:
    return (Decimal(price), Decimal(size)) if price else None


def _best(levels: Levels, scale: Scale) -> Best:
    if not levels:
        return None
    ticks, lots = levels[0]
    return Decimal(ticks).scaleb(scale.price_exponent), Decimal(lots).scaleb(scale.size_exponent)
