"""A market that does not exist: pure, and the same for the same seed.

What makes it look like one: sizes fall off from the mid by a power law with a heavy tail, and pile up at round prices;
a fair price walks at random, and trades move the book to it; activity excites itself (a Hawkes process as its cluster
representation: each event has a child with probability `BRANCHING`), so it comes in bursts; instruments differ in
activity by Zipf's law.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import accumulate, count, islice, product
from math import floor, log10
from random import Random

from protos.book import Book
from protos.fixed import to_text
from protos.ladder import Ladder
from protos.messages import Levels, Side
from protos.tick import TextLevel, Tick, TickKind, TickTrade
from protos.topics import instrument_name

BRANCHING = 0.5
"""Probability that an event is followed by another one of the same instrument."""
ZIPF = 0.9
TRADES_MAX = 5
"""Levels that one order takes. Far fewer than a side has, so no side is ever empty."""
LEVELS_MIN, LEVELS_MAX = 40, 80
"""Per side. Enough for depth 50, few enough for 20,000 ticks/s on a core."""
SNAPSHOT_INTERVAL_NS = 60_000_000_000
CALM, EXCITED_MAX = 0.94, 4.0
"""What each event leaves of the excitement, and its bound."""
_ROUND = ((1000, 6.0), (500, 4.0), (100, 3.0), (50, 2.0), (10, 1.5))
"""People like round prices: multiples of so many ticks attract so many times the size."""

_BASES = """
BTC ETH SOL XRP BNB DOGE ADA TRX LINK AVAX SUI XLM TON HBAR LTC DOT BCH UNI NEAR APT ICP ETC AAVE POL VET ATOM FIL ARB
OP ALGO INJ TIA SEI RUNE IMX GRT MKR LDO STX FTM THETA SAND MANA AXS EGLD FLOW XTZ EOS NEO KAVA CHZ GALA CRV SNX COMP
ZEC DASH ENJ BAT ZIL QTUM ICX ONT IOTA KSM YFI SUSHI CAKE ROSE CELO ANKR SKL STORJ OCEAN BAND RLC FET AGIX JASMY DYDX
GMX ENS APE MASK BLUR WLD PYTH JUP BONK WIF PEPE SHIB FLOKI ORDI SATS MINA KAS CFX RVN DGB SC WAVES
""".split()  # noqa: SIM905
_QUOTES = "USDT USDC EUR BTC ETH BNB GBP TRY BRL JPY CHF AUD CAD PLN MXN ZAR KRW INR DAI TUSD".split()  # noqa: SIM905
_PRICES = {"BTC": 64_000.0, "ETH": 3_200.0, "SOL": 150.0, "BNB": 580.0, "XRP": 0.52, "DOGE": 0.12, "ADA": 0.38}
"""Where the best known start, in their first quote currency."""


def symbol_names() -> Iterator[tuple[str, str]]:
    """(base, quote), the best known first, without end."""
    yield from ((base, quote) for quote in _QUOTES for base in _BASES if base != quote)
    for length in count(2):
        for letters in product(*["BDFGKLMNPRSTVZ", "AEIOU"] * length):
            if (base := "".join(letters)) not in _BASES:
                yield base, "USDT"


class Instrument:
    """One book and those who trade in it. Each `step` is what happens at one moment, as ticks."""

    __slots__ = (
        "_base_lots",
        "_excited",
        "_fair",
        "_half_spread",
        "_rng",
        "_trade_id",
        "book",
        "name",
        "price_exponent",
        "sequence",
        "size_exponent",
        "snapshot_due_ns",
    )

    def __init__(self, name: str, price: float, rng: Random) -> None:
        self.name = name
        self._rng = rng
        self.price_exponent = max(-12, floor(log10(price)) - 6 + rng.randrange(2))
        self.size_exponent = min(0, -4 + max(0, 3 - floor(log10(price))))
        self._fair = price / 10.0**self.price_exponent
        self._half_spread = 0.5 + rng.expovariate(0.5)
        self._base_lots = 10.0 ** (rng.uniform(2.5, 3.5))
        self._excited = 0.0
        self._trade_id = rng.randrange(1, 10**9)
        self.sequence = 0
        self.snapshot_due_ns = 0
        self.book = Book()
        for side, direction in ((self.book.bids, -1), (self.book.asks, 1)):
            price_ticks = round(self._fair) + direction * (1 + round(self._half_spread))
            for _ in range((LEVELS_MIN + LEVELS_MAX) // 2):
                side.apply([(price_ticks, self._lots(price_ticks))])
                price_ticks += direction * self._distance()

    def _distance(self) -> int:
        """Ticks to the next level: mostly 1 to 3, sometimes far."""
        return min(100, int(self._rng.paretovariate(1.1)))

    def _behind(self) -> float:
        """Ticks behind the touch at which an order is placed: dense near it, with a long tail."""
        return min(500.0, 2.5 * (self._rng.paretovariate(0.95) - 1.0))

    def _lots(self, price: int) -> int:
        away = abs(price - self._fair) / (20.0 * (1.0 + self._half_spread))
        lots = self._base_lots * self._rng.paretovariate(1.6) * (1.0 + away) ** -0.6
        for ticks, factor in _ROUND:
            if price % ticks == 0:
                lots *= factor
                break
        return max(1, int(min(lots, 1e12)))

    def step(self, now_ns: int) -> list[Tick]:
        """One moment: perhaps a trade, changes near the touch, and the quote when that changed."""
        rng, book = self._rng, self.book
        self._excited *= CALM
        self._fair = max(1000.0, self._fair + rng.gauss(0.0, 0.6 * (1.0 + self._excited)))
        before = self._touch()
        ts_event_ns = now_ns - int(rng.lognormvariate(14.0, 0.5))  # about 1.2 ms on the way
        ticks: list[Tick] = []
        bids: dict[int, int] = {}
        asks: dict[int, int] = {}
        if trades := self._trade(bids, asks):
            ticks.append(Tick(TickKind.TRADES, self.sequence, 0, ts_event_ns, trades=trades))
        for _ in range(1 + min(9, int(rng.expovariate(0.6)))):
            if rng.random() < 0.5:
                self._change(book.bids, bids, -1)
            else:
                self._change(book.asks, asks, 1)
        self._keep_depth(book.bids, bids, -1)
        self._keep_depth(book.asks, asks, 1)
        prev, self.sequence = self.sequence, self.sequence + 1
        bid_levels, ask_levels = self._text(sorted(bids.items())), self._text(sorted(asks.items()))
        ticks.append(Tick(TickKind.DELTA, self.sequence, prev, ts_event_ns, bid_levels, ask_levels))
        touch = self._touch()
        if touch != before:
            ticks.append(
                Tick(TickKind.QUOTE, self.sequence, 0, ts_event_ns, self._text(touch[:1]), self._text(touch[1:]))
            )
        return ticks

    def snapshot(self, now_ns: int) -> Tick:
        """All levels. The next one is due in a minute, give or take a half: not all instruments at once."""
        self.snapshot_due_ns = now_ns + int(SNAPSHOT_INTERVAL_NS * self._rng.uniform(0.5, 1.5))
        self.sequence += 1
        bids, asks = self.book.top(0)
        return Tick(TickKind.SNAPSHOT, self.sequence, 0, now_ns, self._text(bids), self._text(asks))

    def _touch(self) -> Levels:
        """Best bid and ask; neither side is ever empty."""
        (bid,), (ask,) = self.book.top(1)
        return [bid, ask]

    def _text(self, levels: Levels) -> list[TextLevel]:
        price, size = self.price_exponent, self.size_exponent
        return [(to_text(ticks, price), to_text(lots, size)) for ticks, lots in levels]

    def _trade(self, bids: dict[int, int], asks: dict[int, int]) -> list[TickTrade]:
        """Somebody takes: because the fair price is beyond the touch, or at any time, more so in a burst."""
        rng, book = self._rng, self.book
        if self._fair >= _price(book.asks, 0, 1):
            buy, wants = True, self._base_lots * 2.0
        elif self._fair <= _price(book.bids, 0, -1):
            buy, wants = False, self._base_lots * 2.0
        elif rng.random() < 0.03 + 0.03 * self._excited:
            buy, wants = rng.random() < 0.5, self._base_lots * rng.lognormvariate(-2.0, 1.2)
        else:
            return []
        self._excited = min(EXCITED_MAX, self._excited + 0.4)
        side, changed = (book.asks, asks) if buy else (book.bids, bids)
        left = max(1, int(min(wants, 1e12)))
        trades: list[TickTrade] = []
        while left and len(trades) < TRADES_MAX:
            price = _price(side, 0, 1 if buy else -1)
            there = side.get(price, 0)
            lots = min(left, there)
            left -= lots
            self._set(side, changed, price, there - lots)
            self._trade_id += 1
            (text,) = self._text([(price, lots)])
            trades.append(TickTrade(*text, Side.BUY if buy else Side.SELL, str(self._trade_id)))
        return trades

    def _change(self, side: Ladder, changed: dict[int, int], direction: int) -> None:
        """One order comes, changes or goes, most likely near the touch."""
        rng = self._rng
        dice = rng.random()
        if dice < 0.35:
            price = self._new_price(direction)
        else:
            rank = min(len(side) - 1, int(rng.expovariate(0.15)))
            price = _price(side, rank, direction)
        gone = dice > 0.82 and len(side) > LEVELS_MIN
        self._set(side, changed, price, 0 if gone else self._lots(price))

    def _new_price(self, direction: int) -> int:
        """Around the fair price, and never across the touch."""
        price = round(self._fair + direction * (self._half_spread + self._behind()))
        if direction > 0:
            return max(price, _price(self.book.bids, 0, -1) + 1)
        return min(price, _price(self.book.asks, 0, 1) - 1)

    def _keep_depth(self, side: Ladder, changed: dict[int, int], direction: int) -> None:
        """As the price moves, orders far behind are withdrawn, and what was taken is placed again."""
        while len(side) > LEVELS_MAX:
            self._set(side, changed, _price(side, len(side) - 1, direction), 0)
        while len(side) < LEVELS_MIN:
            price = self._new_price(direction)
            self._set(side, changed, price, self._lots(price))

    @staticmethod
    def _set(side: Ladder, changed: dict[int, int], price: int, lots: int) -> None:
        side.apply([(price, lots)])
        changed[price] = lots


def _price(side: Ladder, rank: int, direction: int) -> int:
    """Of the level so far behind the touch."""
    at = rank if direction > 0 else len(side) - 1 - rank
    return side.prices(at, at + 1)[0]


class Market:
    """All instruments, as one endless sequence of ticks. Each begins with its snapshot.

    Args:
        symbols: How many instruments.
        rng: Decides everything; the same seed gives the same ticks for the same times.
    """

    def __init__(self, symbols: int, rng: Random) -> None:
        self._rng = rng
        self.instruments = [
            Instrument(instrument_name("sim", "spot", base + quote), _start_price(base, rng), rng)
            for base, quote in islice(symbol_names(), symbols)
        ]
        self._weights = list(accumulate((rank + 1) ** -ZIPF for rank in range(symbols)))
        self._first = deque(self.instruments)
        self._pending: deque[Tick] = deque()
        self._current = self.instruments[0]

    def next(self, now_ns: int) -> tuple[Instrument, Tick]:
        """The next tick, and whose it is.

        Args:
            now_ns: Time of the market; becomes the ticks' times.
        """
        if self._pending:
            return self._current, self._pending.popleft()
        if self._first:
            self._current = self._first.popleft()
            return self._current, self._current.snapshot(now_ns)
        if self._rng.random() >= BRANCHING:
            self._current = self.instruments[bisect_right(self._weights, self._rng.random() * self._weights[-1])]
        if now_ns >= self._current.snapshot_due_ns:
            return self._current, self._current.snapshot(now_ns)
        self._pending.extend(self._current.step(now_ns))
        return self._current, self._pending.popleft()


def _start_price(base: str, rng: Random) -> float:
    return _PRICES.get(base) or 10.0 ** rng.uniform(-3.0, 2.5)
